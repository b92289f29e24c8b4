"""Figures on held-out pictures during a run, and the weights that are best by them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import refine
from refine import checkpoint
from refine.errors import FileError, OptionError
from refine.evaluation import Summary, evaluate, summarise
from refine.training import loop
from refine.training.loop import train
from refine.training.recipe import Recipe
from refine.training.scenes import scene
from refine.training.validation import Interval, Validation, gain


def make(folder: Path, seeds: range) -> Path:
    folder.mkdir(parents=True)
    for seed in seeds:
        image, truth = scene(np.random.default_rng(seed), 70, 90)
        Image.fromarray(image).save(folder / f"{seed}_im.png")
        cv2.imwrite(str(folder / f"{seed}_gt.png"), 255 * truth.astype(np.uint8))
        cv2.imwrite(str(folder / f"{seed}_seg.png"), 255 * np.roll(truth, 2, 1).astype(np.uint8))
    return folder


@pytest.fixture
def held_out(tmp_path) -> Path:
    return make(tmp_path / "held", range(10, 13))


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    folder = make(tmp_path / "data", range(2))
    for path in folder.glob("*_im.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    return Recipe(data=(str(folder),), steps=3, batch=2, crop=64, window=64)


@pytest.mark.parametrize(
    ("text", "interval"),
    [("500", Interval(steps=500)), ("30min", Interval(seconds=1800)), (" 0.5 min ", Interval(seconds=30))],
)
def test_an_interval_is_steps_or_minutes(text, interval):
    assert Interval.parse(text) == interval


@pytest.mark.parametrize("text", ["", "0", "0min", "-3", "2h", "often", "1.5"])
def test_other_intervals_are_refused(text):
    with pytest.raises(OptionError, match="give steps, as in 500, or minutes, as in 30min"):
        Interval.parse(text)


def test_an_interval_is_due_at_its_steps_or_after_its_seconds():
    assert [Interval(steps=3).due(step=step, seconds=1e9) for step in (2, 3, 4)] == [False, True, False]
    assert [Interval(seconds=3).due(step=7, seconds=seconds) for seconds in (2, 3, 4)] == [False, True, True]


def test_the_gain_is_the_mean_over_the_sets_of_both_changes():
    def summary(**figures: float) -> Summary:
        own = {"own_iou_coarse": 0, "own_iou_refined": 0}
        return Summary(set="a", pictures=1, worst_change=0, worst_name="", **own, **figures)

    sets = [
        summary(iou_coarse=90, iou_refined=91, mba_coarse=60, mba_refined=64),
        summary(iou_coarse=80, iou_refined=78, mba_coarse=50, mba_refined=50.5),
    ]
    assert gain(sets) == pytest.approx((5 - 1.5) / 2)


def test_figures_are_those_of_the_refiner_on_the_first_pictures(recipe, held_out, tmp_path):
    validation = Validation((held_out,), Interval(steps=2), limit=2)
    path = train(recipe, tmp_path / "run", workers=0, validation=validation)
    records = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    assert [(r["step"], r["on"], r["limit"]) for r in records] == [(2, ["held"], 2), (3, ["held"], 2)]
    refiner = refine.Refiner("crm-s", weights=path, device="cpu")
    (expected,) = summarise(evaluate([held_out], lambda *pair: refiner.refine(*pair).mask, limit=2))
    (found,) = records[-1]["sets"]
    assert found["pictures"] == 2
    for name in ("iou_coarse", "mba_coarse", "iou_refined", "mba_refined"):
        assert found[name] == pytest.approx(getattr(expected, name))
    assert f"gain {records[-1]['gain']:+.3f}" in (tmp_path / "run" / "card.md").read_text()


def test_the_best_weights_are_kept_also_by_a_resumed_run(recipe, held_out, tmp_path, monkeypatch):
    gains = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(loop, "record", lambda summaries: {"gain": next(gains), "sets": []})
    validation = Validation((held_out,), Interval(steps=1), limit=1)
    run = tmp_path / "run"
    train(recipe, run, workers=0, validation=validation, stop_at=2)
    best = (run / "best.safetensors").read_bytes()
    train(recipe, run, workers=0, validation=validation)
    assert (run / "best.safetensors").read_bytes() == best
    metadata = checkpoint.load(run / "best.safetensors").metadata
    assert metadata["step"] == "2"
    assert json.loads(metadata["validation"])["gain"] == 3
    assert checkpoint.load(run / "weights.safetensors").metadata["step"] == "3"
    card = (run / "card.md").read_text()
    assert checkpoint.file_sha256(run / "best.safetensors") in card
    assert "The best weights that were validated, of step 2; gain +3.000:" in card


def test_weights_that_were_best_on_other_pictures_are_replaced(recipe, held_out, tmp_path, monkeypatch, capsys):
    gains = iter([5.0, 1.0])
    monkeypatch.setattr(loop, "record", lambda summaries: {"gain": next(gains), "sets": []})
    run = tmp_path / "run"
    train(recipe, run, workers=0, validation=Validation((held_out,), limit=1), stop_at=3)
    train(recipe, run, workers=0, validation=Validation((held_out,), limit=2), quiet=False)
    assert json.loads(checkpoint.load(run / "best.safetensors").metadata["validation"])["limit"] == 2
    assert "best.safetensors was chosen by another recipe or on other pictures" in capsys.readouterr().err


def test_the_best_of_a_version_that_did_not_note_the_files_stays(recipe, held_out, tmp_path, monkeypatch, capsys):
    gains = iter([5.0, 1.0])
    monkeypatch.setattr(loop, "record", lambda summaries: {"gain": next(gains), "sets": []})
    run, measured = tmp_path / "run", Validation.measured
    with monkeypatch.context() as before:
        before.setattr(Validation, "measured", lambda self: {k: v for k, v in measured(self).items() if k != "files"})
        train(recipe, run, workers=0, validation=Validation((held_out,), Interval(steps=2), limit=1), stop_at=2)
    best = (run / "best.safetensors").read_bytes()
    train(recipe, run, workers=0, validation=Validation((held_out,), limit=1), quiet=False)
    assert (run / "best.safetensors").read_bytes() == best
    assert "is replaced" not in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["im.png", "gt.png", "seg.png"])
def test_a_set_of_the_same_name_with_other_pictures_is_measured_anew(recipe, held_out, tmp_path, ending):
    train(recipe, tmp_path / "run", workers=0, validation=Validation((held_out,)))
    other = tmp_path / "other" / held_out.name
    shutil.copytree(held_out, other)
    same = Validation((other,)).measured()
    assert same == Validation((held_out,)).measured()
    if ending == "im.png":
        for path in other.glob("10_*"):
            path.rename(other / path.name.replace("10_", "13_"))
    else:
        cv2.imwrite(str(other / f"10_{ending}"), np.zeros((70, 90), np.uint8))
    assert Validation((other,)).measured() != same
    train(recipe, tmp_path / "run", workers=0, validation=Validation((other,)))
    assert len((tmp_path / "run" / "validation.jsonl").read_text().splitlines()) == 2


def test_the_best_weights_of_another_recipe_count_for_nothing(recipe, held_out, tmp_path, monkeypatch):
    gains = iter([5.0, 1.0])
    monkeypatch.setattr(loop, "record", lambda summaries: {"gain": next(gains), "sets": []})
    run, validation = tmp_path / "run", Validation((held_out,), limit=1)
    train(recipe, run, workers=0, validation=validation)
    before = checkpoint.file_sha256(run / "best.safetensors")
    (run / "checkpoint.pt").unlink()  # as an error says for a damaged one
    other = replace(recipe, seed=7)
    train(other, run, workers=0, stop_at=1)
    assert before not in (run / "card.md").read_text()
    train(other, run, workers=0, validation=validation)
    metadata = checkpoint.load(run / "best.safetensors").metadata
    assert json.loads(metadata["validation"])["gain"] == 1
    assert json.loads(metadata["recipe"])["seed"] == 7


@pytest.mark.parametrize("change", [{"cascade": {"lean": 3.0}}, {"store": "float16"}])
def test_a_run_that_is_done_is_validated_again_where_its_weights_are_used_otherwise(recipe, held_out, tmp_path, change):
    run, validation = tmp_path / "run", Validation((held_out,), limit=1)
    train(recipe, run, workers=0, validation=validation)
    weights = train(replace(recipe, **change), run, workers=0, validation=validation)
    records = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert len(records) == 2
    refiner = refine.Refiner("crm-s", weights=weights, device="cpu")
    (expected,) = summarise(evaluate([held_out], lambda *pair: refiner.refine(*pair).mask, limit=1))
    assert records[-1]["sets"][0]["iou_refined"] == pytest.approx(expected.iou_refined)


def test_a_run_that_is_done_is_validated_once(recipe, held_out, tmp_path):
    run, validation = tmp_path / "run", Validation((held_out,), limit=1)
    train(recipe, run, workers=0)
    assert not (run / "validation.jsonl").exists()
    for _ in range(2):
        train(recipe, run, workers=0, validation=validation)
    assert len((run / "validation.jsonl").read_text().splitlines()) == 1


def test_an_interrupt_ends_a_validation_after_a_picture(recipe, held_out, tmp_path, monkeypatch):
    import signal

    measure = Validation.measure

    def interrupted(self, *words, seen, **more):
        signal.raise_signal(signal.SIGINT)
        return measure(self, *words, seen=seen, **more)

    monkeypatch.setattr(Validation, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        train(recipe, tmp_path / "run", workers=0, validation=Validation((held_out,), Interval(steps=1)))
    assert checkpoint.load(tmp_path / "run" / "weights.safetensors").metadata["step"] == "1"


def test_a_held_out_picture_that_is_trained_on_is_an_error(recipe, held_out, tmp_path):
    folder = Path(recipe.data[0])
    (held_out / "other_im.jpg").write_bytes((folder / "1_im.jpg").read_bytes())
    for ending in ("gt", "seg"):
        (held_out / f"other_{ending}.png").write_bytes((folder / "1_gt.png").read_bytes())
    with pytest.raises(OptionError, match=r"1_im\.jpg is trained on and is .*other_im"):
        train(recipe, tmp_path / "run", workers=0, validation=Validation((held_out,), limit=1))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_validated_on_is_refused_at_once(held_out, tmp_path):
    with pytest.raises(OptionError, match="limit is 0"):
        Validation((held_out,), limit=0)
    with pytest.raises(FileError, match="no folder"):
        Validation((tmp_path / "none",))
    for parent in "ab":
        make(tmp_path / parent / "same", range(40, 41))
    with pytest.raises(OptionError, match="2 sets are called 'same'"):
        Validation((tmp_path / "a" / "same", tmp_path / "b" / "same"))
    (held_out / "10_seg.png").unlink()
    with pytest.raises(FileError, match="lacks 10_seg"):
        Validation((held_out,))


def test_sets_in_a_folder_are_measured_each(recipe, tmp_path):
    make(tmp_path / "sets" / "one", range(20, 21))
    make(tmp_path / "sets" / "two", range(30, 31))
    train(recipe, tmp_path / "run", workers=0, validation=Validation((tmp_path / "sets",)))
    record = json.loads((tmp_path / "run" / "validation.jsonl").read_text())
    assert [s["set"] for s in record["sets"]] == record["on"] == ["one", "two"]
