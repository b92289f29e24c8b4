"""CascadePSP's refinement module (arXiv 2005.02551, section 3.1, figure 2): a PSPNet over a picture and three masks.

The paper gives the levels and their order (sections 3.1 and 3.2); widths, the tap before the first normalisation and
the activations between levels are those of the published code (github.com/hkchengrex/CascadePSP, MIT), whose
checkpoints' names the submodules have. Numbers in names are strides, save in published keys.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.models.crm_r50 import Trunk, stage


class _Extractor(Trunk):
    """ResNet-50 whose last two stages keep stride 8, dilated by 2 and 4 after their first block."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.layer4 = stage(1024, 512, 3, dilation=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f2 = self.conv1(x)  # (B, 64, /2); as published, the skip is what no norm and no ReLU has seen yet
        x = self.maxpool(self.bn1(f2).relu_())
        f4 = self.layer1(x)  # (B, 256, /4)
        return self.layer4(self.layer3(self.layer2(f4))), f4, f2  # (B, 2048, /8)


class _PyramidPooling(nn.Module):
    """Means over 1, 2 x 2, 3 x 3 and 6 x 6 parts of the map beside the map (arXiv 1612.01105, figure 3)."""

    def __init__(self, inputs: int, outputs: int, parts: tuple[int, ...] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(inputs, inputs, 1, bias=False)) for n in parts
        )
        self.bottleneck = nn.Conv2d(inputs * (len(parts) + 1), outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = [F.interpolate(part(x), size=size, mode="bilinear", align_corners=False) for part in self.stages]
        return self.bottleneck(torch.cat([*pooled, x], 1)).relu_()


def _norm_conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, outputs, 3, padding=1)]


class _Up(nn.Module):
    """A map enlarged by two, joined with a skip of that size: two residual blocks with their norms first."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*_norm_conv(inputs + skip, outputs), *_norm_conv(outputs, outputs))
        self.conv2 = nn.Sequential(*_norm_conv(outputs, outputs), *_norm_conv(outputs, outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = _enlarged(x, 2)
        x = self.conv(torch.cat([x, skip], 1)).add_(self.shortcut(x))
        return x + self.conv2(x)


class CascadePSP(nn.Module):
    """The refinement module and its cascade of levels: strides 8, 4 and 1, each of which reads the masks before it."""

    def __init__(self) -> None:
        super().__init__()
        self.feats = _Extractor(3 + 3)
        self.psp = _PyramidPooling(2048, 1024)
        self.up_1 = _Up(1024, 256, 512)
        self.up_2 = _Up(512, 64, 256)
        self.up_3 = _Up(256, 3, 32)
        self.final_28 = _head(1024)
        self.final_56 = _head(512)
        self.final_11 = nn.Conv2d(32 + 3, 32, 1)
        self.final_21 = nn.Conv2d(32, 1, 1)

    def forward(self, x: Tensor, mask: Tensor, mask8: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities (B, 1, h, w) of the last level, at stride 1, and of its branch at stride 4, enlarged.

        x: picture (B, 3, h, w), normalised, of sides that are multiples of 8. mask: (B, 1, h, w) in [-1, 1]. mask8: a
        mask in the place of what the first level gives, which then is left out, as in the local step; the level at
        stride 4 follows it either way.
        """
        if mask8 is None:
            p, _, _ = self._pooled(x, mask, mask, mask)
            mask8 = _as_mask(self.final_28(p), 8)
        p, f4, _ = self._pooled(x, mask, mask8, mask8)
        mask8 = _as_mask(self.final_28(p), 8)
        mask4 = _as_mask(self.final_56(self.up_1(p, f4)), 4)
        p, f4, f2 = self._pooled(x, mask, mask8, mask4)
        p = self.up_1(p, f4)  # (B, 512, /4)
        fine4 = torch.sigmoid(_enlarged(self.final_56(p), 4))
        p = self.up_2(p, f2)  # (B, 256, /2)
        p = self.up_3(p, x)  # (B, 32, h, w)
        p = self.final_11(torch.cat([p, x], 1)).relu_()
        return torch.sigmoid(self.final_21(p)), fine4

    def _pooled(self, x: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, 1024, /8) of a picture with three masks, and the taps for skips at /4 and /2."""
        f8, f4, f2 = self.feats(torch.cat([x, *masks], 1))
        return self.psp(f8), f4, f2


def _head(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, 32, 1), nn.ReLU(inplace=True), nn.Conv2d(32, 1, 1))


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _as_mask(logit: Tensor, stride: int) -> Tensor:
    """A level's result as the next one reads it; tanh of the logit, as published, is not 2 sigmoid - 1."""
    return torch.tanh(_enlarged(logit, stride))
