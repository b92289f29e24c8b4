import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as arrays
from segment_anything.utils import amg

from refine.errors import InputError
from refine.guidance.proposals import LONGER_SIDE, Proposal, Proposals, reduced

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))


@given(MASKS)
def test_a_mask_survives_its_runs(mask):
    proposal = Proposal.of(mask)
    assert proposal.size == mask.shape
    np.testing.assert_array_equal(proposal.mask(), mask)
    assert proposal.mask().flags.c_contiguous
    np.testing.assert_array_equal(Proposal.of_runs(proposal.counts, proposal.size).mask(), mask)


@given(MASKS)
def test_area_and_box_are_the_masks(mask):
    proposal = Proposal.of(mask)
    assert proposal.area == mask.sum()
    x, y, width, height = proposal.box
    rows, columns = np.nonzero(mask)
    if not len(rows):
        assert proposal.box == (0, 0, 0, 0)
        return
    assert (y, y + height - 1) == (rows.min(), rows.max())
    assert (x, x + width - 1) == (columns.min(), columns.max())


@given(MASKS)
def test_runs_are_those_of_segment_anything(mask):
    (theirs,) = amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])
    ours = Proposal.of(mask)
    assert ours.counts.dtype == np.uint32
    assert ours.counts.tolist() == theirs["counts"]
    np.testing.assert_array_equal(amg.rle_to_mask({"size": ours.size, "counts": ours.counts}), mask)


def test_runs_of_no_length_are_no_pixels():
    proposal = Proposal.of_runs([0, 0, 3, 0, 1, 2], (2, 3))
    np.testing.assert_array_equal(proposal.mask(), [[0, 0, 1], [0, 0, 1]])
    assert proposal.box == (2, 0, 1, 2)
    assert proposal.area == 2


@pytest.mark.parametrize("mask", [np.zeros((2, 2), np.uint8), np.zeros(4, bool), np.zeros((0, 3), bool)])
def test_other_arrays_are_no_masks(mask):
    with pytest.raises(InputError, match=r"accepted is bool \(H, W\)"):
        Proposal.of(mask)


@pytest.mark.parametrize("counts", [[1, 2], [7], [-1, 7], [3.0, 3.0], [[3, 3]], []])
def test_runs_that_are_no_pictures_are_refused(counts):
    with pytest.raises(InputError, match="wanted are 2 x 3 px"):
        Proposal.of_runs(counts, (2, 3))


def test_proposals_of_a_picture_have_one_size():
    items = (Proposal.of(np.eye(3, dtype=bool), predicted_iou=0.5), Proposal.of(np.ones((3, 3), bool)))
    proposals = Proposals(items, (3, 3), "test")
    assert len(proposals) == 2
    assert list(proposals) == list(items)
    with pytest.raises(InputError, match="give one size"):
        Proposals(items, (3, 4), "test")


@pytest.mark.parametrize(
    ("size", "small"), [((1, 1), (1, 1)), ((1024, 7), (1024, 7)), ((2048, 1000), (1024, 500)), ((1, 5000), (1, 1024))]
)
def test_pictures_are_reduced_to_the_longer_side(size, small):
    image = np.full((*size, 3), 90, np.uint8)
    assert reduced(image).shape == (*small, 3)
    assert max(reduced(image).shape) <= LONGER_SIDE
    assert (reduced(image) == 90).all()
