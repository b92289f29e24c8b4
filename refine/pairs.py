"""Finding image/mask pairs in files, folders and globs, and naming what is written for them; no pixels are read."""

from __future__ import annotations

import filecmp
import glob
import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from refine.errors import FileError, InputError, OptionError, listed

# BIG's names: the image is <name>_im.jpg, its coarse mask <name>_seg.png, the truth <name>_gt.png.
IMAGE_ENDING, MASK_ENDING, TRUTH_ENDING = "_im", "_seg", "_gt"

OUTPUT_ENDING = "_mask.png"  # of a refined mask that is named after its image
OWN_MASK = "give the mask that belongs to it, as from a network or a thresholding"
SAW = "_saw_"  # between an image's name and that of a picture of what guidance saw

# As `refine.io` writes them; a wrong suffix is told before the work and not after it.
MASK_WRITTEN = (".png", ".tif", ".tiff")
PROBABILITY_WRITTEN = (*MASK_WRITTEN, ".npy")
OVERLAY_WRITTEN = (".jpg", ".jpeg", *MASK_WRITTEN, ".bmp", ".webp")


Key = tuple[PurePath, str]  # the sub-folder under the folder searched, and the stem, `_composed`

# What a picture begins with: JPEG, PNG, GIF, TIFF, JPEG XL, JPEG 2000, Photoshop, OpenEXR, DirectDraw, QOI; the boxes
# of AVIF, HEIF, JPEG 2000 and JPEG XL; and what may lie beside pictures and is none.
_MAGICS = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\xff\x0a", b"\xff\x4f\xff\x51", b"8BPS", b"\x76\x2f\x31\x01", b"DDS ", b"qoif"),
)
_BOXES = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1", b"jP  \r\n\x87\n", b"JXL \r\n\x87\n")
_TEXTS = frozenset(
    {
        ".txt",
        ".md",
        ".rst",
        ".json",
        ".jsonl",
        ".xml",
        ".csv",
        ".tsv",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".log",
        ".html",
        ".py",
        ".sh",
        ".ipynb",
        ".pdf",
        ".db",
        ".zip",
        ".tar",
        ".gz",
        ".sha256",
        ".md5",
        ".tfw",
        ".jgw",
        ".pgw",
        ".wld",
        ".prj",
        ".ovr",
        ".xmp",
    }
)


@dataclass(frozen=True)
class Pair:
    """An image, its coarse mask, and the files to write for them."""

    image: Path
    mask: Path
    name: PurePath  # what every output is named after: the sub-folder and the image's stem without `_im`
    output: Path = Path()
    overlay: Path | None = None
    probability: Path | None = None

    @property
    def outputs(self) -> list[Path]:
        """Every file that is written for this pair."""
        return [path for path in (self.output, self.overlay, self.probability) if path is not None]


@dataclass(frozen=True)
class Found:
    """What `find_pairs` saw: the pairs, and all that is in none.

    `left_out` are pictures that would be refined if they were named otherwise: of another suffix or none, or hidden.
    `others` are files of other kinds.
    """

    pairs: list[Pair]
    many: bool  # folders or globs were given: outputs go into a folder
    ambiguous: list[tuple[Path, str]] = field(default_factory=list)  # (image, why it has no single mask)
    images_alone: list[Path] = field(default_factory=list)
    masks_alone: list[Path] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)  # (file, why)
    others: list[Path] = field(default_factory=list)


def find_pairs(
    image: str,
    mask: str | None,
    *,
    image_suffixes: Collection[str],
    mask_suffixes: Collection[str],
    exclude: Iterable[Path] = (),
) -> Found:
    """Pairs named by two files, two folders, two globs, or one folder with BIG's `_im`/`_seg` names.

    Folders are searched recursively, linked ones too, and images and masks matched within the same sub-folder: by stem
    (`cat.jpg`, `cat.png`) or by BIG's names. Folders in `exclude` (the outputs' own) are not searched. Two single files
    are taken as they are. Hidden files and folders are not taken, but told of where they hold pairs. Brackets in a glob
    are taken as they are where a folder is called so. A picture named like an output, `<name>_mask.png`, is left out
    where `<name>` is an image, unless an image and a mask of that name go together. Raises OptionError where the two do
    not go together, FileError where many files hold no pair or a folder cannot be read.
    """
    kinds = {_kind(image), _kind(mask) if mask is not None else _kind(image)}
    if mask is None or len(kinds) > 1:
        for word in (image, mask or image):
            if _kind(word) == "file" and not os.path.lexists(word):
                raise OptionError(f"no such file, folder or command: {word!r}")
    if mask is None and kinds != {"folder"}:
        raise OptionError(
            f"no MASK for the image {image!r}; give IMAGE and MASK, or one folder of *_im and *_seg files"
        )
    if kinds == {"file"}:
        assert mask is not None
        return Found([_pair(Path(image), Path(mask), PurePath())], many=False)
    if "file" in kinds:
        lone, other = (image, mask) if _kind(image) == "file" else (mask, image)
        raise OptionError(f"one file ({lone!r}) with many ({other!r}); give two files, two folders or two quoted globs")
    one_folder = mask is None or (kinds == {"folder"} and os.path.samefile(image, mask))
    mask = image if mask is None else mask
    roots = [Path(path) for path in (image, mask) if _kind(path) == "folder"]
    closed = [*roots, *exclude]
    seen = [_search(source, suffixes, closed) for source, suffixes in ((image, image_suffixes), (mask, mask_suffixes))]
    images, masks = (files.groups for files in seen)
    others = seen[0].others if one_folder else [*seen[0].others, *seen[1].others]
    if one_folder:
        big = {
            path
            for groups, ending in ((images, IMAGE_ENDING), (masks, MASK_ENDING))
            for key, paths in groups.items()
            if _is_big(key[1], ending)
            for path in paths
        }
        others += sorted({path for groups in (images, masks) for paths in groups.values() for path in paths} - big)
        images = {key: paths for key, paths in images.items() if _is_big(key[1], IMAGE_ENDING)}
        masks = {key: paths for key, paths in masks.items() if _is_big(key[1], MASK_ENDING)}
    names = {(folder, _name(stem)) for folder, stem in images} | set(images)
    found = _match(_without_outputs(images, masks, names), _without_outputs(masks, images, names))
    left_out = [] if one_folder else _left_out(*seen)
    left_out += _hidden_pairs(*seen)
    if not found.pairs and not found.ambiguous:
        raise FileError(_nothing(image, mask, images, masks, others, left_out, one_folder=one_folder))
    named = {path for path, _ in left_out}
    return replace(found, left_out=left_out, others=[path for path in others if path not in named])


def _nothing(
    image: str,
    mask: str,
    images: dict[Key, list[Path]],
    masks: dict[Key, list[Path]],
    others: list[Path],
    left_out: list[tuple[Path, str]],
    *,
    one_folder: bool,
) -> str:
    """Why no image has a mask, and what to do."""
    counts = f"{_count(images, 'image')} in {image!r}, {_count(masks, 'mask')} in {mask!r}"
    rest = f"; beside them {listed(others, 3)}" if others else ""
    rest += "".join(f"; {path} is left out ({why})" for path, why in left_out[:1])
    if one_folder:
        remedy = "name them *_im and *_seg, or give the folder of the masks as well"
        return f"no image and mask belong together: {counts} by the names *_im and *_seg{rest}; {remedy}"
    if not masks:
        rest += "; every image needs a coarse mask, as from a network or a thresholding"
    if any("[" in word and _kind(word) == "glob" for word in (image, mask)):
        rest += "; in a glob [ ] is a set of letters, write [[] for a bracket"
    accepted = "accepted are the same name in two folders or globs (cat.jpg, cat.png) and *_im with *_seg"
    return f"no image and mask belong together: {counts}{rest}; {accepted}"


def with_outputs(
    found: Found,
    output: Path | None,
    *,
    overlay: Path | None = None,
    probability: Path | None = None,
    debug: Path | None = None,
) -> Found:
    """`found` with every pair's outputs named. Raises OptionError where one would replace an input or another output.

    One pair: the three are files; `output` is an existing folder, or None for `<name>_mask.png` beside the mask, as
    well. Many: the three are folders and sub-folders are kept in them. `debug` is a folder for `<name>_saw_*.png`.
    """
    if found.many:
        pairs = [_named_in_folders(pair, output, overlay, probability) for pair in found.pairs]
    else:
        pairs = [_named(pair, output, overlay, probability) for pair in found.pairs]
    inputs = {_identity(path) for pair in pairs for path in (pair.image, pair.mask) if os.path.exists(path)}
    inputs |= {_identity(path) for path, _ in found.ambiguous if os.path.exists(path)}
    written: set[str] = set()
    for path in (path for pair in pairs for path in pair.outputs):
        if os.path.exists(path) and _identity(path) in inputs:
            raise OptionError(f"the output {str(path)!r} would replace an input; choose another place for it")
        if os.path.realpath(path) in written:
            raise OptionError(f"two outputs would have the same name {str(path)!r}; choose other names or folders")
        written.add(os.path.realpath(path))
    seen = set() if debug is None else {_place(debug / pair.name) for pair in pairs}

    def is_debug(path: Path) -> bool:
        return _place(path).rpartition(SAW)[0] in seen

    others = [path for pair in pairs for path in (pair.image, pair.mask, *pair.outputs)]
    for path in (*others, *(path for path, _ in found.ambiguous)):
        if is_debug(path):
            raise OptionError(f"a picture in {str(debug)!r} would replace {str(path)!r}; choose another --debug-dir")
    return replace(
        found,
        pairs=pairs,
        # What an earlier run wrote into a folder of inputs is not an input without a partner.
        images_alone=[p for p in found.images_alone if os.path.realpath(p) not in written and not is_debug(p)],
        masks_alone=[p for p in found.masks_alone if os.path.realpath(p) not in written and not is_debug(p)],
    )


def check_not_itself(image: str | os.PathLike[str], mask: str | os.PathLike[str]) -> None:
    """Raises InputError where two files are one, or hold the same bytes: a picture that is given as its own mask."""
    try:
        if not os.path.isfile(image) or not os.path.isfile(mask):  # what is missing is told where it is read
            return
        one = os.path.samefile(image, mask)
        if not one and not filecmp.cmp(image, mask, shallow=False):
            return
    except OSError:
        return
    given = "is the image itself" if one else f"holds the same as the image {os.fsdecode(image)}"
    raise InputError(f"{os.fsdecode(mask)}: given as the coarse mask, and {given}; {OWN_MASK}")


def big_images(folder: Path, suffixes: Collection[str]) -> list[tuple[str, Path]]:
    """(name, path) of every image of BIG's layout in a folder, sub-folders not searched, sorted by path."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")
    return [(_name(path.stem), path) for path in paths if _is_big(path.stem, IMAGE_ENDING)]


def find_images(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Every image of a folder and its sub-folders, sorted by path: those of BIG's names where there are some, else all.

    A picture named like an output, `<name>_mask.png`, is left out where `<name>` is an image. Raises FileError where
    there is no such folder, no image in it, or a sub-folder that cannot be read.
    """
    if not os.path.isdir(folder):
        raise FileError(f"{folder}: no such folder; give a folder of pictures")
    groups = _search(str(folder), suffixes, ()).groups
    images = {key: paths for key, paths in groups.items() if _is_big(key[1], IMAGE_ENDING)} or groups
    names = {(place, _name(stem)) for place, stem in images}
    paths = sorted(path for paths in _without_outputs(images, {}, names).values() for path in paths)
    if not paths:
        raise FileError(f"{folder}: has no pictures ({', '.join(sorted(suffixes))}); give a folder of pictures")
    return paths


def _kind(path: str) -> str:
    if os.path.isdir(path):
        return "folder"
    return "glob" if any(c in path for c in "*?[") and not os.path.exists(path) else "file"


@dataclass(frozen=True)
class _Files:
    """The files of a folder or glob."""

    groups: dict[Key, list[Path]] = field(default_factory=lambda: defaultdict(list))  # of the suffixes wanted
    others: list[Path] = field(default_factory=list)
    hidden: dict[Key, list[Path]] = field(default_factory=lambda: defaultdict(list))  # of the suffixes wanted
    root: Path = Path()

    def key(self, path: Path) -> Key:
        return PurePath(_composed(os.fspath(path.parent.relative_to(self.root)))), _composed(path.stem)


def _search(source: str, suffixes: Collection[str], closed: Iterable[Path]) -> _Files:
    if _kind(source) == "folder":
        root, paths = Path(source), list(_walk(Path(source), closed))
    else:
        # What exists as it is written is meant so, brackets and all.
        parts = Path(source).parts
        fixed = next(i for i in range(len(parts)) if not os.path.exists(Path(*parts[: i + 1])))
        root = Path(*parts[:fixed])
        pattern = os.path.join(glob.escape(os.fspath(root)) if fixed else "", *parts[fixed:])
        paths = [Path(path) for path in glob.glob(pattern, recursive=True)]
    files = _Files(root=root)
    for path in sorted(paths):
        hidden = any(part[0] == "." for part in path.relative_to(root).parts)
        if path.suffix.lower() in suffixes:
            dead = path.is_symlink() and not path.exists()  # fails as it is read, for itself alone
            if path.is_file() or dead:
                (files.hidden if hidden and _kind(source) == "folder" else files.groups)[files.key(path)].append(path)
        elif not hidden and path.is_file():
            files.others.append(path)
    return files


def _left_out(images: _Files, masks: _Files) -> list[tuple[Path, str]]:
    """Files of suffixes that are not read which are pictures by their content, or have the only name of a partner."""
    left_out = []
    for mine, partners in ((images, masks), (masks, images)):
        for path in mine.others:
            key, suffix = mine.key(path), path.suffix.lower()
            if key in mine.groups or suffix in _TEXTS:  # what is read of that name is there
                continue
            if _is_picture(path) or (key in partners.groups and suffix):
                left_out.append((path, f"the suffix {path.suffix} is not read" if suffix else "no suffix"))
    return left_out


def _hidden_pairs(images: _Files, masks: _Files) -> list[tuple[Path, str]]:
    return [
        (path, "hidden")
        for key, paths in images.hidden.items()
        for path in paths
        if (key in masks.hidden or key in masks.groups) and _is_picture(path)
        if path not in masks.hidden.get(key, ())
    ]


def _is_picture(path: Path) -> bool:
    """Whether a file's first bytes are those of a picture in a known format, be it one that is read or not."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    return head.startswith(_MAGICS) or head[4:12] in _BOXES or (head[:2] == b"BM" and head[6:10] == bytes(4))


def _composed(name: str) -> str:
    """A name as most systems write it; a Mac's may write its accents as letters of their own."""
    return unicodedata.normalize("NFC", name)


def _walk(root: Path, closed: Iterable[Path]) -> Iterator[Path]:
    """Files of a folder and its sub-folders; each is searched once, by a link where it has no name of its own there."""
    done = {os.path.realpath(path) for path in closed} - {os.path.realpath(root)}
    tops = [os.fspath(root)]
    for top in tops:  # links are put behind it as they are met
        if os.path.realpath(top) in done:
            continue
        for folder, subfolders, files in os.walk(top, onerror=_refuse):
            done.add(os.path.realpath(folder))
            paths = [os.path.join(folder, sub) for sub in subfolders]
            tops += filter(os.path.islink, paths)
            subfolders[:] = [os.path.basename(path) for path in paths if os.path.realpath(path) not in done]
            yield from (Path(folder, file) for file in files)


def _refuse(error: OSError) -> None:
    message = f"{error.filename}: cannot be searched ({error.strerror}); make it readable, or give quoted globs"
    raise FileError(message) from error


def _is_big(stem: str, ending: str) -> bool:
    return stem.endswith(ending) and len(stem) > len(ending)


def _name(stem: str) -> str:
    """An image's stem without BIG's ending."""
    return stem.removesuffix(IMAGE_ENDING) if _is_big(stem, IMAGE_ENDING) else stem


def _without_outputs(
    groups: dict[Key, list[Path]], partners: dict[Key, list[Path]], names: Collection[Key]
) -> dict[Key, list[Path]]:
    """`groups` without what an earlier run wrote among them: `<name>_mask.png` where an image is called `<name>`.

    It stays where it is the only one of its stem and has a partner: then it may be an input, which is never lost.
    """
    kept: dict[Key, list[Path]] = {}
    for (folder, stem), paths in groups.items():
        for path in paths:
            name = _composed(path.name)
            ours = name.endswith(OUTPUT_ENDING) and (folder, name.removesuffix(OUTPUT_ENDING)) in names
            partner = any(other != path for other in partners.get((folder, stem), ()))
            if not ours or (partner and len(paths) == 1):
                kept.setdefault((folder, stem), []).append(path)
    return kept


def _match(images: dict[Key, list[Path]], masks: dict[Key, list[Path]]) -> Found:
    masks_of: dict[Path, list[Path]] = {}
    images_of: dict[Path, list[Path]] = defaultdict(list)
    folder_of: dict[Path, PurePath] = {}
    for key, paths in images.items():
        folder, stem = key
        candidates = list(masks.get(key, ()))
        if _is_big(stem, IMAGE_ENDING):
            candidates += masks.get((folder, _name(stem) + MASK_ENDING), ())
        for image in paths:
            masks_of[image] = [mask for mask in candidates if mask != image]
            folder_of[image] = PurePath(*image.parts[-1 - len(folder.parts) : -1])  # as it is written
            for mask in masks_of[image]:
                images_of[mask].append(image)
    pairs, ambiguous, alone = [], [], []
    for image, found in masks_of.items():
        rivals = [other for mask in found for other in images_of[mask] if other != image]
        if not found:
            alone.append(image)
        elif len(found) > 1:
            ambiguous.append((image, f"{len(found)} masks belong to it ({_names(found)}); keep one or use a glob"))
        elif rivals:
            ambiguous.append(
                (image, f"its mask {found[0].name} belongs to {_names(rivals)} too; keep one or use a glob")
            )
        else:
            pairs.append(_pair(image, found[0], folder_of[image]))
    paired = set(images_of)
    masks_alone = [mask for paths in masks.values() for mask in paths if mask not in paired]
    return Found(pairs, many=True, ambiguous=ambiguous, images_alone=alone, masks_alone=masks_alone)


def _pair(image: Path, mask: Path, folder: PurePath) -> Pair:
    big = _is_big(image.stem, IMAGE_ENDING) and _composed(mask.stem) == _composed(_name(image.stem)) + MASK_ENDING
    return Pair(image, mask, folder / (_name(image.stem) if big else image.stem))


def _named(pair: Pair, output: Path | None, overlay: Path | None, probability: Path | None) -> Pair:
    folder = pair.mask.parent if output is None else output
    if output is None or os.path.isdir(output):
        output = folder / f"{pair.name}{OUTPUT_ENDING}"
    files = ((output, MASK_WRITTEN), (overlay, OVERLAY_WRITTEN), (probability, PROBABILITY_WRITTEN))
    for path, suffixes in files:
        if path is not None and os.path.isdir(path):
            raise OptionError(f"{str(path)!r} is a folder; for one image give a file")
        if path is not None and path.suffix.lower() not in suffixes:
            remedy = ", or an existing folder" if path is output else ""
            raise OptionError(f"{str(path)!r} cannot be written; give a name in {', '.join(suffixes)}{remedy}")
    return replace(pair, output=output, overlay=overlay, probability=probability)


def _named_in_folders(pair: Pair, output: Path | None, overlay: Path | None, probability: Path | None) -> Pair:
    if output is None:
        raise OptionError("many images need a folder for their masks; give one with -o FOLDER")
    for path in (output, overlay, probability):
        if path is not None and os.path.exists(path) and not os.path.isdir(path):
            raise OptionError(f"{str(path)!r} is a file; for many images give a folder")
    return replace(
        pair,
        output=output / f"{pair.name}{OUTPUT_ENDING}",
        overlay=None if overlay is None else overlay / f"{pair.name}_overlay.jpg",
        probability=None if probability is None else probability / f"{pair.name}_probability.png",
    )


def _identity(path: Path) -> tuple[int, int]:
    """The file behind links: equal for two names of one file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _place(path: Path) -> str:
    """Its name in the folder behind links."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _count(groups: dict[Key, list[Path]], noun: str) -> str:
    number = sum(map(len, groups.values()))
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
