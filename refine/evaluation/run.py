"""Picture by picture: refine, score, keep a line."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from refine.change import change
from refine.errors import RefineError
from refine.evaluation.items import Item, Mask, as_binary, as_name, find_items, find_work, read
from refine.evaluation.lines import Lines
from refine.evaluation.scores import Row, score
from refine.evaluation.variants import Outcome, Variant, key
from refine.io import write_mask
from refine.metrics import harm
from refine.planes import Held, Memory
from refine.texts import plain
from refine.versions import commit

RefineFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Failure:
    """A picture without figures, and why."""

    variant: str
    set: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.set}/{self.name} ({self.variant}): {self.reason}"


@dataclass
class Measured:
    """The rows of each variant by its label, and what failed."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def evaluate(
    folders: Iterable[Path],
    refiner: RefineFunction,
    *,
    limit: int | None = None,
    seen: Callable[[Row, Mask], None] | None = None,
) -> list[Row]:
    """Refines and scores every picture of the sets; an error ends it.

    refiner: takes an image (H, W, 3) uint8 and a coarse mask (H, W) float32 in [0, 1], gives a mask (H, W) bool.
    limit: pictures of a set, the first by name. seen: called with each row and the refined mask.
    """
    folders = list(folders)
    for folder in folders:
        find_items(folder)  # all that is missing shows before the work

    def timed(item: Item, image: NDArray[Any], coarse: NDArray[Any]) -> Outcome:
        start = time.perf_counter()
        mask = refiner(image, coarse)
        return Outcome(np.asarray(mask, bool), time.perf_counter() - start)

    rows = []
    for item in find_work(folders, limit=limit):
        row, mask = _measured(item, timed)
        rows.append(row)
        if seen is not None:
            seen(row, mask)
    return rows


def measure(work: Sequence[Item], variants: Sequence[Variant], *, out: Path | None = None) -> Measured:
    """Every picture by every variant, with a progress bar on a terminal; a picture that fails is told and left out.

    out: a folder that keeps a line a picture and the masks. What it holds already, of the same variant, weights,
    options and files, is not done again; what failed is tried again.
    """
    lines = None if out is None else Lines(out)
    measured = Measured({variant.label: [] for variant in variants})
    there, code = 0, commit()
    with tqdm(total=len(work) * len(variants), disable=None, unit="picture", dynamic_ncols=True) as bar:
        for variant in variants:
            if lines is not None:
                lines.begin(variant.label, key(variant), [(item.set, item.name) for item in work])
            for item in work:
                place, stamp = (key(variant), item.set, item.name), _stamp(item, variant)
                path = None if out is None else mask_path(out, variant, item)
                row = lines.row(place, stamp) if lines is not None and path is not None and path.is_file() else None
                if row is not None:
                    there += 1
                else:
                    try:
                        row, mask = _measured(item, variant.mask)
                        row = replace(row, commit=code)
                        if path is not None:
                            write_mask(path, mask)
                    except Exception as error:
                        failure = Failure(variant.label, item.set, item.name, _reason(error))
                        measured.failures.append(failure)
                        _tell(f"error: {failure}")
                        values: dict[str, Any] = {"error": failure.reason}
                    else:
                        values = row.as_dict()
                    if lines is not None:
                        lines.append(place, variant.label, stamp, values)
                if row is not None:
                    measured.rows[variant.label].append(row)
                bar.update()
            variant.release()
    if there:
        _tell(f"{there} of {len(work) * len(variants)} were there; to measure them again remove {str(out)!r}")
    return measured


def mask_path(out: Path, variant: Variant, item: Item) -> Path:
    """Where a variant's mask of a picture is kept, apart from those by other weights and the like."""
    return out / "masks" / f"{variant.label}-{key(variant)[:8]}" / as_name(item.set) / f"{item.name}_mask.png"


def _measured(item: Item, make: Callable[[Item, NDArray[Any], NDArray[Any]], Outcome]) -> tuple[Row, Mask]:
    image, coarse, truth, void = read(item)
    outcome = make(item, image, coarse)
    before, after = as_binary(coarse), outcome.mask
    refined_known, coarse_known = (m if void is None else np.where(void, truth, m) for m in (after, before))
    row = Row(
        set=item.set,
        name=item.name,
        coarse=score(before, truth, void),
        refined=score(after, truth, void),
        seconds=outcome.seconds,
        harm=harm(refined_known, coarse_known, truth),
        change=change(Held(before.astype(np.float32)), Held(after.astype(np.float32)), Memory()),
        peak_memory=outcome.peak_memory,
    )
    return row, after


def _stamp(item: Item, variant: Variant) -> str:
    """Changes with the files behind a figure."""
    stats = [
        path.stat() if path.exists() else None for path in (item.image, item.truth, item.coarse, *variant.files(item))
    ]
    files = " ".join("-" if stat is None else f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)
    return files if item.white is None else f"{files} white={item.white:g}"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    known = isinstance(error, RefineError | OSError | MemoryError)
    return text if known and text else f"unexpected {type(error).__name__}: {text}"


def _tell(text: str) -> None:
    tqdm.write(plain(text), file=sys.stderr)  # leaves the bar whole
