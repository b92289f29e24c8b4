"""Picture and mask to latent, tile by tile: the encoder's taps of a tile live only while its latent cells are made.

Tiling is exact. A latent cell depends on a finite area (identity f), so a tile with the network's halo around it gives
the values of the whole; real borders keep their zero padding, because a halo ends where the picture does. Within a tile
the features are fused patch by patch (identity e, the thesis' memory flattening), so that the wide maps of that step
never exist at full size.
"""

import torch
from torch import Tensor

from refine.models import Network
from refine.tiles import cover


def latent_of(network: Network, x: Tensor, *, dtype: torch.dtype, tile: int, patch: int) -> Tensor:
    """Latent (1, C, ceil(h / stride), ceil(w / stride)) of an input (1, channels, h, w), in ``dtype``.

    tile: px of input that the encoder takes at once, halo excluded; patch: latent cells that are fused at once.
    """
    height, width = x.shape[-2:]
    sizes = network.tap_sizes(height, width)
    shape = (1, network.latent_channels, *sizes[0])
    out = torch.empty(shape, dtype=dtype, device=x.device).contiguous(memory_format=torch.channels_last)
    for core in cover(height, width, tile, network.window):
        area = core.grown(network.halo, height, width)
        taps = network.encode(x[(..., *area.slices)].to(dtype))
        origin = (area.top // network.stride, area.left // network.stride)
        for window in core.divided(network.stride).split(patch):
            out[(..., *window.slices)] = network.fuse(taps, sizes=sizes, origin=origin, window=window)
    return out
