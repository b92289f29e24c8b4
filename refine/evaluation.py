"""Measuring a refiner against ground truth: BIG's layout and protocol, a table, and a sheet of pictures to look at.

A set is a folder of ``<name>_im.*``, ``<name>_gt.png`` and ``<name>_seg.png``: picture, truth and coarse mask. Truth
and coarse mask are set where > 128, alpha mattes too. Per set: IoU is pooled (the sum of the intersections over the
sum of the unions), mBA is the mean over the pictures.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from refine.errors import FileError, InputError, OptionError
from refine.io import IMAGE_SUFFIXES, check_folder, read_mask, write_atomic, write_image
from refine.metrics import intersection_and_union, mean_boundary_accuracy, pooled_iou
from refine.pairs import MASK_ENDING, TRUTH_ENDING, big_images
from refine.prepare import as_image, as_mask

Mask = NDArray[np.bool_]  # (H, W)
Picture = NDArray[Any]  # (H, W, 3) uint8 RGB; OpenCV's type hints lose the type of the elements
RefineFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Item:
    """The files of one picture of a set."""

    name: str
    image: Path
    truth: Path
    coarse: Path


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
    item: Item
    coarse: Score
    refined: Score
    seconds: float  # inside the refiner

    @property
    def iou_change(self) -> float:
        """Gain of IoU of this picture, in [-1, 1]."""
        return self.refined.iou - self.coarse.iou

    def as_dict(self) -> dict[str, object]:
        """For a line of JSON; figures in [0, 1]."""
        scores = {
            f"{figure}_{when}": getattr(score, figure)
            for when, score in (("coarse", self.coarse), ("refined", self.refined))
            for figure in ("iou", "mba", "intersection", "union")
        }
        return {"set": self.set, "name": self.item.name, **scores, "seconds": self.seconds}


def find_sets(folders: Iterable[Path]) -> list[Path]:
    """The folders that hold pictures: each one given, or else its sub-folders.

    Raises FileError for one that has neither.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise FileError(f"no folder {str(folder)!r}; give folders of *_im.*, *_gt.png and *_seg.png")
        candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        sets = [path for path in candidates if big_images(path, IMAGE_SUFFIXES)]
        if not sets:
            raise FileError(f"no *_im.* in {str(folder)!r} or its sub-folders; give folders of BIG's layout")
        found += sets
    return found


def find_items(folder: Path) -> list[Item]:
    """The pictures of a set by name. Raises FileError where there is none, or a truth or coarse mask is missing."""
    items = [
        Item(name, image, folder / f"{name}{TRUTH_ENDING}.png", folder / f"{name}{MASK_ENDING}.png")
        for name, image in big_images(folder, IMAGE_SUFFIXES)
    ]
    if not items:
        raise FileError(f"no *_im.* in {str(folder)!r}; give a folder of *_im.*, *_gt.png and *_seg.png")
    missing = [path.name for item in items for path in (item.truth, item.coarse) if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileError(f"{str(folder)!r} lacks {', '.join(missing[:3])}{more}; every picture needs both masks")
    return items


def score(prediction: NDArray[Any], truth: NDArray[Any]) -> Score:
    """A mask's counts and mBA; masks (H, W) as `refine.metrics` takes them."""
    return Score(*intersection_and_union(prediction, truth), mean_boundary_accuracy(prediction, truth))


def evaluate(
    folders: Iterable[Path],
    refiner: RefineFunction,
    *,
    limit: int | None = None,
    seen: Callable[[Row, Mask], None] | None = None,
    progress: bool = False,
) -> list[Row]:
    """Refines and scores every picture of the sets.

    refiner: takes an image (H, W, 3) uint8 and a coarse mask (H, W) float32 in [0, 1], gives a mask (H, W) bool.
    limit: pictures of a set, the first by name. seen: called with each row and the refined mask.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"the limit is {limit}; give a number of pictures from 1, or none for all")
    folders = list(folders)
    for name, number in Counter(folder.name for folder in folders).items():
        if number > 1:
            raise OptionError(f"{number} sets are called {name!r}; rename the folders or evaluate them one by one")
    work = [(folder.name, item) for folder in folders for item in find_items(folder)[:limit]]
    rows = []
    for name, item in tqdm(work, disable=None if progress else True, unit="picture", dynamic_ncols=True):
        image, coarse, truth = read(item)
        start = time.perf_counter()
        refined = refiner(image, coarse)
        seconds = time.perf_counter() - start
        row = Row(name, item, score(as_binary(coarse), truth), score(refined, truth), seconds)
        rows.append(row)
        if seen is not None:
            seen(row, np.asarray(refined, bool))
    return rows


def read(item: Item) -> tuple[Picture, NDArray[np.float32], Mask]:
    """Picture (H, W, 3), coarse mask (H, W) in [0, 1], a smaller one enlarged, and truth (H, W), set where > 128."""
    image = as_image(item.image)
    size = image.shape[:2]
    truth = read_mask(item.truth)
    if truth.shape != size:
        raise InputError(f"{item.truth} is {truth.shape} and its picture {size}; a truth has the picture's (H, W)")
    return image, as_mask(item.coarse, size), as_binary(as_mask(truth, size))


def as_binary(soft: NDArray[np.float32]) -> Mask:
    """A mask in [0, 1] that came from a file, set where the file's value is > 128 of 255."""
    return soft > 128.5 / 255


@dataclass(frozen=True)
class Summary:
    """A set's figures by the protocol: IoU pooled, mBA averaged, both in %."""

    set: str
    pictures: int
    iou_coarse: float
    mba_coarse: float
    iou_refined: float
    mba_refined: float
    worst_change: float  # lowest gain of a picture's own IoU, in points
    worst_name: str
    seconds: float  # mean of a picture


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """One summary a set, in the order of the rows."""
    summaries = []
    for name in dict.fromkeys(row.set for row in rows):
        of_set = [row for row in rows if row.set == name]
        worst = min(of_set, key=lambda row: row.iou_change)
        before, after = [row.coarse for row in of_set], [row.refined for row in of_set]
        summaries.append(
            Summary(
                set=name,
                pictures=len(of_set),
                iou_coarse=_pooled(before),
                mba_coarse=_mean_mba(before),
                iou_refined=_pooled(after),
                mba_refined=_mean_mba(after),
                worst_change=100 * worst.iou_change,
                worst_name=worst.item.name,
                seconds=sum(row.seconds for row in of_set) / len(of_set),
            )
        )
    return summaries


def _pooled(scores: Sequence[Score]) -> float:
    return 100 * pooled_iou((s.intersection, s.union) for s in scores)


def _mean_mba(scores: Sequence[Score]) -> float:
    return 100 * sum(s.mba for s in scores) / len(scores)


def table(rows: Sequence[Row]) -> str:
    """The sets' figures as a Markdown table: pooled IoU / mean mBA in %."""
    lines = [
        "| set | pictures | coarse IoU/mBA | refined IoU/mBA | gain | worst picture's IoU | s a picture |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in summarise(rows):
        figures = (
            f"{s.iou_coarse:.2f}/{s.mba_coarse:.2f}",
            f"{s.iou_refined:.2f}/{s.mba_refined:.2f}",
            f"{s.iou_refined - s.iou_coarse:+.2f}/{s.mba_refined - s.mba_coarse:+.2f}",
            f"{s.worst_change:+.2f} ({s.worst_name})",
        )
        lines.append(f"| {s.set} | {s.pictures} | {' | '.join(figures)} | {s.seconds:.2f} |")
    return "\n".join(lines)


def evaluate_command(
    data: Sequence[Path],
    *,
    model: str,
    weights: Path | None,
    device: str,
    dtype: str,
    limit: int | None,
    out: Path | None,
    options: dict[str, Any],
) -> list[Row]:
    """Refines every set under ``data`` and prints the table.

    With ``out``, a folder, also writes ``items.jsonl`` (a line a picture), ``table.md`` and ``<set>.png``: crops of
    the set's worst and median picture by the change of IoU. options: further ones of Refiner.
    """
    from refine.engine import Refiner  # here, so that scoring alone needs no network

    sets = find_sets(data)
    for folder in sets:
        find_items(folder)  # all that is missing shows before the work
    if out is not None:
        check_folder(out)
    refiner = Refiner(model=model, weights=weights, device=device, dtype=dtype, **options)
    masks: dict[Path, tuple[NDArray[np.uint8], tuple[int, ...]]] = {}  # a bit a pixel

    def keep(row: Row, refined: Mask) -> None:
        masks[row.item.image] = np.packbits(refined), refined.shape

    def refine(image: NDArray[Any], coarse: NDArray[Any]) -> NDArray[Any]:
        return refiner.refine(image, coarse).mask

    rows = evaluate(sets, refine, limit=limit, seen=keep if out is not None else None, progress=True)
    print(table(rows))
    if out is None:
        return rows
    _write_text(out / "items.jsonl", "".join(json.dumps(row.as_dict()) + "\n" for row in rows))
    _write_text(out / "table.md", table(rows) + "\n")
    for name in dict.fromkeys(row.set for row in rows):
        ordered = sorted((row for row in rows if row.set == name), key=lambda row: row.iou_change)
        panels = []
        for which, row in (("worst", ordered[0]), ("median", ordered[(len(ordered) - 1) // 2])):
            packed, shape = masks[row.item.image]
            refined = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)
            image, coarse, truth = read(row.item)
            title = (
                f"{name}: {which}, {row.item.name}, IoU {100 * row.coarse.iou:.1f} -> {100 * row.refined.iou:.1f}, "
                f"mBA {100 * row.coarse.mba:.1f} -> {100 * row.refined.mba:.1f}"
            )
            panels.append(sheet(image, as_binary(coarse), refined, truth, title=title))
        write_image(out / f"{name}.png", np.vstack(panels))
    return rows


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    write_atomic(path, lambda file: file.write(text.encode()))


# Sheets: the whole picture, then crops before and after and the truth

_BEFORE, _AFTER, _TRUTH = (255, 60, 40), (40, 230, 60), (70, 150, 255)
_PANEL, _CAPTION, _GAP = 480, 34, 8  # px


def sheet(image: Picture, coarse: Mask, refined: Mask, truth: Mask, *, title: str, count: int = 3) -> Picture:
    """A picture to look at: the whole with both contours, then ``count`` rows of crops: before, after, truth.

    image (H, W, 3) uint8 RGB or grey (H, W), masks (H, W). The crops lie where the three masks differ most.
    """
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    width = 3 * _PANEL + 2 * _GAP
    whole = _with_contours(image, [(coarse, _BEFORE), (refined, _AFTER)], width)
    parts = [_caption(f"{title}   (red: before, green: after, blue: truth)", width), whole]
    for window in crop_windows(coarse, refined, truth, count=count):
        kinds = ((coarse, _BEFORE, "before"), (refined, _AFTER, "after"), (truth, _TRUTH, "truth"))
        y, x = window[0].start, window[1].start
        panels = []
        for mask, colour, caption in kinds:
            panel = _with_contours(image[window], [(mask[window], colour)], _PANEL)
            panels.append(np.vstack([_caption(f"{caption} ({x}, {y})", _PANEL), panel]))
        gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
        parts.append(np.hstack([panels[0], gap, panels[1], gap, panels[2]]))
    return np.vstack(parts)


def crop_windows(
    coarse: Mask, refined: Mask, truth: Mask, *, count: int, side: int | None = None
) -> Iterator[tuple[slice, slice]]:
    """Up to ``count`` squares, apart from each other, where the three masks differ in most pixels; (rows, columns).

    side: of the squares, px; by default an eighth of the longer side, at least 96, at most the shorter side.
    """
    height, width = truth.shape
    side = min(side if side is not None else max(96, max(height, width) // 8), height, width)
    step = max(side // 8, 1)
    differ = ((coarse != truth) | (refined != truth)).astype(np.float32)
    # Sums of the square whose first pixel is (y, x), from the integral image, at every step.
    total = cv2.integral(differ, sdepth=cv2.CV_64F)
    rows, columns = np.arange(0, height - side + 1, step), np.arange(0, width - side + 1, step)
    sums = (
        total[np.ix_(rows + side, columns + side)]
        - total[np.ix_(rows, columns + side)]
        - total[np.ix_(rows + side, columns)]
        + total[np.ix_(rows, columns)]
    )
    for _ in range(count):
        i, j = np.unravel_index(int(np.argmax(sums)), sums.shape)
        if sums[i, j] <= 0:
            return
        y, x = int(rows[i]), int(columns[j])
        yield np.s_[y : y + side, x : x + side]
        sums[np.ix_(np.abs(rows - y) < side, np.abs(columns - x) < side)] = 0


def _with_contours(image: Picture, masks: Sequence[tuple[Mask, tuple[int, int, int]]], side: int) -> Picture:
    """The picture fitted into a width and at most that height, each mask's contour on it as a thin line."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    drawn: Picture = np.ascontiguousarray(cv2.resize(image, size, interpolation=how))
    for mask, colour in masks:
        scaled = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=how) > 127
        # A repeated edge keeps the picture's border, which is no contour, out of sight.
        padded = np.pad(scaled.astype(np.uint8), 1, mode="edge")
        contours, _ = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, colour, 1, cv2.LINE_8, offset=(-1, -1))
    return cv2.copyMakeBorder(drawn, 0, 0, 0, side - size[0], cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _caption(text: str, width: int) -> Picture:
    strip = np.full((_CAPTION, width, 3), 255, np.uint8)
    plain = text.encode("ascii", "replace").decode()  # the letters that OpenCV draws
    cv2.putText(strip, plain, (6, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return strip
