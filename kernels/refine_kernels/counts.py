"""Counting the pixels of bands around the boundary of a mask."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine_kernels.compiled import jit
from refine_kernels.regions import one_class
from refine_kernels.threads import share

_SIDE = 128  # of the squares in which bands are looked for


def band_counts(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], radii: Sequence[int]) -> NDArray[np.int64]:
    """Pixels in the band of each radius where prediction equals truth, and all in the band: (k, 2) int64.

    prediction, truth: (H, W) bool. radii: k whole numbers up to 4000. The band of radius r is where the morphological
    gradient of the truth by OpenCV's ellipse of side 2 r + 1 is not zero: where the ellipse around a pixel holds a
    pixel of the other class. Pixels outside the picture do not exist. The work grows with the largest radius alone.
    """
    assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
    assert len(radii), "no radius"
    assert 0 <= min(radii) <= max(radii) <= 4000, radii  # whose squares float32 holds exactly
    squares = -(-truth.shape[0] // _SIDE)
    counts = np.zeros((squares, len(radii), 2), np.int64)
    share(
        _band_counts_kernel,
        squares,
        np.ascontiguousarray(prediction, np.bool_).view(np.uint8),
        np.ascontiguousarray(truth, np.bool_).view(np.uint8),
        np.asarray(radii, np.int64),
        counts,
    )
    return counts.sum(0)


@jit(nogil=True)
def _band_counts_kernel(
    first_square: Any, last_square: Any, prediction: Any, truth: Any, radii: Any, counts: Any
) -> None:
    # OpenCV's ellipse of radius r holds the pixels with |dx| <= round(sqrt(r^2 - dy^2)). A square root of a whole
    # number is never halfway between two, so for dx > 0 that is (dx - 1/2)^2 < r^2 - dy^2, or dx (dx - 1) + dy^2 < r^2,
    # and a pixel is in the band of every r with r^2 >= the least of
    #     e = s(dx) + dy^2,    s(0) = 0,    s(dx) = dx (dx - 1) + 1,
    # over the pixels of the other class: one transform for all radii, separable as a distance transform is. `near`
    # holds s to the nearest pixel of the other class in the row, as +s for a set pixel and -s for an unset one. Seen
    # from a set pixel, a row offers max(s, 0) of the other sign: s where its pixel is set too, 0 where it is not.
    height, width = truth.shape
    reach = radii.max()
    for i in range(first_square, last_square):
        top, bottom = i * _SIDE, min((i + 1) * _SIDE, height)
        near = np.empty((_SIDE + 2 * reach, _SIDE), np.float32)
        least, sign = np.empty(_SIDE, np.float32), np.empty(_SIDE, np.float32)
        for left in range(0, width, _SIDE):
            right = min(left + _SIDE, width)
            if one_class(truth, top - reach, bottom + reach, left - reach, right + reach):
                continue
            first, last = max(top - reach, 0), min(bottom + reach, height)
            for y in range(first, last):
                _signed_near(truth[y], left, right, reach, near[y - first])
            for y in range(top, bottom):
                row, guess = truth[y, left:right], prediction[y, left:right]
                for x in range(row.size):
                    sign[x] = np.float32(1) if row[x] else np.float32(-1)
                    least[x] = np.inf
                for other in range(max(y - reach, 0), min(y + reach + 1, height)):
                    line, rise = near[other - first], np.float32((other - y) ** 2)
                    for x in range(row.size):
                        e = max(sign[x] * line[x], np.float32(0)) + rise
                        least[x] = min(least[x], e)
                for k in range(len(radii)):
                    square = np.float32(radii[k] ** 2)
                    equal = total = 0
                    for x in range(row.size):
                        inside = least[x] <= square
                        total += inside
                        equal += inside & (row[x] == guess[x])
                    counts[i, k, 0] += equal
                    counts[i, k, 1] += total


@jit()
def _signed_near(row: Any, left: Any, right: Any, reach: Any, near: Any) -> None:
    # Distances to the other class at the left, then the lesser of those and the ones at the right.
    distance = reach + 1
    for x in range(max(left - reach, 0), right):
        distance = 1 if x > 0 and row[x] != row[x - 1] else distance + 1
        if x >= left:
            near[x - left] = distance
    distance = reach + 1
    for x in range(min(right + reach, len(row)) - 1, left - 1, -1):
        distance = 1 if x + 1 < len(row) and row[x] != row[x + 1] else distance + 1
        if x < right:
            d = min(distance, near[x - left], reach + 1)
            s = np.float32(d * (d - 1) + 1)
            near[x - left] = s if row[x] else -s


def part_sums(
    labels: NDArray[np.int32], p: NDArray[np.float32], other: NDArray[np.float32], count: int, *, holes: bool = False
) -> NDArray[np.int64]:
    """Of each of ``count`` labelled parts (count, 7) int64: what there is of it, and between which rows and columns.

    The columns: pixels, those of which ``other`` has the class, the sum of p, top, left, bottom, right, ends excluded.
    labels: (H, W) int32, 1 to ``count``, else 0. p, other: (H, W) float32 probabilities. holes: the parts are of the
    class p <= 0.5, and 1 - p is summed. Sums are in units of 1/65536, so that they do not depend on the order.
    """
    assert labels.shape == p.shape == other.shape, (labels.shape, p.shape, other.shape)
    sums = np.zeros((count + 1, 7), np.int64)
    sums[:, 3], sums[:, 4] = labels.shape
    arrays = (np.ascontiguousarray(x, np.float32) for x in (p, other))
    _part_sums_kernel(np.ascontiguousarray(labels, np.int32), *arrays, holes, sums)
    return sums[1:]


@jit(nogil=True)
def _part_sums_kernel(labels: Any, p: Any, other: Any, holes: Any, sums: Any) -> None:
    unit, half = np.float32(2**16), np.float32(0.5)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label:
                sums[label, 0] += 1
                sums[label, 1] += (other[y, x] > half) != holes
                value = np.int64(p[y, x] * unit + half)
                sums[label, 2] += 2**16 - value if holes else value
                sums[label, 3] = min(sums[label, 3], y)
                sums[label, 4] = min(sums[label, 4], x)
                sums[label, 5] = max(sums[label, 5], y + 1)
                sums[label, 6] = max(sums[label, 6], x + 1)
