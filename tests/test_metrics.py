from pathlib import Path

import cv2
import numpy as np
import pytest

from refine.errors import InputError
from refine.metrics import intersection_and_union, iou, mean_boundary_accuracy, pooled_iou

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
    "same",
    [
        lambda m: m.astype(np.uint8),
        lambda m: m.astype(np.int64),
        lambda m: np.where(m, 129, 128).astype(np.uint8),
        lambda m: m.astype(np.uint8) * 255,
        lambda m: np.where(m, 0.51, 0.5),
        lambda m: np.asfortranarray(m),
    ],
)
def test_every_accepted_kind_of_mask_means_the_same(same):
    prediction, truth = blobs(60, 70, 3, smooth=3), blobs(60, 70, 4, smooth=3)
    assert iou(same(prediction), truth) == iou(prediction, same(truth)) == iou(prediction, truth)
    assert mean_boundary_accuracy(same(prediction), same(truth)) == mean_boundary_accuracy(prediction, truth)


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
