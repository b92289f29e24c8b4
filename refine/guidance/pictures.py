"""Pictures of what guidance saw, to look at: (h, w, 3) uint8 RGB at the proposals' size."""

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.embedding import Embedding
from refine.guidance.proposals import Proposals
from refine.guidance.v2_1 import labels, painted

Picture = NDArray[np.uint8]

COARSE, GUIDED = (255, 160, 0), (0, 220, 120)


def outlined(image: Picture, proposals: Proposals) -> Picture:
    """The picture with every proposal's contour, each in a colour of its own."""
    out = image.copy()
    colours = np.random.default_rng(0).integers(64, 256, (len(proposals), 3)).tolist()
    for proposal, colour in zip(proposals, colours, strict=True):
        _contour(out, proposal.mask(), colour)
    return out


def tinted(image: Picture, proposals: Proposals, chosen: NDArray[np.bool_]) -> Picture:
    """The picture, darkened, with the ``chosen`` (n,) proposals painted over it by half."""
    items = tuple(p for p, wanted in zip(proposals, chosen, strict=True) if wanted)
    numbers = labels(Proposals(items, proposals.size, proposals.source))
    colours = painted(numbers, np.random.default_rng(0))
    half = image // 2
    return np.where(numbers[..., None] > 0, half + colours // 2, half)


def compared(image: Picture, coarse: NDArray[np.bool_], guided: NDArray[np.bool_]) -> Picture:
    """The picture with the contour of the coarse mask (orange) and of what is refined instead (green)."""
    out = image.copy()
    _contour(out, coarse, COARSE)
    _contour(out, guided, GUIDED)
    return out


def dotted(image: Picture, groups: NDArray[np.int64]) -> Picture:
    """The picture with points (k, 3, 2), y and x; those of a group have one colour."""
    out = image.copy()
    colours = np.random.default_rng(0).integers(64, 256, (len(groups), 3)).tolist()
    radius = max(2, max(image.shape[:2]) // 200)
    for group, colour in zip(groups, colours, strict=True):
        for y, x in group:
            cv2.circle(out, (int(x), int(y)), radius, colour, cv2.FILLED, cv2.LINE_AA)
    return out


def coloured(embedding: Embedding) -> Picture:
    """The features' three principal components as colours, each over its own range; a pixel (n, m, 3) for each cell."""
    channels, n, m = embedding.inside.shape
    cells = embedding.inside.reshape(channels, -1).astype(np.float64)
    cells -= cells.mean(1, keepdims=True)
    axes = np.linalg.svd(cells, full_matrices=False)[0][:, :3]
    found = (axes.T @ cells).T
    found -= found.min(0)
    found = found / np.maximum(found.max(0), np.finfo(np.float64).tiny)
    out = np.zeros((n * m, 3), np.uint8)
    out[:, : found.shape[1]] = np.rint(255 * found)
    return out.reshape(n, m, 3)


def _contour(out: Picture, mask: NDArray[np.bool_], colour: tuple[int, ...] | list[int]) -> None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, contours, -1, colour, 1)
