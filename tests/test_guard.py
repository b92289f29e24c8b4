import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from refine.config import Cascade
from refine.engine import Refiner
from refine.frame import Frame
from refine.guard import FINE, SEEN, SURE, Guard
from refine.planes import Held
from refine.slides import Workspace
from refine.tiles import Window

SIZE = (96, 128)


def boxes(*windows, size=SIZE):
    """A mask of windows (top, bottom, left, right)."""
    out = np.zeros(size, np.float32)
    for window in windows:
        out[Window(*window).slices] = 1
    return out


def guard_of(coarse, store=None, sizes=((12, 16), SIZE)):
    """Of a grey picture with a coarse mask."""
    image = Held(np.zeros((*coarse.shape, 3), np.uint8))
    return Guard(Frame(image, Held(coarse), Cascade(pad=0, resize="area"), torch.device("cpu"), store), sizes)


def settled(coarse, p, finest=None, store=None):
    """What is left of probabilities after the last scale, and what was done."""
    out = p.copy()
    guard = guard_of(coarse, store, sizes=(coarse.shape,))
    return out, guard.settle(Held(out), finest or coarse.shape, "1")


OBJECT, OTHER = (16, 48, 16, 56), (70, 90, 90, 120)
LARGE = (10, 60, 8, 72)  # too wide to be kept whole


@pytest.mark.parametrize(("sure", "stays"), [(0.55, False), (0.89, False), (0.91, True), (1.0, True)])
@pytest.mark.parametrize("invert", [False, True])
def test_a_part_that_touches_nothing_of_the_coarse_mask_goes_unless_the_network_is_sure(sure, stays, invert):
    coarse, found = boxes(LARGE), boxes(LARGE)
    found[Window(*OTHER).slices] = sure
    if invert:
        coarse, found = 1 - coarse, 1 - found
    out, done = settled(coarse, found)
    np.testing.assert_array_equal(out, found if stays else coarse)
    assert done.taken_back + done.given_back == (0 if stays else np.count_nonzero(found != coarse))
    assert done.warnings == ()


@pytest.mark.parametrize(("sure", "back"), [(0.5, True), (0.89, True), (0.91, False), (1.0, False)])
def test_a_thick_part_that_is_taken_away_comes_back_unless_the_network_is_sure(sure, back):
    coarse, found = boxes(LARGE), boxes((10, 60, 8, 30))
    found[10:60, 30:72] = 1 - sure
    out, done = settled(coarse, found)
    np.testing.assert_array_equal(out, coarse if back else found)
    assert (done.taken_back, done.given_back) == (0, 50 * 42 if back else 0)
    assert done.warnings == ()


def test_a_thin_strip_that_is_taken_away_stays_so():
    coarse, found = boxes(LARGE), boxes(LARGE)
    found[10:60, 56:72] = 0.4
    out, done = settled(coarse, found)
    np.testing.assert_array_equal(out, found)
    assert done.given_back == 0


def test_it_is_the_mean_of_a_part_that_counts():
    """A part half of which is at 1.0 and the other half at 0.7 is sure by 0.85."""
    coarse, found = boxes(LARGE), boxes(LARGE, OTHER)
    found[70:80, 90:120] = 0.7
    np.testing.assert_array_equal(settled(coarse, found)[0], coarse)
    found[70:80, 90:120] = 0.9
    np.testing.assert_array_equal(settled(coarse, found)[0], found)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(
    "windows",
    [
        [(10, 60, 8, 84)],  # grown beyond the coarse mask
        [(40, 44, 50, 54)],  # shrunk to a bit of it
        [(10, 60, 8, 72), (20, 24, 72, 128)],  # with a thin arm
        [(8, 20, 8, 20), (44, 60, 50, 60)],  # broken in two
    ],
)
def test_what_hangs_together_with_the_coarse_mask_stays(windows, invert):
    coarse, found = boxes(LARGE), 0.6 * boxes(*windows)
    if invert:
        coarse, found = 1 - coarse, 1 - found
    out, done = settled(coarse, found)
    np.testing.assert_array_equal(out, found)
    assert (done.taken_back, done.given_back) == (0, 0)


def test_parts_that_are_a_few_pixels_apart_are_one():
    coarse = boxes(LARGE)
    for gap, count in ((4, 0), (5, 100)):
        found = 0.6 * boxes(LARGE, (20, 30, 72 + gap, 82 + gap))
        assert settled(coarse, found)[1].taken_back == count
        assert settled(1 - coarse, 1 - found)[1].taken_back == count


def expected_without_loose(coarse, p):
    """By scipy, part by part, parts being joined over 4 px."""
    out = p.copy()
    for mask, held, sure in ((p > 0.5, coarse > 0.5, p), (p <= 0.5, coarse <= 0.5, 1 - p)):
        labels, count = ndimage.label(ndimage.binary_dilation(mask, np.ones((5, 5))), np.ones((3, 3)))
        for label in range(1, count + 1):
            here = (labels == label) & mask
            if not held[here].any() and sure[here].mean() < SURE:
                out[here] = coarse[here]
    return out


WIDE = (8, 60, 4, 124)


def noisy():
    """A band of doubt around the object."""
    distance = cv2.distanceTransform(boxes(WIDE).astype(np.uint8), cv2.DIST_L2, 5)
    distance -= cv2.distanceTransform(1 - boxes(WIDE).astype(np.uint8), cv2.DIST_L2, 5)
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 6, SIZE).astype(np.float32), (0, 0), 1)
    return (1 / (1 + np.exp(-(distance / 4 + noise)))).astype(np.float32)


def test_of_random_probabilities_each_loose_part_that_is_not_sure_is_taken_back_and_nothing_else():
    coarse = boxes(WIDE)
    out, done = settled(coarse, noisy())
    np.testing.assert_array_equal(out, expected_without_loose(coarse, noisy()))
    assert done.taken_back == np.count_nonzero(out != noisy()) > 5


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_by_bands_it_is_the_same(monkeypatch, rows):
    coarse = boxes(WIDE, (70, 72, 10, 60), (80, 81, 10, 12))
    whole = settled(coarse, noisy())
    for name in ("refine.parts.BAND", "refine.cells.BAND", "refine.planes.BAND"):
        monkeypatch.setattr(name, 2 * SIZE[1] * rows)
    parts = settled(coarse, noisy())
    np.testing.assert_array_equal(parts[0], whole[0])
    assert parts[1] == whole[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (5, 7), (33, 129)])
def test_pictures_of_any_size_are_settled(size):
    coarse = np.ones(size, np.float32)
    out, done = settled(coarse, coarse)
    np.testing.assert_array_equal(out, coarse)
    assert (done.taken_back, done.given_back) == (0, 0)
    nothing = settled(0 * coarse, 0 * coarse)[0]
    assert not nothing.any()


def line(width, length=100, top=70):
    return (top, top + width, 10, 10 + length)


@pytest.mark.parametrize(("width", "back"), [(2, True), (5, True), (9, True), (16, False)])
def test_a_narrow_part_that_is_lost_whole_comes_back(width, back):
    """An object of 86 by 116 px and beside it a line, of which nothing is left; only a wide one was seen."""
    coarse = boxes((4, 90, 4, 120), line(width, top=100), size=(128, 128))
    found = boxes((4, 90, 4, 120), size=(128, 128))
    out, done = settled(coarse, found)
    np.testing.assert_array_equal(out, coarse if back else found)
    assert (done.given_back, done.fine) == ((100 * width if back else 0), False)
    assert any("narrow parts of the coarse mask were lost" in text for text in done.warnings) == back


def test_a_branch_that_is_lost_comes_back_and_one_whose_end_is_cut_does_not():
    body, size = (4, 84, 4, 84), (100, 300)
    coarse = boxes(body, (40, 46, 84, 280), size=size)
    out, _ = settled(coarse, boxes(body, size=size))
    np.testing.assert_array_equal(out[:, 90:], coarse[:, 90:])
    shorter = boxes(body, (40, 46, 84, 265), size=size)
    np.testing.assert_array_equal(settled(coarse, shorter)[0], shorter)
    moved = boxes(body, (43, 49, 84, 280), size=size)  # refined, not lost
    np.testing.assert_array_equal(settled(coarse, moved)[0], moved)


def test_of_a_mask_that_is_all_narrow_nothing_shrinks_and_all_may_grow():
    windows = [(y, y + 12, 8, 290) for y in range(8, 190, 30)]
    coarse = boxes(*windows, size=(200, 300))
    assert windows[0][1] - windows[0][0] < FINE
    found = boxes(*((t + 3, b + 3, left, 150) for t, b, left, _ in windows), size=(200, 300))
    out, done = settled(coarse, found)
    np.testing.assert_array_equal(out, np.maximum(coarse, found))
    assert done.fine
    assert "consists mostly of such parts" in done.warnings[0]


def test_what_a_scale_does_not_see_stays_as_the_coarse_mask_has_it():
    """Samples of 8 px: the line and the gap are half of one, the object is sixteen of them."""
    size = (400, 400)
    coarse = boxes((100, 300, 20, 280), (40, 44, 20, 280), size=size)
    coarse[198:202, 60:240] = 0
    guard = guard_of(coarse, sizes=((50, 50), (200, 200)))
    assert guard.start == 0
    p = Held(boxes((50, 150, 10, 110), size=(200, 200)))  # cut at the right, without line and gap
    count = guard.unseen(p, (50, 50), "0")
    assert count > 0
    np.testing.assert_array_equal(p.array[20:22, 10:140], 1)
    np.testing.assert_array_equal(p.array[99:101, 40:110], 0)
    np.testing.assert_array_equal(p.array[52:90, 112:], 0)  # decided
    seen = Held(boxes((50, 150, 10, 110), size=(200, 200)))
    assert guard.unseen(seen, (400, 400), "1") > 0  # 4 samples are few
    assert SEEN > 4


def test_a_cascade_starts_at_the_first_scale_that_sees_the_parts():
    blobs = boxes(*((y, y + 20, x, x + 20) for y in range(10, 380, 40) for x in range(10, 380, 40)), size=(400, 400))
    sizes = ((50, 50), (100, 100), (200, 200), (400, 400))
    assert guard_of(blobs, sizes=sizes).start == 3
    assert guard_of(boxes((100, 300, 100, 300), size=(400, 400)), sizes=sizes).start == 0
    assert guard_of(blobs, sizes=((50, 50), (50, 50))).start == 0  # passes of one size are all run


ONCE = ((12, 16), (12, 16))  # a cascade whose first scale is not left out


def doubted(first, later):
    """What is left of a later scale's probabilities after those of a first one, and the pixels given back."""
    guard, out = guard_of(boxes(OBJECT), sizes=ONCE), later.copy()
    guard.compare(Held(first))
    count = guard.doubt(Held(out), "1")
    assert guard.doubt(Held(out.copy()), "1") == 0  # twice is as once
    return out, count


BESIDE = (16, 48, 56, 88)  # of the object, four cells by four
THIN = (30, 36, 56, 120)  # less than a cell


def likely(*parts):
    """The object for certain, and windows with their probabilities."""
    out = boxes(OBJECT)
    for window, p in parts:
        out[Window(*window).slices] = p
    return out


@pytest.mark.parametrize(
    ("then", "now", "stays"),
    [
        (0.1, 0.6, False),
        (0.1, 0.89, False),
        (0.1, 0.91, True),
        (0.4, 0.55, False),
        (0.4, 0.65, True),
        (0.0, 0.99, False),
        (0.1, 0.3, False),  # which the next scale might go on from
    ],
)
def test_a_thick_part_is_given_back_unless_surer_than_the_ground_was(then, now, stays):
    first, later = likely((BESIDE, then)), likely((BESIDE, now))
    out, count = doubted(first, later)
    np.testing.assert_allclose(out[20:44, 64:80], now if stays else then, atol=1e-6)
    np.testing.assert_array_equal(out[boxes(OBJECT) > 0], 1)
    assert (count == 0) == stays


def test_thin_parts_and_losses_are_not_doubted():
    coarse = boxes(OBJECT)
    for later in (likely((THIN, 0.8)), likely(((16, 48, 40, 56), 0.2)), coarse, 0 * coarse):
        out, count = doubted(likely((THIN, 0.1)), later)
        np.testing.assert_array_equal(out, later)
        assert count == 0


def test_nothing_is_doubted_where_the_first_scale_found_missing_parts():
    """Two cells beside the coarse mask's twenty; more than one of a hundred is too many."""
    first = likely((BESIDE, 0.1), ((48, 56, 16, 32), 0.9))
    out, count = doubted(first, likely((BESIDE, 0.8)))
    assert count == 0
    assert (out[Window(*BESIDE).slices] == np.float32(0.8)).all()


@pytest.mark.parametrize("size", [(24, 32), (61, 83), SIZE])
def test_scales_of_any_size_are_doubted(size):
    first = np.zeros((12, 16), np.float32)
    first[2:6, 2:7] = 1
    later = np.zeros(size, np.float32)
    rows = slice(size[0] * 16 // SIZE[0], size[0] * 48 // SIZE[0])
    later[rows, slice(size[1] // 8, size[1] * 88 // 128)] = 0.9
    out, _ = doubted(first, later)
    right = np.s_[rows, size[1] * 66 // 128 :]
    assert (later[right] > 0.5).any()
    assert not (out[right] > 0.5).any()
    assert (out[rows, size[1] // 8 : size[1] * 48 // 128] > 0.5).all()


def test_by_bands_the_same_is_doubted(monkeypatch):
    first, later = likely((BESIDE, 0.1), ((60, 90, 70, 110), 0.2)), likely((BESIDE, 0.8), ((60, 90, 70, 110), 0.9))
    whole = doubted(first, later)
    monkeypatch.setattr("refine.cells.BAND", 700)
    monkeypatch.setattr("refine.planes.BAND", 700)
    parts = doubted(first, later)
    np.testing.assert_array_equal(parts[0], whole[0])
    assert parts[1] == whole[1] > 0


class Stop(Exception):
    """In the place of a kill."""


def stopped(mark, left, marked):
    """A store's ``mark`` that stops a run at the ``left``-th step, before or after that is ``marked``."""

    def counted(step, *arrays, **more):
        nonlocal left
        left -= 1
        if left or marked:
            mark(step, *arrays, **more)
        if not left:
            raise Stop

    return counted


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("stop", range(1, 10))
def test_guarded_scales_that_are_gone_through_again_stay_as_they_are(tmp_path, monkeypatch, stop, marked):
    for name in ("refine.cells.BAND", "refine.planes.BAND", "refine.parts.BAND"):
        monkeypatch.setattr(name, 3000)
    coarse = boxes(OBJECT, (4, 6, 20, 120))
    first, later = likely((BESIDE, 0.1)), likely((BESIDE, 0.8), ((72, 78, 90, 120), 0.7))  # which is thin, and loose

    def run(folder, left=10**9):
        with Workspace(tmp_path / folder, {"job": 1}) as store:
            p = store.array("p", SIZE, np.float32)
            if not store.done("scale"):
                p[...] = later
                store.mark("scale", p)
            guard = guard_of(coarse, store, ONCE)
            guard.compare(Held(first))
            monkeypatch.setattr(store, "mark", stopped(store.mark, left, marked))
            counts = [guard.doubt(Held(p), "1"), guard.unseen(Held(p), (24, 32), "1")]
            done = guard.settle(Held(p), SIZE, "2")
            return np.array(p), (*counts, done.taken_back, done.given_back)

    whole, counts = run("whole")
    assert min(counts[:3]) > 0
    with pytest.raises(Stop):
        run("parts", stop)
    for _ in range(2):
        again, recounted = run("parts")
        np.testing.assert_array_equal(again, whole)
        assert recounted == counts or not marked  # what a kill left written and not marked is not counted


def test_an_object_like_the_one_is_left_alone_and_the_report_says_so(monkeypatch):
    """Two discs of one colour, of which the coarse mask has one."""
    y, x = np.mgrid[:256, :384]
    left, right = np.hypot(y - 128, x - 100) < 50, np.hypot(y - 128, x - 290) < 50
    noise = np.random.default_rng(0).integers(0, 20, (256, 384, 3))
    image = (np.where((left | right)[..., None], (60, 150, 40), (120, 90, 60)) + noise).astype(np.uint8)
    refiner = Refiner()

    def decode(self, view, window, core, before, selection, options, tile, counts, out, lean):
        both = cv2.resize((left + 0.8 * right).astype(np.float32), view.grid[::-1], interpolation=cv2.INTER_NEAREST)
        out[...] = both[core.slices]

    monkeypatch.setattr(Refiner, "_decode", decode)  # a network that takes the other one along
    kept, free = (refiner.refine(image, left, guard=guard, decode="dense") for guard in (True, False))
    assert free.mask[right].all()
    assert not kept.mask[right].any()
    assert kept.mask[left].all()
    assert sum(scale.taken_back for scale in kept.report.scales) == np.count_nonzero(right)
    assert all(scale.taken_back == 0 for scale in free.report.scales)
    assert free.report.change.parts_added == 1
    assert kept.report.change.parts_added == 0


@pytest.mark.parametrize(("side", "passes", "wanted"), [(1500, 1, ["1-0.5"]), (1500, 2, ["1-0.5"]), (1400, 1, [])])
def test_scales_between_the_first_and_the_last_are_doubted(monkeypatch, side, passes, wanted):
    seen = []
    doubt = Guard.doubt

    def noted(guard, p, name):
        if guard._first is not None:
            seen.append(name)
        return doubt(guard, p, name)

    monkeypatch.setattr(Guard, "doubt", noted)
    image = np.full((160, side, 3), 90, np.uint8)
    mask = np.zeros((160, side), bool)
    mask[40:120, 300:900] = True
    image[mask] = 200
    Refiner().refine(image, mask, passes=passes)
    assert seen == wanted
