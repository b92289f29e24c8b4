"""The warm-up before what is timed: it runs all that is timed, and asks for nothing that guides."""

import numpy as np
import pytest
from conftest import disc, features_of, photographed
from test_engine import lively_weights

from refine.evaluation.items import Item
from refine.evaluation.variants import Refining
from refine.evaluation.warm_up import SIZE
from refine.guidance import Proposal, Proposals
from refine.guidance.cache import Cache, Cached
from refine.models import preset

TRUTH = disc((60, 80), 20)
IMAGE = photographed(TRUTH)


class Asked:
    """A source with an encoder that notes the pictures it is given."""

    name = "sam-vit-b"

    def __init__(self):
        self.pictures = []

    def settings(self):
        return {}

    encoder_settings = settings

    def propose(self, image):
        self.pictures.append(image.shape)
        return Proposals((Proposal.of(TRUTH),), TRUTH.shape, self.name)

    def embedding(self, image):
        self.pictures.append(image.shape)
        return features_of(image.shape[:2])


def test_a_warm_up_runs_a_scale_whose_mask_was_refined_before():
    assert len(preset("crm-s").cascade.at(*SIZE)) > 1


@pytest.mark.parametrize("version", ["sam-sr-v1", "sam-sr-v2.1", "sam-sr-v2.2", "sam-sr-v3.2"])
def test_a_warm_up_asks_for_no_proposals_and_leaves_nothing_in_the_cache(tmp_path, monkeypatch, version):
    source = Asked()
    kept = Cached(source, Cache(tmp_path / "cache"))
    monkeypatch.setattr("refine.guidance.sources.kept_source", lambda *a, **k: kept)
    choice = {"model": "crm-s", "guidance": version, "device": "cpu"}
    if version != "sam-sr-v1":
        name = f"crm-s+{version.removeprefix('sam-sr-')}"
        choice["weights"] = lively_weights(name, tmp_path / "lively.safetensors")
    variant = Refining(choice)
    assert variant._made.guidance == version
    assert not source.pictures
    assert not list((tmp_path / "cache").rglob("*.bin"))
    item = Item("set", "a", *(tmp_path / name for name in ("im", "gt", "seg")))
    assert variant.mask(item, IMAGE, TRUTH.astype(np.float32)).mask.shape == TRUTH.shape
    assert source.pictures == [IMAGE.shape]
