import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import ndimage

from refine.change import change
from refine.planes import Held, Memory
from refine.tiles import Window

SIZE = (200, 300)


def mask_of(*windows, size=SIZE):
    """Of windows (top, bottom, left, right)."""
    out = np.zeros(size, np.float32)
    for window in windows:
        out[Window(*window).slices] = 1
    return out


def changed(coarse, refined):
    return change(Held(coarse), Held(refined), Memory())


BODY = (50, 150, 80, 200)


def test_of_the_same_mask_nothing_changed():
    found = changed(mask_of(BODY, (5, 9, 5, 9)), mask_of(BODY, (5, 9, 5, 9)))
    assert (found.parts, found.parts_lost, found.parts_added, found.lost_share) == (2, 0, 0, 0)
    assert (found.area_ratio, found.contour_moved, found.contour_distance) == (1, 0, 3)
    assert not found.much
    assert found.warnings == ()


def test_parts_lost_and_added_are_counted_with_their_area():
    found = changed(mask_of(BODY, (5, 25, 5, 25), (180, 185, 5, 15)), mask_of(BODY, (5, 6, 5, 6), (5, 9, 280, 290)))
    assert (found.parts, found.parts_lost, found.parts_added) == (3, 1, 1)
    assert found.lost_share == 50 / (100 * 120 + 400 + 50)
    assert found.area_ratio == pytest.approx((100 * 120 + 1 + 40) / (100 * 120 + 400 + 50))


@pytest.mark.parametrize("rows", [1, 11])
def test_by_bands_it_is_the_same(monkeypatch, rows):
    coarse, refined = (
        (ndimage.gaussian_filter(np.random.default_rng(seed).random(SIZE), 4) > 0.5).astype(np.float32)
        for seed in (0, 1)
    )
    whole = changed(coarse, refined)
    for name in ("refine.parts.BAND", "refine.cells.BAND", "refine.planes.BAND"):
        monkeypatch.setattr(name, 2 * SIZE[1] * rows)
    assert changed(coarse, refined) == whole
    assert whole.parts_lost > 0


@pytest.mark.parametrize(("by", "moved"), [(1, 0.0), (2, 0.0), (8, 0.25), (30, 0.25)])
def test_a_side_that_moved_further_than_the_distance_counts_as_moved(by, moved):
    square = (50, 150, 80, 180)
    found = changed(mask_of(square), mask_of((50, 150, 80, 180 + by)))
    assert found.contour_moved == pytest.approx(moved, abs=0.04)


def test_the_distance_is_a_hundredth_of_the_longer_side():
    assert changed(mask_of(BODY, size=(3000, 2000)), mask_of(BODY, size=(3000, 2000))).contour_distance == 30


def test_an_object_that_is_gone_is_much_and_is_told():
    found = changed(mask_of(BODY), mask_of())
    assert (found.parts_lost, found.lost_share, found.area_ratio, found.contour_moved) == (1, 1, 0, 1)
    (text,) = found.warnings
    assert "1 of 1 parts of the coarse mask lost (100.0% of its area)" in text


def test_of_an_empty_coarse_mask_there_is_no_ratio():
    found = changed(mask_of(), mask_of(BODY))
    assert (found.parts, found.parts_added, found.area_ratio, found.contour_moved) == (0, 1, None, 0)
    assert json.loads(json.dumps(asdict(found)))["area_ratio"] is None


def test_many_lost_parts_are_told_though_the_largest_stays():
    small = [(y, y + 6, x, x + 6) for y in range(10, 190, 20) for x in range(10, 70, 12)]
    found = changed(mask_of(BODY, *small), mask_of(BODY))
    assert found.parts_lost == len(small)
    assert found.much
