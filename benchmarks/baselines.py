"""Refiners that need no training, as the peers in tables: a guided filter and GrabCut.

Both take a picture (H, W, 3) uint8 RGB and a coarse mask (H, W) bool, and give a mask (H, W) bool.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

MOST = 1_000_000  # px at which GrabCut works; its graph cut takes minutes beyond


def guided_filter(image: Image, coarse: Mask, *, epsilon: float = 1e-4) -> Mask:
    """The mask filtered by a local linear model of the picture's grey (He et al., ECCV 2010, eq. 5, 6 and 8).

    The window's radius is 1 / 100 of the longer side, at least 4 px; epsilon is for greys in [0, 1].
    """
    radius = max(4, max(coarse.shape) // 100)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    p = coarse.astype(np.float32)

    def mean(x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(cv2.boxFilter(x, cv2.CV_32F, (2 * radius + 1, 2 * radius + 1)), np.float32)

    of_grey, of_p = mean(grey), mean(p)
    a = (mean(grey * p) - of_grey * of_p) / (mean(grey * grey) - of_grey * of_grey + np.float32(epsilon))
    b = of_p - a * of_grey
    refined: Mask = mean(a) * grey + mean(b) > 0.5
    return refined


def grab_cut(image: Image, coarse: Mask, *, rounds: int = 3) -> Mask:
    """Colour models and a graph cut (Rother et al., SIGGRAPH 2004) in a band around the coarse contour.

    The band is 1 / 25 of the longer side wide on both sides; what lies outside it stays. A large picture is reduced to
    `MOST` px first, and the mask enlarged again.
    """
    height, width = coarse.shape
    factor = min(1.0, (MOST / coarse.size) ** 0.5)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    mask = cv2.resize(coarse.astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    side = 2 * max(2, max(size) // 25) + 1
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    labels = np.where(mask > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode(mask, brush, borderValue=1) > 0] = cv2.GC_FGD
    labels[cv2.dilate(mask, brush) == 0] = cv2.GC_BGD
    classes = {int(v) & 1 for v in np.unique(labels)}
    if classes != {0, 1}:  # GrabCut wants samples of both
        return coarse
    cv2.setRNGSeed(0)
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, labels, (0, 0, 1, 1), *models, rounds, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # a class without enough pixels for its mixture
        return coarse
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.float32)
    return np.asarray(cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5, bool)
