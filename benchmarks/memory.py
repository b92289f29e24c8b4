"""Peak memory of the stages of one scale of crm-r50, with features fused whole and patch by patch.

    python -m benchmarks.memory --megapixels 1

Counted are the bytes of the tensors that are alive, as torch's CPU allocator reports each allocation and release to the
profiler: temporaries inside an operation are among them, the network's weights, which are the same for both, are not.
Nor are the picture and the masks, which are arrays. The resident set will not do here: it has one peak for the whole
process, and freed memory need not leave it.
The scale is the last of the cascade, s = 1, whose stages are the largest.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.inputs import Pixels, generated, published_weights
from benchmarks.results import aligned
from refine.blocks import Blocks
from refine.checkpoint import published_state
from refine.config import Options
from refine.decode import decode
from refine.features import whole_latent
from refine.frame import Frame, View
from refine.models import Network, build, preset
from refine.planes import Held
from refine.prepare import prepare
from refine.regions import dense
from refine.tiles import Window

STAGES = ("encode", "fuse", "decode")
_MARK = "stage: "


@dataclass(frozen=True)
class Peak:
    """Most bytes alive at once during a stage, over all the times it ran."""

    total: int
    """All that is alive: also the latent, and what earlier stages left for this one."""
    own: int
    """Only what the stage allocated itself."""


class Marked:
    """A network whose stages a profiler can tell apart; it is the network in everything else."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._network, name)
        if name not in STAGES:
            return attribute

        def marked(*args: Any, **kwargs: Any) -> Any:
            with record_function(_MARK + name):
                return attribute(*args, **kwargs)

        return marked


def network_and_view(image: Pixels, mask: Pixels) -> tuple[Network, View]:
    """crm-r50 for inference, and a picture as its last scale reads it, every pixel queried."""
    spec = preset("crm-r50")
    network: Any = build(spec)
    network.load_state_dict(published_state(published_weights(image, mask), network.state_dict()))
    network = network.folded()
    pair = prepare(image, mask)
    frame = Frame(Held(pair.image), Held(pair.mask), spec.cascade, torch.device("cpu"))
    grid = dense(network, frame.size, frame.size)
    return network, View.of(frame, frame.size, frame.mask, grid.rows, grid.columns)


def stage_peaks(network: Network, view: View, *, tile: int, patch: int) -> tuple[Tensor, dict[str, Peak]]:
    """The latent of a whole view in float32 and the peak of each stage, decoding of every query included."""
    marked: Any = Marked(network)
    everything = Window(0, view.grid[0], 0, view.grid[1])
    view.input(Window(0, 1, 0, 1))  # a view keeps a little from its first reading on
    with torch.inference_mode(), _recorded() as events:
        latent, (top, left) = whole_latent(marked, view, everything, dtype=torch.float32, tile=tile, patch=patch)
        with record_function(_MARK + "decode"):
            decode(network, Blocks.around(latent, network.stride, (top, left)), view.rows, view.columns, None, None)
    return latent, _peaks(events)


@contextmanager
def _recorded() -> Iterator[list[dict[str, Any]]]:
    """A list that holds, once the block has ended, its allocations and stages in the order of time."""
    events: list[dict[str, Any]] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield events
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    wanted = [e for e in trace if e["name"] == "[memory]" or (e["name"].startswith(_MARK) and e["ph"] == "X")]
    events.extend(sorted(wanted, key=lambda event: event["ts"]))


def _peaks(events: list[dict[str, Any]]) -> dict[str, Peak]:
    """Peaks by stage, from allocations (in bytes, releases negative) and stages with a start and a duration."""
    peaks = dict.fromkeys(STAGES, Peak(0, 0))
    alive, stage, end, entered = 0, "", 0.0, 0
    for event in events:
        if event["name"] != "[memory]":
            stage, end, entered = event["name"].removeprefix(_MARK), event["ts"] + event["dur"], alive
            continue
        alive += event["args"]["Bytes"]
        if stage and event["ts"] <= end:
            peak = peaks[stage]
            peaks[stage] = Peak(max(peak.total, alive), max(peak.own, alive - entered))
    return peaks


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 0 if the latents are equal to 1e-5, else 1."""
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megapixels", type=float, default=1.0, help="size of the generated scene (default 1)")
    parser.add_argument("--patch", type=int, default=defaults.patch, help=f"latent cells (default {defaults.patch})")
    options = parser.parse_args(arguments)

    network, view = network_and_view(*generated([options.megapixels])[options.megapixels])
    latent, patched = stage_peaks(network, view, tile=network.tile, patch=options.patch)
    other, whole = stage_peaks(network, view, tile=network.tile, patch=max(latent.shape[-2:]))
    largest = float((latent - other).abs().max())

    rows = [["stage", "whole MB", "patched MB", "ratio", "own whole MB", "own patched MB", "ratio"]]
    for stage in STAGES:
        pairs = ((whole[stage].total, patched[stage].total), (whole[stage].own, patched[stage].own))
        rows.append([stage, *(f"{value:.1f}" for a, b in pairs for value in (a / 1e6, b / 1e6, a / b))])
    height, width = view.size
    print(f"{height} x {width} (H x W) with its border, patches of {options.patch} latent cells")
    print("\n".join(aligned(rows)))
    print(f"largest difference of the latents: {largest:.1e}, of values up to {float(latent.abs().max()):.1f}")
    return int(largest > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
