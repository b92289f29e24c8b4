import numpy as np
import pytest
import torch

from refine.config import Cascade
from refine.engine import Refiner
from refine.frame import Frame
from refine.guard import Guard
from refine.planes import Held
from refine.tiles import Window

SIZE = (96, 128)


def boxes(*windows, size=SIZE):
    """A mask of windows (top, bottom, left, right)."""
    out = np.zeros(size, np.float32)
    for window in windows:
        out[Window(*window).slices] = 1
    return out


def guarded(coarse, p, cells=(12, 16)):
    """What is left of probabilities, and the pixels taken back."""
    image = Held(np.zeros((*coarse.shape, 3), np.uint8))
    frame = Frame(image, Held(coarse), Cascade(pad=0, resize="area"), torch.device("cpu"))
    out = p.copy()
    count = Guard(frame, cells).take_back(Held(out), "1")
    return out, count


OBJECT, OTHER = (16, 48, 16, 56), (60, 90, 90, 120)


def test_a_part_that_touches_nothing_of_the_coarse_mask_is_taken_back():
    coarse, found = boxes(OBJECT), boxes(OBJECT, OTHER)
    out, count = guarded(coarse, found)
    np.testing.assert_array_equal(out, coarse)
    assert count >= np.count_nonzero(found != coarse)


def test_a_hole_where_the_coarse_mask_has_none_is_taken_back():
    coarse, found = 1 - boxes(OTHER), 1 - boxes(OBJECT, OTHER)
    np.testing.assert_array_equal(guarded(coarse, found)[0], coarse)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(
    "windows",
    [
        [(16, 48, 16, 120)],  # grown far beyond the coarse mask
        [(40, 44, 50, 54)],  # shrunk to a bit of it
        [(16, 48, 16, 56), (20, 24, 56, 128)],  # with a thin arm
        [(8, 20, 8, 20), (44, 60, 50, 60)],  # broken in two
        [],
    ],
)
def test_what_hangs_together_with_the_coarse_mask_stays(windows, invert):
    coarse, found = boxes(OBJECT), boxes(*windows)
    if invert:
        coarse, found = 1 - coarse, 1 - found
    if not windows:
        found = coarse
    out, count = guarded(coarse, found)
    np.testing.assert_array_equal(out, found)
    assert count == 0


def test_parts_less_than_a_cell_apart_are_one():
    near, far = boxes(OBJECT, (16, 48, 60, 64)), boxes(OBJECT, (16, 48, 80, 84))
    np.testing.assert_array_equal(guarded(boxes(OBJECT), near)[0], near)
    np.testing.assert_array_equal(guarded(boxes(OBJECT), far)[0], boxes(OBJECT))


@pytest.mark.parametrize("size", [(12, 16), (37, 51), SIZE])
def test_probabilities_of_any_size_are_guarded(size):
    coarse = boxes(OBJECT)
    found = np.zeros(size, np.float32)
    rows, columns = (slice(n * 16 // N, n * 48 // N) for n, N in zip(size, SIZE, strict=True))
    found[rows, columns] = 1
    loose = found.copy()
    loose[-2:, -2:] = 0.9
    np.testing.assert_array_equal(guarded(coarse, loose)[0][rows, columns], found[rows, columns])
    assert (guarded(coarse, loose)[0] > 0.5).sum() == (found > 0.5).sum()


def test_by_bands_it_is_the_same(monkeypatch):
    coarse, found = boxes(OBJECT), boxes(OBJECT, OTHER, (2, 10, 100, 110))
    whole = guarded(coarse, found)
    monkeypatch.setattr("refine.guard.BAND", 700)
    parts = guarded(coarse, found)
    np.testing.assert_array_equal(parts[0], whole[0])
    assert parts[1] == whole[1]


def test_an_object_like_the_one_is_left_alone_and_the_report_says_so():
    """Two discs of one colour, of which the coarse mask has one."""
    y, x = np.mgrid[:256, :384]
    left, right = np.hypot(y - 128, x - 100) < 50, np.hypot(y - 128, x - 290) < 50
    noise = np.random.default_rng(0).integers(0, 20, (256, 384, 3))
    image = (np.where((left | right)[..., None], (60, 150, 40), (120, 90, 60)) + noise).astype(np.uint8)
    refiner = Refiner()
    kept, free = (refiner.refine(image, left, guard=guard, decode="dense") for guard in (True, False))
    assert not kept.mask[right].any()
    taken = sum(scale.taken_back for scale in kept.report.scales)
    assert (taken > 0) == bool(free.mask[right].any())
    assert all(scale.taken_back == 0 for scale in free.report.scales)
