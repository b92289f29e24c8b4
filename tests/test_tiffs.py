import io as bytes_io
import struct
import time
import warnings
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from refine import io, tiffs
from refine.errors import FileError, InputError
from refine.slides import MaskOf, Slide, write_mask_stream
from refine.tiles import Window


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def by_windows(path: Path) -> np.ndarray:
    with Slide(path) as slide:
        return slide.read(Window(0, slide.size[0], 0, slide.size[1]))


def mask_by_windows(path: Path) -> np.ndarray:
    with Slide(path) as slide:
        return MaskOf(slide).read(Window(0, slide.size[0], 0, slide.size[1]))


def retagged(path: Path, code: int, kind: int, value: bytes) -> None:
    """Gives a tag of one value another type and value, where it stands in a little-endian TIFF."""
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags[code].offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<HI", data, at + 2, kind, 1)
    data[at + 8 : at + 12] = value.ljust(4, b"\0")
    path.write_bytes(data)


# ------------------------------------------------------------------------------------------------------ directories


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}])
def test_directories_that_loop_or_chain_on_end_in_one_line(tmp_path, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(16, 16), metadata=None, **options)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        format, offset = tiff.tiff, tiff.pages[0].offset
        count = len(tiff.pages[0].tags)
    offsets, link = format.offsetformat, offset + format.tagnosize + count * format.tagsize
    page = struct.pack(format.tagnoformat, 0)
    step = len(page) + struct.calcsize(offsets)

    def chain(length: int, last: int) -> bytes:
        data = bytearray(whole)
        struct.pack_into(offsets, data, link, len(whole))
        for number in range(length):
            following = len(whole) + step * (number + 1) if number < length - 1 else last
            data += page + struct.pack(offsets, following)
        return bytes(data)

    loops = [chain(1, offset), chain(1, len(whole)), chain(3, len(whole) + step)]
    for data, told in [*((loop, "are a loop") for loop in loops), (chain(5000, 0), "more than 1,000 TIFF directories")]:
        path.write_bytes(data)
        for read in (io.read_size, io.read_image, io.read_georeference, Slide):
            began = time.perf_counter()
            with pytest.raises(FileError, match=rf"a\.tif: .*{told}"):
                read(path)
            assert time.perf_counter() - began < 1
    path.write_bytes(chain(1, 10**6))
    with pytest.raises(FileError, match="a TIFF directory is beyond its end"):
        io.read_image(path)


def test_a_directory_of_too_many_entries_or_values_ends_in_one_line(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(16, 16), metadata=None)
    whole = path.read_bytes()
    offset = struct.unpack_from("<I", whole, 4)[0]
    link = offset + 2 + 12 * struct.unpack_from("<H", whole, offset)[0]
    entry = struct.pack("<HHII", 40000, 12, 2**20, 8)

    def with_page(entries: int) -> bytes:
        data = bytearray(whole)
        struct.pack_into("<I", data, link, len(data))
        return bytes(data) + struct.pack("<H", entries) + entry * entries + bytes(4)

    path.write_bytes(with_page(60_000))
    with pytest.raises(FileError, match=r"a\.tif: damaged"):
        io.read_size(path)
    path.write_bytes(with_page(10))
    with pytest.raises(FileError, match=r"a\.tif: damaged \(its TIFF tags claim more than the file holds"):
        io.read_size(path)


# ------------------------------------------------------------------------------------------------------------- tags


@pytest.mark.parametrize(
    ("kind", "value"), [(3, b"\x09\0"), (3, b"\0\0"), (11, struct.pack("<f", 2)), (2, b"2"), (99, b"\2")]
)
@pytest.mark.parametrize("options", [{"tile": (16, 16), "compression": "zlib"}, {}])
def test_planes_that_are_neither_one_nor_two_are_refused(tmp_path, kind, value, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(3, 32, 48), photometric="rgb", planarconfig="separate", metadata=None, **options)
    retagged(path, 284, kind, value)
    for read in (io.read_image, by_windows, io.read_size):
        with pytest.raises(FileError, match=r"a\.tif: (truncated or )?damaged \((planar configuration|TIFF tag 284)"):
            read(path)


def test_a_stack_behind_one_directory_is_refused_as_pages_are(tmp_path):
    mask = noise(24, 32) // 128 * np.uint8(255)
    stack = np.stack([mask, mask, mask])
    for options in (
        {"imagej": True, "truncate": True},
        {"truncate": True, "photometric": "minisblack"},
        {"truncate": True, "photometric": "minisblack", "byteorder": ">"},
        {"truncate": True, "photometric": "minisblack", "bigtiff": True},
    ):
        tifffile.imwrite(tmp_path / "a.tif", stack, **options)
        for read in (io.read_mask, io.read_image, io.read_size, by_windows):
            with pytest.raises(FileError, match=r"a\.tif: 3 pictures behind one directory; accepted is one; save"):
                read(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", np.stack([noise(24, 32, 3)] * 2), photometric="rgb", truncate=True)
    with pytest.raises(FileError, match=r"b\.tif: 2 pictures behind one directory"):
        io.read_image(tmp_path / "b.tif")


def test_a_description_that_outlived_its_stack_is_no_stack(tmp_path):
    mask = noise(24, 32)
    for description in ('{"shape": [3, 24, 32]}', "ImageJ=1.11a\nimages=7\nslices=7\n", '{"shape": "x"}', "[" * 5000):
        tifffile.imwrite(tmp_path / "a.tif", mask, description=description, metadata=None)
        np.testing.assert_array_equal(io.read_mask(tmp_path / "a.tif"), mask)
    for array in (mask, np.dstack([mask] * 3), mask[None]):
        tifffile.imwrite(tmp_path / "a.tif", array, imagej=True)
        assert io.read_size(tmp_path / "a.tif") == (24, 32)


# ---------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("tile", [None, (32, 48)])
@pytest.mark.parametrize("compression", ["jpeg", "png", "webp", "jpeg2000", "jpegxl"])
def test_a_code_stream_larger_than_its_tile_is_refused_by_its_own_header(tmp_path, compression, tile):
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "metadata": None, "compression": compression, "tile": tile}
    codec = {"jpeg": "jpeg8", "jpeg2000": "jpeg2k"}.get(compression, compression)
    tifffile.imwrite(path, noise(32, 48, 3), **options)
    assert io.read_image(path).shape == by_windows(path).shape == (32, 48, 3)
    large = getattr(imagecodecs, f"{codec}_encode")(noise(64, 48, 3))
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        places = [tiff.pages[0].tags[code] for code in ((273, 279) if tile is None else (324, 325))]
        for tag, value in zip(places, (len(data), len(large)), strict=True):
            data = data[: tag.offset + 2] + struct.pack("<HII", 4, 1, value) + data[tag.offset + 12 :]
    path.write_bytes(data + large)
    for read in (io.read_image, by_windows):
        with pytest.raises(FileError, match=r"a\.tif: damaged \((tile|strip) 0 holds 48 x 64 px of . channels, where"):
            read(path)


def test_a_jpeg_in_a_tile_with_a_hole_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(256, 256, 3), photometric="rgb", compression="jpeg", tile=(128, 128), metadata=None)
    with tifffile.TiffFile(path) as tiff:
        at, length = tiff.pages[0].dataoffsets[2], tiff.pages[0].databytecounts[2]
    data = bytearray(path.read_bytes())
    data[at + length // 2 : at + length - 2] = bytes(length - 2 - length // 2)
    path.write_bytes(data)
    for read in (io.read_image, by_windows):
        with pytest.raises(FileError, match=r"a\.tif: truncated or damaged \(tile 2: "):
            read(path)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "lzma", "packbits"])
def test_a_tile_that_unpacks_to_more_or_less_than_its_tags_say_gives_no_other_pixels(tmp_path, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((32, 48), np.uint8), metadata=None, compression=compression, tile=(32, 48))
    encode = {"zlib": imagecodecs.zlib_encode, "lzw": imagecodecs.lzw_encode, "zstd": imagecodecs.zstd_encode}
    encode |= {"lzma": imagecodecs.lzma_encode, "packbits": imagecodecs.packbits_encode}
    for size in (2**16, 100):
        data = path.read_bytes()
        packed = encode[compression](bytes(size))
        with tifffile.TiffFile(path) as tiff:
            for code, value in ((324, len(data)), (325, len(packed))):
                at = tiff.pages[0].tags[code].offset
                data = data[: at + 2] + struct.pack("<HII", 4, 1, value) + data[at + 12 :]
        path.write_bytes(data + packed)
        for read in (io.read_mask, mask_by_windows):
            if size < 32 * 48:
                with pytest.raises(FileError, match=r"a\.tif: truncated or damaged"):
                    read(path)
                continue
            with suppress(FileError):  # decoders differ in whether more is an error
                assert not read(path).any()


def test_a_compression_that_could_take_any_memory_is_refused_by_name(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(32, 48, 3), photometric="rgb", compression="jpegxr", metadata=None)
    with pytest.raises(FileError, match=r"a\.tif: a TIFF compressed by JPEGXR.* is not read; save it with deflate"):
        io.read_image(tmp_path / "a.tif")


# -------------------------------------------------------------------------------------------------- alpha and nodata


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}, {"planarconfig": "separate"}])
def test_premultiplied_colours_are_divided_by_their_alpha(tmp_path, dtype, options):
    top = np.iinfo(dtype).max
    straight = noise(40, 50, 4, dtype=dtype)
    straight[..., 3] |= top // 2 + 1
    premultiplied = straight.copy()
    premultiplied[..., :3] = np.rint(straight[..., :3].astype(float) * straight[..., 3:] / top)
    array = np.moveaxis(premultiplied, -1, 0) if "planarconfig" in options else premultiplied
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["assocalpha"], **options)
    wanted = straight[..., :3] / (top / 255)
    whole = io.read_image(tmp_path / "a.tif")
    assert np.abs(whole - wanted).max() < 2.6
    np.testing.assert_array_equal(by_windows(tmp_path / "a.tif"), whole)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["unassalpha"], **options)
    assert np.abs(io.read_image(tmp_path / "a.tif") - premultiplied[..., :3] / (top / 255)).max() <= 0.5


def test_a_premultiplied_picture_is_as_pillow_shows_it_by_path_and_by_pillow(tmp_path):
    rgba = noise(40, 50, 4)
    rgba[..., :3] = np.minimum(rgba[..., :3], rgba[..., 3:])
    rgba[:5, :, 3] = rgba[:5, :, :3] = 0
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["assocalpha"])
    with Image.open(tmp_path / "a.tif") as picture:
        unread = io.read_image(picture)
        shown = np.asarray(picture.convert("RGBA"))[..., :3]
        np.testing.assert_array_equal(io.read_image(picture), shown)
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.tif"), shown)
    np.testing.assert_array_equal(unread, shown)


def nodata(value: str) -> list[tuple[int, int, int, str, bool]]:
    return [(42113, 2, len(value) + 1, value, True)]


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_pixels_without_data_are_told_in_an_image_and_refused_in_a_mask(tmp_path, options):
    image = noise(32, 48, 3) | np.uint8(1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="rgb", extratags=nodata("0"), **options)
    assert io.read_picture(path).warnings == ()
    image[3, 4] = 0
    tifffile.imwrite(path, image, photometric="rgb", extratags=nodata("0"), **options)
    assert "called unknown by its GDAL nodata tag" in io.read_picture(path).warnings[0]
    with Slide(path) as slide:
        slide.read(Window(5, 9, 0, 48))
        assert slide.warnings == ()
        slide.read(Window(0, 9, 0, 48))
        assert slide.warnings == io.read_picture(path).warnings
    mask = np.zeros((32, 48), np.uint8)
    mask[5:9] = 255
    tifffile.imwrite(path, mask, extratags=nodata("255"), **options)
    for read in (io.read_mask, mask_by_windows):
        with pytest.raises(InputError, match=r"a\.tif: has pixels of the value 255, which its GDAL nodata tag"):
            read(path)
    for harmless in ("0", "-9999", "nan", "many"):
        tifffile.imwrite(path, mask, extratags=nodata(harmless), **options)
        np.testing.assert_array_equal(io.read_mask(path), mask)
        np.testing.assert_array_equal(mask_by_windows(path), mask / 255)


# ---------------------------------------------------------------------------------------------------- georeferences

KEYS = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32631)


def place(scale: float = 10.0, x: float = 5e5, keys: tuple[int, ...] = KEYS) -> list[tuple[object, ...]]:
    return [
        (33550, 12, 3, (scale, scale, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, x, 46e5, 0.0), True),
        (34735, 3, len(keys), keys, True),
        (34736, 12, 2, (6378137.0, 298.25), True),
        (34737, 2, 8, "WGS 84|", True),
    ]


def values(path: Path) -> dict[int, object]:
    with tifffile.TiffFile(path) as tiff:
        codes = (282, 283, 296, 33550, 33922, 34264, 34735, 34736, 34737)
        return {tag.code: tag.value for tag in tiff.pages[0].tags if tag.code in codes}


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (16, 16)}])
def test_place_and_resolution_of_a_tiff_are_written_as_they_were_read(tmp_path, options):
    more = {"resolution": ((600, 1), (1201, 2)), "resolutionunit": 3}
    tifffile.imwrite(tmp_path / "a.tif", noise(32, 48, 3), photometric="rgb", extratags=place(), **more, **options)
    found = io.read_georeference(tmp_path / "a.tif")
    assert found.on_earth
    assert found == io.read_picture(tmp_path / "a.tif").georeference
    with Slide(tmp_path / "a.tif") as slide:
        assert found == slide.georeference
    mask = noise(32, 48) > 100
    io.write_mask(tmp_path / "m.tif", mask, georeference=found)
    io.write_probability(tmp_path / "p.tif", mask.astype(np.float32), georeference=found)
    write_mask_stream(tmp_path / "s.tif", (32, 48), lambda top, bottom: mask[top:bottom], georeference=found)
    for name in ("m.tif", "p.tif", "s.tif"):
        assert values(tmp_path / name) == values(tmp_path / "a.tif")
        np.testing.assert_array_equal(io.read_mask(tmp_path / name) > 0, mask)


def test_a_transformation_in_a_matrix_is_kept(tmp_path):
    matrix = (8.0, 1.0, 0.0, 5e5, 1.0, -8.0, 0.0, 46e5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    tifffile.imwrite(tmp_path / "a.tif", noise(32, 48), extratags=[(34264, 12, 16, matrix, True)])
    io.write_mask(tmp_path / "m.tif", noise(32, 48) > 9, georeference=io.read_georeference(tmp_path / "a.tif"))
    assert values(tmp_path / "m.tif")[34264] == matrix


def test_tags_that_cannot_be_a_place_are_not_kept(tmp_path):
    for tag in (
        (33550, 12, 2, (1.0, 1.0), True),
        (33550, 12, 3, (1.0, float("nan"), 0.0), True),
        (33922, 12, 5, (0.0,) * 5, True),
        (34735, 4, 4, (1, 1, 0, 0), True),
        (34264, 12, 1, 3.0, True),
    ):
        tifffile.imwrite(tmp_path / "a.tif", noise(8, 9), extratags=[tag], metadata=None)
        found = io.read_georeference(tmp_path / "a.tif")
        assert not found.on_earth, tag
        io.write_mask(tmp_path / "m.tif", noise(8, 9) > 9, georeference=found)


def test_other_files_have_no_place(tmp_path):
    Image.fromarray(noise(8, 9, 3)).save(tmp_path / "a.png")
    assert io.read_georeference(tmp_path / "a.png") is None
    assert io.read_picture(tmp_path / "a.png").georeference is None


def test_a_picture_that_is_stored_turned_keeps_no_place_and_says_so(tmp_path):
    turned = [*place(), (274, 3, 1, 6, True)]
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 9, 3), photometric="rgb", extratags=turned)
    picture = io.read_picture(tmp_path / "a.tif")
    assert picture.georeference is None
    assert "stored turned or mirrored (tag 274: 6), so its position is not kept" in picture.warnings[0]


@pytest.mark.parametrize(
    ("other", "size", "what"),
    [
        (place(), (40, 60), None),
        (place(20.0), (20, 30), None),  # half its size, and the same ground
        (place(x=5e5 + 5), (40, 60), None),  # pixels' centres instead of their corners
        (place(x=5e5 + 50), (40, 60), "positions"),
        (place(), (20, 30), "positions"),
        (place(keys=(*KEYS[:-1], 32632)), (40, 60), "coordinate systems"),
        ([], (40, 60), None),
    ],
)
def test_a_mask_that_lies_elsewhere_than_its_image_is_told(tmp_path, other, size, what):
    tifffile.imwrite(tmp_path / "a.tif", noise(40, 60), extratags=place())
    tifffile.imwrite(tmp_path / "m.tif", noise(*size), extratags=other)
    image, mask = (io.read_georeference(tmp_path / name) for name in ("a.tif", "m.tif"))
    told = tiffs.elsewhere(image, mask)
    assert [text.split(" have different ")[1].split(" (")[0] for text in told] == ([what] if what else [])


def test_nothing_warns_where_tifffile_writes_what_it_read(tmp_path):
    stream = bytes_io.BytesIO()
    tifffile.imwrite(stream, noise(8, 9), extratags=place(), resolution=(72, 72))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "a.tif").write_bytes(stream.getvalue())
        io.write_mask(tmp_path / "m.tif", noise(8, 9) > 3, georeference=io.read_georeference(tmp_path / "a.tif"))


@pytest.mark.parametrize("planar", [False, True], ids=["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("tile", [None, (16, 16)], ids=["strips", "tiles"])
def test_what_a_writer_left_out_of_a_tiff_shifts_nothing(tmp_path, planar, compression, tile):
    path, picture = tmp_path / "a.tif", noise(40, 50, 3)
    stored = np.ascontiguousarray(np.moveaxis(picture, -1, 0)) if planar else picture
    options = {"tile": tile} if tile else {"rowsperstrip": 16}
    options |= {"planarconfig": "separate" if planar else "contig", "compression": compression, "metadata": None}
    tifffile.imwrite(path, stored, photometric="rgb", **options)
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags[325 if tile else 279]
    data = bytearray(path.read_bytes())
    left_out = 1
    struct.pack_into(
        "<H" if tag.dtype == 3 else "<I", data, tag.valueoffset + (2 if tag.dtype == 3 else 4) * left_out, 0
    )
    path.write_bytes(data)
    want = picture.copy()
    rows, columns = (slice(0, 16), slice(16, 32)) if tile else (slice(16, 32), slice(None))
    want[rows, columns, 0 if planar else slice(None)] = 0
    assert np.array_equal(io.read_image(path), want)
    assert np.array_equal(by_windows(path), want)


def test_a_depth_of_tiles_is_refused_and_takes_no_memory(tmp_path):
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "tile": (16, 16), "compression": "deflate", "metadata": None}
    tifffile.imwrite(path, noise(40, 50, 3), extratags=[(65000, 4, 1, 2**32 - 1, True)], **options)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags[65000].offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, at, 32998)
    path.write_bytes(data)
    for read in (io.read_image, io.read_size, by_windows):
        with pytest.raises(FileError, match="depth 4294967295; accepted are one to four samples and depth 1"):
            read(path)
