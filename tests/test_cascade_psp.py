import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import disc, photographed
from PIL import Image
from torchvision.models.resnet import resnet50

import refine
from refine import checkpoint
from refine.errors import OptionError, WeightsError
from refine.loading import load_cascade_psp
from refine.methods import MethodRefiner
from refine.models.cascade_psp import CascadePSP

# What the published file holds beside a ResNet-50 with six input channels.
HEADS = {
    **{f"psp.stages.{i}.1.weight": (2048, 2048, 1, 1) for i in range(4)},
    "psp.bottleneck.weight": (1024, 10240, 1, 1),
    "psp.bottleneck.bias": (1024,),
    "final_28.0.weight": (32, 1024, 1, 1),
    "final_28.0.bias": (32,),
    "final_28.2.weight": (1, 32, 1, 1),
    "final_28.2.bias": (1,),
    "final_56.0.weight": (32, 512, 1, 1),
    "final_56.0.bias": (32,),
    "final_56.2.weight": (1, 32, 1, 1),
    "final_56.2.bias": (1,),
    "final_11.weight": (32, 35, 1, 1),
    "final_11.bias": (32,),
    "final_21.weight": (1, 32, 1, 1),
    "final_21.bias": (1,),
}
UPS = {"up_1": (1024, 1280, 512), "up_2": (512, 576, 256), "up_3": (256, 259, 32)}  # input, with its skip, output
NORM = ("weight", "bias", "running_mean", "running_var")


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, but for `module.` and counters."""
    shapes = dict(HEADS)
    for name, (inputs, joined, out) in UPS.items():
        shapes |= {f"{name}.shortcut.weight": (out, inputs, 1, 1), f"{name}.shortcut.bias": (out,)}
        for part, first in (("conv", joined), ("conv2", out)):
            for i, channels in ((0, first), (3, out)):
                shapes |= {f"{name}.{part}.{i}.{value}": (channels,) for value in NORM}
                shapes |= {
                    f"{name}.{part}.{i + 2}.weight": (out, channels, 3, 3),
                    f"{name}.{part}.{i + 2}.bias": (out,),
                }
    with torch.device("meta"):
        trunk = resnet50(weights=None).state_dict()
    shapes |= {f"feats.{key}": tuple(value.shape) for key, value in trunk.items() if not key.startswith("fc.")}
    shapes["feats.conv1.weight"] = (64, 6, 7, 7)
    return {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}


def filled() -> dict[str, torch.Tensor]:
    """A checkpoint of the published form whose filters overlap in memory, so that a file of it is small."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in published_shapes().items():
        if len(shape) == 4:
            size = int(np.prod(shape[1:]))
            values = torch.randn(size + shape[0], generator=generator) / size**0.5
            value = values.unfold(0, size, 1)[: shape[0]].unflatten(1, shape[1:])
        elif key.endswith("running_var"):
            value = torch.ones(shape)
        else:
            value = torch.rand(shape, generator=generator) - 0.5 + key.endswith("weight")
        state[f"module.{key}"] = value
    state["module.final_21.bias"] -= 2.4  # both classes occur
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model"
    torch.save(filled(), path)
    assert path.stat().st_size < 2e6
    return path


@pytest.fixture(scope="module")
def refiner(weights) -> MethodRefiner:
    return MethodRefiner("cascade-psp", weights=weights, device="cpu", crop=96)


@pytest.fixture(scope="module")
def pair():
    truth = disc((90, 118), 35)
    return photographed(truth), np.roll(truth, 4, axis=1)


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    with torch.device("meta"):
        network = CascadePSP()
    state = network.state_dict()
    found = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert found == published_shapes()
    assert len(state) == 426
    assert sum(value.numel() for value in network.parameters()) == 67_683_433


def test_the_extractor_is_torchvisions():
    torch.manual_seed(0)
    ours = CascadePSP().feats.eval()
    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    theirs.conv1 = torch.nn.Conv2d(6, 64, 7, 2, 3, bias=False)
    first = theirs.layer4[0].conv2  # torchvision dilates a stage's first block by the stage before
    first.dilation, first.padding = (1, 1), (1, 1)
    theirs.layer3[0].conv2.dilation = theirs.layer3[0].conv2.padding = (1, 1)
    theirs.load_state_dict({**ours.state_dict(), "fc.weight": theirs.fc.weight, "fc.bias": theirs.fc.bias})
    x = torch.randn(2, 6, 48, 72)
    with torch.inference_mode():
        f8, f4, f2 = ours(x)
        before = theirs.conv1(x)
        after = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(before))))
        torch.testing.assert_close(f2, before)
        torch.testing.assert_close(f4, after)
        torch.testing.assert_close(f8, theirs.layer4(theirs.layer3(theirs.layer2(after))))
    assert [tuple(f.shape[1:]) for f in (f8, f4, f2)] == [(2048, 6, 9), (256, 12, 18), (64, 24, 36)]


def test_forward_gives_two_probabilities_of_the_inputs_size_and_reads_each_input(weights):
    network, _ = load_cascade_psp(weights)
    generator = torch.Generator().manual_seed(1)
    x, mask, mask8 = (torch.randn(1, c, 16, 24, generator=generator) for c in (3, 1, 1))
    with torch.inference_mode():
        for given in ((x, mask), (x, mask, mask8)):
            found = network(*given)
            assert [p.shape for p in found] == [(1, 1, 16, 24)] * 2
            assert all(0 <= p.min() < p.max() <= 1 for p in found)
            for i in range(len(given)):
                changed = network(*(value + 1 if i == k else value for k, value in enumerate(given)))
                assert all((a != b).any() for a, b in zip(found, changed, strict=True))


def test_a_level_is_left_out_where_its_mask_is_given(weights):
    network, _ = load_cascade_psp(weights)
    calls = []
    network.feats.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0][:, 3:]))
    x, mask = torch.randn(1, 3, 16, 16), torch.randn(1, 1, 16, 16)
    with torch.inference_mode():
        network(x, mask)
        assert len(calls) == 3
        torch.testing.assert_close(calls[0], mask.expand(1, 3, 16, 16))
        del calls[:]
        network(x, mask, mask / 2)
    assert len(calls) == 2
    torch.testing.assert_close(calls[0], torch.cat([mask, mask / 2, mask / 2], 1))


@pytest.mark.parametrize(("prefix", "counters"), [("module.", False), ("", True)])
def test_published_checkpoints_load_with_and_without_prefix_and_counters(tmp_path, prefix, counters):
    state = {key.replace("module.", prefix): value for key, value in filled().items()}
    if counters:
        state |= {
            key.replace("running_mean", "num_batches_tracked"): torch.tensor(7)
            for key in state
            if key.endswith("running_mean")
        }
    torch.save(state, tmp_path / "model")
    network, sha256 = load_cascade_psp(tmp_path / "model")
    assert sha256 == checkpoint.file_sha256(tmp_path / "model")
    assert not network.training
    key = "feats.layer4.2.conv3.weight"
    torch.testing.assert_close(network.state_dict()[key], state[prefix + key])


def test_missing_weights_are_an_error_that_says_where_they_are():
    for make in (refine.refiner, lambda model: refine.run(photographed(disc()), disc(), model=model)):
        with pytest.raises(WeightsError, match=r"github\.com/hkchengrex/CascadePSP/releases.*--weights FILE"):
            make("cascade-psp")


def test_weights_that_do_not_fit_are_an_error_that_says_so(tmp_path):
    state = filled()
    torch.save({key: value for key, value in state.items() if ".psp." not in key}, tmp_path / "partial")
    with pytest.raises(WeightsError, match=r"partial or changed checkpoint.*6 missing: psp\.stages\.0\.1\.weight"):
        load_cascade_psp(tmp_path / "partial")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(WeightsError, match="belongs to another model"):
        load_cascade_psp(tmp_path / "other")
    with pytest.raises(WeightsError, match="holds weights of crm-s, not of cascade-psp; fetch https"):
        load_cascade_psp(checkpoint.find("crm-s"))
    (tmp_path / "text").write_text("<html>")
    with pytest.raises(WeightsError, match="not a checkpoint"):
        load_cascade_psp(tmp_path / "text")
    with pytest.raises(WeightsError, match="no such weights file"):
        load_cascade_psp(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"crop": 65}, "give a whole number from 66 to 10000"),
        ({"fast": 2}, "fast=2 is not possible; give True or False"),
        ({"decode": "dense"}, "cascade-psp has no option decode; its options are allow_large, white, crop, fast"),
        ({"dtype": "float16"}, "dtype='float16' is not possible with cascade-psp; give auto, float32, bfloat16"),
        ({"device": "nope"}, "device='nope' is unknown"),
    ],
)
def test_options_that_cannot_be_are_errors_before_weights_are_read(options, told):
    with pytest.raises(OptionError, match=re.escape(told)):
        refine.run(photographed(disc()), disc(), model="cascade-psp", weights="nowhere", **options)


@pytest.mark.parametrize(
    ("fast", "tolerance", "wanted"),
    [
        (True, 1e-4, [[0.44074, 0.41258, 0.47564], [0.52016, 0.46933, 0.59175], [0.61228, 0.50562, 0.63455]]),
        # Looser, because a pixel that the global step leaves at one half may be decided otherwise.
        (False, 1e-2, [[0.45021, 0.47768, 0.50199], [0.5122, 0.45066, 0.63334], [0.57967, 0.47799, 0.64012]]),
    ],
)
def test_the_published_code_gave_the_same(refiner, pair, fast, tolerance, wanted):
    found = refiner.refine(*pair, fast=fast).probability
    np.testing.assert_allclose(found[10::30, 15::40], wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("size", "fast"), [((41, 97), False), ((60, 50), True), ((1, 70), False)])
def test_every_size_is_refined_the_same_way_twice(refiner, size, fast):
    mask = np.zeros(size, bool)
    mask[:, : size[1] // 2] = True
    image = photographed(mask)
    first, again = (refiner.refine(image, mask, fast=fast, crop=96) for _ in range(2))
    np.testing.assert_array_equal(first.probability, again.probability)
    assert first.mask.shape == size
    assert first.probability.dtype == np.float32
    assert 0 <= first.probability.min() <= first.probability.max() <= 1


def test_run_keeps_the_weights_and_the_report_says_what_ran(weights, pair, monkeypatch):
    loads = []
    monkeypatch.setattr("refine.loading.load_cascade_psp", lambda path: loads.append(path) or load_cascade_psp(path))
    given = {"model": "cascade-psp", "weights": weights, "device": "cpu"}
    reports = [refine.run(*pair, **given, crop=66, fast=fast).report for fast in (True, 1)]
    assert len(loads) == 1
    for report in reports:
        assert (report.model, report.device, report.dtype) == ("cascade-psp", "cpu", "float32")
        assert report.weights == checkpoint.file_sha256(weights)
        assert report.options == {"allow_large": False, "white": None, "crop": 66, "fast": True}


def test_bfloat16_is_near_float32(weights, pair, refiner):
    half = refine.refiner("cascade-psp", weights=weights, device="cpu", dtype="bfloat16", crop=66, fast=True)
    found = half.refine(*pair)
    assert found.report.dtype == "bfloat16"
    exact = refiner.refine(*pair, crop=66, fast=True)
    assert np.abs(found.probability - exact.probability).max() < 0.05


def test_a_mask_of_one_class_stays_and_asks_no_network(refiner, pair, monkeypatch):
    monkeypatch.setattr(refiner, "_loaded", refiner._loaded._replace(network=None))
    found = refiner.refine(pair[0], np.zeros_like(pair[1]))
    assert not found.mask.any()
    assert "all background" in found.report.warnings[0]


def test_crops_that_were_left_are_told(refiner):
    mask = disc((300, 400), 8)

    def follow(x, mask, mask8=None):
        return (mask + 1) / 2, (mask + 1) / 2

    loaded = refiner._loaded
    try:
        refiner._loaded = loaded._replace(network=follow)
        found = refiner.refine(photographed(mask), mask)
    finally:
        refiner._loaded = loaded
    (warning,) = found.report.warnings
    assert re.fullmatch(r"(\d+) of \1 crops with a contour have less than 10 % of one class; .*", warning)
    np.testing.assert_array_equal(found.probability, found.mask)


def test_the_command_line_takes_the_weights(run, weights, pair):
    Image.fromarray(pair[0]).save("a.png")
    Image.fromarray(pair[1]).save("m.png")
    words = ("a.png", "m.png", "--model", "cascade-psp", "--device", "cpu", "-o", "out.png", "--json")
    done = run(*words, "--weights", str(weights), "--set", "fast=1", "--set", "crop=66")
    assert json.loads(done.out)["report"]["options"]["fast"] is True
    expected = refine.run("a.png", "m.png", model="cascade-psp", weights=weights, device="cpu", fast=True, crop=66)
    np.testing.assert_array_equal(np.asarray(Image.open("out.png")) > 0, expected.mask)
    refused = run(*words)
    assert refused.code == 2
    assert "releases/download" in refused.err
