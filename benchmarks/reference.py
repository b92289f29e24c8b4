"""The published computation, run plainly: the oracle of parity tests and the baseline of benchmarks.

CRM (Continuous Refinement Model, arXiv 2111.14482) in float32 torch: a dilated ResNet-50 whose last stage nothing
reads, fusion over the whole picture, and an implicit decoder (LIIF, arXiv 2012.09161) that gathers 256 features and
appends 6 coordinates for each of four neighbours of every full-resolution pixel. Nothing here is made fast on purpose;
what the library does instead is compared with it.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import resnet50

SCALES = (1 / 8, 1 / 4, 1 / 2, 1.0)
PADDING = 32
QUERIES_PER_CHUNK = 2**16
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_EPSILON = 1e-6


class _Encoder(nn.Module):
    """ResNet-50 over four channels; returns the taps at strides 2, 4 and 8. `layer4` runs and is not read."""

    def __init__(self) -> None:
        super().__init__()
        trunk = resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
        self.conv1 = nn.Conv2d(4, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = trunk.bn1
        self.relu = trunk.relu
        self.maxpool = trunk.maxpool
        self.layer1 = trunk.layer1
        self.layer2 = trunk.layer2
        self.layer3 = trunk.layer3
        self.layer4 = trunk.layer4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x1 = self.relu(self.bn1(self.conv1(x)))  # (B, 64, /2)
        x2 = self.layer1(self.maxpool(x1))  # (B, 256, /4)
        x3 = self.layer3(self.layer2(x2))  # (B, 1024, /8)
        self.layer4(x3)
        return x1, x2, x3


class _Tap(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.atrous_conv = nn.Conv2d(channels, out, 1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class _Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.aspp1_128 = _Tap(64, 64)
        self.aspp1_256 = _Tap(256, 64)
        self.aspp1_1024 = _Tap(1024, 128)
        self.bn1_128 = nn.BatchNorm2d(64)
        self.bn1_256 = nn.BatchNorm2d(64)
        self.bn1_1024 = nn.BatchNorm2d(128)
        self.last_conv = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU())

    def forward(self, x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
        x1 = F.relu(self.bn1_128(self.aspp1_128(x1)))
        x2 = F.relu(self.bn1_256(self.aspp1_256(x2)))
        x3 = F.relu(self.bn1_1024(self.aspp1_1024(x3)))
        size = x1.shape[-2:]
        x2 = F.interpolate(x2, size=size, mode="bilinear", align_corners=True)
        x3 = F.interpolate(x3, size=size, mode="bilinear", align_corners=True)
        return self.last_conv(torch.cat((x1, x2, x3), dim=1))  # (B, 256, h, w)


class _MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (262, 32, 32, 32, 32)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ReferenceCRM(nn.Module):
    """The published network and its cascade; `refine` is the whole of its use."""

    def __init__(self) -> None:
        super().__init__()
        self.feats = _Encoder()
        self.aspp_ = _Fusion()
        self.imnet = _MLP()
        self.eval()

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take every tensor of a published checkpoint, with or without `module.` before its keys."""
        self.load_state_dict({re.sub(r"^module\.", "", key): value for key, value in state.items()}, strict=True)

    @torch.inference_mode()
    def refine(self, image: np.ndarray, mask: np.ndarray) -> dict[float, np.ndarray]:
        """Probability (H, W) float32 after each scale, for `image` (H, W, 3) uint8 RGB and `mask` (H, W) in 0..255."""
        height, width = mask.shape
        device = next(self.parameters()).device
        picture, coarse = (x.to(device) for x in normalised(image, mask))
        probabilities = {}
        for scale in SCALES:
            empty = float((coarse + 1).sum()) < 2
            p = torch.zeros_like(coarse) if empty else self._at_scale(picture, coarse, scale)
            coarse = 2 * p - 1
            probabilities[scale] = p[0, 0, PADDING : PADDING + height, PADDING : PADDING + width].cpu().numpy().copy()
        return probabilities

    def _at_scale(self, picture: Tensor, coarse: Tensor, scale: float) -> Tensor:
        full = (picture.shape[-2], picture.shape[-1])
        size = [round(n * scale) for n in full]
        x = torch.cat(
            (
                F.interpolate(picture, size=size, mode="bilinear", align_corners=True),
                F.interpolate(coarse, size=size, mode="bilinear", align_corners=True),
            ),
            dim=1,
        )
        features = self.aspp_(*self.feats(x))[0]
        of = [centres(n).to(picture.device) for n in full]
        q = torch.stack(torch.meshgrid(*of, indexing="ij"), dim=-1).view(-1, 2)
        chunks = [self._query(features, part, full) for part in q.split(QUERIES_PER_CHUNK)]
        return torch.sigmoid(torch.cat(chunks)).view(1, 1, *full)

    def _query(self, features: Tensor, q: Tensor, full: tuple[int, int]) -> Tensor:
        """Logit (N,) at the points `q` (N, 2), as (y, x) in [-1, 1]."""
        h, w = features.shape[-2:]
        sides = torch.tensor([h, w], dtype=torch.float32)
        cell = (torch.tensor([2 / full[0], 2 / full[1]]) * sides).expand_as(q)
        sides, cell, y_of, x_of = (x.to(q.device) for x in (sides, cell, centres(h), centres(w)))
        outputs, areas = [], []
        for sy in (-1, 1):
            for sx in (-1, 1):
                iy = nearest(q[:, 0], sy, h)
                ix = nearest(q[:, 1], sx, w)
                gathered = features[:, iy, ix].t()  # (N, 256)
                rel = (q - torch.stack((y_of[iy], x_of[ix]), dim=-1)) * sides
                outputs.append(self.imnet(torch.cat((gathered, rel, q, cell), dim=-1))[:, 0])
                areas.append(rel.prod(dim=-1).abs() + 1e-9)
        total = torch.stack(areas).sum(dim=0)
        logit = torch.zeros_like(total)
        for output, opposite in zip(outputs, reversed(areas), strict=True):
            logit += output * (opposite / total)
        return logit


def normalised(image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """Picture (1, 3, H, W) and mask (1, 1, H, W) as the network reads them, border included."""
    colour = (image.astype(np.float32) / np.float32(255) - _MEAN) / _STD
    return _padded(colour.transpose(2, 0, 1)), _padded(mask.astype(np.float32)[None] / np.float32(127.5) - 1)


def _padded(x: np.ndarray) -> Tensor:
    """(C, H, W) reflected by 32 px on each side, as (1, C, H + 64, W + 64); short sides are reflected repeatedly."""
    return torch.from_numpy(np.pad(x, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)), mode="reflect"))[None]


def centres(n: int) -> Tensor:
    return (-1 + 1 / n) + (2 / n) * torch.arange(n, dtype=torch.float32)


def nearest(q: Tensor, shift: int, n: int) -> Tensor:
    """Index of the cell nearest to `q` moved by half a cell; exact halves go to the even index."""
    c = (q + (shift / n + _EPSILON)).clamp(-1 + _EPSILON, 1 - _EPSILON)
    return torch.round(((c + 1) * n - 1) / 2).long()
