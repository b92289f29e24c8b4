"""The value that is white in a picture: the range of a type, or what the caller says, checked by what values occur."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine.errors import InputError, shown
from refine.values import ROUNDING, histogram

Array = NDArray[Any]
Bands = Callable[[], Iterable[Array]]

FEW = 0.001
"""Share of a picture's samples below which they are hot pixels, stars or lamps, by which its white is not known."""

_USUAL = (1, 15, 255, 1023, 4095, 10_000, 16_383, 65_535)  # whites of 1, 4, 8, 10, 12, 14 and 16 bits; reflectance
_FULL = {"u1": 255, "u2": 65535}
_DARK = {"u1": 1, "u2": 4095, "f": 1 / 16}  # where nothing is above, another value is white, or all is black
_DIM = {"u1": 7, "u2": 16_383, "f": 1 / 4}  # where hardly anything is above, it may be


@dataclass(frozen=True)
class White:
    """What :func:`white_of` found."""

    value: float
    """The value that becomes 255."""
    told: str = ""
    """What the caller should know of it, if anything."""


def white_of(bands: Bands, samples: int, name: str, white: float | None = None) -> White:
    """The white of a picture that ``bands`` gives as arrays of one type, of ``samples`` numbers in all.

    It is that of the type (255, 65535, 1.0), and then no more is read than it takes to see that the values reach it; or
    ``white``, if that is given, for integers and floats of any type.

    Raises InputError: the type has no white; values are not finite or, as floats, outside [0, 1]; all of them are so
    low that another value must be white; the type cannot hold ``white``. ``name`` opens the message.
    """
    return _given(bands, samples, name, white) if white is not None else _of_type(bands, samples, name)


def reaches_white(part: Array, samples: int) -> White | None:
    """The type's white, if a part of a picture of ``samples`` numbers holds enough that is bright; None if it may not.

    What :func:`white_of` then finds, too, without a look at the rest.
    """
    key = f"{part.dtype.kind}{part.dtype.itemsize}"
    if key not in _FULL:
        return None
    bright = np.count_nonzero((part > _DIM[key]) & (part < _FULL[key]))
    return White(_FULL[key]) if bright >= FEW * samples else None


def _given(bands: Bands, samples: int, name: str, white: float) -> White:
    over = 0
    for band in bands():
        dtype = band.dtype
        if dtype.kind not in "uif":
            raise InputError(f"{name}: type {dtype} has no white; accepted are integers and floats; leave white out")
        if dtype.kind != "f" and white > np.iinfo(dtype).max:
            most = np.iinfo(dtype).max
            raise InputError(
                f"{name}: white={shown(white)} is beyond {dtype}, which ends at {most}; give its own white"
            )
        if dtype.kind == "f":
            _check_finite(float(band.min()), float(band.max()), name)
        over += int(np.count_nonzero(band > white))
    if over > FEW * samples:
        return White(white, f"{over / samples:.1%} of the image's values are above white={white:g} and become white")
    return White(white)


def _of_type(bands: Bands, samples: int, name: str) -> White:
    lowest: list[Any] = []
    highest: list[Any] = []
    any_, dim, bright = 0, 0, 0  # samples above 0, above _DARK and above _DIM, where they are not the type's highest
    for band in bands():
        dtype = band.dtype
        key = "f" if dtype.kind == "f" else f"{dtype.kind}{dtype.itemsize}"
        if key not in _DARK:
            remedy = (
                "convert it with .astype(np.uint8) if its values are 0..255, or give the value that is white, as in "
            )
            remedy += "white=4095"
            if dtype.kind == "b":
                remedy = "this looks like a mask: pass the picture, or image.astype(np.uint8) * 255"
            raise InputError(f"{name}: type {dtype}; accepted are uint8, uint16 and floats in [0, 1]; {remedy}")
        lowest.append(band.min())
        highest.append(band.max())
        top = _FULL.get(key, 1)
        counted = [int(np.count_nonzero(band > level)) for level in (_DIM[key], _DARK[key], 0)]
        full = int(np.count_nonzero(band >= top)) if highest[-1] >= top else 0
        bright, dim, any_ = (n + count - full for n, count in zip((bright, dim, any_), counted, strict=True))
        if key != "f" and bright >= FEW * samples:
            return White(top)
    low, high = float(np.min(lowest)), float(np.max(highest))  # both are NaN if any value is
    if key == "f":
        _check_finite(low, high, name)
        if low < -ROUNDING or high > 1 + ROUNDING:
            scaled = "divide by 255, or pass image.astype(np.uint8)" if low >= 0 and high <= 255 else "rescale it"
            raise InputError(
                f"{name}: float values {low:g}..{high:g}; floats must be in [0, 1]; {scaled}, or give the value that "
                f"is white, as in white={high:.3g} (--white {high:.3g})"
            )
    least = max(FEW * samples, 1)
    if not high or any_ < least or bright >= least:
        return White(top)
    peak = float(f"{high:.2g}") if key == "f" and high <= _DARK[key] else _peak(bands, key, any_)
    whole = f"while {top} is white" if key != "f" else "while 1 is white"
    remedy = f"give the value that is white, as in white={peak:g} (--white {peak:g})"
    if high <= _DARK[key]:
        raise InputError(
            f"{name}: {dtype} with values up to {high:g} only, {whole}: it would come out black; {remedy}, or scale it"
        )
    almost = "all but hot pixels or lamps" if dim < least else "nearly all"
    return White(top, f"{almost} of the image's values are below {peak:g}, {whole}; if that is too dark, {remedy}")


def _check_finite(low: float, high: float, name: str) -> None:
    if not np.isfinite([low, high]).all():
        raise InputError(f"{name}: holds NaN or infinite values; floats must be finite and in [0, 1]; replace them")


def _peak(bands: Bands, key: str, samples: int) -> float:
    """The usual white, or of floats the value, that all but a few of the ``samples`` above 0 do not exceed."""
    counts = np.zeros(65536, np.int64)
    for band in bands():
        levels = band.reshape(len(band), -1)
        if key == "f":
            levels = np.rint(np.clip(levels, 0, 1) * np.float32(65535)).astype(np.uint16)
        top = 255 if key == "u1" else 65535
        counts[: top + 1] += histogram(levels, top)
        counts[top] = 0
    below = np.cumsum(counts[1:])
    value = 1 + int(np.searchsorted(below, below[-1] - FEW * samples))
    if key == "f":
        return float(f"{value / 65535:.2g}")
    return min(white for white in _USUAL if white >= value)
