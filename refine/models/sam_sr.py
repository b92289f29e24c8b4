"""SAM-SR v3: features of Segment Anything's encoder beside a shallow one of the picture itself (the thesis, 3.3.3).

The deep branch knows what objects are, in 64 x 64 cells of the whole picture; the shallow one, crm-s's stem and one
level more, where their edges lie. A few convolutions fuse both at /8: there the coarsest scale still has about a cell
for each of SAM's. What is above, and the decoder, is crm-s's.

How the coarse mask comes into the deep branch makes the versions:

    v3.1  "none"       D = F                          F: SAM's features, reduced to fewer channels
    v3.2  "add"        D = F + E                      E: a CNN's embedding of the mask, in the same cells
    v3.3  "global"     D = F + W softmax(Q K^T) V     Q, K of F and V of E: what looks alike shares its mask
    v3.4  "windowed"   the same within windows of 8 x 8 cells
"""

from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from refine.blocks import Area, Blocks
from refine.errors import one_of
from refine.models.crm_s import InterpolatedDecoder, SmallNetwork
from refine.models.layers import ConvNorm, conv_norms

FEATURES: Final = 256  # channels of SAM's encoder, whichever its type
HEADS: Final = 4
WINDOW: Final = 8  # cells
MASKS: Final = ("none", "add", "global", "windowed")


class Attention(nn.Module):
    """A weighted sum of the mask's vectors for each cell, by how alike the picture's vectors are.

    window: side in cells of the windows within which cells see each other, from the upper left; None is all of them.
    """

    def __init__(self, channels: int, *, heads: int = HEADS, window: int | None = None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """(B, C, n, m) of vectors of the picture and of the mask, both (B, C, n, m)."""
        n, m = image.shape[-2:]
        sides = (n, m) if self.window is None else (self.window, self.window)
        below, right = (-length % side for length, side in zip((n, m), sides, strict=True))
        image, mask = (_split(F.pad(x, (0, right, 0, below)), sides) for x in (image, mask))  # (B w, cells, C)
        there = None
        if below or right:  # windows that are cut by the border see nothing beyond it
            inside = F.pad(image.new_ones(1, 1, n, m), (0, right, 0, below)) > 0
            there = _split(inside, sides).transpose(1, 2)[:, None]  # (w, 1, 1, cells)
            there = there.repeat(len(image) // len(there), 1, 1, 1)
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B w, heads, cells, C / heads)
            for layer, x in ((self.query, image), (self.key, image), (self.value, mask))
        )
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=there)
        found = self.out(found.transpose(1, 2).flatten(2))
        return _joined(found, sides, (n + below, m + right))[:, :, :n, :m]


def _split(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """(B, C, n, m) as windows of ``sides`` cells: (B windows, cells, C)."""
    channels, rows, columns = x.shape[1], *sides
    x = x.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))  # (B, C, n / rows, rows, m / columns, columns)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, rows * columns, channels)


def _joined(x: Tensor, sides: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Windows (B windows, cells, C) as the map (B, C, n, m) of ``size`` that they are of."""
    down, across = (n // side for n, side in zip(size, sides, strict=True))
    x = x.reshape(-1, down, across, *sides, x.shape[-1])
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, x.shape[-1], *size)


class SamSR(SmallNetwork):
    """The refiner with a deep branch.

    Input channels are RGB in [0, 1] and the mask in [-1, 1], last. mask: how it comes into the deep branch, one of
    `MASKS`.

    Raises `OptionError` for another one.
    """

    window: Final = 8
    multiple = 8
    deep_stride: Final = 8  # px of the input for a cell of the deep map
    neighbours: Final = 1
    tile: Final = 4096
    working: Final = 60.0  # values per px at the peak: 55 measured where all is encoded, 56 by areas
    halo: Final = 64  # a latent cell sees 62 px, as tests/test_sam_sr.py measures

    def __init__(
        self, *, in_channels: int = 4, latent_channels: int = 32, deep_channels: int = 64, mask: str = "none"
    ) -> None:
        super().__init__()
        one_of("mask", mask, MASKS)
        self.in_channels = in_channels
        self.latent_channels = latent_channels
        self.reduce = nn.Conv2d(FEATURES, deep_channels, 1)
        self.embed: nn.Sequential | None = None
        if mask != "none":
            self.embed = nn.Sequential(
                nn.PixelUnshuffle(4), ConvNorm(16, deep_channels), nn.Conv2d(deep_channels, deep_channels, 1)
            )
        self.attention: Attention | None = None
        if mask in ("global", "windowed"):
            self.attention = Attention(deep_channels, window=WINDOW if mask == "windowed" else None)
        self.stem2 = nn.Sequential(nn.PixelUnshuffle(2), ConvNorm(4 * in_channels, 32), ConvNorm(32, 32))
        self.stem4 = nn.Sequential(ConvNorm(32, 64, stride=2), ConvNorm(64, 64))
        self.stem8 = nn.Sequential(ConvNorm(64, 96, stride=2), ConvNorm(96, 96))
        self.fuse8 = nn.Sequential(ConvNorm(deep_channels + 96, 96), ConvNorm(96, 64))
        self.merge4 = nn.Sequential(ConvNorm(64 + 64, 64), ConvNorm(64, 64), ConvNorm(64, 32, 1))
        self.merge2 = nn.Sequential(ConvNorm(32 + 32, 32), ConvNorm(32, 32))
        self.to_latent = nn.Conv2d(32, latent_channels, 1, bias=False)
        self.decoder = InterpolatedDecoder(in_channels, latent_channels)

    def deep(self, features: Tensor, mask: Tensor) -> Tensor:
        """The deep map (B, deep_channels, n, m) of whole pictures.

        features: (B, 256, n, m) of SAM's encoder; mask: (B, 1, 4 n, 4 m) in [-1, 1], over the same area.
        """
        return self._with_mask(self.reduce(features), None if self.embed is None else self.embed(mask))

    def deep_each(self, pictures: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """`deep` of pictures whose sizes differ, of features (1, 256, n, m) and a mask (1, 1, 4 n, 4 m) each.

        While training, statistics are those of all pictures' cells, as they would be of a batch of one size.
        """
        images = [self.reduce(features) for features, _ in pictures]
        if self.embed is None:
            return images
        unshuffle, around, last = self.embed
        cells = [F.unfold(unshuffle(mask), 3, padding=1)[0].T for _, mask in pictures]  # (n m, 16 * 9) each
        squares = torch.cat(cells).unflatten(1, (-1, 3, 3))  # every cell with those around it, zeros beyond the border
        vectors = last(cast(ConvNorm, around).valid(squares))[:, :, 0, 0].split([len(x) for x in cells])
        return [
            self._with_mask(image, mask.T.unflatten(1, image.shape[-2:])[None])
            for image, mask in zip(images, vectors, strict=True)
        ]

    def _with_mask(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """What the picture's vectors and the mask's, if it comes in, make together."""
        if mask is None:
            return image
        return image + (mask if self.attention is None else self.attention(image, mask))  # type: ignore[no-any-return]

    def encode(self, x: Tensor, deep: Tensor | None = None) -> tuple[Tensor, ...]:
        """Latent (B, latent_channels, h / 2, w / 2) of the input (B, in_channels, h, w), as the only tap.

        deep: (B, deep_channels, h / 8, w / 8), the deep map at the input's cells. Sides of the input that are no
        multiple of `multiple` are continued by their last pixels.
        """
        assert deep is not None
        rows, columns = self.tap_sizes(*x.shape[-2:])[0]
        s2, s4 = self._stem(x)
        y = self.fuse8(torch.cat((deep, self.stem8(s4)), 1))  # (B, 64, h/8, w/8)
        return (self._merged(y, s2, s4)[:, :, :rows, :columns],)

    def encode_area(
        self,
        x: Tensor,
        needed: NDArray[np.bool_],
        *,
        sizes: tuple[tuple[int, int], ...] = (),
        origin: tuple[int, int] = (0, 0),
        deep: Tensor | None = None,
    ) -> Blocks:
        """The latent of one input (1, in_channels, h, w) where it is ``needed``; see `CRMSmall.encode_area`."""
        assert deep is not None
        area = Area(needed, self._continued_size(x), x.device)
        d8 = Blocks.whole(deep, 8)
        s2, s4 = self._stem_area(area, x, 52)
        first, second = conv_norms(self.stem8)
        s8 = area.compute(8, 48, lambda b: first.valid(b.read(s4, 1, 0)), side=8)
        s8 = area.compute(8, 40, lambda b: second.valid(b.read(s8, 1)), side=8)
        one, other = conv_norms(self.fuse8)
        y8 = area.compute(8, 32, lambda b: one.valid(torch.cat((b.read(d8, 1), b.read(s8, 1)), 1)), side=8)
        y8 = area.compute(8, 24, lambda b: other.valid(b.read(y8, 1)), side=8)
        return self._merged_area(area, y8, s2, s4)
