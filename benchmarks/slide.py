"""A generated slide refined window by window: seconds, peak memory, and IoU before and after.

    python -m benchmarks.slide --size 20000x20000
    python -m benchmarks.slide --size 40000x80000 --kill 40 --kill 80    # killed at these tiles, the last time for good

The slide is a tiled TIFF (JPEG, as scanners write them) with a few objects in it, the coarse mask another; both are
kept in --folder and made only once. The work runs in a process of its own, whose peak resident set counts.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from benchmarks.inputs import CELLS, Pixels
from benchmarks.results import usable_cores
from benchmarks.worker import ROOT, limited
from refine.config import parse_bytes
from refine.memory import forget_peak, peak_resident_set, resident_set
from refine.metrics import intersection_and_union, pooled_iou
from refine.tiles import Window

OBJECT = (2000, 3000)  # H x W of a scene in the slide
TILE = 512
SEED = 7
Pair = tuple[Pixels, NDArray[np.bool_], NDArray[np.bool_]]
"""Picture, truth and coarse mask of an object's scene."""


def objects(size: tuple[int, int], count: int) -> list[tuple[Window, Pair]]:
    """Where the scenes lie in a slide of ``size`` (H, W), and what is in them."""
    from refine.training.coarse import network_like
    from refine.training.scenes import scene

    rng = np.random.default_rng(SEED)
    height, width = (min(a, b) for a, b in zip(OBJECT, size, strict=True))
    rows = int(count**0.5)
    columns = -(-count // rows)
    found = []
    for i in range(count):
        top = (2 * (i // columns) + 1) * size[0] // (2 * rows) - height // 2
        left = (2 * (i % columns) + 1) * size[1] // (2 * columns) - width // 2
        image, truth = scene(rng, height, width)
        coarse = network_like(truth, rng, cell=max(1.0, height / CELLS)) > 0.5
        window = Window(max(top, 0), max(top, 0) + height, max(left, 0), max(left, 0) + width)
        found.append((window, (image, truth, coarse)))
    return found


def write(folder: Path, size: tuple[int, int], placed: list[tuple[Window, Pair]]) -> tuple[Path, Path]:
    """Writes `slide.tif` and `coarse.tif`; returns their paths."""
    tissue = np.random.default_rng(SEED).integers(200, 240, (TILE, TILE, 3), np.uint8)

    def tiles(of_mask: bool) -> Iterator[NDArray[np.uint8]]:
        for window in Window(0, size[0], 0, size[1]).split(TILE):
            out = np.zeros((TILE, TILE), np.uint8) if of_mask else tissue.copy()
            for place, (image, _, coarse) in placed:
                top, bottom = max(window.top, place.top), min(window.bottom, place.bottom)
                left, right = max(window.left, place.left), min(window.right, place.right)
                if top < bottom and left < right:
                    part = Window(top, bottom, left, right)
                    content = coarse * np.uint8(255) if of_mask else image
                    inner = part.moved(-window.top, -window.left).slices
                    out[inner] = content[part.moved(-place.top, -place.left).slices]
            yield out

    paths = folder / "slide.tif", folder / "coarse.tif"
    for path, of_mask in zip(paths, (False, True), strict=True):
        part = path.with_suffix(".part")
        with tifffile.TiffWriter(part, bigtiff=True) as tiff:
            tiff.write(
                tiles(of_mask),
                shape=size if of_mask else (*size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="minisblack" if of_mask else "rgb",
                compression="deflate" if of_mask else "jpeg",
            )
        part.replace(path)
    return paths


def refined(folder: Path, cap: str, kill: int) -> None:
    """In the process that counts: refines the slide, up to tile ``kill`` unless that is 0, and prints a JSON line."""
    from refine import Refiner

    refiner = Refiner(device="cpu")
    journal = folder / "fine.tif.work" / "refine.journal"
    # A journal has a line for its key, and one for each tile or band that is done.
    figures = {"steps_done_before": journal.read_text().count("\n") - 1 if journal.exists() else 0}
    before, started = resident_set(), time.perf_counter()
    forget_peak()

    def so_far() -> dict[str, float]:
        return {**figures, "seconds": time.perf_counter() - started, "over": peak_resident_set() - before}

    def progress(done: int, tiles: int) -> None:
        print(f"tile {done} of {tiles}", end="\r", file=sys.stderr)
        if done == kill:
            print(json.dumps({"killed_at": done, "tiles": tiles, **so_far()}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    files = (folder / name for name in ("slide.tif", "coarse.tif", "fine.tif"))
    report = refiner.refine_file(*files, max_memory=cap, progress=progress)
    scales = [{"scale": s.scale, "decoded": s.pixels_decoded, "encoded": s.encoded} for s in report.scales]
    print(json.dumps({**so_far(), "scales": scales}), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Prints what was done; 0 if the result is better than its coarse mask and the memory held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slide", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="20000x20000", help="H x W (default 20000x20000)")
    parser.add_argument("--objects", type=int, default=6)
    parser.add_argument("--max-memory", default="4GiB")
    parser.add_argument("--kill", type=int, action="append", default=[], help="tile at which a run is killed")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "slide")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    height, width = (int(side) for side in options.size.split("x"))
    folder = options.folder / f"{height}x{width}-{options.objects}"
    if options.worker is not None:
        refined(folder, options.max_memory, options.worker)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    placed = objects((height, width), options.objects)
    if not (folder / "coarse.tif").exists():
        started = time.perf_counter()
        print(
            ", ".join(f"{path}: {path.stat().st_size / 1e6:.0f} MB" for path in write(folder, (height, width), placed))
        )
        print(f"written in {time.perf_counter() - started:.0f} s")
    cap = parse_bytes(options.max_memory)
    for kill in options.kill or [0]:
        command = [sys.executable, "-m", "benchmarks.slide", "--size", options.size, "--folder", str(options.folder)]
        command += ["--objects", str(options.objects), "--max-memory", options.max_memory, "--worker", str(kill)]
        done = subprocess.run(command, cwd=ROOT, env=limited(options.threads), stdout=subprocess.PIPE, check=False)
        lines = done.stdout.decode().splitlines()
        print("\n".join(lines), flush=True)
        if done.returncode != (-signal.SIGKILL if kill else 0):
            return 1
        if (over := json.loads(lines[-1])["over"]) > cap:
            print(f"took {over / 1e6:.0f} MB, {cap / 1e6:.0f} MB are allowed")
            return 1
    if options.kill:
        return 0
    fine = tifffile.imread(folder / "fine.tif") > 0
    parts = [(truth, coarse, fine[window.slices]) for window, (_, truth, coarse) in placed]
    scores = [100 * pooled_iou(intersection_and_union(part[i], part[0]) for part in parts) for i in (1, 2)]
    outside = int(np.count_nonzero(fine)) - sum(int(np.count_nonzero(fine[w.slices])) for w, _ in placed)
    print(f"IoU {scores[0]:.2f} -> {scores[1]:.2f}; {outside} px found outside of the objects' scenes")
    return int(scores[1] <= scores[0])


if __name__ == "__main__":
    sys.exit(main())
