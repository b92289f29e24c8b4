"""Options of a refiner and the specification that rebuilds one: frozen, checked once, explained field by field."""

import math
import re
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Final, Self

from refine.errors import OptionError, WeightsError, check_path, one_of, shown

DECODES: Final = ("dense", "bbox", "contour", "strided")
FIRST_PASSES: Final = ("near", "everywhere")
COARSE_DECODES: Final = ("full", "next")
RESIZES: Final = ("corners", "area")
MOST_GROUPS: Final = 256
MOST_PIXELS: Final = 2**24
"""px and cells; more than a picture's side, and twice as many in products are still whole numbers everywhere."""
MOST_WHITE: Final = 1e30
EMBEDDED: Final = ("sam-sr-v3.1", "sam-sr-v3.2", "sam-sr-v3.3", "sam-sr-v3.4")
"""Versions by features of Segment Anything's encoder."""
GUIDANCE: Final = ("sam-sr-v1", "sam-sr-v2.1", "sam-sr-v2.2", *EMBEDDED)
UNTRAINED: Final = "sam-sr-v1"
"""The version that every model can be guided by; the others are models of their own."""
SOURCES: Final = ("sam-vit-b", "sam-vit-l", "sam-vit-h", "sam", "felzenszwalb", "slic")
"""Names of sources of proposals; "sam" is whatever type a checkpoint is."""
DTYPES: Final = ("auto", "float32", "bfloat16", "float16")


def check_white(white: object) -> None:
    """Raises `OptionError` for what is no value of a picture that may be white."""
    number = isinstance(white, Real) and not isinstance(white, bool)
    if white is not None and not (number and 0 < white <= MOST_WHITE):  # type: ignore[operator]
        raise OptionError(f"white={shown(white)} is not possible; give the image's value that is white, above 0")


@dataclass(frozen=True)
class Options:
    """How to refine; none of it changes what the network is.

    Raises `OptionError` naming the known values.
    """

    decode: str | None = None
    """Which pixels to decode at each scale; all others keep their value. "dense": all. "bbox": the bounding boxes of
    the mask's objects, with `padding`. "contour": a `band` around its contour. "strided": every `stride`-th pixel in
    y and x, and the pixels between four of which one changed its class. None is the model's own choice."""

    stride: int = 4
    """px between the pixels that a strided pass decodes first. It is no stride of crops: one picture, one pass."""

    first_pass: str = "near"
    """Where a strided pass looks: "everywhere", at every `stride`-th pixel; or "near", at those within `band` of the
    contour, at all pixels of the squares between them that are within 8 px of it or where the scale before left doubt,
    and around pixels that moved by more than 0.1 without changing their class. The second is cheaper, sees thin changes
    along the contour, and overlooks what changes far from it."""

    band: int = 24
    """px on both sides of the contour, counted on the grid that a scale decodes: with `coarse_decode`
    "next" the next scale's picture, wide at coarse scales; with "full" the picture itself."""

    padding: int = 32
    """px around bounding boxes, counted likewise."""

    coarse_decode: str | None = None
    """Where the scales before the last are decoded: "full" at every pixel of the picture, as published; "next" only at
    the samples that the next scale reads, 1/16 to 1 of them unless the picture is seen enlarged. None is what the model
    was trained for."""

    guard: bool | None = None
    """Whether the result is held to the coarse mask (`refine.guard`). What a scale cannot see it leaves. After
    the last scale, parts of the result that touch nothing of the coarse mask go, and so do holes that touch nothing of
    its background, unless the network is sure of them; thick parts that it took away come back unless it is sure that
    they are ground; and narrow parts come back that were lost whole. Before the last scale, thick parts go of which the
    first one was surer that they are ground than this one is of the object, if the first added next to nothing to the
    coarse mask. None is the model's own choice."""

    lean: float | None = None
    """Where a contour runs that the picture leaves open: added to the last scale's logits, so that a pixel of the
    object that is missed counts exp(lean) times as much as one that is added. 0 is even odds, as trained; above, masks
    are fuller. None is the model's own choice, which is 0 for those that ship."""

    passes: int | None = None
    """How often the last scale is run, each time on the mask of the time before; more follow edges closer and take as
    much longer. None is the model's own choice."""

    guidance: str | None = None
    """What guides refining, by version (`refine.guidance`): "sam-sr-v1" puts proposals in the coarse mask's place, with
    any model; the others belong to models that were trained with them, as "sam-sr-v2.1" to "crm-s+v2.1". None is the
    model's own."""

    proposals: str = "sam-vit-b"
    """What finds proposals: Segment Anything ("sam-vit-b", "sam-vit-l", "sam-vit-h"; their weights are downloaded by
    `refine-cli weights get` or given) or, without weights, "felzenszwalb" or "slic". Options of the source follow its
    name, as in "sam-vit-b:points_per_side=16,stability=0.9". Of v3: whose features are read, which Segment Anything
    alone has."""

    sam_checkpoint: str | None = None
    """File of Segment Anything's weights; None is the downloaded one."""

    coverage: float = 0.7
    """Of v1: the least share of a proposal that lies in the coarse mask."""

    sparsity: float = 0.1
    """Of v1: the highest share of gaps in the coarse mask's filled shape; above, it is refined as it is."""

    deformation: float = 0.3
    """Of v1: the highest 1 - IoU of the coarse mask and what is put in its place; above, it is refined as it is."""

    groups: int = 16
    """Of v2.2: groups of three points that SAM is asked about."""

    seed: int = 0
    """Of colours (v2.1) and of points (v2.2)."""

    keep_guidance: bool = False
    """Keep pictures of what guidance saw in the result's ``guidance``."""

    tile: int | None = None
    """px of scaled image that the encoder takes at once, without its halo; the result does not depend on it. None is
    the network's own choice."""

    patch: int = 128
    """Side, in latent cells, of the windows in which features are fused; the result does not depend on it."""

    max_memory: str | int | None = None
    """Most memory that refining may take beyond the program itself: bytes, or "2GiB", "1500MB". Tiles are planned to
    stay below; results do not depend on it. None is no limit."""

    keep_scales: bool = False
    """Keep the probability after each scale, after its last pass, in the result's ``scales``; needs memory for each."""

    allow_large: bool = False
    """Read pictures beyond 250 megapixels."""

    white: float | None = None
    """The image's value that is white, as 4095 of 12 bits in 16, or 10000 of reflectance; None is the highest of its
    type, 1.0 of floats."""

    def __post_init__(self) -> None:
        check_white(self.white)
        if self.decode is not None:
            one_of("decode", self.decode, DECODES)
        one_of("first_pass", self.first_pass, FIRST_PASSES)
        if self.coarse_decode is not None:
            one_of("coarse_decode", self.coarse_decode, COARSE_DECODES)
        if self.guidance is not None:
            one_of("guidance", self.guidance, GUIDANCE)
        check_path("sam_checkpoint", self.sam_checkpoint)
        source_and_options(self.proposals)  # what cannot be read is told here
        for name in ("coverage", "sparsity", "deformation"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise OptionError(f"{name}={shown(value)} is not possible; give a number from 0 to 1")
        lean = self.lean
        if lean is not None and (not isinstance(lean, Real) or isinstance(lean, bool) or not -6 <= lean <= 6):
            raise OptionError(f"lean={shown(lean)} is not possible; give a number from -6 to 6")
        least = {"tile": 32, "patch": 32, "stride": 1, "band": 1, "padding": 0, "passes": 1, "groups": 1, "seed": 0}
        most = {"passes": 1000, "seed": 2**63 - 1}
        for name, lowest in least.items():
            value, highest = getattr(self, name), most.get(name, MOST_PIXELS)
            if name in ("tile", "passes") and value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or not lowest <= value <= highest:  # type: ignore[operator]
                much = isinstance(value, Integral) and value > highest  # type: ignore[operator]
                wanted = f"at most {highest}" if much else f"at least {lowest}"
                raise OptionError(f"{name}={shown(value)} is not possible; give a whole number of {wanted}")
            object.__setattr__(self, name, int(value))  # NumPy's would overflow, and JSON has none
        if self.groups > MOST_GROUPS:
            raise OptionError(
                f"groups={shown(self.groups)} is not possible; give at most {MOST_GROUPS}, a megabyte for each"
            )
        _ = self.max_bytes  # what cannot be read is told here
        for name in ("keep_scales", "keep_guidance", "allow_large", "guard"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "guard" and value is None):
                raise OptionError(f"{name}={shown(value)} is not possible; give True or False")

    @property
    def max_bytes(self) -> int | None:
        """`max_memory` in bytes."""
        return None if self.max_memory is None else parse_bytes(self.max_memory)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, also where numbers are NumPy's."""
        return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in asdict(self).items()}

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

    least: int = 0
    """px; a picture whose long side is shorter is seen `enlarged` times as large: its details are few cells of the
    latent otherwise. Not where it would be seen at a single scale then, which shows less of what is around them. The
    factor is the same for all, since the network knows the few places within a cell that pixels then have; at others
    single columns of pixels come out otherwise than their neighbours."""

    enlarged: float = 1.0

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

    decode: str = "dense"
    """Default of the option of that name."""

    guard: bool = False
    """Default of the option of that name."""

    lean: float = 0.0
    """Default of the option of that name, where `lean_fades` lets it count in full."""

    lean_fades: tuple[int, int] = (0, 0)
    """px; the long sides of the largest picture that leans in full and of the smallest that does not lean at all, in
    between less and less. People's outlines run a pixel or two outside of what is seen, which is much of a small
    picture. (0, 0): all lean in full."""

    passes: int = 1
    """Default of the option of that name."""

    sure: float = 0.02
    """A probability this close to 0 or 1 is not looked at again by a strided pass "near", far from a contour."""

    empty: float = 1.0
    """px; a mask with less foreground than this in all is taken for empty, as published. 0: only one without any."""

    def __post_init__(self) -> None:
        for option in fields(self):
            check_cascade(option.name, getattr(self, option.name))

    def at(self, height: int, width: int, passes: int | None = None) -> tuple[float, ...]:
        """The scales to run for a picture of this size; beyond 1 where it is enlarged.

        passes: how often the last one is among them; None is the cascade's own number.
        """
        side = max(height, width)
        factor = self.enlarged if side < self.least else 1.0
        if all(factor * side * scale < self.smallest for scale in self.scales[:-1]):
            factor = 1.0
        scales = [factor * scale for scale in self.scales]
        return (
            *(scale for scale in scales[:-1] if side * scale >= self.smallest),
            *scales[-1:] * (passes or self.passes),
        )

    def leaning(self, height: int, width: int) -> float:
        """How much a picture of this size leans; see `lean_fades`."""
        full, none = self.lean_fades
        if not none:
            return self.lean
        return self.lean * min(max((none - max(height, width)) / max(none - full, 1), 0.0), 1.0)


@dataclass(frozen=True)
class Spec:
    """All that rebuilds a model around its weights; stored in their file."""

    model: str
    """Name of the preset."""

    network: str
    """Name of the network's class in `refine.models.NETWORKS`."""

    arguments: dict[str, int | str]
    """Of that class."""

    cascade: Cascade

    guidance: str = ""
    """Version of SAM-SR that the network reads, if any; see `Options.guidance`."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises `WeightsError` for fields that are missing, unknown or impossible, as a recipe's would be."""
        try:
            lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["cascade"].items()}
            spec = cls(**{**values, "cascade": Cascade(**lists)})
            for name in ("model", "network", "guidance"):
                if not isinstance(getattr(spec, name), str):
                    raise TypeError(f"{name}={shown(getattr(spec, name))} is no text")
            if not isinstance(spec.arguments, dict):
                raise TypeError(f"arguments={shown(spec.arguments)} have no names")
            for name, value in spec.arguments.items():
                if not isinstance(value, str):
                    check_number(f"arguments.{name}", value, int, 1, MOST_CHANNELS)
            return spec
        except (KeyError, TypeError, AttributeError, OptionError) as error:
            raise WeightsError(
                f"the weights' specification cannot be read ({error}); they are not made by refine"
            ) from error


MOST_CHANNELS: Final = 4096
_CASCADE: Final[dict[str, tuple[Any, float, float]]] = {  # name -> kind, least and highest
    "smallest": (int, 0, 10**6),
    "least": (int, 0, 10**6),
    "enlarged": (int | float, 1, 4),
    "pad": (int, 0, 1024),
    "lean": (int | float, -6, 6),
    "passes": (int, 1, 16),
    "sure": (int | float, 0, 0.5),
    "empty": (int | float, 0, 10**6),
}
_SEVERAL: Final[dict[str, tuple[int | None, Any, float, float]]] = {  # name -> how many, and as above
    "scales": (None, int | float, 1 / 256, 4),
    "mean": (3, int | float, -1, 1),
    "std": (3, int | float, 1e-3, 10),
    "lean_fades": (2, int, 0, 10**6),
}
_CHOICES: Final = {"decode": DECODES, "coarse_decode": COARSE_DECODES, "resize": RESIZES}


def check_cascade(name: str, value: Any) -> None:
    """Raises `OptionError` for a value that the field of `Cascade` of that name cannot have."""
    full = f"cascade.{name}"
    if name in _CHOICES:
        one_of(full, value, _CHOICES[name])
    elif name in _SEVERAL:
        count, *rule = _SEVERAL[name]
        if not isinstance(value, list | tuple) or len(value) != (count or max(1, min(len(value), 16))):
            wanted = "two lengths, as in [600, 800]" if name == "lean_fades" else f"{count or 'one to 16'} numbers"
            raise OptionError(f"{full}={shown(value)} is not possible; give {wanted}")
        for each in value:
            check_number(full, each, *rule)
        if name == "lean_fades":
            check_number(full, value[1], int, value[0], rule[-1])
    elif name in _CASCADE:
        check_number(full, value, *_CASCADE[name])
    elif type(value) is not type(getattr(Cascade, name)):
        kind = type(getattr(Cascade, name)).__name__
        raise OptionError(f"{full}={shown(value)} is not possible; give a value of type {kind}")


def check_number(name: str, value: Any, kind: Any, low: float, high: float = math.inf) -> None:
    """Raises `OptionError` for a value that is no number of a kind, int or any, from ``low`` to ``high``."""
    if (
        isinstance(value, kind)
        and not isinstance(value, bool)
        and -math.inf < value < math.inf
        and low <= value <= high
    ):
        return
    if math.isfinite(high):
        wanted = f"of {low:g} up to {high:g}"
    elif kind is int:
        wanted = "above 0" if low else "from 0"
    else:
        wanted = f"of {low:g} or more"
    raise OptionError(f"{name}={shown(value)} is not possible; give a {'whole ' if kind is int else ''}number {wanted}")


def source_and_options(proposals: str) -> tuple[str, dict[str, float]]:
    """A source of proposals and its options, of a text like "slic:segments=300,levels=2".

    Raises `OptionError` for an unknown source, or options that are no numbers; which there are the source knows.
    """
    name, _, rest = str(proposals).partition(":")
    one_of("proposals", name, SOURCES)
    options: dict[str, float] = {}
    for change in filter(None, (word.strip() for word in rest.split(","))):
        option, _, value = (word.strip() for word in change.partition("="))
        try:
            options[option] = number(value)
        except ValueError as error:
            accepted = f"give NAME=NUMBER behind the source, as in {name}:levels=2"
            raise OptionError(f"proposals={shown(proposals)} is not possible; {accepted}") from error
    return name, options


def number(text: str) -> float:
    """A whole number where the text is one; raises ValueError where it is none at all."""
    return float(text) if set(text.lower()) & set(".en") else int(text)


def guided_model(model: str, guidance: str | None) -> str:
    """Name of the model that ``model`` becomes by a version of SAM-SR: "crm-s+v2.1" of "crm-s" and "sam-sr-v2.1"."""
    if guidance is None or guidance == UNTRAINED or "+" in model:
        return model
    return f"{model}+{guidance.removeprefix('sam-sr-')}"


def is_guided(model: str | None, guidance: str | None) -> bool:
    """Whether guidance takes part: a version is named, or the model has one."""
    return guidance not in (None, "none") or "+" in (model or "")


_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(value: str | int) -> int:
    """Bytes of a whole number, or of words like "2GiB", "1.5 GB", "800MB".

    Raises `OptionError` for anything else.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 < value < 2**63:
        return int(value)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value.lower()) if isinstance(value, str) else None
    if found is None or found[2] not in _UNITS or not 1 <= float(found[1]) * _UNITS[found[2]] < 2**63:
        raise OptionError(f"max_memory={shown(value)} is not possible; give bytes, or a number with MB, GB, MiB or GiB")
    return int(float(found[1]) * _UNITS[found[2]])
