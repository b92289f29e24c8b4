"""Files <-> arrays: the only module that touches pixels on disk.

Pictures are read as they are displayed: the EXIF orientation is applied, palettes are looked up, CMYK becomes RGB, and
an alpha channel is dropped (the colours under it are kept; nothing is blended with a background). Embedded colour
profiles are ignored. Premultiplied colours are divided by their alpha. An animation is refused, as several pages are.

Files are decoded by libraries that no setting of the process reaches: Pillow's ``LOAD_TRUNCATED_IMAGES`` and limits
change nothing here. A PIL image whose pixels have not been loaded yet is read as its file is.

Everything is written to a temporary file beside the target and moved over it when complete, so that a target is the old
file or the new one, never half of one.
"""

import logging
import math
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import tifffile
from numpy.typing import DTypeLike, NDArray
from PIL import ExifTags, Image, ImageFile

from refine import arrays, pictures, tiffs
from refine.errors import FileError, InputError, OptionError, RefineError
from refine.values import Array, distinct
from refine.white import reaches_white, white_of

PathLike = str | os.PathLike[str]
Source = PathLike | Image.Image | bytes | bytearray | memoryview | BinaryIO
"""Where a picture is read from: a file by its path, one in memory, an open one, or a picture of Pillow's."""

MAX_PIXELS = 250_000_000
"""Largest picture that is decoded unasked: above every camera's, and 750 MB as RGB."""

COLOUR_NOISE = 0.15
"""Share of white by which the channels of a grey mask may differ; those of labels' colours differ more."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"})
"""Suffixes (lower case) of the files that :func:`read_image` reads; the content decides, not the suffix."""

MASK_SUFFIXES = IMAGE_SUFFIXES | {".npy"}
"""Suffixes (lower case) of the files that :func:`read_mask` reads."""

_FORMATS = {"image": "JPEG, PNG, TIFF, BMP, WebP or GIF", "mask": "JPEG, PNG, TIFF, BMP, WebP, GIF or .npy"}
NODATA = "some of its pixels are called unknown by its GDAL nodata tag (42113); they are refined as they look"
_ARRAYS = "a path, bytes, an open file, a PIL image, a numpy array or a tensor"
STALE = 24 * 3600
"""Seconds after which a temporary file belongs to no process that still writes it."""

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/(?=/?[^/\\])", re.IGNORECASE)  # pathlib makes one of its two slashes
_BASE64 = re.compile(r"data:[\w/+.;=-]*,|iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_LONGEST_NAME = 255  # characters of a path that is shown where there is no such file
_LONGEST_PATH = 4096
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # px; libjpeg's and WebP's limits
_WRITTEN: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG", "compress_level": 3},  # of 9: it should not take longer to write than to refine
    ".bmp": {"format": "BMP"},
    ".webp": {"format": "WEBP", "lossless": True},
    ".jpg": {"format": "JPEG", "quality": 95},
    ".jpeg": {"format": "JPEG", "quality": 95},
}
_BAND = 2**17  # samples scaled at once: floats in between stay in a processor's cache

# tifffile logs every oddity of a damaged file; without a handler Python prints them beside our one-line error.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


# ---------------------------------------------------------------------------------------------------------- reading


def read_image(source: Source, *, allow_large: bool = False, white: float | None = None) -> NDArray[np.uint8]:
    """Picture (H, W, 3), uint8 RGB in the displayed frame, from a path, bytes, an open file or a PIL image.

    Reads JPEG, PNG, TIFF, BMP and WebP of any bit depth and colour mode, by content and not by suffix. Samples become
    8-bit as :func:`rgb8` says, by ``white``; bits and the colours of palettes are as they are.

    Raises FileError: the file is missing, a folder, empty, truncated, damaged, of another format, has several pages
    that may be the picture, or has more than ``MAX_PIXELS`` pixels and ``allow_large`` is not set.
    Raises InputError: its values are no picture: 32-bit integers, floats outside [0, 1], 12 bits stored as 16.
    """
    return read_picture(source, allow_large=allow_large, white=white).rgb


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, and what its file says beside its pixels."""

    rgb: NDArray[np.uint8]
    """(H, W, 3)"""
    georeference: tiffs.Georeference | None = None
    """Its place on Earth and its resolution, from a TIFF that is stored upright."""
    warnings: tuple[str, ...] = ()
    """What the caller should know, without the file's name."""
    orientation: int = 1
    """EXIF's, which turns pixels from the stored to the displayed frame, as :func:`oriented`."""
    turned: bool = True
    """Whether that was done; not to a PIL image that is no file's any more, which may have been turned by hand."""


def read_picture(source: Source, *, allow_large: bool = False, white: float | None = None) -> Picture:
    """As :func:`read_image`, with what the file says beside the pixels. Raises as it does."""
    raster, name = _raster(source, "image", allow_large)
    samples = raster.samples
    if raster.palette is not None:
        samples, white = cv2.merge([cv2.LUT(samples, raster.palette[:, c].copy()) for c in range(3)]), None
    elif samples.dtype == bool:
        samples, white = samples.astype(np.uint8) * np.uint8(255), None
    if samples.ndim == 3 and samples.shape[2] == 2:  # grey and alpha
        samples = samples[..., 0]
    picture = picture_of(samples, name, white)
    return replace(
        picture,
        georeference=raster.georeference,
        warnings=(*raster.warnings, *picture.warnings),
        orientation=raster.orientation,
        turned=raster.turned,
    )


def read_mask(source: Source, *, allow_large: bool = False) -> Array:
    """Values (H, W) of a mask in the displayed frame, as stored; ``refine.prepare.as_mask`` decides what they mean.

    One-bit files give bool, 8- and 16-bit ones uint8 and uint16, TIFF and ``.npy`` also other integers and floats.
    Colour files are read where they are grey (equal channels), alpha is dropped. A palette that is grey where it is
    used gives the greys it displays; of a coloured palette 0 is the ground and one other index the object.

    Raises FileError: as :func:`read_image`.
    Raises InputError: the mask is coloured (a label map, or a photograph), or its alpha channel is another mask.
    """
    raster, name = _raster(source, "mask", allow_large)
    if raster.palette is None:
        return grey(raster.samples, name)
    if raster.opacity is not None:
        used = distinct(raster.samples, 255)
        greys, alphas = palette_values(used.astype(np.uint8)[None], raster.palette, name)[0], raster.opacity[used]
        check_alpha(lambda: [(greys, alphas)], name)
    values, alpha = palette_values(raster.samples, raster.palette, name), raster.alpha
    if alpha is not None:
        check_alpha(lambda: [(values, alpha)], name)
    return values


def read_palette(source: Source) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Indices (H, W) in the displayed frame and their colours (256, 3); None of a file without a palette.

    Raises FileError: as :func:`read_image`.
    """
    raster, _ = _raster(source, "mask", allow_large=False)
    return None if raster.palette is None else (raster.samples, raster.palette)


def read_georeference(source: Source) -> tiffs.Georeference | None:
    """Where the picture of a TIFF lies on Earth, and its resolution; None of other files and where it says nothing.

    Raises FileError: as :func:`read_image`, as far as the directory tells.
    """
    if isinstance(source, Image.Image):
        file = _unread(source)
        return None if file is None else _georeference(file, "image")
    held = arrays.content(source, "image")
    if held is not None:
        return _georeference(held, "image")
    name = _path(source, "image")
    with opened(Path(name), name, "TIFF") as file:
        return _georeference(file, name)


def _georeference(file: BinaryIO, name: str) -> tiffs.Georeference | None:
    if _head(file)[:4] not in tiffs.HEADS:
        return None
    with decoding(name, "TIFF"), open_tiff(file, name) as tiff:
        return tiffs.georeference(tiff_page(tiff, file, name, allow_large=True))


def read_size(path: PathLike, *, allow_large: bool = False) -> tuple[int, int]:
    """(H, W) of the picture that :func:`read_image` reads from a file; of its pixels as little is read as that takes.

    Raises FileError: as :func:`read_image`, as far as the first bytes tell.
    """
    name, formats = os.fsdecode(path), _FORMATS["image"]
    with opened(Path(name), name, formats) as file, decoding(name, formats):
        head = _head(file)
        if head[:4] in tiffs.HEADS:
            with open_tiff(file, name) as tiff:
                page = tiff_page(tiff, file, name, allow_large)
                height, width, orientation = page.imagelength, page.imagewidth, page.tags.valueof(274, 1)
        else:
            header = _format(head, name, formats).header(file)
            height, width, orientation = header.height, header.width, header.orientation
            _check_size(width, height, name, allow_large)
    return (width, height) if orientation in range(5, 9) else (height, width)


def rgb8(array: Array, name: str, white: float | None = None) -> NDArray[np.uint8]:
    """Picture (H, W, 3), contiguous uint8 RGB, from samples (H, W) or (H, W, 1 | 3 | 4); alpha is dropped.

    The whole range of the type is kept: uint8 as it is (no copy is made where none is needed), uint16 / 257 rounded,
    floats in [0, 1] * 255 rounded. Where ``white`` is given, samples of any type * 255 / white, rounded and clipped.

    Raises InputError: another shape or type, no pixels, NaN or infinite values, floats outside [0, 1] by more than
    rounding, or values so low that it would come out black; see `refine.white`. ``name`` opens the message.
    """
    return picture_of(array, name, white).rgb


def picture_of(array: Array, name: str, white: float | None = None) -> Picture:
    """As :func:`rgb8`, with what the caller should know of its values. Raises as it does."""
    shape = array.shape
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        remedy = "give a picture with at least one pixel" if array.size == 0 else "pass one picture at a time"
        if array.ndim == 3 and shape[0] in (1, 3, 4) and array.size:
            remedy = "this looks channel-first: pass np.transpose(image, (1, 2, 0))"
        elif array.ndim == 3 and shape[2] == 2 and array.size:
            remedy = "if these are grey and alpha, pass image[..., 0]"
        raise InputError(f"{name}: shape {shape} is no picture; accepted are (H, W) and (H, W, 1 | 3 | 4); {remedy}")
    if array.ndim == 3 and shape[2] == 4:
        array = array[..., :3]
    found = reaches_white(array[::16], array.size) if white is None else None
    found = found or white_of(lambda: [array], array.size, name, white)
    return Picture(scaled8(array, found.value), warnings=(found.told,) if found.told else ())


def scaled8(array: Array, white: float) -> NDArray[np.uint8]:
    """Picture (H, W, 3), contiguous uint8 RGB, of samples (H, W) or (H, W, 1 | 3) whose ``white`` becomes 255."""
    shape = array.shape
    array = _eight_bit(array, white)
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.repeat(array.reshape(*shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array)


def _eight_bit(array: Array, white: float) -> NDArray[np.uint8]:
    if array.dtype == np.uint8 and white == 255:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        rows = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape[0], -1)
        return cv2.convertScaleAbs(rows, alpha=255 / white).reshape(array.shape).astype(np.uint8, copy=False)
    return _scaled(array, np.float32(255 / white) if array.dtype.kind == "f" else 255 / white, np.uint8, 255)


def _scaled(array: Array, factor: float | np.float32, dtype: DTypeLike, most: int | None = None) -> Array:
    """An array times ``factor``, rounded, and clipped to 0 to ``most`` if that is given.

    By bands of rows, so that what lies between is never whole in memory.
    """
    out = np.empty(array.shape, dtype)
    step = max(1, _BAND // math.prod(array.shape[1:]))
    for top in range(0, len(array), step):
        rows = slice(top, top + step)
        scaled = np.rint(array[rows] * factor)
        out[rows] = scaled if most is None else np.clip(scaled, 0, most)
    return out


def whole_range(samples: Array, bits: int) -> Array:
    """Unsigned samples of 2, 4, 10, 12 or 14 bits, whose white is 2**bits - 1, over the range of their type."""
    whole = 8 * samples.dtype.itemsize
    if samples.dtype.kind != "u" or bits >= whole:
        return samples
    return _scaled(samples, (2**whole - 1) / (2**bits - 1), samples.dtype)


def _straight(samples: Array) -> Array:
    """Samples (H, W, C) whose colours were multiplied by the last channel, alpha, before that; where it is 0 as given.

    Integers are rounded down, as Pillow does.
    """
    if samples.dtype.kind not in "uf":
        return samples
    out = np.array(samples)
    white = 1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
    step = max(1, _BAND // math.prod(samples.shape[1:]))
    for top in range(0, len(samples), step):
        band = samples[top : top + step]
        alpha = band[..., -1:]
        if samples.dtype.kind == "f":
            colours = band[..., :-1] / np.where(alpha > 0, alpha, 1)
        else:
            colours = np.minimum(band[..., :-1].astype(np.uint64) * np.uint64(white) // np.maximum(alpha, 1), white)
        np.copyto(out[top : top + step, :, :-1], colours.astype(samples.dtype), where=alpha > 0)
    return out


def check_mask_shape(shape: tuple[int, ...], name: str) -> None:
    """Raises `InputError` unless an array's shape is (H, W) or (H, W, 1 | 3 | 4), with pixels."""
    empty = 0 in shape
    if empty or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        remedy = "give a mask with at least one pixel" if empty else "pass one mask at a time"
        if len(shape) == 3 and shape[0] == 1 and not empty:
            remedy = "this looks channel-first: pass mask[0]"
        elif len(shape) == 3 and shape[2] == 2:
            remedy = "if these are grey and alpha, pass the one that is the mask: mask[..., 0] or mask[..., 1]"
        raise InputError(f"{name}: shape {shape} is no mask; accepted are (H, W) and (H, W, 1); {remedy}")


def grey(samples: Array, name: str, *, highest: float | None = None) -> Array:
    """Mask values (H, W) of samples (H, W) or (H, W, 1..4), whose colour channels must be equal; alpha is dropped.

    Channels of uint8, uint16 or float32 that differ by less than ``COLOUR_NOISE`` of the ``highest`` value, by default
    that of the samples, are noise, as compression leaves it, and give their luminance.

    Raises InputError: the channels differ, or alpha is another mask than they are (see `check_alpha`). ``name`` opens
    the message.
    """
    if samples.ndim == 2:
        return samples
    channels = samples.shape[2]
    values = samples[..., 0]
    if channels >= 3 and not all(np.array_equal(values, samples[..., c]) for c in (1, 2)):
        if not _is_noise(samples[..., :3], highest):
            raise InputError(
                f"{name}: a coloured mask ({channels} channels that differ); accepted is one grey channel; pick one "
                "class, as in (mask == (r, g, b)).all(axis=-1), or give the image first and its mask second"
            )
        values = cv2.cvtColor(np.ascontiguousarray(samples[..., :3]), cv2.COLOR_RGB2GRAY)
    if channels in (2, 4) and values.size:
        check_alpha(lambda: [(values, samples[..., -1])], name)
    return values


def _is_noise(colours: Array, highest: float | None) -> bool:
    """Whether channels (H, W, 3) differ no more than compression makes equal ones differ."""
    if colours.dtype not in (np.uint8, np.uint16, np.float32):
        return False
    spread = float((colours.max(axis=2) - colours.min(axis=2)).max())
    return spread < COLOUR_NOISE * float(colours.max() if highest is None else highest)  # false for NaN


def check_alpha(bands: Callable[[], Iterable[tuple[Array, Array]]], name: str) -> None:
    """Checks that the alpha of a mask, given as bands of colours and alpha, says nothing that its colours do not.

    So it is where alpha is the same everywhere, or where both are the same mask: their pixels above half of their
    highest value are the same. ``bands`` is called once, and once more where both vary.

    Raises InputError: alpha is another mask, or the only one, so that nobody can tell which is meant.
    """
    ends = np.array([[(x.min(), x.max()) for x in band] for band in bands()], np.float64)  # (bands, 2, 2)
    lowest, highest = ends[..., 0].min(0), ends[..., 1].max(0)
    if lowest[1] == highest[1]:
        return
    given = "one colour everywhere, and alpha varies; the mask seems to be the alpha channel, which is not read"
    if lowest[0] != highest[0]:
        half = highest / 2
        if all(np.array_equal(colours > half[0], alpha > half[1]) for colours, alpha in bands()):
            return
        given = "its alpha channel is another mask than its colours, and nothing says which is meant"
    raise InputError(
        f"{name}: {given}; pass the alpha channel, as in mask[..., -1] or of a file "
        "np.asarray(Image.open(path).convert('RGBA'))[..., -1], or the colours without it, as .convert('RGB')"
    )


def palette_values(indices: NDArray[np.uint8], palette: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Mask values (H, W) of indices into a palette (256, 3): its greys, or, of colours, a single label.

    Of colours {0, 1} and {0, 255} stay. Another single label beside 0 is the object and gets 255; 255 beside it is void
    and gets 127.

    Raises InputError: several labels. ``name`` opens the message.
    """
    used = distinct(indices, 255)
    if (palette[used] == palette[used, :1]).all():
        return cv2.LUT(indices, palette[:, 0].copy()).astype(np.uint8, copy=False)
    if set(used.tolist()) <= {0, 1} or set(used.tolist()) <= {0, 255}:
        return indices
    labels = used[(used > 0) & (used < 255)]
    if used[0] == 0 and len(labels) == 1:
        table = np.zeros(256, np.uint8)
        table[labels], table[255] = 255, 127
        return cv2.LUT(indices, table).astype(np.uint8, copy=False)
    raise InputError(
        f"{name}: a label map ({len(used)} labels of a coloured palette: {_some(used)}); accepted is a binary or grey "
        "mask; pick one class, as in mask == label, or, if it is a soft mask, save it as grey or as floats in [0, 1]"
    )


def _some(values: Array) -> str:
    """The first few of some values, for a message."""
    return ", ".join(str(v) for v in values[:6].tolist()) + (", ..." if len(values) > 6 else "")


@dataclass(frozen=True)
class Raster:
    samples: Array  # (H, W) or (H, W, 2..4), in the displayed frame
    palette: NDArray[np.uint8] | None = None  # (256, 3) RGB; the samples are then uint8 indices
    opacity: NDArray[np.uint8] | None = None  # (256,): alpha of a palette's indices, where not all are opaque
    alpha: Array | None = None  # (H, W), beside a palette
    georeference: tiffs.Georeference | None = None
    warnings: tuple[str, ...] = ()
    orientation: int = 1  # of the file
    turned: bool = True  # whether it was applied


def _raster(source: Source, kind: str, allow_large: bool) -> tuple[Raster, str]:
    """Samples of a path or PIL image, and the name under which messages speak of it."""
    formats = _FORMATS[kind]
    if isinstance(source, Image.Image):
        with decoding(kind, formats):
            file = _unread(source)
            if file is None:
                return _pillow_raster(source, kind, allow_large), kind
            at = file.tell()
            try:
                return _file_raster(file, kind, kind, allow_large), kind
            finally:
                file.seek(at)
    held = arrays.content(source, kind)
    if held is not None:
        with decoding(kind, formats):
            return _file_raster(held, kind, kind, allow_large), kind
    name = _path(source, kind)
    with opened(Path(name), name, formats) as file, decoding(name, formats):
        return _file_raster(file, name, kind, allow_large), name


def _path(source: object, kind: str) -> str:
    try:
        return os.fsdecode(source)  # type: ignore[arg-type]
    except TypeError:
        given = type(source)
        raise InputError(
            f"{kind}: given a {given.__module__}.{given.__qualname__}; accepted are {_ARRAYS}; convert it with "
            "np.asarray(...)"
        ) from None


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    head = file.read(32)
    file.seek(0)
    return head


def _unread(picture: Image.Image) -> BinaryIO | None:
    """The file of a PIL image whose pixels have not been loaded, and of which neither another frame nor a draft is
    wanted; None of others.

    What is read from it is what a path would give: Pillow drops bits, and goes on where a file is damaged.
    """
    if not isinstance(picture, ImageFile.ImageFile) or not picture.tile or picture.tell() != 0:
        return None
    file: Any = picture.fp
    if file is None or getattr(file, "closed", False) or not file.seekable():
        return None
    at = file.tell()
    try:
        head = _head(file)
        if head[:4] in tiffs.HEADS:
            return file
        found = pictures.format_of(head)
        if found is None:
            return None
        header = found.header(file)
        return file if (header.width, header.height) == picture.size else None
    except Exception:  # what is wrong with the file is told where it is decoded
        return file
    finally:
        file.seek(at)


def _format(head: bytes, name: str, formats: str) -> pictures.Format:
    found = pictures.format_of(head)
    if found is None:
        raise FileError(f"{name}: of an unknown format; accepted are {formats}; convert it to one of them")
    return found


def _file_raster(file: BinaryIO, name: str, kind: str, allow_large: bool) -> Raster:
    head = _head(file)
    if head[:4] in tiffs.HEADS:
        return _tiff_raster(file, name, kind, allow_large)
    if head.startswith(b"\x93NUMPY") and kind == "mask":
        return Raster(_read_npy(file, name, allow_large))
    found = _format(head, name, _FORMATS[kind])
    header = found.header(file)
    _check_size(header.width, header.height, name, allow_large)
    file.seek(0)
    stored = found.decode(file.read(), name, partial(_check_size, name=name, allow_large=allow_large))
    samples = stored.samples
    if stored.bits is not None:
        samples = whole_range(samples, stored.bits)
    orientation = header.orientation
    return Raster(oriented(samples, orientation), stored.palette, stored.opacity, orientation=orientation)


@contextmanager
def opened(path: Path, name: str, formats: str) -> Iterator[BinaryIO]:
    try:
        _check_is_path(name)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FileError(f"{name}: is a folder; accepted is one file ({formats}); give a file inside it")
        if not stat.S_ISREG(mode):
            raise FileError(f"{name}: is no regular file; accepted is one file ({formats}); save it to a file first")
        file = path.open("rb")
    except FileNotFoundError:
        raise FileError(f"{name}: no such file; give an existing file ({formats})") from None
    except RefineError:
        raise
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise FileError(f"{name}: cannot be opened ({reason}); give a readable file ({formats})") from error
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise FileError(f"{name}: is empty (0 bytes); give a complete file ({formats})")
        yield file


def _check_is_path(name: str) -> None:
    """Tells a text that is no path what it seems to be, without showing it: the content of a file, or an address.

    Raises FileError: it is that, and no file has this name.
    """
    remedy = None
    scheme = _ADDRESS.match(name)
    if scheme:
        remedy = "download it, and give its path or its bytes, as of urllib.request.urlopen(address).read()"
        given = f"an address ({scheme[1].lower()}), which is not fetched"
    elif _BASE64.match(name):
        given, remedy = "base64 text", "give base64.b64decode(text)"
    elif len(name) > _LONGEST_NAME or not name or _CONTROL.search(name):
        given, remedy = f"a text of {len(name):,} characters", "give the path of a file, or what a file holds as bytes"
    if remedy is not None and ("\0" in name or len(name) > _LONGEST_PATH or not os.path.exists(name)):
        raise FileError(f"{given}; accepted is a path; {remedy}")


@contextmanager
def decoding(name: str, formats: str) -> Iterator[None]:
    """Turns whatever a decoder raises into one line."""
    try:
        yield
    except (RefineError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on damaged data: struct.error, SyntaxError, IndexError, ...
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise FileError(f"{name}: truncated or damaged ({reason}); give a complete file ({formats})") from error


def _check_size(width: int, height: int, name: str, allow_large: bool) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{name}: has no pixels ({width} x {height}); give a picture with at least one pixel")
    if width * height > MAX_PIXELS and not allow_large:
        raise FileError(
            f"{name}: {width} x {height} are {width * height / 1e6:.0f} megapixels, above the limit of "
            f"{MAX_PIXELS / 1e6:.0f}; if you trust the file, pass allow_large=True (--allow-large)"
        )


def _pillow_raster(picture: Image.Image, name: str, allow_large: bool) -> Raster:
    _check_size(*picture.size, name, allow_large)
    picture.load()
    orientation = _orientation(picture)
    # What Pillow made of a file's picture keeps the tag, be it turned or not: its pixels are taken as they lie.
    applied = orientation if isinstance(picture, ImageFile.ImageFile) else 1
    palette = None
    if picture.mode in ("P", "PA"):
        colours = np.asarray(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(colours)] = colours
    elif picture.mode in ("CMYK", "YCbCr", "HSV", "RGBX"):
        picture = picture.convert("RGB")
    elif picture.mode in ("RGBa", "La"):  # premultiplied
        picture = picture.convert(picture.mode.upper())
    elif picture.mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F") and not picture.mode.startswith("I;16"):
        raise FileError(f"{name}: colour mode {picture.mode} is not accepted; convert it to RGB or grey")
    samples, opacity, alpha = np.asarray(picture), None, None
    key = picture.info.get("transparency")
    if picture.mode == "PA":
        samples, alpha = samples[..., 0], oriented(samples[..., 1], applied)
    elif palette is not None:
        opacity = _opacity(key)
    elif key is not None and isinstance(key, int | tuple):
        keys = np.atleast_1d(key)
        samples = pictures.with_key(samples, keys > 0 if samples.dtype == bool else keys)
    samples = oriented(samples, applied)
    return Raster(samples, palette, opacity, alpha, orientation=orientation, turned=applied == orientation)


def _opacity(key: object) -> NDArray[np.uint8] | None:
    """Alpha of a palette's indices, of what Pillow keeps of it: the transparent index, or alpha of the first ones."""
    if isinstance(key, int):
        key = bytes(255 * (i != key) for i in range(256))
    return pictures.opacity_of(key) if isinstance(key, bytes) else None


def _orientation(picture: Image.Image) -> int:
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in range(1, 9) else 1
    except Exception:  # Pillow raises anything on a damaged EXIF block; the pixels are whole, viewers show them upright
        return 1


def oriented(samples: Array, orientation: object) -> Array:
    """Samples turned and mirrored into the displayed frame (EXIF and TIFF tag 274, values 1 to 8)."""
    turned = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }.get(orientation if isinstance(orientation, int) else 1, lambda a: a)(samples)
    return np.ascontiguousarray(turned)


def _read_npy(file: BinaryIO, name: str, allow_large: bool) -> Array:
    version = np.lib.format.read_magic(file)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = headers.get(version, headers[2, 0])(file)  # 3.0 differs in the coding of its text alone
    _check_size(math.prod(shape), 1, name, allow_large)
    check_mask_shape(shape, name)
    begin = file.tell()
    if file.seek(0, os.SEEK_END) - begin < math.prod(shape) * dtype.itemsize:
        raise ValueError("it ends before its last value")
    file.seek(0)
    return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


@contextmanager
def open_tiff(file: BinaryIO, name: str) -> Iterator[Any]:
    """A file as tifffile's, once its directories are known to end."""
    tiffs.check_directories(file, name)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        yield tiff


def _tiff_raster(file: BinaryIO, name: str, kind: str, allow_large: bool) -> Raster:
    with open_tiff(file, name) as tiff:
        page = tiff_page(tiff, file, name, allow_large)
        tiffs.check_segments(page, file, name)
        samples = _tiff_samples(page, file)[:, 0]  # (planes, H, W, C); planes or C is 1
        samples = samples[0] if samples.shape[0] == 1 else np.moveaxis(samples[..., 0], 0, -1)
        samples = samples[..., 0] if samples.shape[2] == 1 else samples
        warnings = [NODATA] if holds_nodata(page, samples, name, kind) else []
        raster = tiff_colours(page, samples, name)
        orientation = page.tags.valueof(274, 1)
        place = tiffs.georeference(page)
    if place is not None and orientation in range(2, 9):
        if place.on_earth:
            warnings.append(f"it is stored turned or mirrored (tag 274: {orientation}), so its position is not kept")
        place = None
    samples = oriented(raster.samples, orientation)
    orientation = orientation if orientation in range(1, 9) else 1
    return Raster(samples, raster.palette, georeference=place, warnings=tuple(warnings), orientation=orientation)


def _tiff_samples(page: Any, file: BinaryIO) -> Array:
    """(planes, 1, H, W, C); what a writer left out of it, tiles or strips without content, has the page's nodata."""
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if page.is_final or all(offset and length for offset, length in segments):
        return np.asarray(page.asarray(squeeze=False))
    samples = np.full(page.shaped, page.nodata, page.dtype)  # tifffile takes one that is left out for the next one
    for index, (offset, length) in enumerate(segments):
        if offset and length:
            file.seek(offset)
            data = file.read(length)
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
            segment, (plane, _, top, left, _), (_, high, wide, _) = page.decode(data, index, **tables)
            into = samples[plane, 0, top : top + high, left : left + wide]
            into[...] = segment[0, : into.shape[0], : into.shape[1]]
    return samples


def holds_nodata(page: Any, samples: Array, name: str, kind: str) -> bool:
    """Whether pixels of an image have the value that its TIFF gives to unknown ones, which are then refined as any.

    Raises InputError: of a mask, unless that value is 0, which is background.
    """
    colours = samples[..., :-1] if samples.ndim == 3 and samples.shape[2] in (2, 4) else samples
    value = tiffs.nodata(page)
    if value is None or (kind == "mask" and value == 0) or not tiffs.holds_nodata(page, colours):
        return False
    if kind == "mask":
        raise InputError(
            f"{name}: has pixels of the value {value:g}, which its GDAL nodata tag (42113) calls unknown; accepted is "
            "a mask of known pixels; set them to 0 or 1, or take the tag off (gdal_edit.py -unsetnodata)"
        )
    return True


def tiff_page(tiff: Any, file: BinaryIO, name: str, allow_large: bool) -> Any:
    """The picture of a TIFF: its first page that is marked neither as a smaller copy nor as a mask, if there is one.

    It is larger than all others that are not marked, of one to four samples, and whole as far as offsets tell.

    Raises FileError: it is not, it is a smaller copy of what lies below it (raw files of cameras), its samples are of
    an unknown type, or it or a tile, which may reach beyond it, has more than ``MAX_PIXELS`` pixels and ``allow_large``
    is not set.
    Raises InputError: it has no pixels.
    """
    marked = 1 | 4  # bits of the subfile type: smaller copies and masks belong to another page
    pages = [page for page in tiff.pages if not page.subfiletype & marked] or [tiff.pages[0]]
    page = pages[0]
    if page.subfiletype & 1 and page.subifds:
        given = "its first page is a smaller copy of a picture that is no page"
        raise FileError(f"{name}: {given}; save the picture as the first page")
    width, height = page.imagewidth, page.imagelength
    _check_size(width, height, name, allow_large)
    if page.is_tiled:
        _check_size(page.tilewidth, page.tilelength, f"{name}: each tile", allow_large)
    rivals = sum(p.imagewidth * p.imagelength >= width * height for p in pages)
    if rivals > 1:
        given = f"{rivals} pages of the first one's size or larger"
        raise FileError(f"{name}: {given}; accepted is one picture; save the page you mean")
    if page.imagedepth != 1 or page.tiledepth not in (0, 1) or page.samplesperpixel > 4:
        depth = page.imagedepth if page.imagedepth != 1 else page.tiledepth
        raise FileError(
            f"{name}: a TIFF with {page.samplesperpixel} samples per pixel and depth {depth}; accepted "
            "are one to four samples and depth 1; save the bands you mean"
        )
    tiffs.check_page(page, file, name)
    if page.dtype is None:
        given = f"grey or RGB samples of {page.bitspersample} bits (format {page.sampleformat})"
        raise FileError(f"{name}: a TIFF of {given} is not accepted; convert it to 8-bit or 16-bit grey or RGB")
    return page


def tiff_colours(page: Any, samples: Array, name: str) -> Raster:
    """The samples as grey, RGB or palette indices, over the full range of their type."""
    photometric, bits = page.photometric, page.bitspersample
    if photometric == tifffile.PHOTOMETRIC.PALETTE:
        colours = np.asarray(page.colormap).T[:256]  # (2**bits, 3)
        palette = np.zeros((256, 3), np.uint8)
        # Some writers store 8 bits as they are, and some in the upper half of 16.
        scale = 1 if colours.max() < 256 else 257 if (colours & 255).any() else 256
        palette[: len(colours)] = colours // scale
        if samples.dtype.itemsize > 1 or samples.ndim > 2:
            raise FileError(f"{name}: a palette TIFF of {bits} bits; accepted are 8; convert it to RGB or grey")
        return Raster(samples.astype(np.uint8, copy=False), palette)
    samples = whole_range(samples, bits)
    if tiffs.premultiplied(page):
        samples = _straight(samples)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE and samples.dtype.kind in "bu":
        samples = ~samples
    elif photometric == tifffile.PHOTOMETRIC.SEPARATED and samples.ndim == 3 and samples.shape[2] == 4:
        inks = np.ascontiguousarray(_eight_bit(samples, np.iinfo(samples.dtype).max))
        samples = np.asarray(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB"))
    elif photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB) and not (
        photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression in (6, 7)  # the JPEG decoder gives RGB
    ):
        colours = getattr(photometric, "name", photometric)
        raise FileError(f"{name}: a TIFF with {colours} samples is not accepted; convert it to RGB or grey")
    return Raster(samples)


# ---------------------------------------------------------------------------------------------------------- writing


def write_mask(path: PathLike, mask: NDArray[np.bool_], *, georeference: tiffs.Georeference | None = None) -> None:
    """Writes a mask (H, W) bool as 0 and 255 in 8 bits: PNG, or TIFF by suffix, which keeps a ``georeference``.

    Raises OptionError: another suffix.
    Raises InputError: the array is not (H, W) bool.
    Raises FileError: the file cannot be written; an older one is then untouched.
    """
    suffix = check_suffix(path, (".png", ".tif", ".tiff"), "a mask")
    if mask.dtype != bool or mask.ndim != 2 or mask.size == 0:
        raise InputError(f"mask: {mask.dtype} {mask.shape}; accepted is bool (H, W); threshold it, as in p > 0.5")
    _write_pixels(path, suffix, mask.astype(np.uint8) * np.uint8(255), georeference)


def write_probability(
    path: PathLike, probability: NDArray[np.floating], *, georeference: tiffs.Georeference | None = None
) -> None:
    """Writes probabilities (H, W) in [0, 1]: round(p * 65535) in a 16-bit PNG or TIFF, or float32 in ``.npy``.

    A TIFF keeps a ``georeference``.

    Raises OptionError: another suffix.
    Raises InputError: the array is not (H, W) float in [0, 1].
    Raises FileError: the file cannot be written; an older one is then untouched.
    """
    suffix = check_suffix(path, (".png", ".tif", ".tiff", ".npy"), "a probability")
    if probability.dtype.kind != "f" or probability.ndim != 2 or probability.size == 0:
        given = f"{probability.dtype} {probability.shape}"
        raise InputError(f"probability: {given}; accepted is float (H, W) in [0, 1]")
    lowest, highest = float(probability.min()), float(probability.max())
    if not (lowest >= 0 and highest <= 1):  # also NaN
        raise InputError(f"probability: values {lowest:g}..{highest:g}; accepted is float (H, W) in [0, 1]; clip it")
    if suffix == ".npy":
        values = probability.astype(np.float32, copy=False)
        write_atomic(path, lambda file: np.save(file, values, allow_pickle=False))
    else:
        values = np.rint(probability * np.float32(65535)).astype(np.uint16)
        _write_pixels(path, suffix, values, georeference)


def write_image(path: PathLike, rgb: NDArray[np.uint8]) -> None:
    """Writes a picture (H, W, 3) uint8 RGB as PNG, TIFF, BMP, WebP (lossless) or JPEG (quality 95), by suffix.

    Raises OptionError: another suffix.
    Raises InputError: the array is not (H, W, 3) uint8.
    Raises FileError: the file cannot be written; an older one is then untouched.
    """
    suffix = check_suffix(path, (*sorted(_WRITTEN), ".tif", ".tiff"), "a picture")
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise InputError(f"picture: {rgb.dtype} {rgb.shape}; accepted is uint8 (H, W, 3)")
    _write_pixels(path, suffix, rgb)


def check_folder(folder: PathLike) -> None:
    """Checks that files can be written into a folder, which need not exist yet; nothing is left behind.

    Raises FileError: it is no folder, its parent is none, or nothing can be written there.
    """
    name = os.fspath(folder)
    place = Path(os.path.realpath(folder))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise FileError(f"{name}: cannot be made, {str(place)!r} is a file; give a folder that can be written to")
    try:
        with tempfile.TemporaryFile(dir=place):  # permission bits do not tell of a mount that is read-only
            pass
    except OSError as error:
        message = f"{name}: nothing can be written there ({error.strerror or error}); give another folder"
        raise FileError(message) from error


def check_file(path: PathLike) -> None:
    """Checks that :func:`write_atomic` can write a file, whose folder need not exist yet; nothing is left behind.

    Raises FileError: as :func:`write_atomic`, or as :func:`check_folder` for the file's folder.
    """
    with _writing(path) as (target, _):
        check_folder(target.parent)


def identity(path: PathLike | None) -> tuple[str | int, ...]:
    """What tells a file from another one, or from itself at another time; nothing where there is none."""
    if path is None or not os.path.exists(path):
        return ()
    stat = os.stat(path)
    return os.path.realpath(os.fsdecode(path)), stat.st_size, stat.st_mtime_ns


def write_atomic(path: PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Calls ``write`` with a temporary file beside ``path`` and moves it over ``path`` when ``write`` returns.

    What a kill left of earlier calls in that folder is removed once it is older than ``STALE``.

    Missing folders are created, a link is followed, and the permission bits are those of the file that is replaced, or
    what the umask leaves of rw-rw-rw-. If anything is raised the temporary file is removed and ``path`` is untouched;
    what ``write`` raises passes through, except that an OSError (a full disk) becomes a FileError.

    Raises FileError: the target is a folder or no regular file, is write-protected, or cannot be written.
    """
    with _writing(path) as (target, old):
        target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(target.parent)
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("x+b") as file:
                write(file)
            if old is not None:
                temporary.chmod(stat.S_IMODE(old))
            temporary.replace(target)
        finally:
            with suppress(OSError):  # it has been moved, was never made, or its folder is gone
                temporary.unlink()


@cache
def _tidy(folder: Path) -> None:
    """Removes temporary files of processes that were killed, which may be large; looks into a folder once."""
    with suppress(OSError), os.scandir(folder) as entries:  # what cannot be removed is no reason not to write
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
                        os.unlink(entry.path)


@contextmanager
def _writing(path: PathLike) -> Iterator[tuple[Path, int | None]]:
    """The file that a path leads to, and the mode of the one that is there; an OSError becomes a FileError."""
    name = os.fspath(path)
    target = Path(os.path.realpath(path))
    try:
        old = target.stat().st_mode if target.exists() else None
        if old is not None and not stat.S_ISREG(old):
            given = "a folder" if stat.S_ISDIR(old) else "no regular file"
            raise FileError(f"{name}: is {given}, and nothing is written over it; give the name of a file")
        if old is not None and not os.access(target, os.W_OK):
            raise FileError(f"{name}: is write-protected; remove it or give another name")
        yield target, old
    except RefineError:
        raise
    except OSError as error:
        message = f"{name}: cannot be written ({error.strerror or error}); give a place that can be written to"
        raise FileError(message) from error


def check_suffix(path: PathLike, known: tuple[str, ...], what: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        raise OptionError(f"{os.fspath(path)}: {what} is written as {', '.join(known)}; give one of these suffixes")
    return suffix


def _write_pixels(path: PathLike, suffix: str, samples: Array, georeference: tiffs.Georeference | None = None) -> None:
    if suffix in (".tif", ".tiff"):
        colours = "rgb" if samples.ndim == 3 else "minisblack"
        options = {"photometric": colours, "compression": "zlib", "predictor": True, "metadata": None}
        options |= georeference.options if georeference is not None else {}
        write_atomic(path, lambda file: tifffile.imwrite(file, samples, **options))
        return
    height, width = samples.shape[:2]
    longest = _LONGEST_SIDE.get(suffix)
    if longest is not None and max(height, width) > longest:
        raise FileError(
            f"{os.fspath(path)}: {width} x {height} cannot be written as {suffix}, whose sides end at {longest} px; "
            "give .png or .tif"
        )
    encoded = BytesIO()  # Pillow writes to a file's descriptor by itself, and does not see that a disk is full
    Image.fromarray(np.ascontiguousarray(samples)).save(encoded, **_WRITTEN[suffix])
    write_atomic(path, lambda file: file.write(encoded.getbuffer()))
