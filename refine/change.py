"""How a result differs from its coarse mask: what there is to look at where there is no truth."""

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.cells import BACKGROUND, FOREGROUND, Cells
from refine.parts import Parts, around
from refine.planes import Plane, Store
from refine.result import Change

DISTANCE = 0.01  # of the longer side; a contour that is further off has moved
_STEPS = 4  # cells in that distance


def change(coarse: Plane, refined: Plane, store: Store) -> Change:
    """What refining a coarse mask changed; planes (H, W) float32 of one size, set above 0.5."""
    distance = max(2, round(DISTANCE * max(coarse.size)))
    window = around(coarse, refined, store=store)
    had, has = Parts.of(coarse, refined, window, store), Parts.of(refined, coarse, window, store)
    lost, before = had.held == 0, int(had.pixels.sum())
    return Change(
        parts=len(had),
        parts_lost=int(np.count_nonzero(lost)),
        lost_share=int(had.pixels[lost].sum()) / max(before, 1),
        parts_added=int(np.count_nonzero(has.held == 0)),
        area_ratio=int(has.pixels.sum()) / before if before else None,
        contour_moved=_moved(coarse, refined, distance, store),
        contour_distance=distance,
    )


def _moved(coarse: Plane, refined: Plane, distance: int, store: Store) -> float:
    """Share of the coarse contour from which the refined one is further than so many px, to a cell."""
    step = max(1, distance // _STEPS)
    height, width = (-(-n // step) for n in coarse.size)
    cells = Cells((height, width), store)
    had, has = (_contour(cells.classes(plane)) for plane in (coarse, refined))
    if not had.any():
        return 0.0
    if not has.any():
        return 1.0
    off = cv2.distanceTransform((~has).view(np.uint8), cv2.DIST_L2, 5)
    return float((off[had] > distance / step).mean())


def _contour(bits: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Cells that have pixels of both classes, or of one beside a cell that has the other."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inside, outside = (cv2.dilate(bits & bit, cross) > 0 for bit in (FOREGROUND, BACKGROUND))
    return np.asarray(inside & outside, np.bool_)
