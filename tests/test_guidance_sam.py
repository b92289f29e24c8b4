import numpy as np
import pytest
import torch
from conftest import disc, photographed, small_sam
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from refine.devices import resolve_dtype
from refine.errors import InputError, OptionError, WeightsError
from refine.guidance.cache import Cache
from refine.guidance.proposals import reduced
from refine.guidance.sam import SamOptions, SamProposals, SegmentAnything

EVERYTHING = SamOptions(points_per_side=3, predicted_iou=0, stability=0, box_nms=1)  # of random weights some survive
PICTURE = photographed(disc((60, 80), 20))


@pytest.fixture(scope="module")
def sam(sam_file):
    return SegmentAnything(sam_file, device="cpu", dtype="float32")


def test_bfloat16_comes_close_and_is_told_apart_in_the_cache(sam, sam_file):
    half = SegmentAnything(sam_file, device="cpu", dtype="bfloat16")
    exact, close = sam.embedding(PICTURE), half.embedding(PICTURE)
    assert close.dtype == np.float32
    error = np.abs(close - exact).mean() / np.abs(exact).mean()
    assert 0 < error < 0.02
    assert half.encoder_settings() == {**sam.encoder_settings(), "dtype": "bfloat16"} != sam.encoder_settings()
    answers = [one.prompted(PICTURE).mask([[30, 40]]) for one in (sam, half)]
    assert np.mean(answers[0][0] == answers[1][0]) > 0.9
    assert answers[0][1] == pytest.approx(answers[1][1], abs=0.02)
    assert len(SamProposals(half, EVERYTHING).propose(PICTURE)) > 3


def test_the_arithmetic_is_that_of_the_device_if_none_is_asked_for(sam_file):
    found = SegmentAnything(sam_file, device="cpu")
    assert found.dtype == resolve_dtype("auto", torch.device("cpu"))
    with pytest.raises(OptionError, match="dtype='int8' is unknown"):
        SegmentAnything(sam_file, device="cpu", dtype="int8")


def test_proposals_are_those_of_the_library(sam):
    generator = SamAutomaticMaskGenerator(
        small_sam(), points_per_side=3, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1
    )
    theirs = [record for record in generator.generate(PICTURE) if record["area"]]
    ours = SamProposals(sam, EVERYTHING).propose(PICTURE)
    assert ours.source == sam.name == "sam-vit-32x2"
    assert ours.size == (60, 80)
    assert len(ours) == len(theirs) > 3
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.mask(), other["segmentation"])
        assert mine.area == other["area"]
        x, y, width, height = other["bbox"]
        assert mine.box == (x, y, width + 1, height + 1)
        assert mine.predicted_iou == pytest.approx(other["predicted_iou"], abs=1e-6)
        assert mine.stability == pytest.approx(other["stability_score"], abs=1e-6)


def test_points_in_one_batch_do_not_change_proposals(sam):
    one, four, many = (
        SamProposals(sam, EVERYTHING.but("sam", points_per_batch=n)).propose(PICTURE) for n in (1, 0, 16)
    )
    assert [p.area for p in one] == [p.area for p in four] == [p.area for p in many]


def test_thresholds_that_nothing_passes_leave_no_proposals(sam):
    options = SamOptions(points_per_side=2, predicted_iou=1, stability=1)
    assert len(SamProposals(sam, options).propose(PICTURE)) == 0


def test_a_large_picture_is_reduced_and_its_proposals_stay_so(sam):
    large = photographed(disc((1100, 2048), 300))
    options = EVERYTHING.but("sam", points_per_side=1)
    proposals = SamProposals(sam, options).propose(large)
    assert proposals.size == (550, 1024)
    same = SamProposals(sam, options).propose(reduced(large))
    assert [p.counts.tolist() for p in proposals] == [p.counts.tolist() for p in same]


def test_the_embedding_is_the_librarys(sam):
    predictor = SamPredictor(small_sam())
    predictor.set_image(PICTURE)
    embedding = sam.embedding(PICTURE)
    assert embedding.dtype == np.float32
    assert embedding.shape == (256, 16, 16)  # of a network that sees 256 px; those published see 1024
    np.testing.assert_array_equal(embedding, predictor.get_image_embedding()[0].numpy())


def test_a_network_that_sees_1024_px_has_an_embedding_of_64_x_64(large_sam_file):
    assert SegmentAnything(large_sam_file, device="cpu").embedding(PICTURE).shape == (256, 64, 64)


@pytest.mark.parametrize("kept", [False, True])
def test_masks_of_points_are_the_librarys(sam, tmp_path, kept):
    predictor = SamPredictor(small_sam())
    predictor.set_image(PICTURE)
    cache = Cache(tmp_path)
    prompted = sam.prompted(PICTURE, embedding=(lambda image: cache.embedding(sam, image)) if kept else None)
    for points in ([[30, 40]], [[30, 40], [3, 70], [59, 0]]):
        xy = np.array(points)[:, ::-1]
        masks, confidences, _ = predictor.predict(xy, np.ones(len(xy)), multimask_output=False)
        mask, confidence = prompted.mask(points)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, masks[0])
        assert confidence == confidences[0]


def test_points_are_those_of_the_whole_picture(sam):
    large = np.repeat(np.repeat(photographed(disc((256, 512), 90)), 4, axis=0), 4, axis=1)
    prompted = sam.prompted(large)
    assert prompted.size == (512, 1024)
    mask, confidence = prompted.mask([[401, 1201]])  # their centre is that of the reduced picture's 200 and 600
    same, other = sam.prompted(reduced(large)).mask([[200.25, 600.25]])
    np.testing.assert_array_equal(mask, same)
    assert confidence == other


@pytest.mark.parametrize("points", [[], [1, 2], [[1, 2, 3]], [[60, 0]], [[0, -1]]])
def test_points_that_are_none_are_refused(sam, points):
    with pytest.raises(InputError, match="points: "):
        sam.prompted(PICTURE).mask(points)


@pytest.mark.parametrize("size", [(1, 1), (15, 80), (80, 15), (16, 2000)])
def test_a_picture_smaller_than_a_patch_is_refused(sam, size):
    picture = np.zeros((*size, 3), np.uint8)
    for call in (SamProposals(sam, EVERYTHING).propose, sam.embedding, sam.prompted):
        with pytest.raises(InputError, match=r"both sides must be at least 16 px"):
            call(picture)
    assert SamProposals(sam, EVERYTHING).propose(np.zeros((16, 16, 3), np.uint8)).size == (16, 16)


def test_settings_are_all_that_proposals_depend_on(sam):
    settings = SamProposals(sam, EVERYTHING).settings()
    assert settings["weights"] == sam.sha256
    assert settings != SamProposals(sam).settings()
    assert settings == SamProposals(sam, EVERYTHING.but("sam", points_per_batch=2, stability=0.0)).settings()


def test_missing_weights_name_both_ways_to_have_them(monkeypatch, tmp_path):
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"refine-cli weights get sam-vit-b, or give a local file \(--sam-checkpoint"
    ):
        SegmentAnything(name="sam-vit-b")
    with pytest.raises(OptionError, match="give a checkpoint's file, or a name"):
        SegmentAnything()
    with pytest.raises(WeightsError, match="no such weights file"):
        SegmentAnything(tmp_path / "none.pth")


def test_apples_gpu_is_never_chosen_and_refused_where_it_is_asked_for(sam_file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert SegmentAnything(sam_file).device.type == "cpu"
    with pytest.raises(OptionError, match="device='mps' is not possible with Segment Anything; give cpu"):
        SegmentAnything(sam_file, device="mps")
