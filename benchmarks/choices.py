"""What the two choices in crm-s cost: its trunk and its decoder, and why channels come in multiples of 32.

    python -m benchmarks.choices

Seconds of a picture's encoding and of decoding every pixel of it, at full resolution, for each trunk and decoder; and
the arithmetic that single layers reach. Runs go round the variants and medians are given, so that a machine that slows
down slows all of them. The quality of each is what `refine-cli evaluate` says of runs that differ in one field of the
recipe; weights/README.md has both tables.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.results import aligned
from refine.blocks import Blocks
from refine.decode import decode
from refine.models.crm_s import DECODERS, TRUNKS, CRMSmall

# (kind, channels, groups); a 3x3 convolution each, on the cells of /4
LAYERS = (("dense", 32, 1), ("dense", 64, 1), ("dense", 96, 1), ("dense", 24, 1), ("depthwise", 96, 96))


def seconds(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each task, run in turns after one warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            if turn:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def _at(pixels: Tensor, points: NDArray[np.int64]) -> Tensor:
    y, x = torch.from_numpy(points).T
    return pixels[y, x]


def main(arguments: list[str] | None = None) -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choices", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=1024, help="px of the square picture (default 1024)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    given = parser.parse_args(arguments)
    dtype, side = getattr(torch, given.dtype), given.side
    with torch.inference_mode():
        x = torch.rand(1, 4, side, side)
        tasks: dict[str, Callable[[], object]] = {}
        for trunk in TRUNKS:
            network: Any = CRMSmall(trunk=trunk).folded().to(dtype)
            tasks[f"encode, trunk {trunk}"] = partial(network.encode, x.to(dtype))
        (latent,) = network.encode(x.to(dtype))
        for decoder in DECODERS:
            network = CRMSmall(decoder=decoder).folded().to(dtype)
            axis = network.axis(side, side)
            cells, pixels = Blocks.around(latent, network.stride, (0, 0)), x[0].permute(1, 2, 0).contiguous()
            tasks[f"decode, {decoder}"] = partial(decode, network, cells, axis, axis, None, partial(_at, pixels))
        rows = [["part", "seconds"]]
        rows += [[name, f"{value:.3f}"] for name, value in seconds(tasks, given.repeats).items()]
        print(f"{side} x {side}, {given.dtype}, {torch.get_num_threads()} threads")
        print("\n".join(aligned(rows)))

        layers: dict[str, Callable[[], object]] = {}
        for kind, channels, groups in LAYERS:
            layer = nn.Conv2d(channels, channels, 3, padding=1, groups=groups).to(dtype=dtype)
            x4 = torch.rand(1, channels, side // 4, side // 4, dtype=dtype)
            x4 = x4.contiguous(memory_format=torch.channels_last)
            layers[f"{kind} 3x3, {channels} channels"] = partial(layer, x4)
        rows = [["layer", "GFLOP/s"]]
        taken = seconds(layers, 4 * given.repeats)
        for (_, channels, groups), (name, value) in zip(LAYERS, taken.items(), strict=True):
            rows.append([name, f"{2 * 9 * channels * channels / groups * (side // 4) ** 2 / value / 1e9:.0f}"])
        print("\n".join(aligned(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
