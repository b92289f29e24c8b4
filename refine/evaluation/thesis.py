"""The thesis' tables measured anew, beside what it prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from refine import checkpoint, download
from refine.config import EMBEDDED, UNTRAINED, Options, guided_model, source_and_options
from refine.errors import FileError, OptionError, RefineError, WeightsError
from refine.evaluation.items import Item, as_name
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
from refine.evaluation.tables import Table, average_gain, figure, in_common
from refine.evaluation.variants import Refining

REMEDY: Final = (
    "What is not available needs weights: a guided network's own by --guided-weights FILE, once trained (refine-cli "
    "train --model NAME) or imported (refine-cli weights import FILE --model NAME); Segment Anything's by refine-cli "
    "weights get sam-vit-b or --sam-checkpoint FILE."
)


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

    choice: model, weights and options of every method, as `refine.refiners.refiner` takes them. guided: files with the
    weights of the methods that SAM-SR v2 and v3 guide, which are networks of their own: the model's with more channels,
    and of v3 crm-s'; each file says which it is. A method that lacks something stays a row without figures that says
    what.

    Raises `OptionError` for an unknown name or weights that no method of the table takes, `WeightsError` for those that
    cannot be used, and as the refiner does for a method without guidance.
    """

    def __init__(self, name: str, choice: Mapping[str, Any], *, guided: Sequence[Path] = ()) -> None:
        self.table = thesis_table(name)
        if choice["model"] == "crm-r50" and not choice.get("weights"):
            raise WeightsError(
                f"{name} needs a checkpoint of CRM (--weights FILE), which the weights of crm-r50 that ship are not"
            )
        self.variants: list[Refining] = []
        self.absent: dict[str, str] = {}
        given = _by_model(guided)
        for method in self.table.methods:
            if method.options is None:
                continue
            made = {**choice, **method.options}
            version = method.options.get("guidance")
            if version not in (None, UNTRAINED):
                made["model"] = guided_model("crm-s" if version in EMBEDDED else choice["model"], version)
                made["weights"] = given.pop(made["model"], None)
            try:
                self.variants.append(Refining(made, label=_label(method)))
            except (OptionError, WeightsError) as error:
                if version is None:
                    raise
                self.absent[method.name] = "; ".join(dict.fromkeys([_reason(error), *_sam_missing(made)]))
        if given:
            held = ", ".join(f"{path} of {model}" for model, path in given.items())
            raise OptionError(f"{name} has no row for the weights {held}; leave them out, or give the row's own")

    def result(self, measured: Measured) -> Table:
        """In the thesis' form, with its own figures where the coarse masks are those it had."""
        rows, note = in_common(measured.rows)
        found = {label: {source_called(s.set) or "": s for s in summarise(own)} for label, own in rows.items()}
        known = {source for by_source in found.values() for source, s in by_source.items() if recognised(s) == source}
        missing = [source for source in self.table.sources if source not in known]
        notes = list(filter(None, (self.table.note, note)))
        notes += [f"{name}: not available, {reason}." for name, reason in self.absent.items()]
        notes += [REMEDY] if self.absent else []
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


def _by_model(files: Sequence[Path]) -> dict[str, Path]:
    """Files of weights by the model that each says it is of."""
    found: dict[str, Path] = {}
    for path in files:
        spec = checkpoint.load(path).spec
        if spec is None:
            raise WeightsError(
                f"{path} does not say which model it is of; import it: refine-cli weights import {path} --model NAME"
            )
        if spec["model"] in found:
            raise OptionError(f"{path} and {found[spec['model']]} are both of {spec['model']}; give one")
        found[spec["model"]] = path
    return found


def _sam_missing(made: Mapping[str, Any]) -> list[str]:
    """Why Segment Anything cannot be read, if a choice reads its downloaded weights and they are missing."""
    try:
        source, _ = source_and_options(made.get("proposals", Options().proposals))
        if source.startswith("sam-") and made.get("sam_checkpoint") is None:
            download.find(source)
    except RefineError as error:
        return [_reason(error)]
    return []


def _reason(error: Exception) -> str:
    """What an error says, without what to do about it."""
    return str(error).split(";")[0]


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
