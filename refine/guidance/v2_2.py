"""SAM-SR v2.2: what SAM makes of points in the coarse mask, one more channel of the input (the thesis, 3.3.2)."""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from refine.guidance.proposals import Proposals

CHANNELS: Final = 1
GROUP: Final = 3  # points that are asked of together

Ask = Callable[[NDArray[np.int64]], tuple[NDArray[np.bool_], NDArray[np.float64]]]
"""Masks (k, h, w) and confidences (k,) of groups of points (k, 3, 2), y and x in px."""


def point_groups(mask: NDArray[np.bool_], groups: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Points (k, 3, 2) of a square grid inside a mask (h, w), y and x: about ``groups`` of three, each spread over it.

    Each is the pixel of its square that lies deepest in the mask, so that thin objects have some too. None of an empty
    mask; a point comes more than once where the mask has fewer than three.
    """
    area = np.count_nonzero(mask)
    if not area:
        return np.zeros((0, GROUP, 2), np.int64)
    pitch = max(1, int(np.sqrt(area / (GROUP * groups))))
    tops, lefts = (_about(np.flatnonzero(mask.any(axis)), pitch) for axis in (1, 0))
    window = np.s_[tops.start : tops.stop, lefts.start : lefts.stop]
    depth = ndimage.distance_transform_edt(np.pad(mask[window], 1))[1:-1, 1:-1]
    found = []
    for top in tops:
        for left in lefts:
            first = top - tops.start, left - lefts.start
            square = depth[first[0] : first[0] + pitch, first[1] : first[1] + pitch]
            y, x = np.unravel_index(np.argmax(square), square.shape)
            if square[y, x] > 0:
                found.append((square[y, x], top + y, left + x))
    # The deepest, as many as are wanted, in random order: a group's three points lie anywhere in the object.
    deepest = sorted(found, key=lambda point: -point[0])[: GROUP * groups]
    points = np.array([(y, x) for _, y, x in deepest], np.int64)[rng.permutation(len(deepest))]
    return np.resize(points, (-(-len(points) // GROUP), GROUP, 2))


def _about(at: NDArray[np.int64], pitch: int) -> range:
    """The grid's squares, by their first px, in which positions ``at`` lie."""
    return range(int(at[0]) // pitch * pitch, int(at[-1]) + 1, pitch)


def answered(proposals: Proposals, groups: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """What a source that takes no points says of groups (k, 3, 2): masks (g, h, w), confidences (g,), g up to k.

    The proposal that holds all three points and is thought best by its source, the smallest of several; none where no
    proposal holds them.
    """
    height, width = proposals.size
    order = sorted(proposals, key=lambda p: (-p.predicted_iou, p.area))
    flat = groups[..., 1] * height + groups[..., 0]  # column by column, as runs are
    open_, masks, confidences = np.ones(len(groups), bool), [], []
    for proposal in order:
        if not open_.any():
            break
        inside = np.searchsorted(np.cumsum(proposal.counts, dtype=np.int64), flat, side="right") % 2 == 1
        held = inside.all(1) & open_
        if held.any():
            masks += [proposal.mask()] * int(held.sum())
            confidences += [proposal.predicted_iou] * int(held.sum())
            open_ &= ~held
    return np.array(masks, bool).reshape(-1, height, width), np.array(confidences, np.float64)


def channel(masks: NDArray[np.bool_], confidences: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(h, w, 1), `merged` in 0..255, as the network's input has it."""
    return np.rint(255 * merged(masks, confidences, size)).astype(np.uint8)[..., None]


def merged(masks: NDArray[np.bool_], confidences: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w) in [0, 1]: the mean of masks (k, h, w) by their confidences (k,), which count from 0; 0 of none."""
    weights = np.clip(confidences, 0, None)
    total, out = weights.sum(), np.zeros(size)
    for mask, weight in zip(masks, weights, strict=True):
        if weight:
            out[mask] += weight / total
    return out.astype(np.float32)
