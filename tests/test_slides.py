import json
import os
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from refine import io, slides
from refine.errors import FileError, InputError, OptionError, RefineError
from refine.prepare import as_mask
from refine.slides import Slide, Workspace, check_mask_stream, write_mask_stream
from refine.tiles import Window, cover

ROOT = Path(__file__).parents[1]
SIZES = [(1, 1), (1, 37), (41, 1), (33, 17), (64, 48)]
COMPRESSIONS = [None, "zlib", "lzw", "zstd"]


def noise(*shape, dtype=np.uint8, seed=0):
    values = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
    values.flat[0] = np.iinfo(dtype).max  # so that no small 16-bit picture seems to hold 8 bits
    return values


def write_tiff(path, samples, planar=False, **options):
    """Samples (H, W, C) as a TIFF of one page."""
    channels = samples.shape[2]
    options |= {"photometric": "rgb" if channels > 2 else "minisblack", "metadata": None}
    if channels in (2, 4):
        options["extrasamples"] = ["unassalpha"]
    if channels > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    stored = samples[..., 0] if channels == 1 else np.moveaxis(samples, 2, 0) if planar else samples
    tifffile.imwrite(path, np.ascontiguousarray(stored), **options)
    return path


def windows(size):
    """The whole picture, its corners, and uneven parts that cover it."""
    height, width = size
    yield Window(0, height, 0, width)
    yield Window(0, 1, 0, 1)
    yield Window(height - 1, height, width - 1, width)
    yield from cover(height, width, 19, 1)


def assert_reads_as_io(path):
    whole = io.read_image(path)
    with Slide(path) as slide:
        assert slide.size == whole.shape[:2]
        for window in windows(slide.size):
            part = slide.read(window)
            assert part.dtype == np.uint8
            np.testing.assert_array_equal(part, whole[window.slices])


def assert_masks_as_prepare(path):
    whole = as_mask(path, io.read_mask(path).shape)
    with Slide(path) as slide:
        for window in windows(slide.size):
            part = slide.read_mask(window)
            assert part.dtype == np.float32
            np.testing.assert_array_equal(part, whole[window.slices])


def whole(slide):
    return Window(0, slide.size[0], 0, slide.size[1])


# ---------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 5}, {"tile": (16, 32)}, {"byteorder": ">", "bigtiff": True}])
def test_a_window_is_that_part_of_the_picture(tmp_path, dtype, compression, layout):
    for channels, planar in ((1, False), (2, False), (3, False), (3, True), (4, False), (4, True)):
        samples = noise(45, 53, channels, dtype=dtype)
        assert_reads_as_io(write_tiff(tmp_path / "a.tif", samples, planar, compression=compression, **layout))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_window_of_any_layout_is_that_part_of_the_picture(tmp_path_factory, data):
    height, width = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    samples = noise(
        height, width, data.draw(st.integers(1, 4)), dtype=data.draw(st.sampled_from([np.uint8, np.uint16]))
    )
    compression = data.draw(st.sampled_from(COMPRESSIONS))
    options = {
        "planar": data.draw(st.booleans()),
        "compression": compression,
        "predictor": compression is not None and data.draw(st.booleans()),
        "byteorder": data.draw(st.sampled_from("<>")),
        **data.draw(st.sampled_from([{}, {"rowsperstrip": 1}, {"rowsperstrip": 9}, {"tile": (16, 16)}])),
    }
    path = write_tiff(tmp_path_factory.mktemp("slide") / "a.tif", samples, **options)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(top, data.draw(st.integers(top + 1, height)), left, data.draw(st.integers(left + 1, width)))
    with Slide(path, cache=data.draw(st.sampled_from([0, 2000, 2**26]))) as slide:
        np.testing.assert_array_equal(slide.read(window), io.read_image(path)[window.slices])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_edge_sizes_are_read(tmp_path, size, compression):
    for layout in ({}, {"tile": (16, 16)}):
        assert_reads_as_io(write_tiff(tmp_path / "a.tif", noise(*size, 3), compression=compression, **layout))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (32, 16)}])
def test_jpeg_segments_are_read(tmp_path, channels, layout):
    assert_reads_as_io(write_tiff(tmp_path / "a.tif", noise(45, 53, channels), compression="jpeg", **layout))


def test_jpeg_with_smaller_chroma_is_read(tmp_path):
    picture = Image.fromarray(noise(8, 8, 3)).resize((70, 50))
    picture.save(tmp_path / "a.tif", compression="jpeg")
    assert_reads_as_io(tmp_path / "a.tif")


def test_colours_follow_the_photometric_tag(tmp_path):
    grey = noise(40, 50)
    for dtype in (np.uint8, np.uint16):
        tifffile.imwrite(tmp_path / "a.tif", noise(40, 50, dtype=dtype), photometric="miniswhite", tile=(16, 16))
        assert_reads_as_io(tmp_path / "a.tif")
    colours = np.arange(768, dtype=np.uint16).reshape(3, 256) * 80
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="palette", colormap=colours, tile=(16, 16))
    assert_reads_as_io(tmp_path / "a.tif")
    Image.fromarray(noise(40, 50, 4), "CMYK").save(tmp_path / "a.tif")
    assert_reads_as_io(tmp_path / "a.tif")
    Image.fromarray(grey > 127).save(tmp_path / "a.tif")
    assert_reads_as_io(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", noise(40, 50).astype(np.float32) / 255, tile=(16, 16), compression="zlib")
    assert_reads_as_io(tmp_path / "a.tif")


@pytest.mark.parametrize("bits", [2, 4, 12])
def test_samples_of_odd_bits_fill_the_range(tmp_path, bits):
    dtype = np.uint8 if bits <= 8 else np.uint16
    samples = noise(30, 40, dtype=dtype) >> (8 * np.dtype(dtype).itemsize - bits)
    tifffile.imwrite(tmp_path / "a.tif", samples, bitspersample=bits, rowsperstrip=7, photometric="minisblack")
    assert_reads_as_io(tmp_path / "a.tif")


def test_a_dark_window_of_a_16_bit_picture_stays_dark(tmp_path):
    samples = noise(64, 64, 3, dtype=np.uint16)
    samples[32:] >>= 8
    path = write_tiff(tmp_path / "a.tif", samples, tile=(16, 16), compression="zlib")
    with Slide(path) as slide:
        assert slide.read(Window(32, 64, 0, 64)).max() == 1


@pytest.mark.parametrize("band", [64, 2**22])
def test_values_that_are_no_picture_are_refused_as_in_a_whole_file(tmp_path, monkeypatch, band):
    monkeypatch.setattr(slides, "_BAND", band)
    low = noise(50, 20, 1).astype(np.uint16)
    light, undefined = np.zeros((2, 50, 20, 1), np.float32)
    light[40, 3], undefined[40, 3] = 200, np.nan
    twelve = low * np.uint16(16)
    for samples in (low, twelve, light, undefined, low.astype(np.int32)):
        path = write_tiff(tmp_path / "a.tif", samples, rowsperstrip=5, compression="zlib")
        with pytest.raises(InputError) as expected:
            io.read_image(path)
        with Slide(path) as slide, pytest.raises(InputError, match=re.escape(str(expected.value))):
            slide.read(Window(0, 1, 0, 1))
    twelve[40, 3] = 4096
    stray = np.where(light > 0, np.float32(1 + 1.2e-7), light)
    for samples in (low * 0, twelve, stray):
        assert_reads_as_io(write_tiff(tmp_path / "a.tif", samples, rowsperstrip=5, compression="zlib"))


def test_the_values_of_a_16_bit_picture_are_looked_at_no_further_than_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "_BAND", 1)
    path = write_tiff(tmp_path / "a.tif", noise(256, 16, 1, dtype=np.uint16), tile=(16, 16), compression="zlib")
    with Slide(path) as slide:
        segments = decoded(slide, monkeypatch)
        slide.read(Window(250, 256, 0, 16))
        assert segments == [15]  # whose samples are bright enough


@pytest.mark.parametrize(
    ("samples", "times"), [((noise(64, 16) > 127) * np.uint8(255), 1), (noise(64, 16) % 4 * np.uint8(80), 2)]
)
def test_a_mask_is_decoded_again_only_where_its_few_values_may_be_labels(tmp_path, monkeypatch, samples, times):
    monkeypatch.setattr(slides, "_BAND", 1)
    with Slide(
        write_tiff(tmp_path / "a.tif", samples[..., None], rowsperstrip=16, compression="zlib"), cache=0
    ) as mask:
        segments = decoded(mask, monkeypatch)
        mask.read_mask(Window(48, 64, 0, 16))
        assert segments == [0, 1, 2, 3] * times


def decoded(slide, monkeypatch):
    """Numbers of the segments that a slide decodes from now on."""
    numbers, decode = [], slide._decoded
    monkeypatch.setattr(slide, "_decoded", lambda number: numbers.append(number) or decode(number))
    return numbers


def test_only_segments_under_the_window_are_decoded_and_only_once(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", noise(64, 80, 3), tile=(16, 16), compression="zlib")
    with Slide(path) as slide:
        segments = decoded(slide, monkeypatch)
        slide.read(Window(17, 33, 31, 48))
        assert segments == [6, 7, 11, 12]
        slide.read(Window(16, 48, 16, 48))
        assert segments == [6, 7, 11, 12]
    path = write_tiff(tmp_path / "b.tif", noise(64, 80, 3), planar=True, rowsperstrip=10, compression="zlib")
    with Slide(path) as slide:
        segments = decoded(slide, monkeypatch)
        slide.read(Window(19, 20, 0, 80))
        assert segments == [1, 8, 15]  # of seven strips in each plane


def test_decoded_segments_are_kept_up_to_a_size_the_oldest_goes_first(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", noise(16, 160, 1), tile=(16, 16), compression="zlib")
    with Slide(path, cache=3 * 256) as slide:
        segments = decoded(slide, monkeypatch)
        for number in (0, 1, 2, 0, 3, 0, 1):
            slide.read(Window(0, 16, 16 * number, 16 * number + 16))
            assert sum(s.nbytes for s in slide._segments.values()) == slide._cached <= 3 * 256
        assert segments == [0, 1, 2, 3, 1]
    with Slide(path, cache=0) as slide:
        segments = decoded(slide, monkeypatch)
        for left in (0, 1, 16):
            slide.read(Window(0, 16, left, left + 1))
        assert segments == [0, 1]
        assert len(slide._segments) == 1


def test_an_uncompressed_file_is_mapped_and_not_decoded(tmp_path, monkeypatch):
    for planar in (False, True):
        path = write_tiff(tmp_path / "a.tif", noise(64, 80, 3), planar)
        with Slide(path) as slide:
            segments = decoded(slide, monkeypatch)
            part = slide.read(Window(3, 60, 5, 70))
            assert segments == []
            part[...] = 0  # a caller may write: it is no view of the file
            np.testing.assert_array_equal(slide.read(whole(slide)), noise(64, 80, 3))


def test_an_uncompressed_file_whose_bits_are_in_reverse_order_is_decoded(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(40, 50, 1), extratags=[(65000, 3, 1, 2, True)])
    data = path.read_bytes()
    path.write_bytes(data.replace(np.uint16(65000).tobytes(), np.uint16(266).tobytes(), 1))
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].fillorder == 2
    assert_reads_as_io(path)


def test_segments_that_a_writer_left_out_are_empty(tmp_path):
    tile = noise(16, 16)
    tiles = iter([tile, None, None, tile])
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(32, 32), dtype=np.uint8, tile=(16, 16), photometric="minisblack")
    assert_reads_as_io(tmp_path / "a.tif")
    with Slide(tmp_path / "a.tif") as slide:
        assert slide.read(Window(0, 32, 16, 32))[:16].max() == 0


def test_the_first_page_of_a_pyramid_is_read_at_full_resolution(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(noise(96, 80, 3), subifds=1, tile=(16, 16), photometric="rgb", compression="zlib")
        file.write(noise(48, 40, 3), subfiletype=1, tile=(16, 16), photometric="rgb")
        file.write(noise(24, 20, 3), tile=(16, 16), photometric="rgb")
        file.write(noise(96, 80) > 127, subfiletype=4, photometric="mask")
    assert_reads_as_io(tmp_path / "a.tif")
    with Slide(tmp_path / "a.tif") as slide:
        assert slide.size == (96, 80)


def test_the_picture_behind_a_thumbnail_is_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(noise(24, 20, 3), subfiletype=1, photometric="rgb")
        file.write(noise(96, 80, 3), tile=(16, 16), photometric="rgb", compression="zlib")
    assert_reads_as_io(tmp_path / "a.tif")
    with Slide(tmp_path / "a.tif") as slide:
        assert slide.size == (96, 80)


def test_threads_may_share_a_slide(tmp_path):
    picture = noise(128, 128, 3)
    path = write_tiff(tmp_path / "a.tif", picture, tile=(16, 16), compression="zlib")
    wrong = []

    def read(slide, seed):
        for window in np.random.default_rng(seed).permutation(list(cover(128, 128, 24, 1))):
            window = Window(*window.tolist())
            if not np.array_equal(slide.read(window), picture[window.slices]):
                wrong.append(window)

    with Slide(path, cache=5000) as slide:
        threads = [threading.Thread(target=read, args=(slide, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# ----------------------------------------------------------------------------------------------- files that are refused


def test_several_pages_of_one_size_and_many_bands_are_refused_as_by_io(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", noise(3, 8, 9), photometric="minisblack")
    tifffile.imwrite(tmp_path / "bands.tif", noise(8, 9, 7), photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "lab.tif", noise(8, 9, 3), photometric="cielab")
    with tifffile.TiffWriter(tmp_path / "larger.tif") as file:
        file.write(noise(8, 9, 3), photometric="rgb")
        file.write(noise(80, 90, 3), photometric="rgb")
    for name in ("stack.tif", "bands.tif", "lab.tif", "larger.tif"):
        with pytest.raises(FileError) as expected:
            io.read_image(tmp_path / name)
        with pytest.raises(FileError, match=re.escape(str(expected.value))):
            Slide(tmp_path / name)


def test_samples_that_are_not_read_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 9, 4, dtype=np.uint16), photometric="separated")
    with pytest.raises(FileError, match=r"a\.tif: a TIFF of CMYK samples of 16 bits.*convert it to 8-bit or 16-bit"):
        Slide(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", noise(8, 9))
    with tifffile.TiffFile(tmp_path / "b.tif", mode="r+") as file:
        file.pages[0].tags["BitsPerSample"].overwrite(65)
    for read in (Slide, io.read_image):
        with pytest.raises(FileError, match=r"b\.tif: a TIFF of grey or RGB samples of 65 bits"):
            read(tmp_path / "b.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_only_an_upright_file_is_read(tmp_path, orientation):
    path = write_tiff(tmp_path / "a.tif", noise(8, 9, 3), extratags=[(274, 3, 1, orientation, True)])
    if orientation == 1:
        assert_reads_as_io(path)
    else:
        with pytest.raises(FileError, match=rf"a\.tif: orientation {orientation} \(tag 274\).*save it upright"):
            Slide(path)


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("bmp", "BMP"), ("webp", "WebP")])
def test_another_format_is_told_that_only_tiff_has_windows(tmp_path, suffix, kind):
    io.write_image(tmp_path / f"a.{suffix}", noise(8, 9, 3))
    with pytest.raises(FileError, match=rf"a\.{suffix}: a {kind} file; only TIFF can be read by windows; convert it"):
        Slide(tmp_path / f"a.{suffix}")


def test_what_is_no_picture_is_told(tmp_path):
    np.save(tmp_path / "a.npy", noise(8, 9))
    (tmp_path / "text").write_text("some words that are no picture")
    (tmp_path / "empty").touch()
    for name, message in {
        "a.npy": r"a\.npy: a \.npy file; only TIFF",
        "text": "text: of an unknown format; only TIFF",
        "empty": r"empty: is empty \(0 bytes\)",
        "none": "none: no such file",
        ".": "is a folder",
    }.items():
        with pytest.raises(FileError, match=message):
            Slide(tmp_path / name)


@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 5}, {"tile": (16, 16)}])
@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
def test_a_truncated_file_is_an_error(tmp_path, layout, compression):
    path = write_tiff(tmp_path / "a.tif", noise(48, 64, 3), compression=compression, **layout)
    data = path.read_bytes()
    for end in (5, 9, 30, len(data) // 4, len(data) // 2, len(data) - 1000, len(data) - 10):
        path.write_bytes(data[:end])
        with pytest.raises(FileError, match=r"a\.tif: truncated or damaged \(.*give a complete file"):
            Slide(path)
    path.write_bytes(data)
    assert_reads_as_io(path)


def test_a_mapped_file_is_whole_whatever_its_byte_counts_say(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(40, 50, 1))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["StripByteCounts"].overwrite(10)
    path.write_bytes(path.read_bytes()[:-100])
    for read in (Slide, io.read_mask):
        with pytest.raises(FileError, match=r"a\.tif: truncated or damaged"):
            read(path)


def test_a_file_that_lists_too_few_tiles_is_damaged(tmp_path):
    path = write_tiff(tmp_path / "a.tif", noise(32, 48, 1), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = file.pages[0].tags[name]
            tag.overwrite(tag.value[:5])
    for read in (Slide, io.read_mask):
        with pytest.raises(FileError, match=r"a\.tif: truncated or damaged"):
            read(path)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "jpeg"])
def test_a_damaged_segment_is_an_error_where_it_is_read_and_the_others_are_whole(tmp_path, compression):
    path = write_tiff(tmp_path / "a.tif", noise(16, 48, 3), tile=(16, 16), compression=compression)
    expected = io.read_image(path)
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(255 for _ in range(count))
    path.write_bytes(data)
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read(Window(0, 16, 0, 16)), expected[:, :16])
        with pytest.raises(FileError, match=r"a\.tif: truncated or damaged"):
            slide.read(Window(0, 1, 20, 21))
        np.testing.assert_array_equal(slide.read(Window(0, 16, 32, 48)), expected[:, 32:])


def test_a_strip_too_large_to_decode_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "MAX_SEGMENT", 40 * 30 * 3 - 1)
    path = write_tiff(tmp_path / "a.tif", noise(40, 30, 3), rowsperstrip=40, compression="zlib")
    with pytest.raises(FileError, match=r"a\.tif: each strip is 30 x 40 px, .* MiB to decode at once.*with tiles"):
        Slide(path)
    assert_reads_as_io(write_tiff(tmp_path / "b.tif", noise(40, 30, 3), tile=(16, 16), compression="zlib"))
    assert_reads_as_io(write_tiff(tmp_path / "c.tif", noise(40, 30, 3)))  # mapped, and never decoded at once


# ------------------------------------------------------------------------------------------------------------- masks

MASK = noise(45, 53) > 127


def smooth(dtype=np.uint8, seed=0):
    """Values over the whole range of a type, without texture."""
    wide = cv2.GaussianBlur(np.random.default_rng(seed).random((45, 53)), (0, 0), 5)
    return np.rint(cv2.normalize(wide, None, 0, np.iinfo(dtype).max, cv2.NORM_MINMAX)).astype(dtype)


SOFT = smooth(seed=1)


@pytest.mark.parametrize(
    "samples",
    [
        MASK.astype(np.uint8),
        MASK * np.uint8(255),
        MASK * np.uint16(255),
        MASK * np.uint16(65535),
        MASK.astype(np.int8),
        MASK.astype(np.int32),
        MASK * np.int32(255),
        SOFT,
        smooth(np.uint16),
        smooth().astype(np.float16) / np.float16(255),
        smooth().astype(np.float32) / np.float32(255),
        smooth() / 255 * (1 + 1e-7),
        np.zeros((45, 53), np.uint8),
        np.ones((45, 53), np.uint8),
        np.full((45, 53), 255, np.uint8),
        np.stack([SOFT] * 3, axis=2),
        np.stack([SOFT] * 4, axis=2),
        np.stack([MASK, MASK], axis=2) * np.uint8(255),
        np.full((45, 53, 2), 255, np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{a.shape[2:]}up_to_{a.max():g}",
)
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_a_mask_has_the_values_of_the_whole_file(tmp_path, monkeypatch, samples, layout):
    monkeypatch.setattr(slides, "_BAND", 300)
    samples = samples.reshape(*samples.shape[:2], -1)
    assert_masks_as_prepare(write_tiff(tmp_path / "a.tif", samples, **layout))


@pytest.mark.parametrize("polarity", [0, 1])
def test_a_one_bit_mask_is_read(tmp_path, polarity):
    Image.fromarray(MASK).save(tmp_path / "a.tif", tiffinfo={262: polarity})
    assert_masks_as_prepare(tmp_path / "a.tif")


@pytest.mark.parametrize("size", SIZES)
def test_masks_of_edge_sizes_are_read(tmp_path, size):
    soft = cv2.GaussianBlur(noise(*size), (0, 0), 5).reshape(*size, 1)
    for samples in (soft, (noise(*size, 1) > 127).astype(np.uint8)):
        assert_masks_as_prepare(write_tiff(tmp_path / "a.tif", samples, tile=(16, 16), compression="zlib"))


def test_a_window_of_low_values_is_scaled_as_the_whole_mask(tmp_path):
    soft = SOFT.copy()
    soft[:20, :20] = 1
    with Slide(write_tiff(tmp_path / "a.tif", soft[..., None], compression="zlib")) as slide:
        assert (slide.read_mask(Window(0, 20, 0, 20)) == np.float32(1 / 255)).all()


def write_palette(path, indices, colours):
    table = np.zeros((256, 3), np.uint16)
    table[: len(colours)] = np.array(colours) * 257
    tifffile.imwrite(path, indices, photometric="palette", colormap=table.T, tile=(16, 16), compression="zlib")
    return path


@pytest.mark.parametrize("colours", [[(0, 0, 0), (255, 255, 255)], [(255,) * 3, (0,) * 3], [(0, 0, 0), (200, 0, 0)]])
def test_a_palette_mask_is_read_by_the_indices_of_the_whole_file(tmp_path, colours):
    assert_masks_as_prepare(write_palette(tmp_path / "a.tif", MASK.astype(np.uint8), colours))


def ninety_percent_flat():
    """Of 400 pixels 40 differ from the one on the right or below: 13 spots with their left and upper ones, and one."""
    mask = np.full((20, 20), 100, np.uint8)
    mask[3:19:3, 3:19:3].flat[:13] = 200
    mask[0, 0] = 200
    return mask


def test_a_little_less_than_90_percent_flat_is_soft(tmp_path):
    mask = ninety_percent_flat()
    mask[-1, 1] = 200
    assert_masks_as_prepare(write_tiff(tmp_path / "a.tif", mask[..., None], compression="zlib"))


def refusals():
    areas = np.repeat(np.repeat(np.array([[0, 3, 200], [90, 0, 3]], np.uint8), 20, axis=0), 20, axis=1)
    hole = np.zeros((40, 60, 4), np.uint8)
    hole[30:, :, 3] = 255
    colourful = np.stack([SOFT, SOFT, SOFT], axis=2)
    colourful[-1, -1, 1] ^= 64
    undefined = np.zeros((40, 60), np.float32)
    undefined[35, 7] = np.nan
    return {
        "areas": areas,
        "areas of 16 bits": areas * np.uint16(257),
        "one row": areas[:1],
        "one column": areas[:, 20:21] + areas[:, 40:41],
        "90 % flat": ninety_percent_flat(),
        "low": areas // 4,
        "low 16 bits": areas * np.uint16(100),
        "void": np.where(areas == 200, 255, areas // 2).astype(np.uint8),
        "many": np.arange(2400, dtype=np.uint8).reshape(40, 60) % 100,
        "low int8": (areas // 2).astype(np.int8),
        "negative": areas.astype(np.int16) - 1,
        "too high": areas.astype(np.int32) * 2,
        "colourful": colourful,
        "alpha": hole,
        "grey and alpha": np.ascontiguousarray(hole[..., 2:]),
        "NaN": undefined,
        "logits": undefined * 0 - 3,
        "255 as floats": areas.astype(np.float32),
        "complex": areas.astype(np.complex64),
    }


@pytest.mark.parametrize("name", refusals())
@pytest.mark.parametrize("band", [60, 2**22])
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
def test_what_is_no_mask_is_refused_in_the_words_of_prepare(tmp_path, monkeypatch, name, band):
    monkeypatch.setattr(slides, "_BAND", band)
    samples = refusals()[name]
    path = write_tiff(tmp_path / "a.tif", samples.reshape(*samples.shape[:2], -1), rowsperstrip=4, compression="zlib")
    with pytest.raises(InputError) as expected:
        as_mask(path, samples.shape[:2])
    with Slide(path) as slide, pytest.raises(InputError, match=re.escape(str(expected.value))):
        slide.read_mask(Window(0, 1, 0, 1))


@pytest.mark.parametrize("used", [[0, 1, 2], [15, 255], [0, 130, 200]])
def test_a_palette_of_labels_is_refused_in_the_words_of_io(tmp_path, used):
    indices = np.array(used, np.uint8)[noise(45, 53) % len(used)]
    path = write_palette(tmp_path / "a.tif", indices, [(0, 0, i) for i in range(256)])
    with pytest.raises(InputError) as expected:
        io.read_mask(path)
    with Slide(path) as slide, pytest.raises(InputError, match=re.escape(str(expected.value))):
        slide.read_mask(Window(0, 1, 0, 1))


def outcome(read):
    try:
        return read().tolist()
    except RefineError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(
    areas=arrays(np.uint8, (5, 4), elements=st.sampled_from([0, 0, 1, 60, 63, 64, 127, 128, 200, 254, 255])),
    side=st.integers(1, 14),
    noisy=st.integers(0, 60),
    wide=st.booleans(),
)
def test_soft_masks_and_label_maps_are_told_apart_as_by_prepare(tmp_path_factory, areas, side, noisy, wide):
    mask = np.repeat(np.repeat(areas, side, axis=0), side, axis=1)
    spots = np.random.default_rng(noisy).integers(0, mask.size, noisy)
    mask.flat[spots] ^= 40
    if wide:
        mask = mask * np.uint16(257)
    path = write_tiff(tmp_path_factory.mktemp("m") / "a.tif", mask[..., None], rowsperstrip=3, compression="zlib")
    with pytest.MonkeyPatch.context() as patch, Slide(path) as slide:
        patch.setattr(slides, "_BAND", 2 * mask.shape[1])
        found = outcome(lambda: slide.read_mask(whole(slide)))
    assert found == outcome(lambda: as_mask(path, mask.shape))


def spotted(values, dtype=np.uint8):
    return np.resize(np.array(values, dtype), (40, 61))


def in_areas(values, dtype=np.uint8):
    return np.repeat(np.repeat(np.array([values], dtype), 20, axis=0), 20, axis=1)


@pytest.mark.parametrize(
    ("mask", "refused"),
    [
        (spotted([*range(31), 255]), True),
        (spotted([*range(32), 255]), False),
        (spotted([0, 63, 255]), True),
        (spotted([0, 64, 255]), False),
        (spotted([0, 5, 127]), True),
        (spotted([0, 128]), False),
        (spotted([0, 500, 32767], np.uint16), True),
        (in_areas([0, 200, 255]), False),
        (in_areas([0, 100, 200, 255]), True),
        (in_areas([0, *range(100, 164)]), True),
        (in_areas([0, *range(100, 165)]), False),
    ],
    ids=lambda value: "" if isinstance(value, bool) else f"{len(np.unique(value))}_up_to_{value.max()}",
)
def test_label_maps_end_where_those_of_prepare_end(tmp_path, mask, refused):
    path = write_tiff(tmp_path / "a.tif", mask[..., None], compression="zlib", rowsperstrip=7)
    with Slide(path) as slide:
        found = outcome(lambda: slide.read_mask(whole(slide)))
    assert ("label map" in found) == refused
    assert found == outcome(lambda: as_mask(path, mask.shape))


# ------------------------------------------------------------------------------------------------------- mask streams


def mask_of(height, width):
    y, x = np.mgrid[:height, :width]
    return (np.hypot(y - height / 2, x - width / 3) < width / 4) | (noise(height, width) > 250)


@pytest.mark.parametrize("size", [*SIZES, (256, 256), (257, 255), (600, 300)])
@pytest.mark.parametrize("compression", ["deflate", "zstd", "none"])
def test_a_streamed_mask_is_read_by_everything(tmp_path, size, compression):
    mask = mask_of(*size)
    write_mask_stream(tmp_path / "a.tif", size, lambda top, bottom: mask[top:bottom], compression=compression)
    stored = tifffile.imread(tmp_path / "a.tif")
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, mask * np.uint8(255))
    np.testing.assert_array_equal(io.read_mask(tmp_path / "a.tif"), stored)
    with Image.open(tmp_path / "a.tif") as picture:
        assert picture.mode == "L"
        if compression != "zstd":  # which Pillow is built with or without
            np.testing.assert_array_equal(np.asarray(picture), stored)
    assert_masks_as_prepare(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].tile == (256, 256)
        assert not file.is_bigtiff


def test_bands_are_asked_for_once_from_the_top(tmp_path):
    asked = []

    def rows(top, bottom):
        asked.append((top, bottom))
        return np.zeros((bottom - top, 700), bool)

    write_mask_stream(tmp_path / "a.tif", (600, 700), rows)
    assert asked == [(0, 256), (256, 512), (512, 600)]


def test_a_mask_that_may_pass_4_gigabytes_is_a_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "_CLASSIC", 2 * 256 * 256 - 1)
    mask = mask_of(200, 300)
    write_mask_stream(tmp_path / "a.tif", mask.shape, lambda top, bottom: mask[top:bottom])
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
    assert_masks_as_prepare(tmp_path / "a.tif")


def test_a_streamed_mask_is_on_the_disk_before_it_replaces_an_older_one(tmp_path, monkeypatch):
    seen = []
    (tmp_path / "a.tif").write_bytes(b"old")
    monkeypatch.setattr(
        os, "fsync", lambda file: seen.append((os.fstat(file).st_size, (tmp_path / "a.tif").read_bytes()))
    )
    write_mask_stream(tmp_path / "a.tif", (300, 300), lambda top, bottom: np.ones((bottom - top, 300), bool))
    assert seen == [((tmp_path / "a.tif").stat().st_size, b"old")]


@pytest.mark.parametrize("failing", [0, 256])
def test_a_stream_that_fails_leaves_the_old_file_and_no_other(tmp_path, failing):
    def rows(top, bottom):
        if top == failing:
            raise RuntimeError("power cut")
        return np.ones((bottom - top, 300), bool)

    (tmp_path / "a.tif").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="power cut"):
        write_mask_stream(tmp_path / "a.tif", (300, 300), rows)
    assert (tmp_path / "a.tif").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_rows_of_another_shape_or_type_are_refused(tmp_path):
    for rows in (np.ones((20, 31), bool), np.ones((19, 30), bool), np.ones((20, 30), np.uint8)):
        with pytest.raises(InputError, match=r"rows\(0, 20\) gave .*; accepted is bool \(20, 30\)"):
            write_mask_stream(tmp_path / "a.tif", (20, 30), lambda top, bottom, rows=rows: rows)
    with pytest.raises(InputError, match=r"mask: has no pixels \(30 x 0\)"):
        write_mask_stream(tmp_path / "a.tif", (0, 30), lambda top, bottom: rows)
    with pytest.raises(OptionError, match="compression='jpeg' is unknown; known are deflate, zstd, none"):
        write_mask_stream(tmp_path / "a.tif", (20, 30), lambda top, bottom: rows, compression="jpeg")
    with pytest.raises(OptionError, match=r"a\.png: a mask larger than memory is written as \.tif, \.tiff"):
        write_mask_stream(tmp_path / "a.png", (20, 30), lambda top, bottom: rows)
    assert list(tmp_path.iterdir()) == []


def test_where_a_stream_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder.tif").mkdir()
    for path, error, message in (
        ("a.png", OptionError, r"a\.png: a mask larger than memory is written as \.tif, \.tiff"),
        ("file/a.tif", FileError, "file' is a file; give a folder that can be written to"),
        ("folder.tif", FileError, r"folder\.tif: is a folder, and nothing is written over it"),
    ):
        with pytest.raises(error, match=message) as expected:
            check_mask_stream(tmp_path / path)
        with pytest.raises(error, match=re.escape(str(expected.value))):
            write_mask_stream(tmp_path / path, (20, 30), lambda top, bottom: pytest.fail("rows were asked for"))
    check_mask_stream(tmp_path / "new" / "a.tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.tif"]


# What the process had at its highest, in MB: of its own memory, as resource.getrusage begins at the parent's.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmHWM"))
"""

STREAM = (
    PEAK
    + """
import sys
import numpy as np
from refine.slides import Slide, write_mask_stream
from refine.tiles import Window, cover

H, W, path, compression = 4_000, 30_000, sys.argv[1], sys.argv[2]

def stripes(start, end, side):
    return np.arange(start, end) // side % 2 == 1

def write(height):
    rows = lambda top, bottom: stripes(top, bottom, 100)[:, None] ^ stripes(0, W, 300)
    write_mask_stream(path, (height, W), rows, compression=compression)

write(256)
one_band = peak()
write(H)
written = peak()
with Slide(path, cache=2**24) as slide:
    for top, bottom, left, right in cover(H, W, 1000, 1):
        mask = slide.read_mask(Window(top, bottom, left, right))
        assert (mask == (stripes(top, bottom, 100)[:, None] ^ stripes(left, right, 300))).all()
print(written - one_band, peak() - written)
"""
)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_a_mask_of_120_megabytes_is_written_and_read_in_a_few(tmp_path, compression):
    command = [sys.executable, "-c", STREAM, str(tmp_path / "a.tif"), compression]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written, read = map(float, done.stdout.split())
    assert written < 4  # over one band of 7.7 MB
    assert read < 40  # over it, with 16.8 MB of decoded tiles


# --------------------------------------------------------------------------------------------------------- workspaces

KEY = {"image": ["a.tif", 12345, 67], "options": {"model": "crm-s", "halo": 32}}


def test_what_was_done_is_found_again(tmp_path):
    with Workspace(tmp_path / "new" / "work", KEY) as work:
        p = work.array("p", (300, 40), np.float32)
        assert (p == 0).all()
        assert not work.done("band 0")
        p[:100] = 0.5
        work.mark("band 0", p)
        assert work.done("band 0")
    with Workspace(tmp_path / "new" / "work", dict(reversed(KEY.items()))) as work:
        assert work.done("band 0")
        assert not work.done("band 1")
        p = work.array("p", (300, 40), np.float32)
        assert p.dtype == np.float32
        assert (p[:100] == 0.5).all()
        assert (p[100:] == 0).all()
        p[100:200] = 1
        work.mark("band 1", p[100:200])
        work.mark("a step without data")
    with Workspace(tmp_path / "new" / "work", KEY) as work:
        assert [work.done(step) for step in ("band 0", "band 1", "band 2", "a step without data")] == [1, 1, 0, 1]


def test_arrays_are_plain_files_that_numpy_reads(tmp_path):
    with Workspace(tmp_path / "work", KEY) as work:
        work.array("labels", (3, 4), np.int16)[1] = 7
        work.mark("x", work.array("labels", (3, 4), np.int16))
    assert np.load(tmp_path / "work" / "labels.npy", allow_pickle=False)[1].tolist() == [7] * 4


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot take disk space beforehand")
def test_an_array_takes_all_of_its_disk_space_before_it_is_mapped(tmp_path):
    with Workspace(tmp_path / "work", KEY) as work:
        path = Path(work.array("p", (2000, 5000), np.uint8).filename)
        assert path.stat().st_blocks * 512 >= 10**7
    path.write_bytes(path.read_bytes()[:128])  # with a hole, as older versions left it
    with path.open("r+b") as file:
        file.truncate(128 + 10**7)
    with Workspace(tmp_path / "work", KEY) as work:
        assert not work.array("p", (2000, 5000), np.uint8).any()
        assert path.stat().st_blocks * 512 >= 10**7


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot take disk space beforehand")
def test_a_disk_that_is_full_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def full(file, offset, size):
        raise OSError(28, "No space left on device")

    with Workspace(tmp_path / "work", KEY) as work:
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(FileError, match=r"work: cannot be written to \(No space left on device\)"):
                work.array("p", (40, 50), np.uint8)
        assert work.array("p", (40, 50), np.uint8).shape == (40, 50)


def test_the_work_of_another_job_is_refused_by_what_differs(tmp_path):
    with Workspace(tmp_path / "work", KEY) as work:
        work.mark("x")
    other = KEY | {"options": {"model": "crm-s", "halo": 64}, "weights": "00ff"}
    with pytest.raises(FileError, match=r"work: holds the work of another run, which differs in options, weights; del"):
        Workspace(tmp_path / "work", other)
    with Workspace(tmp_path / "work", KEY) as work:
        assert work.done("x")


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.npy").write_text("mine")
    with pytest.raises(FileError, match="holds files of something else; give a new folder or an empty one"):
        Workspace(tmp_path, KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.npy"]
    (tmp_path / "refine.journal").write_text("also mine\n")
    with pytest.raises(FileError, match="its journal is damaged; delete the folder"):
        Workspace(tmp_path, KEY)
    assert (tmp_path / "notes.npy").read_text() == "mine"
    with pytest.raises(FileError, match=r"notes\.npy: cannot be written to"):
        Workspace(tmp_path / "notes.npy", KEY)


def test_a_journal_torn_anywhere_holds_the_steps_whose_lines_are_whole(tmp_path):
    steps = ["one", "two", "zwölf\n", "four"]
    with Workspace(tmp_path / "work", KEY) as work:
        p = work.array("p", (4,), np.uint8)
        for number, step in enumerate(steps):
            p[number] = 1
            work.mark(step, p)
    journal = tmp_path / "work" / "refine.journal"
    data = journal.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == 5
    for cut in range(ends[0], len(data)):
        for rest in (b"", b"\0\0\0"):
            journal.write_bytes(data[:cut] + rest)
            with Workspace(tmp_path / "work", KEY) as work:
                assert [work.done(step) for step in steps] == [cut >= end for end in ends[1:]]
                work.mark("after")  # and is not glued to the torn line
            with Workspace(tmp_path / "work", KEY) as work:
                assert work.done("after")
                assert [work.done(step) for step in steps] == [cut >= end for end in ends[1:]]


def test_a_journal_torn_in_its_key_begins_anew_where_it_is_alone(tmp_path):
    with Workspace(tmp_path / "work", KEY):
        first = (tmp_path / "work" / "refine.journal").read_bytes()
    for cut in (0, 1, 20, len(first) - 1):
        (tmp_path / "work" / "refine.journal").write_bytes(first[:cut])
        with Workspace(tmp_path / "work", KEY) as work:
            work.mark("x")
        assert len((tmp_path / "work" / "refine.journal").read_bytes().splitlines()) == 2


@pytest.mark.parametrize("journal", [b"", b'{"key": ', b"[]\n", b'{"steps": 3}\n', b"\xff\xfe\n", b"[" * 10**5 + b"\n"])
def test_nothing_is_deleted_where_no_journal_says_that_the_folder_is_ours(tmp_path, journal):
    (tmp_path / "refine.journal").write_bytes(journal)
    (tmp_path / "data.npy").write_text("years of work")
    with pytest.raises(FileError, match="its journal is damaged; delete the folder or give another one"):
        Workspace(tmp_path, KEY)
    assert (tmp_path / "data.npy").read_text() == "years of work"
    assert (tmp_path / "refine.journal").read_bytes() == journal


@pytest.mark.parametrize("linked", ["work", "work/refine.journal", "work/p.npy"])
def test_links_are_not_followed_to_what_may_not_be_ours(tmp_path, linked):
    with Workspace(tmp_path / "mine", {}) as work:
        work.array("p", (4,), np.uint8)[:] = 9
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    link = tmp_path / linked
    if link.parent != tmp_path:
        with Workspace(tmp_path / "work", KEY) as work:
            work.array("p", (4,), np.uint8)
        link.unlink()
    link.symlink_to(tmp_path / "mine" / link.name if link.parent != tmp_path else tmp_path / "mine")
    message = r"is a link.*remove the link|is no file of this program; delete the folder"
    with pytest.raises(FileError, match=message), Workspace(tmp_path / "work", KEY) as work:
        work.array("p", (4,), np.uint8)
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"arrays"', b'"arrayt"'),
        (b'["p"]', b"5"),
        (b'["p"]', b"[5]"),
        (b'["p"]', b'["../mine/p"]'),
        (b'"p 0"', b"[1]"),
        (b'"step"', b'"stet"'),
        (b'{"n": 3}', b"5"),
        (b'{"n": 3}', b'{"n": "3"}'),
        (b'{"n": 3}', b'{"n": NaN}'),
        (b'{"n": 3}', b'{"n": ' + b"9" * 400 + b"}"),
        (b'{"arrays"', b'}"arrays"'),
        (b'{"key"', b'[{"key"'),
    ],
)
def test_any_damage_of_a_journal_is_told_as_damage(tmp_path, old, new):
    with Workspace(tmp_path / "work", KEY) as work:
        p = work.array("p", (4, 5), np.float32)
        work.mark("p 0", p, record={"n": 3})
        work.mark("p 1", p)
    journal = tmp_path / "work" / "refine.journal"
    assert old in journal.read_bytes()
    journal.write_bytes(journal.read_bytes().replace(old, new, 1))
    with pytest.raises(FileError, match="work: its journal is damaged; delete the folder or give another one"):
        Workspace(tmp_path / "work", KEY)


def test_any_damage_of_an_arrays_head_is_told_as_damage(tmp_path):
    with Workspace(tmp_path / "work", KEY) as work:
        path = Path(work.array("p", (4, 5), np.float32).filename)
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        damaged = [whole[:n] for n in range(0, len(whole), 17)] + [whole + b"\0"]
        for at in range(128):
            changed = bytearray(whole)
            changed[at] = rng.choice([i for i in range(256) if i != whole[at]])
            damaged.append(bytes(changed))
        for data in damaged:
            path.write_bytes(data)
            with pytest.raises(FileError, match=r"p\.npy: (damaged|holds) .*delete the folder"):
                work.array("p", (4, 5), np.float32)
            assert path.read_bytes() == data


WORK = """
import sys
import numpy as np
from refine.slides import Workspace

with Workspace(sys.argv[1], {"job": 1}) as work:
    rows = work.array("rows", (20_000, 2000), np.uint16)
    start = next(n for n in range(20_000) if not work.done(str(n)))
    for n in range(start, 20_000):
        rows[n] = n + 1
        work.mark(str(n), rows)
        print(n, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_after_a_kill_the_steps_that_are_done_are_those_whose_data_is_there(tmp_path):
    acknowledged = -1
    for _ in range(3):  # each goes on where the one before was killed
        command = [sys.executable, "-c", WORK, str(tmp_path / "work")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
            for _ in range(7):
                line = worker.stdout.readline()
            worker.send_signal(signal.SIGKILL)
            line = (worker.stdout.read().splitlines() or [line])[-1]
            assert int(line) >= acknowledged + 7
            acknowledged = int(line)
        assert worker.returncode == -signal.SIGKILL
        with Workspace(tmp_path / "work", {"job": 1}) as work:
            rows = work.array("rows", (20_000, 2000), np.uint16)
            done = [n for n in range(20_000) if work.done(str(n))]
            assert done == list(range(len(done)))
            assert acknowledged < len(done) <= acknowledged + 2  # the last may be marked and not yet told
            for n in done:
                assert (rows[n] == n + 1).all()
        acknowledged = len(done) - 1


def test_data_is_on_the_disk_before_its_step_is_in_the_journal(tmp_path, monkeypatch):
    events = []
    with Workspace(tmp_path / "work", KEY) as work:
        p = work.array("p", (4,), np.uint8)
        journal = tmp_path / "work" / "refine.journal"
        monkeypatch.setattr(np.memmap, "flush", lambda self: events.append(("flush", b"step" in journal.read_bytes())))
        monkeypatch.setattr(os, "fsync", lambda file: events.append(("fsync", b"step" in journal.read_bytes())))
        work.mark("x", p)
        assert events == [("flush", False), ("fsync", True)]


def test_a_step_whose_data_cannot_be_written_is_not_done(tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    with Workspace(tmp_path / "work", KEY) as work:
        p = work.array("p", (4,), np.uint8)
        with monkeypatch.context() as patch:
            patch.setattr(np.memmap, "flush", full)
            with pytest.raises(FileError, match=r"work: cannot be written to \(No space left on device\)"):
                work.mark("x", p)
        assert not work.done("x")
    with Workspace(tmp_path / "work", KEY) as work:
        assert not work.done("x")


def test_an_array_that_does_not_fit_the_disk_is_refused_with_both_sizes(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(slides.shutil, "disk_usage", lambda folder: usage(10**10, 0, 3 * 10**9))
    with Workspace(tmp_path / "work", KEY) as work:
        with pytest.raises(FileError, match=r"work: p needs 3\.20 GB, and 3\.00 GB are free; make room, or give"):
            work.array("p", (40_000, 80_000), np.uint8)
        work.array("q", (20, 80), np.uint8)
        assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["q.npy", "refine.journal"]


def test_arrays_that_are_not_what_was_left_are_refused(tmp_path):
    with Workspace(tmp_path / "work", KEY) as work:
        work.mark("x", work.array("p", (4, 5), np.uint8))
        for shape, dtype in (((5, 4), np.uint8), ((4, 5), np.int8)):
            with pytest.raises(FileError, match=r"p\.npy: holds uint8 \(4, 5\) where .* is wanted; delete the folder"):
                work.array("p", shape, dtype)
    (tmp_path / "work" / "p.npy").write_bytes(b"torn")
    with Workspace(tmp_path / "work", KEY) as work, pytest.raises(FileError, match=r"p\.npy: damaged .*delete the fol"):
        work.array("p", (4, 5), np.uint8)
    (tmp_path / "work" / "p.npy").unlink()
    with pytest.raises(FileError, match=r"work: p\.npy is missing, of which steps are done; delete the folder"):
        Workspace(tmp_path / "work", KEY)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no advisory locks")
def test_two_runs_do_not_share_a_folder(tmp_path):
    with Workspace(tmp_path / "work", KEY) as work:
        with pytest.raises(FileError, match="another process works in it"):
            Workspace(tmp_path / "work", KEY)
        work.mark("x")
    with Workspace(tmp_path / "work", KEY) as work:
        assert work.done("x")


def test_a_removed_workspace_is_gone_and_files_of_others_stay(tmp_path):
    work = Workspace(tmp_path / "a", KEY)
    work.mark("x", work.array("p", (4,), np.uint8))
    work.remove()
    assert list(tmp_path.iterdir()) == []
    work = Workspace(tmp_path / "b", KEY)
    (tmp_path / "b" / "notes.txt").write_text("mine")
    work.array("p", (4,), np.uint8)
    work.remove()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["notes.txt"]


def test_a_kill_while_removing_leaves_nothing_that_seems_done(tmp_path, monkeypatch):
    work = Workspace(tmp_path / "work", KEY)
    work.mark("x", work.array("p", (4,), np.uint8))

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            work.remove()
    work.close()
    with Workspace(tmp_path / "work", KEY) as work:
        assert not work.done("x")


def test_a_record_is_kept_with_its_step(tmp_path):
    def check(work):
        assert [work.record(step) for step in "xyz"] == [{"decoded": 7, "seconds": 0.25}, {}, {}]
        assert [work.done(step) for step in "xyz"] == [True, True, False]

    with Workspace(tmp_path / "work", KEY) as work:
        work.mark("x", work.array("p", (4,), np.uint8), record={"decoded": 7, "seconds": 0.25})
        work.mark("y", record={"decoded": 1})
        work.mark("y")  # as it was marked last
        work.record("x")["decoded"] = 8  # a copy
        check(work)
    with Workspace(tmp_path / "work", KEY) as work:
        check(work)


def test_a_journal_without_records_is_gone_on_from(tmp_path):
    (tmp_path / "refine.journal").write_text(
        f'{{"key": {json.dumps(KEY, sort_keys=True)}}}\n{{"arrays": [], "step": "x"}}\n'
    )
    with Workspace(tmp_path, KEY) as work:
        assert work.done("x")
        assert work.record("x") == {}


def resident():
    """MB of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from /proc")
def test_pages_of_what_was_written_and_read_are_released(tmp_path):
    with Workspace(tmp_path / "work", KEY) as work:
        before = resident()
        p, q = (work.array(name, (64, 2**20), np.uint8) for name in "pq")
        p[:] = np.arange(64)[:, None]
        assert resident() - before > 40
        work.mark("p", p)
        assert resident() - before < 16
        q[:] = p
        assert resident() - before > 80
        work.mark("q", q[:32])  # a view of one, and both are released
        assert resident() - before < 16
        q[-1] = 70  # not yet on the disk
        work.release()
        assert (p == np.arange(64)[:, None]).all()
        assert (q[:-1] == p[:-1]).all()
        assert (q[-1] == 70).all()
    assert (np.load(tmp_path / "work" / "q.npy", mmap_mode="r")[:, 5] == [*range(63), 70]).all()


def test_a_journal_is_lines_of_json(tmp_path):
    with Workspace(tmp_path / "work", KEY) as work:
        work.mark("x", work.array("p", (4,), np.uint8))
    lines = (tmp_path / "work" / "refine.journal").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"key": KEY}, {"step": "x", "arrays": ["p"]}]


@pytest.mark.parametrize(
    "options",
    [
        {"compression": None},
        {"rowsperstrip": 1200},
        {"rowsperstrip": 600},
        {"rowsperstrip": 1200, "planarconfig": "separate"},
        {"tile": (1200, 752)},
    ],
    ids=["mapped", "one strip", "two strips", "planes", "two tiles"],
)
def test_large_tiles_and_strips_take_what_is_said_beyond_the_cache(tmp_path, monkeypatch, options):
    monkeypatch.setattr("refine.slides._BAND", 2**16)
    pixels = np.ones((3, 1200, 1504) if "planarconfig" in options else (1200, 1504, 3), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **{"compression": "zlib"} | options)
    with Slide(tmp_path / "a.tif", cache=2**20) as slide:
        tracemalloc.start()
        slide.read(Window(500, 520, 300, 400))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 2**20 + slide.excess + 3 * 12 * 2**16
        assert slide.excess <= 2 * pixels.nbytes
        assert (slide.excess == 0) == ("compression" in options)


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_alpha_that_is_another_mask_is_named_by_windows_too(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(slides, "_BAND", 300)
    samples = np.stack([MASK, MASK, MASK, MASK[::-1]], axis=2) * np.uint8(255)
    with (
        Slide(write_tiff(tmp_path / "a.tif", samples, **layout)) as slide,
        pytest.raises(InputError, match="its alpha channel is another mask than its colours"),
    ):
        slide.read_mask(Window(0, 5, 0, 5))
