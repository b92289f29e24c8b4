"""A sample of the kill tests, and that their rig sees what it is to see; `make torture` does the others."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torture.jobs import Job
from torture.rig import Rig, can_mount

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are watched by Linux's /proc")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, seed=22)


def test_a_folder_that_is_killed_starved_and_put_on_a_small_disk_loses_nothing(rig):
    rig.kill("folder", 1)
    rig.starve("folder")
    if can_mount():
        rig.fill("folder")
    assert rig.faults == []


def test_a_slide_that_is_killed_goes_on_and_gives_the_same(rig):
    rig.kill("slide", 2)
    assert rig.faults == []


def test_refining_stays_below_its_cap_of_memory(rig):
    told = rig.measure()
    assert rig.faults == []
    assert told["told"] or 0 < told["over"] <= told["cap"]


# ----------------------------------------------------------------------------------- jobs that are careless


def nothing(folder: Path) -> None:
    pass


def in_place(folder: Path) -> None:
    """Writes its output bit by bit, and does not go on where one is."""
    path = folder / "out/o"
    if path.exists():
        return
    with path.open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(b"x" * 100)
            time.sleep(0.003)


def content(folder: Path) -> dict[str, bytes]:
    path = folder / "out/o"
    return {"o": path.read_bytes()} if path.exists() else {}


def crashing(folder: Path) -> None:
    """Goes down where its disk is full."""
    try:
        (folder / "out/o").write_bytes(b"x" * 2**24)
    except OSError:
        os.kill(os.getpid(), signal.SIGBUS)


def test_what_is_half_written_is_seen(tmp_path):
    rig = Rig(tmp_path, seed=3, jobs={"careless": Job(nothing, in_place, content)})
    for _ in range(4):
        rig.kill("careless", 1)
    assert any("left something else than an undisturbed run" in fault for fault in rig.faults)
    assert any("at its end" in fault for fault in rig.faults)
    assert rig.kills > 0


@pytest.mark.skipif(not can_mount(), reason="only root can mount a small disk, in a name space of its own")
def test_a_crash_on_a_full_disk_is_seen(tmp_path):
    rig = Rig(tmp_path, seed=3, jobs={"crashing": Job(nothing, crashing, content)})
    rig.fill("crashing")
    assert any("SIGBUS" in fault for fault in rig.faults)


def test_memory_that_is_not_there_is_seen(tmp_path):
    rig = Rig(tmp_path, seed=3, jobs={"traced": Job(nothing, traced, content)})
    rig.starve("traced")
    assert any("a traceback" in fault for fault in rig.faults)


def traced(folder: Path) -> None:
    """Asks for memory, and takes the error for another."""
    try:
        (folder / "out/o").write_bytes(np.empty(2**32, np.uint8)[:1].tobytes())
    except MemoryError:
        raise RuntimeError("out of memory") from None
