from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import disc, photographed
from PIL import Image

import refine
from refine import checkpoint
from refine.cli import _choices
from refine.config import Options, guided_model
from refine.errors import InputError, OptionError, WeightsError
from refine.guidance import Proposal, Proposals
from refine.guidance.cache import Cache, Cached
from refine.guidance.superpixels import Felzenszwalb
from refine.models import PRESETS, build
from refine.training.recipe import Recipe
from refine.training.state import Run
from refine.training.widen import widened

TRUTH = disc((120, 160), 40)
IMAGE = photographed(TRUTH)
COARSE = TRUTH & ~np.roll(TRUTH, 60, 1)  # lacks a third


def of(*masks, source="test"):
    return Proposals(tuple(Proposal.of(mask) for mask in masks), masks[0].shape if masks else (120, 160), source)


ORACLE = of(TRUTH, ~TRUTH)


class Known:
    """A source that knows the answer and counts how often it is asked."""

    name = "known"

    def __init__(self):
        self.asked = 0

    def settings(self):
        return {}

    def propose(self, image):
        assert image.shape == IMAGE.shape
        self.asked += 1
        return ORACLE


@pytest.fixture(scope="module")
def refiner():
    return refine.Refiner(device="cpu")


def test_v1_refines_what_the_proposals_make_of_the_mask(refiner):
    source = Known()
    found = refiner.refine(IMAGE, COARSE, guidance="sam-sr-v1", proposals=source, coverage=0.5, deformation=0.5)
    assert source.asked == 1
    expected = refiner.refine(IMAGE, TRUTH)
    np.testing.assert_array_equal(found.probability, expected.probability)
    assert found.report.guidance == {
        "version": "sam-sr-v1",
        "source": "test",
        "proposals": 2,
        "kept": 1,
        "sparsity": pytest.approx(0, abs=0.05),
        "deformation": pytest.approx(1 - COARSE.sum() / TRUTH.sum(), abs=1e-4),
        "skipped": "",
    }
    assert not found.report.warnings


def test_a_skipped_rule_is_told_and_the_coarse_mask_is_refined(refiner):
    found = refiner.refine(IMAGE, COARSE, guidance="sam-sr-v1", proposals=ORACLE, coverage=0.5, deformation=0.1)
    np.testing.assert_array_equal(found.probability, refiner.refine(IMAGE, COARSE).probability)
    assert found.report.guidance["skipped"].startswith("deformation 0.")
    assert any("without sam-sr-v1: deformation" in warning for warning in found.report.warnings)


@pytest.mark.parametrize("call", ["once", "always"])
def test_the_sparsity_that_is_allowed_decides_whether_a_mask_with_a_gap_is_replaced(refiner, call):
    ring = TRUTH & ~disc((120, 160), 30)  # lacks 0.56 of its shape
    found = {}
    for sparsity in (0.2, 0.8):
        options = {"coverage": 0.3, "deformation": 1.0, "sparsity": sparsity, "guidance": "sam-sr-v1"}
        if call == "once":
            found[sparsity] = refine.run(IMAGE, ring, proposals=ORACLE, device="cpu", **options)
        else:
            found[sparsity] = refine.Refiner(device="cpu", **options).refine(IMAGE, ring, proposals=ORACLE)
    low, high = found.values()
    assert low.report.guidance["skipped"].startswith("sparsity 0.")
    assert low.report.guidance["skipped"].endswith(" is above 0.2")
    assert any("without sam-sr-v1: sparsity" in warning for warning in low.report.warnings)
    np.testing.assert_array_equal(low.probability, refiner.refine(IMAGE, ring).probability)
    assert (high.report.guidance["skipped"], high.report.guidance["kept"]) == ("", 1)
    assert not high.report.warnings
    np.testing.assert_array_equal(high.probability, refiner.refine(IMAGE, TRUTH).probability)


def test_a_limit_that_segment_anything_cannot_keep_is_refused_unless_what_it_finds_is_kept(
    refiner, monkeypatch, tmp_path
):
    source = Known()
    kept = Cached(source, Cache(tmp_path))
    monkeypatch.setattr("refine.guidance.sources.kept_source", lambda *a, **k: kept)
    limited = {"guidance": "sam-sr-v1", "max_memory": "2GiB"}
    with pytest.raises(OptionError, match=r"max_memory of 2\.00 GiB .* sam-vit-b takes 2\.45 GiB; allow more, or have"):
        refiner.refine(IMAGE, COARSE, **limited)
    assert source.asked == 0
    assert refiner.refine(IMAGE, COARSE, **limited, proposals=ORACLE).report.guidance["source"] == "test"
    for options in ({"max_memory": "3GiB"}, {}):  # after the first they are kept
        refiner.refine(IMAGE, COARSE, **limited | options)
    assert source.asked == 1
    refiner._opened = None


def test_a_mask_too_sparse_for_v1_is_not_looked_at_unless_pictures_are_wanted(refiner):
    ring, source = TRUTH & ~disc((120, 160), 30), Known()
    found = {}
    for keep in (False, True):
        options = {"guidance": "sam-sr-v1", "sparsity": 0.2, "keep_guidance": keep}
        found[keep] = refiner.refine(IMAGE, ring, proposals=source, **options)
        assert source.asked == keep
    one, other = (refined.report.guidance for refined in found.values())
    assert one == {name: other[name] for name in ("version", "sparsity", "skipped")} | {"source": "known"}
    np.testing.assert_array_equal(found[False].probability, found[True].probability)


@pytest.mark.parametrize("size", [(7, 300), (160, 120), (60, 83)])
def test_proposals_of_another_picture_are_refused(refiner, size):
    with pytest.raises(InputError, match=f"of a picture of {size[0]} x {size[1]} px .* here has 120 x 160"):
        refiner.refine(IMAGE, COARSE, guidance="sam-sr-v1", proposals=Proposals((), size, "mine"))


def test_what_finds_no_proposals_is_refused(refiner):
    with pytest.raises(InputError, match="proposals=list are neither"):
        refiner.refine(IMAGE, COARSE, guidance="sam-sr-v1", proposals=[TRUTH])


def test_no_proposals_leave_the_unguided_result(refiner):
    found = refiner.refine(IMAGE, COARSE, guidance="sam-sr-v1", proposals=of())
    np.testing.assert_array_equal(found.probability, refiner.refine(IMAGE, COARSE).probability)


def test_an_empty_mask_asks_for_no_proposals(refiner):
    source = Known()
    found = refiner.refine(IMAGE, np.zeros_like(COARSE), guidance="sam-sr-v1", proposals=source)
    assert source.asked == 0
    assert not found.mask.any()


def test_proposals_of_a_smaller_size_are_enlarged(refiner):
    small = of(TRUTH[::2, ::2], ~TRUTH[::2, ::2])
    found = refiner.refine(IMAGE, COARSE, guidance="sam-sr-v1", proposals=small, coverage=0.5, deformation=0.5)
    expected = refiner.refine(IMAGE, TRUTH)
    assert (found.mask != expected.mask).mean() < 0.01


def test_pictures_of_what_guidance_saw_come_where_they_are_asked_for(refiner):
    asked = {"guidance": "sam-sr-v1", "proposals": ORACLE, "coverage": 0.5, "deformation": 0.5}
    assert not refiner.refine(IMAGE, COARSE, **asked).guidance
    found = refiner.refine(IMAGE, COARSE, **asked, keep_guidance=True).guidance
    assert set(found) == {"proposals", "kept", "dropped", "mask"}
    assert {picture.shape for picture in found.values()} == {IMAGE.shape}
    assert {picture.dtype for picture in found.values()} == {np.dtype(np.uint8)}
    inside = found["kept"][TRUTH].mean()
    assert inside > found["kept"][~TRUTH].mean()
    assert found["dropped"][~TRUTH].mean() > found["dropped"][TRUTH].mean()


def wider(version: str, path: Path, model: str = "crm-s") -> Path:
    """Weights of a guided model that look at the channels of guidance with zeros."""
    spec = PRESETS[guided_model(model, version)]
    state = checkpoint.load(checkpoint.find("crm-s")).state
    shapes = {name: tuple(value.shape) for name, value in build(spec).state_dict().items()}
    state = widened(state, shapes, int(spec.arguments["in_channels"]) - 4)
    checkpoint.save(path, state, spec=spec.as_dict())
    return path


def test_a_widened_model_begins_as_what_it_was(tmp_path, refiner):
    weights = wider("sam-sr-v2.1", tmp_path / "wider.safetensors")
    guided = refine.Refiner("crm-s", guidance="sam-sr-v2.1", weights=weights, device="cpu", dtype="float32")
    plain = refine.Refiner("crm-s", device="cpu", dtype="float32")
    found, expected = guided.refine(IMAGE, COARSE, proposals=ORACLE), plain.refine(IMAGE, COARSE)
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)
    assert found.report.model == "crm-s+v2.1"
    assert found.report.guidance == {"version": "sam-sr-v2.1", "source": "test", "proposals": 2}
    assert found.report.options["guidance"] == "sam-sr-v2.1"


@pytest.mark.parametrize("decode", ["dense", "strided"])
def test_a_trained_models_result_depends_on_the_proposals_and_their_colours(tmp_path, decode):
    weights = wider("sam-sr-v2.1", tmp_path / "wider.safetensors")
    loaded = checkpoint.load(weights)
    for name, value in loaded.state.items():
        if value.ndim > 1 and name.startswith(("stem2.1", "decoder.guide")):
            value[:, 3 * (value.shape[1] // 7) : -(value.shape[1] // 7)] = 0.1
    checkpoint.save(weights, loaded.state, spec=loaded.spec)
    guided = refine.Refiner("crm-s+v2.1", weights=weights, device="cpu", dtype="float32", decode=decode)
    one, again, other, none = (
        guided.refine(IMAGE, COARSE, proposals=proposals, seed=seed).probability
        for proposals, seed in ((ORACLE, 0), (ORACLE, 0), (ORACLE, 1), (of(), 0))
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - none).max() > 1e-3


def test_a_run_begins_with_the_unguided_models_weights_and_ends_as_the_guided_one(tmp_path):
    unguided = checkpoint.find("crm-s")
    recipe = Recipe(model="crm-s+v2.1", data=("x",), proposals="felzenszwalb", initial=str(unguided))
    run = Run.begin(recipe, torch.device("cpu"), torch.float32)
    run.save_weights(tmp_path / "weights.safetensors")
    guided = refine.Refiner(guidance="sam-sr-v2.1", weights=tmp_path / "weights.safetensors", dtype="float32")
    expected = refine.Refiner(dtype="float32").refine(IMAGE, COARSE).probability
    np.testing.assert_allclose(guided.refine(IMAGE, COARSE, proposals=ORACLE).probability, expected, atol=1e-5)
    again = Run.begin(
        Recipe(**{**vars(recipe), "initial": str(tmp_path / "weights.safetensors")}), run.device, run.dtype
    )
    assert again.network.state_dict()["decoder.guide.weight"].shape[1] == 7


def test_weights_that_differ_in_more_than_channels_are_no_start():
    with pytest.raises(WeightsError, match="cannot be widened"):
        widened({"a": torch.zeros(4, 4, 3, 3)}, {"a": (5, 7, 3, 3)}, 3)


def test_what_weights_do_not_fit_is_told():
    with pytest.raises(WeightsError, match=r"no weights named 'crm-s\+v2\.1' ship"):
        refine.run(IMAGE, COARSE, guidance="sam-sr-v2.1")
    with pytest.raises(OptionError, match=r"make a refiner of crm-s\+v2\.1"):
        refine.Refiner(device="cpu").refine(IMAGE, COARSE, guidance="sam-sr-v2.1")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"guidance": "sam-sr-v9"}, "guidance='sam-sr-v9' is unknown"),
        ({"proposals": "magic"}, "proposals='magic' is unknown"),
        ({"coverage": 1.1}, "coverage=1.1 is not possible; give a number from 0 to 1"),
        ({"deformation": True}, "deformation=True is not possible"),
        ({"groups": 0}, "groups=0 is not possible"),
        ({"groups": 257}, "groups=257 is not possible; give at most 256"),
        ({"keep_guidance": 1}, "keep_guidance=1 is not possible"),
    ],
)
def test_options_that_cannot_be_are_told(options, told):
    with pytest.raises(OptionError) as error:
        Options(**options)
    assert told in str(error.value)


def test_files_refined_by_windows_cannot_be_guided(tmp_path, refiner):
    for name, array in (("image.tif", IMAGE), ("mask.tif", COARSE.astype(np.uint8) * 255)):
        Image.fromarray(array).save(tmp_path / name)
    with pytest.raises(OptionError, match="needs the picture in memory"):
        refiner.refine_file(tmp_path / "image.tif", tmp_path / "mask.tif", tmp_path / "out.tif", guidance="sam-sr-v1")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_named_source_is_asked_once_for_a_picture(cache, refiner, monkeypatch):
    asked = []
    original = Felzenszwalb.propose
    monkeypatch.setattr(Felzenszwalb, "propose", lambda self, image: asked.append(self) or original(self, image))
    options = {"guidance": "sam-sr-v1", "proposals": "felzenszwalb:levels=2,least=20"}
    one, again = (refiner.refine(IMAGE, COARSE, **options) for _ in range(2))
    assert [source.options.levels for source in asked] == [2]
    assert len(list(cache.rglob("*.bin"))) == 1
    assert one.report.guidance == again.report.guidance
    assert one.report.guidance["source"] == "felzenszwalb"
    assert one.report.guidance["kept"] > 0


SAM = "sam:points_per_side=3,predicted_iou=0,stability=0,box_nms=1"


def test_a_checkpoint_that_changed_is_opened_again(cache, refiner, tmp_path, sam_file):
    path = tmp_path / "sam.pth"
    path.write_bytes(sam_file.read_bytes())
    first = refiner._source(SAM, str(path))
    assert refiner._source(SAM, str(path)) is first
    state = torch.load(path, weights_only=True)
    torch.save({name: value + 0.5 for name, value in state.items()}, path)
    assert refiner._source(SAM, str(path)).settings()["weights"] != first.settings()["weights"]
    refiner._opened = None


def test_on_apples_gpu_sam_runs_on_the_cpu(cache, sam_file):
    refiner = refine.Refiner(device="cpu")
    refiner.device = torch.device("mps")  # none is here
    assert refiner._source(SAM, str(sam_file)).source.sam.device.type == "cpu"


@pytest.mark.parametrize("version", ["sam-sr-v1", "sam-sr-v2.1", "sam-sr-v2.2"])
def test_sam_itself_guides_every_version(cache, tmp_path, sam_file, version):
    weights = None if version == "sam-sr-v1" else wider(version, tmp_path / "wider.safetensors")
    guided = refine.Refiner(
        guidance=version, weights=weights, device="cpu", proposals=SAM, sam_checkpoint=str(sam_file), keep_guidance=True
    )
    found = guided.refine(IMAGE, COARSE)
    assert found.report.guidance["source"] == "sam-vit-32x2"
    assert found.guidance
    again = guided.refine(IMAGE, COARSE)
    np.testing.assert_array_equal(found.probability, again.probability)


def test_v2_2_asks_about_points_of_the_mask_and_reads_their_confidence(cache, tmp_path, sam_file):
    weights = wider("sam-sr-v2.2", tmp_path / "wider.safetensors")
    guided = refine.Refiner("crm-s+v2.2", weights=weights, device="cpu", dtype="float32", keep_guidance=True, groups=4)
    found = guided.refine(IMAGE, COARSE, proposals=ORACLE)
    assert found.report.guidance == {"version": "sam-sr-v2.2", "source": "test", "groups": 4, "confidence": 1.0}
    np.testing.assert_array_equal(found.guidance["merged"][..., 0] == 255, TRUTH)  # whose proposal holds all the points
    expected = refine.Refiner(device="cpu", dtype="float32").refine(IMAGE, COARSE)
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slic:levels", "proposals='slic:levels' is not possible; give NAME=NUMBER"),
        ("slic:levels=many", "give NAME=NUMBER behind the source"),
        ("magic:levels=2", "proposals='magic' is unknown"),
    ],
)
def test_sources_that_cannot_be_read_are_told(text, told):
    with pytest.raises(OptionError) as error:
        Options(proposals=text)
    assert told in str(error.value)


def test_an_option_that_a_source_has_not_is_told(cache, refiner):
    with pytest.raises(OptionError, match="slic has no option size"):
        refiner.refine(IMAGE, COARSE, guidance="sam-sr-v1", proposals="slic:size=3")


def test_a_missing_sam_names_both_ways_to_have_it(cache, refiner):
    with pytest.raises(WeightsError, match=r"refine-cli weights get sam-vit-b.*--sam-checkpoint"):
        refiner.refine(IMAGE, COARSE, guidance="sam-sr-v1")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGE).save("image.png")
    Image.fromarray(COARSE.astype(np.uint8) * 255).save("mask.png")


def test_the_command_line_guides_and_shows_what_guidance_saw(cache, files, run):
    done = run(
        "image.png", "mask.png", "--guidance", "sam-sr-v1", "--proposals", "slic", "--debug-dir", "debug", "--json"
    )
    assert done.code == 0, done.err
    assert '"version": "sam-sr-v1"' in done.out
    assert {path.name for path in Path("debug").iterdir()} == {
        f"image_saw_{name}.png" for name in ("proposals", "kept", "dropped", "mask")
    }


def test_thresholds_are_set_by_name(cache, files, run):
    words = ("image.png", "mask.png", "--guidance", "sam-sr-v1", "--proposals", "slic", "--json")
    assert '"skipped": ""' in run(*words, "--set", "deformation=1").out
    done = run(*words, "--set", "deformation=0")
    assert done.code == 0
    assert "is above 0" in done.out


def test_options_of_guidance_go_to_the_guided_models_of_a_grid():
    found = _choices(["crm-s", "crm-s+v2.1"], [None], [None], [None], None, weights=None, device=None, proposals="slic")
    assert [(choice["model"], choice.get("proposals")) for choice in found] == [("crm-s", None), ("crm-s+v2.1", "slic")]
    with pytest.raises(OptionError, match="--proposals belongs to guidance, and there is none"):
        _choices(["crm-s"], [None], [None], [None], None, weights=None, device=None, proposals="slic")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--proposals", "slic"), "--proposals belongs to guidance, and there is none"),
        (("--debug-dir", "x"), "--debug-dir belongs to guidance"),
        (("--set", "coverage=0.5"), "--set coverage belongs to guidance"),
        (("--guidance", "sam-sr-v7"), "guidance='sam-sr-v7' is unknown"),
        (("--guidance", "sam-sr-v2.1"), "no weights named 'crm-s+v2.1' ship with refine"),
        (("--guidance", "sam-sr-v1"), "refine-cli weights get sam-vit-b"),
        (("--guidance", "sam-sr-v1", "--model", "guided-filter"), "guided-filter has no option guidance"),
    ],
)
def test_guidance_that_cannot_be_is_told_in_a_line(cache, files, run, words, told):
    done = run("image.png", "mask.png", *words)
    assert done.code == 2
    assert told in done.err
    assert done.err.count("\n") == 1


def test_evaluating_tells_once_that_sam_is_missing(cache, files, run):
    for name in ("a", "b"):
        Image.fromarray(IMAGE).save(f"{name}_im.png")
        Image.fromarray(TRUTH.astype(np.uint8) * 255).save(f"{name}_gt.png")
        Image.fromarray(COARSE.astype(np.uint8) * 255).save(f"{name}_seg.png")
    done = run("evaluate", ".", "--guidance", "none,sam-sr-v1")
    assert done.code == 2
    assert done.err.count("refine-cli weights get sam-vit-b") == done.err.count("\n") == 1
    compared = run("evaluate", ".", "--guidance", "none,sam-sr-v1", "--proposals", "slic:segments=20")
    assert compared.code == 0, compared.err
    assert "sam-sr-v1" in compared.out
