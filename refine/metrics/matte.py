"""Errors of alpha mattes: sum of absolute differences, mean squared error, gradient and connectivity error.

The four figures of Rhemann et al., A perceptually motivated online benchmark for image matting, CVPR 2009. All are 0.0
for the truth itself and symmetric. SAD, gradient and connectivity error are sums over pixels and given in thousands, as
is customary; they grow with the picture.

prediction, truth: mattes (H, W), floats in [0, 1], bool, integers {0, 1} or 0..255. within: the pixels that count, a
mask; customary is the unknown region of the trimap. Without it all pixels count; if it is empty, the errors are 0.0.
"""

from math import ceil, log, pi, sqrt
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.metrics.inputs import binary_masks, box, check_shapes, unit_values

Matte = NDArray[np.float32]
Point = tuple[int, int]  # (x, y)

_SIGMA: Final = 1.4  # px
_STEPS: Final = 10  # levels of the connectivity, 0.1 apart
_THETA: Final = 0.15  # of the connectivity: what is less above the source region is not seen


def sad(prediction: NDArray[Any], truth: NDArray[Any], *, within: NDArray[Any] | None = None) -> float:
    """Sum of absolute differences in thousands, at least 0."""
    p, t, counts = _mattes(prediction, truth, within)
    return _sum(np.abs(p - t), counts) / 1000


def mse(prediction: NDArray[Any], truth: NDArray[Any], *, within: NDArray[Any] | None = None) -> float:
    """Mean squared difference of the pixels that count, in [0, 1]."""
    p, t, counts = _mattes(prediction, truth, within)
    size = p.size if counts is None else int(np.count_nonzero(counts))
    return _sum(np.square(p - t), counts) / size if size else 0.0


def gradient_error(prediction: NDArray[Any], truth: NDArray[Any], *, within: NDArray[Any] | None = None) -> float:
    """Sum of squared differences of the gradients' magnitudes, in thousands, at least 0.

    Gradients by derivatives of a Gaussian of sigma 1.4 px, cut where it has fallen to a hundredth and scaled to a sum
    of squares of 1; the picture's border is repeated outwards. Alpha is taken as it is: evaluations that first stretch
    each matte to the whole of [0, 1] agree for mattes that reach both ends.
    """
    p, t, counts = _mattes(prediction, truth, within)
    # Where no pixel of the window of a derivative differs, nor does the gradient.
    window = box(p != t, margin=2 * _reach())
    if not p[window].size:
        return 0.0
    differences = _gradient(p[window])
    differences -= _gradient(t[window])
    return _sum(np.square(differences, out=differences), None if counts is None else counts[window]) / 1000


def connectivity_error(prediction: NDArray[Any], truth: NDArray[Any], *, within: NDArray[Any] | None = None) -> float:
    """Sum of absolute differences of the pixels' connectedness, in thousands, at least 0.

    The source region at a level is the largest 4-connected region (of several, the first in reading order) where both
    mattes reach the level. l is the last of the levels 0, 0.1, .. 1 up to which a pixel is in the source region of
    each, 0 being all of the picture. A pixel's connectedness in a matte is 1 - (alpha - l), or 1 where alpha - l is
    below 0.15 (theta): soft parts that hang on the object are forgiven, and those that float are not.

    The paper weighs alpha - l by how far off the region is; as in the evaluations in use, that weight is 1 here.
    """
    p, t, counts = _mattes(prediction, truth, within)
    last = _last_connected_level(p, t)
    differences = _above(p, last)
    differences -= _above(t, last)
    return _sum(np.abs(differences, out=differences), counts) / 1000


def _mattes(
    prediction: NDArray[Any], truth: NDArray[Any], within: NDArray[Any] | None
) -> tuple[Matte, Matte, NDArray[np.bool_] | None]:
    found = {"prediction": unit_values(prediction, "prediction"), "truth": unit_values(truth, "truth")}
    if within is not None:
        (found["region within"],) = binary_masks({"region within": within})
    check_shapes(found)
    p, t = (found[name].astype(np.float32, copy=False) for name in ("prediction", "truth"))
    return p, t, found.get("region within")


def _sum(errors: Matte, counts: NDArray[np.bool_] | None) -> float:
    return float((errors if counts is None else errors[counts]).sum(dtype=np.float64))


def _reach() -> int:
    """Px to each side at which the Gaussian has fallen to a hundredth."""
    return ceil(_SIGMA * sqrt(-2 * log(sqrt(2 * pi) * _SIGMA * 0.01)))


def _gradient(alpha: Matte) -> Matte:
    """Magnitude of the gradient."""
    at = np.arange(-_reach(), _reach() + 1)
    smooth = np.exp(-(at**2) / (2 * _SIGMA**2))
    derivative = -at * smooth
    smooth, derivative = (weights / np.linalg.norm(weights) for weights in (smooth, derivative))
    along_x = cv2.sepFilter2D(alpha, -1, derivative, smooth, borderType=cv2.BORDER_REPLICATE)
    along_y = cv2.sepFilter2D(alpha, -1, smooth, derivative, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.magnitude(along_x, along_y))


def _last_connected_level(p: Matte, t: Matte) -> Matte:
    least = np.minimum(p, t)
    window = box(least >= np.float32(1 / _STEPS))
    least = np.ascontiguousarray(least[window])
    last = np.full(least.shape, _STEPS, np.uint8)
    seed = None
    for k in range(_STEPS, 0, -1):  # the lowest level without a pixel decides
        region, seed = _largest(least >= np.float32(k / _STEPS), seed)
        last[~region] = k - 1
    level = np.zeros(p.shape, np.float32)
    level[window] = (np.arange(_STEPS + 1) / _STEPS).astype(np.float32)[last]
    return level


def _largest(mask: NDArray[np.bool_], seed: Point | None) -> tuple[NDArray[np.bool_], Point | None]:
    """The largest 4-connected component of a mask, and a point (x, y) of it; nothing of an empty mask.

    seed: a point of the mask that may be of it. What is filled from there is the largest if it is more than half.
    """
    size = int(np.count_nonzero(mask))
    if not size:
        return mask, None
    if seed is not None:
        filled = mask.astype(np.uint8)
        area, *_ = cv2.floodFill(filled, None, seed, 2, flags=4)  # type: ignore[call-overload]
        if 2 * area > size:
            return filled == 2, seed
    _, components, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    region = np.asarray(components) == 1 + int(np.argmax(np.asarray(stats)[1:, cv2.CC_STAT_AREA]))
    y, x = np.unravel_index(int(np.argmax(region)), mask.shape)
    return region, (int(x), int(y))


def _above(alpha: Matte, level: Matte) -> Matte:
    above = alpha - level
    above[above < np.float32(_THETA)] = 0
    return above
