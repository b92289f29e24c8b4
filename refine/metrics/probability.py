"""Figures of probabilities, at no threshold: average precision and the area under the ROC curve.

Both depend on the order of the probabilities alone, and pixels of equal probability are one threshold: the figures are
exact, without bins.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine.metrics.inputs import binary_masks, check_shapes, unit_values


def average_precision(probability: NDArray[Any], truth: NDArray[Any]) -> float:
    """Area under the precision-recall curve as the sum of precision times gain of recall, in [0, 1] (AP).

    sum over the distinct probabilities v, falling, of (R(v) - R(before)) P(v), where P and R are precision and recall
    of what is at least v; no interpolation. A constant probability has the share of the truth in the picture. NaN
    where the truth is empty, as there is no recall then.

    probability: (H, W), floats in [0, 1], bool or integers 0..255. truth: a mask (H, W).
    """
    tp, size = _curve(probability, truth)
    if not tp[-1]:
        return float("nan")
    return float((np.diff(tp, prepend=0) * (tp / np.maximum(size, 1))).sum() / tp[-1])


def roc_auc(probability: NDArray[Any], truth: NDArray[Any]) -> float:
    """Area under the curve of true over false positive rate, in [0, 1]: 0.5 is chance (ROC AUC).

    The chance that a pixel of the truth has a higher probability than one of the background, where equal ones count a
    half. NaN where the truth is empty or full, as one of the rates does not exist then.

    probability: (H, W), floats in [0, 1], bool or integers 0..255. truth: a mask (H, W).
    """
    tp, size = _curve(probability, truth)
    fp = size - tp
    if not (tp[-1] and fp[-1]):
        return float("nan")
    # Trapezoids, in whole numbers: twice their sum is at most 2 * (H W / 2)^2, within int64.
    twice = fp[0] * tp[0] + (np.diff(fp) * (tp[1:] + tp[:-1])).sum()
    return float(twice / (2 * tp[-1] * fp[-1]))


def _curve(probability: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels (k,) of the truth, and all pixels, of at least each distinct probability, from the highest down.

    What is above all of the background is one threshold, as is what is below all of the truth: neither figure tells
    pixels of one class apart there. The first threshold may be above all pixels.
    """
    p, (mask,) = unit_values(probability, "probability"), binary_masks({"truth": truth})
    check_shapes({"probability": p, "truth": mask})
    mask = mask.ravel()
    # The bits of floats from 0 to 1 are whole numbers in the floats' order.
    whole = np.dtype(f"i{p.itemsize}")
    bits = np.abs(p).ravel().view(whole)  # abs: no -0.0
    highest = bits.max(initial=-1, where=~mask)
    lowest = bits.min(initial=np.iinfo(whole).max, where=mask)
    above, true = int(np.count_nonzero(bits > highest)), int(np.count_nonzero(mask))
    mixed = (bits <= highest) & (bits >= lowest)
    if not mixed.any():
        return np.array([above, true]), np.array([above, mask.size])
    # With the class as a last bit, one sort of whole numbers brings equal probabilities together.
    keys = (highest - bits[mixed]) << 1
    keys |= mask[mixed]
    keys.sort(kind="stable" if whole.itemsize == 2 else None)  # a radix sort
    ends = np.append(np.flatnonzero((keys[1:] ^ keys[:-1]) > 1), keys.size - 1)
    tp = np.cumsum(keys & 1, dtype=np.int64)[ends]
    return np.r_[above, above + tp, true], np.r_[above, above + ends + 1, mask.size]
