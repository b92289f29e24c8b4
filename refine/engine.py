"""The refiner: a cascade of scales on one screen, each line of it one file.

prepare   check the input, normalise it, pad it
features  picture and mask at one scale -> latent
decode    query the latent at the pixels
result    probability, mask and report
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refine.config import Options
from refine.decode import probabilities
from refine.devices import peak_memory, resolve_device, resolve_dtype, return_freed_memory
from refine.features import latent_of
from refine.frame import Frame
from refine.io import Source
from refine.loading import load_network
from refine.prepare import prepare
from refine.regions import Grid, at_next, dense, read_by_next
from refine.result import Refined, Report, ScaleReport


@dataclass
class _Outcome:
    """What a cascade leaves: the last probability, those of its scales if kept, and how it went."""

    probability: NDArray[np.float32]
    kept: dict[float, NDArray[np.float32]] = field(default_factory=dict)
    reports: list[ScaleReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Refiner:
    """A model with its weights on a device, ready to refine many pictures.

    model: name of a preset, "crm-s" (the default; ships with weights) or "crm-r50".
    weights: path of a safetensors file or of a published .pth; None takes the weights that ship with the model.
    device: "auto" (CUDA, else Apple's GPU, else the CPU), "cpu", "cuda", "cuda:N" or "mps".
    dtype: "auto" (the fastest that is safe on the device), "float32", "bfloat16" or "float16"; coordinates are always
        float32.
    options: defaults of every call; see `refine.config.Options`.

    Raises `OptionError` for unknown values, `WeightsError` for weights that are missing or do not fit.
    """

    def __init__(
        self,
        model: str = "crm-s",
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        **options: Any,
    ) -> None:
        self.options = Options().but(**options)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        network, self.spec, self.weights_sha256 = load_network(model, weights)
        self.network = network.folded().to(self.device, self.dtype)

    def refine(self, image: NDArray[Any] | Source, coarse_mask: NDArray[Any] | Source, **options: Any) -> Refined:
        """Refine a coarse mask of an image.

        image: (H, W, 3) uint8 RGB, grey, RGBA, uint16 or float in [0, 1]; a path or a PIL image.
        coarse_mask: (H, W) bool, {0, 1}, {0, 255}, uint8 grey or float in [0, 1]; of the image's size or smaller; a
            path or a PIL image.
        options: fields of `refine.config.Options` for this call alone.

        Raises `InputError` for arrays, `FileError` for files, `OptionError` for options that cannot be used.
        """
        chosen = self.options.but(**options)
        with torch.inference_mode(), peak_memory(self.device) as peak:
            started = self._now()
            pair = prepare(image, coarse_mask, allow_large=chosen.allow_large)
            frame = Frame(pair, self.spec.cascade, self.device)
            prepared = self._now()
            outcome = self._cascade(frame, chosen)
            seconds = self._now() - started
        report = Report(
            model=self.spec.model,
            weights=self.weights_sha256,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            size=outcome.probability.shape,
            prepare_seconds=prepared - started,
            scales=tuple(outcome.reports),
            seconds=seconds,
            peak_memory=peak(),
            options=chosen.as_dict(),
            warnings=tuple(outcome.warnings),
        )
        return Refined.of(outcome.probability, report, scales=outcome.kept)

    def _cascade(self, frame: Frame, options: Options) -> _Outcome:
        mask, outcome = frame.mask, _Outcome(np.zeros(frame.original, np.float32))
        if frame.is_empty((mask + 1) / 2):
            outcome.warnings.append("the coarse mask is all background, and so is the result")
            return outcome
        scales = self.spec.cascade.at(*frame.original)
        sizes = [frame.scaled(scale) for scale in scales]
        for scale, size, following in zip(scales, sizes, (*sizes[1:], None), strict=True):
            started = self._now()
            x = frame.input(size, mask)
            tile = options.tile or self.network.tile
            return_freed_memory()
            latent = latent_of(self.network, x, dtype=self.dtype, tile=tile, patch=options.patch)
            return_freed_memory()
            encoded = self._now()
            grid = self._grid(frame, size, following, options)
            p = self._queried(frame, latent, grid, x)
            if grid.samples and frame.may_be_empty(p):  # too little is known to tell whether the whole mask is empty
                grid = dense(self.network, frame.size, size)
                p = self._queried(frame, latent, grid, x)
            if not grid.samples and frame.is_empty(p):
                p = torch.zeros_like(p)
                outcome.warnings.append(f"nothing of the mask was left at scale {scale:g}")
            mask = grid.mask(p)
            decoded = self._now()
            outcome.reports.append(ScaleReport(scale, size, encoded - started, decoded - encoded, p.numel(), 0))
            if options.keep_scales:
                outcome.kept[scale] = frame.cut(p)
        outcome.probability = frame.cut(p)
        return outcome

    def _queried(self, frame: Frame, latent: Tensor, grid: Grid, x: Tensor) -> Tensor:
        guide = frame.guide(grid.shape, x) if self.network.guided else None
        return probabilities(self.network, latent, grid, guide)

    def _grid(self, frame: Frame, size: tuple[int, int], following: tuple[int, int] | None, options: Options) -> Grid:
        """The pixels to decode at a scale of ``size``: those that the scale of size ``following`` reads, or all."""
        if following is None:
            return dense(self.network, frame.size, size)
        if (options.coarse_decode or self.spec.cascade.coarse_decode) == "next":
            return at_next(self.network, frame.size, size, following)
        if self.spec.cascade.resize == "corners" and not options.keep_scales:
            return read_by_next(self.network, frame.size, size, following)
        return dense(self.network, frame.size, size)

    def _now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


_kept: dict[tuple[object, ...], Refiner] = {}
_keeping = Lock()


def run(
    image: NDArray[Any] | Source,
    coarse_mask: NDArray[Any] | Source,
    *,
    model: str = "crm-s",
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    **options: Any,
) -> Refined:
    """Refine one coarse mask; the refiner is kept for the next call with the same model, weights, device and dtype.

    See `Refiner` for the first options and `Refiner.refine` for the inputs, the other options and the errors. A file of
    weights that has changed since is loaded again.
    """
    stamp = None if weights is None or not Path(weights).exists() else Path(weights).stat().st_mtime_ns
    key = (model, weights, stamp, device, dtype)
    Options().but(**options)  # a misspelt one is told before weights are loaded
    with _keeping:
        if key not in _kept:
            refiner = Refiner(model, weights=weights, device=device, dtype=dtype)
            _kept.clear()
            _kept[key] = refiner
        refiner = _kept[key]
    return refiner.refine(image, coarse_mask, **options)
