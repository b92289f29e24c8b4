"""What the values of a mask mean: the rule of `refine.prepare.as_mask`, for arrays and for files read by bands."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.errors import InputError

Array = NDArray[Any]

ROUNDING = 1e-6
"""How far float32 interpolation strays from [0, 1], in masks and pictures; clipped, not refused."""

_ACCEPTED = "bool, {0, 1}, {0, 255}, grey 0..255, uint16 0..65535 or floats in [0, 1]"


@dataclass(frozen=True)
class Meaning:
    """What :func:`meaning` found in a mask."""

    white: int = 1
    """The value that stands for 1."""
    strays: bool = False
    """Whether floats are outside [0, 1], by no more than rounding."""

    def unit(self, values: Array) -> NDArray[np.float32]:
        """Values of the mask as contiguous float32 in [0, 1]; the same memory where they are that already."""
        soft = np.ascontiguousarray(values, np.float32)
        if self.white != 1:
            soft /= np.float32(self.white)
        return np.clip(soft, 0, 1) if self.strays else soft


def meaning(bands: Callable[[], Iterable[Array]], name: str) -> Meaning:
    """The meaning of a mask that ``bands`` gives as bands of rows (h, W), from the top and of one type.

    It is called once, and once more where the values alone do not tell labels from a soft mask.

    Raises InputError: values or a type that are no mask's, or a label map. ``name`` opens the message.
    """
    ends: list[Any] = []  # the lowest and highest value of each band
    seen = np.zeros(65536, bool)
    for band in bands():
        dtype = band.dtype
        if dtype.kind not in "buif":
            raise InputError(f"{name}: type {dtype}; accepted are {_ACCEPTED}; convert it")
        if dtype.kind == "b":
            continue
        low, high = band.min(), band.max()
        ends += low, high
        if dtype.kind != "f" and low >= 0 and high <= (65535 if dtype.itemsize == 2 else 255):
            seen[[low, high] if high - low <= 1 else distinct(band, 255 if high <= 255 else 65535)] = True
    if dtype.kind == "b":
        return Meaning()
    if dtype.kind == "f":
        return _of_floats(float(np.min(ends)), float(np.max(ends)), name)  # both are NaN if any value is
    lowest, highest = int(np.min(ends)), int(np.max(ends))
    white = 65535 if dtype.kind == "u" and dtype.itemsize == 2 and highest > 255 else 255
    if lowest < 0 or highest > white:
        raise InputError(
            f"{name}: {dtype} values {lowest}..{highest}; accepted are {_ACCEPTED}; if these are labels, pick one "
            "class, as in mask == label; if it is a soft mask, pass it as floats (mask divided by its full scale)"
        )
    if highest <= 1:
        return Meaning()
    labels = _labels(np.flatnonzero(seen), white, bands)
    if labels is not None:
        raise InputError(
            f"{name}: a label map (values {labels}); accepted are {_ACCEPTED}; pick one class, as in mask == label, "
            f"or, if it is a soft mask, pass mask / {white} as floats (.npy or a float TIFF for a file)"
        )
    return Meaning(white)


def distinct(values: Array, top: int) -> NDArray[np.intp]:
    """The values that occur in an array (H, W) of integers from 0 to ``top``, which is 255 or 65535; sorted."""
    values = np.ascontiguousarray(values, _narrow(top))
    return np.flatnonzero(cv2.calcHist([values], [0], None, [top + 1], [0, top + 1]))


def _narrow(top: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if top == 255 else np.uint16


def _of_floats(lowest: float, highest: float, name: str) -> Meaning:
    if not np.isfinite([lowest, highest]).all():
        raise InputError(f"{name}: holds NaN or infinite values; floats must be finite and in [0, 1]; replace them")
    if lowest < -ROUNDING or highest > 1 + ROUNDING:
        remedy = "divide by 255" if lowest >= 0 and highest <= 255 else "apply a sigmoid if these are logits"
        raise InputError(f"{name}: float values {lowest:g}..{highest:g}; floats must be in [0, 1]; {remedy}")
    return Meaning(strays=lowest < 0 or highest > 1)


def _labels(seen: NDArray[np.intp], white: int, bands: Callable[[], Iterable[Array]]) -> str | None:
    """The values of an integer mask that is a label map, else None."""
    highest = int(seen[-1])
    if white == 65535 and highest < 32768:
        return f"up to {highest} of 65535"
    between = seen[(seen > 0) & (seen < white)]
    void = highest == 255 and len(seen) <= 32 and len(between) > 0 and between[-1] < 64
    if not (highest < 128 or void or (2 <= len(between) <= 64 and _is_flat(bands(), white))):
        return None
    return ", ".join(str(v) for v in seen[:6].tolist()) + (f", ... {highest}" if len(seen) > 6 else "")


def _is_flat(bands: Iterable[Array], white: int) -> bool:
    """Whether 90 % of the pixels strictly between 0 and ``white`` equal their right and lower neighbours."""
    total = flat = 0
    above, open_below = np.zeros((2, 1), bool)  # nothing is above the first row
    for band in bands:
        band = np.ascontiguousarray(band, _narrow(white))
        flat -= int(np.count_nonzero(open_below & (above != band[0])))
        interior = (band > 0) & (band < white)
        total += int(np.count_nonzero(interior))
        interior[:, :-1] &= band[:, :-1] == band[:, 1:]
        interior[:-1] &= band[:-1] == band[1:]
        flat += int(np.count_nonzero(interior))
        above, open_below = band[-1].copy(), interior[-1].copy()
    return 10 * flat >= 9 * total
