from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from refine.metrics import average_precision, roc_auc

FIGURES = [average_precision, roc_auc]
TYPES = [np.float16, np.float32, np.float64]

shapes = array_shapes(min_dims=2, max_dims=2, max_side=8)
# Few values, so that many are equal, or any.
elements = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=16)
pairs = shapes.flatmap(lambda shape: st.tuples(arrays(np.float64, shape, elements=elements), arrays(bool, shape)))
few = settings(max_examples=150, deadline=None)


def plain_average_precision(probability, truth):
    """Each threshold by itself, over all pixels."""
    area = recall = 0.0
    for threshold in sorted(set(probability.flat), reverse=True):
        found = probability >= threshold
        now = (found & truth).sum() / truth.sum()
        area += (now - recall) * (found & truth).sum() / found.sum()
        recall = now
    return area


def plain_roc_auc(probability, truth):
    """Each pixel of the truth against each one of the background."""
    won = [(p > n) + (p == n) / 2 for p in probability[truth] for n in probability[~truth]]
    return sum(won) / len(won)


@few
@given(pairs)
def test_equal_their_definitions(pair):
    p, truth = pair
    if truth.any():
        assert average_precision(p, truth) == pytest.approx(plain_average_precision(p, truth))
    if truth.any() and not truth.all():
        assert roc_auc(p, truth) == pytest.approx(plain_roc_auc(p, truth))


@few
@given(pairs.filter(lambda pair: pair[1].any() and not pair[1].all()))
def test_only_the_order_counts(pair):
    p, truth = pair
    for figure in FIGURES:
        found = figure(p, truth)
        assert 0 <= found <= 1
        for same in (*(p.astype(kind) for kind in TYPES), p / 2 + 0.25, np.sqrt(p)):
            assert figure(same, truth) == found
        assert figure(p.T, truth.T) == figure(p[:, ::-1], truth[:, ::-1]) == found
    assert roc_auc(1 - p, truth) == roc_auc(p, ~truth) == pytest.approx(1 - roc_auc(p, truth))


def test_values_that_differ_in_their_last_bit_are_not_equal():
    truth = np.array([[1, 0]], bool)
    for kind in TYPES:
        p = np.array([[0.5, np.nextafter(kind(0.5), kind(0))]], kind)
        assert (average_precision(p, truth), roc_auc(p, truth)) == (1, 1)
        assert (average_precision(p[:, ::-1], truth), roc_auc(p[:, ::-1], truth)) == (0.5, 0)


def test_a_hand_example():
    p, truth = np.array([[0.1, 0.4, 0.35, 0.8]]), np.array([[0, 0, 1, 1]], bool)
    assert roc_auc(p, truth) == 0.75
    assert average_precision(p, truth) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_is_chance(value):
    truth = np.arange(20).reshape(4, 5) < 3
    assert roc_auc(np.full((4, 5), value), truth) == 0.5
    assert average_precision(np.full((4, 5), value), truth) == 3 / 20


@pytest.mark.parametrize("figure", FIGURES)
def test_a_separation_is_perfect(figure):
    truth = np.random.default_rng(0).random((40, 30)) > 0.6
    for p in (truth, truth * 0.2 + 0.3, truth * 0.5 + np.random.default_rng(1).random((40, 30)) / 2.1):
        assert figure(p, truth) == 1.0


def test_many_pixels():
    random = np.random.default_rng(0)
    truth = random.random((300, 500)) < 0.3
    p = np.clip(truth * 0.2 + random.normal(0.4, 0.3, truth.shape), 0, 1).astype(np.float32)
    ranks = np.searchsorted(np.sort(p, None), p, "left") + np.searchsorted(np.sort(p, None), p, "right") + 1
    wins = ranks[truth].sum() / 2 - truth.sum() * (truth.sum() + 1) / 2
    assert roc_auc(p, truth) == pytest.approx(wins / truth.sum() / (~truth).sum())
    coarse = np.round(p, 2)
    assert average_precision(coarse, truth) == pytest.approx(plain_average_precision(coarse, truth))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3)])
def test_a_truth_of_one_class(shape):
    p = np.random.default_rng(0).random(shape)
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    assert isnan(average_precision(p, empty))
    assert average_precision(p, full) == 1.0
    assert isnan(roc_auc(p, empty))
    assert isnan(roc_auc(p, full))
