"""Figures that only count pixels: IoU, F1 (Dice), precision, recall, accuracy, confusion, and mIoU of label maps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine.metrics.inputs import binary_masks, check_shapes, labels

_COUNTABLE = 1 << 22  # labels that are counted in bins, not sorted


def iou(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Intersection over union of one picture (Jaccard index), in [0, 1]; 1.0 if both masks are empty."""
    return pooled_iou([intersection_and_union(prediction, truth)])


def intersection_and_union(
    prediction: NDArray[Any], truth: NDArray[Any], *, void: NDArray[np.bool_] | None = None
) -> tuple[int, int]:
    """Pixels set in both masks, and pixels set in either: the counts that :func:`pooled_iou` adds up.

    void: (H, W), pixels that the truth leaves open and that do not count.
    """
    if void is not None:
        prediction, truth = (m & ~void for m in binary_masks({"prediction": prediction, "truth": truth}))
    both, predicted, true, _ = _counts(prediction, truth)
    return both, predicted + true - both


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


def f1(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """F1 score, which is the Dice coefficient: 2 tp / (2 tp + fp + fn), in [0, 1]; 1.0 if both masks are empty.

    The harmonic mean of precision and recall; 2 IoU / (1 + IoU).
    """
    both, predicted, true, _ = _counts(prediction, truth)
    return 2 * both / (predicted + true) if predicted + true else 1.0


def precision(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Share of the prediction that is right, tp / (tp + fp), in [0, 1].

    An empty prediction is 1.0 if the truth is empty too, else 0.0.
    """
    both, predicted, true, _ = _counts(prediction, truth)
    return both / predicted if predicted else float(not true)


def recall(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Share of the truth that is found, tp / (tp + fn), in [0, 1].

    An empty truth is 1.0 if the prediction is empty too, else 0.0.
    """
    both, predicted, true, _ = _counts(prediction, truth)
    return both / true if true else float(not predicted)


def pixel_accuracy(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Share of all pixels that are right, (tp + tn) / (H W), in [0, 1]."""
    both, predicted, true, size = _counts(prediction, truth)
    return (size - predicted - true + 2 * both) / size


@dataclass(frozen=True)
class Confusion:
    """Shares of all pixels, each in [0, 1], together 1."""

    tp: float  # set in both masks
    fp: float  # set in the prediction alone
    fn: float  # set in the truth alone
    tn: float  # set in neither


def confusion(prediction: NDArray[Any], truth: NDArray[Any]) -> Confusion:
    """The confusion matrix of two masks, as shares of all pixels."""
    both, predicted, true, size = _counts(prediction, truth)
    return Confusion(
        tp=both / size,
        fp=(predicted - both) / size,
        fn=(true - both) / size,
        tn=(size - predicted - true + both) / size,
    )


def mean_iou(prediction: NDArray[Any], truth: NDArray[Any], *, ignore: int | None = None) -> float:
    """Mean over the classes of two label maps of each class's IoU, in [0, 1] (mIoU).

    prediction, truth: (H, W) of any integers or bool. A class that neither map has is left out of the mean. ignore: a
    label that is no class: pixels whose truth has it do not count, and a prediction of it elsewhere is just wrong. 1.0
    where no class is left.

    Raises InputError for what is no label map.
    """
    maps = {"prediction": labels(prediction, "prediction"), "truth": labels(truth, "truth")}
    check_shapes(maps)
    p, t = maps.values()
    p, t = p.ravel(), t.ravel()
    ignored = None if ignore is None else t == ignore
    low, high = min(int(p.min()), int(t.min()), 0), max(int(p.max()), int(t.max()))
    if high - low < _COUNTABLE:
        classes = np.arange(low, high + 1)
        if low:
            p, t = p.astype(np.int64) - low, t.astype(np.int64) - low
    else:
        classes, numbers = np.unique(np.concatenate([p, t]).astype(np.int64), return_inverse=True)
        p, t = np.split(numbers.ravel(), 2)
    # The wrong pixels are picked out, since they are fewer than the right ones.
    predicted, true, missed = (np.bincount(m, minlength=len(classes)) for m in (p, t, t[p != t]))
    if ignored is not None:
        predicted -= np.bincount(p[ignored], minlength=len(classes))
    both, union = true - missed, predicted + missed
    counted = (union > 0) & (classes != ignore)  # no class is None
    return float((both[counted] / union[counted]).mean()) if counted.any() else 1.0


def _counts(prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[int, int, int, int]:
    """Pixels set in both masks, in the prediction, in the truth; all pixels."""
    prediction, truth = binary_masks({"prediction": prediction, "truth": truth})
    both, predicted, true = (int(np.count_nonzero(mask)) for mask in (prediction & truth, prediction, truth))
    return both, predicted, true, truth.size
