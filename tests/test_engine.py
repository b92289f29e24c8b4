import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import refine
import refine.metrics
import refine.prepare
from benchmarks import fixtures
from refine import checkpoint
from refine.errors import OptionError, WeightsError
from refine.models import PRESETS, build
from refine.training.coarse import network_like
from refine.training.scenes import scene

needs_fixtures = pytest.mark.skipif(
    fixtures.folder() is None, reason="the parity fixtures are not part of a plain clone"
)
MODELS = ("crm-s", "crm-r50")


def lively_weights(model: str, path: Path) -> Path:
    """A file of random weights whose statistics are not the identity, and whose output is neither 0 nor 1."""
    torch.manual_seed(0)
    network = build(PRESETS[model])
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for key, value in state.items():
        noise = torch.rand(value.shape, generator=generator)
        if key.endswith("running_var"):
            value.copy_(0.5 + noise)
        elif key in ("decoder.last.weight", "imnet.layers.8.weight"):
            value.copy_((4 if model == "crm-s" else 60) * (noise - 0.5))
        elif value.dim() == 1 and value.is_floating_point():
            gain = 0.2 if ".bn3." in key or "downsample" in key else 1
            value.copy_((noise - 0.5) * 0.2 + (gain if key.endswith("weight") else 0))
    checkpoint.save(path, state, spec=PRESETS[model].as_dict())
    return path


@pytest.fixture(scope="module", params=MODELS)
def refiner(request, tmp_path_factory) -> refine.Refiner:
    path = lively_weights(request.param, tmp_path_factory.mktemp("weights") / "lively.safetensors")
    return refine.Refiner(request.param, weights=path, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def shipped() -> refine.Refiner:
    """The default model with the weights that ship."""
    return refine.Refiner(device="cpu", dtype="float32")


def scenes() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pictures, truths and coarse masks."""
    for seed in range(4):
        image, truth = scene(np.random.default_rng(seed), 256, 320)
        yield image, truth, network_like(truth, np.random.default_rng(seed), cell=6.0)


def pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    mask = (y - height / 2) ** 2 / height**2 + (x - width / 2) ** 2 / width**2 < 0.1
    return image, mask


def difference(a: refine.Refined, b: refine.Refined) -> float:
    return float(np.abs(a.probability - b.probability).max())


@needs_fixtures
@pytest.mark.parametrize("name", fixtures.PARITY_FILES)
def test_crm_r50_gives_the_published_outputs_at_every_scale(name, tmp_path):
    weights = tmp_path / "published.pth"
    state = fixtures.filled(fixtures.checkpoint_shapes())
    torch.save({f"module.{key}": value for key, value in state.items()}, weights)
    case = fixtures.parity(name)
    refiner = refine.Refiner("crm-r50", weights=weights, device="cpu", dtype="float32")
    refined = refiner.refine(case.image, case.mask, keep_scales=True)
    assert set(refined.scales) == set(case.probabilities)
    for scale, published in case.probabilities.items():
        assert np.abs(refined.scales[scale] - published).max() <= 1e-4, scale
    # Left to decode only what the next scale reads (identity g), the outcome is the same.
    assert difference(refiner.refine(case.image, case.mask), refined) <= 1e-5


@pytest.mark.parametrize("size", [(9, 901), (803, 8)])
def test_tiled_is_untiled(refiner, size):
    image, mask = pair(*size)
    whole = refiner.refine(image, mask, tile=4096, patch=4096)
    tiled = refiner.refine(image, mask, tile=256, patch=48)
    assert whole.probability.std() > 0.01
    assert difference(whole, tiled) <= 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (2, 3), (33, 31), (129, 65)])
def test_every_size_is_refined_and_comes_back(refiner, size):
    image, _ = pair(*size)
    refined = refiner.refine(image, np.ones(size, bool))
    assert refined.mask.shape == refined.probability.shape == size
    assert refined.mask.dtype == bool
    assert refined.probability.dtype == np.float32
    assert 0 <= refined.probability.min() <= refined.probability.max() <= 1
    np.testing.assert_array_equal(refined.mask, refined.probability > 0.5)


@pytest.mark.parametrize("size", [(1, 1), (40, 50)])
def test_an_empty_mask_is_returned_with_a_warning(refiner, size):
    image, _ = pair(*size)
    refined = refiner.refine(image, np.zeros(size, bool))
    assert not refined.mask.any()
    assert "background" in refined.report.warnings[0]
    assert refined.report.scales == ()


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (33, 31), (129, 300)])
def test_an_all_foreground_mask_stays_so(shipped, size):
    image = np.full((*size, 3), 90, np.uint8)
    assert shipped.refine(image, np.ones(size, bool)).mask.all()


def test_a_small_object_survives_all_scales(shipped):
    image = np.full((1000, 1200, 3), 60, np.uint8)
    mask = np.zeros((1000, 1200), bool)
    mask[500:512, 600:612] = True
    image[mask] = 220
    refined = shipped.refine(image, mask)
    assert refine.metrics.iou(refined.mask, mask) > 0.5


def test_a_mirrored_picture_gives_nearly_the_mirrored_mask(shipped):
    # Not quite: strided convolutions of the pretrained trunk lean to one side.
    agreement = []
    for image, _, coarse in scenes():
        one = shipped.refine(image, coarse).mask
        other = shipped.refine(image[:, ::-1], coarse[:, ::-1]).mask[:, ::-1]
        agreement.append(refine.metrics.iou(one, other))
    assert np.mean(agreement) > 0.94


def test_refining_comes_nearer_to_the_truth(shipped):
    gains = []
    for image, truth, coarse in scenes():
        refined = shipped.refine(image, coarse).mask
        gains.append(refine.metrics.iou(refined, truth) - refine.metrics.iou(coarse > 0.5, truth))
    assert min(gains) > 0
    assert np.mean(gains) > 0.02


def test_a_perfect_mask_stays_nearly_so(shipped):
    image, truth = scene(np.random.default_rng(3), 256, 320)
    assert refine.metrics.iou(shipped.refine(image, truth).mask, truth) > 0.97


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_the_quality(shipped, dtype):
    half = refine.Refiner(device="cpu", dtype=dtype)
    for image, truth, coarse in scenes():
        masks = [refiner.refine(image, coarse).mask for refiner in (shipped, half)]
        assert refine.metrics.iou(*masks) > 0.99
        ious = [refine.metrics.iou(mask, truth) for mask in masks]
        assert abs(ious[0] - ious[1]) < 0.004


def test_the_real_photograph_is_refined(shared):
    folder = shared / "data" / "demo"
    refined = refine.run(folder / "aeroplane_im.jpg", folder / "aeroplane_seg.png", device="cpu")
    coarse = refine.prepare.as_mask(folder / "aeroplane_seg.png", (2328, 3492)) > 0.5
    assert refined.mask.shape == (2328, 3492)
    assert [s.scale for s in refined.report.scales] == [0.125, 0.25, 0.5, 1.0]
    assert 0.8 < refine.metrics.iou(refined.mask, coarse) < 0.999


def test_the_report_says_what_ran(refiner):
    image, mask = pair(60, 240)
    report = refiner.refine(image, mask).report
    assert report.model == refiner.spec.model
    assert (report.device, report.dtype, report.size) == ("cpu", "float32", (60, 240))
    assert len(report.weights) == 64
    assert [s.scale for s in report.scales] == list(refiner.spec.cascade.at(60, 240))
    assert report.scales[-1].pixels_decoded >= 60 * 240
    assert report.seconds >= sum(s.encode_seconds + s.decode_seconds for s in report.scales) * 0.9
    assert report.peak_memory > 100e6  # torch alone takes more
    assert json.loads(json.dumps(report.as_dict()))["options"]["decode"] == "dense"


def test_identity_g_decodes_a_quarter_at_the_first_scale(tmp_path):
    refiner = refine.Refiner("crm-r50", weights=lively_weights("crm-r50", tmp_path / "w.safetensors"), dtype="float32")
    image, mask = pair(64, 64)
    first, second, *_ = refiner.refine(image, mask).report.scales
    assert first.pixels_decoded == (2 * 32 - 1) ** 2  # two of 128 px for each of 32 samples; the last pixel is one
    assert second.pixels_decoded == (2 * 64 - 1) ** 2


@pytest.mark.parametrize("coarse_decode", ["full", "next"])
def test_decoding_at_the_next_scales_samples_changes_little_and_costs_less(refiner, coarse_decode):
    image, mask = pair(24, 920)
    refined = refiner.refine(image, mask, coarse_decode=coarse_decode)
    other = refiner.refine(image, mask, coarse_decode="next" if coarse_decode == "full" else "full")
    decoded = [sum(s.pixels_decoded for s in r.report.scales) for r in (refined, other)]
    assert (decoded[0] > decoded[1]) == (coarse_decode == "full")
    assert refined.report.options["coarse_decode"] == coarse_decode
    assert np.mean(refined.mask == other.mask) > 0.8


def test_kept_scales_have_the_pictures_size_and_end_with_the_result(refiner):
    image, mask = pair(40, 460)
    refined = refiner.refine(image, mask, keep_scales=True)
    assert list(refined.scales) == list(refiner.spec.cascade.at(40, 460))
    assert all(p.shape == (40, 460) for p in refined.scales.values())
    np.testing.assert_array_equal(refined.scales[1.0], refined.probability)
    assert difference(refined, refiner.refine(image, mask)) <= 1e-6


def test_a_smaller_mask_is_refined_as_the_same_mask_enlarged(refiner):
    image, mask = pair(60, 90)
    small = mask[::2, ::2]
    enlarged = refine.prepare.as_mask(small, (60, 90))
    assert difference(refiner.refine(image, small), refiner.refine(image, enlarged)) == 0


def test_paths_pil_images_and_arrays_are_the_same_input(refiner, tmp_path):
    image, mask = pair(60, 80)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    expected = refiner.refine(image, mask)
    assert difference(expected, refiner.refine(tmp_path / "image.png", str(tmp_path / "mask.png"))) == 0
    assert difference(expected, refiner.refine(Image.fromarray(image), Image.fromarray(mask))) == 0


def test_inputs_are_never_written(refiner):
    image, mask = pair(60, 80)
    soft = mask.astype(np.float32)
    before = image.copy(), soft.copy()
    image.flags.writeable = soft.flags.writeable = False
    refiner.refine(image, soft)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(soft, before[1])


def test_two_threads_refine_at_once_as_one_does(refiner):
    inputs = [pair(50, 80, seed) for seed in range(4)]
    expected = [refiner.refine(*each) for each in inputs]
    found: dict[int, refine.Refined] = {}

    def work(numbers: tuple[int, ...]) -> None:
        for number in numbers:
            found[number] = refiner.refine(*inputs[number])

    threads = [threading.Thread(target=work, args=(numbers,)) for numbers in ((0, 1), (2, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(difference(found[i], expected[i]) <= 1e-6 for i in range(4))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(refiner, tmp_path, dtype):
    path = lively_weights(refiner.spec.model, tmp_path / "w.safetensors")
    half = refine.Refiner(refiner.spec.model, weights=path, device="cpu", dtype=dtype)
    image, mask = pair(96, 160)
    a, b = refiner.refine(image, mask), half.refine(image, mask)
    assert b.report.dtype == dtype
    assert np.abs(a.probability - b.probability).mean() < 0.03


def test_run_keeps_its_refiner(tmp_path, monkeypatch):
    loaded = []
    original = refine.engine.load_network
    monkeypatch.setattr(refine.engine, "load_network", lambda *given: loaded.append(given) or original(*given))
    path = lively_weights("crm-s", tmp_path / "w.safetensors")
    image, mask = pair(40, 50)
    first = refine.run(image, mask, weights=path, device="cpu", dtype="float32")
    again = refine.run(image, mask, weights=path, device="cpu", dtype="float32", tile=64)
    assert len(loaded) == 1
    assert difference(first, again) <= 1e-5
    refine.run(image, mask, weights=path, device="cpu", dtype="bfloat16")
    assert len(loaded) == 2


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"model": "crm-x"}, "crm-s, crm-r50"),
        ({"device": "tpu"}, "auto, cpu"),
        ({"device": "cuda:99"}, "auto, cpu"),
        ({"dtype": "int8"}, "float32, bfloat16, float16"),
        ({"decode": "sparse"}, "dense"),
        ({"coarse_decode": "half"}, "full, next"),
        ({"tile": 3}, "at least 32"),
        ({"tiles": 256}, "decode, coarse_decode, tile, patch"),
    ],
)
def test_an_unknown_option_lists_the_known_ones(options, known):
    with pytest.raises(OptionError, match=known):
        refine.Refiner(**options)


def test_an_unknown_option_of_a_call_lists_the_known_ones(refiner):
    image, mask = pair(40, 50)
    with pytest.raises(OptionError, match="the options are decode"):
        refiner.refine(image, mask, strde=4)


def test_weights_of_another_model_are_refused(tmp_path):
    path = lively_weights("crm-s", tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="pass model='crm-s'"):
        refine.Refiner("crm-r50", weights=path)


def test_a_model_without_shipped_weights_says_how_to_give_some():
    with pytest.raises(WeightsError, match="weights="):
        refine.Refiner("crm-r50")
