"""Changes of bytes and of JSON that find faults in readers; all random numbers come from the generator passed in."""

import json
import math
import struct
import zlib
from random import Random
from typing import Any

INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    63,
    64,
    100,
    127,
    128,
    129,
    255,
    256,
    257,
    511,
    1024,
    4095,
    4096,
)
INTERESTING += (15_811, 15_812, 32767, 32768, 65500, 65535, 65536, 10**6, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1)
LARGE = (2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)

_ODD_NUMBERS = (0, 1, -1, 2, 7, 10**6, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-9, 1e300, math.nan, math.inf, -math.inf)
_ODD_TEXTS = ("", "x", "\n", "\x1b[31m", "../../x", "a" * 5000, "ü€", "\ud800")
_ODD_SHAPES: tuple[Any, ...] = (None, True, False, [], [1], [None], [[]], ["a", "b"], {}, {"a": 1}, {"": []})
ODD_VALUES: tuple[Any, ...] = (*_ODD_SHAPES, *_ODD_NUMBERS, *_ODD_TEXTS)
"""What JSON, and more, may have in the place of any value."""


def integer(rng: Random, bits: int) -> int:
    """A number that fits into ``bits``, most likely one at a border."""
    if rng.random() < 0.25:
        return rng.getrandbits(bits)
    return rng.choice(INTERESTING + (LARGE if bits > 32 else ())) % 2**bits


def some_bytes(data: bytes, rng: Random) -> bytes:
    """Bytes changed without knowing what they mean."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            return bytes(out)
        at = rng.randrange(len(out))
        length = min(len(out) - at, rng.choice((1, 2, 4, 16, 100, 1000, len(out) // 4 + 1)))
        match rng.randrange(9):
            case 0 | 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            case 3:
                del out[at:]
            case 4:
                del out[at : at + length]
            case 5:
                out[at:at] = out[at : at + length]
            case 6:
                out[at : at + length] = bytes([rng.choice((0, 255, 32))]) * length
            case 7:
                size = rng.choice((1, 2, 4, 8))
                number = integer(rng, 8 * size).to_bytes(size, rng.choice(("little", "big")))
                out[at : at + size] = number
            case _:
                other = rng.randrange(len(out))
                out[at : at + length] = out[other : other + length]
    return bytes(out)


def _reordered(parts: list[Any], rng: Random) -> None:
    """Drops, repeats or moves one part."""
    if not parts:
        return
    at = rng.randrange(len(parts))
    match rng.randrange(3):
        case 0:
            del parts[at]
        case 1:
            parts.insert(rng.randrange(len(parts) + 1), parts[at])
        case _:
            parts.insert(rng.randrange(len(parts)), parts.pop(at))


def png(data: bytes, rng: Random) -> bytes:
    """A PNG whose chunks are changed and have a right CRC, or whose pixels are packed anew."""
    parts, at = [], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        parts.append([kind, data[at + 8 : at + 8 + length]])
        at += 12 + length
    if not parts:
        return some_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2))):
        chosen = rng.choice(parts)
        match rng.randrange(6):
            case 0:
                _reordered(parts, rng)
            case 1:
                head = bytearray(parts[0][1][:13].ljust(13, b"\0"))
                field = rng.randrange(7)
                if field < 2:
                    struct.pack_into(">I", head, 4 * field, integer(rng, 32))
                else:
                    head[6 + field] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
                parts[0][1] = bytes(head)
            case 2:
                whole = b"".join(content for kind, content in parts if kind == b"IDAT")
                try:
                    pixels = some_bytes(zlib.decompress(whole), rng)
                except zlib.error:
                    pixels = b""
                parts = [part for part in parts if part[0] != b"IDAT"]
                parts.insert(max(1, len(parts) - 1), [b"IDAT", zlib.compress(pixels)])
            case 3:
                kind = rng.choice(
                    (b"tRNS", b"PLTE", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"gAMA", b"acTL", b"fdAT")
                )
                packed = b"a\0\0" + zlib.compress(bytes(rng.choice((10, 10_000, 2_000_000))))
                parts.insert(1, [kind, rng.choice((b"", rng.randbytes(rng.choice((1, 3, 6, 256, 768))), packed))])
            case _:
                chosen[1] = some_bytes(chosen[1], rng)
        if not parts:
            break
    chunks = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    return data[:8] + b"".join(chunks)


def jpeg(data: bytes, rng: Random) -> bytes:
    """A JPEG whose segments are changed and have a right length, or whose code stream has holes."""
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        parts.append([data[at + 1], data[at + 4 : at + 2 + length]])
        at += 2 + length
    rest = bytearray(data[at:])
    if not parts:
        return some_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2))):
        chosen = rng.choice(parts)
        match rng.randrange(6):
            case 0:
                _reordered(parts, rng)
            case 1:
                frame = next((part for part in parts if 0xC0 <= part[0] <= 0xC2), chosen)
                content = bytearray(frame[1])
                if len(content) >= 6:
                    content[0] = rng.choice((8, 8, 8, 12, 16, 0))
                    struct.pack_into(">H", content, rng.choice((1, 3)), integer(rng, 16))
                    content[5] = rng.choice((content[5], content[5], 0, 1, 2, 3, 4, 255))
                frame[1] = bytes(content)
            case 2 if len(rest) > 40:
                hole = rng.randrange(20, len(rest))
                rest[hole : hole + rng.choice((1, 50, 5000))] = rng.choice((b"", b"\xff\xd9", bytes(50), b"\xff\xd0"))
            case 3:
                chosen[0] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE))
            case _:
                chosen[1] = some_bytes(chosen[1], rng)
        if not parts:
            break
    segments = (b"\xff" + bytes([k]) + struct.pack(">H", (len(c) + 2) % 65536) + c for k, c in parts)
    return data[:2] + b"".join(segments) + bytes(rest)


def riff(data: bytes, rng: Random) -> bytes:
    """A WebP whose chunks are changed and have a right length."""
    parts, at = [], 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        parts.append([kind, data[at + 8 : at + 8 + length]])
        at += 8 + length + length % 2
    for _ in range(rng.choice((1, 2))):
        if not parts:
            break
        if rng.random() < 0.3:
            _reordered(parts, rng)
        else:
            chosen = rng.choice(parts)
            chosen[1] = some_bytes(chosen[1], rng)
    body = b"".join(k + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for k, c in parts)
    return data[:4] + struct.pack("<I", len(body) + 4) + data[8:12] + body


# Size, bits, compression, colours, orientation, strips, samples, planes, predictor, tiles, alpha, format, SubIFDs, ...
_CODES = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    270,
    273,
    274,
    277,
    278,
    279,
    284,
    292,
    297,
    305,
    317,
    320,
    322,
    323,
    324,
    325,
)
_CODES += (330, 338, 339, 347, 530, 532, 33550, 33922, 34665, 34675, 34735, 42112, 42113, 50838, 32997, 32998)


def tiff(data: bytes, rng: Random) -> bytes:
    """A TIFF whose directories are changed: codes, types, counts, values, order and chains."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        return _tiff(bytearray(data), rng, order, big)
    except (struct.error, IndexError):
        return some_bytes(data, rng)


def _tiff(out: bytearray, rng: Random, order: str, big: bool) -> bytes:
    offset, count_format, entry, word = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    directories, at, link = [], struct.unpack_from(order + offset, out, 8 if big else 4)[0], 8 if big else 4
    links = [link]
    while at and len(directories) < 20:
        (count,) = struct.unpack_from(order + count_format, out, at)
        first = at + struct.calcsize(order + count_format)
        directories.append((first, count))
        links.append(first + count * entry)
        at = struct.unpack_from(order + offset, out, links[-1])[0]
    if not directories or not directories[0][1]:
        raise IndexError("no directory")
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        first, count = rng.choice(directories)
        place = first + entry * rng.randrange(count)
        _code, kind = struct.unpack_from(order + "HH", out, place)
        match rng.randrange(10):
            case 0:
                struct.pack_into(order + "H", out, place, rng.choice(_CODES))
            case 1:
                struct.pack_into(order + "H", out, place + 2, rng.choice((*range(20), 65535)))
            case 2:
                struct.pack_into(order + offset, out, place + 4, integer(rng, 8 * word))
            case 3:
                struct.pack_into(
                    order + offset, out, rng.choice(links), rng.choice((*links, 8, 0, len(out), first - 2))
                )
            case 4:
                other = first + entry * rng.randrange(count)
                out[place : place + entry], out[other : other + entry] = (
                    out[other : other + entry],
                    out[place : place + entry],
                )
            case 5:
                where = struct.unpack_from(order + offset, out, place + 4 + word)[0]
                if where + 8 < len(out):
                    struct.pack_into(order + "I", out, where + 4 * rng.randrange(2), integer(rng, 32))
            case 6:  # the same directory at the end, one entry longer
                new = len(out) + len(out) % 2
                value = struct.pack(order + "HH" + offset, rng.choice(_CODES), rng.choice((1, 3, 4, 5, 11, 12, 16)), 1)
                value += struct.pack(order + offset, integer(rng, 8 * word))
                listed = bytes(out[first : first + entry * count]) + value
                listed = b"".join(
                    sorted(
                        (listed[i : i + entry] for i in range(0, len(listed), entry)),
                        key=lambda e: struct.unpack(order + "H", e[:2]),
                    )
                )
                following = out[first + entry * count :][:word]
                out += b"\0" * (len(out) % 2) + struct.pack(order + count_format, count + 1) + listed + following
                struct.pack_into(order + offset, out, links[0], new)
            case 7:
                pixels = rng.randrange(len(out))
                out[pixels : pixels + 50] = some_bytes(bytes(out[pixels : pixels + 50]), rng)[:50]
            case _:  # the value itself, of its own type
                format_ = {1: "B", 3: "H", 4: "I", 16: "Q", 11: "f", 12: "d", 8: "h", 9: "i"}.get(kind, "H")
                if struct.calcsize(format_) <= word:
                    value: Any = integer(rng, 8 * struct.calcsize(format_))
                    if format_ in "fd":
                        value = float(value % 1000)
                    if format_ in "hi":
                        value -= 2 ** (8 * struct.calcsize(format_) - 1)
                    struct.pack_into(order + format_, out, place + 4 + word, value)
    return bytes(out)


def file(data: bytes, rng: Random) -> bytes:
    """A file changed by what its format knows, or blindly."""
    known = {b"\x89PNG": png, b"RIFF": riff, b"\xff\xd8\xff": jpeg}
    known |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff)
    change = next((change for head, change in known.items() if data.startswith(head)), some_bytes)
    if rng.random() < 0.3:
        change = some_bytes
    data = change(data, rng)
    return some_bytes(data, rng) if rng.random() < 0.1 else data


def value(content: Any, rng: Random) -> Any:
    """JSON values of which one, at any depth, is another, is missing, or stands elsewhere."""
    if isinstance(content, dict) and content and rng.random() < 0.8:
        out = dict(content)
        name = rng.choice(list(out))
        match rng.randrange(8):
            case 0:
                del out[name]
            case 1:
                out[rng.choice(("x", "", name + "x"))] = out.pop(name)
            case 2:
                out[name] = out[rng.choice(list(out))]
            case 3:
                out[rng.choice(("extra", "error", "begun"))] = rng.choice(ODD_VALUES)
            case _:
                out[name] = value(out[name], rng)
        return out
    if isinstance(content, list) and content and rng.random() < 0.8:
        out = list(content)
        if rng.random() < 0.3:
            _reordered(out, rng)
        else:
            at = rng.randrange(len(out))
            out[at] = value(out[at], rng)
        return out
    if isinstance(content, int | float) and not isinstance(content, bool) and rng.random() < 0.5:
        return rng.choice((-content, content + 1, content * 2, content * 10**9, content + 0.5, str(content), [content]))
    if isinstance(content, str) and rng.random() < 0.3:
        return some_bytes(content.encode(), rng).decode("latin-1")
    return rng.choice(ODD_VALUES)


def json_text(text: str, rng: Random) -> str:
    """A text of JSON with another value, or changed blindly."""
    if rng.random() < 0.2:
        return some_bytes(text.encode(), rng).decode("utf-8", "replace")
    if rng.random() < 0.02:
        return rng.choice(("[" * 100_000, '{"a":' * 50_000, "9" * 5000, "NaN", "", "null", "\0"))
    return json.dumps(value(json.loads(text), rng))
