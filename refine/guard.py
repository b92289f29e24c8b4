"""Do no harm: a result keeps to what its coarse mask is about, and loses nothing that was not looked at.

Between the scales. What a scale cannot see it does not decide: parts of the coarse mask, and gaps in it, that are a few
of its samples wide stay as they are until a scale sees them (`Guard.unseen`). What lies beside the object and
resembles it can creep in, scale by scale, each starting from what the one before held possible. Where the first scale,
which sees the most around a pixel, adds next to nothing to the coarse mask, a later one that adds a thick part must be
surer of it than the first was of the ground there (`Guard.doubt`). This is told on cells, `refine.cells`, which costs
next to nothing.

After the last scale, once, by pixels (`Guard.settle`). A part of the result that touches nothing of the coarse mask is
another object that looks like the one, or a speck; a hole where the coarse mask has none, likewise: they go unless the
network is sure of them. A thick part of the coarse mask that is taken away comes back, unless the network is sure that
it is ground. Narrow parts of the coarse mask that are lost although no scale saw them well come back.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.cells import BACKGROUND, FOREGROUND, Bits, Cells, disc
from refine.frame import Frame
from refine.parts import Parts, around
from refine.planes import Held, Plane, bands
from refine.tiles import Window

MISSED = 0.01  # share of the object's cells; if the first scale adds no more, the coarse mask misses no part
LIKELY = 0.25  # mean probability of a cell, from which the next scale may make it the object
THICK = 2  # cells; the side of a square that fits into a thick part

SURE = 0.9  # mean probability of a part's class; with this, one stays against the coarse mask
SEEN = 13  # samples of a scale; what is narrower is not seen there
FINE = 40  # samples of the last scale; narrower parts are more edge than inside
SEEN_CELLS, FINE_CELLS = 7, 11  # cells that are as wide
THICK_CELLS = 11  # of those; the diameter of a disc that fits into a thick part that is taken away
JOINED = 2  # px; parts that are no further apart than twice this are one
MOSTLY = 0.5  # share of the coarse mask

_LOOSE, _LOST, _UNSURE = 1, 2, 3  # why a pixel is given the coarse mask's value
_THIN, _GONE = 4, 8  # bits of a cell beside `FOREGROUND`: of a narrow part, of which nothing is left

_ABOVE_HALF = np.nextafter(np.float32(0.5), np.float32(1))

_Before = Callable[[Window, NDArray[np.float32]], NDArray[np.float32]]  # of a window, and what is there now


@dataclass(frozen=True)
class Settled:
    """What was done after the last scale.

    taken_back: px of loose parts and holes. narrow: px of narrow parts that were lost, and came back. fine: whether the
    coarse mask consists of such parts, all of which is kept then. unsure: px of thick parts that came back.
    """

    taken_back: int
    narrow: int
    fine: bool
    unsure: int

    @property
    def given_back(self) -> int:
        """How many px of parts came back."""
        return self.narrow + self.unsure

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know of it."""
        if not self.narrow:
            return ()
        what = f"{self.narrow:,} px of narrow parts of the coarse mask were lost, and given back as they were"
        return (f"{what}: it consists mostly of such parts, which grow but do not shrink" if self.fine else what,)


@dataclass(frozen=True)
class _Bit:
    """Where cells (h, w) have a bit, as a plane of 0 and 1."""

    cells: Bits
    bit: int

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.cells.shape
        return height, width

    def read(self, window: Window) -> NDArray[np.float32]:
        return (self.cells[window.slices] & self.bit > 0).astype(np.float32)


@dataclass(frozen=True)
class _Beside(_Bit):
    """Cells (h, w) with a bit, or next to one, that are not gone."""

    bit: int = FOREGROUND

    def read(self, window: Window) -> NDArray[np.float32]:
        seen = window.grown(1, *self.size)
        cells = self.cells[seen.slices]
        rest = ((cells & self.bit > 0) & (cells & _GONE == 0)).view(np.uint8)
        return cv2.dilate(rest, np.ones((3, 3), np.uint8))[window.moved(-seen.top, -seen.left).slices].astype(
            np.float32
        )


@dataclass(frozen=True)
class _TakenAway:
    """How sure probabilities p are of the ground, in the pixels of a grid's cells that they took from the coarse mask.

    cells: (h, w) bool of the grid. 0 elsewhere.
    """

    p: Plane
    coarse: Plane
    cells: NDArray[np.bool_]
    grid: Cells

    @property
    def size(self) -> tuple[int, int]:
        return self.p.size

    def read(self, window: Window) -> NDArray[np.float32]:
        p = self.p.read(window)
        taken = self.grid.spread(self.cells, window, self.size) & (p <= 0.5) & (self.coarse.read(window) > 0.5)
        return np.where(taken, np.maximum(1 - p, _ABOVE_HALF), np.float32(0))


class Guard:
    """Holds the scales of one cascade to its coarse mask.

    sizes: (h, w) of the scales. start: the first of them that sees most of the coarse mask; those before are not run.
    """

    def __init__(self, frame: Frame, sizes: Sequence[tuple[int, int]]) -> None:
        self.frame, self.start = frame, 0
        while (
            sizes[self.start] != sizes[-1] and self._narrow_share(Cells(sizes[self.start], frame.store), SEEN) > MOSTLY
        ):
            self.start += 1
        self.cells = Cells(sizes[self.start], frame.store)
        self._first: tuple[Plane, Bits] | None = None  # p and the object's cells, if held to

    def unseen(self, p: Held, size: tuple[int, int], name: str) -> int:
        """Gives probabilities (H, W) the coarse mask's values where a scale of ``size`` cannot see what that has there.

        p: an array of the frame's store, written in place; name: of it. Returns the number of pixels given back.
        """
        coarse, cells, count = self.frame.resized(self.frame.mask, p.size), Cells(size, self.frame.store), 0
        for top, bits, _ in cells.narrow(self.frame.mask, SEEN):
            for window, pixels in cells.pixels(bits > 0, p.size, top):
                step = f"guard-unseen-{name} {window.top}"
                count += self._put(step, p, window, pixels, lambda window, now: coarse.read(window))
        return count

    def compare(self, first: Plane) -> None:
        """Has later scales held to the first one's probabilities (H, W), if the coarse mask misses no part."""
        found = self.cells.objects(first)
        added = found & ~self.cells.objects(self.frame.probabilities(self.frame.mask, self.cells.size))
        if np.count_nonzero(added) <= MISSED * np.count_nonzero(found):
            self._first = first, found

    def doubt(self, p: Held, name: str) -> int:
        """Gives probabilities (H, W) the first scale's in thick parts that they add, where the two sum to less than 1.

        p: an array of the frame's store, written in place; name: of it. Returns the number of pixels given back.
        """
        if self._first is None:
            return 0
        first, seen = self.frame.resized(self._first[0], p.size), self._first[1]
        store, name, count = self.frame.store, f"guard-doubts-{name}", 0
        near = store.array(name, self.cells.size, np.bool_)
        if not store.done(name):
            added = self.cells.objects(p, LIKELY) & ~seen
            thick = cv2.morphologyEx(added, cv2.MORPH_OPEN, np.ones((THICK, THICK), np.uint8))
            # With its rim, in cells that are less than half full.
            near[...] = cv2.dilate(thick, np.ones((3, 3), np.uint8)) > 0
            store.mark(name, near)

        def before(window: Window, now: NDArray[np.float32]) -> NDArray[np.float32]:
            then = first.read(window)
            return np.where((now > then) & (now + then < 1), then, now)

        for window, pixels in self.cells.pixels(near, p.size):
            count += self._put(f"{name} {window.top}", p, window, pixels, before)
        return count

    def settle(self, p: Held, finest: tuple[int, int], name: str) -> Settled:
        """Gives probabilities (H, W) the coarse mask's values in loose parts and holes, and in parts that they lost.

        p: an array of the frame's store in full size, written in place; name: of it. finest: size of the last scale.
        """
        store, name, coarse = self.frame.store, f"guard-{name}", self.frame.mask
        assert p.size == coarse.size, (p.size, coarse.size)
        found = store.array(name, p.size, np.uint8)
        fine = self._narrow_share(self._cells_of(finest, FINE / FINE_CELLS), FINE_CELLS) > MOSTLY
        if not store.done(name):
            found[...] = 0
            for window, pixels in self._loose(p):
                found[window.slices][pixels] = _LOOSE
            for window, pixels in self._unsure(p, finest, name):
                found[window.slices][pixels] = _UNSURE
            for window, pixels in self._lost_fine(p, finest) if fine else self._lost(p, finest, name):
                found[window.slices][pixels] = _LOST
            store.mark(name, found)
        counts = {_LOOSE: 0, _LOST: 0, _UNSURE: 0}
        for band in bands(p.size):
            rows = np.flatnonzero(found[band.slices].any(1))
            if rows.size:
                window = Window(band.top + int(rows[0]), band.top + int(rows[-1]) + 1, 0, p.size[1])
                for why in counts:
                    step, pixels = f"{name} {why} {band.top}", found[window.slices] == why
                    counts[why] += self._put(step, p, window, pixels, lambda window, now: coarse.read(window))
            store.release()
        return Settled(counts[_LOOSE], counts[_LOST], fine, counts[_UNSURE])

    def _loose(self, p: Held) -> Iterator[tuple[Window, NDArray[np.bool_]]]:
        """Parts of p that touch nothing of the coarse mask, and holes that touch nothing of its ground, if unsure."""
        window = around(p, self.frame.mask, store=self.frame.store)
        if not window.height:
            return
        for holes in (False, True):
            parts = Parts.of(p, self.frame.mask, window, self.frame.store, holes=holes, gap=JOINED)
            yield from parts.marked((parts.held == 0) & (parts.sure < SURE))

    def _unsure(self, p: Held, finest: tuple[int, int], name: str) -> Iterator[tuple[Window, NDArray[np.bool_]]]:
        """Thick parts of the coarse mask that p takes away and is not sure of."""
        cells, store, coarse = self._cells_of(finest, SEEN / SEEN_CELLS), self.frame.store, self.frame.mask
        taken = store.array(f"guard-taken-{name}", cells.size, np.bool_)
        brush, halo = disc(THICK_CELLS), 2 * THICK_CELLS
        for top, bottom in cells.bands(p.size, halo):
            (had, own), (has, _) = (cells.classes_around(plane, top, bottom, halo) for plane in (coarse, p))
            lost = ((had == FOREGROUND) & (has == BACKGROUND)).view(np.uint8)
            rows, columns = (np.flatnonzero(lost.any(axis)) for axis in (1, 0))
            if rows.size:
                inside = Window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
                here = inside.grown(1, *lost.shape).slices
                thick = cv2.dilate(cv2.morphologyEx(lost[here], cv2.MORPH_OPEN, brush), brush)  # with its corners
                lost[here] = cv2.dilate(lost[here] & thick, np.ones((3, 3), np.uint8))
            taken[top:bottom] = lost[own]
        if taken.any():
            away = _TakenAway(p, coarse, taken, cells)
            parts = Parts.of(away, p, cells.around(taken, p.size), store)
            yield from parts.marked(parts.sure < SURE)

    def _lost_fine(self, p: Held, finest: tuple[int, int]) -> Iterator[tuple[Window, NDArray[np.bool_]]]:
        """All that p has lost of the coarse mask's parts up to a width of twice `FINE`."""
        cells = self._cells_of(finest, FINE / FINE_CELLS)
        for top, bits, _ in cells.narrow(self.frame.mask, 2 * FINE_CELLS - 1):
            yield from self._lost_pixels((bits & FOREGROUND) > 0, cells, p, top)

    def _lost(self, p: Held, finest: tuple[int, int], name: str) -> Iterator[tuple[Window, NDArray[np.bool_]]]:
        """Runs of the coarse mask's parts that are too narrow to be seen at the last scale, of which p has nothing.

        Nothing of a run is left within half the width that is seen, and it is twice as long as that, or a whole part.
        """
        cells, store, side = self._cells_of(finest, SEEN / SEEN_CELLS), self.frame.store, SEEN_CELLS
        marks, near = store.array(f"guard-lost-{name}", cells.size, np.uint8), np.ones((side, side), np.uint8)
        for top, bits, classes in cells.narrow(self.frame.mask, side):
            left, own = cells.classes_around(p, top, top + len(bits), side)
            thin = (bits & FOREGROUND) > 0
            lost = thin & (cv2.dilate(left & FOREGROUND, near)[own] == 0)
            marks[top : top + len(bits)] = thin * _THIN + lost * _GONE + (classes & FOREGROUND)
        gone = _Bit(marks, _GONE)
        parts = Parts.of(gone, _Beside(marks), around(gone, store=store), store)
        for window, chosen in parts.marked((parts.held == 0) | (parts.length >= 2 * side)):
            grown = window.grown(side, *cells.size)
            run = np.zeros((grown.height, grown.width), np.uint8)
            run[window.moved(-grown.top, -grown.left).slices] = chosen
            found = np.asarray(cv2.dilate(run, near) > 0) & (marks[grown.slices] & _THIN > 0)
            whole = np.zeros((grown.height, cells.size[1]), np.bool_)
            whole[:, grown.left : grown.right] = found
            yield from self._lost_pixels(whole, cells, p, grown.top)

    def _lost_pixels(
        self, chosen: NDArray[np.bool_], cells: Cells, p: Held, top: int
    ) -> Iterator[tuple[Window, NDArray[np.bool_]]]:
        """Pixels that the coarse mask has and p has not, in chosen cells (k, w) from row ``top`` of the grid on."""
        for window, pixels in cells.pixels(chosen, p.size, top):
            yield window, pixels & (self.frame.mask.read(window) > 0.5) & (p.read(window) <= 0.5)
            self.frame.store.release()

    def _cells_of(self, finest: tuple[int, int], samples: float) -> Cells:
        """Cells as wide as so many samples of the last scale, if that is not less than a pixel."""
        wanted = (math.ceil(n / samples) for n in finest)
        height, width = (max(1, min(n, m)) for n, m in zip(wanted, self.frame.size, strict=True))
        return Cells((height, width), self.frame.store)

    def _narrow_share(self, cells: Cells, side: int) -> float:
        """Share of the coarse mask's cells that are of parts narrower than ``side`` of them."""
        thin = all_cells = 0
        for _, bits, classes in cells.narrow(self.frame.mask, side):
            thin += int(np.count_nonzero(bits & FOREGROUND))
            all_cells += int(np.count_nonzero(classes & FOREGROUND))
        return thin / max(all_cells, 1)

    def _put(self, step: str, p: Held, window: Window, pixels: NDArray[np.bool_], before: _Before) -> int:
        """Puts what was ``before`` into the ``pixels`` of a window of p, once, and counts those that change."""
        store = self.frame.store
        if store.done(step):
            return int(store.record(step)["pixels"])
        now = p.array[window.slices]
        then = np.where(pixels, before(window, now), now)
        changed = int(np.count_nonzero(then != now))
        now[...] = then
        store.mark(step, p.array, record={"pixels": changed})
        return changed
