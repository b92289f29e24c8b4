"""Figures of a picture and of a set."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from refine.metrics import Harm, intersection_and_union, mean_boundary_accuracy, pooled_far, pooled_iou
from refine.result import Change


@dataclass(frozen=True)
class Score:
    """One mask against its truth; counts, so that IoU can be pooled."""

    intersection: int  # px
    union: int  # px
    mba: float  # in [0, 1]

    @property
    def iou(self) -> float:
        """IoU of this picture alone, in [0, 1]."""
        return pooled_iou([(self.intersection, self.union)])


@dataclass(frozen=True)
class Row:
    """One picture, before and after."""

    set: str
    name: str
    coarse: Score
    refined: Score
    seconds: float | None  # inside the refiner; none for masks that another system wrote
    harm: Harm | None = None  # none in lines that were written before it was measured
    peak_memory: int | None = None  # bytes, likewise
    commit: str = ""  # of the code that measured it, as `refine.versions.commit` has it; none in older lines
    change: Change | None = None  # none in older lines

    @property
    def iou_change(self) -> float:
        """Gain of IoU of this picture, in [-1, 1]."""
        return self.refined.iou - self.coarse.iou

    def as_dict(self) -> dict[str, object]:
        """For a line of JSON, which `from_dict` reads; figures in [0, 1]."""
        scores = {
            f"{figure}_{when}": getattr(score, figure)
            for when, score in (("coarse", self.coarse), ("refined", self.refined))
            for figure in ("iou", "mba", "intersection", "union")
        }
        harm = {} if self.harm is None else {"far": self.harm.far, **asdict(self.harm)}
        change = {} if self.change is None else {"change": asdict(self.change)}
        cost = {"seconds": self.seconds, "peak_memory": self.peak_memory}
        return {"set": self.set, "name": self.name, **scores, **harm, **change, **cost, "commit": self.commit}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for what `as_dict` cannot have made, with harm or without."""
        coarse, refined = (
            Score(**{field.name: values[f"{field.name}_{when}"] for field in fields(Score)})
            for when in ("coarse", "refined")
        )
        names = [field.name for field in fields(Harm)]
        harm = Harm(**{name: values[name] for name in names}) if any(name in values for name in names) else None
        later: dict[str, Any] = {name: values[name] for name in ("peak_memory", "commit") if name in values}
        if "change" in values:
            later["change"] = Change(**values["change"])
        row = cls(values["set"], values["name"], coarse, refined, values["seconds"], harm, **later)
        if not all(isinstance(text, str) for text in (row.set, row.name, row.commit)):
            raise ValueError("no picture, or no commit")
        figures = [*asdict(coarse).values(), *asdict(refined).values(), row.seconds, row.peak_memory]
        figures += [*asdict(harm).values()] if harm is not None else []
        figures += [*asdict(row.change).values()] if row.change is not None else []
        if any(n is not None and (isinstance(n, bool) or not isinstance(n, int | float)) for n in figures):
            raise ValueError("no numbers")
        if any(n is not None and not abs(n) < 2**63 for n in figures):
            raise ValueError("impossible figures")
        if any(cost is not None and not cost > 0 for cost in (row.seconds, row.peak_memory)):
            raise ValueError("no time, or no memory")
        possible = [0 <= s.intersection <= s.union and 0 <= s.mba <= 1 for s in (coarse, refined)]
        counts = [n for part in (harm, row.change) if part is not None for n in asdict(part).values() if n is not None]
        if not all(possible) or not all(n >= 0 for n in counts):
            raise ValueError("impossible figures")
        return row


def score(prediction: NDArray[Any], truth: NDArray[Any], void: NDArray[np.bool_] | None = None) -> Score:
    """A mask's counts and mBA; masks (H, W) as `refine.metrics` takes them, without the pixels of ``void``."""
    counts = intersection_and_union(prediction, truth, void=void)
    return Score(*counts, mean_boundary_accuracy(prediction, truth, void=void))


@dataclass(frozen=True)
class Summary:
    """A set's figures by the protocol: IoU pooled, mBA averaged, both in %; and harm and cost, where all rows have it.

    The mean of the pictures' own IoU stands beside the pooled one: the two differ by points.
    """

    set: str
    pictures: int
    iou_coarse: float
    mba_coarse: float
    iou_refined: float
    mba_refined: float
    own_iou_coarse: float
    own_iou_refined: float
    worst_change: float  # lowest gain of a picture's own IoU, in points
    worst_name: str
    seconds: float | None = None  # mean of a picture
    peak_memory: int | None = None  # bytes, highest of a picture
    far: float | None = None  # errors, pooled, in % of the truths' areas
    fragments: float | None = None  # mean of a picture
    holes: float | None = None  # mean of a picture
    lost: int | None = None  # objects, of all pictures
    parts_lost: int | None = None  # of the coarse masks, of all pictures
    parts_added: int | None = None  # of all pictures
    area_ratio: float | None = None  # the mean of pictures
    moved: float | None = None  # % of the coarse contour, mean of a picture


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """One summary a set, in the order of the rows."""
    summaries = []
    for name in dict.fromkeys(row.set for row in rows):
        of_set = [row for row in rows if row.set == name]
        worst = min(of_set, key=lambda row: row.iou_change)
        before, after = [row.coarse for row in of_set], [row.refined for row in of_set]
        harms = [row.harm for row in of_set if row.harm is not None]
        changes = [row.change for row in of_set if row.change is not None]
        seconds = [row.seconds for row in of_set if row.seconds is not None]
        peaks = [row.peak_memory for row in of_set if row.peak_memory is not None]
        summaries.append(
            Summary(
                set=name,
                pictures=len(of_set),
                iou_coarse=_pooled(before),
                mba_coarse=_mean_mba(before),
                iou_refined=_pooled(after),
                mba_refined=_mean_mba(after),
                own_iou_coarse=_mean_iou(before),
                own_iou_refined=_mean_iou(after),
                worst_change=100 * worst.iou_change,
                worst_name=worst.name,
                seconds=sum(seconds) / len(seconds) if len(seconds) == len(of_set) else None,
                peak_memory=max(peaks) if len(peaks) == len(of_set) else None,
                **(_summed(harms) if len(harms) == len(of_set) else {}),
                **(_changed(changes) if len(changes) == len(of_set) else {}),
            )
        )
    return summaries


def _pooled(scores: Sequence[Score]) -> float:
    return 100 * pooled_iou((s.intersection, s.union) for s in scores)


def _summed(harms: Sequence[Harm]) -> dict[str, Any]:
    """The figures of a summary that are of harm."""
    return {
        "far": 100 * pooled_far((h.far_px, h.truth_px) for h in harms),
        "fragments": sum(h.fragments for h in harms) / len(harms),
        "holes": sum(h.holes for h in harms) / len(harms),
        "lost": sum(h.lost for h in harms),
    }


def _changed(changes: Sequence[Change]) -> dict[str, Any]:
    """Those that are of how the masks differ from the coarse ones."""
    ratios = [c.area_ratio for c in changes if c.area_ratio is not None]
    return {
        "parts_lost": sum(c.parts_lost for c in changes),
        "parts_added": sum(c.parts_added for c in changes),
        "area_ratio": sum(ratios) / len(ratios) if ratios else None,
        "moved": 100 * sum(c.contour_moved for c in changes) / len(changes),
    }


def _mean_mba(scores: Sequence[Score]) -> float:
    return 100 * sum(s.mba for s in scores) / len(scores)


def _mean_iou(scores: Sequence[Score]) -> float:
    return 100 * sum(s.iou for s in scores) / len(scores)
