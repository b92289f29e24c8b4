import numpy as np
import pytest
from conftest import disc
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refine.guidance import Proposal, Proposals
from refine.guidance.v1 import coverages, covered, deformation_of, sparsity_of

OPEN = {"coverage": 0.6, "sparsity": 1.0, "deformation": 1.0}  # no rule skips


def of(*masks, size=(20, 30)):
    return Proposals(tuple(Proposal.of(mask) for mask in masks), size, "test")


def box(top, bottom, left, right, size=(20, 30)):
    out = np.zeros(size, bool)
    out[top:bottom, left:right] = True
    return out


MASK = box(4, 16, 5, 25)
several = st.lists(arrays(bool, (6, 7)), max_size=6)


@given(several, arrays(bool, (6, 7)))
def test_coverage_is_the_share_of_a_proposal_in_the_mask(masks, mask):
    expected = [np.count_nonzero(m & mask) / max(1, np.count_nonzero(m)) for m in masks]
    np.testing.assert_allclose(coverages(of(*masks, size=(6, 7)), mask), expected, rtol=1e-12)


@given(several, arrays(bool, (6, 7)), st.floats(0, 1))
def test_the_union_of_the_covered_proposals_is_refined(masks, mask, coverage):
    proposals = of(*masks, size=(6, 7))
    found = covered(proposals, mask, coverage=coverage, sparsity=1, deformation=1)
    kept = [m for m, share in zip(masks, coverages(proposals, mask), strict=True) if share >= coverage]
    union = np.any(kept, axis=0) if kept else np.zeros((6, 7), bool)
    lost = mask.any() and not union.any()
    assert found.skipped == ("the mask covers no proposal" if lost else "")
    np.testing.assert_array_equal(found.mask, mask if lost else union)


@given(several.flatmap(lambda masks: st.tuples(st.just(masks), st.permutations(masks))), arrays(bool, (6, 7)))
def test_the_order_of_proposals_does_not_matter(orders, mask):
    one, other = (covered(of(*masks, size=(6, 7)), mask, **OPEN) for masks in orders)
    np.testing.assert_array_equal(one.mask, other.mask)
    assert (one.skipped, one.deformation) == (other.skipped, other.deformation)


def test_a_proposal_equal_to_the_mask_is_kept_and_changes_nothing():
    found = covered(of(MASK, box(0, 20, 0, 30)), MASK, **OPEN)
    assert found.kept.tolist() == [True, False]
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.deformation == 0


def test_a_missing_part_comes_back_and_one_too_many_goes():
    truth = box(4, 16, 5, 25)
    coarse = (truth & ~box(4, 9, 5, 12)) | box(10, 13, 25, 29)  # lacks a corner, has a bump
    found = covered(of(truth, box(0, 4, 0, 30), ~truth), coarse, coverage=0.6, sparsity=0.3, deformation=0.3)
    np.testing.assert_array_equal(found.mask, truth)


@pytest.mark.parametrize("masks", [[], [box(0, 3, 0, 3)], [np.zeros((20, 30), bool)]])
def test_without_a_covered_proposal_the_coarse_mask_stays_and_the_reason_is_told(masks):
    found = covered(of(*masks), MASK, coverage=0.6, sparsity=0.3, deformation=0.3)
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.skipped == "the mask covers no proposal"


def test_a_mask_with_gaps_stays_as_it_is():
    fence = box(2, 18, 2, 28)
    fence[3:17, 3:27] &= (np.arange(24) % 6 < 2)[None]
    solid = box(2, 18, 2, 28)
    found = covered(of(solid), fence, coverage=0.4, sparsity=0.3, deformation=1)
    np.testing.assert_array_equal(found.mask, fence)
    assert found.skipped.startswith("sparsity 0.")
    assert not covered(of(solid), fence, coverage=0.4, sparsity=0.7, deformation=1).skipped


@pytest.mark.parametrize(
    ("mask", "low", "high"),
    [
        (np.zeros((20, 30), bool), 0, 0),
        (np.ones((20, 30), bool), 0, 0),
        (box(5, 6, 5, 6), 0, 0),
        (disc(), 0, 0.01),
        (disc() & ~disc(radius=30), 0.5, 0.6),  # a ring; (30 / 40)^2 = 0.5625 of the disc is its hole
        (np.indices((20, 30)).sum(0) % 2 == 0, 0.4, 0.5),
    ],
)
def test_sparsity_is_the_share_of_gaps_in_the_filled_shape(mask, low, high):
    assert low <= sparsity_of(mask) <= high


def test_sparsity_does_not_depend_on_where_the_mask_lies():
    ring = disc((40, 40), 15) & ~disc((40, 40), 9)
    moved = np.pad(ring, ((60, 5), (0, 70)))
    assert sparsity_of(moved) == sparsity_of(ring) > 0.3


def test_deformation_is_one_less_the_iou():
    assert deformation_of(box(0, 10, 0, 10), box(5, 15, 0, 10)) == pytest.approx(1 - 50 / 150)
    assert deformation_of(np.zeros((3, 3), bool), np.zeros((3, 3), bool)) == 0
