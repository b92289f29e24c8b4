from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from refine.metrics import Confusion, confusion, f1, iou, mean_iou, pixel_accuracy, precision, recall

FIGURES = [confusion, f1, iou, pixel_accuracy, precision, recall]

shapes = array_shapes(min_dims=2, max_dims=2, max_side=12)
pairs = shapes.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))
classes = st.integers(-2, 4)
label_maps = shapes.flatmap(lambda s: st.tuples(*[arrays(np.int64, s, elements=classes)] * 2))


def counted(prediction, truth):
    """Pixels by the four cases, one after the other."""
    found = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    for p, t in zip(prediction.flat, truth.flat, strict=True):
        found[("t" if p == t else "f") + ("p" if p else "n")] += 1
    return found


def plain_mean_iou(prediction, truth, ignore=None):
    ious = []
    judged = truth != ignore
    for label in (set(prediction.flat) | set(truth.flat)) - {ignore}:
        p, t = (prediction == label) & judged, (truth == label) & judged
        if (p | t).any():
            ious.append((p & t).sum() / (p | t).sum())
    return sum(ious) / len(ious) if ious else 1.0


def test_a_hand_example():
    prediction = np.array([[1, 1, 1, 0, 0]], bool)
    truth = np.array([[0, 1, 1, 1, 0]], bool)
    assert confusion(prediction, truth) == Confusion(tp=0.4, fp=0.2, fn=0.2, tn=0.2)
    assert precision(prediction, truth) == recall(prediction, truth) == f1(prediction, truth) == 2 / 3
    assert iou(prediction, truth) == 0.5
    assert pixel_accuracy(prediction, truth) == 0.6
    assert precision(prediction[:, 1:], truth[:, 1:]) == 1
    assert recall(prediction[:, 1:], truth[:, 1:]) == 2 / 3


@settings(deadline=None)
@given(pairs)
def test_equal_their_definitions_by_counts(masks):
    n = counted(*masks)
    size = masks[0].size
    assert astuple(confusion(*masks)) == tuple(n[name] / size for name in ("tp", "fp", "fn", "tn"))
    assert pixel_accuracy(*masks) == (n["tp"] + n["tn"]) / size
    if n["tp"] + n["fp"]:
        assert precision(*masks) == n["tp"] / (n["tp"] + n["fp"])
    if n["tp"] + n["fn"]:
        assert recall(*masks) == n["tp"] / (n["tp"] + n["fn"])
    if size > n["tn"]:
        assert f1(*masks) == 2 * n["tp"] / (2 * n["tp"] + n["fp"] + n["fn"])
        assert f1(*masks) == pytest.approx(2 * iou(*masks) / (1 + iou(*masks)))


@settings(deadline=None)
@given(pairs)
def test_symmetry_and_mirrors(masks):
    prediction, truth = masks
    for figure in (f1, iou, pixel_accuracy):
        assert figure(prediction, truth) == figure(truth, prediction)
    assert precision(prediction, truth) == recall(truth, prediction)
    for figure in FIGURES:
        assert figure(prediction[::-1], truth[::-1]) == figure(prediction.T, truth.T) == figure(prediction, truth)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3)])
def test_empty_and_full_masks(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    shares = (f1, iou, pixel_accuracy, precision, recall)
    assert {figure(mask, mask) for figure in shares for mask in (empty, full)} == {1.0}
    assert {figure(*masks) for figure in shares for masks in ((empty, full), (full, empty))} == {0.0}
    assert astuple(confusion(empty, full)) == (0, 0, 1, 0)
    assert astuple(confusion(full, empty)) == (0, 1, 0, 0)


@settings(deadline=None)
@given(label_maps, st.none() | classes)
def test_mean_iou_equals_its_definition_class_by_class(maps, ignore):
    assert mean_iou(*maps, ignore=ignore) == pytest.approx(plain_mean_iou(*maps, ignore))
    far = [1_000_000_007 * labels for labels in maps]  # too far apart to have a bin each
    assert mean_iou(*far, ignore=ignore and 1_000_000_007 * ignore) == mean_iou(*maps, ignore=ignore)


@settings(deadline=None)
@given(label_maps)
def test_mean_iou_is_symmetric_and_does_not_depend_on_types(maps):
    p, t = maps
    assert mean_iou(p, t) == mean_iou(t, p) == mean_iou(p[:, ::-1], t[:, ::-1]) == mean_iou(p.T, t.T)
    assert mean_iou(p.astype(np.int8), t) == mean_iou(p, t.astype(np.int32)) == mean_iou(p, t)
    assert mean_iou((p + 2).astype(np.uint8), (t + 2).astype(np.uint64)) == mean_iou(p, t)
    assert mean_iou(p, p) == 1.0


def test_mean_iou_of_masks_is_the_mean_of_both_classes():
    prediction, truth = np.random.default_rng(0).random((2, 9, 8)) > 0.4
    expected = (iou(prediction, truth) + iou(~prediction, ~truth)) / 2
    assert mean_iou(prediction, truth) == pytest.approx(expected)


def test_mean_iou_ignores_a_label_of_the_truth():
    truth = np.array([[0, 0, 1, 255]], np.uint8)
    prediction = np.array([[0, 255, 1, 2]], np.uint8)  # 255 where it is 0 is wrong, 2 where it is ignored is no class
    assert mean_iou(prediction, truth, ignore=255) == (1 / 2 + 1) / 2
    assert mean_iou(prediction, truth) == (1 / 2 + 1 + 0 + 0) / 4
    assert mean_iou(prediction, truth, ignore=-1) == mean_iou(prediction, truth, ignore=999) == 1.5 / 4
    assert mean_iou(prediction, np.full_like(truth, 255), ignore=255) == 1.0
