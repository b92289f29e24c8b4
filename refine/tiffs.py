"""TIFF directories: how many there are, whether their tags and tiles can be trusted, and where on Earth a picture lies.

What tifffile reads without a word, and a decoder would fill memory from, is refused here by the directory's entries and
the tiles' own headers.
"""

import math
import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tifffile.tifffile import imagej_description_metadata, shaped_description_metadata

from refine import streams
from refine.errors import FileError

Array = NDArray[Any]

HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

MAX_DIRECTORIES = 1000
"""Most directories of a file; a chain of more is a stack of pictures, or a loop."""

_MAX_ENTRIES = 2**16  # of all directories
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}  # bytes
_INTEGERS = frozenset({1, 3, 4, 13, 16, 18})
# Size, bits, compression, colours, orientation, strips, samples, planes, predictor, palette, tiles, alpha, format,
# depth.
_TAGS = frozenset(
    {256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 32997, 32998}
)
_DAMAGED = "truncated or damaged"
_WHOLE = "give a complete file"

JPEG = frozenset({6, 7, 34892, 33007})
# What these make of a tile is bounded by the tags; that of an image format by its own header.
_BOUNDED = frozenset({1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000})
_IMAGES = JPEG | {34712, 33003, 33004, 33005, 34887, 34927, 50001, 34933, 50002, 52546}

_ORIGIN = {
    33550: (12, 3),
    33922: (12, 6),
    34264: (12, 16),
    34735: (3, 4),
    34736: (12, 1),
    34737: (2, 1),
    50844: (12, 92),
}
_RESOLUTION = {282: (5, 2), 283: (5, 2), 296: (3, 1)}
_MOST_VALUES = 2**16  # of a tag that is kept


@dataclass(frozen=True)
class Georeference:
    """Where a picture lies on Earth (GeoTIFF's tags) and its resolution, as its file says."""

    size: tuple[int, int]
    """(H, W) of the picture."""
    tags: tuple[tuple[int, int, int, Any], ...]
    """(code, type, count, value) of each."""

    @property
    def on_earth(self) -> bool:
        """Whether it says where the picture lies, and not its resolution alone."""
        return any(code in _ORIGIN for code, *_ in self.tags)

    @property
    def options(self) -> dict[str, Any]:
        """What tifffile writes them by."""
        values = self._values()
        options: dict[str, Any] = {"extratags": [(*tag, True) for tag in self.tags if tag[0] in _ORIGIN]}
        if 282 in values and 283 in values:
            options["resolution"] = values[282], values[283]
            options["resolutionunit"] = int(values.get(296, 2))  # inches, if nothing is said
        return options

    def differs(self, other: "Georeference") -> str | None:
        """In what another picture of the same scene lies elsewhere, by more than a pixel; None where nothing tells."""
        mine, others = self._system(), other._system()
        if mine and others and mine != others:
            return "coordinate systems"
        corners, there = self._corners(), other._corners()
        if corners is None or there is None:
            return None
        # Some writers mean pixels' centres and some their corners: a pixel of the coarser one is no difference.
        pixel = max(
            np.abs(c[1:3] - c[0]).sum(1).min() / max(1, min(s)) for c, s in ((corners, self.size), (there, other.size))
        )
        return "positions" if np.abs(corners - there).max() > 1.5 * pixel else None

    def _values(self) -> dict[int, Any]:
        return {code: value for code, _, _, value in self.tags}

    def _system(self) -> tuple[int, ...]:
        """EPSG code of the coordinate system, projected or else geographic; empty where none is named."""
        keys = np.asarray(self._values().get(34735, ()), np.int64).reshape(-1, 4)
        named = {int(key): int(value) for key, place, _, value in keys[1:] if place == 0}
        return next(((named[key],) for key in (3072, 2048) if 0 < named.get(key, 0) < 32767), ())

    def _corners(self) -> NDArray[np.float64] | None:
        """(4, 2): x and y of its corners; None where no plain transformation is given."""
        values, (height, width) = self._values(), self.size
        pixels = np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64)
        if 34264 in values:
            matrix = np.asarray(values[34264], np.float64).reshape(4, 4)
            return np.asarray(pixels @ matrix[:2, :2].T + matrix[:2, 3])
        if 33550 in values and len(values.get(33922, ())) == 6:
            (across, down, _), (i, j, _, x, y, _) = values[33550], values[33922]
            return np.asarray((pixels - (i, j)) * (across, -down) + (x, y))
        return None


def georeference(page: Any) -> Georeference | None:
    """What the tags of a page say of its place and resolution, as far as they can be trusted; None if nothing."""
    kept = []
    for code, (kind, step) in {**_ORIGIN, **_RESOLUTION}.items():
        tag = page.tags.get(code)
        if tag is None or tag.dtype != kind or not 0 < tag.count <= _MOST_VALUES:
            continue
        value = tag.value
        if kind == 2:
            fits = isinstance(value, str) and value.isascii()
            count = len(value) + 1 if fits else 0
        else:
            flat = value if isinstance(value, tuple) else (value,)
            count = len(flat) // (2 if kind == 5 else 1)
            fits = len(flat) % step == 0 and bool(np.isfinite(np.asarray(flat, np.float64)).all())
            if code == 34264 or code == 33550:
                fits = fits and len(flat) == step
            if kind == 5:
                fits = fits and all(part > 0 for part in flat)
        if fits:
            kept.append((code, kind, count, value))
    return Georeference((page.imagelength, page.imagewidth), tuple(kept)) if kept else None


def elsewhere(image: Georeference | None, mask: Georeference | None) -> tuple[str, ...]:
    """A warning where a mask lies elsewhere on Earth than its image; empty where nothing tells."""
    what = image.differs(mask) if image is not None and mask is not None else None
    if what is None:
        return ()
    return (
        f"image and mask have different {what} (GeoTIFF tags); they are taken pixel by pixel, as they lie in the files",
    )


def holds_nodata(page: Any, samples: Array) -> bool:
    """Whether pixels (H, W) or (H, W, C) have the value that stands for "nothing is known" (GDAL's tag 42113)."""
    value = nodata(page)
    if value is None:
        return False
    unknown = np.isnan(samples) if math.isnan(value) else samples == value
    return bool((unknown.all(-1) if unknown.ndim == 3 else unknown).any())


def nodata(page: Any) -> float | None:
    """The value that stands for "nothing is known"; None without one."""
    tag = page.tags.get(42113)
    try:
        return None if tag is None else float(str(tag.value).strip(" \0"))
    except ValueError:
        return None


def premultiplied(page: Any) -> bool:
    """Whether the colours of a page have been multiplied by its alpha, its last channel."""
    return page.samplesperpixel in (2, 4) and [int(extra) for extra in page.extrasamples] == [1]


# ------------------------------------------------------------------------------------------------------ directories


def check_directories(file: BinaryIO, name: str) -> None:
    """Walks the chain of directories before tifffile does, which follows loops for ever.

    Raises FileError: more than ``MAX_DIRECTORIES``, or than 65,536 entries in them; a directory is met twice; a
    directory or the values of its tags are beyond the end of the file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    offsets, counts = (order + "Q", order + "Q") if big else (order + "I", order + "H")
    entry = np.dtype([("code", order + "u2"), ("type", order + "u2"), ("count", offsets), ("value", offsets)])
    at, seen, entries, read = 8 if big else 4, set(), 0, 0
    while True:
        file.seek(at)
        data = file.read(struct.calcsize(offsets))
        if len(data) < struct.calcsize(offsets):
            raise FileError(f"{name}: {_DAMAGED} (a TIFF directory is beyond its end); {_WHOLE}")
        (at,) = struct.unpack(offsets, data)
        if at == 0:
            break
        if at in seen:
            raise FileError(f"{name}: damaged (its TIFF directories are a loop); {_WHOLE}")
        seen.add(at)
        if len(seen) > MAX_DIRECTORIES:
            raise FileError(
                f"{name}: more than {MAX_DIRECTORIES:,} TIFF directories; accepted is one picture; save the page you "
                "mean"
            )
        file.seek(at)
        data = file.read(struct.calcsize(counts))
        (count,) = struct.unpack(counts, data) if len(data) == struct.calcsize(counts) else (0,)
        entries += count
        if entries > _MAX_ENTRIES:
            raise FileError(f"{name}: damaged (more than {_MAX_ENTRIES:,} entries in its TIFF directories); {_WHOLE}")
        table = file.read(count * entry.itemsize)
        if len(data) < struct.calcsize(counts) or len(table) < count * entry.itemsize:
            raise FileError(f"{name}: {_DAMAGED} (a TIFF directory is beyond its end); {_WHOLE}")
        fields = np.frombuffer(table, entry)
        read += sum(int(f["count"]) * _SIZES.get(int(f["type"]), 0) for f in fields)
        at += struct.calcsize(counts) + len(table)
        if read > 4 * size + 2**20:  # tifffile reads them all; some writers let pages share a few
            raise FileError(f"{name}: damaged (its TIFF tags claim more than the file holds); {_WHOLE}")


def check_page(page: Any, file: BinaryIO, name: str) -> None:
    """Checks that a page is one picture whose pixels are all there, as far as its directory tells.

    Raises FileError: a tag that says where the pixels are or what they mean is lost, has no integer value or one that
    does not exist; segments are missing or beyond the end of the file; or it is compressed by what is not read.
    """
    given = _entries(page, file)
    for code in _TAGS & given.keys():
        if given[code] not in _INTEGERS or code not in page.tags:
            raise FileError(f"{name}: {_DAMAGED} (TIFF tag {code} has no value that could be read); {_WHOLE}")
    planes = page.tags.valueof(284, 1)
    if planes not in (1, 2) and page.samplesperpixel > 1:
        raise FileError(f"{name}: damaged (planar configuration {planes}, where 1 and 2 exist); {_WHOLE}")
    if page.compression not in _BOUNDED | _IMAGES:
        how = getattr(page.compression, "name", page.compression)
        raise FileError(f"{name}: a TIFF compressed by {how} is not read; save it with deflate, LZW or JPEG")
    planar, _, height, width, channels = page.shaped
    if planar * channels != page.samplesperpixel or (height, width) != (page.imagelength, page.imagewidth):
        raise FileError(f"{name}: damaged (its TIFF tags contradict each other); {_WHOLE}")
    size = file.seek(0, os.SEEK_END)
    count = _several(page, size)
    if count > 1:
        raise FileError(f"{name}: {count} pictures behind one directory; accepted is one; save the one you mean")
    # Decoders go on without an error where segments end early or are not listed.
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if page.is_final:
        segments = [(page.dataoffsets[0], page.nbytes)]
    if len(page.dataoffsets) != len(page.databytecounts) or (not page.is_final and len(segments) < _needed(page)):
        raise FileError(f"{name}: {_DAMAGED} (TIFF strips or tiles are missing); {_WHOLE}")
    if any(offset + length > size for offset, length in segments):
        raise FileError(f"{name}: {_DAMAGED} (the TIFF ends before its pixels); {_WHOLE}")


def _entries(page: Any, file: BinaryIO) -> dict[int, int]:
    """The types of the tags of a page's directory, by their codes, of those too that tifffile could not read."""
    format = page.parent.tiff
    file.seek(page.offset)
    (count,) = struct.unpack(format.tagnoformat, file.read(format.tagnosize))
    entries = file.read(count * format.tagsize)
    return dict(struct.unpack_from(format.byteorder + "HH", entries, i * format.tagsize) for i in range(count))


def _needed(page: Any) -> int:
    """Strips or tiles of all planes, by the sizes in the tags."""
    planes, _, height, width, _ = page.shaped
    if page.is_tiled:
        return int(planes * -(-height // page.tilelength) * -(-width // page.tilewidth))
    return int(planes * -(-height // page.rowsperstrip))


def _several(page: Any, size: int) -> int:
    """How many pictures lie behind a page's directory, by what ImageJ, tifffile and MetaMorph write of them.

    A description outlives what it describes, so it counts where the file of ``size`` bytes has room for them all.
    """
    if page.is_stk:
        return int(page.tags[33629].count) if 33629 in page.tags else 1
    count = 1
    try:
        if page.is_imagej:
            count = int(imagej_description_metadata(page.imagej_description)["images"])
        elif page.is_shaped:
            shape = shaped_description_metadata(page.shaped_description)["shape"]
            count = math.prod(int(side) for side in shape) // max(1, math.prod(page.shape))
    except (KeyError, TypeError, ValueError, RecursionError):  # a text that is something else says nothing
        return 1
    pages = len(page.parent.pages)
    return count if count > pages and page.dataoffsets[0] + count * page.nbytes <= size else 1


# --------------------------------------------------------------------------------------------------------- segments


def check_segments(page: Any, file: BinaryIO, name: str) -> None:
    """Checks the code streams of all strips or tiles, as :func:`check_segment` does."""
    if page.compression not in _IMAGES:
        return
    stored = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if page.jpegheader is not None and 273 in page.tags:  # of Hamamatsu's files tifffile decodes the strip as a whole
        stored = [(page.tags[273].value[0], page.tags[279].value[0])]
        file.seek(stored[0][0])
        _check_stream(page, file.read(stored[0][1]), (page.imagelength, page.imagewidth), name, "strip 0")
        return
    for index, (offset, length) in enumerate(stored):
        if offset and length:
            file.seek(offset)
            check_segment(page, file.read(length), index, name)


def check_segment(page: Any, data: bytes, index: int, name: str) -> None:
    """Checks the code stream of a strip or tile by its own header, and of a JPEG that it is whole.

    Raises FileError: it is larger than its tags say, has more channels, or is damaged.
    """
    if page.compression not in _IMAGES:
        return
    shape = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    data = _with_tables(page, data) if page.compression in JPEG else data
    _check_stream(page, data, shape, name, f"{'tile' if page.is_tiled else 'strip'} {index}")


def _check_stream(page: Any, data: bytes, shape: tuple[int, int], name: str, what: str) -> None:
    try:
        size = streams.size(data)
        if size is None:
            raise ValueError("it begins like no code stream")
        height, width, channels = size
        if height > shape[0] or width > shape[1] or channels > 4:
            raise FileError(
                f"{name}: damaged ({what} holds {width} x {height} px of {channels} channels, where the tags say "
                f"{shape[1]} x {shape[0]} of {page.samplesperpixel}); {_WHOLE}"
            )
        damage = None
        if page.compression in JPEG:
            damage = streams.jpeg_damage(streams.jpeg(data))
        elif page.compression == 34933:
            damage = streams.png_damage(data)
    except ValueError as error:
        damage = str(error)
    if damage:
        raise FileError(f"{name}: {_DAMAGED} ({what}: {damage}); {_WHOLE}")


def _with_tables(page: Any, data: bytes) -> bytes:
    """The JPEG of a strip or tile with the tables that its page keeps for all of them."""
    if page.jpegheader:
        data = page.jpegheader + data
    if page.jpegtables and data[:2] == b"\xff\xd8":
        data = page.jpegtables.removesuffix(b"\xff\xd9") + data[2:]
    return data
