"""Options of a refiner and the specification that rebuilds one: frozen, checked once, explained field by field."""

from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from typing import Any, Final, Self

from refine.errors import OptionError, WeightsError

DECODES: Final = ("dense",)
COARSE_DECODES: Final = ("full", "next")
DTYPES: Final = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """How to refine; none of it changes what the network is.

    Raises `OptionError` naming the known values.
    """

    decode: str = "dense"
    """Which pixels to decode: "dense", all of them."""

    coarse_decode: str | None = None
    """Where the scales before the last are decoded: "full" at every pixel of the picture, as published; "next" only at
    the samples that the next scale reads, 1/64 to 1 of them. None is what the model was trained for."""

    tile: int | None = None
    """px of scaled image that the encoder takes at once, without its halo; the result does not depend on it. None is
    the network's own choice."""

    patch: int = 128
    """Side, in latent cells, of the windows in which features are fused; the result does not depend on it."""

    keep_scales: bool = False
    """Keep the probability after every scale in the result's ``scales``; needs memory for each."""

    allow_large: bool = False
    """Read pictures beyond 250 megapixels."""

    def __post_init__(self) -> None:
        _one_of("decode", self.decode, DECODES)
        if self.coarse_decode is not None:
            _one_of("coarse_decode", self.coarse_decode, COARSE_DECODES)
        for name, value in (("tile", 32 if self.tile is None else self.tile), ("patch", self.patch)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 32:
                raise OptionError(f"{name}={value!r} is not possible; give a whole number of at least 32")
        for name in ("keep_scales", "allow_large"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r} is not possible; give True or False")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def but(self, **changes: object) -> Self:
        """These options with some changed; an unknown name is an `OptionError` that lists the known ones."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise OptionError(f"there is no option {name!r}; the options are {', '.join(known)}")
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Cascade:
    """The scales a model runs through and how it reads the picture at each."""

    scales: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 1.0)
    smallest: int = 0
    """px; a scale at which the picture's long side is shorter is left out (the last scale never is)."""

    pad: int = 32
    """px of reflected border around the picture while it is refined."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of RGB in [0, 1], as the encoder expects it."""

    resize: str = "corners"
    """How pictures are reduced: "corners", bilinear with the corner pixels kept in place, as published; "area", the
    mean of the pixels that a sample covers, which does not alias."""

    coarse_decode: str = "full"
    """Default of the option of that name."""

    empty: float = 1.0
    """px; a mask with less foreground than this in all is taken for empty, as published. 0: only one without any."""

    def at(self, height: int, width: int) -> tuple[float, ...]:
        """The scales to run for a picture of this size."""
        kept = tuple(s for s in self.scales[:-1] if max(height, width) * s >= self.smallest)
        return (*kept, self.scales[-1])


@dataclass(frozen=True)
class Spec:
    """All that rebuilds a model around its weights; stored in their file."""

    model: str
    """Name of the preset."""

    network: str
    """Name of the network's class in `refine.models.NETWORKS`."""

    arguments: dict[str, int]
    """Of that class."""

    cascade: Cascade

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises `WeightsError` for fields that are missing or unknown."""
        try:
            lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["cascade"].items()}
            return cls(**{**values, "cascade": Cascade(**lists)})
        except (KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"the weights' specification cannot be read ({error}); they are not made by refine"
            ) from error


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{name}={value!r} is unknown; known are {', '.join(known)}")
