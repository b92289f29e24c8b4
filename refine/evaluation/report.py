"""The report of an evaluation: tables, plots and pictures, as Markdown and as one HTML page that needs nothing else."""

import base64
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Final
from urllib.parse import quote

from refine.evaluation.items import Item, as_binary, hashed, read
from refine.evaluation.pictures import strip
from refine.evaluation.plots import scatter
from refine.evaluation.run import Measured, mask_path
from refine.evaluation.scores import Row
from refine.evaluation.tables import Table, picture_table, quality_table, set_table
from refine.evaluation.variants import Variant
from refine.io import write_atomic, write_image
from refine.prepare import as_mask
from refine.texts import in_markdown
from refine.versions import versions

_PROTOCOL: Final = (
    "IoU is pooled: the sum of the intersections over the sum of the unions of a set's pictures; the mean of the "
    "pictures' own IoU, which differs by points, stands beside it. mBA is the mean over the pictures of the mean over "
    "five bands along the truth's contour of the share of right pixels; the band i = 0..4 is the truth's morphological "
    "gradient by OpenCV's ellipse of radius 1 + int(((width + height) / 300 - 1) / 5 * i) px. Where a truth has no "
    "contour (empty, or full) mBA is 1 if the mask equals it and else 0. Pixels that a truth calls void (255 beside a "
    "single label, 128 between 0 and 255) are left out of all figures. IoU and mBA are in %.",
    "Thresholds: truths and masks in files are set where > 128 of 255, SegRefiner's where >= 128, a refiner's own "
    "where the probability is > 0.5.",
    "Seconds are wall time inside the refiner, without files and scoring, after a first call on a small picture; of a "
    "guided refiner the search for what guides it counts where it was not kept on disk before. Peak memory is the "
    "process' resident set while it refined the picture, program, weights and picture included, and not what pictures "
    "before it freed; on CUDA the allocator's peak.",
)
_COLOURS: Final = (
    "Left the whole picture, then the crop where the masks differ most, with the contours before (red) and after "
    "(green), then the same crop with the truth's (blue). Chosen by the change of the picture's own IoU."
)
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page needs nothing else; no name of a file can make it load or run anything."""
_STYLE: Final = """\
:root { color-scheme: light }
body { font: 15px/1.5 sans-serif; color: #222; background: #fff; max-width: 1500px; margin: 2em auto; padding: 0 1em }
.wide, figure { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0 }
caption { text-align: left; font-weight: bold }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left; white-space: nowrap }
th { background: #f2f2f2 }
figure { margin: 1em 0 }
figcaption { position: sticky; left: 0 }
img, svg { max-width: 100%; height: auto }
@media screen and (max-width: 800px) { img, svg { max-width: none; width: 720px } }
@media print {
  body { margin: 0; max-width: none }
  .wide, figure { overflow: visible }
  table { font-size: 9px }
  th, td { white-space: normal; padding: 2px 4px }
  figure, tr { break-inside: avoid }
  h2 { break-after: avoid }
  details::details-content { content-visibility: visible; height: auto }
}
"""


@dataclass(frozen=True)
class Figure:
    """A file of the report's folder, to be looked at."""

    path: Path  # relative
    caption: str


@dataclass(frozen=True)
class Folded:
    """A long table that the page shows on demand."""

    title: str
    table: Table


Part = str | Table | Figure | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


def write_report(
    out: Path, measured: Measured, variants: Sequence[Variant], work: Sequence[Item], *, thesis: Table | None = None
) -> Path:
    """Writes ``report.html``, ``report.md`` and the files of ``pictures`` into a folder; each whole or not at all.

    work: the pictures that were measured, whose masks are in the folder. Returns the page.
    """
    sections = _sections(out, measured, variants, work, thesis)
    write_text(out / "report.md", "\n".join(_markdown(sections)))
    write_text(out / "report.html", "\n".join(_html(sections, out)))
    return out / "report.html"


def write_text(path: Path, text: str) -> None:
    """Whole or not at all; of a name that is no UTF-8 its bytes are escaped."""
    write_atomic(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def _sections(
    out: Path, measured: Measured, variants: Sequence[Variant], work: Sequence[Item], thesis: Table | None
) -> list[Section]:
    rows = {label: own for label, own in measured.rows.items() if own}
    quality: list[Part] = [quality_table(rows)] if rows else ["Nothing was measured."]
    sections = [Section("Quality", ([thesis] if thesis is not None else []) + quality)]
    if measured.failures:
        lines = [(f.variant, f.set, f.name, f.reason) for f in measured.failures]
        failed = Table(("variant", "set", "picture", "reason"), lines)
        pictures = {(f.set, f.name) for f in measured.failures}
        note = (
            f"Pictures that failed: {len(pictures)}. A variant's own tables leave out what failed by it, and tables of "
            "several variants have the pictures that all of them have."
        )
        sections.append(Section("What failed", [note, failed]))
    sections.append(Section("Protocol", _PROTOCOL))
    for variant in variants:
        own = rows.get(variant.label)
        if own:
            plot = Path("pictures", f"{variant.label}-scatter.svg")
            write_text(out / plot, scatter(own))
            caption = f"{variant.label}: every picture before and after; above the diagonal it gained"
            folded = Folded(f"All {len(own)} pictures", picture_table(own))
            sections.append(Section(variant.label, [set_table(own), Figure(plot, caption), folded]))
            sets = dict.fromkeys(row.set for row in own)
            figures = [figure for name in sets for figure in _look(out, variant, name, work, own)]
            sections.append(Section(f"{variant.label}: worst, median and best", [_COLOURS, *figures]))
    commits = dict.fromkeys(row.commit or "unknown" for own in rows.values() for row in own)
    return [*sections, Section("What was measured", _origin(variants, list(commits)))]


def _look(out: Path, variant: Variant, name: str, work: Sequence[Item], rows: Sequence[Row]) -> list[Part]:
    """Strips of a set's worst, median and best picture."""
    items = {item.name: item for item in work if item.set == name}
    ordered = sorted((row for row in rows if row.set == name), key=lambda row: row.iou_change)
    chosen: dict[str, str] = {}
    for which, row in (("worst", ordered[0]), ("median", ordered[(len(ordered) - 1) // 2]), ("best", ordered[-1])):
        chosen[row.name] = f"{chosen[row.name]} and {which}" if row.name in chosen else which
    figures: list[Part] = []
    for row in ordered:
        if row.name in chosen:
            image, coarse, truth, _ = read(items[row.name])
            refined = as_binary(as_mask(mask_path(out, variant, items[row.name]), truth.shape))
            path = Path("pictures", f"{hashed(variant.label, name, row.name)}.jpg")
            write_image(out / path, strip(image, as_binary(coarse), refined, truth))
            before, after = ((100 * s.iou, 100 * s.mba) for s in (row.coarse, row.refined))
            caption = (
                f"{name}, {chosen.pop(row.name)}: {row.name}, IoU {before[0]:.2f} to {after[0]:.2f}, "
                f"mBA {before[1]:.2f} to {after[1]:.2f}"
            )
            figures.append(Figure(path, caption))
    return figures


def _origin(variants: Sequence[Variant], commits: Sequence[str]) -> list[Part]:
    """What made the figures: variants with their weights, versions, the commits of all runs, the machine."""
    lines = [
        (variant.label, name, value if isinstance(value, str) else json.dumps(value))
        for variant in variants
        for name, value in variant.facts.items()
    ]
    made = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        **versions(),
        "commit": ", ".join(commits) or "-",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    return [Table(("variant", "what", "value"), lines), Table(("what", "value"), list(made.items()))]


def _markdown(sections: Sequence[Section]) -> Iterator[str]:
    yield "# Evaluation\n"
    for section in sections:
        yield f"## {in_markdown(section.title)}\n"
        for part in section.parts:
            if isinstance(part, Table):
                yield f"{part.escaped().markdown()}\n"
            elif isinstance(part, Figure):
                caption = in_markdown(part.caption)
                yield f"{caption}\n\n![{caption}]({quote(part.path.as_posix())})\n"
            elif isinstance(part, str):
                yield f"{part}\n"


def _html(sections: Sequence[Section], out: Path) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Evaluation</title>'
    yield f"<style>\n{_STYLE}</style></head>\n<body>\n<h1>Evaluation</h1>"
    for section in sections:
        yield f"<h2>{escape(section.title)}</h2>"
        for part in section.parts:
            if isinstance(part, Table):
                yield part.html()
            elif isinstance(part, Folded):
                yield f"<details><summary>{escape(part.title)}</summary>\n{part.table.html()}\n</details>"
            elif isinstance(part, Figure):
                yield f"<figure>{_embedded(out / part.path, part.caption)}"
                yield f"<figcaption>{escape(part.caption)}</figcaption></figure>"
            else:
                yield f"<p>{escape(part)}</p>"
    yield "</body>\n</html>\n"


def _embedded(path: Path, caption: str) -> str:
    """A picture as part of a page."""
    if path.suffix == ".svg":
        return path.read_text(encoding="utf-8")
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(caption)}" src="data:image/jpeg;base64,{data}">'
