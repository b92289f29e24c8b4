"""Which pixels to decode (the thesis, section 3.1.2), and on which grid.

A policy looks at the probabilities before a scale and names the queries to decode; all others keep their value. What it
says of a pixel depends on a finite neighbourhood alone, so that it can be asked window by window.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.config import Cascade, Options
from refine.coords import Axis, Samples
from refine.models import Network
from refine.tiles import Window

MOVED = 0.1  # of a probability; a first pass "near" takes a pixel that moved further for changed, whatever its class
UNSURE = 8  # px; so near to a contour, a strided pass looks at every pixel


@dataclass(frozen=True)
class Grid:
    """Rows x columns of queries.

    samples: how the next scale reads the mask from them, where they are not all pixels of the picture or of that scale.
    """

    rows: Axis
    columns: Axis
    samples: tuple[Samples, Samples] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)


def dense(network: Network, full: tuple[int, int], size: tuple[int, int]) -> Grid:
    """Every pixel of a picture of ``full`` px, from the latent of its ``size``."""
    return Grid(network.axis(full[0], size[0]), network.axis(full[1], size[1]))


def read_by_next(network: Network, full: tuple[int, int], size: tuple[int, int], following: tuple[int, int]) -> Grid:
    """Only the pixels that reducing the mask to the size ``following`` reads: the same mask there (identity g).

    From scale 1/8 to 1/4 they are a quarter of all; from 1/2 on, all.
    """
    samples = Samples.of(full[0], following[0]), Samples.of(full[1], following[1])
    grid = dense(network, full, size)
    if all(len(s.positions) == pixels for s, pixels in zip(samples, full, strict=True)):
        return grid
    return Grid(grid.rows[samples[0].positions], grid.columns[samples[1].positions], samples)


def at_next(network: Network, full: tuple[int, int], size: tuple[int, int], following: tuple[int, int]) -> Grid:
    """The samples of the next scale themselves: the least to decode, and no longer quite the same mask."""
    rows, columns = (network.axis_at(*lengths) for lengths in zip(full, size, following, strict=True))
    return Grid(rows, columns)


@dataclass(frozen=True)
class Selection:
    """The queries to decode in a window of the grid.

    area: (n, m) bool, those that may be decoded; the latent is needed there. points: (n, m) bool, those that are, to
    begin with. stride: of a strided pass, whose other queries of the area `rest` decides on; else 0. moved: by how much
    a probability changes, if not its class does.
    """

    area: NDArray[np.bool_]
    points: NDArray[np.bool_]
    stride: int = 0
    moved: float = 1.0

    def cut(self, window: Window) -> "Selection":
        """That of a part of the window."""
        return replace(self, area=self.area[window.slices], points=self.points[window.slices])

    @property
    def everything(self) -> bool:
        """Whether all queries are decoded at once."""
        return self.stride == 0 and bool(self.points.all())

    def changed(self, before: NDArray[np.float32], p: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether each of some queries changed by being decoded, (N,) bool: its class, or by more than ``moved``."""
        found: NDArray[np.bool_] = (before > 0.5) != (p > 0.5)
        return found | (np.abs(p - before) > self.moved) if self.moved < 1 else found

    def rest(self, changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The queries still to decode: those with one among the four decoded around them that ``changed``."""
        if not self.stride:
            return np.zeros_like(self.points)
        from refine_kernels import grid_lines, strided_changes

        on_grid = changed[np.ix_(*(grid_lines(n, self.stride) for n in changed.shape))]
        found: NDArray[np.bool_] = strided_changes(on_grid, changed.shape, self.stride)
        found &= self.area
        return np.greater(found, self.points, out=found)  # and not among the points


def margin(options: Options) -> int:
    """How far around a window its `select` looks, in queries."""
    if options.decode == "strided":
        return options.stride + (options.band if options.first_pass == "near" else 0)
    return options.band if options.decode == "contour" else 0


def select(
    before: NDArray[np.float32],
    options: Options,
    *,
    first: bool,
    boxes: NDArray[np.bool_] | None,
    sure: float = Cascade.sure,
) -> Selection:
    """The queries to decode in a window that begins on the strided grid, by the probabilities before, (n, m).

    first: whether this is the first scale, before which nothing is known but the coarse mask: a first pass "near" is
    one everywhere there. sure: of the cascade.
    """
    from refine_kernels import contour_band, mask_and_doubt

    shape = before.shape
    if options.decode == "dense":
        return Selection(np.ones(shape, bool), np.ones(shape, bool))
    if options.decode == "bbox":
        assert boxes is not None
        return Selection(boxes, boxes)
    if options.decode == "contour":
        band = contour_band(before > 0.5, options.band)
        return Selection(band, band)
    if options.first_pass == "everywhere":
        return _strided(np.ones(shape, bool), np.zeros(shape, bool), options.stride)
    mask, unsure = mask_and_doubt(before, sure)
    unsure |= contour_band(mask, min(UNSURE, options.band))
    area = np.ones(shape, bool) if first else contour_band(mask, options.band) | unsure
    # A grid pixel that moved within its class alone would be a dot, of which the next scale makes a spot.
    return replace(_strided(area, unsure, options.stride), moved=MOVED)


def _strided(wanted: NDArray[np.bool_], unsure: NDArray[np.bool_], stride: int) -> Selection:
    """A pass over the grid pixels around every cell that holds a wanted pixel; of unsure cells, over all pixels."""
    from refine_kernels import any_in_cells, fill_cells, grid_lines

    lines = tuple(grid_lines(n, stride) for n in wanted.shape)
    # A cell begins on its first line; the last one of an axis ends on the last line.
    rows, columns = (at[:-1] if len(at) > 1 else at for at in lines)
    chosen = any_in_cells(wanted, rows, columns)
    corners = np.zeros(tuple(map(len, lines)), bool)
    corners[: chosen.shape[0], : chosen.shape[1]] = chosen
    corners[1:] |= corners[:-1]
    corners[:, 1:] |= corners[:, :-1]
    points = fill_cells(any_in_cells(unsure, rows, columns), rows, columns, wanted.shape)
    points[np.ix_(*lines)] |= corners
    return Selection(fill_cells(chosen, rows, columns, wanted.shape), points, stride)


def bounding_boxes(mask: NDArray[np.bool_], padding: int) -> NDArray[np.bool_]:
    """The bounding boxes of a mask's connected components (of 8 neighbours) with ``padding`` px around, as (H, W)."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    out = np.zeros(mask.shape, bool)
    for x, y, width, height, _ in stats[1:count]:
        window = Window(y, y + height, x, x + width).grown(padding, *mask.shape)
        out[window.slices] = True
    return out
