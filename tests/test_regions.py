from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from refine.config import Cascade, Options
from refine.coords import Samples
from refine.models import NETWORKS
from refine.planes import Held, Interpolated
from refine.regions import MOVED, UNSURE, Selection, at_next, bounding_boxes, dense, margin, read_by_next, select
from refine.tiles import Window, cover

SIZES = [(1, 1), (1, 9), (7, 1), (2, 2), (5, 8), (9, 17), (16, 13), (24, 24)]
STRIDES = [1, 2, 3, 4, 8]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


class TestGrids:
    @pytest.mark.parametrize(
        ("full", "following"), [((64, 96), (16, 24)), ((65, 97), (16, 24)), ((70, 33), (35, 16)), ((9, 64), (9, 16))]
    )
    def test_the_pixels_that_the_next_scale_reads_give_the_mask_it_reads(self, full, following):
        network = NETWORKS["CRMResNet50"]()
        grid = read_by_next(network, full, (8, 12), following)
        p = torch.rand(full)
        assert grid.samples is not None
        rows, columns = (s.positions for s in grid.samples)
        assert grid.shape == (len(rows), len(columns))
        read = Interpolated(Held(p[rows][:, columns].numpy()), *(s.table for s in grid.samples))
        assert read.size == following
        expected = F.interpolate(p[None, None], size=following, mode="bilinear", align_corners=True)[0, 0]
        np.testing.assert_allclose(read.read(Window(0, following[0], 0, following[1])), expected, atol=1e-5)

    def test_where_all_pixels_are_read_all_are_decoded(self):
        network = NETWORKS["CRMResNet50"]()
        grid = read_by_next(network, (9, 9), (5, 5), (9, 9))
        assert grid.samples is None
        assert grid.shape == (9, 9)

    def test_dense_is_every_pixel(self, network):
        grid = dense(network, (31, 40), (16, 20))
        assert grid.shape == (31, 40)
        assert grid.samples is None

    def test_the_next_scales_samples_are_as_many_as_it_has(self, network):
        grid = at_next(network, (64, 80), (16, 20), (32, 40))
        assert grid.shape == (32, 40)
        assert grid.samples is None

    def test_at_full_size_the_next_scales_samples_are_its_pixels(self, network):
        a, b = dense(network, (30, 44), (15, 22)), at_next(network, (30, 44), (15, 22), (30, 44))
        for left, right in ((a.rows, b.rows), (a.columns, b.columns)):
            for name, value in vars(left).items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(value, getattr(right, name), atol=1e-4, rtol=0)

    @pytest.mark.parametrize(("source", "target"), [(1, 1), (9, 1), (64, 16), (65, 16), (7, 7)])
    def test_the_positions_read_are_rising_and_none_is_read_in_vain(self, source, target):
        samples = Samples.of(source, target)
        assert (samples.positions.diff() > 0).all()
        assert set(torch.cat((samples.low, samples.high)).tolist()) == set(range(len(samples.positions)))


def probabilities(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Smooth ones with both classes, places of doubt and large sure parts."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal(size), 2)
    return (1 / (1 + np.exp(-60 * (noise - np.median(noise))))).astype(np.float32)


def chosen(before: np.ndarray, *, first: bool = False, **options) -> Selection:
    return select(before, Options(**options), first=first, boxes=None)


def pixels(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    return ((y, x) for y in range(size[0]) for x in range(size[1]))


def near_contour(mask: np.ndarray, band: int) -> np.ndarray:
    """Pixels with one of the other class within ``band`` px in y and in x, pixel by pixel."""
    out = np.zeros(mask.shape, bool)
    for y, x in pixels(mask.shape):
        out[y, x] = (mask[max(y - band, 0) : y + band + 1, max(x - band, 0) : x + band + 1] != mask[y, x]).any()
    return out


def lines(length: int, stride: int) -> list[int]:
    """Rows that are decoded first: every ``stride``-th, and the last, so that those beyond the grid are covered."""
    return sorted({*range(0, length, stride), length - 1})


def around(at: int, rows: list[int]) -> set[int]:
    """The nearest decoded rows on both sides of a row: itself, if it is one."""
    return {max(r for r in rows if r <= at), min(r for r in rows if r >= at)}


class TestDense:
    @pytest.mark.parametrize("size", SIZES)
    def test_every_pixel_is_decoded_at_once(self, size):
        selection = chosen(probabilities(size), decode="dense")
        assert selection.everything
        assert selection.area.all()
        assert not selection.rest(np.ones(size, bool)).any()


class TestContour:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("band", [1, 2, 5])
    def test_decoded_is_the_band_around_the_contour_and_nothing_else(self, size, band):
        before = probabilities(size)
        selection = chosen(before, decode="contour", band=band)
        np.testing.assert_array_equal(selection.points, near_contour(before > 0.5, band))
        np.testing.assert_array_equal(selection.area, selection.points)
        assert not selection.rest(np.ones(before.shape, bool)).any()

    def test_of_a_mask_without_a_contour_nothing_is_decoded(self):
        assert not chosen(np.ones((20, 30), np.float32), decode="contour").area.any()

    def test_a_mirrored_mask_has_the_mirrored_band(self):
        before = probabilities((40, 50))
        one, other = (chosen(p, decode="contour", band=3).points for p in (before, before[:, ::-1]))
        np.testing.assert_array_equal(one, other[:, ::-1])
        assert 0 < one.mean() < 1


class TestBoundingBoxes:
    @pytest.mark.parametrize("size", [*SIZES, (60, 80)])
    @pytest.mark.parametrize("padding", [0, 1, 4])
    @pytest.mark.parametrize("share", [0.02, 0.2])
    def test_they_are_those_of_the_connected_components_with_padding(self, size, padding, share):
        mask = np.random.default_rng(2).random(size) < share
        expected = np.zeros(size, bool)
        components, _ = ndimage.label(mask, np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(components):
            expected[
                max(rows.start - padding, 0) : rows.stop + padding,
                max(columns.start - padding, 0) : columns.stop + padding,
            ] = True
        found = bounding_boxes(mask, padding)
        np.testing.assert_array_equal(found, expected)
        selection = select(mask.astype(np.float32), Options(decode="bbox"), first=False, boxes=found)
        np.testing.assert_array_equal(selection.points, expected)
        np.testing.assert_array_equal(selection.area, expected)

    def test_pixels_that_touch_at_a_corner_are_one_object(self):
        found = bounding_boxes(np.eye(5, dtype=bool), 0)
        assert found.all()

    def test_an_empty_mask_has_none(self):
        assert not bounding_boxes(np.zeros((4, 5), bool), 3).any()

    def test_a_mirrored_mask_has_the_mirrored_boxes(self):
        mask = probabilities((40, 50)) > 0.7
        np.testing.assert_array_equal(bounding_boxes(mask, 2), bounding_boxes(mask[::-1, ::-1], 2)[::-1, ::-1])

    def test_the_mask_is_not_written(self):
        mask = np.eye(5, dtype=bool)
        mask.flags.writeable = False
        bounding_boxes(mask, 1)
        assert mask.sum() == 5


def strided(
    before: np.ndarray, after: np.ndarray, options: Options, *, first: bool, sure: float = Cascade.sure
) -> tuple[np.ndarray, np.ndarray]:
    """What is decoded, (H, W) bool, and the result, read literally, pixel by pixel."""
    size, stride = before.shape, options.stride
    rows, columns = (lines(n, stride) for n in size)
    wanted, unsure = np.ones(size, bool), np.zeros(size, bool)
    if options.first_pass == "near":
        unsure = near_contour(before > 0.5, min(UNSURE, options.band)) | ((before > sure) & (before < 1 - sure))
        if not first:
            wanted = near_contour(before > 0.5, options.band) | unsure
    # A cell begins at its line; the last line of an axis belongs to the cell before it.
    starts = [
        np.searchsorted(axis[:-1] or axis, np.arange(n), "right") - 1
        for axis, n in ((rows, size[0]), (columns, size[1]))
    ]
    cells = {(starts[0][y], starts[1][x]) for y, x in pixels(size) if wanted[y, x]}

    def corners(cell: tuple[int, int]) -> list[tuple[int, int]]:
        i, j = cell
        return [(y, x) for y in rows[i : i + 2] for x in columns[j : j + 2]]

    decoded = np.zeros(size, bool)
    for cell in cells:
        for corner in corners(cell):
            decoded[corner] = True
    for cell in {(starts[0][y], starts[1][x]) for y, x in pixels(size) if unsure[y, x]}:
        (top, left), (bottom, right) = corners(cell)[0], corners(cell)[-1]
        decoded[top : bottom + 1, left : right + 1] = True
    changed = decoded & ((before > 0.5) != (after > 0.5))
    if options.first_pass == "near":
        changed |= decoded & (np.abs(after - before) > MOVED)
    grid = decoded.copy()
    for cell in cells:
        (top, left), (bottom, right) = corners(cell)[0], corners(cell)[-1]
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                nearest = [(a, b) for a in around(y, rows) for b in around(x, columns)]
                if not grid[y, x] and any(changed[place] for place in nearest):
                    decoded[y, x] = True
    return decoded, np.where(decoded, after, before)


def decoded_by(selection: Selection, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a selection decodes, and the result."""
    p = np.where(selection.points, after, before)
    rest = selection.rest(selection.changed(before, p))
    assert not (rest & selection.points).any(), "a pixel is decoded once"
    return selection.points | rest, np.where(rest, after, p)


class TestStrided:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("stride", STRIDES)
    @pytest.mark.parametrize("first_pass", ["near", "everywhere"])
    @pytest.mark.parametrize("first", [False, True])
    def test_decoded_is_what_the_definition_says(self, size, stride, first_pass, first):
        for seed in range(4):
            before, after = probabilities(size, seed), probabilities(size, seed + 10)
            options = Options(decode="strided", stride=stride, first_pass=first_pass, band=1 + seed)
            sure = (0.02, 0.005, 0.2)[seed % 3]
            selection = select(before, options, first=first, boxes=None, sure=sure)
            found = decoded_by(selection, before, after)
            expected = strided(before, after, options, first=first, sure=sure)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
            assert (selection.area >= found[0]).all(), "the latent is needed at all that is decoded"

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("stride", STRIDES)
    def test_if_everything_changed_everything_is_decoded(self, size, stride):
        zeros = np.zeros(size, np.float32)
        selection = chosen(zeros, decode="strided", stride=stride, first_pass="everywhere")
        decoded, p = decoded_by(selection, zeros, zeros + 1)
        assert decoded.all()
        assert p.all()

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("stride", STRIDES)
    def test_if_nothing_changed_only_the_grid_is_decoded(self, size, stride):
        before = probabilities(size)
        selection = chosen(before, decode="strided", stride=stride, first_pass="everywhere")
        expected = np.zeros(size, bool)
        expected[np.ix_(*(lines(n, stride) for n in size))] = True
        np.testing.assert_array_equal(decoded_by(selection, before, before)[0], expected)

    @pytest.mark.parametrize("stride", STRIDES)
    def test_pixels_beyond_the_last_grid_line_follow_a_change_at_the_border(self, stride):
        before = np.zeros((2 * stride + 2, 3 * stride + 2), np.float32)
        after = before.copy()
        after[-1, -1] = 1  # a corner, which is on no multiple of the stride above 1
        selection = chosen(before, decode="strided", stride=stride, first_pass="everywhere")
        decoded, p = decoded_by(selection, before, after)
        assert p[-1, -1] == 1
        assert decoded[2 * stride :, 3 * stride :].all()

    def test_stride_one_decodes_everything_at_once(self):
        selection = chosen(probabilities((9, 7)), decode="strided", stride=1, first_pass="everywhere")
        assert selection.points.all()

    def test_a_first_pass_near_leaves_out_what_is_sure_and_far(self):
        before = np.zeros((80, 80), np.float32)
        before[:10, :10] = 1
        before[60, 60] = 0.3  # a doubt far from the contour
        selection = chosen(before, decode="strided", stride=4, band=6)
        far = np.ones(before.shape, bool)
        far[: 10 + 6 + 4, : 10 + 6 + 4] = far[60 - 4 : 60 + 5, 60 - 4 : 60 + 5] = False
        assert not selection.area[far].any()
        assert selection.area[60, 60]
        assert selection.area[:16, 4:16].all()
        assert not selection.area[:4, :4].any()  # inside, and as sure
        assert chosen(before, decode="strided", first=True).area.all()  # the first scale knows nothing yet

    def test_a_mask_without_a_contour_that_is_sure_is_not_looked_at(self):
        assert not chosen(np.ones((20, 30), np.float32), decode="strided").area.any()


@pytest.mark.parametrize("size", [(1, 1), (1, 61), (45, 70), (64, 64)])
@pytest.mark.parametrize(
    "options",
    [
        {"decode": "contour", "band": 5},
        {"decode": "contour", "band": 1},
        {"decode": "strided", "stride": 4, "first_pass": "everywhere"},
        {"decode": "strided", "stride": 1, "band": 2},
        {"decode": "strided", "stride": 3, "band": 2},
        {"decode": "strided", "stride": 8, "band": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", [5, 16, 32])
def test_a_selection_depends_on_its_margin_alone(size, options, side):
    before, after = probabilities(size, 4), probabilities(size, 5)
    every = Options(**options)
    decoded, p = decoded_by(chosen(before, **options), before, after)
    for core in cover(*size, side, every.stride):
        window = core.grown(margin(every), *size).aligned(every.stride, *size)
        inner = core.moved(-window.top, -window.left).slices
        part = before[window.slices], after[window.slices]
        found = decoded_by(chosen(part[0], **options), *part)
        np.testing.assert_array_equal(found[0][inner], decoded[core.slices])
        np.testing.assert_array_equal(found[1][inner], p[core.slices])


@pytest.mark.parametrize("options", [{"decode": "dense"}, {"decode": "bbox", "padding": 99}])
def test_policies_that_look_at_no_neighbours_have_no_margin(options):
    assert margin(Options(**options)) == 0
