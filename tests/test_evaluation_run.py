import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import FakeRefiner, Run, dot, write_set

from refine.config import Options
from refine.errors import FileError, OptionError
from refine.evaluation import evaluate_command, find_sets, find_work, measure, read_rows, score
from refine.evaluation.variants import Refining, Written, check_labels, key

FAKE = {"model": "crm-s"}

pytestmark = pytest.mark.usefixtures("fake_refiner")


def lines_of(out):
    """Those of pictures, not those that a run begins with."""
    lines = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    return [line for line in lines if "begun" not in line]


def measured(folder, out=None, choice=FAKE):
    return measure(find_work(find_sets([folder])), [Refining(choice)], out=out)


def test_every_combination_of_picture_and_variant_leaves_a_line_and_a_mask(tmp_path):
    write_set(tmp_path / "data" / "one", names=("a", "b"))
    choices = [FAKE, {"model": "crm-s", "decode": "dense", "device": "cpu"}]
    found = evaluate_command([tmp_path / "data"], choices, out=tmp_path / "out")
    assert [(line["variant"], line["set"], line["name"]) for line in lines_of(tmp_path / "out")] == [
        ("crm-s", "one", "a"),
        ("crm-s", "one", "b"),
        ("crm-s-dense", "one", "a"),
        ("crm-s-dense", "one", "b"),
    ]
    assert read_rows(tmp_path / "out" / "crm-s-dense") == found.rows["crm-s-dense"]
    assert found.rows["crm-s"][0].refined.iou == 1
    assert found.rows["crm-s"][0].peak_memory == 5_000_000
    masks = sorted((tmp_path / "out" / "masks").glob("*/one/b_mask.png"))
    assert len(masks) == 2
    for path in masks:
        np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0, dot())
    assert FakeRefiner.made[1] == {"weights": None, "dtype": "auto", **choices[1]}


def test_without_a_folder_tables_are_printed_and_nothing_is_written(tmp_path, capsys):
    before = sorted(write_set(tmp_path / "one").iterdir())
    evaluate_command([tmp_path / "one"], [FAKE])
    assert "| one | 3        |" in capsys.readouterr().out
    assert sorted((tmp_path / "one").iterdir()) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "one"]


@pytest.mark.parametrize("torn", ["", '{"variant": "crm-s", "key": "x', "{}"])
def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, torn):
    folder, out = write_set(tmp_path / "set", names="abcd"), tmp_path / "out"
    whole = measured(folder, tmp_path / "whole").rows
    refine, FakeRefiner.seen[:] = FakeRefiner.refine, []

    def stopped(self, image, mask):
        if len(self.seen) == 2:
            raise KeyboardInterrupt
        return refine(self, image, mask)

    monkeypatch.setattr(FakeRefiner, "refine", stopped)
    with pytest.raises(KeyboardInterrupt):
        measured(folder, out)
    with (out / "items.jsonl").open("a") as file:
        file.write(torn)
    monkeypatch.setattr(FakeRefiner, "refine", refine)
    FakeRefiner.seen[:] = []
    found = measured(folder, out).rows
    assert len(FakeRefiner.seen) == 2
    assert [(row.name, row.refined) for row in found["crm-s"]] == [(row.name, row.refined) for row in whole["crm-s"]]
    assert [line["name"] for line in lines_of(out)] == list("abcd")


def test_what_was_measured_is_said_and_not_measured_again(tmp_path, capsys):
    folder, out = write_set(tmp_path / "set"), tmp_path / "out"
    rows = measured(folder, out).rows
    FakeRefiner.seen[:] = []
    assert measured(folder, out).rows == rows
    assert FakeRefiner.seen == []
    assert "3 of 3 were there; to measure them again remove" in capsys.readouterr().err


def change_mask(folder, out):
    cv2.imwrite(str(folder / "b_seg.png"), dot(50) * np.uint8(255))


def remove_result(folder, out):
    next(out.glob("masks/*/set/b_mask.png")).unlink()


@pytest.mark.parametrize("change", [change_mask, remove_result])
def test_a_picture_with_other_files_is_measured_again(tmp_path, change):
    folder, out = write_set(tmp_path / "set"), tmp_path / "out"
    measured(folder, out)
    change(folder, out)
    FakeRefiner.seen[:] = []
    rows = measured(folder, out).rows["crm-s"]
    assert len(FakeRefiner.seen) == 1
    assert [row.name for row in rows] == ["a", "b", "c"]
    assert {row.name: row for row in read_rows(out)} == {row.name: row for row in rows}


@pytest.mark.parametrize("changed", ["weights_sha256", "device", "dtype"])
def test_other_weights_devices_and_types_are_measured_again(tmp_path, monkeypatch, changed):
    folder, out = write_set(tmp_path / "set"), tmp_path / "out"
    measured(folder, out)
    made = FakeRefiner.__init__

    def other(self, **options):
        made(self, **options)
        setattr(self, changed, "another")

    monkeypatch.setattr(FakeRefiner, "__init__", other)
    FakeRefiner.seen[:] = []
    measured(folder, out)
    assert len(FakeRefiner.seen) == 3
    assert len(list(out.glob("masks/*/set/b_mask.png"))) == 2  # those of before are still there


def test_another_version_is_measured_again(monkeypatch):
    keys = set()
    for version in ("1.0", "1.1"):
        monkeypatch.setattr("refine.evaluation.variants.versions", lambda v=version: {"refine-masks": v})
        keys.add(key(Refining(FAKE)))
    assert len(keys) == 2


def test_pictures_that_the_last_run_did_not_measure_are_not_read(tmp_path):
    folder, out = write_set(tmp_path / "set"), tmp_path / "out"
    measured(folder, out)
    (folder / "b_im.png").unlink()
    rows = measured(folder, out).rows["crm-s"]
    assert read_rows(out) == rows
    assert [row.name for row in rows] == ["a", "c"]


def test_the_weights_of_the_last_run_count_though_its_rows_were_there(tmp_path, monkeypatch):
    folder, out = write_set(tmp_path / "set"), tmp_path / "out"
    made, weights = FakeRefiner.__init__, []

    def other(self, **options):
        made(self, **options)
        self.weights_sha256 = weights[-1]

    monkeypatch.setattr(FakeRefiner, "__init__", other)
    rows = []
    for name in "ABA":
        weights.append(name)
        rows.append(measured(folder, out).rows["crm-s"])
        assert read_rows(out) == rows[-1]
    assert rows[0] == rows[2] != rows[1]


def test_rows_keep_the_commit_that_measured_them(tmp_path, run: Run, monkeypatch):
    folder = write_set(tmp_path / "set", names=("a",))
    for commit, added in (("c1", "b"), ("c2", "c")):
        monkeypatch.setattr("refine.evaluation.run.commit", lambda commit=commit: commit)
        assert run("evaluate", "set", "-o", "out").code == 0
        for path in folder.glob("a_*"):
            (folder / path.name.replace("a_", f"{added}_")).write_bytes(path.read_bytes())
    assert [(row.name, row.commit) for row in read_rows(tmp_path / "out")] == [("a", "c1"), ("b", "c2")]
    assert "c1, c2" in (tmp_path / "out" / "report.md").read_text()


def test_other_defaults_are_measured_again(monkeypatch):
    keys = []
    for options in (Options(), Options(band=12), Options(band=12, lean=0.5)):
        monkeypatch.setattr(FakeRefiner, "options", options, raising=False)
        keys.append(key(Refining({**FAKE, "lean": 0.5})))
    assert keys[0] != keys[1] == keys[2]  # the lean was given


def test_other_options_are_another_variant():
    one, other = Refining(FAKE), Refining({**FAKE, "decode": "dense"})
    assert key(one) != key(other)
    assert key(one) == key(Refining({**FAKE, "device": "auto"}))  # both are the CPU


@pytest.mark.parametrize(
    ("choice", "label"),
    [
        ({}, "crm-s"),
        ({"dtype": "auto", "device": "cpu"}, "crm-s"),
        ({"decode": "strided", "stride": 2, "dtype": "float32"}, "crm-s-strided-stride=2-float32"),
        ({"weights": Path("runs/a b.pth")}, "crm-s-a-b"),
    ],
)
def test_a_variant_is_called_by_what_was_chosen(choice, label):
    assert Refining({**FAKE, **choice}).label == label


def test_a_long_variant_is_a_file_and_told_from_others(tmp_path, run: Run):
    names = ("ä" * 120, "ä" * 119 + "b")
    labels = {Refining({**FAKE, "weights": Path(f"{name}.pth")}).label for name in names}
    assert len(labels) == 2
    assert all(len(label.encode()) < 70 for label in labels)
    write_set(tmp_path / "set", names=("a",))
    assert run("evaluate", "set", "--weights", f"{names[0]}.pth", "-o", "out").code == 0


def test_variants_of_one_name_are_refused(tmp_path):
    with pytest.raises(OptionError, match="2 variants are called 'crm-s'"):
        check_labels([Refining(FAKE), Refining(FAKE)])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "b_seg.png").unlink(), "b_seg.png"),
        (lambda folder: (folder / "b_im.png").write_bytes(b"no picture"), "b_im.png"),
        (lambda folder: cv2.imwrite(str(folder / "b_gt.png"), np.zeros((9, 9), np.uint8)), "b_gt.png"),
    ],
)
def test_a_bad_picture_does_not_stop_the_others(tmp_path, run: Run, spoil, told):
    folder = write_set(tmp_path / "set")
    spoil(folder)
    outcome = run("evaluate", "set", "-o", "out", "--device", "cpu")
    assert outcome.code == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert told in line
    assert "| set | 2        |" in outcome.out
    assert ["error" in line for line in lines_of(tmp_path / "out")] == [False, True, False]
    for name in ("report.md", "report.html"):
        assert told in (tmp_path / "out" / name).read_text()
    write_set(tmp_path / "good")
    for path in (tmp_path / "good").glob("b_*"):
        path.replace(folder / path.name)
    outcome = run("evaluate", "set", "-o", "out", "--device", "cpu")
    assert outcome.code == 0
    assert "| set | 3        |" in outcome.out


def test_truths_without_a_picture_that_can_be_read_are_told(tmp_path, run: Run):
    folder = write_set(tmp_path / "data" / "one")
    (folder / "b_im.png").rename(folder / "b_im.psd")
    (folder / "._c_gt.png").touch()
    (tmp_path / "data" / "two").mkdir()
    (tmp_path / "data" / "two" / "z_gt.png").touch()
    outcome = run("evaluate", "data")
    assert "| one | 2        |" in outcome.out
    assert outcome.err == (
        "warning: 2 truths without a picture that can be read left out: data/one/b_gt.png, data/two/z_gt.png\n"
    )


def test_a_set_of_bad_pictures_has_no_table(tmp_path, run: Run, monkeypatch):
    write_set(tmp_path / "set")

    def broken(self, image, mask):
        if image.shape == (60, 80, 3):
            raise RuntimeError("out of order")

    monkeypatch.setattr(FakeRefiner, "refine", broken)
    outcome = run("evaluate", "set", "-o", "out")
    assert (outcome.code, outcome.out) == (1, "out/report.html\n")
    assert outcome.err.count("unexpected RuntimeError: out of order") == 3
    assert "Nothing was measured." in (tmp_path / "out" / "report.html").read_text()


def test_an_interrupt_says_how_to_go_on(tmp_path, run: Run, monkeypatch):
    write_set(tmp_path / "set")
    monkeypatch.setattr("refine.evaluation.run.score", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("evaluate", "set", "-o", "out").err.endswith("interrupted; the same command goes on from here\n")
    outcome = run("evaluate", "set")
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


def test_an_output_folder_that_cannot_be_made_is_told_before_the_work(tmp_path):
    write_set(tmp_path / "one")
    (tmp_path / "out").write_text("")
    with pytest.raises(FileError, match="is a file"):
        evaluate_command([tmp_path / "one"], [FAKE], out=tmp_path / "out")
    assert FakeRefiner.made == []


# Masks that other systems wrote


def write_masks(folder, masks):
    """Grey masks by their names: set pixels of the dot at x, or its grey values."""
    folder.mkdir(parents=True)
    for name, mask in masks.items():
        cv2.imwrite(str(folder / name), mask if isinstance(mask, np.ndarray) else dot(mask) * np.uint8(255))
    return folder


@pytest.mark.parametrize(
    ("system", "masks"),
    [
        ("CascadePSP", {"a_mask.png": 40, "2_a_mask.png": 40}),
        ("CRM", {"0.25_a_mask.png": 60, "1_a_mask.png": 40, "0.5_a_mask.png": 60, "1_2_a_mask.png": 40}),
        ("SegRefiner", {"a_refine.png": 40, "2_a_refine.png": 40}),
    ],
)
def test_masks_of_other_systems_are_told_by_their_names_and_scored(tmp_path, run: Run, system, masks):
    write_set(tmp_path / "set", names=("a", "2_a"))
    write_masks(tmp_path / "theirs", masks)
    outcome = run("evaluate", "set", "--masks", "theirs", "-o", "out")
    assert outcome.code == 0
    assert FakeRefiner.made == []
    assert "| set | 2        |" in outcome.out
    assert [line["iou_refined"] for line in lines_of(tmp_path / "out")] == [1, 1]
    assert lines_of(tmp_path / "out")[0]["seconds"] is None
    assert f"| {system}" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("ground", [0, 9])  # the values of a map of labels are grey values all the same
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(
    ("ending", "value", "iou"),
    [("_mask", 1, 0), ("_mask", 128, 0), ("_mask", 129, 1), ("_refine", 127, 0), ("_refine", 128, 1)],
)
def test_masks_are_set_above_128_and_segrefiners_from_128_on(tmp_path, ending, value, iou, factor, ground):
    work = find_work([write_set(tmp_path / "set", names=("a", "b"))])
    mask = np.where(dot(), np.uint8(value), np.uint8(ground))[::factor, ::factor]
    theirs = write_masks(tmp_path / "theirs", {f"a{ending}.png": mask, f"b{ending}.png": dot() * np.uint8(255)})
    row, _ = measure(work, [Written(theirs, work)]).rows["theirs"]
    assert row.refined.iou == pytest.approx(iou, abs=0 if factor == 1 else 0.2)


@pytest.mark.parametrize("value", [1, 5, 127])
def test_masks_of_which_none_is_white_are_refused(tmp_path, value):
    work = find_work([write_set(tmp_path / "set", names=("a", "b"))])
    masks = {f"{name}_mask.png": dot() * np.uint8(value) for name in ("a", "b")}
    with pytest.raises(FileError, match=f"values up to {value} only"):
        Written(write_masks(tmp_path / "theirs", masks), work)


def test_masks_lie_in_sub_folders_called_like_the_sets(tmp_path):
    for name in ("one", "two"):
        write_set(tmp_path / "data" / name, names=("a",))
    work = find_work(find_sets([tmp_path / "data"]))
    write_masks(tmp_path / "theirs" / "one", {"a_mask.png": 40})
    write_masks(tmp_path / "theirs" / "two", {"a_mask.png": 44})
    rows = measure(work, [Written(tmp_path / "theirs", work)]).rows["theirs"]
    assert rows[0].refined.iou == 1
    assert rows[1].refined == score(dot(44), dot())


def test_a_picture_without_their_mask_fails_alone(tmp_path):
    work = find_work([write_set(tmp_path / "set")])
    theirs = write_masks(tmp_path / "theirs", {"a_mask.png": 40, "c_mask.png": 40})
    found = measure(work, [Written(theirs, work)])
    assert [row.name for row in found.rows["theirs"]] == ["a", "c"]
    assert [str(failure) for failure in found.failures] == [
        f"set/b (theirs): no mask of b by CascadePSP in {str(theirs)!r}"
    ]


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        ({}, "holds no masks for these pictures"),
        ({"z_mask.png": 40}, "holds no masks for these pictures"),
        ({"a_mask.png": 40, "b_refine.png": 40}, "holds 1 of CascadePSP and 1 of SegRefiner"),
    ],
)
def test_masks_of_no_system_or_of_several_are_refused(tmp_path, masks, told):
    work = find_work([write_set(tmp_path / "set")])
    with pytest.raises(FileError, match=told):
        Written(write_masks(tmp_path / "theirs", masks), work)
    with pytest.raises(FileError, match="no folder"):
        Written(tmp_path / "absent", work)
