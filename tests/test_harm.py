"""What refining must never do to a mask, on whole pictures, by every way of decoding and both models that ship."""

import cv2
import numpy as np
import pytest
import tifffile
from scipy import ndimage

import refine
import refine.metrics

WAYS = {
    "crm-s dense": ("crm-s", {"decode": "dense"}),
    "crm-s strided": ("crm-s", {"decode": "strided", "stride": 4}),
    "crm-s contour": ("crm-s", {"decode": "contour"}),
    "crm-r50": ("crm-r50", {}),
}


@pytest.fixture(scope="module", params=WAYS)
def refiner(request) -> refine.Refiner:
    model, options = WAYS[request.param]
    return refine.Refiner(model, device="cpu", dtype="float32", **options)


def rough(size, rng):
    return cv2.GaussianBlur(rng.normal(0, 1, size).astype(np.float32), (0, 0), 3)


def nuclei(side, seed=3):
    """A white slide of blobs of 16 to 28 px, the number of each (H, W), and a mask at a sixth of its size."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((side, side), np.uint16)
    centres = [(y, x) for y in range(24, side - 24, 44) for x in range(24, side - 24, 44)]
    for number, (cy, cx) in enumerate(centres, start=1):
        y, x = cy + int(rng.integers(-8, 9)), cx + int(rng.integers(-8, 9))
        axes = tuple(int(a) for a in rng.integers(8, 15, 2))
        cv2.ellipse(ids, (x, y), axes, float(rng.integers(0, 180)), 0, 360, number, -1)
    shade = rough((side, side), rng)
    shade = shade[..., None] / shade.std()
    image = np.where(ids[..., None] > 0, (120, 70, 150) + 14 * shade, (238, 232, 240) + 4 * shade)
    image = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    return image, ids, cv2.resize((ids > 0).astype(np.float32), (side // 6, side // 6), interpolation=cv2.INTER_AREA)


def test_of_many_small_objects_none_is_lost(refiner):
    image, ids, coarse = nuclei(740)
    refined = refiner.refine(image, coarse)
    assert set(np.unique(ids[refined.mask])) >= set(range(1, ids.max() + 1))
    before = refine.prepare.as_mask(coarse, ids.shape) > 0.5
    assert refine.metrics.iou(refined.mask, ids > 0) >= refine.metrics.iou(before, ids > 0)
    assert refined.report.change.parts_lost == 0


def test_of_many_small_objects_none_is_lost_by_windows(tmp_path):
    image, ids, coarse = nuclei(740)
    tifffile.imwrite(tmp_path / "image.tif", image, tile=(256, 256), photometric="rgb")
    small = np.rint(255 * coarse).astype(np.uint8)
    tifffile.imwrite(tmp_path / "mask.tif", small, tile=(64, 64))
    refiner = refine.Refiner(device="cpu", dtype="float32")
    report = refiner.refine_file(tmp_path / "image.tif", tmp_path / "mask.tif", tmp_path / "out.tif", tile=512)
    mask = tifffile.imread(tmp_path / "out.tif") > 0
    assert set(np.unique(ids[mask])) >= set(range(1, ids.max() + 1))
    np.testing.assert_array_equal(mask, refiner.refine(image, small, tile=512).mask)
    assert report.change.parts_lost == 0


def net(side=500, seed=5):
    """A grey ground with low-contrast threads of 3 to 7 px, as vessels are, and where they are."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((side, side), np.uint8)
    for _ in range(8):
        at, angle = rng.uniform(0, side, 2), rng.uniform(0, 2 * np.pi)
        width = int(rng.integers(3, 8))
        for _ in range(40):
            angle += rng.normal(0, 0.15)
            to = at + 20 * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(truth, tuple(int(v) for v in at), tuple(int(v) for v in to), 1, width)
            at = to
    ground = 150 + 60 * rough((side, side), rng)[..., None]
    image = ground - 14 * truth[..., None] + rng.normal(0, 5, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8), truth > 0


def test_a_net_of_thin_threads_is_kept(refiner):
    image, truth = net()
    coarse = cv2.blur(truth.astype(np.float32), (5, 5)) > 0.3
    refined = refiner.refine(image, coarse)
    lost = ndimage.label(coarse & ~refined.mask, np.ones((3, 3)))[0]
    assert (lost > 0).sum() <= 0.03 * coarse.sum()
    assert refined.report.change.parts_lost == 0
    assert refine.metrics.iou(refined.mask, truth) >= refine.metrics.iou(coarse, truth) - 0.03


def test_beside_a_large_object_small_ones_are_kept(refiner):
    rng = np.random.default_rng(2)
    truth = np.zeros((700, 820), bool)
    truth[200:600, 100:500] = True
    small = np.zeros_like(truth)
    for y, x in ((60, 700), (400, 660), (600, 750), (70, 60)):
        small[y : y + 9, x : x + 11] = True
    truth |= small
    image = np.where(truth[..., None], (190, 70, 60), (90, 120, 110)) + rng.normal(0, 6, (*truth.shape, 3))
    refined = refiner.refine(np.clip(image, 0, 255).astype(np.uint8), truth)
    found = ndimage.label(small)[0]
    assert set(np.unique(found[refined.mask])) == {0, 1, 2, 3, 4}


def test_a_part_of_a_picture_in_which_nothing_is_seen_comes_back_with_a_warning():
    """Dots of one pixel in noise: no network sees them, and none may vanish."""
    rng = np.random.default_rng(8)
    image = rng.integers(0, 256, (500, 700, 3), np.uint8)
    coarse = np.zeros((500, 700), bool)
    coarse[100:400, 60:360] = True
    dots = np.zeros_like(coarse)
    dots[40:480:60, 430:680:60] = True
    refiner = refine.Refiner(device="cpu", dtype="float32")
    refined = refiner.refine(image, coarse | dots)
    assert refined.mask[dots].all()
    unguarded = refiner.refine(image, coarse | dots, guard=False)
    assert not unguarded.mask[dots].all()
    assert any("were lost, and given back as they were" in text for text in refined.report.warnings)
