"""The coarse mask reduced to a grid and enlarged again: how networks of low resolution give masks of full size."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.methods.options import MethodOptions, Outcome, within


@dataclass(frozen=True, kw_only=True)
class BilinearOptions(MethodOptions):
    """How coarse the grid is."""

    cells: int = within(256, 1, 100_000)
    """Cells of the grid along the picture's longer side. Pictures of no more px than that keep their mask as it is."""


def bilinear(image: NDArray[np.uint8], mask: NDArray[np.float32], options: BilinearOptions) -> Outcome:
    """The mean of the mask (H, W) in each cell, interpolated between the cells' centres.

    Rounds off stairs that are smaller than a cell or about as large. The picture (H, W, 3) is not looked at.
    """
    factor = options.cells / max(mask.shape)
    if factor >= 1:
        return Outcome(mask)
    height, width = (max(1, round(side * factor)) for side in mask.shape)
    cells = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
    enlarged = cv2.resize(cells, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return Outcome(np.asarray(enlarged, np.float32))
