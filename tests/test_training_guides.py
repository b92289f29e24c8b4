from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import disc, photographed

from refine.errors import OptionError
from refine.guidance import Proposal, Proposals
from refine.training.data import Crops
from refine.training.folders import survey
from refine.training.guides import Guides
from refine.training.recipe import Recipe


class TwoSides:
    """A source that parts pictures by their brightness, and counts."""

    name = "two sides"

    def __init__(self):
        self.asked = 0

    def settings(self):
        return {}

    def propose(self, image):
        self.asked += 1
        bright = image[..., 0] > 110
        return Proposals((Proposal.of(bright), Proposal.of(~bright)), bright.shape, self.name)


@pytest.fixture
def pairs(tmp_path):
    for number, radius in enumerate((30, 45)):
        truth = disc((120, 160), radius)
        cv2.imwrite(str(tmp_path / f"{number}_im.png"), photographed(truth)[..., ::-1])
        cv2.imwrite(str(tmp_path / f"{number}_gt.png"), truth.astype(np.uint8) * 255)
    return survey(tmp_path).pairs


def crops(pairs, source, version="sam-sr-v2.1", **options):
    guide = None if source is None else Guides(version, source)
    return Crops([pairs], (1.0,), size=64, seed=0, guide=guide, **options)


def test_a_crop_carries_its_proposals_where_they_are_in_the_picture(pairs):
    drawn = crops(pairs, TwoSides())
    for i in range(12):
        item = drawn[i]
        painted, truth = item["image"][3:].numpy(), item["truth"][0].numpy() > 0.5
        assert item["image"].shape == (6, 64, 64)
        inside, outside = (painted[:, side] for side in (truth, ~truth))
        if truth.any() and not truth.all():
            ours, other = (np.median(side, 1) for side in (inside, outside))
            assert (ours != other).any()
            assert (inside == ours[:, None]).all(0).mean() > 0.9  # all but the contour, of which a crop may have much


def test_proposals_of_a_picture_are_asked_for_once(pairs):
    source = TwoSides()
    drawn = crops(pairs, source)
    for i in range(8):
        drawn[i]
    assert source.asked == 2


def test_colours_are_new_for_every_crop_and_the_same_for_its_number(pairs):
    one, other = crops(pairs, TwoSides()), crops(pairs, TwoSides())
    assert (one[3]["image"] == other[3]["image"]).all()
    assert len({tuple(one[i]["image"][3:].reshape(3, -1).max(1).values.tolist()) for i in range(6)}) > 3


def test_the_rest_of_a_crop_does_not_change_its_shape_with_guidance(pairs):
    guided, plain = crops(pairs, TwoSides(), composed=0.5, scenes=0.3), crops(pairs, None, composed=0.5, scenes=0.3)
    for i in range(10):
        assert guided[i]["image"].shape == (6, 64, 64)
        assert plain[i]["image"].shape == (3, 64, 64)


def test_v2_2_has_one_channel_that_is_high_in_the_object(pairs):
    guides = Guides("sam-sr-v2.2", TwoSides())
    truth = disc((120, 160), 45)
    image = photographed(truth)
    places = (np.arange(120), np.arange(160))
    found = guides(image, truth, places, np.random.default_rng(0), Path("a"))
    assert found.shape == (120, 160, 1)
    assert found[truth].mean() > 150 > 100 > found[~truth].mean()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": "crm-s+v2.1"}, "guide models such as crm-s+v2.1, which need some"),
        ({"model": "crm-s", "proposals": "slic"}, "proposals='slic' with crm-s"),
        ({"model": "crm-s+v2.1", "proposals": "magic"}, "proposals='magic' is unknown"),
        ({"model": "crm-s+v2.1", "proposals": "slic", "augment": "published"}, "without guidance"),
    ],
)
def test_recipes_that_cannot_be_are_told(fields, told):
    with pytest.raises(OptionError) as error:
        Recipe(**fields)
    assert told in str(error.value)
