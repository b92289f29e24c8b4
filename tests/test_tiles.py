import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.tiles import Window, cover


@st.composite
def windows_of_a_picture(draw):
    """A picture's size (H, W) and a window in it."""
    size = draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in size]
    (top, bottom), (left, right) = ends
    return size, Window(top, bottom + 1, left, right + 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 65), (64, 64), (129, 1000)])
@pytest.mark.parametrize("side", [1, 32, 100, 4096])
@pytest.mark.parametrize("multiple", [1, 3, 32])
def test_windows_cover_every_pixel_once_and_begin_at_multiples(size, side, multiple):
    seen = np.zeros(size, int)
    for window in cover(*size, side, multiple):
        assert window.top % multiple == window.left % multiple == 0
        assert max(window.height, window.width) <= max(multiple, -(-side // multiple) * multiple)
        seen[window.slices] += 1
    assert (seen == 1).all()


def test_windows_are_about_equally_long():
    assert [w.height for w in cover(2300, 10, 2048, 32)] == [1152, 1148]


def test_a_halo_ends_where_the_picture_does():
    assert Window(0, 32, 64, 96).grown(40, 60, 200) == Window(0, 60, 24, 136)


@given(windows_of_a_picture(), st.integers(1, 40))
@settings(deadline=None)
def test_an_aligned_window_holds_the_window_and_is_no_larger_than_its_multiples_ask(drawn, multiple):
    (height, width), window = drawn
    aligned = window.aligned(multiple, height, width)
    assert aligned.top <= window.top < aligned.top + multiple
    assert aligned.left <= window.left < aligned.left + multiple
    assert aligned.top % multiple == aligned.left % multiple == 0
    for end, inner, length in ((aligned.bottom, window.bottom, height), (aligned.right, window.right, width)):
        assert inner <= end < inner + multiple
        assert end % multiple == 0 or end == length
        assert end <= length


def test_a_window_aligned_to_one_is_itself():
    assert Window(3, 7, 2, 9).aligned(1, 20, 20) == Window(3, 7, 2, 9)


def test_a_moved_window_has_its_size():
    moved = Window(3, 7, 2, 9).moved(10, -2)
    assert moved == Window(13, 17, 0, 7)
    assert (moved.height, moved.width) == (4, 7)


def test_a_window_on_a_coarser_grid_keeps_its_last_partial_cell():
    assert Window(32, 65, 0, 33).divided(2) == Window(16, 33, 0, 17)


def test_a_split_window_is_covered_once():
    seen = np.zeros((50, 70), int)
    for window in Window(3, 47, 5, 66).split(16):
        assert max(window.height, window.width) <= 16
        seen[window.slices] += 1
    assert seen.sum() == 44 * 61
    assert (seen[3:47, 5:66] == 1).all()
