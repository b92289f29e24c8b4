"""Which pixels to decode: the band around a contour, and what a strided pass leaves to do."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine_kernels.compiled import jit
from refine_kernels.threads import share


def mask_and_doubt(p: NDArray[np.float32], sure: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where probabilities (H, W) float32 are above 0.5, and where they are between ``sure`` and 1 - ``sure``."""
    mask, doubt = np.empty(p.shape, np.bool_), np.empty(p.shape, np.bool_)
    p = np.ascontiguousarray(p, np.float32)
    share(_mask_and_doubt_kernel, len(p), p, np.float32(sure), np.float32(1 - sure), mask, doubt)
    return mask, doubt


def contour_band(mask: NDArray[np.bool_], band: int) -> NDArray[np.bool_]:
    """Pixels (H, W) bool that have one of the other class within ``band`` px in y and in x.

    mask: (H, W) bool; pixels outside the picture do not exist, so its border is no contour. band: at least 1; the work
    grows with its logarithm, the memory with its square up to some of the mask's.
    """
    assert band >= 1, band
    out = np.zeros(mask.shape, np.bool_)
    square = max(128, 4 * min(band, max(mask.shape)))  # the margin of a band at each side stays cheap
    pixels = np.ascontiguousarray(mask, np.bool_).view(np.uint8)
    share(_contour_band_kernel, -(-len(mask) // square), square, pixels, band, out)
    return out


def grid_lines(length: int, stride: int) -> NDArray[np.int64]:
    """Rows (k,) int64, rising, that a strided pass decodes of ``length``: 0, stride, 2 stride, ... and the last.

    With the same for columns, every pixel lies between four decoded ones.
    """
    return np.append(np.arange(0, length - 1, stride), length - 1)


def any_in_cells(mask: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Cells (k, m) bool that hold a pixel of the mask (H, W) bool.

    rows: (k,) int64, rising, where cells begin; one ends where the next begins, the last one at H. columns: (m,), so.
    """
    out = np.zeros((len(rows), len(columns)), np.bool_)
    ends = np.append(rows, len(mask)), np.append(columns, mask.shape[1])
    share(_any_in_cells_kernel, len(rows), np.ascontiguousarray(mask, np.bool_), *ends, out)
    return out


def classes_in_cells(p: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Cells (k, m): 1 where probabilities (H, W) float32 are at most 0.5 in all of it, 2 above everywhere, else 3.

    rows, columns: as for `any_in_cells`.
    """
    out = np.zeros((len(rows), len(columns)), np.uint8)
    ends = np.append(rows, len(p)), np.append(columns, p.shape[1])
    share(_classes_in_cells_kernel, len(rows), np.ascontiguousarray(p, np.float32), *ends, out)
    return out


def fill_cells(
    cells: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Pixels (H, W) bool of size = (H, W) that lie in a cell that is set or on the first line of the next one.

    cells: (k, m) bool; rows, columns: as for `any_in_cells`.
    """
    out = np.zeros(size, np.bool_)
    if cells.any():
        ends = np.append(rows, size[0]), np.append(columns, size[1])
        share(_fill_cells_kernel, len(rows), np.ascontiguousarray(cells, np.bool_), *ends, out)
    return out


def strided_changes(changed: NDArray[np.bool_], size: tuple[int, int], stride: int) -> NDArray[np.bool_]:
    """Pixels (H, W) bool off the grid next to which a decoded pixel changed its class: those still to be decoded.

    changed: (len(grid_lines(H, stride)), len(grid_lines(W, stride))) bool, for size = (H, W). A pixel looks at the two
    decoded pixels at its sides on a grid row or column, at the four around it elsewhere; decoded pixels are False.
    """
    rows, columns = (grid_lines(length, stride) for length in size)
    assert changed.shape == (len(rows), len(columns)), (changed.shape, size, stride)
    out = np.zeros(size, np.bool_)
    share(_strided_changes_kernel, len(rows), np.ascontiguousarray(changed, np.bool_), rows, columns, out)
    return out


@jit(nogil=True)
def _mask_and_doubt_kernel(first: Any, last: Any, p: Any, low: Any, high: Any, mask: Any, doubt: Any) -> None:
    for i in range(first, last):
        row, above, between = p[i], mask[i], doubt[i]
        for x in range(row.size):
            above[x] = row[x] > np.float32(0.5)
            between[x] = (row[x] > low) & (row[x] < high)


@jit(nogil=True)
def _contour_band_kernel(first: Any, last: Any, square: Any, mask: Any, band: Any, out: Any) -> None:
    # In squares, because most of them see no contour and are done once that is known. Codes 1, 2, 3 say that a pixel's
    # neighbours are of the one class, the other, both; 0 is outside the picture.
    height, width = mask.shape
    high, wide = min(band, height), min(band, width)  # more reaches nothing else
    deep, side = min(square, height) + 2 * high, min(square, width) + 2 * wide
    codes, spare = np.empty(deep * side, np.uint8), np.empty(deep * side, np.uint8)
    for i in range(first, last):
        top, bottom = i * square, min((i + 1) * square, height)
        for left in range(0, width, square):
            right = min(left + square, width)
            if one_class(mask, top - high, bottom + high, left - wide, right + wide):
                continue
            codes[:] = 0
            start, end = max(left - wide, 0), min(right + wide, width)
            for y in range(max(top - high, 0), min(bottom + high, height)):
                begin = (y - top + high) * side + start - left + wide
                row = codes[begin : begin + end - start]
                source = mask[y, start:end]
                for x in range(row.size):
                    row[x] = 1 + source[x]
            codes, spare = _spread(codes, spare, 2 * wide + 1, 1)
            codes, spare = _spread(codes, spare, 2 * high + 1, side)
            for y in range(top, bottom):
                row = codes[(y - top) * side : (y - top + 1) * side]
                target = out[y, left:right]
                for x in range(target.size):
                    target[x] = row[x] == 3


@jit()
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


@jit()
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


@jit(nogil=True)
def _strided_changes_kernel(first: Any, last: Any, changed: Any, rows: Any, columns: Any, out: Any) -> None:
    # A grid row looks at its own pixels; the rows up to the next grid row look at both, and on grid columns too. Loops,
    # since whole-array expressions take three times as long to compile. ``out`` is False where nothing changed.
    for i in range(first, last):
        here = changed[i].any()
        if here:
            _between(changed[i], changed[i], columns, out[rows[i]])
        if i + 1 < len(rows) and (here or changed[i + 1].any()):
            for y in range(rows[i] + 1, rows[i + 1]):
                _between(changed[i], changed[i + 1], columns, out[y])
                for j in range(len(columns)):
                    out[y, columns[j]] = changed[i, j] | changed[i + 1, j]


@jit()
def _between(above: Any, below: Any, columns: Any, row: Any) -> None:
    for j in range(len(columns) - 1):
        either = above[j] | below[j] | above[j + 1] | below[j + 1]
        for x in range(columns[j] + 1, columns[j + 1]):
            row[x] = either


@jit(nogil=True)
def _any_in_cells_kernel(first: Any, last: Any, mask: Any, rows: Any, columns: Any, out: Any) -> None:
    seen = np.empty(mask.shape[1], np.bool_)  # in any row of the cells
    for i in range(first, last):
        seen[:] = False
        for y in range(rows[i], rows[i + 1]):
            row = mask[y]
            for x in range(seen.size):
                seen[x] |= row[x]
        for j in range(len(columns) - 1):
            for x in range(columns[j], columns[j + 1]):
                if seen[x]:
                    out[i, j] = True
                    break


@jit(nogil=True)
def _classes_in_cells_kernel(first: Any, last: Any, p: Any, rows: Any, columns: Any, out: Any) -> None:
    seen = np.empty(p.shape[1], np.uint8)  # in any row of the cells
    for i in range(first, last):
        seen[:] = 0
        for y in range(rows[i], rows[i + 1]):
            row = p[y]
            for x in range(seen.size):
                seen[x] |= 1 + (row[x] > np.float32(0.5))
        for j in range(len(columns) - 1):
            for x in range(columns[j], columns[j + 1]):
                out[i, j] |= seen[x]


@jit(nogil=True)
def _fill_cells_kernel(first: Any, last: Any, cells: Any, rows: Any, columns: Any, out: Any) -> None:
    height, width = out.shape
    for i in range(first, last):
        for y in range(rows[i], min(rows[i + 1] + 1, height)):
            for j in range(len(columns) - 1):
                if cells[i, j]:
                    for x in range(columns[j], min(columns[j + 1] + 1, width)):
                        out[y, x] = True
