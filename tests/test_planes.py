from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from refine import planes
from refine.coords import LerpAxis, corner_aligned
from refine.planes import (
    Beside,
    Constant,
    Held,
    Interpolated,
    Memory,
    Plane,
    Reduced,
    Reflected,
    Repeated,
    bands,
    kept,
    reaches,
)
from refine.tiles import Window, cover

RANDOM = np.random.default_rng(0)


def mask(height: int, width: int) -> Held:
    return Held(RANDOM.random((height, width), np.float32))


def picture(height: int, width: int) -> Held:
    return Held(RANDOM.integers(0, 256, (height, width, 3), np.uint8))


def corners(source: Plane, size: tuple[int, int]) -> Interpolated:
    rows, columns = (corner_aligned(n, m, 0, m) for n, m in zip(source.size, size, strict=True))
    return Interpolated(source, rows, columns)


def centres(source: Plane, size: tuple[int, int]) -> Interpolated:
    axes = (LerpAxis.between(m, n, 1, n) for n, m in zip(source.size, size, strict=True))
    rows, columns = ((axis.low, axis.high, axis.fraction) for axis in axes)
    return Interpolated(source, rows, columns)


def whole(plane: Plane) -> np.ndarray:
    height, width = plane.size
    return plane.read(Window(0, height, 0, width))


PLANES: dict[str, Plane] = {
    "held mask": mask(31, 46),
    "held picture": picture(31, 46),
    "constant": Constant(0.25, (31, 46)),
    "reflected mask": Reflected(mask(31, 46), 9),
    "reflected picture": Reflected(picture(31, 46), 9),
    "reflected more than once": Reflected(mask(3, 5), 20),
    "reflected single pixel": Reflected(picture(1, 1), 6),
    "reduced mask": Reduced(mask(61, 93), (23, 40)),
    "reduced picture": Reduced(picture(61, 93), (23, 40)),
    "reduced along one axis": Reduced(mask(61, 40), (7, 40)),
    "not reduced": Reduced(mask(31, 46), (31, 46)),
    "enlarged, corners kept": corners(mask(13, 20), (31, 46)),
    "reduced, corners kept": corners(picture(61, 93), (23, 40)),
    "enlarged at centres": centres(mask(13, 20), (31, 46)),
    "picture enlarged at centres": centres(picture(13, 20), (31, 46)),
    "enlarged from one row": centres(mask(1, 7), (5, 31)),
    "reflected, then reduced": Reduced(Reflected(picture(31, 46), 9), (12, 30)),
    "reflected, then corners kept": corners(Reflected(mask(31, 46), 9), (25, 33)),
    "reduced, then enlarged": centres(Reduced(mask(61, 93), (23, 40)), (61, 93)),
    "repeated": Repeated(picture(13, 20), (31, 46)),
    "repeated less": Repeated(picture(61, 93), (31, 46)),
    "beside each other": Beside((picture(31, 46), Repeated(picture(13, 20), (31, 46)))),
    "beside each other, reduced": Reduced(Beside((picture(31, 46), Repeated(picture(13, 20), (31, 46)))), (12, 30)),
    "enlarged, then reduced": Reduced(corners(mask(13, 20), (50, 66)), (17, 66)),
}


@pytest.mark.parametrize(("size", "expected"), [((1, 3), [0, 1, 2]), ((1, 7), [0, 0, 1, 1, 1, 2, 2]), ((1, 2), [0, 2])])
def test_a_repeated_sample_is_that_of_the_pixel_its_centre_lies_in(size, expected):
    assert whole(Repeated(Held(np.array([[0, 1, 2]])), size)).tolist() == [expected]


def test_channels_of_planes_beside_each_other_follow_each_other():
    one, other = picture(4, 5), picture(4, 5)
    together = whole(Beside((one, other)))
    np.testing.assert_array_equal(together[..., :3], whole(one))
    np.testing.assert_array_equal(together[..., 3:], whole(other))


@pytest.mark.parametrize("name", PLANES)
def test_a_plane_is_the_same_to_the_bit_in_any_windows_as_whole(name):
    plane = PLANES[name]
    height, width = plane.size
    expected = whole(plane)
    assert expected.shape[:2] == plane.size
    rng = np.random.default_rng(1)
    windows = [*cover(height, width, 7, 1), *cover(height, width, 32, 16), Window(height - 1, height, 0, width)]
    for _ in range(30):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        windows.append(Window(top, int(rng.integers(top, height)) + 1, left, int(rng.integers(left, width)) + 1))
    for window in windows:
        part = plane.read(window)
        assert part.dtype == expected.dtype
        np.testing.assert_array_equal(part, expected[window.slices])


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (7, 1), (2, 3), (5, 4), (40, 33)])
@pytest.mark.parametrize("border", [1, 3, 4, 32, 50])
def test_a_reflected_plane_is_numpys_padding(size, border):
    for source in (mask(*size), picture(*size)):
        plane = Reflected(source, border)
        assert plane.size == (size[0] + 2 * border, size[1] + 2 * border)
        beside = [(border, border), (border, border), *[(0, 0)] * (source.array.ndim - 2)]
        np.testing.assert_array_equal(whole(plane), np.pad(source.array, beside, mode="reflect"))


def means(values: np.ndarray, samples: int) -> np.ndarray:
    """Means over the first axis between the edges i n / samples, in float64; a pixel counts by its part inside."""
    n = len(values)
    edges = np.arange(samples + 1) * n / samples
    inside = np.array([[max(0.0, min(end, i + 1) - max(start, i)) for i in range(n)] for start, end in pairwise(edges)])
    return np.tensordot(inside * samples / n, values.astype(np.float64), 1)


@pytest.mark.parametrize(
    ("size", "reduced"),
    [
        ((1, 1), (1, 1)),
        ((1, 9), (1, 4)),
        ((12, 20), (6, 5)),
        ((31, 17), (8, 17)),
        ((13, 29), (12, 11)),
        ((40, 6), (1, 1)),
    ],
)
def test_a_reduced_plane_is_the_mean_of_the_area_that_a_sample_covers(size, reduced):
    soft, colour = mask(*size), picture(*size)
    expected = means(means(soft.array, reduced[0]).T, reduced[1]).T
    np.testing.assert_allclose(whole(Reduced(soft, reduced)), expected, rtol=0, atol=1e-6)
    found = whole(Reduced(colour, reduced))
    assert found.dtype == np.uint8
    for channel in range(3):
        expected = means(means(colour.array[..., channel], reduced[0]).T, reduced[1]).T
        assert np.abs(found[..., channel] - expected).max() <= 0.5 + 1e-9  # rounded


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (4, 5)),
        ((1, 9), (3, 20)),
        ((7, 5), (1, 1)),
        ((13, 20), (31, 47)),
        ((64, 33), (16, 8)),
    ],
)
@pytest.mark.parametrize("align_corners", [True, False])
def test_an_interpolated_plane_is_torchs_interpolation(size, target, align_corners):
    # Places between kept corners are float32 in torch and here; places between centres are float64 here.
    make, dtype = (corners, torch.float32) if align_corners else (centres, torch.float64)
    for source, scale in ((mask(*size), 1), (picture(*size), 255)):
        values = torch.from_numpy(np.atleast_3d(source.array)).permute(2, 0, 1)[None].to(dtype)
        expected = F.interpolate(values, size=target, mode="bilinear", align_corners=align_corners)[0].permute(1, 2, 0)
        plane = make(source, target)
        assert plane.size == target
        assert whole(plane).dtype == np.float32
        np.testing.assert_allclose(np.atleast_3d(whole(plane)) / scale, expected.numpy() / scale, rtol=0, atol=1e-6)


def test_a_plane_of_a_mapped_file_is_read_in_place(tmp_path):
    values = RANDOM.random((20, 30), np.float32)
    np.save(tmp_path / "p.npy", values)
    mapped = np.load(tmp_path / "p.npy", mmap_mode="r")
    part = Held(mapped).read(Window(3, 9, 10, 30))
    assert np.shares_memory(part, mapped)
    np.testing.assert_array_equal(whole(Reduced(Held(mapped), (7, 11))), whole(Reduced(Held(values), (7, 11))))


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 1), (40, 25)])
@pytest.mark.parametrize("band", [1, 60, 10_000])
def test_bands_cover_a_plane_once_from_the_top(monkeypatch, size, band):
    monkeypatch.setattr(planes, "BAND", band)
    found = list(bands(size))
    assert [w.top for w in found] == [0, *(w.bottom for w in found[:-1])]
    assert found[-1].bottom == size[0]
    assert all((w.left, w.right) == (0, size[1]) for w in found)
    assert all(w.height == 1 or w.height * w.width <= band for w in found)


class Counted:
    """A plane that counts the samples read of it."""

    def __init__(self, source: Plane) -> None:
        self.source, self.size, self.read_so_far = source, source.size, 0

    def read(self, window: Window) -> np.ndarray:
        self.read_so_far += window.height * window.width
        return self.source.read(window)


class Remembering(Memory):
    """A store that a second run finds as the first left it."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.steps: set[str] = set()

    def array(self, name, shape, dtype):
        return self.arrays.setdefault(name, np.zeros(shape, dtype))

    def done(self, step):
        return step in self.steps

    def mark(self, step, *arrays):
        assert all(any(np.shares_memory(a, own) for own in self.arrays.values()) for a in arrays)
        self.steps.add(step)


@pytest.mark.parametrize("make", [mask, picture])
def test_a_kept_plane_has_its_values(monkeypatch, make):
    monkeypatch.setattr(planes, "BAND", 100)
    plane = Reduced(make(61, 93), (23, 40))
    held = kept(plane, Memory(), "picture")
    assert isinstance(held, Held)
    assert held.array.dtype == whole(plane).dtype
    np.testing.assert_array_equal(held.array, whole(plane))


def test_a_held_plane_is_not_kept_twice():
    plane = mask(4, 5)
    assert kept(plane, Memory(), "mask") is plane


def test_what_a_store_has_is_not_made_again(monkeypatch):
    monkeypatch.setattr(planes, "BAND", 100)
    store, source = Remembering(), mask(23, 40)
    first = kept(Counted(source), store, "mask")
    store.steps -= {sorted(store.steps)[0]}
    again = Counted(source)
    second = kept(again, store, "mask")
    np.testing.assert_array_equal(second.array, first.array)
    assert 0 < again.read_so_far <= 1 + 2 * 40  # its first sample, for the type, and the band that was not marked


def test_a_reduction_is_kept_by_bands_of_what_it_is_made_of(monkeypatch):
    monkeypatch.setattr(planes, "BAND", 1000)
    windows = []

    class Source(Held):
        def read(self, window):
            windows.append(window)
            return super().read(window)

    source = Source(mask(80, 100).array)
    found = kept(Reduced(source, (16, 20)), Memory(), "small")
    np.testing.assert_array_equal(found.array, Reduced(Held(source.array), (16, 20)).read(Window(0, 16, 0, 20)))
    assert max(w.height * w.width for w in windows) <= 1000


@pytest.mark.parametrize("least", [0.0, 1e-9, 1.0, 200.0])
def test_whether_a_sum_is_reached_is_known_without_reading_on(monkeypatch, least):
    monkeypatch.setattr(planes, "BAND", 100)
    array = np.zeros((20, 10), np.float32)
    assert not reaches(Held(array), least, Memory())
    array[8] = 1
    read = Counted(Held(array))
    assert reaches(read, least, Memory()) == (least <= 10)
    assert read.read_so_far == (100 if least <= 10 else 200)


def test_a_sum_is_exact_beyond_float32():
    pixels = 2**13 * (2**12 + 1)  # float32 counts to 2**24 and no further
    assert reaches(Constant(1.0, (2**13, 2**12 + 1)), pixels, Memory())
    assert not reaches(Constant(1.0, (2**13, 2**12 + 1)), pixels + 1, Memory())
