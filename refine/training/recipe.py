"""What a training run is: the fields of a recipe, the recipes that ship, and reading one from TOML."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from refine.checkpoint import weights_dir
from refine.config import EMBEDDED, Spec, check_cascade, check_number, source_and_options
from refine.errors import OptionError, one_of, shown
from refine.models import PRESETS, preset
from refine.models.crm_s import DECODERS, TRUNKS
from refine.training.augment import AUGMENTS
from refine.training.coarse import DEFAULT_MIX, GIVEN, check_mix
from refine.training.losses import CRM, parse_loss

OPTIMIZERS: Final = ("adamw", "adam")
SCHEDULES: Final = ("plateau", "steps")
STORES: Final = ("float32", "float16")


@dataclass(frozen=True)
class Recipe:
    """Everything that a run's result depends on, stored beside its weights.

    ``shares`` and ``scenes`` are of the crops whose coarse mask is made. Those with a given one are drawn before, from
    the folders that have some, by the same shares among these.

    Raises `OptionError` for fields that are impossible, alone or together.
    """

    data: tuple[str, ...] = ()  # folders of pairs
    model: str = "crm-s"  # name of a preset
    shares: tuple[float, ...] = ()  # how often each folder is drawn; equal where empty
    scenes: float = 0.0  # the share of generated scenes
    composed: float = 0.0  # how often pictures are laid over others, and truths changed; see `refine.training.data`
    steps: int = 4000
    batch: int = 12
    crop: int = 320  # px; of two passes the first sees it at half its resolution
    window: int = 192  # px of the crop that the second pass sees
    passes: int = 2  # 2: the cascade's coarse and last step; 1: the crop with its coarse mask, as published
    augment: str = "broad"  # or "published"; see `refine.training.augment`
    coarse: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))  # kind of coarse mask -> share
    loss: str = CRM  # weighted terms, see `refine.training.losses`
    optimizer: str = "adamw"  # or "adam", whose weight decay is part of the gradient
    learning_rate: float = 1.5e-3
    trunk_factor: float = 0.3  # of the learning rate, for pretrained features
    weight_decay: float = 1e-4
    clip: float = 1.0  # largest norm of the gradient; 0: any
    warmup: int = 150  # steps
    schedule: str = "plateau"  # then a linear fall; or "steps": a tenth from each milestone on
    decay: float = 0.3  # after a plateau: the last share of all steps, in which the learning rate falls to zero
    milestones: tuple[int, ...] = ()  # steps
    ema: float = 0.998  # of the averaged weights that are kept; less in the first few thousand steps
    store: str = "float32"  # or "float16": matrices and kernels in the weights' file
    seed: int = 0
    initial: str = ""  # weights of the model to start from; empty: random ones
    proposals: str = ""  # what finds those that guide v2, or has the features that v3 reads: see `Options`
    sam_checkpoint: str = ""  # file of Segment Anything's weights; empty: the downloaded one
    pretrained: str = ""  # mobilenetv2.npz; crm-s alone has this field and the next two
    trunk: str = "mobilenetv2"  # or "dense"
    decoder: str = "interpolated"  # or "ensemble"
    cascade: Mapping[str, Any] = field(default_factory=dict)  # fields of `refine.config.Cascade`; else the model's own

    def __post_init__(self) -> None:
        _check_each(self)
        if self.shares and (len(self.shares) != len(self.data) or min(self.shares) < 0 or not sum(self.shares)):
            raise OptionError(
                f"{len(self.shares)} shares for {len(self.data)} data folders; give one for each, none below 0 and one "
                "above"
            )
        multiple = 32 * self.passes
        if self.crop % multiple or (self.passes == 2 and (self.window % 32 or self.window > self.crop)):
            raise OptionError(
                f"crop={self.crop}, window={self.window} are not possible; the crop is a multiple of {multiple} px, "
                "the window one of 32 px and no larger"
            )
        if (self.schedule == "steps") != bool(self.milestones):
            raise OptionError(
                f"schedule={shown(self.schedule)} with milestones={list(self.milestones)} is not possible; milestones "
                "belong to the schedule 'steps', which needs some"
            )
        if not isinstance(self.coarse, Mapping):
            raise OptionError(f"coarse={shown(self.coarse)} is not possible; give a table of kinds and shares")
        check_mix(self.coarse)
        if self.augment == "published" and self.coarse.get(GIVEN):
            raise OptionError(f"augment='published' makes all coarse masks itself; leave {GIVEN!r} out of coarse")
        parse_loss(self.loss)
        _check_cascade(self.cascade)
        self._check_model()

    def _check_model(self) -> None:
        if self.model != "crm-s":
            for name in ("pretrained", "trunk", "decoder"):
                if getattr(self, name) != getattr(Recipe, name):
                    raise OptionError(f"{name}={getattr(self, name)!r} belongs to crm-s; {self.model} has none")
        source = source_and_options(self.proposals)[0] if self.proposals else ""
        if self.sam_checkpoint and not source.startswith("sam"):
            raise OptionError(
                f"sam_checkpoint={self.sam_checkpoint!r} means nothing with proposals={self.proposals!r}; leave it out"
            )
        if self.spec().guidance in EMBEDDED:
            self._check_embedded(source)
        if self.spec().guidance == "sam-sr-v2.2" and self.composed:
            raise OptionError(
                f"composed={self.composed!r} is not possible with {self.model}, whose channel answers the picture's "
                "own mask, which compositions replace; leave it out"
            )
        if bool(self.proposals) != bool(self.spec().guidance):
            given = f"proposals={self.proposals!r} with {self.model}"
            raise OptionError(f"{given} is not possible; they guide models such as crm-s+v2.1, which need some")
        if self.proposals and self.augment == "published":
            raise OptionError("augment='published' is for models without guidance; leave it out")
        smallest = self.crop if self.passes == 1 else min(self.crop // 2, self.window)
        if self.spec().network == "CRMSmall" and self.batch == 1 and smallest == 32:
            raise OptionError(
                "one crop that is seen at 32 px leaves batch norms a single value; give a larger batch or crop"
            )
        if self.pretrained and self.trunk != "mobilenetv2":
            raise OptionError(f"trunk={self.trunk!r} has no pretrained features; leave pretrained empty")
        if self.pretrained and self.initial:
            raise OptionError("pretrained features and initial weights were given; give one of them")

    def _check_embedded(self, source: str) -> None:
        if not source.startswith("sam"):
            raise OptionError(
                f"proposals={self.proposals!r} with {self.model} is not possible, which reads features of Segment "
                "Anything; give sam-vit-b, sam-vit-l or sam-vit-h"
            )
        for name in ("scenes", "composed"):
            if getattr(self, name):
                raise OptionError(
                    f"{name}={getattr(self, name)!r} is not possible with {self.model}, which reads features of whole "
                    "pictures, and what is made for a crop alone has none; leave it out"
                )

    def spec(self) -> Spec:
        """Of the model that is trained."""
        base = preset(self.model)
        changes: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.cascade.items()
        }
        base = replace(base, cascade=replace(base.cascade, **changes))
        if self.model != "crm-s":
            return base
        return replace(base, arguments={**base.arguments, "trunk": self.trunk, "decoder": self.decoder})

    def learning_rate_at(self, step: int) -> float:
        """Factor of the learning rate: a linear rise, then a plateau and a linear fall to zero, or falls by ten."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "steps":
            return float(rise * 0.1 ** sum(step >= milestone for milestone in self.milestones))
        fall = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return min(rise, max(fall, 0.0))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with names alone of folders and files: where they lie tells others nothing."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        named = {name: Path(getattr(self, name)).name for name in ("pretrained", "initial", "sam_checkpoint")}
        return values | named | {"data": [Path(folder).name for folder in self.data]}

    def lasting(self) -> dict[str, Any]:
        """What may not change between the parts of a run: all but its end, and how it is stored and then used."""
        return lasting(self.as_dict())


def lasting(values: Mapping[str, Any]) -> dict[str, Any]:
    """`Recipe.lasting` of what an earlier version may have stored; a field it did not know yet had its default."""
    changing = ("steps", "decay", "store", "cascade")
    return {name: value for name, value in (Recipe().as_dict() | dict(values)).items() if name not in changing}


_TEXTS: Final = {
    "data": None,
    "model": tuple(PRESETS),
    "augment": AUGMENTS,
    "loss": None,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "store": STORES,
    "initial": None,
    "pretrained": None,
    "proposals": None,
    "sam_checkpoint": None,
    "trunk": tuple(TRUNKS),
    "decoder": tuple(DECODERS),
}
_WHOLE: Final[dict[str, tuple[float, float]]] = {  # name -> least and highest
    **dict.fromkeys(("steps", "batch", "crop", "window", "milestones"), (1, 10**9)),
    "warmup": (0, 10**9),
    "seed": (0, 10**9),
}
_NUMBERS: Final[dict[str, tuple[float, float]]] = {  # name -> least and highest
    "shares": (0.0, 1e9),
    "scenes": (0.0, 1.0),
    "composed": (0.0, 1.0),
    "learning_rate": (1e-12, 1e9),
    "trunk_factor": (0.0, 1e9),
    "weight_decay": (0.0, 1e9),
    "clip": (0.0, 1e9),
    "decay": (0.0, 1.0),
    "ema": (0.0, 1.0),
}
_CASCADE: Final = ("decode", "smallest", "least", "enlarged", "passes", "guard", "lean", "sure", "lean_fades")


def _check_each(recipe: Recipe) -> None:
    """Raises `OptionError` for a field whose type or value is impossible whatever the others are."""
    for name, known in _TEXTS.items():
        for value in _values(recipe, name):
            if not isinstance(value, str):
                raise OptionError(f"{name}={shown(value)} is not possible; give a text")
            if known is not None:
                one_of(name, value, known)
    for name, (low, high) in (_WHOLE | _NUMBERS).items():
        for value in _values(recipe, name):
            check_number(name, value, int if name in _WHOLE else int | float, low, high)
    if recipe.passes not in (1, 2):
        raise OptionError(f"passes={shown(recipe.passes)} is not possible; give 1 or 2")


def _check_cascade(cascade: Any) -> None:
    """Raises `OptionError` for what is no table of fields that a recipe may set."""
    known = ", ".join(_CASCADE)
    if not isinstance(cascade, Mapping):
        raise OptionError(f"cascade={shown(cascade)} is not possible; give a table with some of {known}")
    for name, value in cascade.items():
        if name not in _CASCADE:
            raise OptionError(f"a recipe sets no {name!r} of a cascade; it may set {known}")
        check_cascade(name, value)


def _values(recipe: Recipe, name: str) -> Sequence[Any]:
    """The values of a field: several of a list, else its own."""
    value, default = getattr(recipe, name), _DEFAULTS[name]
    if isinstance(default, tuple):
        if not isinstance(value, tuple):
            raise OptionError(f"{name}={shown(value)} is not possible; give a list")
        return value
    return [value]


_DEFAULTS: Final[dict[str, Any]] = {
    f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(Recipe)
}
_PATHS: Final = ("data", "initial", "pretrained", "sam_checkpoint")


def shipped() -> dict[str, Path]:
    """The recipes that come with refine, by name."""
    return {path.stem: path for path in sorted(weights_dir().glob("*.toml"))}


def read_recipe(
    source: str | Path | None,
    root: Path = Path(),
    *,
    changes: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe from a TOML file, from one that ships (by its name), or from the defaults (None), with changes.

    root: the folder that relative paths in the file and in the changes lie in. given: fields by their name, over those
    of the file; other data drops its shares, initial weights its pretrained features, another network than the one it
    names (that of "crm-s+v2.1" is crm-s) its cascade. changes: lines of TOML, over all others; the last wins. A dotted
    name (``cascade.lean=0.5``) changes that alone in its table.

    Raises `OptionError` for what cannot be read or is no recipe.
    """
    values = {} if source is None else _rooted(_toml_file(source), root)
    given = given or {}
    for new, old in (("data", "shares"), ("initial", "pretrained")):
        if new in given:
            values.pop(old, None)
    own, other = (str(found.get("model", "")).partition("+")[0] for found in (values, given))
    if own and other and own != other:
        values.pop("cascade", None)
    values |= given
    for line in changes:
        changed = _rooted(_toml(line, line), root)
        if "." in line.partition("=")[0]:
            changed = {name: _table(values, name) | value for name, value in changed.items()}
        values |= changed
    for name in values:
        if name not in _DEFAULTS:
            raise OptionError(f"a recipe has no field {name!r}; its fields are {', '.join(_DEFAULTS)}")
    fitting: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Recipe(**fitting)


def _table(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A field that is a table, of a recipe that may not set it; none of another field."""
    value = values.get(name, _DEFAULTS.get(name))
    return dict(value) if isinstance(value, Mapping) else {}


def _toml_file(source: str | Path) -> dict[str, Any]:
    ships = shipped()
    path = ships.get(str(source), Path(source))
    try:
        return _toml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise OptionError(f"{str(path)!r} cannot be read; give a TOML file or one of {', '.join(ships)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{str(path)!r} cannot be read ({error}); give a TOML file") from error


def _toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of numbers of thousands of digits and lists without end, too
        raise OptionError(f"{shown(name)} cannot be read ({error}); give TOML, with texts in quotes") from error


def _rooted(values: dict[str, Any], root: Path) -> dict[str, Any]:
    """``values`` with their paths below ``root``."""

    def below(value: Any) -> Any:
        return str(root / value) if isinstance(value, str) and value else value

    rooted = {name: values[name] for name in _PATHS if name in values}
    for name, value in rooted.items():
        rooted[name] = [below(each) for each in value] if isinstance(value, list) else below(value)
    return values | rooted
