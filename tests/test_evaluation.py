import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from refine import evaluation
from refine.cli import main
from refine.errors import FileError, InputError, OptionError
from refine.evaluation import (
    Row,
    Score,
    compare,
    crop_windows,
    evaluate,
    evaluate_command,
    find_items,
    find_sets,
    read_rows,
    score,
    sheet,
    summarise,
    table,
)
from refine.io import read_image, write_mask
from refine.metrics import Harm, harm

HELDOUT = Path(__file__).parents[2] / "shared" / "data" / "heldout"
DATA_README = {  # pooled IoU / mBA of the coarse masks as published with the data
    "alphamatting": (97.21, 63.13),
    "ccp": (95.60, 66.56),
    "human": (97.63, 66.10),
    "sod-dss": (80.48, 56.98),
}


def disc(height=60, width=80, centre=(40, 30), radius=20):
    return cv2.circle(np.zeros((height, width), np.uint8), centre, radius, 255, -1) > 0


def checkers(*values):
    return np.array(values, np.uint8)[np.indices((60, 80)).sum(axis=0) % 2]


def write_set(folder, names=("a", "b", "c")):
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        image = np.full((60, 80, 3), 90, np.uint8)
        image[disc()] = 200
        cv2.imwrite(str(folder / f"{name}_im.png"), image)
        cv2.imwrite(str(folder / f"{name}_gt.png"), disc() * np.uint8(255))
        cv2.imwrite(str(folder / f"{name}_seg.png"), disc(centre=(43 + i, 30)) * np.uint8(255))
    return folder


def brighter(image, mask):
    return image.mean(2) > 128


def test_items_are_found_in_bigs_layout(tmp_path):
    folder = write_set(tmp_path / "set", names=("b", "a_im"))
    assert [item.name for item in find_items(folder)] == ["a_im", "b"]
    assert [path.name for path in vars(find_items(folder)[0]).values() if isinstance(path, Path)] == [
        "a_im_im.png",
        "a_im_gt.png",
        "a_im_seg.png",
    ]


def test_sets_are_a_folder_or_its_sub_folders(tmp_path):
    one, two = write_set(tmp_path / "all" / "one"), write_set(tmp_path / "all" / "two")
    (tmp_path / "all" / "notes").mkdir()
    assert find_sets([tmp_path / "all"]) == [one, two]
    assert find_sets([two, one]) == [two, one]


def test_missing_files_and_folders_are_named(tmp_path):
    folder = write_set(tmp_path / "set")
    (folder / "b_seg.png").unlink()
    with pytest.raises(FileError, match=r"b_seg\.png"):
        find_items(folder)
    with pytest.raises(FileError, match="no folder"):
        find_sets([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    for call in (find_items, lambda path: find_sets([path])):
        with pytest.raises(FileError, match=r"no \*_im"):
            call(tmp_path / "empty")


def test_two_pictures_of_one_name_are_refused(tmp_path):
    folder = write_set(tmp_path / "set")
    (folder / "b_im.jpg").write_bytes((folder / "b_im.png").read_bytes())
    with pytest.raises(FileError, match="holds 2 pictures called 'b'"):
        find_items(folder)


def test_score_gives_counts_that_pool():
    truth, prediction = disc(), disc(centre=(44, 30))
    result = score(prediction, truth)
    assert (result.intersection, result.union) == ((prediction & truth).sum(), (prediction | truth).sum())
    assert result.iou == result.intersection / result.union
    assert 0 < result.mba < 1


def test_a_refiner_that_finds_the_object_scores_full_marks(tmp_path):
    rows = evaluate([write_set(tmp_path / "set")], brighter)
    (summary,) = summarise(rows)
    counts = [score(disc(centre=(43 + i, 30)), disc()) for i in range(3)]
    assert (summary.iou_refined, summary.mba_refined, summary.pictures) == (100, 100, 3)
    assert summary.iou_coarse == pytest.approx(100 * sum(c.intersection for c in counts) / sum(c.union for c in counts))
    assert summary.mba_coarse == pytest.approx(100 * np.mean([c.mba for c in counts]))
    assert summary.worst_name == "a"  # the best coarse mask has least to gain
    assert summary.worst_change == pytest.approx(100 * (1 - counts[0].iou))


def test_the_table_has_a_row_a_set(tmp_path):
    rows = evaluate([write_set(tmp_path / "one"), write_set(tmp_path / "two")], lambda image, mask: mask > 0.5)
    lines = table(rows).split("\n\n")[0].splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["one", "two"]
    assert len({line.count("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1  # columns are aligned
    assert "+0.00/+0.00" in lines[2]
    assert [cell.strip() for cell in lines[2].split("|")][7:10] == ["0.000", "0.0/0.0", "0"]


def breaking(image, mask):
    """The object with a hole and three strays, one of them large, or nothing where the coarse mask is far off."""
    broken = brighter(image, mask)
    broken[28:32, 30:34] = False
    for y, x, side in ((2, 2, 1), (50, 2, 1), (2, 70, 5)):
        broken[y : y + side, x : x + side] = True
    return broken & (mask[30, 64] <= 0.5)


def test_harm_is_measured_pooled_and_averaged(tmp_path):
    rows = evaluate([write_set(tmp_path / "set")], breaking)
    area = int(disc().sum())
    # The coarse discs of a, b and c end at x = 63, 64 and 65: for b and c the refined masks are empty.
    assert rows[0].harm == Harm(far_px=16 + 27, truth_px=area, fragments=3, holes=1, lost=0)
    for i in (1, 2):
        coarse = disc(centre=(43 + i, 30))
        assert rows[i].harm == harm(np.zeros_like(coarse), coarse, disc())
        assert rows[i].harm.lost == 1
        assert 0.5 < rows[i].harm.far < 1
    (summary,) = summarise(rows)
    assert summary.far == pytest.approx(100 * sum(row.harm.far_px for row in rows) / (3 * area))
    assert (summary.fragments, summary.holes, summary.lost) == (1, pytest.approx(1 / 3), 2)
    cells = [cell.strip() for cell in table(rows).splitlines()[2].split("|")]
    assert cells[7:10] == [f"{summary.far:.3f}", "1.0/0.3", "2"]


def test_a_set_with_a_picture_from_before_harm_was_measured_has_no_figures_of_it(tmp_path):
    rows = evaluate([write_set(tmp_path / "set")], breaking)
    rows[1] = replace(rows[1], harm=None)
    (summary,) = summarise(rows)
    assert {summary.far, summary.fragments, summary.holes, summary.lost} == {None}
    cells = [cell.strip() for cell in table(rows).splitlines()[2].split("|")]
    assert cells[7:10] == ["-", "-/-", "-"]


def test_the_limit_takes_the_first_pictures_of_each_set(tmp_path):
    sets = [write_set(tmp_path / "one"), write_set(tmp_path / "two")]
    assert [(row.set, row.name) for row in evaluate(sets, brighter, limit=1)] == [("one", "a"), ("two", "a")]
    with pytest.raises(OptionError, match="limit"):
        evaluate(sets, brighter, limit=0)


def test_two_sets_of_one_name_are_refused(tmp_path):
    sets = [write_set(tmp_path / "x" / "set"), write_set(tmp_path / "y" / "set")]
    with pytest.raises(OptionError, match="'set'"):
        evaluate(sets, brighter)


@pytest.mark.parametrize("truth", [disc() * np.uint8(1), np.where(disc(), 129, checkers(127, 128)), disc()])
def test_a_truth_is_set_above_128(tmp_path, truth):
    folder = write_set(tmp_path / "set", names=("a",))
    Image.fromarray(truth).save(folder / "a_gt.png")
    (row,) = evaluate([folder], brighter)
    assert row.refined.iou == 1.0


def test_a_smaller_coarse_mask_is_enlarged_and_a_smaller_truth_refused(tmp_path):
    folder = write_set(tmp_path / "set", names=("a",))
    small = cv2.resize(disc() * np.uint8(255), (40, 30), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / "a_seg.png"), small)
    (row,) = evaluate([folder], lambda image, mask: mask > 0.5)
    assert row.coarse.iou > 0.95
    cv2.imwrite(str(folder / "a_gt.png"), small)
    with pytest.raises(InputError, match="a_gt"):
        evaluate([folder], brighter)


def test_crops_lie_where_the_masks_differ_and_apart():
    truth = np.zeros((300, 400), bool)
    coarse = truth.copy()
    coarse[40:60, 300:330] = coarse[200:210, 50:60] = True
    windows = list(crop_windows(coarse, truth, truth, count=3, side=100))
    assert len(windows) == 2
    assert coarse[windows[0]].sum() == 600
    assert coarse[windows[1]].sum() == 100
    assert not list(crop_windows(truth, truth, truth, count=3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (70, 3), (200, 150)])
def test_a_sheet_of_any_size_can_be_drawn(shape):
    image = np.zeros((*shape, 3), np.uint8)
    mask = np.ones(shape, bool)
    drawn = sheet(image, ~mask, mask, mask, title="x – y")
    assert drawn.dtype == np.uint8
    assert drawn.shape[2] == 3
    assert sheet(image[..., 0], mask, mask, mask, title="grey").shape[1] == drawn.shape[1]


def fake_refiner(given):
    class FakeRefiner:
        def __init__(self, **options):
            given.update(options)

        def refine(self, image, mask):
            return SimpleNamespace(mask=brighter(image, mask))

    return FakeRefiner


def test_the_command_writes_lines_table_and_sheets(tmp_path, monkeypatch, capsys):
    given = {}
    monkeypatch.setattr("refine.engine.Refiner", fake_refiner(given))
    write_set(tmp_path / "data" / "one")
    rows = evaluate_command(
        [tmp_path / "data"],
        model="crm-s",
        weights=None,
        device="cpu",
        dtype="float32",
        limit=2,
        out=tmp_path / "out",
        options={"tile": 512},
    )
    assert given == {"model": "crm-s", "weights": None, "device": "cpu", "dtype": "float32", "tile": 512}
    lines = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["a", "b"]
    assert lines[0]["iou_refined"] == 1.0
    assert lines[0]["mba_coarse"] == rows[0].coarse.mba
    assert {name: lines[0][name] for name in ("far", "far_px", "truth_px", "fragments", "holes", "lost")} == {
        "far": 0,
        "far_px": 0,
        "truth_px": int(disc().sum()),
        "fragments": 0,
        "holes": 0,
        "lost": 0,
    }
    assert capsys.readouterr().out == (tmp_path / "out" / "table.md").read_text() == table(rows) + "\n"
    assert read_image(tmp_path / "out" / "one.png").shape[1] > 1000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["items.jsonl", "one.png", "table.md"]


def test_the_command_without_a_folder_only_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("refine.engine.Refiner", fake_refiner({}))
    before = sorted(write_set(tmp_path / "one").iterdir())
    evaluate_command(
        [tmp_path / "one"], model="m", weights=None, device="auto", dtype="auto", limit=None, out=None, options={}
    )
    assert "| one | 3        |" in capsys.readouterr().out
    assert sorted((tmp_path / "one").iterdir()) == before


@pytest.mark.skipif(not HELDOUT.is_dir(), reason="the held-out sets are not here")
@pytest.mark.parametrize("name", DATA_README)
def test_the_coarse_row_of_the_held_out_sets_is_reproduced(name):
    rows = evaluate([HELDOUT / name], lambda image, mask: evaluation.as_binary(mask))
    (summary,) = summarise(rows)
    assert (round(summary.iou_coarse, 2), round(summary.mba_coarse, 2)) == DATA_README[name]
    assert (summary.iou_refined, summary.mba_refined) == (summary.iou_coarse, summary.mba_coarse)


def test_a_mask_written_by_refine_is_scored_as_itself(tmp_path):
    folder = write_set(tmp_path / "set", names=("a",))
    write_mask(folder / "a_seg.png", disc())
    (row,) = evaluate([folder], brighter)
    assert row.coarse == row.refined


def test_a_set_has_pictures_only(tmp_path):
    folder = write_set(tmp_path / "set", names=("a",))
    for name in ("b_im.txt", "_im.png", ".c_im.png"):
        (folder / name).write_text("")
    assert [item.name for item in find_items(folder)] == ["a"]


def test_an_output_folder_that_cannot_be_made_is_told_before_the_work(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("refine.engine.Refiner", fake_refiner(given))
    write_set(tmp_path / "one")
    (tmp_path / "out").write_text("")
    with pytest.raises(FileError, match="is a file"):
        evaluate_command(
            [tmp_path / "one"],
            model="m",
            weights=None,
            device="auto",
            dtype="auto",
            limit=None,
            out=tmp_path / "out",
            options={},
        )
    assert given == {}


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "table.md").write_text("old")
    monkeypatch.setattr("refine.io.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(FileError, match="cannot be written"):
        evaluation._write_text(tmp_path / "table.md", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


# Evaluations read back and compared


def write_rows(folder, *pictures):
    """Rows of (set, name, intersection, union, mBA, seconds[, far px of 1000]); the coarse masks are all alike."""
    rows = [
        Row(set_, name, Score(1, 2, 0.5), Score(i, u, mba), s, *(Harm(px, 1000, 1, 2, 3) for px in far))
        for set_, name, i, u, mba, s, *far in pictures
    ]
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(row.as_dict()) + "\n" for row in rows))
    return folder


def write_base(folder):
    return write_rows(
        folder,
        ("one", "a", 50, 100, 0.50, 2.0, 10),
        ("one", "b", 150, 200, 0.70, 2.0, 0),
        ("two", "a", 90, 100, 0.80, 1.0, 0),
    )


def write_run(folder):
    return write_rows(
        folder,
        ("two", "a", 90, 100, 0.79, 3.0, 0),  # sets and pictures may come in another order
        ("one", "b", 148, 200, 0.70, 1.0, 25),
        ("one", "a", 60, 100, 0.52, 1.0, 0),
    )


# Pooled: 200 / 300 before and 208 / 300 after; mBA (50 + 70) / 2 and (52 + 70) / 2; the worst picture 75 -> 74; far
# errors 10 / 2000 and 25 / 2000.
COMPARED = (
    "run beside base\n"
    "\n"
    "| set | pictures | base IoU/mBA | change IoU/mBA  | worst picture's IoU "
    "| base far % | change far % | seconds ratio |\n"
    "| --- | -------- | ------------ | --------------- | ------------------- "
    "| ---------- | ------------ | ------------- |\n"
    "| one | 2        | 66.67/60.00  | +2.6667/+1.0000 | -1.0000 (b)         "
    "| 0.500      | +0.7500      | 0.500         |\n"
    "| two | 1        | 90.00/80.00  | +0.0000/-1.0000 | +0.0000 (a)         "
    "| 0.000      | +0.0000      | 3.000         |\n"
    "\n"
    "largest change of a set: IoU 2.6667, mBA 1.0000, far % 0.7500\n"
)


def test_the_lines_of_an_evaluation_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr("refine.engine.Refiner", fake_refiner({}))
    rows = evaluate_command(
        [write_set(tmp_path / "one")],
        model="crm-s",
        weights=None,
        device="cpu",
        dtype="auto",
        limit=None,
        out=tmp_path / "out",
        options={},
    )
    assert read_rows(tmp_path / "out") == rows


def test_compare_prints_the_changes_of_each_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_base(Path("base"))
    write_run(Path("run"))
    main(["compare", "base", "run"])
    assert capsys.readouterr().out == COMPARED


def test_compare_prints_a_table_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_base(Path("base"))
    write_run(Path("run"))
    main(["compare", "base", "base", "run"])
    same, other = capsys.readouterr().out.split("\n\nrun beside")
    assert same.endswith("IoU 0.0000, mBA 0.0000, far % 0.0000")
    assert "run beside" + other == COMPARED


def test_compare_prints_the_same_as_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_base(Path("base"))
    write_run(Path("run"))
    main(["compare", "base", "run", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["base"], found["run"]) == ("base", "run")
    assert found["largest_iou_change"] == pytest.approx(8 / 3)
    assert found["largest_mba_change"] == pytest.approx(1)
    assert found["largest_far_change"] == pytest.approx(0.75)
    one, two = found["changes"]
    assert one == {
        "set": "one",
        "pictures": 2,
        "iou_base": pytest.approx(200 / 3),
        "mba_base": pytest.approx(60),
        "iou_change": pytest.approx(8 / 3),
        "mba_change": pytest.approx(1),
        "worst_change": pytest.approx(-1),
        "worst_name": "b",
        "far_base": pytest.approx(0.5),
        "far_change": pytest.approx(0.75),
        "seconds_ratio": pytest.approx(0.5),
    }
    assert (two["set"], two["iou_change"], two["worst_change"], two["seconds_ratio"]) == ("two", 0, 0, 3)


def without_harm(folder):
    """As it was written before harm was measured."""
    path = folder / "items.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    harm = {"far", "far_px", "truth_px", "fragments", "holes", "lost"}
    kept = [{name: value for name, value in line.items() if name not in harm} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return folder


def test_older_evaluations_are_compared_without_far_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    without_harm(write_base(Path("base")))
    write_run(Path("run"))
    assert {row.harm for row in read_rows(Path("base"))} == {None}
    for words in (["base", "run"], ["run", "base"]):
        found = compare(*map(Path, words))
        assert found.largest_far_change is None
        assert {change.far_change for change in found.changes} == {None}
        main(["compare", *words])
        printed = capsys.readouterr().out.splitlines()
        assert "| -            |" in printed[4]
        assert "far" not in printed[7]
        assert printed[-1] == "-: not measured when one of the two was made; evaluate it again for far errors"
    assert compare(Path("base"), Path("run")).largest_iou_change == pytest.approx(8 / 3)


def test_a_loss_is_the_largest_change_too(tmp_path):
    found = compare(write_run(tmp_path / "run"), write_base(tmp_path / "base"))
    assert found.largest_iou_change == pytest.approx(8 / 3)
    assert [change.set for change in found.changes] == ["two", "one"]
    assert found.changes[1].iou_change == pytest.approx(-8 / 3)
    assert (found.changes[1].worst_name, found.changes[1].worst_change) == ("a", pytest.approx(-10))


def test_evaluations_of_other_pictures_are_not_compared(tmp_path):
    base = write_base(tmp_path / "base")
    fewer = write_rows(tmp_path / "fewer", ("two", "a", 1, 2, 0.5, 1.0))
    with pytest.raises(OptionError, match=r"fewer' lacks one/a, one/b; compare"):
        compare(base, fewer)
    with pytest.raises(OptionError, match=r"fewer' lacks one/a, one/b; compare"):
        compare(fewer, base)
    others = write_rows(tmp_path / "others", *(("two", name, 1, 2, 0.5, 1.0) for name in "abcdef"))
    with pytest.raises(OptionError, match=r"fewer' lacks two/b, two/c, two/d and 2 more"):
        compare(others, fewer)


def test_a_folder_without_lines_is_told(tmp_path):
    with pytest.raises(FileError, match=r"no items\.jsonl to read in .*absent"):
        read_rows(tmp_path / "absent")
    (tmp_path / "items.jsonl").write_text("")
    with pytest.raises(FileError, match="holds no pictures"):
        read_rows(tmp_path)


LINE = json.dumps(Row("one", "z", Score(1, 2, 0.5), Score(3, 4, 0.5), 1.0, Harm(1, 2, 3, 4, 5)).as_dict())


@pytest.mark.parametrize(
    "line",
    [
        "",
        LINE[:-10],
        LINE.replace("mba_refined", "mba"),
        LINE.replace('"union_refined": 4', '"union_refined": 2'),
        LINE.replace('"union_refined": 4', '"union_refined": "4"'),
        LINE.replace('"mba_coarse": 0.5', '"mba_coarse": NaN'),
        LINE.replace('"seconds": 1.0', '"seconds": 0'),
        LINE.replace('"z"', "7"),
        LINE.replace('"holes": 4', '"hole": 4'),
        LINE.replace('"lost": 5', '"lost": -5'),
        LINE.replace('"far_px": 1', '"far_px": "1"'),
        "[]",
        "\xff",
    ],
)
def test_a_damaged_line_is_told_by_its_number(tmp_path, line):
    path = write_base(tmp_path / "base") / "items.jsonl"
    path.write_bytes(path.read_bytes() + f"{line}\n{LINE}\n".encode("latin-1"))
    with pytest.raises(FileError, match="line 4 is damaged"):
        read_rows(path.parent)


def test_a_picture_that_is_there_twice_is_told(tmp_path):
    path = write_base(tmp_path / "base") / "items.jsonl"
    path.write_text(path.read_text() * 2)
    with pytest.raises(FileError, match="line 4 is one/a once more"):
        read_rows(path.parent)


def test_what_cannot_be_compared_is_one_line_and_an_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_base(Path("base"))
    write_rows(Path("fewer"), ("two", "a", 1, 2, 0.5, 1.0))
    for words, code in ((["base", "absent"], 1), (["base", "fewer"], 2), (["base"], 2)):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *words])
        printed = capsys.readouterr()
        assert (stop.value.code, printed.out) == (code, "")
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
