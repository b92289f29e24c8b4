"""Measuring a refiner against ground truth: BIG's layout and protocol, a table, a sheet of pictures to look at, and
comparisons with other evaluations.

A set is a folder of ``<name>_im.*``, ``<name>_gt.png`` and ``<name>_seg.png``: picture, truth and coarse mask. Truth
and coarse mask are set where > 128, alpha mattes too. Per set: IoU is pooled (the sum of the intersections over the
sum of the unions), mBA is the mean over the pictures. The harm that refining did (`refine.metrics.Harm`): far errors
are pooled as IoU is, fragments and holes are means over the pictures, lost objects are added up.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from refine.errors import FileError, InputError, OptionError
from refine.io import IMAGE_SUFFIXES, check_folder, read_mask, write_atomic, write_image
from refine.metrics import Harm, harm, intersection_and_union, mean_boundary_accuracy, pooled_far, pooled_iou
from refine.pairs import MASK_ENDING, TRUTH_ENDING, big_images
from refine.prepare import as_image, as_mask

Mask = NDArray[np.bool_]  # (H, W)
Picture = NDArray[Any]  # (H, W, 3) uint8 RGB; OpenCV's type hints lose the type of the elements
RefineFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]

ITEMS: Final = "items.jsonl"  # of an evaluation's folder: a line a picture


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
    name: str
    coarse: Score
    refined: Score
    seconds: float  # inside the refiner
    harm: Harm | None = None  # none in lines that were written before it was measured

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
        return {"set": self.set, "name": self.name, **scores, **harm, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for what `as_dict` cannot have made, with harm or without."""
        coarse, refined = (
            Score(**{field.name: values[f"{field.name}_{when}"] for field in fields(Score)})
            for when in ("coarse", "refined")
        )
        names = [field.name for field in fields(Harm)]
        harm = Harm(**{name: values[name] for name in names}) if any(name in values for name in names) else None
        row = cls(values["set"], values["name"], coarse, refined, values["seconds"], harm)
        if not (isinstance(row.set, str) and isinstance(row.name, str) and row.seconds > 0):
            raise ValueError("no picture, or no time")
        possible = [0 <= s.intersection <= s.union and 0 <= s.mba <= 1 for s in (coarse, refined)]
        if not all(possible) or (harm is not None and not all(count >= 0 for count in asdict(harm).values())):
            raise ValueError("impossible figures")
        return row


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
    """The pictures of a set by name.

    Raises FileError where there is none, two share a name, or a truth or coarse mask is missing.
    """
    items = [
        Item(name, image, folder / f"{name}{TRUTH_ENDING}.png", folder / f"{name}{MASK_ENDING}.png")
        for name, image in big_images(folder, IMAGE_SUFFIXES)
    ]
    if not items:
        raise FileError(f"no *_im.* in {str(folder)!r}; give a folder of *_im.*, *_gt.png and *_seg.png")
    name, number = Counter(item.name for item in items).most_common(1)[0]
    if number > 1:
        raise FileError(f"{str(folder)!r} holds {number} pictures called {name!r}; keep one")
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
        before = as_binary(coarse)
        row = Row(
            set=name,
            name=item.name,
            coarse=score(before, truth),
            refined=score(refined, truth),
            seconds=seconds,
            harm=harm(refined, before, truth),
        )
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
    """A set's figures by the protocol: IoU pooled, mBA averaged, both in %; and harm, where all rows have it."""

    set: str
    pictures: int
    iou_coarse: float
    mba_coarse: float
    iou_refined: float
    mba_refined: float
    worst_change: float  # lowest gain of a picture's own IoU, in points
    worst_name: str
    seconds: float  # mean of a picture
    far: float | None = None  # errors, pooled, in % of the truths' areas
    fragments: float | None = None  # mean of a picture
    holes: float | None = None  # mean of a picture
    lost: int | None = None  # objects, of all pictures


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """One summary a set, in the order of the rows."""
    summaries = []
    for name in dict.fromkeys(row.set for row in rows):
        of_set = [row for row in rows if row.set == name]
        worst = min(of_set, key=lambda row: row.iou_change)
        before, after = [row.coarse for row in of_set], [row.refined for row in of_set]
        harms = [row.harm for row in of_set if row.harm is not None]
        summaries.append(
            Summary(
                set=name,
                pictures=len(of_set),
                iou_coarse=_pooled(before),
                mba_coarse=_mean_mba(before),
                iou_refined=_pooled(after),
                mba_refined=_mean_mba(after),
                worst_change=100 * worst.iou_change,
                worst_name=worst.name,
                seconds=sum(row.seconds for row in of_set) / len(of_set),
                **(_summed(harms) if len(harms) == len(of_set) else {}),
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


def _mean_mba(scores: Sequence[Score]) -> float:
    return 100 * sum(s.mba for s in scores) / len(scores)


_LEGEND: Final = """\
What refining broke: far %, pixels far from the coarse mask's contour that were right and are wrong, in % of the truth's
area; fragments/holes, a picture, that neither the coarse mask nor the truth has; lost, objects the coarse mask had."""


def table(rows: Sequence[Row]) -> str:
    """The sets' figures as a Markdown table: pooled IoU / mean mBA in %, and harm, as the lines below it say."""
    lines = [
        (
            s.set,
            str(s.pictures),
            f"{s.iou_coarse:.2f}/{s.mba_coarse:.2f}",
            f"{s.iou_refined:.2f}/{s.mba_refined:.2f}",
            f"{s.iou_refined - s.iou_coarse:+.2f}/{s.mba_refined - s.mba_coarse:+.2f}",
            f"{s.worst_change:+.2f} ({s.worst_name})",
            _figure(s.far, ".3f"),
            f"{_figure(s.fragments, '.1f')}/{_figure(s.holes, '.1f')}",
            _figure(s.lost, "d"),
            f"{s.seconds:.2f}",
        )
        for s in summarise(rows)
    ]
    header = "set|pictures|coarse IoU/mBA|refined IoU/mBA|gain|worst picture's IoU|far %|fragments/holes|lost|seconds"
    return f"{_markdown(header.split('|'), lines)}\n\n{_LEGEND}"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table with its columns aligned, for a terminal too."""
    cells = [list(header), *map(list, lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells)


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
    the set's worst and median picture by the change of IoU. model, options: as `refine.refiners.refiner` takes them.
    """
    from refine.refiners import refiner  # here, so that scoring alone needs none

    sets = find_sets(data)
    # All that is missing shows before the work.
    items = {(folder.name, item.name): item for folder in sets for item in find_items(folder)}
    if out is not None:
        check_folder(out)
    chosen = refiner(model, weights=weights, device=device, dtype=dtype, **options)
    masks: dict[tuple[str, str], tuple[NDArray[np.uint8], tuple[int, ...]]] = {}  # a bit a pixel

    def keep(row: Row, refined: Mask) -> None:
        masks[row.set, row.name] = np.packbits(refined), refined.shape

    def refine(image: NDArray[Any], coarse: NDArray[Any]) -> NDArray[Any]:
        return chosen.refine(image, coarse).mask

    rows = evaluate(sets, refine, limit=limit, seen=keep if out is not None else None, progress=True)
    print(table(rows))
    if out is None:
        return rows
    _write_text(out / ITEMS, "".join(json.dumps(row.as_dict()) + "\n" for row in rows))
    _write_text(out / "table.md", table(rows) + "\n")
    for name in dict.fromkeys(row.set for row in rows):
        ordered = sorted((row for row in rows if row.set == name), key=lambda row: row.iou_change)
        panels = []
        for which, row in (("worst", ordered[0]), ("median", ordered[(len(ordered) - 1) // 2])):
            packed, shape = masks[row.set, row.name]
            refined = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)
            image, coarse, truth = read(items[row.set, row.name])
            title = (
                f"{name}: {which}, {row.name}, IoU {100 * row.coarse.iou:.1f} -> {100 * row.refined.iou:.1f}, "
                f"mBA {100 * row.coarse.mba:.1f} -> {100 * row.refined.mba:.1f}"
            )
            panels.append(sheet(image, as_binary(coarse), refined, truth, title=title))
        write_image(out / f"{name}.png", np.vstack(panels))
    return rows


def read_rows(folder: Path) -> list[Row]:
    """The rows that an evaluation wrote into a folder, in their order.

    Raises FileError for a folder without them, a damaged line, or a picture that is there twice.
    """
    path = folder / ITEMS
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise FileError(
            f"no {ITEMS} to read in {str(folder)!r} ({error.strerror}); give a folder that refine-cli evaluate -o wrote"
        ) from error
    rows = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = Row.from_dict(json.loads(line))
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path}: line {number} is damaged ({error}); evaluate these pictures again") from error
        if (row.set, row.name) in rows:
            raise FileError(f"{path}: line {number} is {row.set}/{row.name} once more; evaluate these pictures again")
        rows[row.set, row.name] = row
    if not rows:
        raise FileError(f"{path}: holds no pictures; evaluate some")
    return list(rows.values())


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
    seconds_ratio: float  # the other's over the base's


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
                _figure(c.far_base, ".3f"),
                _figure(c.far_change, "+.4f"),
                f"{c.seconds_ratio:.3f}",
            )
            for c in self.changes
        ]
        header = "set|pictures|base IoU/mBA|change IoU/mBA|worst picture's IoU|base far %|change far %|seconds ratio"
        largest = f"IoU {self.largest_iou_change:.4f}, mBA {self.largest_mba_change:.4f}"
        if self.largest_far_change is not None:
            largest += f", far % {self.largest_far_change:.4f}"
        parts = [
            f"{self.run} beside {self.base}",
            _markdown(header.split("|"), lines),
            f"largest change of a set: {largest}",
        ]
        if any(c.far_change is None for c in self.changes):
            parts.append("-: not measured when one of the two was made; evaluate it again for far errors")
        return "\n\n".join(parts)


def compare(base: Path, run: Path) -> Comparison:
    """The evaluation in the folder ``run`` beside the one in ``base``, set by set in the base's order.

    Raises FileError as `read_rows`, and OptionError where the two do not hold the same pictures.
    """
    before, after = ({(row.set, row.name): row for row in read_rows(folder)} for folder in (base, run))
    for folder, missing in ((run, before.keys() - after.keys()), (base, after.keys() - before.keys())):
        if missing:
            names = ", ".join(f"{set_}/{name}" for set_, name in sorted(missing)[:3])
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise OptionError(f"{str(folder)!r} lacks {names}{more}; compare evaluations of the same pictures")
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
                seconds_ratio=r.seconds / b.seconds,
            )
        )
    return Comparison(str(base), str(run), tuple(changes))


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
