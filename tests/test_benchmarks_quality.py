import cv2
import numpy as np
import pytest
from conftest import disc, photographed

from benchmarks import quality
from refine.errors import FileError
from refine.metrics import mean_boundary_accuracy


def test_scenes_are_the_same_every_time_and_their_truth_has_both_classes(monkeypatch):
    monkeypatch.setattr(quality, "SIDES", (96, 120))
    one, other = list(quality.scenes(3, None)), list(quality.scenes(3, None))
    for (name, image, truth), (again, same, alike) in zip(one, other, strict=True):
        assert name == again
        np.testing.assert_array_equal(image, same)
        np.testing.assert_array_equal(truth, alike)
        assert 0 < truth.mean() < 1
    assert [max(truth.shape) for _, _, truth in one] == [96, 120, 96]


def test_a_folder_without_cut_outs_is_told(tmp_path):
    with pytest.raises(FileError, match="alphamatting"):
        next(quality.scenes(2, tmp_path))


def test_a_cut_out_stands_over_the_other_picture(tmp_path):
    truth = disc((60, 80), 20)
    for name, image in (("a_im.jpg", photographed(truth)), ("b_im.jpg", np.full((50, 70, 3), 200, np.uint8))):
        cv2.imwrite(str(tmp_path / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    cv2.imwrite(str(tmp_path / "a_gt.png"), truth.astype(np.uint8) * 255)
    image, found = quality.composed(
        tmp_path / "a_im.jpg", tmp_path / "b_im.jpg", np.random.default_rng(1), height=180, width=240
    )
    assert image.shape == (180, 240, 3)
    inside = cv2.erode(found.astype(np.uint8), np.ones((9, 9))) > 0
    outside = cv2.dilate(found.astype(np.uint8), np.ones((9, 9))) == 0
    assert inside.any()
    assert image[inside].mean(0) == pytest.approx((195, 135, 55), abs=8)
    assert image[outside].mean() == pytest.approx(200, abs=3)


def test_better_coarse_masks_are_better():
    truth = disc((400, 600), 120)
    mean = dict.fromkeys(quality.CELLS, 0.0)
    for seed in range(12):
        for name, mask in quality.coarse_masks(truth, np.random.default_rng(seed)):
            mean[name] += mean_boundary_accuracy(mask, truth)
    assert sorted(mean.values()) == list(mean.values())


def test_the_table_has_means_and_the_worst_change(monkeypatch, capsys):
    monkeypatch.setattr(quality, "SIDES", (96,))
    scored = quality.run({"same": lambda _, mask: mask, "none": lambda _, mask: ~mask}, 1, None)
    lines = quality.table(scored).splitlines()
    assert lines[0] == "| scene | coarse masks | coarse | same | none |"
    assert len(lines) == 2 + 4 + 4
    means = [line for line in lines if line.startswith("| mean")]
    assert all("(+0.00)" in line for line in means)
    best = [s for s in scored if s.quality == "best"]
    worst = 100 * (best[2].iou - best[0].iou)
    assert f"({worst:+.2f})" in means[-1]
    assert "done" in capsys.readouterr().out
