"""Latency and peak memory of models, types and policies at sizes of a picture, beside the published computation.

    python -m benchmarks.suite                       # all of it, about 20 minutes on two cores: `make bench`
    python -m benchmarks.suite --quick               # two minutes
    python -m benchmarks.suite --megapixels 8 --cases "crm-s bfloat16" --image photo.jpg --mask coarse.png
    python -m benchmarks.suite --device cuda         # on a GPU, some ten minutes; no kernels of the CPU
    python -m benchmarks.suite --compare             # the last run beside the committed one: `make bench-compare`

Results are a JSON, a table and two plots; those of the whole suite go to `benchmarks/results`, others, and those that
ran out of minutes, to `runs/benchmarks`. What crm-r50 can save depends on its weights: those that ship, or others with
--weights-r50.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import inputs, results
from benchmarks.worker import CAPPED, POLICIES, PUBLISHED, REFERENCE, ROOT, Case, Task, limited, run
from refine.errors import OptionError, RefineError
from refine.versions import commit

REPEATS = 3


@dataclass(frozen=True)
class Block:
    """Cases that are measured one after the other: policies at sizes, all of one model and type."""

    model: str
    dtype: str
    policies: tuple[str, ...]
    megapixels: tuple[float, ...]

    def at(self, sizes: Sequence[float]) -> Iterator[Case]:
        """Its cases at sizes instead of its own."""
        for size in sizes:
            yield from (Case(self.model, self.dtype, policy, size) for policy in self.policies)


SPARING = tuple(policy for policy in POLICIES if policy not in ("default", "dense"))

# What fits into 20 minutes on two cores of 2024, the dearest being the reference with 50 s a megapixel. What others are
# compared with comes first, then what is promised, then what is good to know: a run that ends early has what matters.
WHOLE = (
    Block(REFERENCE, "float32", (PUBLISHED,), (1, 4)),
    Block("crm-s", "float32", ("dense",), (1, 4)),
    Block("crm-s", "bfloat16", ("default",), (1, 2, 4, 8, 16, 24)),
    Block("crm-r50", "float32", ("dense", "strided-4 near"), (1, 4)),
    Block("crm-r50", "bfloat16", ("dense", "strided-4 near"), (1, 4)),
    Block("crm-s", "bfloat16", ("dense", *SPARING), (1, 4)),
    Block("crm-r50", "bfloat16", tuple(p for p in SPARING if p != "strided-4 near"), (1,)),
    Block("crm-s", "float32", ("default", "strided-4 near"), (1, 4, 8, 24)),
    # At 24 MP a dense crm-r50 takes minutes and tells nothing that 4 MP do not.
    Block("crm-r50", "bfloat16", ("strided-4 near",), (24,)),
    Block("crm-s", "bfloat16", tuple(CAPPED), (24,)),
    Block("crm-s", "bfloat16", ("dense", "contour", "strided-4 near"), (8, 24)),
    Block("crm-r50", "float32", tuple(p for p in SPARING if p != "strided-4 near"), (1,)),
    Block("crm-r50", "bfloat16", ("bbox", "contour", "strided-4 everywhere", "strided-8 near"), (4,)),
)
# On a GPU a case takes a quarter of a minute, nearly all of it to start its process.
ON_GPU = (
    Block(REFERENCE, "float32", (PUBLISHED,), (1, 4)),
    Block("crm-s", "float32", ("dense",), (1, 4, 24)),
    Block("crm-s", "bfloat16", ("default",), (1, 4, 24)),
    Block("crm-r50", "float32", ("dense", "strided-4 near"), (4,)),
    Block("crm-s", "bfloat16", ("dense", "contour", "strided-4 near"), (24, 4)),
    Block("crm-s", "float32", ("default",), (24, 4)),
    Block("crm-s", "float32", ("dense",), (8,)),
    Block("crm-r50", "bfloat16", ("dense", "strided-4 near"), (4, 1)),
    Block("crm-r50", "float32", ("dense", "strided-4 near"), (1,)),
    Block("crm-s", "bfloat16", ("default", "dense", "contour", "strided-4 near"), (8,)),
    Block("crm-s", "bfloat16", ("dense", "contour", "strided-4 near"), (1,)),
    Block("crm-s", "float32", ("contour", "strided-4 near"), (24, 4, 1, 8)),
    Block("crm-s", "float32", ("default",), (1, 8)),
)
# Two minutes, of which the reference takes one.
QUICK = (
    Block(REFERENCE, "float32", (PUBLISHED,), (1,)),
    Block("crm-s", "float32", ("dense", "default"), (1,)),
    Block("crm-s", "bfloat16", ("default", "strided-4 near"), (1, 4)),
    Block("crm-r50", "float32", ("dense", "strided-4 near"), (1,)),
    Block("crm-r50", "bfloat16", ("strided-4 near",), (1,)),
)


def chosen(blocks: Sequence[Block], megapixels: Sequence[float] = (), words: Sequence[str] = ()) -> list[Case]:
    """The cases of blocks, each once: at their own sizes or at those given, and of those whose name has all words.

    The reference is among them wherever a result must equal it. Raises `ValueError` if nothing is left.
    """
    listed = dict.fromkeys(case for block in blocks for case in block.at(megapixels or block.megapixels))
    wanted = [case for case in listed if all(word in str(case).replace(",", "").split() for word in words)]
    if not wanted:
        known = dict.fromkeys(word for case in listed for word in str(case).replace(",", "").split())
        raise ValueError(f"no case is called {' '.join(words)!r}; their words are {', '.join(known)}")
    needed = {case.twin for case in wanted if case.exact}
    return [case for case in listed if case in wanted or case in needed]


def measure(
    cases: Sequence[Case],
    pictures: inputs.Pictures,
    *,
    weights_r50: Path | None,
    threads: int,
    repeats: int,
    until: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """The figures of cases, the weights they ran with, and the names of those not begun ``until`` a time.

    until: of `time.perf_counter`. Raises `WeightsError` for weights that cannot be used.
    """
    measured, left_out = [], []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size, pair in pictures.items():
            for name, array in zip(("image", "mask"), pair, strict=True):
                np.save(folder / f"{name}-{size:g}.npy", array)
        models = list(dict.fromkeys(case.model for case in cases))
        weights = inputs.write_weights(folder, models, weights_r50)
        for case in cases:
            if time.perf_counter() > until:
                left_out.append(str(case))
                continue
            done = run(Task(case, str(folder), weights[case.model].path, threads, repeats, device))
            median = f"{done.as_dict()['seconds']['median']:.2f} s" if not done.fault else done.fault
            print(f"{case}: {median}", file=sys.stderr, flush=True)
            measured.append({**asdict(case), **done.as_dict()})
    return {"weights": {model: weights[model].origin for model in models}, "cases": measured, "left_out": left_out}


def kernels(megapixels: float, threads: int) -> list[dict[str, Any]]:
    """Median seconds of each kernel of `refine_kernels` and of its plain twin, by pytest-benchmark.

    Raises `RuntimeError` with pytest's own words if a kernel is wrong.
    """
    with TemporaryDirectory() as temporary:
        file = Path(temporary) / "kernels.json"
        command = [sys.executable, "-m", "pytest", "benchmarks/test_kernels.py", "-p", "no:cacheprovider"]
        command += ["--megapixels", str(megapixels), "--benchmark-enable", f"--benchmark-json={file}"]
        done = subprocess.run(command, cwd=ROOT, env=limited(threads), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the benchmarks of the kernels failed:\n{done.stdout}{done.stderr}")
        found = json.loads(file.read_text(encoding="utf-8"))["benchmarks"]
    seconds = {(b["params"]["name"], b["params"]["which"]): b["stats"]["median"] for b in found}
    names = dict.fromkeys(name for name, _ in seconds)
    return [{"name": n, "seconds": seconds[n, "kernel"], "plain_seconds": seconds[n, "plain"]} for n in names]


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 0, or 1 if a result was wrong, or 2 for files that cannot be used."""
    options = _parsed(arguments)
    try:
        if options.compare is not None:
            return _compare(options.compare, options.device)
        return _measure(options)
    except (ValueError, OSError, RefineError) as error:
        print(error, file=sys.stderr)
        return 2


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two minutes instead of twenty")
    parser.add_argument("--megapixels", help="sizes to bring the picture to, split at commas (default: each case's)")
    parser.add_argument("--cases", default="", help='only cases with these words in their names: "crm-s bfloat16"')
    parser.add_argument("--image", type=Path, help="photograph; without one, a generated scene is refined")
    parser.add_argument("--mask", type=Path, help="its coarse mask")
    parser.add_argument("--weights-r50", type=Path, help="of crm-r50 and the reference (default: those that ship)")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help=f"calls of a case that is fast (default {REPEATS})"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto (default cpu)")
    parser.add_argument("--threads", type=int, default=results.usable_cores(), help="default: all usable cores")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no case after so many (default 60)")
    parser.add_argument("--no-kernels", action="store_true", help="leave out the benchmarks of single kernels")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument(
        "--compare",
        nargs="*",
        metavar="JSON",
        type=Path,
        help="measure nothing; name what changed in one result against another. Without the second, against the first "
        "as it was committed; without both, this kind of machine's",
    )
    options = parser.parse_args(arguments)
    if (options.image is None) != (options.mask is None):
        parser.error("--image and --mask go together")
    if options.compare is not None and len(options.compare) > 2:
        parser.error("--compare takes two results at most")
    try:
        options.megapixels = [float(size) for size in options.megapixels.split(",")] if options.megapixels else []
    except ValueError:
        parser.error(f"--megapixels {options.megapixels}: numbers, split at commas, are wanted")
    if min(options.repeats, options.threads) < 1 or min([options.minutes, *options.megapixels]) <= 0:
        parser.error("--repeats and --threads are at least 1, --megapixels and --minutes are above 0")
    return options


def _measure(options: argparse.Namespace) -> int:
    until = time.perf_counter() + 60 * options.minutes
    device = _device(options.device)
    blocks = QUICK if options.quick else WHOLE if device == "cpu" else ON_GPU
    cases = chosen(blocks, options.megapixels, options.cases.split())
    sizes = sorted({case.megapixels for case in cases})
    found: results.Results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit() or "unknown",
        "machine": results.machine(options.threads, device),
    }
    if options.image:
        source, pictures = options.image.name, inputs.photograph(options.image, options.mask, sizes)
    else:
        # Below a megapixel it is only to be seen that all works.
        source, pictures = "generated scene", inputs.generated(sizes, inputs.DRAWN if sizes[-1] >= 1 else None)
    found["pictures"] = {
        f"{size:g}": {
            "source": source,
            "size": list(mask.shape),
            "contour": inputs.contour_length(mask),
            "foreground": float(np.mean(mask > 127)),
        }
        for size, (_, mask) in pictures.items()
    }
    # First, because it compiles the kernels: to do so takes memory, which is no case's.
    found["kernels"] = [] if options.no_kernels or device != "cpu" else kernels(min(4.0, sizes[-1]), options.threads)
    found |= measure(
        cases,
        pictures,
        weights_r50=options.weights_r50,
        threads=options.threads,
        repeats=options.repeats,
        until=until,
        device=device,
    )
    part = options.quick or options.megapixels or options.cases or options.no_kernels or options.repeats != REPEATS
    whole = not (part or options.image or options.weights_r50 or found["left_out"])
    folder = options.out or (results.FOLDER if whole else ROOT / "runs" / "benchmarks")
    written = results.write(found, folder)
    print("\n".join(results.aligned(results.case_rows(found))))
    print("\n".join(results.aligned(results.kernel_rows(found["kernels"]))) if found["kernels"] else "")
    print("\n".join(map(str, written)))
    return int(any(case["fault"] for case in found["cases"]))


def _device(name: str) -> str:
    """The device of a name. Raises `OptionError` for one that is not there or whose memory cannot be measured."""
    from refine.devices import resolve_device

    found = resolve_device(name)
    if found.type not in ("cpu", "cuda"):
        raise OptionError(f"--device {name} is {found}, whose memory cannot be measured; give cpu or cuda")
    return str(found)


def _compare(files: list[Path], device: str) -> int:
    threads = results.usable_cores()
    new = files[0] if files else results.FOLDER / f"{results.machine(threads, _device(device))['kind']}.json"
    if not new.is_file():
        raise ValueError(f"{new}: no such result; `python -m benchmarks.suite --device {device}` writes one")
    after = results.read(new.read_text(encoding="utf-8"), new.name)
    base = files[1].read_text(encoding="utf-8") if len(files) > 1 else results.committed(new)
    before = results.read(base, files[1].name if len(files) > 1 else f"{new.name} as committed")
    found = results.changes(after, before)
    for word, one in (("new", after), ("base", before)):
        print(f"{word}: {one['date']}, commit {results.short(one['commit'])}")
    print("\n".join(found) or f"no change of latency or memory by more than {results.NOTABLE:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
