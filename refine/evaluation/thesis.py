"""The thesis' tables measured anew, beside what it prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refine.errors import FileError, OptionError, WeightsError
from refine.evaluation.items import Item
from refine.evaluation.published import (
    COARSE,
    ORIGIN,
    SOURCES,
    WHERE,
    Method,
    ThesisTable,
    printed,
    recognised,
    source_called,
    thesis_table,
)
from refine.evaluation.run import Measured
from refine.evaluation.scores import Summary, summarise
from refine.evaluation.tables import Table, average_gain, figure
from refine.evaluation.variants import Refining, as_name


def thesis_work(name: str, folders: Sequence[Path], found: Sequence[Item]) -> list[Item]:
    """The pictures among those ``found`` that a table needs: of its sources, which are told by the folders' names.

    Raises FileError where there are none, OptionError where two folders are of one source.
    """
    needed = thesis_table(name).sources
    kept = [item for item in found if source_called(item.set) in needed]
    sets = list(dict.fromkeys(item.set for item in kept))
    if not sets:
        given = ", ".join(repr(str(folder)) for folder in folders)
        raise FileError(
            f"{name} needs BIG with the masks of {' or '.join(needed)} in a folder called so, as in BIG/pspnet, and "
            f"{given} is none; {WHERE}"
        )
    sources = [source_called(set_) for set_ in sets]
    for source in sources:
        if sources.count(source) > 1:
            raise OptionError(f"{sources.count(source)} folders are called like {source}: {', '.join(sets)}; give one")
    return kept


class Thesis:
    """One of the thesis' tables: the variants that it needs, and the table they make.

    choice: model, weights and options of every method, as `refine.refiners.refiner` takes them. A method that is not in
    the project stays a row without figures that says why.

    Raises `OptionError` for an unknown name, and as the refiner does for a method without guidance.
    """

    def __init__(self, name: str, choice: Mapping[str, Any]) -> None:
        self.table = thesis_table(name)
        self.variants: list[Refining] = []
        self.absent: dict[str, str] = {}
        for method in self.table.methods:
            if method.options is None:
                continue
            try:
                self.variants.append(Refining({**choice, **method.options}, label=_label(method)))
            except (OptionError, WeightsError) as error:
                if "guidance" not in method.options:
                    raise
                self.absent[method.name] = str(error).split(";")[0]

    def result(self, measured: Measured) -> Table:
        """In the thesis' form, with its own figures where the coarse masks are those it had."""
        found = {
            label: {source_called(s.set) or "": s for s in summarise(rows)} for label, rows in measured.rows.items()
        }
        known = {source for by_source in found.values() for source, s in by_source.items() if recognised(s) == source}
        missing = [source for source in self.table.sources if source not in known]
        notes = [self.table.note] if self.table.note else []
        notes += [f"{name}: not available, {reason}." for name, reason in self.absent.items()]
        if known:
            notes.append(ORIGIN)
        if missing:
            notes.append(
                f"Published figures of {', '.join(missing)} are left out: there are no such coarse masks here, or they "
                "do not score what is published for BIG's."
            )
        make = _by_cost if self.table.costs else _by_source
        header, lines = make(self.table, found, known)
        return Table(header, lines, " ".join(notes), title=self.table.title)


Found = Mapping[str, Mapping[str, Summary]]
"""A set's figures by the variant's label and the source."""


def _label(method: Method) -> str:
    return as_name(method.name.replace(",", "").lower())


def _by_cost(table: ThesisTable, found: Found, known: set[str]) -> tuple[list[str], list[list[str]]]:
    """A line a method, on the masks of the only source."""
    (source,) = table.sources
    titles = {"memory": "Peak memory usage (GiB)", "seconds": "Avg inference time (sec)"}
    header = ["Name"]
    for title in (*(titles[cost] for cost in table.costs), "IoU/mBA"):
        header += [title, "published"] if known else [title]
    lines = []
    for method in table.methods:
        summary = found.get(_label(method), {}).get(source)
        cells = {
            "memory": figure(
                None if summary is None or summary.peak_memory is None else summary.peak_memory / 2**30, ".2f"
            ),
            "seconds": figure(None if summary is None else summary.seconds, ".2f"),
        }
        line = [method.name]
        for cost in table.costs:
            line += [cells[cost], getattr(method, cost) or "-"] if known else [cells[cost]]
        own = method.iou_mba or (printed(method.published, source) if method.published else "-")
        line += [_refined(summary), own] if known else [_refined(summary)]
        lines.append(line)
    return header, lines


def _by_source(table: ThesisTable, found: Found, known: set[str]) -> tuple[list[str], list[list[str]]]:
    """A line a source, then the mean gain; two columns a method."""
    header = ["IoU/mBA"]
    for method in table.methods:
        header += [method.name, "published"] if known else [method.name]
    lines = []
    for source in SOURCES:
        line = [source]
        for method in table.methods:
            own = printed(method.published or "", source) if source in known else "-"
            line += [_cell(found, method, source), own] if known else [_cell(found, method, source)]
        lines.append(line)
    last = ["Avg. Improve."]
    for method in table.methods:
        gain = "0.00/0.00" if method.options is None else average_gain(list(found.get(_label(method), {}).values()))
        last += [gain, method.average if known == set(SOURCES) else "-"] if known else [gain]
    return header, [*lines, last]


def _cell(found: Found, method: Method, source: str) -> str:
    if method.name != COARSE:
        return _refined(found.get(_label(method), {}).get(source))
    summary = next((by_source[source] for by_source in found.values() if source in by_source), None)
    return "-" if summary is None else f"{summary.iou_coarse:.2f}/{summary.mba_coarse:.2f}"


def _refined(summary: Summary | None) -> str:
    return "-" if summary is None else f"{summary.iou_refined:.2f}/{summary.mba_refined:.2f}"
