from math import ceil, inf, sqrt

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.spatial.distance import cdist, directed_hausdorff

from refine.errors import OptionError
from refine.metrics import (
    average_hausdorff_distance,
    balanced_average_hausdorff_distance,
    hausdorff_distance,
    modified_average_hausdorff_distance,
)

FIGURES = [
    average_hausdorff_distance,
    balanced_average_hausdorff_distance,
    hausdorff_distance,
    modified_average_hausdorff_distance,
]

shapes = array_shapes(min_dims=2, max_dims=2, max_side=20)
pairs = shapes.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))
filled = pairs.filter(lambda masks: masks[0].any() and masks[1].any())
between = st.sampled_from(["masks", "boundaries"])
few = settings(max_examples=80, deadline=None)


def boundary(mask):
    """Pixels beside an unset one, pixel by pixel."""
    around = np.pad(mask, 1)
    found = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        found[y, x] = not (around[y, x + 1] and around[y + 2, x + 1] and around[y + 1, x] and around[y + 1, x + 2])
    return found


def all_distances(prediction, truth, between="masks"):
    """Of each point of the prediction to each of the truth."""
    x, y = (boundary(mask) if between == "boundaries" else mask for mask in (prediction, truth))
    return cdist(np.argwhere(x), np.argwhere(y))


def blobs(height, width, seed, smooth, share=0.5):
    noise = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), smooth)
    return noise > np.quantile(noise, 1 - share)


@few
@given(filled)
def test_hausdorff_distance_equals_scipy(masks):
    x, y = map(np.argwhere, masks)
    assert hausdorff_distance(*masks) == max(directed_hausdorff(x, y)[0], directed_hausdorff(y, x)[0])


@few
@given(filled, between)
def test_hausdorff_distances_equal_their_definitions(masks, between):
    d = all_distances(*masks, between)
    there, back = d.min(1), d.min(0)
    assert hausdorff_distance(*masks, between=between) == max(there.max(), back.max())
    average = (there.mean() + back.mean()) / 2
    assert average_hausdorff_distance(*masks, between=between) == pytest.approx(average)
    balanced = (there.sum() + back.sum()) / 2 / d.shape[1]
    assert balanced_average_hausdorff_distance(*masks, between=between) == pytest.approx(balanced)


@few
@given(filled, between, st.sampled_from([1, 33.3, 50, 90, 95, 99.9, 100]))
def test_percentiles_equal_numpy_over_all_points(masks, between, percentile):
    d = all_distances(*masks, between)
    expected = max(np.percentile(d.min(1), percentile), np.percentile(d.min(0), percentile))
    found = hausdorff_distance(*masks, percentile=percentile, between=between)
    assert found == pytest.approx(expected, abs=1e-12)


@few
@given(filled)
def test_the_modified_average_equals_its_definition(masks):
    d = all_distances(*masks)
    n, m = d.shape
    expected = (np.sort(d, 1)[:, ceil(m / 20) - 1].mean() + np.sort(d, 0)[ceil(n / 20) - 1].mean()) / 2
    assert modified_average_hausdorff_distance(*masks) == pytest.approx(expected)


@pytest.mark.parametrize(("shape", "share"), [((90, 160), 0.45), ((300, 41), 0.5), ((81, 80), 0.9)])
def test_the_modified_average_of_large_masks_is_close(shape, share):
    masks = blobs(*shape, 1, 12, share), blobs(*shape, 2, 12, share)
    d = all_distances(*masks)
    there, back = (np.partition(e, -(-e.shape[1] // 20) - 1, 1)[:, -(-e.shape[1] // 20) - 1] for e in (d, d.T))
    assert modified_average_hausdorff_distance(*masks) == pytest.approx((there.mean() + back.mean()) / 2, rel=0.01)


def test_the_modified_average_of_long_lines_is_close():
    one, other = np.zeros((2, 9, 6000), bool)
    one[2], other[6] = True, True
    d = all_distances(one, other)
    expected = np.partition(d, 299, 1)[:, 299].mean()
    assert modified_average_hausdorff_distance(one, other) == pytest.approx(expected, rel=0.01)
    assert modified_average_hausdorff_distance(one.T, other.T) == pytest.approx(expected, rel=0.01)


@few
@given(filled, between)
def test_symmetry_mirrors_and_place(masks, between):
    p, t = masks
    for figure in FIGURES:
        options = {} if figure is modified_average_hausdorff_distance else {"between": between}
        found = pytest.approx(figure(p, t, **options))
        if figure is not balanced_average_hausdorff_distance:
            assert figure(t, p, **options) == found
        for turn in (np.flipud, np.fliplr, np.transpose, np.rot90, lambda m: np.pad(m, ((3, 0), (1, 7)))):
            assert figure(turn(p), turn(t), **options) == found


@few
@given(filled)
def test_the_truth_itself_is_at_no_distance(masks):
    for mask in masks:
        for figure in FIGURES[:3]:
            assert figure(mask, mask) == figure(mask, mask, between="boundaries") == 0


def test_two_points():
    one, other = np.zeros((2, 5, 9), bool)
    one[1, 1] = other[4, 5] = True
    assert [figure(one, other) for figure in FIGURES] == [5.0] * 4


def test_a_hand_example():
    truth, prediction = np.zeros((2, 1, 12), bool)
    truth[0, :4] = True
    prediction[0, 2:10] = True  # 1 .. 6 px behind the truth, whose first two px are 2 and 1 px before it
    assert hausdorff_distance(prediction, truth) == 6
    assert average_hausdorff_distance(prediction, truth) == (21 / 8 + 3 / 4) / 2
    assert balanced_average_hausdorff_distance(prediction, truth) == (21 / 4 + 3 / 4) / 2
    assert hausdorff_distance(prediction, truth, percentile=50) == 2.5


def test_boundaries_see_inside_the_masks():
    full = np.ones((9, 9), bool)
    pierced = full.copy()
    pierced[4, 4] = False
    assert hausdorff_distance(pierced, full) == 1
    assert hausdorff_distance(pierced, full, between="boundaries") == 3


def test_a_percentile_forgives_a_few_pixels():
    truth = np.zeros((100, 300), bool)
    truth[20:80, 20:80] = True
    prediction = truth.copy()
    prediction[50, 290] = True
    assert hausdorff_distance(prediction, truth) == 211
    assert hausdorff_distance(prediction, truth, percentile=95) == 0
    assert hausdorff_distance(prediction, truth, percentile=95, between="boundaries") == 0


def test_distances_over_a_large_picture_are_exact():
    one, other = np.zeros((2, 1500, 2500), bool)
    one[3, 5], other[1400, 1207] = True, True
    expected = sqrt(1397**2 + 1202**2)
    assert [figure(one, other) for figure in FIGURES] == [expected] * 4


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3)])
def test_empty_and_full_masks(figure, shape):
    empty, full, one = np.zeros(shape, bool), np.ones(shape, bool), np.zeros(shape, bool)
    one[0, 0] = True
    assert figure(empty, empty) == figure(full, full) == figure(one, one) == 0.0
    assert {figure(*masks) for masks in ((empty, full), (full, empty), (one, empty), (empty, one))} == {inf}


@pytest.mark.parametrize("percentile", [0, -1, 100.1, float("nan")])
def test_other_percentiles_are_refused(percentile):
    with pytest.raises(OptionError, match=r"percentile=.*at most 100"):
        hausdorff_distance(np.ones((2, 2), bool), np.ones((2, 2), bool), percentile=percentile)


@pytest.mark.parametrize("figure", FIGURES[:3])
def test_other_sets_are_refused(figure):
    with pytest.raises(OptionError, match="between='edges' is unknown; known are masks, boundaries"):
        figure(np.ones((2, 2), bool), np.ones((2, 2), bool), between="edges")
