"""Seconds and peak memory of every system on one picture, beside the published computation.

    python -m benchmarks.compare
    python -m benchmarks.compare --image photo.jpg --mask coarse.png --megapixels 8 --systems crm-s --stages

Every run is a process of its own, so that its peak resident set is the system's alone; repetitions go round the
systems, so that a machine that slows down slows all of them. A run loads its weights, refines a strip of the picture
(as long as the picture, so that the same scales run) and then the picture, once, timed from call to result. A result
counts once it has been checked: probabilities in [0, 1], and those of crm-r50 in float32 equal to the reference's.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

# The rest is imported where it is used: what a run imports counts in its memory.
if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "reference"
WARM_UP = 8  # the warm-up's strip is this part of the picture's short side
BRANCH = 0.1  # weight of a residual branch in the seeded network
MEANINGFUL = 0.1  # the least range of a reference's probabilities for agreement with it to mean something

Pixels = NDArray[np.uint8]
Probability = NDArray[np.float32]


@dataclass(frozen=True)
class System:
    """One of the things compared."""

    name: str
    model: str
    dtype: str
    twin: str = ""
    """The system whose probabilities it is compared with; it stands before this one in `SYSTEMS`."""
    tolerance: float | None = None
    """How far from its twin a probability may lie; None where the difference is only reported."""


SYSTEMS = {
    system.name: system
    for system in (
        System(REFERENCE, REFERENCE, "float32"),
        System("crm-r50-float32", "crm-r50", "float32", REFERENCE, 1e-4),
        System("crm-r50-bfloat16", "crm-r50", "bfloat16", REFERENCE),
        System("crm-s-float32", "crm-s", "float32"),
        System("crm-s-bfloat16", "crm-s", "bfloat16", "crm-s-float32"),
    )
}


@dataclass(frozen=True)
class Run:
    """What one process measured; memory in bytes."""

    seconds: float
    loaded: int
    """Peak resident set before the first call: the imports and the network with its weights."""
    peak: int
    """Peak resident set after the timed call."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """The report of each scale; the reference has none."""


@dataclass(frozen=True)
class Difference:
    """Between a system's probabilities and those of its twin."""

    twin: str
    largest: float
    """Largest |dp|."""
    masks: float
    """Share of the pixels whose mask differs."""


@dataclass
class Measured:
    """A system's runs, and what was found wrong with its result."""

    system: System
    runs: list[Run] = field(default_factory=list)
    difference: Difference | None = None
    fault: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def peak(self) -> float:
        return statistics.median(run.peak for run in self.runs)

    @property
    def loaded(self) -> float:
        return statistics.median(run.loaded for run in self.runs)

    def stages(self) -> list[dict[str, Any]]:
        """Median encode and decode seconds of each scale."""
        rounds = zip(*(run.stages for run in self.runs), strict=True)
        return [
            {
                "scale": scale[0]["scale"],
                "size": scale[0]["size"],
                "pixels_decoded": scale[0]["pixels_decoded"],
                "encode_seconds": statistics.median(s["encode_seconds"] for s in scale),
                "decode_seconds": statistics.median(s["decode_seconds"] for s in scale),
            }
            for scale in rounds
        ]


# One run, in a process of its own


def measure(name: str, folder: Path, threads: int) -> None:
    """Run a system on `image.npy` and `mask.npy` of a folder; writes `<name>.npy` and `<name>.json` there."""
    import torch

    torch.set_num_threads(threads)
    system = SYSTEMS[name]
    image, mask = np.load(folder / "image.npy"), np.load(folder / "mask.npy")
    refine = _reference(folder) if system.name == REFERENCE else _refiner(system, folder, threads)
    loaded = peak_resident()
    refine(*warm_up_strip(image, mask))
    started = time.perf_counter()
    probability, stages = refine(image, mask)
    seconds = time.perf_counter() - started
    run = Run(seconds, loaded, peak_resident(), stages)
    np.save(folder / f"{name}.npy", probability)
    (folder / f"{name}.json").write_text(json.dumps(asdict(run)), encoding="utf-8")


Refine = Callable[[Pixels, Pixels], tuple[Probability, list[dict[str, Any]]]]


def _reference(folder: Path) -> Refine:
    import torch

    from benchmarks.reference import ReferenceCRM

    network = ReferenceCRM()
    network.load_published(torch.load(folder / "published.pth", weights_only=True))
    return lambda image, mask: (network.refine(image, mask)[1.0], [])


def _refiner(system: System, folder: Path, threads: int) -> Refine:
    import cv2

    from refine import Refiner

    cv2.setNumThreads(threads)
    own = folder / f"{system.model}.safetensors"
    weights = own if own.exists() else None  # None: those that ship
    refiner = Refiner(system.model, weights=weights, device="cpu", dtype=system.dtype)

    def refine(image: Pixels, mask: Pixels) -> tuple[Probability, list[dict[str, Any]]]:
        refined = refiner.refine(image, mask)
        return refined.probability, refined.report.as_dict()["scales"]

    return refine


def warm_up_strip(image: Pixels, mask: Pixels) -> tuple[Pixels, Pixels]:
    """A strip of the picture around the row or column with most foreground, as long as the picture's long side."""
    short = int(mask.shape[0] > mask.shape[1])
    length = mask.shape[short]
    side = max(min(length, 32), length // WARM_UP)
    middle = int(mask.sum(axis=1 - short, dtype=np.int64).argmax())
    start = min(max(0, middle - side // 2), length - side)
    window = (slice(None),) * short + (slice(start, start + side),)
    return np.ascontiguousarray(image[window]), np.ascontiguousarray(mask[window])


def peak_resident() -> int:
    """Peak resident set of this process so far, in bytes.

    On Linux it is the high-water mark of the process' own memory. `ru_maxrss` will not do there: it survives exec, so a
    child's begins at its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# What the runs are given


def published_weights(image: Pixels, mask: Pixels) -> "dict[str, Tensor]":
    """A checkpoint of the published form, with seeded weights that spread a picture's probabilities over (0, 1).

    Batch norms hold the statistics of the picture reduced, and its logits have mean 0 and deviation 1/2: with random
    weights alone values grow from block to block, and a result that is 0 or 1 everywhere is equal to any other.
    Residual branches are small: else a random network is chaotic, and rounding errors grow from scale to scale.
    """
    import cv2
    import torch
    from torch import nn
    from torchvision.models.resnet import Bottleneck

    from benchmarks.reference import ReferenceCRM, centres, normalised

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ReferenceCRM()
        for module in network.imnet.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for module in network.modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, BRANCH)
        elif isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    factor = min(1.0, 256 / max(mask.shape))
    size = (max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor)))
    small, coarse = (np.asarray(cv2.resize(a, size, interpolation=cv2.INTER_AREA), np.uint8) for a in (image, mask))
    x = torch.cat(normalised(small, coarse), dim=1)
    with torch.no_grad():
        features = network.aspp_(*network.feats(x))[0]  # (256, h, w)
        q = torch.cartesian_prod(*(centres(n) for n in features.shape[-2:]))
        logit = network._query(features, q, (x.shape[-2], x.shape[-1]))
        last = network.imnet.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight /= 2 * logit.std()
        last.bias.sub_(logit.mean()).div_(2 * logit.std())
    return {f"module.{key}": value for key, value in network.state_dict().items()}


def write_weights(folder: Path, models: Iterable[str], image: Pixels, mask: Pixels) -> dict[str, str]:
    """Put the weights that the models need for a picture into a folder; returns where those of each come from."""
    import torch

    from refine import checkpoint
    from refine.loading import import_published
    from refine.models import build, preset

    origins = {}
    shipped = {entry.name for entry in checkpoint.manifest()}
    for model in models:
        if model == REFERENCE:
            torch.save(published_weights(image, mask), folder / "published.pth")
            import_published(folder / "published.pth", folder / "crm-r50.safetensors")
            origins[model] = origins["crm-r50"] = "random"
        elif model in shipped and model not in origins:
            origins[model] = f"shipped, sha256 {checkpoint.file_sha256(checkpoint.find(model))}"
        elif model not in origins:
            spec = preset(model)
            checkpoint.save(folder / f"{model}.safetensors", build(spec).state_dict(), spec=spec.as_dict())
            origins[model] = "random"
    return origins


def picture(image: Path | None, mask: Path | None, megapixels: float) -> tuple[Pixels, Pixels]:
    """A picture (H, W, 3) uint8 RGB of about so many megapixels and its coarse mask (H, W), 0..255.

    Reads the files given; without them, draws a scene, 3:2, and a coarse mask as a segmentation network gives it.
    """
    import cv2

    from refine.prepare import prepare
    from refine.training.coarse import network_like
    from refine.training.scenes import scene

    if image is None or mask is None:
        rng = np.random.default_rng(0)
        height = max(8, round((megapixels * 1e6 / 1.5) ** 0.5))
        drawn, truth = scene(rng, height, round(height * 1.5))
        coarse = network_like(truth, rng, cell=max(1.0, height / 160)) > 0.5
        return drawn, coarse.astype(np.uint8) * 255
    pair = prepare(image, mask)
    height, width = pair.mask.shape
    factor = (megapixels * 1e6 / (height * width)) ** 0.5
    size = (round(width * factor), round(height * factor))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    pixels = np.asarray(cv2.resize(pair.image, size, interpolation=method), np.uint8)
    soft = np.asarray(cv2.resize(pair.mask, size, interpolation=method), np.float32)
    return pixels, np.rint(soft * 255).astype(np.uint8)


# All runs of all systems


def compare(names: Sequence[str], folder: Path, *, repeats: dict[str, int], threads: int) -> dict[str, Measured]:
    """Every system's runs on the picture of a folder, round by round; one whose result is wrong has none."""
    measured = {name: Measured(SYSTEMS[name]) for name in names}
    for number in range(max(repeats[name] for name in names)):
        for name, entry in measured.items():
            if number >= repeats[name] or entry.fault:
                continue
            twin = measured.get(entry.system.twin)
            if twin and twin.fault:
                entry.fault = f"unchecked: {twin.system.name} is not right"
                continue
            run = _run(name, folder, threads)
            entry.fault, entry.difference = check(entry.system, folder)
            if entry.fault:
                entry.runs.clear()
                print(f"round {number + 1}  {name}: {entry.fault}", file=sys.stderr, flush=True)
                continue
            entry.runs.append(run)
            print(f"round {number + 1}  {name}: {run.seconds:.2f} s", file=sys.stderr, flush=True)
    return measured


def _run(name: str, folder: Path, threads: int) -> Run:
    code = "import sys, pathlib; from benchmarks.compare import measure; "
    code += "measure(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))"
    limits = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", code, name, str(folder), str(threads)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **limits}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with code {done.returncode}:\n{done.stderr}")
    return Run(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def check(system: System, folder: Path) -> tuple[str, Difference | None]:
    """What is wrong with a system's result ("" if nothing), and how far it lies from its twin's, if that has run."""
    p = np.load(folder / f"{system.name}.npy")
    shape = np.load(folder / "mask.npy", mmap_mode="r").shape
    if p.shape != shape or not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
        return f"wrong: its result is no map of probabilities of {shape[0]} x {shape[1]}", None
    if system.name == REFERENCE and np.ptp(p) < MEANINGFUL:
        return f"useless: its probabilities lie within {np.ptp(p):.1e}, so nothing can be checked by them", None
    if not (folder / f"{system.twin}.npy").exists():
        assert system.tolerance is None, "what must equal its twin runs after it"
        return "", None
    q = np.load(folder / f"{system.twin}.npy")
    difference = Difference(system.twin, float(np.abs(p - q).max()), float(np.mean((p > 0.5) != (q > 0.5))))
    if system.tolerance is not None and difference.largest > system.tolerance:
        fault = f"wrong: |dp| to {system.twin} up to {difference.largest:.1e}, {system.tolerance:.0e} is allowed"
        return fault, difference
    return "", difference


# What is told


def machine(threads: int) -> dict[str, Any]:
    """Where the figures come from."""
    name, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in fields.items()}
        name, flags = facts.get("model name", name), facts.get("flags", "")
    return {
        "cpu": name,
        "bfloat16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags.split()],
        "cores": usable_cores(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The checkout's commit, with a + if files differ from it; "unknown" without git."""

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def as_dict(measured: dict[str, Measured]) -> dict[str, Any]:
    """The figures of each system, ready for JSON; bytes and seconds."""
    base = measured.get(REFERENCE)
    systems: dict[str, Any] = {}
    for name, entry in measured.items():
        figures: dict[str, Any] = {"difference": entry.difference and asdict(entry.difference), "fault": entry.fault}
        if entry.runs:
            each = [run.seconds for run in entry.runs]
            figures["seconds"] = {"median": entry.seconds, "min": min(each), "max": max(each), "each": each}
            figures["peak_bytes"] = {"median": entry.peak, "loaded": entry.loaded, "each": [r.peak for r in entry.runs]}
            figures["stages"] = entry.stages()
            if base and base.runs:
                figures["times_faster"] = base.seconds / entry.seconds
                figures["memory_of_reference"] = entry.peak / base.peak
        systems[name] = figures
    return systems


def table(systems: dict[str, Any]) -> str:
    """The figures as text, one system a line, and below it what is wrong."""
    head = ("system", "seconds", "min..max", "runs", "faster", "peak MB", "loaded MB", "memory", "|dp|", "mask differs")
    rows = [head]
    for name, figures in systems.items():
        seconds, peak, difference = figures.get("seconds"), figures.get("peak_bytes"), figures["difference"]
        timed = ("-",) * 7
        if seconds:
            timed = (
                f"{seconds['median']:.2f}",
                f"{seconds['min']:.2f}..{seconds['max']:.2f}",
                str(len(seconds["each"])),
                f"{figures['times_faster']:.1f} x" if "times_faster" in figures else "-",
                f"{peak['median'] / 1e6:.0f}",
                f"{peak['loaded'] / 1e6:.0f}",
                f"{figures['memory_of_reference']:.2f}" if "memory_of_reference" in figures else "-",
            )
        apart = (f"{difference['largest']:.1e}", f"{100 * difference['masks']:.3f} %") if difference else ("-", "-")
        rows.append((name, *timed, *apart))
    faults = [f"{name}: {figures['fault']}" for name, figures in systems.items() if figures["fault"]]
    return "\n".join([*aligned(rows), *faults])


def stage_table(systems: dict[str, Any]) -> str:
    """Median seconds of each scale's encoding and decoding."""
    rows = [("system", "scale", "H x W", "encode s", "decode s", "decoded")]
    for name, figures in systems.items():
        for s in figures.get("stages", ()):
            seconds = (f"{s['encode_seconds']:.3f}", f"{s['decode_seconds']:.3f}")
            size = f"{s['size'][0]} x {s['size'][1]}"
            rows.append((name, f"{s['scale']:.3g}", size, *seconds, f"{s['pixels_decoded']:,}"))
    return "\n".join(aligned(rows))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def selected(words: str) -> list[str]:
    """Names of the systems that words, split at commas, name by themselves or by their model.

    The reference is among them wherever something must equal it. Raises `ValueError` for an unknown word.
    """
    wanted = {word.strip() for word in words.split(",")}
    known = {name for system in SYSTEMS.values() for name in (system.name, system.model)}
    if unknown := wanted - known:
        raise ValueError(f"{', '.join(sorted(unknown))}: unknown; known are {', '.join(sorted(known))}")
    chosen = {s.name for s in SYSTEMS.values() if wanted & {s.name, s.model}}
    chosen |= {SYSTEMS[name].twin for name in chosen if SYSTEMS[name].model == "crm-r50"}
    return [name for name in SYSTEMS if name in chosen]


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 0, or 1 if a system's result was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", type=Path, help="photograph; without one, a generated scene is refined")
    parser.add_argument("--mask", type=Path, help="its coarse mask")
    parser.add_argument("--megapixels", type=float, default=1.0, help="size the picture is brought to (default 1)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="systems or models, split at commas (default all)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each system (default 3)")
    parser.add_argument("--reference-repeats", type=int, default=1, help="runs of the reference (default 1)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all cores that may be used")
    parser.add_argument("--stages", action="store_true", help="also print the seconds of each scale")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(arguments)
    if (options.image is None) != (options.mask is None):
        parser.error("--image and --mask go together")
    if min(options.repeats, options.reference_repeats, options.threads) < 1 or options.megapixels <= 0:
        parser.error("--repeats, --reference-repeats and --threads are at least 1, --megapixels is above 0")
    try:
        names = selected(options.systems)
    except ValueError as error:
        parser.error(str(error))

    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(options.threads),
    }
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image, mask = picture(options.image, options.mask, options.megapixels)
        np.save(folder / "image.npy", image)
        np.save(folder / "mask.npy", mask)
        source = "generated scene" if options.image is None else options.image.name
        report["picture"] = {"source": source, "height": mask.shape[0], "width": mask.shape[1]}
        models = list(dict.fromkeys(SYSTEMS[name].model for name in names))
        report["weights"] = write_weights(folder, models, image, mask)
        repeats = {name: options.reference_repeats if name == REFERENCE else options.repeats for name in names}
        measured = compare(names, folder, repeats=repeats, threads=options.threads)
    report["systems"] = as_dict(measured)

    where = report["machine"]
    print(f"{source}, {mask.shape[0]} x {mask.shape[1]} (H x W), {mask.size / 1e6:.2f} megapixels")
    print(f"{where['cpu']}, {where['threads']} threads, torch {where['torch']}, load before {where['load']:.1f}")
    print("weights: " + "; ".join(f"{model} {origin}" for model, origin in report["weights"].items()))
    print(f"\n{table(report['systems'])}")
    if options.stages:
        print(f"\n{stage_table(report['systems'])}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(any(entry.fault for entry in measured.values()))


if __name__ == "__main__":
    sys.exit(main())
