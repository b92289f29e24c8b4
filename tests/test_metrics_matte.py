from math import exp

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from refine.metrics import connectivity_error, gradient_error, mse, sad

FIGURES = [connectivity_error, gradient_error, mse, sad]

shapes = array_shapes(min_dims=2, max_dims=2, max_side=16)
levels = st.sampled_from([0, 20, 26, 51, 100, 128, 153, 204, 230, 255]) | st.integers(0, 255)
alphas = shapes.flatmap(lambda s: st.tuples(*[arrays(np.uint8, s, elements=levels)] * 2))
pairs = alphas.map(lambda pair: tuple(alpha / np.float32(255) for alpha in pair))
few = settings(max_examples=80, deadline=None)


def plain_gradient(alpha):
    """Two filters of 9 x 9 weights, each of a sum of squares of 1."""
    sigma = 1.4
    weights = np.array([[exp(-(y**2 + x**2) / 2 / sigma**2) * x for x in range(-4, 5)] for y in range(-4, 5)])
    weights /= np.sqrt((weights**2).sum())
    return np.hypot(*(ndimage.correlate(alpha, w, mode="nearest") for w in (weights, weights.T)))


def plain_connectedness(p, t):
    """Level by level from below, for both mattes."""
    last = np.full(p.shape, -1.0)
    for k in range(1, 11):
        labels, number = ndimage.label((p >= k / 10) & (t >= k / 10))
        sizes = [np.sum(labels == label) for label in range(1, number + 1)]
        region = labels == 1 + np.argmax(sizes) if sizes else np.zeros(p.shape, bool)
        last[(last == -1) & ~region] = (k - 1) / 10
    last[last == -1] = 1
    return [1 - (alpha - last) * (alpha - last >= 0.15) for alpha in (p, t)]


def mattes(seed, shape=(150, 220)):
    random = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(random.random(shape, dtype=np.float32), (0, 0), 9)
    truth = np.clip((noise - np.median(noise)) * 20 + 0.5, 0, 1)
    more = cv2.GaussianBlur(random.random(shape, dtype=np.float32), (0, 0), 3)
    return np.clip(truth + (more - 0.5) * 2, 0, 1), truth


@few
@given(pairs)
def test_equal_their_definitions(pair):
    p, t = (np.rint(alpha * 255.0) / 255 for alpha in pair)
    assert sad(*pair) == pytest.approx(np.abs(p - t).sum() / 1000, rel=1e-5)
    assert mse(*pair) == pytest.approx(((p - t) ** 2).mean(), rel=1e-5)
    gradients = ((plain_gradient(p) - plain_gradient(t)) ** 2).sum() / 1000
    assert gradient_error(*pair) == pytest.approx(gradients, rel=1e-4, abs=1e-9)
    one, other = plain_connectedness(p, t)
    assert connectivity_error(*pair) == pytest.approx(np.abs(one - other).sum() / 1000, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_equal_their_definitions_on_pictures(seed):
    p, t = mattes(seed)
    gradients = (plain_gradient(p.astype(float)) - plain_gradient(t.astype(float))) ** 2
    one, other = plain_connectedness(p, t)
    within = p > 0.6
    for region, options in ((np.ones_like(within), {}), (within, {"within": within})):
        assert sad(p, t, **options) == pytest.approx(np.abs(p - t)[region].sum(dtype=float) / 1000)
        assert mse(p, t, **options) == pytest.approx(np.square(p - t)[region].mean(dtype=float))
        assert gradient_error(p, t, **options) == pytest.approx(gradients[region].sum() / 1000, rel=1e-5)
        expected = np.abs(one - other)[region].sum() / 1000
        assert connectivity_error(p, t, **options) == pytest.approx(expected, rel=1e-5)


@few
@given(pairs)
def test_the_truth_itself_has_no_error_and_both_mattes_are_alike(pair):
    p, t = pair
    for figure in FIGURES:
        assert figure(t, t) == 0
        assert figure(p, t) == pytest.approx(figure(t, p))


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose, np.rot90])
def test_errors_do_not_depend_on_how_the_picture_is_turned(turn):
    p, t = mattes(0)
    for figure in FIGURES:
        assert figure(turn(p), turn(t)) == pytest.approx(figure(p, t), rel=1e-5)


def test_a_hand_example():
    truth = np.zeros((20, 50), np.float32)
    prediction = np.full_like(truth, 0.5)
    assert sad(prediction, truth) == 0.5  # 1000 px
    assert mse(prediction, truth) == 0.25
    assert gradient_error(prediction, truth) == pytest.approx(0, abs=1e-12)
    assert connectivity_error(prediction, truth) == 0.5  # nowhere a source region: all of it floats


def test_what_hangs_on_the_object_is_forgiven_up_to_theta():
    truth = np.zeros((10, 30))
    truth[:, :20] = 1
    prediction = truth.copy()
    prediction[:, 20:] = 0.14
    assert connectivity_error(prediction, truth) == 0
    prediction[:, 20:] = 0.16
    assert connectivity_error(prediction, truth) == pytest.approx(100 * 0.16 / 1000)
    prediction[:, 20:] = 0.5
    truth[:, 20:] = 0.4  # the source region reaches 0.4 there, and 0.5 is little above
    assert connectivity_error(prediction, truth) == 0


def test_a_smaller_object_that_both_mattes_have_floats():
    truth = np.zeros((10, 30))
    truth[:, :20] = 1
    truth[2:5, 22:28] = 1
    prediction = truth.copy()
    prediction[2:5, 22:28] = 0.5
    assert connectivity_error(prediction, truth) == pytest.approx(18 * 0.5 / 1000)


def test_a_sharp_edge_has_a_larger_gradient_than_a_soft_one():
    sharp = np.zeros((20, 30))
    sharp[:, 15:] = 1
    soft, moved = (np.clip(np.tile((np.arange(30) - start) / 10, (20, 1)), 0, 1) for start in (10, 11))
    assert gradient_error(soft, sharp) > 10 * gradient_error(moved, soft) > 0


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3)])
def test_empty_and_full_mattes(figure, shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    assert figure(empty, empty) == figure(full, full) == 0.0
    assert figure(full, empty, within=empty) == 0.0
    expected = {"connectivity_error": full.size / 1000, "gradient_error": 0, "mse": 1, "sad": full.size / 1000}
    for pair in ((full, empty), (empty, full)):
        assert figure(*pair) == pytest.approx(expected[figure.__name__], abs=1e-12)


def test_pixels_outside_the_region_do_not_count():
    p, t = mattes(1)
    within = np.zeros(t.shape, bool)
    within[40:90, 50:100] = True
    for figure in FIGURES:
        assert figure(p, t, within=within) < figure(p, t) or figure is mse
        assert figure(p, t, within=within.astype(np.uint8) * 255) == figure(p, t, within=within)
    assert sad(np.where(within, t, p), t, within=within) == 0
