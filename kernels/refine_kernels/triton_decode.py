"""Decode a latent at scattered pixels on CUDA: gather, first layer, MLP and mean in one program per block of points.

`reference_queries` says what is computed and how the latent is stored; arguments are the same, as tensors on one
device. Needs Triton; nothing else computes here, so a result is always the kernel's. Arithmetic is float32, except
that a layer's products are of TF32 where the latent is bfloat16 or float16: tensor cores multiply it, and it keeps as
many bits as the latter, more than the former.
"""

import torch
import triton  # type: ignore[import-untyped,import-not-found]
import triton.language as tl  # type: ignore[import-untyped,import-not-found]
from torch import Tensor

from refine_kernels.reference_queries import EnsembleTable, EnsembleWeights, InterpolatedTable, InterpolatedWeights

BLOCK = 64  # points of a program: a tensor core's tile of 16 rows for each of four warps


def interpolated_decode(
    values: Tensor,
    slots: Tensor,
    side: int,
    rows: InterpolatedTable[Tensor],
    columns: InterpolatedTable[Tensor],
    points: Tensor,
    guide: Tensor,
    weights: InterpolatedWeights[Tensor],
) -> Tensor:
    """Logits (N,) float32 as those of `refine_kernels.queries.interpolated_decode`.

    values: (K side^2 + 1, C) float32, bfloat16 or float16; C is a power of two and at least 16. Other tensors: float32
    or integers of any width, contiguous.
    """
    out = torch.empty(len(points), dtype=torch.float32, device=values.device)
    assert all(t.is_contiguous() for t in (values, slots, *rows, *columns, points, guide, *weights[:-1]))
    with torch.cuda.device_of(values):
        _interpolated_kernel[_grid(points)](
            values,
            slots,
            side,
            slots.shape[1],
            *rows,
            *columns,
            points,
            len(points),
            guide,
            *weights,
            out,
            GUIDE=guide.shape[1],
            C=values.shape[1],
            BLOCK=BLOCK,
            PRECISION=_precision(values),
            enable_fp_fusion=True,  # as ever; left out, new versions of Triton warn that they will change it
        )
    return out


def ensemble_decode(
    values: Tensor,
    slots: Tensor,
    side: int,
    rows: EnsembleTable[Tensor],
    columns: EnsembleTable[Tensor],
    points: Tensor,
    weights: EnsembleWeights[Tensor],
) -> Tensor:
    """Logits (N,) float32 as those of `refine_kernels.queries.ensemble_decode`; arguments as above."""
    out = torch.empty(len(points), dtype=torch.float32, device=values.device)
    assert all(t.is_contiguous() for t in (values, slots, *rows, *columns, points, *weights[:-1]))
    with torch.cuda.device_of(values):
        _ensemble_kernel[_grid(points)](
            values,
            slots,
            side,
            slots.shape[1],
            *rows,
            rows.rel.shape[1],
            *columns,
            columns.rel.shape[1],
            points,
            len(points),
            *weights,
            out,
            LAYERS=len(weights.hidden),
            C=values.shape[1],
            BLOCK=BLOCK,
            PRECISION=_precision(values),
            enable_fp_fusion=True,  # as ever; left out, new versions of Triton warn that they will change it
        )
    return out


def _grid(points: Tensor) -> tuple[int]:
    return (triton.cdiv(len(points), BLOCK),)


def _precision(values: Tensor) -> str:
    return "ieee" if values.dtype == torch.float32 else "tf32"


@triton.jit
def _interpolated_kernel(
    values: tl.tensor,
    slots: tl.tensor,
    side: tl.tensor,
    across: tl.tensor,
    row_low: tl.tensor,
    row_high: tl.tensor,
    row_fraction: tl.tensor,
    row_phase: tl.tensor,
    column_low: tl.tensor,
    column_high: tl.tensor,
    column_fraction: tl.tensor,
    column_phase: tl.tensor,
    points: tl.tensor,
    count: tl.tensor,
    guide: tl.tensor,
    guide_weight: tl.tensor,
    guide_bias: tl.tensor,
    hidden: tl.tensor,
    hidden_bias: tl.tensor,
    last: tl.tensor,
    last_bias: tl.tensor,
    out: tl.tensor,
    GUIDE: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = n < count
    c = tl.arange(0, C)
    i = tl.load(points + 2 * n, mask=real, other=0)
    j = tl.load(points + 2 * n + 1, mask=real, other=0)
    z = tl.zeros((BLOCK, C), tl.float32)
    fy, fx = tl.load(row_fraction + i), tl.load(column_fraction + j)
    for a in tl.static_range(2):
        y = tl.load((row_high if a else row_low) + i)
        weight_y = fy if a else 1 - fy
        for b in tl.static_range(2):
            x = tl.load((column_high if b else column_low) + j)
            weight = weight_y * (fx if b else 1 - fx)
            z += weight[:, None] * _cell(values, slots, side, across, y, x, real, C)
    z += tl.load(row_phase + i[:, None] * C + c) + tl.load(column_phase + j[:, None] * C + c)
    z += tl.load(guide_bias + c)
    for g in tl.static_range(GUIDE):
        z += tl.load(guide + n * GUIDE + g, mask=real, other=0.0)[:, None] * tl.load(guide_weight + c * GUIDE + g)
    z = _layer(_relu(z), hidden, hidden_bias, PRECISION, C)
    tl.store(out + n, tl.sum(z * tl.load(last + c), 1) + last_bias, mask=real)


@triton.jit
def _ensemble_kernel(
    values: tl.tensor,
    slots: tl.tensor,
    side: tl.tensor,
    across: tl.tensor,
    row_cells: tl.tensor,
    row_rel: tl.tensor,
    along_y: tl.tensor,
    rows: tl.tensor,
    column_cells: tl.tensor,
    column_rel: tl.tensor,
    along_x: tl.tensor,
    columns: tl.tensor,
    points: tl.tensor,
    count: tl.tensor,
    hidden: tl.tensor,
    hidden_bias: tl.tensor,
    last: tl.tensor,
    last_bias: tl.tensor,
    out: tl.tensor,
    LAYERS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = n < count
    c = tl.arange(0, C)
    i = tl.load(points + 2 * n, mask=real, other=0)
    j = tl.load(points + 2 * n + 1, mask=real, other=0)
    mean = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(4):  # not unrolled: the code of one neighbour's MLP is long enough
        a, b = k // 2, k % 2
        y = tl.load(row_cells + a * rows + i)
        x = tl.load(column_cells + b * columns + j)
        z = _cell(values, slots, side, across, y, x, real, C)
        z += tl.load(along_y + (a * rows + i)[:, None] * C + c)
        z = _relu(z + tl.load(along_x + (b * columns + j)[:, None] * C + c))
        for layer in range(LAYERS):
            z = _layer(z, hidden + layer * C * C, hidden_bias + layer * C, PRECISION, C)
        # The area that the opposite neighbour spans with the point is this one's weight.
        rel_y, rel_x = tl.load(row_rel + (1 - a) * rows + i), tl.load(column_rel + (1 - b) * columns + j)
        area = tl.abs(rel_y * rel_x) + 1e-9
        mean += area * (tl.sum(z * tl.load(last + c), 1) + last_bias)
        total += area
    tl.store(out + n, mean / total, mask=real)


@triton.jit
def _cell(
    values: tl.tensor,
    slots: tl.tensor,
    side: tl.tensor,
    across: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    real: tl.tensor,
    C: tl.constexpr,
) -> tl.tensor:
    """The cells (BLOCK, C) float32 at rows y and columns x of the latent."""
    block = tl.load(slots + (y // side) * across + x // side, mask=real, other=0).to(tl.int64)
    at = (block * side + y % side) * side + x % side
    return tl.load(values + at[:, None] * C + tl.arange(0, C), mask=real[:, None], other=0.0).to(tl.float32)


@triton.jit
def _layer(z: tl.tensor, weight: tl.tensor, bias: tl.tensor, PRECISION: tl.constexpr, C: tl.constexpr) -> tl.tensor:
    c = tl.arange(0, C)
    transposed = tl.load(weight + c[None, :] * C + c[:, None])  # (inputs, outputs)
    return _relu(tl.dot(z, transposed, input_precision=PRECISION) + tl.load(bias + c))


@triton.jit
def _relu(z: tl.tensor) -> tl.tensor:
    return tl.where(z < 0, 0.0, z)  # a nan stays one
