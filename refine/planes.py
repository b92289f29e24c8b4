"""Pictures and masks that are read by windows, so that none has to be whole in memory.

A plane gives any window of itself, (h, w) float32 or (h, w, C) uint8, the same to the bit whichever windows it is read
by. The others make one plane of another without holding it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refine.tiles import Window

if TYPE_CHECKING:
    from torch import Tensor


class Plane(Protocol):
    """What can be read by windows."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in px."""

    def read(self, window: Window) -> NDArray[Any]:
        """The samples of a window that lies inside; to be read, not written."""


@dataclass(frozen=True)
class Held:
    """An array, in memory or mapped to a file."""

    array: NDArray[Any]

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.array.shape[:2]
        return height, width

    def read(self, window: Window) -> NDArray[Any]:
        return self.array[window.slices]


@dataclass(frozen=True)
class Constant:
    """One value everywhere, float32."""

    value: float
    size: tuple[int, int]

    def read(self, window: Window) -> NDArray[np.float32]:
        return np.full((window.height, window.width), self.value, np.float32)


@dataclass(frozen=True)
class Reflected:
    """A plane with ``border`` px of itself reflected around it, repeatedly where it is smaller, as numpy's pad does."""

    source: Plane
    border: int

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.source.size
        return height + 2 * self.border, width + 2 * self.border

    def read(self, window: Window) -> NDArray[Any]:
        ranges = ((window.top, window.bottom), (window.left, window.right))
        rows, columns = (_mirrored(a, b, self.border, n) for (a, b), n in zip(ranges, self.source.size, strict=True))
        inner = self.source.read(
            Window(int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)
        )
        return inner[rows - rows.min()][:, columns - columns.min()]


def _mirrored(start: int, stop: int, border: int, length: int) -> NDArray[np.int64]:
    """Where samples start..stop of a bordered axis stand in the axis of ``length`` without the border."""
    period = max(2 * (length - 1), 1)
    at = np.abs(np.arange(start, stop) - border) % period
    return np.minimum(at, period - at) if length > 1 else np.zeros(stop - start, np.int64)


@dataclass(frozen=True)
class Section:
    """A window of a plane, as a plane."""

    source: Plane
    window: Window

    @property
    def size(self) -> tuple[int, int]:
        return self.window.height, self.window.width

    def read(self, window: Window) -> NDArray[Any]:
        return self.source.read(window.moved(self.window.top, self.window.left))


@dataclass(frozen=True)
class Reduced:
    """A plane reduced to ``size``: each sample the mean of the area that it covers."""

    source: Plane
    size: tuple[int, int]

    def read(self, window: Window) -> NDArray[Any]:
        from refine_kernels import area_reduce, covered

        under = Window(*covered(window, self.source.size, self.size))
        return area_reduce(self.source.read(under), self.source.size, self.size, window, (under.top, under.left))


@dataclass(frozen=True)
class Repeated:
    """A plane at ``size``, each sample that of the source's pixel it lies in: for labels, which have no mean."""

    source: Plane
    size: tuple[int, int]

    def read(self, window: Window) -> NDArray[Any]:
        ranges = ((window.top, window.bottom), (window.left, window.right))
        sides = zip(ranges, self.source.size, self.size, strict=True)
        rows, columns = ((2 * np.arange(a, b) + 1) * n // (2 * m) for (a, b), n, m in sides)
        under = Window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
        return self.source.read(under)[rows - rows[0]][:, columns - columns[0]]


@dataclass(frozen=True)
class Beside:
    """The channels of several planes of one size, (h, w, C) each."""

    sources: tuple[Plane, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.sources[0].size

    def read(self, window: Window) -> NDArray[Any]:
        return np.concatenate([source.read(window) for source in self.sources], 2)


Table = tuple["Tensor", "Tensor", "Tensor"]  # lower and upper sample (n,) int64, weight of the upper one (n,) float32


@dataclass(frozen=True)
class Interpolated:
    """A plane read between its samples, bilinearly, float32: one table for the rows and one for the columns."""

    source: Plane
    rows: Table
    columns: Table

    @property
    def size(self) -> tuple[int, int]:
        return len(self.rows[0]), len(self.columns[0])

    def read(self, window: Window) -> NDArray[np.float32]:
        from refine_kernels import interpolate

        tables, ends = [], []
        for table, part in zip((self.rows, self.columns), window.slices, strict=True):
            low, high, weight = (t[part].numpy() for t in table)
            start = int(low.min())
            tables.append((low - start, high - start, weight))
            ends += [start, int(high.max()) + 1]
        return interpolate(self.source.read(Window(*ends)), *tables)


def at_centres(plane: Plane, size: tuple[int, int]) -> Interpolated:
    """The plane at another size, bilinear at pixel centres."""
    from refine.coords import LerpAxis  # which imports torch

    axes = (LerpAxis.between(m, n, 1, n) for n, m in zip(plane.size, size, strict=True))
    rows, columns = ((axis.low, axis.high, axis.fraction) for axis in axes)
    return Interpolated(plane, rows, columns)


class Store(Protocol):
    """Where what a cascade makes is kept, and how far it has come."""

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """The array of a name, as it was left or new."""

    def done(self, step: str) -> bool:
        """Whether a step was marked."""

    def mark(self, step: str, *arrays: Any, record: Mapping[str, float] | None = None) -> None:
        """Says that a step is done, of which these arrays are the result and ``record`` what is to be known of it."""

    def record(self, step: str) -> dict[str, float]:
        """What was recorded with a step that is done."""

    def release(self) -> None:
        """Lets go of memory that its arrays can do without."""


class Memory:
    """A store that ends with the call."""

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def done(self, step: str) -> bool:
        return False

    def mark(self, step: str, *arrays: Any, record: Mapping[str, float] | None = None) -> None:
        pass

    def record(self, step: str) -> dict[str, float]:
        return {}

    def release(self) -> None:
        pass


BAND = 2**24  # px of a plane that are read at once where all of it is


def bands(size: tuple[int, int], read: tuple[int, int] | None = None) -> Iterator[Window]:
    """Windows as wide as a plane of ``size`` that cover it from the top to the bottom.

    read: size of the plane that it is made of, if that is larger; no more than `BAND` of it is under a window.
    """
    height, width = size
    step = max(1, BAND * height // math.prod(read or size))
    for top in range(0, height, step):
        yield Window(top, min(top + step, height), 0, width)


def kept(plane: Plane, store: Store, name: str) -> Held:
    """The plane as an array of ``store``, read by bands."""
    if isinstance(plane, Held):
        return plane
    sample = plane.read(Window(0, 1, 0, 1))
    array = store.array(name, (*plane.size, *sample.shape[2:]), sample.dtype)
    for window in bands(plane.size, plane.source.size if isinstance(plane, Reduced) else None):
        step = f"{name} {window.top}"
        if not store.done(step):
            array[window.slices] = plane.read(window)
            store.mark(step, array)
    return Held(array)


def reaches(plane: Plane, least: float, store: Store) -> bool:
    """Whether the sum of a plane of float32, in float64, is above 0 and at least ``least``; reads no further then."""
    total = 0.0
    for window in bands(plane.size):
        total += float(plane.read(window).sum(dtype=np.float64))
        store.release()
        if total > 0 and total >= least:
            return True
    return False
