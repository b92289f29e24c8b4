"""One choice of `crm-s`'s options in a process of its own, over all pictures and masks of a folder.

The process loads its libraries, the weights and the largest picture, refines that picture reduced, so that threads are
started and code is loaded, and then every picture with each of its masks once: seconds from call to result, and the
peak of its resident set during the call. Masks are left in the folder, to be scored where that counts in nobody's
memory.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.inputs import resized
from benchmarks.worker import WARM_UP, alone
from refine.memory import forget_peak, peak_resident_set, resident_set, return_freed


@dataclass(frozen=True)
class Task:
    """What a process is told."""

    folder: str
    """Has `<scene>.npy`, pictures (H, W, 3) uint8, and `<scene>-<mask>.npy`, coarse masks (H, W) uint8, 0 or 255."""
    pairs: list[tuple[str, str]]
    """Scene and mask, the largest picture first."""
    weights: str | None
    dtype: str
    options: dict[str, Any]
    threads: int


@dataclass(frozen=True)
class Call:
    """What refining one mask took."""

    scene: str
    mask: str
    seconds: float
    over: int
    """Bytes: the peak resident set over what the process held before its first call, with the largest picture."""


def run(task: Task) -> list[Call] | str:
    """The calls of a process of its own, or how it failed; their masks are then to be had from `result`."""
    folder = Path(task.folder)
    (folder / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")
    if fault := alone("benchmarks.choice", folder, task.threads):
        return fault
    return [Call(**values) for values in json.loads((folder / "calls.json").read_text(encoding="utf-8"))]


def result(folder: Path, scene: str, mask: str) -> NDArray[np.bool_]:
    """The mask (H, W) that the last process made of one."""
    return np.asarray(np.load(folder / f"{scene}-{mask}-refined.npy"), bool)


def measure(task: Task) -> list[Call]:
    """Refines every pair. Superpixels that guide are found anew each time: nothing is kept from call to call."""
    import cv2
    import torch

    from refine import Refiner
    from refine.config import source_and_options
    from refine.guidance.sources import open_source

    torch.set_num_threads(task.threads)
    cv2.setNumThreads(task.threads)
    folder, calls = Path(task.folder), []
    refiner = Refiner("crm-s", weights=task.weights, device="cpu", dtype=task.dtype, **task.options)
    guided: dict[str, Any] = {}
    if refiner.options.guidance is not None:
        name, options = source_and_options(refiner.options.proposals)
        guided = {"proposals": open_source(name, options=options)}
    before, held = 0, ""
    image = np.empty((0, 0, 3), np.uint8)
    for scene, name in task.pairs:
        if scene != held:
            image, held = np.load(folder / f"{scene}.npy"), scene
        mask = np.load(folder / f"{scene}-{name}.npy")
        if not before:
            return_freed()
            before = resident_set()
            refiner.refine(*resized(image, mask, min(WARM_UP, mask.size / 1e6)), **guided)
        return_freed()
        forget_peak()
        started = time.perf_counter()
        refined = refiner.refine(image, mask, **guided).mask
        seconds = time.perf_counter() - started
        calls.append(Call(scene, name, seconds, max(0, peak_resident_set() - before)))
        np.save(folder / f"{scene}-{name}-refined.npy", refined)
    return calls


def main() -> None:
    """Reads `task.json` of the folder named by the first argument; writes `calls.json` and masks there."""
    folder = Path(sys.argv[1])
    values = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    task = Task(**{**values, "pairs": [(scene, mask) for scene, mask in values["pairs"]]})
    (folder / "calls.json").write_text(json.dumps([asdict(call) for call in measure(task)]), encoding="utf-8")


if __name__ == "__main__":
    main()
