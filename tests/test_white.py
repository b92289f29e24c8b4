import re

import cv2
import numpy as np
import pytest
import tifffile

from refine import io
from refine.errors import InputError
from refine.prepare import as_image, prepare
from refine.slides import Slide
from refine.tiles import Window

GRADES = np.random.default_rng(0).uniform(0, 1, (60, 80, 3))
RGB = np.rint(GRADES * 255).astype(np.uint8)


def scaled(white, dtype=np.uint16):
    return np.asarray(GRADES * white if np.dtype(dtype).kind == "f" else np.rint(GRADES * white), dtype)


def told_of(image, white=None):
    return prepare(image, np.arange(60 * 80).reshape(60, 80) > 999, white=white).warnings


@pytest.mark.parametrize(
    ("image", "white"),
    [
        (scaled(255), 255),
        (scaled(1000), 1023),
        (scaled(4095), 4095),
        (scaled(1, np.uint8), 1),
        (scaled(0.01, np.float32), 0.01),
        (scaled(0.05, float), 0.05),
    ],
)
def test_values_that_would_come_out_black_are_refused_and_the_remedy_works(image, white):
    with pytest.raises(InputError, match=rf"image: .* would come out black; .*white={white:g} \(--white {white:g}\)"):
        as_image(image)
    np.testing.assert_array_equal(as_image(image, white=white), np.rint(image * (255 / white)).clip(0, 255))


@pytest.mark.parametrize(
    ("image", "white"),
    [
        (scaled(5000), 10_000),
        (scaled(10_000), 10_000),
        (scaled(16_383), 16_383),
        (scaled(0.2, np.float32), 0.2),
        (scaled(6, np.uint8), 15),
    ],
)
def test_values_that_may_be_of_another_white_are_told(image, white):
    (told,) = told_of(image)
    assert f"white={white:g} (--white {white:g})" in told
    assert told_of(image, white) == ()


@pytest.mark.parametrize("pixels", [1, 4])
@pytest.mark.parametrize(
    ("image", "white"), [(scaled(4000), 4095), (scaled(1, np.uint8), 1), (scaled(0.01, float), 0.01)]
)
def test_a_few_hot_pixels_are_not_white(image, white, pixels):
    hot = image.copy()
    hot[0, :pixels, 0] = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    (told,) = told_of(hot)
    assert told.startswith("all but hot pixels or lamps")
    assert f"white={white:g} " in told


def test_a_border_of_the_highest_value_is_not_white():
    image = scaled(4000)
    image[:20] = 65535
    (told,) = told_of(image)
    assert "white=4095 " in told


@pytest.mark.parametrize(
    "image",
    [
        RGB,
        RGB // 10,  # a night
        np.zeros((60, 80, 3), np.uint8),
        np.zeros((60, 80, 3), np.uint16),
        np.where(GRADES > 0.9, 255, 0).astype(np.uint8),
        np.where(GRADES > 0.9, 65535, 0).astype(np.uint16),
        scaled(65535),
        scaled(25_000),
        scaled(0.5, float),
        np.pad(scaled(65535), ((500, 0), (0, 0), (0, 0)))[:560],
    ],
)
def test_pictures_that_are_dark_or_black_and_white_are_read_as_they_are(image):
    assert prepare(image, np.ones(image.shape[:2], bool)).warnings == ()
    full = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    np.testing.assert_array_equal(as_image(image), np.rint(image * (255 / full)))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_with_white_every_type_of_numbers_is_a_picture_and_is_clipped(dtype):
    image = np.array([[-5, 0, 5100, 10_000, 20_000]], dtype if dtype != np.uint32 else np.int64)
    image = np.maximum(image, 0).astype(dtype) if dtype == np.uint32 else image
    assert as_image(image, white=10_000)[0, :, 0].tolist() == [0, 0, 130, 255, 255]
    (told,) = prepare(image, np.array([[0, 1, 1, 0, 0]], bool), white=10_000).warnings
    assert told.startswith("20.0% of the image's values are above white=10000")


def test_a_white_that_the_type_cannot_hold_is_refused():
    with pytest.raises(InputError, match=r"image: white=4095 is beyond uint8, which ends at 255"):
        as_image(RGB, white=4095)
    with pytest.raises(InputError, match="image: type bool has no white"):
        as_image(RGB > 9, white=1)
    with pytest.raises(InputError, match="holds NaN"):
        as_image(np.full((4, 5), np.nan), white=3)


@pytest.mark.parametrize(
    ("image", "white"),
    [
        (scaled(4000), 4095),
        (scaled(9000), None),
        (scaled(0.01, np.float32), 0.01),
        (RGB, None),
        (RGB // 40, None),
        (scaled(1, np.uint8), 1),
        (scaled(9000, np.int32), 9000),
    ],
)
@pytest.mark.parametrize("band", [80, 2**22])
def test_windows_are_read_as_the_whole_file_is(tmp_path, monkeypatch, image, white, band):
    monkeypatch.setattr("refine.slides._BAND", band)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="rgb", tile=(16, 16), compression="zlib")
    expected = io.read_picture(path, white=white)
    with Slide(path, white=white) as slide:
        np.testing.assert_array_equal(slide.read(Window(30, 60, 40, 80)), expected.rgb[30:, 40:])
        np.testing.assert_array_equal(slide.read(Window(0, 60, 0, 80)), expected.rgb)
        assert slide.warnings == expected.warnings


@pytest.mark.parametrize("image", [scaled(4000), scaled(1, np.uint8), scaled(0.01, np.float32), scaled(9, np.int32)])
def test_windows_are_refused_as_the_whole_file_is(tmp_path, image):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="rgb", tile=(16, 16), compression="zlib")
    with pytest.raises(InputError, match="white=") as expected:
        io.read_picture(path)
    with Slide(path) as slide, pytest.raises(InputError, match=re.escape(str(expected.value))):
        slide.read(Window(0, 7, 0, 9))


def test_files_are_read_by_their_white(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), scaled(4095)[..., ::-1])
    with pytest.raises(InputError, match=r"a\.png: uint16 with values up to 40.* white=4095"):
        io.read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.png", white=4095), np.rint(scaled(4095) * (255 / 4095)))
