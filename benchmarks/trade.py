"""What every option of `crm-s` gives and takes: quality, seconds and peak memory, on scenes with exact truth.

    python -m benchmarks.trade                         # three generated scenes, twelve minutes on two cores
    python -m benchmarks.trade --count 6               # up to 6000 px
    python -m benchmarks.trade --data FOLDER           # every other scene a cut-out of held-out sets
    python -m benchmarks.trade --choices dense contour # only these, the default beside them

BIG's pictures may not be shipped, so scenes and coarse masks of four qualities stand in for it: those of
`benchmarks.quality`, which anyone can draw again. Each choice of options runs in a process of its own. Results are a
JSON, a table and a plot: `<machine>-trade.*` in `benchmarks/results`, or in `runs/benchmarks` with other choices,
scenes or weights than the first of these commands has.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import choice, quality, results
from benchmarks.worker import POLICIES, ROOT
from refine import checkpoint
from refine.errors import RefineError
from refine.evaluation.published import COARSE, PUBLISHED, SOURCES
from refine.evaluation.tables import Table
from refine.metrics import iou, mean_boundary_accuracy
from refine.versions import commit

SIDES = (2048, 2560, 3840, 3072, 4608, 6000)  # px of the long side, by turns
COUNT = 3


@dataclass(frozen=True)
class Choice:
    """Options of `crm-s`, and how the plot draws them."""

    dtype: str
    options: dict[str, Any]
    colour: str
    marker: str = "o"


def _policy(name: str, dtype: str = "bfloat16", marker: str = "o", **more: Any) -> Choice:
    """A policy of the suite, in its colour."""
    return Choice(dtype, POLICIES[name] | more, results.COLOURS[name], marker)


def _everywhere(stride: int) -> Choice:
    """The published strided pass, in the colour of the stride."""
    options = POLICIES["strided-4 everywhere"] | {"stride": stride}
    return Choice("bfloat16", options, results.COLOURS[f"strided-{stride} near"], "s")


# The default first; each of the others changes one thing about it, or about dense.
CHOICES: Final[dict[str, Choice]] = {
    "default": _policy("default", marker="*"),
    "default, float32": _policy("default", "float32", "P"),
    "default in 1GiB": _policy("default", marker="<", max_memory="1GiB"),
    "default, band 12": _policy("default", marker="v", band=12),
    "default, band 48": _policy("default", marker="^", band=48),
    "default, coarse scales in full": _policy("default", marker="D", coarse_decode="full"),
    "default, lean 1": _policy("default", marker="p", lean=1),
    "default, 2 passes": _policy("default", marker="d", passes=2),
    "default, no guard": _policy("default", marker="X", guard=False),
    "default, guided by superpixels": Choice(
        "bfloat16", {"guidance": "sam-sr-v1", "proposals": "felzenszwalb"}, "#bcbd22", "h"
    ),
    "dense": _policy("dense", marker="*"),
    "dense, float32": _policy("dense", "float32", "P"),
    "dense in 1GiB": _policy("dense", marker="<", max_memory="1GiB"),
    "bbox": _policy("bbox"),
    "contour": _policy("contour"),
    "strided-2 near": _policy("strided-2 near"),
    "strided-8 near": _policy("strided-8 near"),
    "strided-2 everywhere": _everywhere(2),
    "strided-4 everywhere": Choice(
        "bfloat16", POLICIES["strided-4 everywhere"], results.COLOURS["strided-4 everywhere"], "s"
    ),
    "strided-8 everywhere": _everywhere(8),
}
BASE: Final = "default"
GUIDED: Final = (
    "Guided: SAM-SR v1 with superpixels (`felzenszwalb`) in the place of Segment Anything's proposals, found anew for "
    "every mask. Superpixels know no objects: the row shows what guidance costs, not what Segment Anything's gives."
)

Found = dict[str, Any]
"""A choice's figures, ready for JSON: its calls with IoU and mBA in [0, 1], seconds and bytes; or its fault."""


def measure(
    choices: dict[str, Choice], count: int, data: Path | None, *, weights: Path | None = None, threads: int
) -> dict[str, Any]:
    """Draws the scenes, refines each mask by each choice, and scores: the scenes, the coarse masks' and all figures."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        truths: dict[str, NDArray[np.bool_]] = {}
        scenes: list[dict[str, Any]] = []
        coarse: list[quality.Scored] = []
        for i, (name, image, truth) in enumerate(quality.scenes(count, data, SIDES)):
            key = f"scene{i}"
            truths[key] = truth
            scenes.append({"key": key, "name": name, "size": list(truth.shape)})
            np.save(folder / f"{key}.npy", image)
            for which, mask in quality.coarse_masks(truth, quality.coarse_generator(i)):
                np.save(folder / f"{key}-{which}.npy", mask.astype(np.uint8) * 255)
                coarse.append(_scored(key, which, "coarse", mask, truth))
            print(f"{name} drawn", file=sys.stderr, flush=True)
        # The largest first: what the process held before is then with the largest picture.
        pairs = [(s.scene, s.quality) for s in sorted(coarse, key=lambda s: -truths[s.scene].size)]
        found: dict[str, Found] = {}
        for name, chosen in choices.items():
            given = None if weights is None else str(weights.resolve())
            calls = choice.run(choice.Task(str(folder), pairs, given, chosen.dtype, chosen.options, threads))
            options = {"dtype": chosen.dtype, "options": chosen.options}
            if isinstance(calls, str):
                found[name] = {**options, "fault": calls}
                print(f"{name}: {calls}", file=sys.stderr, flush=True)
                continue
            scored = [
                asdict(_scored(c.scene, c.mask, name, choice.result(folder, c.scene, c.mask), truths[c.scene]))
                | {"seconds": c.seconds, "over": c.over}
                for c in calls
            ]
            found[name] = {**options, "fault": "", "calls": scored}
            print(f"{name}: {_seconds(found[name]):.2f} s a picture", file=sys.stderr, flush=True)
    return {"scenes": scenes, "coarse": [asdict(s) for s in coarse], "choices": found}


def _scored(scene: str, which: str, method: str, mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> quality.Scored:
    return quality.Scored(scene, which, method, iou(mask, truth), mean_boundary_accuracy(mask, truth))


# What is made of it


def _mean(scored: Iterable[dict[str, Any]], figure: str, which: str | None = None) -> float:
    """Of all masks, or of those of one quality."""
    return float(np.mean([s[figure] for s in scored if which in (None, s["quality"])]))


def _seconds(found: Found) -> float:
    return _mean(found["calls"], "seconds")


def _peak(found: Found) -> float:
    """MB."""
    return max(call["over"] for call in found["calls"]) / 1e6


def table(run: dict[str, Any]) -> Table:
    """A line a choice: IoU/mBA in % by the coarse masks' quality, mean seconds, and peak memory.

    Above them BIG's published coarse masks and ours.
    """
    qualities = list(dict.fromkeys(s["quality"] for s in run["coarse"]))
    header = ["options", *qualities, "seconds", "of the default's", "peak MB", "worst change of IoU"]
    lines = [
        ["BIG's coarse masks, published", *PUBLISHED[COARSE], "", "", "", ""],
        ["coarse masks", *(_both(run["coarse"], which) for which in qualities), "", "", "", ""],
    ]
    before = {(s["scene"], s["quality"]): s["iou"] for s in run["coarse"]}
    for name, found in run["choices"].items():
        if found["fault"]:
            lines.append([name, *["-"] * (len(qualities) + 4)])
            continue
        base = run["choices"].get(BASE, {"fault": "not measured"})
        ratio = "-" if base["fault"] else f"{_seconds(found) / _seconds(base):.2f}"
        worst = min(100 * (s["iou"] - before[s["scene"], s["quality"]]) for s in found["calls"])
        quality_cells = [_both(found["calls"], which) for which in qualities]
        cost = [results.digits(_seconds(found)), ratio, f"{_peak(found):.0f}", f"{worst:+.2f}"]
        lines.append([name, *quality_cells, *cost])
    return Table(header, lines)


def _both(scored: Sequence[dict[str, Any]], which: str) -> str:
    return f"{100 * _mean(scored, 'iou', which):.2f}/{100 * _mean(scored, 'mba', which):.2f}"


def page(run: dict[str, Any], plot_path: Path) -> str:
    """A run as Markdown: where it comes from, the plot, the table, what failed."""
    where = run["machine"]
    sizes = ", ".join(f"{size[1]} x {size[0]}" for size in (scene["size"] for scene in run["scenes"]))
    lines = [
        f"# Quality, seconds and memory of `crm-s`'s options: {where['cpu']}, {where['threads']} of {where['cores']} "
        "cores",
        "",
        f"{run['date']}, commit {results.short(run['commit'])}, torch {where['torch']}, Python {where['python']}, "
        f"load before {where['load']:.1f}. Weights: {run['weights']}.",
        "",
        f"{len(run['scenes'])} scenes ({sizes}; {run['source']}), each with coarse masks of four qualities: means of "
        "IoU/mBA of the scenes in %, as `python -m benchmarks.quality` has them. Seconds are the mean inside "
        "`refine()` over all scenes and masks, each refined once after a warm-up. MB are the highest peak of the "
        "resident set over what the process held before, with program, weights and the largest picture loaded. BIG's "
        f"coarse masks are those of {', '.join(SOURCES)}, and their IoU is pooled. " + GUIDED,
        "",
        f"![{plot_path.stem}]({plot_path.name})",
        "",
        table(run).markdown(),
    ]
    lines += [f"\n{name}: {found['fault']}" for name, found in run["choices"].items() if found["fault"]]
    return "\n".join(lines) + "\n"


def plot(run: dict[str, Any], path: Path) -> Path:
    """Draws mean IoU and mBA over all masks against seconds and against peak memory, a point a choice."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    good = {name: found for name, found in run["choices"].items() if not found["fault"]}
    figure = Figure(figsize=(11.5, 7.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    costs = (("seconds a picture", _seconds), ("peak memory over the program's, MB", _peak))
    for row, (kind, title) in zip(panels, (("iou", "IoU, %"), ("mba", "mBA, %")), strict=True):
        for panel, (label, cost) in zip(row, costs, strict=True):
            for name, found in good.items():
                panel.plot(cost(found), 100 * _mean(found["calls"], kind), **_drawn(name))
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.grid(visible=True, linewidth=0.3)
            if kind == "mba":
                panel.set_xlabel(label)
        row[0].set_ylabel(f"{title}; coarse masks {100 * _mean(run['coarse'], kind):.2f}")
    keys = [Line2D([], [], label=name, **_drawn(name)) for name in good]
    figure.legend(handles=keys, loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)
    return path


def _drawn(name: str) -> dict[str, Any]:
    """How a choice's point looks, in the plot and in its legend; those of float32 are hollow."""
    chosen = CHOICES[name]
    face = "none" if chosen.dtype == "float32" else chosen.colour
    size = 11 if chosen.marker == "*" else 7
    return {
        "color": chosen.colour,
        "marker": chosen.marker,
        "markersize": size,
        "markerfacecolor": face,
        "linestyle": "none",
    }


def write(run: dict[str, Any], folder: Path) -> list[Path]:
    """Puts a run into a folder as `<kind>-trade.json`, `.md` and `.png`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{run['machine']['kind']}-trade"
    data, text, drawn = (stem.with_suffix(ending) for ending in (".json", ".md", ".png"))
    data.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    plot(run, drawn)
    text.write_text(page(run, drawn), encoding="utf-8")
    return [data, text, drawn]


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 if a choice failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trade", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of held-out sets: alphamatting, plants8mp")
    parser.add_argument("--count", type=int, default=COUNT, help=f"scenes (default {COUNT}; from 6 on up to 6000 px)")
    parser.add_argument("--weights", type=Path, help="of crm-s, instead of those that ship")
    parser.add_argument("--choices", nargs="+", choices=CHOICES, metavar="NAME", help="only these and the default")
    parser.add_argument("--threads", type=int, default=results.usable_cores(), help="default: all usable cores")
    parser.add_argument("--out", type=Path, help="folder for the results")
    given = parser.parse_args(arguments)
    if min(given.count, given.threads) < 1:
        parser.error("--count and --threads are at least 1")
    choices = {n: c for n, c in CHOICES.items() if given.choices is None or n in (BASE, *given.choices)}
    weights = given.weights or checkpoint.find("crm-s")
    try:
        run = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit() or "unknown",
            "machine": results.machine(given.threads),
            "weights": f"{weights.name}, sha256 {checkpoint.file_sha256(weights)}",
            "source": "every other one a cut-out of held-out sets" if given.data else "generated",
            **measure(choices, given.count, given.data, weights=given.weights, threads=given.threads),
        }
    except RefineError as error:
        parser.error(str(error))
    whole = (given.choices, given.weights, given.data, given.count) == (None, None, None, COUNT)
    written = write(run, given.out or (results.FOLDER if whole else ROOT / "runs" / "benchmarks"))
    print(table(run).markdown())
    print("\n".join(map(str, written)))
    return int(any(found["fault"] for found in run["choices"].values()))


if __name__ == "__main__":
    sys.exit(main())
