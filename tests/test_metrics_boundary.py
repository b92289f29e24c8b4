import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from refine.errors import OptionError
from refine.metrics import boundary_iou, intersection_and_union, mean_boundary_accuracy
from refine.metrics.boundary import band_radii

shapes = array_shapes(min_dims=2, max_dims=2, max_side=24)
pairs = shapes.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))
ratios = st.sampled_from([0.001, 0.02, 0.1, 0.5, 1.0])
few = settings(max_examples=60, deadline=None)


def published_boundary(mask, ratio):
    """The published evaluation word for word: as many erosions by 3 x 3 as the distance has px, of a padded mask."""
    height, width = mask.shape
    d = max(1, round(ratio * np.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=d)
    return mask & (eroded[1:-1, 1:-1] == 0)


def published_boundary_iou(prediction, truth, ratio=0.02):
    one, other = published_boundary(prediction, ratio), published_boundary(truth, ratio)
    return (one & other).sum() / (one | other).sum() if (one | other).any() else 1.0


def blobs(height, width, seed, smooth):
    noise = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), smooth)
    return noise > np.median(noise)


@few
@given(pairs, ratios)
def test_equals_the_published_evaluation(masks, ratio):
    assert boundary_iou(*masks, dilation_ratio=ratio) == published_boundary_iou(*masks, ratio)


@pytest.mark.parametrize("ratio", [0.005, 0.02, 0.3])
@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (301, 700), (900, 500)])
def test_equals_the_published_evaluation_on_pictures(shape, ratio):
    masks = blobs(*shape, 1, 9), blobs(*shape, 1, 12)
    assert boundary_iou(*masks, dilation_ratio=ratio) == published_boundary_iou(*masks, ratio)


@few
@given(pairs)
def test_symmetry_and_mirrors(masks):
    p, t = masks
    assert boundary_iou(p, t) == boundary_iou(t, p) == boundary_iou(p[::-1], t[::-1]) == boundary_iou(p.T, t.T)
    assert boundary_iou(p, p) == 1.0


def test_a_hand_example():
    truth, prediction = np.zeros((2, 30, 40), bool)  # a diagonal of 50, d = 1
    truth[10:20, 10:20] = True  # a ring of 36 px
    prediction[10:20, 10:21] = True  # of 38 px; they share three sides less a corner px each
    assert boundary_iou(prediction, truth) == 28 / (36 + 38 - 28)
    assert boundary_iou(prediction, truth, dilation_ratio=1) == 100 / 110


def test_the_border_of_the_picture_is_a_boundary():
    full = np.ones((30, 40), bool)
    inner = full.copy()
    inner[1:-1, 1:-1] = False
    assert boundary_iou(inner, full) == 1.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3)])
def test_empty_and_full_masks(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    assert boundary_iou(empty, empty) == boundary_iou(full, full) == 1.0
    assert boundary_iou(empty, full) == boundary_iou(full, empty) == 0.0


@pytest.mark.parametrize("ratio", [0, -0.1, 1.1, float("nan")])
def test_other_ratios_are_refused(ratio):
    with pytest.raises(OptionError, match=r"dilation_ratio=.*above 0 and at most 1"):
        boundary_iou(np.ones((2, 2), bool), np.ones((2, 2), bool), dilation_ratio=ratio)


def test_void_is_left_out_of_the_mean_boundary_accuracy():
    truth, prediction = blobs(60, 80, 0, 5), blobs(60, 80, 1, 5)
    void = np.zeros((60, 80), bool)
    void[:, 40:] = True
    either = np.where(void, ~truth, prediction)
    found = mean_boundary_accuracy(prediction, truth, void=void)
    assert found == mean_boundary_accuracy(either, truth, void=void)
    rights = []
    for radius in band_radii(60, 80):
        square = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
        band = (cv2.morphologyEx(truth.astype(np.uint8), cv2.MORPH_GRADIENT, square) > 0) & ~void
        rights.append((prediction == truth)[band].mean())
    assert found == pytest.approx(np.mean(rights))
    assert mean_boundary_accuracy(prediction, truth, void=~void & False) == mean_boundary_accuracy(prediction, truth)
    assert mean_boundary_accuracy(prediction, truth, void=void | True) == 1.0


def test_void_is_left_out_of_the_intersection_and_the_union():
    truth, prediction = blobs(60, 80, 0, 5), blobs(60, 80, 1, 5)
    void = blobs(60, 80, 2, 5)
    found = intersection_and_union(prediction, truth, void=void)
    assert found == ((prediction & truth & ~void).sum(), ((prediction | truth) & ~void).sum())
