import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from refine.config import Cascade
from refine.coords import LerpAxis
from refine.frame import Frame, View, scaled
from refine.models import PRESETS, build
from refine.planes import Constant, Held, Interpolated, Plane, Reduced
from refine.tiles import Window

CPU = torch.device("cpu")
PUBLISHED, AREA = PRESETS["crm-r50"].cascade, PRESETS["crm-s"].cascade


def framed(height: int, width: int, cascade: Cascade) -> Frame:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Frame(Held(image), Held(rng.random((height, width), np.float32)), cascade, CPU)


def whole(plane: Plane) -> np.ndarray:
    return plane.read(Window(0, plane.size[0], 0, plane.size[1]))


def viewed(frame: Frame, size: tuple[int, int], grid: tuple[int, int], current: Plane | None = None) -> View:
    """A view whose queries are spread as ``grid``."""
    rows, columns = (LerpAxis.between(q, n, 2, -(-n // 2)) for q, n in zip(grid, size, strict=True))
    return View.of(frame, size, frame.mask if current is None else current, rows, columns)


def window_of(plane_size: tuple[int, int]) -> Window:
    return Window(0, plane_size[0], 0, plane_size[1])


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (33, 34), (50, 7)])
def test_the_published_border_is_numpys_reflection_and_is_cut_again(size):
    frame = framed(*size, PUBLISHED)
    assert frame.size == (size[0] + 64, size[1] + 64)
    given = np.random.default_rng(0)
    image, mask = given.integers(0, 256, (*size, 3), dtype=np.uint8), given.random(size, np.float32)
    np.testing.assert_array_equal(whole(frame.mask), np.pad(mask, 32, mode="reflect"))
    np.testing.assert_array_equal(whole(frame.image), np.pad(image, ((32, 32), (32, 32), (0, 0)), mode="reflect"))
    np.testing.assert_array_equal(frame.cut(frame.mask), mask)


def test_without_a_border_the_planes_are_those_given():
    frame = framed(5, 7, AREA)
    assert isinstance(frame.image, Held)
    assert isinstance(frame.mask, Held)
    assert frame.size == frame.original == (5, 7)


def test_the_published_input_is_normalised_and_resized_with_its_corners_kept():
    frame = framed(40, 60, PUBLISHED)
    size = frame.scaled(0.5)
    assert size == (52, 62)
    x = viewed(frame, size, frame.size).input(window_of(size))
    rgb = torch.from_numpy(whole(frame.image)).permute(2, 0, 1)[None].float() / 255
    rgb = (rgb - torch.tensor(PUBLISHED.mean).view(3, 1, 1)) / torch.tensor(PUBLISHED.std).view(3, 1, 1)
    mask = 2 * torch.from_numpy(whole(frame.mask))[None, None] - 1
    expected = F.interpolate(torch.cat((rgb, mask), 1), size=size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)


def test_halves_are_rounded_to_even_and_no_side_vanishes():
    assert framed(36, 20, PUBLISHED).scaled(1 / 8) == (12, 10)  # of 100 x 84 with its border
    assert scaled((1, 3), 1 / 8) == (1, 1)


def test_an_area_input_is_the_mean_of_the_pixels_a_sample_covers():
    frame = framed(40, 60, AREA)
    assert frame.size == (40, 60)
    x = viewed(frame, (20, 30), (40, 60)).input(Window(0, 20, 0, 30))
    means = whole(frame.image).reshape(20, 2, 30, 2, 3).mean((1, 3)) / 255
    np.testing.assert_allclose(x[0, :3].permute(1, 2, 0).numpy(), means, atol=0.51 / 255)
    masks = (2 * whole(frame.mask) - 1).reshape(20, 2, 30, 2).mean((1, 3))
    np.testing.assert_allclose(x[0, 3].numpy(), masks, atol=1e-6)


def guide_in(view: View, window: Window):
    return view.guide(window, view.before.read(window))


def points_of(grid: tuple[int, int]) -> np.ndarray:
    return np.argwhere(np.ones(grid, bool))


@pytest.mark.parametrize("cascade", [PUBLISHED, AREA], ids=["published", "area"])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (41, 30)])
def test_a_window_of_the_input_and_of_the_guide_is_that_of_the_whole(cascade, size):
    frame = framed(*size, cascade)
    view = viewed(frame, frame.scaled(0.5), frame.size)
    x = view.input(window_of(view.size))
    assert x.shape == (1, 4, *view.size)
    assert x.dtype == torch.float32
    guide = guide_in(view, window_of(view.grid))(points_of(view.grid)).reshape(*view.grid, 4)
    for full in (view.size, view.grid):
        for top, left in ((0, 0), (full[0] // 2, full[1] // 3), (full[0] - 1, full[1] - 1)):
            part = Window(top, min(top + 9, full[0]), left, min(left + 8, full[1]))
            if full == view.size:
                assert torch.equal(view.input(part), x[(..., *part.slices)])
            else:
                found = guide_in(view, part)(points_of((part.height, part.width)))
                assert torch.equal(found, guide[part.slices].reshape(-1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])  # the last has no kernel
@pytest.mark.parametrize("size", [(1, 1), (40, 61), (64, 32)])
def test_the_input_is_continued_to_a_multiple_by_its_last_pixels(monkeypatch, size, dtype):
    view = viewed(framed(*size, AREA), size, size)
    x = view.input(window_of(size))
    rows, columns = (np.minimum(np.arange(-(-n // 32) * 32), n - 1) for n in size)
    monkeypatch.setattr("refine.frame.STRIP", 100)
    continued = view.input(window_of(size), dtype, 32)
    assert continued.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(continued, x[:, :, rows][..., columns].to(dtype))


def test_a_guide_is_the_picture_at_the_queries_and_the_inputs_mask_enlarged():
    frame = framed(40, 60, AREA)
    view = viewed(frame, (20, 30), (30, 45))
    guide = guide_in(view, Window(0, 30, 0, 45))(points_of((30, 45))).reshape(30, 45, 4).permute(2, 0, 1)
    torch.testing.assert_close(guide[:3], viewed(frame, (30, 45), (30, 45)).input(Window(0, 30, 0, 45))[0, :3])
    mask = view.input(Window(0, 20, 0, 30))[:, 3:]
    expected = F.interpolate(mask, size=(30, 45), mode="bilinear", align_corners=False)
    torch.testing.assert_close(guide[3:], expected[0])


@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_guide_at_the_inputs_own_samples_is_the_input_there(count):
    view = viewed(framed(40, 60, AREA), (20, 30), (20, 30))
    window = Window(8, 19, 12, 30)
    points = np.random.default_rng(1).integers((0, 0), (11, 18), (count, 2))
    found = guide_in(view, window)(points)
    assert found.shape == (count, 4)
    assert torch.equal(found, view.input(window)[0, :, points[:, 0], points[:, 1]].T)


def test_before_a_query_is_decoded_it_has_the_current_value_where_that_is_known():
    frame = framed(40, 60, AREA)
    current = Held(np.random.default_rng(3).random((40, 60), np.float32))
    known = viewed(frame, (20, 30), (40, 60), current)
    assert known.before is current
    assert known.grid == (40, 60)
    # Else that of the network's input, so that before and after are of the same grid.
    between = viewed(frame, (20, 30), (30, 45), current)
    reduced = torch.from_numpy(whole(between.mask))[None, None]
    expected = F.interpolate(reduced, size=(30, 45), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(whole(between.before), expected, atol=1e-6)
    np.testing.assert_array_equal(whole(viewed(frame, (20, 30), (20, 30), current).before), reduced[0, 0])


def test_a_picture_is_reduced_once():
    frame = framed(40, 60, AREA)
    reduced = frame.picture((20, 30))
    assert isinstance(reduced, Held)
    assert frame.picture((20, 30)) is reduced
    np.testing.assert_array_equal(reduced.array, whole(Reduced(frame.image, (20, 30))))
    assert frame.picture((40, 60)) is frame.image


def test_planes_are_resized_as_the_cascade_says():
    plane = Held(np.random.default_rng(0).random((20, 30), np.float32))
    area, published = framed(20, 30, AREA), framed(20, 30, PUBLISHED)
    assert area.resized(plane, (20, 30)) is plane
    assert isinstance(area.resized(plane, (10, 30)), Reduced)
    for frame, size, align in ((area, (41, 60), False), (published, (41, 60), True), (published, (7, 11), True)):
        found = frame.resized(plane, size)
        assert isinstance(found, Interpolated)
        values = torch.from_numpy(plane.array)[None, None]
        expected = F.interpolate(values, size=size, mode="bilinear", align_corners=align)[0, 0]
        np.testing.assert_allclose(whole(found), expected, atol=1e-6)


def test_the_last_probabilities_are_enlarged_before_the_border_is_cut():
    frame = framed(20, 30, PUBLISHED)
    p = Held(np.random.default_rng(0).random((42, 47), np.float32))  # half of 84 x 94
    expected = F.interpolate(torch.from_numpy(p.array)[None, None], size=(84, 94), mode="bilinear", align_corners=True)
    found = frame.cut(p)
    np.testing.assert_allclose(found, expected[0, 0, 32:52, 32:62], atol=1e-6)
    assert found.flags.c_contiguous


def summing(foreground: float, size: tuple[int, int]) -> Held:
    return Held(np.full(size, foreground / math.prod(size), np.float32))


@pytest.mark.parametrize(("foreground", "empty"), [(0.0, True), (0.9, True), (1.1, False)])
def test_less_than_one_pixel_of_foreground_is_empty(foreground, empty):
    frame = framed(10, 10, Cascade(pad=0))
    assert frame.is_empty(summing(foreground, (10, 10))) == empty
    assert frame.is_empty(summing(foreground / 4, (5, 5))) == empty  # at a quarter of the places
    assert frame.may_be_empty(summing(foreground, (5, 5))) == empty


def test_where_any_foreground_counts_only_none_is_empty():
    frame = framed(10, 10, AREA)
    assert not frame.is_empty(summing(1e-9, (10, 10)))
    assert frame.is_empty(summing(0.0, (10, 10)))


def test_arrays_that_must_not_be_written_are_read():
    image, mask = np.zeros((8, 9, 3), np.uint8), np.ones((8, 9), np.float32)
    image.flags.writeable = mask.flags.writeable = False
    frame = Frame(Held(image), Held(mask), AREA, CPU)
    view = viewed(frame, (8, 9), (8, 9))
    assert view.input(Window(0, 8, 0, 9))[0, 3].min() == 1
    assert guide_in(view, Window(0, 8, 0, 9))(np.array([[7, 8]])).tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize("model", PRESETS)
def test_every_models_mean_and_deviation_are_applied(model):
    cascade = PRESETS[model].cascade
    frame = Frame(Held(np.full((4, 4, 3), 51, np.uint8)), Constant(0.5, (4, 4)), cascade, CPU)
    network, size = build(PRESETS[model]), frame.size
    axes = [network.axis(n, n) for n in size]
    x = View.of(frame, size, frame.mask, *axes).input(window_of(size))
    for channel, (mean, std) in enumerate(zip(cascade.mean, cascade.std, strict=True)):
        torch.testing.assert_close(x[0, channel], torch.full(size, (0.2 - mean) / std))
    assert not x[0, 3].any()
