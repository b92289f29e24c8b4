import io
import mmap
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from refine import FileError, InputError, OptionError
from refine.arrays import content, plain
from refine.errors import check_path
from refine.io import read_image, read_mask, write_image
from refine.metrics import iou
from refine.prepare import as_image, as_mask, prepare
from refine.slides import Slide

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
MASK = np.random.default_rng(1).integers(0, 2, (6, 9)).astype(bool)


class Quantity:
    """As pint's: a number with a unit, which warns when it is taken for an array."""

    def __init__(self, values):
        self._values = values

    magnitude = property(lambda self: self._values)
    units = "percent"

    def __array__(self, dtype=None, copy=None):
        raise UserWarning("the unit was stripped")


class Labelled:
    """As xarray's, pandas' and jax's: what numpy can make an array of."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class OnDevice(Labelled):
    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion is not allowed,\nuse .get()")


class Sub(np.ndarray):
    pass


KINDS = {
    "subclass": lambda a: a.view(Sub),
    "masked array without a mask": np.ma.masked_array,
    "masked array of no masked value": lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)),
    "quantity": Quantity,
    "labelled": Labelled,
    "memoryview": lambda a: memoryview(np.ascontiguousarray(a)),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "turned in memory": np.asfortranarray,
    "tensor": torch.from_numpy,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_array_is_its_plain_array(kind):
    given = KINDS[kind]
    assert type(plain(given(PICTURE), "image")) is np.ndarray
    pair = prepare(given(PICTURE), given(MASK))
    assert np.array_equal(pair.image, PICTURE)
    assert np.array_equal(pair.mask, MASK)
    assert iou(given(MASK), given(MASK)) == 1


@pytest.mark.parametrize("values", [PICTURE[..., 0], MASK])
def test_a_matrix_is_its_array(values):
    matrix = values.view(np.matrix)
    if values.dtype == bool:
        assert np.array_equal(as_mask(matrix, MASK.shape), MASK)
        assert iou(matrix, matrix) == 1
    else:
        assert np.array_equal(as_image(matrix), np.dstack([values] * 3))


def test_a_mapped_array_is_taken(tmp_path):
    np.save(tmp_path / "a.npy", MASK)
    assert np.array_equal(as_mask(np.load(tmp_path / "a.npy", mmap_mode="r"), MASK.shape), MASK)


def test_what_is_masked_is_refused():
    hidden = np.ma.masked_array(MASK, np.arange(MASK.size).reshape(MASK.shape) < 5)
    for take in (lambda a: as_mask(a, MASK.shape), as_image, lambda a: iou(a, MASK), lambda a: iou(MASK, a)):
        with pytest.raises(InputError, match=r"a masked array with 5 of 54 values masked.*filled\(0\)"):
            take(hidden)
    with pytest.raises(InputError, match="a masked array"):
        as_image(np.ma.masked_equal(PICTURE, PICTURE[0, 0, 0]))


@pytest.mark.parametrize(
    "values",
    [
        MASK.astype(object),
        MASK.astype(complex),
        MASK.astype("S1"),
        MASK.astype("M8[s]"),
        np.rec.fromarrays([MASK, MASK], names="a,b"),
        np.ma.masked_array(np.zeros((6, 9), [("a", "i4")]), True),
        OnDevice(MASK),
        np.float64(1),
    ],
    ids=lambda values: type(values).__name__ + str(getattr(values, "dtype", "")),
)
def test_what_holds_no_numbers_is_one_line(values):
    for take in (lambda a: as_mask(a, MASK.shape), as_image, lambda a: iou(a, MASK)):
        with pytest.raises(InputError) as raised:
            take(values)
        assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.from_numpy(PICTURE),
        torch.from_numpy(PICTURE).permute(2, 0, 1),
        torch.from_numpy(PICTURE).permute(2, 0, 1)[None],
        torch.from_numpy(PICTURE)[None],
        (torch.from_numpy(PICTURE).double() / 255).requires_grad_(),
    ],
    ids=["HWC", "CHW", "1CHW", "1HWC", "floats with a gradient"],
)
def test_a_tensor_is_a_picture_with_channels_first_or_last(tensor):
    assert np.array_equal(as_image(tensor), PICTURE)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(6, 9), (1, 6, 9), (6, 9, 1), (1, 1, 6, 9), (3, 6, 9)])
def test_a_tensor_is_a_mask(dtype, shape):
    mask = torch.from_numpy(MASK).to(dtype)
    mask = mask[..., None] if shape[-1] == 1 else mask.expand(shape)
    assert np.array_equal(as_mask(mask, MASK.shape), MASK)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(6, 9).to_sparse(), "a tensor .*sparse"),
        (torch.zeros(6, 9, device="meta"), "a tensor .*meta"),
        (torch.zeros(3, 9, 3), "channels first or last"),
        (torch.zeros(2, 3, 6, 9), "one (picture|mask) at a time"),
        (torch.zeros(6, 9, dtype=torch.complex64), "complex64"),
    ],
    ids=["sparse", "meta", "both", "batch", "complex"],
)
def test_a_tensor_that_is_no_picture_is_one_line(tensor, words):
    for take in (as_image, lambda given: as_mask(given, MASK.shape)):
        with pytest.raises(InputError, match=words) as raised:
            take(tensor)
        assert str(raised.value).isprintable()


class Stream:
    """As a response of a server: it can be read once, and not go back."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def read(self, count=-1):
        return self._data.read(count)

    def seekable(self):
        return False


@pytest.fixture
def files(tmp_path):
    write_image(tmp_path / "a.png", PICTURE)
    write_image(tmp_path / "a.tif", PICTURE)
    np.save(tmp_path / "m.npy", MASK)
    return tmp_path


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_file_in_memory_is_read_as_its_path_is(files, suffix):
    path = files / f"a.{suffix}"
    data = path.read_bytes()
    ended = io.BytesIO(data)
    ended.read()
    with path.open("rb") as file, tempfile.NamedTemporaryFile() as temporary:
        temporary.write(data)
        temporary.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for given in (data, bytearray(data), memoryview(data), ended, file, temporary, mapped, Stream(data)):
            assert np.array_equal(as_image(given), PICTURE)
        assert ended.tell() == len(data)
        mapped.close()
    assert np.array_equal(read_image(path), PICTURE)
    assert np.array_equal(read_image(str(path)), PICTURE)


def test_a_mask_in_memory_is_read_as_its_path_is(files):
    data = (files / "m.npy").read_bytes()
    for given in (data, io.BytesIO(data), Stream(data)):
        assert np.array_equal(prepare(Stream((files / "a.tif").read_bytes()), given).mask, MASK)
    assert np.array_equal(read_mask(files / "m.npy"), MASK)
    with pytest.raises(FileError, match="mask: truncated or damaged"):
        read_mask(data[:-3])


class Asynchronous:
    async def read(self, count=-1):
        return b""


def closed():
    file = io.BytesIO(b"a")
    file.close()
    return file


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"", "0 bytes"),
        (io.BytesIO(), "0 bytes"),
        (io.StringIO("text"), r"opened as text; open it as open\(path, 'rb'\)"),
        (closed(), "cannot be read"),
        (Asynchronous(), "gives coroutine, not bytes"),
    ],
)
def test_what_cannot_be_read_is_one_line(given, words):
    with pytest.raises(InputError, match=words):
        content(given, "image")


def test_a_file_opened_for_writing_is_one_line(tmp_path):
    with (tmp_path / "a").open("wb") as file, pytest.raises(FileError, match="cannot be read"):
        content(file, "image")


def test_a_stream_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr("refine.arrays.MOST_BYTES", 5)
    with pytest.raises(InputError, match="a stream of more than"):
        content(io.BytesIO(bytes(6)), "image")


SECRET = "\x89PNG\r\n\x1a\n" + "secret" * 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SECRET, "a text of 188 characters"),
        ("secret\0", "a text of 7 characters"),
        ("secret" * 100, "a text of 600 characters"),
        ("secret/" * 1000, "a text of 7,000 characters"),
        ("", "a text of 0 characters"),
        ("iVBORw0KGgo" + "secret", r"base64\.b64decode"),
        ("data:image/png;base64,iVBORwsecret", r"base64\.b64decode"),
        ("https://user:secret@example.org/a.png", r"address \(https\).*download it"),
        ("S3://secret/a.png", r"address \(s3\).*download it"),
    ],
)
@pytest.mark.parametrize("take", [as_image, lambda text: as_mask(text, (6, 9)), Slide, read_image], ids="abcd")
def test_a_text_that_is_no_path_is_told_and_not_shown(take, text, words):
    with pytest.raises(FileError, match=words) as raised:
        take(text)
    assert "secret" not in str(raised.value)


def test_a_path_with_odd_characters_is_a_path(files, monkeypatch):
    monkeypatch.chdir(files)
    Path("a\nb.png").write_bytes(Path("a.png").read_bytes())
    assert np.array_equal(as_image("a\nb.png"), PICTURE)


@pytest.mark.parametrize("value", [b"\x80secret", bytearray(b"secret"), "secret\0", memoryview(b"secret")])
def test_the_content_of_a_file_given_as_a_path_is_not_shown(value):
    with pytest.raises(OptionError, match=r"weights=<.*> is not a path") as raised:
        check_path("weights", value)
    assert "secret" not in str(raised.value)


def test_bytes_of_no_picture_are_not_shown():
    with pytest.raises(FileError, match="image: of an unknown format") as raised:
        as_image(b"secret" * 10)
    assert "secret" not in str(raised.value)


def test_what_is_neither_is_named():
    for given in (None, 5, {}, object(), np.ndarray, io.BytesIO):
        with pytest.raises(InputError, match=r"image: given a .*; accepted are a path, bytes, an open file"):
            as_image(given)
