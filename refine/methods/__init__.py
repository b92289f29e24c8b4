"""Other refiners behind the same interface: peers of the cascades in tables, and a choice where there are no weights.

Each is a pure function of a picture (H, W, 3) uint8 RGB, a mask (H, W) float32 in [0, 1] with both classes, its options
and, if it has one, its network; neither array is written.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refine.change import change as changed
from refine.errors import OptionError, check_model
from refine.io import Source
from refine.isolation import numpy_errors, survive_forks
from refine.methods.bilinear import BilinearOptions, bilinear
from refine.methods.cascade_psp import CascadePSPOptions, cascade_psp, load
from refine.methods.coarse import CoarseOptions, coarse
from refine.methods.grab_cut import GrabCutOptions, grab_cut
from refine.methods.guided_filter import GuidedFilterOptions, guided_filter
from refine.methods.options import Loaded, MethodOptions, Outcome
from refine.methods.random_walker import RandomWalkerOptions, random_walker
from refine.planes import Held, Memory
from refine.prepare import Pair, prepare
from refine.result import Refined, Report


class Method(NamedTuple):
    """A function, the type of its options and, where it asks a network, what loads that."""

    function: Callable[..., Outcome]
    options: type[MethodOptions]
    load: Callable[[str | Path | None, str, str], Loaded] | None = None
    """Takes weights, device and dtype; the function takes the network by that keyword."""


METHODS: Final[dict[str, Method]] = {
    "coarse": Method(coarse, CoarseOptions),
    "bilinear": Method(bilinear, BilinearOptions),
    "guided-filter": Method(guided_filter, GuidedFilterOptions),
    "grabcut": Method(grab_cut, GrabCutOptions),
    "random-walker": Method(random_walker, RandomWalkerOptions),
    "cascade-psp": Method(cascade_psp, CascadePSPOptions, load),
}


class MethodRefiner:
    """A method by its name, with the interface of `refine.engine.Refiner` as far as pictures in memory go.

    model: a name in `METHODS`. options: defaults of every call, those of the method alone; see its module.
    weights, device, dtype: of "cascade-psp" as its module says; of the others None, "auto" or "cpu", and "auto" or
        "float32", for they have no network.

    Raises `OptionError` that names what is accepted, `WeightsError` for weights that are missing or do not fit.
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
        check_model(model, weights)
        if model not in METHODS:
            raise OptionError(f"model={model!r} is no method; known are {', '.join(METHODS)}")
        method = METHODS[model]
        self.model = model
        self.options = method.options().but(model, **options)
        if method.load is None:
            _check_unused(model, weights, device, dtype)
        self._loaded = Loaded() if method.load is None else method.load(weights, device, dtype)

    @property
    def weights_sha256(self) -> str:
        """Of the network's weights; "none" without a network."""
        return self._loaded.weights

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._loaded.device

    @property
    def dtype(self) -> str:
        """The network's arithmetic; "float32" without one."""
        return self._loaded.dtype

    def refine(self, image: NDArray[Any] | Source, coarse_mask: NDArray[Any] | Source, **options: Any) -> Refined:
        """Refine a coarse mask of an image; takes, gives and raises what `refine.engine.Refiner.refine` does.

        A mask of one class stays as it is, with a warning.
        """
        chosen = self.options.but(self.model, **options)
        survive_forks()
        with self._loaded.peak_memory() as peak, numpy_errors():
            started = time.perf_counter()
            pair = prepare(image, coarse_mask, allow_large=chosen.allow_large, white=chosen.white)
            prepared = time.perf_counter()
            found = self._found(pair, chosen)
        probability = found.probability
        if np.may_share_memory(probability, pair.mask):
            probability = probability.copy()  # the caller's own array may be behind it
        change = changed(Held(pair.mask), Held(probability), Memory())
        report = Report(
            model=self.model,
            weights=self._loaded.weights,
            device=self._loaded.device,
            dtype=self._loaded.dtype,
            size=pair.mask.shape,
            prepare_seconds=prepared - started,
            scales=(),
            seconds=time.perf_counter() - started,
            peak_memory=peak(),
            options=asdict(chosen),
            change=change,
            warnings=(*pair.warnings, *found.warnings, *change.warnings),
        )
        return Refined.of(probability, report, georeference=pair.georeference)

    def _found(self, pair: Pair, options: MethodOptions) -> Outcome:
        foreground = pair.mask > 0.5
        if foreground.all() or not foreground.any():
            only = "foreground" if foreground.all() else "background"
            return Outcome(pair.mask, (f"the coarse mask is all {only}, and so is the result",))
        asked = {} if self._loaded.network is None else {"network": self._loaded.network}
        return METHODS[self.model].function(pair.image, pair.mask, options, **asked)


def _check_unused(model: str, weights: str | Path | None, device: str, dtype: str) -> None:
    """Raises `OptionError` for what means nothing without a network."""
    if weights is not None:
        raise OptionError(f"weights={str(weights)!r} mean nothing to {model}, which has none; leave them out")
    for name, value, accepted in (("device", device, ("auto", "cpu")), ("dtype", dtype, ("auto", "float32"))):
        if value not in accepted:
            raise OptionError(f"{name}={value!r} is not possible with {model}; give {' or '.join(accepted)}")
