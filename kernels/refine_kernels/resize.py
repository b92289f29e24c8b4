"""Reducing a picture by the mean over the area of each sample, or reading it between its samples; by windows too."""

from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from refine_kernels.compiled import jit
from refine_kernels.threads import share

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

    source: (h, w) float32 or (h, w, C) uint8, the part of a picture of ``whole`` = (H, W) px that begins at ``origin``
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
    channels = source.shape[2] if source.ndim == 3 else 1
    if source.dtype == np.uint8 and whole == (2 * size[0], 2 * size[1]) and channels in (1, 3, 4):
        # Four pixels each: OpenCV rounds these half up as well, of so many channels, and is ten times faster.
        under = source[first_row - y : last_row - y, first_column - x : last_column - x]
        halved = cv2.resize(under, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        return np.asarray(halved, source.dtype).reshape(bottom - top, right - left, *source.shape[2:])
    out = np.empty((bottom - top, right - left, *source.shape[2:]), source.dtype)
    pixels = np.ascontiguousarray(source).reshape(len(source), -1)
    pixels.flags.writeable = False  # of this view; arrays that may be written to would be compiled for once more
    share(
        _area_reduce_kernel,
        len(out),
        pixels,
        channels,
        _edges(top, bottom, whole[0], size[0], y),
        _edges(left, right, whole[1], size[1], x),
        (float(size[0]), float(size[1])),
        (float(whole[0] * whole[1]), 0.5 if source.dtype == np.uint8 else 0.0),
        out.reshape(len(out), -1),
    )
    return out


Between = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Where n positions of an axis lie: the sample before and the one after (n,), and the weight of the latter (n,)."""


def interpolate(source: NDArray[_Sample], rows: Between, columns: Between) -> NDArray[np.float32]:
    """A picture (h, w) or (h, w, C) at n rows and m columns between its samples: (n, m) or (n, m, C) float32.

    source: float32 or uint8. Bilinear, first along the rows: a + (b - a) weight, for each sample alone, whichever
    others are read.
    """
    channels = source.shape[2] if source.ndim == 3 else 1
    pixels = np.ascontiguousarray(source).reshape(len(source), -1)
    pixels.flags.writeable = False  # as in `area_reduce`
    out = np.empty((len(rows[0]), len(columns[0]), *source.shape[2:]), np.float32)
    low, high = ((index[:, None] * channels + np.arange(channels)).ravel() for index in columns[:2])
    weights = np.repeat(columns[2], channels)
    share(_interpolate_kernel, len(out), pixels, rows, (low, high, weights), out.reshape(len(out), -1))
    return out


def _edges(
    start: int, stop: int, length: int, samples: int, origin: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # Edge i of the samples lies at i length / samples px: in which pixel of the source, and how far, in 1 / samples px.
    edges = np.arange(start, stop + 1) * length
    return edges // samples - origin, (edges % samples).astype(np.float64)


@jit(nogil=True)
def _area_reduce_kernel(
    first: Any, last: Any, source: Any, channels: Any, rows: Any, columns: Any, full: Any, end: Any, out: Any
) -> None:
    # A pixel wholly inside a sample weighs 1 px = `full` units along an axis, one cut by an edge the part at its side.
    # First down the columns, which vectorises, into a row as wide as the source; then along that row.
    row_of, row_part = rows
    column_of, column_part = columns
    full_row, full_column = full
    total, half = end
    sums = np.empty(source.shape[1])
    for i in range(first, last):
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


@jit(nogil=True)
def _interpolate_kernel(first: Any, last: Any, source: Any, rows: Any, columns: Any, out: Any) -> None:
    row_low, row_high, row_weight = rows
    low, high, along = columns
    line = np.empty(source.shape[1], np.float32)
    for i in range(first, last):
        above, below, weight, row = source[row_low[i]], source[row_high[i]], row_weight[i], out[i]
        for x in range(line.size):
            a = np.float32(above[x])
            line[x] = a + (np.float32(below[x]) - a) * weight
        for x in range(row.size):
            a = line[low[x]]
            row[x] = a + (line[high[x]] - a) * along[x]
