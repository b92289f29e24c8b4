import numpy as np
import pytest
from conftest import disc
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refine.guidance import Proposal, Proposals
from refine.guidance.v2_1 import labels, painted
from refine.guidance.v2_2 import answered, merged, point_groups


def of(*masks):
    return Proposals(tuple(Proposal.of(mask) for mask in masks), masks[0].shape, "test")


def test_the_smallest_proposal_over_a_pixel_is_seen():
    large, small = disc(), disc(radius=10)
    found = labels(of(small, large))
    assert set(np.unique(found)) == {0, 1, 2}
    np.testing.assert_array_equal(found == 2, small)
    np.testing.assert_array_equal(found == 0, ~large)


@given(
    st.lists(arrays(bool, (6, 7)), min_size=1, max_size=6).flatmap(lambda m: st.tuples(st.just(m), st.permutations(m)))
)
def test_the_order_of_proposals_does_not_matter(orders):
    one, other = (labels(of(*masks)) for masks in orders)
    np.testing.assert_array_equal(one, other)


def test_painting_is_reproducible_and_gaps_are_black():
    numbers = labels(of(disc(), disc(radius=10)))
    one, again, other = (painted(numbers, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one[numbers == 0] == 0).all()
    assert (one[numbers > 0] > 0).all()
    assert len(np.unique(one.reshape(-1, 3), axis=0)) == 3


def test_painting_nothing_is_black():
    assert not painted(np.zeros((4, 5), np.int32), np.random.default_rng(0)).any()


@pytest.mark.parametrize("mask", [disc(), disc(radius=3), disc((9, 200), 60), np.eye(60, dtype=bool)])
def test_points_lie_in_the_mask_in_groups_of_three(mask):
    found = point_groups(mask, 8, np.random.default_rng(0))
    assert found.shape[1:] == (3, 2)
    assert 1 <= len(found) <= 8
    assert mask[found[..., 0], found[..., 1]].all()
    np.testing.assert_array_equal(found, point_groups(mask, 8, np.random.default_rng(0)))


def test_points_spread_over_the_mask():
    points = point_groups(disc(), 16, np.random.default_rng(0)).reshape(-1, 2)
    assert len(points) >= 36
    assert points.std(0).min() > 12  # a disc of radius 40 has 20


@pytest.mark.parametrize("mask", [disc(), disc((9, 200), 60)])
def test_points_do_not_depend_on_the_ground_around_the_mask(mask):
    pitch = max(1, int(np.sqrt(mask.sum() / (3 * 8))))
    wide = np.pad(mask, ((3 * pitch, 5), (2 * pitch, 70)))
    found = point_groups(wide, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(found - [3 * pitch, 2 * pitch], point_groups(mask, 8, np.random.default_rng(0)))


def test_a_single_pixel_is_its_own_three_points_and_an_empty_mask_has_none():
    one = np.zeros((5, 6), bool)
    one[2, 3] = True
    assert point_groups(one, 4, np.random.default_rng(0)).tolist() == [[[2, 3]] * 3]
    assert point_groups(np.zeros((5, 6), bool), 4, np.random.default_rng(0)).shape == (0, 3, 2)


def test_masks_count_by_their_confidence():
    masks = np.array([[[True, True, False]], [[True, False, False]]])
    np.testing.assert_allclose(merged(masks, np.array([0.9, 0.3]), (1, 3)), [[1, 0.75, 0]], rtol=1e-6)
    assert not merged(masks, np.array([-0.1, 0.0]), (1, 3)).any()
    assert not merged(masks[:0], np.zeros(0), (1, 3)).any()


def test_points_are_answered_by_the_best_proposal_that_holds_all_three():
    small, large, other = disc(radius=12), disc(radius=40), disc(radius=40)
    proposals = Proposals(
        (Proposal.of(large, predicted_iou=0.7), Proposal.of(small, predicted_iou=0.9), Proposal.of(other[::-1])),
        (120, 160),
        "x",
    )
    inner, outer, outside = [[60, 80]] * 3, [[60, 80], [60, 82], [60, 110]], [[60, 80], [60, 81], [0, 0]]
    masks, confidences = answered(proposals, np.array([outer, outside, inner]))
    assert sorted(confidences) == [1.0, 1.0]
    limited = Proposals(proposals.items[:2], (120, 160), "x")
    masks, confidences = answered(limited, np.array([outer, outside, inner]))
    assert sorted(zip(confidences.tolist(), masks.sum((1, 2)).tolist(), strict=True)) == [
        (0.7, large.sum()),
        (0.9, small.sum()),
    ]


def test_without_proposals_nothing_is_answered():
    masks, confidences = answered(Proposals((), (4, 5), "x"), np.zeros((2, 3, 2), np.int64))
    assert masks.shape == (0, 4, 5)
    assert confidences.shape == (0,)


@given(st.lists(arrays(bool, (6, 7)), min_size=1, max_size=4), arrays(np.int64, (5, 3, 2), elements=st.integers(0, 5)))
def test_an_answer_holds_its_points(masks, groups):
    found, _ = answered(of(*masks), groups)
    held = [any(m[g[:, 0], g[:, 1]].all() for m in masks) for g in groups]
    assert len(found) == sum(held)
