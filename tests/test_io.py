import io as streams
import os
import re
import stat
import struct
import threading
import time
import tracemalloc
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from refine import io
from refine.errors import FileError, InputError, OptionError

SIZES = [(1, 1), (1, 7), (7, 1), (5, 3), (9, 13)]
FORMATS = ["JPEG", "PNG", "BMP", "WEBP", "TIFF"]


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def png(tmp_path, picture, **options):
    path = tmp_path / "picture.png"
    picture.save(path, **options)
    return path


def huge_png(path, width, height):
    """A PNG header and no pixels: whatever decodes it fails."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


# ------------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".webp"])
def test_a_lossless_picture_comes_back_as_written(tmp_path, size, suffix):
    rgb = noise(*size, 3)
    io.write_image(tmp_path / f"a{suffix}", rgb)
    np.testing.assert_array_equal(io.read_image(tmp_path / f"a{suffix}"), rgb)
    with Image.open(tmp_path / f"a{suffix}") as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), rgb)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_a_jpeg_is_read_as_pillow_reads_it(tmp_path, suffix):
    io.write_image(tmp_path / f"a{suffix}", cv2.resize(noise(3, 4, 3), (40, 30)))
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.format == "JPEG"
        np.testing.assert_array_equal(io.read_image(tmp_path / f"a{suffix}"), np.asarray(picture))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_to_images_and_masks(tmp_path, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.repeat(noise(4, 6, 1), 3, axis=2))
    options = {"lossless": True} if format == "WEBP" else {}
    picture.save(tmp_path / "a", format, exif=exif, **options)
    with Image.open(tmp_path / "a") as opened:
        opened.load()
        want = np.asarray(opened if format == "TIFF" else ImageOps.exif_transpose(opened))  # Pillow turns a TIFF itself
        np.testing.assert_array_equal(io.read_image(tmp_path / "a"), want)
        np.testing.assert_array_equal(io.read_mask(tmp_path / "a"), want[..., 0])
        assert io.read_size(tmp_path / "a") == want.shape[:2]
    if format != "TIFF":
        with Image.open(tmp_path / "a") as opened:
            np.testing.assert_array_equal(io.read_image(opened), want)


def test_a_damaged_exif_block_leaves_the_picture_upright(tmp_path):
    path = png(tmp_path, Image.fromarray(noise(4, 6, 3)), exif=b"Exif\0\0this is no TIFF header")
    assert io.read_image(path).shape == (4, 6, 3)


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    rgb = io.read_image(tmp_path / "a.jpg").astype(int)
    assert np.abs(rgb - (255, 0, 0)).max() <= 3
    assert io.read_image(Image.new("CMYK", (2, 3), (255, 0, 0, 0))).tolist() == [[[0, 255, 255]] * 2] * 3


def test_alpha_is_dropped_and_the_colours_under_it_kept(tmp_path):
    rgba = noise(5, 4, 4)
    rgba[0, :, 3] = 0
    np.testing.assert_array_equal(io.read_image(png(tmp_path, Image.fromarray(rgba))), rgba[..., :3])
    la = noise(5, 4, 2)
    np.testing.assert_array_equal(io.read_image(png(tmp_path, Image.fromarray(la, "LA")))[..., 1], la[..., 0])


@pytest.mark.parametrize("alpha", [None, 3, bytes([0, 128, 255])])
def test_a_palette_png_shows_its_colours(tmp_path, alpha):
    picture = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = png(tmp_path, picture, **({} if alpha is None else {"transparency": alpha}))
    want = [[[10, 20, 30], [40, 50, 60], [70, 80, 90]], [[70, 80, 90], [40, 50, 60], [10, 20, 30]]]
    assert io.read_image(path).tolist() == want
    with Image.open(path) as opened:
        assert io.read_image(opened).tolist() == want


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "HSV"])
def test_a_pil_image_of_any_mode_looks_as_pillow_shows_it(mode):
    picture = Image.fromarray(noise(4, 5, 3) // 2)
    picture = picture.convert("LA" if mode == "La" else "RGBA" if mode in ("RGBa", "PA") else "RGB").convert(mode)
    straight = picture.convert(mode.upper()) if mode in ("La", "RGBa") else picture
    want = straight.convert("RGB")
    np.testing.assert_array_equal(io.read_image(picture), np.asarray(want))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_16_bit_png_keeps_its_full_range(tmp_path, channels):
    samples = noise(6, 5, channels, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(samples if channels > 1 else samples[..., 0]))
    colours = samples[..., :3] if channels > 2 else np.repeat(samples[..., :1], 3, axis=2)
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.png"), np.rint(colours / 257))


def test_every_16_bit_value_becomes_the_nearest_8_bit_one():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(io.rgb8(values, "image")[..., 0], np.rint(values / 257))
    np.testing.assert_array_equal(io.rgb8(values.astype(">u2"), "image")[..., 2], np.rint(values / 257))


@pytest.mark.parametrize(("peak", "remedy"), [(255, "white=255 "), (256, "white=1023 "), (4095, "white=4095 ")])
def test_fewer_bits_in_a_16_bit_file_are_not_read_as_a_dark_picture(tmp_path, peak, remedy):
    samples = np.array([[0, 40], [200, peak]], np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(samples))
    tifffile.imwrite(tmp_path / "a.tif", samples)
    for name in ("a.png", "a.tif"):
        with pytest.raises(InputError, match=rf"{name}: uint16 with values up to {peak} only.*65535.*{remedy}"):
            io.read_image(tmp_path / name)
        assert io.read_image(tmp_path / name, white=peak).tolist() == io.rgb8(samples / peak, "image").tolist()
    for bright in (0, 4096):
        assert io.rgb8(np.array([[0, bright]], np.uint16), "image").max() == round(bright / 257)


def test_a_16_bit_grey_pil_image_keeps_its_full_range():
    assert io.read_image(Image.fromarray(np.array([[0, 257, 65535]], np.uint16)))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("layout", ["grey", "rgb", "planar", "rgba", "tiled", "big"])
def test_a_tiff_of_any_layout_is_read(tmp_path, dtype, compression, layout):
    samples = noise(19, 17, 4 if layout == "rgba" else 3, dtype=dtype)
    options = {"photometric": "rgb", "compression": compression}
    stored = samples
    if layout == "grey":
        stored, options["photometric"] = samples[..., 0], "minisblack"
    elif layout == "planar":
        stored, options["planarconfig"] = np.ascontiguousarray(samples.transpose(2, 0, 1)), "separate"
    elif layout == "rgba":
        options["extrasamples"] = ["unassalpha"]
    elif layout == "tiled":
        options["tile"] = (16, 16)
    elif layout == "big":
        options |= {"bigtiff": True, "byteorder": ">"}
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    want = np.repeat(samples[..., :1], 3, axis=2) if layout == "grey" else samples[..., :3]
    want = np.rint(want / 257) if dtype == np.uint16 else want
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.tif"), want)


@pytest.mark.parametrize("size", SIZES)
def test_a_tiff_of_an_edge_size_is_not_mistaken_for_channels(tmp_path, size):
    tifffile.imwrite(tmp_path / "a.tif", noise(*size), photometric="minisblack")
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.tif")[..., 0], noise(*size))
    np.testing.assert_array_equal(io.read_mask(tmp_path / "a.tif"), noise(*size))


def test_a_float_tiff_in_0_to_1_is_accepted_and_another_range_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 0.5, 1]], np.float32))
    assert io.read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 128, 255]
    tifffile.imwrite(tmp_path / "a.tif", np.array([[-1e-7, 1 + 1.2e-7]], np.float32))
    assert io.read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 255]
    tifffile.imwrite(tmp_path / "b.tif", np.array([[0, 200]], np.float32))
    with pytest.raises(InputError, match=r"b\.tif: float values 0\.\.200.*\[0, 1\]; divide by 255"):
        io.read_image(tmp_path / "b.tif")


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, None), (np.float64, None), (np.uint16, 12)])
def test_samples_of_a_tiff_are_scaled_by_bands(tmp_path, monkeypatch, dtype, bits):
    samples = noise(256, 320, 3)
    stored = samples.astype(dtype) << 4 if bits else (samples / 255).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", bitspersample=bits)
    whole = io.read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(whole, np.rint(np.rint(stored * (65535 / 4095)) / 257) if bits else samples)
    monkeypatch.setattr(io, "_BAND", 5000)  # five rows and a part of one
    tracemalloc.start()
    try:
        banded = io.read_image(tmp_path / "a.tif")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(banded, whole)
    assert peak < 30 * 256 * 320  # 24 bytes of a px as it is stored, at most, and 3 as it is read


def test_colours_of_a_tiff_follow_its_photometric_tag(tmp_path):
    values = noise(4, 5)
    tifffile.imwrite(tmp_path / "white.tif", values, photometric="miniswhite")
    np.testing.assert_array_equal(io.read_mask(tmp_path / "white.tif"), 255 - values)
    colours = np.arange(768, dtype=np.uint16).reshape(3, 256) * 80
    tifffile.imwrite(tmp_path / "palette.tif", values, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(io.read_image(tmp_path / "palette.tif"), np.moveaxis(colours[:, values] // 257, 0, 2))
    Image.new("CMYK", (3, 2), (255, 0, 0, 0)).save(tmp_path / "cmyk.tif")
    assert io.read_image(tmp_path / "cmyk.tif").tolist() == [[[0, 255, 255]] * 3] * 2
    Image.fromarray(cv2.resize(noise(2, 2, 3), (32, 32))).save(tmp_path / "jpeg.tif", compression="jpeg")
    with Image.open(tmp_path / "jpeg.tif") as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    assert (
        np.abs(io.read_image(tmp_path / "jpeg.tif") - shown).max() <= 8
    )  # the two decoders enlarge chroma differently
    tifffile.imwrite(tmp_path / "lab.tif", noise(4, 5, 3), photometric="cielab")
    with pytest.raises(FileError, match=r"lab\.tif.*CIELAB.*convert it to RGB"):
        io.read_image(tmp_path / "lab.tif")


def test_a_one_bit_tiff_of_either_polarity_is_a_bool_mask(tmp_path):
    mask = noise(9, 13) > 127
    Image.fromarray(mask).save(tmp_path / "a.tif")
    Image.fromarray(mask).save(tmp_path / "b.tif", tiffinfo={262: 0})
    for path in (tmp_path / "a.tif", tmp_path / "b.tif"):
        with Image.open(path) as picture:
            shown = np.asarray(picture)
        assert io.read_mask(path).dtype == bool
        np.testing.assert_array_equal(io.read_mask(path), shown)


def test_a_tiff_of_several_pages_is_refused_and_overviews_are_not_pages(tmp_path):
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(noise(64, 64), subifds=0)
        file.write(noise(32, 32), subfiletype=1)
        file.write(noise(64, 64) > 127, subfiletype=4, photometric="mask")
    assert io.read_image(tmp_path / "pyramid.tif").shape == (64, 64, 3)
    tifffile.imwrite(tmp_path / "stack.tif", noise(3, 8, 9), photometric="minisblack")
    with pytest.raises(FileError, match=r"stack\.tif: 3 pages of the first one's size.*save the page you mean"):
        io.read_image(tmp_path / "stack.tif")


@pytest.mark.parametrize("kind", [1, 4])
def test_a_thumbnail_or_mask_before_the_picture_of_a_tiff_is_not_taken_for_it(tmp_path, kind):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(noise(6, 8) > 127, photometric="minisblack", subfiletype=kind)
        file.write(noise(60, 80, 3), photometric="rgb")
        file.write(noise(30, 40, 3), photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.tif"), noise(60, 80, 3))
    assert io.read_size(tmp_path / "a.tif") == (60, 80)


def test_a_larger_page_of_a_tiff_behind_the_first_is_refused_unless_it_is_marked(tmp_path):
    for name, kind in (("plain", 0), ("marked", 1)):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            file.write(noise(6, 8, 3), photometric="rgb")
            file.write(noise(60, 80, 3), photometric="rgb", subfiletype=kind)
    for read in (io.read_image, io.read_size):
        with pytest.raises(FileError, match=r"plain\.tif: 2 pages of the first one's size or larger.*save the page"):
            read(tmp_path / "plain.tif")
    assert io.read_size(tmp_path / "marked.tif") == (6, 8)


def test_a_tiff_of_a_marked_page_alone_is_read_unless_the_picture_lies_below_it(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(6, 8), subfiletype=1)
    np.testing.assert_array_equal(io.read_mask(tmp_path / "a.tif"), noise(6, 8))
    with tifffile.TiffWriter(tmp_path / "raw.tif") as file:
        file.write(noise(6, 8, 3), photometric="rgb", subfiletype=1, subifds=1)
        file.write(noise(60, 80), photometric="minisblack")
    with pytest.raises(FileError, match=r"raw\.tif: its first page is a smaller copy.*save the picture as the first"):
        io.read_image(tmp_path / "raw.tif")


def test_a_tiff_of_many_bands_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 9, 7), photometric="minisblack", planarconfig="contig")
    with pytest.raises(FileError, match="7 samples per pixel"):
        io.read_image(tmp_path / "a.tif")


# ------------------------------------------------------------------------------------------------------------- masks


def test_grey_and_binary_masks_are_read_as_stored(tmp_path):
    grey, bits = noise(5, 7), noise(5, 7) > 127
    np.testing.assert_array_equal(io.read_mask(png(tmp_path, Image.fromarray(grey))), grey)
    assert io.read_mask(png(tmp_path, Image.fromarray(bits))).dtype == bool
    np.testing.assert_array_equal(io.read_mask(png(tmp_path, Image.fromarray(bits))), bits)
    deep = noise(5, 7, dtype=np.uint16)
    read = io.read_mask(png(tmp_path, Image.fromarray(deep)))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, deep)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_mask_in_equal_channels_is_grey(tmp_path, channels):
    grey = noise(5, 7)
    stack = np.repeat(grey[..., None], channels, axis=2)
    if channels in (2, 4):
        stack[..., -1] = 255
    np.testing.assert_array_equal(io.read_mask(png(tmp_path, Image.fromarray(stack))), grey)


def test_a_coloured_mask_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(InputError, match=r"picture\.png: a coloured mask \(3 channels.*one grey channel; pick one"):
        io.read_mask(png(tmp_path, Image.fromarray(noise(5, 7, 3))))


def test_a_mask_that_lives_in_the_alpha_channel_is_not_read_as_empty(tmp_path):
    cutout = np.zeros((5, 7, 4), np.uint8)
    cutout[2:, :, 3] = 255
    with pytest.raises(InputError, match="alpha channel"):
        io.read_mask(png(tmp_path, Image.fromarray(cutout)))


def palette_mask(indices, colours):
    picture = Image.fromarray(np.asarray(indices, np.uint8), "P")
    picture.putpalette(colours)
    return picture


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [7, 8, 9] * 252 + [224, 224, 192]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_mask_that_lives_in_the_alpha_of_a_palette_is_not_read_as_empty(tmp_path, format):
    picture = Image.fromarray((noise(20, 30) > 99).astype(np.uint8))
    picture.putpalette([0, 0, 0, 0, 0, 0])
    picture.save(tmp_path / "a", format, transparency=0)
    with pytest.raises(InputError, match="one colour everywhere, and alpha varies; the mask seems to be the alpha"):
        io.read_mask(tmp_path / "a")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "a", format, transparency=0)
    np.testing.assert_array_equal(io.read_mask(tmp_path / "a") > 0, noise(20, 30) > 99)


def test_a_grey_palette_gives_the_greys_it_displays(tmp_path):
    mask = palette_mask([[0, 1, 2]], [255, 255, 255, 90, 90, 90, 0, 0, 0])
    assert io.read_mask(png(tmp_path, mask)).tolist() == [[255, 90, 0]]
    assert io.read_mask(mask).tolist() == [[255, 90, 0]]


@pytest.mark.parametrize("indices", [[[0, 1, 1]], [[0, 255, 0]], [[1, 1, 1]]])
def test_a_coloured_palette_of_one_class_gives_its_indices(tmp_path, indices):
    assert io.read_mask(png(tmp_path, palette_mask(indices, VOC))).tolist() == indices


@pytest.mark.parametrize(
    ("indices", "values"),
    [([[0, 15]], [[0, 255]]), ([[0, 1, 255]], [[0, 255, 127]]), ([[0, 128, 255]], [[0, 255, 127]])],
)
def test_a_single_label_of_a_coloured_palette_is_the_object_and_255_void(tmp_path, indices, values):
    assert io.read_mask(png(tmp_path, palette_mask(indices, VOC))).tolist() == values


@pytest.mark.parametrize("indices", [[[0, 1, 2]], [[0, 1, 2, 255]], [[15, 255]], [[0, 130, 200]]])
def test_a_coloured_palette_of_labels_is_refused_by_name(tmp_path, indices):
    labels = ", ".join(str(i) for i in indices[0])
    with pytest.raises(InputError, match=rf"a label map .*{labels}.*mask == label"):
        io.read_mask(png(tmp_path, palette_mask(indices, VOC)))


def test_numpy_files_are_masks_and_not_images(tmp_path):
    np.save(tmp_path / "a.npy", noise(3, 4))
    np.testing.assert_array_equal(io.read_mask(tmp_path / "a.npy"), noise(3, 4))
    with pytest.raises(FileError, match=r"a\.npy: of an unknown format"):
        io.read_image(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(FileError, match=r"b\.npy: truncated.*\(JPEG, PNG, TIFF, BMP, WebP, GIF or \.npy\)"):
        io.read_mask(tmp_path / "b.npy")


@pytest.mark.parametrize("shape", [(3, 4, 1), (3, 4, 3), (3, 4, 4), (1, 4), (2, 2)])
def test_a_numpy_file_of_equal_channels_is_a_mask(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.ones(shape, np.uint8))
    assert io.read_mask(tmp_path / "a.npy").shape == shape[:2]


@pytest.mark.parametrize("shape", [(), (6,), (3, 4, 2), (3, 4, 6), (3, 5, 6), (1, 5, 6), (2, 3, 4, 1)])
def test_a_numpy_file_of_another_shape_is_refused_by_its_shape(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.ones(shape, np.uint8))
    message = f"a.npy: shape {shape} is no mask; accepted are (H, W) and (H, W, 1)"
    with pytest.raises(InputError, match=re.escape(message)):
        io.read_mask(tmp_path / "a.npy")


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("read", [io.read_image, io.read_mask])
def test_a_file_that_cannot_be_read_says_what_was_given(tmp_path, read):
    with pytest.raises(FileError, match=r"none\.png: no such file; give an existing file \(JPEG, PNG"):
        read(tmp_path / "none.png")
    with pytest.raises(FileError, match="is a folder; accepted is one file"):
        read(tmp_path)
    (tmp_path / "zero.png").touch()
    with pytest.raises(FileError, match=r"zero\.png: is empty \(0 bytes\)"):
        read(tmp_path / "zero.png")
    (tmp_path / "a.png").write_text("<html>not found</html>")
    with pytest.raises(FileError, match=r"a\.png: of an unknown format; accepted are JPEG, PNG, TIFF, BMP,? .*WebP"):
        read(tmp_path / "a.png")
    with pytest.raises(FileError, match="no regular file"):
        read("/dev/null")
    with pytest.raises(FileError, match="a text of 7 characters; accepted is a path"):
        read("a\0b.png")
    with pytest.raises(FileError, match="cannot be opened"):
        read(tmp_path / "a.png" / "b.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_says_so(tmp_path):
    path = png(tmp_path, Image.new("L", (2, 2)))
    path.chmod(0)
    with pytest.raises(FileError, match=r"cannot be opened \(Permission denied\)"):
        io.read_image(path)


def test_something_else_than_a_path_says_how_to_convert_it():
    with pytest.raises(InputError, match=r"mask: given a builtins\.list; accepted are a path.*np\.asarray"):
        io.read_mask([[0, 1]])


@pytest.mark.parametrize(
    ("format", "options"),
    [
        *((format, {}) for format in FORMATS),
        ("JPEG", {"progressive": True}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_truncated_file_is_an_error_and_never_half_a_picture(tmp_path, format, options):
    stream = streams.BytesIO()
    Image.fromarray(noise(40, 50, 3)).save(stream, format, **options)
    data = stream.getvalue()
    whole = Image.open(streams.BytesIO(data)).convert("RGB")
    path = tmp_path / "half"
    for end in [1, 3, 12, 30, len(data) // 4, len(data) // 2, len(data) - 60, len(data) - 13, len(data) - 3]:
        path.write_bytes(data[:end])
        with pytest.raises(FileError, match=r"half: (truncated or damaged|of an unknown format)"):
            io.read_image(path)
    path.write_bytes(data)
    assert io.read_image(path).shape == np.asarray(whole).shape


def test_a_truncated_16_bit_png_is_an_error(tmp_path):
    data = imagecodecs.png_encode(noise(30, 30, 3, dtype=np.uint16))
    for end in (len(data) // 2, len(data) - 20, len(data) - 2):
        (tmp_path / "a.png").write_bytes(data[:end])
        with pytest.raises(FileError, match=r"a\.png: truncated"):
            io.read_image(tmp_path / "a.png")


def test_a_truncated_strip_of_jpeg_in_a_tiff_is_an_error(tmp_path):
    stream = streams.BytesIO()
    tifffile.imwrite(stream, noise(60, 70, 3), photometric="rgb", compression="jpeg")
    (tmp_path / "a.tif").write_bytes(stream.getvalue()[:-500])  # the directory comes first here: only pixels are gone
    with pytest.raises(FileError, match=r"a\.tif: truncated or damaged \(the TIFF ends before its pixels"):
        io.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("read", [io.read_image, io.read_mask])
def test_300_megapixels_are_refused_before_decoding(tmp_path, read):
    path = huge_png(tmp_path / "bomb.png", 20_000, 15_000)
    message = r"bomb\.png: 20000 x 15000 are 300 megapixels, above the limit of 250.*allow_large=True \(--allow-large\)"
    with pytest.raises(FileError, match=message):
        read(path)
    tifffile.imwrite(tmp_path / "bomb.tif", noise(300, 300))
    with tifffile.TiffFile(tmp_path / "bomb.tif", mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(20_000)
        file.pages[0].tags["ImageLength"].overwrite(15_000)
    with pytest.raises(FileError, match=r"bomb\.tif: 20000 x 15000 are 300 megapixels"):
        read(tmp_path / "bomb.tif")


@pytest.mark.parametrize("read", [io.read_image, io.read_mask, io.read_size])
def test_a_small_tiff_of_a_huge_tile_is_refused_before_decoding(tmp_path, read):
    tifffile.imwrite(tmp_path / "bomb.tif", noise(64, 64), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(tmp_path / "bomb.tif", mode="r+") as file:
        file.pages[0].tags["TileWidth"].overwrite(16384)
        file.pages[0].tags["TileLength"].overwrite(16384)
    with pytest.raises(FileError, match=r"bomb\.tif: each tile: 16384 x 16384 are 268 megapixels, above the limit"):
        read(tmp_path / "bomb.tif")


@pytest.mark.parametrize("format", FORMATS)
def test_allow_large_reads_what_is_above_the_limit(tmp_path, monkeypatch, format):
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "a", format)
    monkeypatch.setattr(io, "MAX_PIXELS", 599)
    with pytest.raises(FileError, match="allow_large"):
        io.read_image(tmp_path / "a")
    assert io.read_image(tmp_path / "a", allow_large=True).shape == (20, 30, 3)
    with pytest.raises(FileError, match="allow_large"):
        io.read_size(tmp_path / "a")
    assert io.read_size(tmp_path / "a", allow_large=True) == (20, 30)
    with Image.open(tmp_path / "a") as picture:
        with pytest.raises(FileError, match="image: 30 x 20"):
            io.read_image(picture)
        assert io.read_image(picture, allow_large=True).shape == (20, 30, 3)


@pytest.mark.parametrize("format", FORMATS)
def test_pillows_own_limit_is_neither_met_nor_changed(tmp_path, monkeypatch, format):
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "a", format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    threads = [threading.Thread(target=io.read_image, args=(tmp_path / "a",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert io.read_image(tmp_path / "a").shape == (20, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_colour_modes_that_have_no_rgb_are_named():
    with pytest.raises(FileError, match="colour mode LAB is not accepted; convert it to RGB"):
        io.read_image(Image.new("LAB", (2, 2)))
    with pytest.raises(InputError, match="image: type int32"):
        io.read_image(Image.new("I", (2, 2)))
    with pytest.raises(InputError, match=r"image: has no pixels \(0 x 3\)"):
        io.read_image(Image.new("RGB", (0, 3)))


# ----------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
def test_a_mask_is_written_as_0_and_255_in_8_bits(tmp_path, size, suffix):
    mask = noise(*size) > 127
    path = tmp_path / "new" / "folder" / f"a{suffix}"
    io.write_mask(path, mask)
    with Image.open(path) as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), mask * np.uint8(255))
    np.testing.assert_array_equal(io.read_mask(path) == 255, mask)


@settings(max_examples=20, deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)))
def test_a_probability_comes_back_within_half_a_16_bit_step(tmp_path_factory, probability):
    folder = tmp_path_factory.mktemp("p")
    for suffix in (".png", ".tif"):
        io.write_probability(folder / f"p{suffix}", probability)
        stored = io.read_mask(folder / f"p{suffix}")
        assert stored.dtype == np.uint16
        np.testing.assert_array_equal(stored, np.rint(probability * np.float32(65535)))
    io.write_probability(folder / "p.npy", probability)
    assert np.load(folder / "p.npy").dtype == np.float32
    np.testing.assert_array_equal(np.load(folder / "p.npy"), probability)


def test_a_suffix_that_would_lose_something_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(OptionError, match=r"m\.jpg: a mask is written as \.png, \.tif, \.tiff; give"):
        io.write_mask(tmp_path / "m.jpg", np.ones((2, 2), bool))
    with pytest.raises(OptionError, match=r"p: a probability is written as \.png, \.tif, \.tiff, \.npy"):
        io.write_probability(tmp_path / "p", np.ones((2, 2), np.float32))
    with pytest.raises(OptionError, match=r"o\.gif: a picture is written as .*\.jpg.*\.png"):
        io.write_image(tmp_path / "o.gif", np.ones((2, 2, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_are_not_what_is_written_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"mask: uint8 \(2, 2\); accepted is bool"):
        io.write_mask(tmp_path / "m.png", np.ones((2, 2), np.uint8))
    with pytest.raises(InputError, match=r"probability: bool \(2, 2\)"):
        io.write_probability(tmp_path / "p.png", np.ones((2, 2), bool))
    for values in ([[0.0, 1.5]], [[0.0, np.nan]]):
        with pytest.raises(InputError, match=r"probability: values .*\[0, 1\]"):
            io.write_probability(tmp_path / "p.png", np.array(values))
    with pytest.raises(InputError, match=r"picture: uint8 \(2, 2\)"):
        io.write_image(tmp_path / "o.png", np.ones((2, 2), np.uint8))


def test_a_picture_too_wide_for_webp_says_so_and_leaves_nothing(tmp_path):
    with pytest.raises(FileError, match=r"a\.webp: 20000 x 1 cannot be written as \.webp.*\.png"):
        io.write_image(tmp_path / "a.webp", np.zeros((1, 20_000, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def half_a_file(file):
    file.write(b"half")
    raise RuntimeError("power cut")


def test_a_writer_that_raises_half_way_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="power cut"):
        io.write_atomic(path, half_a_file)
    assert path.read_bytes() == b"old"
    with pytest.raises(RuntimeError, match="power cut"):
        io.write_atomic(tmp_path / "new.bin", half_a_file)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_removed_after_a_day(tmp_path):
    old, new, other = (tmp_path / name for name in (".0123456789abcdef.tmp", ".fedcba9876543210.tmp", ".mine.tmp"))
    link = tmp_path / ".00000000000000ff.tmp"
    for path in (old, new, other):
        path.write_bytes(b"half")
    link.symlink_to(other)
    for path in (old, other):
        os.utime(path, (time.time() - 2 * io.STALE,) * 2)
    io.write_mask(tmp_path / "m.png", np.ones((2, 2), bool))
    assert sorted(tmp_path.iterdir()) == sorted([new, other, link, tmp_path / "m.png"])


def test_a_full_disk_is_a_file_error(tmp_path):
    def full(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match=r"a\.bin: cannot be written \(No space left on device\)"):
        io.write_atomic(tmp_path / "a.bin", full)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for write in (io.check_file, lambda path: io.write_atomic(path, lambda file: None)):
        with pytest.raises(FileError, match="is a folder, and nothing is written over it"):
            write(tmp_path)
        with pytest.raises(FileError, match="/dev/null: is no regular file"):
            write("/dev/null")
        with pytest.raises(FileError, match=r"cannot be written|is a file; give a folder that can be written to"):
            write(tmp_path / "file" / "a.bin")


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    io.check_file(tmp_path / "file")
    io.check_file(tmp_path / "new" / "newer" / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_permission_bits_are_those_of_a_plain_open(tmp_path):
    path = tmp_path / "a.bin"
    old = os.umask(0o027)
    try:
        io.write_atomic(path, lambda file: None)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    io.write_atomic(path, lambda file: None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"old")
    io.write_atomic(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(("suffix", "longest"), [(".jpg", 65_500), (".JPEG", 65_500), (".webp", 16_383)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_side_above_the_formats_limit_is_told_before_encoding(tmp_path, monkeypatch, suffix, longest, turned):
    widest = np.zeros((1, longest, 3), np.uint8)
    io.write_image(tmp_path / f"a{suffix}", widest)
    wider = np.zeros((1, longest + 1, 3), np.uint8)
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: pytest.fail("it was encoded"))
    with pytest.raises(FileError, match=rf"sides end at {longest} px; give \.png or \.tif"):
        io.write_image(tmp_path / f"b{suffix}", wider.swapaxes(0, 1) if turned else wider)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_a_folder_that_can_be_written_to_is_left_as_it_is(tmp_path):
    io.check_folder(tmp_path)
    io.check_folder(tmp_path / "new" / "newer")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in ("file", "file/new"):
        with pytest.raises(FileError, match=r"cannot be made, '.*file' is a file"):
            io.check_folder(tmp_path / folder)
    if os.path.isdir("/proc/self/fd"):
        with pytest.raises(FileError, match=r"/proc/new: nothing can be written there"):
            io.check_folder("/proc/new")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_a_picture_is_written_where_a_full_disk_would_be_noticed(tmp_path, monkeypatch, suffix):
    class Full(streams.BytesIO):
        def fileno(self):
            raise AssertionError("written past the object, whose write() tells of a full disk")

        def write(self, data):
            raise OSError(28, "No space left on device")

    def write_atomic(path, write):
        write(Full())

    monkeypatch.setattr(io, "write_atomic", write_atomic)
    with pytest.raises(OSError, match="No space left"):
        io.write_image(tmp_path / f"a{suffix}", noise(4, 6, 3))


def with_alpha(values, alpha):
    """A mask (H, W) uint8 with an alpha channel (H, W), by the ways in which files and Pillow hide one."""
    high, low = (np.where(x, 65535, 0).astype(np.uint16) for x in (alpha > 0, values > 0))
    palette = Image.fromarray((values > 0) * np.uint8(2) + (alpha > 0), "P")
    palette.putpalette([0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255])
    pa = Image.fromarray(values).convert("P").convert("PA")
    pa.putalpha(Image.fromarray(alpha))
    return {
        "LA": Image.fromarray(np.dstack([values, alpha])),
        "RGBA": Image.fromarray(np.dstack([values, values, values, alpha])),
        "palette": palette,
        "PA": pa,
        "16 bits": np.dstack([low, low, low, high]),
    }


WAYS = ["LA", "RGBA", "palette", "PA", "16 bits"]


def as_file(tmp_path, way, given):
    if way == "16 bits":
        (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(given))
        return tmp_path / "a.png"
    return png(tmp_path, given, **({"transparency": bytes([0, 255, 0, 255])} if way == "palette" else {}))


@pytest.mark.parametrize("way", WAYS)
def test_alpha_that_is_another_mask_is_named_wherever_it_hides(tmp_path, way):
    values = np.zeros((6, 8), np.uint8)
    alpha = values.copy()
    values[:3], alpha[:, :4] = 255, 255
    given = with_alpha(values, alpha)[way]
    if way != "PA":  # which no PNG holds
        path = as_file(tmp_path, way, given)
        with pytest.raises(InputError, match=r"png: its alpha channel is another mask.*convert\('RGBA'\)"):
            io.read_mask(path)
        loaded = Image.open(path)
        loaded.load()
    if way == "16 bits":  # Pillow drops eight of them
        tifffile.imwrite(tmp_path / "a.tif", given, photometric="rgb", extrasamples=["unassalpha"], metadata=None)
        with pytest.raises(InputError, match="alpha channel is another mask"):
            io.read_mask(tmp_path / "a.tif")
    else:
        with pytest.raises(InputError, match="mask: its alpha channel is another mask"):
            io.read_mask(given if way == "PA" else loaded)


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_of_one_colour_is_not_read_without_its_alpha(tmp_path, way):
    values, alpha = np.full((6, 8), 255, np.uint8), np.zeros((6, 8), np.uint8)
    alpha[:, :4] = 255
    given = with_alpha(values, alpha)[way]
    with pytest.raises(InputError, match="one colour everywhere, and alpha varies"):
        io.read_mask(given if way == "PA" else as_file(tmp_path, way, given))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("opaque", [True, False])
def test_alpha_that_says_nothing_else_leaves_the_mask(tmp_path, way, opaque):
    values = np.zeros((6, 8), np.uint8)
    values[:3] = 255
    given = with_alpha(values, np.full_like(values, 255) if opaque else values)[way]
    read = io.read_mask(given if way == "PA" else as_file(tmp_path, way, given))
    assert np.array_equal(read > 0, values > 0)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_colour_that_a_png_calls_transparent_is_alpha(tmp_path, mode):
    mask = np.zeros((6, 8), bool)
    mask[:3] = True
    picture = Image.fromarray(mask).convert(mode)
    white, black = ((255,) * 3, (0,) * 3) if mode == "RGB" else (1 if mode == "1" else 255, 0)
    for source in (lambda path: path, lambda path: (lambda p: p.load() and p)(Image.open(path))):
        assert np.array_equal(io.read_mask(source(png(tmp_path, picture, transparency=black))) > 0, mask)
        with pytest.raises(InputError, match="alpha channel is another mask"):
            io.read_mask(source(png(tmp_path, picture, transparency=white)))
        assert np.array_equal(io.read_image(source(png(tmp_path, picture, transparency=white)))[..., 0] > 0, mask)


def test_an_array_of_grey_and_alpha_is_refused_with_both_ways_out():
    with pytest.raises(InputError, match=r"grey and alpha, pass the one that is the mask: mask\[\.\.\., 0\]"):
        io.check_mask_shape((6, 8, 2), "mask")
    with pytest.raises(InputError, match=r"grey and alpha, pass image\[\.\.\., 0\]"):
        io.rgb8(np.zeros((6, 8, 2), np.uint8), "image")
