"""One measurement in a process of its own, so that its memory is the case's alone.

The process loads its libraries, the weights and the picture, refines the picture reduced, so that threads are started
and code is loaded, and then the picture itself, a few times: seconds from call to result, and the peak of its resident
set during these calls. The first result is checked before another call is timed; one that is wrong has no figures.

On CUDA memory is what torch has allocated on the device. There the picture itself is refined once more before it is
timed, since kernels are compiled and algorithms chosen by size, and float32 is computed without TF32.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.inputs import Pixels, resized
from refine.memory import forget_peak, peak_resident_set, resident_set

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "reference"
POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "dense": {"decode": "dense"},
    "bbox": {"decode": "bbox"},
    "contour": {"decode": "contour"},
    "strided-4 near": {"decode": "strided", "stride": 4, "first_pass": "near"},
    "strided-4 everywhere": {"decode": "strided", "stride": 4, "first_pass": "everywhere"},
    "strided-2 near": {"decode": "strided", "stride": 2, "first_pass": "near"},
    "strided-8 near": {"decode": "strided", "stride": 8, "first_pass": "near"},
}
CAP = 2 * 2**30  # bytes
CAPPED: dict[str, dict[str, Any]] = {
    "default in 2GiB": {"max_memory": "2GiB"},
    "dense in 2GiB": {"decode": "dense", "max_memory": "2GiB"},
}
PUBLISHED = "published"  # what the reference does, and nothing else
WARM_UP = 0.16  # megapixels: so large that crm-s runs two scales, the second of which has a mask refined before
ENOUGH = 8.0  # seconds of timed calls after which none is repeated
TOLERANCE = 1e-4  # between the probabilities of crm-r50 in float32 and the reference's
MEANINGFUL = 0.1  # the least range of a reference's probabilities for agreement with it to mean something

Probability = NDArray[np.float32]
Refine = Callable[[Pixels, Pixels], tuple[Probability, dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    """What is measured: a model in a type of arithmetic, a policy of decoding, and a size of the picture."""

    model: str
    dtype: str
    policy: str
    """Key of `POLICIES` or `CAPPED`."""
    megapixels: float

    def __str__(self) -> str:
        return f"{self.model} {self.dtype} {self.policy}, {self.megapixels:g} MP"

    @property
    def file(self) -> str:
        """Name of the file that holds its probabilities."""
        return f"{self}.npy"

    @property
    def twin(self) -> "Case":
        """The case whose result this one is compared with: the published one, or of crm-s the one of all pixels."""
        if self.model == "crm-s":
            return Case("crm-s", "float32", "dense", self.megapixels)
        return Case(REFERENCE, "float32", PUBLISHED, self.megapixels)

    @property
    def exact(self) -> bool:
        """Whether its probabilities have to equal its twin's."""
        return (self.model, self.dtype, self.policy) == ("crm-r50", "float32", "dense")


@dataclass(frozen=True)
class Difference:
    """Between a case's probabilities and those of its twin."""

    twin: str
    largest: float
    """Largest |dp|."""
    masks: float
    """Share of the pixels whose mask differs."""


@dataclass(frozen=True)
class Task:
    """What a process is told: the case, where its picture is and results go, and how to run."""

    case: Case
    folder: str
    weights: str | None
    threads: int
    repeats: int
    device: str = "cpu"
    """Or "cuda" or "cuda:N"."""

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Run:
    """What a process measured; memory in bytes. One with a fault has no other figures."""

    seconds: list[float] = field(default_factory=list)
    before: int = 0
    """Resident set with libraries, weights and picture loaded, before the first call; on CUDA, the weights there."""
    peak: int = 0
    """Peak resident set during the timed calls; on CUDA, the peak of what is allocated there."""
    planned: int = 0
    """What the refiner's plan expects the peak to be over what was held before; the reference has none, nor has CUDA,
    of whose memory alone no plan speaks."""
    report: dict[str, Any] = field(default_factory=dict)
    """The refiner's, of the last call; the reference has none."""
    difference: Difference | None = None
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON; seconds, bytes and shares."""
        if self.fault:
            return {"fault": self.fault}
        scales = self.report.get("scales", ())
        return {
            "seconds": {
                "median": statistics.median(self.seconds),
                "min": min(self.seconds),
                "max": max(self.seconds),
                "each": self.seconds,
            },
            "memory": {
                "before": self.before,
                "peak": self.peak,
                "over": max(0, self.peak - self.before),
                "planned": self.planned,
            },
            "decoded": share([(s["pixels_decoded"], s["pixels_decoded"] + s["pixels_kept"]) for s in scales]),
            "encoded": share(
                [(s["encoded"] * s["size"][0] * s["size"][1], s["size"][0] * s["size"][1]) for s in scales]
            ),
            "difference": self.difference and asdict(self.difference),
            "options": self.report.get("options"),
            "scales": list(scales),
            "fault": "",
        }


def share(parts: list[tuple[float, float]]) -> float:
    """The whole share of parts (some, of how many); 1 if there is nothing to have a share of."""
    some, of = (sum(column) for column in zip(*parts, strict=True)) if parts else (0, 0)
    return some / of if of else 1.0


# In the parent


def run(task: Task) -> Run:
    """What a process of its own measures; its fault says how it ended if it did not come to its end."""
    folder = Path(task.folder)
    (folder / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")
    if fault := alone("benchmarks.worker", folder, task.threads):
        return Run(fault=fault)
    values = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    difference = values.pop("difference")
    return Run(**values, difference=difference and Difference(**difference))


def alone(module: str, folder: Path, threads: int) -> str:
    """Runs a module on a folder in a process of its own; returns how it failed, in words, or "" where it did not."""
    command = [sys.executable, "-m", module, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=limited(threads), capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return f"ended with code {done.returncode}: {last}" if done.returncode else ""


def limited(threads: int) -> dict[str, str]:
    """The environment of a process that runs this checkout's packages, with so many threads in every library."""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    waits = {"OMP_WAIT_POLICY": "PASSIVE"}  # as `refine` has it, for what is measured beside it too
    return {**waits, **os.environ, **dict.fromkeys(names, str(threads)), "PYTHONPATH": paths}


# In the process


def measure(task: Task) -> Run:
    """Measures a case on `image-<MP>.npy` and `mask-<MP>.npy` of the folder; a twin leaves its probabilities there."""
    import cv2
    import torch

    torch.set_num_threads(task.threads)
    cv2.setNumThreads(task.threads)
    case, folder = task.case, Path(task.folder)
    image, mask = (np.load(folder / f"{name}-{case.megapixels:g}.npy") for name in ("image", "mask"))
    if not task.on_cpu:
        torch.backends.cudnn.allow_tf32 = False  # else no result in float32 could equal the reference's
    refine, planned = _reference(task) if case.model == REFERENCE else _refiner(task, mask.shape)
    before = resident_set() if task.on_cpu else torch.cuda.memory_allocated(task.device)
    refine(*resized(image, mask, min(WARM_UP, mask.size / 1e6)))
    if task.on_cpu:
        forget_peak()
    else:
        refine(image, mask)
        torch.cuda.reset_peak_memory_stats(task.device)
    seconds: list[float] = []
    peak = 0
    while len(seconds) < task.repeats and sum(seconds) < ENOUGH:
        p = None  # not alive beside the next
        started = _now(task)
        p, report = refine(image, mask)
        seconds.append(_now(task) - started)
        if fault := wrong(case, p, mask.shape):
            return Run(fault=fault)
        # After each call, since the refiner's own count of a call's memory lets the device's peak begin anew.
        peak = max(peak, peak_resident_set() if task.on_cpu else torch.cuda.max_memory_allocated(task.device))
    assert p is not None
    difference = compared(case, p, folder)
    if case.exact and difference and difference.largest > TOLERANCE:
        return Run(fault=f"wrong: |dp| to {difference.twin} up to {difference.largest:.1e}, {TOLERANCE:.0e} is allowed")
    if case.policy in CAPPED and peak - before > CAP:
        return Run(fault=f"wrong: took {(peak - before) / 1e6:.0f} MB, {CAP / 1e6:.0f} MB are allowed")
    if case == case.twin:
        np.save(folder / case.file, p)
    return Run(seconds, before, peak, planned, report, difference)


def _now(task: Task) -> float:
    """Seconds, once the device has done what it was given."""
    import torch

    if not task.on_cpu:
        torch.cuda.synchronize(task.device)
    return time.perf_counter()


def _reference(task: Task) -> tuple[Refine, int]:
    import torch

    from benchmarks.reference import ReferenceCRM

    assert task.weights is not None
    network = ReferenceCRM()
    network.load_published(torch.load(task.weights, weights_only=True))
    network.to(task.device)
    return lambda image, mask: (network.refine(image, mask)[1.0], {}), 0


def _refiner(task: Task, size: tuple[int, int]) -> tuple[Refine, int]:
    from refine import Refiner

    case = task.case
    refiner = Refiner(
        case.model, weights=task.weights, device=task.device, dtype=case.dtype, **(POLICIES | CAPPED)[case.policy]
    )

    def refine(image: Pixels, mask: Pixels) -> tuple[Probability, dict[str, Any]]:
        refined = refiner.refine(image, mask)
        return refined.probability, refined.report.as_dict()

    return refine, refiner.plan(size).peak if task.on_cpu else 0


def wrong(case: Case, p: Probability, shape: tuple[int, ...]) -> str:
    """What is wrong with a case's result for a mask of a ``shape``; "" if nothing."""
    if p.shape != shape or not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
        return f"wrong: its result is no map of probabilities of {shape[0]} x {shape[1]}"
    if not (p > 0.5).any():
        return "wrong: nothing of the mask was left"
    if case.model == REFERENCE and np.ptp(p) < MEANINGFUL:
        return f"useless: its probabilities lie within {np.ptp(p):.1e}, so nothing can be checked by them"
    return ""


def compared(case: Case, p: Probability, folder: Path) -> Difference | None:
    """How far a result lies from its twin's, if that has run."""
    other = folder / case.twin.file
    if case == case.twin or not other.exists():
        return None
    q = np.load(other)
    return Difference(str(case.twin), float(np.abs(p - q).max()), float(np.mean((p > 0.5) != (q > 0.5))))


def main() -> None:
    """Reads `task.json` of the folder named by the first argument; writes `run.json` there."""
    folder = Path(sys.argv[1])
    values = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    task = Task(**{**values, "case": Case(**values["case"])})
    (folder / "run.json").write_text(json.dumps(asdict(measure(task))), encoding="utf-8")


if __name__ == "__main__":
    main()
