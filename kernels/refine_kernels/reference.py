"""The plain twin of each kernel, under the same name: the oracle of tests and the baseline of benchmarks.

Arguments, results and ranges are the kernel's and described there; a docstring here says how it is computed instead.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.sparse import csr_array

from refine_kernels.regions import grid_lines
from refine_kernels.resize import Between


def mask_and_doubt(p: NDArray[np.float32], sure: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Comparisons of whole arrays."""
    return p > 0.5, (p > np.float32(sure)) & (p < np.float32(1 - sure))


def contour_band(mask: NDArray[np.bool_], band: int) -> NDArray[np.bool_]:
    """Where the largest and the least value of the square around a pixel differ."""
    side = 2 * band + 1
    largest: NDArray[np.bool_] = maximum_filter(mask, side, mode="constant", cval=False)
    least: NDArray[np.bool_] = minimum_filter(mask, side, mode="constant", cval=True)
    return largest & ~least


def strided_changes(changed: NDArray[np.bool_], size: tuple[int, int], stride: int) -> NDArray[np.bool_]:
    """The grid looked up at the grid line before and after each pixel, which on a line are that line."""
    lines = [grid_lines(length, stride) for length in size]
    above, left = (np.searchsorted(at, np.arange(n), "right") - 1 for at, n in zip(lines, size, strict=True))
    below, right = (np.searchsorted(at, np.arange(n)) for at, n in zip(lines, size, strict=True))
    out: NDArray[np.bool_] = np.logical_or.reduce(
        [changed[np.ix_(y, x)] for y in (above, below) for x in (left, right)]
    )
    out[np.ix_(*lines)] = False
    return out


def any_in_cells(mask: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The largest value of each range of rows, then of columns."""
    found: NDArray[np.uint8] = np.maximum.reduceat(np.maximum.reduceat(mask.view(np.uint8), rows, 0), columns, 1)
    return found.view(np.bool_)


def classes_in_cells(p: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Both classes by themselves."""
    low, high = (any_in_cells(mask, rows, columns).view(np.uint8) for mask in (p <= 0.5, p > 0.5))
    return low + 2 * high


def fill_cells(
    cells: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Each pixel looked up in its cell, and a first line in the cell before it too."""
    inside = np.repeat(np.repeat(cells, np.diff(rows, append=size[0]), 0), np.diff(columns, append=size[1]), 1)
    inside[rows[1:]] |= inside[rows[1:] - 1]
    inside[:, columns[1:]] |= inside[:, columns[1:] - 1]
    return inside


def network_input(
    picture: NDArray[np.uint8],
    mask: NDArray[np.float32],
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    out: NDArray[Any],
) -> None:
    """Whole arrays; a bfloat16 is a float32 of 8 significant bits."""
    x = np.concatenate((picture * scale + shift, 2 * mask[..., None] - np.float32(1)), -1, dtype=np.float32)
    if out.dtype == np.uint16:
        significand, exponent = np.frexp(x)
        x = np.ldexp(np.rint(significand * 256) / 256, exponent).view(np.uint32) >> 16
    out[...] = x


def interpolate(source: NDArray[Any], rows: Between, columns: Between) -> NDArray[np.float32]:
    """All rows first, then all columns."""
    for axis, (low, high, weight) in enumerate((rows, columns)):
        a, b = (np.take(source, index, axis).astype(np.float32) for index in (low, high))
        source = a + (b - a) * weight.reshape(-1, *[1] * (source.ndim - 1 - axis))
    return source


def area_reduce(
    source: NDArray[Any],
    whole: tuple[int, int],
    size: tuple[int, int],
    window: tuple[int, int, int, int],
    origin: tuple[int, int],
) -> NDArray[Any]:
    """Two products with sparse matrices of whole-number weights, exact for uint8 and in float64 for float32."""
    (h, w), (top, bottom, left, right), (y, x) = source.shape[:2], window, origin
    rows = _shares(whole[0], size[0])[top:bottom, y : y + h]
    columns = _shares(whole[1], size[1])[left:right, x : x + w]
    sums = (rows @ source.reshape(h, -1)).reshape(bottom - top, w, -1)
    sums = (columns @ sums.swapaxes(0, 1).reshape(w, -1)).reshape(right - left, bottom - top, -1)
    sums = sums.swapaxes(0, 1).reshape(bottom - top, right - left, *source.shape[2:])
    total = whole[0] * whole[1]
    return ((2 * sums + total) // (2 * total) if source.dtype == np.uint8 else sums / total).astype(source.dtype)


def _shares(length: int, samples: int) -> csr_array:
    # Cut [0, length * samples) at the edges of pixels and of samples: each piece belongs to one of either.
    cuts = np.union1d(np.arange(length + 1) * samples, np.arange(samples + 1) * length)
    return csr_array((np.diff(cuts), (cuts[:-1] // length, cuts[:-1] // samples)), shape=(samples, length))


def band_counts(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], radii: Sequence[int]) -> NDArray[np.int64]:
    """The protocol word for word: OpenCV's morphology of the whole picture, radius by radius."""
    counts = np.zeros((len(radii), 2), np.int64)
    for count, r in zip(counts, radii, strict=True):
        ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
        band = cv2.morphologyEx(truth.astype(np.uint8), cv2.MORPH_GRADIENT, ellipse) > 0
        count[:] = np.count_nonzero(band & (prediction == truth)), np.count_nonzero(band)
    return counts


def part_sums(
    labels: NDArray[np.int32], p: NDArray[np.float32], other: NDArray[np.float32], count: int, *, holes: bool = False
) -> NDArray[np.int64]:
    """A histogram of the labels for each sum, and their least and largest places."""
    values = np.floor(p * np.float32(2**16) + np.float32(0.5)).astype(np.int64)
    values = 2**16 - values if holes else values
    same = (other > 0.5) != holes
    weights = [np.ones(labels.shape), same, values]
    sums = [np.bincount(labels.ravel(), w.ravel(), count + 1)[1:] for w in weights]
    ends = np.zeros((4, count), np.int64)
    ends[0], ends[1] = labels.shape
    for label in np.unique(labels[labels > 0]):
        places = np.nonzero(labels == label)
        ends[:, label - 1] = [*(at.min() for at in places), *(at.max() + 1 for at in places)]
    return np.concatenate((np.stack(sums, 1).astype(np.int64), ends.T), 1)
