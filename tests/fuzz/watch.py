"""Runs inputs in processes of their own, and tells of those that raise, hang, crash, take much memory or differ."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 5.0  # of the processor for one call
PATIENCE = 60.0  # seconds of the clock for one call, on a machine that does other things
MEMORY = 3 * 2**30  # bytes that one call may take: pictures of 250 megapixels are read unasked
FILLINGS = (85, 170)  # of fresh memory (MALLOC_PERTURB_)
MODULE = "fuzz.worker"
_KEPT = 3  # inputs of one fault

Job = tuple[str, int]  # target and number


@dataclass(frozen=True)
class Finding:
    """One input with which something is wrong."""

    kind: str  # raised, hang, crash, memory, differs
    target: str
    number: int
    text: str
    where: str = ""

    @property
    def fault(self) -> tuple[str, ...]:
        """Equal for inputs that most likely show one fault."""
        return (self.kind, self.target if self.kind != "raised" else "", self.where or self.text[:60])


@dataclass
class Watch:
    """Runs jobs of one seed until they or the time end; what it finds is written to ``folder``, if there is one."""

    seed: int
    folder: Path | None = None
    seconds: float = 30.0
    findings: list[Finding] = field(default_factory=list)
    done: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def run(self, jobs: Iterable[Job]) -> list[Finding]:
        self._ends = time.monotonic() + self.seconds
        self._lock, self._first = threading.Lock(), {}
        self._faults: Counter[tuple[str, ...]] = Counter()
        ahead: list[Job] = []
        source = iter(jobs)

        def each() -> Iterator[Job]:
            """The jobs, of which each of the threads gets all."""
            at = 0
            while time.monotonic() < self._ends:
                with self._lock:
                    if at == len(ahead):
                        following = next(source, None)
                        if following is None:
                            return
                        ahead.append(following)
                    job = ahead[at]
                at += 1
                yield job

        threads = [threading.Thread(target=self._feed, args=(each(), filling), daemon=True) for filling in FILLINGS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.findings

    def _feed(self, jobs: Iterator[Job], filling: int) -> None:
        worker = None
        try:
            for target, number in jobs:
                worker = worker or _Worker(self.seed, filling)
                try:
                    outcome = worker.do(target, number)
                except _Ended as ended:
                    outcome = {"kind": ended.kind, "text": ended.text, "where": ended.where}
                with self._lock:
                    self._take(target, number, outcome, worker)
                if outcome["kind"] in ("hang", "crash", "memory"):
                    worker.close()
                    worker = None
        finally:
            if worker is not None:
                worker.close()

    def _take(self, target: str, number: int, outcome: dict[str, Any], worker: "_Worker") -> None:
        if outcome["kind"] != "fine":
            self._find(Finding(outcome["kind"], target, number, outcome["text"], outcome.get("where", "")), worker)
        if (target, number) not in self._first:
            self._first[target, number] = outcome
            return
        first = self._first.pop((target, number))
        self.done += 1
        self.outcomes.update(f"{target}: {name}" for name in outcome.get("names", [outcome["kind"]]))
        if "fine" == first["kind"] == outcome["kind"] and first["text"] != outcome["text"]:
            pairs = zip(first["text"].split("\n"), outcome["text"].split("\n"), strict=False)
            other = next(" / ".join(pair) for pair in pairs if pair[0] != pair[1])
            self._find(Finding("differs", target, number, f"with other bytes in fresh memory: {other}"), worker)

    def _find(self, finding: Finding, worker: "_Worker") -> None:
        self._faults[finding.fault] += 1
        if self._faults[finding.fault] > _KEPT:
            return
        if any((finding.fault, finding.number) == (f.fault, f.number) for f in self.findings):
            return
        self.findings.append(finding)
        if self.folder is not None:
            place = self.folder / f"{finding.kind}-{finding.target}-{self.seed}-{finding.number}"
            shutil.copytree(worker.folder, place, dirs_exist_ok=True)
            (place / "finding.txt").write_text(f"{finding.where}\n{finding.text}\n", errors="backslashreplace")

    @property
    def timed_out(self) -> bool:
        return time.monotonic() >= self._ends

    def summary(self) -> str:
        lines = [f"{self.done} inputs, {len(self._faults)} faults"]
        lines += [f"{count:7d}  {' '.join(fault)}" for fault, count in self._faults.most_common()]
        return "\n".join(lines + [f"{count:7d}  {name}" for name, count in sorted(self.outcomes.items())])


class _Ended(Exception):
    def __init__(self, kind: str, text: str, where: str = "") -> None:
        self.kind, self.text, self.where = kind, text, where


class _Worker:
    """A process that runs one job after the other in a folder of its own."""

    def __init__(self, seed: int, filling: int) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.folder = Path(self._place.name) / "input"
        self._errors = (Path(self._place.name) / "errors").open("w+b")
        here = os.fspath(Path(__file__).parents[1])
        one = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | {"MALLOC_PERTURB_": str(filling), "PYTHONHASHSEED": "0"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, environment.get("PYTHONPATH"))))
        environment |= dict.fromkeys(one, "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(seed), os.fspath(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self._buffer = b""

    def do(self, target: str, number: int) -> dict[str, Any]:
        """What came of a job. Raises _Ended where the process has to be ended, or ended itself."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{target} {number}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._crashed() from None
        clock, processor, resident = time.monotonic(), self._seconds(), None
        while True:
            line = self._line()
            if line is None:
                if not self._alive():
                    raise self._crashed()
                if resident is None:
                    continue
                if self._seconds() - processor > SECONDS or time.monotonic() - clock > PATIENCE:
                    raise self._killed("hang", f"takes more than {SECONDS:g} s")
                if self._resident() - resident > MEMORY:
                    raise self._killed("memory", f"takes more than {MEMORY / 2**30:g} GiB")
                continue
            message = json.loads(line)
            if "kind" in message:
                return message
            clock, processor, resident = time.monotonic(), self._seconds(), self._resident()  # a call begins

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._place.cleanup()

    def _line(self) -> bytes | None:
        """The next line, waited for a moment."""
        assert self._process.stdout is not None
        if b"\n" not in self._buffer and select.select([self._process.stdout], [], [], 0.02)[0]:
            self._buffer += os.read(self._process.stdout.fileno(), 1 << 16)
        line, end, rest = self._buffer.partition(b"\n")
        if not end:
            return None
        self._buffer = rest
        return line

    def _alive(self) -> bool:
        return self._process.poll() is None

    def _crashed(self) -> _Ended:
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Ended("crash", f"{name}\n{self._told()}", f"{name} {self._last_frame()}")

    def _killed(self, kind: str, text: str) -> _Ended:
        self._process.send_signal(signal.SIGUSR1)  # faulthandler tells where it is
        time.sleep(0.3)
        self._process.kill()
        self._process.wait()
        return _Ended(kind, f"{text}\n{self._told()}", self._last_frame())

    def _told(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-6000:]

    def _last_frame(self) -> str:
        """Of the package, in what faulthandler wrote: the latest call first."""
        frames = [line.strip() for line in self._told().splitlines() if "/refine/" in line and " in " in line]
        return frames[0].rpartition("/")[2] if frames else ""

    def _seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _resident(self) -> int:
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0
