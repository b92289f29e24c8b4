"""Query the latent at the chosen pixels, in blocks, into an array that is there already.

On a CPU and on CUDA a kernel of `refine_kernels` gathers, adds and multiplies in one pass; elsewhere torch does, and so
it does for a decoder that has no kernel.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refine.blocks import Blocks
from refine.coords import Axis
from refine.models import Network

POINTS = 2**17  # in a block
Guide = Callable[[NDArray[np.int64]], Tensor]
"""The network's input at points (N, 2) of the grid: (N, channels)."""
_Decode = Callable[[NDArray[np.int64], Tensor | None], Tensor]


def decode(
    network: Network,
    latent: Blocks,
    rows: Axis,
    columns: Axis,
    points: NDArray[np.int64] | None,
    guide: Guide | None,
    *,
    lean: float = 0.0,
) -> NDArray[np.float32]:
    """Probabilities (N,) of the queries ``points`` (N, 2) among ``rows`` x ``columns``, or (n, m) of all of them.

    latent: a map whose cells are those of the axes; guide: for a network that reads it; lean: added to the logits.
    """
    device = latent.values.device
    rows, columns = (axis.relative(o).to(device) for axis, o in zip((rows, columns), latent.origin, strict=True))
    run = _kernel(network, latent, rows, columns) or _torch(network, latent, rows, columns)
    shape = (len(rows), len(columns)) if points is None else (len(points),)
    out = np.empty(shape, np.float32)
    flat, at = out.reshape(-1), 0
    for part in _parts(shape, points):
        logit = run(part, None if guide is None else guide(part))
        p = torch.sigmoid_(logit.add_(lean) if lean else logit)
        flat[at : at + len(part)] = p.cpu().numpy()
        at += len(part)
    return out


def _parts(shape: tuple[int, ...], points: NDArray[np.int64] | None) -> Iterator[NDArray[np.int64]]:
    """All points, some at a time."""
    if points is not None:
        yield from (points[at : at + POINTS] for at in range(0, len(points), POINTS))
        return
    height, width = shape
    step = max(1, POINTS // width)
    for top in range(0, height, step):
        count = min(step, height - top)
        part = np.empty((count, width, 2), np.int64)
        part[..., 0] = np.arange(top, top + count)[:, None]
        part[..., 1] = np.arange(width)
        yield part.reshape(-1, 2)


def _torch(network: Network, latent: Blocks, rows: Axis, columns: Axis) -> _Decode:
    step = 2**15 // network.neighbours  # what lies between the MLP's layers stays in a processor's cache
    device = latent.values.device

    def run(points: NDArray[np.int64], guide: Tensor | None) -> Tensor:
        at = torch.from_numpy(points).to(device)
        parts = range(0, len(at), step)
        here = [None if guide is None else guide[first : first + step] for first in parts]
        return torch.cat(
            [
                network.decode_points(latent, rows, columns, at[first : first + step], g)
                for first, g in zip(parts, here, strict=True)
            ]
        )

    return run


def _kernel(network: Network, latent: Blocks, rows: Axis, columns: Axis) -> _Decode | None:
    """Decoding by a kernel, where there is one for the network and the device."""
    kind = latent.values.device.type
    if kind not in ("cpu", "cuda") or (kind == "cpu" and latent.values.dtype == torch.float16):
        return None
    call = network.point_kernel(rows, columns)
    if call is None:
        return None
    if kind == "cuda":
        from refine_kernels import triton_decode

        kernel: Any = getattr(triton_decode, call.name)
        arrays: tuple[Any, Any] = (latent.values, latent.slots)
        tables, weights = call.tables, call.weights
    else:
        from refine_kernels import queries

        kernel = getattr(queries, call.name)
        values = latent.values.view(torch.uint16) if latent.values.dtype == torch.bfloat16 else latent.values
        arrays = (values.numpy(), latent.slots.numpy())
        tables = tuple(type(t)(*(part.numpy() for part in t)) for t in call.tables)
        weights = type(call.weights)(*(w.numpy() if isinstance(w, Tensor) else w for w in call.weights))
    device = latent.values.device

    def convert(x: Tensor) -> Any:
        return x.numpy() if kind == "cpu" else x

    def run(points: NDArray[np.int64], guide: Tensor | None) -> Tensor:
        at = convert(torch.from_numpy(points.astype(np.int32)).to(device))
        read = () if guide is None else (convert(guide.contiguous()),)
        logits = torch.as_tensor(kernel(*arrays, latent.side, *tables, at, *read, weights))
        return logits if guide is None or call.bias is None else logits + call.bias(guide)

    return run
