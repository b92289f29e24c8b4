"""Which pictures are measured, and their files."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine.errors import FileError, InputError, OptionError, listed
from refine.io import IMAGE_SUFFIXES, read_mask
from refine.pairs import MASK_ENDING, TRUTH_ENDING, big_images
from refine.prepare import as_image, as_mask
from refine.values import meaning

Mask = NDArray[np.bool_]  # (H, W)
Picture = NDArray[Any]  # (H, W, 3) uint8 RGB; OpenCV's type hints lose the type of the elements


@dataclass(frozen=True)
class Item:
    """One picture of a set: its files, which need not exist."""

    set: str
    name: str
    image: Path
    truth: Path
    coarse: Path
    white: float | None = None  # of the picture, as `refine.prepare.as_image` takes it


def find_sets(folders: Iterable[Path]) -> list[Path]:
    """The folders that hold pictures: each one given, or else those of its sub-folders that do.

    Raises FileError for one that has neither.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise FileError(f"no folder {str(folder)!r}; give folders of *_im.*, *_gt.png and *_seg.png")
        sets = [path for path in _candidates(folder) if big_images(path, IMAGE_SUFFIXES)]
        if not sets:
            raise FileError(f"no *_im.* in {str(folder)!r} or its sub-folders; give folders of BIG's layout")
        found += sets
    return found


def find_truths_alone(folders: Iterable[Path]) -> list[Path]:
    """The truths among what `find_sets` searches whose picture is missing, or of a kind that is not read."""
    alone = []
    for place in (place for folder in folders for place in _candidates(folder)):
        names = {name for name, _ in big_images(place, IMAGE_SUFFIXES)}
        ending = f"{TRUTH_ENDING}.png"
        alone += [p for p in sorted(place.glob(f"[!.]*{ending}")) if p.name.removesuffix(ending) not in names]
    return alone


def find_items(folder: Path) -> list[Item]:
    """The pictures of a set by name.

    Raises FileError where there is none, two share a name, or a truth or coarse mask is missing.
    """
    items = _items(folder)
    missing = [path.name for item in items for path in (item.truth, item.coarse) if not path.is_file()]
    if missing:
        raise FileError(f"{str(folder)!r} lacks {listed(missing, 3)}; every picture needs both masks")
    return items


def find_work(folders: Sequence[Path], coarse: Sequence[Path] = (), *, limit: int | None = None) -> list[Item]:
    """The pictures of all sets, set by set; a file may be missing, but not all of a kind in a set.

    coarse: folders of coarse masks, ``<name>_seg.png`` or ``<name>.png``, each of which makes a set of its name with
    the pictures and truths of the only folder in ``folders``. limit: pictures of a set, the first by name.

    Raises FileError for a folder that is no set, OptionError for an impossible limit or two sets of one name, or of
    names that are one as a file's.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"the limit is {limit}; give a number of pictures from 1, or none for all")
    if coarse and len(folders) != 1:
        raise OptionError(
            f"--coarse goes with one folder of pictures and truths, and here are {len(folders)}; give one"
        )
    sets = [_items(folders[0], other) for other in coarse] if coarse else [_items(folder) for folder in folders]
    names = [items[0].set for items in sets]
    for file, number in Counter(map(as_name, names)).items():
        if number > 1:
            same = " and ".join(dict.fromkeys(repr(name) for name in names if as_name(name) == file))
            raise OptionError(
                f"{number} sets are called {same} and would share files; rename the folders or evaluate them one by one"
            )
    for items in sets:
        for kind in ("truth", "coarse"):
            paths: list[Path] = [getattr(item, kind) for item in items]
            if not any(path.is_file() for path in paths):
                where = str(paths[0].parent)
                raise FileError(
                    f"{where!r} lacks {paths[0].name} and all others of its kind; give a folder that has them"
                )
    return [item for items in sets for item in items[:limit]]


def as_name(text: str) -> str:
    """A text as the name of a file."""
    return re.sub(r"[^\w.+=-]+", "-", text).strip(".-") or "-"


def as_label(text: str) -> str:
    """Likewise, with room for an ending: a long one is `hashed`."""
    name = as_name(text)
    return name if len(name.encode()) <= 200 else hashed(text)


def hashed(*words: str) -> str:
    """Words as the name of a file of at most 69 bytes, which no others have: what there is room for, and a hash."""
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()
    return f"{as_name('-'.join(words)).encode()[:60].decode(errors='ignore')}-{digest[:8]}"


def _candidates(folder: Path) -> list[Path]:
    return [folder] if big_images(folder, IMAGE_SUFFIXES) else sorted(filter(Path.is_dir, folder.iterdir()))


def _items(folder: Path, coarse: Path | None = None) -> list[Item]:
    """The pictures of a folder, with the coarse masks of another one if it is given."""
    if coarse is not None and not coarse.is_dir():
        raise FileError(f"no folder {str(coarse)!r}; give a folder of <name>_seg.png or <name>.png")
    where = folder if coarse is None else coarse
    items = []
    for name, image in big_images(folder, IMAGE_SUFFIXES):
        mask, plain = where / f"{name}{MASK_ENDING}.png", where / f"{name}.png"
        if coarse is not None and plain.is_file() and not mask.is_file():
            mask = plain
        items.append(Item(Path(os.path.abspath(where)).name, name, image, folder / f"{name}{TRUTH_ENDING}.png", mask))
    if not items:
        raise FileError(f"no *_im.* in {str(folder)!r}; give a folder of *_im.*, *_gt.png and *_seg.png")
    name, number = Counter(item.name for item in items).most_common(1)[0]
    if number > 1:
        raise FileError(f"{str(folder)!r} holds {number} pictures called {name!r}; keep one")
    return items


def read(item: Item) -> tuple[Picture, NDArray[np.float32], Mask, Mask | None]:
    """Picture (H, W, 3), coarse mask (H, W) in [0, 1], a smaller one enlarged, truth (H, W), set where > 128, and void.

    Void are the pixels that the truth leaves open: 255 beside a single label, and the grey of a {0, 128, 255}. None of
    a truth without such.
    """
    image = as_image(item.image, white=item.white)
    size = image.shape[:2]
    truth = read_mask(item.truth)
    if truth.shape != size:
        raise InputError(f"{item.truth} is {truth.shape} and its picture {size}; a truth has the picture's (H, W)")
    found = meaning(lambda: [truth], os.fsdecode(item.truth))
    return image, as_mask(item.coarse, size), as_binary(found.unit(truth)), found.is_void(truth)


def as_binary(soft: NDArray[np.float32], *, least: int = 129) -> Mask:
    """A mask in [0, 1] that came from a file, set where the file's value is at least ``least`` of 255."""
    return soft > (least - 0.5) / 255
