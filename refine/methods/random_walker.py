"""The chance that a random walk over like colours comes first to the object, in a band around the coarse contour.

Leo Grady: Random Walks for Image Segmentation. PAMI 2006; as scikit-image has it.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refine.methods.band import Band, BandOptions
from refine.methods.options import Outcome, within


@dataclass(frozen=True, kw_only=True)
class RandomWalkerOptions(BandOptions):
    """Where to walk and what hinders it."""

    beta: float = within(1000.0, 0, 1e6)
    """How much a difference of colours hinders the walk, relative to the spread of the picture's colours."""


def random_walker(image: NDArray[np.uint8], mask: NDArray[np.float32], options: RandomWalkerOptions) -> Outcome:
    """That chance within ``reach`` of the mask's contour, where the walks begin; elsewhere the mask stays.

    image (H, W, 3) RGB, mask (H, W) in [0, 1] with both classes. Of a large picture the object's bounding box is
    reduced to ``megapixels`` and the probability enlarged bilinearly, which a warning tells. A picture of one colour
    leaves the mask as it is, with a warning.
    """
    from skimage import segmentation  # takes longer to import than all else here

    band = Band.around("random walker", image, mask, reach=options.reach, megapixels=options.megapixels)
    if not band.usable:
        return band.unchanged(mask)
    colours = band.image / np.float32(255)
    if not np.ptp(band.image, axis=(0, 1)).any():
        return Outcome(mask, ("the picture has one colour around the coarse mask, which stays as it is",))
    seeds = np.where(band.open, 0, np.where(band.mask, 1, 2))
    # In a narrow band the direct solver ("bf") is exact and as fast as the iterative ones, which stop far from it.
    with warnings.catch_warnings():
        # With some versions of numpy the sums round otherwise; what is outside by rounding is clipped below.
        warnings.filterwarnings("ignore", "The probability range is outside", UserWarning)
        found = segmentation.random_walker(
            colours, seeds, beta=options.beta, mode="bf", return_full_prob=True, channel_axis=-1
        )
    return band.paste(np.clip(found[0], 0, 1).astype(np.float32), mask)
