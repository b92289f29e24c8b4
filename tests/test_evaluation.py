import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import brighter, dot, write_set
from PIL import Image

from refine.errors import FileError, InputError, OptionError
from refine.evaluation import evaluate, find_items, find_sets, find_work, score, summarise
from refine.evaluation.items import as_binary, read
from refine.evaluation.scores import Row
from refine.evaluation.tables import set_table
from refine.io import write_mask
from refine.metrics import Harm, harm

HELDOUT = Path(__file__).parents[2] / "shared" / "data" / "heldout"
DATA_README = {  # pooled IoU / mBA of the coarse masks as published with the data
    "alphamatting": (97.21, 63.13),
    "ccp": (95.60, 66.56),
    "human": (97.63, 66.10),
    "sod-dss": (80.48, 56.98),
}


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
    write_set(one / "cropped")
    assert find_sets([one]) == [one]


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
    truth, prediction = dot(), dot(44)
    result = score(prediction, truth)
    assert (result.intersection, result.union) == ((prediction & truth).sum(), (prediction | truth).sum())
    assert result.iou == result.intersection / result.union
    assert 0 < result.mba < 1


def test_a_refiner_that_finds_the_object_scores_full_marks(tmp_path):
    rows = evaluate([write_set(tmp_path / "set")], brighter)
    (summary,) = summarise(rows)
    counts = [score(dot(43 + i), dot()) for i in range(3)]
    assert (summary.iou_refined, summary.mba_refined, summary.pictures) == (100, 100, 3)
    assert summary.iou_coarse == pytest.approx(100 * sum(c.intersection for c in counts) / sum(c.union for c in counts))
    assert summary.mba_coarse == pytest.approx(100 * np.mean([c.mba for c in counts]))
    assert summary.worst_name == "a"  # the best coarse mask has least to gain
    assert summary.worst_change == pytest.approx(100 * (1 - counts[0].iou))


def test_the_table_has_a_row_a_set(tmp_path):
    rows = evaluate([write_set(tmp_path / "one"), write_set(tmp_path / "two")], lambda image, mask: mask > 0.5)
    lines = set_table(rows).markdown().split("\n\n")[0].splitlines()
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
    area = int(dot().sum())
    # The coarse discs of a, b and c end at x = 63, 64 and 65: for b and c the refined masks are empty.
    assert rows[0].harm == Harm(far_px=16 + 27, truth_px=area, fragments=3, holes=1, lost=0)
    for i in (1, 2):
        coarse = dot(43 + i)
        assert rows[i].harm == harm(np.zeros_like(coarse), coarse, dot())
        assert rows[i].harm.lost == 1
        assert 0.5 < rows[i].harm.far < 1
    (summary,) = summarise(rows)
    assert summary.far == pytest.approx(100 * sum(row.harm.far_px for row in rows) / (3 * area))
    assert (summary.fragments, summary.holes, summary.lost) == (1, pytest.approx(1 / 3), 2)
    cells = [cell.strip() for cell in set_table(rows).markdown().splitlines()[2].split("|")]
    assert cells[7:10] == [f"{summary.far:.3f}", "1.0/0.3", "2"]


def test_what_changed_of_the_coarse_masks_stands_beside_the_harm(tmp_path):
    rows = evaluate([write_set(tmp_path / "set")], breaking)
    assert [(row.change.parts, row.change.parts_lost, row.change.parts_added) for row in rows] == [
        (1, 0, 3),
        (1, 1, 0),
        (1, 1, 0),
    ]
    assert [row.change.contour_moved for row in rows[1:]] == [1, 1]
    (summary,) = summarise(rows)
    ratio = rows[0].change.area_ratio / 3
    assert (summary.parts_lost, summary.parts_added, summary.area_ratio) == (2, 3, pytest.approx(ratio))
    assert summary.moved == pytest.approx(100 * np.mean([row.change.contour_moved for row in rows]))
    cells = [cell.strip() for cell in set_table(rows).markdown().splitlines()[2].split("|")]
    assert cells[10:13] == ["2/3", f"{ratio:.2f}", f"{summary.moved:.1f}"]
    assert [Row.from_dict(json.loads(json.dumps(row.as_dict()))) for row in rows] == rows


def test_lines_from_before_changes_were_measured_are_read_and_damaged_ones_refused(tmp_path):
    (row, *_) = evaluate([write_set(tmp_path / "set")], breaking)
    line = row.as_dict()
    for damage in ({"parts": -1}, {"parts": "1"}, {"parts": True}, {"more": 1}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Row.from_dict(line | {"change": line["change"] | damage})
    del line["change"]
    old = Row.from_dict(line)
    assert old == replace(row, change=None)
    (summary,) = summarise([old, row])
    assert {summary.parts_lost, summary.parts_added, summary.area_ratio, summary.moved} == {None}
    cells = [cell.strip() for cell in set_table([old]).markdown().splitlines()[2].split("|")]
    assert cells[10:13] == ["-/-", "-", "-"]


def test_a_set_with_a_picture_from_before_harm_was_measured_has_no_figures_of_it(tmp_path):
    rows = evaluate([write_set(tmp_path / "set")], breaking)
    rows[1] = replace(rows[1], harm=None)
    (summary,) = summarise(rows)
    assert {summary.far, summary.fragments, summary.holes, summary.lost} == {None}
    cells = [cell.strip() for cell in set_table(rows).markdown().splitlines()[2].split("|")]
    assert cells[7:10] == ["-", "-/-", "-"]


def test_the_pictures_own_iou_stands_beside_the_pooled_one(tmp_path):
    rows = evaluate([write_set(tmp_path / "set")], brighter)
    rows[0] = replace(rows[0], coarse=replace(rows[0].coarse, intersection=1, union=100))  # a small object, lost
    (summary,) = summarise(rows)
    own = [row.coarse.iou for row in rows]
    assert summary.own_iou_coarse == pytest.approx(100 * np.mean(own))
    assert summary.iou_coarse > summary.own_iou_coarse + 10
    assert f"{summary.own_iou_coarse:.2f} to 100.00" in set_table(rows).markdown()


def test_costs_are_a_mean_and_a_highest_where_all_pictures_have_them(tmp_path):
    rows = evaluate([write_set(tmp_path / "set", names=("a", "b"))], brighter)
    rows = [replace(row, seconds=i, peak_memory=i * 10**6) for i, row in enumerate(rows, start=1)]
    (summary,) = summarise(rows)
    assert (summary.seconds, summary.peak_memory) == (1.5, 2_000_000)
    assert set_table(rows).markdown().splitlines()[2].split("|")[-3:-1] == [" 1.50    ", " 2       "]
    (summary,) = summarise([replace(rows[0], seconds=None, peak_memory=None), rows[1]])
    assert (summary.seconds, summary.peak_memory) == (None, None)


def test_the_limit_takes_the_first_pictures_of_each_set(tmp_path):
    sets = [write_set(tmp_path / "one"), write_set(tmp_path / "two")]
    assert [(row.set, row.name) for row in evaluate(sets, brighter, limit=1)] == [("one", "a"), ("two", "a")]
    with pytest.raises(OptionError, match="limit"):
        evaluate(sets, brighter, limit=0)


def test_two_sets_of_one_name_are_refused(tmp_path):
    sets = [write_set(tmp_path / "x" / "set"), write_set(tmp_path / "y" / "set")]
    with pytest.raises(OptionError, match="2 sets are called 'set' and would share files"):
        evaluate(sets, brighter)


def test_two_sets_whose_masks_would_share_a_folder_are_refused(tmp_path):
    sets = [write_set(tmp_path / name) for name in ("a b", "c", "a-b")]
    with pytest.raises(OptionError, match="2 sets are called 'a b' and 'a-b' and would share files"):
        find_work(sets)


@pytest.mark.parametrize(
    "truth", [dot() * np.uint8(1), np.where(dot(), 129, np.linspace(0, 128, dot().shape[1])).astype(np.uint8), dot()]
)
def test_a_truth_is_set_above_128(tmp_path, truth):
    folder = write_set(tmp_path / "set", names=("a",))
    Image.fromarray(truth).save(folder / "a_gt.png")
    (row,) = evaluate([folder], brighter)
    assert row.refined.iou == 1.0


@pytest.mark.parametrize(("label", "void"), [(255, 128), (1, 255), (15, 255)])
def test_void_is_left_out_of_scores(tmp_path, label, void):
    folder = write_set(tmp_path / "set", names=("a",))
    truth = dot().astype(np.uint8)
    ring = cv2.morphologyEx(truth, cv2.MORPH_GRADIENT, np.ones((7, 7), np.uint8)) > 0
    Image.fromarray(np.where(ring, void, label * truth).astype(np.uint8)).save(folder / "a_gt.png")
    for mask in (truth > 0, (truth > 0) | ring, (truth > 0) & ~ring):
        (row,) = evaluate([folder], lambda image, coarse, mask=mask: mask)
        assert (row.refined.iou, row.refined.mba) == (1.0, 1.0)
        assert (row.harm.far_px, row.harm.fragments, row.harm.holes) == (0, 0, 0)
        assert row.refined.union == (truth.astype(bool) & ~ring).sum()


def test_a_dark_picture_is_measured_by_its_white(tmp_path):
    folder = write_set(tmp_path / "set", names=("a",))
    image = cv2.imread(str(folder / "a_im.png")) if (folder / "a_im.png").exists() else None
    name = "a_im.png" if image is not None else "a_im.jpg"
    image = cv2.imread(str(folder / name))
    (folder / name).unlink()
    cv2.imwrite(str(folder / "a_im.png"), image.astype(np.uint16) * 16)
    (item,) = find_items(folder)
    with pytest.raises(InputError, match="white=4095"):
        read(item)
    np.testing.assert_array_equal(read(replace(item, white=4080))[0], image[..., ::-1])


def test_a_smaller_coarse_mask_is_enlarged_and_a_smaller_truth_refused(tmp_path):
    folder = write_set(tmp_path / "set", names=("a",))
    small = cv2.resize(dot() * np.uint8(255), (40, 30), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / "a_seg.png"), small)
    (row,) = evaluate([folder], lambda image, mask: mask > 0.5)
    assert row.coarse.iou > 0.95
    cv2.imwrite(str(folder / "a_gt.png"), small)
    with pytest.raises(InputError, match="a_gt"):
        evaluate([folder], brighter)


@pytest.mark.skipif(not HELDOUT.is_dir(), reason="the held-out sets are not here")
@pytest.mark.parametrize("name", DATA_README)
def test_the_coarse_row_of_the_held_out_sets_is_reproduced(name):
    rows = evaluate([HELDOUT / name], lambda image, mask: as_binary(mask))
    (summary,) = summarise(rows)
    assert (round(summary.iou_coarse, 2), round(summary.mba_coarse, 2)) == DATA_README[name]
    assert (summary.iou_refined, summary.mba_refined) == (summary.iou_coarse, summary.mba_coarse)


def test_a_mask_written_by_refine_is_scored_as_itself(tmp_path):
    folder = write_set(tmp_path / "set", names=("a",))
    write_mask(folder / "a_seg.png", dot())
    (row,) = evaluate([folder], brighter)
    assert row.coarse == row.refined


def test_a_set_has_pictures_only(tmp_path):
    folder = write_set(tmp_path / "set", names=("a",))
    for name in ("b_im.txt", "_im.png", ".c_im.png"):
        (folder / name).write_text("")
    assert [item.name for item in find_items(folder)] == ["a"]


# Coarse masks in folders of their own


def write_coarse(folder, *names, x=45):
    folder.mkdir()
    for name in names:
        write_mask(folder / name, dot(x))
    return folder


def test_a_folder_of_coarse_masks_is_a_set_with_the_pictures_of_another(tmp_path):
    data = write_set(tmp_path / "big", names=("a", "b"))
    psp, fcn = (
        write_coarse(tmp_path / "psp", "a_seg.png", "b_seg.png"),
        write_coarse(tmp_path / "fcn", "a.png", "b.png"),
    )
    work = find_work([data], [psp, fcn])
    assert [(item.set, item.name, item.coarse.name) for item in work] == [
        ("psp", "a", "a_seg.png"),
        ("psp", "b", "b_seg.png"),
        ("fcn", "a", "a.png"),
        ("fcn", "b", "b.png"),
    ]
    assert {(item.image.parent, item.truth.parent) for item in work} == {(data, data)}


def test_folders_of_coarse_masks_that_do_not_fit_are_refused(tmp_path):
    data, other = write_set(tmp_path / "big"), write_set(tmp_path / "other")
    strange = write_coarse(tmp_path / "strange", "z_seg.png")
    with pytest.raises(FileError, match=r"strange' lacks a_seg\.png and all others"):
        find_work([data], [strange])
    with pytest.raises(FileError, match="no folder"):
        find_work([data], [tmp_path / "absent"])
    with pytest.raises(OptionError, match="one folder of pictures and truths, and here are 2"):
        find_work([data, other], [strange])
