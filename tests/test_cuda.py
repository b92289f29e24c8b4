"""What a CUDA device gives beside the CPU: the same, in the arithmetic of each."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_engine import MODELS, lively_weights

import refine
from refine.training.coarse import network_like
from refine.training.loop import train
from refine.training.recipe import Recipe
from refine.training.scenes import scene

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

POLICIES = {
    "dense": {"decode": "dense"},
    "bbox": {"decode": "bbox"},
    "contour": {"decode": "contour"},
    "strided": {"decode": "strided", "first_pass": "near"},
    "strided everywhere": {"decode": "strided", "first_pass": "everywhere"},
    "tiles": {"decode": "dense", "tile": 256},
}


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """Convolutions in float32, not TF32, so that they can be compared."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def pair():
    image, truth = scene(np.random.default_rng(3), 620, 800)
    return image, network_like(truth, np.random.default_rng(3), cell=6.0)


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory):
    """A model on the CPU and on CUDA, in float32."""
    weights = None
    if request.param != "crm-s":
        weights = lively_weights(request.param, tmp_path_factory.mktemp("weights") / "lively.safetensors")
    return [refine.Refiner(request.param, weights=weights, device=d, dtype="float32") for d in ("cpu", "cuda")]


@pytest.mark.parametrize("policy", POLICIES)
def test_float32_is_the_same_on_both(both, pair, policy):
    cpu, cuda = (refiner.refine(*pair, **POLICIES[policy]) for refiner in both)
    assert cuda.report.device == "cuda"
    difference = np.abs(cpu.probability - cuda.probability)
    # Sums run in another order, and one query more or less may be sure.
    assert difference.mean() < 1e-3
    assert np.mean(cpu.mask != cuda.mask) < 1e-3
    assert np.mean(cuda.mask != (pair[1] > 0.5)) > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_changes_few_pixels(pair, dtype):
    exact = refine.Refiner(device="cpu", dtype="float32").refine(*pair)
    found = refine.Refiner(device="cuda", dtype=dtype).refine(*pair)
    assert np.mean(exact.mask != found.mask) < 2e-3


def test_memory_stays_below_the_plan(pair):
    refiner = refine.Refiner(device="cuda")
    held = torch.cuda.memory_allocated()
    found = refiner.refine(*pair, decode="dense")
    assert 0 < found.report.peak_memory - held <= refiner.plan(pair[1].shape, decode="dense").peak


def test_files_by_windows_equal_the_whole(pair, tmp_path):
    for name, array in (("image", pair[0]), ("mask", (pair[1] * 255).astype(np.uint8))):
        Image.fromarray(array).save(tmp_path / f"{name}.tif")
    refiner = refine.Refiner(device="cuda")
    files = [tmp_path / f"{name}.tif" for name in ("image", "mask", "out")]
    refiner.refine_file(*files)
    whole = refiner.refine(files[0], files[1])
    assert np.mean(np.asarray(Image.open(files[2]), bool) != whole.mask) < 1e-4


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_training_goes_on_where_it_was_stopped(model, dtype, tmp_path):
    for i in range(2):
        image, truth = scene(np.random.default_rng(i), 160, 160)
        Image.fromarray(image).save(tmp_path / f"{i}_im.jpg")
        Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / f"{i}_gt.png")
    recipe = Recipe(
        data=(str(tmp_path),), model=model, steps=24, batch=4, crop=128, window=64, warmup=4, learning_rate=1e-3
    )
    stopped = train(recipe, tmp_path / "run", device="cuda", dtype=dtype, workers=2, stop_at=20)
    assert stopped.exists()
    weights = train(recipe, tmp_path / "run", device="cuda", dtype=dtype, workers=2)
    refined = refine.Refiner(model, weights=weights, device="cuda").refine(image, truth)
    assert refined.probability.shape == truth.shape
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 24]
