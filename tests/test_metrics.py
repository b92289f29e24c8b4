from pathlib import Path

import cv2
import numpy as np
import pytest

from refine.errors import InputError
from refine.metrics import Harm, harm, intersection_and_union, iou, mean_boundary_accuracy, pooled_far, pooled_iou

FIXTURE = Path(__file__).parents[2] / "shared" / "fixtures" / "metrics.npz"
needs_fixture = pytest.mark.skipif(not FIXTURE.is_file(), reason="the published protocol's figures are not here")


def published_mean_boundary_accuracy(prediction, truth):
    """The protocol word for word: whole-picture morphology at every radius."""
    height, width = truth.shape
    shares = []
    for i in range(5):
        radius = 1 + int(((width + height) / 300 - 1) / 5 * i)
        ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        band = cv2.morphologyEx(truth.astype(np.uint8), cv2.MORPH_GRADIENT, ellipse) > 0
        shares.append((prediction == truth)[band].sum() / band.sum())
    return sum(shares) / 5


def blobs(height, width, seed, smooth=9):
    noise = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), smooth) if smooth else noise
    return noise > np.median(noise)


def fixture_pairs():
    with np.load(FIXTURE) as data:
        for i in range(int(data["n"])):
            shape = tuple(data[f"shape{i}"])
            size = int(np.prod(shape))
            yield (
                *(np.unpackbits(data[f"{k}{i}"], count=size).reshape(shape).astype(bool) for k in ("pr", "gt")),
                *(float(data[f"{k}{i}"]) for k in ("iou", "mba")),
            )


@needs_fixture
def test_equals_the_published_figures():
    pairs = list(fixture_pairs())
    for prediction, truth, expected_iou, expected_mba in pairs:
        assert iou(prediction, truth) == pytest.approx(expected_iou, abs=1e-9)
        assert mean_boundary_accuracy(prediction, truth) == pytest.approx(expected_mba, abs=1e-9)
    with np.load(FIXTURE) as data:
        pooled = pooled_iou(intersection_and_union(p, t) for p, t, *_ in pairs)
        assert pooled == pytest.approx(float(data["pooled_iou"]), abs=1e-9)
        mean = np.mean([mean_boundary_accuracy(p, t) for p, t, *_ in pairs])
        assert mean == pytest.approx(float(data["mean_mba"]), abs=1e-9)


@pytest.mark.parametrize("smooth", [0, 4, 40])
@pytest.mark.parametrize("shape", [(1, 400), (400, 1), (2, 2), (127, 129), (256, 128), (301, 700), (1100, 900)])
def test_bands_equal_whole_picture_morphology_exactly(shape, smooth):
    truth, prediction = blobs(*shape, seed=1, smooth=smooth), blobs(*shape, seed=2)
    assert mean_boundary_accuracy(prediction, truth) == published_mean_boundary_accuracy(prediction, truth)


@pytest.mark.parametrize(("rows", "columns"), [((0, 40), (0, 1400)), ((0, 900), (0, 128)), ((899, 900), (1399, 1400))])
def test_an_object_at_the_border_has_no_boundary_there(rows, columns):
    truth = np.zeros((900, 1400), bool)
    truth[slice(*rows), slice(*columns)] = True
    prediction = np.roll(truth, (3, 5), (0, 1))
    assert mean_boundary_accuracy(prediction, truth) == published_mean_boundary_accuracy(prediction, truth)


def test_a_straight_edge_moved_by_one_pixel_costs_a_known_share():
    truth = np.zeros((200, 300), bool)  # radii 1, 1, 1, 1, 1: a band of two columns
    truth[:, :100] = True
    prediction = np.zeros_like(truth)
    prediction[:, :101] = True
    assert mean_boundary_accuracy(prediction, truth) == 0.5
    assert iou(prediction, truth) == pytest.approx(100 / 101)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (50, 40)])
@pytest.mark.parametrize("value", [False, True])
def test_a_truth_without_boundary_is_matched_or_not(shape, value):
    truth = np.full(shape, value)
    assert mean_boundary_accuracy(truth, truth) == 1.0
    wrong = truth.copy()
    wrong[0, 0] = not value
    assert mean_boundary_accuracy(wrong, truth) == 0.0


def test_two_empty_masks_agree():
    empty = np.zeros((4, 5), bool)
    assert iou(empty, empty) == pooled_iou([]) == 1.0
    assert iou(~empty, empty) == iou(empty, ~empty) == 0.0


def test_pooled_iou_weighs_by_size():
    assert pooled_iou([(9, 10), (0, 90)]) == 0.09


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.zeros((3, 5), bool), "same"),
        (np.zeros((4, 5, 1), bool), "shape"),
        (np.full((4, 5), 2, np.uint8), "from 2 to 2"),
        (np.full((4, 5), -1), "from -1"),
        (np.full((4, 5), 300), "to 300"),
        (np.full((4, 5), np.nan), "nan"),
        (np.full((4, 5), 1.5), r"to 1\.5"),
        (np.full((4, 5), "a"), "<U1"),
    ],
)
def test_other_masks_are_refused(bad, reason):
    good = np.zeros((4, 5), bool)
    for call in (iou, mean_boundary_accuracy, intersection_and_union):
        with pytest.raises(InputError, match=reason):
            call(bad, good)
        with pytest.raises(InputError, match=reason):
            call(good, bad)


def test_empty_arrays_are_refused():
    with pytest.raises(InputError, match="at least one pixel"):
        iou(np.zeros((0, 5), bool), np.zeros((0, 5), bool))


# Harm


def none(truth):
    return Harm(far_px=0, truth_px=int(np.count_nonzero(truth)), fragments=0, holes=0, lost=0)


def boxes(shape, *corners):
    mask = np.zeros(shape, bool)
    for top, bottom, left, right in corners:
        mask[top:bottom, left:right] = True
    return mask


def components(mask):
    """Sets of (y, x) joined over sides and corners."""
    left, found = {tuple(map(int, at)) for at in np.argwhere(mask)}, []
    while left:
        ahead, component = [left.pop()], set()
        while ahead:
            y, x = ahead.pop()
            component.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            ahead += around
        found.append(component)
    return found


def plain_harm(refined, coarse, truth):
    """The definitions, pixel by pixel."""
    height, width = truth.shape
    d = 1 + int(((width + height) / 300 - 1) / 5 * 4)
    far = 0
    for y in range(height):
        for x in range(width):
            around = coarse[max(y - d, 0) : y + d + 1, max(x - d, 0) : x + d + 1]
            worse = coarse[y, x] == truth[y, x] != refined[y, x]
            far += bool(worse and (around == coarse[y, x]).all())
    lost = 0
    for component in components(truth):
        had, has = (sum(bool(mask[at]) for at in component) for mask in (coarse, refined))
        area = len(component)
        lost += area >= 1e-4 * height * width and had > area / 2 and has < area / 10
    return Harm(
        far_px=far,
        truth_px=int(truth.sum()),
        fragments=sum(not any(coarse[at] or truth[at] for at in c) for c in components(refined)),
        holes=sum(all(coarse[at] and truth[at] for at in c) for c in components(~refined)),
        lost=lost,
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (31, 1), (2, 2), (13, 24), (40, 31)])
def test_harm_is_as_defined_pixel_by_pixel(shape, seed):
    rng = np.random.default_rng(seed)
    truth, coarse = blobs(*shape, seed=seed, smooth=seed % 3), blobs(*shape, seed=seed + 50, smooth=3)
    for refined in (
        rng.random(shape) < 0.03,
        rng.random(shape) < 0.5,
        rng.random(shape) < 0.97,
        ~coarse,
        coarse ^ ~truth,
    ):
        assert harm(refined, coarse, truth) == plain_harm(refined, coarse, truth)
        assert harm(refined, truth, truth) == plain_harm(refined, truth, truth)


def test_the_figures_of_random_masks_are_not_all_zero():
    coarse = truth = blobs(40, 31, seed=0, smooth=3)
    found = [harm(np.random.default_rng(1).random((40, 31)) < share, coarse, truth) for share in (0.03, 0.97)]
    assert found[0].far_px > 0
    assert found[0].fragments > 0
    assert found[0].lost > 0
    assert found[1].holes > 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (50, 40), (301, 700)])
def test_the_coarse_mask_and_the_truth_do_no_harm(shape):
    masks = [np.zeros(shape, bool), np.ones(shape, bool), blobs(*shape, 5), blobs(*shape, 6, smooth=0)]
    for coarse in masks:
        for truth in masks:
            assert harm(coarse, coarse, truth) == harm(truth, coarse, truth) == none(truth)


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.transpose, np.rot90])
def test_harm_does_not_depend_on_how_the_picture_is_turned(turn):
    refined, coarse, truth = blobs(301, 500, 7, smooth=1), blobs(301, 500, 8), blobs(301, 500, 8, smooth=7)
    found = harm(refined, coarse, truth)
    assert min(found.far_px, found.fragments, found.holes) > 0
    assert harm(turn(refined), turn(coarse), turn(truth)) == found


def test_holes_are_the_fragments_of_the_masks_inverted():
    masks = blobs(200, 300, 7, smooth=1), blobs(200, 300, 8), blobs(200, 300, 8, smooth=7)
    one, other = harm(*masks), harm(*(~mask for mask in masks))
    assert (one.fragments, one.holes, one.far_px) == (other.holes, other.fragments, other.far_px)


@pytest.mark.parametrize(("shape", "d"), [((90, 100), 1), ((400, 500), 2), ((700, 1100), 5)])
def test_errors_are_far_beyond_the_largest_radius_of_the_bands(shape, d):
    truth = coarse = boxes(shape, (0, shape[0], 0, 40))
    for wrong, far in ((40 + d - 1, 0), (40 + d, 1), (40 - d, 0), (40 - d - 1, 1)):
        refined = coarse.copy()
        refined[30, wrong] ^= True
        assert harm(refined, coarse, truth).far_px == far
        assert harm(refined, coarse, truth).far == pytest.approx(far / truth.sum())


def test_errors_that_the_coarse_mask_has_too_are_no_harm():
    truth = boxes((60, 90), (10, 50, 10, 50))
    coarse = truth | boxes((60, 90), (20, 40, 60, 80))
    refined = truth | boxes((60, 90), (25, 35, 65, 75))
    assert harm(refined, coarse, truth) == none(truth)


def test_fragments_and_holes_touch_neither_the_coarse_mask_nor_the_truth():
    shape = (60, 90)
    truth, coarse = boxes(shape, (10, 50, 10, 50)), boxes(shape, (12, 52, 12, 52))
    extra = boxes(
        shape,
        (0, 3, 0, 3),  # alone
        (5, 6, 70, 71),  # a pixel at a corner of the next one: of it
        (6, 9, 71, 74),
        (8, 10, 20, 25),  # on the truth
        (52, 55, 30, 35),  # below the coarse mask's corner
        (58, 60, 88, 90),  # alone, in the picture's corner
    )
    missing = boxes(
        shape,
        (20, 21, 20, 21),  # alone
        (24, 30, 24, 30),  # alone
        (30, 31, 30, 31),  # of the one before
        (11, 14, 30, 32),  # enclosed, but the coarse mask is not set in its first row
        (30, 33, 48, 51),  # nor the truth in the last column of this one
    )
    found = harm((truth | coarse | extra) & ~missing, coarse, truth)
    assert (found.fragments, found.holes) == (3, 2)


def test_objects_are_lost_that_were_more_than_half_there_and_are_less_than_a_tenth():
    shape = (200, 300)  # 1/10000 of it is 6 px
    truth = boxes(
        shape, (0, 2, 0, 10), (10, 12, 0, 10), (20, 22, 0, 10), (30, 32, 0, 10), (40, 41, 0, 6), (50, 51, 0, 5)
    )
    more = boxes(shape, (0, 2, 0, 10), (10, 11, 0, 10), (11, 12, 0, 1), (20, 21, 0, 10), (30, 32, 0, 10))
    coarse = more | boxes(shape, (40, 41, 0, 6), (50, 51, 0, 5))
    refined = boxes(shape, (0, 1, 0, 1), (30, 31, 0, 2))
    # Lost: all of 20 to 1, 11 of 20 to none, all of 6. Not: 10 of 20, half; 20 to 2, a tenth; 5 px, too small.
    assert harm(refined, coarse, truth).lost == 3


def test_harm_where_masks_are_empty_or_full():
    empty = np.zeros((4, 5), bool)
    assert harm(~empty, empty, empty) == Harm(far_px=20, truth_px=0, fragments=1, holes=0, lost=0)
    assert harm(empty, ~empty, ~empty) == Harm(far_px=20, truth_px=20, fragments=0, holes=1, lost=1)
    assert harm(~empty, empty, empty).far == harm(empty, ~empty, ~empty).far == 1.0
    assert harm(empty, empty, ~empty) == none(~empty)
    one = boxes((4, 5), (1, 2, 1, 2))
    assert harm(one, empty, empty).far == 1.0  # of no area
    assert harm(empty, empty, empty).far == 0.0


def test_far_errors_pool_by_area():
    assert pooled_far([(9, 10), (0, 90)]) == 0.09
    assert pooled_far([(3, 0), (0, 2)]) == 1.5
    assert pooled_far([(3, 0), (0, 0)]) == 1.0
    assert pooled_far([]) == pooled_far([(0, 0)]) == 0.0


def test_harm_refuses_what_is_no_mask_by_its_name():
    good = np.zeros((4, 5), bool)
    for i, name in enumerate(("refined mask", "coarse mask", "truth")):
        masks = [good, good, good]
        masks[i] = np.zeros((3, 5), bool)
        with pytest.raises(InputError, match=rf"the {name} is \(3, 5\).*bring all to the same"):
            harm(*masks)
        masks[i] = np.full((4, 5), 2, np.uint8)
        with pytest.raises(InputError, match=f"the {name} holds uint8 values"):
            harm(*masks)


def test_harm_takes_every_accepted_kind_of_mask():
    masks = blobs(60, 70, 3, smooth=1), blobs(60, 70, 4), blobs(60, 70, 4, smooth=3)
    refined, coarse, truth = masks
    kinds = np.asfortranarray(refined), np.where(coarse, 0.51, 0.5), truth.astype(np.uint8) * 255
    assert harm(*kinds) == harm(*masks)
