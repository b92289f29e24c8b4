"""What gives the masks that are scored: a refiner with its options, or the files of another system."""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from refine.config import is_guided
from refine.errors import FileError, OptionError, RefineError
from refine.evaluation.items import Item, Mask, Picture, as_binary, as_label
from refine.evaluation.warm_up import warm_up
from refine.io import read_mask
from refine.memory import forget_peak, return_freed
from refine.prepare import as_mask
from refine.versions import versions

if TYPE_CHECKING:
    from refine.engine import Refiner
    from refine.methods import MethodRefiner


@dataclass(frozen=True)
class Outcome:
    """A mask to score, and what it cost where it was made here."""

    mask: Mask
    seconds: float | None = None
    peak_memory: int | None = None  # bytes


class Variant(Protocol):
    """A way to a mask, by a label that names files too."""

    label: str

    @property
    def facts(self) -> dict[str, Any]:
        """What its masks depend on, ready for JSON."""

    def files(self, item: Item) -> list[Path]:
        """What it reads besides the picture and the coarse mask."""

    def mask(self, item: Item, image: Picture, coarse: NDArray[np.float32]) -> Outcome:
        """Of a picture (H, W, 3) and its coarse mask (H, W) in [0, 1]."""

    def release(self) -> None:
        """Lets go of what it loaded, so that it is not counted as another's memory."""


def key(variant: Variant) -> str:
    """Equal where the masks of two variants are."""
    return hashlib.sha256(json.dumps(variant.facts, sort_keys=True).encode()).hexdigest()[:16]


class Refining:
    """A refiner by the model and the options that `refine.refiners.refiner` takes.

    Loaded to see that it can be, and again when there is something to refine. Raises as that function does.
    """

    def __init__(self, choice: Mapping[str, Any], *, label: str | None = None) -> None:
        self.choice = dict(choice)
        self.label = label or _label(choice)
        made, proposals = self._load()
        options = {name: choice[name] for name in sorted(set(choice) - _OF_THE_MODEL)}
        in_force = getattr(made, "options", None)
        defaults = {} if in_force is None else {n: v for n, v in asdict(in_force).items() if n not in options}
        self._facts = {
            "refine": versions()["refine-masks"],
            "model": choice["model"],
            "weights": made.weights_sha256,
            "device": str(made.device),
            "dtype": str(made.dtype).removeprefix("torch."),
            "options": options,
            "defaults": defaults,
            **({} if proposals is None else {"proposals": proposals}),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Version, model, weights' hash, device, arithmetic, the options that were given and the others' defaults."""
        return self._facts

    def files(self, item: Item) -> list[Path]:
        """None."""
        return []

    def mask(self, item: Item, image: Picture, coarse: NDArray[np.float32]) -> Outcome:
        """Refined here; the time and the peak are those of one call, after a first one on a small picture."""
        made = self._made
        return_freed()  # by larger pictures before
        forget_peak()
        start = time.perf_counter()
        refined = made.refine(image, coarse)
        return Outcome(np.asarray(refined.mask, bool), time.perf_counter() - start, refined.report.peak_memory)

    def release(self) -> None:
        """Lets the network's memory go."""
        self.__dict__.pop("_made", None)

    def _load(self) -> "tuple[Refiner | MethodRefiner, dict[str, Any] | None]":
        """The refiner, and what its proposals depend on."""
        from refine.refiners import refiner  # here, so that scoring alone needs none

        made = refiner(**self.choice)
        if not is_guided(self.choice.get("model"), self.choice.get("guidance")):
            return made, None
        return made, cast("Refiner", made).open_proposals()  # what is missing is told once, not for every picture

    @cached_property
    def _made(self) -> "Refiner | MethodRefiner":
        """Loaded and warm."""
        made, _ = self._load()
        warm_up(made)
        return made


_OF_THE_MODEL: Final = {"model", "weights", "device", "dtype"}


def _label(choice: Mapping[str, Any]) -> str:
    """Of what was chosen: the model, its weights, how it decodes, other options, the arithmetic."""
    words = [choice["model"]]
    if choice.get("weights") is not None:
        words.append(Path(choice["weights"]).stem)
    if choice.get("decode") is not None:
        words.append(choice["decode"])
    words += [f"{name}={choice[name]}" for name in choice if name not in {*_OF_THE_MODEL, "decode"}]
    if choice.get("dtype", "auto") != "auto":
        words.append(choice["dtype"])
    return as_label("-".join(map(str, words)))


@dataclass(frozen=True)
class System:
    """How another system names the masks it writes, and from which of 255 values on they are set."""

    name: str
    ending: str
    least: int = 129
    scaled: bool = False
    """Whether the name begins with the scale, of which the largest is the result."""


SYSTEMS: Final = (
    System("CascadePSP", "_mask.png"),
    System("CRM", "_mask.png", scaled=True),
    System("SegRefiner", "_refine.png", least=128),
)


class Written:
    """Masks that another system wrote, for the sets: in one folder, or in sub-folders called like the sets.

    Which system is told by the names: ``<name>_mask.png`` CascadePSP (and refine itself), ``<scale>_<name>_mask.png``
    CRM, ``<name>_refine.png`` SegRefiner. Raises FileError where there are masks of none or of several.
    """

    def __init__(self, folder: Path, work: Sequence[Item]) -> None:
        if not folder.is_dir():
            raise FileError(f"no folder {str(folder)!r}; give a folder of masks that another system wrote")
        self.folder, self.label = folder, as_label(folder.resolve().name)
        found = {system: _written(system, folder, work) for system in SYSTEMS}
        found = {system: masks for system, masks in found.items() if masks}
        if len(found) != 1:
            given = " and ".join(f"{len(masks)} of {system.name}" for system, masks in found.items()) or "no masks"
            raise FileError(
                f"{str(folder)!r} holds {given} for these pictures; give a folder of <name>_mask.png (CascadePSP), "
                "<scale>_<name>_mask.png (CRM) or <name>_refine.png (SegRefiner)"
            )
        ((self.system, self._masks),) = found.items()
        peak = _peak(self._masks.values())
        if 0 < peak < 128:
            raise FileError(
                f"{str(folder)!r} holds masks of values up to {peak} only, while 255 is white; multiply them by 255 if "
                "they are 0 and 1"
            )

    @property
    def facts(self) -> dict[str, Any]:
        """Where the masks lie and how they are read."""
        return {"masks": str(self.folder), "system": self.system.name, "set from": self.system.least}

    def files(self, item: Item) -> list[Path]:
        """The mask, if there is one."""
        path = self._masks.get((item.set, item.name))
        return [] if path is None else [path]

    def mask(self, item: Item, image: Picture, coarse: NDArray[np.float32]) -> Outcome:
        """As it was written, a smaller one enlarged; 8 bits are grey values, however few or low they are."""
        path = self._masks.get((item.set, item.name))
        if path is None:
            raise FileError(f"no mask of {item.name} by {self.system.name} in {str(self.folder)!r}")
        values = read_mask(path)
        if values.dtype == np.uint8:  # else `as_mask` takes some for labels, and 1 for white
            values = np.divide(values, 255, dtype=np.float32)
        return Outcome(as_binary(as_mask(values, image.shape[:2]), least=self.system.least))

    def release(self) -> None:
        """Nothing is held."""


def _peak(paths: Iterable[Path]) -> int:
    """The highest value of the 8-bit masks among files, or one of 128 or more; 0 where others are among them."""
    peak = 0
    for path in paths:
        try:
            values = read_mask(path)
        except RefineError:  # told when it is scored
            continue
        if values.dtype != np.uint8:
            return 0
        peak = max(peak, int(values.max()))
        if peak > 127:
            break
    return peak


def _written(system: System, folder: Path, work: Sequence[Item]) -> dict[tuple[str, str], Path]:
    """The mask of each picture that has one, by its set and name."""
    masks = {}
    for set_ in dict.fromkeys(item.set for item in work):
        place = folder / set_ if (folder / set_).is_dir() else folder
        names = {item.name for item in work if item.set == set_}
        scales: dict[str, float] = {}
        for path in sorted(place.glob(f"*{system.ending}")):
            name, scale = path.name.removesuffix(system.ending), 0.0
            if system.scaled:
                found = re.fullmatch(r"(\d+(?:\.\d+)?)_(.+)", name)
                if found is None or name in names:  # a picture's name may begin with a number
                    continue
                name, scale = found[2], float(found[1])
            if name in names and scale >= scales.get(name, 0.0):
                masks[set_, name], scales[name] = path, scale
    return masks


def check_labels(variants: Sequence[Variant]) -> None:
    """Raises OptionError where two of them are called the same."""
    labels = [variant.label for variant in variants]
    for label in labels:
        if labels.count(label) > 1:
            raise OptionError(f"{labels.count(label)} variants are called {label!r}; give each but once")
