"""An evaluation beside another one of the same pictures."""

from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path

from refine.errors import OptionError
from refine.evaluation.lines import read_rows
from refine.evaluation.scores import summarise
from refine.evaluation.tables import Table, figure


@dataclass(frozen=True)
class Change:
    """A set's refined masks in two evaluations of the same pictures: IoU and far errors pooled, mBA averaged.

    far_base, far_change: none where an evaluation was made before far errors were measured.
    """

    set: str
    pictures: int
    iou_base: float  # in %
    mba_base: float
    iou_change: float  # of the other evaluation, in points
    mba_change: float
    worst_change: float  # lowest gain of a picture's own IoU, in points
    worst_name: str
    far_base: float | None  # in % of the truths' areas
    far_change: float | None  # of the other evaluation, in points
    seconds_ratio: float | None  # the other's over the base's; none where masks of another system were scored


@dataclass(frozen=True)
class Comparison:
    """An evaluation beside another one of the same pictures."""

    base: str
    run: str
    changes: tuple[Change, ...]

    @property
    def largest_iou_change(self) -> float:
        """The largest absolute change of a set's IoU, in points."""
        return max(abs(change.iou_change) for change in self.changes)

    @property
    def largest_mba_change(self) -> float:
        """The largest absolute change of a set's mBA, in points."""
        return max(abs(change.mba_change) for change in self.changes)

    @property
    def largest_far_change(self) -> float | None:
        """The largest absolute change of a set's far errors, in points; none where no set has one."""
        return max((abs(change.far_change) for change in self.changes if change.far_change is not None), default=None)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        names = ("largest_iou_change", "largest_mba_change", "largest_far_change")
        largest = {name: getattr(self, name) for name in names}
        return {**asdict(self), **largest}

    def table(self) -> str:
        """A Markdown table with a row a set: figures in %, changes in points; below it the largest changes."""
        lines = [
            (
                c.set,
                str(c.pictures),
                f"{c.iou_base:.2f}/{c.mba_base:.2f}",
                f"{c.iou_change:+.4f}/{c.mba_change:+.4f}",
                f"{c.worst_change:+.4f} ({c.worst_name})",
                figure(c.far_base, ".3f"),
                figure(c.far_change, "+.4f"),
                figure(c.seconds_ratio, ".3f"),
            )
            for c in self.changes
        ]
        header = "set|pictures|base IoU/mBA|change IoU/mBA|worst picture's IoU|base far %|change far %|seconds ratio"
        largest = f"IoU {self.largest_iou_change:.4f}, mBA {self.largest_mba_change:.4f}"
        if self.largest_far_change is not None:
            largest += f", far % {self.largest_far_change:.4f}"
        parts = [
            f"{self.run} beside {self.base}",
            Table(header.split("|"), lines).markdown(),
            f"largest change of a set: {largest}",
        ]
        if any(c.far_change is None for c in self.changes):
            parts.append("-: not measured when one of the two was made; evaluate it again for far errors")
        return "\n\n".join(parts)


def compare(base: Path, run: Path) -> Comparison:
    """The evaluation in the folder ``run`` beside the one in ``base``, set by set in the base's order.

    Raises FileError as `read_rows`, and OptionError where the two do not hold the same pictures, or the coarse masks of
    one do not score what the other's do.
    """
    before, after = ({(row.set, row.name): row for row in read_rows(folder)} for folder in (base, run))
    for folder, missing in ((run, before.keys() - after.keys()), (base, after.keys() - before.keys())):
        if missing:
            raise OptionError(f"{str(folder)!r} lacks {_named(missing)}; compare evaluations of the same pictures")
    if other := {key for key in before if before[key].coarse != after[key].coarse}:
        raise OptionError(
            f"{str(base)!r} and {str(run)!r} have different coarse masks or truths of {_named(other)}; compare "
            "evaluations of the same files"
        )
    changes = []
    for b, r in zip(summarise(list(before.values())), summarise([after[key] for key in before]), strict=True):
        of_set = [key for key in before if key[0] == b.set]
        own = {key[1]: 100 * (after[key].refined.iou - before[key].refined.iou) for key in of_set}
        worst = min(own, key=own.__getitem__)
        changes.append(
            Change(
                set=b.set,
                pictures=b.pictures,
                iou_base=b.iou_refined,
                mba_base=b.mba_refined,
                iou_change=r.iou_refined - b.iou_refined,
                mba_change=r.mba_refined - b.mba_refined,
                worst_change=own[worst],
                worst_name=worst,
                far_base=b.far,
                far_change=None if b.far is None or r.far is None else r.far - b.far,
                seconds_ratio=None if r.seconds is None or b.seconds is None else r.seconds / b.seconds,
            )
        )
    return Comparison(str(base), str(run), tuple(changes))


def _named(pictures: Set[tuple[str, str]]) -> str:
    """Some of them, and how many more there are."""
    names = ", ".join(f"{set_}/{name}" for set_, name in sorted(pictures)[:3])
    return f"{names} and {len(pictures) - 3} more" if len(pictures) > 3 else names
