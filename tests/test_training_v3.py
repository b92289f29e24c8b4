"""Training of networks with a deep branch, by features of a small Segment Anything of its library's own classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import refine
from refine import checkpoint
from refine.config import EMBEDDED, guided_model
from refine.errors import WeightsError
from refine.models import PRESETS, build
from refine.training.loop import train
from refine.training.recipe import Recipe
from refine.training.scenes import scene
from refine.training.state import _initial
from refine.training.validation import Validation
from refine.training.widen import common

SIZES = ((60, 80), (80, 60))


def write(folder: Path, *, seg: bool) -> Path:
    """Two pictures of two shapes with their truths."""
    folder.mkdir()
    for number, size in enumerate(SIZES):
        image, truth = scene(np.random.default_rng(number + 10 * seg), *size)
        Image.fromarray(image).save(folder / f"{number}_im.png")
        Image.fromarray(truth).save(folder / f"{number}_gt.png")
        if seg:
            Image.fromarray(np.roll(truth, 2, 1)).save(folder / f"{number}_seg.png")
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """The cache's folder, in which features are once they were found."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("pictures") / "data", seg=False)


@pytest.fixture
def recipe(folder, kept, large_sam_file, monkeypatch):
    monkeypatch.setenv("REFINE_CACHE", str(kept))
    base = {"data": (str(folder),), "proposals": "sam", "sam_checkpoint": str(large_sam_file)}
    base |= {"steps": 3, "batch": 2, "crop": 64, "window": 64, "warmup": 1}

    def made(version: str = "sam-sr-v3.3", **changes: object) -> Recipe:
        return Recipe(**{**base, "model": guided_model("crm-s", version), **changes})

    return made


@pytest.mark.parametrize("version", EMBEDDED)
def test_every_layer_learns_and_the_weights_refine(recipe, tmp_path, large_sam_file, version):
    chosen = recipe(version, weight_decay=0.0)  # which would move what no gradient reaches
    path = train(chosen, tmp_path / "run", workers=0, dtype="float32")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begun = build(PRESETS[chosen.model])
    ended = torch.load(path.parent / "checkpoint.pt", weights_only=True)["network"]
    for name, parameter in begun.named_parameters():
        assert ended[name].isfinite().all(), name
        if name != "attention.key.bias":  # a softmax does not change where all that it compares is shifted
            assert not torch.equal(ended[name], parameter), name
    metadata = checkpoint.load(path).metadata
    assert json.loads(metadata["recipe"])["sam_checkpoint"] == large_sam_file.name
    assert str(large_sam_file.parent) not in metadata["recipe"] + (path.parent / "card.md").read_text()
    image, truth = scene(np.random.default_rng(0), *SIZES[0])
    guided = {"guidance": version, "proposals": "sam", "sam_checkpoint": str(large_sam_file)}
    refined = refine.run(image, truth, weights=path, device="cpu", **guided)
    assert refined.report.guidance["version"] == version
    assert np.isfinite(refined.probability).all()


def test_a_run_that_was_stopped_ends_as_one_that_was_not(recipe, tmp_path):
    chosen = recipe(steps=2)
    whole = train(chosen, tmp_path / "whole", workers=0, dtype="float32")
    train(chosen, tmp_path / "parts", workers=0, dtype="float32", stop_at=1)
    again = train(chosen, tmp_path / "parts", workers=0, dtype="float32")
    found = checkpoint.load(again).state
    for name, value in checkpoint.load(whole).state.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def test_one_pass_and_bfloat16_learn_too(recipe, tmp_path):
    path = train(recipe(passes=1, steps=1), tmp_path / "run", workers=0, dtype="bfloat16")
    (line,) = map(json.loads, (path.parent / "log.jsonl").read_text().splitlines())
    assert np.isfinite(line["crop"])


def test_features_are_found_in_a_worker_and_kept(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path / "cache"))
    train(recipe("sam-sr-v3.1", steps=1), tmp_path / "run", workers=1)
    assert 1 <= len(list((tmp_path / "cache" / "embeddings").glob("*.bin"))) <= len(SIZES)


def test_a_run_is_validated_with_its_own_source(recipe, tmp_path):
    held = write(tmp_path / "held", seg=True)
    path = train(recipe("sam-sr-v3.2", steps=1), tmp_path / "run", workers=0, validation=Validation((held,)))
    (line,) = map(json.loads, (path.parent / "validation.jsonl").read_text().splitlines())
    assert [figures["pictures"] for figures in line["sets"]] == [2]
    assert (path.parent / "best.safetensors").exists()


def test_a_network_may_begin_with_what_it_has_in_common_with_crm_s(recipe, tmp_path):
    network = build(PRESETS["crm-s"])
    spec = PRESETS["crm-s"].as_dict()
    checkpoint.save(tmp_path / "crm-s.safetensors", network.state_dict(), spec=spec)
    begun = _initial(recipe(initial=str(tmp_path / "crm-s.safetensors")))[0].state_dict()
    theirs = network.state_dict()
    taken = {name for name, value in begun.items() if name in theirs and torch.equal(value, theirs[name])}
    for layer in ("stem2.1.conv.weight", "stem4.0.conv.weight", "merge2.1.conv.weight", "to_latent.weight"):
        assert layer in taken
    with pytest.raises(WeightsError, match="no weights in common"):
        common(theirs, {"reduce.weight": (64, 256, 1, 1)})


def test_a_network_goes_on_from_weights_of_its_own(recipe, tmp_path):
    path = train(recipe(steps=1), tmp_path / "run", workers=0)
    begun = _initial(recipe(initial=str(path)))[0].state_dict()
    for name, value in checkpoint.load(path).state.items():
        torch.testing.assert_close(begun[name], value)
