import numpy as np
import pytest

from refine.tiles import Window, cover


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 65), (64, 64), (129, 1000)])
@pytest.mark.parametrize("side", [1, 32, 100, 4096])
def test_windows_cover_every_pixel_once_and_begin_at_multiples(size, side):
    seen = np.zeros(size, int)
    for window in cover(*size, side, 32):
        assert window.top % 32 == window.left % 32 == 0
        assert max(window.height, window.width) <= max(32, -(-side // 32) * 32)
        seen[window.slices] += 1
    assert (seen == 1).all()


def test_windows_are_about_equally_long():
    assert [w.height for w in cover(2300, 10, 2048, 32)] == [1152, 1148]


def test_a_halo_ends_where_the_picture_does():
    assert Window(0, 32, 64, 96).grown(40, 60, 200) == Window(0, 60, 24, 136)


def test_a_window_on_a_coarser_grid_keeps_its_last_partial_cell():
    assert Window(32, 65, 0, 33).divided(2) == Window(16, 33, 0, 17)


def test_a_split_window_is_covered_once():
    seen = np.zeros((50, 70), int)
    for window in Window(3, 47, 5, 66).split(16):
        seen[window.slices] += 1
    assert seen.sum() == 44 * 61
    assert (seen[3:47, 5:66] == 1).all()
