"""What a caller may hold instead of a plain array: its kinds, tensors, and files in memory.

No library is imported to look at what it made: an object of a library that was never imported is not there.
"""

import mmap
import sys
import warnings
from io import BytesIO, TextIOBase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine.errors import FileError, InputError

Array = NDArray[Any]

MOST_BYTES = 2**32
"""Longest file that is taken from an object that is read; a stream without an end stops there."""

_BUFFERS = (bytes, bytearray, memoryview, mmap.mmap)
_CHANNELS = (1, 3, 4)


def plain(given: object, name: str) -> Array | None:
    """The plain array of whatever holds one; None of what holds none, such as a path.

    Accepts arrays and their kinds (`numpy.matrix`, `numpy.memmap`, masked arrays where nothing is masked, quantities,
    whose unit is dropped), torch tensors (see `of_tensor`), buffers of several axes, and what has ``__array__``, such
    as xarray's, pandas', jax's. Memory is shared where it can be.

    Raises InputError: something is masked, or it cannot be brought to an array. ``name`` opens the message.
    """
    if isinstance(given, np.ma.MaskedArray):
        return _unmasked(given, name)
    if isinstance(given, np.ndarray):
        return np.asarray(given)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(given, getattr(torch, "Tensor", ())):
        return of_tensor(given, name)
    if isinstance(given, memoryview) and (given.ndim != 1 or given.itemsize != 1):
        return _converted(given, name)
    if isinstance(given, type | str | bytes) or _is_picture(given):
        return None
    if all(hasattr(type(given), part) for part in ("magnitude", "units")):  # a number with a unit, as pint has them
        return plain(given.magnitude, name)  # type: ignore[attr-defined]
    if hasattr(given, "__array__") or hasattr(given, "__array_interface__"):
        return _converted(given, name)
    return None


def of_tensor(tensor: Any, name: str) -> Array:
    """A torch tensor as an array (H, W) or (H, W, C): copied from its device, without its gradient.

    A batch of one, (1, C, H, W) or (1, H, W, C), is its picture. Channels, 1, 3 or 4, may be the first axis of three.

    Raises InputError: it is sparse, quantized, without data, or its shape has channels first and last.
    """
    torch = sys.modules["torch"]
    try:
        values = tensor.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg().to("cpu")
        if values.dtype.is_floating_point and values.dtype.itemsize < 4:  # bfloat16 and less, which numpy has not
            values = values.to(torch.float32)
        array: Array = values.numpy()
    except Exception as error:  # torch has a class for each kind of tensor that is none of numbers side by side
        reason = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}"
        message = f"{name}: a tensor ({reason}) cannot be read; give a dense one that holds data, or an array"
        raise InputError(message) from error
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[0] not in _CHANNELS:
        return array
    if array.shape[2] in _CHANNELS:
        shape = tuple(tensor.shape)
        raise InputError(f"{name}: a tensor {shape} has channels first or last; give it as a numpy array (H, W, C)")
    return array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1)


def content(given: object, name: str) -> BytesIO | None:
    """The file that bytes, a buffer or an open file hold, from its start; None of what holds none, such as a path.

    A file that was opened stays open, at the place where it stood.

    Raises InputError: it is empty, opened as text or for writing, closed, or longer than ``MOST_BYTES``.
    Raises FileError: it cannot be read.
    """
    if isinstance(given, _BUFFERS):
        data = bytes(given)
    elif callable(getattr(given, "read", None)) and not isinstance(given, type):
        data = _read(given, name)
    else:
        return None
    if not data:
        raise InputError(f"{name}: a file of 0 bytes; give a complete one")
    return BytesIO(data)


def _read(file: Any, name: str) -> bytes:
    if isinstance(file, TextIOBase):
        raise InputError(f"{name}: a file opened as text; open it as open(path, 'rb')")
    at = None
    try:
        if not hasattr(file, "seekable") or file.seekable():
            at = file.tell()
            file.seek(0)
    except Exception:  # what cannot go back is read from where it is
        at = None
    try:
        data = file.read(MOST_BYTES + 1)
    except OSError as error:
        reason = error.strerror or error
        raise FileError(f"{name}: the open file cannot be read ({reason}); open it as open(path, 'rb')") from error
    except MemoryError:
        raise
    except Exception as error:  # ValueError of a closed one, TypeError of a `read` that is another
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"{name}: the object cannot be read ({reason}); give bytes or a path") from error
    finally:
        if at is not None and not getattr(file, "closed", False):
            file.seek(at)
    if not isinstance(data, bytes | bytearray | memoryview):
        if hasattr(data, "close"):
            data.close()  # a coroutine, which else would warn that nobody waited for it
        raise InputError(f"{name}: its read() gives {type(data).__name__}, not bytes; give bytes or a path")
    if len(data) > MOST_BYTES:
        raise InputError(
            f"{name}: a stream of more than {MOST_BYTES // 2**30} GiB; save it to a file, and give its path"
        )
    return bytes(data)


def _unmasked(array: "np.ma.MaskedArray[Any, Any]", name: str) -> Array:
    hidden = np.ma.getmask(array)
    if hidden.dtype.names is None and hidden.any():
        count = int(np.count_nonzero(hidden))
        raise InputError(
            f"{name}: a masked array with {count} of {array.size} values masked; accepted are known values alone; fill "
            "them, as in array.filled(0), 0 being background in a mask"
        )
    return np.asarray(array.data)


def _converted(given: object, name: str) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of a unit that is dropped
            array = np.asarray(given)
    except MemoryError:
        raise
    except Exception as error:  # theirs
        kind = f"{type(given).__module__}.{type(given).__qualname__}"
        raise InputError(f"{name}: a {kind} cannot be brought to an array; convert it to a numpy array") from error
    return _unmasked(array, name) if isinstance(array, np.ma.MaskedArray) else array


def _is_picture(given: object) -> bool:
    """Whether it is Pillow's, whose bits, palettes and turns an array does not show."""
    picture = getattr(sys.modules.get("PIL.Image"), "Image", None)
    return picture is not None and isinstance(given, picture)
