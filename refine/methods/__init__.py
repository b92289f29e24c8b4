"""Refiners that need no training: peers of the networks in tables, and a choice where there are no weights.

Each is a pure function of a picture (H, W, 3) uint8 RGB, a mask (H, W) float32 in [0, 1] with both classes, and its
options; neither array is written.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refine.errors import OptionError
from refine.io import Source
from refine.memory import peak_resident_set
from refine.methods.bilinear import BilinearOptions, bilinear
from refine.methods.coarse import CoarseOptions, coarse
from refine.methods.grab_cut import GrabCutOptions, grab_cut
from refine.methods.guided_filter import GuidedFilterOptions, guided_filter
from refine.methods.options import MethodOptions, Outcome
from refine.methods.random_walker import RandomWalkerOptions, random_walker
from refine.prepare import prepare
from refine.result import Refined, Report


class Method(NamedTuple):
    """A function and the type of its options."""

    function: Callable[[NDArray[np.uint8], NDArray[np.float32], Any], Outcome]
    options: type[MethodOptions]


METHODS: Final[dict[str, Method]] = {
    "coarse": Method(coarse, CoarseOptions),
    "bilinear": Method(bilinear, BilinearOptions),
    "guided-filter": Method(guided_filter, GuidedFilterOptions),
    "grabcut": Method(grab_cut, GrabCutOptions),
    "random-walker": Method(random_walker, RandomWalkerOptions),
}


class MethodRefiner:
    """A method by its name, with the interface of `refine.engine.Refiner` as far as pictures in memory go.

    model: a name in `METHODS`. weights: None, for there are none. device: "auto" or "cpu". dtype: "auto" or "float32".
    options: defaults of every call, those of the method alone; see its module.

    Raises `OptionError` that names what is accepted.
    """

    def __init__(
        self,
        model: str,
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        **options: Any,
    ) -> None:
        if model not in METHODS:
            raise OptionError(f"model={model!r} is no method; known are {', '.join(METHODS)}")
        if weights is not None:
            raise OptionError(f"weights={str(weights)!r} mean nothing to {model}, which has none; leave them out")
        for name, value, accepted in (("device", device, ("auto", "cpu")), ("dtype", dtype, ("auto", "float32"))):
            if value not in accepted:
                raise OptionError(f"{name}={value!r} is not possible with {model}; give {' or '.join(accepted)}")
        self.model = model
        self.options = METHODS[model].options().but(model, **options)

    def refine(self, image: NDArray[Any] | Source, coarse_mask: NDArray[Any] | Source, **options: Any) -> Refined:
        """Refine a coarse mask of an image; takes, gives and raises what `refine.engine.Refiner.refine` does.

        A mask of one class stays as it is, with a warning.
        """
        chosen = self.options.but(self.model, **options)
        started = time.perf_counter()
        pair = prepare(image, coarse_mask, allow_large=chosen.allow_large)
        prepared = time.perf_counter()
        foreground = pair.mask > 0.5
        if foreground.all() or not foreground.any():
            only = "foreground" if foreground.all() else "background"
            found = Outcome(pair.mask, (f"the coarse mask is all {only}, and so is the result",))
        else:
            found = METHODS[self.model].function(pair.image, pair.mask, chosen)
        probability = found.probability
        if np.may_share_memory(probability, pair.mask):
            probability = probability.copy()  # the caller's own array may be behind it
        report = Report(
            model=self.model,
            weights="none",
            device="cpu",
            dtype="float32",
            size=pair.mask.shape,
            prepare_seconds=prepared - started,
            scales=(),
            seconds=time.perf_counter() - started,
            peak_memory=peak_resident_set(),
            options=asdict(chosen),
            warnings=found.warnings,
        )
        return Refined.of(probability, report)
