"""The coarse mask as it is: what every refiner is measured against."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refine.methods.options import MethodOptions, Outcome


@dataclass(frozen=True, kw_only=True)
class CoarseOptions(MethodOptions):
    """There is nothing to choose."""


def coarse(image: NDArray[np.uint8], mask: NDArray[np.float32], options: CoarseOptions) -> Outcome:
    """The mask (H, W) in [0, 1] itself; the picture (H, W, 3) is not looked at."""
    return Outcome(mask)
