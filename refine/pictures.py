"""JPEG, PNG, WebP, GIF and BMP files: their samples as stored, and what lies around them that matters.

Headers are read without decoding, and nothing is decoded before its size is known. Text, colour profiles and whatever
else a file holds beside its pixels is passed over unread, so that its size is no matter. `refine.io` says what the
samples mean.
"""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import BmpImagePlugin, ExifTags, Image

from refine import streams
from refine.errors import FileError

Array = NDArray[Any]
Check = Callable[[int, int], None]  # raises where a width and height are too large

_PNG = b"\x89PNG\r\n\x1a\n"
_WHOLE = "give a complete file"
_HEAD = 2**20  # bytes of a JPEG that nearly always hold all before its pixels
_MOST_TEXT = 2**20  # bytes of a text with an orientation in it


@dataclass(frozen=True)
class Stored:
    """Samples of a file, not turned yet."""

    samples: Array
    """(H, W) or (H, W, 2..4) of bool, uint8 or uint16; with a palette its indices."""
    palette: NDArray[np.uint8] | None = None
    """(256, 3) RGB"""
    opacity: NDArray[np.uint8] | None = None
    """(256,): alpha of each index, where not all are opaque."""
    bits: int | None = None
    """Of samples, where they are not all of their type's."""


@dataclass(frozen=True)
class Header:
    """What a file says of its picture before it is decoded."""

    width: int
    height: int
    exif: bytes = b""
    xmp: bytes = b""

    @property
    def orientation(self) -> int:
        """EXIF's, or else XMP's; 1 where there is none that could be read."""
        try:
            exif = Image.Exif()
            exif.load(self.exif)
            value = exif.get(ExifTags.Base.Orientation)
        except Exception:  # Pillow raises anything on a damaged EXIF block; viewers show such a picture upright
            return 1
        if value is None:
            found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', self.xmp)
            value = int(found[1]) if found else 1
        return value if isinstance(value, int) and 1 <= value <= 8 else 1


@dataclass(frozen=True)
class Format:
    """How files of a format are read."""

    name: str
    header: Callable[[BinaryIO], Header]
    decode: Callable[[bytes, str, Check], Stored]


def format_of(head: bytes) -> Format | None:
    """The format of a file that begins so; None if it is none of these."""
    if head.startswith(_PNG):
        return Format("PNG", _png_header, _png)
    if head.startswith(b"\xff\xd8\xff"):
        return Format("JPEG", _jpeg_header, _jpeg)
    if head.startswith(b"BM"):
        return Format("BMP", _bmp_header, _bmp)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Format("WebP", _webp_header, _webp)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return Format("GIF", _gif_header, _gif)
    return None


def _animation(count: int, name: str) -> FileError:
    return FileError(f"{name}: an animation of {count} pictures; accepted is one picture; save the one you mean")


# ------------------------------------------------------------------------------------------------------------- JPEG


def _jpeg_header(file: BinaryIO) -> Header:
    data = file.read(_HEAD)
    try:
        found = streams.jpeg(data, header=True)
    except ValueError:
        found = streams.jpeg(data + file.read(), header=True)
    exif = found.application(1, b"Exif\0\0")
    return Header(found.size[1], found.size[0], exif, found.application(1, b"http://ns.adobe.com/xap/1.0/\0"))


def _jpeg(data: bytes, name: str, check: Check) -> Stored:
    whole = streams.jpeg(data)
    damage = streams.jpeg_damage(whole) if whole.ended else "the JPEG ends before its end marker"
    if damage:
        raise FileError(f"{name}: truncated or damaged ({damage}); {_WHOLE}")
    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(len(whole.components))
    if whole.bits == 8 and space and whole.frame in streams.LOSSY:
        samples = simplejpeg.decode_jpeg(data, space, strict=False)
        if space == "CMYK":  # stored inverted, as Adobe does
            inks = np.ascontiguousarray(255 - samples)
            samples = np.asarray(Image.frombytes("CMYK", whole.size[::-1], inks.tobytes()).convert("RGB"))
        return Stored(samples[..., 0] if space == "GRAY" else samples)
    samples = imagecodecs.jpeg_decode(data, bitspersample=whole.bits)
    if samples.shape[:2] != whole.size or samples.ndim > 3:
        raise ValueError(f"{samples.shape} where {whole.size} was said")
    return Stored(samples, bits=whole.bits)


# -------------------------------------------------------------------------------------------------------------- PNG


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place and length of each chunk, up to the end; ValueError where the file ends before."""
    size = file.seek(0, os.SEEK_END)
    at, kind = 8, b""
    while kind != b"IEND":
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("the PNG ends before its IEND")
        length, kind = struct.unpack(">I4s", head)
        if at + 12 + length > size:
            raise ValueError("the PNG ends before its IEND")
        yield kind, at + 8, length
        at += 12 + length


def _png_header(file: BinaryIO) -> Header:
    width = height = 0
    exif = xmp = old = b""
    for kind, _, length in _png_chunks(file):
        if kind == b"IHDR" and not width:
            width, height = struct.unpack(">II", file.read(8))
        elif kind == b"eXIf" and length <= _MOST_TEXT:
            exif = file.read(length)
        elif kind in (b"iTXt", b"tEXt", b"zTXt") and length <= _MOST_TEXT:
            word, _, rest = file.read(length).partition(b"\0")
            if word == b"XML:com.adobe.xmp" and kind == b"iTXt":
                text = rest[2:].split(b"\0", 2)[-1]
                xmp = _inflated(text) if rest[:1] == b"\1" else text
            elif word == b"Raw profile type exif" and kind != b"iTXt":
                old = _inflated(rest[1:]) if kind == b"zTXt" else rest
    if not exif and old:  # as ImageMagick writes it: name, length, hexadecimal digits
        try:
            exif = bytes.fromhex("".join(old.decode("latin-1").split("\n")[3:]))
        except ValueError:
            exif = b""
    return Header(width, height, exif, xmp)


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_TEXT)
    except zlib.error:
        return b""


def _png(data: bytes, name: str, check: Check) -> Stored:
    """Decodes the pixels' chunks alone: limits on texts and profiles then do not matter, nor do their faults."""
    damage = streams.png_damage(data)
    if damage:
        raise ValueError(damage)
    kept, header, palette, opacity = [_PNG], b"", b"", b""
    for kind, at, length in _png_chunks(io.BytesIO(data)):
        body = data[at : at + length]
        if kind == b"IHDR":
            header = body
            indexed = header[9:10] == b"\3"
            kept.append(_chunk(kind, header[:9] + b"\0" + header[10:]) if indexed else data[at - 8 : at + length + 4])
        elif kind == b"PLTE":
            palette = body
        elif kind == b"tRNS":
            opacity = body
        elif kind == b"acTL" and struct.unpack_from(">I", body)[0] > 1:
            raise _animation(struct.unpack_from(">I", body)[0], name)
        elif kind in (b"IDAT", b"IEND"):
            kept.append(data[at - 8 : at + length + 4])
    if len(header) != 13:
        raise ValueError("the PNG has no header")
    bits, indexed = header[8], header[9] == 3
    samples = imagecodecs.png_decode(b"".join(kept))
    height, width = struct.unpack(">II", header[:8])[::-1]
    if samples.shape[:2] != (height, width):
        raise ValueError(f"{samples.shape} where {height} x {width} was said")
    if not indexed:
        samples = samples > 0 if bits == 1 else samples
        if len(opacity) == 2 * (1 if samples.ndim == 2 else samples.shape[2]) and header[9] in (0, 2):
            key = np.frombuffer(opacity, ">u2") * (255 // ((1 << bits) - 1) if 1 < bits < 8 else 1)
            samples = with_key(samples, key)
        return Stored(samples)
    if bits < 8:  # decoded as grey, over the whole range
        samples //= 255 // ((1 << bits) - 1)
    if not palette:
        raise ValueError("the PNG has no palette")
    return Stored(samples, _palette(palette), opacity_of(opacity) if opacity else None)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _palette(colours: bytes) -> NDArray[np.uint8]:
    palette = np.zeros((256, 3), np.uint8)
    given = np.frombuffer(colours, np.uint8)[: 3 * 256]
    palette[: len(given) // 3] = given[: len(given) // 3 * 3].reshape(-1, 3)
    return palette


def with_key(samples: Array, key: Array) -> Array:
    """Samples (H, W) or (H, W, 3) and alpha, which is 0 where they are the ``key``, a value of each channel."""
    seen = (samples.reshape(*samples.shape[:2], -1) != key).any(-1)
    white = True if samples.dtype == bool else np.iinfo(samples.dtype).max
    return np.dstack([samples, np.where(seen, white, 0).astype(samples.dtype)])


def opacity_of(alphas: bytes) -> NDArray[np.uint8] | None:
    """Alpha of each index of a palette, of that of the first ones; None where all are opaque."""
    opacity = np.full(256, 255, np.uint8)
    given = np.frombuffer(alphas, np.uint8)[:256]
    opacity[: len(given)] = given
    return opacity if opacity.min() < 255 else None


# ------------------------------------------------------------------------------------------------------------- WebP


def _webp_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    (whole,) = struct.unpack("<I", file.read(4))
    if whole + 8 > size:
        raise ValueError("the WebP ends before its last chunk")
    at = 12
    while at + 8 <= whole + 8:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        yield kind, at + 8, length
        at += 8 + length + length % 2


def _webp_header(file: BinaryIO) -> Header:
    file.seek(0)
    found = streams.size(file.read(64))
    assert found is not None
    exif = xmp = b""
    for kind, at, length in _webp_chunks(file):
        if kind in (b"EXIF", b"XMP ") and length <= _MOST_TEXT:
            file.seek(at)
            data = file.read(length)
            exif, xmp = (data, xmp) if kind == b"EXIF" else (exif, data)
    return Header(found[1], found[0], exif, xmp)


def _webp(data: bytes, name: str, check: Check) -> Stored:
    count = sum(kind == b"ANMF" for kind, _, _ in _webp_chunks(io.BytesIO(data)))
    if count > 1:
        raise _animation(count, name)
    return Stored(imagecodecs.webp_decode(data))


# -------------------------------------------------------------------------------------------------------------- GIF


def _gif_header(file: BinaryIO) -> Header:
    file.seek(6)
    return Header(*struct.unpack("<HH", file.read(4)))


def _gif(data: bytes, name: str, check: Check) -> Stored:
    width, height, packed = struct.unpack_from("<HHB", data, 6)
    at, colours, opacity, count = 13, b"", None, 0
    everyones = _gif_palette(data, at, packed)
    at += len(everyones)
    while data[at] != 0x3B:
        if data[at] == 0x21:
            if data[at + 1] == 0xF9 and data[at + 3] & 1 and not count:
                opacity = bytes(255 * (i != data[at + 6]) for i in range(256))
            at = _gif_blocks(data, at + 2)
        elif data[at] == 0x2C:
            count += 1
            place = struct.unpack_from("<HHHHB", data, at + 1)
            colours = _gif_palette(data, at + 10, place[4])
            at = _gif_blocks(data, at + 11 + len(colours))
            if place[:4] != (0, 0, width, height):
                raise FileError(f"{name}: a GIF whose picture does not fill its frame; save it as PNG")
        else:
            raise ValueError("the GIF has an unknown block")
    if count != 1:
        raise _animation(count, name)
    samples = imagecodecs.gif_decode(data, 0, asrgb=False).reshape(height, width)
    return Stored(samples, _palette(colours or everyones), opacity_of(opacity) if opacity else None)


def _gif_palette(data: bytes, at: int, packed: int) -> bytes:
    return data[at : at + 3 * 2 ** ((packed & 7) + 1)] if packed & 0x80 else b""


def _gif_blocks(data: bytes, at: int) -> int:
    """Behind the sub-blocks that begin at a place."""
    while data[at]:
        at += 1 + data[at]
    return at + 1


# -------------------------------------------------------------------------------------------------------------- BMP


def _bmp_header(file: BinaryIO) -> Header:
    file.seek(14)
    (size,) = struct.unpack("<I", file.read(4))
    width, height = struct.unpack("<HH", file.read(4)) if size == 12 else struct.unpack("<ii", file.read(8))
    return Header(width, abs(height))


def _bmp(data: bytes, name: str, check: Check) -> Stored:
    _check_bmp_is_whole(data)
    picture = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    check(*picture.size)
    picture.load()
    if picture.mode == "P":
        return Stored(np.asarray(picture), _palette(bytes(picture.getpalette("RGB") or [])))
    return Stored(np.asarray(picture))


def _check_bmp_is_whole(data: bytes) -> None:
    """ValueError where rows are missing, which Pillow passes over if the process tells it to."""
    header = _bmp_header(io.BytesIO(data))
    begin, size = struct.unpack_from("<I", data, 10)[0], struct.unpack_from("<I", data, 14)[0]
    bits = struct.unpack_from("<H", data, 24 if size == 12 else 28)[0]
    compression = 0 if size == 12 else struct.unpack_from("<I", data, 30)[0]
    if compression in (1, 2):
        whole = _has_rle_end(data, begin, compression)
    else:
        row = header.width * bits
        whole = begin + (row + 31) // 32 * 4 * (header.height - 1) + (row + 7) // 8 <= len(data)
    if not whole:
        raise ValueError("the BMP ends before its last row")


def _has_rle_end(data: bytes, at: int, compression: int) -> bool:
    """Whether a run-length code comes to its end of bitmap."""
    while at + 1 < len(data):
        count, value = data[at], data[at + 1]
        at += 2
        if count == 0 and value == 1:
            return True
        if count == 0 and value == 2:
            at += 2
        elif count == 0 and value > 2:
            length = value if compression == 1 else (value + 1) // 2
            at += length + length % 2
    return False
