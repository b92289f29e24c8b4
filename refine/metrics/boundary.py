"""Figures of what is near the contour: mean boundary accuracy and boundary IoU."""

from math import hypot
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refine_kernels
from refine.errors import OptionError
from refine.metrics.inputs import binary_masks, box

_RADII = 5  # bands of the mean boundary accuracy


def mean_boundary_accuracy(
    prediction: NDArray[Any], truth: NDArray[Any], *, void: NDArray[np.bool_] | None = None
) -> float:
    """Mean over five bands around the truth's boundary of the share of right pixels, in [0, 1] (mBA).

    Band i = 0..4 is where the morphological gradient of the truth by OpenCV's ellipse of side 2 r_i + 1 is not zero,
    r_i = 1 + int(((W + H) / 300 - 1) / 5 * i). The picture's border is no boundary. A truth without a boundary (empty,
    or full) has no band, 0/0 in the protocol; here it is 1.0 if the prediction equals it, else 0.0. Pixels of ``void``
    are left out, and so are bands that lie in it.

    Source: Cheng et al., CascadePSP, CVPR 2020, section 4.1 and the evaluation published with it.
    """
    prediction, truth = binary_masks({"prediction": prediction, "truth": truth})
    radii = band_radii(*truth.shape)
    if void is not None:
        prediction = np.where(void, truth, prediction)
    right, total = refine_kernels.band_counts(prediction, truth, radii).T
    if void is not None:
        unknown = refine_kernels.band_counts(np.where(void, truth, ~truth), truth, radii).T[0]
        right, total = right - unknown, total - unknown
    if not total.any():
        return float(np.array_equal(prediction, truth))
    known = total > 0
    return float((right[known] / total[known]).sum()) / int(known.sum())


def band_radii(height: int, width: int) -> list[int]:
    """Radii of the mBA's bands in px, rising; the first is 1."""
    return [1 + int(((width + height) / 300 - 1) / _RADII * i) for i in range(_RADII)]


def boundary_iou(prediction: NDArray[Any], truth: NDArray[Any], *, dilation_ratio: float = 0.02) -> float:
    """IoU of the two masks' inner boundaries, in [0, 1]; 1.0 if both masks are empty.

    The inner boundary holds the pixels of a mask that have an unset one within d px in y and in x (Chebyshev
    distance), d = dilation_ratio times the picture's diagonal in px, rounded, at least 1. What is outside the picture
    counts as unset: the picture's border is a boundary.

    dilation_ratio: above 0, at most 1; 0.02 is the published evaluation's default.

    Source: Cheng et al., Boundary IoU, CVPR 2021 (arXiv 2103.16562), and the evaluation published with it.
    """
    if not 0 < dilation_ratio <= 1:
        raise OptionError(f"dilation_ratio={dilation_ratio}; give a share of the diagonal above 0 and at most 1")
    prediction, truth = binary_masks({"prediction": prediction, "truth": truth})
    d = max(1, round(dilation_ratio * hypot(*truth.shape)))
    window = box(prediction, truth)
    one, other = (_inner_boundary(mask[window], d) for mask in (prediction, truth))
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / union if union else 1.0


def _inner_boundary(mask: NDArray[np.bool_], d: int) -> NDArray[np.bool_]:
    """Pixels of a mask within d px of an unset one; all around the mask is unset."""
    if not mask.any():
        return mask
    around = np.pad(mask, 1)
    # No pixel is further from the frame than half of the lesser side.
    return refine_kernels.contour_band(around, min(d, -(-min(mask.shape) // 2)))[1:-1, 1:-1] & mask
