import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import compare, memory

SHAPE = (6, 8)


@pytest.fixture
def folder(tmp_path) -> Path:
    np.save(tmp_path / "mask.npy", np.zeros(SHAPE, np.uint8))
    write(tmp_path, "reference", spread())
    return tmp_path


def spread() -> np.ndarray:
    return np.linspace(0.1, 0.9, math.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def write(folder: Path, name: str, p: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", p)


def test_comparing_prints_a_table_and_writes_figures_that_are_finite(tmp_path, capsys):
    words = ["--systems", "crm-s-float32", "--megapixels", "0.01", "--repeats", "1", "--threads", "1", "--stages"]
    assert compare.main([*words, "--json", str(tmp_path / "out.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("crm-s-float32 ") for line in lines) == 2, "a line of figures and one of its only scale"
    report = json.loads((tmp_path / "out.json").read_text())
    assert {"date", "commit", "machine", "picture", "weights", "systems"} == set(report)
    (figures,) = report["systems"].values()
    assert not figures["fault"]
    seconds, peak = figures["seconds"], figures["peak_bytes"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"] < math.inf
    assert 0 < peak["loaded"] <= peak["median"] < math.inf
    (stage,) = figures["stages"]
    assert stage["pixels_decoded"] == report["picture"]["height"] * report["picture"]["width"]


def test_the_reference_runs_with_whatever_must_equal_it():
    assert compare.selected("crm-r50-float32") == ["reference", "crm-r50-float32"]
    assert compare.selected("crm-s, crm-r50") == list(compare.SYSTEMS)
    assert compare.selected("crm-s") == ["crm-s-float32", "crm-s-bfloat16"]
    with pytest.raises(ValueError, match="crm-x: unknown; known are crm-r50"):
        compare.selected("crm-s,crm-x")


def test_a_twin_stands_before_what_is_compared_with_it():
    names = list(compare.SYSTEMS)
    for system in compare.SYSTEMS.values():
        assert not system.twin or names.index(system.twin) < names.index(system.name)


@pytest.mark.parametrize(
    ("error", "fault"), [(0.5e-4, ""), (2e-4, "wrong: |dp| to reference up to 2.0e-04, 1e-04 is allowed")]
)
def test_crm_r50_counts_if_it_equals_the_reference(folder, error, fault):
    p = spread()
    p[2, 3] += error
    write(folder, "crm-r50-float32", p)
    found, difference = compare.check(compare.SYSTEMS["crm-r50-float32"], folder)
    assert found == fault
    assert difference.largest == pytest.approx(error, rel=1e-2)


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1])
def test_what_is_no_probability_does_not_count(folder, value):
    p = spread()
    p[0, 0] = value
    write(folder, "crm-s-float32", p)
    assert "no map of probabilities" in compare.check(compare.SYSTEMS["crm-s-float32"], folder)[0]


def test_nothing_is_checked_by_a_reference_that_is_the_same_everywhere(folder):
    write(folder, "reference", np.zeros(SHAPE, np.float32))
    assert "nothing can be checked" in compare.check(compare.SYSTEMS["reference"], folder)[0]


def test_a_wrong_result_has_no_time_and_ends_its_repetitions(folder, monkeypatch):
    results = {"reference": spread(), "crm-r50-float32": 1 - spread()}
    ran = []

    def run(name: str, folder: Path, threads: int) -> compare.Run:
        ran.append(name)
        write(folder, name, results[name])
        return compare.Run(seconds=len(ran), loaded=1, peak=2)

    monkeypatch.setattr(compare, "_run", run)
    measured = compare.compare(list(results), folder, repeats=dict.fromkeys(results, 3), threads=1)
    assert ran == ["reference", "crm-r50-float32", "reference", "reference"]
    figures = compare.as_dict(measured)
    assert figures["reference"]["seconds"] == {"median": 3, "min": 1, "max": 4, "each": [1, 3, 4]}
    assert "seconds" not in figures["crm-r50-float32"]
    assert "crm-r50-float32: wrong" in compare.table(figures)


@pytest.mark.parametrize("shape", [(90, 400), (400, 90), (300, 300), (1, 7), (7, 1), (20, 50)])
def test_the_warm_up_is_a_strip_as_long_as_the_picture_with_foreground(shape):
    image, mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    mask[-1, -1] = 255
    strip, coarse = compare.warm_up_strip(image, mask)
    assert strip.shape[:2] == coarse.shape
    assert max(coarse.shape) == max(shape)
    assert min(coarse.shape) == min(*shape, max(32, min(shape) // compare.WARM_UP))
    assert coarse.any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems count a child's memory from its start")
def test_the_peak_of_a_child_does_not_begin_at_its_parents():
    ballast = np.ones(400 * 2**20, np.uint8)
    command = [sys.executable, "-c", "from benchmarks.compare import peak_resident; print(peak_resident())"]
    child = subprocess.run(command, cwd=compare.ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(child.stdout) < ballast.nbytes / 2
    assert compare.peak_resident() > ballast.nbytes


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a shared processor the threads of a small operation mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_patches_take_a_third_of_fusions_memory_and_change_no_latent():
    network, frame, x = memory.network_and_input(*compare.picture(None, None, 0.05))
    patched_latent, patched = memory.stage_peaks(network, frame, x, tile=2048, patch=48)
    whole_latent, whole = memory.stage_peaks(network, frame, x, tile=2048, patch=2048)
    assert float(whole_latent.std()) > 0.1
    np.testing.assert_allclose(patched_latent, whole_latent, rtol=0, atol=1e-5)
    assert whole["fuse"].total == max(peak.total for peak in whole.values()), "else there is nothing to lower"
    assert 3 * patched["fuse"].total <= whole["fuse"].total
    assert 3 * patched["fuse"].own <= whole["fuse"].own
    assert patched["fuse"].total < patched["encode"].total
    for stage in ("encode", "decode"):
        assert patched[stage] == whole[stage]
