import cv2
import numpy as np
import pytest
import torch

from refine.config import Cascade
from refine.engine import Refiner
from refine.frame import Frame
from refine.guard import Guard
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


def guard_of(coarse, store=None, cells=(12, 16)):
    """Of a grey picture with a coarse mask."""
    image = Held(np.zeros((*coarse.shape, 3), np.uint8))
    return Guard(Frame(image, Held(coarse), Cascade(pad=0, resize="area"), torch.device("cpu"), store), cells)


def guarded(coarse, p):
    """What is left of probabilities, and the pixels taken back."""
    out = p.copy()
    count = guard_of(coarse).take_back(Held(out), "1")
    return out, count


OBJECT, OTHER = (16, 48, 16, 56), (60, 90, 90, 120)


def test_a_part_that_touches_nothing_of_the_coarse_mask_is_taken_back():
    coarse, found = boxes(OBJECT), boxes(OBJECT, OTHER)
    out, count = guarded(coarse, found)
    np.testing.assert_array_equal(out, coarse)
    assert count >= np.count_nonzero(found != coarse)


def test_a_hole_where_the_coarse_mask_has_none_is_taken_back():
    coarse, found = 1 - boxes(OTHER), 1 - boxes(OBJECT, OTHER)
    np.testing.assert_array_equal(guarded(coarse, found)[0], coarse)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(
    "windows",
    [
        [(16, 48, 16, 120)],  # grown far beyond the coarse mask
        [(40, 44, 50, 54)],  # shrunk to a bit of it
        [(16, 48, 16, 56), (20, 24, 56, 128)],  # with a thin arm
        [(8, 20, 8, 20), (44, 60, 50, 60)],  # broken in two
        [],
    ],
)
def test_what_hangs_together_with_the_coarse_mask_stays(windows, invert):
    coarse, found = boxes(OBJECT), boxes(*windows)
    if invert:
        coarse, found = 1 - coarse, 1 - found
    if not windows:
        found = coarse
    out, count = guarded(coarse, found)
    np.testing.assert_array_equal(out, found)
    assert count == 0


def test_parts_less_than_a_cell_apart_are_one():
    near, far = boxes(OBJECT, (16, 48, 60, 64)), boxes(OBJECT, (16, 48, 80, 84))
    np.testing.assert_array_equal(guarded(boxes(OBJECT), near)[0], near)
    np.testing.assert_array_equal(guarded(boxes(OBJECT), far)[0], boxes(OBJECT))


@pytest.mark.parametrize("size", [(12, 16), (37, 51), SIZE])
def test_probabilities_of_any_size_are_guarded(size):
    coarse = boxes(OBJECT)
    found = np.zeros(size, np.float32)
    rows, columns = (slice(n * 16 // N, n * 48 // N) for n, N in zip(size, SIZE, strict=True))
    found[rows, columns] = 1
    loose = found.copy()
    loose[-2:, -2:] = 0.9
    np.testing.assert_array_equal(guarded(coarse, loose)[0][rows, columns], found[rows, columns])
    assert (guarded(coarse, loose)[0] > 0.5).sum() == (found > 0.5).sum()


def test_by_bands_it_is_the_same(monkeypatch):
    coarse, found = boxes(OBJECT), boxes(OBJECT, OTHER, (2, 10, 100, 110))
    whole = guarded(coarse, found)
    monkeypatch.setattr("refine.guard.BAND", 700)
    parts = guarded(coarse, found)
    np.testing.assert_array_equal(parts[0], whole[0])
    assert parts[1] == whole[1]


def doubted(first, later):
    """What is left of a later scale's probabilities after those of a first one, and the pixels given back."""
    guard, out = guard_of(boxes(OBJECT)), later.copy()
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
    monkeypatch.setattr("refine.guard.BAND", 700)
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
@pytest.mark.parametrize("stop", range(1, 14))
def test_guarded_scales_that_are_gone_through_again_stay_as_they_are(tmp_path, monkeypatch, stop, marked):
    """What is doubted cuts off a part, which has no hold in the coarse mask then."""
    for name in ("refine.guard.BAND", "refine.planes.BAND"):
        monkeypatch.setattr(name, 700)
    beyond, loose = (16, 48, 88, 120), (60, 90, 90, 120)
    first, later = likely((BESIDE, 0.1), (beyond, 0.1)), likely((BESIDE, 0.8), (beyond, 0.95), (loose, 0.9))

    def run(folder, left=10**9):
        with Workspace(tmp_path / folder, {"job": 1}) as store:
            p = store.array("p", SIZE, np.float32)
            if not store.done("scale"):
                p[...] = later
                store.mark("scale", p)
            guard = guard_of(boxes(OBJECT), store)
            guard.compare(Held(first))

            monkeypatch.setattr(store, "mark", stopped(store.mark, left, marked))
            counts = guard.take_back(Held(p), "1"), guard.doubt(Held(p), "1")
            return np.array(p), counts

    whole, counts = run("whole")
    assert min(counts) > 0
    alone, out = guard_of(boxes(OBJECT)), later.copy()
    alone.compare(Held(first))
    assert (alone.take_back(Held(out), "1"), alone.doubt(Held(out), "1")) == counts
    np.testing.assert_array_equal(out, whole)
    assert (whole[Window(*beyond).slices][:, 8:] > 0.5).all()
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
        both = cv2.resize((left | right).astype(np.float32), view.grid[::-1], interpolation=cv2.INTER_NEAREST)
        out[...] = both[core.slices]

    monkeypatch.setattr(Refiner, "_decode", decode)  # a network that takes the other one along
    kept, free = (refiner.refine(image, left, guard=guard, decode="dense") for guard in (True, False))
    assert free.mask[right].all()
    assert not kept.mask[right].any()
    assert kept.mask[left].all()
    assert sum(scale.taken_back for scale in kept.report.scales) >= np.count_nonzero(right) / 4
    assert all(scale.taken_back == 0 for scale in free.report.scales)


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


WIDE = (8, 60, 4, 124)
SPECK, PINHOLE, LONG = (70, 74, 20, 24), (12, 16, 20, 24), (30, 34, 10, 110)


def filled(*parts, coarse=WIDE):
    """Probabilities of the object 1, with others in parts (window, p)."""
    out = boxes(coarse)
    for window, p in parts:
        out[Window(*window).slices] = p
    return out


def without_specks(p, coarse=WIDE, store=None):
    out = p.copy()
    count = guard_of(boxes(coarse), store).specks(Held(out), "1")
    return out, count


@pytest.mark.parametrize(
    ("parts", "given_back"),
    [
        ([(SPECK, 0.7)], [SPECK]),
        ([(PINHOLE, 0.3)], [PINHOLE]),
        ([(SPECK, 0.7), (PINHOLE, 0.3), ((80, 81, 90, 91), 0.89)], [SPECK, PINHOLE, (80, 81, 90, 91)]),
        ([(SPECK, 0.7), ((71, 72, 21, 22), 0.95)], []),  # sure of a pixel
        ([(PINHOLE, 0.3), ((13, 14, 21, 22), 0.05)], []),
        ([(LONG, 0.3)], []),  # no pinhole
        ([((60, 62, 20, 24), 0.7)], []),  # at the object
        ([((60, 62, 124, 126), 0.7)], []),  # at its corner
        ([((6, 12, 20, 24), 0.3)], []),  # open to the ground
        ([((8, 9, 4, 5), 0.0), ((9, 10, 5, 6), 0.3)], [(9, 10, 5, 6)]),  # a hole that is closed but for a corner
    ],
)
def test_specks_and_pinholes_that_are_sure_nowhere_are_given_back(parts, given_back):
    p = filled(*parts)
    expected = p.copy()
    for window in given_back:
        expected[Window(*window).slices] = boxes(WIDE)[Window(*window).slices]
    out, count = without_specks(p)
    np.testing.assert_array_equal(out, expected)
    assert count == np.count_nonzero(p != expected)


def test_a_pinhole_that_the_coarse_mask_has_stays():
    coarse = boxes(WIDE) - boxes(PINHOLE)
    p = filled((PINHOLE, 0.3))
    guard_of(coarse).specks(Held(p), "1")
    assert not (p[Window(*PINHOLE).slices] > 0.5).any()


def noisy():
    """A band of doubt around the object."""
    distance = cv2.distanceTransform(boxes(WIDE).astype(np.uint8), cv2.DIST_L2, 5)
    distance -= cv2.distanceTransform(1 - boxes(WIDE).astype(np.uint8), cv2.DIST_L2, 5)
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 6, SIZE).astype(np.float32), (0, 0), 1)
    return (1 / (1 + np.exp(-(distance / 4 + noise)))).astype(np.float32)


def test_of_random_probabilities_each_small_unsure_part_is_given_back_and_nothing_else():
    p = noisy()
    out, count = without_specks(p)
    expected = p.copy()
    for part, connectivity, sure in ((p > 0.5, 8, p >= 0.9), (p <= 0.5, 4, p <= 0.1)):
        number, labels = cv2.connectedComponents(part.astype(np.uint8), connectivity=connectivity)
        for label in range(1, number):
            here = labels == label
            if not sure[here].any() and max(np.ptp(at) for at in np.nonzero(here)) < 64:
                expected[here] = boxes(WIDE)[here]
    np.testing.assert_array_equal(out, expected)
    assert count > 10


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_by_bands_the_same_specks_are_given_back(monkeypatch, rows):
    whole = without_specks(noisy())
    monkeypatch.setattr("refine.planes.BAND", 4 * SIZE[1] * rows)
    parts = without_specks(noisy())
    np.testing.assert_array_equal(parts[0], whole[0])
    assert parts[1] == whole[1]


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("stop", range(1, 9))
def test_specks_that_are_looked_for_again_stay_given_back(tmp_path, monkeypatch, stop, marked):
    monkeypatch.setattr("refine.planes.BAND", 4 * SIZE[1] * 24)
    whole, count = without_specks(noisy())

    def run(left=10**9):
        with Workspace(tmp_path / "work", {"job": 1}) as store:
            p = store.array("p", SIZE, np.float32)
            if not store.done("scale"):
                p[...] = noisy()
                store.mark("scale", p)
            monkeypatch.setattr(store, "mark", stopped(store.mark, left, marked))
            return guard_of(boxes(WIDE), store).specks(Held(p), "1"), np.array(p)

    with pytest.raises(Stop):
        run(stop)
    recounted, again = run()
    np.testing.assert_array_equal(again, whole)
    assert recounted == count or not marked
