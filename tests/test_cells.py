import numpy as np
import pytest
from scipy import ndimage

from refine.cells import BACKGROUND, FOREGROUND, Cells, narrow, reach
from refine.planes import Held, Memory
from refine.tiles import Window


def mask_of(*windows, size=(90, 120)):
    """Of windows (top, bottom, left, right)."""
    out = np.zeros(size, np.float32)
    for window in windows:
        out[Window(*window).slices] = 1
    return out


def noise(size=(61, 83), seed=0):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 2)
    return (smooth > smooth.mean()).astype(np.float32)


@pytest.mark.parametrize("cells", [(61, 83), (13, 17), (1, 1), (60, 5)])
def test_a_cell_has_the_classes_of_its_pixels(cells):
    p = noise()
    found = Cells(cells, Memory()).classes(Held(p))
    for y in range(cells[0]):
        for x in range(cells[1]):
            places = zip((y, x), p.shape, cells, strict=True)
            rows, columns = (slice(i * n // k, (i + 1) * n // k) for i, n, k in places)
            own = p[rows, columns] > 0.5
            assert found[y, x] == BACKGROUND * (~own).any() + FOREGROUND * own.any()


@pytest.mark.parametrize("rows", [1, 7])
def test_by_bands_classes_and_narrow_parts_are_the_same(monkeypatch, rows):
    p, cells = Held(noise((240, 83))), Cells((120, 41), Memory())

    def found():
        parts = [(bits, classes) for _, bits, classes in cells.narrow(p, 5)]
        return [cells.classes(p), *(np.concatenate(part) for part in zip(*parts, strict=True))]

    whole = found()
    monkeypatch.setattr("refine.cells.BAND", 2 * 83 * rows)
    assert len(list(cells.narrow(p, 5))) > 1
    for one, other in zip(found(), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("width", "expected"), [(1, True), (4, True), (6, True), (7, False), (20, False)])
def test_a_bar_is_narrow_if_a_disc_does_not_fit(width, expected):
    bar = mask_of((20, 20 + width, 10, 110)) > 0
    assert narrow(bar, 7).any() == expected
    if expected:
        np.testing.assert_array_equal(narrow(bar, 7), bar)


def test_a_branch_of_something_wide_is_narrow_and_its_corners_are_not():
    body, branch = mask_of((20, 70, 20, 60)) > 0, mask_of((40, 43, 60, 110)) > 0
    found = narrow(body | branch, 9)
    assert found[40:43, 62:110].all()
    assert not found[:, :52].any()


def test_a_small_blob_is_narrow_and_a_large_one_is_not():
    found = narrow(mask_of((10, 14, 10, 15), (40, 80, 40, 80)) > 0, 9)
    np.testing.assert_array_equal(found, mask_of((10, 14, 10, 15)) > 0)


@pytest.mark.parametrize("side", [3, 7, 11])
def test_what_is_narrow_depends_on_no_more_than_its_reach_around(side):
    cells = noise((120, 140), 3) > 0
    halo = reach(side)
    part = (slice(50, 60), slice(60, 80))
    around = (slice(50 - halo, 60 + halo), slice(max(0, 60 - halo), 80 + halo))
    inside = (slice(halo, halo + 10), slice(60 - around[1].start, 80 - around[1].start))
    np.testing.assert_array_equal(narrow(cells[around], side)[inside], narrow(cells, side)[part])


def test_gaps_are_found_as_parts_are():
    p = Held(1 - mask_of((40, 43, 0, 120)))
    cells = Cells(p.size, Memory())
    ((_, bits, classes),) = cells.narrow(p, 9)
    np.testing.assert_array_equal(bits == BACKGROUND, p.array == 0)
    np.testing.assert_array_equal(classes == FOREGROUND, p.array == 1)


def test_the_pixels_of_cells_and_the_cells_of_pixels_agree():
    cells, size = Cells((13, 17), Memory()), (61, 83)
    chosen = np.random.default_rng(1).random((13, 17)) > 0.7
    filled = np.zeros(size, bool)
    for window, pixels in cells.pixels(chosen, size):
        filled[window.slices] |= pixels
    window = Window(5, 50, 11, 80)
    np.testing.assert_array_equal(cells.spread(chosen, window, size), filled[window.slices])
    few = np.zeros((13, 17), bool)
    few[3, 4] = few[5, 2] = True
    assert cells.around(few, size) == Window(3 * 61 // 13, 6 * 61 // 13, 2 * 83 // 17, 5 * 83 // 17)
    assert cells.classes(Held(filled.astype(np.float32)))[chosen].min() == FOREGROUND
    rest = np.zeros(size, bool)
    for part, pixels in cells.pixels(chosen[4:], size, 4):
        rest[part.slices] |= pixels
    top = 4 * 61 // 13
    np.testing.assert_array_equal(rest[top:], filled[top:])
    assert not rest[:top].any()


def test_a_cell_is_the_object_where_the_mean_of_its_probabilities_says_so():
    p = np.random.default_rng(2).random((60, 80)).astype(np.float32)
    means = p.reshape(15, 4, 20, 4).mean((1, 3))
    for least in (0.5, 0.45):
        found = Cells((15, 20), Memory()).objects(Held(p), least)
        np.testing.assert_array_equal(found, means >= least)
