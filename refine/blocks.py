"""Feature maps of which only some blocks exist, and layers that compute only those (identity f, stage by stage).

A convolution needs a little more of its input than it gives, so the area in which a map has to be right grows from
stage to stage backwards through a network. `Area` says how large it is for a given reach, rounded once to the blocks
that are computed; a block may hold cells that nobody needs and whose value is then of no account. Blocks are computed
in batches without padding: their windows of the input are gathered, with zeros where the picture ends, so that real
borders keep the zero padding of the network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

FINE = 8  # px; areas are known in squares of this side
SIDE = 16  # cells of a block: a row of them fills a matrix unit's tile
CHUNK = 2**24  # bytes of gathered input in a batch


@dataclass(frozen=True)
class Blocks:
    """A map of ``size`` (h, w) cells of ``stride`` px each, stored by blocks.

    values: (blocks * side^2 + 1, C), cells row by row within a block; the last row is zero.
    slots: (ceil(h / side), ceil(w / side)) int32, the number of each block, -1 where it does not exist.

    A whole map is one of blocks as wide as itself, one below the other, of which the last need not be whole.
    """

    values: Tensor
    slots: Tensor
    side: int
    size: tuple[int, int]
    stride: int
    origin: tuple[int, int] = (0, 0)
    """The cell of a larger map that cell (0, 0) of this one is."""

    @property
    def computed(self) -> int:
        """How many cells of the map exist."""
        rows, columns = (
            (n - self.side * torch.arange(blocks)).clamp(max=self.side)
            for n, blocks in zip(self.size, self.slots.shape, strict=True)
        )
        return int((rows[:, None] * columns)[self.slots.cpu() >= 0].sum())

    @classmethod
    def whole(cls, x: Tensor, stride: int) -> "Blocks":
        """A map (1, C, h, w) that exists everywhere, as a single block."""
        _, channels, height, width = x.shape
        values = x.new_zeros(height * width + 1, channels)
        values[:-1].view(height, width, channels).copy_(x[0].permute(1, 2, 0))
        return cls(values, _stacked(height, width, x.device), width, (height, width), stride)

    @classmethod
    def around(cls, x: Tensor, stride: int, origin: tuple[int, int]) -> "Blocks":
        """A map (1, C, h, w), channels last, as it is in memory: only cells inside it may be read."""
        height, width = x.shape[-2:]
        values = x[0].permute(1, 2, 0).reshape(-1, x.shape[1])
        return cls(values, _stacked(height, width, x.device), width, (height, width), stride, origin)

    def at(self, y: Tensor, x: Tensor) -> Tensor:
        """The cells (N, C) at rows y (N,) and columns x (N,)."""
        return self.values.index_select(0, self.rows(y, x))

    def rows(self, y: Tensor, x: Tensor) -> Tensor:
        """Rows of ``values`` of the cells (y, x), int64 that broadcast; cells that do not exist have the last one."""
        side, (height, width) = self.side, self.size
        there = ((y >= 0) & (y < height)) & ((x >= 0) & (x < width))
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
        slot = self.slots[y // side, x // side].long()
        return torch.where(there & (slot >= 0), (slot * side + y % side) * side + x % side, len(self.values) - 1)


class Area:
    """Where the latent of a picture of ``size`` (h, w) px is needed.

    needed: bool, a square of FINE px each from the upper left; none beyond its last row and column.
    """

    def __init__(self, needed: NDArray[np.bool_], size: tuple[int, int], device: torch.device | str = "cpu") -> None:
        missing = [-(-n // FINE) - m for n, m in zip(size, needed.shape, strict=True)]
        self.needed, self.size = np.pad(needed, ((0, missing[0]), (0, missing[1]))), size
        self.device = torch.device(device)

    def grown(self, reach: int) -> NDArray[np.bool_]:
        """The squares within ``reach`` px of needed ones."""
        steps = -(-reach // FINE)
        brush = np.ones((2 * steps + 1, 2 * steps + 1), np.uint8)
        return np.asarray(cv2.dilate(self.needed.view(np.uint8), brush), bool) if steps else self.needed

    def compute(self, stride: int, reach: int, layer: Callable[["Batch"], Tensor], *, side: int = SIDE) -> Blocks:
        """The map of cells of ``stride`` px that ``layer`` gives, right within ``reach`` px of the needed area.

        layer: gets a batch of M blocks and returns them, (M, C, side, side).
        """
        size: tuple[int, int] = tuple(-(-n // stride) for n in self.size)  # type: ignore[assignment]
        active = _pooled(self.grown(reach), stride * side // FINE, tuple(-(-n // side) for n in size))
        slots = np.full(active.shape, -1, np.int32)
        slots[active] = np.arange(active.sum())
        origins = torch.from_numpy(np.argwhere(active) * side).to(self.device)
        values, at, step = None, 0, 1
        while at < len(origins):
            batch = Batch(origins[at : at + step], side, stride, size)
            out = layer(batch).permute(0, 2, 3, 1)  # (M, side, side, C)
            if values is None:
                values = out.new_empty(len(origins) * side * side + 1, out.shape[-1])
                values[-1] = 0
            values[at * side * side : (at + len(out)) * side * side] = out.reshape(-1, out.shape[-1])
            at += step
            step = max(1, CHUNK * step // max(batch.bytes, 1)) if step == 1 else step
        assert values is not None, "an area without a needed cell is not computed"
        return Blocks(values, torch.from_numpy(slots).to(self.device), side, size, stride)


@dataclass
class Batch:
    """Some blocks of a map: what their layer may read.

    origins: (M, 2) int64, first cell (y, x) of each; side, stride, size: as the map's.
    """

    origins: Tensor
    side: int
    stride: int
    size: tuple[int, int]
    bytes: int = 0  # that were gathered

    def read(self, source: Blocks, before: int = 0, after: int | None = None, *, repeat: bool = False) -> Tensor:
        """The blocks' windows of ``source`` (M, C, n, n), channels last.

        before, after: cells of the source beyond the block; ``after`` as ``before`` if not given. Beyond the picture
        there are zeros, or with ``repeat`` its outermost cells.
        """
        after = before if after is None else after
        length = self.side * self.stride // source.stride + before + after
        y, x = self._cells(source, before, length)
        if repeat:
            y, x = y.clamp(0, source.size[0] - 1), x.clamp(0, source.size[1] - 1)
        return self.gather(source, y, x)

    def gather(self, source: Blocks, y: Tensor, x: Tensor) -> Tensor:
        """Windows (M, C, n, n) of ``source``: its rows y (M, n) and columns x (M, n)."""
        rows = source.rows(y[:, :, None], x[:, None, :])
        out = source.values.index_select(0, rows.flatten()).view(*rows.shape, -1)
        self.bytes += out.nbytes
        return out.permute(0, 3, 1, 2)

    def enlarged(self, coarse: Blocks, *beside: Blocks) -> Tensor:
        """The blocks with a cell around (M, C, side + 2, side + 2) of a map of twice the stride, bilinearly enlarged,
        and of the maps ``beside`` it of the blocks' own stride: what a 3x3 convolution reads of all together.
        """
        upper = self.inside(upsampled(self.read(coarse, 1, repeat=True)), beside[0], 1)
        return torch.cat((upper, *(self.read(source, 1) for source in beside)), 1)

    def inside(self, x: Tensor, source: Blocks, before: int) -> Tensor:
        """``x`` (M, C, n, n), which begins ``before`` cells of ``source``'s grid above and left of the blocks, with
        zeros beyond the picture: what a convolution's padding is made of.
        """
        rows, columns = self._cells(source, before, x.shape[-1])
        (height, width) = source.size
        if rows.min() >= 0 and columns.min() >= 0 and rows.max() < height and columns.max() < width:
            return x
        rows, columns = ((v >= 0) & (v < n) for v, n in ((rows, height), (columns, width)))
        return x * (rows[:, None, :, None] & columns[:, None, None, :]).to(x.dtype)

    def _cells(self, source: Blocks, before: int, length: int) -> tuple[Tensor, Tensor]:
        """Rows and columns (M, length) of ``source`` from ``before`` cells above and left of the blocks on."""
        first = self.origins * self.stride // source.stride - before
        steps = torch.arange(length, device=first.device)
        return first[:, :1] + steps, first[:, 1:] + steps


def _stacked(height: int, width: int, device: torch.device) -> Tensor:
    return torch.arange(-(-height // width), dtype=torch.int32, device=device)[:, None]


def _pooled(fine: NDArray[np.bool_], factor: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether any of ``factor`` x ``factor`` squares is set."""
    height, width = (n * factor for n in shape)
    padded = np.zeros((height, width), bool)
    padded[: fine.shape[0], : fine.shape[1]] = fine[:height, :width]
    return np.asarray(padded.reshape(shape[0], factor, shape[1], factor).any(axis=(1, 3)))


def upsampled(x: Tensor) -> Tensor:
    """Windows (M, C, n + 2, n + 2) enlarged by two, without the outermost cells, which lack a neighbour."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)[..., 1:-1, 1:-1]
