import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refine.errors import InputError
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
