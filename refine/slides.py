"""Pictures larger than memory: TIFF read by windows, a mask written as a stream, and a workspace that survives a kill.

`refine.io` holds a picture whole; here nothing is held that grows with its area. What is read has the values that
`refine.io.read_image` and `refine.prepare.as_mask` give for the same file.
"""

import json
import math
import mmap
import os
import shutil
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from weakref import WeakSet

import numpy as np
import tifffile
from numpy.typing import DTypeLike, NDArray

from refine import io, tiffs
from refine.errors import FileError, InputError, RefineError, one_of
from refine.io import PathLike
from refine.tiles import Window
from refine.values import Array, Meaning, distinct, meaning
from refine.white import White, reaches_white, white_of

MAX_SEGMENT = 2**28
"""Bytes of the largest tile or strip that is decoded: it cannot be decoded in parts."""

_TIFF = "TIFF"
_BAND = 2**22  # px read at once by what looks at a whole file
_SIDE = 256  # px; of the tiles that are written
_CLASSIC = 2**32 - 2**25  # bytes; offsets of a TIFF that is no BigTIFF end at 2**32, and its directory needs room too
_COMPRESSIONS = {"deflate": "zlib", "zstd": "zstd", "none": None}
_JOURNAL = "refine.journal"


# ---------------------------------------------------------------------------------------------------------- reading


class Slide:
    """A picture or mask in a TIFF of any size, read by windows: only tiles and strips that a window meets are decoded.

    The page that `refine.io.tiff_page` finds is read, at its full resolution: overviews (SubIFDs, smaller pages) and
    internal masks are left alone. Uncompressed files are mapped for the time of a read; of others the decoded tiles are
    kept up to ``cache`` bytes, or one if it is larger. Threads may share a slide: they take turns.

    ``white`` is a picture's, as in `refine.io.rgb8`.

    Some rules look at all of a file, so that no window is read differently from the next: which value is white in a
    picture, the range of floats, and what the values of a mask mean. So the first :meth:`read` of integers reads on
    from the top until enough of them are bright, that of a float picture, or with ``white``, and the first
    :meth:`read_mask` decode the whole file (which also finds damage before the work and not after hours): once, and a
    mask of few values once more, to tell whether they are labels.

    Raises FileError: no file, no TIFF (only TIFF can be read by windows), damaged or truncated, several pages that may
    be the picture, an orientation other than upright, colours or samples that are not read, or a tile or strip of more
    than ``MAX_SEGMENT`` bytes. Errors of reading are those of :meth:`read` and :meth:`read_mask`.
    """

    def __init__(self, path: PathLike, *, cache: int = 2**26, white: float | None = None) -> None:
        self._name = os.fsdecode(path)
        self._cache, self._cached = cache, 0  # bytes
        self._white = white
        self._unknown = False  # whether pixels without data have been read
        self._segments: OrderedDict[int, Array] = OrderedDict()  # decoded, the latest last
        self._lock = threading.Lock()
        with ExitStack() as stack:
            self._file = stack.enter_context(io.opened(Path(self._name), self._name, _TIFF))
            _check_is_tiff(self._file.read(16), self._name)
            self._file.seek(0)
            with io.decoding(self._name, _TIFF):
                tiff = stack.enter_context(io.open_tiff(self._file, self._name))
                self._page = _checked_page(tiff, self._file, self._name)
                self._mapped = self._page.is_final
                self._grid = _grid(self._page, self._mapped, self._name)
            self._down, self._across = (-(-side // step) for side, step in zip(self.size, self._grid, strict=True))
            self._stack = stack.pop_all()

    @property
    def name(self) -> str:
        """Its path, for messages."""
        return self._name

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        return self._page.imagelength, self._page.imagewidth

    @property
    def georeference(self) -> tiffs.Georeference | None:
        """Where it lies on Earth, and its resolution; None if the file says nothing of them."""
        return tiffs.georeference(self._page)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know of the windows read so far."""
        found = self.__dict__.get("_meaning")
        told = (f"mask: {found.told}",) if found is not None and found.told else ()
        white = self.__dict__.get("_found_white")
        told += (white.told,) if white is not None and white.told else ()
        return ((io.NODATA,) if self._unknown else ()) + told

    @property
    def excess(self) -> int:
        """Most bytes that large tiles or strips take beyond ``cache``: one kept, one decoded, a row of them read."""
        if self._mapped:
            return 0
        pixel = self._page.samplesperpixel * self._page.dtype.itemsize
        segment, whole = math.prod(self._grid) * pixel, math.prod(self.size) * pixel
        held = segment + min(max(0, whole - segment), max(self._cache, segment))
        held += segment if self._page.shaped[0] > 1 else 0  # planes, and what they are put together to
        band = max(0, self._rows * self.size[1] - _BAND) * pixel
        return max(0, held - self._cache) + band

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Picture (h, w, 3), uint8 RGB, in a window of it, with the values of `refine.io.read_image`.

        Raises FileError: a tile or strip is damaged.
        Raises InputError: as `refine.io.rgb8`, which here means the values of the whole file.
        """
        colours = self._colours(window)
        if self._white is None and "_found_white" not in self.__dict__:
            found = reaches_white(colours, math.prod(self.size) * (colours.size // math.prod(colours.shape[:2])))
            if found is not None:
                self.__dict__["_found_white"] = found
        return io.scaled8(colours, self._found_white.value)

    def read_mask(self, window: Window) -> NDArray[np.float32]:
        """Mask (h, w) float32 in [0, 1] in a window of it, by the rules of `refine.prepare.as_mask` for the whole file.

        Raises FileError: a tile or strip is damaged.
        Raises InputError: as `refine.io.read_mask` and `refine.prepare.as_mask`: no mask, a label map, out of range.
        """
        return self._meaning.unit(self._values(window))

    def close(self) -> None:
        """Closes the file and forgets what was decoded."""
        self._stack.close()
        self._segments.clear()
        self._cached = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # Meaning of the samples

    def _colours(self, window: Window) -> Array:
        """Grey or RGB, (h, w) or (h, w, 1 | 3), over the range of their type."""
        raster = self._raster(window, "image")
        if raster.palette is not None:
            return np.take(raster.palette, raster.samples, axis=0)
        samples = _opaque(raster.samples)
        return samples * np.uint8(255) if samples.dtype == bool else samples

    @cached_property
    def _found_white(self) -> White:
        """By the values of the whole file; windows are read from the top until it is known."""
        mine = self._page.photometric == tifffile.PHOTOMETRIC.PALETTE or self._page.dtype == bool
        height, width = self.size
        channels = self._colours(Window(0, 1, 0, 1)).size
        bands = lambda: map(self._colours, self._bands())  # noqa: E731  asked for again
        return white_of(bands, height * width * channels, self._name, None if mine else self._white)

    def _values(self, window: Window) -> Array:
        """Values (h, w) of a mask as `refine.io.read_mask` gives them."""
        raster = self._raster(window, "mask")
        if raster.palette is not None:
            return self._greys[raster.samples]
        samples = _opaque(raster.samples)
        return io.grey(samples, self._name, highest=self._highest if samples.shape[2:] == (3,) else None)

    @cached_property
    def _highest(self) -> float:
        """Of a mask's colours, by which their noise is told from labels."""
        return max(float(_opaque(self._raster(band, "mask").samples).max()) for band in self._bands())

    @cached_property
    def _greys(self) -> NDArray[np.uint8]:
        """(256,): the value of each index of a mask's palette, by io's rule for the indices that are used."""
        used, greys, palette = np.zeros(256, bool), np.zeros(256, np.uint8), None
        for band in self._bands():
            raster = self._raster(band, "mask")
            used[distinct(raster.samples, 255)] = True
            palette = raster.palette
        assert palette is not None
        indices = np.flatnonzero(used).astype(np.uint8)
        greys[indices] = io.palette_values(indices[None], palette, self._name)[0]
        return greys

    @cached_property
    def _meaning(self) -> Meaning:
        if self._page.samplesperpixel in (2, 4):
            self._check_alpha()
        return meaning(lambda: map(self._values, self._bands()), self._name)

    def _check_alpha(self) -> None:
        """Refuses a mask whose alpha channel is another one, as `refine.io.grey` does."""
        if self._raster(Window(0, 1, 0, 1), "mask").samples.shape[2] == 3:  # inks, which became RGB
            return
        bands = lambda: (self._raster(band, "mask").samples for band in self._bands())  # noqa: E731
        io.check_alpha(lambda: ((samples[..., 0], samples[..., -1]) for samples in bands()), self._name)

    def _raster(self, window: Window, kind: str) -> io.Raster:
        height, width = self.size
        assert 0 <= window.top < window.bottom <= height, (window, self.size)
        assert 0 <= window.left < window.right <= width, (window, self.size)
        with io.decoding(self._name, _TIFF):
            with self._lock:
                samples = self._mapped_samples(window) if self._mapped else self._decoded_samples(window)
            samples = samples[..., 0] if samples.shape[2] == 1 else samples
            self._unknown |= io.holds_nodata(self._page, samples, self._name, kind)
            return io.tiff_colours(self._page, samples, self._name)

    @cached_property
    def _rows(self) -> int:
        """Height of a band: of whole segments, or, as one strip stays decoded, of a part of one."""
        high = self._grid[0]
        rows = max(1, _BAND // self.size[1])
        return rows if self._across == 1 and rows < high else high * max(1, rows // high)

    def _bands(self) -> Iterator[Window]:
        """Windows as wide as the picture, from the top, by which each segment is decoded once."""
        (height, width), rows = self.size, self._rows
        return (Window(top, min(top + rows, height), 0, width) for top in range(0, height, rows))

    # Samples (h, w, C) as stored, in memory of their own

    def _mapped_samples(self, window: Window) -> Array:
        # Mapped anew each time: pages of a map count as memory of this process until it is unmapped.
        page = self._page
        stored = page.parent.byteorder + page.dtype.char
        data = np.memmap(self._file, stored, "r", page.dataoffsets[0], page.shaped)  # (planes, 1, H, W, C)
        rows, columns = window.slices
        part = np.moveaxis(data[:, 0, rows, columns], 0, -2).reshape(window.height, window.width, -1)
        return np.array(part, page.dtype, order="C", subok=False)

    def _decoded_samples(self, window: Window) -> Array:
        high, wide = self._grid
        samples = np.empty((window.height, window.width, self._page.samplesperpixel), self._page.dtype)
        for row in range(window.top // high, -(-window.bottom // high)):
            for column in range(window.left // wide, -(-window.right // wide)):
                segment = self._segment(row * self._across + column)
                top, left = row * high, column * wide
                t, b = max(window.top, top), min(window.bottom, top + high)
                l, r = max(window.left, left), min(window.right, left + wide)  # noqa: E741  # top, bottom, left, right
                into = samples[t - window.top : b - window.top, l - window.left : r - window.left]
                into[...] = segment[t - top : b - top, l - left : r - left]
        return samples

    def _segment(self, number: int) -> Array:
        """Samples (h, w, C) of a tile or strip, all planes of it; decoded unless it is among the latest ones."""
        segment = self._segments.pop(number, None)
        if segment is None:
            planes = range(0, self._across * self._down * self._page.shaped[0], self._across * self._down)
            decoded = [self._decoded(plane + number) for plane in planes]
            segment = decoded[0] if len(decoded) == 1 else np.concatenate(decoded, axis=2)
            self._cached += segment.nbytes
        self._segments[number] = segment
        while self._cached > self._cache and len(self._segments) > 1:
            self._cached -= self._segments.popitem(last=False)[1].nbytes
        return segment

    def _decoded(self, index: int) -> Array:
        page = self._page
        data = None  # a writer may leave out a segment without content
        if page.dataoffsets[index] and page.databytecounts[index]:
            self._file.seek(page.dataoffsets[index])
            data = self._file.read(page.databytecounts[index])
            tiffs.check_segment(page, data, index, self._name)
        segment, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        return np.full(shape[1:], page.nodata, page.dtype) if segment is None else segment[0]


@dataclass(frozen=True)
class MaskOf:
    """A slide read as a mask, which is a plane."""

    slide: Slide

    @property
    def size(self) -> tuple[int, int]:
        return self.slide.size

    def read(self, window: Window) -> NDArray[np.float32]:
        return self.slide.read_mask(window)


def _check_is_tiff(head: bytes, name: str) -> None:
    if head[:4] in tiffs.HEADS:
        return
    known = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"RIFF": "WebP", b"\x93NUMPY": ".npy"}
    given = next((f"a {known[magic]} file" for magic in known if head.startswith(magic)), "of an unknown format")
    raise FileError(f"{name}: {given}; only TIFF can be read by windows; convert it to a TIFF with tiles")


def _checked_page(tiff: Any, file: Any, name: str) -> Any:
    """The picture's page, which has samples and colours that are read by windows, upright."""
    page = io.tiff_page(tiff, file, name, allow_large=True)
    if page.photometric == tifffile.PHOTOMETRIC.SEPARATED and page.dtype != np.uint8:
        given = f"CMYK samples of {page.bitspersample} bits"
        raise FileError(f"{name}: a TIFF of {given} has no windows; convert it to 8-bit or 16-bit grey or RGB")
    pixel = (1, 1) if page.samplesperpixel == 1 else (1, 1, page.samplesperpixel)
    io.tiff_colours(page, np.zeros(pixel, page.dtype), name)  # refuses colours that are not read
    orientation = page.tags.valueof(274, 1)
    if orientation in range(2, 9):
        raise FileError(
            f"{name}: orientation {orientation} (tag 274), so stored turned or mirrored; windows are read only "
            "where it is 1; save it upright"
        )
    return page


def _grid(page: Any, mapped: bool, name: str) -> tuple[int, int]:
    """Height and width of what is decoded at once."""
    if mapped:
        return 1, page.imagewidth
    kind, high, wide = "strip", page.rowsperstrip, page.imagewidth
    if page.is_tiled:
        kind, high, wide = "tile", page.tilelength, page.tilewidth
    size = high * wide * page.samplesperpixel * page.dtype.itemsize
    if size > MAX_SEGMENT:
        raise FileError(
            f"{name}: each {kind} is {wide} x {high} px, {size / 2**20:.0f} MiB to decode at once; accepted are "
            f"{MAX_SEGMENT / 2**20:.0f} MiB; save it with tiles, as of 256 x 256 px"
        )
    return high, wide


def _opaque(samples: Array) -> Array:
    """Samples without their alpha channel."""
    return samples[..., :-1] if samples.ndim == 3 and samples.shape[2] in (2, 4) else samples


# ---------------------------------------------------------------------------------------------------------- writing


def check_mask_stream(path: PathLike) -> None:
    """Checks that :func:`write_mask_stream` can write a file, whose folder need not exist yet.

    Raises OptionError: a suffix other than .tif and .tiff.
    Raises FileError: the file cannot be written.
    """
    io.check_suffix(path, (".tif", ".tiff"), "a mask larger than memory")
    io.check_file(path)


def write_mask_stream(
    path: PathLike,
    size: tuple[int, int],
    rows: Callable[[int, int], NDArray[np.bool_]],
    *,
    compression: str = "deflate",
    georeference: tiffs.Georeference | None = None,
) -> None:
    """Writes a mask of ``size`` (H, W) as 0 and 255 in 8 bits, a TIFF with tiles, band by band.

    ``rows(top, bottom)`` gives the mask (bottom - top, W) bool of some rows; it is asked from the top to the bottom,
    once for each row of tiles, and no more than one band is held. BigTIFF is written where the pixels would not fit
    into a TIFF uncompressed. ``compression`` is deflate, zstd or none; a ``georeference`` is kept. The file is on the
    disk when this returns.

    Raises OptionError: a suffix other than .tif and .tiff, or an unknown compression.
    Raises InputError: no pixels, or ``rows`` gives something else.
    Raises FileError: the file cannot be written; an older one is then untouched, as it is if ``rows`` raises.
    """
    check_mask_stream(path)
    one_of("compression", compression, tuple(_COMPRESSIONS))
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"mask: has no pixels ({width} x {height}); give a size (H, W) of at least one pixel")

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for top in range(0, height, _SIDE):
            bottom = min(top + _SIDE, height)
            band = rows(top, bottom)
            if band.dtype != bool or band.shape != (bottom - top, width):
                wanted = f"bool {(bottom - top, width)}"
                raise InputError(f"mask: rows({top}, {bottom}) gave {band.dtype} {band.shape}; accepted is {wanted}")
            for left in range(0, width, _SIDE):
                yield band[:, left : left + _SIDE] * np.uint8(255)
            del band  # before the next one is made

    def write(file: Any) -> None:
        padded = -(-height // _SIDE) * -(-width // _SIDE) * _SIDE**2
        with tifffile.TiffWriter(file, bigtiff=padded > _CLASSIC) as tiff:
            tiff.write(
                tiles(),
                shape=size,
                dtype=np.uint8,
                tile=(_SIDE, _SIDE),
                photometric="minisblack",
                compression=_COMPRESSIONS[compression],
                metadata=None,
                maxworkers=1,  # more would gather hundreds of megabytes of tiles first
                **(georeference.options if georeference is not None else {}),
            )
        file.flush()
        os.fsync(file.fileno())

    io.write_atomic(path, write)


# --------------------------------------------------------------------------------------------------------- resuming


class Workspace:
    """A folder with what a run has done so far, from which the same run goes on after a kill.

    It holds arrays, and a journal of the steps whose data is in them. A journal is lines of JSON: the ``key`` of the
    job, which is whatever tells it from another (input files, their sizes and times, options, weights), then a line
    for each step. A step is in it only after its data is on the disk; a line that was torn by a kill is taken off.

    A new folder is made where there is none or an empty one. One process works in it at a time. Of arrays that are
    larger than memory no more is in it than was read and written since the last step.

    Raises FileError: the folder is a link, or holds another job's work, something else, or less than its journal says;
    its journal is damaged; another process works in it; it cannot be written to. Nothing in it is deleted then.
    """

    def __init__(self, folder: PathLike, key: dict[str, Any]) -> None:
        self._name = os.fsdecode(folder)
        self._folder = Path(self._name)
        with self._writing(), ExitStack() as stack:
            journal = self._path(_JOURNAL)
            for path in (self._folder, journal):
                if path.is_symlink():  # what is behind it is not ours to delete from
                    raise FileError(f"{path}: is a link, where a folder of this program is wanted; remove the link")
            self._folder.mkdir(parents=True, exist_ok=True)
            if not journal.exists() and any(self._folder.iterdir()):
                raise FileError(f"{self._name}: holds files of something else; give a new folder or an empty one")
            if journal.exists() and not journal.is_file():
                raise FileError(f"{journal}: is no file; delete the folder {self._name}")
            self._journal = stack.enter_context(journal.open("a+b", buffering=0))
            self._lock()
            self._records = self._resume(key)
            stack.pop_all()
        self._maps: WeakSet[mmap.mmap] = WeakSet()

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> "np.memmap[Any, Any]":
        """The array of a name, on disk and writable: as it was left, or new and zero.

        A new one takes all of its disk space at once: a disk that is full when a page of a mapped file is written kills
        the process, and no error could say so.

        Raises FileError: it does not fit on the disk, has another shape or type, is damaged, or cannot be written.
        """
        path = self._path(f"{name}.npy")
        dtype = np.dtype(dtype)
        head = _npy_head(shape, dtype)
        size = len(head) + math.prod(shape) * dtype.itemsize
        with self._writing():
            if not os.path.lexists(path):
                self._check_space(name, size)
                part = path.with_suffix(".part")
                part.unlink(missing_ok=True)
                with part.open("xb") as file:
                    file.write(head)
                    file.truncate(size)
                    _allocate(file, size)
                part.replace(path)
                self._sync_folder()
            if path.is_symlink() or not path.is_file():
                raise FileError(f"{path}: is no file of this program; delete the folder {self._name}")
            with path.open("r+b") as file:
                self._check_array(file, path, head, size, (shape, dtype))
                _allocate(file, size)  # as it was left by a version that did not, or copied without its holes
                array = np.memmap(file, dtype, "r+", len(head), shape)
        self._maps.add(array._mmap)  # type: ignore[attr-defined]
        return array

    def _check_array(
        self, file: BinaryIO, path: Path, head: bytes, size: int, wanted: tuple[tuple[int, ...], np.dtype[Any]]
    ) -> None:
        if file.read(len(head)) == head and os.fstat(file.fileno()).st_size == size:
            return
        file.seek(0)
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # numpy raises whatever its parser does
            raise FileError(f"{path}: damaged ({type(error).__name__}); delete the folder {self._name}") from error
        given, asked = f"{dtype} {shape}", f"{wanted[1]} {wanted[0]}"
        if given == asked:
            raise FileError(f"{path}: damaged (of another length than it says); delete the folder {self._name}")
        raise FileError(f"{path}: holds {given} where {asked} is wanted; delete the folder {self._name}")

    def done(self, step: str) -> bool:
        """Whether a step was marked, now or in a run before."""
        return step in self._records

    def record(self, step: str) -> dict[str, float]:
        """What was recorded with a step, now or in a run before; empty if nothing was or it is not done."""
        return dict(self._records.get(step, {}))

    def mark(self, step: str, *arrays: Any, record: Mapping[str, float] | None = None) -> None:
        """Says that a step is done, once what it wrote to ``arrays`` (of this workspace, or parts of them) is on disk.

        ``record``, numbers that JSON has, is kept with it. The pages of all arrays are released.

        Raises FileError: that cannot be written; the step then is not done.
        """
        with self._writing():
            for array in arrays:
                array.flush()
            self.release()
            names = sorted({Path(str(array.filename)).stem for array in arrays})
            assert all(self._path(f"{name}.npy").exists() for name in names), names
            entry = {"step": step, "arrays": names} | ({"record": dict(record)} if record else {})
            self._append(entry)
        self._records[step] = dict(record or {})

    def release(self) -> None:
        """Takes the arrays' pages out of this process's memory, where the system can; what they hold stays.

        Pages of a file that were read or written count as memory of this process until they are released. They are
        mapped shared, so the file has what was written to them, and they are mapped again where they are used.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps:
                with suppress(OSError):  # of memory that is locked
                    mapped.madvise(mmap.MADV_DONTNEED)

    def remove(self) -> None:
        """Deletes the arrays (.npy), the journal and, unless something else is in it, the folder.

        Raises FileError: something cannot be deleted.
        """
        with self._writing():
            self._journal.seek(0)
            self._clear(len(self._journal.readline()))
            self.close()
            self._path(_JOURNAL).unlink()
            with suppress(OSError):  # files that are not ours stay, and so does their folder
                self._folder.rmdir()

    def close(self) -> None:
        """Leaves the folder as it is, for another run."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _path(self, name: str) -> Path:
        return self._folder / name

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except RefineError:
            raise
        except OSError as error:
            message = f"{self._name}: cannot be written to ({error.strerror or error}); give another folder"
            raise FileError(message) from error

    def _lock(self) -> None:
        """Keeps other processes out for as long as this one lives, where the system and its file system have locks."""
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"{self._name}: another process works in it; wait for it or give another folder") from None
        except OSError:  # a network's file system without locks
            return

    def _resume(self, key: dict[str, Any]) -> dict[str, dict[str, float]]:
        """The steps, with their records, of a journal of this key, and a journal that ends with a whole line."""
        self._journal.seek(0)
        data = self._journal.read()
        entries, end = _whole_lines(data)
        first = {"key": json.loads(json.dumps(key))}
        known = entries[0].get("key") if entries and isinstance(entries[0], dict) and len(entries[0]) == 1 else None
        # A kill may tear the first line: then nothing is there but the journal, for arrays come behind that line.
        torn = not entries and _line(first).startswith(data)
        if torn and not any(path.name != _JOURNAL for path in self._folder.iterdir()):
            self._begin(first)
            return {}
        if not isinstance(known, dict) or end < data.rfind(b"\n") + 1 or not all(map(_is_step, entries[1:])):
            raise FileError(f"{self._name}: its journal is damaged; delete the folder or give another one")
        if known != first["key"]:
            if len(entries) == 1:  # another job's, without a step
                self._clear(end)
                self._begin(first)
                return {}
            other = ", ".join(sorted(k for k in {*known, *key} if known.get(k) != first["key"].get(k)))
            raise FileError(
                f"{self._name}: holds the work of another run, which differs in {other}; delete the folder, or choose "
                "another output"
            )
        for name in {name for entry in entries[1:] for name in entry["arrays"]}:
            if not self._path(f"{name}.npy").exists():
                raise FileError(f"{self._name}: {name}.npy is missing, of which steps are done; delete the folder")
        self._journal.truncate(end)
        return {entry["step"]: entry.get("record", {}) for entry in entries[1:]}

    def _begin(self, first: dict[str, Any]) -> None:
        """A journal of a key, without steps."""
        self._journal.truncate(0)
        self._append(first)
        self._sync_folder()

    def _append(self, entry: dict[str, Any]) -> None:
        line = _line(entry)
        while line:
            line = line[self._journal.write(line) :]
        os.fsync(self._journal.fileno())

    def _clear(self, first: int) -> None:
        """Forgets the steps, then deletes the arrays: in this order a kill leaves nothing that seems to be done.

        The ``first`` bytes of the journal, the line of its key, stay: by them the folder is known to be ours.
        """
        self._journal.truncate(first)
        os.fsync(self._journal.fileno())
        for path in [*self._folder.glob("*.npy"), *self._folder.glob("*.part")]:
            path.unlink()

    def _check_space(self, name: str, needed: int) -> None:
        stats = [path.stat() for path in self._folder.glob("*.npy")]
        promised = sum(max(0, s.st_size - 512 * getattr(s, "st_blocks", s.st_size)) for s in stats)
        available = shutil.disk_usage(self._folder).free - promised
        if needed > available:
            raise FileError(
                f"{self._name}: {name} needs {needed / 1e9:.2f} GB, and {max(0, available) / 1e9:.2f} GB are free; "
                "make room, or give a folder on a larger disk"
            )

    def _sync_folder(self) -> None:
        """Makes a new file's name as durable as its data, where the file system can."""
        if sys.platform == "win32":
            return
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True).encode() + b"\n"


def _whole_lines(data: bytes) -> tuple[list[Any], int]:
    """Entries of a journal up to the first one that is torn, and the bytes they take."""
    entries: list[Any] = []
    end = 0
    for line in data.split(b"\n")[:-1]:
        try:
            entries.append(json.loads(line))
        except (ValueError, RecursionError):
            break
        end += len(line) + 1
    return entries, end


def _is_step(entry: Any) -> bool:
    """Whether an entry of a journal is a step as :meth:`Workspace.mark` writes it."""
    if not isinstance(entry, dict) or not {"step", "arrays"} <= entry.keys() <= {"step", "arrays", "record"}:
        return False
    names, record = entry["arrays"], entry.get("record", {})
    return (
        isinstance(entry["step"], str)
        and isinstance(names, list)
        and all(isinstance(name, str) and name == os.path.basename(name) and "\0" not in name for name in names)
        and isinstance(record, dict)
        and all(type(value) in (int, float) and abs(value) < 2**63 for value in record.values())
    )


def _npy_head(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What a .npy file of an array begins with."""
    stream = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()


def _allocate(file: BinaryIO, size: int) -> None:
    """Takes disk space for all of a file, which keeps its content; OSError where there is none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
