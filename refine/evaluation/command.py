"""The command `evaluate`: what is measured, in which order, and what is printed."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from refine.config import check_white
from refine.errors import OptionError, listed
from refine.evaluation.items import find_sets, find_truths_alone, find_work
from refine.evaluation.published import WHERE, thesis_table
from refine.evaluation.report import write_report
from refine.evaluation.run import Measured, measure
from refine.evaluation.tables import quality_table, set_table
from refine.evaluation.thesis import Thesis, thesis_work
from refine.evaluation.variants import Refining, Variant, Written, check_labels
from refine.io import check_folder
from refine.texts import plain


def evaluate_command(
    data: Sequence[Path],
    choices: Sequence[Mapping[str, Any]],
    *,
    coarse: Sequence[Path] = (),
    masks: Sequence[Path] = (),
    table: str | None = None,
    guided_weights: Sequence[Path] = (),
    limit: int | None = None,
    white: float | None = None,
    out: Path | None = None,
) -> Measured:
    """Measures every set under ``data`` by every variant and prints the tables.

    choices: model and options of each refiner, as `refine.refiners.refiner` takes them. coarse: folders of coarse
    masks, as `find_work` takes them. masks: folders of masks that other systems wrote, scored as they are. table: one
    of the thesis', whose methods take the place of the variants and the only choice is their model. guided_weights: of
    the table's methods that are networks of their own. white: of the pictures, as in `refine.io.rgb8`. out: a folder,
    where a line a picture is kept, from which a run that was stopped goes on, and the report is written.
    """
    if table is not None:
        thesis_table(table)
    elif guided_weights:
        raise OptionError("--guided-weights belong to a --table; give --weights with --model, as in --model crm-s+v2.1")
    if not data:
        raise OptionError(f"{table} needs BIG; {WHERE}" if table else "no DATA; give folders of BIG's layout")
    folders = find_sets(data)
    work = find_work(folders, coarse, limit=limit)
    if alone := find_truths_alone(data):
        truths = f"{len(alone)} truth{'s' if len(alone) > 1 else ''}"
        print(plain(f"warning: {truths} without a picture that can be read left out: {listed(alone)}"), file=sys.stderr)
    if out is not None:
        check_folder(out)
    thesis = None
    variants: list[Variant] = []
    if table is not None:
        (choice,) = choices
        work = thesis_work(table, data, work)
        thesis = Thesis(table, choice, guided=guided_weights)
        for method, reason in thesis.absent.items():  # before hours of work, and in the table
            print(plain(f"warning: {method} stays without figures: {reason}"), file=sys.stderr)
        variants += thesis.variants
    else:
        variants += [Written(folder, work) for folder in masks]
        variants += [Refining(choice) for choice in choices]
    check_labels(variants)
    check_white(white)
    work = [replace(item, white=white) for item in work]
    measured = measure(work, variants, out=out)
    result = None if thesis is None else thesis.result(measured)
    for text in [result.markdown()] if result is not None else _tables(measured):
        print(f"{text}\n")
    if out is not None:
        print(plain(str(write_report(out, measured, variants, work, thesis=result))))
    return measured


def _tables(measured: Measured) -> list[str]:
    """All variants beside each other, if there are several, and each one's own."""
    rows = {label: own for label, own in measured.rows.items() if own}
    if len(rows) < 2:
        return [set_table(own).markdown() for own in rows.values()]
    return [
        quality_table(rows).markdown(),
        *(f"{plain(label)}\n\n{set_table(own).markdown()}" for label, own in rows.items()),
    ]
