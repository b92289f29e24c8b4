"""The one coordinate convention: pixel centres in [-1, 1], every axis by itself, float32.

Coordinates decide ties between two cells, so each value has one formula, is computed once per axis from global indices
and sliced after that; nothing recomputes it for a tile or in another precision. Both axes are alike, so a picture needs
two tables of its sides' lengths and never a tensor of its own size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_EPSILON = 1e-6
SHIFTS = (-1, 1)


def centres(n: int) -> Tensor:
    """Centres (n,) float32 of n equal cells of [-1, 1]."""
    return (-1 + 1 / n) + (2 / n) * torch.arange(n, dtype=torch.float32)


@dataclass(frozen=True)
class EnsembleAxis:
    """One axis of a query grid: for each of n positions its two neighbour cells (LIIF, arXiv 2012.09161, section 3).

    index: (2, n) int64, the nearest cell after a shift by -half and +half a cell.
    rel: (2, n) float32, position minus that cell's centre, in half cells.
    q: (n,) float32, the position in [-1, 1].
    cell: size of one full-resolution pixel in half cells.
    """

    index: Tensor
    rel: Tensor
    q: Tensor
    cell: float

    def __len__(self) -> int:
        return self.q.shape[0]

    def __getitem__(self, part: slice | Tensor) -> "EnsembleAxis":
        """The positions that a slice or an index tensor picks; cells stay global."""
        return EnsembleAxis(self.index[:, part], self.rel[:, part], self.q[part], self.cell)

    def read(self) -> tuple[Tensor, Tensor]:
        """The two cells (n,) int64 of each position, both rising."""
        return self.index[0], self.index[1]

    def cells(self) -> tuple[int, int]:
        """First and last + 1 cell that any position reads."""
        return int(self.index.min()), int(self.index.max()) + 1

    def relative(self, origin: int) -> "EnsembleAxis":
        """The same positions over a window of the cells that starts at cell `origin`."""
        return EnsembleAxis(self.index - origin, self.rel, self.q, self.cell)

    def to(self, device: torch.device | str) -> "EnsembleAxis":
        return EnsembleAxis(self.index.to(device), self.rel.to(device), self.q.to(device), self.cell)


def axis_tables(full: int, feature: int, positions: Tensor | None = None) -> EnsembleAxis:
    """Where each of `full` pixels, or the places `positions` (n,) between them, reads an axis of `feature` cells.

    c = clamp(q -+ half a cell + 1e-6) and the nearest cell is rint(((c + 1) h - 1) / 2), halves to even.
    """
    q = centres(full) if positions is None else (-1 + 1 / full) + (2 / full) * positions
    of_cell = centres(feature)
    index = torch.empty(2, len(q), dtype=torch.int64)
    for row, shift in enumerate(SHIFTS):
        c = (q + (shift / feature + _EPSILON)).clamp_(-1 + _EPSILON, 1 - _EPSILON)
        index[row] = torch.round(((c + 1) * feature - 1) / 2)
    index.clamp_(0, feature - 1)
    rel = (q - of_cell[index]) * feature
    return EnsembleAxis(index, rel, q, 2 / full * feature)


def corner_aligned(source: int, target: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear taps of one axis enlarged from `source` to `target` samples with its end samples kept in place.

    For target samples start..stop: the lower and the upper source index (int64) and the weight of the upper one
    (float32). Equals torch's interpolation with `align_corners=True` of the whole axis, then cut.
    """
    scale = torch.tensor(source - 1, dtype=torch.float32) / max(target - 1, 1)
    position = torch.arange(start, stop, dtype=torch.float32) * (scale if target > 1 else 0)
    lower = position.long().clamp_(max=source - 1)
    upper = (lower + 1).clamp_(max=source - 1)
    return lower, upper, (position - lower).clamp_(0, 1)


def interpolated(x: Tensor, dim: int, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """``x`` at positions between its samples ``low`` and ``high`` along ``dim``; ``weight`` is that of ``high``."""
    shape = [1] * x.ndim
    shape[dim] = -1
    low, high = low.to(x.device), high.to(x.device)
    weight = weight.to(x.device, x.dtype).view(shape)
    return torch.lerp(x.index_select(dim, low), x.index_select(dim, high), weight)


@dataclass(frozen=True)
class LerpAxis:
    """One axis of a query grid, read by linear interpolation between a feature map's cells at pixel centres.

    low, high: (n,) int64, the two cells around a query, clamped to the map; fraction: (n,) float32 in [0, 1], the
    weight of ``high``; phase: (n, 2) float32, sine and cosine of 2 pi times the query's place within its cell.
    """

    low: Tensor
    high: Tensor
    fraction: Tensor
    phase: Tensor

    @classmethod
    def between(cls, queries: int, samples: int, pitch: float, cells: int) -> "LerpAxis":
        """The axis of ``queries`` pixel centres spread over ``samples`` px, where a cell spans ``pitch`` px.

        Positions are computed in float64 (an index of 80,000 px keeps its place within the cell); weights are float32.
        """
        return cls.at((torch.arange(queries, dtype=torch.float64) + 0.5) * (samples / queries) / pitch, cells)

    @classmethod
    def at(cls, places: Tensor, cells: int) -> "LerpAxis":
        """The axis of ``places`` (n,) float64, in cells from the map's edge, so that a cell's centre is half one."""
        at = places - 0.5
        angle = 2 * torch.pi * (at - at.floor())
        at = at.clamp(0, cells - 1)
        low = at.floor().clamp(max=max(cells - 2, 0))
        return cls(
            low=low.long(),
            high=(low + 1).clamp(max=cells - 1).long(),
            fraction=(at - low).float(),
            phase=torch.stack((angle.sin(), angle.cos()), 1).float(),
        )

    def __len__(self) -> int:
        return self.low.shape[0]

    def __getitem__(self, part: slice | Tensor) -> "LerpAxis":
        """The positions that a slice or an index tensor picks; cells stay global."""
        return LerpAxis(self.low[part], self.high[part], self.fraction[part], self.phase[part])

    def read(self) -> tuple[Tensor, Tensor]:
        """The two cells (n,) int64 of each position, both rising."""
        return self.low, self.high

    def cells(self) -> tuple[int, int]:
        """First and last + 1 cell that any position reads."""
        return int(self.low.min()), int(self.high.max()) + 1

    def relative(self, origin: int) -> "LerpAxis":
        """The same positions over a window of the cells that starts at cell ``origin``."""
        return LerpAxis(self.low - origin, self.high - origin, self.fraction, self.phase)

    def to(self, device: torch.device | str) -> "LerpAxis":
        return LerpAxis(*(t.to(device) for t in (self.low, self.high, self.fraction, self.phase)))

    def corners(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """The lower and the upper cell of each query: index, place of the query relative to it in cells, weight."""
        return (self.low, self.fraction, 1 - self.fraction), (self.high, self.fraction - 1, self.fraction)

    def interpolate(self, x: Tensor, dim: int) -> Tensor:
        """``x`` interpolated along ``dim``, in its dtype."""
        return interpolated(x, dim, self.low, self.high, self.fraction)


@dataclass(frozen=True)
class Samples:
    """What reducing an axis with its corners kept in place reads of it (identity g), and how.

    positions: (k,) int64, the pixels read, rising; low, high: (n,) int64, where a sample's two pixels stand in
    ``positions``; weight: (n,) float32, of ``high``.
    """

    positions: Tensor
    low: Tensor
    high: Tensor
    weight: Tensor

    @classmethod
    def of(cls, source: int, target: int) -> "Samples":
        """The axis of ``source`` pixels reduced to ``target`` samples."""
        lower, upper, weight = corner_aligned(source, target, 0, target)
        positions = torch.unique(torch.cat((lower, upper)))
        return cls(
            positions=positions,
            low=torch.searchsorted(positions, lower),
            high=torch.searchsorted(positions, upper),
            weight=weight,
        )

    @property
    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the samples lie between what is given at ``positions``: lower, upper, weight of the upper one."""
        return self.low, self.high, self.weight


Axis = EnsembleAxis | LerpAxis
