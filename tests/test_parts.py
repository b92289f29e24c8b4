import numpy as np
import pytest
from scipy import ndimage

from refine.parts import Parts, around
from refine.planes import Held, Memory
from refine.tiles import Window

EIGHT = np.ones((3, 3))


def soft(size=(70, 90), seed=0, sigma=1.5):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), sigma)
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def sparse(holes):
    """With parts, or holes, some px apart."""
    return np.clip(soft(seed=4, sigma=2.5) + (0.15 if holes else -0.15), 0, 1).astype(np.float32)


def parts_of(p, other, **how):
    window = Window(0, p.shape[0], 0, p.shape[1])
    return Parts.of(Held(p), Held(other), window, Memory(), **how)


def by_scipy(p, other, *, holes=False, gap=0):
    """(pixels, held, length) of each part, sorted, and their mean sureness in that order."""
    mask, held, sure = (p <= 0.5, other <= 0.5, 1 - p) if holes else (p > 0.5, other > 0.5, p)
    joined = ndimage.binary_dilation(mask, np.ones((2 * gap + 1,) * 2)) if gap else mask
    labels, count = ndimage.label(joined, EIGHT if gap or not holes else None)
    out = []
    for label in range(1, count + 1):
        here = mask & (labels == label)
        rows, columns = np.nonzero(here)
        length = max(np.ptp(rows), np.ptp(columns)) + 1
        out.append((len(rows), int(held[here].sum()), int(length), float(sure[here].mean(dtype=np.float64))))
    return sorted(out)


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("gap", [0, 2])
def test_parts_are_those_of_scipy_by_any_bands(monkeypatch, rows, holes, gap):
    p, other = sparse(holes), soft(seed=1)
    monkeypatch.setattr("refine.parts.BAND", 2 * p.shape[1] * rows)
    parts = parts_of(p, other, holes=holes, gap=gap)
    found = sorted(zip(*(a.tolist() for a in (parts.pixels, parts.held, parts.length, parts.sure)), strict=True))
    expected = by_scipy(p, other, holes=holes, gap=gap)
    assert [line[:3] for line in found] == [line[:3] for line in expected]
    np.testing.assert_allclose([line[3] for line in found], [line[3] for line in expected], atol=1e-4)
    assert len(parts) == len(expected) > 3


@pytest.mark.parametrize("rows", [2, 1000])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("gap", [0, 2])
def test_the_marked_pixels_are_those_of_the_chosen_parts(monkeypatch, rows, holes, gap):
    p, other = sparse(holes), soft(seed=1)
    monkeypatch.setattr("refine.parts.BAND", 2 * p.shape[1] * rows)
    parts = parts_of(p, other, holes=holes, gap=gap)
    chosen = parts.pixels % 2 == 0
    marks = np.zeros(p.shape, np.uint8)
    for window, pixels in parts.marked(chosen):
        marks[window.slices] += pixels
    assert marks.max() == 1
    assert marks.sum() == parts.pixels[chosen].sum() > 0
    assert (p[marks > 0] <= 0.5).all() if holes else (p[marks > 0] > 0.5).all()
    assert not parts.marked(np.zeros(len(parts), bool))


def test_a_spiral_whose_turns_meet_far_below_is_one_part(monkeypatch):
    p = np.zeros((60, 60), np.float32)
    for i in range(0, 28, 4):
        p[i : 60 - i, i] = p[i : 60 - i, 59 - i] = p[59 - i, i : 60 - i] = 1
        p[59 - i, i : i + 5] = p[55 - i : 60 - i, i] = 1
    p[58, 0:30] = 1
    monkeypatch.setattr("refine.parts.BAND", 2 * 60 * 4)
    assert len(parts_of(p, p)) == ndimage.label(p > 0.5, EIGHT)[1]


def test_without_any_there_are_none():
    parts = parts_of(np.zeros((5, 6), np.float32), np.zeros((5, 6), np.float32))
    assert len(parts) == 0
    assert parts.marked(np.zeros(0, bool)) == []


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_window_around_some_planes_holds_all_that_is_set_and_a_pixel_more(monkeypatch, rows):
    monkeypatch.setattr("refine.parts.BAND", 2 * 50 * rows)
    one, other = np.zeros((40, 50), np.float32), np.zeros((40, 50), np.float32)
    assert around(Held(one), store=Memory()) == Window(0, 0, 0, 0)
    one[10:12, 20:30], other[15, 49] = 1, 0.6
    other[0, 0] = 0.5  # is ground
    assert around(Held(one), store=Memory()) == Window(9, 13, 19, 31)
    assert around(Held(one), Held(other), store=Memory()) == Window(9, 17, 19, 50)
