"""Reducing a picture by the mean over the area of each sample, whole or window by window."""

from typing import Any, TypeVar

import cv2
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from refine_kernels import LOCK

_Sample = TypeVar("_Sample", np.float32, np.uint8)


def covered(
    window: tuple[int, int, int, int], whole: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Source pixels (top, bottom, left, right) under a window (top, bottom, left, right) of the reduced picture.

    whole, size: (H, W) px before and after the reduction; bottom and right are one past the end, as in slices.
    """
    top, bottom, left, right = window
    (height, width), (rows, columns) = whole, size
    return top * height // rows, -(-bottom * height // rows), left * width // columns, -(-right * width // columns)


def area_reduce(
    source: NDArray[_Sample],
    whole: tuple[int, int],
    size: tuple[int, int],
    window: tuple[int, int, int, int],
    origin: tuple[int, int],
) -> NDArray[_Sample]:
    """Samples of a picture reduced to ``size``, each the mean of the area it covers: dtype and channels as source.

    source: (h, w) float32 or (h, w, 3) uint8, the part of a picture of ``whole`` = (H, W) px that begins at ``origin``
    = (y, x); it holds at least what :func:`covered` says. size: (n, m), at most (H, W). window: the samples wanted,
    (top, bottom, left, right) in the reduced picture. Sample i of n is the mean over [i H / n, (i + 1) H / n), where a
    pixel counts by the part of it inside; uint8 is rounded half up.

    A sample is the same to the bit in every window: its weights are whole numbers made from indices in the whole
    picture, and its sum has one order (and, of uint8, no rounding at all).
    """
    (top, bottom, left, right), (y, x) = window, origin
    first_row, last_row, first_column, last_column = covered(window, whole, size)
    assert source.dtype in (np.float32, np.uint8), source.dtype
    assert size[0] <= whole[0], (whole, size)
    assert size[1] <= whole[1], (whole, size)
    assert 0 <= top < bottom <= size[0], (window, size)
    assert 0 <= left < right <= size[1], (window, size)
    assert y <= first_row <= last_row <= y + source.shape[0], (source.shape, origin, window)
    assert x <= first_column <= last_column <= x + source.shape[1], (source.shape, origin, window)
    if size == whole:  # a sample is its pixel
        return source[top - y : bottom - y, left - x : right - x].copy()
    if source.dtype == np.uint8 and whole == (2 * size[0], 2 * size[1]):
        # Four pixels each: OpenCV rounds these half up as well, and is ten times faster.
        under = source[first_row - y : last_row - y, first_column - x : last_column - x]
        halved = cv2.resize(under, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        return np.asarray(halved, source.dtype).reshape(bottom - top, right - left, *source.shape[2:])
    out = np.empty((bottom - top, right - left, *source.shape[2:]), source.dtype)
    with LOCK:
        _area_reduce_kernel(
            np.ascontiguousarray(source).reshape(len(source), -1),
            source.shape[2] if source.ndim == 3 else 1,
            _edges(top, bottom, whole[0], size[0], y),
            _edges(left, right, whole[1], size[1], x),
            (float(size[0]), float(size[1])),
            (float(whole[0] * whole[1]), 0.5 if source.dtype == np.uint8 else 0.0),
            out.reshape(len(out), -1),
        )
    return out


def _edges(
    start: int, stop: int, length: int, samples: int, origin: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # Edge i of the samples lies at i length / samples px: in which pixel of the source, and how far, in 1 / samples px.
    edges = np.arange(start, stop + 1) * length
    return edges // samples - origin, (edges % samples).astype(np.float64)


@njit(parallel=True, cache=True)
def _area_reduce_kernel(source: Any, channels: Any, rows: Any, columns: Any, full: Any, end: Any, out: Any) -> None:
    # A pixel wholly inside a sample weighs 1 px = `full` units along an axis, one cut by an edge the part at its side.
    # First down the columns, which vectorises, into a row as wide as the source; then along that row.
    row_of, row_part = rows
    column_of, column_part = columns
    full_row, full_column = full
    total, half = end
    block = 16  # rows that share a buffer
    for start in prange((len(out) + block - 1) // block):
        sums = np.empty(source.shape[1])
        for i in range(start * block, min((start + 1) * block, len(out))):
            pixels, weight = source[row_of[i]], full_row - row_part[i]
            for x in range(sums.size):
                sums[x] = weight * pixels[x]
            for y in range(row_of[i] + 1, row_of[i + 1]):
                pixels = source[y]
                for x in range(sums.size):
                    sums[x] += full_row * pixels[x]
            if row_part[i + 1] > 0:
                pixels, weight = source[row_of[i + 1]], row_part[i + 1]
                for x in range(sums.size):
                    sums[x] += weight * pixels[x]
            for j in range(len(column_of) - 1):
                for c in range(channels):
                    mean = (full_column - column_part[j]) * sums[column_of[j] * channels + c]
                    for x in range(column_of[j] + 1, column_of[j + 1]):
                        mean += full_column * sums[x * channels + c]
                    if column_part[j + 1] > 0:
                        mean += column_part[j + 1] * sums[column_of[j + 1] * channels + c]
                    out[i, j * channels + c] = mean / total + half
