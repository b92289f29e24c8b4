"""How good a mask is: IoU and mean boundary accuracy, by the published protocol of the BIG data set; and the harm that
refining a mask did.

Every measure takes arrays (H, W) of the same shape, the truth last. A mask is bool (preferred), integer {0, 1}, integer
0..255 (set where > 128, as the protocol reads files) or float in [0, 1] (set where > 0.5). Anything else is an
:class:`~refine.errors.InputError`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
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
    prediction, truth = _binary_masks({"prediction": prediction, "truth": truth})
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
    prediction, truth = _binary_masks({"prediction": prediction, "truth": truth})
    right, total = refine_kernels.band_counts(prediction, truth, _radii(*truth.shape)).T
    if not total[0]:
        return float(np.array_equal(prediction, truth))
    return float((right / total).sum()) / _RADII


@dataclass(frozen=True)
class Harm:
    """Errors of one refined mask that its coarse mask did not have and that no contour drawn a little wrong explains.

    All zero for the coarse mask itself and for the truth, except ``truth_px``. Components are 8-connected.

    far_px: pixels that the coarse mask has right and the refined mask wrong, and further than d px from the coarse
    mask's contour: no pixel within d px in y and in x (Chebyshev distance) is of the coarse mask's other class. d is
    the largest radius of the mBA's bands for this size of picture. A coarse mask without a contour (empty, or full) has
    all pixels far.

    fragments: components of the refined mask without a pixel of the coarse mask or of the truth.

    holes: components of the refined mask's background without a pixel of the coarse mask's or of the truth's
    background; the fragments of the three masks inverted.

    lost: components of the truth, each at least 1/10000 of the picture, of whose pixels the coarse mask has more than
    half and the refined mask less than a tenth.
    """

    far_px: int
    truth_px: int  # area of the truth
    fragments: int
    holes: int
    lost: int

    @property
    def far(self) -> float:
        """``far_px`` as a share of the truth's area, as :func:`pooled_far` of this picture alone."""
        return pooled_far([(self.far_px, self.truth_px)])


def harm(refined: NDArray[Any], coarse: NDArray[Any], truth: NDArray[Any]) -> Harm:
    """What refining a coarse mask broke; :class:`Harm` defines the figures."""
    names = {"refined mask": refined, "coarse mask": coarse, "truth": truth}
    refined, coarse, truth = _binary_masks(names)
    near = refine_kernels.contour_band(coarse, max(_radii(*truth.shape)))
    return Harm(
        far_px=int(np.count_nonzero((coarse == truth) & (refined != truth) & ~near)),
        truth_px=int(np.count_nonzero(truth)),
        fragments=_apart(refined, coarse | truth),
        holes=_apart(~refined, ~(coarse & truth)),
        lost=_lost(refined, coarse, truth),
    )


def pooled_far(counts: Iterable[tuple[int, int]]) -> float:
    """Sum of the far errors over the sum of the truths' areas, (``far_px``, ``truth_px``) a picture: at least 0.

    Can exceed 1. Where every truth is empty it is 0.0 without an error and else 1.0.
    """
    far = area = 0
    for f, a in counts:
        far += f
        area += a
    return far / area if area else float(far > 0)


def _apart(mask: NDArray[np.bool_], others: NDArray[np.bool_]) -> int:
    """How many components of a mask have no pixel of the others."""
    number, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    touched = np.zeros(number, np.bool_)
    touched[np.asarray(labels)[mask & others]] = True
    return number - 1 - int(np.count_nonzero(touched))


def _lost(refined: NDArray[np.bool_], coarse: NDArray[np.bool_], truth: NDArray[np.bool_]) -> int:
    number, components, stats, _ = cv2.connectedComponentsWithStats(truth.view(np.uint8), connectivity=8)
    labels, area = np.asarray(components), np.asarray(stats)[1:, cv2.CC_STAT_AREA]
    had, has = (np.bincount(labels[mask & truth], minlength=number)[1:] for mask in (coarse, refined))
    return int(np.count_nonzero((10_000 * area.astype(np.int64) >= truth.size) & (2 * had > area) & (10 * has < area)))


def _radii(height: int, width: int) -> list[int]:
    """Radii of the mBA's bands in px, rising; the first is 1."""
    return [1 + int(((width + height) / 300 - 1) / _RADII * i) for i in range(_RADII)]


def _binary_masks(masks: Mapping[str, NDArray[Any]]) -> list[NDArray[np.bool_]]:
    """The masks, by the names that an error gives them, as bool; raises InputError if their shapes differ."""
    found = {name: _binary(mask, name) for name, mask in masks.items()}
    if len({mask.shape for mask in found.values()}) > 1:
        shapes = " and ".join(f"the {name} is {mask.shape}" for name, mask in found.items())
        raise InputError(f"{shapes}; bring all to the same (H, W)")
    return list(found.values())


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
