import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import disc, photographed
from PIL import Image

import refine
from refine.cli import main
from refine.errors import InputError, OptionError
from refine.evaluation import evaluate_command
from refine.evaluation.variants import Refining, key
from refine.methods import METHODS, Method, MethodRefiner
from refine.methods.band import Band
from refine.methods.cascade_psp import CascadePSPOptions, cascade_psp
from refine.methods.guided_filter import GuidedFilterOptions, guided_filter
from refine.methods.options import Loaded
from refine.metrics import iou, mean_boundary_accuracy

ROOT = Path(__file__).parents[1]
EVERY = [name for name, method in METHODS.items() if method.load is None]  # that need no weights
GUIDED = ["guided-filter", "grabcut", "random-walker"]  # that look at the picture
BANDED = ["grabcut", "random-walker"]  # that reduce a large one

every_method = pytest.mark.parametrize("name", EVERY)


def blocky(truth, block=8, least=0.0):
    """The blocks of which the truth has more than the share ``least``: stairs."""
    height, width = truth.shape
    small = cv2.resize(truth.astype(np.float32), (width // block, height // block), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, truth.shape[::-1], interpolation=cv2.INTER_NEAREST) > least


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("guided-filter", {"radius": 0.05}),
        ("grabcut", {"reach": 0.05}),
        ("random-walker", {"reach": 0.05}),
    ],
)
def test_a_blocky_mask_of_a_plain_object_comes_nearer_to_the_truth(name, options):
    truth = disc()
    mask = blocky(truth)
    refined = refine.run(photographed(truth), mask, model=name, **options).mask
    assert iou(refined, truth) > iou(mask, truth) + 0.02
    assert mean_boundary_accuracy(refined, truth) > mean_boundary_accuracy(mask, truth) + 0.1


def test_bilinear_rounds_off_stairs():
    truth = disc()
    mask = blocky(truth, least=0.5)
    refined = refine.run(photographed(truth), mask, model="bilinear", cells=20).mask
    assert iou(refined, truth) > iou(mask, truth) + 0.005
    assert mean_boundary_accuracy(refined, truth) > mean_boundary_accuracy(mask, truth) + 0.03


@pytest.mark.parametrize("name", GUIDED)
def test_the_defaults_improve_a_mask_that_is_off_by_a_few_pixels(name):
    truth = disc((600, 800), 200)
    mask = blocky(truth, 4)
    refined = refine.run(photographed(truth), mask, model=name).mask
    assert mean_boundary_accuracy(refined, truth) > mean_boundary_accuracy(mask, truth) + 0.05


def test_the_coarse_mask_is_given_back_as_it_is_and_as_another_array():
    mask = cv2.GaussianBlur(np.random.default_rng(0).random((30, 40), np.float32), (0, 0), 4)
    refined = refine.run(photographed(disc((30, 40), 9)), mask, model="coarse")
    np.testing.assert_array_equal(refined.probability, mask)
    assert not np.may_share_memory(refined.probability, mask)


def test_a_grid_of_the_pictures_size_changes_nothing_and_one_of_a_cell_is_flat():
    image, mask = photographed(disc()), disc()
    whole = refine.run(image, mask, model="bilinear", cells=160)
    np.testing.assert_array_equal(whole.mask, mask)
    flat = refine.run(image, mask, model="bilinear", cells=1).probability
    assert flat == pytest.approx(mask.mean(), abs=1e-5)


@every_method
@pytest.mark.parametrize("value", [False, True])
def test_a_mask_of_one_class_stays_with_a_warning(name, value):
    mask = np.full((40, 50), value)
    refined = refine.run(photographed(disc((40, 50), 9)), mask, model=name)
    np.testing.assert_array_equal(refined.mask, mask)
    assert ("foreground" if value else "background") in refined.report.warnings[0]


@every_method
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 70), (70, 1), (2, 2), (33, 31), (2, 900), (129, 65)])
def test_every_size_is_refined_and_comes_back(name, size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, bool)
    mask[size[0] // 2 :, size[1] // 2 :] = True
    refined = refine.run(image, mask, model=name)
    assert refined.mask.shape == refined.probability.shape == size
    assert refined.probability.dtype == np.float32
    assert 0 <= refined.probability.min() <= refined.probability.max() <= 1


@every_method
@pytest.mark.parametrize("colour", [0, 255, (200, 30, 30)])
def test_a_picture_of_one_colour_keeps_the_object(name, colour):
    truth = disc()
    refined = refine.run(np.full((*truth.shape, 3), colour, np.uint8), truth, model=name)
    assert iou(refined.mask, truth) > 0.9


@pytest.mark.parametrize("colour", [128, (200, 30, 30)])
def test_a_walk_over_one_colour_leaves_the_mask_and_says_so(colour):
    mask = blocky(disc())
    refined = refine.run(np.full((*mask.shape, 3), colour, np.uint8), mask, model="random-walker")
    np.testing.assert_array_equal(refined.mask, mask)
    assert "one colour" in refined.report.warnings[0]


@every_method
def test_the_input_is_not_written_and_the_result_is_the_same_again(name):
    truth = disc()
    image, mask = photographed(truth), blocky(truth).astype(np.float32)
    before = image.copy(), mask.copy()
    first = refine.run(image, mask, model=name).probability
    cv2.randu(np.empty((9, 9), np.uint8), 0, 255)  # whatever OpenCV draws between the two
    np.testing.assert_array_equal(refine.run(image, mask, model=name).probability, first)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_opencvs_random_numbers_are_left_as_they_were():
    drawn = []
    for model in ("coarse", "grabcut"):
        cv2.setRNGSeed(7)
        refine.run(photographed(disc()), blocky(disc()), model=model)
        drawn.append(cv2.randu(np.empty((3, 5), np.uint8), 0, 255))
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-6])
def test_the_guided_filter_of_a_grey_picture_is_that_of_one_channel(epsilon):
    # Three equal channels of variance v: each gets a third of the one channel's coefficient at epsilon / 3.
    truth = disc((200, 260), 80)
    grey = cv2.GaussianBlur(np.where(truth, 210, 40).astype(np.uint8), (0, 0), 2)
    p, r = np.roll(truth, 5, 1).astype(np.float32), 4
    options = GuidedFilterOptions(radius=r / 260, epsilon=epsilon)
    found = guided_filter(np.dstack([grey] * 3), p, options).probability
    i, target = grey / 255, p.astype(np.float64)

    def mean(x):
        return cv2.boxFilter(x, cv2.CV_64F, (2 * r + 1, 2 * r + 1))

    a = (mean(i * target) - mean(i) * mean(target)) / (mean(i * i) - mean(i) ** 2 + epsilon / 3)
    expected = mean(a) * i + mean(mean(target) - a * mean(i))
    np.testing.assert_allclose(found, expected.clip(0, 1), atol=0.01)


def test_the_guided_filter_follows_its_equations():
    truth = disc((700, 900), 300)  # tiles that it crosses, and some that it does not
    image, p = photographed(truth), cv2.GaussianBlur(blocky(truth).astype(np.float32), (0, 0), 4)
    found = guided_filter(image, p, GuidedFilterOptions(radius=3 / 900, epsilon=1e-3)).probability
    y, x, r = 350, 650, 3  # an edge of the disc

    def coefficients(y, x):
        colours = image[y - r : y + r + 1, x - r : x + r + 1].reshape(-1, 3) / 255
        values = p[y - r : y + r + 1, x - r : x + r + 1].ravel()
        a = np.linalg.solve(
            np.cov(colours.T, bias=True) + 1e-3 * np.eye(3),
            (colours * values[:, None]).mean(0) - colours.mean(0) * values.mean(),
        )
        return np.append(a, values.mean() - a @ colours.mean(0))

    mean = np.mean([coefficients(y + i, x + j) for i in range(-r, r + 1) for j in range(-r, r + 1)], 0)
    assert found[y, x] == pytest.approx(mean[:3] @ (image[y, x] / 255) + mean[3], abs=1e-4)
    np.testing.assert_array_equal(found[:20], p[:20])


def test_the_guided_filter_knows_no_tiles(monkeypatch):
    rng = np.random.default_rng(0)
    image, p = rng.integers(0, 256, (90, 130, 3), np.uint8), rng.random((90, 130), np.float32)
    options = GuidedFilterOptions(radius=5 / 130, epsilon=1e-3)
    whole = guided_filter(image, p, options).probability
    monkeypatch.setitem(guided_filter.__globals__, "TILE", 40)
    np.testing.assert_allclose(guided_filter(image, p, options).probability, whole, atol=1e-6)


@pytest.mark.parametrize("name", BANDED)
def test_contours_move_within_reach_only(name):
    truth = disc((300, 400), 100)
    mask = np.roll(truth, 20, axis=1)
    refined = refine.run(photographed(truth), mask, model=name, reach=0.01).mask
    contour = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    far = cv2.distanceTransform(1 - contour, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > 4 + 2
    np.testing.assert_array_equal(refined[far], mask[far])
    assert (refined != mask).any()


@pytest.mark.parametrize("name", BANDED)
def test_a_large_picture_is_reduced_and_says_so(name):
    truth = disc((600, 800), 200)
    refined = refine.run(photographed(truth), blocky(truth), model=name, reach=0.02, megapixels=0.05)
    (warning,) = refined.report.warnings
    assert re.search(r"reduced to 22\d x 22\d; what it found is enlarged", warning)
    assert iou(refined.mask, truth) > 0.97


@pytest.mark.parametrize("name", BANDED)
def test_a_mask_of_which_the_reduced_picture_holds_nothing_stays_with_a_warning(name):
    mask = np.zeros((300, 300), bool)
    mask[::60, ::60] = True
    refined = refine.run(photographed(mask), mask, model=name, megapixels=0.01)
    np.testing.assert_array_equal(refined.mask, mask)
    assert "nothing to decide" in refined.report.warnings[0]


def test_each_part_of_a_mask_and_its_background_keeps_a_core():
    mask = disc()
    mask[5:9, 5:30] = True  # thinner than the band
    mask[60, 80] = False  # a hole of one pixel
    band = Band.around("x", photographed(mask), mask.astype(np.float32), reach=0.1, megapixels=1)
    sure = band.mask & ~band.open
    count, labels = cv2.connectedComponents(band.mask.astype(np.uint8), connectivity=4)
    assert set(np.unique(labels[sure])) == set(range(1, count))
    assert (~band.mask & ~band.open)[60 - band.window.top, 80 - band.window.left]


@every_method
def test_the_report_says_how_the_mask_came_about(name):
    truth = disc()
    refined = refine.run(photographed(truth), blocky(truth), model=name)
    report = refined.report
    assert (report.model, report.weights, report.device, report.dtype) == (name, "none", "cpu", "float32")
    assert report.size == truth.shape
    assert 0 < report.prepare_seconds < report.seconds
    assert report.peak_memory > 1e7
    assert report.options == {**METHODS[name].options().__dict__}
    assert json.loads(json.dumps(report.as_dict()))["scales"] == []
    assert str(report).startswith(f"{name} (weights none) on cpu in float32: 120 x 160")
    np.testing.assert_array_equal(refined.mask, refined.probability > 0.5)


def test_a_method_with_a_network_says_its_weights_device_and_type(monkeypatch):
    def load(weights, device, dtype):
        return Loaded(None, f"hash of {weights}", device, dtype)

    monkeypatch.setitem(METHODS, "cascade-psp", Method(cascade_psp, CascadePSPOptions, load))
    choice = {"model": "cascade-psp", "weights": "a", "device": "cuda:0", "dtype": "bfloat16"}
    made = refine.refiner(**choice)
    assert (made.weights_sha256, made.device, made.dtype) == ("hash of a", "cuda:0", "bfloat16")
    others = [choice | other for other in ({"weights": "b"}, {"device": "cpu"}, {"dtype": "float32"})]
    assert len({key(Refining(other)) for other in (choice, *others)}) == 4
    made = refine.refiner("coarse")
    assert (made.weights_sha256, made.device, made.dtype) == ("none", "cpu", "float32")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"decode": "dense", "stride": 4},
            "no option decode, stride; its options are allow_large, white, radius, epsilon",
        ),
        ({"tile": 512}, "no option tile"),
        ({"max_memory": "1GiB"}, "no option max_memory"),
        ({"radios": 0.1}, "its options are allow_large, white, radius, epsilon"),
        ({"radius": 0.3}, "radius=0.3 is not possible; give a number from 0 to 0.25"),
        ({"epsilon": "small"}, "give a number from 1e-06 to 1"),
        ({"epsilon": float("nan")}, "give a number from 1e-06 to 1"),
        ({"allow_large": 1}, "give True or False"),
        ({"weights": "w.pth"}, "which has none; leave them out"),
        ({"device": "cuda"}, "give auto or cpu"),
        ({"dtype": "bfloat16"}, "give auto or float32"),
    ],
)
def test_options_that_mean_nothing_to_a_method_are_errors(options, told):
    with pytest.raises(OptionError, match=re.escape(told)):
        refine.refiner("guided-filter", **options)
    with pytest.raises(OptionError, match=re.escape(told)):
        refine.run(photographed(disc()), disc(), model="guided-filter", **options)


@pytest.mark.parametrize("options", [{"rounds": 1.5}, {"rounds": 0}, {"rounds": True}])
def test_a_count_is_a_whole_number(options):
    with pytest.raises(OptionError, match="give a whole number from 1 to 100"):
        refine.refiner("grabcut", **options)


def test_options_of_a_call_go_before_those_of_the_refiner():
    refiner = refine.refiner("grabcut", rounds=5, reach=0.01)
    report = refiner.refine(photographed(disc()), blocky(disc()), rounds=1).report
    assert report.options == {"allow_large": False, "white": None, "reach": 0.01, "rounds": 1, "megapixels": 1.0}
    with pytest.raises(OptionError, match="grabcut has no option decode"):
        refiner.refine(photographed(disc()), disc(), decode="dense")


@every_method
def test_methods_and_networks_are_told_apart(name):
    assert isinstance(refine.refiner(name), MethodRefiner)
    with pytest.raises(OptionError, match=r"method, no cascade; refine\.refiner"):
        refine.Refiner(name)
    with pytest.raises(OptionError, match=f"known are crm-s, crm-r50, .*{name}"):
        refine.refiner("nope")
    with pytest.raises(OptionError, match=f"known are .*{name}"):
        MethodRefiner("crm-s")


def test_input_is_checked_as_for_networks():
    with pytest.raises(InputError, match="does not fit the image"):
        refine.run(photographed(disc()), np.zeros((50, 90), bool), model="guided-filter")
    smaller = refine.run(photographed(disc()), disc((60, 80), 20), model="coarse")
    assert smaller.probability.shape == (120, 160)
    assert len(np.unique(smaller.probability)) > 2


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A set of one picture in the folder `data`, from where commands are run."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    truth = disc()
    Image.fromarray(photographed(truth)).save("data/a_im.png")
    for ending, mask in (("gt", truth), ("seg", blocky(truth))):
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(f"data/a_{ending}.png")
    return tmp_path


def refused(*words):
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return stop.value.code


PAIR = ("data/a_im.png", "data/a_seg.png")


@every_method
def test_the_command_line_refines_by_a_method(name, files, capsys):
    main([*PAIR, "--model", name, "-o", "fine.png", "--json"])
    report = json.loads(capsys.readouterr().out)["report"]
    assert (report["model"], report["weights"]) == (name, "none")
    expected = refine.run(*PAIR, model=name).mask
    np.testing.assert_array_equal(np.asarray(Image.open("fine.png")) > 0, expected)


def test_the_command_line_takes_a_methods_options(files, capsys):
    main([*PAIR, "--model", "grabcut", "--set", "reach=1e-2", "--set", "rounds=3", "-o", "fine.png", "--json"])
    options = json.loads(capsys.readouterr().out)["report"]["options"]
    assert options == {"allow_large": False, "white": None, "reach": 0.01, "rounds": 3, "megapixels": 1.0}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--decode", "dense"], "guided-filter has no option decode"),
        (["--band", "9"], "guided-filter has no option band"),
        (["--weights", "w.pth"], "has none; leave them out"),
        (["--dtype", "float16"], "give auto or float32"),
        (["--set", "size=3"], "guided-filter has no option size"),
        (["--set", "radius"], "give NAME=NUMBER"),
        (["--set", "radius=wide"], "give NAME=NUMBER"),
        (["--set", "model=3"], "has an option of its own"),
        (["--dry-run"], "guided-filter has none; leave it out"),
    ],
)
def test_the_command_line_refuses_what_means_nothing_to_a_method(files, capsys, words, told):
    assert refused(*PAIR, "--model", "guided-filter", "-o", "fine.png", *words) == 2
    assert told in capsys.readouterr().err
    assert not Path("fine.png").exists()


def test_a_tiff_is_refined_in_memory(files):
    for path in PAIR:
        Image.open(path).save(Path(path).with_suffix(".tif"))
    main([*(str(Path(path).with_suffix(".tif")) for path in PAIR), "--model", "guided-filter", "-o", "fine.tif"])
    np.testing.assert_array_equal(np.asarray(Image.open("fine.tif")) > 0, refine.run(*PAIR, model="guided-filter").mask)


@pytest.mark.parametrize("name", GUIDED)
def test_evaluation_reaches_the_methods(files, capsys, name):
    main(["evaluate", "data", "--model", name, "-o", "out"])
    assert "| data | 1 " in capsys.readouterr().out
    (row,) = evaluate_command([Path("data")], [{"model": name}]).rows[name]
    truth = disc()
    assert row.refined.iou == pytest.approx(iou(refine.run(*PAIR, model=name).mask, truth))


def test_evaluation_refuses_to_set_what_has_an_option_of_its_own(files, capsys):
    assert refused("evaluate", "data", "--model", "grabcut", "--set", "device=3") == 2
    assert "has an option of its own" in capsys.readouterr().err


def test_info_and_help_name_every_method(capsys):
    main(["--help"])
    shown = "".join(capsys.readouterr().out.split())  # names are broken at hyphens too
    assert all(name in shown for name in METHODS)
    main(["info", "--json"])
    assert set(METHODS) < set(json.loads(capsys.readouterr().out)["models"])


@pytest.mark.parametrize("work", ["refine.run(image, mask, model='grabcut')", "refine.cli.main(['--help'])"])
def test_neither_methods_nor_help_import_torch(work):
    code = (
        "import sys, numpy as np, refine, refine.cli\n"
        "image, mask = np.zeros((9, 9, 3), np.uint8), np.eye(9, dtype=bool)\n"
        f"{work}\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_probability_that_rounds_out_of_its_range_is_clipped_without_a_warning(monkeypatch):
    from skimage import segmentation

    real = segmentation.random_walker

    def rounding(*args, **options):
        warnings.warn(
            "The probability range is outside [0, 1] given the tolerance `prob_tol`.", UserWarning, stacklevel=2
        )
        return real(*args, **options) * 1.01 - 0.005

    monkeypatch.setattr(segmentation, "random_walker", rounding)
    mask = disc()
    refined = refine.run(photographed(mask), mask, model="random-walker")
    assert refined.probability.min() == 0
    assert refined.probability.max() == 1
