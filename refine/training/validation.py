"""Measuring a run on held-out pictures, by the real refiner."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from refine.checkpoint import file_sha256
from refine.engine import Refiner
from refine.errors import OptionError, shown
from refine.evaluation import Row, Summary, evaluate, find_items, find_sets, find_work, summarise
from refine.training.folders import shared_pictures


@dataclass(frozen=True)
class Interval:
    """How often: after so many steps, or so many seconds."""

    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of "500", steps, or "30min". Raises `OptionError` for anything else."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*min\s*|\s*(\d+)\s*", text)
        if found is None or not 0 < float(found[1] or found[2]) <= 1e9:
            raise OptionError(
                f"validation every {shown(text)} is not possible; give steps, as in 500, or minutes, as in 30min"
            )
        return cls(seconds=60 * float(found[1])) if found[1] else cls(steps=int(found[2]))

    def due(self, *, step: int, seconds: float) -> bool:
        """At ``step``, ``seconds`` after the last time."""
        return step % self.steps == 0 if self.steps else seconds >= self.seconds


@dataclass(frozen=True)
class Validation:
    """What is measured and how often, at the end in any case.

    folders: sets of `refine.evaluation`, or folders of them. limit: pictures of a set, the first by name.

    Raises FileError for folders that are no sets, `OptionError` for two sets of one name or an impossible limit.
    """

    folders: tuple[Path, ...]
    every: Interval = Interval(seconds=1800)
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"the validation's limit is {self.limit}; give a number of pictures from 1")
        for folder in self.sets():
            find_items(folder)
        find_work(self.sets())

    def sets(self) -> list[Path]:
        """The folders that hold pictures."""
        return find_sets(self.folders)

    def measured(self) -> dict[str, Any]:
        """What is measured: figures can be compared where this is the same.

        "files" is a sum of the pictures' names, their truths and coarse masks.
        """
        sets = self.sets()
        found = hashlib.sha256()
        for item in (item for folder in sets for item in find_items(folder)[: self.limit]):
            sums = [file_sha256(path) for path in (item.truth, item.coarse)]
            found.update(json.dumps([item.set, item.image.name, *sums]).encode())
        return {"on": [folder.name for folder in sets], "limit": self.limit, "files": found.hexdigest()[:8]}

    def check_apart(self, training: Sequence[Path]) -> None:
        """Raises `OptionError` where one of the training's pictures is a held-out one, also beyond the limit."""
        held_out = [item.image for folder in self.sets() for item in find_items(folder)]
        for path, same in shared_pictures(training, held_out):
            raise OptionError(
                f"{path} is trained on and is {same} of the validation; remove it from one of them: figures of "
                "what was trained on mean nothing"
            )

    def measure(
        self, model: str, weights: Path, *, device: str, seen: Callable[[], None] = lambda: None, **options: Any
    ) -> list[Summary]:
        """Figures of each set, by the Refiner's defaults and ``options``; ``seen`` is called after every picture."""
        refiner = Refiner(model, weights=weights, device=device, **options)

        def refine(image: NDArray[Any], coarse: NDArray[Any]) -> NDArray[Any]:
            return refiner.refine(image, coarse).mask

        def count(row: Row, mask: NDArray[Any]) -> None:
            seen()

        return summarise(evaluate(self.sets(), refine, limit=self.limit, seen=count))


def gain(summaries: Sequence[Summary]) -> float:
    """By which the best weights are chosen: the mean over the sets of IoU's change plus mBA's, in points."""
    changes = [s.iou_refined - s.iou_coarse + s.mba_refined - s.mba_coarse for s in summaries]
    return sum(changes) / len(changes)


def record(summaries: Sequence[Summary]) -> dict[str, Any]:
    """A validation for a line of JSON: the gain in points, and the figures of each set."""
    return {"gain": round(gain(summaries), 4), "sets": [asdict(summary) for summary in summaries]}
