"""What the methods share: options, what a method runs with and what it gives."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refine.config import check_white
from refine.memory import peak_resident_set
from refine.ranges import Ranged
from refine.ranges import switch as switch  # the methods have these from here
from refine.ranges import within as within


class Outcome(NamedTuple):
    """What a method found."""

    probability: NDArray[np.float32]
    """(H, W) in [0, 1]."""
    warnings: tuple[str, ...] = ()
    """What the caller should know: a picture that was reduced, a mask that stayed as it was."""


def _of_the_process() -> AbstractContextManager[Callable[[], int]]:
    return nullcontext(peak_resident_set)


class Loaded(NamedTuple):
    """What a method runs with: the network that it asks, if it does, and what a report says of that."""

    network: Callable[..., Any] | None = None
    weights: str = "none"
    """SHA-256 of the file."""
    device: str = "cpu"
    dtype: str = "float32"
    peak_memory: Callable[[], AbstractContextManager[Callable[[], int]]] = _of_the_process
    """As `refine.devices.peak_memory` of the device."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions(Ranged):
    """Options of every method."""

    allow_large: bool = False
    """Read pictures beyond 250 megapixels."""

    white: float | None = field(default=None, metadata={"check": check_white})
    """The image's value that is white; None is the highest of its type, 1.0 of floats."""
