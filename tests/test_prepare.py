import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from refine.errors import FileError, InputError
from refine.prepare import as_image, as_mask, prepare

SIZES = [(1, 1), (1, 7), (7, 1), (5, 3), (9, 13)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("size", SIZES)
def test_every_accepted_array_is_the_same_picture(size):
    rgb = noise(*size, 3)
    rgb[0, 0] = 255
    alpha = noise(*size, 1, seed=1)
    for same in (
        np.concatenate([rgb, alpha], axis=2),
        rgb.astype(np.uint16) * 257,
        (rgb / 255).astype(np.float32),
        rgb / 255,
        rgb[:, ::-1][:, ::-1],
        np.asfortranarray(rgb),
        Image.fromarray(rgb),
    ):
        image = as_image(same)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        np.testing.assert_array_equal(image, rgb)
    assert as_image(rgb) is rgb


@pytest.mark.parametrize("size", SIZES)
def test_a_grey_picture_has_three_equal_channels(size):
    grey = noise(*size)
    for same in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(as_image(same), np.stack([grey] * 3, axis=2))


def test_a_path_is_read(tmp_path):
    Image.fromarray(noise(4, 5, 3)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(as_image(tmp_path / "a.png"), noise(4, 5, 3))
    np.testing.assert_array_equal(as_image(str(tmp_path / "a.png")), noise(4, 5, 3))
    with pytest.raises(FileError, match=r"b\.png: no such file"):
        as_image(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"image: shape \(3, 20, 30\).*channel-first.*np\.transpose"),
        (np.zeros((0, 5, 3), np.uint8), r"image: shape \(0, 5, 3\).*at least one pixel"),
        (np.zeros((2, 5, 5, 3), np.uint8), r"image: shape \(2, 5, 5, 3\).*one picture at a time"),
        (np.zeros(5, np.uint8), r"image: shape \(5,\)"),
        (np.zeros((5, 5, 2), np.uint8), r"image: shape \(5, 5, 2\)"),
        (np.zeros((5, 5), bool), r"image: type bool.*looks like a mask"),
        (np.zeros((5, 5), np.int64), r"image: type int64; accepted are uint8, uint16.*astype\(np\.uint8\)"),
        (np.zeros((5, 5), complex), r"image: type complex128"),
        (np.full((5, 5), np.nan), r"image: holds NaN or infinite"),
        (np.array([[0, np.inf]]), r"image: holds NaN or infinite"),
        (np.array([[0.0, 255.0]]), r"image: float values 0\.\.255.*\[0, 1\]; divide by 255"),
        (np.array([[-1.0, 1.0]]), r"image: float values -1\.\.1.*rescale"),
        (np.full((5, 5), 200, np.uint16), r"image: uint16 with values up to 200 only.*white=255 \(--white 255\)"),
        (np.full((5, 5), 4095, np.uint16), r"image: uint16 with values up to 4095 only.*white=4095 \(--white 4095\)"),
        (np.array([[0, 1.00001]]), r"image: float values 0\.\.1\.00001.*\[0, 1\]"),
        ([[1, 2]], r"image: given a builtins\.list.*np\.asarray"),
        (None, r"image: given a builtins\.NoneType"),
    ],
)
def test_what_is_no_picture_says_what_was_given(image, message):
    with pytest.raises(InputError, match=message) as error:
        as_image(image)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, float])
def test_rounding_of_a_float_picture_is_clipped(dtype):
    assert as_image(np.array([[-1e-7, 0.2, 1 + 1.2e-7]], dtype))[0, :, 0].tolist() == [0, 51, 255]


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("size", SIZES)
def test_every_accepted_binary_array_is_the_same_mask(size):
    mask = noise(*size) > 127
    mask[0, 0] = True
    for same in (
        mask,
        mask[..., None],
        mask.astype(np.uint8),
        mask.astype(np.int64),
        mask * np.uint8(255),
        mask * np.int32(255),
        mask * np.uint16(255),
        mask * np.uint16(65535),
        mask.astype(np.float16),
        mask.astype(float),
        np.stack([mask * np.uint8(255)] * 3, axis=2),
        Image.fromarray(mask),
        Image.fromarray(mask * np.uint8(255)),
    ):
        soft = as_mask(same, size)
        assert soft.dtype == np.float32
        assert soft.flags.c_contiguous
        np.testing.assert_array_equal(soft, mask)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32])
def test_a_mask_of_one_value_is_what_it_says(value, dtype):
    assert (as_mask(np.full((3, 4), value, dtype), (3, 4)) == value).all()


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, (4, 5), elements=st.integers(100, 255)))
def test_uint8_grey_is_value_over_255(grey):
    grey[:, ::2], grey[0, 1] = 0, 200  # no pixel equals its neighbour
    np.testing.assert_allclose(as_mask(grey, (4, 5)), grey / 255, rtol=1e-6)


def test_uint16_grey_is_value_over_65535():
    np.testing.assert_allclose(
        as_mask(np.array([[0, 300, 65535]], np.uint16), (1, 3)), [[0, 300 / 65535, 1]], rtol=1e-6
    )


def test_soft_floats_are_kept_and_rounding_is_clipped():
    soft = np.random.default_rng(0).random((4, 5)).astype(np.float32)
    np.testing.assert_array_equal(as_mask(soft, (4, 5)), soft)
    assert as_mask(np.array([[-1e-7, 1 + 1e-7]]), (1, 2)).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "values",
    [
        [1, 2],
        [5, 5],
        [0, 1, 2, 3],
        [0, 1, 255],
        [0, 15, 255],
        [0, *range(1, 31), 255],
        [7, 63, 255],
        list(range(100)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16])
def test_a_label_map_is_refused_with_its_values(values, dtype):
    with pytest.raises(InputError, match=rf"mask: a label map \(values {min(values)}.*mask == label"):
        as_mask(np.array([values], dtype), (1, len(values)))


def test_a_16_bit_label_map_is_refused():
    with pytest.raises(InputError, match=r"mask: a label map \(values up to 26001 of 65535\).*mask / 65535"):
        as_mask(np.array([[0, 24001, 26001]], np.uint16), (1, 3))


def areas(*values, dtype=np.uint8, side=24):
    """Squares of one value each, side by side."""
    return np.repeat(np.repeat(np.array([values], dtype), side, axis=0), side, axis=1)


@pytest.mark.parametrize(
    "values", [[0, 1, 17, 133], [0, 3, 200], [3, 200], range(0, 237, 4), [0, 15, 100, 255], [0, *range(100, 164), 255]]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_a_label_map_is_known_by_its_areas(values, dtype):
    mask = areas(*values, dtype=dtype)
    message = rf"a label map \(values {min(values)}.*mask == label, or, if it is a soft mask, pass mask / 255 as floats"
    with pytest.raises(InputError, match=message):
        as_mask(mask, mask.shape)
    np.testing.assert_allclose(as_mask(mask / 255, mask.shape), mask / 255, rtol=1e-6)


def test_a_16_bit_label_map_is_known_by_its_areas():
    mask = areas(0, 20_000, 40_000, dtype=np.uint16)
    with pytest.raises(InputError, match=r"values 0, 20000, 40000\).*pass mask / 65535 as floats"):
        as_mask(mask, mask.shape)


def test_a_label_map_may_have_a_tenth_of_its_pixels_at_borders_and_no_more():
    mask = np.zeros((20, 20), np.uint8)
    mask[:, 10], mask[:, 11] = 100, 200  # none is flat, but for the two in the last row and none beside them
    assert as_mask(mask, mask.shape).max() == np.float32(200 / 255)
    mask = np.full((20, 20), 100, np.uint8)
    mask[4:16:4, 4:16:2] = 200  # 18 pixels, each of which unmakes itself and those to its left and above
    assert as_mask(mask, mask.shape).max() == np.float32(200 / 255)
    mask[4:12:4], mask[12, 6:] = 100, 100  # one is left: 3 of 400
    with pytest.raises(InputError, match="a label map"):
        as_mask(mask, mask.shape)


@pytest.mark.parametrize("label", [1, 2, 7, 37, 127, 128, 169, 200, 254, 255, 1000, 26001, 65535])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16])
def test_the_only_value_beside_0_is_the_object(label, dtype):
    if label > np.iinfo(dtype).max:
        return
    mask = cv2.circle(np.zeros((40, 60), np.uint8), (30, 20), 14, 1, -1)
    np.testing.assert_array_equal(as_mask((mask * np.int64(label)).astype(dtype), mask.shape), mask)
    told = prepare(np.zeros((40, 60, 3), np.uint8), (mask * np.int64(label)).astype(dtype)).warnings
    assert bool(told) == (label not in (1, 254, 255, 65535) or (label == 65535 and dtype == np.int64))
    assert all(f"0 and {label}, which is taken for the object" in warning for warning in told)


@pytest.mark.parametrize("label", [1, 15, 37, 120, 169, 200])
def test_255_beside_a_single_label_is_void(label):
    ring = cv2.circle(np.zeros((90, 120), np.uint8), (60, 45), 30, label, -1)
    ring = cv2.circle(ring, (60, 45), 30, 255, 5)
    ring[:20, :20] = 255
    want = np.where(ring == 255, np.float32(0.5), ring == label)
    np.testing.assert_array_equal(as_mask(ring, ring.shape), want)
    (told,) = prepare(np.zeros((90, 120, 3), np.uint8), ring).warnings
    assert f"{label} is taken for the object, 255 for void" in told


def soft_masks():
    binary = cv2.circle(np.zeros((90, 120), np.uint8), (60, 45), 30, 255, -1)
    yield "trimap", areas(0, 128, 255)
    yield "bilinear", cv2.resize(binary[::9, ::10], (120, 90), interpolation=cv2.INTER_LINEAR)
    yield "blurred a little", cv2.blur(binary, (3, 3))
    yield "blurred a lot", cv2.GaussianBlur(binary, (0, 0), 12)
    yield "antialiased", cv2.circle(np.zeros((90, 120), np.uint8), (60, 45), 30, 255, -1, cv2.LINE_AA)
    yield "noisy", np.where(binary > 0, 230, 20).astype(np.uint8) + noise(90, 120) % 11
    yield "nearest", np.kron(cv2.GaussianBlur(noise(20, 20), (0, 0), 1), np.ones((16, 16), np.uint8))
    yield "16 bits", cv2.GaussianBlur(binary.astype(np.uint16) * 257, (0, 0), 3)


@pytest.mark.parametrize(
    ("kind", "mask"), list(soft_masks()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_soft_mask_is_not_taken_for_labels(kind, mask):
    full = np.iinfo(mask.dtype).max
    np.testing.assert_allclose(as_mask(mask, mask.shape), mask / full, rtol=1e-6, err_msg=kind)


@pytest.mark.parametrize("values", [[0, 255], [0, 64, 255], [0, 3, 252, 255], list(range(256)), [130, 200]])
def test_grey_is_not_taken_for_labels(values):
    np.testing.assert_allclose(
        as_mask(np.array([values], np.uint8), (1, len(values)))[0], np.divide(values, 255), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((4, 5), np.nan), r"mask: holds NaN"),
        (np.full((4, 5), -np.inf), r"mask: holds NaN or infinite"),
        (np.full((4, 5), 255.0), r"mask: float values 255\.\.255; .*\[0, 1\]; divide by 255"),
        (np.full((4, 5), -3.5), r"mask: float values -3\.5\.\.-3\.5; .*sigmoid"),
        (np.full((4, 5), -1), r"mask: int64 values -1\.\.-1; .*\{0, 255\}"),
        (
            np.full((4, 5), 256),
            r"mask: int64 values 256\.\.256.*mask == label; if it is a soft mask, pass it as floats",
        ),
        (np.full((4, 5), 65535, np.int32), r"mask: int32 values 65535\.\.65535"),
        (np.full((4, 5), 1j), r"mask: type complex128; accepted are bool"),
        (np.full((4, 5), "a"), r"mask: type <U1"),
        (np.zeros((0, 5)), r"mask: shape \(0, 5\).*at least one pixel"),
        (np.zeros((1, 4, 5)), r"mask: shape \(1, 4, 5\).*channel-first: pass mask\[0\]"),
        (np.zeros((4, 5, 2)), r"mask: shape \(4, 5, 2\)"),
        (np.zeros(5), r"mask: shape \(5,\)"),
        (noise(4, 5, 3), r"mask: a coloured mask \(3 channels"),
    ],
)
def test_what_is_no_mask_says_what_was_given(mask, message):
    with pytest.raises(InputError, match=message) as error:
        as_mask(mask, (4, 5))
    assert "\n" not in str(error.value)


def test_a_mask_file_is_named_in_the_error(tmp_path):
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(InputError, match=r"labels\.png: a label map \(values 0, 1, 2\)"):
        as_mask(tmp_path / "labels.png", (1, 3))


# ------------------------------------------------------------------------------------------------------------- sizes


def interpolated(mask, size):
    """Bilinear at pixel centres with clamped borders, from PyTorch."""
    tensor = torch.from_numpy(mask)[None, None].double()
    return torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize(
    ("small", "size"),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (5, 9)),
        ((1, 3), (1, 7)),
        ((7, 1), (29, 3)),
        ((5, 3), (11, 7)),
        ((8, 12), (233, 349)),
        ((341, 512), (2328, 3492)),
        ((2, 4000), (20, 40_001)),
    ],
)
def test_a_smaller_mask_is_enlarged_at_pixel_centres_and_stays_soft(small, size):
    mask = cv2.GaussianBlur(np.random.default_rng(0).random(small), (0, 0), 4).astype(np.float32)
    soft = as_mask(mask, size)
    assert soft.shape == size
    np.testing.assert_allclose(soft, interpolated(mask, size), atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.02, 1), st.integers(-1, 1), st.integers(-1, 1))
def test_each_side_may_be_one_pixel_off_the_scaled_size(H, W, factor, dh, dw):
    h, w = int(H * factor) + dh, int(W * factor) + dw
    h, w = min(max(h, 1), H), min(max(w, 1), W)
    if abs(h - H * factor) <= 1 and abs(w - W * factor) <= 1:
        soft = as_mask(np.ones((h, w), bool), (H, W))
        assert soft.shape == (H, W)
        assert (soft == 1).all()


@pytest.mark.parametrize(
    ("mask", "size", "message"),
    [
        ((40, 30), (30, 40), r"mask: 40 x 30 does not fit the image of 30 x 40.*EXIF"),
        ((20, 15), (30, 40), r"20 x 15 does not fit.*turned by 90 degrees.*np\.rot90"),
        ((400, 300), (30, 40), r"turned by 90 degrees"),
        ((60, 80), (30, 40), r"60 x 80 does not fit the image of 30 x 40 \(H x W\): it is the larger one.*shrink"),
        ((31, 40), (30, 40), r"it is the larger one"),
        ((30, 30), (30, 40), r"30 x 30 does not fit.*same aspect"),
        ((10, 30), (30, 40), r"crop or pad"),
    ],
)
def test_a_mask_of_another_frame_says_both_sizes(mask, size, message):
    with pytest.raises(InputError, match=message):
        as_mask(np.ones(mask, bool), size)


def test_the_size_is_checked_before_the_values():
    with pytest.raises(InputError, match="does not fit"):
        as_mask(np.full((5, 12), 7), (30, 40))


# ------------------------------------------------------------------------------------------------------------- pairs


def test_a_pair_has_one_size_whatever_it_came_from(tmp_path):
    Image.fromarray(noise(12, 18, 3)).save(tmp_path / "a.jpg")
    Image.fromarray(noise(6, 9) > 127).save(tmp_path / "a.png")
    pair = prepare(tmp_path / "a.jpg", tmp_path / "a.png")
    assert pair.image.shape == (12, 18, 3)
    assert pair.mask.shape == (12, 18)
    assert 0 <= pair.mask.min() < pair.mask.max() <= 1


def test_the_mask_is_taken_in_the_displayed_frame_of_a_turned_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(8, 12, 3)).save(tmp_path / "a.jpg", exif=exif)
    mask = noise(12, 8) > 127
    pair = prepare(tmp_path / "a.jpg", mask)
    assert pair.image.shape == (12, 8, 3)
    np.testing.assert_array_equal(pair.mask, mask)
    with pytest.raises(InputError, match="turned by 90 degrees"):
        prepare(tmp_path / "a.jpg", mask.T)


def test_the_input_is_never_written():
    image, mask = noise(6, 4, 3), np.random.default_rng(0).random((6, 4)).astype(np.float32)
    image.flags.writeable = mask.flags.writeable = False
    pair = prepare(image, mask)
    np.testing.assert_array_equal(pair.image, image)
    np.testing.assert_array_equal(pair.mask, mask)


def test_a_picture_given_as_its_own_mask_is_named(tmp_path):
    photo = noise(30, 40, 3)
    for name in ("a.png", "b.png"):
        Image.fromarray(photo).save(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    for mask in ("a.png", "link.png", "b.png"):
        given = "holds the same as the image" if mask == "b.png" else "is the image itself"
        with pytest.raises(InputError, match=rf"{mask}: given as the coarse mask, and {given}.*give the mask"):
            prepare(tmp_path / "a.png", tmp_path / mask)
    drawn = np.repeat(np.uint8(255) * (noise(30, 40, 1) > 127), 3, axis=2)
    for image, mask in (
        (photo, photo),
        (photo, photo.copy()),
        (drawn, drawn[..., 0]),
        (drawn, drawn[..., 0] > 0),
        (drawn[..., 0], drawn[..., 0]),
        (Image.fromarray(drawn), drawn[..., 0] / 255),
    ):
        with pytest.raises(InputError, match="mask: holds the same as the image; give the mask that belongs to it"):
            prepare(image, mask)
    for value in (0, 255):
        blank = np.full((30, 40), value, np.uint8)
        assert (prepare(blank, blank).mask == value / 255).all()


def test_allow_large_reaches_both_files(tmp_path, monkeypatch):
    monkeypatch.setattr("refine.io.MAX_PIXELS", 10)
    Image.fromarray(noise(4, 5)).save(tmp_path / "a.png")
    with pytest.raises(FileError, match=r"a\.png: 5 x 4.*allow_large"):
        as_image(tmp_path / "a.png")
    with pytest.raises(FileError, match=r"a\.png: 5 x 4.*allow_large"):
        as_mask(tmp_path / "a.png", (4, 5))
    Image.fromarray(noise(4, 5) > 127).save(tmp_path / "m.png")
    assert prepare(tmp_path / "a.png", tmp_path / "m.png", allow_large=True).mask.shape == (4, 5)


# ------------------------------------------------------------------------------------------------------------- frames


def scene(size=(120, 160)):
    """A picture of an ellipse away from the middle, and the ellipse."""
    y, x = np.mgrid[: size[0], : size[1]]
    spot = ((y - 35) / 25) ** 2 + ((x - 45) / 30) ** 2 < 1
    picture = np.where(spot[..., None], (200, 90, 60), (60, 110, 90)) + noise(*size, 3) // 8
    return picture.astype(np.uint8), spot


def photograph(path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif)
    return path


def as_displayed(picture, orientation):
    """By Pillow."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(picture)
    image.info["exif"] = exif.tobytes()
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_mask_drawn_on_the_picture_as_it_is_stored_is_told_with_the_turn_that_mends_it(tmp_path, orientation):
    picture, spot = scene((120, 160) if orientation < 5 else (140, 140))
    path = photograph(tmp_path / "a.png", picture, orientation)
    pair = prepare(path, spot)
    assert np.array_equal(pair.mask, spot)  # never turned unasked
    (told,) = pair.warnings
    assert f"EXIF orientation {orientation}" in told
    mended = eval(told.rpartition(": ")[2], {"mask": spot, "np": np})
    assert np.array_equal(mended, as_displayed(spot.astype(np.uint8) * 255, orientation) > 0)
    assert prepare(path, mended).warnings == ()


def test_a_mask_of_which_nobody_can_tell_the_frame_is_not_told_of(tmp_path):
    picture, spot = scene()
    path = photograph(tmp_path / "a.png", noise(120, 160, 3), 3)
    assert prepare(path, spot).warnings == ()  # no edges
    middle = spot | spot[::-1, ::-1]
    assert prepare(photograph(tmp_path / "b.png", picture, 3), middle).warnings == ()  # the same in both frames
    assert prepare(photograph(tmp_path / "c.png", picture, 1), spot[::-1]).warnings == ()
    for only in (np.zeros_like(spot), np.ones_like(spot)):
        assert prepare(path, only).warnings == ()


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [(120, 160), (140, 140)])
def test_a_picture_turned_by_hand_in_pillow_is_not_turned_twice(tmp_path, orientation, size):
    picture, spot = scene(size)
    upright = Image.open(photograph(tmp_path / "a.png", picture, orientation)).copy()
    if orientation == 3:
        upright = upright.rotate(180)
    else:
        turns = (None, None, 0, None, 1, 5, 4, 6, 2)  # Pillow's, of each orientation
        upright = upright.transpose(Image.Transpose(turns[orientation]))
    assert upright.getexif()[0x0112] == orientation
    shown = as_displayed(picture, orientation)
    mask = as_displayed(spot.astype(np.uint8), orientation) > 0
    pair = prepare(upright, mask)
    assert np.array_equal(pair.image, shown)
    assert np.array_equal(pair.mask, mask)
    assert np.array_equal(as_image(upright), shown)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [(120, 160), (140, 140)])
def test_a_picture_changed_in_pillow_and_not_turned_is_taken_in_the_frame_of_its_mask(tmp_path, orientation, size):
    picture, spot = scene(size)
    changed = Image.open(photograph(tmp_path / "a.png", picture, orientation)).convert("RGB")
    changed = changed.copy()
    shown, mask = as_displayed(picture, orientation), as_displayed(spot.astype(np.uint8), orientation) > 0
    displayed, stored = prepare(changed, mask), prepare(changed, spot)
    assert np.array_equal(displayed.image, shown)
    assert "turned by it, as the mask fits; apply ImageOps.exif_transpose" in displayed.warnings[0]
    assert np.array_equal(stored.image, picture)
    assert stored.warnings == ()


def test_a_changed_picture_whose_frame_nobody_can_tell_is_taken_as_it_lies_with_a_warning(tmp_path):
    picture = noise(120, 160, 3)
    changed = Image.open(photograph(tmp_path / "a.png", picture, 3)).copy()
    pair = prepare(changed, scene()[1])
    assert np.array_equal(pair.image, picture)
    assert "it is taken as its pixels lie, not turned; apply ImageOps.exif_transpose" in pair.warnings[0]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_picture_opened_in_pillow_is_taken_as_its_file_is(tmp_path, loaded):
    picture, _ = scene()
    path = photograph(tmp_path / "a.png", picture, 6)
    with Image.open(path) as opened:
        if loaded:
            opened.load()
        assert np.array_equal(as_image(opened), as_image(path))
