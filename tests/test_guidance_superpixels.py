from itertools import pairwise

import numpy as np
import pytest
from conftest import disc, photographed
from hypothesis import given
from hypothesis.extra import numpy as arrays

from refine.errors import OptionError
from refine.guidance.superpixels import Felzenszwalb, FelzenszwalbOptions, Slic, SlicOptions, nested, segments

SOURCES = [Felzenszwalb(FelzenszwalbOptions(least=20)), Slic(SlicOptions(segments=250))]
TRUTH = disc((90, 120), 30)
LABELS = arrays.arrays(
    np.int64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=7), elements={"min_value": 0, "max_value": 5}
)


@given(LABELS)
def test_segments_are_the_labels(labels):
    found = list(segments(labels))
    for proposal, label in zip(found, np.unique(labels), strict=True):
        np.testing.assert_array_equal(proposal.mask(), labels == label)


@given(arrays.arrays(np.int64, (3, 6, 7), elements={"min_value": 0, "max_value": 9}))
def test_every_level_unites_segments_of_the_one_before(levels):
    found = list(nested(levels))
    np.testing.assert_array_equal(found[0], levels[0])
    for fine, coarse in pairwise(found):
        for label in np.unique(fine):
            assert len(np.unique(coarse[fine == label])) == 1


def test_levels_that_are_nested_stay_as_they_are():
    fine = np.arange(64).reshape(8, 8)
    coarse = np.kron(np.arange(4).reshape(2, 2), np.ones((4, 4), np.int64))
    np.testing.assert_array_equal(list(nested([fine, coarse]))[1], coarse)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_proposals_find_an_object_of_one_colour(source):
    proposals = source.propose(photographed(TRUTH))
    assert proposals.source == source.name
    assert proposals.size == TRUTH.shape
    masks = [proposal.mask() for proposal in proposals]
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    inside = [mask for mask in masks if (mask & TRUTH).sum() > 0.9 * mask.sum()]
    assert (np.any(inside, axis=0) & TRUTH).sum() > 0.9 * TRUTH.sum()
    assert np.any(masks, axis=0).all()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_small_pictures_have_proposals(source, size):
    proposals = source.propose(np.full((*size, 3), 90, np.uint8))
    assert proposals.size == size
    assert np.any([proposal.mask() for proposal in proposals], axis=0).all()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_large_pictures_are_reduced(source):
    assert source.propose(np.full((100, 2048, 3), 90, np.uint8)).size == (50, 1024)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_settings_are_the_options(source):
    settings = source.settings()
    assert settings["library"].startswith("scikit-image ")
    assert settings == type(source)(source.options.but(source.name, ratio=4)).settings()
    assert settings != type(source)(source.options.but(source.name, ratio=3)).settings()


def test_impossible_options_are_refused():
    with pytest.raises(OptionError, match="levels=0 is not possible; give a whole number from 1 to 8"):
        SlicOptions(levels=0)
