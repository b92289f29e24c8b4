import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from conftest import Run, write_set

from refine.errors import FileError
from refine.evaluation import Row, Score, crop_windows, sheet
from refine.evaluation.pictures import strip
from refine.evaluation.plots import scatter
from refine.evaluation.published import PUBLISHED, SOURCES, recognised
from refine.evaluation.report import write_text
from refine.evaluation.scores import summarise
from refine.evaluation.tables import Table, quality_table

SVG = "{http://www.w3.org/2000/svg}"


def row(name="a", before=90.0, after=95.0, *, mba=(60.0, 70.0), set_="one"):
    """A picture with these figures in %."""
    scores = [Score(round(100 * iou), 10_000, m / 100) for iou, m in zip((before, after), mba, strict=True)]
    return Row(set_, name, *scores, seconds=1.0)


class Page(HTMLParser):
    """What a page is made of: its tags with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text


@pytest.fixture
def report(tmp_path, run: Run, fake_refiner):
    write_set(tmp_path / "data" / "one", names="abcde")
    write_set(tmp_path / "data" / "t<w>o", names="a")
    assert run("evaluate", "data", "-o", "out").code == 0
    return tmp_path / "out"


def test_the_page_needs_nothing_but_itself(report):
    text = (report / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if "http" in (value or "") and name != "xmlns"
    ]
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 4  # worst, median and best of one, the only one of the other
    for source in sources:
        picture = cv2.imdecode(np.frombuffer(b64decode(source.removeprefix("data:image/jpeg;base64,")), np.uint8), 1)
        assert picture.shape[1] > 400
    assert [tag for tag, _ in page.tags].count("svg") == 1


def test_the_page_tells_what_was_measured_and_how(report):
    text = Page((report / "report.html").read_text()).text
    for told in (
        "c0ffee",
        "> 128 of 255",
        "pooled",
        "torch",
        "commit",
        "peak MB",
        "seconds",
        "t<w>o",
        "All 6 pictures",
        "kept on disk",
    ):
        assert told in text, told
    for told in ("one, worst: a,", "one, median: c,", "one, best: e,", "t<w>o, worst and median and best: a,"):
        assert told in text, told


def test_the_markdown_shows_files_that_are_there(report):
    paths = re.findall(r"!\[.*\]\((.*)\)", (report / "report.md").read_text())
    assert len(paths) == 5
    assert all((report / path).is_file() for path in paths)


def test_names_that_are_no_utf_8_are_escaped(tmp_path, run: Run, fake_refiner):
    write_set(tmp_path / "data", names=("a",))
    for path in (tmp_path / "data").iterdir():
        path.rename(path.with_name("\udcff" + path.name))
    assert run("evaluate", "data", "-o", "out").code == 0
    for name in ("report.md", "report.html", "pictures/crm-s-scatter.svg"):
        assert "\\udcffa" in (tmp_path / "out" / name).read_text(encoding="utf-8"), name


def test_names_that_are_alike_or_long_have_pictures_of_their_own(tmp_path, run: Run, fake_refiner):
    names = ["a b", "a-b", "ä" * 110 + "x", "ä" * 110 + "y"]
    for number in (0, 2):
        write_set(tmp_path / "data" / f"set-{number}", names=names[number : number + 2])
    assert run("evaluate", "data", "-o", "out").code == 0
    assert len(list((tmp_path / "out" / "pictures").glob("*.jpg"))) == 4


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "report.md").write_text("old")
    monkeypatch.setattr("refine.io.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(FileError, match="cannot be written"):
        write_text(tmp_path / "report.md", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


# Tables


def test_the_quality_table_has_the_thesis_form():
    two = row("a", 70, 72, mba=(50, 60), set_="two")
    rows = {"dense": [row(), row("b", 80, 95), two], "bbox": [row(), row("b", 80, 75), two]}
    assert quality_table(rows).markdown().splitlines() == [
        "| IoU/mBA       | Coarse Mask | dense       | bbox        |",
        "| ------------- | ----------- | ----------- | ----------- |",
        "| one           | 85.00/60.00 | 95.00/70.00 | 85.00/70.00 |",
        "| two           | 70.00/50.00 | 72.00/60.00 | 72.00/60.00 |",
        "| Avg. Improve. | 0.00/0.00   | 6.00/10.00  | 1.00/10.00  |",
    ]


def test_variants_are_compared_on_the_pictures_that_all_of_them_have():
    two = row("a", 70, 72, mba=(50, 60), set_="two")
    rows = {"dense": [row(), row("b", 80, 95), two], "bbox": [row("b", 80, 75), row("c")]}
    assert quality_table(rows).markdown().splitlines() == [
        "| IoU/mBA       | Coarse Mask | dense       | bbox        |",
        "| ------------- | ----------- | ----------- | ----------- |",
        "| one           | 80.00/60.00 | 95.00/70.00 | 75.00/70.00 |",
        "| Avg. Improve. | 0.00/0.00   | 15.00/10.00 | -5.00/10.00 |",
        "",
        "1 of 4 pictures: those that every variant has.",
    ]
    table = quality_table({"dense": [row()], "bbox": [row("b")]})
    assert [line[0] for line in table.lines] == ["Avg. Improve."]
    assert table.note == "0 of 2 pictures: those that every variant has."


def test_the_report_counts_pictures_that_failed_not_failures(tmp_path, run: Run, fake_refiner):
    (write_set(tmp_path / "data") / "b_gt.png").unlink()
    assert run("evaluate", "data", "--model", "crm-s,coarse", "-o", "out").code == 1
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Pictures that failed: 1." in text
    assert "in no table" not in text


def test_published_figures_stand_beside_bigs_sets_alone():
    psp = row("a", 90.49, 95, mba=(59.63, 70), set_="test")
    table = quality_table({"crm-s": [psp, row()]})
    published = dict(zip(table.header, table.lines[0], strict=True))
    assert published["CRM (published)"] == "94.18/76.09"
    assert published["SegRefiner (published)"] == "95.30/77.46"
    assert set(table.lines[1][3:]) == {"-"}
    assert "NeurIPS 2023" in table.note
    near = replace(psp, coarse=Score(9059, 10_000, 0.5963))
    table = quality_table({"crm-s": [near, row()]})
    assert (list(table.header), table.note) == (["IoU/mBA", "Coarse Mask", "crm-s"], "")


@pytest.mark.parametrize(("i", "source"), list(enumerate(SOURCES)))
def test_a_set_is_bigs_where_its_coarse_masks_score_what_is_published(i, source):
    iou, mba = map(float, PUBLISHED["Coarse Mask"][i].split("/"))
    for change, found in ((0, source), (0.04, source), (-0.1, None)):
        (summary,) = summarise([row("a", iou + change, 99, mba=(mba - change, 99))])
        assert recognised(summary) == found


def test_cells_are_escaped():
    table = Table(["a|b"], [["<c>"]], "d & e", title="t")
    assert table.markdown() == "t\n\n| a\\|b |\n| ---- |\n| <c>  |\n\nd & e"
    assert "<td>&lt;c&gt;</td>" in table.html()
    assert "<p>d &amp; e</p>" in table.html()


# Plots


def points(svg):
    """(x, y, colour) of the points by their titles."""
    circles = [c for c in ElementTree.fromstring(svg).iter(f"{SVG}circle") if c.find(f"{SVG}title") is not None]
    return {c.find(f"{SVG}title").text: (float(c.get("cx")), float(c.get("cy")), c.get("fill")) for c in circles}


def test_a_point_is_above_the_diagonal_where_a_picture_gained():
    rows = [row("a", 80, 90), row("b", 90, 90, mba=(70, 70)), row("<c>", 95, 85, mba=(80, 40), set_="two")]
    found = points(scatter(rows))
    above = {title: (320 - y) - x for title, (x, y, _) in found.items()}
    assert above["one/a: 80.00 to 90.00"] == pytest.approx(160, abs=0.2)  # of an axis from 80 to 100
    assert above["one/b: 90.00 to 90.00"] == above["one/b: 70.00 to 70.00"] == 0
    assert above["two/<c>: 95.00 to 85.00"] < 0
    assert above["two/<c>: 80.00 to 40.00"] < 0
    assert len({colour for _, _, colour in found.values()}) == 2


@pytest.mark.parametrize("iou", [0.0, 0.01, 50.0, 99.99, 100.0])
def test_points_lie_inside_their_panel(iou):
    for x, y, _ in points(scatter([row("a", iou, 100 - iou), row("b", iou, iou)])).values():
        assert 0 <= x <= 320
        assert 0 <= y <= 320


# Pictures


def test_crops_lie_where_the_masks_differ_and_apart():
    truth = np.zeros((300, 400), bool)
    coarse = truth.copy()
    coarse[40:60, 300:330] = coarse[200:210, 50:60] = True
    windows = list(crop_windows(coarse, truth, truth, count=3))
    assert len(windows) == 2
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows} == {(96, 96)}
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


def test_a_strip_frames_the_crop_where_the_masks_differ():
    image = np.full((300, 400, 3), 120, np.uint8)
    truth = np.zeros((300, 400), bool)
    truth[100:200, 100:200] = True
    coarse = truth.copy()
    coarse[150:180, 200:230] = True
    drawn = strip(image, coarse, truth, truth)
    assert drawn.shape == (480, 3 * 488, 3)
    whole, both, alone = np.split(drawn, 3, axis=1)
    red, green, blue = ((drawn == colour).all(2) for colour in ((255, 60, 40), (40, 230, 60), (70, 150, 255)))
    assert (whole == 0).all(2).any()  # the frame
    for panel, colours in ((both, (red, green)), (alone, (blue,))):
        left = 488 if panel is both else 2 * 488
        assert all(colour[:, left : left + 488].any() for colour in colours)
    assert not blue[:, : 2 * 488].any()
    assert not (red | green)[:, 2 * 488 :].any()


def test_a_mask_that_is_cut_by_the_border_has_no_contour_along_it():
    image = np.full((300, 400, 3), 200, np.uint8)
    coarse = np.zeros((300, 400), bool)
    coarse[:, :150] = True
    truth = coarse.copy()
    truth[:, 150:160] = True
    panels = np.split(strip(image, coarse, truth, truth), 3, axis=1)
    for panel in panels[1:]:
        assert (panel[:480, 0] == 200).all(), "left of the contours, at the crop's own border"
        assert (panel[:480, :480] != 200).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (70, 3)])
def test_a_strip_of_equal_masks_is_the_whole_alone(shape):
    mask = np.ones(shape, bool)
    assert strip(np.zeros((*shape, 3), np.uint8), mask, mask, mask).shape[1] == 488
    assert strip(np.zeros((*shape, 3), np.uint8), ~mask, mask, mask).shape == (480, 3 * 488, 3)


def test_names_of_pictures_are_no_html_links_or_code_in_the_report(tmp_path, run: Run, fake_refiner):
    name = "<img src=x onerror=alert(1)> ![a](b) `c`"
    write_set(tmp_path / "set", (name, "ok"))
    assert run("evaluate", "set", "-o", "out", "--model", "crm-s").code == 0
    markdown, page = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "html"))
    for text in ("<img src=x", "![a]", " `c`"):
        assert text not in markdown
    assert "<img src=x" not in page
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page
