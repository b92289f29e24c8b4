"""Picture and mask to latent: whole windows, or only the cells that queries read.

Both are exact. A latent cell depends on a finite area (identity f), so a window with the network's halo around it gives
the values of the whole; real borders keep their zero padding, because a halo ends where the picture does.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refine.blocks import FINE, Blocks
from refine.coords import Axis
from refine.frame import View
from refine.models import DeepNetwork, Network
from refine.planes import Held, Interpolated
from refine.tiles import Window, cover


def whole_latent(
    network: Network, view: View, window: Window, *, dtype: torch.dtype, tile: int, patch: int
) -> tuple[Tensor, tuple[int, int]]:
    """Latent (1, C, h, w) of the cells that the queries in a window of the grid read, and the first of them (y, x).

    The encoder takes ``tile`` px of input at once, halo excluded, and its taps live only while its cells are made, by
    ``patch`` cells at once (identity e, the thesis' memory flattening), so that no wide map exists at full size.
    """
    height, width = view.size
    sizes = network.tap_sizes(height, width)
    ends = [axis[part].cells() for axis, part in zip((view.rows, view.columns), window.slices, strict=True)]
    multiple = network.window // network.stride
    (top, bottom), (left, right) = ((a // multiple * multiple, b) for a, b in ends)
    channels = network.latent_channels
    out = torch.empty(1, channels, bottom - top, right - left, dtype=dtype, device=view.frame.device)
    out = out.contiguous(memory_format=torch.channels_last)
    pixels = Window(*(n * network.stride for n in (top, bottom, left, right)))
    for core in cover(
        min(pixels.bottom, height) - pixels.top, min(pixels.right, width) - pixels.left, tile, network.window
    ):
        core = core.moved(pixels.top, pixels.left)
        area = core.grown(network.halo, height, width)
        taps = network.encode(view.input(area, dtype, network.multiple), view.deep_in(area, dtype))
        origin = (area.top // network.stride, area.left // network.stride)
        for cells in core.divided(network.stride).split(patch):
            part = cells.moved(-top, -left)
            out[(..., *part.slices)] = network.fuse(taps, sizes=sizes, origin=origin, window=cells)
    return out, (top, left)


def latent_at(network: Network, view: View, window: Window, wanted: NDArray[np.bool_], *, dtype: torch.dtype) -> Blocks:
    """The latent's cells that ``wanted`` queries (n, m) of a window of the grid read, and no others.

    Every stage of the encoder runs on the area that it needs for them; see `refine.blocks`.
    """
    height, width = view.size
    rows, columns = view.rows[window.slices[0]], view.columns[window.slices[1]]
    per = FINE // network.stride
    needed = _squares(wanted, (rows, columns), per)  # from square 0 of the picture on
    ys, xs = (np.flatnonzero(needed.any(axis)) * FINE for axis in (1, 0))
    core = Window(int(ys[0]), min(int(ys[-1]) + FINE, height), int(xs[0]), min(int(xs[-1]) + FINE, width))
    area = core.grown(network.halo, height, width).aligned(network.window, height, width)
    local = needed[area.top // FINE : -(-area.bottom // FINE), area.left // FINE : -(-area.right // FINE)]
    origin = (area.top // network.stride, area.left // network.stride)
    sizes = network.tap_sizes(height, width)
    x, deep = view.input(area, dtype, network.multiple), view.deep_in(area, dtype)
    latent = network.encode_area(x, local, sizes=sizes, origin=origin, deep=deep)
    return replace(latent, origin=origin)


def with_deep(network: DeepNetwork, view: View, *, dtype: torch.dtype) -> View:
    """The view with the deep map of the whole picture and its mask at this scale."""
    embedding = view.frame.embedding
    assert embedding is not None
    height, width = embedding.seen
    mask = 2 * embedding.parts(view.frame.resized(view.mask, embedding.seen).read(Window(0, height, 0, width))) - 1
    given = (embedding.inside[None], mask[None, None])
    maps = (torch.tensor(x, dtype=dtype, device=view.frame.device) for x in given)
    deep = network.deep(*(x.contiguous(memory_format=torch.channels_last) for x in maps))
    found = deep[0].permute(1, 2, 0).float().cpu().numpy()  # (n, m, C)
    axes = embedding.axes(view.size, network.deep_stride)
    rows, columns = ((axis.low, axis.high, axis.fraction) for axis in axes)
    plane = Interpolated(Held(np.ascontiguousarray(found)), rows, columns)
    return replace(view, deep=plane, deep_stride=network.deep_stride)


def _squares(wanted: NDArray[np.bool_], axes: tuple[Axis, Axis], per: int) -> NDArray[np.bool_]:
    """Whether any of the ``wanted`` queries (n, m) reads a cell of each square of ``per`` x ``per`` cells."""
    from refine_kernels import any_in_cells

    read = [[cells.numpy() // per for cells in axis.read()] for axis in axes]  # squares of each query, rising
    # Between starts nothing changes on an axis.
    starts = [np.flatnonzero(np.any([np.diff(s, prepend=-1) for s in squares], 0)) for squares in read]
    found = any_in_cells(wanted, *starts)
    for dim, squares in enumerate(read):
        shape = list(found.shape)
        shape[dim] = max(int(s[-1]) for s in squares) + 1
        out = np.zeros(shape, bool)
        for square in squares:
            at = square[starts[dim]]
            firsts = np.flatnonzero(np.diff(at, prepend=-1))
            index = (slice(None),) * dim + (at[firsts],)
            out[index] |= np.logical_or.reduceat(found, firsts, dim)
        found = out
    return found
