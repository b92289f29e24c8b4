import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

import refine
from refine import checkpoint
from refine.errors import FileError, OptionError, WeightsError
from refine.metrics import iou
from refine.models import NETWORKS, PRESETS, build
from refine.models.crm_s import CRMSmall, DenseTrunk, EnsembleDecoder
from refine.training import data
from refine.training.__main__ import read_recipe
from refine.training.coarse import GENERATORS, network_like
from refine.training.data import Crops, find_pairs
from refine.training.loop import Recipe, _moving_average, learning_rate, train
from refine.training.losses import crm_loss, gradient_magnitude
from refine.training.pretrained import load_mobilenet_v2
from refine.training.scenes import scene


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


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 64), (200, 160)])
def test_coarse_masks_have_the_truths_size_and_lie_between_0_and_1(kind, size):
    for truth in (np.zeros(size, bool), np.ones(size, bool), np.random.default_rng(0).random(size) > 0.5):
        mask = GENERATORS[kind](truth, np.random.default_rng(1))
        assert mask.shape == size
        assert mask.dtype == np.float32
        assert 0 <= mask.min() <= mask.max() <= 1


@pytest.mark.parametrize("kind", GENERATORS)
def test_coarse_masks_are_wrong_but_near_the_truth_and_reproducible(kind):
    _, truth = scene(np.random.default_rng(5), 256, 256)
    masks = [GENERATORS[kind](truth, np.random.default_rng(seed)) for seed in range(12)]
    quality = [iou(mask > 0.5, truth) for mask in masks]
    assert 0.4 < np.median(quality) < 0.995
    np.testing.assert_array_equal(masks[3], GENERATORS[kind](truth, np.random.default_rng(3)))


def test_larger_cells_make_coarser_masks():
    _, truth = scene(np.random.default_rng(5), 256, 256)
    mean = [
        np.mean([iou(network_like(truth, np.random.default_rng(s), cell=cell) > 0.5, truth) for s in range(8)])
        for cell in (3.0, 24.0)
    ]
    assert mean[0] > mean[1]


def test_pairs_are_found_with_several_truths(folder):
    (folder / "0_gt.png").rename(folder / "0_gt0.png")
    (folder / "0_gt1.png").write_bytes((folder / "1_gt.png").read_bytes())
    assert [pair.truth.name for pair in find_pairs(folder)] == ["0_gt0.png", "0_gt1.png", "1_gt.png", "2_gt.png"]


def test_a_folder_without_pairs_is_an_error(tmp_path):
    with pytest.raises(FileError, match="holds no pairs"):
        find_pairs(tmp_path)


def test_a_crop_depends_on_its_number_alone(folder):
    def crops() -> Crops:
        return Crops([find_pairs(folder)], [1.0], size=64, seed=3, scenes=0.3)

    forward, other = crops(), crops()
    items = [forward[i] for i in range(6)]
    for i in (4, 0, 5):
        for name, value in other[i].items():
            assert torch.equal(value, items[i][name])
    assert not torch.equal(items[0]["image"], items[1]["image"])
    assert items[0]["image"].shape == (3, 64, 64)
    assert set(items[0]["truth"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("cache", [0, 50_000])
def test_a_crop_does_not_depend_on_what_is_kept(folder, cache):
    wanted, found = (
        Crops([find_pairs(folder)], [1.0], size=64, seed=3, **options) for options in ({}, {"cache": cache})
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
    crops = Crops([find_pairs(folder)], [1.0], size=64, seed=3, cache=600)
    for name in "abacab":
        crops._image(Path(name))
    assert read == ["a", "b", "c", "b"]  # c took the place of b, which had been used before a


def test_the_loss_is_least_for_the_truth():
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:12, 4:12] = 1
    right = crm_loss(40 * (truth - 0.5), truth)
    shifted = crm_loss(40 * (truth.roll(1, 3) - 0.5), truth)
    unsure = crm_loss(torch.zeros_like(truth), truth)
    assert right < 1e-3
    assert unsure > 0.5
    assert shifted > 0.5


def test_the_loss_has_a_finite_gradient_where_nothing_varies():
    logit = torch.zeros(1, 1, 8, 8, requires_grad=True)
    crm_loss(logit, torch.zeros(1, 1, 8, 8)).backward()
    assert logit.grad is not None
    assert logit.grad.isfinite().all()


def test_the_gradient_is_sobels():
    x = np.random.default_rng(0).random((9, 11), np.float32)
    dx, dy = (cv2.Sobel(x, cv2.CV_32F, *order)[1:-1, 1:-1] / 4 for order in ((1, 0), (0, 1)))
    found = gradient_magnitude(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, np.sqrt(dx**2 + dy**2 + 1e-6), atol=1e-5)


def test_the_learning_rate_rises_stays_and_falls():
    r = Recipe(data=(), steps=100, warmup=10, decay=0.2)
    rates = [learning_rate(step, r) for step in range(101)]
    assert rates[0] < rates[5] < rates[9] == rates[80] == 1
    assert 0 == rates[100] < rates[99] < rates[90] < 1


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


def test_pretrained_features_alone_learn_more_slowly(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("refine.training.loop.load_mobilenet_v2", lambda trunk, path: None)
    rates = {}
    for pretrained in ("", "features.npz"):
        path = tmp_path / f"run-{pretrained}" / "checkpoint.pt"
        train(recipe(folder, steps=1, learning_rate=1e-3, pretrained=pretrained), path.parent, workers=0)
        groups = torch.load(path, weights_only=True)["optimizer"]["param_groups"]
        rates[pretrained] = [(len(group["params"]), group["initial_lr"]) for group in groups]
    every, trunk = (len(list(module.parameters())) for module in (CRMSmall(), CRMSmall().trunk))
    assert rates == {
        "": [(every, 1e-3)],
        "features.npz": [(every - trunk, 1e-3), (trunk, pytest.approx(0.3e-3))],
    }


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

    def noted(self: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs.append(x.permute(0, 2, 3, 1).numpy())
        return encode(self, x)

    monkeypatch.setattr(network, "encode", noted)
    train(recipe(folder, model=model, steps=1), tmp_path / "run", workers=0)
    coarse_step, last_step = inputs
    crops = Crops([find_pairs(folder)], [1.0], size=64, seed=0)
    for i in range(2):
        image, mask = (crops[i][name].permute(1, 2, 0).numpy() for name in ("image", "coarse"))
        colours = (image / np.float32(255) - np.float32(cascade.mean)) / np.float32(cascade.std)
        whole = np.concatenate((colours, 2 * mask - 1), axis=2)
        np.testing.assert_allclose(coarse_step[i], halved(whole), atol=1e-5)
        np.testing.assert_allclose(last_step[i, ..., :3], colours, atol=1e-5)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 96, "crop": 64}, "crop is a multiple of 64"),
        ({"crop": 63, "window": 32}, "crop is a multiple of 64"),
        ({"batch": 0}, "batch=0"),
        ({"steps": 0}, "steps=0"),
        ({"shares": (1.0, 2.0)}, "2 shares for 1"),
        ({"model": "crm-x"}, "model='crm-x' is unknown; known are crm-s, crm-r50"),
        ({"trunk": "deep"}, "trunk='deep' is unknown"),
        ({"decoder": "deep"}, "decoder='deep' is unknown"),
        ({"trunk": "dense", "pretrained": "mobilenetv2.npz"}, "trunk='dense' has no pretrained features"),
        ({"model": "crm-r50", "trunk": "dense"}, "trunk='dense' belongs to crm-s; crm-r50 has none"),
        ({"model": "crm-r50", "decoder": "ensemble"}, "decoder='ensemble' belongs to crm-s"),
        ({"model": "crm-r50", "pretrained": "mobilenetv2.npz"}, "pretrained='mobilenetv2.npz' belongs to crm-s"),
    ],
)
def test_an_impossible_recipe_is_refused(folder, change, message):
    with pytest.raises(OptionError, match=message):
        recipe(folder, **change)


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


def test_a_recipe_is_read_from_toml(tmp_path):
    (tmp_path / "recipe.toml").write_text('data = ["a", "b"]\nshares = [1.0, 2.0]\nsteps = 7\n')
    found = read_recipe(tmp_path / "recipe.toml", tmp_path)
    assert found == Recipe(data=(str(tmp_path / "a"), str(tmp_path / "b")), shares=(1.0, 2.0), steps=7)
    (tmp_path / "recipe.toml").write_text('data = ["a"]\nepochs = 7\n')
    with pytest.raises(OptionError, match="epochs"):
        read_recipe(tmp_path / "recipe.toml", tmp_path)


def test_another_value_of_a_field_wins_over_the_recipes(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('data = ["a"]\nsteps = 7\nseed = 3\n')
    found = read_recipe(path, tmp_path, ["steps = 9", 'trunk="dense"', 'data = ["b"]', "steps = 11"])
    assert found == Recipe(data=(str(tmp_path / "b"),), steps=11, seed=3, trunk="dense")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trunk=dense", "'trunk=dense' cannot be read"),
        ("steps", "'steps' cannot be read"),
        ("epochs=7", "unexpected keyword argument 'epochs'"),
        ("steps=0", "steps=0 is not possible"),
    ],
)
def test_a_broken_change_of_a_recipe_is_refused(tmp_path, change, message):
    (tmp_path / "recipe.toml").write_text('data = ["a"]\n')
    with pytest.raises(OptionError, match=message):
        read_recipe(tmp_path / "recipe.toml", tmp_path, ["seed=1", change])


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"absent\.toml' cannot be read"):
        read_recipe(tmp_path / "absent.toml", tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match=r"binary\.toml' cannot be read"):
        read_recipe(tmp_path / "binary.toml", tmp_path)


@pytest.mark.parametrize("name", ["crm-s", "crm-r50-cpu"])
def test_the_recipes_beside_the_weights_can_be_read(name):
    found = read_recipe(Path(__file__).parents[1] / "weights" / f"{name}.toml", Path())
    assert found.model == name.removesuffix("-cpu")
