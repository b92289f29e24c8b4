import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import choice, quality, results, trade, worker
from refine import checkpoint
from refine.config import Options
from refine.evaluation.published import COARSE, PUBLISHED
from refine.metrics import iou
from refine.models import preset


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Scenes of a hundred pixels."""
    monkeypatch.setattr(trade, "SIDES", (96, 120))


@pytest.fixture
def refined(monkeypatch):
    """Choices without a network: "as it is" keeps the coarse mask, "none" leaves nothing, "broken" fails."""
    asked = []

    def run(task):
        asked.append(task)
        if task.dtype == "broken":
            return "ended with code 1: broken"
        calls = []
        for i, (scene, mask) in enumerate(task.pairs):
            coarse = np.load(Path(task.folder) / f"{scene}-{mask}.npy") > 127
            assert np.load(Path(task.folder) / f"{scene}.npy").shape == (*coarse.shape, 3)
            found = coarse if task.dtype == "as it is" else np.zeros_like(coarse)
            np.save(Path(task.folder) / f"{scene}-{mask}-refined.npy", found)
            calls.append(choice.Call(scene, mask, 1.0 if task.dtype == "as it is" else 3.0, (i + 1) * 10**6))
        return calls

    monkeypatch.setattr(choice, "run", run)
    names = {"default": "as it is", "dense": "none", "bbox": "broken"}
    choices = {name: trade.Choice(kind, {}, "black") for name, kind in names.items()}
    return trade.measure(choices, 2, None, threads=1), asked


def run_of(measured):
    """A run as it is written."""
    where = {"cpu": "abacus", "threads": 1, "cores": 2, "torch": "2", "python": "3", "load": 0.0, "kind": "abacus"}
    about = {"date": "today", "commit": "c0ffee", "machine": where, "weights": "w", "source": "generated"}
    return {**about, **measured}


def test_every_policy_of_the_suite_is_a_choice_and_no_two_are_the_same():
    own = preset("crm-s").cascade

    def options(given):
        chosen = Options().but(**given)
        return chosen.but(decode=chosen.decode or own.decode)

    found = [(c.dtype, options(c.options)) for c in trade.CHOICES.values()]
    assert {("bfloat16", options(policy)) for policy in worker.POLICIES.values()} <= set(found)
    assert len(set(found)) == len(found)
    assert trade.CHOICES[trade.BASE].options == {}
    for stride in (2, 4, 8):
        for first_pass in ("near", "everywhere"):
            assert ("bfloat16", Options(decode="strided", stride=stride, first_pass=first_pass)) in found


def test_every_choice_looks_different():
    looks = [(c.colour, c.marker) for c in trade.CHOICES.values()]
    assert len(set(looks)) == len(looks)


def test_every_choice_is_scored_on_every_mask_the_largest_picture_first(refined):
    measured, asked = refined
    assert [max(scene["size"]) for scene in measured["scenes"]] == [96, 120]
    assert len(measured["coarse"]) == 2 * len(quality.CELLS)
    assert asked[0].pairs == [(scene, q) for scene in ("scene1", "scene0") for q in quality.CELLS]
    same = measured["choices"]["default"]["calls"]
    before = {(s["scene"], s["quality"]): s["iou"] for s in measured["coarse"]}
    assert {(s["scene"], s["quality"]): s["iou"] for s in same} == before
    assert {s["iou"] for s in measured["choices"]["dense"]["calls"]} == {0.0}
    assert measured["choices"]["bbox"]["fault"] == "ended with code 1: broken"


def test_the_table_has_every_choice_beside_the_coarse_masks_and_bigs(refined):
    measured, _ = refined
    table = trade.table(measured)
    assert list(table.header[1:5]) == list(quality.CELLS)
    lines = {line[0]: line[1:] for line in table.lines}
    big, coarse, default, none, broken = lines.values()
    assert big[:4] == list(PUBLISHED[COARSE])
    poor = [s for s in measured["coarse"] if s["quality"] == "poor"]
    means = [100 * sum(s[figure] for s in poor) / 2 for figure in ("iou", "mba")]
    assert coarse[0] == f"{means[0]:.2f}/{means[1]:.2f}"
    assert default == [*coarse[:4], "1.00", "1.00", "8", "+0.00"]
    assert none[0].startswith("0.00/")
    best = 100 * max(s["iou"] for s in measured["coarse"])
    assert none[4:] == ["3.00", "3.00", "8", f"{-best:+.2f}"]
    assert broken == ["-"] * 8


def test_the_page_and_the_plot_are_written_and_name_what_failed(refined, tmp_path, monkeypatch):
    measured, _ = refined
    data, page, plot = trade.write(run_of(measured), tmp_path)
    assert [path.name for path in (data, page, plot)] == [f"abacus-trade.{kind}" for kind in ("json", "md", "png")]
    assert json.loads(data.read_text()) == json.loads(json.dumps(run_of(measured)))
    text = page.read_text()
    assert "![abacus-trade](abacus-trade.png)" in text
    assert "bbox: ended with code 1: broken" in text
    assert "2 scenes (" in text
    pixels = cv2.imread(str(plot))[..., ::-1]
    assert min(pixels.shape[:2]) > 600
    drawn = {
        name: tuple(int(trade.CHOICES[name].colour[i : i + 2], 16) for i in (1, 3, 5)) for name in ("dense", "bbox")
    }
    assert (pixels == drawn["dense"]).all(2).any()
    assert not (pixels == drawn["bbox"]).all(2).any(), "it has no figures"


def test_the_plot_has_every_choice(refined, tmp_path):
    measured, _ = refined
    calls = measured["choices"]["default"]["calls"]
    found = {}
    for i, (name, chosen) in enumerate(trade.CHOICES.items()):
        figures = {"seconds": 0.4 * 1.25**i, "iou": 0.9 + 0.002 * (i % 7), "mba": 0.7 + 0.004 * (i % 5)}
        own = [call | figures | {"over": (300 + 70 * i) * 10**6} for call in calls]
        found[name] = {"dtype": chosen.dtype, "options": chosen.options, "fault": "", "calls": own}
    pixels = cv2.imread(str(trade.plot(run_of({**measured, "choices": found}), tmp_path / "plot.png")))[..., ::-1]
    for name, chosen in trade.CHOICES.items():
        colour = tuple(int(chosen.colour[i : i + 2], 16) for i in (1, 3, 5)) if chosen.colour != "black" else (0, 0, 0)
        assert (pixels == colour).all(2).sum() > 100, name


@pytest.mark.usefixtures("one_thread")
def test_the_real_refiner_runs_with_a_choices_options(monkeypatch, tmp_path, capsys):
    def here(module, folder, threads):
        monkeypatch.setattr(sys, "argv", [module, str(folder)])
        choice.main()
        return ""

    monkeypatch.setattr(choice, "alone", here)
    words = ["--count", "1", "--threads", "1", "--out", str(tmp_path)]
    assert trade.main([*words, "--choices", "default, guided by superpixels"]) == 0
    (data,) = tmp_path.glob("*-trade.json")
    run = json.loads(data.read_text())
    assert list(run["choices"]) == ["default", "default, guided by superpixels"]
    calls = run["choices"]["default"]["calls"]
    assert len(calls) == 4
    assert all(c["iou"] > 0.75 and c["seconds"] > 0 for c in calls)
    assert [c["iou"] for c in calls] != [c["iou"] for c in run["coarse"]]
    assert run["weights"].startswith("crm-s.safetensors, sha256 ")
    out = capsys.readouterr().out
    assert out.startswith("| options")
    assert str(data) in out


def test_masks_come_back_as_they_were_made(tmp_path):
    mask = np.arange(12).reshape(3, 4) % 3 == 0
    np.save(tmp_path / "a-poor-refined.npy", mask)
    np.testing.assert_array_equal(choice.result(tmp_path, "a", "poor"), mask)
    assert iou(choice.result(tmp_path, "a", "poor"), mask) == 1


def test_a_process_that_fails_says_how(tmp_path):
    fault = choice.run(choice.Task(str(tmp_path), [("missing", "poor")], None, "float32", {}, threads=1))
    assert isinstance(fault, str)
    assert fault.startswith("ended with code 1: ")
    assert "missing.npy" in fault


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ([], True),
        (["--count", "6"], False),
        (["--data", "HELDOUT"], False),
        (["--choices", "dense"], False),
        (["--weights", str(checkpoint.find("crm-s"))], False),
    ],
)
def test_only_the_whole_run_goes_where_results_are_committed(refined, monkeypatch, words, whole):
    folders = []
    monkeypatch.setattr(trade, "measure", lambda *_, **__: refined[0])
    monkeypatch.setattr(trade, "write", lambda run, folder: folders.append(folder) or [])
    trade.main(words)
    assert folders == [results.FOLDER if whole else worker.ROOT / "runs" / "benchmarks"]


@pytest.mark.parametrize("words", [["--count", "0"], ["--threads", "0"], ["--choices", "denser"]])
def test_what_cannot_be_measured_is_told(words, capsys):
    with pytest.raises(SystemExit):
        trade.main(words)
    assert words[0] in capsys.readouterr().err
