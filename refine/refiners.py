"""From a model's name to what refines by it: a network with its cascade, or a method.

Methods without a network work without torch, which is imported where one is asked for.
"""

import os
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from refine.config import Options, guided_model
from refine.errors import check_model
from refine.io import Source, identity
from refine.methods import METHODS, MethodRefiner
from refine.result import Refined

if TYPE_CHECKING:
    import numpy as np

    from refine.engine import Refiner
    from refine.guidance import Encoder, Proposals, ProposalSource


def refiner(
    model: str = "crm-s",
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    **options: Any,
) -> "Refiner | MethodRefiner":
    """A `refine.engine.Refiner`, or the `refine.methods.MethodRefiner` of that name, ready for many pictures.

    model: a network ("crm-s", "crm-r50") or a method ("guided-filter", "grabcut", "random-walker", "bilinear",
    "coarse", and "cascade-psp", which needs weights). The others as the class of the model takes them; an option that
    means nothing to it is an error.

    Raises `OptionError` for unknown values, `WeightsError` for weights that are missing or do not fit.
    """
    check_model(model, weights)
    if model in METHODS:
        return MethodRefiner(model, weights=weights, device=device, dtype=dtype, **options)
    from refine.engine import Refiner

    return Refiner(model=model, weights=weights, device=device, dtype=dtype, **options)


_kept: dict[tuple[object, ...], "Refiner | MethodRefiner"] = {}
_keeping = RLock()
if hasattr(os, "register_at_fork"):  # a child would wait for a thread that loads weights in its parent
    os.register_at_fork(before=_keeping.acquire, after_in_parent=_keeping.release, after_in_child=_keeping.release)


def run(
    image: NDArray[Any] | Source,
    coarse_mask: NDArray[Any] | Source,
    *,
    model: str = "crm-s",
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    proposals: "Proposals | ProposalSource | str | None" = None,
    embedding: "NDArray[np.float32] | Encoder | None" = None,
    **options: Any,
) -> Refined:
    """Refine one coarse mask; the refiner is kept for the next call with the same model, weights, device and dtype.

    See `refiner` for the first options and `refine.engine.Refiner.refine` for the inputs, the other options and the
    errors. A file of weights that has changed since is loaded again.
    """
    check_model(model, weights)
    method = METHODS.get(model)
    beside: dict[str, Any] = {"proposals": proposals, "embedding": embedding}
    beside = {name: value for name, value in beside.items() if value is not None}  # of a method an error that says so
    if method is not None and method.load is None:  # there is nothing to keep, and kept weights stay
        return refiner(model, weights=weights, device=device, dtype=dtype, **options, **beside).refine(
            image, coarse_mask
        )
    if method is None:  # a misspelt option is told before weights are loaded
        model = guided_model(model, Options().but(**options).guidance)
    else:
        method.options().but(model, **options)
    key = (model, weights, identity(weights), device, dtype)
    with _keeping:
        if key not in _kept:
            made = refiner(model, weights=weights, device=device, dtype=dtype)
            _kept.clear()
            _kept[key] = made
        kept = _kept[key]
    return kept.refine(image, coarse_mask, **options, **beside)
