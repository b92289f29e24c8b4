"""`refine-cli train`: every option by its effect."""

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import Outcome
from conftest import Run as Cli

from refine import checkpoint
from refine.training import command
from refine.training.loop import train
from refine.training.recipe import Recipe
from refine.training.scenes import scene
from refine.training.state import Run

SMALL = ("--steps", "2", "--batch", "2", "--set", "crop=64", "--set", "window=64", "--device", "cpu", "--workers", "0")


@pytest.fixture
def cli(run: Cli) -> Cli:
    """Runs `refine-cli train` in a folder with pairs in `data`."""
    pairs(Path("data"), range(2))
    return partial(run, "train")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What training was called with, instead of training."""
    seen: dict[str, Any] = {}

    def noted(recipe: Recipe, out: Path, **options: Any) -> Path:
        seen.update(recipe=recipe, out=out, **options)
        return out / "weights.safetensors"

    monkeypatch.setattr(command, "train", noted)
    return seen


def pairs(folder: Path, seeds: range, *, held_out: bool = False) -> None:
    folder.mkdir(parents=True)
    for seed in seeds:
        image, truth = scene(np.random.default_rng(seed), 70, 90)
        cv2.imwrite(str(folder / f"{seed}_im.jpg"), image[..., ::-1])
        cv2.imwrite(str(folder / f"{seed}_gt.png"), 255 * truth.astype(np.uint8))
        if held_out:
            cv2.imwrite(str(folder / f"{seed}_seg.png"), 255 * np.roll(truth, 2, 1).astype(np.uint8))


def assert_refused(outcome: Outcome, code: int, *told: str) -> None:
    assert (outcome.code, outcome.out) == (code, "")
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: ")
    for text in told:
        assert text in line


def test_a_folder_of_pairs_is_all_that_training_needs(cli):
    pairs(Path("held"), range(5, 6), held_out=True)
    Path("terms.txt").write_text("No commerce.")
    done = cli("--data", "data", "-o", "run", *SMALL, "--validate", "held", "--terms", "terms.txt")
    assert (done.code, done.out) == (0, f"{Path('run/weights.safetensors')}\n")
    assert "step 2/2" in done.err
    assert "validated at step 2" in done.err
    names = {path.name for path in Path("run").iterdir()}
    assert names == {
        "weights.safetensors",
        "best.safetensors",
        "checkpoint.pt",
        "card.md",
        "log.jsonl",
        "validation.jsonl",
        ".lock",
    }
    assert "> No commerce." in Path("run/card.md").read_text()


def test_quiet_prints_the_weights_name_alone(cli):
    done = cli("--data", "data", "-o", "run", *SMALL, "-q")
    assert (done.out, done.err) == (f"{Path('run/weights.safetensors')}\n", "")


def test_options_are_fields_of_the_recipe(cli, called):
    options = ["--model", "crm-r50", "--loss", "bce + 0.5*l1", "--steps", "7", "--batch", "3", "--seed", "5"]
    cli("--data", "data", "--data", "more", "-o", "run", *options, "--set", "coarse={contour=1}", "--set", "ema=0.5")
    assert called["recipe"] == Recipe(
        data=("data", "more"),
        model="crm-r50",
        loss="bce + 0.5*l1",
        steps=7,
        batch=3,
        seed=5,
        coarse={"contour": 1},
        ema=0.5,
    )


def test_what_guides_crops_is_an_option_and_its_file_lies_where_it_says(cli, called):
    words = ["--model", "crm-s+v3.2", "--proposals", "sam-vit-b", "--sam-checkpoint", "there/sam.pth"]
    cli("--data", "data", "-o", "run", "--root", "elsewhere", *words)
    assert (called["recipe"].proposals, called["recipe"].sam_checkpoint) == ("sam-vit-b", "there/sam.pth")
    assert called["recipe"].as_dict()["sam_checkpoint"] == "sam.pth"


def test_weights_to_start_from_are_given_by_their_file(cli, called):
    cli("--recipe", "crm-s", "--data", "data", "--initial", "mine.safetensors", "-o", "run")
    assert (called["recipe"].initial, called["recipe"].pretrained) == ("mine.safetensors", "")


def test_how_to_run_is_passed_on(cli, called):
    words = ["--device", "cpu", "--dtype", "float32", "--workers", "3", "--tensorboard", "--quiet"]
    cli("--data", "data", "-o", "run", *words)
    wanted = {"device": "cpu", "dtype": "float32", "workers": 3, "tensorboard": True, "quiet": True}
    assert {name: called[name] for name in wanted} == wanted
    assert (called["out"], called["validation"], called["terms"]) == (Path("run"), None, "")


def test_defaults_are_automatic(cli, called):
    cli("--data", "data", "-o", "run")
    wanted = {"device": "auto", "dtype": "auto", "workers": 1, "tensorboard": False, "quiet": False}
    assert {name: called[name] for name in wanted} == wanted


def test_validation_is_passed_on(cli, called):
    for name in ("a", "b"):
        pairs(Path("held") / name, range(1), held_out=True)
    words = ["--validate", "held/a", "--validate", "held/b", "--validate-every", "20", "--validate-limit", "4"]
    cli("--data", "data", "-o", "run", *words)
    assert [called["validation"].measured()[name] for name in ("on", "limit")] == [["a", "b"], 4]
    assert called["validation"].every.steps == 20


@pytest.mark.parametrize("recipe", ["crm-s", "weights/crm-s.toml"])
def test_a_recipe_is_named_or_a_file_with_paths_in_the_root(cli, called, recipe):
    path = recipe if recipe == "crm-s" else str(Path(__file__).parents[1] / recipe)
    cli("--recipe", path, "--root", "there", "-o", "run")
    assert called["recipe"].data[0] == str(Path("there/train/davis"))
    assert len(called["recipe"].shares) == len(called["recipe"].data)


def test_the_published_recipe_trains(cli):
    words = ["--steps", "1", "--batch", "1", "--set", "crop=64", "--device", "cpu"]
    done = cli("--recipe", "crm-paper", "--data", "data", "-o", "run", *words)
    assert done.code == 0, done.err
    (line,) = map(json.loads, Path("run/log.jsonl").read_text().splitlines())
    assert line["rate"] == pytest.approx(2.25e-4)
    assert checkpoint.load("run/weights.safetensors").spec["model"] == "crm-r50"


def test_threads_are_those_that_torch_uses(cli, called):
    before = torch.get_num_threads()
    try:
        cli("--data", "data", "-o", "run", "--threads", "3")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_same_command_goes_on_where_the_run_was_interrupted(cli, monkeypatch):
    advance = Run.advance

    def interrupted(self: Run, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        signal.raise_signal(signal.SIGINT)
        return advance(self, batch)

    monkeypatch.setattr(Run, "advance", interrupted)
    words = ["--data", "data", "-o", "run", *SMALL, "--dtype", "float32"]
    stopped = cli(*words)
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.splitlines()[-1] == (
        "interrupted: the last whole step is stored; the same command goes on from there"
    )
    monkeypatch.setattr(Run, "advance", advance)
    assert "from step 1" in cli(*words).err
    recipe = Recipe(data=("data",), steps=2, batch=2, crop=64, window=64)
    whole = train(recipe, Path("whole"), workers=0, dtype="float32")
    found = checkpoint.load("run/weights.safetensors").state
    for name, value in checkpoint.load(whole).state.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["nothing to train on", "--data DIR"]),
        (["--data", "data", "--model", "crm-x"], ["model='crm-x' is unknown; known are crm-s, crm-r50"]),
        (["--data", "data", "--loss", "nonsense"], ["nonsense"]),
        (["--data", "data", "--steps", "0"], ["steps=0"]),
        (["--data", "data", "--steps", "many"], ["--steps"]),
        (["--data", "data", "--device", "tpu"], ["device='tpu'"]),
        (["--data", "data", "--dtype", "int8"], ["dtype='int8'"]),
        (["--data", "data", "--device", "cpu", "--dtype", "float16"], ["only on CUDA"]),
        (["--data", "data", "--workers", "-2"], ["workers=-2"]),
        (["--data", "data", "--threads", "0"], ["threads=0"]),
        (["--data", "data", "--set", "epochs=3"], ["no field 'epochs'"]),
        (["--data", "data", "--recipe", "crm-x"], ["'crm-x' cannot be read", "crm-paper"]),
        (["--data", "data", "--validate-limit", "3"], ["without --validate"]),
        (["--data", "data", "--validate-every", "3"], ["--validate-every means nothing without --validate"]),
        (["--data", "data", "--validate-every", "2h"], ["30min"]),
        (["--data", "data", "--initial", "none.safetensors"], ["none.safetensors"]),
    ],
)
def test_wrong_options_are_refused_with_2(cli, words, told):
    assert_refused(cli("-o", "run", *words), 2, *told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "none"], ["none"]),
        (["--data", "data", "--validate", "none"], ["no folder 'none'"]),
        (["--data", "data", "--validate", "data"], ["lacks 0_seg.png"]),
        (["--data", "data", "--terms", "none.txt"], ["none.txt"]),
        (["--data", "data", "-o", "data/0_im.jpg"], ["0_im.jpg"]),
    ],
)
def test_wrong_files_are_refused_with_1(cli, words, told):
    assert_refused(cli("-o", "run", *words), 1, *told)


def test_masks_of_other_sizes_are_listed_before_the_first_step(cli):
    pairs(Path("data/more"), range(10, 17))
    for path in sorted(Path("data/more").glob("*_gt.png")):
        cv2.imwrite(str(path), np.zeros((35, 45), np.uint8))
    cv2.imwrite("data/0_seg.png", np.zeros((35, 55), np.uint8))  # is not taken
    told = "more/10_gt.png is 35 x 45, its picture data/more/10_im.jpg 70 x 90; "
    words = ("--data", "data", "-o", "run", *SMALL)
    assert_refused(cli(*words), 1, "7 masks do not fit", told, "14_gt.png", "; and 2 more; give masks")
    assert not Path("run").exists()
    for path in Path("data/more").iterdir():
        path.unlink()
    assert_refused(cli(*words, "--set", "coarse.given=0.3"), 1, "1 masks do not fit", "data/0_seg.png is 35 x 55")
    assert cli(*words).code == 0


def test_a_disk_that_is_full_is_an_error(cli, monkeypatch):
    resource = pytest.importorskip("resource")
    store = Run.store

    def on_a_full_disk(self: Run, path: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            store(self, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(Run, "store", on_a_full_disk)
    assert_refused(cli("--data", "data", "-o", "run", *SMALL), 1, "checkpoint.pt: cannot be written (File too large)")
    assert not Path("run/checkpoint.pt").exists()


def test_a_worker_that_is_killed_is_an_error_that_says_how_to_go_on(cli, monkeypatch):
    advance = Run.advance

    def killed(self: Run, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
            time.sleep(10)  # ends as the signal comes
        return advance(self, batch)

    monkeypatch.setattr(Run, "advance", killed)
    words = ("--data", "data", "-o", "run", *SMALL[:-2], "--steps", "20", "--workers", "1")
    told = ("a process that prepares crops was ended (DataLoader worker (pid", "want of memory; give fewer --workers")
    assert_refused(cli(*words), 2, *told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "1 pictures have coarse masks beside them, which this recipe does not take; --set coarse.given=0.3"),
        (("--set", 'augment="published"'), "which this recipe does not take\n"),
        (("--set", "coarse.given=0.3"), ""),
    ],
)
def test_coarse_masks_that_are_not_taken_are_told(cli, words, told):
    for i in range(2):
        cv2.imwrite(f"data/0_seg{i}.png", np.zeros((70, 90), np.uint8))
    shown = cli("--data", "data", "-o", "run", *SMALL, *words).err
    assert told in shown
    assert ("coarse masks" in shown) == bool(told)


def test_a_card_knows_all_that_a_chain_of_runs_was_trained_on(cli):
    initial: tuple[str, ...] = ()
    for name in ("first", "second", "third"):
        pairs(Path(name), range(2))
        assert cli("--data", name, "-o", f"run-{name}", *SMALL, *initial).code == 0
        initial = ("--initial", f"run-{name}/weights.safetensors")
    _, table = Path("run-third/card.md").read_text().split("It began with\n")
    assert table.splitlines()[3].endswith("| first, second |")


def test_a_run_needs_a_folder(cli):
    assert_refused(cli("--data", "data"), 2, "--out")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_says_what_needs_less(cli, monkeypatch, error):
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(command, "train", full)
    assert_refused(cli("--data", "data", "-o", "run"), 2, "out of memory; a smaller --batch")


def test_tensorboard_that_is_missing_is_an_error(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert_refused(cli("--data", "data", "-o", "run", *SMALL, "--tensorboard"), 2, "refine-masks[train]")


def test_help_lists_the_options(cli):
    shown = cli("--help").out
    for option in ("--data DIR", "--recipe NAME|FILE", "--set FIELD=VALUE", "--validate-every WHEN", "--tensorboard"):
        assert re.search(rf"^ +{re.escape(option)}", shown, re.MULTILINE), option


def test_a_guided_model_is_trained_from_an_unguided_one_and_validated(cli, monkeypatch):
    monkeypatch.setenv("REFINE_CACHE", str(Path("cache").absolute()))
    pairs(Path("held"), range(5, 6), held_out=True)
    start = str(checkpoint.find("crm-s"))
    words = ("--data", "data", "-o", "run", *SMALL, "--model", "crm-s+v2.1", "--initial", start, "--validate", "held")
    done = cli(*words, "--set", 'proposals="slic:segments=20,levels=1"')
    assert done.code == 0, done.err
    assert checkpoint.load(Path("run/weights.safetensors")).spec["guidance"] == "sam-sr-v2.1"
    assert "validated at step 2" in done.err
    assert len(list(Path("cache/proposals").iterdir())) == 3  # of two pictures trained on and one held out
    assert_refused(cli(*words), 2, "guide models such as crm-s+v2.1, which need some")
