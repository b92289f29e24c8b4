"""Code streams: what their headers promise, and whether all of a JPEG is there; nothing is decoded to look at.

Decoders take memory for what a stream's own header says, and go on without a word where a JPEG has a hole or an early
end. So both are asked before: here, from the bytes.
"""

import re
import struct
import zlib
from dataclasses import dataclass

import simplejpeg

MAX_SCANS = 500
"""Most scans of a JPEG: each goes over the whole picture again, and encoders write about ten."""

_SPARE = 32
"""Bytes behind the last block of a scan that cameras leave there; more are what a damaged scan did not use."""
_SPARE_RESTART = 3  # before a restart marker, where nothing is told of the scan behind
_SPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}
_HUFFMAN = {0xC0, 0xC1, 0xC2}  # sequential and progressive frames of Huffman codes
LOSSY = _HUFFMAN | {0xC9, 0xCA}
"""Frames that libjpeg decodes in 8 bits: those of arithmetic codes, too."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_STOP = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # behind a scan's data: no stuffed zero and no restart marker
_SURPLUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


@dataclass(frozen=True)
class Segment:
    """A marker of a JPEG with its data; of a scan also the entropy-coded data behind its header."""

    marker: int
    data: bytes
    scan: bytes = b""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG up to its end marker, cut at its markers."""

    segments: tuple[Segment, ...]
    frame: int
    """Marker of its frame: 0xC0 and 0xC1 are sequential, 0xC2 is progressive, 0xC3 lossless."""
    bits: int
    size: tuple[int, int]
    """(H, W)"""
    components: tuple[int, ...]
    """Their identifiers."""
    ended: bool
    """Whether it has an end marker."""

    def application(self, number: int, opening: bytes) -> bytes:
        """Data of the application segment that opens so, without the opening; empty if there is none."""
        for segment in self.segments:
            if segment.marker == 0xE0 + number and segment.data.startswith(opening):
                return segment.data[len(opening) :]
        return b""


def jpeg(data: bytes, *, header: bool = False) -> Jpeg:
    """A JPEG's segments; with ``header`` up to the header of its first scan.

    Raises ValueError: it is none, it ends within a segment, or has no frame.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError("no JPEG")
    segments: list[Segment] = []
    frame: tuple[int, int, tuple[int, int], tuple[int, ...]] | None = None
    at, scans, ended = 2, 0, False
    while True:
        at = data.find(b"\xff", at)  # some writers leave bytes between segments
        while 0 <= at < len(data) and data[at] == 0xFF:
            at += 1
        if at < 0 or at >= len(data):
            break
        marker = data[at]
        at += 1
        if marker == 0xD9:
            ended = True
            break
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            continue
        (length,) = struct.unpack_from(">H", data, at) if at + 2 <= len(data) else (0,)
        if length < 2 or at + length > len(data):
            raise ValueError("it ends within a segment")
        body = data[at + 2 : at + length]
        at += length
        if marker in _FRAMES:
            if frame is not None:
                raise ValueError("two frames")
            if len(body) < 6 or len(body) < 6 + 3 * body[5]:
                raise ValueError("its frame is damaged")
            bits, height, width, count = struct.unpack_from(">BHHB", body)
            frame = marker, bits, (height, width), tuple(body[6 + 3 * i] for i in range(count))
        scan = b""
        if marker == 0xDA and header:
            break
        if marker == 0xDA:
            stop = _STOP.search(data, at)
            end = stop.start() if stop else len(data)
            scan, at = data[at:end], end
            scans += 1
            if scans > MAX_SCANS:
                raise ValueError(f"more than {MAX_SCANS} scans")
        segments.append(Segment(marker, body, scan))
    if frame is None:
        raise ValueError("it has no frame")
    return Jpeg(tuple(segments), *frame, ended)


def jpeg_damage(whole: Jpeg) -> str | None:
    """What is missing of a JPEG or too much, which decoders pass over; None where all is there.

    Bytes behind the end, between segments and a few behind the last block of a scan are no damage: many cameras write
    them. Of what libjpeg cannot decode (12 bits, lossless) only the scans are counted.
    """
    scans = [segment for segment in whole.segments if segment.marker == 0xDA]
    missing = _unfinished(whole, scans)
    if missing or whole.frame not in _HUFFMAN or whole.bits != 8 or len(whole.components) not in _SPACES:
        return missing
    data = [segment.scan for segment in scans]
    tried = len(data)
    for _ in range(len(data) + 8):
        reason = _warning(whole, data)
        surplus = _SURPLUS.search(reason or "")
        if surplus is None:
            return reason
        count, marker = int(surplus[1]), int(surplus[2], 16)
        if 0xD0 <= marker <= 0xD7:
            return None if count <= _SPARE_RESTART else reason
        # The last scan with bytes to spare is the one that was told of: without them the one before it is.
        for number in reversed(range(tried)):
            if len(data[number]) > count and _is_spare(data[number], count):
                trial = [*data[:number], data[number][:-count], *data[number + 1 :]]
                if _warning(whole, trial) != reason:
                    data, tried = trial, number + 1
                    break
        else:
            return reason
    return reason


def _unfinished(whole: Jpeg, scans: list[Segment]) -> str | None:
    """What no scan brings: a component, or of a progressive JPEG coefficients or their last bit."""
    lowest = {component: [14] * 64 for component in whole.components}
    for scan in scans:
        count = scan.data[0] if scan.data else 0
        if len(scan.data) < 4 + 2 * count:
            return "the header of a scan is damaged"
        first, last, low = scan.data[1 + 2 * count], scan.data[2 + 2 * count], scan.data[3 + 2 * count] & 15
        for component in scan.data[1 : 1 + 2 * count : 2]:
            if component not in lowest:
                return "a scan of an unknown component"
            if whole.frame == 0xC2:
                lowest[component][first : last + 1] = [low] * len(lowest[component][first : last + 1])
            else:
                lowest[component] = [0] * 64
    if any(bit for bits in lowest.values() for bit in bits):
        return "the JPEG ends before its last scan"
    return None


def _warning(whole: Jpeg, scans: list[bytes]) -> str | None:
    """The last thing that libjpeg has to say of the tables and scans alone."""
    stream, left = [b"\xff\xd8"], iter(scans)
    for segment in whole.segments:
        if 0xE0 <= segment.marker <= 0xEF or segment.marker == 0xFE:
            continue
        data = segment.data
        if segment.marker == 0xDA and whole.frame != 0xC2:
            data = data[: 1 + 2 * data[0]] + b"\0\x3f\0"  # which have no meaning here, and some writers err in
        stream.append(struct.pack(">BBH", 0xFF, segment.marker, 2 + len(data)) + data)
        if segment.marker == 0xDA:
            stream.append(next(left))
    stream.append(b"\xff\xd9")
    try:
        # At an eighth of its size: every code is read, and little is computed of it.
        simplejpeg.decode_jpeg(b"".join(stream), _SPACES[len(whole.components)], min_height=1, min_width=1)
    except ValueError as error:
        return str(error)
    return None


def _is_spare(scan: bytes, count: int) -> bool:
    """Whether the last ``count`` bytes of a scan may be too many: a few, or padding that begins where they do."""
    padding = len(scan) - len(scan.rstrip(scan[-1:]))
    return count <= _SPARE or count <= padding <= count + _SPARE


def png_damage(data: bytes) -> str | None:
    """What is wrong with the chunks of a PNG that its pixels come from; None where all are there with their checksums.

    libpng reads on where checksums of the pixels differ, and writes that to the terminal.
    """
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            return "the PNG ends before its IEND"
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            return "the PNG ends before its IEND"
        checked = memoryview(data)[at + 4 : at + 8 + length]
        critical = not kind[0] & 0x20 or kind == b"tRNS"
        if critical and zlib.crc32(checked) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            return f"the checksum of a chunk {kind!r} of the PNG"
        at += 12 + length
    return None


def size(data: bytes) -> tuple[int, int, int] | None:
    """(H, W, most channels) by the header of a JPEG, JPEG 2000, PNG, WebP, JPEG XL or LERC stream; None of another one.

    Raises ValueError: the header is damaged.
    """
    try:
        if data[:2] == b"\xff\xd8":
            found = jpeg(data, header=True)
            return *found.size, len(found.components)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack_from(">II", data, 16)
            return height, width, 4
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return *_webp(data), 4
        if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
            return _jpeg_2000(data)
        if data[:2] == b"\xff\x0a" or data[4:8] == b"JXL ":
            return *_jpeg_xl(data), 4
        if data[:6] == b"Lerc2 ":
            (version,) = struct.unpack_from("<i", data, 6)
            at = 14 if version >= 3 else 10
            height, width, channels = struct.unpack_from("<iii", data, at)
            return height, width, channels if version >= 4 else 1
    except (struct.error, IndexError):
        raise ValueError("its header is damaged") from None
    return None


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return height, width
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    raise ValueError("its header is damaged")


def _jpeg_2000(data: bytes) -> tuple[int, int, int]:
    at = _box(data, b"jp2c") if data[:1] == b"\0" else 0
    if data[at : at + 4] != b"\xff\x4f\xff\x51":
        raise ValueError("its header is damaged")
    right, bottom, left, top, tile_width, tile_height, _, _, channels = struct.unpack_from(">8IH", data, at + 8)
    if right <= left or bottom <= top or not tile_width or not tile_height:
        raise ValueError("its header is damaged")
    return bottom - top, right - left, channels


def _box(data: bytes, wanted: bytes) -> int:
    """Where the content of a box of an ISO media file begins."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        inner = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
            inner = at + 16
        if kind == wanted:
            return inner
        if length < inner - at:  # also 0: up to the end
            break
        at += length
    raise ValueError("its header is damaged")


def _jpeg_xl(data: bytes) -> tuple[int, int]:
    """The SizeHeader of ISO/IEC 18181-1."""
    at = 0
    if data[:2] != b"\xff\x0a":
        try:
            at = _box(data, b"jxlc")
        except ValueError:
            at = _box(data, b"jxlp") + 4  # the first part, behind its number
    if data[at : at + 2] != b"\xff\x0a":
        raise ValueError("its header is damaged")
    bits, used = int.from_bytes(data[at + 2 : at + 18], "little"), 0

    def read(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    small = read(1)

    def side() -> int:
        return 8 * (read(5) + 1) if small else read((9, 13, 18, 30)[read(2)]) + 1

    height = side()
    ratio = read(3)
    if ratio == 0:
        return height, side()
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height, height * across // down
