"""Tables, for a terminal, Markdown and HTML alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from refine.evaluation.published import COARSE, ORIGIN, PUBLISHED, printed, recognised
from refine.evaluation.scores import Row, Summary, summarise
from refine.texts import in_markdown, plain


@dataclass(frozen=True)
class Table:
    """Cells by lines, what stands above them, and a note on what they mean."""

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""
    title: str = ""

    def markdown(self) -> str:
        """With its columns aligned, for a terminal too; the title above, the note below."""
        cells = [[plain(cell).replace("|", "\\|") for cell in line] for line in (self.header, *self.lines)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * width for width in widths])
        text = "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in cells)
        return "\n\n".join(filter(None, (self.title, text, self.note)))

    def escaped(self) -> "Table":
        """With cells that mean nothing in Markdown but themselves; names of files can be anything."""
        header, *lines = ([in_markdown(cell) for cell in line] for line in (self.header, *self.lines))
        return Table(header, lines, in_markdown(self.note), in_markdown(self.title))

    def html(self) -> str:
        """A table that scrolls sideways where it is wide."""
        header, *lines = (
            "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)
            for tag, line in (("th", self.header), *(("td", line) for line in self.lines))
        )
        rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
        title = f"<caption>{escape(self.title)}</caption>\n" if self.title else ""
        note = f"\n<p>{escape(self.note)}</p>" if self.note else ""
        head, body = f"<thead><tr>{header}</tr></thead>", f"<tbody>\n{rows}\n</tbody>"
        return f'<div class="wide"><table>\n{title}{head}\n{body}</table></div>{note}'


_LEGEND: Final = """\
What refining broke: far %, pixels far from the coarse mask's contour that were right and are wrong, in % of the truth's
area; fragments/holes, a picture, that neither the coarse mask nor the truth has; lost, objects the coarse mask had.
What it changed of the coarse masks, right or wrong: parts lost and added; the area, as a mean; moved %, the share of
the contour that is further off than a hundredth of the longer side."""


def set_table(rows: Sequence[Row]) -> Table:
    """A line a set: pooled IoU / mean mBA in %, harm, as the note says, mean seconds, highest peak of memory."""
    lines = [
        (
            s.set,
            str(s.pictures),
            f"{s.iou_coarse:.2f}/{s.mba_coarse:.2f}",
            f"{s.iou_refined:.2f}/{s.mba_refined:.2f}",
            f"{s.iou_refined - s.iou_coarse:+.2f}/{s.mba_refined - s.mba_coarse:+.2f}",
            f"{s.worst_change:+.2f} ({s.worst_name})",
            figure(s.far, ".3f"),
            f"{figure(s.fragments, '.1f')}/{figure(s.holes, '.1f')}",
            figure(s.lost, "d"),
            f"{figure(s.parts_lost, 'd')}/{figure(s.parts_added, 'd')}",
            figure(s.area_ratio, ".2f"),
            figure(s.moved, ".1f"),
            f"{s.own_iou_coarse:.2f} to {s.own_iou_refined:.2f}",
            figure(s.seconds, ".2f"),
            megabytes(s.peak_memory),
        )
        for s in summarise(rows)
    ]
    header = "set|pictures|coarse IoU/mBA|refined IoU/mBA|gain|worst picture's IoU|far %|fragments/holes|lost"
    header += "|parts lost/added|area ratio|moved %"
    return Table([*header.split("|"), "mean of pictures' IoU", "seconds", "peak MB"], lines, _LEGEND)


def quality_table(rows: Mapping[str, Sequence[Row]]) -> Table:
    """In the thesis' form: a line a set, a column a variant, IoU/mBA, and last the mean gain over the sets.

    Of the pictures that every variant has; a note says how many those are where some have more. Published figures
    follow for sets that are BIG's with a published source of coarse masks, told by what those score.
    """
    rows, note = in_common(rows)
    found = {label: {s.set: s for s in summarise(own)} for label, own in rows.items()}
    any_variant = next(iter(found.values()))
    sources = {name: source for name, s in any_variant.items() if (source := recognised(s)) is not None}
    lines = []
    for name, summary in any_variant.items():
        line = [name, f"{summary.iou_coarse:.2f}/{summary.mba_coarse:.2f}"]
        line += [f"{by[name].iou_refined:.2f}/{by[name].mba_refined:.2f}" for by in found.values()]
        if sources:
            line += [printed(method, sources[name]) if name in sources else "-" for method in PUBLISHED]
        lines.append(line)
    last = ["Avg. Improve.", "0.00/0.00", *(average_gain(list(by_set.values())) for by_set in found.values())]
    published = [f"{method} (published)" for method in PUBLISHED] if sources else []
    return Table(
        ["IoU/mBA", COARSE, *found, *published],
        [*lines, last + ["-"] * len(published)],
        " ".join(filter(None, (note, ORIGIN if sources else ""))),
    )


def in_common(rows: Mapping[str, Sequence[Row]]) -> tuple[dict[str, list[Row]], str]:
    """The rows of the pictures that every variant has, and a note where some have more; one without rows is left out.

    What differs between variants is then never that they have other pictures.
    """
    pictures = {label: {(row.set, row.name) for row in own} for label, own in rows.items() if own}
    union = set().union(*pictures.values())
    every = union.intersection(*pictures.values())
    kept = {label: [row for row in rows[label] if (row.set, row.name) in every] for label in pictures}
    note = f"{len(every)} of {len(union)} pictures: those that every variant has."
    return kept, note if len(every) < len(union) else ""


def average_gain(summaries: Sequence[Summary]) -> str:
    """IoU/mBA in points, the mean over sets; a dash without any."""
    if not summaries:
        return "-"
    iou = sum(s.iou_refined - s.iou_coarse for s in summaries) / len(summaries)
    mba = sum(s.mba_refined - s.mba_coarse for s in summaries) / len(summaries)
    return f"{iou:.2f}/{mba:.2f}"


def picture_table(rows: Sequence[Row]) -> Table:
    """Every picture: its own IoU and mBA in % before and after, seconds and peak memory."""
    lines = [
        (
            r.set,
            r.name,
            f"{100 * r.coarse.iou:.2f}/{100 * r.coarse.mba:.2f}",
            f"{100 * r.refined.iou:.2f}/{100 * r.refined.mba:.2f}",
            f"{100 * r.iou_change:+.2f}/{100 * (r.refined.mba - r.coarse.mba):+.2f}",
            figure(r.seconds, ".2f"),
            megabytes(r.peak_memory),
        )
        for r in rows
    ]
    return Table(["set", "picture", "coarse IoU/mBA", "refined IoU/mBA", "gain", "seconds", "peak MB"], lines)


def figure(value: float | None, form: str) -> str:
    """A number in its form, or a dash where it was not measured."""
    return "-" if value is None else format(value, form)


def megabytes(value: int | None) -> str:
    """Of bytes, likewise."""
    return figure(None if value is None else value / 1e6, ".0f")
