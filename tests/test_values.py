from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from refine.errors import InputError
from refine.io import grey
from refine.values import Meaning, distinct, meaning


def outcome(mask, height):
    """What is said of a mask that is given by bands of ``height`` rows, and how often they were asked for."""
    asked = []

    def bands():
        asked.append(height)
        return (mask[top : top + height] for top in range(0, len(mask), height))

    try:
        return meaning(bands, "m"), len(asked)
    except InputError as error:
        return str(error), len(asked)


@settings(max_examples=150, deadline=None)
@given(
    areas=arrays(np.uint8, (5, 4), elements=st.sampled_from([0, 0, 1, 60, 63, 64, 127, 128, 200, 254, 255])),
    side=st.integers(1, 14),
    spots=st.lists(st.integers(0, 19), max_size=12),
    dtype=st.sampled_from([np.uint8, np.int16, np.int64, np.uint16, np.float32]),
    height=st.integers(1, 20),
)
def test_a_mask_means_the_same_by_bands_of_any_height(areas, side, spots, dtype, height):
    mask = np.repeat(np.repeat(areas, side, axis=0), side, axis=1)
    mask.flat[[mask.size * spot // 20 for spot in spots]] ^= 40
    mask = (mask * np.uint16(257) if dtype == np.uint16 else mask).astype(dtype)
    assert outcome(mask, height) == outcome(mask, len(mask))


def flat(mask, white):
    """Whether 90 % of the interior pixels are flat, pixel by pixel."""
    h, w = mask.shape
    interior = [(y, x) for y in range(h) for x in range(w) if 0 < mask[y, x] < white]
    same = [mask[y, x] == mask[y, min(x + 1, w - 1)] and mask[y, x] == mask[min(y + 1, h - 1), x] for y, x in interior]
    return sum(same) >= 0.9 * len(same)


@pytest.mark.parametrize("height", [1, 2, 7, 20])
@pytest.mark.parametrize("spots", [0, 6, 7])  # 180 of 200 are flat with six
def test_flat_pixels_are_counted_across_bands(spots, height):
    mask = np.full((20, 10), 100, np.uint8)
    mask[1 : 1 + 3 * spots : 3, 4] = 200  # each unmakes itself and those to its left and above
    mask[0, 8] = 200
    found, asked = outcome(mask, height)
    assert ("label map" in str(found)) == flat(mask, 255) == (spots < 7)
    assert asked == 2


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.eye(4, dtype=bool), Meaning()),
        (np.eye(4, dtype=np.int8), Meaning()),
        (np.eye(4, dtype=np.uint8) * 255, Meaning(255)),
        (np.eye(4, dtype=np.uint16) * 65535, Meaning(65535)),
        (np.eye(4), Meaning()),
        (np.eye(4) * (1 + 1e-7), Meaning(strays=True)),
    ],
)
def test_what_stands_for_1_becomes_1(mask, expected):
    found, asked = outcome(mask, 1)
    assert (found, asked) == (expected, 1)
    for form in (mask, np.stack([mask] * 3, axis=2)[..., 0]):
        soft = found.unit(form)
        assert soft.dtype == np.float32
        assert soft.flags.c_contiguous
        np.testing.assert_array_equal(soft, np.eye(4))


def test_floats_that_are_a_mask_already_are_not_copied():
    soft = np.random.default_rng(0).random((4, 5)).astype(np.float32)
    assert np.shares_memory(Meaning().unit(soft), soft)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64])
def test_distinct_values_are_those_of_numpy(dtype):
    values = np.random.default_rng(0).choice(np.array([0, 3, 90, 127]), (30, 40)).astype(dtype)
    for top in (255, 65535):
        np.testing.assert_array_equal(distinct(values[:, ::2], top), np.unique(values[:, ::2]))


@pytest.mark.parametrize("top", [255, 65535])
def test_the_highest_value_is_among_the_distinct_ones(top):
    np.testing.assert_array_equal(distinct(np.array([[0, top]]), top), [0, top])


# ---------------------------------------------------------------------------------------- compression, labels, pictures


def read_as(mask):
    return meaning(lambda: [mask], "m")


def shapes():
    rng = np.random.default_rng(0)
    box, boxes, lines = np.zeros((3, 200, 260), np.uint8)
    box[60:180, 80:240] = 255
    for _ in range(4):
        cv2.rectangle(boxes, rng.integers(0, 200, 2).tolist(), rng.integers(0, 200, 2).tolist(), 255, -1)
        cv2.line(lines, rng.integers(0, 200, 2).tolist(), rng.integers(0, 200, 2).tolist(), 255, 2)
    yield from (("box", box), ("boxes", boxes), ("lines", lines), ("inverse", 255 - boxes))
    yield "disc", cv2.circle(np.zeros((200, 260), np.uint8), (120, 90), 70, 255, -1)


def compressed(mask, format, quality):
    stream = BytesIO()
    Image.fromarray(np.stack([mask] * 3, axis=2)).save(stream, format, quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(("kind", "mask"), list(shapes()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_mask_of_any_quality_is_a_mask(kind, mask, format):
    for quality in (3, 10, 25, 40, 50, 60, 70, 75, 85, 95, 100):
        values = grey(compressed(mask, format, quality), "m")
        found = read_as(values)
        assert not found.told
        assert np.mean((found.unit(values) > 0.5) != (mask > 0)) < (0.03 if quality < 20 else 0.01), (kind, quality)


@pytest.mark.parametrize("levels", [1, 3, 8])
@pytest.mark.parametrize("colour", [False, True])
def test_noise_of_a_few_levels_is_no_label_and_no_colour(levels, colour):
    mask = cv2.circle(np.zeros((200, 260), np.uint8), (120, 90), 70, 255, -1)
    noise = np.random.default_rng(0).integers(-levels, levels + 1, (200, 260, 3 if colour else 1))
    values = grey(np.clip(mask[..., None] + noise, 0, 255).astype(np.uint8)[..., : 3 if colour else 1], "m")
    values = values if values.ndim == 2 else values[..., 0]
    np.testing.assert_array_equal(read_as(values).unit(values) > 0.5, mask > 0)


@pytest.mark.parametrize(
    "values", [[0, 1, 2, 255], [0, 3, 9, 15, 255], [0, 40, 90, 255], [1, 2], [0, 90, 180], [1, 255]]
)
def test_areas_of_several_labels_are_refused(values):
    mask = np.kron(np.random.default_rng(0).choice(values, (9, 9)), np.ones((20, 20))).astype(np.uint8)
    if values == [1, 255]:
        mask = np.where(mask == 1, 1, 2).astype(np.uint8)
    assert "a label map" in outcome(mask, len(mask))[0]


def texture(seed=0):
    """A grey photograph: shading, edges and the noise of a sensor."""
    rng = np.random.default_rng(seed)
    shading = cv2.resize(rng.uniform(60, 190, (6, 8)), (320, 240), interpolation=cv2.INTER_CUBIC)
    return np.clip(shading + rng.normal(0, 4, (240, 320)), 0, 255).astype(np.uint8)


def pictures_of():
    photo = texture()
    inside = cv2.circle(np.zeros((240, 320), np.uint8), (160, 120), 90, 1, -1) > 0
    yield "photograph", photo
    yield "on black", np.where(inside, photo, 0)
    yield "on white", np.where(inside, photo, 255)
    yield "as floats", photo / np.float32(255)
    yield "of 16 bits", photo * np.uint16(257)
    yield (
        "compressed",
        cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], cv2.IMREAD_GRAYSCALE),
    )


@pytest.mark.parametrize("height", [1, 7, 240])
@pytest.mark.parametrize(
    ("kind", "mask"), list(pictures_of()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_grey_picture_is_no_mask_by_bands_of_any_height(kind, mask, height):
    told, _ = outcome(np.ascontiguousarray(mask), height)
    assert "m: a grey picture" in told, kind
    assert "image first and its mask second" in told
    assert "mask[..., -1]" in told
    assert ("mask > 0.5" if mask.dtype.kind == "f" else f"mask > {32767 if mask.dtype == np.uint16 else 127}") in told


def soft_masks():
    binary = cv2.circle(np.zeros((240, 320), np.uint8), (160, 120), 90, 255, -1)
    rng = np.random.default_rng(0)
    hair = binary.copy()
    for x, y in rng.uniform(-40, 40, (300, 2)):
        cv2.line(hair, (160, 30), (int(160 + 2 * x), int(40 + y)), int(rng.integers(40, 255)), 1, cv2.LINE_AA)
    yield "blurred", cv2.GaussianBlur(binary, (0, 0), 30)
    yield "distance", np.rint(2.6 * cv2.distanceTransform(binary, cv2.DIST_L2, 5)).astype(np.uint8)
    yield "hair", hair
    yield "ramp", np.tile(np.linspace(0, 255, 320).astype(np.uint8), (240, 1))
    small = cv2.GaussianBlur(binary[::16, ::16], (0, 0), 2).astype(np.float32) / 255
    yield "of a network", cv2.resize(0.2 + 0.5 * small, (320, 240), interpolation=cv2.INTER_LINEAR)
    yield (
        "of a network, in steps",
        cv2.resize(40 + 100 * small, (320, 240), interpolation=cv2.INTER_NEAREST).astype("u1"),
    )


@pytest.mark.parametrize(
    ("kind", "mask"), list(soft_masks()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_soft_mask_is_no_picture(kind, mask):
    full = 1 if mask.dtype.kind == "f" else 255
    np.testing.assert_allclose(read_as(mask).unit(mask), mask / full, rtol=1e-6, err_msg=kind)


def test_void_is_what_a_truth_leaves_open():
    mask = cv2.circle(np.zeros((90, 120), np.uint8), (60, 45), 30, 1, -1)
    ring = cv2.circle(np.zeros((90, 120), np.uint8), (60, 45), 30, 1, 3) > 0
    for label, void in ((1, 255), (37, 255), (255, 128)):
        values = np.where(ring, void, label * mask).astype(np.uint8)
        np.testing.assert_array_equal(read_as(values).is_void(values), ring)
    assert read_as(mask).is_void(mask) is None
