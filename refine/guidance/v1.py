"""SAM-SR v1: the proposals that a coarse mask covers are refined in its place (the thesis, section 3.3.1).

With proposals P_1, ..., P_n and the coarse mask M, sets of pixels at the proposals' size:

coverage     c(P) = |P n M| / |P|          a proposal is kept if this is at least `coverage`
union        U = the kept ones together     is refined instead of M, unless it is empty, or
sparsity     s = 1 - |M n H| / |H|          is more than `sparsity`, where H is M without its gaps: SAM fills those of
                                            bicycles and fences
deformation  d = 1 - |M n U| / |M u U|      is more than `deformation`: nothing fits the mask

The thesis names the three coefficients without their formulas or thresholds; these are ours, and so are the thresholds,
chosen by the sweep in README.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from refine.guidance.proposals import Proposals

Mask = NDArray[np.bool_]

CLOSED: Final = 0.01  # of the longer side of a mask's bounding box: gaps of twice that are no gaps


@dataclass(frozen=True, eq=False)
class Covered:
    """What v1 makes of a mask (h, w).

    mask: (h, w), what is to be refined; kept: (n,) bool, the proposals that the mask covers; skipped: the rule that
    kept the coarse mask, with its value, or "".
    """

    mask: Mask
    kept: NDArray[np.bool_]
    sparsity: float
    deformation: float
    skipped: str


def covered(proposals: Proposals, mask: Mask, *, coverage: float, sparsity: float, deformation: float) -> Covered:
    """The union of the proposals that a coarse mask (h, w), of their size, covers; the mask itself where a rule skips.

    coverage, sparsity, deformation: thresholds in [0, 1]; see the module. The order of the proposals does not matter.
    """
    assert mask.shape == proposals.size, (mask.shape, proposals.size)
    kept = coverages(proposals, mask) >= coverage
    found = _union(proposals, kept)
    gaps, change = sparsity_of(mask), deformation_of(mask, found)
    skipped = ""
    if gaps > sparsity:
        skipped = too_sparse(gaps, sparsity)
    elif mask.any() and not found.any():
        skipped = "the mask covers no proposal"
    elif change > deformation:
        skipped = f"deformation {change:.3f} is above {deformation:g}"
    return Covered(mask if skipped else found, kept, gaps, change, skipped)


def too_sparse(sparsity: float, most: float) -> str:
    """Why a mask of this sparsity is refined as it is."""
    return f"sparsity {sparsity:.3f} is above {most:g}"


def coverages(proposals: Proposals, mask: Mask) -> NDArray[np.float64]:
    """(n,) share of each proposal that lies in the mask, in [0, 1]; 0 of a proposal without pixels."""
    inside = np.concatenate(([0], np.cumsum(mask.ravel(order="F"))))  # px of the mask before each, column by column
    out = np.zeros(len(proposals))
    for i, proposal in enumerate(proposals):
        if proposal.area:
            starts, ends = _runs(proposal.counts)
            out[i] = (inside[ends] - inside[starts]).sum() / proposal.area
    return out


def sparsity_of(mask: Mask) -> float:
    """The share of gaps in a mask's shape `without_gaps`, s of the module, in [0, 1]; 0 of an empty mask."""
    return float(1 - np.count_nonzero(mask) / np.count_nonzero(without_gaps(mask))) if mask.any() else 0.0


def without_gaps(mask: Mask) -> Mask:
    """A mask closed by a disc of `CLOSED` of the longer side of its bounding box, then without holes."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    inside = mask[y : y + height, x : x + width]
    if not width:
        return mask
    radius = max(1, round(CLOSED * max(width, height)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    around = np.pad(inside, radius).view(np.uint8)
    closed = cv2.morphologyEx(around, cv2.MORPH_CLOSE, disc)[radius:-radius, radius:-radius] > 0
    out = np.zeros_like(mask)
    out[y : y + height, x : x + width] = ndimage.binary_fill_holes(closed | inside)
    return out


def deformation_of(mask: Mask, other: Mask) -> float:
    """1 - IoU of two masks, d of the module, in [0, 1]; 0 of two empty ones."""
    union = np.count_nonzero(mask | other)
    return 1 - np.count_nonzero(mask & other) / union if union else 0.0


def _union(proposals: Proposals, kept: NDArray[np.bool_]) -> Mask:
    height, width = proposals.size
    steps = np.zeros(height * width + 1, np.int32)
    for proposal, wanted in zip(proposals, kept, strict=True):
        if wanted:
            starts, ends = _runs(proposal.counts)
            np.add.at(steps, starts, 1)
            np.subtract.at(steps, ends, 1)
    found = np.cumsum(steps[:-1]) > 0
    return np.ascontiguousarray(found.reshape(width, height).T)


def _runs(counts: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last + 1 pixel of each run of foreground, column by column."""
    bounds = np.cumsum(counts, dtype=np.int64)
    return bounds[:-1:2], bounds[1::2]
