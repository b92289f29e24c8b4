import io as bytes_io
import struct

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image

from refine import streams

SIZES = [(13, 17), (64, 80), (300, 257), (2048, 16)]


def scene(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture without noise, whose codes are as long as a photograph's."""
    rng = np.random.default_rng(0)
    blobs = rng.random((40, 50, channels)).astype(np.float32)
    return np.rint(cv2.resize(blobs, (width, height)) * 255).astype(np.uint8).reshape(height, width, channels)


def jpeg(mode: str = "RGB", size: tuple[int, int] = (240, 320), **options: object) -> bytes:
    stream = bytes_io.BytesIO()
    Image.fromarray(scene(*size)).convert(mode).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def damage(data: bytes) -> str | None:
    try:
        return streams.jpeg_damage(streams.jpeg(data))
    except ValueError as error:
        return str(error)


def scan_ends(data: bytes) -> list[int]:
    """Where the scans of a JPEG end."""
    ends, at = [], 0
    for segment in streams.jpeg(data).segments:
        if segment.scan:
            at = data.index(segment.scan, at) + len(segment.scan)
            ends.append(at)
    return ends


KINDS = {
    "sequential": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "progressive, restart markers": {"progressive": True, "restart_marker_rows": 1},
    "own tables": {"optimize": True, "subsampling": 0},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_mode = pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])


@every_kind
@every_mode
def test_a_jpeg_that_is_whole_has_no_damage_whatever_cameras_leave_in_it(kind, mode):
    data = jpeg(mode, **KINDS[kind])
    ends = scan_ends(data)
    assert damage(data) is None
    assert damage(data + bytes(range(256)) * 4) is None  # behind its end
    assert damage(data[:2] + b"\0\0\0" + data[2:]) is None  # between segments
    for spare in (b"\0" * 4, b"\xff" * 5, b"\0" * 500, b"\x12\x34" * 10):
        assert damage(data[:-2] + spare + data[-2:]) is None  # behind the last block
        assert damage(data[: ends[0]] + spare + data[ends[0] :]) is None


@every_kind
@every_mode
def test_a_jpeg_with_a_hole_is_damaged(kind, mode):
    data = jpeg(mode, **KINDS[kind])
    for at in (len(data) // 3, len(data) // 2, len(data) * 3 // 4):
        assert damage(data[:at] + bytes(4096) + data[at + 4096 :]), at
        assert damage(data[:at] + b"\xff" * 4096 + data[at + 4096 :]), at
        assert damage(data[:at] + data[at + 4096 :]), at
    half = len(data) // 2
    assert damage(data[:half] + bytes(len(data) - half - 2) + data[-2:])  # a file of its length that was half written


@every_kind
@every_mode
def test_a_jpeg_with_an_end_marker_in_the_middle_is_damaged(kind, mode):
    data = jpeg(mode, **KINDS[kind])
    for at in (700, len(data) // 2, len(data) - 200, *scan_ends(data)[:-1]):
        assert damage(data[:at] + b"\xff\xd9"), at
        assert damage(data[:at] + b"\xff\xd9" + data[at:]), at


def test_a_jpeg_of_endless_scans_is_refused():
    data = jpeg(size=(16, 16), progressive=True)
    start = data.index(b"\xff\xda")
    scans = data[start : scan_ends(data)[0]]
    assert "scans" in str(damage(data[:start] + scans * (streams.MAX_SCANS + 1) + b"\xff\xd9"))


@pytest.mark.parametrize("end", range(0, 640, 7))
def test_a_jpeg_cut_anywhere_in_its_head_is_damaged(end):
    assert damage(jpeg()[:end] + b"\xff\xd9")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("codec", ["jpeg8", "png", "webp", "jpeg2k", "jpegxl", "lerc"])
def test_the_size_of_a_code_stream_is_that_of_its_picture(size, codec):
    data = getattr(imagecodecs, f"{codec}_encode")(scene(*size))
    assert streams.size(data)[:2] == size


@pytest.mark.parametrize("size", SIZES)
def test_the_size_of_a_code_stream_in_a_container_is_that_of_its_picture(size):
    picture = scene(*size)
    stream = bytes_io.BytesIO()
    Image.fromarray(picture).save(stream, "WEBP", exif=b"Exif\0\0", lossless=True)
    for data in (
        imagecodecs.jpeg2k_encode(picture, codecformat="jp2"),
        imagecodecs.jpegxl_encode(picture, usecontainer=True),
        imagecodecs.webp_encode(picture, lossless=True),
        stream.getvalue(),
    ):
        assert streams.size(data)[:2] == size


@pytest.mark.parametrize("codec", ["jpeg8", "png", "webp", "jpeg2k", "jpegxl", "lerc"])
def test_the_head_of_a_code_stream_that_is_cut_is_damaged_or_told(codec):
    data = getattr(imagecodecs, f"{codec}_encode")(scene(13, 17))
    for end in range(60):
        try:
            found = streams.size(data[:end])
        except ValueError:
            continue
        assert found is None or found[:2] == (13, 17) or codec == "jpegxl"  # whose sizes are of bits


def test_a_stream_of_no_known_format_has_no_size():
    assert streams.size(b"plain samples") is None
    assert streams.size(b"") is None
    assert streams.size(struct.pack(">I", 12) + b"ftypavif") is None
