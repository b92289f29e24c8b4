"""What a network reads: a picture's colours, normalised, with its mask beside them."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from refine_kernels.compiled import jit
from refine_kernels.threads import share


def network_input(
    picture: NDArray[np.uint8],
    mask: NDArray[np.float32],
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    out: NDArray[Any],
) -> None:
    """Fills out (H, W, C + 1), float32 or uint16 that are the bits of bfloat16.

    Its first C channels are picture * scale + shift, of picture (H, W, C) and scale and shift (C,): colours, and what
    guides the network. The last one is 2 mask - 1, of mask (H, W). Rounded to the nearest, halves to even.
    """
    channels = picture.shape[2]
    assert out.shape == (*mask.shape, channels + 1), (out.shape, mask.shape, picture.shape)
    assert picture.shape == (*mask.shape, len(scale)), (picture.shape, mask.shape, scale.shape)
    assert out.dtype in (np.float32, np.uint16), out.dtype
    levels = np.arange(256, dtype=np.float32)[:, None] * scale + shift  # (256, C): a pixel has no other colours
    table = _bits(levels) if out.dtype == np.uint16 else levels
    arguments = np.ascontiguousarray(picture), np.ascontiguousarray(mask, np.float32), table
    share(_network_input_kernel, len(out), *arguments, out)


def _bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bfloat16 of finite values."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _rounded(x: Any, like: Any) -> Any:
    """A float32 as a value of ``like``'s type; for kernels alone."""
    raise NotImplementedError


@overload(_rounded, inline="always")
def _rounded_as(x: Any, like: Any) -> Any:
    def narrowed(x: Any, like: Any) -> Any:
        bits = np.float32(x).view(np.uint32)
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    def same(x: Any, like: Any) -> Any:
        return x

    return narrowed if like == types.uint16 else same


@jit(nogil=True)
def _network_input_kernel(first: Any, last: Any, picture: Any, mask: Any, table: Any, out: Any) -> None:
    for i in range(first, last):
        colours, values, row = picture[i], mask[i], out[i]
        end = colours.shape[1]
        for x in range(values.size):
            row[x, 0] = table[colours[x, 0], 0]
            row[x, 1] = table[colours[x, 1], 1]
            row[x, 2] = table[colours[x, 2], 2]
            for c in range(3, end):
                row[x, c] = table[colours[x, c], c]
            row[x, end] = _rounded(np.float32(2) * values[x] - np.float32(1), row[x, end])
