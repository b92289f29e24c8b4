import copy
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import refine
import refine.metrics
import refine.prepare
from benchmarks import fixtures
from refine import checkpoint
from refine.config import Cascade, Options
from refine.embedding import Embedding
from refine.engine import _Told
from refine.errors import OptionError, WeightsError
from refine.frame import Frame, View
from refine.models import PRESETS, build
from refine.planes import Held, Plane
from refine.regions import bounding_boxes, select
from refine.result import ScaleReport
from refine.tiles import Window
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
            value.copy_((60 if model == "crm-r50" else 4) * (noise - 0.5))
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


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("policy", [{"decode": "dense"}, {"decode": "contour", "first_pass": "everywhere"}])
def test_what_a_scale_left_empty_stays_empty(refiner, monkeypatch, keep, policy):
    """As published: p is 0 at every scale whose mask is empty."""
    image, mask = scene(np.random.default_rng(1), 300, 800)
    asked, decode = [], refine.Refiner._decode

    def nothing_at_first(self, view, *more):
        asked.append(view.size)
        if view.size == asked[0]:
            *_, out, _ = more
            out[...] = 0
        else:
            decode(self, view, *more)

    monkeypatch.setattr(refine.Refiner, "_decode", nothing_at_first)
    found = refiner.refine(image, mask, keep_scales=keep, guard=False, **policy)
    assert set(asked) == {asked[0]}
    assert len(found.report.scales) == 1
    assert not found.probability.any()
    assert any("nothing of the mask was left" in warning for warning in found.report.warnings)
    if keep:
        assert len(found.scales) > 1
        assert not any(p.any() for p in found.scales.values())


@pytest.mark.parametrize("policy", [{"decode": "dense"}, {"decode": "contour", "first_pass": "everywhere"}])
def test_with_the_guard_the_coarse_mask_comes_back_where_a_scale_leaves_nothing(refiner, monkeypatch, policy):
    image, mask = scene(np.random.default_rng(1), 300, 800)

    def nothing(self, view, *more):
        *_, out, _ = more
        out[...] = 0

    monkeypatch.setattr(refine.Refiner, "_decode", nothing)
    monkeypatch.setattr("refine.guard.Guard.unseen", lambda *given: 0)
    found = refiner.refine(image, mask, guard=True, **policy)
    np.testing.assert_array_equal(found.mask, mask)
    assert any("given back as" in warning for warning in found.report.warnings)


def test_the_guard_reads_evenly_spread_queries(refiner):
    frame = Frame(*(Held(plane) for plane in pair(64, 90)), refiner.spec.cascade, refiner.device)
    for guard, keep in ((True, False), (False, True), (True, True)):
        options = refiner._chosen({"decode": "dense", "coarse_decode": "full", "guard": guard, "keep_scales": keep})
        grid = refiner._grid(frame, frame.scaled(1 / 8), frame.scaled(1 / 4), options)
        assert grid.shape == frame.size
        assert grid.samples is None


@pytest.mark.parametrize("size", [(1, 1), (40, 50)])
def test_an_empty_mask_is_returned_with_a_warning(refiner, size):
    image, _ = pair(*size)
    refined = refiner.refine(image, np.zeros(size, bool))
    assert not refined.mask.any()
    assert "background" in refined.report.warnings[0]
    assert refined.report.scales == ()


def test_the_scales_of_an_empty_mask_are_kept_as_well(shipped):
    refined = shipped.refine(np.full((500, 800, 3), 90, np.uint8), np.zeros((500, 800), bool), keep_scales=True)
    assert list(refined.scales) == list(shipped.spec.cascade.at(500, 800))
    assert not any(p.any() for p in refined.scales.values())


@pytest.mark.parametrize(("highest", "told"), [(0.49, 1), (0.55, 0)])
def test_a_soft_mask_of_which_nothing_is_the_object_is_told(shipped, highest, told):
    image, mask = pair(150, 201)
    warnings = shipped.refine(image, highest * mask.astype(np.float32)).report.warnings
    assert sum("nothing of the coarse mask is above 0.5" in text for text in warnings) == told


def test_numbers_of_any_numpy_type_are_options(refiner):
    image, mask = pair(150, 170)
    given, plain = ({"decode": "strided", "stride": kind(4), "tile": kind(96)} for kind in (np.uint8, int))
    np.testing.assert_array_equal(refiner.refine(image, mask, **given), refiner.refine(image, mask, **plain))
    assert json.dumps(refiner.plan((150, 170), **given).as_dict())


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


@pytest.mark.parametrize(("guard", "least"), [(False, 0.02), (True, 0.01)])  # which gives back what is narrow
def test_refining_comes_nearer_to_the_truth(shipped, guard, least):
    gains = []
    for image, truth, coarse in scenes():
        refined = shipped.refine(image, coarse, guard=guard).mask
        gains.append(refine.metrics.iou(refined, truth) - refine.metrics.iou(coarse > 0.5, truth))
    assert min(gains) > 0
    assert np.mean(gains) > least


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
    assert report.scales[-1].pixels_decoded + report.scales[-1].pixels_kept >= 60 * 240
    assert report.seconds >= sum(s.encode_seconds + s.decode_seconds for s in report.scales) * 0.9
    assert report.peak_memory > 100e6  # torch alone takes more
    assert json.loads(json.dumps(report.as_dict()))["options"]["decode"] == refiner.spec.cascade.decode


def test_identity_g_decodes_a_quarter_at_the_first_scale(tmp_path):
    refiner = refine.Refiner("crm-r50", weights=lively_weights("crm-r50", tmp_path / "w.safetensors"), dtype="float32")
    image, mask = pair(64, 64)
    first, second, *_ = refiner.refine(image, mask).report.scales
    assert first.pixels_decoded == (2 * 32 - 1) ** 2  # two of 128 px for each of 32 samples; the last pixel is one
    assert second.pixels_decoded == (2 * 64 - 1) ** 2


@pytest.mark.parametrize("coarse_decode", ["full", "next"])
def test_decoding_at_the_next_scales_samples_changes_little_and_costs_less(refiner, coarse_decode):
    image, mask = pair(24, 1480)
    refined = refiner.refine(image, mask, coarse_decode=coarse_decode, guard=False)
    other = refiner.refine(image, mask, coarse_decode="next" if coarse_decode == "full" else "full", guard=False)
    decoded = [sum(s.pixels_decoded for s in r.report.scales) for r in (refined, other)]
    assert (decoded[0] > decoded[1]) == (coarse_decode == "full")
    assert refined.report.options["coarse_decode"] == coarse_decode
    assert np.mean(refined.mask == other.mask) > 0.8


def test_kept_scales_have_the_pictures_size_and_end_with_the_result(refiner):
    image, mask = pair(40, 620)
    refined = refiner.refine(image, mask, keep_scales=True)
    assert list(refined.scales) == list(refiner.spec.cascade.at(40, 620))
    assert all(p.shape == (40, 620) for p in refined.scales.values())
    np.testing.assert_array_equal(list(refined.scales.values())[-1], refined.probability)
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


POLICIES = {
    "bbox": {"decode": "bbox", "padding": 5},
    "contour": {"decode": "contour", "band": 6},
    "strided near": {"decode": "strided", "stride": 4, "band": 6},
    "strided everywhere": {"decode": "strided", "stride": 3, "first_pass": "everywhere"},
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def several(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of noise and a soft mask with several objects, one of them at a corner."""
    image, _ = pair(height, width)
    mask = np.zeros((height, width), np.float32)
    mask[: height // 3, : width // 4] = 1
    mask[height // 2 : -height // 5, width // 2 : -width // 3] = 1
    mask[2 * height // 3 :, width // 8 : width // 5] = 1
    return image, ndimage.uniform_filter(mask, 3)


def whole(plane: Plane) -> np.ndarray:
    return plane.read(Window(0, plane.size[0], 0, plane.size[1]))


class Scale:
    """One scale of a cascade, by any policy from the same probabilities before.

    coarse_decode: where its queries lie; "next" has the probabilities before at the scale's own samples.
    """

    def __init__(
        self,
        refiner: refine.Refiner,
        image: np.ndarray,
        mask: np.ndarray,
        scale: float,
        coarse_decode: str,
        embedding: Embedding | None = None,
    ) -> None:
        given = refine.prepare.prepare(image, mask)
        self.refiner, self.scale = refiner, scale
        planes = Held(given.image), Held(given.mask)
        self.frame = Frame(*planes, refiner.spec.cascade, refiner.device, embedding=embedding)
        size, following = self.frame.scaled(scale), None if scale == 1 else self.frame.scaled(2 * scale)
        self.current: Plane = self.frame.mask
        if coarse_decode == "next":
            self.current = Held(whole(self.frame.resized(self.current, size)))
        chosen = refiner._chosen({"decode": "dense", "coarse_decode": coarse_decode, "keep_scales": True})
        self.grid = refiner._grid(self.frame, size, following, chosen)
        self.before = whole(View.of(self.frame, size, self.current, self.grid.rows, self.grid.columns).before)
        self.dense, self.of_dense = self.by(decode="dense")

    def by(self, *, tile: int = 4096, **policy: object) -> tuple[np.ndarray, ScaleReport]:
        """Probabilities by a policy, and the report."""
        chosen, size = self.refiner._chosen(policy), self.frame.scaled(self.scale)
        arguments = (self.frame, 1, self.scale, size, self.current, chosen, tile, _Told(None, 1), self.grid)
        with torch.inference_mode():
            p, report = self.refiner._scale(*arguments)
        return whole(p), report


@pytest.fixture(
    scope="module",
    params=[
        ("crm-s", 1 / 2, "full"),
        ("crm-s", 1 / 2, "next"),
        ("crm-s", 1, "full"),
        ("crm-r50", 1 / 2, "next"),
        ("crm-r50", 1, "full"),
    ],
    ids=str,
)
def one_scale(request, shipped, tmp_path_factory) -> Scale:
    """Of crm-s with the weights that ship on a generated scene, of crm-r50 with lively ones on noise."""
    model, scale, coarse_decode = request.param
    if model == "crm-s":
        image, truth = scene(np.random.default_rng(3), 61, 180)
        return Scale(shipped, image, network_like(truth, np.random.default_rng(3), cell=4.0), scale, coarse_decode)
    path = lively_weights(model, tmp_path_factory.mktemp("scale") / "lively.safetensors")
    refiner = refine.Refiner(model, weights=path, device="cpu", dtype="float32")
    return Scale(refiner, *several(19, 60), scale, coarse_decode)


@every_policy
def test_a_decoded_pixel_has_the_value_that_dense_gives_it_and_the_others_keep_theirs(one_scale, policy):
    options, before, expected = Options().but(**policy), one_scale.before, one_scale.dense
    boxes = bounding_boxes(before > 0.5, options.padding) if options.decode == "bbox" else None
    selection = select(before, options, first=False, boxes=boxes)
    decoded = selection.points | selection.rest(selection.points & selection.changed(before, expected))
    assert 0 < decoded.mean() < 1
    p, report = one_scale.by(**policy)
    assert np.abs(p - expected)[decoded].max() <= 1e-5
    np.testing.assert_array_equal(p[~decoded], before[~decoded])
    assert report.pixels_decoded == decoded.sum()
    assert report.pixels_kept == (~decoded).sum()
    assert 0 < report.encoded <= 1


def test_dense_decodes_every_pixel_and_says_so(one_scale):
    assert one_scale.dense.shape == one_scale.grid.shape
    assert one_scale.dense.std() > 0.01
    assert one_scale.of_dense.pixels_decoded == one_scale.dense.size
    assert one_scale.of_dense.pixels_kept == 0
    assert one_scale.of_dense.encoded == 1


@every_policy
@pytest.mark.parametrize("one_scale", [("crm-s", 1, "full"), ("crm-r50", 1, "full")], indirect=True, ids=str)
def test_what_a_scale_gives_does_not_depend_on_the_tiles(one_scale, policy):
    p, _ = one_scale.by(**policy)
    for tile in (64, 96):
        tiled, _ = one_scale.by(tile=tile, **policy)
        np.testing.assert_allclose(tiled, p, rtol=0, atol=1e-5)


def test_a_strided_pass_of_every_pixel_is_dense(one_scale):
    p, report = one_scale.by(decode="strided", stride=1, first_pass="everywhere")
    np.testing.assert_allclose(p, one_scale.dense, rtol=0, atol=1e-5)
    assert report.pixels_kept == 0


def test_a_strided_cascade_of_every_pixel_is_dense(refiner):
    image, mask = several(20, 620) if refiner.spec.model == "crm-s" else several(9, 20)
    assert len(refiner.spec.cascade.at(*mask.shape)) > 1
    refined = refiner.refine(image, mask, decode="strided", stride=1, first_pass="everywhere")
    assert difference(refined, refiner.refine(image, mask, decode="dense", tile=96)) <= 1e-5
    assert all(step.pixels_kept == 0 for step in refined.report.scales)


@every_policy
@pytest.mark.parametrize("tile", [64, 96])
def test_a_policys_result_does_not_depend_on_the_tiles(shipped, policy, tile):
    image, mask = several(90, 620)
    untiled = shipped.refine(image, mask, tile=4096, **policy)
    assert len(untiled.report.scales) == 2
    assert difference(shipped.refine(image, mask, tile=tile, patch=32, **policy), untiled) <= 1e-5


@every_policy
@pytest.mark.parametrize("size", [(1, 1), (1, 470), (33, 31)])
def test_every_size_is_refined_by_every_policy(shipped, policy, size):
    image, _ = pair(*size)
    mask = np.zeros(size, bool)
    mask[: (size[0] + 1) // 2, : (size[1] + 1) // 2] = True
    refined = shipped.refine(image, mask, **policy)
    assert refined.mask.shape == size
    assert 0 <= refined.probability.min() <= refined.probability.max() <= 1
    assert all(step.pixels_decoded >= 0 and step.pixels_kept >= 0 for step in refined.report.scales)


@every_policy
def test_a_perfect_mask_of_a_larger_scene_is_kept_as_well_as_by_dense(shipped, policy):
    image, truth = scene(np.random.default_rng(3), 420, 640)
    refined, dense = shipped.refine(image, truth, **policy), shipped.refine(image, truth, decode="dense")
    assert len(refined.report.scales) == 2
    assert refine.metrics.iou(refined.mask, truth) > refine.metrics.iou(dense.mask, truth) - 0.005


@pytest.fixture(scope="module")
def two_scenes(shipped) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Pictures, truths, coarse masks, and the gain in IoU when every pixel is decoded."""
    found = []
    for image, truth, coarse in islice(scenes(), 2):
        gain = refine.metrics.iou(shipped.refine(image, coarse, decode="dense").mask, truth)
        found.append((image, truth, coarse, gain - refine.metrics.iou(coarse > 0.5, truth)))
    return found


@every_policy
def test_a_policy_comes_nearly_as_near_to_the_truth_as_dense(shipped, two_scenes, policy):
    for image, truth, coarse, of_dense in two_scenes:
        refined = shipped.refine(image, coarse, **policy)
        assert refine.metrics.iou(refined.mask, truth) - refine.metrics.iou(coarse > 0.5, truth) > 0.4 * of_dense
        assert refined.report.scales[-1].pixels_kept > 0


@pytest.mark.parametrize("policy", [POLICIES["bbox"], POLICIES["contour"]], ids=["bbox", "contour"])
def test_of_a_mirrored_picture_as_many_pixels_are_decoded(shipped, policy):
    image, mask = several(60, 81)
    (one,) = shipped.refine(image, mask, **policy).report.scales
    (other,) = shipped.refine(image[:, ::-1], mask[:, ::-1], **policy).report.scales
    assert 0 < one.pixels_decoded == other.pixels_decoded < mask.size


def test_far_from_the_contour_the_coarse_mask_is_kept_and_nothing_encoded(shipped):
    image, _ = pair(300, 440)
    mask = np.zeros((300, 440), np.float32)
    mask[20:60, 20:60] = 0.9
    refined = shipped.refine(image, mask, decode="contour", band=5)
    near = np.zeros(mask.shape, bool)
    near[15:65, 15:65] = True
    near[25:55, 25:55] = False
    np.testing.assert_array_equal(refined.probability[~near], mask[~near])
    (step,) = refined.report.scales
    assert step.pixels_decoded == near.sum()
    assert step.encoded < 0.1


def test_of_a_mask_without_a_contour_no_pixel_is_decoded(shipped):
    image, _ = pair(40, 620)
    refined = shipped.refine(image, np.ones((40, 620), bool), decode="contour")
    assert refined.probability.min() == 1
    assert all((step.pixels_decoded, step.encoded) == (0, 0) for step in refined.report.scales)


def test_at_the_first_scale_a_strided_pass_looks_everywhere(shipped):
    image, _ = pair(41, 83)
    (step,) = shipped.refine(image, np.ones((41, 83), bool), decode="strided", stride=4).report.scales
    assert step.pixels_decoded >= 11 * 22  # every fourth row and column, the last ones too


@every_policy
def test_the_kept_scales_of_a_policy_end_with_its_result(shipped, policy):
    image, mask = several(90, 620)
    refined = shipped.refine(image, mask, keep_scales=True, **policy)
    assert list(refined.scales) == [0.75, 1.5]  # it is seen enlarged
    assert all(p.shape == mask.shape for p in refined.scales.values())
    np.testing.assert_array_equal(refined.scales[1.5], refined.probability)
    assert difference(refined, shipped.refine(image, mask, **policy)) <= 1e-6


def test_two_threads_decode_regions_at_once_as_one_does(refiner):
    size, policy = (24, 620) if refiner.spec.model == "crm-s" else (5, 20), POLICIES["strided near"]
    inputs = [pair(*size, seed) for seed in range(2)]
    expected = [refiner.refine(*each, **policy) for each in inputs]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda each: refiner.refine(*each, **policy), inputs))
    assert all(difference(a, b) <= 1e-6 for a, b in zip(found, expected, strict=True))


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
        ({"stride": 0}, "stride=0 is not possible; give a whole number of at least 1"),
        ({"band": 0}, "band=0 is not possible; give a whole number of at least 1"),
        ({"guard": "yes"}, "guard=.yes. is not possible; give True or False"),
        ({"lean": 7}, "lean=7 is not possible; give a number from -6 to 6"),
        ({"lean": True}, "lean=True is not possible"),
        ({"passes": 0}, "passes=0 is not possible; give a whole number of at least 1"),
        ({"passes": 1.5}, "passes=1.5 is not possible"),
        ({"padding": -1}, "padding=-1 is not possible; give a whole number of at least 0"),
        ({"first_pass": "none"}, "known are near, everywhere"),
        (
            {"tiles": 256},
            "the options are decode, stride, first_pass, band, padding, coarse_decode, guard, lean, passes,",
        ),
    ],
)
def test_an_unknown_option_lists_the_known_ones(options, known):
    with pytest.raises(OptionError, match=known):
        refine.Refiner(**options)


def test_the_last_scale_alone_leans_and_by_as_much_as_asked(refiner):
    image, mask = pair(150, 201)
    even, fuller = (
        refiner.refine(image, mask, lean=lean, decode="dense", guard=False, keep_scales=True) for lean in (0, 1.5)
    )
    *before, _ = even.scales
    for scale in before:
        np.testing.assert_array_equal(even.scales[scale], fuller.scales[scale])
    p = even.probability.astype(np.float64)
    np.testing.assert_allclose(fuller.probability, p / (p + (1 - p) * np.exp(-1.5)), atol=1e-4)
    assert (fuller.probability > even.probability + 0.01).any()


def test_how_much_a_model_leans_is_its_specifications(shipped):
    image, mask = pair(150, 201)
    chosen = shipped.refine(image, mask)
    assert chosen.report.options["lean"] == shipped.spec.cascade.lean == 0
    leaning = copy.copy(shipped)
    leaning.spec = replace(shipped.spec, cascade=replace(shipped.spec.cascade, lean=2.0))
    asked = shipped.refine(image, mask, lean=2.0)
    np.testing.assert_array_equal(leaning.refine(image, mask).probability, asked.probability)
    assert chosen.mask.sum() < asked.mask.sum()


@pytest.mark.parametrize("model", MODELS)
def test_what_ships_does_not_lean_and_is_guarded(model):
    cascade = refine.Refiner(model, device="cpu").spec.cascade
    assert (cascade.lean, cascade.lean_fades, cascade.guard) == (0, (0, 0), True)


@pytest.mark.parametrize(
    ("fades", "size", "expected"),
    [
        ((0, 0), (6000, 4000), 2.0),
        ((600, 800), (400, 600), 2.0),
        ((600, 800), (650, 300), 1.5),
        ((600, 800), (10, 700), 1.0),
        ((600, 800), (800, 800), 0.0),
        ((600, 800), (4000, 6000), 0.0),
        ((600, 600), (600, 1), 0.0),
        ((600, 600), (599, 1), 2.0),
    ],
)
def test_a_pictures_longer_side_says_how_much_of_the_lean_counts(fades, size, expected):
    assert Cascade(lean=2.0, lean_fades=fades).leaning(*size) == expected


def test_a_picture_is_refined_at_even_odds_unless_it_is_told_to_lean(shipped):
    image, mask = pair(120, 800)
    default, even, asked = (shipped.refine(image, mask, lean=lean) for lean in (None, 0.0, 0.5))
    assert [refined.report.options["lean"] for refined in (default, even, asked)] == [0.0, 0.0, 0.5]
    np.testing.assert_array_equal(default.probability, even.probability)
    assert difference(default, asked) > 1e-3


def test_a_second_pass_refines_what_the_first_one_left(shipped):
    image, mask = scene(np.random.default_rng(1), 80, 1240)  # so large that it is not seen enlarged
    whole = {"decode": "dense", "coarse_decode": "full", "guard": False}
    once, twice = (shipped.refine(image, mask, passes=n, lean=0, **whole) for n in (1, 2))
    assert [s.scale for s in twice.report.scales] == [*(s.scale for s in once.report.scales), 1.0]
    alone = copy.copy(shipped)
    alone.spec = replace(shipped.spec, cascade=replace(shipped.spec.cascade, scales=(1.0,)))
    again = alone.refine(image, once.probability, lean=0.5, passes=1, **whole)
    leaning = shipped.refine(image, mask, passes=2, lean=0.5, **whole)  # at the end alone
    np.testing.assert_allclose(leaning.probability, again.probability, atol=1e-5)
    assert difference(once, twice) > 1e-3


def test_how_many_passes_there_are_is_the_specifications(shipped):
    image, mask = pair(150, 201)
    chosen, passes = shipped.refine(image, mask), shipped.spec.cascade.passes
    assert chosen.report.options["passes"] == passes
    assert len(chosen.report.scales) == len(shipped.refine(image, mask, passes=passes + 1).report.scales) - 1


def test_an_unknown_option_of_a_call_lists_the_known_ones(refiner):
    image, mask = pair(40, 50)
    with pytest.raises(OptionError, match="the options are decode"):
        refiner.refine(image, mask, strde=4)


def test_weights_of_another_model_are_refused(tmp_path):
    path = lively_weights("crm-s", tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="give model='crm-s', --model crm-s"):
        refine.Refiner("crm-r50", weights=path)


def test_a_model_without_shipped_weights_says_how_to_give_some():
    with pytest.raises(WeightsError, match="weights="):
        refine.Refiner("crm-r50+v2.1")
