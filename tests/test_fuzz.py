import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from fuzz import files, mutate
from fuzz.targets import GROUPS, target
from fuzz.watch import Watch
from fuzz.worker import Calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refine.errors import RefineError
from refine.io import read_image

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are watched by Linux's /proc")

# Inputs of a target, which take half a minute of two processors in all; `make fuzz` goes on for hours.
NUMBERS = {"files": 60, "state": 12, "calls": 20, "weights": 3}


@linux
def test_damaged_inputs_give_a_result_or_an_error_and_nothing_else(tmp_path):
    jobs = [(name, i) for group, names in GROUPS.items() for i in range(NUMBERS[group]) for name in names]
    watch = Watch(seed=22, folder=tmp_path, seconds=40)
    found = watch.run(jobs)
    assert not found, f"{watch.summary()}\n{found[0].text}"
    assert watch.done == len(jobs) or watch.timed_out
    assert watch.done > 50


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(rng=st.randoms(use_true_random=False))
@pytest.mark.filterwarnings("ignore")
def test_calls_with_odd_arrays_and_options_give_a_result_or_an_error(tmp_path_factory, one_thread, rng):
    folder = tmp_path_factory.mktemp("call")
    target(rng.choice(GROUPS["calls"]))(rng, folder, Calls(folder))


# ------------------------------------------------------------------------------- the fuzzer sees what it is to see


def watched(monkeypatch, tmp_path, code: str, **options) -> Watch:
    """What is found where a target is ``code``."""
    (tmp_path / "package").mkdir()
    hook = (
        "import fuzz.targets as t, numpy as np, os, time\n"
        "from refine.errors import InputError\n"
        f"def bad(rng, folder, calls):\n    (folder / 'input').write_text(str(rng.random()))\n    {code}\n"
        "t.target = lambda name: bad\n"
    )
    (tmp_path / "package" / "sitecustomize.py").write_text("")
    (tmp_path / "package" / "hooked.py").write_text(
        f"{hook}import fuzz.worker as w, sys\nw.target = t.target\nw.main(*sys.argv[1:])\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path / "package"))
    monkeypatch.setattr("fuzz.watch.MODULE", "hooked")
    for name, value in options.items():
        monkeypatch.setattr(f"fuzz.watch.{name}", value)
    watch = Watch(seed=1, folder=tmp_path / "found", seconds=30)
    watch.run([("bad", 0), ("bad", 1)])
    return watch


@linux
@pytest.mark.parametrize(
    ("code", "kind", "options"),
    [
        ("calls('a', lambda: [][1])", "raised", {}),
        ("calls('a', lambda: os.kill(os.getpid(), 11))", "crash", {}),
        ("calls('a', lambda: exec('while True: pass'))", "hang", {"SECONDS": 0.5}),
        ("calls('a', lambda: time.sleep(100))", "hang", {"PATIENCE": 0.5}),
        ("calls('a', lambda: (np.ones(2**26), time.sleep(9)))", "memory", {"MEMORY": 2**28}),
        ("calls('a', lambda: np.empty(1000))", "differs", {}),
        ("calls('a', lambda: rng.random())", "broken", {}),
        ("calls('a', lambda: exec('raise InputError(str(8) * 60000)'))", "broken", {}),
        ("calls.check(False, 'no')", "broken", {}),
    ],
)
def test_each_kind_of_fault_is_found_and_its_input_kept(monkeypatch, tmp_path, code, kind, options):
    watch = watched(monkeypatch, tmp_path, code, **options)
    assert {finding.kind for finding in watch.findings} == {kind}
    assert {finding.number for finding in watch.findings} == {0, 1}
    assert watch.done == 2
    inputs = sorted((tmp_path / "found").glob(f"{kind}-bad-1-*/input"))
    assert [path.read_text() for path in inputs] == [str(Random(f"1 bad {i}").random()) for i in range(2)]


@linux
def test_what_is_refused_is_no_finding(monkeypatch, tmp_path):
    watch = watched(monkeypatch, tmp_path, "calls('a', lambda: exec('raise InputError(\"no\")'))")
    assert not watch.findings
    assert watch.outcomes == {"bad: a InputError": 2}


def test_an_input_follows_from_its_seed(tmp_path):
    made = []
    for _ in range(2):
        rng = Random("7 tiff 3")
        made.append([mutate.file(data, rng) for data in files.tiffs() + files.pictures()])
    assert made[0] == made[1]
    whole = files.tiffs() + files.pictures()
    changed = sum(a != b for a, b in zip(made[0], whole, strict=True))
    assert changed > 0.8 * len(whole)
    same_length = sum(len(a) == len(b) for a, b in zip(made[0], whole, strict=True))
    assert 0.1 < same_length / len(whole) < 0.9


def test_changed_values_are_json_or_text():
    rng = Random(3)
    row = json.dumps({"a": [1, 2.5, {"b": "c"}], "d": None})
    texts = [mutate.json_text(row, rng) for _ in range(300)]
    assert len(set(texts)) > 150
    assert sum(text != row for text in texts) > 250


def test_the_seeds_are_read_before_they_are_damaged(tmp_path):
    path, read = tmp_path / "file", 0
    for data in files.tiffs() + files.pictures():
        path.write_bytes(data)
        with suppress(RefineError):  # a few are of kinds that are refused
            read += read_image(path).shape in ((40, 50, 3), (50, 40, 3))
    assert read > 80


def test_the_command_line_runs_targets_and_tells_what_it_found(tmp_path):
    command = [
        sys.executable,
        "-m",
        "fuzz",
        "--targets",
        "npy,journal",
        "--inputs",
        "4",
        "--seed",
        "5",
        "--out",
        tmp_path,
    ]
    here = os.fspath(Path(__file__).parent)
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": here}, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "seed 5, npy, journal" in done.stdout
    assert "4 inputs, " in done.stdout
