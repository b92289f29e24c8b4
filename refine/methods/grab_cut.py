"""Colour models of object and ground, and a graph cut between them, in a band around the coarse contour.

Carsten Rother, Vladimir Kolmogorov, Andrew Blake: GrabCut. SIGGRAPH 2004; as OpenCV has it.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.methods.band import Band, BandOptions
from refine.methods.options import Outcome, within


@dataclass(frozen=True, kw_only=True)
class GrabCutOptions(BandOptions):
    """Where and how often to cut."""

    rounds: int = within(2, 1, 100)
    """How often colours are learnt from the last cut and the cut is made again."""


def grab_cut(image: NDArray[np.uint8], mask: NDArray[np.float32], options: GrabCutOptions) -> Outcome:
    """The mask cut anew within ``reach`` of its contour; elsewhere it stays.

    image (H, W, 3) RGB, mask (H, W) in [0, 1] with both classes. Of a large picture the object's bounding box is
    reduced to ``megapixels`` and the cut enlarged bilinearly, which a warning tells.
    """
    band = Band.around("GrabCut", image, mask, reach=options.reach, megapixels=options.megapixels)
    if not band.usable:
        return band.unchanged(mask)
    sure, likely = np.where(band.mask, cv2.GC_FGD, cv2.GC_BGD), np.where(band.mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    labels = np.where(band.open, likely, sure).astype(np.uint8)
    # OpenCV's random numbers are a thread's own: in a new one they begin at a seed, and the caller's go on undisturbed.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_cut, band.image, labels, options.rounds).result()
    return band.paste(np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32), mask)


def _cut(image: NDArray[np.uint8], labels: NDArray[np.uint8], rounds: int) -> None:
    """Replaces what is likely among the ``labels``."""
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, labels, (0, 0, 1, 1), *models, rounds, cv2.GC_INIT_WITH_MASK)
