"""Scenes of 2k to 6k with exact truth, refined from coarse masks of four qualities: IoU and mBA.

    python -m benchmarks.quality
    python -m benchmarks.quality --data FOLDER    # with cut-outs of FOLDER/alphamatting over FOLDER/plants8mp

Half of the scenes are generated. The others are, where ``--data`` names held-out sets, real objects cut out by their
true alpha mattes over other real pictures; else generated too. Beside the refiner stand two that need no training and,
where ``--cascade-psp`` names its weights, CascadePSP.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from refine.engine import Refiner
from refine.errors import FileError, RefineError
from refine.evaluation import sheet
from refine.io import read_image, read_mask, write_image
from refine.methods import MethodRefiner
from refine.metrics import iou, mean_boundary_accuracy
from refine.training.coarse import network_like
from refine.training.scenes import scene

SEED = 20_000  # of the first scene; no recipe trains with seeds near it
SIDES = (2048, 2560, 3072, 3840, 4608, 6000)  # px of the long side, by turns
CELLS = {"poor": 40, "fair": 100, "good": 140, "best": 180}
"""Cells of the network that a coarse mask imitates, along the long side."""

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Method = Callable[[Image, Mask], Mask]


@dataclass(frozen=True)
class Scored:
    """IoU and mBA in [0, 1] of a scene's mask: the coarse one, or a method's."""

    scene: str
    quality: str
    method: str
    iou: float
    mba: float


def scenes(count: int, data: Path | None, sides: Sequence[int] = ()) -> Iterator[tuple[str, Image, Mask]]:
    """Name, picture (H, W, 3) and truth (H, W) of each scene.

    data: held-out sets whose cut-outs make every other scene; without, all are generated. sides: px of the long sides,
    by turns, instead of `SIDES`.

    Raises `FileError` where a set has no pictures.
    """
    sides = sides or SIDES
    cut_outs = [] if data is None else _pictures(data / "alphamatting")
    grounds = [] if data is None else _pictures(data / "plants8mp")
    for i in range(count):
        rng = np.random.default_rng(SEED + i)
        side = sides[i % len(sides)]
        height, width = (side, round(side / 1.5)) if rng.random() < 0.3 else (round(side / 1.5), side)
        if cut_outs and i % 2:
            image, truth = composed(cut_outs[i // 2 % len(cut_outs)], grounds[i % len(grounds)], rng, height, width)
            yield f"{i:02d} cut-out {width} x {height}", image, truth
        else:
            yield f"{i:02d} generated {width} x {height}", *scene(rng, height, width)


def _pictures(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*_im.jpg"))
    if not found:
        raise FileError(f"no *_im.jpg in {str(folder)!r}; --data takes the folder of the held-out sets")
    return found


def composed(cut_out: Path, ground: Path, rng: np.random.Generator, height: int, width: int) -> tuple[Image, Mask]:
    """An object by its alpha matte, enlarged, over another picture; the truth is where alpha exceeds one half."""
    picture = read_image(cut_out).astype(np.float32)
    alpha = read_mask(cut_out.with_name(cut_out.name.replace("_im.jpg", "_gt.png"))).astype(np.float32) / 255
    # Colours of the object alone: where it is not opaque, those of the nearest pixel that is.
    y, x = distance_transform_edt(alpha < 0.95, return_distances=False, return_indices=True)
    factor = float(rng.uniform(0.7, 1.0)) * min(height / alpha.shape[0], width / alpha.shape[1])
    size = (round(alpha.shape[1] * factor), round(alpha.shape[0] * factor))
    colour = np.asarray(cv2.resize(picture[y, x], size, interpolation=cv2.INTER_CUBIC), np.float32)
    alpha = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_CUBIC), np.float32).clip(0, 1)
    top, left = height - size[1], int(rng.integers(0, width - size[0] + 1))  # what the matte's border cuts stays cut
    behind = np.asarray(cv2.resize(read_image(ground), (width, height), interpolation=cv2.INTER_AREA), np.float32)
    if rng.random() < 0.5:
        behind = np.asarray(cv2.GaussianBlur(behind, (0, 0), 0.004 * width), np.float32)
    part = behind[top:, left : left + size[0]]
    part += (colour - part) * alpha[..., None]
    truth = np.zeros((height, width), bool)
    truth[top:, left : left + size[0]] = alpha > 0.5
    noise = rng.standard_normal(behind.shape, np.float32) * np.float32(rng.uniform(0, 3))
    return np.clip(behind + noise, 0, 255).astype(np.uint8), truth


def coarse_generator(i: int) -> np.random.Generator:
    """Random numbers of a scene's coarse masks, by its index."""
    return np.random.default_rng(SEED + 1000 + i)


def coarse_masks(truth: Mask, rng: np.random.Generator) -> Iterator[tuple[str, Mask]]:
    """A coarse mask of each quality."""
    for quality, cells in CELLS.items():
        yield quality, network_like(truth, rng, cell=max(truth.shape) / cells) > 0.5


def table(scored: Sequence[Scored]) -> str:
    """IoU/mBA of each scene and, last, their means and the worst change of IoU against the coarse mask."""
    methods = list(dict.fromkeys(s.method for s in scored))
    by = {(s.scene, s.quality, s.method): s for s in scored}
    lines = ["| scene | coarse masks | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    for name, quality in dict.fromkeys((s.scene, s.quality) for s in scored):
        of = [by[name, quality, method] for method in methods]
        lines.append(f"| {name} | {quality} | " + " | ".join(f"{100 * s.iou:.2f}/{100 * s.mba:.2f}" for s in of) + " |")
    for quality in dict.fromkeys(s.quality for s in scored):
        cells = []
        for method in methods:
            of = [s for s in scored if s.quality == quality and s.method == method]
            means = [100 * float(np.mean([getattr(s, figure) for s in of])) for figure in ("iou", "mba")]
            worst = min(100 * (s.iou - by[s.scene, quality, "coarse"].iou) for s in of)
            cells.append(f"{means[0]:.2f}/{means[1]:.2f}" + ("" if method == "coarse" else f" ({worst:+.2f})"))
        lines.append(f"| mean (worst change of IoU) | {quality} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(methods: dict[str, Method], count: int, data: Path | None, out: Path | None = None) -> list[Scored]:
    """Every scene and quality by every method; sheets of the last method's worst crops into ``out``."""
    found: list[Scored] = []
    for i, (name, image, truth) in enumerate(scenes(count, data)):
        for quality, coarse in coarse_masks(truth, coarse_generator(i)):
            mask = coarse
            for method, refine in {"coarse": lambda _, mask: mask, **methods}.items():
                mask = refine(image, coarse)
                found.append(Scored(name, quality, method, iou(mask, truth), mean_boundary_accuracy(mask, truth)))
            if out is not None:
                write_image(out / f"{i:02d}-{quality}.jpg", sheet(image, coarse, mask, truth, title=name))
        print(f"{name} done", flush=True)
    return found


def _refined(refiner: Refiner | MethodRefiner, image: Image, coarse: Mask) -> Mask:
    return refiner.refine(image, coarse).mask


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of held-out sets: alphamatting, plants8mp")
    parser.add_argument("--count", type=int, default=12, help="scenes (default 12)")
    parser.add_argument("--weights", type=Path, help="of crm-s, instead of those that ship")
    parser.add_argument("--cascade-psp", type=Path, help="its weights; without, it takes no part")
    parser.add_argument("--alone", action="store_true", help="leave out the refiners that need no training")
    parser.add_argument("--out", type=Path, help="folder for sheets of crops")
    given = parser.parse_args()
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    untrained = () if given.alone else ("guided-filter", "grabcut")
    methods: dict[str, Method] = {name: partial(_refined, MethodRefiner(name)) for name in untrained}
    if given.cascade_psp is not None:
        methods["cascade-psp"] = partial(_refined, MethodRefiner("cascade-psp", weights=given.cascade_psp))
    methods["crm-s"] = partial(_refined, Refiner(weights=given.weights))
    try:
        print(table(run(methods, given.count, given.data, given.out)))
    except RefineError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
