"""What is made of measurements: a table, plots, and the changes from one run to another.

A run is a dict, ready for JSON: date, commit, machine, weights, pictures, cases, kernels and the names of what was left
out. `benchmarks.suite` makes it, `benchmarks.worker.Run.as_dict` each case.
"""

import json
import math
import os
import platform
import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from benchmarks.worker import CAPPED, POLICIES, REFERENCE, ROOT
from refine.versions import git

FOLDER = ROOT / "benchmarks" / "results"
NOTABLE = 0.1  # a change by more than this share is named
COLOURS = dict(
    zip(
        POLICIES | CAPPED,
        ("black", "#777777", "#9467bd", "#2ca02c", "#d62728", "#ff7f0e", "#1f77b4", "#17becf", "#8c564b", "#bcbd22"),
        strict=True,
    )
)
MEMORY = (
    "MB are the peak resident set over what the process held before the call: program, weights and picture; `planned` "
    "is what `refine.plan` expected."
)
GPU_MEMORY = (
    "MB are the peak of what torch has allocated on the GPU over what it held there before the first call, the "
    "weights; `refine.plan` expects nothing of that memory alone. float32 is computed without TF32."
)
LINES: dict[str, Literal["--", "-"]] = {"float32": "--", "bfloat16": "-"}

Results = dict[str, Any]
Measured = dict[str, Any]
"""A case: model, dtype, policy, megapixels, and its figures."""


# Where the figures come from


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """The machine, and its kind: results of one kind can be compared. On CUDA the device is named for the processor."""
    name, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in fields.items()}
        name, flags = facts.get("model name", name), facts.get("flags", "")
    gpu = "" if device == "cpu" else _gpu(device)
    return {
        "kind": kind(name, threads, gpu),
        "device": device,
        "gpu": gpu,
        "cpu": name,
        "bfloat16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags.split()],
        "cores": usable_cores(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def kind(cpu: str, threads: int, gpu: str = "") -> str:
    """A processor or a GPU, and the number of the processor's cores that are used, as a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", f"{gpu or cpu} {threads} cores".lower()).strip("-")


def _gpu(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def short(commit: str) -> str:
    """The first digits of a commit, and whatever marks that files differ from it."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", commit)


# Files


def write(results: Results, folder: Path) -> list[Path]:
    """Puts a run into a folder as `<kind>.json`, a table `<kind>.md` and two plots; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / results["machine"]["kind"]
    data, page = stem.with_suffix(".json"), stem.with_suffix(".md")
    data.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    pictures = [
        plot(results, "seconds", folder / f"{stem.name}-latency.png"),
        plot(results, "memory", folder / f"{stem.name}-memory.png"),
    ]
    page.write_text(markdown(results, pictures), encoding="utf-8")
    return [data, page, *pictures]


def read(text: str, name: str) -> Results:
    """A run from JSON. Raises `ValueError`, naming it, if it is none."""
    try:
        found: Results = json.loads(text)
        _ = found["machine"]["kind"], found["date"], short(found["commit"]), found["weights"], found["pictures"]
        found["machine"].setdefault("device", "cpu")  # older runs know no other
        _figures(found)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{name}: no result of the benchmarks ({type(error).__name__}: {error})") from error
    return found


def committed(path: Path) -> str:
    """The text of a file of the checkout as it was last committed. Raises `ValueError` if it never was."""
    text = git(ROOT, "show", f"HEAD:{path.resolve().relative_to(ROOT).as_posix()}")
    if text is None:
        raise ValueError(f"{path.name}: no result of this kind of machine has been committed")
    return text


# The table


def markdown(results: Results, plots: Sequence[Path] = ()) -> str:
    """A run as a page: where it comes from, the plots, every case, the kernels, what is missing."""
    where, cases = results["machine"], results["cases"]
    on_cpu = where["device"] == "cpu"
    bfloat16 = f", {' and '.join(where['bfloat16'])}" if where["bfloat16"] and on_cpu else ""
    lines = [
        f"# {'' if on_cpu else where['gpu'] + ', beside '}{where['cpu']}, {where['threads']} of {where['cores']} cores",
        "",
        f"{results['date']}, commit {short(results['commit'])}, "
        f"torch {where['torch']}, Python {where['python']}{bfloat16}, load before {where['load']:.1f}.",
        "Weights: " + "; ".join(f"{model} {origin}" for model, origin in results["weights"].items()) + ".",
        "",
        "Seconds are inside `refine()` after a warm-up: the median, and the least and the most of several calls. "
        "`faster` is against the reference, the published computation in plain torch, in the same run; with ~ against "
        f"its time at another size, taken in proportion to the area. {MEMORY if on_cpu else GPU_MEMORY} `decoded` and "
        "`encoded` are shares of all scales' queries and cells; `mask differs` is the share of pixels where the mask "
        "is not the reference's, for `crm-s` not that of `dense` in float32.",
        "",
        *(f"![{path.stem}]({path.name})" for path in plots),
        "",
        *_rows(case_rows(results)),
    ]
    lines += [f"\n{_name(case)}, {case['megapixels']:g} MP: {case['fault']}" for case in cases if case["fault"]]
    if results["kernels"]:
        lines += ["", "## Kernels", "", "Against their plain twins in `refine_kernels.reference`.", ""]
        lines += _rows(kernel_rows(results["kernels"]))
    if results["left_out"]:
        lines += ["", f"Left out, for time: {'; '.join(results['left_out'])}."]
    return "\n".join(lines) + "\n"


def case_rows(results: Results) -> list[tuple[str, ...]]:
    """The table of cases by model, type and policy, its head first; those with a fault are not in it."""
    head = ("case", "MP", "seconds", "min..max", "faster", "peak MB", "planned", "decoded", "encoded", "mask differs")
    rows: list[tuple[str, ...]] = [head]
    good = [case for case in results["cases"] if not case["fault"]]
    models, names = ([*dict.fromkeys(map(word, good))] for word in (_model, _name))
    for case in sorted(good, key=lambda c: (models.index(_model(c)), names.index(_name(c)), c["megapixels"])):
        seconds, reference = case["seconds"], case["model"] == REFERENCE
        several = len(seconds["each"]) > 1
        rows.append(
            (
                _name(case),
                f"{case['megapixels']:g}",
                digits(seconds["median"]),
                f"{digits(seconds['min'])}..{digits(seconds['max'])}" if several else "once",
                times_faster(case, good),
                f"{case['memory']['over'] / 1e6:.0f}",
                f"{case['memory']['planned'] / 1e6:.0f}" if case["memory"]["planned"] else "-",
                "-" if reference else f"{case['decoded']:.1%}",
                "-" if reference else f"{case['encoded']:.1%}",
                f"{case['difference']['masks']:.3%}" if case["difference"] else "-",
            )
        )
    return rows


def times_faster(case: Measured, cases: Iterable[Measured]) -> str:
    """How many times faster than the reference a case is; "-" if that was not measured at all."""
    reference = {c["megapixels"]: c["seconds"]["median"] for c in cases if c["model"] == REFERENCE}
    size = case["megapixels"]
    if not reference:
        return "-"
    nearest = min(reference, key=lambda other: abs(math.log(other / size)))
    times = reference[nearest] * size / nearest / case["seconds"]["median"]
    return ("" if nearest == size else "~") + digits(times)


def kernel_rows(kernels: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table of kernels, its head first."""
    rows: list[tuple[str, ...]] = [("kernel", "ms", "plain ms", "faster")]
    for k in kernels:
        times = (
            digits(1e3 * k["seconds"]),
            digits(1e3 * k["plain_seconds"]),
            digits(k["plain_seconds"] / k["seconds"]),
        )
        rows.append((f"`{k['name']}`", *times))
    return rows


def digits(value: float) -> str:
    """A positive figure with three digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table as text: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]]


def _model(case: Measured) -> str:
    return str(case["model"])


def _name(case: Measured) -> str:
    return f"{case['model']} {case['dtype']} {case['policy']}"


# The plots


def plot(results: Results, what: str, path: Path) -> Path:
    """Draws seconds, or memory over what was held before, of every case against megapixels; a panel for each model."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    cases = [case for case in results["cases"] if not case["fault"]]
    value = (lambda c: c["seconds"]["median"]) if what == "seconds" else (lambda c: max(c["memory"]["over"], 1e6) / 1e6)
    reference = sorted((c["megapixels"], value(c)) for c in cases if c["model"] == REFERENCE)
    models = list(dict.fromkeys(c["model"] for c in cases if c["model"] != REFERENCE)) or [REFERENCE]
    figure = Figure(figsize=(1.5 + 4.6 * len(models), 4.6), layout="constrained")
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        if reference:
            panel.plot(*zip(*reference, strict=True), color="black", marker="s", linestyle=":", linewidth=1.5)
        for policy in COLOURS:
            for dtype, line in LINES.items():
                points = sorted(
                    (c["megapixels"], value(c))
                    for c in cases
                    if (c["model"], c["dtype"], c["policy"]) == (model, dtype, policy)
                )
                if points:
                    hollow = "none" if dtype == "float32" else COLOURS[policy]
                    panel.plot(
                        *zip(*points, strict=True),
                        color=COLOURS[policy],
                        linestyle=line,
                        linewidth=1.2,
                        marker="o",
                        markersize=4,
                        markerfacecolor=hollow,
                    )
        panel.set(xscale="log", yscale="log", title=model, xlabel="megapixels")
        sizes = sorted({c["megapixels"] for c in cases})
        panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(visible=True, linewidth=0.3)
    memory = "memory over the program's" if results["machine"]["device"] == "cpu" else "GPU memory over the weights'"
    panels[0].set_ylabel("seconds" if what == "seconds" else f"peak {memory}, MB")
    used = [policy for policy in COLOURS if any(c["policy"] == policy for c in cases)]
    keys = [Line2D([], [], color=COLOURS[policy], label=policy) for policy in used]
    keys += [
        Line2D([], [], color="black", linestyle=line, marker="o", markerfacecolor=face, markersize=4, label=dtype)
        for (dtype, line), face in zip(LINES.items(), ("none", "black"), strict=True)
    ]
    if reference:
        keys.append(Line2D([], [], color="black", linestyle=":", marker="s", label="reference, float32"))
    figure.legend(handles=keys, loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)
    return path


# One run beside another


def changes(new: Results, base: Results) -> list[str]:
    """What differs: every latency or memory that changed by more than 10 %, the largest change first, then the rest.

    The rest are cases that only one run has, faults, and other pictures or weights. Raises `ValueError` for runs of
    different kinds of machine.
    """
    kinds = [run["machine"]["kind"] for run in (new, base)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"different kinds of machine cannot be compared: {kinds[0]} and {kinds[1]}")
    changed: list[tuple[float, str]] = []
    rest = [f"the {what} are not the same" for what in ("pictures", "weights") if _differ(new, base, what)]
    ours, theirs = _figures(new), _figures(base)
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        after, before = ours.get(name), theirs.get(name)
        if after is None or before is None:
            rest.append(f"{name}: only in the {'base' if after is None else 'new run'}")
        elif isinstance(after, str) or isinstance(before, str):
            rest += [f"{name}: {after if isinstance(after, str) else 'right again'}"] if after != before else []
        else:
            for what, unit in (("latency", "s"), ("memory", "MB")):
                a, b = after.get(what, 0), before.get(what, 0)
                if abs(a - b) > NOTABLE * b:
                    of_before = f" ({a / b - 1:+.0%})" if b else ""
                    text = f"{name}: {what} {digits(b)} {unit} -> {digits(a)} {unit}{of_before}"
                    changed.append((abs(math.log(a / b)) if a and b else math.inf, text))
    return [text for _, text in sorted(changed, key=lambda pair: -pair[0])] + rest


def _differ(new: Results, base: Results, what: str) -> bool:
    """Whether two runs differ in what both have: the picture of a size, the weights of a model."""
    ours, theirs = (run[what] for run in (new, base))
    return any(ours[key] != theirs[key] for key in ours if key in theirs)


def _figures(results: Results) -> dict[str, dict[str, float] | str]:
    """Seconds and MB of every case and kernel by its name, or the fault."""
    figures: dict[str, dict[str, float] | str] = {}
    for case in results["cases"]:
        figures[f"{_name(case)}, {case['megapixels']:g} MP"] = case["fault"] or {
            "latency": case["seconds"]["median"],
            "memory": case["memory"]["over"] / 1e6,
        }
    for kernel in results["kernels"]:
        figures[f"kernel {kernel['name']}"] = {"latency": kernel["seconds"]}
    return figures
