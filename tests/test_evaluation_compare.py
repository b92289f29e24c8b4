import json
from pathlib import Path

import pytest

from refine.cli import main
from refine.errors import FileError, OptionError
from refine.evaluation import Row, Score, compare, read_rows
from refine.evaluation.lines import Lines
from refine.metrics import Harm


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


def test_evaluations_of_other_coarse_masks_or_truths_are_not_compared(tmp_path):
    base, run = write_base(tmp_path / "base"), write_base(tmp_path / "run")
    path = run / "items.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first.replace('"union_coarse": 2', '"union_coarse": 3'), *others]))
    with pytest.raises(OptionError, match=r"base' and .*run' have different coarse masks or truths of one/a; compare"):
        compare(base, run)


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
        LINE.replace('"peak_memory": null', '"peak_memory": -1'),
        '{"set": "one", "name": 7, "error": "none"}',
        '{"begun": "now", "pictures": ["one", "z"]}',
        '{"begun": "now", "set": "one", "name": "z", "error": "none"}',
        "[]",
        "\xff",
    ],
)
def test_a_damaged_line_is_told_by_its_number(tmp_path, line):
    path = write_base(tmp_path / "base") / "items.jsonl"
    path.write_bytes(path.read_bytes() + f"{line}\n{LINE}\n".encode("latin-1"))
    with pytest.raises(FileError, match="line 4 is damaged"):
        read_rows(path.parent)


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    path = write_base(tmp_path / "base") / "items.jsonl"
    rows = read_rows(path.parent)
    path.write_text(path.read_text() + LINE[:50])
    assert read_rows(path.parent) == rows


def with_variant(path, variant, key):
    """Its lines as those of a variant."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return "".join(json.dumps({"variant": variant, "key": key, "stamp": "", **line}) + "\n" for line in lines)


def test_of_several_variants_one_is_named(tmp_path):
    base, run = write_base(tmp_path / "base") / "items.jsonl", write_run(tmp_path / "run") / "items.jsonl"
    path = tmp_path / "both" / "items.jsonl"
    path.parent.mkdir()
    path.write_text(with_variant(base, "dense", "1") + with_variant(run, "bbox", "2"))
    assert compare(path.parent / "dense", path.parent / "bbox").changes == compare(base.parent, run.parent).changes
    for given, told in (("both", "holds 2 variants"), ("both/strided", "'strided' is none")):
        with pytest.raises(OptionError, match=rf"{told}.*there are dense, bbox"):
            read_rows(tmp_path / given)


def test_of_a_variant_the_newest_weights_and_lines_count(tmp_path):
    base, run = write_base(tmp_path / "base") / "items.jsonl", write_run(tmp_path / "run") / "items.jsonl"
    old, new = with_variant(base, "crm-s", "old"), with_variant(run, "crm-s", "new")
    path = tmp_path / "both" / "items.jsonl"
    path.parent.mkdir()
    path.write_text(old + new.replace('"seconds": 1.0', '"seconds": 7.0') + new)
    assert read_rows(path.parent) == read_rows(run.parent)


def test_of_two_variants_of_one_key_each_has_its_own_lines(tmp_path):
    base, run = write_base(tmp_path / "base") / "items.jsonl", write_run(tmp_path / "run") / "items.jsonl"
    path = tmp_path / "both" / "items.jsonl"
    path.parent.mkdir()
    path.write_text(with_variant(base, "crm-s", "1") + with_variant(run, "crm-s-float32", "1"))
    assert read_rows(path.parent / "crm-s") == read_rows(base.parent)


def begun(variant, key, **pictures):
    return json.dumps({"variant": variant, "key": key, "begun": "2025-01-01 00:00:00", **pictures}) + "\n"


def test_of_a_variant_the_pictures_of_the_last_run_count(tmp_path):
    path = write_base(tmp_path / "base") / "items.jsonl"
    rows = read_rows(path.parent)
    fewer = [["one", "b"], ["two", "a"], ["two", "z"]]
    other = begun("dense", "1", pictures=[["one", "a"]])
    path.write_text(begun("crm-s", "1", pictures=[["one", "a"]]) + with_variant(path, "crm-s", "1"))
    for last, kept in ((begun("crm-s", "1", pictures=fewer), rows[1:]), (begun("crm-s", "1"), rows)):  # an older one
        path.write_text(path.read_text() + last + other)
        assert read_rows(path.parent / "crm-s") == kept


@pytest.mark.parametrize("name", ["masks", "pictures"])
def test_a_variant_may_be_called_like_a_folder_of_the_report(tmp_path, name):
    path = write_base(tmp_path / "base") / "items.jsonl"
    rows = read_rows(path.parent)
    (path.parent / name).mkdir()
    path.write_text(with_variant(path, name, "1") + with_variant(path, "crm-s", "2"))
    assert read_rows(path.parent / name) == rows


@pytest.mark.parametrize("name", ["z", "b"])
def test_a_picture_that_failed_when_last_measured_is_no_row(tmp_path, name):
    path = write_base(tmp_path / "base") / "items.jsonl"
    failed = {"variant": "", "key": "", "stamp": "", "set": "one", "name": name, "error": "no such file"}
    rows = read_rows(path.parent)
    path.write_text(path.read_text() + json.dumps(failed) + "\n")
    assert read_rows(path.parent) == [row for row in rows if (row.set, row.name) != ("one", name)]
    path.write_text(json.dumps(failed) + "\n")
    with pytest.raises(FileError, match="holds no pictures"):
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


DAMAGED = [{"key": [1]}, {"key": {}}, {"variant": [1]}, {"variant": {}}, {"set": 5}, {"stamp": 1}]


@pytest.mark.parametrize("line", [*(json.dumps({**json.loads(LINE), **change}) for change in DAMAGED), "[" * 200_000])
@pytest.mark.parametrize("read", [read_rows, Lines])
def test_a_line_of_other_types_is_told_with_what_to_do(tmp_path, read, line):
    path = write_base(tmp_path / "base") / "items.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(FileError, match=r"line 4 is damaged .*; delete that line or the file and evaluate"):
        read(path.parent)


@pytest.mark.parametrize("figure", [True, "1", 10**400, 2**63])
def test_a_figure_that_is_no_number_of_pixels_is_told(tmp_path, figure):
    path = write_base(tmp_path / "base") / "items.jsonl"
    path.write_text(json.dumps({**json.loads(LINE), "union_coarse": figure, "union_refined": figure}) + "\n")
    with pytest.raises(FileError, match="line 1 is damaged"):
        read_rows(path.parent)
