"""What the methods share: options that are checked once, and what a method gives back."""

from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from refine.errors import OptionError


class Outcome(NamedTuple):
    """What a method found."""

    probability: NDArray[np.float32]
    """(H, W) in [0, 1]."""
    warnings: tuple[str, ...] = ()
    """What the caller should know: a picture that was reduced, a mask that stayed as it was."""


def within(default: float, least: float, most: float) -> Any:
    """A field that is a number from ``least`` to ``most``; a whole one where the default is."""
    return field(default=default, metadata={"ends": (least, most)})


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options of every method.

    Raises `OptionError` for values that cannot be, naming those that can.
    """

    allow_large: bool = False
    """Read pictures beyond 250 megapixels."""

    def __post_init__(self) -> None:
        for option in fields(self):
            name, value = option.name, getattr(self, option.name)
            if "ends" not in option.metadata:
                if not isinstance(value, bool):
                    raise OptionError(f"{name}={value!r} is not possible; give True or False")
                continue
            least, most = option.metadata["ends"]
            kind, noun = (Integral, "whole number") if isinstance(option.default, int) else (Real, "number")
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
                raise OptionError(f"{name}={value!r} is not possible; give a {noun} from {least:g} to {most:g}")

    def but(self, method: str, **changes: object) -> Self:
        """These options with some changed; unknown names are an `OptionError` that lists the known ones."""
        known = [option.name for option in fields(self)]
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise OptionError(f"{method} has no option {', '.join(unknown)}; its options are {', '.join(known)}")
        return replace(self, **changes)  # type: ignore[arg-type]
