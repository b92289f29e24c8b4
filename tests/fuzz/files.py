"""Damaged pictures and masks, through everything that reads files."""

import io
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from refine.io import read_image, read_mask, read_size
from refine.prepare import as_mask, prepare
from refine.slides import Slide
from refine.tiles import Window

from . import mutate

_SIZE = (40, 50)
_LARGEST = 2**22  # px that are read by windows, too


def _pixels(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    """A smooth picture with an object and some noise."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    values = (
        (np.hypot(y - shape[0] / 2, x - shape[1] / 2) < 12) * 150
        + y
        + np.random.default_rng(0).integers(9, size=y.shape)
    ) / 255
    values = values.reshape(*values.shape, *(1 for _ in shape[2:])) * np.ones(shape)
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    return values > 0.4 if dtype is bool else (values * np.iinfo(dtype).max).astype(dtype)


def _tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    bigtiff, byteorder = options.pop("bigtiff", False), options.pop("byteorder", "<")
    with tifffile.TiffWriter(file, bigtiff=bigtiff, byteorder=byteorder) as writer:
        for copy in range(options.pop("pages", 1)):
            step = 2**copy
            writer.write(array[::step, ::step], **({"metadata": None} | options), subfiletype=copy and 1)
            if options.get("subifds"):
                writer.write(array[::2, ::2], metadata=None, subfiletype=1)
    return file.getvalue()


@cache
def tiffs() -> list[bytes]:
    """TIFF in many layouts and compressions."""
    rgb, grey, mask = _pixels(*_SIZE, 3), _pixels(*_SIZE), _pixels(*_SIZE, dtype=bool)
    tiles: dict[str, Any] = {"tile": (16, 16)}
    colour: dict[str, Any] = {"photometric": "rgb"}
    planes: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate"}
    found = [_tiff(rgb, **colour), _tiff(grey), _tiff(mask), _tiff(mask, rowsperstrip=7), _tiff(mask, **tiles)]
    found += [
        _tiff(np.moveaxis(rgb, -1, 0), **planes),
        _tiff(np.moveaxis(rgb, -1, 0), **planes, **tiles, compression="zlib"),
    ]
    for compression in ("zlib", "lzw", "zstd", "packbits", "lzma"):
        found += [
            _tiff(rgb, **colour, compression=compression, rowsperstrip=16),
            _tiff(grey, compression=compression, **tiles),
        ]
    for compression in ("jpeg", "webp", "png", "jpeg2000", "jpegxl", "jpegxr"):
        found.append(_tiff(rgb, **colour, compression=compression, tile=(32, 32)))
    found += [_tiff(grey, compression="jpeg", rowsperstrip=16), _tiff(grey, compression="lerc", **tiles)]
    found += [
        _tiff(rgb, **colour, compression="zlib", predictor=True, **tiles),
        _tiff(rgb, **colour, compression="zlib", predictor=True),
    ]
    for dtype in (np.uint16, np.int16, np.uint32, np.float32, np.float16, np.float64):
        found += [
            _tiff(_pixels(*_SIZE, dtype=dtype)),
            _tiff(_pixels(*_SIZE, 3, dtype=dtype), **colour, compression="zlib", predictor=True, **tiles),
        ]
    found += [
        _tiff(_pixels(*_SIZE, 4), **colour, extrasamples=kind, **tiles)
        for kind in ("unassalpha", "assocalpha", "unspecified")
    ]
    found += [
        _tiff(_pixels(*_SIZE, 2), extrasamples="unassalpha"),
        _tiff(_pixels(*_SIZE, 4), photometric="separated", compression="lzw"),
    ]
    found += [_tiff(grey, photometric="miniswhite"), _tiff(mask, photometric="miniswhite", compression="packbits")]
    found += [_tiff(grey // 16, photometric="palette", colormap=_pixels(3, 256, dtype=np.uint16))]
    found += [
        _tiff(rgb, **colour, bigtiff=True, **tiles, compression="zlib"),
        _tiff(grey, byteorder=">", compression="lzw"),
    ]
    found += [
        _tiff(_pixels(*_SIZE, dtype=np.uint16), byteorder=">", compression="zlib", predictor=True),
        _tiff(rgb, **colour, pages=3),
    ]
    found += [
        _tiff(rgb, **colour, subifds=1, **tiles),
        _tiff(grey, extratags=[(274, 3, 1, 6, True)]),
        _tiff(rgb, **colour, metadata={}),
    ]
    found += [_tiff(grey, extratags=[(42113, 2, 3, "255", True), (33550, 12, 3, (1.0, 1.0, 0.0), True)], **tiles)]
    found += [
        _tiff(rgb, **colour, description='{"shape": [40, 50, 3]}'),
        _tiff(rgb, **colour, metadata={"axes": "YXS"}),
    ]
    for mode, compression in (
        ("1", "group4"),
        ("1", "group3"),
        ("L", "tiff_lzw"),
        ("RGB", "jpeg"),
        ("RGBA", "tiff_adobe_deflate"),
        ("P", "raw"),
        ("CMYK", "raw"),
        ("LAB", "raw"),
        ("YCbCr", "raw"),
    ):
        file = io.BytesIO()
        Image.fromarray(rgb).convert("RGB" if mode == "LAB" else mode).save(file, "TIFF", compression=compression)
        found.append(file.getvalue())
    return found


@cache
def pictures() -> list[bytes]:
    """PNG, JPEG, WebP, GIF and BMP in many kinds."""
    rgb = Image.fromarray(_pixels(*_SIZE, 3))
    found = []

    def save(picture: Image.Image, kind: str, **options: Any) -> None:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        found.append(file.getvalue())

    exif = Image.Exif()
    exif[274] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "x" * 300, zip=True)
    text.add_itxt("Comment", "y" * 300, zip=True)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        save(rgb.convert(mode), "PNG")
    save(rgb, "PNG", exif=exif, pnginfo=text, icc_profile=bytes(500))
    save(rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=4), "PNG", transparency=0)
    save(rgb.convert("L"), "PNG", transparency=3)
    save(rgb, "PNG", save_all=True, append_images=[rgb.rotate(9)])
    for shape in ((*_SIZE,), (*_SIZE, 3), (*_SIZE, 4)):
        found.append(bytes(imagecodecs.png_encode(_pixels(*shape, dtype=np.uint16))))
    save(rgb, "JPEG", quality=90)
    save(rgb, "JPEG", quality=50, progressive=True, exif=exif, icc_profile=bytes(500))
    save(rgb.convert("L"), "JPEG", comment=b"z" * 40)
    save(rgb.convert("CMYK"), "JPEG")
    save(rgb, "JPEG", subsampling=0, restart_marker_rows=1)
    save(rgb, "WEBP")
    save(rgb, "WEBP", lossless=True, exif=exif, icc_profile=bytes(500))
    save(rgb.convert("RGBA"), "WEBP")
    save(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(9)])
    save(rgb.convert("P"), "GIF")
    save(rgb, "GIF", save_all=True, append_images=[rgb.rotate(9)], duration=9)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        save(rgb.convert(mode), "BMP")
    return found


@cache
def _npys() -> list[bytes]:
    found = []
    for dtype in (bool, np.uint8, np.uint16, np.int32, np.int64, np.float16, np.float32, np.float64):
        for order in "CF":
            file = io.BytesIO()
            np.save(file, np.array(_pixels(*_SIZE, dtype=dtype), order=order))
            found.append(file.getvalue())
    return found


@cache
def _whole() -> dict[str, bytes]:
    file = io.BytesIO()
    Image.fromarray(_pixels(*_SIZE, dtype=bool)).save(file, "PNG")
    return {"mask": file.getvalue(), "image": pictures()[4]}


def _read(path: Path, calls: Any) -> None:
    """By all readers of whole files; the size that is told is that of what is read."""
    size = calls("read_size", lambda: read_size(path))
    image = calls("read_image", lambda: read_image(path))
    if image is not None:
        calls.check(image.shape[:2] == size, f"read_size gives {size} of a picture of {image.shape}")
        calls.check(image.dtype == np.uint8 and image.shape[2:] == (3,), f"a picture of {image.dtype} {image.shape}")
    opened = calls("opened by Pillow", lambda: _opened(path))
    if image is not None and opened is not None:
        calls.check(np.array_equal(image, opened), "a file by path and opened by Pillow differ")
    mask = calls("read_mask", lambda: read_mask(path))
    if mask is not None:
        soft = calls("as_mask", lambda: as_mask(path, mask.shape[:2]))
        possible = soft is None or (soft.dtype == np.float32 and soft.min() >= 0 and soft.max() <= 1)
        calls.check(possible, "a mask outside of [0, 1]")


def _opened(path: Path) -> np.ndarray | None:
    try:
        picture = Image.open(path)
    except Exception:  # what Pillow does not open is nobody's picture
        return None
    with picture:
        return read_image(picture)


def _by_windows(path: Path, calls: Any) -> None:
    """What a slide gives by windows is what is read whole."""

    def parts(read: str) -> np.ndarray:
        with Slide(path) as slide:
            height, width = slide.size
            if height * width > _LARGEST:
                return getattr(slide, read)(Window(0, min(height, 300), 0, min(width, 300)))
            middle = Window(height // 3, height, width // 3, width)
            part = getattr(slide, read)(middle)
            whole = getattr(slide, read)(Window(0, height, 0, width))
        calls.check(np.array_equal(part, whole[middle.slices]), f"{read} of a window is no window of the whole")
        return whole

    def large() -> bool:
        height, width = read_size(path, allow_large=True)
        return height * width > _LARGEST

    picture, mask = calls("Slide.read", lambda: parts("read")), calls("Slide.read_mask", lambda: parts("read_mask"))
    if picture is not None and not large():
        image = calls("read_image", lambda: read_image(path))
        calls.check(image is None or np.array_equal(image, picture), "Slide.read and read_image differ")
        soft = calls("as_mask", lambda: as_mask(path, picture.shape[:2]))
        calls.check(soft is None or mask is None or np.array_equal(soft, mask), "Slide.read_mask and as_mask differ")


def tiff(rng: Random, folder: Path, calls: Any) -> None:
    path = folder / "file.tif"
    path.write_bytes(mutate.file(rng.choice(tiffs()), rng))
    _read(path, calls)
    _by_windows(path, calls)


def picture(rng: Random, folder: Path, calls: Any) -> None:
    path = folder / "file"
    path.write_bytes(mutate.file(rng.choice(pictures()), rng))
    _read(path, calls)


def npy(rng: Random, folder: Path, calls: Any) -> None:
    path = folder / "file.npy"
    data = rng.choice(_npys())
    if rng.random() < 0.7:  # in its head
        head = mutate.some_bytes(data[:128], rng)
        if rng.random() < 0.7:
            word = rng.choice((b"(40, 50)", b"40", b"50", b"False", b"'<", b"True", b"'descr'", b"|u1", b"<f4"))
            value = str(
                rng.choice(
                    (
                        *mutate.INTERESTING,
                        *mutate.LARGE,
                        -1,
                        0.5,
                        "(1,) * 99",
                        "()",
                        "'|O'",
                        "{}",
                        "'<U9'",
                        "'<M8'",
                        "'<c8'",
                        "[('a','<u2')]",
                    )
                )
            )
            head = data[:128].replace(word, value.encode(), 1)
        data = head + data[128:]
    else:
        data = mutate.some_bytes(data, rng)
    path.write_bytes(data)
    _read(path, calls)


def pair(rng: Random, folder: Path, calls: Any) -> None:
    """One of a picture and its mask is damaged, or both."""
    paths = {}
    damaged = rng.choice((("image",), ("mask",), ("image", "mask")))
    for kind in ("image", "mask"):
        data = _whole()[kind]
        if kind in damaged:
            data = mutate.file(rng.choice(tiffs() + pictures()), rng)
        paths[kind] = folder / kind
        paths[kind].write_bytes(data)
    made = calls("prepare", lambda: (lambda p: (p.image, p.mask))(prepare(paths["image"], paths["mask"])))
    if made is not None:
        calls.check(made[0].shape[:2] == made[1].shape, f"a pair of {made[0].shape} and {made[1].shape}")
        calls.check(
            bool(np.isfinite(made[1]).all() and made[1].min() >= 0 and made[1].max() <= 1), "a mask outside of [0, 1]"
        )
