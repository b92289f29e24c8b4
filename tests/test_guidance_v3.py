from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import disc, features_of, photographed
from test_engine import POLICIES, Scale, difference, lively_weights, several

import refine
from refine import checkpoint
from refine.config import EMBEDDED, Options, guided_model
from refine.embedding import Embedding
from refine.errors import InputError, OptionError, WeightsError
from refine.features import with_deep
from refine.frame import Frame, View
from refine.guidance import Proposals
from refine.guidance.cache import Cache, Cached
from refine.guidance.pictures import coloured
from refine.guidance.sources import embedded
from refine.guidance.superpixels import Slic
from refine.planes import Held
from refine.regions import bounding_boxes, select
from refine.tiles import Window

TRUTH = disc((40, 330), 18)
IMAGE = photographed(TRUTH)
COARSE = TRUTH & ~np.roll(TRUTH, 25, 1)
FEATURES = features_of(TRUTH.shape)


class Known:
    """An encoder that knows the features and counts how often it is asked."""

    name = "known"

    def __init__(self):
        self.asked = 0

    def encoder_settings(self):
        return {}

    def embedding(self, image):
        assert image.shape == IMAGE.shape
        self.asked += 1
        return FEATURES


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights, by version."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for version in EMBEDDED:
        found[version] = lively_weights(guided_model("crm-s", version), folder / f"{version}.safetensors")
        loaded = checkpoint.load(found[version])
        loaded.state["fuse8.0.conv.weight"][:, :64] *= 300  # so that the deep branch weighs as much as the shallow one
        checkpoint.save(found[version], loaded.state, spec=loaded.spec)
    return found


def of(version, weights) -> refine.Refiner:
    return refine.Refiner(guidance=version, weights=weights[version], device="cpu", dtype="float32", guard=False)


@pytest.fixture(scope="module", params=EMBEDDED)
def refiner(request, weights) -> refine.Refiner:
    return of(request.param, weights)


@pytest.fixture(scope="module")
def windowed(weights) -> refine.Refiner:
    return of("sam-sr-v3.4", weights)


def test_a_picture_in_tiles_is_that_in_one_piece(refiner):
    image, mask = several(40, 620)
    given = {"embedding": features_of(mask.shape), "decode": "dense"}
    whole, tiled = refiner.refine(image, mask, **given), refiner.refine(image, mask, **given, tile=96, patch=32)
    assert len(whole.report.scales) == 2
    assert whole.probability.std() > 0.01
    assert difference(whole, tiled) <= 1e-5


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("scale", [1 / 2, 1])
def test_a_decoded_pixel_has_the_value_that_dense_gives_it(windowed, policy, scale):
    image, mask = several(61, 180)
    one = Scale(windowed, image, mask, scale, "next", Embedding(features_of(mask.shape), mask.shape))
    options, before = Options().but(**policy), one.before
    boxes = bounding_boxes(before > 0.5, options.padding) if options.decode == "bbox" else None
    selection = select(before, options, first=False, boxes=boxes)
    decoded = selection.points | selection.rest(selection.points & selection.changed(before, one.dense))
    assert 0 < decoded.mean() < 1
    p, _ = one.by(**policy)
    assert np.abs(p - one.dense)[decoded].max() <= 1e-5
    np.testing.assert_array_equal(p[~decoded], before[~decoded])


def test_the_result_depends_on_the_features_but_not_on_what_lies_in_their_padding(refiner):
    one, other, padded = (
        refiner.refine(IMAGE, COARSE, embedding=features).probability
        for features in (FEATURES, features_of(TRUTH.shape, seed=1), features_of(TRUTH.shape, beyond=1e6))
    )
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(one, padded)


@pytest.mark.parametrize("shape", [(60, 290), (290, 60)])
@pytest.mark.parametrize("cell", [(10, 40), (40, 10), (3, 3), (13, 63), (63, 13)])
def test_a_cell_of_the_features_is_read_where_it_lies_in_a_picture_of_any_aspect(weights, shape, cell):
    image, mask = several(*shape)
    features = features_of(shape)
    changed = features.copy()
    changed[:, cell[0], cell[1]] += 3
    model = of("sam-sr-v3.1", weights)
    options = {"decode": "dense", "lean": 0}  # where p is near 0 a change of the logit shows less
    one, other = (model.refine(image, mask, embedding=f, **options).probability for f in (features, changed))
    change = np.abs(one - other)
    inside = (cell[0] < 14) if shape[0] < shape[1] else (cell[1] < 14)  # ceil(1024 60 / 290 / 16)
    assert change.any() == inside
    if inside:
        pitch = max(shape) / 64
        wanted = (np.array(cell) + 0.5) * pitch
        places = np.argwhere(change > 0.5 * change.max()) + 0.5
        assert np.abs(np.median(places, 0) - wanted).max() < 3 * pitch
        y, x = np.nonzero(change > 1e-6)
        reach = 2 * pitch + 64 + 8
        assert max(np.abs(y + 0.5 - wanted[0]).max(), np.abs(x + 0.5 - wanted[1]).max()) < reach


def test_the_deep_branch_reads_the_mask_of_the_scale_at_its_place(refiner):
    """Foreground in the left half alone: what is said of the mask differs from an empty one there."""
    size = (96, 320)
    frame_of = {}
    for name, filled in (("empty", 0), ("left", 160)):
        mask = np.zeros(size, np.float32)
        mask[:, :filled] = 1
        image = np.zeros((*size, 3), np.uint8)
        cascade, embedding = refiner.spec.cascade, Embedding(features_of(size), size)
        frame = Frame(Held(image), Held(mask), cascade, torch.device("cpu"), embedding=embedding)
        axes = [refiner.network.axis(n, n) for n in size]
        with torch.inference_mode():
            view = with_deep(refiner.network, View.of(frame, size, frame.mask, *axes), dtype=torch.float32)
        frame_of[name] = view.deep.read(Window(0, 12, 0, 40))
    differs = np.abs(frame_of["empty"] - frame_of["left"]).max((0, 2)) > 1e-6
    kind = refiner.spec.arguments["mask"]
    if kind in ("add", "windowed"):
        assert differs[:20].all()
        assert not differs[22 if kind == "add" else 26 :].any()
    else:
        assert differs.all() == differs.any() == (kind == "global")


def test_features_come_as_an_array_or_from_what_gives_them(refiner):
    encoder = Known()
    one = refiner.refine(IMAGE, COARSE, embedding=encoder)
    other = refiner.refine(IMAGE, COARSE, embedding=FEATURES)
    assert encoder.asked == 1
    np.testing.assert_array_equal(one.probability, other.probability)
    version = refiner.spec.guidance
    assert one.report.guidance == {"version": version, "source": "known"}
    assert other.report.guidance == {"version": version, "source": "given"}
    assert one.report.model == guided_model("crm-s", version)


def test_an_empty_mask_asks_for_no_features(refiner):
    encoder = Known()
    assert not refiner.refine(IMAGE, np.zeros_like(COARSE), embedding=encoder).mask.any()
    assert encoder.asked == 0


def test_the_features_of_a_named_source_are_kept(refiner, monkeypatch, tmp_path):
    encoder = Known()
    source = Cached(SimpleNamespace(name="sam-vit-b", sam=encoder), Cache(tmp_path))
    monkeypatch.setattr("refine.guidance.sources.kept_source", lambda *a, **k: source)
    one, again = (refiner.refine(IMAGE, COARSE, proposals="sam-vit-b") for _ in range(2))
    assert encoder.asked == 1
    assert one.report.guidance["source"] == "sam-vit-b"
    np.testing.assert_array_equal(one.probability, again.probability)
    refiner._opened = None


def test_a_source_without_an_encoder_is_refused(refiner):
    with pytest.raises(OptionError, match="proposals='slic' has no features"):
        embedded(Slic(), IMAGE)


def test_tiles_are_planned_under_a_cap_and_give_the_same(windowed):
    image, mask = several(30, 1400)
    given = {"embedding": features_of(mask.shape), "decode": "dense"}
    plan = windowed.plan(mask.shape, max_memory="264MiB")
    assert plan.peak <= 264 * 2**20
    assert plan.tile < 1400 <= windowed.plan(mask.shape).tile
    capped = windowed.refine(image, mask, max_memory="264MiB", **given)
    assert difference(capped, windowed.refine(image, mask, **given)) <= 1e-5


def test_what_was_seen_is_shown_where_it_is_asked_for(refiner):
    assert not refiner.refine(IMAGE, COARSE, embedding=FEATURES).guidance
    shown = refiner.refine(IMAGE, COARSE, embedding=FEATURES, keep_guidance=True).guidance
    assert {name: picture.shape for name, picture in shown.items()} == {"embedding": (8, 64, 3)}
    assert shown["embedding"].dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 3000), (600, 600)])
def test_features_of_any_size_have_colours(size):
    found = coloured(Embedding(features_of(size), size))
    assert found.shape[1:] == (64, 3)
    assert found.min() == 0
    assert found.max() == 255
    assert not coloured(Embedding(np.zeros((256, 64, 64), np.float32), size)).any()


def test_what_does_not_fit_is_told(refiner):
    with pytest.raises(OptionError, match="proposals was given and means nothing with guidance='sam-sr-v3"):
        refiner.refine(IMAGE, COARSE, proposals=Proposals((), TRUTH.shape, "test"))
    with pytest.raises(InputError, match=r"accepted is float32 \(256, 64, 64\)"):
        refiner.refine(IMAGE, COARSE, embedding=FEATURES[None])
    with pytest.raises(OptionError, match="embedding was given and means nothing with guidance=None"):
        refine.run(IMAGE, COARSE, embedding=FEATURES)
    with pytest.raises(OptionError, match=r"make a refiner of crm-s\+v3\.2"):
        refine.Refiner(device="cpu").refine(IMAGE, COARSE, guidance="sam-sr-v3.2")


@pytest.mark.parametrize("version", EMBEDDED)
def test_no_weights_ship(version):
    with pytest.raises(WeightsError, match=r"no weights named 'crm-s\+v3\.\d' ship"):
        refine.run(IMAGE, COARSE, guidance=version)
