"""How good a mask is: IoU and mean boundary accuracy, by the published protocol of the BIG data set.

Every measure takes ``(prediction, truth)``, two arrays (H, W) of the same shape, and lies in [0, 1]. A mask is bool
(preferred), integer {0, 1}, integer 0..255 (set where > 128, as the protocol reads files) or float in [0, 1] (set
where > 0.5). Anything else is an :class:`~refine.errors.InputError`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refine_kernels
from refine.errors import InputError

_RADII = 5  # bands of the mean boundary accuracy


def iou(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Intersection over union of one picture, in [0, 1]; 1.0 if both masks are empty."""
    return pooled_iou([intersection_and_union(prediction, truth)])


def intersection_and_union(prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[int, int]:
    """Pixels set in both masks, and pixels set in either: the counts that :func:`pooled_iou` adds up."""
    prediction, truth = _binary_pair(prediction, truth)
    intersection = int(np.count_nonzero(prediction & truth))
    return intersection, int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth)) - intersection


def pooled_iou(counts: Iterable[tuple[int, int]]) -> float:
    """Sum of the intersections over the sum of the unions, in [0, 1]: the protocol's IoU of a whole set.

    Large objects weigh more than small ones: it differs by points from the mean of the pictures' IoU. 1.0 where every
    union is empty.
    """
    intersection = union = 0
    for i, u in counts:
        intersection += i
        union += u
    return intersection / union if union else 1.0


def mean_boundary_accuracy(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Mean over five bands around the truth's boundary of the share of right pixels, in [0, 1] (mBA).

    Band i = 0..4 is where the morphological gradient of the truth by OpenCV's ellipse of side 2 r_i + 1 is not zero,
    r_i = 1 + int(((W + H) / 300 - 1) / 5 * i). The picture's border is no boundary. A truth without a boundary (empty,
    or full) has no band, 0/0 in the protocol; here it is 1.0 if the prediction equals it, else 0.0.

    Source: Cheng et al., CascadePSP, CVPR 2020, section 4.1 and the evaluation published with it.
    """
    prediction, truth = _binary_pair(prediction, truth)
    height, width = truth.shape
    radii = [1 + int(((width + height) / 300 - 1) / _RADII * i) for i in range(_RADII)]
    right, total = refine_kernels.band_counts(prediction, truth, radii).T
    if not total[0]:
        return float(np.array_equal(prediction, truth))
    return float((right / total).sum()) / _RADII


def _binary_pair(prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    prediction, truth = _binary(prediction, "prediction"), _binary(truth, "truth")
    if prediction.shape != truth.shape:
        raise InputError(
            f"the prediction is {prediction.shape} and the truth {truth.shape}; bring both to the same (H, W)"
        )
    return prediction, truth


def _binary(mask: NDArray[Any], name: str) -> NDArray[np.bool_]:
    mask = np.asarray(mask)
    if mask.ndim != 2 or not mask.size:
        raise InputError(f"the {name} has shape {mask.shape}; give a mask (H, W) with at least one pixel")
    if mask.dtype == np.bool_:
        return np.ascontiguousarray(mask)
    if not np.issubdtype(mask.dtype, np.integer) and not np.issubdtype(mask.dtype, np.floating):
        raise InputError(f"the {name} is of type {mask.dtype}; give bool, integers or floats")
    low, high = mask.min(), mask.max()
    if np.issubdtype(mask.dtype, np.integer) and low >= 0 and (high <= 1 or 128 < high <= 255):
        return np.ascontiguousarray(mask > (0 if high <= 1 else 128))
    if np.issubdtype(mask.dtype, np.floating) and low >= 0 and high <= 1:  # false for NaN
        return np.ascontiguousarray(mask > 0.5)
    raise InputError(
        f"the {name} holds {mask.dtype} values from {low} to {high}; give bool, integers 0 and 1, integers 0..255 with "
        "a pixel over 128, or floats in [0, 1]"
    )
