"""Which pixels to decode: the band around a contour, and what a strided pass leaves to do."""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from refine_kernels import LOCK


def contour_band(mask: NDArray[np.bool_], band: int) -> NDArray[np.bool_]:
    """Pixels (H, W) bool that have one of the other class within ``band`` px in y and in x.

    mask: (H, W) bool; pixels outside the picture do not exist, so its border is no contour. band: at least 1; the work
    grows with its logarithm.
    """
    assert band >= 1, band
    out = np.zeros(mask.shape, np.bool_)
    with LOCK:
        _contour_band_kernel(np.ascontiguousarray(mask, np.bool_).view(np.uint8), band, out)
    return out


def grid_lines(length: int, stride: int) -> NDArray[np.int64]:
    """Rows (k,) int64, rising, that a strided pass decodes of ``length``: 0, stride, 2 stride, ... and the last.

    With the same for columns, every pixel lies between four decoded ones.
    """
    return np.append(np.arange(0, length - 1, stride), length - 1)


def strided_changes(changed: NDArray[np.bool_], size: tuple[int, int], stride: int) -> NDArray[np.bool_]:
    """Pixels (H, W) bool off the grid next to which a decoded pixel changed its class: those still to be decoded.

    changed: (len(grid_lines(H, stride)), len(grid_lines(W, stride))) bool, for size = (H, W). A pixel looks at the two
    decoded pixels at its sides on a grid row or column, at the four around it elsewhere; decoded pixels are False.
    """
    rows, columns = (grid_lines(length, stride) for length in size)
    assert changed.shape == (len(rows), len(columns)), (changed.shape, size, stride)
    out = np.zeros(size, np.bool_)
    with LOCK:
        _strided_changes_kernel(np.ascontiguousarray(changed, np.bool_), rows, columns, out)
    return out


@njit(parallel=True, cache=True)
def _contour_band_kernel(mask: Any, band: Any, out: Any) -> None:
    # In squares, because most of them see no contour and are done once that is known. Codes 1, 2, 3 say that a pixel's
    # neighbours are of the one class, the other, both; 0 is outside the picture.
    height, width = mask.shape
    square = max(128, 4 * band)  # the margin of a band at each side stays cheap
    side = square + 2 * band
    for i in prange((height + square - 1) // square):
        codes, spare = np.empty(side * side, np.uint8), np.empty(side * side, np.uint8)
        top, bottom = i * square, min((i + 1) * square, height)
        for left in range(0, width, square):
            right = min(left + square, width)
            if one_class(mask, top - band, bottom + band, left - band, right + band):
                continue
            codes[:] = 0
            start, end = max(left - band, 0), min(right + band, width)
            for y in range(max(top - band, 0), min(bottom + band, height)):
                begin = (y - top + band) * side + start - left + band
                row = codes[begin : begin + end - start]
                source = mask[y, start:end]
                for x in range(row.size):
                    row[x] = 1 + source[x]
            codes, spare = _spread(codes, spare, 2 * band + 1, 1)
            codes, spare = _spread(codes, spare, 2 * band + 1, side)
            for y in range(top, bottom):
                row = codes[(y - top) * side : (y - top + 1) * side]
                target = out[y, left:right]
                for x in range(target.size):
                    target[x] = row[x] == 3


@njit(cache=True)
def _spread(codes: Any, spare: Any, span: Any, pitch: Any) -> Any:
    # ``codes[i]`` becomes the OR of codes[i], codes[i + pitch], ... (span of them), by windows that double. At the end
    # of a row the windows along x run into the next row: into its left margin, whose results nobody reads.
    reach = 1
    while reach < span:
        step = min(reach, span - reach)
        ahead = codes[step * pitch :]
        for i in range(ahead.size):
            spare[i] = codes[i] | ahead[i]
        codes, spare = spare, codes
        reach += step
    return codes, spare


@njit(cache=True)
def one_class(mask: Any, top: Any, bottom: Any, left: Any, right: Any) -> Any:
    """Whether all pixels of mask (H, W) uint8 in a window are the same; its part outside the picture is ignored."""
    height, width = mask.shape
    left, right = max(left, 0), min(right, width)
    first = mask[max(top, 0), left]
    for y in range(max(top, 0), min(bottom, height)):
        row = mask[y, left:right]
        differs = False
        for x in range(row.size):
            differs |= row[x] != first
        if differs:
            return False
    return True


@njit(parallel=True, cache=True)
def _strided_changes_kernel(changed: Any, rows: Any, columns: Any, out: Any) -> None:
    # A grid row looks at its own pixels; the rows up to the next grid row look at both, and are all the same.
    for i in prange(len(rows)):
        _between(changed[i], columns, out[rows[i]])
        if i + 1 < len(rows) and rows[i] + 1 < rows[i + 1]:
            line, row = changed[i] | changed[i + 1], out[rows[i] + 1]
            _between(line, columns, row)
            for j in range(len(columns)):
                row[columns[j]] = line[j]
            for y in range(rows[i] + 2, rows[i + 1]):
                out[y] = row


@njit(cache=True)
def _between(line: Any, columns: Any, row: Any) -> None:
    for j in range(len(columns) - 1):
        either = line[j] | line[j + 1]
        for x in range(columns[j] + 1, columns[j + 1]):
            row[x] = either
