import json
from pathlib import Path

import pytest
from conftest import disc, photographed

from refine import precompute
from refine.guidance.superpixels import Slic
from refine.io import write_image
from refine.precompute import Precompute

OPTIONS = ("--source", "slic", "-o", "cache", "--set", "segments=20")


@pytest.fixture
def folder(run, tmp_path) -> Path:
    """Two pictures, one in a sub-folder; the command line runs beside it."""
    for i, name in enumerate(("a.png", "deep/b.jpg")):
        write_image(tmp_path / "pictures" / name, photographed(disc((40, 50 + i), 10)))
    return tmp_path / "pictures"


def test_every_picture_is_found_once(folder, run):
    first = run("proposals", "pictures", *OPTIONS)
    assert first.code == 0
    lines = first.out.splitlines()
    assert [line.split()[0] for line in lines] == ["pictures/a.png", "pictures/deep/b.jpg"]
    assert all("proposals, " in line and " s)" in line for line in lines)
    assert first.err == "2 found, 0 kept already, 0 failed; in cache\n"
    again = run("proposals", "pictures", *OPTIONS)
    assert all("proposals, kept)" in line for line in again.out.splitlines())
    assert again.err == "0 found, 2 kept already, 0 failed; in cache\n"
    assert len(list(Path("cache").rglob("*.bin"))) == 2


def test_an_interrupted_run_goes_on(folder, tmp_path):
    work = Precompute.of(folder, "slic", out=tmp_path / "cache", options={"segments": 20})
    assert not next(work.run()).kept
    assert [done.kept for done in work.run()] == [True, False]


def test_a_bad_picture_is_told_and_the_others_are_done(folder, run):
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:50])
    outcome = run("proposals", "pictures", *OPTIONS, "--json")
    assert outcome.code == 1
    told = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(Path(line["image"]).name, line["status"]) for line in told] == [
        ("a.png", "done"),
        ("bad.png", "failed"),
        ("b.jpg", "done"),
    ]
    assert "error: pictures/bad.png: truncated" in outcome.err
    assert outcome.err.endswith("2 found, 0 kept already, 1 failed; in cache\n")


def test_features_are_found_instead_of_proposals(folder, run, sam_file):
    options = ("--source", "sam", "--sam-checkpoint", str(sam_file), "-o", "cache", "--device", "cpu", "--embeddings")
    first = run("proposals", "pictures", *options)
    assert (first.code, first.err) == (0, "2 found, 0 kept already, 0 failed; in cache\n")
    assert all(line.split("  ")[1].startswith("(features, ") for line in first.out.splitlines())
    assert {path.parent.name for path in Path("cache").rglob("*.bin")} == {"embeddings"}
    again = run("proposals", "pictures", *options, "--json")
    assert [json.loads(line)["status"] for line in again.out.splitlines()] == ["kept", "kept"]
    assert "proposals" not in json.loads(again.out.splitlines()[0])


def test_a_picture_that_sam_cannot_see_is_told(folder, run, sam_file):
    write_image(folder / "thin.png", photographed(disc((4, 40), 2)))
    options = ("--source", "sam", "--sam-checkpoint", str(sam_file), "-o", "cache", "--device", "cpu")
    outcome = run("proposals", "pictures", *options, "--set", "points_per_side=2", "-q")
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("error: pictures/thin.png: picture: 4 x 40 px (H x W)")
    assert outcome.err.count("\n") == 1
    assert len(list(Path("cache").rglob("*.bin"))) == 2


@pytest.mark.parametrize(
    ("holder", "step", "failure"),
    [
        (precompute, "read_image", MemoryError()),
        (Slic, "propose", MemoryError()),
        (Slic, "propose", RuntimeError("CUDA out of memory")),
    ],
)
def test_too_little_memory_for_a_picture_is_told_and_the_others_are_done(
    folder, run, monkeypatch, holder, step, failure
):
    original, failures = getattr(holder, step), [failure]

    def failing(*given, **options):
        if failures:
            raise failures.pop()
        return original(*given, **options)

    monkeypatch.setattr(holder, step, failing)
    outcome = run("proposals", "pictures", *OPTIONS)
    assert outcome.code == 1
    assert "error: pictures/a.png: out of memory; " in outcome.err
    assert outcome.err.endswith("1 found, 0 kept already, 1 failed; in cache\n")


def test_a_fault_of_ours_ends_the_run(folder, run, monkeypatch):
    monkeypatch.setattr(Slic, "propose", lambda *_: {}["ours"])
    with pytest.raises(KeyError):
        run("proposals", "pictures", *OPTIONS)


def test_masks_of_bigs_names_are_no_pictures(folder, run):
    for ending in ("im", "seg", "gt"):
        write_image(folder / f"c_{ending}.png", photographed(disc((40, 50), 10)))
    assert [line.split()[0] for line in run("proposals", "pictures", *OPTIONS).out.splitlines()] == [
        "pictures/c_im.png"
    ]


def test_refined_masks_are_no_pictures(folder, run):
    write_image(folder / "a_mask.png", photographed(disc((40, 50), 10)))
    assert len(run("proposals", "pictures", *OPTIONS).out.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere", *OPTIONS), 1, "nowhere: no such folder"),
        (
            (".", "--source", "slic", "-o", "cache", "--set", "levels=x"),
            2,
            "give NAME=NUMBER, as in points_per_side=16",
        ),
        (("pictures", "--source", "nope", "-o", "cache"), 2, "source='nope' is unknown"),
        (("pictures", "--source", "sam-vit-b", "-o", "cache"), 2, "refine-cli weights get sam-vit-b, or give a local"),
        (("pictures",), 2, "Missing option '--source'"),
        (
            ("pictures", "--source", "slic", "-o", "cache", "--embeddings"),
            2,
            "proposals='slic' has no features to read",
        ),
        (("pictures", *OPTIONS, "--embeddings"), 2, "segments: features do not depend on options of proposals"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, run, monkeypatch, words, code, message):
    monkeypatch.setenv("REFINE_CACHE", str(folder.parent / "empty"))
    outcome = run("proposals", *words)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_folder_without_pictures_is_told(run):
    Path("empty").mkdir()
    outcome = run("proposals", "empty", *OPTIONS)
    assert outcome.code == 1
    assert "empty: has no pictures" in outcome.err
