import cv2
import numpy as np
import pytest

from refine.training.compose import pasted, some_parts
from refine.training.data import Crops
from refine.training.folders import survey

SIZE = (60, 80)


def disc(centre, radius, size=SIZE):
    y, x = np.mgrid[: size[0], : size[1]]
    return np.hypot(y - centre[0], x - centre[1]) < radius


def painted(colour, size=SIZE):
    return np.full((*size, 3), colour, np.uint8)


class TestPasted:
    def test_the_object_above_covers_and_all_else_is_the_picture_below(self):
        front, behind = disc((30, 30), 12), disc((30, 50), 15)
        image, _ = pasted((painted(40), behind), (painted(200), front), np.random.default_rng(0))
        core = cv2.erode(front.astype(np.uint8), np.ones((9, 9))) > 0
        far = cv2.dilate(front.astype(np.uint8), np.ones((9, 9))) == 0
        assert (image[core] == 200).all()
        assert (image[far] == 40).all()
        assert image.dtype == np.uint8

    def test_the_truth_is_by_turns_the_one_above_what_is_left_of_the_one_below_and_both(self):
        front, behind = disc((30, 30), 12), disc((30, 50), 15)
        kinds = {"above": front, "below": behind & ~front, "both": behind | front}
        seen = []
        for seed in range(60):
            _, truth = pasted((painted(0), behind), (painted(9), front), np.random.default_rng(seed))
            differing = {name: np.count_nonzero(truth != wanted) for name, wanted in kinds.items()}
            name = min(differing, key=differing.__getitem__)
            assert differing[name] < 25, "only pixels of the soft contour"
            seen.append(name)
        assert seen.count("above") > seen.count("below") > seen.count("both") > 0

    @pytest.mark.parametrize("seed", range(10))
    def test_truth_and_colour_agree_at_the_contour(self, seed):
        front, nothing = disc((30, 30), 12), np.zeros(SIZE, bool)
        image, truth = pasted((painted(0), nothing), (painted(200), front), np.random.default_rng(seed))
        covered = image[..., 0] > 100
        assert covered.any()
        np.testing.assert_array_equal(truth, covered if truth.any() else nothing)

    def test_neither_picture_is_written(self):
        below, above = (painted(1), disc((9, 9), 5)), (painted(2), disc((30, 30), 9))
        for array in (*below, *above):
            array.flags.writeable = False
        pasted(below, above, np.random.default_rng(0))


class TestSomeParts:
    @pytest.mark.parametrize("seed", range(10))
    def test_some_but_not_all_of_the_parts_are_kept_whole(self, seed):
        parts = [disc((15, 15), 8), disc((15, 60), 9), disc((45, 40), 7)]
        truth = np.logical_or.reduce(parts)
        kept = some_parts(truth, np.random.default_rng(seed))
        whole = [bool(kept[part].all()) for part in parts]
        assert [bool(kept[part].any()) for part in parts] == whole
        assert 0 < sum(whole) < 3
        assert not kept[~truth].any()

    @pytest.mark.parametrize("truth", [disc((30, 30), 10), np.zeros(SIZE, bool), np.ones(SIZE, bool)])
    def test_a_truth_of_one_part_stays(self, truth):
        np.testing.assert_array_equal(some_parts(truth, np.random.default_rng(0)), truth)

    def test_specks_are_no_parts(self):
        truth = disc((30, 30), 10)
        truth[2, 2] = True
        np.testing.assert_array_equal(some_parts(truth, np.random.default_rng(0)), truth)


@pytest.mark.parametrize(("composed", "least", "most"), [(0.0, 0.0, 0.0), (1.0, 0.2, 0.5)])
def test_object_and_ground_change_places_a_third_as_often_as_pictures_are_composed(tmp_path, composed, least, most):
    bright = disc((30, 40), 12)
    cv2.imwrite(str(tmp_path / "a_im.png"), np.where(bright, np.uint8(200), np.uint8(40)))
    cv2.imwrite(str(tmp_path / "a_gt.png"), 255 * bright.astype(np.uint8))
    crops = Crops([survey(tmp_path).pairs], [1.0], size=48, seed=0, composed=composed)
    darker = []
    for i in range(60):
        image, truth = crops[i]["image"].float().mean(0), crops[i]["truth"][0] > 0.5
        if truth.any() and not truth.all():
            darker.append(bool(image[truth].mean() < image[~truth].mean()))
    assert len(darker) > 40
    assert least <= np.mean(darker) <= most
