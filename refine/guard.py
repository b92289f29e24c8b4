"""Do no harm: a result keeps to what its coarse mask is about.

Refining moves contours. A part of the result that touches nothing of the coarse mask is another object that looks like
the one, or a speck; a hole where the coarse mask has none, likewise. Both are taken back after every scale.

What touches what is told on a grid of cells, those of the cascade's first scale, so that it costs next to nothing and
needs little memory whatever the picture's size; parts less than a cell apart are one.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.frame import Frame
from refine.planes import BAND, Held, Plane
from refine.tiles import Window

BACKGROUND, FOREGROUND = 1, 2  # bits of a cell: has pixels of the class

Bits = NDArray[np.uint8]


class Guard:
    """Takes back what the scales of one cascade add without a hold in its coarse mask.

    cells: (h, w) of the grid, at most the size of any plane that is looked at.
    """

    def __init__(self, frame: Frame, cells: tuple[int, int]) -> None:
        self.frame, self.cells = frame, cells
        self.coarse = self._classes(frame.mask)

    def take_back(self, p: Held, name: str) -> int:
        """Gives probabilities (H, W) the coarse mask's values in parts and holes that have no hold in it.

        p: an array of the frame's store, written in place; name: of it. Returns the number of pixels given back.
        """
        found = self._classes(p)
        loose = _loose(found, self.coarse, FOREGROUND) | _loose(found, self.coarse, BACKGROUND)
        if not loose.any():
            return 0
        coarse, given_back = self.frame.resized(self.frame.mask, p.size), 0
        ends = [np.append(at, n) for at, n in zip(self._starts(p.size), p.size, strict=True)]
        for top, bottom in self._bands(p.size):
            if not (rows := loose[top:bottom]).any():
                continue
            window = Window(int(ends[0][top]), int(ends[0][bottom]), 0, p.size[1])
            pixels = np.repeat(np.repeat(rows, np.diff(ends[0][top : bottom + 1]), 0), np.diff(ends[1]), 1)
            p.array[window.slices][pixels] = coarse.read(window)[pixels]
            given_back += int(np.count_nonzero(pixels))
            self.frame.store.mark(f"guard {name} {top}", p.array)
        return given_back

    def _classes(self, plane: Plane) -> Bits:
        """The classes that each cell has pixels of."""
        from refine_kernels import classes_in_cells

        rows, columns = self._starts(plane.size)
        out = np.empty(self.cells, np.uint8)
        for top, bottom in self._bands(plane.size):
            end = plane.size[0] if bottom == len(rows) else int(rows[bottom])
            window = Window(int(rows[top]), end, 0, plane.size[1])
            out[top:bottom] = classes_in_cells(plane.read(window), rows[top:bottom] - rows[top], columns)
            self.frame.store.release()
        return out

    def _starts(self, size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of a plane at which cells begin."""
        rows, columns = (np.arange(k) * n // k for k, n in zip(self.cells, size, strict=True))
        return rows, columns

    def _bands(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows of cells that together are all, some at a time."""
        height = self.cells[0]
        step = max(1, BAND * height // (size[0] * size[1]))
        return [(top, min(top + step, height)) for top in range(0, height, step)]


def _loose(found: Bits, coarse: Bits, bit: int) -> NDArray[np.bool_]:
    """Cells of connected parts (of 8 neighbours) of a class in none of whose cells the coarse mask has that class."""
    count, labels = cv2.connectedComponents((found & bit), connectivity=8)
    held = np.zeros(count, bool)
    held[np.unique(labels[(found & coarse & bit) > 0])] = True
    held[0] = True  # the other class
    return np.asarray(~held[labels], bool)
