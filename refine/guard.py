"""Do no harm: a result keeps to what its coarse mask is about.

Refining moves contours. A part of the result that touches nothing of the coarse mask is another object that looks like
the one, or a speck; a hole where the coarse mask has none, likewise. Both are taken back after every scale.

What lies beside the object and resembles it can creep in, scale by scale, each starting from what the one before held
possible. Where the first scale, which sees the most around a pixel, adds next to nothing to the coarse mask, a later
one that adds a thick part must be surer of it than the first was of the ground there. The last scale is left alone.

All this is told on a grid of cells, those of the cascade's first scale, so that it costs next to nothing and needs
little memory whatever the picture's size; parts less than a cell apart are one. What is smaller is told by pixels,
after the last scale: specks and pinholes that are sure nowhere are taken back as well.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.frame import Frame
from refine.planes import BAND, Held, Plane, Reduced, bands
from refine.tiles import Window

BACKGROUND, FOREGROUND = 1, 2  # bits of a cell: has pixels of the class

MISSED = 0.01  # share of the object's cells; if the first scale adds no more, the coarse mask misses no part
LIKELY = 0.25  # mean probability of a cell, from which the next scale may make it the object
THICK = 2  # cells; the side of a square that fits into a thick part

SURE = 0.1  # a probability this close to 0 or 1 is sure
SMALL = 64  # px; the height and width of the largest speck or pinhole

Bits = NDArray[np.uint8]
_Before = Callable[[Window, NDArray[np.float32]], NDArray[np.float32]]  # of a window, and what is there now


class Guard:
    """Takes back what the scales of one cascade add without a hold in its coarse mask.

    cells: (h, w) of the grid, at most the size of any plane that is looked at.
    """

    def __init__(self, frame: Frame, cells: tuple[int, int]) -> None:
        self.frame, self.cells = frame, cells
        self.coarse = self._classes(frame.mask)
        self._first: tuple[Plane, Bits] | None = None  # p and the object's cells, if held to

    def compare(self, first: Plane) -> None:
        """Has later scales held to the first one's probabilities (H, W), if the coarse mask misses no part."""
        found = self._objects(first)
        added = found & ~self._objects(self.frame.probabilities(self.frame.mask, self.cells))
        if np.count_nonzero(added) <= MISSED * np.count_nonzero(found):
            self._first = first, found

    def take_back(self, p: Held, name: str) -> int:
        """Gives probabilities (H, W) the coarse mask's values in parts and holes that have no hold in it.

        p: an array of the frame's store, written in place; name: of it. Returns the number of pixels given back.
        """
        coarse = self.frame.resized(self.frame.mask, p.size)

        def loose() -> NDArray[np.bool_]:
            found = self._classes(p)
            return _loose(found, self.coarse, FOREGROUND) | _loose(found, self.coarse, BACKGROUND)

        return self._given_back(f"guard-{name}", loose, p, lambda window, now: coarse.read(window))

    def doubt(self, p: Held, name: str) -> int:
        """Gives probabilities (H, W) the first scale's in thick parts that they add, where the two sum to less than 1.

        p: an array of the frame's store, written in place; name: of it. Returns the number of pixels given back.
        """
        if self._first is None:
            return 0
        first, seen = self.frame.resized(self._first[0], p.size), self._first[1]

        def near() -> NDArray[np.bool_]:
            added = self._objects(p, LIKELY) & ~seen
            thick = cv2.morphologyEx(added, cv2.MORPH_OPEN, np.ones((THICK, THICK), np.uint8))
            # With its rim, in cells that are less than half full.
            return np.asarray(cv2.dilate(thick, np.ones((3, 3), np.uint8)) > 0)

        def before(window: Window, now: NDArray[np.float32]) -> NDArray[np.float32]:
            then = first.read(window)
            return np.where((now > then) & (now + then < 1), then, now)

        return self._given_back(f"guard-doubts-{name}", near, p, before)

    def specks(self, p: Held, name: str) -> int:
        """Gives probabilities (H, W) the coarse mask's values in small parts and holes none of whose pixels are sure.

        p: an array of the frame's store, written in place; name: of it. Returns the number of pixels given back.
        """
        store, coarse, count = self.frame.store, self.frame.resized(self.frame.mask, p.size), 0
        found = store.array(f"guard-specks-{name}", p.size, np.bool_)
        parts = [*bands(p.size, (4 * p.size[0], p.size[1]))]  # what lies between takes four times as much
        for band in parts:
            step = f"guard-specks-{name} {band.top}"
            if not store.done(step):
                seen = band.grown(SMALL + 1, *p.size)
                found[band.slices] = _unsure(p.read(seen))[band.moved(-seen.top, -seen.left).slices]
                store.mark(step, found)
        for band in parts:
            if (rows := np.flatnonzero(found[band.slices].any(1))).size:
                window = Window(band.top + int(rows[0]), band.top + int(rows[-1]) + 1, 0, p.size[1])
                step = f"guard-specks-{name} {band.top} given back"
                count += self._put(step, p, window, found[window.slices], lambda window, now: coarse.read(window))
            store.release()
        return count

    def _given_back(
        self,
        name: str,
        find: Callable[[], NDArray[np.bool_]],
        p: Held,
        before: _Before,
    ) -> int:
        """Puts what was ``before`` into the cells of p that ``find`` gives, and counts pixels that change.

        A run that was stopped finds them once and writes each window once.
        """
        store, count = self.frame.store, 0
        cells = store.array(name, self.cells, np.bool_)
        if not store.done(name):
            cells[...] = find()
            store.mark(name, cells)
        for window, pixels in self._pixels(cells, p.size):
            count += self._put(f"{name} {window.top}", p, window, pixels, before)
        return count

    def _put(self, step: str, p: Held, window: Window, pixels: NDArray[np.bool_], before: _Before) -> int:
        """Puts what was ``before`` into the ``pixels`` of a window of p, once, and counts those that change."""
        store = self.frame.store
        if store.done(step):
            return int(store.record(step).get("pixels", 0))
        now = p.array[window.slices]
        then = np.where(pixels, before(window, now), now)
        changed = int(np.count_nonzero(then != now))
        now[...] = then
        store.mark(step, p.array, record={"pixels": changed})
        return changed

    def _objects(self, plane: Plane, least: float = 0.5) -> Bits:
        """The cells where the mean of probabilities (H, W) is at least ``least``: 1, the others 0."""
        means, out = plane if plane.size == self.cells else Reduced(plane, self.cells), np.empty(self.cells, np.uint8)
        for window in bands(self.cells, plane.size):
            out[window.slices] = means.read(window) >= least
            self.frame.store.release()
        return out

    def _pixels(self, cells: NDArray[np.bool_], size: tuple[int, int]) -> Iterator[tuple[Window, NDArray[np.bool_]]]:
        """Windows of a plane that hold some of the cells, no wider than these, and which of their pixels do."""
        rows, columns = (np.append(at, n) for at, n in zip(self._starts(size), size, strict=True))
        for top, bottom in self._bands(size):
            if (at := np.flatnonzero(cells[top:bottom].any(0))).size:
                left, right = int(at[0]), int(at[-1]) + 1
                window = Window(int(rows[top]), int(rows[bottom]), int(columns[left]), int(columns[right]))
                sides = np.diff(rows[top : bottom + 1]), np.diff(columns[left : right + 1])
                yield window, np.repeat(np.repeat(cells[top:bottom, left:right], sides[0], 0), sides[1], 1)

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


def _unsure(p: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels of parts (of 8 neighbours) and holes (of 4) of p (h, w) that are small and sure nowhere."""
    out = np.zeros(p.shape, np.bool_)
    doubt = (p > SURE) & (p < 1 - SURE)
    rows, columns = (np.flatnonzero(doubt.any(axis)) for axis in (1, 0))
    if not rows.size:
        return out
    # A part that is sure nowhere is one of the doubtful pixels' parts, which no sure pixel of its class touches.
    near = slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
    above, doubt = p[near] > 0.5, doubt[near]
    for part, connectivity, shape in ((above, 8, cv2.MORPH_RECT), (~above, 4, cv2.MORPH_CROSS)):
        loose = part & doubt
        _, labels, stats, _ = cv2.connectedComponentsWithStats(loose.view(np.uint8), connectivity=connectivity)
        sure = cv2.dilate((part & ~doubt).view(np.uint8), cv2.getStructuringElement(shape, (3, 3))).view(np.bool_)
        small = (stats[:, cv2.CC_STAT_WIDTH] <= SMALL) & (stats[:, cv2.CC_STAT_HEIGHT] <= SMALL)
        small[np.unique(labels[sure & loose])] = False
        small[0] = False  # all else
        out[near] |= small[labels]
    return out
