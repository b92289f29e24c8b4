import cv2
import numpy as np
import pytest

from refine.training.scenes import scene

SEEDS = range(24)


@pytest.fixture(scope="module")
def scenes():
    return [scene(np.random.default_rng(seed), 120, 160) for seed in SEEDS]


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (40, 1), (2, 3), (17, 31), (256, 256), (301, 200)])
def test_any_size_gives_a_picture_and_a_truth(shape):
    image, truth = scene(np.random.default_rng(3), *shape)
    assert image.shape == (*shape, 3)
    assert image.dtype == np.uint8
    assert truth.shape == shape
    assert truth.dtype == np.bool_


def test_a_seed_gives_the_same_scene_and_another_seed_another():
    first, again, other = (scene(np.random.default_rng(seed), 90, 110) for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_the_object_covers_a_fair_share_of_the_picture(scenes):
    for _, truth in scenes:
        assert 0.005 < truth.mean() <= 0.75  # occluders may take some of the 2 %


def test_scenes_hold_holes_thin_parts_and_several_objects(scenes):
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    holes = thin = several = 0
    for _, truth in scenes:
        mask = truth.astype(np.uint8)
        several += cv2.connectedComponents(mask)[0] > 2
        holes += cv2.connectedComponents(1 - mask, connectivity=4)[0] > 2
        thin += np.count_nonzero(mask) - np.count_nonzero(cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel)) > 60
    assert min(holes, thin, several) >= len(scenes) // 4


def test_the_truth_is_where_the_picture_changes(scenes):
    """The picture's gradient at the truth's boundary is above its mean, by far in most scenes."""
    ratios = []
    for image, truth in scenes:
        grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1)
        slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        band = cv2.morphologyEx(truth.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        ratios.append(slope[band].mean() / slope.mean())
    assert np.median(ratios) > 1.4
    assert np.quantile(ratios, 0.25) > 1.1
