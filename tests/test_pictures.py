import io as bytes_io
import struct
import threading
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from refine import io, pictures
from refine.errors import FileError


def scene(height: int = 60, width: int = 80, noise: float = 9) -> np.ndarray:
    rng = np.random.default_rng(0)
    blobs = rng.random((7, 9, 3)).astype(np.float32)
    picture = cv2.resize(blobs, (width, height)) * 200 + rng.normal(0, noise, (height, width, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def shown(path: Path) -> np.ndarray:
    """A picture as Pillow shows it."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA").convert("RGB"))


def saved(picture: Image.Image, format: str, **options: object) -> bytes:
    stream = bytes_io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a"


# ------------------------------------------------------------------------- what others set in the process means nothing

LOSSY = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("WEBP", {}), ("GIF", {})]


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize(("format", "options"), LOSSY)
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_half_a_file_is_an_error_whatever_pillow_is_told(path, monkeypatch, mode, format, options, flag):
    if mode == "P" and format in ("JPEG", "WEBP"):
        pytest.skip("has no palettes")
    data = saved(Image.fromarray(scene()).convert(mode), format, **options)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", flag)
    for share in (0.3, 0.5, 0.7, 0.9, 0.99):
        path.write_bytes(data[: int(share * len(data))])
        for read in (io.read_image, io.read_mask):
            with pytest.raises(FileError, match=r"a: (truncated|of an unknown)"):
                read(path)
    path.write_bytes(data)
    np.testing.assert_array_equal(io.read_image(path), shown(path))
    assert flag == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF"])
def test_half_a_file_is_an_error_too_where_pillow_has_opened_it(path, monkeypatch, format):
    data = saved(Image.fromarray(scene()), format)
    path.write_bytes(data[: len(data) * 2 // 3])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(path) as picture, pytest.raises(FileError, match="image: truncated or damaged"):
        io.read_image(picture)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "RGBA", "LA", "P"])
def test_a_file_is_the_same_by_path_by_pillow_and_loaded_by_pillow(path, format, mode):
    picture = Image.fromarray(scene()).convert(mode)
    try:
        data = saved(picture, format)
    except (OSError, KeyError, ValueError):
        pytest.skip("is not written by Pillow")
    path.write_bytes(data)
    with Image.open(path) as opened:
        unread = io.read_image(opened)
        opened.load()
        loaded = io.read_image(opened)
    np.testing.assert_array_equal(io.read_image(path), unread)
    np.testing.assert_array_equal(unread, loaded)
    np.testing.assert_array_equal(unread, shown(path))


def test_a_frame_or_draft_that_was_asked_of_pillow_is_what_is_read(path):
    frames = [Image.fromarray(scene()), Image.fromarray(scene()[::-1])]
    path.write_bytes(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    with Image.open(path) as picture:
        picture.seek(1)
        np.testing.assert_array_equal(io.read_image(picture), scene()[::-1])
    path.write_bytes(saved(Image.fromarray(scene(600, 800)), "JPEG"))
    with Image.open(path) as picture:
        picture.draft("RGB", (200, 150))
        assert io.read_image(picture).shape == (150, 200, 3)


def test_pictures_of_streams_and_of_closed_files_are_read(path):
    data = saved(Image.fromarray(scene()), "PNG")
    with Image.open(bytes_io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(io.read_image(picture), scene())
        np.testing.assert_array_equal(np.asarray(picture), scene())  # Pillow goes on where it was
    path.write_bytes(data)
    with Image.open(path) as picture:
        picture.load()
    np.testing.assert_array_equal(io.read_image(picture), scene())


# -------------------------------------------------------------------------------------------------------------- PNG


@pytest.mark.parametrize("kind", ["text", "compressed text", "international text", "profile", "exif", "unknown"])
def test_a_png_is_read_whatever_it_holds_beside_its_pixels(path, monkeypatch, kind):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 10)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 10)
    large = bytes(3 * 2**20)
    extra = {
        "text": chunk(b"tEXt", b"workflow\0" + large.replace(b"\0", b"x")),
        "compressed text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(large)),
        "international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(large)),
        "profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(large)),
        "exif": chunk(b"eXIf", b"MM\0*" + large),
        "unknown": chunk(b"prVt", large),
    }[kind]
    data = saved(Image.fromarray(scene()), "PNG")
    for place in (33, len(data) - 12):
        path.write_bytes(data[:place] + extra + data[place:])
        np.testing.assert_array_equal(io.read_image(path), scene())
        assert io.read_size(path) == (60, 80)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_an_indexed_png_of_any_depth_is_read_with_or_without_transparency(path, bits, transparency):
    indices = (np.add.outer(np.arange(12), np.arange(17)) % min(2**bits, 200)).astype(np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette([(37 * i) % 256 for i in range(3 * 2**bits)])
    options = {} if transparency is None else {"transparency": transparency}
    path.write_bytes(saved(picture, "PNG", bits=bits, **options))
    np.testing.assert_array_equal(io.read_image(path), np.asarray(picture.convert("RGB")))
    stored = pictures.format_of(path.read_bytes()).decode(path.read_bytes(), "a", lambda width, height: None)
    np.testing.assert_array_equal(stored.samples, indices)
    wanted = [255] * 256 if transparency is None else [0, 255] if transparency == 0 else [0, 128, 255]
    assert (stored.opacity is None) == (transparency is None)
    if stored.opacity is not None:
        assert stored.opacity[: len(wanted)].tolist() == wanted


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_png_of_any_depth_is_read_over_its_whole_range(path, bits):
    levels = np.arange(2 ** min(bits, 8)).reshape(2, -1)
    digits = np.unpackbits(levels.astype(np.uint8)[..., None], axis=2)[..., -min(bits, 8) :]
    rows = np.packbits(digits.reshape(2, -1), axis=1)
    if bits == 16:
        rows = np.repeat(levels, 2, 1).astype(np.uint8)
    head = struct.pack(">IIBBBBB", levels.shape[1], 2, bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    found = io.read_mask(path)
    assert found.dtype == (bool if bits == 1 else np.uint16 if bits == 16 else np.uint8)
    top = 1 if bits == 1 else 65535 if bits == 16 else 255
    np.testing.assert_array_equal(found, np.rint(levels * (top / (2 ** min(bits, 8) - 1))))


@pytest.mark.parametrize("interlace", [False, True])
def test_an_interlaced_png_is_read(path, interlace):
    # Pillow writes none: the seven passes of Adam7, each a picture of its own.
    picture = scene(13, 17)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [picture[y::down, x::across] for y, x, down, across in passes] if interlace else [picture]
    data = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    head = struct.pack(">IIBBBBB", 17, 13, 8, 2, 0, 0, interlace)
    blocks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + blocks)
    np.testing.assert_array_equal(io.read_image(path), picture)


def test_the_size_of_a_png_is_read_without_its_pixels(path, monkeypatch):
    def decoded(*args, **kwargs):
        raise AssertionError("the pixels were decoded")

    exif = Image.Exif()
    exif[274] = 6
    path.write_bytes(saved(Image.fromarray(scene()), "PNG", exif=exif))
    for module, name in ((imagecodecs, "png_decode"), (ImageFile.ImageFile, "load"), (Image.Image, "load")):
        monkeypatch.setattr(module, name, decoded)
    assert io.read_size(path) == (80, 60)


@pytest.mark.parametrize("kind", ["eXIf", "Raw profile type exif", "XML:com.adobe.xmp"])
def test_a_png_turned_by_any_of_its_blocks_is_read_as_pillow_shows_it(path, kind):
    exif = Image.Exif()
    exif[274] = 6
    info = PngImagePlugin.PngInfo()
    if kind == "eXIf":
        data = saved(Image.fromarray(scene()), "PNG", exif=exif)
    elif kind == "XML:com.adobe.xmp":
        info.add_itxt(kind, '<x tiff:Orientation="6"/>', zip=True)
        data = saved(Image.fromarray(scene()), "PNG", pnginfo=info)
    else:
        info.add_text(kind, f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n", zip=True)
        data = saved(Image.fromarray(scene()), "PNG", pnginfo=info)
    path.write_bytes(data)
    np.testing.assert_array_equal(io.read_image(path), np.rot90(scene(), -1))
    assert io.read_size(path) == (80, 60)
    with Image.open(path) as picture:
        assert picture.getexif()[274] == 6


# ------------------------------------------------------------------------------------------------------- animations


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_refused_as_several_pages_are(path, format):
    frames = [Image.fromarray(np.roll(scene(), 20 * i, 1)) for i in range(3)]
    path.write_bytes(saved(frames[0], format, save_all=True, append_images=frames[1:]))
    for read in (io.read_image, io.read_mask):
        with pytest.raises(FileError, match="a: an animation of 3 pictures; accepted is one picture; save the one you"):
            read(path)


def test_a_photograph_with_further_pictures_behind_it_is_the_first_one(path):
    frames = [Image.fromarray(scene()), Image.fromarray(scene()[::-1])]
    path.write_bytes(saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=90))
    np.testing.assert_array_equal(io.read_image(path), shown(path))


@pytest.mark.parametrize("interlace", [0, 1])
def test_a_gif_shows_its_palette_and_its_mask_is_read(path, interlace):
    picture = Image.fromarray(scene()).quantize(60)
    path.write_bytes(saved(picture, "GIF", interlace=interlace))
    np.testing.assert_array_equal(io.read_image(path), np.asarray(picture.convert("RGB")))
    assert io.read_size(path) == (60, 80)
    mask = (scene()[..., 0] > 90).astype(np.uint8) * np.uint8(255)
    path.write_bytes(saved(Image.fromarray(mask), "GIF", interlace=interlace))
    np.testing.assert_array_equal(io.read_mask(path), mask)


def test_a_gif_whose_picture_leaves_a_part_of_its_frame_open_is_refused(path):
    data = bytearray(saved(Image.fromarray(scene()).quantize(4), "GIF"))
    data[6:10] = struct.pack("<HH", 100, 60)
    path.write_bytes(data)
    with pytest.raises(FileError, match="a: a GIF whose picture does not fill its frame; save it as PNG"):
        io.read_image(path)


# ------------------------------------------------------------------------------------------------------------- JPEG


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_of_12_bits_is_read_over_its_whole_range(path, channels):
    picture = np.rint(scene(noise=0) * (4095 / 255)).astype(np.uint16)
    picture = np.ascontiguousarray(picture[..., 0]) if channels == 1 else picture
    path.write_bytes(imagecodecs.jpeg_encode(picture, level=98, bitspersample=12))
    found = io.read_image(path)
    wanted = np.rint(picture / (4095 / 255))
    wanted = wanted if channels == 3 else np.dstack([wanted] * 3)
    assert np.abs(found - wanted).mean() < 3
    assert io.read_size(path) == (60, 80)


def test_a_lossless_jpeg_is_read(path):
    path.write_bytes(imagecodecs.ljpeg_encode(scene()[..., 0]))
    np.testing.assert_array_equal(io.read_mask(path), scene()[..., 0])


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_with_a_hole_or_an_early_end_is_refused(path, mode, options):
    data = saved(Image.fromarray(scene(240, 320)).convert(mode), "JPEG", quality=90, **options)
    half = len(data) // 2
    for damaged in (data[:half] + bytes(2048) + data[half + 2048 :], data[:half] + b"\xff\xd9"):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match="a: truncated or damaged"):
            io.read_image(path)
    path.write_bytes(data + b"a camera's own bytes" * 100)
    np.testing.assert_array_equal(io.read_image(path), shown(path))


# -------------------------------------------------------------------------------------------------------------- BMP


def test_a_run_length_coded_bmp_without_its_end_is_refused(path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    rows = b"".join(bytes([17, value, 0, 0]) for value in range(12)) + b"\0\1"
    palette = bytes(value for i in range(256) for value in (i, i, i, 0))
    head = struct.pack("<IiiHHIIiiII", 40, 17, 12, 1, 8, 1, len(rows), 0, 0, 256, 0)
    data = struct.pack("<2sIHHI", b"BM", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + head + palette + rows
    path.write_bytes(data)
    np.testing.assert_array_equal(io.read_mask(path), np.repeat(np.arange(12)[::-1, None], 17, 1))
    for end in (1, 2, 3, 20):
        path.write_bytes(data[:-end])
        with pytest.raises(FileError, match="a: truncated or damaged"):
            io.read_mask(path)


# ---------------------------------------------------------------------------------------------------------- threads


def test_files_are_read_by_many_threads_while_another_changes_pillows_settings(tmp_path, monkeypatch):
    halves, wholes, told = [], [], []
    for format in ("JPEG", "PNG", "BMP"):
        data = saved(Image.fromarray(scene()), format)
        for paths, part in ((wholes, data), (halves, data[: len(data) * 2 // 3])):
            paths.append(tmp_path / f"{len(paths)}-{len(part)}")
            paths[-1].write_bytes(part)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    done = threading.Event()

    def change() -> None:
        while not done.wait(1e-4):
            ImageFile.LOAD_TRUNCATED_IMAGES = not ImageFile.LOAD_TRUNCATED_IMAGES

    def read() -> None:
        for _ in range(10):
            for half in halves:
                with suppress(FileError):
                    told.append(io.read_image(half))
            for whole in wholes:
                io.read_image(whole)

    threads = [threading.Thread(target=read) for _ in range(3)]
    changing = threading.Thread(target=change)
    for thread in (changing, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    changing.join()
    assert told == []
