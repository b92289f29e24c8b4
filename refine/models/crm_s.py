"""crm-s: the small network of the cascade, for a CPU.

Encode once, query any pixel, as CRM (arXiv 2111.14482) and LIIF (arXiv 2012.09161) do, with three differences.

* The encoder is U-shaped. A dense stem sees every pixel (2x2 pixels become channels, so nothing is lost at /2); a
  MobileNetV2 trunk (arXiv 1801.04381) sees the picture at half that resolution and brings what objects look like.
* The decoder evaluates its MLP once a pixel, on the bilinearly interpolated latent. To place edges more precisely than
  the latent grid it also reads the queried pixel itself: its colour and the current mask there.
* The output is a residual to the input mask's logit, so that "change nothing" is what the network starts from.
"""

import copy
from typing import ClassVar, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from refine.blocks import Area, Blocks
from refine.coords import LerpAxis
from refine.errors import one_of
from refine.models.kernels import PointKernel
from refine.models.layers import (
    ConvNorm,
    InvertedResidual,
    Residual,
    conv_norms,
    fold_norms,
    halved_in_strips,
    upsample_twice,
)
from refine.tiles import Window
from refine_kernels.reference_queries import InterpolatedTable, InterpolatedWeights

# (channels, blocks, stride of the first) of MobileNetV2 at width 1.0 behind its first block, up to its stride of 16.
_TRUNK: Final = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1))
_EXPANSION: Final = 6

MASK_LOGIT_LIMIT: Final = 4.0  # a binary mask's logit would be infinite; p = 0.982 is as sure as an input may be


class Trunk(nn.Module):
    """MobileNetV2 features of a picture: (16 ch /2, 24 ch /4, 32 ch /8, 96 ch /16)."""

    widths: Final = (16, 24, 32, 96)

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
        return _levels(self.first, self.levels, x)


class DenseTrunk(nn.Module):
    """The other side of the choice: residual dense 3x3 convolutions, which a CPU's matrix units run fastest.

    Features of a picture: (32 ch /2, 64 ch /4, 96 ch /8, 128 ch /16), for about the time of `Trunk`.
    """

    widths: Final = (32, 64, 96, 128)

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, 32, stride=2)
        self.levels = nn.ModuleList()
        for width, (channels, blocks) in zip(self.widths, ((64, 2), (96, 3), (128, 4)), strict=False):
            level = nn.Sequential(ConvNorm(width, channels, stride=2))
            for _ in range(blocks):
                level.append(Residual(channels))
            self.levels.append(level)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _levels(self.first, self.levels, x)


def _levels(first: nn.Module, levels: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reach = 8  # rows; three 3x3 convolutions after one of stride 2 see 7
    x2 = halved_in_strips(first, x, reach)
    x4 = halved_in_strips(levels[0], x2, reach)
    x8 = halved_in_strips(levels[1], x4, reach)
    return x2, x4, x8, levels[2](x8)


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
        logit = self._answer(z).permute(0, 3, 1, 2)
        return logit + mask_logit(guide[:, -1:])

    def at_points(self, latent: Blocks, y: LerpAxis, x: LerpAxis, guide: Tensor) -> Tensor:
        """Logits (N,) float32 of N queries, each at its own place on both axes; guide: (N, in_channels)."""
        along = x.fraction[:, None].to(latent.values)
        top, bottom = (torch.lerp(latent.at(row, x.low), latent.at(row, x.high), along) for row in (y.low, y.high))
        z = torch.lerp(top, bottom, y.fraction[:, None].to(top))  # (N, C)
        z += self.guide(guide.to(z))
        z += self.phase(torch.cat((y.phase, x.phase), 1).to(z))
        return self._answer(z)[:, 0] + mask_logit(guide[:, -1])

    def _answer(self, z: Tensor) -> Tensor:
        """The MLP behind its first layer's sum, float32."""
        return self.last(torch.relu_(self.hidden(torch.relu_(z)))).float()  # type: ignore[no-any-return]


class EnsembleDecoder(InterpolatedDecoder):
    """The other side of the choice: LIIF's local ensemble (arXiv 2012.09161, section 3), four evaluations a query.

    The MLP sees each of the four cells around a query and the query's place relative to that cell, in cells; the
    outputs are averaged with the weights of bilinear interpolation, which are the areas of the opposite corners.
    """

    def forward(self, latent: Tensor, rows: LerpAxis, columns: LerpAxis, guide: Tensor) -> Tensor:
        """As `InterpolatedDecoder`."""
        cells = latent.permute(0, 2, 3, 1)  # (B, h, w, C)
        own = self.guide(guide.permute(0, 2, 3, 1).to(cells))
        logit = mask_logit(guide[:, -1:])
        for row, rel_y, weight_y in rows.corners():
            z = cells.index_select(1, row)
            along_y = (rel_y[:, None] * self.phase.weight[:, 0]).to(z)  # (n, C)
            for column, rel_x, weight_x in columns.corners():
                along_x = (rel_x[:, None] * self.phase.weight[:, 2]).to(z)  # (m, C)
                h = z.index_select(2, column) + own + along_y[:, None, :] + along_x
                logit = logit + self._answer(h)[..., 0][:, None] * (weight_y[:, None] * weight_x)
        return logit

    def at_points(self, latent: Blocks, y: LerpAxis, x: LerpAxis, guide: Tensor) -> Tensor:
        """As `InterpolatedDecoder`."""
        own = self.guide(guide.to(latent.values))
        logit = mask_logit(guide[:, -1])
        for row, rel_y, weight_y in y.corners():
            for column, rel_x, weight_x in x.corners():
                along = torch.stack((rel_y, rel_x), 1) @ self.phase.weight[:, ::2].T.float()
                h = latent.at(row, column) + own + along.to(own)
                logit = logit + self._answer(h)[:, 0] * (weight_y * weight_x)
        return logit


def continued(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The map (B, C, h, w), channels last, continued by its last pixels to ``size`` (h, w)."""
    below, right = size[0] - x.shape[2], size[1] - x.shape[3]
    if below or right:
        x = F.pad(x, (0, right, 0, below), mode="replicate")
    return x.contiguous(memory_format=torch.channels_last)


def mask_logit(mask: Tensor) -> Tensor:
    """Logit of a mask in [-1, 1], limited to +-MASK_LOGIT_LIMIT, float32."""
    limit = float(torch.tanh(torch.tensor(MASK_LOGIT_LIMIT / 2)))
    return 2 * torch.atanh(mask.float().clamp(-limit, limit))


TRUNKS: Final[dict[str, type[Trunk] | type[DenseTrunk]]] = {"mobilenetv2": Trunk, "dense": DenseTrunk}
DECODERS: Final[dict[str, type[InterpolatedDecoder]]] = {
    "interpolated": InterpolatedDecoder,
    "ensemble": EnsembleDecoder,
}


class SmallNetwork(nn.Module):
    """What small networks share around their middle: the stem, the merges from /8 up to the latent, and the decoder."""

    stride: Final = 2
    guided: Final = True
    multiple: ClassVar[int]
    in_channels: int
    stem2: nn.Sequential
    stem4: nn.Sequential
    merge4: nn.Sequential
    merge2: nn.Sequential
    to_latent: nn.Conv2d
    decoder: InterpolatedDecoder

    def tap_sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        return ((-(-height // self.stride), -(-width // self.stride)),)

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 32, h/2, w/2) and (B, 64, h/4, w/4) of the input, continued to the continued size."""
        s2 = self.stem2(continued(x, self._continued_size(x)))
        return s2, self.stem4(s2)

    def _merged(self, y8: Tensor, s2: Tensor, *at4: Tensor) -> Tensor:
        """The latent (B, latent_channels, h/2, w/2) of a map at /8 and what is finer."""
        y = self.merge4(torch.cat((upsample_twice(y8), *at4), 1))  # (B, 32, h/4, w/4)
        y = self.merge2(torch.cat((upsample_twice(y), s2), 1))  # (B, 32, h/2, w/2)
        return self.to_latent(y)  # type: ignore[no-any-return]

    def _stem_area(self, area: Area, x: Tensor, reach: int) -> tuple[Blocks, Blocks]:
        """`_stem` of one input, at /4 within ``reach`` px of the area and at /2 within 8 px more."""
        picture = Blocks.around(x, 1, (0, 0))
        pixels = area.compute(2, reach + 12, lambda b: F.pixel_unshuffle(b.read(picture, repeat=True), 2))
        first, second = conv_norms(self.stem2)
        s2 = area.compute(2, reach + 10, lambda b: first.valid(b.read(pixels, 1)))
        s2 = area.compute(2, reach + 8, lambda b: second.valid(b.read(s2, 1)))
        first, second = conv_norms(self.stem4)
        s4 = area.compute(4, reach + 4, lambda b: first.valid(b.read(s2, 1, 0)))
        return s2, area.compute(4, reach, lambda b: second.valid(b.read(s4, 1)))

    def _merged_area(self, area: Area, y8: Blocks, s2: Blocks, *at4: Blocks) -> Blocks:
        """`_merged` in an area; y8 has to be right within 24 px of it, the maps at /4 within 16."""
        first, second, third = conv_norms(self.merge4)
        y4 = area.compute(4, 12, lambda b: first.valid(b.enlarged(y8, *at4)))
        y4 = area.compute(4, 8, lambda b: third.valid(second.valid(b.read(y4, 1))))
        first, last = conv_norms(self.merge2)
        y2 = area.compute(2, 2, lambda b: first.valid(b.enlarged(y4, s2)))
        return area.compute(2, 0, lambda b: self.to_latent(last.valid(b.read(y2, 1))))

    def _continued_size(self, x: Tensor) -> tuple[int, int]:
        """The sides of x, up to multiples of `multiple`."""
        height, width = (-(-n // self.multiple) * self.multiple for n in x.shape[-2:])
        return height, width

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

    def decode_points(
        self, latent: Blocks, rows: LerpAxis, columns: LerpAxis, points: Tensor, guide: Tensor | None
    ) -> Tensor:
        """Logits (N,) float32 of the queries ``points`` (N, 2) among ``rows`` x ``columns``; guide (N, in_channels)."""
        assert guide is not None
        logit: Tensor = self.decoder.at_points(latent, rows[points[:, 0]], columns[points[:, 1]], guide)
        return logit

    def point_kernel(self, rows: LerpAxis, columns: LerpAxis) -> PointKernel | None:
        """The same by `refine_kernels`, which has no kernel for the ensemble: see `refine.models.PointKernel`."""
        if isinstance(self.decoder, EnsembleDecoder):
            return None
        d = self.decoder
        phases = d.phase.weight.float().split(2, dim=1)
        tables = (
            InterpolatedTable(axis.low.int(), axis.high.int(), axis.fraction, axis.phase @ phase.T)
            for axis, phase in zip((rows, columns), phases, strict=True)
        )
        weights = InterpolatedWeights(
            guide=d.guide.weight.detach().float(),
            guide_bias=d.guide.bias.detach().float(),
            hidden=d.hidden.weight.detach().float(),
            hidden_bias=d.hidden.bias.detach().float(),
            last=d.last.weight.detach().float()[0].contiguous(),
            last_bias=float(d.last.bias),
        )
        return PointKernel("interpolated_decode", tuple(tables), weights, lambda guide: mask_logit(guide[:, -1]))

    def folded(self) -> Self:
        """A copy for inference whose normalisations are part of the convolutions before them. Fold before any cast."""
        network = copy.deepcopy(self).eval().requires_grad_(False)
        fold_norms(network)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class CRMSmall(SmallNetwork):
    """The small implicit refiner.

    Input channels are RGB in [0, 1] and the mask in [-1, 1], last. trunk, decoder: keys of `TRUNKS` and `DECODERS`;
    the table in weights/README.md is why the defaults are what they are.

    Raises `OptionError` for an unknown trunk or decoder.
    """

    window: Final = 32
    multiple = 32
    tile: Final = 4096  # px of input that make about 2 GB of features in bfloat16
    working: Final = 56.0  # values per px at the peak: 50 measured
    # How far a latent cell sees. Every 3x3 convolution adds its input's stride, every enlargement its coarse cell, and
    # the asymmetric padding of strided convolutions draws it all to the right and down: 362 px at most, as
    # tests/test_crm_s.py measures; then a multiple of `window`.
    halo: Final = 384

    def __init__(
        self,
        *,
        in_channels: int = 4,
        latent_channels: int = 32,
        trunk: str = "mobilenetv2",
        decoder: str = "interpolated",
    ) -> None:
        super().__init__()
        one_of("trunk", trunk, tuple(TRUNKS))
        one_of("decoder", decoder, tuple(DECODERS))
        self.in_channels = in_channels
        self.latent_channels = latent_channels
        self.neighbours = 4 if decoder == "ensemble" else 1  # evaluations of the MLP a query
        self.stem2 = nn.Sequential(nn.PixelUnshuffle(2), ConvNorm(4 * in_channels, 32), ConvNorm(32, 32))
        self.stem4 = nn.Sequential(ConvNorm(32, 64, stride=2), ConvNorm(64, 64))
        self.trunk: Trunk | DenseTrunk = TRUNKS[trunk](in_channels)
        w4, w8, w16, w32 = self.trunk.widths  # named by their stride in x
        self.lateral32 = ConvNorm(w32, 96, 1)
        self.merge16 = ConvNorm(96 + w16, 96)
        self.merge8 = ConvNorm(96 + w8, 64)
        self.merge4 = nn.Sequential(ConvNorm(64 + w4 + 64, 64), ConvNorm(64, 64), ConvNorm(64, 32, 1))
        self.merge2 = nn.Sequential(ConvNorm(32 + 32, 32), ConvNorm(32, 32))
        self.to_latent = nn.Conv2d(32, latent_channels, 1, bias=False)
        self.decoder: InterpolatedDecoder = DECODERS[decoder](in_channels, latent_channels)

    def encode(self, x: Tensor, deep: None = None) -> tuple[Tensor, ...]:
        """Latent (B, latent_channels, h / 2, w / 2) of the input (B, in_channels, h, w), as the only tap.

        Sides that are no multiple of `multiple` are continued by their last pixels.
        """
        rows, columns = self.tap_sizes(*x.shape[-2:])[0]
        t4, t8, t16, t32 = self.trunk(self._halved(x))  # named by their stride in x
        s2, s4 = self._stem(x)
        y = self.merge16(torch.cat((upsample_twice(self.lateral32(t32)), t16), 1))  # (B, 96, h/16, w/16)
        y = self.merge8(torch.cat((upsample_twice(y), t8), 1))  # (B, 64, h/8, w/8)
        return (self._merged(y, s2, t4, s4)[:, :, :rows, :columns],)

    def encode_area(
        self,
        x: Tensor,
        needed: NDArray[np.bool_],
        *,
        sizes: tuple[tuple[int, int], ...] = (),
        origin: tuple[int, int] = (0, 0),
        deep: None = None,
    ) -> Blocks:
        """The latent of one input (1, in_channels, h, w) where it is ``needed``; see `refine.blocks.Area`.

        The trunk, a seventh of the work, is computed on the rectangle that the needed cells depend on; all else in
        blocks. The reaches follow from the layers behind: a 3x3 convolution adds its stride, an enlargement that of
        its input; the stem at /2 is also read by strided convolutions. tests/test_encode_area.py compares both.
        """
        area = Area(needed, self._continued_size(x), x.device)
        t4, t8, t16, t32 = self.trunk(self._halved(x))  # named by their stride in x
        t4, t8, t16, y32 = (Blocks.whole(t, s) for t, s in ((t4, 4), (t8, 8), (t16, 16), (self.lateral32(t32), 32)))
        y16 = area.compute(16, 48, lambda b: self.merge16.valid(b.enlarged(y32, t16)), side=4)
        y8 = area.compute(8, 24, lambda b: self.merge8.valid(b.enlarged(y16, t8)), side=8)
        s2, s4 = self._stem_area(area, x, 16)
        return self._merged_area(area, y8, s2, t4, s4)

    def _halved(self, x: Tensor) -> Tensor:
        """What the trunk sees of x: means of 2 x 2 pixels, continued by its last pixels to the continued size."""
        whole = self._continued_size(x)
        # Two pixels more than an even side, so that the last mean is of the last pixel alone.
        x = continued(x, tuple(min(n + n % 2 + 2, m) for n, m in zip(x.shape[-2:], whole, strict=True)))
        # As a convolution, since on a CPU torch's pooling of a few channels takes eight times as long.
        weight = torch.eye(self.in_channels, dtype=x.dtype, device=x.device)[..., None, None].expand(-1, -1, 2, 2) / 4
        weight = weight.contiguous(memory_format=torch.channels_last)
        return continued(F.conv2d(x, weight, stride=2), tuple(m // 2 for m in whole))
