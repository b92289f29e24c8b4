"""Runs a job in a process of its own, which is killed, has little memory or a small disk, and judges what it leaves."""

import ctypes
import json
import multiprocessing as mp
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from refine.errors import RefineError
from refine.memory import forget_peak, peak_resident_set, resident_set

from .jobs import JOBS, Found, Job

_PATIENCE = 300.0  # seconds for a job that is not disturbed
_NEWNS = 0x20000  # a name space of mounts of its own: linux/sched.h


class Fault(AssertionError):
    """Something was lost, half-written, or ended in another way than by an error of one line."""


# ------------------------------------------------------------------------------------------------ in its process


def _child(work: Callable[[Path], None], folder: Path, begun: Any, memory: int | None, disk: int | None) -> None:
    """Runs a job; what it prints goes to files. memory: bytes beyond what is there; disk: bytes of ``out/``."""
    os.setsid()
    for stream, path in ((1, folder / "stdout"), (2, folder / "stderr")):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    import torch

    from refine.cli import main

    torch.set_num_threads(1)
    if disk is not None:
        _small_disk(folder / "out", disk)
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
            shutil.copytree(folder / "out", folder / "kept", symlinks=True)
            if os.WIFSIGNALED(status):
                os.kill(os.getpid(), os.WTERMSIG(status))
            os._exit(os.WEXITSTATUS(status))
    if memory is not None:
        with suppress(SystemExit):  # imports that the command line leaves until it is used
            main(["weights", "import", "no such file"])
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    begun.send(True)
    try:
        work(folder)
    except RefineError as error:  # as the command line does it
        print(error, file=sys.stderr)
        code = 1
    except MemoryError:
        code = 1
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 99
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def can_mount() -> bool:
    """Whether small disks can be made: root may."""
    return sys.platform == "linux" and os.geteuid() == 0 and _unshared() is not None


def _unshared() -> str | None:
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return "yes" if done.returncode == 0 else None


def _small_disk(place: Path, size: int) -> None:
    """A disk of its own in the place of a folder, seen by this process and its children alone."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    held = place.with_name("held")
    place.rename(held)
    place.mkdir()
    for words in (("--make-rprivate", "/"), ("-t", "tmpfs", "-o", f"size={size}", "none", str(place))):
        subprocess.run(["mount", *words], check=True)
    shutil.copytree(held, place, dirs_exist_ok=True)
    shutil.rmtree(held)


def _measured(pipe: Any, seed: int) -> None:
    """Refines a picture with a random cap of memory, and says what it took beyond the program."""
    import torch

    from refine.engine import Refiner
    from refine.errors import OptionError

    from .jobs import _scene

    torch.set_num_threads(1)
    rng = Random(seed)
    size = rng.randrange(300, 1100), rng.randrange(300, 1100)
    image, _, coarse = _scene(seed, *size)
    options: dict[str, Any] = {"decode": rng.choice(("dense", "strided", "contour"))}
    refiner = Refiner(rng.choice(("crm-s", "crm-s", "crm-r50")), device="cpu", dtype="float32")
    refiner.refine(image[:64, :80], coarse[:64, :80] > 127, **options)  # compiled
    cap: int | str = int(2 ** rng.uniform(25, 31))
    told = ""
    try:
        refiner.plan(size, max_memory=cap, **options)
    except OptionError as error:
        told = str(error)
        peak = refiner.plan(size, **options).peak
        cap = rng.randrange(peak // 2, peak + 1)
    try:
        refiner.plan(size, max_memory=cap, **options)
    except OptionError as error:
        pipe.send({"cap": cap, "over": 0, "told": str(error) or told})
        return
    before = resident_set()
    forget_peak()
    refiner.refine(image, coarse, max_memory=cap, **options)
    pipe.send({"cap": cap, "over": peak_resident_set() - before, "told": "", "size": size, **options})


# ---------------------------------------------------------------------------------------------------- outside of it


@dataclass
class Rig:
    """Disturbs jobs in a folder, which is new; all that is random follows from the seed."""

    place: Path
    seed: int
    jobs: Mapping[str, Job] = field(default_factory=lambda: JOBS)
    kills: int = 0
    caps: int = 0
    disks: int = 0
    faults: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)  # how disturbed runs ended
    wholes: dict[str, tuple[Found, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = Random(f"{self.seed}")
        self.context = mp.get_context("forkserver")
        self.context.set_forkserver_preload(["torch", "refine.cli", "refine.engine", "refine.training.loop", __name__])

    def whole(self, name: str) -> tuple[Found, float]:
        """What a job gives undisturbed, and how long it takes."""
        if name not in self.wholes:
            folder = self._fresh(name)
            code = self._run(name, folder)
            found = self.jobs[name].found(folder)
            if code or not found:
                raise Fault(f"{name} fails undisturbed, exit code {code}: {_told(folder)}")
            self.wholes[name] = found, self._seconds
        return self.wholes[name]

    def kill(self, name: str, times: int) -> None:
        """Kills a job ``times``, each time after going on from where it was, and lets it end."""
        seconds = self.whole(name)[1]
        folder = self._fresh(name)
        before = _content(folder / "in")
        for _ in range(times):
            delay = self.rng.uniform(0, 1.05 * seconds)
            code = self._run(name, folder, after=delay)
            self.kills += code != 0
            self.ends[f"{name}, to be killed: {_name(code)}"] += 1
            self._judge(name, folder, f"killed after {delay:.3f} s")
        self._ends(name, folder, f"killed {times} times")
        self._check(_content(folder / "in") == before, f"{name}: the input is another now")
        shutil.rmtree(folder)

    def starve(self, name: str) -> None:
        """Runs a job with little memory: it ends, or says so in a line."""
        folder = self._fresh(name)
        memory = int(2 ** self.rng.uniform(23, 31))
        code = self._run(name, folder, memory=memory)
        self.caps += 1
        self._said(name, folder, code, f"with {memory >> 20} MiB of memory")
        shutil.rmtree(folder)

    def fill(self, name: str) -> None:
        """Runs a job on a disk that is too small, and then with room."""
        folder = self._fresh(name)
        disk = int(2 ** self.rng.uniform(13, 24))
        code = self._run(name, folder, disk=disk)
        self.disks += 1
        if (folder / "kept").exists():
            shutil.rmtree(folder / "out")
            (folder / "kept").rename(folder / "out")
        case = f"on {disk >> 10} KiB of disk"
        self._said(name, folder, code, case)
        self._ends(name, folder, case)
        shutil.rmtree(folder)

    def measure(self) -> dict[str, Any]:
        """Refines with a cap of memory and judges what it took."""
        here, there = self.context.Pipe(False)
        process = self.context.Process(target=_measured, args=(there, self.rng.getrandbits(30)))
        process.start()
        there.close()
        try:
            told = here.recv() if here.poll(_PATIENCE) else {}
        except EOFError:
            told = {}
        process.kill() if not told else None
        process.join()
        self.caps += 1
        self._check(bool(told), f"refining with a cap of memory ended by {process.exitcode}")
        if told:
            self._check(told["over"] <= told["cap"], f"took more memory than its cap: {json.dumps(told)}")
            self._check("\n" not in told["told"], f"an error of several lines: {told['told']}")
        return told

    # What is judged

    def _said(self, name: str, folder: Path, code: int | None, case: str) -> None:
        """A run that could not do its work ended with an error of a few lines, and what it left is whole."""
        told = _told(folder)
        self.ends[f"{name} {case.split()[0]} little {case.split()[-1]}: {_name(code)}"] += 1
        self._check(code in (0, 1, 2), f"{name} {case}: ended by {_name(code)}: {told}")
        self._check("Traceback" not in told, f"{name} {case}: a traceback: {told}")
        if code:
            self._check(bool(told) or name != "folder", f"{name} {case}: exit code {code} and not a word")
        found = self._judge(name, folder, case)
        if code == 0:
            self._check(_equal(found, self.whole(name)[0]), f"{name} {case}: exit code 0, and something is missing")

    def _judge(self, name: str, folder: Path, case: str) -> Found:
        """What is there is whole and a part of all."""
        try:
            found = self.jobs[name].found(folder)
        except Exception as error:
            self._check(False, f"{name} {case}: left {type(error).__name__}: {error}")
            return {}
        part = {key: value for key, value in self.whole(name)[0].items() if key in found}
        self._check(_equal(found, part), f"{name} {case}: left something else than an undisturbed run")
        return found

    def _ends(self, name: str, folder: Path, case: str) -> None:
        """Undisturbed it goes on to its end."""
        code = self._run(name, folder)
        self._check(code == 0, f"{name} {case}: does not go on, {_name(code)}: {_told(folder)}")
        if code == 0:
            found = self._judge(name, folder, f"{case}, at its end")
            self._check(_equal(found, self.whole(name)[0]), f"{name} {case}: something is missing at its end")
            left = [str(path.name) for path in self.jobs[name].leaves(folder) if path.exists()]
            self._check(not left, f"{name} {case}: leaves {left}")

    def _check(self, fact: bool, text: str) -> None:
        if not fact:
            self.faults.append(text[:3000])
            print(f"{text[:3000]}\n", flush=True)

    # Processes and folders

    def _fresh(self, name: str) -> Path:
        folder = self.place / f"{name}-{self.rng.getrandbits(40):x}"
        (folder / "in").mkdir(parents=True)
        (folder / "out").mkdir()
        self.jobs[name].prepare(folder)
        return folder

    def _run(self, name: str, folder: Path, *, after: float | None = None, **limits: int) -> int | None:
        """Exit code; minus the signal that ended it. after: seconds after which it is killed."""
        here, there = self.context.Pipe(False)
        words = self.jobs[name].work, folder, there, limits.get("memory"), limits.get("disk")
        process = self.context.Process(target=_child, args=words)
        process.start()
        there.close()
        with suppress(EOFError):  # it ended before it began
            here.poll(_PATIENCE) and here.recv()
        started = time.monotonic()
        process.join(_PATIENCE if after is None else after)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        here.close()
        self._seconds = time.monotonic() - started
        return process.exitcode


def _equal(found: Found, other: Found) -> bool:
    """Sums are parted by chance among threads: arrays need not be equal to the bit."""
    if set(found) != set(other):
        return False
    return all(
        np.allclose(value, other[key], atol=1e-5, rtol=1e-4) if isinstance(value, np.ndarray) else value == other[key]
        for key, value in found.items()
    )


def _content(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _told(folder: Path) -> str:
    return "".join(
        (folder / name).read_text(errors="replace")[-2000:] for name in ("stderr",) if (folder / name).exists()
    )


def _name(code: int | None) -> str:
    if code is None:
        return "nothing: it hangs"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
