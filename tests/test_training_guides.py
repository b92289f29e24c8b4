from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import disc, features_of, photographed, with_statistics

from refine.config import EMBEDDED, guided_model
from refine.embedding import Embedding
from refine.errors import OptionError
from refine.features import with_deep
from refine.frame import Frame, View
from refine.guidance import Proposal, Proposals
from refine.guidance.cache import Cache, Cached
from refine.models import PRESETS, build
from refine.planes import Held
from refine.tiles import Window
from refine.training import data
from refine.training.data import Crops
from refine.training.folders import survey
from refine.training.guides import FEATURES_KEPT, Guides, Shown, Wholes
from refine.training.passes import _deep_maps, _read
from refine.training.recipe import Recipe


class TwoSides:
    """A source that parts pictures by their brightness, and counts."""

    name = "two sides"

    def __init__(self):
        self.asked = 0

    def settings(self):
        return {}

    def propose(self, image):
        self.asked += 1
        bright = image[..., 0] > 110
        return Proposals((Proposal.of(bright), Proposal.of(~bright)), bright.shape, self.name)


@pytest.fixture
def pairs(tmp_path):
    for number, radius in enumerate((30, 45)):
        truth = disc((120, 160), radius)
        cv2.imwrite(str(tmp_path / f"{number}_im.png"), photographed(truth)[..., ::-1])
        cv2.imwrite(str(tmp_path / f"{number}_gt.png"), truth.astype(np.uint8) * 255)
    return survey(tmp_path).pairs


def crops(pairs, source, version="sam-sr-v2.1", **options):
    guide = None if source is None else Guides(version, source)
    return Crops([pairs], (1.0,), size=64, seed=0, guide=guide, **options)


def test_a_crop_carries_its_proposals_where_they_are_in_the_picture(pairs):
    drawn = crops(pairs, TwoSides())
    for i in range(12):
        item = drawn[i]
        painted, truth = item["image"][3:].numpy(), item["truth"][0].numpy() > 0.5
        assert item["image"].shape == (6, 64, 64)
        inside, outside = (painted[:, side] for side in (truth, ~truth))
        if truth.any() and not truth.all():
            ours, other = (np.median(side, 1) for side in (inside, outside))
            assert (ours != other).any()
            assert (inside == ours[:, None]).all(0).mean() > 0.9  # all but the contour, of which a crop may have much


def test_proposals_of_a_picture_are_asked_for_once(pairs):
    source = TwoSides()
    drawn = crops(pairs, source)
    for i in range(8):
        drawn[i]
    assert source.asked == 2


def test_what_is_found_in_generated_scenes_is_not_kept_on_disk(pairs, tmp_path):
    drawn = crops(pairs, Cached(TwoSides(), Cache(tmp_path / "cache")), scenes=0.5)
    for i in range(12):
        drawn[i]
    assert len(list((tmp_path / "cache").rglob("*.bin"))) == 2


def test_colours_are_new_for_every_crop_and_the_same_for_its_number(pairs):
    one, other = crops(pairs, TwoSides()), crops(pairs, TwoSides())
    assert (one[3]["image"] == other[3]["image"]).all()
    assert len({tuple(one[i]["image"][3:].reshape(3, -1).max(1).values.tolist()) for i in range(6)}) > 3


def test_the_rest_of_a_crop_does_not_change_its_shape_with_guidance(pairs):
    guided, plain = crops(pairs, TwoSides(), composed=0.5, scenes=0.3), crops(pairs, None, composed=0.5, scenes=0.3)
    for i in range(10):
        assert guided[i]["image"].shape == (6, 64, 64)
        assert plain[i]["image"].shape == (3, 64, 64)


def test_v2_2_has_one_channel_that_is_high_in_the_object(pairs):
    guides = Guides("sam-sr-v2.2", TwoSides())
    truth = disc((120, 160), 45)
    image = photographed(truth)
    places = (np.arange(120), np.arange(160))
    found = guides(image, truth, places, np.random.default_rng(0), Path("a"))
    assert found.shape == (120, 160, 1)
    assert found[truth].mean() > 150 > 100 > found[~truth].mean()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": "crm-s+v2.1"}, "guide models such as crm-s+v2.1, which need some"),
        ({"model": "crm-s", "proposals": "slic"}, "proposals='slic' with crm-s"),
        ({"model": "crm-s+v2.1", "proposals": "magic"}, "proposals='magic' is unknown"),
        ({"model": "crm-s+v2.1", "proposals": "slic", "augment": "published"}, "without guidance"),
        (
            {"model": "crm-s+v2.1", "proposals": "slic", "sam_checkpoint": "a.pth"},
            "means nothing with proposals='slic'",
        ),
        ({"sam_checkpoint": "a.pth"}, "sam_checkpoint='a.pth' means nothing with proposals=''"),
        ({"model": "crm-s+v3.1"}, "reads features of Segment Anything; give sam-vit-b"),
        ({"model": "crm-s+v3.4", "proposals": "slic"}, "proposals='slic' with crm-s+v3.4 is not possible"),
        (
            {"model": "crm-s+v3.2", "proposals": "sam-vit-b", "scenes": 0.1},
            "scenes=0.1 is not possible with crm-s+v3.2",
        ),
        (
            {"model": "crm-s+v2.2", "proposals": "slic", "composed": 0.2},
            "composed=0.2 is not possible with crm-s+v2.2",
        ),
        ({"model": "crm-s+v3.3", "proposals": "sam", "composed": 0.2}, "composed=0.2 is not possible with crm-s+v3.3"),
        ({"model": "crm-s+v3.3", "proposals": "sam", "augment": "published"}, "without guidance"),
    ],
)
def test_recipes_that_cannot_be_are_told(fields, told):
    with pytest.raises(OptionError) as error:
        Recipe(**fields)
    assert told in str(error.value)


class Encoder:
    """Random features of a picture's size, and how often they were asked for."""

    name = "random"

    def __init__(self):
        self.asked = 0

    def encoder_settings(self):
        return {}

    def embedding(self, image):
        self.asked += 1
        return features_of(image.shape[:2])


def shown(size, top, left, *, side=64, flipped=False, mask=None):
    image = np.zeros((*size, 3), np.uint8)
    mask = np.full(size, 255, np.uint8) if mask is None else mask
    return Shown(image, Path("a"), mask, True, top, left, side, 64, flipped)


def batch_of(item):
    return {name: value[None] for name, value in item.items()}


@pytest.mark.parametrize("version", EMBEDDED)
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("top", "left"), [(16, 24), (-16, 64), (40, -40)])  # within, and beyond two borders
def test_a_crop_reads_the_deep_map_as_inference_does_at_its_place(version, flipped, top, left):
    size = (96, 112)
    torch.manual_seed(0)
    network = with_statistics(build(PRESETS[guided_model("crm-s", version)]))
    mask = np.ones(size, np.float32)
    crop = shown(size, top, left, flipped=flipped)
    batch = batch_of(Wholes(Encoder())(crop, np.ones((64, 64), np.float32), np.random.default_rng(0)))
    cascade, embedding = PRESETS["crm-s"].cascade, Embedding(features_of(size), size)
    frame = Frame(Held(crop.image), Held(mask), cascade, torch.device("cpu"), embedding=embedding)
    with torch.inference_mode():
        maps = _deep_maps(network, batch)
        part = (slice(2, 6), slice(0, 4))
        for stride, seen in ((8, size), (16, (size[0] // 2, size[1] // 2))):
            view = View.of(frame, seen, frame.mask, *(network.axis(n, n) for n in seen))
            plane = with_deep(network, view, dtype=torch.float32).deep
            whole = plane.read(Window(0, seen[0] // 8, 0, seen[1] // 8))
            # A cell beyond the border is the mirror image of one within it.
            rows, columns = (
                np.abs((np.arange(64 // stride) + start / stride + 0.5) % (2 * n) - n)
                for start, n in ((top, seen[0] // 8), (left, seen[1] // 8))
            )
            rows, columns = (n - at for at, n in ((rows, seen[0] // 8), (columns, seen[1] // 8)))
            if any((start / stride) % 1 for start in (top, left)):
                continue  # cells of the crop lie between those of the picture
            expected = whole[np.ix_(rows.astype(int), columns.astype(int))]
            expected = expected[:, ::-1] if flipped else expected
            found = _read(maps, batch[f"deep{stride}"])[0].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(whole).max())
            some = _read(maps, batch[f"deep{stride}"], part)[0].permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(some, found[part])


def test_a_crop_reads_the_features_where_its_colours_come_from(tmp_path, monkeypatch):
    size = (60, 480)  # so that large windows leave it
    y, x = ((np.arange(n) + 0.5) / n * 255 for n in size)
    image = np.stack((*np.broadcast_arrays(y[:, None], x[None]), np.zeros(size)), 2)
    cv2.imwrite(str(tmp_path / "a_im.png"), np.rint(image).astype(np.uint8)[..., ::-1])
    cv2.imwrite(str(tmp_path / "a_gt.png"), disc(size, 20).astype(np.uint8) * 255)
    monkeypatch.setattr(data, "_jittered", lambda image, rng: image)
    encoder = Encoder()
    crops = Crops([survey(tmp_path).pairs], (1.0,), size=64, seed=0, whole=Wholes(encoder))
    turned, mirrored = 0, 0
    for i in range(40):
        item = crops[i]
        assert item["cells"].tolist() == [8, 64]
        colours = item["image"].numpy().astype(np.float32)
        for stride in (8, 16):
            centre = np.arange(64 // stride) * stride + stride // 2
            rows, columns = (
                (np.take(colours[k], centre - 1, k) + np.take(colours[k], centre, k)).mean(1 - k) / 2 for k in (0, 1)
            )
            for found, wanted, cells in zip(item[f"deep{stride}"], (rows, columns), (8, 64), strict=True):
                np.testing.assert_allclose(found, wanted / 255 * cells, atol=0.5)  # a colour's step is 0.25 cells
        turned += bool((np.diff(item["deep8"][1]) < 0).all())
        steps = np.diff(item["deep8"][0])
        mirrored += bool((steps < 0).any() and (steps > 0).any())
    assert turned > 5
    assert mirrored > 5
    assert encoder.asked == 1


@pytest.mark.parametrize(("top", "left", "flipped"), [(100, 300, False), (-20, 460, True), (472, -32, False)])
def test_the_whole_pictures_coarse_mask_is_the_crops_where_that_lies(top, left, flipped):
    size = (512, 1024)  # which SAM sees as it is
    mask = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, size).astype(np.uint8), (0, 0), 3)
    crop = shown(size, top, left, flipped=flipped, mask=mask)
    own = np.full((64, 64), 0.25, np.float32)
    own[:, :32] = 0.75  # of the crop as it is seen
    rng = np.random.default_rng(0)
    item = Wholes(Encoder())(crop, own, rng)
    assert item["whole"].shape == (1, 256, 256)
    found = item["whole"][0, :128].numpy()
    assert not item["whole"][0, 128:].any()
    expected = mask.astype(np.float32) / 255
    own = own[:, ::-1] if flipped else own
    inside = [slice(max(0, start), start + 64) for start in (top, left)]
    rows, columns = (slice(part.start - start, None) for part, start in zip(inside, (top, left), strict=True))
    there = expected[tuple(inside)]
    there[...] = own[rows, columns][: there.shape[0], : there.shape[1]]
    np.testing.assert_allclose(found, expected.reshape(128, 4, 256, 4).mean((1, 3)), atol=1e-5)


def test_elsewhere_it_is_as_a_network_sees_the_truth_and_new_for_every_crop():
    truth = disc((120, 160), 45)
    crop = Shown(photographed(truth), Path("a"), truth.astype(np.uint8) * 255, False, 0, 0, 32, 64)
    wholes = Wholes(Encoder())
    own = np.zeros((64, 64), np.float32)
    found = [wholes(crop, own, np.random.default_rng(seed))["whole"][0].numpy() for seed in (0, 1, 1)]
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(found[1], found[2])
    exact = Embedding(features_of(truth.shape), truth.shape)
    wanted = exact.parts(cv2.resize(truth.astype(np.float32), exact.seen[::-1])) > 0.5
    for mask in found:
        assert mask.min() >= 0
        assert mask.max() <= 1
        seen = mask[: len(wanted)] > 0.5
        assert (seen & wanted).sum() / (seen | wanted).sum() > 0.5


def test_features_of_so_many_pictures_are_kept():
    encoder = Encoder()
    wholes = Wholes(encoder)
    for number in (*range(FEATURES_KEPT + 1), FEATURES_KEPT, 1, 0):
        name = Path(str(number))
        wholes._kept.of(name, lambda: wholes._embedding(np.zeros((20, 30, 3), np.uint8)))
    assert encoder.asked == FEATURES_KEPT + 2
