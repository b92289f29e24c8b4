import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from refine.cli import main
from refine.errors import OptionError
from refine.io import read_mask
from refine.models.crm_s import Trunk
from refine.training import networks
from refine.training.card import source
from refine.training.folders import survey
from refine.training.networks import predict_masks
from refine.training.scenes import scene


@pytest.fixture
def data(tmp_path):
    for name, stems in {"films": [f"{film}_{i:02}" for film in "abcd" for i in range(2)], "photos": "1234"}.items():
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number, stem in enumerate(stems):
            image, truth = scene(np.random.default_rng(number), 60, 90)
            cv2.imwrite(str(folder / f"{stem}_im.jpg"), image[..., ::-1])
            cv2.imwrite(str(folder / f"{stem}_gt.png"), 255 * truth.astype(np.uint8))
    return [tmp_path / "data" / name for name in ("films", "photos")]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(networks, "SEEN", 128)
    monkeypatch.setattr(networks, "TOLD", 32)


def trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk(3)


def test_pictures_get_coarse_masks_of_their_size_beside_them(data, tmp_path):
    told = list(predict_masks(data, tmp_path / "out", trunk(), folds=2, steps=4, least_iou=0.0))
    assert [(t.fold, t.step) for t in told] == [(fold, step) for fold in (0, 1) for _ in range(3) for step in (1, 4)]
    for folder in data:
        pairs = survey(tmp_path / "out" / folder.name).pairs
        assert [pair.image.name for pair in pairs] == [pair.image.name for pair in survey(folder).pairs]
        for pair in pairs:
            assert len(pair.coarse) == 6  # of three networks, early and at the end
            masks = [read_mask(path) for path in pair.coarse]
            assert all(mask.shape == (60, 90) for mask in masks)
            assert any(not np.array_equal(masks[0], mask) for mask in masks[1:])


LAYOUTS = {
    "a folder a class": {
        f"{name}/{i}.jpg": [f"{name}/{i}.png"] for name in ("abacus", "bell", "camera", "drum", "egg") for i in "12"
    },
    "films": {
        f"JPEGImages/480p/{name}/{i}.jpg": [f"Annotations/480p/{name}/{i}.png"]
        for name in ("bear", "camel", "dog")
        for i in ("00000", "00001")
    },
    "one name, two folders": {f"imgs/{name}.png": [f"gt/{name}.png"] for name in "abcd"},
    "endings of every kind": {"images/a.jpg": ["masks/a_mask.png"]}
    | {f"images/{name}_im.jpg": [f"masks/{name}.png"] for name in "bcd"},
    "several truths": {f"{name}.jpg": [f"{name}_gt{i}.png" for i in range(2)] for name in "abcd"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_of_any_layout_keeps_its_pairs(tmp_path, layout):
    folder, count = tmp_path / "set", 0
    for number, (image, truths) in enumerate(LAYOUTS[layout].items()):
        for each, name in enumerate(truths):
            picture, truth = scene(np.random.default_rng(10 * number + each), 60, 90)
            for path, pixels in ((folder / image, picture[..., ::-1]), (folder / name, 255 * truth.astype(np.uint8))):
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels)
            count += 1
    list(predict_masks([folder], tmp_path / "out", trunk(), folds=2, steps=4, least_iou=0.0))
    found = survey(tmp_path / "out" / "set")
    assert found.unused() == ""
    before = {(pair.image.read_bytes(), pair.truth.read_bytes()) for pair in survey(folder).pairs}
    assert {(pair.image.read_bytes(), pair.truth.read_bytes()) for pair in found.pairs} == before
    assert len(found.pairs) == len(before) == count
    assert all(len(pair.coarse) == 6 for pair in found.pairs)


def test_two_pictures_of_one_name_are_refused(data, tmp_path):
    for at in ("a-b/1", "a/b-1"):
        (data[1] / at).parent.mkdir(exist_ok=True)
        for ending in ("im.jpg", "gt.png"):
            shutil.copy(data[1] / f"1_{ending}", data[1] / f"{at}_{ending}")
    with pytest.raises(OptionError, match="would both be called a-b-1"):
        list(predict_masks(data, tmp_path / "out", trunk(), folds=2, steps=4))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["out", "data"])
def test_nothing_is_written_over(data, tmp_path, place):
    (tmp_path / "out" / "photos").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OptionError, match="is there already"):
        list(predict_masks(data, tmp_path / place, trunk(), folds=2, steps=4))
    assert sorted(tmp_path.rglob("*")) == before


def test_no_network_learns_from_what_it_predicts(data, tmp_path, monkeypatch):
    learnt, asked = [], []
    trained, predicted = networks._trained, networks._predicted

    def noted(head, seen, *more):
        learnt.append({id(one) for one in seen})
        return trained(head, seen, *more)

    monkeypatch.setattr(networks, "_trained", noted)
    monkeypatch.setattr(networks, "_predicted", lambda head, one: asked.append(id(one)) or predicted(head, one))
    for _ in predict_masks(data, tmp_path / "out", trunk(), folds=2, steps=4, least_iou=0.0):
        assert not learnt[-1] & set(asked)
        assert asked
        asked.clear()


def parts(folder: Path, names: Sequence[str], folds: int) -> dict[str, int]:
    """The parts of a set of pictures, by their ids."""
    for name in names:
        for ending in ("im.jpg", "gt.png"):
            path = folder / f"{name}_{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    pictures = networks._pictures("set", folder, folder)
    found = networks._parts(pictures, folds).tolist()
    return {one.prefix.name: part for one, part in zip(pictures, found, strict=True)}


def test_frames_of_a_film_are_predicted_together(tmp_path):
    found = parts(tmp_path / "a", ["bear_00000", "bear_00024", "cow_00000", "100075", "100098", "horse"], 5)
    assert found["bear_00000"] == found["bear_00024"]
    assert len(set(found.values())) == 5  # numbers alone are names
    found = parts(tmp_path / "b", ["bear/00000", "bear/00024", "IMG_1", "IMG_2"], 3)
    assert found["bear-00000"] == found["bear-00024"]
    assert len(set(found.values())) == 3  # of one camera, among no others


@pytest.mark.parametrize("folds", [2, 4, 8])
def test_pictures_of_a_camera_are_in_parts_of_one_size(tmp_path, folds):
    found = parts(tmp_path, [f"IMG_{i:04}" for i in range(16)] + ["portrait"] * (folds == 4), folds)
    counts = np.bincount(list(found.values()), minlength=folds)
    assert counts.min() == 16 // folds >= counts.max() - 1


def test_terms_go_with_a_set(data, tmp_path):
    (data[0] / "TERMS.txt").write_text("cite us")
    list(predict_masks(data, tmp_path / "out", trunk(), folds=2, steps=4))
    copies = [source(tmp_path / "out" / folder.name, 1).terms for folder in data]
    assert copies == ["cite us", ""]


def test_a_prediction_too_far_from_the_truth_is_not_written(data, tmp_path):
    told = list(predict_masks(data, tmp_path / "out", trunk(), folds=2, steps=4, least_iou=1.01))
    assert sum(t.written for t in told) == 0
    assert not any(pair.coarse for pair in survey(tmp_path / "out" / "films").pairs)


def test_the_same_seed_predicts_the_same(data, tmp_path):
    masks = []
    for out in ("one", "two"):
        list(predict_masks(data, tmp_path / out, trunk(), folds=2, steps=4, least_iou=0.0))
        masks.append([read_mask(p) for pair in survey(tmp_path / out / "films").pairs for p in pair.coarse])
    for mine, other in zip(*masks, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_head_learns_what_the_maps_tell():
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(6):
        truth = np.kron(rng.random((4, 4)) > 0.5, np.ones((8, 8)))  # (32, 32)
        sizes = {24: 32, 32: 16, 96: 8}
        maps = [np.broadcast_to(truth[:: 32 // n, :: 32 // n], (1, channels, n, n)) for channels, n in sizes.items()]
        both = [torch.from_numpy(np.concatenate((m, m[..., ::-1]))).half() for m in maps]
        seen.append(networks._Seen(tuple(both), torch.from_numpy(truth).float(), (64, 64)))
    for unread in networks.HEADS:
        head = networks._Head(unread)
        steps = networks._trained(head, seen, np.ones(6), 60, rng)
        early, last = (np.mean([one.iou(networks._predicted(head, one)) for one in seen]) for _ in steps)
        assert last > max(0.8, early)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, "steps=3"),
        ({"folds": 0}, "folds=0"),
        ({"folds": 1}, "folds=1"),
        ({"folds": 9}, "folds=9 is not possible: names .* are one sequence, and the 12 pictures are 8; give fewer"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_cannot_be_predicted_is_refused(data, tmp_path, change, message):
    with pytest.raises(OptionError, match=message):
        list(predict_masks(data, tmp_path / "out", trunk(), **change))
    assert not (tmp_path / "out").exists()


def test_two_folders_of_one_name_are_refused(data, tmp_path):
    with pytest.raises(OptionError, match="two have one name"):
        list(predict_masks([data[0], data[0]], tmp_path / "out", trunk()))


def test_the_command_needs_mobilenets_features(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["coarse-masks", *map(str, data), "-o", str(tmp_path / "out"), "--pretrained", "none.npz"])
    assert end.value.code == 2
    assert "pretrained features none.npz do not exist" in capsys.readouterr().err
