import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch

import refine
from benchmarks import inputs, memory, results, slide, suite, test_kernels, worker
from benchmarks.reference import ReferenceCRM
from benchmarks.worker import REFERENCE, Case, Difference, Run, Task
from refine import checkpoint
from refine.loading import load_network
from refine.memory import resident_set
from refine.models import preset

SHAPE = (6, 8)
SIZE = 4.8e-5  # megapixels of that shape
REFERENCED = Case(REFERENCE, "float32", "published", SIZE)
EXACT = Case("crm-r50", "float32", "dense", SIZE)
SMALL = Case("crm-s", "bfloat16", "contour", SIZE)


class TestInputs:
    def test_the_scene_is_the_same_at_every_size(self):
        (small, small_mask), (large, large_mask) = inputs.generated([0.02, 0.08]).values()
        for image, mask, size in ((small, small_mask, 0.02), (large, large_mask, 0.08)):
            assert image.shape == (*mask.shape, 3)
            assert mask.size == pytest.approx(1e6 * size, rel=0.02)
            assert set(np.unique(mask)) == {0, 255}
        again = cv2.resize(large, small_mask.shape[::-1], interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(small.astype(float), again, atol=1)
        assert np.mean(small_mask > 0) == pytest.approx(np.mean(large_mask > 0), rel=0.05)

    def test_the_contour_grows_with_the_root_of_the_area(self):
        small, large = (inputs.contour_length(mask) for _, mask in inputs.generated([0.05, 0.8]).values())
        assert 3.2 < large / small < 4.8, "of 16 times the area"

    @pytest.mark.parametrize(("shape", "length"), [((1, 1), 1), ((1, 7), 7), ((2, 2), 4), ((5, 4), 14)])
    def test_a_contour_is_the_foreground_beside_anything_else(self, shape, length):
        assert inputs.contour_length(np.full(shape, 255, np.uint8)) == length
        assert inputs.contour_length(np.zeros(shape, np.uint8)) == 0

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (37, 51)])
    @pytest.mark.parametrize("megapixels", [1e-6, 0.001])
    def test_a_picture_of_any_size_is_brought_to_another(self, shape, megapixels):
        image, mask = np.full((*shape, 3), 7, np.uint8), np.full(shape, 255, np.uint8)
        resized, coarse = inputs.resized(image, mask, megapixels)
        assert resized.shape == (*coarse.shape, 3)
        assert (resized == 7).all()
        assert (coarse == 255).all()

    def test_a_photograph_is_read_from_its_files(self, tmp_path):
        mask = np.zeros(SHAPE, np.uint8)
        mask[1:3, 2:5] = 255
        cv2.imwrite(str(tmp_path / "image.png"), np.full((*SHAPE, 3), (3, 2, 1), np.uint8))  # BGR
        cv2.imwrite(str(tmp_path / "mask.png"), mask)
        ((image, coarse),) = inputs.photograph(tmp_path / "image.png", tmp_path / "mask.png", [SIZE]).values()
        assert (image == (1, 2, 3)).all()
        np.testing.assert_array_equal(coarse, mask)

    @pytest.mark.usefixtures("one_thread")
    def test_the_reference_gets_the_weights_of_crm_r50_and_a_fourth_stage_of_its_own(self, tmp_path):
        shipped = inputs.write_weights(tmp_path, ["crm-r50"], None)
        ours = f"crm-r50.safetensors, sha256 {checkpoint.file_sha256(checkpoint.find('crm-r50'))}"
        assert {shipped[model].origin for model in ("crm-r50", REFERENCE)} == {ours}
        held = checkpoint.load(str(shipped["crm-r50"].path))
        published = torch.load(str(shipped[REFERENCE].path), weights_only=True)
        own = tmp_path / "own.safetensors"
        spec = preset("crm-r50")
        checkpoint.save(own, held.state, spec=replace(spec, cascade=replace(spec.cascade, smallest=360)).as_dict())
        given = inputs.write_weights(tmp_path, [REFERENCE], own)
        completed = torch.load(str(given[REFERENCE].path), weights_only=True)
        assert set(completed) == {key.removeprefix("module.") for key in published}
        for key, value in published.items():
            if ".layer4." not in key:
                torch.testing.assert_close(completed[key.removeprefix("module.")], value, rtol=0, atol=0)
        assert given["crm-r50"].origin.startswith("own.safetensors, sha256 ")
        _, taken, _ = load_network("crm-r50", given["crm-r50"].path)
        assert taken.cascade == spec.cascade, "the reference has no other"

    def test_crm_s_alone_needs_no_other_weights(self, tmp_path):
        found = inputs.write_weights(tmp_path, ["crm-s"], tmp_path / "missing")
        assert found["crm-s"].path is None
        assert list(found) == ["crm-s"]
        assert not list(tmp_path.iterdir())


def spread() -> np.ndarray:
    return np.linspace(0.1, 0.9, SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)


@pytest.fixture
def folder(tmp_path) -> Path:
    """With the picture of a task, and what the reference made of it."""
    np.save(tmp_path / f"image-{SIZE:g}.npy", np.zeros((*SHAPE, 3), np.uint8))
    np.save(tmp_path / f"mask-{SIZE:g}.npy", np.full(SHAPE, 255, np.uint8))
    np.save(tmp_path / REFERENCED.file, spread())
    return tmp_path


def measured(monkeypatch, folder: Path, case: Case, *answers: np.ndarray, repeats: int = 1) -> tuple[Run, int]:
    """What a worker makes of a model that answers so, the last answer for ever, and how often it was asked."""
    asked = []

    def refine(image, mask):
        assert image.shape == (*mask.shape, 3)
        asked.append(mask.shape)
        return answers[min(len(asked) - 2, len(answers) - 1)], {}  # the first call is the warm-up

    for name in ("_reference", "_refiner"):
        monkeypatch.setattr(worker, name, lambda *task: (refine, 7))
    return worker.measure(Task(case, str(folder), None, threads=1, repeats=repeats)), len(asked)


@pytest.mark.usefixtures("one_thread")
class TestWorker:
    @pytest.mark.parametrize(("error", "fault"), [(0.5e-4, ""), (2e-4, "up to 2.0e-04, 1e-04 is allowed")])
    def test_crm_r50_counts_if_it_equals_the_reference(self, monkeypatch, folder, error, fault):
        p = spread()
        p[2, 3] += error
        run, _ = measured(monkeypatch, folder, EXACT, p)
        assert fault in run.fault
        assert bool(run.seconds) == (not fault)
        if not fault:
            assert run.difference is not None
            assert run.difference.largest == pytest.approx(error, rel=1e-2)

    def test_what_need_not_equal_its_twin_is_compared_with_it(self, monkeypatch, folder):
        case = Case("crm-r50", "bfloat16", "contour", SIZE)
        run, _ = measured(monkeypatch, folder, case, 1 - spread())
        assert run.fault == ""
        assert run.difference == Difference(str(REFERENCED), pytest.approx(0.8), 1.0)

    def test_what_others_are_compared_with_leaves_its_result(self, monkeypatch, folder):
        twin = SMALL.twin
        assert measured(monkeypatch, folder, SMALL, spread())[0].difference is None, "its twin has not run"
        measured(monkeypatch, folder, twin, spread())
        np.testing.assert_array_equal(np.load(folder / twin.file), spread())
        assert measured(monkeypatch, folder, SMALL, spread())[0].difference == Difference(str(twin), 0, 0)
        assert not (folder / SMALL.file).exists()

    @pytest.mark.parametrize("value", [np.nan, -0.1, 1.1])
    def test_what_is_no_probability_does_not_count(self, monkeypatch, folder, value):
        p = spread()
        p[0, 0] = value
        run, calls = measured(monkeypatch, folder, SMALL, p, repeats=3)
        assert run == Run(fault="wrong: its result is no map of probabilities of 6 x 8")
        assert calls == 2, "the warm-up and the one that was wrong"
        assert run.as_dict() == {"fault": run.fault}

    def test_an_empty_result_does_not_count(self, monkeypatch, folder):
        assert "nothing of the mask" in measured(monkeypatch, folder, SMALL, 0.5 * spread())[0].fault

    def test_nothing_is_checked_by_a_reference_that_is_the_same_everywhere(self, monkeypatch, folder):
        flat = np.full(SHAPE, 0.7, np.float32)
        assert "nothing can be checked" in measured(monkeypatch, folder, REFERENCED, flat)[0].fault

    def test_more_memory_than_is_allowed_does_not_count(self, monkeypatch, folder):
        capped = Case("crm-s", "bfloat16", "default in 2GiB", SIZE)
        assert not measured(monkeypatch, folder, capped, spread())[0].fault
        monkeypatch.setattr(worker, "peak_resident_set", lambda: resident_set() + 3 * 2**30)
        assert "MB, 2147 MB are allowed" in measured(monkeypatch, folder, capped, spread())[0].fault

    @pytest.mark.parametrize(("enough", "calls"), [(np.inf, 3), (1e-12, 1)])
    def test_calls_are_repeated_until_they_took_enough_time(self, monkeypatch, folder, enough, calls):
        monkeypatch.setattr(worker, "ENOUGH", enough)
        run, asked = measured(monkeypatch, folder, SMALL, spread(), repeats=3)
        assert len(run.seconds) == calls
        assert asked == calls + 1

    def test_a_process_that_fails_is_a_fault_in_its_own_words(self, folder):
        task = Task(replace(SMALL, dtype="float7"), str(folder), None, threads=1, repeats=1)
        fault = worker.run(task).fault
        assert fault.startswith("ended with code 1: ")
        assert "dtype='float7' is unknown" in fault

    def test_a_task_runs_on_the_cpu_unless_told_otherwise(self, monkeypatch, folder):
        given, refiner = [], refine.Refiner
        monkeypatch.setattr(
            refine, "Refiner", lambda *args, **options: given.append(options) or refiner(*args, **options)
        )
        run = worker.measure(Task(SMALL, str(folder), None, threads=1, repeats=1))
        assert [options["device"] for options in given] == ["cpu"]
        assert run.planned > 2**28
        assert run.before > 10**7, "the resident set"
        assert run.report["device"] == "cpu"

    def test_on_cuda_the_memory_is_the_devices_and_its_clock_waits_for_it(self, monkeypatch, folder):
        calls: list[str] = []
        answers = {
            "memory_allocated": iter([100]),
            "reset_peak_memory_stats": iter([None]),
            "synchronize": iter([None] * 4),
            "max_memory_allocated": iter([900, 700]),
        }

        def answer(name, device):
            calls.append(f"{name} {device}")
            return next(answers[name])

        for name in answers:
            monkeypatch.setattr(torch.cuda, name, partial(answer, name))
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

        def refined(image, mask):
            calls.append(f"refine {mask.size}")
            return spread(), {}

        for name in ("_reference", "_refiner"):
            monkeypatch.setattr(worker, name, lambda *task: (refined, 0))
        run = worker.measure(Task(SMALL, str(folder), None, threads=1, repeats=2, device="cuda"))
        assert (run.fault, run.before, run.peak, run.planned) == ("", 100, 900, 0)
        assert not torch.backends.cudnn.allow_tf32
        timed = ["synchronize cuda", "refine 48", "synchronize cuda", "max_memory_allocated cuda"]
        assert calls[:3] == ["memory_allocated cuda", "refine 48", "refine 48"]
        assert calls[3:] == ["reset_peak_memory_stats cuda", *timed, *timed]

    def test_network_and_refiner_go_to_the_tasks_device(self, monkeypatch, folder):
        moved = []
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, *to, **_: moved.extend(to) or self)
        monkeypatch.setattr("refine.engine.resolve_device", torch.device)
        monkeypatch.setattr("refine.engine.resolve_dtype", lambda *_: torch.float32)
        torch.save(ReferenceCRM().state_dict(), folder / "published.pth")
        task = Task(REFERENCED, str(folder), str(folder / "published.pth"), threads=1, repeats=1, device="cuda:1")
        worker._reference(task)
        assert worker._refiner(replace(task, case=SMALL, weights=None), SHAPE)[1] == 0, (
            "no plan is of a device's memory"
        )
        assert list(map(str, moved)) == ["cuda:1", "cuda:1", "torch.float32"]


def test_shares_are_of_all_scales():
    scales = [
        {"pixels_decoded": 10, "pixels_kept": 0, "encoded": 1.0, "size": [1, 10]},
        {"pixels_decoded": 15, "pixels_kept": 75, "encoded": 0.5, "size": [3, 30]},
    ]
    figures = Run([2.0, 1.0, 4.0], before=100, peak=350, planned=300, report={"scales": scales}).as_dict()
    assert figures["decoded"] == 25 / 100
    assert figures["encoded"] == 55 / 100
    assert figures["seconds"] == {"median": 2.0, "min": 1.0, "max": 4.0, "each": [2.0, 1.0, 4.0]}
    assert figures["memory"] == {"before": 100, "peak": 350, "over": 250, "planned": 300}


class TestCases:
    @pytest.mark.parametrize("blocks", [suite.WHOLE, suite.QUICK, suite.ON_GPU])
    def test_each_stands_once_and_after_its_twin(self, blocks):
        cases = [case for block in blocks for case in block.at(block.megapixels)]
        assert len(set(cases)) == len(cases)
        for case in cases:
            assert case.policy in (["published"] if case.model == REFERENCE else worker.POLICIES | worker.CAPPED)
            if case.twin in cases:
                assert cases.index(case.twin) <= cases.index(case)

    def test_what_must_equal_the_reference_is_only_measured_where_that_is(self):
        for blocks in (suite.WHOLE, suite.QUICK, suite.ON_GPU):
            cases = suite.chosen(blocks)
            assert any(case.exact for case in cases)
            assert all(case.twin in cases for case in cases if case.exact)

    def test_the_whole_suite_has_every_policy_of_every_model_and_all_sizes(self):
        cases = suite.chosen(suite.WHOLE)
        policies = {(case.model, case.policy) for case in cases}
        assert {("crm-s", policy) for policy in worker.POLICIES | worker.CAPPED} <= policies
        assert {("crm-r50", policy) for policy in worker.POLICIES if policy != "default"} <= policies
        default = [case.megapixels for case in cases if str(case).startswith("crm-s bfloat16 default")]
        assert default == [1, 2, 4, 8, 16, 24, 24]  # the last within 2 GiB

    def test_the_reference_runs_with_whatever_must_equal_it(self):
        cases = suite.chosen(suite.WHOLE, words=["crm-r50", "float32", "dense"])
        assert [case.model for case in cases] == [REFERENCE, REFERENCE, "crm-r50", "crm-r50"]
        assert all(case.model == "crm-r50" for case in suite.chosen(suite.WHOLE, words=["crm-r50", "contour"]))

    def test_they_are_chosen_by_words_and_brought_to_other_sizes(self):
        cases = suite.chosen(suite.QUICK, [3, 5], ["crm-s", "bfloat16"])
        assert {case.megapixels for case in cases} == {3, 5}
        assert {case.policy for case in cases} == {"default", "strided-4 near"}
        assert {case.model for case in cases} == {"crm-s"}
        with pytest.raises(ValueError, match="no case is called 'crm-x'; their words are reference, float32"):
            suite.chosen(suite.QUICK, words=["crm-x"])

    def test_none_begins_when_the_time_is_over(self, monkeypatch):
        monkeypatch.setattr(suite, "run", lambda task: pytest.fail("it began"))
        pictures = inputs.generated([0.001])
        cases = suite.chosen(suite.QUICK, [0.001], ["crm-s"])
        found = suite.measure(cases, pictures, weights_r50=None, threads=1, repeats=1, until=0.0)
        assert found["cases"] == []
        assert found["left_out"] == [str(case) for case in cases]


@pytest.mark.parametrize("shape", [(2, 3), (33, 50), (130, 257)])
@pytest.mark.parametrize("name", test_kernels.NAMES)
def test_every_benchmarked_kernel_gives_what_its_twin_gives(name, shape):
    test_kernels.comparison(name, shape).check()


def test_a_small_run_writes_results_that_can_be_read_and_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # the kernels' own pytest would take itself for a worker
    words = ["--quick", "--megapixels", "0.05", "--cases", "crm-s bfloat16", "--repeats", "1", "--threads", "1"]
    assert suite.main([*words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    kind = results.machine(1)["kind"]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{kind}.json",
        f"{kind}.md",
        f"{kind}-latency.png",
        f"{kind}-memory.png",
    }
    found = results.read((tmp_path / f"{kind}.json").read_text(), "it")
    assert [case["policy"] for case in found["cases"]] == ["default", "strided-4 near"]
    for case in found["cases"]:
        assert not case["fault"]
        assert 0 < case["seconds"]["median"] < np.inf
        assert 0 < case["memory"]["before"] < case["memory"]["peak"]
        assert case["memory"]["planned"] > 2**28
        assert 0 < case["decoded"] <= 1
        assert 0 < case["encoded"] <= 1
    assert found["cases"][1]["options"]["first_pass"] == "near"
    assert [kernel["name"] for kernel in found["kernels"]] == list(test_kernels.NAMES)
    assert found["pictures"]["0.05"]["contour"] > 100
    page = (tmp_path / f"{kind}.md").read_text()
    assert all(f"| crm-s bfloat16 {policy} | 0.05 |" in page for policy in ("default", "strided-4 near"))
    assert "| `contour_band` |" in page
    assert "crm-s bfloat16 strided-4 near" in printed
    for name in ("latency", "memory"):
        assert cv2.imread(str(tmp_path / f"{kind}-{name}.png")).std() > 10
    assert suite.main(["--compare", *[str(tmp_path / f"{kind}.json")] * 2]) == 0
    assert "no change of latency or memory by more than 10%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ([], True),
        (["--minutes", "19"], True),
        (["--no-kernels"], False),
        (["--repeats", "1"], False),
        (["--weights-r50", "own.pth"], False),
        (["--quick"], False),
    ],
)
def test_only_the_whole_suite_goes_where_results_are_committed(monkeypatch, words, whole):
    assert folder_of(monkeypatch, words, left_out=[]) == (
        results.FOLDER if whole else worker.ROOT / "runs" / "benchmarks"
    )


def test_a_suite_that_time_cut_short_does_not_go_there(monkeypatch):
    assert folder_of(monkeypatch, ["--minutes", "19"], left_out=["a case"]) == worker.ROOT / "runs" / "benchmarks"


def folder_of(monkeypatch, words, *, left_out):
    folders = []
    monkeypatch.setattr(inputs, "generated", lambda sizes, _: {s: (np.zeros((*SHAPE, 3)), spread()) for s in sizes})
    monkeypatch.setattr(suite, "kernels", lambda *_: [])
    monkeypatch.setattr(suite, "measure", lambda *_, **__: {"weights": {}, "cases": [], "left_out": left_out})
    monkeypatch.setattr(results, "write", lambda found, folder: folders.append(folder) or [])
    assert suite.main(words) == 0
    (folder,) = folders
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test wants missing")
@pytest.mark.parametrize("words", [["--quick"], ["--compare"]])
def test_a_device_that_is_not_there_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr(suite, "run", lambda task: pytest.fail("it began"))
    assert suite.main([*words, "--device", "cuda", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("device='cuda' is unknown or not on this machine")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_device_whose_memory_cannot_be_measured_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("refine.devices.resolve_device", torch.device)
    assert suite.main(["--device", "mps"]) == 2
    assert capsys.readouterr().err == "--device mps is mps, whose memory cannot be measured; give cpu or cuda\n"


def test_a_run_on_cuda_has_its_own_cases_its_tasks_the_device_and_no_kernels(tmp_path, monkeypatch, capsys):
    tasks: list[Task] = []
    monkeypatch.setattr("refine.devices.resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(suite, "run", lambda task: tasks.append(task) or Run([0.1], before=10**7, peak=10**8))
    monkeypatch.setattr(suite, "kernels", lambda *_: pytest.fail("they are of the CPU"))
    assert suite.main(["--device", "cuda", "--megapixels", "0.01", "--cases", "crm-s", "--out", str(tmp_path)]) == 0
    assert {task.device for task in tasks} == {"cuda"}
    assert {task.case for task in tasks} == set(suite.chosen(suite.ON_GPU, [0.01], ["crm-s"]))
    found = results.read((tmp_path / f"nvidia-h100-80gb-hbm3-{results.usable_cores()}-cores.json").read_text(), "it")
    assert (found["machine"]["device"], found["machine"]["gpu"]) == ("cuda", "NVIDIA H100 80GB HBM3")
    assert found["kernels"] == []
    page = (tmp_path / f"nvidia-h100-80gb-hbm3-{results.usable_cores()}-cores.md").read_text()
    assert page.startswith(f"# NVIDIA H100 80GB HBM3, beside {found['machine']['cpu']}, ")
    assert "MB are the peak of what torch has allocated on the GPU" in page
    assert "resident set" not in page
    assert "| crm-s bfloat16 default | 0.01 | 0.100 | once | - | 90 | - |" in page
    assert "crm-s bfloat16 default" in capsys.readouterr().out


def case(policy: str = "default", seconds: float = 1.0, over: float = 1e8, **others: Any) -> dict[str, Any]:
    figures = Run([seconds], before=10**8, peak=round(10**8 + over)).as_dict()
    return {"model": "crm-s", "dtype": "float32", "policy": policy, "megapixels": 4.0, **figures, **others}


def made(*cases: dict[str, Any], **others: Any) -> results.Results:
    """A run by hand."""
    return {
        "date": "2025-01-01T00:00:00+00:00",
        "commit": "0123456789abcdef0123+",
        "machine": {**results.machine(2), "kind": "k"},
        "weights": {"crm-s": "shipped", "crm-r50": "own.safetensors, sha256 0"},
        "pictures": {"4": {"source": "generated scene", "size": [1633, 2450]}},
        "cases": list(cases),
        "kernels": [],
        "left_out": [],
        **others,
    }


class TestChanges:
    @pytest.mark.parametrize(
        ("seconds", "over", "named"),
        [
            (1.09, 0.91e8, []),
            (0.91, 1.09e8, []),
            (1.2, 1e8, ["crm-s float32 default, 4 MP: latency 1.00 s -> 1.20 s (+20%)"]),
            (0.5, 1e8, ["crm-s float32 default, 4 MP: latency 1.00 s -> 0.500 s (-50%)"]),
            (1.0, 1.5e8, ["crm-s float32 default, 4 MP: memory 100 MB -> 150 MB (+50%)"]),
            (
                1.2,
                0.5e8,
                [
                    "crm-s float32 default, 4 MP: memory 100 MB -> 50.0 MB (-50%)",
                    "crm-s float32 default, 4 MP: latency 1.00 s -> 1.20 s (+20%)",
                ],
            ),
        ],
    )
    def test_by_more_than_a_tenth_are_named_the_largest_first(self, seconds, over, named):
        assert results.changes(made(case(seconds=seconds, over=over)), made(case())) == named

    def test_from_no_memory_to_some_is_one(self):
        (line,) = results.changes(made(case(over=1e6)), made(case(over=0)))
        assert line == "crm-s float32 default, 4 MP: memory 0 MB -> 1.00 MB"

    def test_of_kernels_are_named_too(self):
        new, base = (made(kernels=[{"name": "x", "seconds": s, "plain_seconds": 1}]) for s in (0.02, 0.01))
        assert results.changes(new, base) == ["kernel x: latency 0.0100 s -> 0.0200 s (+100%)"]

    def test_a_run_from_before_there_were_devices_is_one_of_the_cpu(self, tmp_path, capsys):
        older = made(case())
        del older["machine"]["device"], older["machine"]["gpu"]
        for name, run in (("a", made(case())), ("b", older)):
            (tmp_path / name).write_text(json.dumps(run))
        assert suite.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
        assert "no change of latency" in capsys.readouterr().out
        read = results.read(json.dumps(older), "it")
        assert read["machine"]["device"] == "cpu"
        assert results.markdown(read) == results.markdown(made(case()))

    @pytest.mark.parametrize("file", sorted(results.FOLDER.glob("*cores.json")), ids=lambda file: file.stem)
    def test_those_committed_can_be_read(self, file):
        found = results.read(file.read_text(encoding="utf-8"), file.name)
        assert results.changes(found, found) == []
        assert results.markdown(found).startswith(f"# {found['machine']['cpu']}, ")

    def test_what_came_or_went_or_failed_is_named_behind_them(self):
        new = made(case("dense", 3.0), case("bbox", fault="wrong: x"), case("contour"))
        base = made(case(), case("dense"), case("bbox"))
        assert results.changes(new, base) == [
            "crm-s float32 dense, 4 MP: latency 1.00 s -> 3.00 s (+200%)",
            "crm-s float32 default, 4 MP: only in the base",
            "crm-s float32 bbox, 4 MP: wrong: x",
            "crm-s float32 contour, 4 MP: only in the new run",
        ]
        assert "crm-s float32 bbox, 4 MP: right again" in results.changes(base, new)

    def test_other_pictures_or_weights_are_told(self):
        other = made(case(), weights={"crm-s": "others"}, pictures={"4": {"source": "x.jpg"}})
        assert results.changes(other, made(case())) == ["the pictures are not the same", "the weights are not the same"]

    def test_between_kinds_of_machine_mean_nothing(self, tmp_path, capsys):
        other = made(case(), machine={**results.machine(2), "kind": "other"})
        with pytest.raises(ValueError, match="different kinds of machine cannot be compared: other and k"):
            results.changes(other, made(case()))
        for name, run in (("a", other), ("b", made(case()))):
            (tmp_path / name).write_text(json.dumps(run))
        assert suite.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
        assert "other and k" in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({**made(), "cases": [{"fault": ""}]})])
    def test_what_is_no_result_is_refused_by_name(self, tmp_path, capsys, text):
        file = tmp_path / "x.json"
        file.write_text(text)
        assert suite.main(["--compare", str(file), str(file)]) == 2
        assert "x.json: no result of the benchmarks" in capsys.readouterr().err

    def test_a_missing_file_is_told(self, tmp_path, capsys):
        assert suite.main(["--compare", str(tmp_path / "missing.json")]) == 2
        assert "missing.json" in capsys.readouterr().err

    def test_without_a_base_the_committed_one_is_taken(self, tmp_path, monkeypatch, capsys):
        for words in (["init", "-q"], ["config", "user.email", "a@b.c"], ["config", "user.name", "a"]):
            subprocess.run(["git", *words], cwd=tmp_path, check=True)
        monkeypatch.setattr(results, "ROOT", tmp_path)
        file = tmp_path / "k.json"
        file.write_text(json.dumps(made(case())))
        assert suite.main(["--compare", str(file)]) == 2
        assert "no result of this kind of machine has been committed" in capsys.readouterr().err
        subprocess.run("git add k.json && git commit -q -m x", shell=True, cwd=tmp_path, check=True)
        file.write_text(json.dumps(made(case(seconds=2.0))))
        assert suite.main(["--compare", str(file)]) == 0
        printed = capsys.readouterr().out
        assert "latency 1.00 s -> 2.00 s (+100%)" in printed
        assert "commit 0123456789ab+" in printed


class TestTable:
    def test_times_are_against_the_reference_of_the_size_or_by_area_from_the_nearest(self):
        reference = case("published", 100.0, model=REFERENCE)
        cases = [reference, {**reference, "megapixels": 1.0, **Run([20.0]).as_dict()}]
        assert results.times_faster(case(seconds=2.0), cases) == "50.0"
        assert results.times_faster(case(seconds=2.0, megapixels=8.0), cases) == "~100"
        assert results.times_faster(case(seconds=2.0, megapixels=0.5), cases) == "~5.00"
        assert results.times_faster(case(), []) == "-"

    def test_every_case_has_a_row_and_the_weights_are_told(self):
        cases = [case(policy, model=model) for model in ("crm-s", "crm-r50") for policy in ("dense", "contour")]
        page = results.markdown(made(*cases))
        assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| crm")] == [
            "| crm-s float32 dense",
            "| crm-s float32 contour",
            "| crm-r50 float32 dense",
            "| crm-r50 float32 contour",
        ]
        assert "Weights: crm-s shipped; crm-r50 own.safetensors, sha256 0." in page

    def test_faults_and_what_was_left_out_are_told(self):
        page = results.markdown(made(case(fault="wrong: x"), left_out=["a, 1 MP", "b, 2 MP"]))
        assert "crm-s float32 default, 4 MP: wrong: x" in page
        assert "Left out, for time: a, 1 MP; b, 2 MP." in page
        assert "| crm-s" not in page

    @pytest.mark.parametrize(
        ("value", "text"), [(0, "0"), (0.00123, "0.00123"), (1, "1.00"), (12.34, "12.3"), (999, "999"), (1234, "1234")]
    )
    def test_figures_have_three_digits(self, value, text):
        assert results.digits(value) == text

    def test_a_kind_of_machine_is_a_files_name(self):
        assert results.kind("Some(R) CPU @ 2.90GHz", 2) == "some-r-cpu-2-90ghz-2-cores"
        assert results.kind("Some(R) CPU @ 2.90GHz", 2, "NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3-2-cores"

    def test_a_run_of_faults_alone_is_drawn_and_written(self, tmp_path):
        for path in results.write(made(case(fault="wrong: x")), tmp_path):
            assert path.stat().st_size > 0


@pytest.mark.usefixtures("one_thread")
def test_a_slide_is_killed_and_goes_on_to_a_better_mask(tmp_path, capsys):
    words = ["--size", "500x700", "--objects", "1", "--folder", str(tmp_path), "--threads", "1"]
    assert slide.main([*words, "--kill", "2"]) == 0
    killed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (killed["killed_at"], killed["steps_done_before"]) == (2, 0)
    assert slide.main(words) == 0  # better than its coarse mask
    *_, figures, found = capsys.readouterr().out.splitlines()
    assert json.loads(figures)["steps_done_before"] >= 1
    assert 0 < json.loads(figures)["over"] < 4 * 2**30
    assert found.startswith("IoU ")


@pytest.fixture
def at_once(monkeypatch, tmp_path):
    """Calls the slide's command with a worker that finds the objects at once, and says what memory that took."""
    monkeypatch.setattr(slide, "OBJECT", (80, 120))

    def call(count: int, over: int) -> int:
        def run(command, **_):
            fine = np.zeros((200, 300), np.uint8)
            for window, (_, truth, _) in slide.objects(fine.shape, count):
                fine[window.slices] = truth
            tifffile.imwrite(tmp_path / f"200x300-{count}" / "fine.tif", fine)
            return subprocess.CompletedProcess(command, 0, json.dumps({"over": over}).encode())

        monkeypatch.setattr(slide.subprocess, "run", run)
        words = ["--size", "200x300", "--folder", str(tmp_path), "--max-memory", "4GiB"]
        return slide.main([*words, "--objects", str(count)])

    return call


def test_a_slide_that_took_more_memory_than_allowed_fails(at_once, capsys):
    assert at_once(1, 4 * 2**30) == 0
    assert at_once(1, 99 * 2**30) == 1
    assert capsys.readouterr().out.endswith("took 106300 MB, 4295 MB are allowed\n")


def test_a_slide_of_another_number_of_objects_is_another(at_once, tmp_path):
    for count in (1, 2):
        at_once(count, 1)
        coarse = np.zeros((200, 300), np.uint8)
        for window, (_, _, mask) in slide.objects(coarse.shape, count):
            coarse[window.slices] = mask * np.uint8(255)
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"200x300-{count}" / "coarse.tif"), coarse)


def test_patches_take_a_third_of_fusions_memory_and_change_no_latent():
    network, view = memory.network_and_view(*inputs.generated([0.05])[0.05])
    patched_latent, patched = memory.stage_peaks(network, view, tile=2048, patch=48)
    whole_latent, whole = memory.stage_peaks(network, view, tile=2048, patch=2048)
    assert float(whole_latent.std()) > 0.1
    np.testing.assert_allclose(patched_latent, whole_latent, rtol=0, atol=1e-5)
    assert whole["fuse"].total == max(peak.total for peak in whole.values()), "else there is nothing to lower"
    assert 3 * patched["fuse"].total <= whole["fuse"].total
    assert 3 * patched["fuse"].own <= whole["fuse"].own
    assert patched["fuse"].total < patched["encode"].total
    for stage in ("encode", "decode"):
        assert patched[stage] == whole[stage]
