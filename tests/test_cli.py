import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import Outcome, Run
from PIL import Image, ImageOps

import refine
from refine import io
from refine.checkpoint import manifest as shipped
from refine.download import PUBLISHED
from refine.errors import FileError, InputError, OptionError, RefineError, WeightsError

Fake = Callable[..., types.ModuleType]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a module with the given members in a module's place."""

    def fake(name: str, **members: Any) -> types.ModuleType:
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return fake


def assert_refused(outcome: Outcome, code: int, *told: str) -> None:
    """Nothing on stdout, and one line on stderr, an error that tells all of `told`."""
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for text in told:
        assert text in outcome.err


def picture(path: str, colour: int = 200) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (colour, 0, 0)).save(path)


def coarse(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(path)


def picture_and_mask() -> None:
    picture("cat.png")
    coarse("masks/coarse.png")


def pairs(*names: str) -> None:
    """Folders `i` and `m` of images and masks."""
    for name in names:
        picture(f"i/{name}.png")
        coarse(f"m/{name}.png")


def opened(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@dataclass
class Report:
    warnings: list[str] = field(default_factory=list)
    seconds: float = 1.5
    device: str = "cpu"

    def as_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "device": self.device}


class Refined:
    def __init__(self) -> None:
        self.mask, self.report = np.eye(4, 6, dtype=bool), Report()

    def save(self, path: Path) -> None:
        io.write_mask(path, self.mask)

    def save_probability(self, path: Path) -> None:
        io.write_probability(path, self.mask.astype(np.float32))

    def overlay(self, image: Path) -> np.ndarray:
        return np.where(self.mask[..., None], np.uint8(255), io.read_image(image))


class Engine:
    """Stands for `refine.refiner` and what it gives: notes how it was made, fails where a test wants it to."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.refined = 0
        self.warnings: list[str] = []
        self.refuses: BaseException | None = None
        self.fails_on: dict[int, BaseException] = {}  # the red of a picture -> what refining it raises

    def __call__(self, **options: Any) -> "Engine":
        self.made.append(options)
        if self.refuses is not None:
            raise self.refuses
        return self

    def refine(self, image: Path, mask: Path) -> Refined:
        red = int(io.read_image(image)[0, 0, 0])
        io.read_mask(mask)
        if red in self.fails_on:
            raise self.fails_on[red]
        self.refined += 1
        result = Refined()
        result.report.warnings = list(self.warnings)
        return result


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setitem(vars(refine), "refiner", engine)
    return engine


# One pair


def test_an_image_and_a_mask_give_the_refined_mask_beside_the_mask(run: Run, engine: Engine) -> None:
    picture_and_mask()
    outcome = run("cat.png", "masks/coarse.png")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"{Path('masks/cat_mask.png')}  (1.5 s, cpu)\n"
    assert np.array_equal(opened("masks/cat_mask.png") > 0, np.eye(4, 6, dtype=bool))


def test_the_output_can_be_named_and_its_folder_is_made(run: Run, engine: Engine) -> None:
    picture_and_mask()
    assert run("cat.png", "masks/coarse.png", "-o", "new/fine.png").code == 0
    assert Path("new/fine.png").is_file()


def test_overlay_and_probability_are_written_where_asked(run: Run, engine: Engine) -> None:
    picture_and_mask()
    assert run("cat.png", "masks/coarse.png", "--overlay", "o.png", "--probability", "p.png").code == 0
    assert opened("o.png")[0, 0].tolist() == [255, 255, 255]
    assert opened("o.png")[0, 1].tolist() == [200, 0, 0]
    assert Path("p.png").is_file()


def test_an_existing_output_is_replaced(run: Run, engine: Engine) -> None:
    picture_and_mask()
    Path("fine.png").write_bytes(b"old")
    assert run("cat.png", "masks/coarse.png", "-o", "fine.png").code == 0
    assert opened("fine.png").shape[:2] == (4, 6)


def test_skip_existing_leaves_the_output_and_loads_no_weights(run: Run, engine: Engine) -> None:
    picture_and_mask()
    Path("fine.png").write_bytes(b"old")
    outcome = run("cat.png", "masks/coarse.png", "-o", "fine.png", "--skip-existing")
    assert outcome.code == 0
    assert "skipped" in outcome.out
    assert Path("fine.png").read_bytes() == b"old"
    assert engine.made == []


def test_skip_existing_refines_where_the_overlay_is_missing(run: Run, engine: Engine) -> None:
    picture_and_mask()
    Path("fine.png").write_bytes(b"old")
    run("cat.png", "masks/coarse.png", "-o", "fine.png", "--overlay", "o.png", "--skip-existing")
    assert Path("o.png").is_file()


def test_an_output_that_is_an_input_is_refused_before_anything_is_touched(run: Run, engine: Engine) -> None:
    picture_and_mask()
    before = Path("cat.png").read_bytes()
    outcome = run("cat.png", "masks/coarse.png", "-o", "cat.png")
    assert outcome.code == 2
    assert outcome.err.startswith("error: the output 'cat.png' would replace an input")
    assert Path("cat.png").read_bytes() == before
    assert engine.made == []


def guided(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Words that ask for pictures of what guidance saw, of a refiner that has one."""
    monkeypatch.setattr(Refined, "guidance", {"mask": np.zeros((4, 6, 3), np.uint8)}, raising=False)
    monkeypatch.setattr(Engine, "open_proposals", lambda _: None, raising=False)
    return ("--guidance", "sam-sr-v1", "--debug-dir")


def test_pictures_of_what_guidance_saw_replace_nothing(
    run: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("photo.png")
    coarse("photo_mask.png")
    before = Path("photo_mask.png").read_bytes()
    words = ("photo.png", "photo_mask.png", "-o", "fine.png", *guided(engine, monkeypatch), ".")
    assert run(*words).code == 0
    assert Path("photo_mask.png").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == [
        "fine.png",
        "photo.png",
        "photo_mask.png",
        "photo_saw_mask.png",
    ]
    Path("photo_mask.png").rename("photo_saw_mask.png")
    assert_refused(run("photo.png", "photo_saw_mask.png", *words[2:]), 2, "would replace 'photo_saw_mask.png'")


def test_pictures_of_what_guidance_saw_keep_their_sub_folders(
    run: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in "xy":
        picture(f"i/{folder}/c_im.png")
        coarse(f"i/{folder}/c_seg.png")
    words = ("i", "-o", "out", *guided(engine, monkeypatch), "i/seen")
    for _ in range(2):
        outcome = run(*words)
        assert (outcome.code, outcome.err) == (0, "2 refined, 0 skipped, 0 failed\n")
    written = sorted(path.as_posix() for path in Path("i/seen").rglob("*.png"))
    assert written == ["i/seen/x/c_saw_mask.png", "i/seen/y/c_saw_mask.png"]


@pytest.mark.parametrize("missing", ["cat.png", "masks/coarse.png"])
def test_a_missing_file_is_one_line_and_exit_code_1(run: Run, engine: Engine, missing: str) -> None:
    picture_and_mask()
    Path(missing).unlink()
    assert_refused(run("cat.png", "masks/coarse.png"), 1, "no such file", missing)
    assert engine.made == []


def test_bad_input_is_one_line_without_a_traceback(run: Run, engine: Engine) -> None:
    picture_and_mask()
    engine.fails_on[200] = InputError("the mask has NaN;\n give 0..1")
    outcome = run("cat.png", "masks/coarse.png")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: cat.png: the mask has NaN;\\n give 0..1\n"
    assert not Path("masks/cat_mask.png").exists()


def test_an_unreadable_picture_is_one_line_and_exit_code_1(run: Run, engine: Engine) -> None:
    picture_and_mask()
    Path("cat.png").write_bytes(b"no picture")
    assert_refused(run("cat.png", "masks/coarse.png"), 1)


def test_a_fault_of_ours_keeps_its_traceback(run: Run, engine: Engine) -> None:
    picture_and_mask()
    engine.fails_on[200] = KeyError("ours")
    with pytest.raises(KeyError):
        run("cat.png", "masks/coarse.png")


@pytest.mark.parametrize(
    "failure",
    [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), RuntimeError("MPS backend out of memory")],
)
def test_too_little_memory_is_a_failed_file_and_not_a_crash(run: Run, engine: Engine, failure: Exception) -> None:
    pairs("a", "b")
    picture("i/a.png", 50)
    engine.fails_on[50] = failure
    outcome = run("i", "m", "-o", "out")
    assert outcome.code == 1
    assert "out of memory" in outcome.err
    assert "--max-memory" in outcome.err
    assert Path("out/b_mask.png").is_file()


def test_warnings_of_the_report_are_told_on_stderr_unless_quiet(run: Run, engine: Engine) -> None:
    picture_and_mask()
    engine.warnings = ["the mask is empty"]
    assert run("cat.png", "masks/coarse.png").err == "warning: cat.png: the mask is empty\n"
    outcome = run("cat.png", "masks/coarse.png", "--quiet")
    assert (outcome.out, outcome.err) == ("", "")


# Options


def test_options_reach_the_refiner_and_those_not_given_keep_its_defaults(run: Run, engine: Engine) -> None:
    picture_and_mask()
    run("cat.png", "masks/coarse.png")
    run("--model", "crm-r50", "--tile=512", "cat.png", "--dtype", "float32", "masks/coarse.png", "--device", "cpu")
    run("cat.png", "masks/coarse.png", "--weights", "w.pth")
    given = {"model": "crm-r50", "tile": 512, "dtype": "float32", "device": "cpu"}
    run("cat.png", "masks/coarse.png", "--allow-large", "--coarse-decode", "full")
    run("cat.png", "masks/coarse.png", "--no-guard")
    run("cat.png", "masks/coarse.png", "--lean", "-0.5", "--passes", "2")
    flags = [{"allow_large": True, "coarse_decode": "full"}, {"guard": False}, {"lean": -0.5, "passes": 2}]
    assert engine.made == [{}, given, {"weights": Path("w.pth")}, *flags]


@pytest.mark.parametrize(
    "refusal", [OptionError("unknown model 'x'; known are crm-s"), WeightsError("w.pth is damaged")]
)
def test_a_refused_option_or_weights_file_ends_at_once_with_exit_code_2(
    run: Run, engine: Engine, refusal: RefineError
) -> None:
    pairs("a", "b")
    engine.refuses = refusal
    outcome = run("i", "m", "-o", "out")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: {refusal}\n")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nope", "a", "b"], "No such option: --nope"),
        (["a", "b", "c"], "quote globs"),
        (["--tile", "big", "a", "b"], "--tile"),
        (["cat.png"], "no MASK"),
        (["a", "b", "--model"], "--model"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run: Run, engine: Engine, words: list[str], told: str) -> None:
    picture("cat.png")
    assert_refused(run(*words), 2, told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["", "m.png"], "a file's or folder's name is empty"),
        (["cat.png", ""], "a file's or folder's name is empty"),
        (["cat.png", "m.png", "-o", ""], "the value of -o is empty"),
        (["cat.png", "m.png", "--out="], "the value of --out is empty"),
        (["cat.png", "m.png", "--weights", ""], "the value of --weights is empty"),
        (["--weights=", "cat.png", "m.png"], "the value of --weights is empty"),
        (["--", "", "m.png"], "a file's or folder's name is empty"),
        (["evaluate", ""], "a file's or folder's name is empty"),
    ],
)
def test_an_empty_word_is_wrong_usage(run: Run, engine: Engine, words: list[str], told: str) -> None:
    assert_refused(run(*words), 2, told)
    assert engine.made == []


@pytest.mark.parametrize("option", ["-o", "--overlay", "--probability"])
def test_a_place_that_cannot_be_written_to_is_told_before_the_weights(run: Run, engine: Engine, option: str) -> None:
    picture_and_mask()
    pairs("a")
    Path("file").write_text("")
    for words in (("cat.png", "masks/coarse.png", option, "file/x.png"), ("i", "m", "-o", "out", option, "file/out")):
        assert_refused(run(*words), 1, "is a file; give a folder")
    assert engine.made == []
    assert not Path("out").exists()


@pytest.mark.parametrize("option", ["--overlay", "--probability"])
def test_the_mask_is_not_left_behind_where_another_picture_cannot_be_written(
    run: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def write(*_: object) -> None:
        raise FileError("the disk is full")

    picture_and_mask()
    monkeypatch.setattr("refine.io.write_image", write)
    monkeypatch.setattr("refine.io.write_probability", write)
    outcome = run("cat.png", "masks/coarse.png", "-o", "fine.png", option, "x.png")
    assert (outcome.code, outcome.out) == (1, "")
    assert "the disk is full" in outcome.err
    assert not Path("fine.png").exists()


# Many pairs


def test_folders_are_refined_with_their_sub_folders_and_weights_loaded_once(run: Run, engine: Engine) -> None:
    pairs("a", "sub/b")
    outcome = run("i", "m", "-o", "out", "--overlay", "see", "--probability", "p")
    assert outcome.code == 0
    assert outcome.err == "2 refined, 0 skipped, 0 failed\n"
    written = sorted(p.as_posix() for folder in ("out", "see", "p") for p in Path(folder).rglob("*.*"))
    assert written == [
        "out/a_mask.png",
        "out/sub/b_mask.png",
        "p/a_probability.png",
        "p/sub/b_probability.png",
        "see/a_overlay.jpg",
        "see/sub/b_overlay.jpg",
    ]
    assert len(engine.made) == 1


@pytest.mark.parametrize("folder", ["i", "m"])
@pytest.mark.parametrize("glob", ["", "/*"])
def test_a_second_run_into_a_folder_of_inputs_does_the_same(run: Run, engine: Engine, folder: str, glob: str) -> None:
    pairs("a", "b")
    words = (f"i{glob}", f"m{glob}", "-o", folder)
    first = run(*words)
    files = sorted(Path().rglob("*.*"))
    again = run(*words)
    assert (first.code, first.err) == (again.code, again.err) == (0, "2 refined, 0 skipped, 0 failed\n")
    skipped = run(*words, "--skip-existing")
    assert (skipped.code, skipped.err) == (0, "0 refined, 2 skipped, 0 failed\n")
    elsewhere = run(*words[:2], "-o", "out")
    assert (elsewhere.code, elsewhere.err) == (0, "2 refined, 0 skipped, 0 failed\n")
    assert sorted(path for path in Path().rglob("*.*") if path.parts[0] != "out") == files


def test_quoted_globs_are_refined(run: Run, engine: Engine) -> None:
    pairs("a", "b")
    assert run("i/*.png", "m/*.png", "-o", "out").code == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["a_mask.png", "b_mask.png"]


def test_one_folder_of_big_is_refined_without_a_mask_folder(run: Run, engine: Engine) -> None:
    picture("big/cat_im.png")
    coarse("big/cat_seg.png")
    assert run("big", "-o", "out").code == 0
    assert Path("out/cat_mask.png").is_file()


def test_one_failed_file_is_told_and_the_rest_is_done(run: Run, engine: Engine) -> None:
    pairs("a", "b", "c", "d")
    Path("i/a.png").write_bytes(b"no picture")
    picture("i/b.png", 50)
    engine.fails_on[50] = ZeroDivisionError("ours")
    outcome = run("i", "m", "-o", "out")
    assert outcome.code == 1
    assert sorted(p.name for p in Path("out").iterdir()) == ["c_mask.png", "d_mask.png"]
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("error: ")
    assert "a.png" in lines[0]
    assert f"{Path('i/b.png')}: unexpected ZeroDivisionError: ours" in lines[1]
    assert lines[2] == "2 refined, 0 skipped, 2 failed"


def test_an_ambiguous_match_fails_for_that_image_only(run: Run, engine: Engine) -> None:
    pairs("a", "b")
    picture("i/a.jpg")
    outcome = run("i", "m", "-o", "out")
    assert outcome.code == 1
    assert [p.name for p in Path("out").iterdir()] == ["b_mask.png"]
    assert "1 refined, 0 skipped, 2 failed" in outcome.err


def test_a_picture_that_is_left_out_is_a_failure_and_other_files_are_counted(run: Run, engine: Engine) -> None:
    pairs("a", "b")
    Path("i/b.png").rename("i/b")
    coarse("m/.sub/c.png")
    picture("i/.sub/c.jpg")
    Path("i/README").write_text("mine")
    left_out = "error: 2 pictures left out: i/b (no suffix), i/.sub/c.jpg (hidden); rename or convert what you mean"
    others = "1 other file left alone: i/README"
    outcome = run("i", "m", "-o", "out")
    assert outcome.code == 1
    assert outcome.err.splitlines()[:3] == [left_out, "warning: 1 mask without an image left out: m/b.png", others]
    assert run("i", "m", "-o", "out", "-q").err == f"{left_out}\n"
    outcome = run("i", "m", "-o", "out", "--json")
    assert outcome.code == 1
    assert "1 refined, 0 skipped, 0 failed, 2 left out" in outcome.err
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line for line in lines if line["status"] == "left out"] == [
        {"status": "left out", "image": "i/b", "reason": "no suffix"},
        {"status": "left out", "image": "i/.sub/c.jpg", "reason": "hidden"},
        {"status": "left out", "mask": "m/b.png", "reason": "without an image"},
        {"status": "left out", "files": 1, "names": ["i/README"], "reason": "files of other kinds"},
    ]


def test_a_plan_tells_of_what_is_left_out_and_of_missing_masks(run: Run) -> None:
    pairs("a", "b")
    Path("i/b.png").rename("i/b")
    Path("empty").mkdir()
    outcome = run("i", "m", "-o", "out", "--dry-run")
    assert outcome.code == 1
    assert outcome.out.startswith("i/a.png: ")
    assert outcome.err.startswith("error: 1 picture left out: i/b (no suffix); rename or convert what you mean\n")
    assert_refused(run("i", "empty", "-o", "out", "--dry-run"), 1, "0 masks in 'empty'", "every image needs a coarse")


def test_an_empty_output_is_none_for_skip_existing(run: Run, engine: Engine) -> None:
    pairs("a", "b")
    Path("out").mkdir()
    Path("out/a_mask.png").touch()
    coarse("out/b_mask.png")
    outcome = run("i", "m", "-o", "out", "--skip-existing")
    assert "1 refined, 1 skipped, 0 failed" in outcome.err
    assert opened("out/a_mask.png").shape == (4, 6)


@pytest.mark.parametrize("suffix", ["jpe", "jfif", "gif"])
def test_pictures_of_rarer_suffixes_are_refined(run: Run, engine: Engine, suffix: str) -> None:
    coarse("m/a.png")
    Path("i").mkdir()
    Image.new("RGB", (6, 4), (200, 0, 0)).save(f"i/a.{suffix}", "GIF" if suffix == "gif" else "JPEG")
    outcome = run("i", "m", "-o", "out")
    assert (outcome.code, engine.refined) == (0, 1)


def test_a_position_that_png_does_not_hold_is_told(run: Run) -> None:
    tags = [(33550, 12, 3, (1.0, 1.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 46e5, 0.0), True)]
    Path("i").mkdir()
    tifffile.imwrite("i/a.tif", np.full((4, 6, 3), 200, np.uint8), photometric="rgb", extratags=tags)
    coarse("m/a.png")
    outcome = run("i/a.tif", "m/a.png", "-o", "a.png", "--model", "coarse", "--json")
    text = "a.png: the image's place on Earth is not kept in .png; save it as .tif"
    assert f"warning: i/a.tif: {text}" in outcome.err
    assert json.loads(outcome.out)["report"]["warnings"][-1] == text
    assert "place on Earth" not in run("i/a.tif", "m/a.png", "-o", "a.tif", "--model", "coarse").err


def test_files_without_a_partner_are_told_and_no_failure(run: Run, engine: Engine) -> None:
    pairs("a")
    for number in range(7):
        picture(f"i/lone{number}.png")
    outcome = run("i", "m", "-o", "out")
    assert outcome.code == 0
    assert "warning: 7 images without a mask left out: " in outcome.err
    assert "and 2 more" in outcome.err


def test_nothing_to_match_is_exit_code_1(run: Run, engine: Engine) -> None:
    picture("i/a.png")
    coarse("m/b.png")
    outcome = run("i", "m", "-o", "out")
    assert (outcome.code, outcome.out) == (1, "")
    assert "no image and mask belong together" in outcome.err


def test_many_images_without_an_output_folder_are_wrong_usage(run: Run, engine: Engine) -> None:
    pairs("a")
    assert run("i", "m").code == 2


def test_an_interrupted_run_is_resumed_with_skip_existing(run: Run, engine: Engine) -> None:
    pairs("a", "b", "c")
    picture("i/b.png", 50)
    engine.fails_on[50] = KeyboardInterrupt()
    outcome = run("i", "m", "-o", "out")
    assert outcome.code == 130
    assert outcome.err == "error: interrupted: 1 of 3 refined; --skip-existing goes on from here\n"
    engine.fails_on.clear()
    outcome = run("i", "m", "-o", "out", "--skip-existing")
    assert outcome.code == 0
    assert "2 refined, 1 skipped, 0 failed" in outcome.err
    assert engine.refined == 3


@pytest.mark.parametrize(
    ("terminal", "words", "shown"),
    [(True, [], True), (True, ["--quiet"], False), (False, [], False)],
)
def test_the_progress_bar_is_for_terminals(
    run: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch, terminal: bool, words: list[str], shown: bool
) -> None:
    pairs("a", "b")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert ("2/2" in run("i", "m", "-o", "out", *words).err) is shown


def test_one_pair_has_no_progress_bar(run: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    picture_and_mask()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("cat.png", "masks/coarse.png").err == ""


# JSON


def test_json_is_one_line_per_pair_and_nothing_else(run: Run, engine: Engine) -> None:
    pairs("a", "b", "c")
    picture("i/b.png", 50)
    engine.fails_on[50] = InputError("wrong size")
    Path("out").mkdir()
    Path("out/c_mask.png").write_bytes(b"old")
    outcome = run("i", "m", "-o", "out", "--json", "--skip-existing")
    assert outcome.code == 1
    records = {record["image"]: record for record in map(json.loads, outcome.out.splitlines())}
    a, b, c = (str(Path(f"i/{name}.png")) for name in "abc")
    assert records[a] == {
        "status": "done",
        "image": a,
        "mask": str(Path("m/a.png")),
        "output": str(Path("out/a_mask.png")),
        "report": {"seconds": 1.5, "device": "cpu"},
    }
    assert (records[b]["status"], records[b]["error"]) == ("failed", "wrong size")
    assert records[c]["status"] == "skipped"
    assert f"error: {b}: wrong size" in outcome.err


def test_json_tells_a_missing_file_too(run: Run, engine: Engine) -> None:
    outcome = run("a.png", "b.png", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["status"] == "failed"


# Which word is a command


@pytest.fixture
def info(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Replaces what `info` prints by a note that it was called."""
    called: list[bool] = []
    fake("refine.checkpoint", weights_dir=lambda: Path("w"))
    fake("refine.devices", resolve_device=lambda name: "cpu", resolve_dtype=lambda name, device: "torch.float32")
    fake("refine.models", PRESETS={"crm-s": None})
    monkeypatch.setattr("refine.cli._print_table", lambda facts, as_json: called.append(as_json))
    return called


@pytest.mark.parametrize(
    ("words", "as_json"), [(["info"], False), (["info", "--json"], True), (["--json", "info"], True)]
)
def test_the_name_of_a_command_as_first_word_is_the_command(
    run: Run, info: list[bool], words: list[str], as_json: bool
) -> None:
    assert run(*words).code == 0
    assert info == [as_json]


@pytest.mark.parametrize("words", [["./info", "m"], ["--", "info", "m"], ["m", "info"], ["-o", "info.png", "i", "m"]])
def test_a_path_is_never_a_command(run: Run, engine: Engine, info: list[bool], words: list[str]) -> None:
    outcome = run(*words)
    assert "no such file" in outcome.err
    assert info == []


@pytest.mark.parametrize("words", [["-qo", "info"], ["-qoinfo"], ["--out=info"], ["-q", "--device", "info"]])
def test_the_value_of_an_option_is_never_a_command(
    run: Run, engine: Engine, info: list[bool], words: list[str]
) -> None:
    picture_and_mask()
    Path("info").mkdir()
    assert run(*words, "cat.png", "masks/coarse.png").code == 0
    assert info == []
    assert engine.refined == 1


def test_folders_named_like_commands_are_reached_as_paths(run: Run, engine: Engine) -> None:
    picture("weights/cat_im.png")
    coarse("weights/cat_seg.png")
    assert run("./weights", "-o", "out").code == 0
    assert Path("out/cat_mask.png").is_file()


# Help


def test_help_shows_usage_examples_options_and_commands(run: Run) -> None:
    outcome = run("--help")
    assert (outcome.code, outcome.err) == (0, "")
    for text in (
        "Usage: refine-cli [OPTIONS] IMAGE MASK",
        "Examples:",
        "--skip-existing",
        "demo ",
        "info ",
        "weights ",
    ):
        assert text in outcome.out
    assert "(main)" not in outcome.out
    assert run("cat.png", "-h").out == outcome.out


def test_no_words_at_all_show_the_help_with_exit_code_2(run: Run) -> None:
    outcome = run()
    assert outcome.code == 2
    assert outcome.out.startswith("Usage: ")


def test_version_is_printed(run: Run) -> None:
    outcome = run("--version")
    assert outcome.code == 0
    assert outcome.out == f"refine-cli {refine.__version__}\n"


def test_the_version_is_known_where_nothing_is_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert run("--version").out == f"refine-cli {refine.__version__}\n"
    assert json.loads(run("info", "--json").out)["refine"] == refine.__version__


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["weights", "--help"], ["--nope"]])
def test_help_loads_no_torch_numpy_or_opencv(words: list[str]) -> None:
    code = (
        "import sys\nimport refine\nfrom refine.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "sys.exit(' '.join({'torch', 'numpy', 'cv2', 'numba', 'PIL', 'tqdm'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(refine.__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr


# The other commands


@dataclass
class Entry:
    name: str = "crm-s"
    model: str = "crm-s"
    path: Path = Path("w/crm-s.safetensors")
    sha256: str = "0123456789abcdef"
    bytes: int = 12_300_000
    licence: str = "CC BY"
    data: str = "ours"


@pytest.fixture
def checkpoint(fake: Fake) -> types.ModuleType:
    def import_published(source: Path, destination: Path, model: str = "crm-r50") -> None:
        destination.write_text(f"{model} from {source}")

    fake("refine.loading", import_published=import_published)
    return fake("refine.checkpoint", manifest=lambda: [Entry()], weights_dir=lambda: Path("w"))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
def test_weights_list_is_a_table(run: Run, checkpoint: types.ModuleType) -> None:
    heading, row, *others = run("weights", "list").out.splitlines()
    assert heading.split() == ["NAME", "MODEL", "SIZE", "SHA256", "THERE", "LICENCE"]
    assert row.split(maxsplit=6) == ["crm-s", "crm-s", "12.3", "MB", "0123456789ab", "ships", "CC BY"]
    assert [line.split()[0] for line in others] == list(PUBLISHED) == ["sam-vit-b", "sam-vit-l", "sam-vit-h"]
    assert others[0].split() == ["sam-vit-b", "segment-anything", "375.0", "MB", "ec2df6273261", "no", "Apache-2.0"]


def test_weights_list_says_which_downloads_are_there(run: Run, checkpoint: types.ModuleType, cache: Path) -> None:
    (cache / "weights").mkdir(parents=True)
    for name, size in (("sam-vit-b", PUBLISHED["sam-vit-b"].bytes), ("sam-vit-l", 5)):
        with PUBLISHED[name].path.open("wb") as file:
            file.truncate(size)  # takes no room
    entries = {entry["name"]: entry for entry in json.loads(run("weights", "list", "--json").out)}
    assert [entries[name]["there"] for name in PUBLISHED] == ["downloaded", "damaged", "no"]
    assert entries["sam-vit-h"]["path"] == str(PUBLISHED["sam-vit-h"].path)
    assert entries["sam-vit-h"]["url"].startswith("https://")


def test_weights_list_as_json_has_every_field(run: Run, checkpoint: types.ModuleType) -> None:
    entry, *_ = json.loads(run("weights", "list", "--json").out)
    assert (entry["sha256"], entry["bytes"], entry["data"]) == ("0123456789abcdef", 12_300_000, "ours")


def test_weights_import_writes_safetensors_beside_the_checkpoint(run: Run, checkpoint: types.ModuleType) -> None:
    Path("crm.pth").write_text("")
    assert run("weights", "import", "crm.pth").out == "crm.safetensors\n"
    assert Path("crm.safetensors").read_text() == "crm-r50 from crm.pth"
    assert run("weights", "import", "crm.pth", "-o", "x.safetensors", "--model", "crm-s").code == 0
    assert Path("x.safetensors").read_text() == "crm-s from crm.pth"


def test_weights_import_never_replaces_the_checkpoint(run: Run, checkpoint: types.ModuleType) -> None:
    Path("crm.safetensors").write_text("mine")
    assert run("weights", "import", "crm.safetensors").code == 2
    assert Path("crm.safetensors").read_text() == "mine"


def test_weights_import_of_a_bad_file_is_one_line(run: Run, checkpoint: types.ModuleType) -> None:
    outcome = run("weights", "import", "crm.pth")
    told = "is no file; give a published checkpoint (.pth)"
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"error: crm.pth: {told}\n")
    assert_refused(run("weights", "import", "."), 2, told)


@pytest.mark.parametrize("words", [["weights", "nope"], ["weights", "import"], ["weights"]])
def test_wrong_usage_of_a_command_is_exit_code_2(run: Run, words: list[str]) -> None:
    assert run(*words).code == 2


def test_demo_prints_its_figures(run: Run, fake: Fake) -> None:
    def run_demo(out: Path, **options: Any) -> dict[str, Any]:
        return {"out": out, "seconds": 1.23456, **options}

    fake("refine.demo", run_demo=run_demo)
    assert "seconds  1.235\n" in run("demo", "--out", "d").out
    figures = json.loads(run("demo", "--json", "--seed", "3", "--dtype", "float32").out)
    assert figures == {
        "out": "refine-demo",
        "seconds": 1.23456,
        "seed": 3,
        "dtype": "float32",
        "model": "crm-s",
        "device": "auto",
    }


def test_an_interrupt_anywhere_is_exit_code_130_and_one_line(
    run: Run, checkpoint: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def manifest() -> list[Entry]:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "manifest", manifest)
    outcome = run("weights", "list")
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


@pytest.fixture
def evaluated(fake: Fake) -> dict[str, Any]:
    """What `evaluate` was called with."""
    seen: dict[str, Any] = {}

    def evaluate_command(data: list[Path], choices: list[Any], **options: Any) -> Any:
        seen.update(data=data, choices=choices, **options)
        return types.SimpleNamespace(failures=seen.get("failures", []))

    fake("refine.evaluation", evaluate_command=evaluate_command)
    return seen


def test_evaluate_passes_its_options_on(run: Run, evaluated: dict[str, Any]) -> None:
    words = (
        "evaluate a b --limit 2 --tile 64 --coarse-decode full -o out --device cpu --coarse c --masks d --model crm-s"
    )
    assert run(*words.split()).code == 0
    assert evaluated == {
        "data": [Path("a"), Path("b")],
        "choices": [{"model": "crm-s", "device": "cpu", "tile": 64, "coarse_decode": "full"}],
        "guided_weights": [],
        "coarse": [Path("c")],
        "masks": [Path("d")],
        "table": None,
        "limit": 2,
        "white": None,
        "out": Path("out"),
    }


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        ("", [{"model": "crm-s"}]),
        ("--masks m", []),
        ("--masks m --lean 1", [{"model": "crm-s", "lean": 1.0}]),
        ("--dtype float32 --dtype bfloat16", [{"dtype": "float32"}, {"dtype": "bfloat16"}]),
        (
            "--model crm-s,crm-r50 --decode dense,bbox",
            [
                {"model": "crm-s", "decode": "dense"},
                {"model": "crm-s", "decode": "bbox"},
                {"model": "crm-r50", "decode": "dense"},
                {"model": "crm-r50", "decode": "bbox"},
            ],
        ),
        (
            "--decode dense,strided,contour --stride 2 --band 9",
            [
                {"decode": "dense"},
                {"decode": "strided", "stride": 2, "band": 9},
                {"decode": "contour", "band": 9},
            ],
        ),
        (
            "--model crm-s,guided-filter --decode dense,bbox --set radius=0.02",
            [{"decode": "dense"}, {"decode": "bbox"}, {"model": "guided-filter", "radius": 0.02}],
        ),
        ("--model crm-s,guided-filter --lean 0 --passes 2", [{"lean": 0.0, "passes": 2}, {"model": "guided-filter"}]),
        ("--model grabcut --set rounds=3", [{"model": "grabcut", "rounds": 3}]),
        ("--table thesis-4.1", [{"model": "crm-r50", "dtype": "float32"}]),
        ("--table thesis-4.1 --model crm-s --dtype auto", [{"dtype": "auto"}]),
    ],
)
def test_evaluate_measures_every_combination(run: Run, evaluated: dict[str, Any], words: str, choices: list) -> None:
    assert run("evaluate", "data", *words.split()).code == 0
    assert evaluated["choices"] == [{"model": "crm-s"} | choice for choice in choices]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--decode dense,bbox --stride 4", "--stride means nothing with --decode dense"),
        ("--model crm-s,crm-r50 --weights w.pth", "belong to one network, and here are crm-s, crm-r50"),
        ("--table thesis-4.2 --decode dense", "leave out --decode"),
        ("--table thesis-4.2 --model crm-s,crm-r50", "leave out --decode"),
    ],
)
def test_evaluate_refuses_what_does_not_go_together(run: Run, evaluated: dict, words: str, told: str) -> None:
    assert_refused(run("evaluate", "data", *words.split()), 2, told)
    assert not evaluated


def test_a_picture_that_failed_shows_in_evaluates_exit_code(run: Run, evaluated: dict[str, Any]) -> None:
    evaluated["failures"] = ["a"]
    assert run("evaluate", "data").code == 1


# With the real refiner and the weights that ship


@pytest.fixture
def real() -> None:
    """Skips where no weights ship; damaged ones are a failure."""
    if not shipped():
        pytest.skip("no weights ship with this checkout")


def scene() -> None:
    """A disc, its mask, and other masks that do not go with it."""
    y, x = np.mgrid[:72, :96]
    disc = (y - 36) ** 2 + (x - 48) ** 2 < 24**2
    colours = np.where(disc[..., None], np.uint8((220, 60, 40)), np.uint8((30, 90, 160)))
    Image.fromarray(colours).save("disc.png")
    Image.fromarray(disc[::2, ::2].astype(np.uint8) * np.uint8(255)).save("coarse.png")
    Image.fromarray(np.zeros((72, 40), np.uint8)).save("narrow.png")
    Image.fromarray(np.zeros((36, 48), np.uint8)).save("empty.png")
    np.save("nan.npy", np.full((72, 96), np.nan, np.float32))


@pytest.mark.usefixtures("real")
def test_a_picture_is_refined_from_the_command_line(run: Run) -> None:
    scene()
    words = ["--dtype", "float32", "--device", "cpu", "--json", "--overlay", "o.jpg", "--probability", "p.npy"]
    outcome = run("disc.png", "coarse.png", "-o", "fine.png", *words)
    assert (outcome.code, outcome.err) == (0, "")
    record = json.loads(outcome.out)
    assert (record["status"], record["report"]["device"], record["report"]["dtype"]) == ("done", "cpu", "float32")
    mask = opened("fine.png")
    assert mask.shape == (72, 96)
    assert set(np.unique(mask)) <= {0, 255}
    assert np.array_equal(mask > 0, np.load("p.npy") > 0.5)
    assert opened("o.jpg").shape == (72, 96, 3)


@pytest.mark.usefixtures("real")
def test_an_empty_mask_is_returned_with_a_warning(run: Run) -> None:
    scene()
    outcome = run("disc.png", "empty.png", "-o", "fine.png")
    assert outcome.code == 0
    assert outcome.err.startswith("warning: disc.png: ")
    assert not opened("fine.png").any()


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("mask", ["narrow.png", "nan.npy", "disc.png"])
def test_a_mask_that_does_not_fit_is_one_line_and_nothing_is_written(run: Run, mask: str) -> None:
    scene()
    assert_refused(run("disc.png", mask, "-o", "fine.png"), 1)
    assert not Path("fine.png").exists()


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("--model", "nope", "crm-s"),
        ("--dtype", "float8", "bfloat16"),
        ("--device", "abacus", "cpu"),
        ("--tile", "1", "32"),
        ("--weights", "nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_an_impossible_option_is_told_with_the_known_ones(run: Run, option: str, value: str, known: str) -> None:
    scene()
    assert_refused(run("disc.png", "coarse.png", "-o", "fine.png", option, value), 2, known)


@pytest.mark.usefixtures("real")
def test_info_tells_versions_devices_and_folders(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path / "kept"))
    facts = json.loads(run("info", "--json").out)
    assert "cpu" in facts["devices"][0]
    assert facts["dtype"] in ("float32", "bfloat16", "float16")
    assert "crm-s" in facts["models"]
    assert Path(facts["weights"]).is_dir()
    assert Path(facts["cache"]) == tmp_path / "kept"
    assert "threads" in run("info").out


@pytest.mark.usefixtures("real")
def test_the_weights_that_ship_are_listed(run: Run) -> None:
    assert "crm-s" in run("weights", "list").out
    assert "crm-s" in {entry["model"] for entry in json.loads(run("weights", "list", "--json").out)}


def grey_tiff(path: str, colours: np.ndarray) -> np.ndarray:
    tifffile.imwrite(path, colours[..., 1], photometric="minisblack")
    return np.stack([colours[..., 1]] * 3, axis=2)


def tiff_of_16_bits(path: str, colours: np.ndarray) -> np.ndarray:
    samples = colours.astype(np.uint16) * 257 + np.arange(3, dtype=np.uint16) * 40
    tifffile.imwrite(path, samples, photometric="rgb")
    return np.rint(samples / 257).astype(np.uint8)


def cmyk_jpeg(path: str, colours: np.ndarray) -> np.ndarray:
    Image.fromarray(colours).convert("CMYK").save(path, quality=95)
    with Image.open(path) as picture:
        assert picture.mode == "CMYK"
        return np.asarray(picture.convert("RGB"))


def turned_jpeg(path: str, colours: np.ndarray) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(colours)).save(path, quality=95, exif=exif)
    with Image.open(path) as picture:
        assert picture.size == colours.shape[:2]
        return np.asarray(ImageOps.exif_transpose(picture))


def rgba_png(path: str, colours: np.ndarray) -> np.ndarray:
    alpha = np.full((*colours.shape[:2], 1), 128, np.uint8)
    alpha[:9] = 0
    Image.fromarray(np.concatenate([colours, alpha], axis=2)).save(path)
    return colours


def palette_png(path: str, colours: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(colours).quantize(8)
    picture.save(path)
    return np.asarray(picture.convert("RGB"))


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cmyk.jpg", cmyk_jpeg),
        ("turned.jpg", turned_jpeg),
        ("rgba.png", rgba_png),
        ("palette.png", palette_png),
        ("grey.tif", grey_tiff),
        ("deep.tif", tiff_of_16_bits),
    ],
)
def test_a_file_is_refined_as_the_picture_that_it_displays(
    run: Run, name: str, write: Callable[[str, np.ndarray], np.ndarray]
) -> None:
    scene()
    displayed = write(name, opened("disc.png"))
    assert displayed.shape == (72, 96, 3)
    outcome = run(name, "coarse.png", "-o", "fine.png", "--probability", "p.npy", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    wanted = refine.Refiner(device="cpu").refine(displayed, opened("coarse.png"))
    assert wanted.mask.any()
    np.testing.assert_array_equal(np.load("p.npy"), wanted.probability)
    np.testing.assert_array_equal(opened("fine.png") > 0, wanted.mask)


def test_a_stride_alone_asks_for_strided_decoding(run, engine):
    picture_and_mask()
    run("cat.png", "masks/coarse.png", "--stride", "4")
    run("cat.png", "masks/coarse.png", "--first-pass", "everywhere")
    run("cat.png", "masks/coarse.png", "--decode", "contour", "--band", "9")
    run("cat.png", "masks/coarse.png", "--decode", "bbox", "--padding", "5", "--max-memory", "2GiB")
    run("cat.png", "masks/coarse.png", "--padding", "5")
    assert engine.made == [
        {"decode": "strided", "stride": 4},
        {"decode": "strided", "first_pass": "everywhere"},
        {"decode": "contour", "band": 9},
        {"decode": "bbox", "padding": 5, "max_memory": "2GiB"},
        {"decode": "bbox", "padding": 5},
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--decode", "contour", "--stride", "4"],
            "--stride means nothing with --decode contour; it belongs to strided",
        ),
        (["--decode", "dense", "--band", "4"], "it belongs to strided and contour"),
        (["--decode", "strided", "--padding", "4"], "it belongs to bbox"),
        (["--stride", "4", "--padding", "4"], "--padding means nothing with --decode strided; it belongs to bbox"),
        (["--padding", "4", "--band", "4"], "--band means nothing with --decode bbox"),
    ],
)
def test_an_option_of_another_policy_is_wrong_usage(run, words, told):
    picture_and_mask()
    assert_refused(run("cat.png", "masks/coarse.png", *words), 2, told)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_band_alone_is_wrong_usage_where_the_models_own_policy_has_none(run, engine, dry):
    picture_and_mask()
    engine.spec = types.SimpleNamespace(cascade=types.SimpleNamespace(decode="dense"))
    told = "--band means nothing with --decode dense; it belongs to strided and contour"
    assert_refused(run("cat.png", "masks/coarse.png", "--band", "9", *dry), 2, told)
    engine.spec.cascade.decode = "strided"
    assert run("cat.png", "masks/coarse.png", "--band", "9").code == 0
    assert engine.made[-1] == {"band": 9}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--guidance", "sam-sr-v1", "--set", "groups=3"], "--set groups means nothing with sam-sr-v1; it belongs to"),
        (["--guidance", "sam-sr-v1", "--set", "seed=3"], "it belongs to sam-sr-v2.1 and sam-sr-v2.2"),
        (["--model", "crm-s+v2.2", "--set", "coverage=1"], "means nothing with sam-sr-v2.2; it belongs to sam-sr-v1"),
        (["--set", "groups=3"], "--set groups belongs to guidance, and there is none"),
    ],
)
def test_an_option_of_another_version_of_guidance_is_wrong_usage(run, engine, words, told):
    picture_and_mask()
    assert_refused(run("cat.png", "masks/coarse.png", *words), 2, told)
    assert engine.made == []


def test_the_help_tells_decode_stride_from_crop_stride(run):
    assert "not of crops" in " ".join(run("--help").out.split())


def test_a_dry_run_prints_the_plan_and_does_nothing(run):
    picture_and_mask()
    words = ("cat.png", "masks/coarse.png", "--dry-run", "--device", "cpu")
    outcome = run(*words, "-o", "fine.png", "--max-memory", "2GiB")
    assert outcome.code == 0, outcome.err
    assert "4 x 6 (H x W), in memory" in outcome.out
    assert "at most 2.00 GiB" in outcome.out
    assert not Path("fine.png").exists()
    found = json.loads(run(*words, "--json").out)
    assert found["status"] == "planned"
    assert found["plan"]["size"] == [4, 6]
    too_little = run(*words, "--max-memory", "1MB")
    assert too_little.code == 1
    assert "are needed" in too_little.err


def test_a_dry_run_tells_ambiguous_images_as_the_run_does(run):
    pairs("a", "b")
    picture("i/a.jpg")
    outcome = run("i", "m", "-o", "out", "--dry-run", "--device", "cpu")
    assert outcome.code == 1
    assert outcome.err.count("error: ") == 2
    assert "4 x 6 (H x W), in memory" in outcome.out


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", ["turned.tif", "png.tif", "cmyk.tif"])
def test_a_small_picture_that_has_no_windows_may_have_a_tiff_for_output(run, name):
    scene()
    colours = opened("disc.png")
    tifffile.imwrite("turned.tif", np.rot90(colours), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    Path("png.tif").write_bytes(Path("disc.png").read_bytes())
    inks = np.dstack([255 - colours, np.zeros(colours.shape[:2], np.uint8)]).astype(np.uint16) * 257
    tifffile.imwrite("cmyk.tif", inks, photometric="separated")
    Image.open("coarse.png").save("coarse.tif")
    words = (name, "coarse.tif", "-o", "fine.tif", "--device", "cpu")
    dry = run(*words, "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert "72 x 96 (H x W), in memory" in dry.out
    assert run(*words).code == 0
    assert opened("fine.tif").shape == (72, 96)


@pytest.mark.usefixtures("real")
def test_a_dry_run_reads_large_pictures_where_the_run_does(run, monkeypatch):
    picture_and_mask()
    monkeypatch.setattr("refine.io.MAX_PIXELS", 4 * 6 - 1)
    words = ("cat.png", "masks/coarse.png", "--dry-run", "--device", "cpu")
    assert_refused(run(*words), 1, "above the limit")
    assert run(*words, "--allow-large").code == 0


@pytest.mark.usefixtures("real")
def test_a_large_tiff_that_has_no_windows_is_told_by_a_dry_run_too(run, monkeypatch):
    scene()
    tifffile.imwrite("turned.tif", np.rot90(opened("disc.png")), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    Image.open("coarse.png").save("coarse.tif")
    monkeypatch.setattr("refine.io.MAX_PIXELS", 72 * 96 - 1)
    words = ("turned.tif", "coarse.tif", "-o", "fine.tif", "--device", "cpu")
    assert_refused(run(*words), 1, "save it upright")
    assert_refused(run(*words, "--dry-run"), 1, "save it upright")


# What the system refuses


@pytest.mark.parametrize("words", [["NAME.png", "m.png"], ["i.png", "NAME.png"], ["i.png", "m.png", "-o", "NAME.png"]])
def test_a_name_that_is_too_long_is_one_line(run, engine, words):
    picture("i.png")
    coarse("m.png")
    assert_refused(run(*(word.replace("NAME", "x" * 300) for word in words)), 1, "File name too long")


def test_a_stem_too_long_for_its_output_fails_alone(run, engine):
    pairs("a", "b" * 248)
    Path("out").mkdir()
    outcome = run("i", "m", "-o", "out", "--skip-existing")
    assert outcome.code == 1
    assert outcome.err.endswith("1 refined, 0 skipped, 1 failed\n")
    assert [path.name for path in Path("out").iterdir()] == ["a_mask.png"]


@pytest.mark.parametrize("locked", ["cat.png", "masks"])
def test_what_may_not_be_looked_at_is_one_line(run, engine, monkeypatch, locked):
    def look(path, **options):
        if Path(locked) in (Path(path), Path(path).parent):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return os_stat(path, **options)

    os_stat = os.stat
    picture_and_mask()
    monkeypatch.setattr(os, "stat", look)  # root may look at everything
    outcome = run("cat.png", "masks/coarse.png", "-o", "fine.png")
    monkeypatch.undo()
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "Permission denied" in outcome.err


def test_what_the_system_refuses_anywhere_is_one_line(run, fake):
    def run_demo(out: Path, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "d/scene.png")

    fake("refine.demo", run_demo=run_demo)
    assert_refused(run("demo", "-o", "d"), 1, "No space left on device: 'd/scene.png'")


def test_a_closed_pipe_is_left_to_the_interpreter(run, fake):
    def run_demo(out: Path, **options: Any) -> None:
        raise BrokenPipeError

    fake("refine.demo", run_demo=run_demo)
    with pytest.raises(BrokenPipeError):
        run("demo", "-o", "d")


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8:strict", b"caf\xe9.png"),
        ("ascii", "caf\xe9.png".encode()),
        ("latin-1", "\u65e5\u672c.png".encode()),
        ("latin-1", "\U0001f408.png".encode()),
    ],
)
def test_a_name_that_cannot_be_printed_stops_nothing(tmp_path, encoding, name):
    for folder, kind in (("i", "RGB"), ("m", "L")):
        (tmp_path / folder).mkdir()
        for stem in (name, b"z.png"):
            with open(os.path.join(os.fsencode(tmp_path / folder), stem), "wb") as file:
                Image.new(kind, (6, 4)).save(file, "PNG")
    words = [sys.executable, "-m", "refine.cli", "i", "m", "-o", "out", "--model", "coarse", "--skip-existing"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)}
    for extra in ([], ["--json"]):
        done = subprocess.run([*words, *extra], capture_output=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2
    assert {os.fsencode(json.loads(line)["image"]) for line in done.stdout.splitlines()} == {b"i/" + name, b"i/z.png"}


def test_a_tiff_that_does_not_fit_is_refined_by_windows(run, monkeypatch):
    rng = np.random.default_rng(0)
    tifffile.imwrite("cat.tif", rng.integers(0, 256, (90, 120, 3), np.uint8), photometric="rgb")
    mask = np.zeros((90, 120), np.uint8)
    mask[20:60, 30:90] = 255
    tifffile.imwrite("coarse.tif", mask)
    words = ("cat.tif", "coarse.tif", "--device", "cpu", "--dtype", "float32")
    assert run(*words, "-o", "whole.tif").code == 0
    monkeypatch.setattr("refine.io.MAX_PIXELS", 90 * 120 - 1)
    assert "by windows of the files" in run(*words, "-o", "fine.tif", "--dry-run").out
    outcome = run(*words, "-o", "fine.tif")
    assert outcome.code == 0, outcome.err
    np.testing.assert_array_equal(
        io.read_mask("fine.tif", allow_large=True), io.read_mask("whole.tif", allow_large=True)
    )
    refused = run(*words, "-o", "fine.tif", "--overlay", "look.png")
    assert refused.code != 0
    assert "need the picture in memory" in refused.err


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_picture_given_as_its_own_mask_is_told_with_the_remedy(run, more):
    remedy = "give the mask that belongs to it, as from a network or a thresholding"
    picture("a.png")
    assert_refused(run("a.png", "a.png", "-o", "o.png", *more), 1, f"is the image itself; {remedy}")
    for name in ("images/a.png", "masks/a.png"):
        picture(name)
    assert_refused(run("images/a.png", "masks/a.png", *more), 1, f"holds the same as the image images/a.png; {remedy}")
    outcome = run("images", "masks", "-o", "out", *more)
    assert outcome.code == 1
    assert f"error: masks/a.png: given as the coarse mask, and holds the same as the image images/a.png; {remedy}" in (
        outcome.err
    )


@pytest.mark.parametrize("words", [("run", "a", "b"), ("--json", "predict", "x", "y", "z")])
def test_a_word_that_is_no_command_is_told_with_those_there_are(run, words):
    assert_refused(run(*words), 2, "no such file, folder or command", "the commands are proposals, evaluate, train")


def test_the_white_of_an_image_is_an_option(run):
    coarse("m.png")
    tifffile.imwrite("dark.tif", np.arange(72, dtype=np.uint16).reshape(4, 6, 3) * 56, photometric="rgb")
    words = ("dark.tif", "m.png", "--model", "coarse", "-o", "o.png")
    assert_refused(run(*words), 1, "white=4095 (--white 4095)")
    assert run(*words, "--white", "4080").code == 0
    assert_refused(run(*words, "--white=-3"), 2, "white=-3.0 is not possible")
    assert "--white NUMBER" in run("--help").out


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("evalute", "x"), "evaluate"),
        (("evalute", "x", "--dry-run"), "evaluate"),
        (("evalute", "x", "y", "-o", "z"), "evaluate"),
        (("Weigths", "list"), "weights"),
        (("tarin", "--data", "x", "-o", "y"), "train"),
        (("-q", "coarse-mask", "x"), "coarse-masks"),
    ],
)
def test_a_misspelt_command_is_told_with_the_one_that_is_meant(run, words, command):
    assert_refused(run(*words), 2, f"did you mean the command {command}; see refine-cli --help")


def test_a_folder_that_is_named_like_a_command_is_a_folder(run):
    picture("evalute/a_im.png")
    coarse("evalute/a_seg.png")
    assert run("evalute", "-o", "out", "--model", "coarse").code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_mask_is_written_where_a_stream_is_closed(tmp_path, monkeypatch, closed):
    monkeypatch.chdir(tmp_path)
    picture_and_mask()
    command = f"{sys.executable} -m refine.cli cat.png masks/coarse.png -o out.png --model coarse {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert opened("out.png").all()


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell has the pipe")
def test_all_masks_are_written_where_nobody_reads_what_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs("a", "b", "c")
    here, there = os.pipe()
    os.close(here)
    words = [sys.executable, "-m", "refine.cli", "i", "m", "-o", "out", "--model", "coarse"]
    done = subprocess.run(words, stdout=there, stderr=subprocess.PIPE, check=False)
    os.close(there)
    assert (done.returncode, sorted(os.listdir("out"))) == (0, ["a_mask.png", "b_mask.png", "c_mask.png"]), done.stderr


def test_a_name_moves_no_cursor_of_the_terminal(run):
    name = "a\x1b[31m\x1b]0;title\x07"
    picture(f"i/{name}.png")
    Path("m").mkdir()
    Path(f"m/{name}.png").write_bytes(b"no picture")
    pairs("b")
    outcome = run("i", "m", "-o", "out", "--model", "coarse")
    assert outcome.code == 1
    assert "\x1b" not in outcome.out + outcome.err
    assert r"a\x1b[31m\x1b]0;title\x07.png" in outcome.err
