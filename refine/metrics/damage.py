"""The harm that refining a mask did."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import refine_kernels
from refine.metrics.boundary import band_radii
from refine.metrics.inputs import binary_masks


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
    refined, coarse, truth = binary_masks(names)
    near = refine_kernels.contour_band(coarse, max(band_radii(*truth.shape)))
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
