"""Pictures and their truths in folders of any layout: pairs are found by names, truths are read, sets are compared."""

import hashlib
import json
import os
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from refine.errors import FileError, InputError
from refine.io import IMAGE_SUFFIXES, MASK_SUFFIXES, decoding, opened, read_mask, read_palette, read_size
from refine.pairs import IMAGE_ENDING, MASK_ENDING, OUTPUT_ENDING
from refine.prepare import enlarged, fits
from refine.values import meaning


@dataclass(frozen=True)
class Pair:
    """A picture and one of its truths, on disk, and the coarse masks of it that somebody's network made."""

    image: Path
    truth: Path
    coarse: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Found:
    """What `survey` saw in a folder: the pairs, and every file of a picture's or mask's format that is in none."""

    pairs: list[Pair]
    ambiguous: list[tuple[Path, str]]  # (a picture or a truth, why it is not certain what belongs to it)
    images_alone: list[Path]
    truths_alone: list[Path]
    left_out: list[Path]  # coarse masks of no pair, results, contours, trimaps: never truths

    def unused(self) -> str:
        """What is not trained on, in words; empty if that is nothing."""
        counts = {
            "pictures without a truth": len(self.images_alone),
            "truths without a picture": len(self.truths_alone),
            "files that are neither": len(self.left_out),
        }
        parts = [f"{count} {what}" for what, count in counts.items() if count]
        parts += [f"{path.name}: {reason}" for path, reason in self.ambiguous]
        return f"not trained on: {'; '.join(parts)}" if parts else ""

    def summary(self, folder: Path) -> str:
        """The folder's name, how many pairs it holds, and a sum of their files' names that tells other ones."""
        paths = [os.fspath(path) for pair in self.pairs for path in (pair.image, pair.truth, *pair.coarse)]
        names = json.dumps([os.path.relpath(path, folder).replace(os.sep, "/") for path in paths])
        return f"{folder.name}: {len(self.pairs)} pairs ({hashlib.sha256(names.encode()).hexdigest()[:8]})"


# ---------------------------------------------------------------------------------------------------------- finding

Place = tuple[str, ...]
"""Names of the folders that lead from the one searched to a file."""

_LOSSY = frozenset({".jpg", ".jpeg", ".webp"})  # of two files of one name these are the picture
_TRUTH = re.compile(r"(?<=.)_gt\d*$")  # of a stem
_COARSE = re.compile(rf"(?<=.){MASK_ENDING}\d*$")
_RESULT = OUTPUT_ENDING.removesuffix(".png")

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")  # JPEGImages: JPEG, Images
_OF_IMAGES = re.compile(r"images?|imgs?|ims?|jpeg|photos?|pictures?|originals?|rgb")
_OF_TRUTHS = re.compile(
    r"masks?|gts?|ground|truths?|groundtruths?|annotations?|labels?|segmentations?|alphas?|mattes?|matting"
)
_OF_NEITHER = re.compile(r"edges?|contours?|boundar(y|ies)|trimaps?|scribbles?|coarse|seg|preds?|predictions?")
_SPLITS = {"tr": "train", "training": "train", "te": "test", "testing": "test", "validation": "val"}
_SPLITS |= {split: split for split in ("train", "test", "val")}


def survey(folder: Path) -> Found:
    """Pairs of a picture and a truth in a folder and all below it, found by name and ordered by the truths' paths.

    * BIG's names: ``<id>_im.jpg`` with ``<id>_gt.png``, or with several: ``<id>_gt0.png``, ``<id>_gt1.png``, ...
    * One folder, one name (MSRA-10K, FSS-1000): ``x.jpg`` is the picture and ``x.png`` its truth.
    * Two folders, one name: ``images/x.jpg`` and ``masks/x.png``, where the truth may also be called ``x_gt``,
      ``x_gt0``, ... or ``x_mask``. The words of their names tell such folders (DUTS-TR-Image and DUTS-TR-Mask,
      DUT-OMRON-image and pixelwiseGT-new-PNG, train and train_masks). They lie side by side, and so do their
      sub-folders: as in DAVIS ``JPEGImages/480p/bear`` goes with ``Annotations/480p/bear`` and with no other
      resolution. The pictures may also lie in the folder that holds the one of truths.

    Formats are those of `refine.io`. Truths that are numbered, or lie in several folders of truths, make several pairs
    of one picture. Beside a picture ``<id>_seg.png``, or ``<id>_seg0.png``, ``<id>_seg1.png``, ..., are its coarse
    masks. Left out are ``<id>_mask.png`` beside a picture (a result) and folders of contours, trimaps or predictions;
    hidden files and links to folders are not looked at. Where names leave open what belongs together there is no pair
    but a reason. No pixels are read.

    Raises `FileError` if the folder cannot be read or holds no pairs.
    """
    places = _places(folder)
    partners = _partners(places)
    kinds = {place: _kinds(place, paths, place in partners) for place, paths in places.items()}
    fitting: dict[Path, list[Path]] = {}
    for place, of in kinds.items():
        for truth in of.truths:
            among = [kinds[other].images for other in partners.get(place, [place])]
            fitting[truth] = [image for images in among for image in _fitting(truth, images)]
    pairs, ambiguous = _matched(fitting)
    coarse = _coarse_masks(kinds)
    pairs = [replace(pair, coarse=coarse.get(_without(pair.image, IMAGE_ENDING), ())) for pair in pairs]
    used = {path for pair in pairs for path in pair.coarse}
    claimed = {image for images in fitting.values() for image in images}
    every_image = (image for of in kinds.values() for images in of.images.values() for image in images)
    found = Found(
        sorted(pairs, key=lambda pair: pair.truth),
        sorted(ambiguous),
        [image for image in every_image if image not in claimed],
        [truth for truth, images in fitting.items() if not images],
        [path for of in kinds.values() for path in of.neither if path not in used],
    )
    if not found.pairs:
        raise FileError(_nothing(folder, places, found))
    return found


def _places(folder: Path) -> dict[Place, list[Path]]:
    """Files of a picture's or mask's format by the folder they lie in, all in order."""

    def fail(error: OSError) -> NoReturn:
        message = f"{error.filename}: cannot be searched ({error.strerror or error}); give a folder that can be read"
        raise FileError(message) from error

    found = {}
    for at, names, files in os.walk(folder, onerror=fail):
        names[:] = [name for name in names if name[0] != "."]
        paths = [Path(at, file) for file in files if file[0] != "." and Path(file).suffix.lower() in MASK_SUFFIXES]
        if paths:
            found[Path(at).relative_to(folder).parts] = sorted(paths)
    return dict(sorted(found.items()))


_Beside = dict[str, dict[tuple[str, ...], list[str]]]  # role -> rest -> names of folders that lie side by side


def _partners(places: Collection[Place]) -> dict[Place, list[Place]]:
    """The folders of truths, each with those of its pictures: their paths differ in one name, by the best rank.

    The last resort is the folder around the one of truths.
    """
    beside: dict[tuple[Place, Place], _Beside] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for place in places:
        for i, name in enumerate(place):
            beside[place[:i], place[i + 1 :]][_role(name)][_rest(name)].append(name)
    found: dict[Place, list[Place]] = {}
    for place in places:
        ranked: dict[tuple[int, int], list[Place]] = {}
        for i, name in enumerate(place):
            if _role(name) == "truths":
                before, after = place[:i], place[i + 1 :]
                rank, others = _ranked(_rest(name), beside[before, after])
                ranked[rank, -i] = [(*before, other, *after) for other in others]
        if place and _role(place[-1]) == "truths" and place[:-1] in places:
            ranked[3, 0] = [place[:-1]]
        best = min((key for key, others in ranked.items() if others), default=None)
        if best is not None:
            found[place] = ranked[best]
    return found


def _ranked(rest: tuple[str, ...], beside: _Beside) -> tuple[int, list[str]]:
    """The folders that go best with one of truths of this rest, and their rank: 0 is best."""
    images, others = beside["images"], beside["any"]
    if rest in images:  # DUTS-TR-Mask: DUTS-TR-Image
        return 0, images[rest]
    if rest and rest in others:  # train_masks: train
        return 1, others[rest]
    only = sum(map(len, images.values())) == sum(map(len, beside["truths"].values())) == 1
    return 2, [name for other, names in images.items() if _compatible(rest, other, only) for name in names]


def _compatible(rest: tuple[str, ...], other: tuple[str, ...], only: bool) -> bool:
    """Whether folders may go together whose rests differ: set1 is not set2, train is not test.

    only: whether they are the only folders of pictures and of truths that lie there.
    """
    splits, of_other = ({_SPLITS[word] for word in words if word in _SPLITS} for words in (rest, other))
    if (splits and of_other and splits != of_other) or set(rest) & set(other):
        return False
    return not rest or not other or only


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _rest(name: str) -> tuple[str, ...]:
    """What the name of a folder says besides its role."""
    return tuple(word for word in _words(name) if not _OF_IMAGES.fullmatch(word) and not _OF_TRUTHS.fullmatch(word))


def _role(name: str) -> str:
    """What the name of a folder says that it holds: images, truths, neither, or any."""
    roles = (("neither", _OF_NEITHER), ("truths", _OF_TRUTHS), ("images", _OF_IMAGES))
    return next((role for role, known in roles if any(map(known.fullmatch, _words(name)))), "any")


@dataclass(frozen=True)
class _Kinds:
    """The files of one folder."""

    images: dict[str, list[Path]]  # by stem
    truths: list[Path]
    neither: list[Path]


def _kinds(place: Place, paths: Sequence[Path], of_truths: bool) -> _Kinds:
    kinds = _Kinds(defaultdict(list), [], [])
    lossy = {path.stem for path in paths if path.suffix.lower() in _LOSSY}
    apart = any(_role(name) == "neither" for name in place)
    for path in paths:
        twin = path.suffix.lower() not in _LOSSY and path.stem in lossy and not path.stem.endswith(IMAGE_ENDING)
        result = path.name.endswith(OUTPUT_ENDING) and not twin
        if apart or _COARSE.search(path.stem) or (result and not of_truths):
            kinds.neither.append(path)
        elif of_truths or twin or _TRUTH.search(path.stem) or path.suffix.lower() not in IMAGE_SUFFIXES:
            kinds.truths.append(path)
        else:
            kinds.images[path.stem].append(path)
    return kinds


def _fitting(truth: Path, images: Mapping[str, list[Path]]) -> list[Path]:
    """The pictures of a folder that the name of a truth belongs to."""
    bare = _TRUTH.sub("", truth.stem).removesuffix(_RESULT)
    stems = (truth.stem, truth.stem + IMAGE_ENDING, bare + IMAGE_ENDING, bare)
    return next((images[stem] for stem in stems if stem in images), [])


def _matched(fitting: Mapping[Path, list[Path]]) -> tuple[list[Pair], list[tuple[Path, str]]]:
    """Pairs of every truth and the one picture that fits, and what is not certain with its reason."""
    pairs, ambiguous = [], []
    truths_of: dict[Path, list[Path]] = defaultdict(list)
    for truth, images in fitting.items():
        if len(images) > 1:
            ambiguous.append((truth, f"its name belongs to {_names(images)}; keep one of them"))
        for image in images[:1] if len(images) == 1 else ():
            truths_of[image].append(truth)
    for image, truths in truths_of.items():
        if _go_together(image, truths):
            pairs += [Pair(image, truth) for truth in truths]
        else:
            reason = (
                f"{_names(truths)} belong to it; keep one, or number them {image.stem}_gt0.png, {image.stem}_gt1.png"
            )
            ambiguous.append((image, reason))
    return pairs, ambiguous


def _coarse_masks(kinds: Mapping[Place, "_Kinds"]) -> dict[Path, tuple[Path, ...]]:
    """Coarse masks, in order, by the path of the picture they lie beside, without its ending."""
    found: dict[Path, list[Path]] = defaultdict(list)
    for of in kinds.values():
        for path in of.neither:
            if _COARSE.search(path.stem):
                found[path.with_name(_COARSE.sub("", path.stem))].append(path)
    return {of: tuple(sorted(paths)) for of, paths in found.items()}


def _without(path: Path, ending: str) -> Path:
    return path.with_name(path.stem.removesuffix(ending))


def _go_together(image: Path, truths: Sequence[Path]) -> bool:
    """Whether several truths are meant: numbered ones in one folder, or one in each of several folders of truths."""
    folders: dict[Path, list[str]] = defaultdict(list)
    for truth in truths:
        folders[truth.parent].append(truth.stem)
    return (len(folders) == 1 or image.parent not in folders) and all(
        len(stems) == 1 or (len(set(stems)) == len(stems) and all(map(_TRUTH.search, stems)))
        for stems in folders.values()
    )


def _names(paths: Sequence[Path]) -> str:
    """Paths for a message, with the folder each lies in."""
    return " and ".join(f"{path.parent.name}/{path.name}" for path in paths)


def _nothing(folder: Path, places: Mapping[Place, Sequence[Path]], found: Found) -> str:
    held = [
        f"{number} {suffix} in {'/'.join(place) or 'the folder itself'}"
        for place, paths in places.items()
        for suffix, number in sorted(Counter(path.suffix.lower() for path in paths).items())
    ]
    more = f" and {len(held) - 6} kinds more" if len(held) > 6 else ""
    what = f"no file of {', '.join(sorted(MASK_SUFFIXES))}"
    if held:
        what = (
            f"{', '.join(held[:6])}{more} (pictures without a truth: {len(found.images_alone)}; truths without a "
            f"picture: {len(found.truths_alone)}; coarse masks and results: {len(found.left_out)}; uncertain: "
            f"{len(found.ambiguous)}" + "".join(f", as {path}: {why}" for path, why in found.ambiguous[:1]) + ")"
        )
    return (
        f"{folder} holds no pairs of a picture and its truth; looked for <id>_im.jpg with <id>_gt.png, x.jpg with "
        f"x.png in one folder, and one name in two folders such as images and masks; found {what}; give a folder that "
        "holds pairs, or rename its files or folders"
    )


# ---------------------------------------------------------------------------------------------------------- reading

_VOID = 255  # in a label map neither object nor background
_CLASSES = 64  # ids below this leave no doubt what 255 is
_LABELS = 64  # at most in one file; more values than that are of a soft mask or a photograph


def read_truth(pair: Pair, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Truth (H, W) of a picture of ``size`` (H, W): 255 on the object and 0 elsewhere.

    Values mean what they mean in `refine.prepare.as_mask` ({0, 1}, {0, 255}, greys, 16 bits, floats, black-and-white
    palettes), and soft ones, such as alpha mattes, are cut: the object is what lies above 0.5. What is refused there is
    read here: in a label map, be it of a coloured palette (DAVIS-2017) or grey, every label above 0 is object, except
    255, which is void where there are other labels. A lossy file with a white, whose values stray, is no label map:
    it is cut at half of its highest value.

    Raises FileError: the file cannot be read; its size is not the picture's; it has more than 64 labels, or negative
    ones; it is grey and 255 may be void or an object; label 0 of a coloured palette is not black.
    Raises InputError: as `refine.io.read_mask` (a coloured mask without a palette), or floats outside [0, 1].
    """
    coloured = False
    try:
        values = read_mask(pair.truth)
    except InputError:
        indices = _palette_indices(pair.truth)
        if indices is None:
            raise
        values, coloured = indices, True
    _check_size(pair.truth, values.shape, pair.image, size)
    if not coloured and values.max() > 127 and _is_lossy(pair.truth):
        return np.uint8(255) * (2 * values.astype(np.int32) > values.max())
    return np.uint8(255) * _object(values, str(pair.truth), coloured)


def read_coarse(path: Path, image: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Coarse mask (H, W) of a picture of ``size`` (H, W), 0 to 255 for probabilities from 0 to 1.

    A smaller one, as networks give them, is enlarged as refining does (`refine.prepare.as_mask`).

    Raises FileError: the file cannot be read, or its size neither is the picture's nor smaller with the same aspect.
    Raises InputError: what it holds is no mask (see `refine.prepare.as_mask`).
    """
    values = read_mask(path)
    if not fits(values.shape, size):
        _check_size(path, values.shape, image, size)
    return np.rint(255 * enlarged(meaning(lambda: [values], str(path)).unit(values), size)).astype(np.uint8)


def check_sizes(pairs: Iterable[Pair], *, coarse: bool) -> None:
    """Checks, by the files' headers, that truths and, if asked, coarse masks are of their pictures' sizes.

    A coarse mask may be smaller with the same aspect.

    Raises `FileError` with the first five that are not, or whose headers cannot be read.
    """
    of_images: dict[Path, tuple[int, ...]] = {}
    bad: dict[Path, str] = {}
    for pair in pairs:
        for mask in (pair.truth, *(pair.coarse if coarse else ())):
            try:
                if pair.image not in of_images:
                    of_images[pair.image] = _size(pair.image)
                if _size(mask) == of_images[pair.image]:
                    continue
                found, wanted = (_size(path, displayed=True) for path in (mask, pair.image))
                if found != wanted and (mask == pair.truth or not fits(found, wanted)):
                    bad[mask] = f"{mask} is {_by(found)}, its picture {pair.image} {_by(wanted)}"
            except (FileError, InputError) as error:
                bad[mask] = str(error)
    if bad:
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise FileError(
            f"{len(bad)} masks do not fit their pictures (H x W, as displayed): {'; '.join(list(bad.values())[:5])}"
            f"{more}; give masks of the pictures' sizes, or remove them"
        )


def _size(path: Path, *, displayed: bool = False) -> tuple[int, ...]:
    """(H, W) of a picture or mask; of a PNG as stored: how it is ``displayed`` may be said behind its pixels."""
    name, formats = str(path), "a picture or mask"
    with opened(path, name, formats) as file, decoding(name, formats):
        head = file.read(24)
        if head.startswith(b"\x93NUMPY"):
            return np.load(path, mmap_mode="r").shape[:2]
        if head.startswith(b"\x89PNG") and not displayed:
            width, height = struct.unpack(">II", head[16:])
            return height, width
    return read_size(path)


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _check_size(path: Path, found: tuple[int, ...], image: Path, size: tuple[int, int]) -> None:
    if found != size:
        (h, w), (H, W) = found, size
        raise FileError(
            f"{path}: {h} x {w} is not the size of its picture {image}, {H} x {W} (H x W, as displayed); give one of "
            "the picture's size, or remove it"
        )


def _is_lossy(path: Path) -> bool:
    """Whether a file is a JPEG or a lossy WebP."""
    with path.open("rb") as file:
        head = file.read(12)
        while head[8:] == b"WEBP" and len(chunk := file.read(8)) == 8:
            if chunk[:4] in (b"VP8 ", b"VP8L"):
                return chunk[:4] == b"VP8 "
            size = int.from_bytes(chunk[4:], "little")
            file.seek(size + size % 2, os.SEEK_CUR)
    return head.startswith(b"\xff\xd8\xff")


def _palette_indices(path: Path) -> NDArray[Any] | None:
    """What `refine.io.read_mask` refuses in a coloured palette: the indices; None for a file without a palette."""
    found = read_palette(path)
    if found is None:
        return None
    indices, palette = found
    if palette[0].any():
        raise FileError(f"{path}: label 0 of its palette is not black; give a palette whose black 0 is no object")
    return indices


def _object(values: NDArray[Any], name: str, coloured: bool) -> NDArray[np.bool_]:
    if not coloured:
        try:
            return meaning(lambda: [values], name).unit(values) > 0.5
        except InputError:
            if values.dtype.kind not in "iu":
                raise
    labels, counts = np.unique(values, return_counts=True)
    if labels[0] < 0 or len(labels) > _LABELS:
        raise FileError(
            f"{name}: {len(labels)} values {labels[0]}..{labels[-1]} are neither a mask nor up to {_LABELS} labels "
            "from 0 on; give a truth of 0 and 255"
        )
    inside = values > 0
    others = (labels > 0) & (labels != _VOID)
    if labels[-1] == _VOID and others.any():
        if not coloured and (labels[others][-1] >= _CLASSES or counts[-1] > counts[others].sum()):
            given = ", ".join(f"{label} ({count} px)" for label, count in zip(labels[-3:], counts[-3:], strict=True))
            raise FileError(f"{name}: of the values {given} 255 may be void or object; give a truth of 0 and 255")
        inside &= values != _VOID
    return inside


# -------------------------------------------------------------------------------------------------------- comparing


def shared_pictures(training: Sequence[Path], heldout: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(training, held-out) pictures whose files have the same bytes, whatever they are called, in the held-out order.

    The guard against training on what is measured. It compares SHA-256 sums; a picture that was saved anew, even
    without a loss, is not recognised.

    Raises `FileError` for a file that cannot be read.
    """
    try:
        sizes = {path.stat().st_size for path in heldout}
        known: dict[bytes, list[Path]] = defaultdict(list)
        for path in dict.fromkeys(training):  # a picture with several truths is in several pairs
            if path.stat().st_size in sizes:
                known[_digest(path)].append(path)
        return [(path, held) for held in dict.fromkeys(heldout) for path in known.get(_digest(held), ())]
    except OSError as error:
        message = f"{error.filename}: cannot be read ({error.strerror or error}); give pictures that can be compared"
        raise FileError(message) from error


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
