"""crm-s: the small network of the cascade, for a CPU.

Encode once, query any pixel, as CRM (arXiv 2111.14482) and LIIF (arXiv 2012.09161) do, with three differences.

* The encoder is U-shaped. A dense stem sees every pixel (2x2 pixels become channels, so nothing is lost at /2); a
  MobileNetV2 trunk (arXiv 1801.04381) sees the picture at half that resolution and brings what objects look like.
* The decoder evaluates its MLP once a pixel, on the bilinearly interpolated latent. To place edges more precisely than
  the latent grid it also reads the queried pixel itself: its colour and the current mask there.
* The output is a residual to the input mask's logit, so that "change nothing" is what the network starts from.
"""

import copy
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.coords import LerpAxis
from refine.models.layers import ConvNorm, InvertedResidual, fold_norms, upsample_twice
from refine.tiles import Window

# (channels, blocks, stride of the first) of MobileNetV2 at width 1.0 behind its first block, up to its stride of 16.
_TRUNK: Final = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1))
_EXPANSION: Final = 6

MASK_LOGIT_LIMIT: Final = 4.0  # a binary mask's logit would be infinite; p = 0.982 is as sure as an input may be


class Trunk(nn.Module):
    """MobileNetV2 features of a picture: (16 ch /2, 24 ch /4, 32 ch /8, 96 ch /16)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            ConvNorm(in_channels, 32, stride=2, activation="relu6", eps=1e-3, asymmetric=True),
            InvertedResidual(32, 16, stride=1, expansion=1),
        )
        self.levels = nn.ModuleList()
        width = 16
        for group in (_TRUNK[:1], _TRUNK[1:2], _TRUNK[2:]):
            level = nn.Sequential()
            for channels, blocks, stride in group:
                for i in range(blocks):
                    step = stride if i == 0 else 1
                    level.append(InvertedResidual(width, channels, stride=step, expansion=_EXPANSION))
                    width = channels
            self.levels.append(level)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x2 = self.first(x)
        x4 = self.levels[0](x2)
        x8 = self.levels[1](x4)
        return x2, x4, x8, self.levels[2](x8)


class InterpolatedDecoder(nn.Module):
    """One MLP evaluation a query, on the interpolated latent, the queried pixel and its place within the cell.

    The latent already is W_F F (identity b); ``phase`` depends on the row or on the column alone (identity c).
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.guide = nn.Linear(in_channels, width)
        self.phase = nn.Linear(4, width, bias=False)
        self.hidden = nn.Linear(width, width)
        self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, latent: Tensor, rows: LerpAxis, columns: LerpAxis, guide: Tensor) -> Tensor:
        """Logits (B, 1, n, m) float32 of the queries ``rows`` x ``columns``.

        latent: (B, C, h, w), whose first row and column are number 0 of the axes' indices.
        guide: (B, in_channels, n, m), the network's input sampled at the queries; the mask, in [-1, 1], is last.
        """
        z = latent.permute(0, 2, 3, 1)  # (B, h, w, C): channels together, as matrix products want them
        z = columns.interpolate(rows.interpolate(z, 1), 2)  # (B, n, m, C)
        along_y = rows.phase.to(z) @ self.phase.weight[:, :2].T.to(z)  # (n, C)
        along_x = columns.phase.to(z) @ self.phase.weight[:, 2:].T.to(z)  # (m, C)
        z = z + self.guide(guide.permute(0, 2, 3, 1).to(z))
        z += along_y[:, None, :]
        z += along_x
        z = torch.relu_(self.hidden(torch.relu_(z)))
        logit = self.last(z).float().permute(0, 3, 1, 2)
        return logit + mask_logit(guide[:, -1:])


def mask_logit(mask: Tensor) -> Tensor:
    """Logit of a mask in [-1, 1], limited to +-MASK_LOGIT_LIMIT, float32."""
    limit = float(torch.tanh(torch.tensor(MASK_LOGIT_LIMIT / 2)))
    return 2 * torch.atanh(mask.float().clamp(-limit, limit))


class CRMSmall(nn.Module):
    """The small implicit refiner.

    Input channels are RGB in [0, 1] and the mask in [-1, 1], last.
    """

    stride: Final = 2
    window: Final = 32
    guided: Final = True
    tile: Final = 4096  # px of input that make about 2 GB of features in bfloat16
    neighbours: Final = 1  # cells are interpolated before the MLP, which runs once a query
    # How far a latent cell sees. Every 3x3 convolution adds its input's stride, every enlargement its coarse cell, and
    # the asymmetric padding of strided convolutions draws it all to the right and down: 362 px at most, as
    # tests/test_crm_s.py measures; then a multiple of `window`.
    halo: Final = 384

    def __init__(self, *, in_channels: int = 4, latent_channels: int = 32) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.latent_channels = latent_channels
        self.stem2 = nn.Sequential(nn.PixelUnshuffle(2), ConvNorm(4 * in_channels, 32), ConvNorm(32, 32))
        self.stem4 = nn.Sequential(ConvNorm(32, 64, stride=2), ConvNorm(64, 64))
        self.trunk = Trunk(in_channels)
        self.lateral32 = ConvNorm(96, 96, 1)
        self.merge16 = ConvNorm(96 + 32, 96)
        self.merge8 = ConvNorm(96 + 24, 64)
        self.merge4 = nn.Sequential(ConvNorm(64 + 16 + 64, 64), ConvNorm(64, 64), ConvNorm(64, 32, 1))
        self.merge2 = nn.Sequential(ConvNorm(32 + 32, 32), ConvNorm(32, 32))
        self.to_latent = nn.Conv2d(32, latent_channels, 1, bias=False)
        self.decoder = InterpolatedDecoder(in_channels, latent_channels)

    def tap_sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        return ((-(-height // self.stride), -(-width // self.stride)),)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Latent (B, latent_channels, h / 2, w / 2) of the input (B, in_channels, h, w), as the only tap.

        Sides that are no multiple of `window` are continued by their last pixels.
        """
        height, width = x.shape[-2:]
        below, right = -height % self.window, -width % self.window
        if below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        s2 = self.stem2(x)  # (B, 32, h/2, w/2)
        s4 = self.stem4(s2)  # (B, 64, h/4, w/4)
        t4, t8, t16, t32 = self.trunk(F.avg_pool2d(x, 2))  # named by their stride in x
        y = self.merge16(torch.cat((upsample_twice(self.lateral32(t32)), t16), 1))  # (B, 96, h/16, w/16)
        y = self.merge8(torch.cat((upsample_twice(y), t8), 1))  # (B, 64, h/8, w/8)
        y = self.merge4(torch.cat((upsample_twice(y), t4, s4), 1))  # (B, 32, h/4, w/4)
        y = self.merge2(torch.cat((upsample_twice(y), s2), 1))  # (B, 32, h/2, w/2)
        rows, columns = self.tap_sizes(height, width)[0]
        return (self.to_latent(y)[:, :, :rows, :columns],)

    def fuse(
        self,
        taps: tuple[Tensor, ...],
        *,
        sizes: tuple[tuple[int, int], ...],
        origin: tuple[int, int],
        window: Window,
    ) -> Tensor:
        """The latent's cells ``window``, from a tap that begins at cell ``origin``; `encode` has fused them."""
        (top, left), (tap,) = origin, taps
        return tap[:, :, window.top - top : window.bottom - top, window.left - left : window.right - left]

    def axis(self, pixels: int, samples: int) -> LerpAxis:
        """Where each of ``pixels`` reads the latent of ``samples`` px of input."""
        return LerpAxis.between(pixels, samples, self.stride, -(-samples // self.stride))

    def axis_at(self, pixels: int, samples: int, queries: int) -> LerpAxis:
        """Where ``queries`` spread over the picture read that latent; how many ``pixels`` it has does not matter."""
        return self.axis(queries, samples)

    def decode(self, latent: Tensor, rows: LerpAxis, columns: LerpAxis, guide: Tensor | None) -> Tensor:
        """Logits (B, 1, n, m) float32 of the queries ``rows`` x ``columns``; see `InterpolatedDecoder`."""
        assert guide is not None
        logit: Tensor = self.decoder(latent, rows, columns, guide)
        return logit

    def folded(self) -> "CRMSmall":
        """A copy for inference whose normalisations are part of the convolutions before them. Fold before any cast."""
        network = copy.deepcopy(self).eval().requires_grad_(False)
        fold_norms(network)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
