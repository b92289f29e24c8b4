import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock
from scipy.ndimage import zoom

import refine
from refine import checkpoint
from refine.blocks import Blocks
from refine.decode import decode
from refine.errors import FileError, OptionError, WeightsError
from refine.loading import load_network
from refine.models import NETWORKS, PRESETS, build
from refine.models.crm_s import CRMSmall, DenseTrunk, EnsembleDecoder
from refine.prepare import as_mask
from refine.training import data, networks
from refine.training.data import Crops, _jittered
from refine.training.folders import read_coarse, survey
from refine.training.loop import train
from refine.training.passes import _decoded, losses
from refine.training.pretrained import load_mobilenet_v2
from refine.training.recipe import Recipe
from refine.training.scenes import scene
from refine.training.state import Run, _moving_average

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        image, truth = scene(np.random.default_rng(number), 90, 120)
        cv2.imwrite(str(folder / f"{number}_im.jpg"), image[..., ::-1])
        cv2.imwrite(str(folder / f"{number}_gt.png"), 255 * truth.astype(np.uint8))
    return folder


def recipe(folder: Path, **changes: object) -> Recipe:
    return Recipe(**{"data": (str(folder),), "steps": 4, "batch": 2, "crop": 64, "window": 64, **changes})


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 5.0), (0.5, 3.0)])
def test_an_average_without_memory_is_the_last_weights(decay, expected):
    averaged, current = torch.ones(3), torch.full((3,), 5.0)
    _moving_average(decay)([averaged], [current], 10**6)
    assert averaged.tolist() == [expected] * 3


def test_a_crop_depends_on_its_number_alone(folder):
    def crops() -> Crops:
        return Crops([survey(folder).pairs], [1.0], size=64, seed=3, scenes=0.3)

    forward, other = crops(), crops()
    items = [forward[i] for i in range(6)]
    for i in (4, 0, 5):
        for name, value in other[i].items():
            assert torch.equal(value, items[i][name])
    assert not torch.equal(items[0]["image"], items[1]["image"])
    assert items[0]["image"].shape == (3, 64, 64)
    assert set(items[0]["truth"].unique().tolist()) <= {0.0, 1.0}


def test_colours_change_by_one_affine_map_where_no_noise_is_drawn():
    image = np.random.default_rng(0).integers(96, 160, (32, 32, 3), dtype=np.uint8)  # far from black and white
    pixels = np.column_stack((image.reshape(-1, 3), np.ones(32 * 32)))
    plain = 0
    for seed in range(200):
        found = _jittered(image, np.random.default_rng(seed)).reshape(-1, 3).astype(float)
        assert 0.75 * 0.92 * image.mean() - 1 < found.mean() < 1.25 * 1.08 * image.mean() + 1
        affine = np.linalg.lstsq(pixels, found, rcond=None)[0]
        if np.abs(pixels @ affine - found).max() < 0.6:  # else there is noise, blur or JPEG in it
            plain += 1
            contrast = affine[:3].sum(0)  # of a grey; each channel by its own warmth
            assert ((contrast > 0.7 * 0.9) & (contrast < 1.3 * 1.1)).all()
            assert np.ptp(contrast) / contrast.mean() < 0.17
    assert 0.45 * 200 < plain < 0.65 * 200  # 0.8 * 0.85 * 0.8


def test_coarse_masks_beside_a_picture_are_cut_and_mirrored_with_it(folder):
    for number in range(2):  # the third picture has none
        truth = cv2.imread(str(folder / f"{number}_gt.png"), cv2.IMREAD_GRAYSCALE)
        for mark, mask in enumerate((truth, 255 - truth)):
            cv2.imwrite(str(folder / f"{number}_seg{mark}.png"), mask)
    crops = Crops([survey(folder).pairs], [1.0], size=64, seed=3, coarse={"given": 1.0}, composed=1.0)
    kinds = []
    for i in range(12):
        item = crops[i]
        truth, coarse = item["truth"], (item["coarse"] > 0.5).float()
        agree = float((truth == coarse).float().mean())
        assert agree > 0.97 or agree < 0.03  # the truth, or what is not the truth, but for rounding at the contour
        kinds.append(agree > 0.5)
    assert {True, False} == set(kinds)


def test_coarse_masks_beside_pictures_come_as_often_as_asked(folder):
    cv2.imwrite(str(folder / "0_seg.png"), np.full((90, 120), 255, np.uint8))
    crops = Crops([survey(folder).pairs], [1.0], size=64, seed=3, coarse={"given": 1.0, "exact": 3.0})
    share = sum(bool((crops[i]["coarse"] == 1).all()) for i in range(80)) / 80
    assert 0.15 < share < 0.4


def test_coarse_masks_smaller_than_their_pictures_are_enlarged_as_refining_does(folder):
    small = np.random.default_rng(0).integers(0, 256, (9, 12), np.uint8)
    cv2.imwrite(str(folder / "0_seg0.png"), small)
    Crops([survey(folder).pairs], [1.0], size=64, seed=3, coarse={"given": 1.0}).check_sizes()
    found = read_coarse(folder / "0_seg0.png", folder / "0_im.png", (90, 120))
    np.testing.assert_array_equal(found, np.rint(255 * as_mask(small, (90, 120))))
    crops = Crops([survey(folder).pairs], [1.0], size=64, seed=3, coarse={"given": 1.0})
    soft = [bool(((item["coarse"] > 0.2) & (item["coarse"] < 0.8)).any()) for item in map(crops.__getitem__, range(20))]
    assert True in soft
    assert False in soft


def test_a_share_of_coarse_masks_that_are_not_there_is_refused(folder):
    with pytest.raises(OptionError, match=r"no picture that is drawn has a coarse mask <id>_seg\.png"):
        Crops([survey(folder).pairs], [1.0], size=64, seed=3, coarse={"given": 0.1, "network": 0.9})
    pairs = survey(folder).pairs
    cv2.imwrite(str(folder / "0_seg.png"), np.zeros((90, 120), np.uint8))
    with pytest.raises(OptionError, match="no picture that is drawn"):
        Crops([pairs, survey(folder).pairs], [1.0, 0.0], size=64, seed=3, coarse={"given": 1.0})


def test_crops_are_about_the_contour_also_of_what_touches_a_border(tmp_path):
    truth = np.zeros((90, 120), np.uint8)
    truth[:40, :50] = 255
    cv2.imwrite(str(tmp_path / "a.jpg"), truth)
    cv2.imwrite(str(tmp_path / "a.png"), truth)
    crops = Crops([survey(tmp_path).pairs], [1.0], size=32, seed=3)  # of 16 px of the picture
    both = sum(0 < float(crops[i]["truth"].mean()) < 1 for i in range(100))
    assert both > 80  # one in ten is anywhere


def test_a_coarse_mask_of_another_aspect_is_refused(folder):
    cv2.imwrite(str(folder / "0_seg.png"), np.zeros((9, 30), np.uint8))
    crops = Crops([survey(folder).pairs], [1.0], size=64, seed=3, coarse={"given": 1.0})
    with pytest.raises(FileError, match=r"0_seg\.png: 9 x 30 is not the size of its picture"):
        crops[0]


@pytest.mark.parametrize("cache", [0, 50_000])
def test_a_crop_does_not_depend_on_what_is_kept(folder, cache):
    wanted, found = (
        Crops([survey(folder).pairs], [1.0], size=64, seed=3, **options) for options in ({}, {"cache": cache})
    )
    for i in range(6):
        for name, value in found[i].items():
            assert torch.equal(value, wanted[i][name])


def test_the_pictures_used_last_are_kept_up_to_so_many_bytes(folder, monkeypatch):
    read: list[str] = []

    def noted(path: Path) -> np.ndarray:
        read.append(path.name)
        return np.zeros((10, 10, 3), np.uint8)

    monkeypatch.setattr(data, "read_image", noted)
    crops = Crops([survey(folder).pairs], [1.0], size=64, seed=3, cache=600)
    for name in "abacab":
        crops._image(Path(name))
    assert read == ["a", "b", "c", "b"]  # c took the place of b, which had been used before a


def test_a_run_that_was_killed_ends_as_one_that_was_not(folder, tmp_path):
    whole = train(recipe(folder), tmp_path / "whole", workers=0)
    train(recipe(folder), tmp_path / "parts", workers=0, stop_at=2)
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    again = train(recipe(folder), tmp_path / "parts", workers=0)
    expected, found = checkpoint.load(whole), checkpoint.load(again)
    assert expected.metadata["step"] == found.metadata["step"] == "4"
    for name, value in expected.state.items():
        torch.testing.assert_close(found.state[name], value, atol=1e-5, rtol=1e-4)


def test_training_learns_and_logs(folder, tmp_path):
    train(recipe(folder, steps=40, learning_rate=3e-3, warmup=1), tmp_path / "run", workers=0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[-1]["fine"] < lines[0]["fine"]


def test_the_weights_of_a_run_refine(folder, tmp_path):
    path = train(recipe(folder), tmp_path / "run", workers=0)
    image, truth = scene(np.random.default_rng(0), 60, 70)
    assert refine.Refiner(weights=path, device="cpu").refine(image, truth).mask.shape == (60, 70)
    assert json.loads(checkpoint.load(path).metadata["recipe"])["seed"] == 0


@pytest.mark.parametrize(
    ("change", "part", "kind"),
    [({"trunk": "dense"}, "trunk", DenseTrunk), ({"decoder": "ensemble"}, "decoder", EnsembleDecoder)],
)
def test_the_recipes_choices_are_in_the_weights_specification(folder, tmp_path, change, part, kind):
    path = train(recipe(folder, steps=1, **change), tmp_path / "run", workers=0)
    refiner = refine.Refiner("crm-s", weights=path, device="cpu")
    assert refiner.spec.arguments[part] == change[part]
    assert type(getattr(refiner.network, part)) is kind
    image, truth = scene(np.random.default_rng(0), 41, 70)
    assert refiner.refine(image, truth).mask.shape == (41, 70)


def test_a_finished_run_gets_another_cascade_by_the_same_command(folder, tmp_path):
    weights = []
    for cascade in ({}, {"smallest": 40, "decode": "contour"}):
        path = train(recipe(folder, steps=1, cascade=cascade), tmp_path / "run", workers=0)
        refiner = refine.Refiner("crm-s", weights=path, device="cpu")
        assert refiner.spec.cascade == replace(PRESETS["crm-s"].cascade, **cascade)
        weights.append(checkpoint.load(path).state)
    image, truth = scene(np.random.default_rng(0), 100, 140)
    report = refiner.refine(image, truth).report
    assert [s.scale for s in report.scales] == [0.375, 0.75, 1.5]  # 1/8 of it would be 26 px
    assert report.options["decode"] == "contour"
    for before, after in zip(*(state.values() for state in weights), strict=True):
        assert torch.equal(before, after)


def test_pretrained_features_alone_learn_more_slowly(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("refine.training.state.load_mobilenet_v2", lambda trunk, path: None)
    rates = {}
    (tmp_path / "features.npz").touch()
    for pretrained in ("", str(tmp_path / "features.npz")):
        path = tmp_path / f"run{bool(pretrained)}" / "checkpoint.pt"
        train(recipe(folder, steps=1, learning_rate=1e-3, pretrained=pretrained), path.parent, workers=0)
        groups = torch.load(path, weights_only=True)["optimizer"]["param_groups"]
        rates[Path(pretrained).name] = [(len(group["params"]), group["initial_lr"]) for group in groups]
    every, trunk = (len(list(module.parameters())) for module in (CRMSmall(), CRMSmall().trunk))
    assert rates == {
        "": [(every, 1e-3)],
        "features.npz": [(every - trunk, 1e-3), (trunk, pytest.approx(0.3e-3))],
    }


def test_pretrained_features_stay_as_they_are_where_they_learn_by_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("refine.training.state.load_mobilenet_v2", lambda trunk, path: None)
    (tmp_path / "features.npz").touch()
    still = recipe(folder, steps=2, warmup=0, trunk_factor=0.0, pretrained=str(tmp_path / "features.npz"))
    train(still, tmp_path / "run", workers=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begun = build(PRESETS["crm-s"])
    ended = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["network"]
    for name, parameter in begun.named_parameters():
        assert torch.equal(ended[name], parameter) == name.startswith("trunk."), name


def test_crm_r50_learns_by_the_same_loop_and_its_weights_refine(folder, tmp_path):
    path = train(recipe(folder, model="crm-r50", steps=2, warmup=1), tmp_path / "run", workers=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begun = build(PRESETS["crm-r50"])
    ended = torch.load(path.parent / "checkpoint.pt", weights_only=True)["network"]
    for name, parameter in begun.named_parameters():
        assert ended[name].isfinite().all(), name
        assert not torch.equal(ended[name], parameter), name
    image, truth = scene(np.random.default_rng(0), 41, 70)
    refined = refine.Refiner("crm-r50", weights=path, device="cpu", dtype="float32").refine(image, truth)
    assert refined.probability.shape == (41, 70)
    assert np.isfinite(refined.probability).all()


def test_dropout_goes_on_with_its_own_numbers_in_a_resumed_run(folder, tmp_path):
    r50 = recipe(folder, model="crm-r50", steps=2, batch=1)
    whole = train(r50, tmp_path / "whole", workers=0)
    train(r50, tmp_path / "parts", workers=0, stop_at=1)
    torch.rand(7)  # what else draws from torch's own generator makes no difference
    again = train(r50, tmp_path / "parts", workers=0)
    expected, found = checkpoint.load(whole), checkpoint.load(again)
    for name, value in expected.state.items():
        torch.testing.assert_close(found.state[name], value, atol=1e-6, rtol=1e-5)


def area(x: np.ndarray) -> np.ndarray:
    return cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def corners(x: np.ndarray) -> np.ndarray:
    return zoom(x, (0.5, 0.5, 1), order=1)  # scipy keeps the corner pixels in place


@pytest.mark.parametrize(("model", "halved"), [("crm-s", area), ("crm-r50", corners)])
def test_the_network_sees_crops_as_the_cascade_shows_it_pictures(folder, tmp_path, monkeypatch, model, halved):
    network, cascade, inputs = NETWORKS[PRESETS[model].network], PRESETS[model].cascade, []
    encode = network.encode

    def noted(self: torch.nn.Module, x: torch.Tensor, deep: None = None) -> tuple[torch.Tensor, ...]:
        inputs.append(x.permute(0, 2, 3, 1).numpy())
        return encode(self, x)

    monkeypatch.setattr(network, "encode", noted)
    train(recipe(folder, model=model, steps=1), tmp_path / "run", workers=0)
    coarse_step, last_step = inputs
    crops = Crops([survey(folder).pairs], [1.0], size=64, seed=0)
    for i in range(2):
        image, mask = (crops[i][name].permute(1, 2, 0).numpy() for name in ("image", "coarse"))
        colours = (image / np.float32(255) - np.float32(cascade.mean)) / np.float32(cascade.std)
        whole = np.concatenate((colours, 2 * mask - 1), axis=2)
        np.testing.assert_allclose(coarse_step[i], halved(whole), atol=1e-5)
        np.testing.assert_allclose(last_step[i, ..., :3], colours, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_losses_are_of_the_truth_at_the_pixels_that_the_network_answers(seed):
    """A new crm-s answers the mask that it sees; halved, enlarged and cut, a slope is still the same slope."""
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    slope = (0.3 + 0.003 * y + 0.001 * x).expand(4, 1, 128, 128)
    image = torch.zeros(4, 3, 128, 128, dtype=torch.uint8)
    batch = {"image": image, "truth": slope, "coarse": slope, "fine": slope}
    seen = []

    def noted(logit: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        seen.append((logit.detach().sigmoid(), truth))
        return logit.mean()

    spec, choices = PRESETS["crm-s"], torch.Generator().manual_seed(seed)
    asked = Recipe(crop=128, window=64)
    losses(build(spec), spec.cascade, batch, asked, choices, loss=noted, dtype=torch.float32)
    assert [tuple(truth.shape) for _, truth in seen] == [(4, 1, 64, 64)] * 2
    for answer, truth in seen:
        inside = (..., slice(2, -2), slice(2, -2))  # beyond the border a slope does not go on
        torch.testing.assert_close(answer[inside], truth[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["crm-s", "crm-r50"])
@pytest.mark.parametrize("part", [np.s_[..., 1::2, ::2], np.s_[..., 8:40, 24:56]], ids=["every other pixel", "window"])
def test_a_part_of_a_crop_is_decoded_as_the_cascade_decodes_it(model, part):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(PRESETS[model]).eval().requires_grad_(False)
        if model == "crm-s":
            torch.nn.init.normal_(network.decoder.last.weight)  # zero in a new one
        latent = torch.randn(1, network.latent_channels, 64 // network.stride, 64 // network.stride)
        guide = torch.rand(1, 4, 64, 64)
    axis = network.axis(64, 64)

    def read(points: np.ndarray) -> torch.Tensor:
        return guide[0, :, points[:, 0], points[:, 1]].T

    blocks = Blocks.around(latent, network.stride, (0, 0))
    expected = decode(network, blocks, axis, axis, None, read if network.guided else None)
    assert expected.std() > 1e-4
    found = _decoded(network, latent, guide, part).sigmoid()
    np.testing.assert_allclose(found[0, 0], expected[part], atol=1e-5 * float(expected.std()), rtol=1e-5)


def test_a_checkpoint_from_before_a_field_is_resumed_with_its_default(folder, tmp_path):
    path = tmp_path / "run" / "checkpoint.pt"
    train(recipe(folder, steps=1), path.parent, workers=0)
    state = torch.load(path, weights_only=True)
    state["recipe"] = json.dumps({k: v for k, v in json.loads(state["recipe"]).items() if k != "model"})
    torch.save(state, path)
    assert checkpoint.load(train(recipe(folder, steps=2), path.parent, workers=0)).metadata["step"] == "2"
    torch.save(state, path)
    with pytest.raises(WeightsError, match="another recipe"):
        train(recipe(folder, steps=2, model="crm-r50"), path.parent, workers=0)


def test_a_run_is_never_resumed_by_another_recipe(folder, tmp_path):
    train(recipe(folder, steps=2), tmp_path / "run", workers=0)
    with pytest.raises(WeightsError, match="another recipe"):
        train(recipe(folder, seed=9), tmp_path / "run", workers=0)
    longer = train(recipe(folder, steps=3), tmp_path / "run", workers=0)
    assert checkpoint.load(longer).metadata["step"] == "3"


def test_a_damaged_checkpoint_is_refused(folder, tmp_path):
    path = tmp_path / "run" / "checkpoint.pt"
    train(recipe(folder, steps=1), path.parent, workers=0)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged"):
        train(recipe(folder), path.parent, workers=0)


def test_an_unknown_device_is_refused(folder, tmp_path):
    with pytest.raises(OptionError, match="device='tpu'"):
        train(recipe(folder), tmp_path / "run", device="tpu")


def test_pretrained_features_are_mobilenets(shared):
    network = CRMSmall()
    load_mobilenet_v2(network.trunk, shared / "pretrained" / "mobilenetv2.npz")
    first = network.trunk.first[0]
    with np.load(shared / "pretrained" / "mobilenetv2.npz") as arrays:
        np.testing.assert_array_equal(first.conv.weight[:, :3].detach(), arrays["Conv1/kernel"].astype(np.float32))
        last = network.trunk.levels[2][-1].layers[2]
        np.testing.assert_array_equal(
            last.conv.weight.detach(), arrays["block_12_project/kernel"].astype(np.float32).reshape(96, 576, 1, 1)
        )
    assert (first.conv.weight[:, 3:] == 0).all()


def test_missing_pretrained_features_are_an_error(tmp_path):
    with pytest.raises(WeightsError, match="do not exist"):
        load_mobilenet_v2(CRMSmall().trunk, tmp_path / "none.npz")
    np.savez(tmp_path / "odd.npz", a=np.zeros(1))
    with pytest.raises(WeightsError, match="lack Conv1/kernel"):
        load_mobilenet_v2(CRMSmall().trunk, tmp_path / "odd.npz")
    np.save(tmp_path / "one.npy", np.zeros(1))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "odd.npz").read_bytes()[:-40])
    for name in ("one.npy", "empty.npz", "cut.npz"):
        with pytest.raises(WeightsError, match=rf"{name}: no \.npz, or not a whole one"):
            load_mobilenet_v2(CRMSmall().trunk, tmp_path / name)
    kernel = np.zeros((32, 3, 3, 3), np.float32)
    np.savez(tmp_path / "bad.npz", **{"Conv1/kernel": kernel})
    data = bytearray((tmp_path / "bad.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.npz").write_bytes(data)
    with pytest.raises(WeightsError, match="Conv1/kernel is damaged"):
        load_mobilenet_v2(CRMSmall().trunk, tmp_path / "bad.npz")


def losses_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path).state


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "l1"},
        {"coarse": {"contour": 1.0}},
        {"augment": "published"},
        {"passes": 1},
        {"optimizer": "adam"},
        {"clip": 0.01},
        {"schedule": "steps", "milestones": (1,), "warmup": 0},
        {"ema": 0.0},
        {"seed": 1},
        {"scenes": 1.0},
        {"composed": 1.0},
        {"weight_decay": 0.3},
        {"learning_rate": 1e-2},
        {"batch": 3},
        {"crop": 128},
        {"window": 32},
        {"warmup": 9},
        {"trunk": "dense"},
        {"decoder": "ensemble"},
        {"decay": 1.0},
        {"store": "float16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_weights_depend_on_each_field_of_a_recipe(folder, tmp_path, change):
    plain = tmp_path / "plain"
    base = {"steps": 2, "warmup": 1}
    expected = weights_of(train(recipe(folder, **base), plain, workers=0))
    found = weights_of(train(recipe(folder, **{**base, **change}), tmp_path / "changed", workers=0))
    assert any(name not in found or not torch.equal(found[name], value) for name, value in expected.items())


def test_one_pass_is_the_whole_crop_with_its_coarse_mask(folder, tmp_path, monkeypatch):
    seen = []
    encode = CRMSmall.encode

    def noted(self: torch.nn.Module, x: torch.Tensor, deep: None = None) -> tuple[torch.Tensor, ...]:
        seen.append(x.numpy())
        return encode(self, x)

    monkeypatch.setattr(CRMSmall, "encode", noted)
    train(recipe(folder, steps=1, batch=2, crop=96, passes=1), tmp_path / "run", workers=0)
    item = Crops([survey(folder).pairs], [1.0], size=96, seed=0)[0]
    expected = np.concatenate((item["image"].numpy() / np.float32(255), 2 * item["coarse"].numpy() - 1))
    (given,) = seen
    np.testing.assert_allclose(given[0], expected, atol=1e-6)
    assert set(losses_of(tmp_path / "run")[0]) == {"step", "crop", "rate", "seconds"}


def test_a_loss_that_rises_is_told_how_much_of_the_run_is_done(folder, tmp_path, monkeypatch):
    told = []

    class Noted:
        def __call__(self, logit: torch.Tensor, truth: torch.Tensor, progress: float) -> torch.Tensor:
            told.append(progress)
            assert logit.dtype == torch.float32
            return (logit - truth).square().mean()

    monkeypatch.setattr("refine.training.state.parse_loss", lambda text: Noted())
    train(recipe(folder, steps=4), tmp_path / "run", workers=0)
    assert told == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_products_are_made_in_the_type_that_is_asked_for(folder, tmp_path, monkeypatch, dtype):
    seen = set()
    fuse = CRMSmall.fuse

    def noted(self, taps, **more):
        latent = fuse(self, taps, **more)
        seen.add(latent.dtype)
        return latent

    monkeypatch.setattr(CRMSmall, "fuse", noted)
    train(recipe(folder, steps=1), tmp_path / "run", workers=0, dtype=dtype)
    assert seen == {getattr(torch, dtype)}


def test_float16_is_refused_without_cuda(folder, tmp_path):
    with pytest.raises(OptionError, match="dtype='float16' cannot be trained in on cpu"):
        train(recipe(folder), tmp_path / "run", dtype="float16")


@pytest.mark.parametrize(("change", "message"), [({"data": ()}, "nothing to train on"), ({}, "workers=-1")])
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(folder, tmp_path, change, message):
    with pytest.raises(OptionError, match=message):
        train(recipe(folder, **change), tmp_path / "run", workers=-1)
    assert not (tmp_path / "run").exists()


def test_weights_are_stored_as_float16_and_load_as_float32(folder, tmp_path):
    whole = train(recipe(folder, steps=1), tmp_path / "whole", workers=0)
    half = train(recipe(folder, steps=1, store="float16"), tmp_path / "half", workers=0)
    assert half.stat().st_size < 0.56 * whole.stat().st_size
    stored, full = weights_of(half), weights_of(whole)
    for name, value in full.items():
        expected = value.half() if value.is_floating_point() and value.ndim > 1 else value
        assert stored[name].dtype == expected.dtype, name
        torch.testing.assert_close(stored[name], expected, atol=1e-6, rtol=2e-3)
    network, _, _ = load_network("crm-s", half)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    image, truth = scene(np.random.default_rng(0), 41, 70)
    masks = [refine.Refiner(weights=path, device="cpu").refine(image, truth).probability for path in (whole, half)]
    np.testing.assert_allclose(*masks, atol=0.05)
    again = recipe(folder, steps=1, initial=str(half))
    assert train(again, tmp_path / "again", workers=0).exists()


def test_a_finished_run_is_stored_anew_in_another_type(folder, tmp_path):
    path = train(recipe(folder, steps=1), tmp_path / "run", workers=0)
    size = path.stat().st_size
    assert train(recipe(folder, steps=1, store="float16"), tmp_path / "run", workers=0).stat().st_size < size


def test_another_recipes_run_is_refused_with_what_differs(folder, tmp_path):
    train(recipe(folder, steps=1), tmp_path / "run", workers=0)
    with pytest.raises(
        WeightsError, match=r"another recipe: loss is 'bce .*' there, seed is 0 there; train into a new"
    ):
        train(recipe(folder, steps=1, seed=2, loss="l1"), tmp_path / "run", workers=0)


def test_a_run_goes_on_with_the_same_pictures_alone(folder, tmp_path):
    train(recipe(folder, steps=1), tmp_path / "run", workers=0)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    for ending in ("im.jpg", "gt.png"):
        shutil.copy(folder / f"0_{ending}", folder / f"more_{ending}")
    with pytest.raises(WeightsError, match=r"other pictures: data: 4 pairs \(\w+\), was data: 3 pairs .*new folder"):
        train(recipe(folder), tmp_path / "run", workers=0)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    for path in folder.glob("more_*"):
        path.unlink()
    moved = folder.rename(tmp_path / "elsewhere").rename(tmp_path / "there")  # called otherwise, the recipe is another
    (tmp_path / "new").mkdir()
    train(recipe(moved.rename(tmp_path / "new" / "data")), tmp_path / "run", workers=0)


def test_a_card_and_the_weights_say_what_a_run_began_with(folder, tmp_path):
    (folder / "TERMS").write_text("cite us")
    first = train(recipe(folder, steps=1), tmp_path / "first", workers=0)
    begun, digest = recipe(folder, steps=2, initial=str(first)), checkpoint.file_sha256(first)
    train(begun, tmp_path / "second", workers=0, terms="ask", stop_at=1)
    first.write_bytes(train(recipe(folder, steps=1, seed=1), tmp_path / "other", workers=0).read_bytes())
    second = train(begun, tmp_path / "second", workers=0, terms="ask")
    card = (second.parent / "card.md").read_text()
    assert f"| weights.safetensors | {digest} | data |" in card
    assert card.count("> cite us") == 1
    assert "weights.safetensors:\n\n> data: cite us" in card
    assert (
        checkpoint.load(second).metadata["terms"] == "All: ask\n\ndata: cite us\n\nweights.safetensors: data: cite us"
    )


def test_a_log_that_a_kill_left_ahead_of_its_checkpoint_is_shortened(folder, tmp_path):
    train(recipe(folder), tmp_path / "run", workers=0, stop_at=2)
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    train(recipe(folder), tmp_path / "run", workers=0)
    assert [line["step"] for line in losses_of(tmp_path / "run")] == [1, 2, 4]


def test_a_loss_that_is_no_number_ends_the_run_and_stores_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "_check_resumed", lambda run: None)  # which would not go on from what is no number
    train(recipe(folder, steps=4), tmp_path / "run", workers=0, stop_at=1)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    state["network"]["trunk.first.0.conv.weight"][:] = torch.nan
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    poisoned = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(OptionError, match=r"the loss is no number any more at step 4; .*learning_rate"):
        train(recipe(folder, steps=4), tmp_path / "run", workers=0)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == poisoned != before


def test_averages_that_are_no_numbers_end_a_run_whose_scaled_loss_may_overflow(folder):
    run = Run.begin(recipe(folder), torch.device("cpu"), torch.float32)
    run.scaler = torch.amp.GradScaler("cpu", enabled=True)  # as in float16
    seen = [{"crop": torch.tensor(value)} for value in (1.0, torch.inf, 3.0)]
    assert run.means(seen) == {"crop": 2.0}
    statistics = next(v for name, v in run.average.state_dict().items() if name.endswith("running_var"))
    statistics[0] = torch.inf
    with pytest.raises(OptionError, match="no number any more"):
        run.means(seen)


def test_workers_start_also_where_opencv_has_used_its_threads(folder, tmp_path):
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        cv2.GaussianBlur(np.zeros((2000, 2000), np.float32), (0, 0), 3)
        weights = train(recipe(folder, steps=1), tmp_path / "run", workers=1)
        assert (weights.exists(), cv2.getNumThreads()) == (True, 4)
    finally:
        cv2.setNumThreads(threads)


@pytest.fixture
def one_thread():
    """Sums are parted among threads, whose number other tests change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_was_not(folder, tmp_path):
    whole = train(recipe(folder, steps=6), tmp_path / "whole", workers=0, dtype="float32")
    code = (
        "import sys; from pathlib import Path; import torch; from refine.training.loop import train\n"
        "torch.set_num_threads(1)\n"
        "from refine.training.recipe import Recipe\n"
        "recipe = Recipe(data=(sys.argv[1],), steps=6, batch=2, crop=64, window=64)\n"
        "train(recipe, Path(sys.argv[2]), workers=1, save_seconds=0, dtype='float32')\n"
    )
    parts = tmp_path / "parts"
    words = [sys.executable, "-c", code, str(folder), str(parts)]
    with subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": f".{os.pathsep}kernels"}) as process:
        ends = time.monotonic() + 120
        while not (parts / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.01)
        process.kill()
    assert torch.load(parts / "checkpoint.pt", weights_only=True)["step"] < 6  # or this tests nothing
    again = train(recipe(folder, steps=6), parts, workers=0, dtype="float32")
    found = weights_of(again)
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def test_an_interrupt_ends_the_step_stores_it_and_says_how_to_go_on(folder, tmp_path, monkeypatch):
    advance = Run.advance

    def interrupted(self: Run, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
        return advance(self, batch)

    monkeypatch.setattr(Run, "advance", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stored; the same command goes on from there"):
        train(recipe(folder), tmp_path / "run", workers=0)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(Run, "advance", advance)
    assert checkpoint.load(train(recipe(folder), tmp_path / "run", workers=0)).metadata["step"] == "4"


def test_a_second_interrupt_does_not_wait(folder, tmp_path, monkeypatch):
    def interrupted(self: Run, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setattr(Run, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(folder), tmp_path / "run", workers=0)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_training_in_another_thread_leaves_interrupts_alone(folder, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, recipe(folder, steps=1), tmp_path / "run", workers=0).result().exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_is_named_in_one_line(folder, tmp_path, workers):
    for path in folder.glob("*_im.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(FileError) as caught:
        train(recipe(folder), tmp_path / "run", workers=workers)
    assert "_im.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensorboards_events_hold_what_the_log_holds(folder, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(recipe(folder), tmp_path / "run", workers=0, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (line,) = losses_of(tmp_path / "run")
    for name in ("coarse", "fine"):
        ((step, value),) = ((event.step, event.value) for event in events.Scalars(f"loss/{name}"))
        assert (step, value) == (4, pytest.approx(line[name], abs=1e-4))


def test_tensorboard_is_asked_for_with_a_remedy_where_it_is_missing(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OptionError, match=r"pip install 'refine-masks\[train\]'"):
        train(recipe(folder), tmp_path / "run", workers=0, tensorboard=True)


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(folder, tmp_path, capsys):
    train(recipe(folder), tmp_path / "run", workers=0, quiet=False)
    first, line = capsys.readouterr().err.splitlines()
    assert first.startswith("crm-s, 3 pairs, from random weights; cpu, ")
    assert re.fullmatch(r"step 4/4  coarse \d\.\d{4}  fine \d\.\d{4}  \d+\.\d crops/s  00:00 left", line)


def test_what_is_not_trained_on_is_told(folder, tmp_path, capsys):
    (folder / "alone_im.jpg").write_bytes((folder / "1_im.jpg").read_bytes())
    train(recipe(folder), tmp_path / "run", workers=0, quiet=False)
    assert f"{folder}: not trained on: 1 pictures without a truth\n" in capsys.readouterr().err


def test_a_terminal_has_one_line_that_is_rewritten(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(recipe(folder), tmp_path / "run", workers=0, quiet=False)
    shown = capsys.readouterr().err
    assert "\r" in shown
    assert re.search(r"4/4 .*fine \d\.\d{4}  \d+\.\d crops/s", shown)


def test_nothing_is_told_where_quiet(folder, tmp_path, capsys):
    train(recipe(folder), tmp_path / "run", workers=0)
    assert capsys.readouterr() == ("", "")


def test_a_card_lies_beside_the_weights_and_tells_of_them(folder, tmp_path):
    path = train(recipe(folder, steps=1), tmp_path / "run", workers=0, terms="No commerce.")
    lines = (path.parent / "card.md").read_text().splitlines()
    digest = checkpoint.file_sha256(path)
    assert f"| weights.safetensors | {path.stat().st_size:,} | {digest} |" in lines
    assert "| data | 3 |" in lines
    assert "> No commerce." in lines
    assert not [line for line in lines if str(tmp_path) in line]


def test_heads_learn_a_mirrored_picture_with_its_mirrored_truth(monkeypatch):
    monkeypatch.setattr(networks, "TOLD", 8)
    truth = torch.zeros(8, 8)
    truth[:, :3] = 1  # of no mirror image
    maps = torch.stack((truth, truth.flip(1)))[:, None]
    sides = set()

    class Told(torch.nn.Module):
        """Answers what its map says."""

        def __init__(self) -> None:
            super().__init__()
            self.steepness = torch.nn.Parameter(torch.ones(()))

        def forward(self, fine: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
            sides.update(fine[:, 0, 0, 0].tolist())
            return 20 * self.steepness * (fine - 0.5)

    def noted(logit: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        assert torch.equal((logit > 0).float(), wanted)
        return logit.mean()

    monkeypatch.setattr(networks.F, "binary_cross_entropy_with_logits", noted)
    seen = [networks._Seen((maps,) * 3, truth, (8, 8))] * 6
    assert list(networks._trained(Told(), seen, np.ones(6), 4, np.random.default_rng(0))) == [1, 4]
    assert sides == {0.0, 1.0}


def test_two_trainings_in_one_folder_are_one_too_many(folder, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(FileError, match="another process trains there"):
        train(recipe(folder, steps=1), tmp_path / "run", workers=0)
    assert train(recipe(folder, steps=1), tmp_path / "run", workers=0).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [1],
        lambda state: state | {"step": "x"},
        lambda state: state | {"step": -1},
        lambda state: state | {"recipe": "[" * 100_000},
        lambda state: state | {"network": 5},
        lambda state: state | {"average": {k: v * float("nan") for k, v in state["average"].items()}},
        lambda state: state | {"optimizer": {"state": {}, "param_groups": 3}},
        lambda state: state | {"origin": "[1]"},
    ],
)
def test_a_checkpoint_that_no_run_stored_is_damaged(folder, tmp_path, change):
    path = tmp_path / "run" / "checkpoint.pt"
    train(recipe(folder, steps=1), path.parent, workers=0)
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(WeightsError, match=r"checkpoint\.pt is damaged \(.*\); delete it to begin anew"):
        train(recipe(folder), path.parent, workers=0)


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"[" * 100_000, b'{"step": 1, "gain": 0}\n', b'{"step": 1, "sets": 3}\n']
)
def test_a_damaged_log_of_validations_is_left_out(folder, tmp_path, text):
    run = tmp_path / "run"
    train(recipe(folder, steps=1), run, workers=0)
    (run / "validation.jsonl").write_bytes(text)
    train(recipe(folder, steps=2), run, workers=0)
    assert "Not validated" in (run / "card.md").read_text()


def test_training_learns_whatever_a_program_has_set(folder, tmp_path):
    expected = weights_of(train(recipe(folder, steps=2), tmp_path / "a", workers=0))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = weights_of(train(recipe(folder, steps=2), tmp_path / "b", workers=0))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
