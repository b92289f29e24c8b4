import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from refine.errors import FileError, InputError, OptionError
from refine.result import Refined, Report, ScaleReport

SIZES = [(1, 1), (1, 7), (7, 1), (5, 3), (9, 13)]


def report(**changes):
    values = {
        "model": "crm-s",
        "weights": "0123456789abcdef" * 4,
        "device": "cpu",
        "dtype": "bfloat16",
        "size": (2328, 3492),
        "prepare_seconds": 0.5,
        "scales": (
            ScaleReport(0.125, (291, 437), 0.25, 0.5, 127_167, 0, 1.0),
            ScaleReport(1, (2328, 3492), 2, 1, 9, 8, 0.234),
        ),
        "seconds": 4.2,
        "peak_memory": 1_900_000_000,
        "options": {"decode": "dense", "limit": None, "weights": Path("a/b"), "f": np.float32(0.5), "s": (1, 2)},
        "warnings": ("the mask is empty",),
    }
    return Report(**(values | changes))


def refined(*size):
    return Refined.of(np.random.default_rng(0).random(size).astype(np.float32), report(size=size))


def test_the_report_is_ready_for_json():
    back = json.loads(json.dumps(report().as_dict()))
    assert back == report().as_dict()
    assert back["size"] == [2328, 3492]
    assert back["scales"][0] == {
        "scale": 0.125,
        "size": [291, 437],
        "encode_seconds": 0.25,
        "decode_seconds": 0.5,
        "pixels_decoded": 127_167,
        "pixels_kept": 0,
        "encoded": 1.0,
        "taken_back": 0,
        "given_back": 0,
    }
    assert back["change"] is None
    assert back["options"] == {"decode": "dense", "limit": None, "weights": str(Path("a/b")), "f": 0.5, "s": [1, 2]}
    assert back["warnings"] == ["the mask is empty"]


def test_the_report_reads_as_a_table():
    lines = str(report()).splitlines()
    assert lines[0] == ("crm-s (weights 0123456789ab) on cpu in bfloat16: 2328 x 3492 (H x W) in 4.20 s, peak 1.90 GB")
    assert [cell.strip() for cell in lines[2].split("  ") if cell] == [
        "0.125",
        "291 x 437",
        "0.25",
        "0.50",
        "127,167",
        "0",
        "100%",
    ]
    assert lines[3].split()[-3:] == ["9", "8", "23%"]
    assert len({len(line) for line in lines[1:4]}) == 1
    assert lines[-1] == "warning: the mask is empty"
    assert len(str(report(scales=(), warnings=(), weights="none")).splitlines()) == 1


@pytest.mark.parametrize("size", SIZES)
def test_the_mask_is_the_probability_above_a_half(size):
    result = refined(*size)
    np.testing.assert_array_equal(result.mask, result.probability > 0.5)
    assert result.mask.dtype == bool
    assert not Refined.of(np.full(size, 0.5, np.float32), report()).mask.any()


def test_the_steps_are_kept_where_they_were_asked_for():
    step = np.ones((2, 3), np.float32)
    kept = Refined.of(np.ones((4, 6), np.float32), report(), scales={0.5: step})
    assert list(kept.scales) == [0.5]
    assert kept.scales[0.5] is step
    assert refined(2, 2).scales == {}


def test_as_an_array_it_is_the_mask_by_numpys_copy_protocol():
    result = refined(4, 5)
    assert np.asarray(result) is result.mask
    assert result.__array__(bool, copy=False) is result.mask
    copied = np.array(result, copy=True)
    assert not np.shares_memory(copied, result.mask)
    np.testing.assert_array_equal(copied, result.mask)
    assert np.asarray(result, np.uint8).dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(result, np.float32), result.mask.astype(np.float32))
    with pytest.raises(ValueError, match="uint8 needs a copy"):
        result.__array__(np.uint8, copy=False)


def test_results_are_compared_by_identity():
    assert refined(2, 2) != refined(2, 2)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_saved_is_the_mask_and_the_probability(tmp_path, size):
    result = refined(*size)
    result.save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), result.mask * np.uint8(255))
    result.save_probability(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        np.testing.assert_allclose(np.asarray(picture) / 65535, result.probability, atol=0.6 / 65535)
    result.save_probability(str(tmp_path / "p.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), result.probability)
    with pytest.raises(OptionError, match=r"m\.jpg: a mask is written as \.png"):
        result.save(tmp_path / "m.jpg")


@pytest.mark.parametrize("size", [*SIZES, (60, 80)])
def test_an_overlay_changes_the_mask_and_its_border_only(size):
    image = np.random.default_rng(1).integers(0, 200, (*size, 3), dtype=np.uint8)
    given = image.copy()
    mask = np.zeros(size, np.float32)
    mask[size[0] // 4 : size[0] // 2 + 1, size[1] // 4 : size[1] // 2 + 1] = 1
    result = Refined.of(mask, report())
    out = result.overlay(image)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(image, given)
    near = ndimage.binary_dilation(result.mask, np.ones((3, 3)))
    np.testing.assert_array_equal(out[~near], image[~near])
    inside = ndimage.binary_erosion(result.mask, np.ones((3, 3)), border_value=1)
    want = image / 2 + np.divide((255, 45, 85), 2)
    assert np.abs(out - want)[inside].max(initial=0) <= 0.5
    changed = (out != image).any(axis=2)
    assert changed[result.mask].all()


def test_a_mask_that_fills_the_picture_has_no_outline():
    out = Refined.of(np.ones((9, 9), np.float32), report()).overlay(np.zeros((9, 9), np.uint8))
    assert (out == out[0, 0]).all()


def test_the_outline_is_thicker_on_a_larger_picture():
    def thickness(side):
        half = np.zeros((side, side), np.float32)
        half[:, side // 2 :] = 1
        out = Refined.of(half, report()).overlay(np.zeros((side, side, 3), np.uint8))
        return int((out[side // 2] == 255).all(axis=1).sum())

    assert [thickness(side) for side in (40, 500, 1500)] == [1, 1, 3]


def test_an_overlay_takes_paths_and_pil_images_and_names_a_wrong_size(tmp_path):
    image = np.random.default_rng(1).integers(0, 200, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    result = refined(5, 6)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(result.overlay(same), result.overlay(image))
    with pytest.raises(InputError, match=r"image: 5 x 7 \(H x W\) while the mask is 5 x 6"):
        result.overlay(np.zeros((5, 7, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.png: 5 x 6 \(H x W\) while the mask is 4 x 4"):
        refined(4, 4).overlay(tmp_path / "a.png")
    with pytest.raises(FileError, match="no such file"):
        result.overlay(tmp_path / "b.png")
