"""How a crop of a picture and its truth is drawn and coloured as published.

The broad way, of any scale and about the contour, is `refine.training.data`'s own.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

AUGMENTS: Final = ("broad", "published")
LUMA: Final = (0.299, 0.587, 0.114)  # of red, green, blue in a grey


def published_crop(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A square of ``size`` px anywhere in a picture (H, W, 3) and its truth (H, W) of 0 to 255, at their own scale.

    A side that is shorter is first continued by its mirror image; there CascadePSP, whose crops CRM takes over, sets 0.
    """
    margins = [max(0, size - side) for side in truth.shape]
    if any(margins):
        (top, bottom), (left, right) = ((margin // 2, margin - margin // 2) for margin in margins)
        image, truth = (
            np.asarray(cv2.copyMakeBorder(array, top, bottom, left, right, cv2.BORDER_REFLECT), np.uint8)
            for array in (image, truth)
        )
    y, x = (int(rng.integers(side - size + 1)) for side in truth.shape)
    part = np.s_[y : y + size, x : x + size]
    return image[part], truth[part] > 127


def published_jitter(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """``image`` (H, W, 3) with random brightness (20 %), contrast and saturation (5 %); grey one time in ten.

    The strengths are those of CascadePSP's public training code, which CRM's follows.
    """
    brightness, contrast, saturation = 1 + rng.uniform(-1, 1, 3) * (0.2, 0.05, 0.05)
    if rng.random() < 0.1:
        saturation = 0.0
    mean = np.dot(LUMA, cv2.mean(image)[:3])
    affine = colour_map(saturation, contrast, (1 - contrast) * mean)
    return np.asarray(cv2.transform(image, brightness * affine), np.uint8)  # rounded, and clipped to 0..255


def colour_map(saturation: float, contrast: float, offset: float) -> NDArray[np.float64]:
    """(3, 4), for `cv2.transform`: colours moved away from their grey, or to it (0), times contrast, plus offset."""
    colours = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1))
    return np.column_stack((contrast * colours, np.full(3, offset)))
