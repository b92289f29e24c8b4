"""Finding image/mask pairs in files, folders and globs, and naming what is written for them; no pixels are read."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from refine.errors import FileError, OptionError

# BIG's names: the image is <name>_im.jpg, its coarse mask <name>_seg.png, the truth <name>_gt.png.
IMAGE_ENDING, MASK_ENDING, TRUTH_ENDING = "_im", "_seg", "_gt"

OUTPUT_ENDING = "_mask.png"  # of a refined mask that is named after its image
SAW = "_saw_"  # between an image's name and that of a picture of what guidance saw

# As `refine.io` writes them; a wrong suffix is told before the work and not after it.
MASK_WRITTEN = (".png", ".tif", ".tiff")
PROBABILITY_WRITTEN = (*MASK_WRITTEN, ".npy")
OVERLAY_WRITTEN = (".jpg", ".jpeg", *MASK_WRITTEN, ".bmp", ".webp")


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
    """What `find_pairs` saw: the pairs, and all that is in none."""

    pairs: list[Pair]
    many: bool  # folders or globs were given: outputs go into a folder
    ambiguous: list[tuple[Path, str]] = field(default_factory=list)  # (image, why it has no single mask)
    images_alone: list[Path] = field(default_factory=list)
    masks_alone: list[Path] = field(default_factory=list)


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
    are taken as they are. A picture named like an output, `<name>_mask.png`, is left out where `<name>` is an image,
    unless an image and a mask of that name go together. Raises OptionError where the two do not go together, FileError
    where many files hold no pair or a folder cannot be read.
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
    images = _group(image, image_suffixes, closed)
    masks = _group(mask, mask_suffixes, closed)
    if one_folder:
        images = {key: paths for key, paths in images.items() if _is_big(key[1], IMAGE_ENDING)}
        masks = {key: paths for key, paths in masks.items() if _is_big(key[1], MASK_ENDING)}
    names = {(folder, _name(stem)) for folder, stem in images} | set(images)
    found = _match(_without_outputs(images, masks, names), _without_outputs(masks, images, names))
    if not found.pairs and not found.ambiguous:
        raise FileError(
            f"no image and mask belong together: {_count(images, 'image')} in {image!r}, {_count(masks, 'mask')} in"
            f" {mask!r}; accepted are the same name in two folders or globs (cat.jpg, cat.png) and *_im with *_seg"
        )
    return found


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
    groups = _group(str(folder), suffixes, ())
    images = {key: paths for key, paths in groups.items() if _is_big(key[1], IMAGE_ENDING)} or groups
    names = {(place, _name(stem)) for place, stem in images}
    paths = sorted(path for paths in _without_outputs(images, {}, names).values() for path in paths)
    if not paths:
        raise FileError(f"{folder}: has no pictures ({', '.join(sorted(suffixes))}); give a folder of pictures")
    return paths


Key = tuple[PurePath, str]  # the sub-folder under the folder searched, and the stem, `_composed`


def _kind(path: str) -> str:
    if os.path.isdir(path):
        return "folder"
    return "glob" if any(c in path for c in "*?[") and not os.path.exists(path) else "file"


def _group(source: str, suffixes: Collection[str], closed: Iterable[Path]) -> dict[Key, list[Path]]:
    groups: dict[Key, list[Path]] = defaultdict(list)
    if _kind(source) == "folder":
        root, paths = Path(source), list(_walk(Path(source), closed))
    else:
        parts = Path(source).parts
        fixed = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
        root, paths = Path(*parts[:fixed]), [Path(path) for path in glob.glob(source, recursive=True)]
    for path in sorted(paths):
        dead = path.is_symlink() and not path.exists()  # fails as it is read, for itself alone
        if path.suffix.lower() in suffixes and (path.is_file() or dead):
            groups[PurePath(_composed(os.fspath(path.parent.relative_to(root)))), _composed(path.stem)].append(path)
    return groups


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
            paths = [os.path.join(folder, sub) for sub in subfolders if sub[0] != "."]
            tops += filter(os.path.islink, paths)
            subfolders[:] = [os.path.basename(path) for path in paths if os.path.realpath(path) not in done]
            yield from (Path(folder, file) for file in files if file[0] != ".")


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
