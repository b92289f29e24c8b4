import inspect
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

import refine_kernels
from refine_kernels import (
    any_in_cells,
    area_reduce,
    band_counts,
    contour_band,
    covered,
    fill_cells,
    grid_lines,
    interpolate,
    mask_and_doubt,
    network_input,
    part_sums,
    reference,
    strided_changes,
    threads,
)

ROOT = Path(__file__).parents[1]
EDGES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 5)]
ABOVE_A_SQUARE = [(127, 129), (128, 256), (301, 190)]  # kernels that work in squares have them of 128 px and more

shapes = array_shapes(min_dims=2, max_dims=2, max_side=24)
masks = shapes.flatmap(lambda shape: arrays(bool, shape))
sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
few = settings(max_examples=60, deadline=None)  # the first example compiles


def blobs(shape, seed=0, smooth=6.0):
    noise = np.random.default_rng(seed).random(shape, dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), smooth) if smooth else noise
    return noise > np.median(noise)


def picture(shape, dtype, seed=0):
    random = np.random.default_rng(seed)
    if dtype == np.uint8:
        return random.integers(0, 256, (*shape, 3), np.uint8)
    return random.random(shape, np.float32)


def positions(length, count, seed=0):
    """Some places between the samples of an axis, rising."""
    low = np.sort(np.random.default_rng(seed).integers(0, length, count))
    return low, np.minimum(low + 1, length - 1), np.random.default_rng(seed).random(count, np.float32)


def whole_reduced(source, size):
    return area_reduce(source, source.shape[:2], size, (0, size[0], 0, size[1]), (0, 0))


def run(code, **environment):
    paths = os.pathsep.join(map(str, (ROOT / "kernels", ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestContourBand:
    @few
    @given(masks, st.integers(1, 30))
    def test_equals_its_plain_twin(self, mask, band):
        np.testing.assert_array_equal(contour_band(mask, band), reference.contour_band(mask, band))

    @pytest.mark.parametrize("band", [1, 2, 7, 31, 32, 33, 200])
    @pytest.mark.parametrize("shape", EDGES + ABOVE_A_SQUARE)
    def test_equals_the_morphological_gradient_by_a_square(self, shape, band):
        mask = blobs(shape)
        square = np.ones((2 * band + 1, 2 * band + 1), np.uint8)
        expected = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, square) > 0
        np.testing.assert_array_equal(contour_band(mask, band), expected)

    def test_one_pixel_reaches_a_square_over_the_seams_of_the_work(self):
        mask = np.zeros((300, 400), bool)
        mask[127, 255] = True
        expected = np.zeros_like(mask)
        expected[127 - 20 : 128 + 20, 255 - 20 : 256 + 20] = True
        np.testing.assert_array_equal(contour_band(mask, 20), expected)

    @pytest.mark.parametrize("value", [False, True])
    @pytest.mark.parametrize("shape", EDGES + ABOVE_A_SQUARE)
    def test_the_border_of_the_picture_is_no_contour(self, shape, value):
        assert not contour_band(np.full(shape, value), 3).any()

    def test_both_classes_are_alike(self):
        mask = blobs((150, 140))
        np.testing.assert_array_equal(contour_band(mask, 5), contour_band(~mask, 5))

    def test_a_band_wider_than_the_picture_takes_no_more_memory(self):
        for shape in ((50, 70), (3, 30000)):
            mask = blobs(shape)
            np.testing.assert_array_equal(contour_band(mask, 10**7), np.ones_like(mask))

    def test_a_band_below_one_is_refused(self):
        with pytest.raises(AssertionError):
            contour_band(np.ones((3, 3), bool), 0)


class TestStrided:
    @pytest.mark.parametrize(
        ("length", "stride", "lines"),
        [
            (1, 1, [0]),
            (1, 4, [0]),
            (2, 4, [0, 1]),
            (5, 1, [0, 1, 2, 3, 4]),
            (5, 4, [0, 4]),
            (6, 4, [0, 4, 5]),
            (8, 4, [0, 4, 7]),
            (9, 4, [0, 4, 8]),
        ],
    )
    def test_grid_lines_end_with_the_last(self, length, stride, lines):
        found = grid_lines(length, stride)
        assert found.dtype == np.int64
        assert found.tolist() == lines

    @few
    @given(sizes, st.integers(1, 9), st.data())
    def test_equals_its_plain_twin(self, size, stride, data):
        grid = tuple(len(grid_lines(n, stride)) for n in size)
        changed = data.draw(arrays(bool, grid))
        found = strided_changes(changed, size, stride)
        np.testing.assert_array_equal(found, reference.strided_changes(changed, size, stride))

    @pytest.mark.parametrize("stride", [2, 3, 8])
    @pytest.mark.parametrize("size", EDGES + ABOVE_A_SQUARE)
    def test_a_change_everywhere_leaves_all_but_the_grid(self, size, stride):
        lines = [grid_lines(n, stride) for n in size]
        expected = np.ones(size, bool)
        expected[np.ix_(*lines)] = False
        changed = np.ones(tuple(map(len, lines)), bool)
        np.testing.assert_array_equal(strided_changes(changed, size, stride), expected)
        assert not strided_changes(~changed, size, stride).any()

    def test_a_change_is_looked_at_from_the_cells_around_it(self):
        changed = np.zeros((4, 4), bool)  # lines 0, 4, 8, 9 of both axes
        changed[1, 2] = True
        expected = np.zeros((10, 10), bool)
        expected[1:8, 5:9] = True  # column 9 is a grid line, next to which nothing lies
        expected[4, 8] = expected[4, 9] = False
        found = strided_changes(changed, (10, 10), 4)
        np.testing.assert_array_equal(found, expected)

    def test_another_grid_is_refused(self):
        with pytest.raises(AssertionError):
            strided_changes(np.zeros((2, 3), bool), (10, 10), 4)


class TestAreaReduce:
    @few
    @given(sizes, sizes, st.sampled_from([np.uint8, np.float32]), st.integers(0, 99), st.data())
    def test_equals_its_plain_twin_and_itself_in_every_window(self, whole, size, dtype, seed, data):
        size = (min(size[0], whole[0]), min(size[1], whole[1]))
        source = picture(whole, dtype, seed)
        full = whole_reduced(source, size)
        assert full.dtype == dtype
        assert full.shape == (*size, *source.shape[2:])

        twin = reference.area_reduce(source, whole, size, (0, size[0], 0, size[1]), (0, 0))
        np.testing.assert_allclose(full, twin, rtol=1e-6 if dtype == np.float32 else 0)

        (top, bottom), (left, right) = (
            sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in size
        )
        window = (top, bottom, left, right)
        y0, y1, x0, x1 = covered(window, whole, size)
        part = area_reduce(source[y0:y1, x0:x1], whole, size, window, (y0, x0))
        np.testing.assert_array_equal(part, full[top:bottom, left:right])
        twin = reference.area_reduce(source[y0:y1, x0:x1], whole, size, window, (y0, x0))
        np.testing.assert_allclose(part, twin, rtol=1e-6 if dtype == np.float32 else 0)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    @pytest.mark.parametrize("size", [(1, 1), (33, 50), (151, 95), (150, 95), (299, 189)])
    def test_tiles_assemble_to_the_whole_to_the_bit(self, size, dtype):
        source = picture((301, 190), dtype)
        full = whole_reduced(source, size)
        assembled = np.zeros_like(full)
        for top in range(0, size[0], 37):
            for left in range(0, size[1], 41):
                window = (top, min(top + 37, size[0]), left, min(left + 41, size[1]))
                y0, y1, x0, x1 = covered(window, (301, 190), size)
                y0, x0 = max(y0 - 3, 0), max(x0 - 2, 0)  # more than is needed does no harm
                tile = area_reduce(source[y0 : y1 + 1, x0 : x1 + 4], (301, 190), size, window, (y0, x0))
                assembled[top : window[1], left : window[3]] = tile
        np.testing.assert_array_equal(assembled, full)

    @pytest.mark.parametrize("channels", [3, 6])
    @pytest.mark.parametrize("factor", [1, 2, 3, 6, 7])
    def test_a_whole_factor_gives_the_mean_of_the_box_with_halves_rounded_up(self, factor, channels):
        source = np.concatenate([picture((42 * 3, 42 * 2), np.uint8)] * (channels // 3), axis=2)
        n, m = source.shape[0] // factor, source.shape[1] // factor
        boxes = source.reshape(n, factor, m, factor, channels).astype(int).sum((1, 3))
        expected = (2 * boxes + factor**2) // (2 * factor**2)
        np.testing.assert_array_equal(whole_reduced(source, (n, m)), expected)

    def test_a_half_is_rounded_up(self):
        source = np.zeros((6, 6, 3), np.uint8)
        source.reshape(-1, 3)[:18] = 1
        assert (whole_reduced(source, (1, 1)) == 1).all()
        source[0, 0] = 0
        assert (whole_reduced(source, (1, 1)) == 0).all()

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    @pytest.mark.parametrize("size", [(151, 95), (150, 95), (100, 64), (77, 31), (299, 188)])
    def test_is_the_area_interpolation_of_opencv(self, size, dtype):
        source = picture((301, 190), dtype)
        expected = cv2.resize(source, size[::-1], interpolation=cv2.INTER_AREA)
        tolerance = 1 if dtype == np.uint8 else 1 / 255
        np.testing.assert_allclose(whole_reduced(source, size).astype(float), expected, rtol=0, atol=tolerance)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    @pytest.mark.parametrize("whole", [(1, 1), (1, 9), (9, 1), (37, 23)])
    def test_the_same_size_is_a_copy(self, whole, dtype):
        source = picture(whole, dtype)
        same = whole_reduced(source, whole)
        np.testing.assert_array_equal(same, source)
        assert not np.shares_memory(same, source)

    @pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 255), (np.uint8, 1), (np.float32, 0.1), (np.float32, -3)])
    def test_a_flat_picture_stays_flat(self, dtype, value):
        source = np.full_like(picture((97, 61), dtype), value)
        assert (whole_reduced(source, (31, 44)) == source[0, 0]).all()

    @few
    @given(st.integers(1, 200), st.integers(1, 200), st.data())
    def test_covered_is_every_pixel_that_counts_and_no_other(self, length, samples, data):
        samples = min(samples, length)
        start, stop = sorted(data.draw(st.lists(st.integers(0, samples), min_size=2, max_size=2, unique=True)))
        counts = [
            (k + 1) * samples > start * length and k * samples < stop * length for k in range(length)
        ]  # its right edge lies beyond the window's left one, and its left edge before the window's right one
        expected = (counts.index(True), length - counts[::-1].index(True))
        assert covered((start, stop, 0, 1), (length, 5), (samples, 1)) == (*expected, 0, 5)
        assert covered((0, 1, start, stop), (5, length), (1, samples)) == (0, 5, *expected)

    @pytest.mark.parametrize(
        ("source", "whole", "size", "window", "origin"),
        [
            (np.ones((4, 4)), (4, 4), (2, 2), (0, 2, 0, 2), (0, 0)),  # float64
            (np.ones((4, 4), np.float32), (4, 4), (5, 4), (0, 1, 0, 1), (0, 0)),  # enlarged
            (np.ones((4, 4), np.float32), (4, 4), (2, 2), (0, 3, 0, 2), (0, 0)),  # beyond the reduced picture
            (np.ones((4, 4), np.float32), (4, 4), (2, 2), (1, 1, 0, 2), (0, 0)),  # empty
            (np.ones((3, 4), np.float32), (4, 4), (2, 2), (0, 2, 0, 2), (0, 0)),  # a row too few
            (np.ones((4, 3), np.float32), (4, 4), (2, 2), (0, 2, 0, 2), (0, 1)),  # a column too few
        ],
    )
    def test_what_cannot_be_reduced_is_refused(self, source, whole, size, window, origin):
        with pytest.raises(AssertionError):
            area_reduce(source, whole, size, window, origin)


class TestBandCounts:
    @few
    @given(masks, st.lists(st.integers(0, 30), min_size=1, max_size=4), st.data())
    def test_equals_its_plain_twin(self, truth, radii, data):
        prediction = data.draw(arrays(bool, truth.shape))
        expected = reference.band_counts(prediction, truth, radii)
        np.testing.assert_array_equal(band_counts(prediction, truth, radii), expected)

    @pytest.mark.parametrize("smooth", [0, 2, 30])
    @pytest.mark.parametrize("shape", EDGES + ABOVE_A_SQUARE)
    def test_equals_opencv_at_the_radii_of_large_pictures(self, shape, smooth):
        prediction, truth = blobs(shape, 1, smooth), blobs(shape, 2, smooth)
        for radii in ([1, 6, 11, 16, 21], [40], [3, 3, 1]):
            expected = reference.band_counts(prediction, truth, radii)
            np.testing.assert_array_equal(band_counts(prediction, truth, radii), expected)

    def test_the_band_of_one_pixel_is_the_ellipse_at_every_radius(self):
        truth = np.zeros((401, 401), bool)
        truth[200, 200] = True
        radii = list(range(1, 201))
        expected = [cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1)).sum(dtype=int) for r in radii]
        assert band_counts(truth, truth, radii).tolist() == [[n, n] for n in expected]

    @pytest.mark.parametrize("value", [False, True])
    @pytest.mark.parametrize("shape", EDGES + ABOVE_A_SQUARE)
    def test_a_mask_without_boundary_has_no_band(self, shape, value):
        assert not band_counts(blobs(shape), np.full(shape, value), [1, 9]).any()

    @pytest.mark.parametrize("radii", [[], [-1], [4001]])
    def test_other_radii_are_refused(self, radii):
        with pytest.raises(AssertionError):
            band_counts(np.ones((2, 2), bool), np.ones((2, 2), bool), radii)


def starts(length, count, seed):
    """Where some cells of an axis begin, the first at 0."""
    return np.unique(np.append(np.random.default_rng(seed).integers(0, length, count), 0))


class TestCells:
    @few
    @given(masks, st.integers(0, 30), st.integers(0, 9))
    def test_the_cells_that_hold_a_pixel_are_those_of_the_plain_twin(self, mask, count, seed):
        axes = [starts(n, count, seed + i) for i, n in enumerate(mask.shape)]
        np.testing.assert_array_equal(any_in_cells(mask, *axes), reference.any_in_cells(mask, *axes))

    @few
    @given(sizes, st.integers(0, 30), st.integers(0, 9))
    def test_the_filled_pixels_are_those_of_the_plain_twin(self, size, count, seed):
        axes = [starts(n, count, seed + i) for i, n in enumerate(size)]
        cells = np.random.default_rng(seed).random(tuple(map(len, axes))) < 0.3
        np.testing.assert_array_equal(fill_cells(cells, *axes, size), reference.fill_cells(cells, *axes, size))

    def test_a_cell_is_filled_up_to_the_first_line_of_the_next(self):
        filled = fill_cells(np.array([[False, True], [False, False]]), np.array([0, 2]), np.array([0, 3]), (4, 6))
        assert filled.nonzero() == pytest.approx(np.mgrid[0:3, 3:6].reshape(2, -1))
        assert any_in_cells(filled, np.array([0, 2]), np.array([0, 3])).tolist() == [[False, True], [False, True]]


class TestInterpolate:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (40, 33)])
    def test_equals_its_plain_twin_to_the_bit(self, dtype, size):
        source = picture(size, dtype)
        axes = [positions(n, 2 * n + 1, n) for n in size]
        found = interpolate(source, *axes)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, reference.interpolate(source, *axes))

    def test_a_part_is_that_of_the_whole_to_the_bit(self):
        source, rows, columns = picture((40, 33), np.float32), positions(40, 90), positions(33, 70)
        part = interpolate(source, tuple(t[20:51] for t in rows), tuple(t[5:9] for t in columns))
        np.testing.assert_array_equal(part, interpolate(source, rows, columns)[20:51, 5:9])

    def test_is_linear_between_samples(self):
        ramp = np.arange(5, dtype=np.float32)[:, None] * 10 + np.arange(4, dtype=np.float32)
        halves = np.array([1]), np.array([2]), np.array([0.5], np.float32)
        assert interpolate(ramp, halves, halves).item() == 16.5


class TestMaskAndDoubt:
    def test_limits_are_in_neither(self):
        p = np.array([[0, 0.1, 0.2, 0.5, 0.6, 0.9, 1]], np.float32)
        mask, doubt = mask_and_doubt(p, 0.1)
        assert mask.tolist() == [[False, False, False, False, True, True, True]]
        assert doubt.tolist() == [[False, False, True, True, True, False, False]]


class TestNetworkInput:
    SCALE, SHIFT = np.array([0.01, 0.02, 0.017], np.float32), np.array([-2.1, -2.0, -1.8], np.float32)

    @pytest.mark.parametrize("guides", [0, 1, 3])
    @pytest.mark.parametrize("dtype", [np.float32, np.uint16])
    @pytest.mark.parametrize("size", [*EDGES, (40, 33)])
    def test_equals_its_plain_twin_to_the_bit(self, dtype, size, guides):
        image = np.concatenate((picture(size, np.uint8), picture(size, np.uint8)[::-1, :, :guides]), 2)
        scale, shift = np.resize(self.SCALE, 3 + guides), np.resize(self.SHIFT, 3 + guides)
        given = image, picture(size, np.float32), scale, shift
        found, expected = np.empty((*size, 4 + guides), dtype), np.empty((*size, 4 + guides), dtype)
        network_input(*given, found)
        reference.network_input(*given, expected)
        np.testing.assert_array_equal(found, expected)

    def test_16_bits_are_torchs_bfloat16(self):
        image, mask = picture((50, 60), np.uint8), picture((50, 60), np.float32)
        wide, narrow = (np.empty((50, 60, 4), dtype) for dtype in (np.float32, np.uint16))
        for out in (wide, narrow):
            network_input(image, mask, self.SCALE, self.SHIFT, out)
        expected = torch.from_numpy(wide).bfloat16().view(torch.uint16).numpy()
        np.testing.assert_array_equal(narrow, expected)

    def test_a_part_of_an_array_is_filled_and_the_rest_is_left(self):
        out = np.full((6, 9, 4), 7, np.float32)
        network_input(picture((4, 5), np.uint8), np.ones((4, 5), np.float32), self.SCALE, self.SHIFT, out[1:5, 2:7])
        assert (out[1:5, 2:7, 3] == 1).all()
        out[1:5, 2:7] = 7
        assert (out == 7).all()

    def test_an_array_of_another_size_or_type_is_refused(self):
        image, mask = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.float32)
        for out in (np.empty((4, 4, 4), np.float32), np.empty((4, 5, 4), np.float64)):
            with pytest.raises(AssertionError):
                network_input(image, mask, self.SCALE, self.SHIFT, out)


def labelled(mask):
    """The first nine parts of a mask."""
    labels = ndimage.label(mask)[0].astype(np.int32)
    return labels * (labels < 10)


class TestPartSums:
    @pytest.mark.parametrize("holes", [False, True])
    def test_is_its_plain_twin(self, holes):
        p, other = picture((201, 150), np.float32), picture((201, 150), np.float32)[::-1]
        labels = np.arange(201 * 150, dtype=np.int32).reshape(201, 150) % 7  # with pixels of both classes
        found = part_sums(labels, p, other, 8, holes=holes)  # of which two do not occur
        np.testing.assert_array_equal(found, reference.part_sums(labels, p, other, 8, holes=holes))
        assert (found[:, 0] > 0).sum() == 6

    @pytest.mark.parametrize("holes", [False, True])
    def test_sums_are_those_of_scipy(self, holes):
        p, other = picture((60, 80), np.float32), blobs((60, 80), 1).astype(np.float32)
        labels, count = ndimage.label(p <= 0.5 if holes else p > 0.5)
        found = part_sums(labels.astype(np.int32), p, other, count, holes=holes)
        of_class = 1 - p.astype(np.float64) if holes else p.astype(np.float64)
        index = np.arange(1, count + 1)
        np.testing.assert_array_equal(found[:, 0], ndimage.sum_labels(np.ones(p.shape), labels, index))
        np.testing.assert_array_equal(found[:, 1], ndimage.sum_labels((other > 0.5) != holes, labels, index))
        np.testing.assert_allclose(found[:, 2] / 2**16, ndimage.sum_labels(of_class, labels, index), atol=0.1)
        boxes = [[at[0].start, at[1].start, at[0].stop, at[1].stop] for at in ndimage.find_objects(labels)]
        np.testing.assert_array_equal(found[:, 3:], boxes)


def calls():
    mask, image = blobs((201, 150)), picture((201, 150), np.uint8)
    changed = blobs((26, 20), smooth=0)
    return {
        "contour_band": (mask, 5),
        "mask_and_doubt": (picture((201, 150), np.float32), 0.1),
        "strided_changes": (changed, (201, 150), 8),
        "area_reduce": (image, (201, 150), (101, 74), (0, 101, 0, 74), (0, 0)),
        "band_counts": (mask, blobs((201, 150), 1), [2, 7]),
        "part_sums": (labelled(mask), picture((201, 150), np.float32), picture((201, 150), np.float32), 9),
        "classes_in_cells": (picture((201, 150), np.float32) / 1.8, np.arange(0, 201, 3), np.arange(0, 150, 2)),
        "any_in_cells": (mask, np.arange(0, 201, 7), np.arange(0, 150, 8)),
        "fill_cells": (changed, np.arange(26) * 7, np.arange(20) * 7, (201, 150)),
        "interpolate": (image, positions(201, 300), positions(150, 90)),
    }


@pytest.mark.parametrize("name", calls())
class TestEveryKernel:
    def test_has_a_plain_twin_of_the_same_signature(self, name):
        kernel, twin = (inspect.signature(getattr(m, name)).parameters for m in (refine_kernels, reference))
        assert list(kernel) == list(twin)

    def test_takes_any_layout_and_leaves_its_input_alone(self, name):
        arguments = calls()[name]
        expected = getattr(refine_kernels, name)(*arguments)
        strided = [np.repeat(a, 2, -1)[..., ::2] if isinstance(a, np.ndarray) else a for a in arguments]
        for a in strided:
            if isinstance(a, np.ndarray):
                a.flags.writeable = False
        np.testing.assert_array_equal(getattr(refine_kernels, name)(*strided), expected)
        for given_array, before in zip(arguments, calls()[name], strict=True):
            np.testing.assert_array_equal(given_array, before)

    @pytest.mark.parametrize("count", [1, 2, 3, 50])
    def test_gives_the_same_by_any_number_of_threads(self, name, count):
        expected = getattr(reference, name)(*calls()[name])
        with using(count):
            assert np.array_equal(getattr(refine_kernels, name)(*calls()[name]), expected)


@contextmanager
def using(count):
    before = threads.get_threads()
    threads.set_threads(count)
    try:
        yield
    finally:
        threads.set_threads(before)


class TestShare:
    @pytest.mark.parametrize("count", [1, 2, 5])
    @pytest.mark.parametrize("parts", [0, 1, 7, 100])
    def test_every_part_is_done_once(self, count, parts):
        done = []
        with using(count):
            threads.share(
                lambda first, last, *given: done.extend((i, given) for i in range(first, last)), parts, 1, "x"
            )
        assert sorted(done) == [(i, (1, "x")) for i in range(parts)]

    def test_several_threads_take_part(self):
        both = Barrier(2)  # is passed by two threads or by none
        with using(2):
            threads.share(lambda first, last: both.wait(10), 2)

    def test_an_error_in_a_part_is_raised(self):
        def kernel(first, last):
            raise ValueError(f"in {first}")

        with using(2), pytest.raises(ValueError, match="in 0"):
            threads.share(kernel, 8)

    def test_a_python_thread_has_a_number_of_its_own(self):
        with using(3), ThreadPoolExecutor(1) as pool:
            other = pool.submit(threads.get_threads).result()
        assert other == threads.config.NUMBA_NUM_THREADS


def test_threads_may_call_kernels_at_once():
    expected = {name: getattr(refine_kernels, name)(*arguments) for name, arguments in calls().items()}

    def call(names):
        return [np.array_equal(getattr(refine_kernels, n)(*calls()[n]), expected[n]) for n in names * 25]

    names = list(expected)
    with ThreadPoolExecutor(3) as pool:
        for equal in pool.map(call, [names[i:] + names[:i] for i in range(3)]):
            assert all(equal)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_may_call_kernels_after_its_parent_did():
    run(
        "import multiprocessing, warnings, refine_kernels\n"
        "from test_kernels import calls, using\n"
        "def call(): return refine_kernels.contour_band(*calls()['contour_band']).sum()\n"
        "with using(2):\n"
        "    before = call()\n"
        "    warnings.simplefilter('ignore')  # Python's own, of forking beside threads\n"
        "    with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "        assert pool.apply_async(call).get(60) == before > 0\n"
    )


def test_importing_loads_no_numba_and_compiles_nothing():
    run("import sys, refine_kernels; assert not {'numba', 'cv2', 'scipy'} & set(sys.modules)")
    run(
        "from refine_kernels import counts, inputs, regions, resize\n"
        "found = [k for m in (counts, inputs, regions, resize) for k in vars(m).values() if hasattr(k, 'signatures')]\n"
        "assert len(found) > 7 and not any(k.signatures for k in found)"
    )


def test_the_public_names_are_there_and_no_others():
    assert dir(refine_kernels) == sorted(refine_kernels.__all__)
    assert all(callable(getattr(refine_kernels, name)) for name in refine_kernels.__all__)
    with pytest.raises(AttributeError, match="no attribute 'contour'"):
        _ = refine_kernels.contour
