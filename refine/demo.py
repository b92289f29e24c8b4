"""The main job on an embedded example: a generated 4k scene with exact truth and a coarse mask made from it."""

from pathlib import Path

import numpy as np

from refine.errors import OptionError
from refine.evaluation import sheet
from refine.io import write_image, write_mask
from refine.memory import forget_peak, return_freed
from refine.metrics import iou, mean_boundary_accuracy
from refine.refiners import refiner
from refine.training.coarse import network_like
from refine.training.scenes import scene

_CELLS = 240  # of the network that the coarse mask imitates, along the longer side: 16 px at 4k
_WARM_UP = (96, 3840)  # px, wider than a tile: what is slow once (kernels, libraries) is not timed


def run_demo(
    out: Path,
    *,
    model: str = "crm-s",
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    size: tuple[int, int] = (2160, 3840),
) -> dict[str, object]:
    """Refines a seeded scene of size (H, W) and returns the figures: IoU and mBA in %, seconds, peak memory in MB.

    Writes into ``out``: ``demo_image.jpg``, ``demo_coarse.png``, ``demo_refined.png``, and ``before_after.png`` to look
    at. The seconds and the memory are those of one call after a warm-up on a small picture.

    Raises as `refiner` does, and `OptionError` for a seed below 0.
    """
    if seed < 0:
        raise OptionError(f"seed={seed} is not possible; give a whole number from 0")
    chosen = refiner(model=model, device=device, dtype=dtype)
    warm_image, warm_truth = scene(np.random.default_rng(seed), *_WARM_UP)
    chosen.refine(warm_image, warm_truth)

    rng = np.random.default_rng(seed)
    image, truth = scene(rng, *size)
    coarse = network_like(truth, rng, cell=max(size) / _CELLS) > 0.5
    return_freed()  # what drawing took is not the call's
    forget_peak()
    refined = chosen.refine(image, coarse)
    report = refined.report

    out.mkdir(parents=True, exist_ok=True)
    write_image(out / "demo_image.jpg", image)
    write_mask(out / "demo_coarse.png", coarse)
    write_mask(out / "demo_refined.png", refined.mask)
    figures: dict[str, object] = {
        "picture": f"{size[1]} x {size[0]}, seed {seed}",
        "IoU before (%)": 100 * iou(coarse, truth),
        "IoU after (%)": 100 * iou(refined.mask, truth),
        "mBA before (%)": 100 * mean_boundary_accuracy(coarse, truth),
        "mBA after (%)": 100 * mean_boundary_accuracy(refined.mask, truth),
        "seconds": report.seconds,
        "peak memory (MB)": round(report.peak_memory / 1e6),
        "model": model,
        "device": report.device,
        "dtype": report.dtype,
        "see": str(out / "before_after.png"),
    }
    title = (
        f"IoU {figures['IoU before (%)']:.1f} -> {figures['IoU after (%)']:.1f} %, "
        f"mBA {figures['mBA before (%)']:.1f} -> {figures['mBA after (%)']:.1f} %"
    )
    write_image(out / "before_after.png", sheet(image, coarse, refined.mask, truth, title=title))
    return figures
