"""The connected parts of a mask and the holes in it, of planes of any size: labelled by bands of rows and joined."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.planes import BAND, Plane, Store
from refine.tiles import Window

Labels = NDArray[np.int32]
Marks = list[tuple[Window, NDArray[np.bool_]]]
"""Windows and which of their pixels are meant."""


@dataclass(frozen=True)
class Parts:
    """The parts (of 8 neighbours) of a plane's probabilities above 0.5, or the holes (of 4) between them.

    gap: px; what is no further apart than twice that is one part. pixels: (n,) int64, of each. held: (n,) int64, those
    that another plane has of the same class. sure: (n,) float64, the mean probability of its class. length: (n,) int64,
    the longer side of the box around each. ids: of each band of ``window``, the part (k,) of its labels 1 to k.
    """

    plane: Plane
    holes: bool
    gap: int
    window: Window
    pixels: NDArray[np.int64]
    held: NDArray[np.int64]
    sure: NDArray[np.float64]
    length: NDArray[np.int64]
    ids: tuple[NDArray[np.int64], ...]
    store: Store

    @classmethod
    def of(
        cls, plane: Plane, other: Plane, window: Window, store: Store, *, holes: bool = False, gap: int = 0
    ) -> "Parts":
        """The parts, or holes, in a window of probabilities (H, W) float32, and what ``other`` has there."""
        from refine_kernels import part_sums

        sums = [np.zeros((0, 7), np.int64)]
        links = [np.zeros((0, 2), np.int64)]
        last, total = np.zeros(window.width, np.int64), 0
        for band in _bands(window):
            count, labels, p = _labelled(plane, band, window, holes, gap)
            of_band = part_sums(_own(labels, p, holes, gap), p, other.read(band), count, holes=holes)
            of_band[:, [3, 5]] += band.top
            sums.append(of_band)
            first = np.where(labels[0] > 0, labels[0] + total, 0)
            links.append(_neighbours(last, first, diagonal=gap > 0 or not holes))
            last, total = np.where(labels[-1] > 0, labels[-1] + total, 0), total + count
            store.release()
        ids = _joined(np.concatenate(links) - 1, total)
        counts, ends = _summed(np.concatenate(sums), ids)
        pixels, held, sure = counts.T
        parts = tuple(np.split(ids, np.cumsum([len(of_band) for of_band in sums])[:-1]))[1:]
        length = (ends[:, 2:] - ends[:, :2]).max(1, initial=0)
        return cls(
            plane, holes, gap, window, pixels, held, sure / (2**16 * np.maximum(pixels, 1)), length, parts, store
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def marked(self, chosen: NDArray[np.bool_]) -> Marks:
        """Where the ``chosen`` ones (n,) bool are."""
        out: Marks = []
        for band, ids in zip(_bands(self.window), self.ids, strict=True):
            if chosen[ids].any():
                _, labels, p = _labelled(self.plane, band, self.window, self.holes, self.gap)
                found = np.append(False, chosen[ids])[_own(labels, p, self.holes, self.gap)]
                if found.any():
                    out.append(_cut(found, band))
                self.store.release()
        return out


def around(*planes: Plane, store: Store) -> Window:
    """The window that holds what any of some planes (H, W) of one size has above 0.5, and a pixel around it."""
    height, width = planes[0].size
    rows, columns = np.zeros(height, np.bool_), np.zeros(width, np.bool_)
    for band in _bands(Window(0, height, 0, width)):
        for plane in planes:
            above = plane.read(band) > 0.5
            rows[band.top : band.bottom] |= above.any(1)
            columns |= above.any(0)
            store.release()
    if not rows.any():
        return Window(0, 0, 0, 0)
    (top, bottom), (left, right) = (np.flatnonzero(at)[[0, -1]] for at in (rows, columns))
    return Window(int(top), int(bottom) + 1, int(left), int(right) + 1).grown(1, height, width)


def _bands(window: Window) -> list[Window]:
    """Windows as wide that cover it from the top to the bottom; labels take four times as much as a mask."""
    step = max(1, BAND // 2 // max(window.width, 1))
    return [
        Window(top, min(top + step, window.bottom), window.left, window.right)
        for top in range(window.top, window.bottom, step)
    ]


def _labelled(
    plane: Plane, band: Window, window: Window, holes: bool, gap: int
) -> tuple[int, Labels, NDArray[np.float32]]:
    """Parts in a band: how many, the one (h, w) that each pixel or one near it belongs to, from 1 on, or 0, and p."""
    seen = Window(max(window.top, band.top - gap), min(window.bottom, band.bottom + gap), window.left, window.right)
    p = plane.read(seen)
    mask = (p <= 0.5 if holes else p > 0.5).view(np.uint8)
    own = slice(band.top - seen.top, band.bottom - seen.top)
    if gap:
        mask = np.asarray(cv2.dilate(mask, np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)), np.uint8)[own]
    count, labels = cv2.connectedComponents(mask, connectivity=4 if holes and not gap else 8, ltype=cv2.CV_32S)
    return count - 1, np.asarray(labels, np.int32), p[own]


def _own(labels: Labels, p: NDArray[np.float32], holes: bool, gap: int) -> Labels:
    """Labels (h, w) without the pixels between what they join."""
    return labels * (p <= 0.5 if holes else p > 0.5) if gap else labels


def _summed(sums: NDArray[np.int64], ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the parts of labels: sums (n, 3), and rows and columns between which they lie (n, 4)."""
    count = int(ids.max(initial=-1)) + 1
    counts = np.zeros((count, 3), np.int64)
    np.add.at(counts, ids, sums[:, :3])
    ends = np.zeros((count, 4), np.int64)
    ends[:, :2] = np.iinfo(np.int64).max
    some = sums[:, 0] > 0  # of a band there may be nothing but what lies between
    np.minimum.at(ends[:, :2], ids[some], sums[some, 3:5])
    np.maximum.at(ends[:, 2:], ids[some], sums[some, 5:])
    return counts, ends


def _neighbours(above: NDArray[np.int64], below: NDArray[np.int64], *, diagonal: bool) -> NDArray[np.int64]:
    """Pairs (k, 2) of labels of two rows (w,) that touch; 0 is none."""
    ends = [(above, below)]
    if diagonal:
        ends += [(above[1:], below[:-1]), (above[:-1], below[1:])]
    pairs = np.concatenate([np.stack(pair, 1) for pair in ends])
    return np.unique(pairs[(pairs > 0).all(1)], axis=0)


def _joined(links: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The part (count,) of each label, of which ``links`` (k, 2) belong together."""
    if not len(links):
        return np.arange(count)
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(links), np.bool_), links.T), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _cut(found: NDArray[np.bool_], window: Window) -> tuple[Window, NDArray[np.bool_]]:
    """A window without the rows and columns in which nothing is found."""
    rows, columns = (np.flatnonzero(found.any(axis)) for axis in (1, 0))
    part = Window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
    return part.moved(window.top, window.left), found[part.slices]
