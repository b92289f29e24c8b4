"""A grid of cells over planes: what is told of a picture without looking at each of its pixels.

A scale of the cascade sees samples, and not what lies between two of them. With cells that are its samples, `narrow`
says which parts of a mask, and which gaps in it, are too narrow to be seen there.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.planes import BAND, Plane, Reduced, Store, bands
from refine.tiles import Window

BACKGROUND, FOREGROUND = 1, 2  # bits of a cell: has pixels of the class

Bits = NDArray[np.uint8]


class Cells:
    """A grid of (h, w) cells of even size over planes of any size that have at least as many pixels.

    store: lets go of memory between bands.
    """

    def __init__(self, size: tuple[int, int], store: Store) -> None:
        self.size, self.store = size, store

    def classes(self, plane: Plane) -> Bits:
        """The classes, `BACKGROUND` and `FOREGROUND`, that each cell has pixels of."""
        out = np.empty(self.size, np.uint8)
        for top, bottom in self.bands(plane.size):
            out[top:bottom] = self._classes(plane, top, bottom)
            self.store.release()
        return out

    def classes_around(self, plane: Plane, top: int, bottom: int, halo: int) -> tuple[Bits, slice]:
        """The classes in rows of cells and ``halo`` more on both sides, and where the rows are among these."""
        start, stop = max(0, top - halo), min(self.size[0], bottom + halo)
        found = self._classes(plane, start, stop)
        self.store.release()
        return found, slice(top - start, bottom - start)

    def narrow(self, plane: Plane, side: int) -> Iterator[tuple[int, Bits, Bits]]:
        """Cells of parts, and of gaps, that are narrower than ``side`` cells; see `narrow`.

        By bands: the first row, the classes whose narrow parts a cell belongs to, and those that it has pixels of.
        """
        halo = reach(side)
        for top, bottom in self.bands(plane.size, halo):
            found, own = self.classes_around(plane, top, bottom, halo)
            out = np.zeros_like(found)
            rows, columns = (np.flatnonzero((found & FOREGROUND).any(axis)) for axis in (1, 0))
            if rows.size:
                inside = Window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
                near = inside.grown(halo, *found.shape).slices  # further away all is ground, and none of it a gap
                for bit in (FOREGROUND, BACKGROUND):
                    out[near] |= narrow(found[near] & bit > 0, side) * np.uint8(bit)
            yield top, out[own], found[own]

    def objects(self, plane: Plane, least: float = 0.5) -> Bits:
        """The cells where the mean of probabilities (H, W) is at least ``least``: 1, the others 0."""
        means, out = plane if plane.size == self.size else Reduced(plane, self.size), np.empty(self.size, np.uint8)
        for window in bands(self.size, plane.size):
            out[window.slices] = means.read(window) >= least
            self.store.release()
        return out

    def pixels(
        self, cells: NDArray[np.bool_], size: tuple[int, int], first: int = 0
    ) -> Iterator[tuple[Window, NDArray[np.bool_]]]:
        """Windows of a plane of ``size`` that hold some cells, and which of their pixels do.

        cells: (k, w) bool, rows of the grid from row ``first`` on.
        """
        rows, columns = (np.append(at, n) for at, n in zip(self._starts(size), size, strict=True))
        step = self._step(size)
        for top in range(0, len(cells), step):
            part = cells[top : top + step]
            if (at := np.flatnonzero(part.any(0))).size:
                left, right = int(at[0]), int(at[-1]) + 1
                above, below = first + top, first + top + len(part)
                window = Window(int(rows[above]), int(rows[below]), int(columns[left]), int(columns[right]))
                sides = np.diff(rows[above : below + 1]), np.diff(columns[left : right + 1])
                yield window, np.repeat(np.repeat(part[:, left:right], sides[0], 0), sides[1], 1)

    def around(self, cells: NDArray[np.bool_], size: tuple[int, int]) -> Window:
        """The window of a plane of ``size`` that holds what some cells (h, w) do."""
        starts = (np.append(at, n) for at, n in zip(self._starts(size), size, strict=True))
        found = (np.flatnonzero(cells.any(axis)) for axis in (1, 0))
        rows, columns = ((int(at[i[0]]), int(at[i[-1] + 1])) for at, i in zip(starts, found, strict=True))
        return Window(*rows, *columns)

    def spread(self, cells: NDArray[np.bool_], window: Window, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The cells (h, w) of a window's pixels of a plane of ``size``."""
        ranges = zip(self._starts(size), ((window.top, window.bottom), (window.left, window.right)), strict=True)
        rows, columns = (np.searchsorted(starts, np.arange(*ends), "right") - 1 for starts, ends in ranges)
        return cells[rows][:, columns]

    def bands(self, size: tuple[int, int], halo: int = 0) -> list[tuple[int, int]]:
        """Rows of cells that together are all, some at a time; with a halo not fewer than that has."""
        height, step = self.size[0], max(self._step(size), 4 * halo)
        return [(top, min(top + step, height)) for top in range(0, height, step)]

    def _classes(self, plane: Plane, top: int, bottom: int) -> Bits:
        from refine_kernels import classes_in_cells

        rows, columns = self._starts(plane.size)
        end = plane.size[0] if bottom == len(rows) else int(rows[bottom])
        window = Window(int(rows[top]), end, 0, plane.size[1])
        return classes_in_cells(plane.read(window), rows[top:bottom] - rows[top], columns)

    def _starts(self, size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of a plane at which cells begin."""
        rows, columns = (np.arange(k) * n // k for k, n in zip(self.size, size, strict=True))
        return rows, columns

    def _step(self, size: tuple[int, int]) -> int:
        """Rows of cells under which no more of a plane lies than is read at once."""
        return max(1, BAND * self.size[0] // (size[0] * size[1]))


def narrow(cells: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """The parts of cells (h, w) bool that are narrower than ``side`` cells, an odd number, and at least half as long.

    What a disc of that diameter does not reach inside of a part (its top-hat) is narrow, or a corner of something wide.
    A corner ends within half a diameter of where the disc does reach, a branch does not. Nothing is known outside of
    the grid, so that a part which leaves it is as wide as it is there. Depends on `reach` cells around a cell.
    """
    assert side % 2 == 1, side
    mask, brush = np.ascontiguousarray(cells, np.bool_).view(np.uint8), disc(side)
    wide = cv2.morphologyEx(mask, cv2.MORPH_OPEN, brush)
    rest = np.asarray(wide < mask)
    if not rest.any():
        return rest
    branch = rest & np.asarray(cv2.dilate(wide, brush) == 0)
    return rest & np.asarray(cv2.dilate(branch.view(np.uint8), disc(side + 2)) > 0)


def reach(side: int) -> int:
    """How far around a cell `narrow` looks, in cells."""
    return 2 * side + 2


def disc(diameter: int) -> NDArray[Any]:
    """A disc of so many cells as a structuring element."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
