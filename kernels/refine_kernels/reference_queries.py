"""What decoding at scattered pixels computes, in plain numpy: the twins of `queries` and `triton_decode`.

A latent of (h, w) cells with C channels is stored by square blocks, of which only those that are needed exist.
``values`` (K side^2 + 1, C) holds the cells of a block row by row and a row of zeros at its end; ``slots``
(ceil(h / side), ceil(w / side)) int32 is the number of each block, -1 where it does not exist. A query is a pixel
(i, j) of a grid; what its row and its column contribute stands in one table for each axis. All arithmetic is float32;
``values`` may also be the bits of bfloat16 as uint16, since numpy knows no bfloat16.
"""

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array")  # numpy's here and in `queries`, torch's in `triton_decode`
Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Values = NDArray[np.float32] | NDArray[np.uint16]


class InterpolatedTable(NamedTuple, Generic[Array]):
    """One axis of n queries read by linear interpolation; the cells of all queries must exist."""

    low: Array  # (n,) int32, the cell before a query
    high: Array  # (n,) int32, the cell after it
    fraction: Array  # (n,) float32 in [0, 1], the weight of `high`
    phase: Array  # (n, C) float32, what the place within the cell adds to the latent


class InterpolatedWeights(NamedTuple, Generic[Array]):
    """z += guide G^T + g; logit = w relu(H relu(z) + h) + b. All float32."""

    guide: Array  # G (C, channels of the guide)
    guide_bias: Array  # g (C,)
    hidden: Array  # H (C, C)
    hidden_bias: Array  # h (C,)
    last: Array  # w (C,)
    last_bias: float


class EnsembleTable(NamedTuple, Generic[Array]):
    """One axis of n queries that each read two neighbours; the cells of all queries must exist."""

    cells: Array  # (2, n) int32, the two cells that each query reads
    rel: Array  # (2, n) float32, the query relative to their centres, in half cells
    along: Array  # (2, n, C) float32, what the axis adds to the first layer; its bias may be in either axis


class EnsembleWeights(NamedTuple, Generic[Array]):
    """The MLP behind its first layer: `layers` hidden ones with ReLU, then one output. All float32."""

    hidden: Array  # (layers, C, C)
    hidden_bias: Array  # (layers, C)
    last: Array  # (C,)
    last_bias: float


def interpolated_decode(
    values: Values,
    slots: Integers,
    side: int,
    rows: InterpolatedTable[NDArray[Any]],
    columns: InterpolatedTable[NDArray[Any]],
    points: Integers,
    guide: Floats,
    weights: InterpolatedWeights[NDArray[Any]],
) -> Floats:
    """See `refine_kernels.queries.interpolated_decode`."""
    i, j = points.T
    y, x = rows.fraction[i, None], columns.fraction[j, None]
    before, after = (
        (1 - y) * _cells(values, slots, side, rows.low[i], column[j])
        + y * _cells(values, slots, side, rows.high[i], column[j])
        for column in (columns.low, columns.high)
    )
    z = (1 - x) * before + x * after  # (N, C)
    z += guide @ weights.guide.T + weights.guide_bias + rows.phase[i] + columns.phase[j]
    h = _relu(_relu(z) @ weights.hidden.T + weights.hidden_bias)
    return h @ weights.last + np.float32(weights.last_bias)


def ensemble_decode(
    values: Values,
    slots: Integers,
    side: int,
    rows: EnsembleTable[NDArray[Any]],
    columns: EnsembleTable[NDArray[Any]],
    points: Integers,
    weights: EnsembleWeights[NDArray[Any]],
) -> Floats:
    """See `refine_kernels.queries.ensemble_decode`."""
    i, j = points.T
    logit, total = np.zeros((2, len(points)), np.float32)
    for a in (0, 1):
        for b in (0, 1):
            z = _cells(values, slots, side, rows.cells[a, i], columns.cells[b, j])
            z = _relu(z + rows.along[a, i] + columns.along[b, j])  # (N, C)
            for hidden, bias in zip(weights.hidden, weights.hidden_bias, strict=True):
                z = _relu(z @ hidden.T + bias)
            area = np.abs(rows.rel[1 - a, i] * columns.rel[1 - b, j]) + np.float32(1e-9)  # of the opposite corner
            logit += area * (z @ weights.last + np.float32(weights.last_bias))
            total += area
    return logit / total


def _cells(values: Values, slots: Integers, side: int, y: Integers, x: Integers) -> Floats:
    """Cells (N, C) float32 at rows ``y`` and columns ``x`` (N,) of the latent."""
    at = slots[y // side, x // side] * side * side + y % side * side + x % side
    cells = values[at]
    return (cells.astype(np.uint32) << 16).view(np.float32) if cells.dtype == np.uint16 else cells


def _relu(x: NDArray[Any]) -> Floats:
    return np.maximum(x, 0)
