"""What the figures accept, checked once: masks, values in [0, 1] and label maps, all (H, W) of one shape."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refine import arrays
from refine.errors import InputError


def binary_masks(masks: Mapping[str, NDArray[Any]]) -> list[NDArray[np.bool_]]:
    """The masks, by the names that an error gives them, as bool; raises InputError if their shapes differ."""
    found = {name: _binary(mask, name) for name, mask in masks.items()}
    check_shapes(found)
    return list(found.values())


def unit_values(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Values (H, W) in [0, 1] in the least of float16, float32 and float64 that holds what was given."""
    values = _plane(values, name)
    if values.dtype == np.bool_:
        return values.astype(np.float16)
    if np.issubdtype(values.dtype, np.integer):
        low, high = values.min(), values.max()
        if low < 0 or high > 255:
            raise InputError(
                f"the {name} holds {values.dtype} values from {low} to {high}; give floats in [0, 1], bool, or "
                "integers 0 and 1 or 0..255"
            )
        return values.astype(np.float32) / np.float32(255) if high > 1 else values.astype(np.float16)
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"the {name} is of type {values.dtype}; give floats in [0, 1], bool or integers")
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # true for NaN
        raise InputError(f"the {name} holds {values.dtype} values from {low} to {high}; give floats in [0, 1]")
    size = min(values.dtype.itemsize, 8)
    return np.ascontiguousarray(values, np.dtype(f"f{size}"))  # in the machine's order of bytes


def labels(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Classes (H, W) as integers that int64 holds."""
    values = _plane(values, name)
    if values.dtype == np.bool_:
        return np.ascontiguousarray(values).view(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"the {name} is of type {values.dtype}; give a label map of integers")
    if values.dtype.itemsize == 8:
        if values.max() > np.iinfo(np.int64).max:
            raise InputError(f"the {name} holds the label {values.max()}; give labels below 2^63")
        return values.astype(np.int64, copy=False)
    return values


def check_shapes(found: Mapping[str, NDArray[Any]]) -> None:
    """Raises InputError if the shapes of arrays, by their names, differ."""
    if len({array.shape for array in found.values()}) > 1:
        shapes = " and ".join(f"the {name} is {array.shape}" for name, array in found.items())
        raise InputError(f"{shapes}; bring all to the same (H, W)")


def box(*masks: NDArray[np.bool_], margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the least box around all that is set in any of the masks, and a margin inside the picture.

    Empty where nothing is set.
    """
    corners = [(x, y, x + w, y + h) for x, y, w, h in (cv2.boundingRect(mask.view(np.uint8)) for mask in masks) if w]
    if not corners:
        return slice(0, 0), slice(0, 0)
    left, top, right, bottom = zip(*corners, strict=True)
    return (
        slice(max(min(top) - margin, 0), max(bottom) + margin),
        slice(max(min(left) - margin, 0), max(right) + margin),
    )


def _plane(array: NDArray[Any], name: str) -> NDArray[Any]:
    plain = arrays.plain(array, f"the {name}")
    array = np.asarray(array) if plain is None else plain
    if array.ndim != 2 or not array.size:
        raise InputError(f"the {name} has shape {array.shape}; give an array (H, W) with at least one pixel")
    return array


def _binary(mask: NDArray[Any], name: str) -> NDArray[np.bool_]:
    mask = _plane(mask, name)
    if mask.dtype == np.bool_:
        return np.ascontiguousarray(mask)
    if not np.issubdtype(mask.dtype, np.integer) and not np.issubdtype(mask.dtype, np.floating):
        raise InputError(f"the {name} is of type {mask.dtype}; give bool, integers or floats")
    low, high = mask.min(), mask.max()
    if np.issubdtype(mask.dtype, np.integer) and low >= 0 and (high <= 1 or 128 < high <= 255):
        return np.ascontiguousarray(mask > (0 if high <= 1 else 128))
    if np.issubdtype(mask.dtype, np.floating) and low >= 0 and high <= 1:  # false for NaN
        return np.ascontiguousarray(mask > 0.5)
    raise InputError(
        f"the {name} holds {mask.dtype} values from {low} to {high}; give bool, integers 0 and 1, integers 0..255 with "
        "a pixel over 128, or floats in [0, 1]"
    )
