"""The coarse mask filtered with the picture's colours as the guide.

Kaiming He, Jian Sun, Xiaoou Tang: Guided Image Filtering. ECCV 2010.
"""

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.methods.options import MethodOptions, Outcome, within
from refine.tiles import cover

TILE: Final = 512  # px; what the filter holds at once, without its halo


@dataclass(frozen=True, kw_only=True)
class GuidedFilterOptions(MethodOptions):
    """The filter's two parameters, by the paper's names."""

    radius: float = within(0.0125, 0, 0.25)
    """Of the windows, as a share of the picture's longer side; at least 2 px. Contours move by twice that at most."""

    epsilon: float = within(1e-4, 1e-6, 1)
    """The variance of colours, in [0, 1], below which a window is flat and the mask is blurred there."""


def guided_filter(image: NDArray[np.uint8], mask: NDArray[np.float32], options: GuidedFilterOptions) -> Outcome:
    """In every window the mask as the best linear function of the colour, q = a . I + b; these averaged at each pixel.

    image (H, W, 3) RGB, mask (H, W) in [0, 1]. Pictures of any size are filtered at full resolution, tile by tile with
    a halo of two radii; where the mask is constant around a tile it stays, as it would under the filter.
    """
    height, width = mask.shape
    r = max(2, round(options.radius * max(height, width)))
    out = np.empty_like(mask)
    for core in cover(height, width, TILE, 1):
        seen = core.grown(2 * r, height, width)
        p = mask[seen.slices]
        if p.min() < p.max():
            inner = core.moved(-seen.top, -seen.left)
            out[core.slices] = _filtered(image[seen.slices], p, r, options.epsilon)[inner.slices]
        else:
            out[core.slices] = p[0, 0]
    return Outcome(np.clip(out, 0, 1, out=out))


def _filtered(image: NDArray[np.uint8], p: NDArray[np.float32], r: int, epsilon: float) -> NDArray[np.float32]:
    """The filter's output q (h, w) by equations 14 to 16, with (Sigma + epsilon U)^-1 by cofactors."""

    def mean(x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(cv2.boxFilter(x, cv2.CV_32F, (2 * r + 1, 2 * r + 1)), np.float32)

    planes = [np.asarray(plane, np.float32) for plane in cv2.split(image / np.float32(255))]
    means, of_p = [mean(plane) for plane in planes], mean(p)
    sigma = {
        (i, j): mean(planes[i] * planes[j]) - means[i] * means[j] + np.float32(epsilon * (i == j))
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    }
    # In float64, since the cofactors of channels that are nearly the same, as in grey pictures, cancel.
    with_p = [(mean(planes[i] * p) - means[i] * of_p).astype(np.float64) for i in range(3)]
    (rr, rg, rb, gg, gb, bb) = (value.astype(np.float64) for value in sigma.values())
    cofactors = (
        (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb),
        (gb * rb - rg * bb, rr * bb - rb * rb, rb * rg - rr * gb),
        (rg * gb - gg * rb, rb * rg - rr * gb, rr * gg - rg * rg),
    )
    determinant = rr * cofactors[0][0] + rg * cofactors[0][1] + rb * cofactors[0][2]
    q, b = np.zeros_like(p), of_p
    for i, row in enumerate(cofactors):
        a = (row[0] * with_p[0] + row[1] * with_p[1] + row[2] * with_p[2]) / determinant
        b = b - a * means[i]
        q += mean(a) * planes[i]
    return q + mean(b)
