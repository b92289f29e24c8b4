"""Options that are numbers between two ends: frozen dataclasses that are checked once."""

from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Self

from refine.errors import OptionError, shown


def within(default: float, least: float, most: float) -> Any:
    """A field that is a number from ``least`` to ``most``; a whole one where the default is."""
    return field(default=default, metadata={"ends": (least, most)})


def switch(default: bool) -> Any:
    """A field that is True or False; 1 and 0, which `--set` can give, are taken too."""
    return field(default=default, metadata={"switch": True})


@dataclass(frozen=True, kw_only=True)
class Ranged:
    """Options that are numbers `within` ends, True and False, or what a ``check`` of theirs accepts.

    Raises `OptionError` for values that cannot be, naming those that can.
    """

    def __post_init__(self) -> None:
        for option in fields(self):
            name, value = option.name, getattr(self, option.name)
            if "check" in option.metadata:
                option.metadata["check"](value)
                continue
            if "ends" not in option.metadata:
                if "switch" in option.metadata and isinstance(value, Integral) and value in (0, 1):
                    object.__setattr__(self, name, bool(value))
                elif not isinstance(value, bool):
                    raise OptionError(f"{name}={shown(value)} is not possible; give True or False")
                continue
            least, most = option.metadata["ends"]
            kind, noun = (Integral, "whole number") if isinstance(option.default, int) else (Real, "number")
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
                raise OptionError(f"{name}={shown(value)} is not possible; give a {noun} from {least:g} to {most:g}")

    def as_dict(self) -> dict[str, float]:
        """JSON-ready; equal options give equal text."""
        whole = {option.name: isinstance(option.default, int) for option in fields(self)}
        return {name: int(value) if whole[name] else float(value) for name, value in asdict(self).items()}

    def but(self, owner: str, **changes: object) -> Self:
        """These options with some changed; unknown names are an `OptionError` that lists the ``owner``'s."""
        known = [option.name for option in fields(self)]
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise OptionError(f"{owner} has no option {', '.join(unknown)}; its options are {', '.join(known)}")
        return replace(self, **changes)  # type: ignore[arg-type]
