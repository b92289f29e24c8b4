import cv2
import numpy as np
import pytest

from refine.training.augment import published_crop, published_jitter
from refine.training.data import Crops
from refine.training.folders import survey


def drawn(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    return image, np.where(image[..., 0] > 127, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (131, 97)])
def test_a_published_crop_is_a_window_of_the_picture_and_its_truth(size):
    image, truth = drawn(size)
    windows = np.lib.stride_tricks.sliding_window_view(image, (64, 64, 3))[:, :, 0]
    for seed in range(5):
        part, mask = published_crop(image, truth, 64, np.random.default_rng(seed))
        assert (windows == part).all((2, 3, 4)).sum() == 1
        np.testing.assert_array_equal(mask, part[..., 0] > 127)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 40), (33, 63)])
def test_a_picture_that_is_smaller_than_a_crop_is_mirrored(size):
    image, truth = drawn(size)
    part, mask = published_crop(image, truth, 64, np.random.default_rng(0))
    assert (part.shape, mask.shape, mask.dtype) == ((64, 64, 3), (64, 64), bool)
    np.testing.assert_array_equal(mask, part[..., 0] > 127)
    assert {tuple(p) for p in part.reshape(-1, 3)} <= {tuple(p) for p in image.reshape(-1, 3)}


def test_crops_are_drawn_everywhere():
    image, truth = drawn((66, 64))
    rng = np.random.default_rng(0)
    assert len({published_crop(image, truth, 64, rng)[0].tobytes() for _ in range(40)}) == 3


def test_published_colours_change_by_what_they_may():
    neutral, coloured = np.full((4, 4, 3), 120, np.uint8), np.full((4, 4, 3), (180, 120, 60), np.uint8)
    factors = [published_jitter(neutral, np.random.default_rng(seed)).mean() / 120 for seed in range(400)]
    assert 0.78 < min(factors) < 0.84
    assert 1.16 < max(factors) < 1.22
    seen = [published_jitter(coloured, np.random.default_rng(seed)) for seed in range(400)]
    grey = np.mean([np.ptp(each, axis=2).max() <= 1 for each in seen])
    assert 0.06 < grey < 0.15


def test_published_colours_are_reproducible():
    image, _ = drawn((9, 9))
    first, second = (published_jitter(image, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("augment", "neutral"), [("published", True), ("broad", False)])
def test_a_grey_stays_grey_in_crops_as_published_alone(tmp_path, augment, neutral):
    _, truth = drawn((80, 90))
    cv2.imwrite(str(tmp_path / "a_im.png"), np.full((80, 90, 3), 120, np.uint8))
    cv2.imwrite(str(tmp_path / "a_gt.png"), truth)
    crops = Crops([survey(tmp_path).pairs], [1.0], size=32, seed=0, augment=augment)
    images = [crops[i]["image"].int() for i in range(20)]
    assert all(int(image.max() - image.min()) <= 1 for image in images) == neutral
    assert len({int(image[0, 0, 0]) for image in images}) > 5
