"""What guides crops: channels of the input for SAM-SR v2, the whole picture for the deep branch of v3."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refine.embedding import CELL, PARTS, SHAPE, Embedding
from refine.guidance.cache import Cached, Encoder
from refine.guidance.proposals import Proposals, ProposalSource, at_size
from refine.guidance.sources import embedded
from refine.guidance.v2_1 import labels, painted
from refine.guidance.v2_2 import answered, channel, point_groups
from refine.training.coarse import network_like

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows (n,) and columns (m,) of a picture."""

KEPT: Final = 512  # pictures whose proposals a process keeps, some 2 MB each; painting them anew outlasts a step
FEATURES_KEPT: Final = 32  # pictures whose features, 4 MB each, a process keeps

Kept = TypeVar("Kept")


class _Recent(Generic[Kept]):
    """What was made of the pictures used last, ``most`` of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[Path, Kept] = {}

    def of(self, name: Path | None, make: Callable[[], Kept]) -> Kept:
        """What ``make`` gives for a picture, asked once while it is kept; None is one that will not come back."""
        if name is None:
            return make()
        found = self._kept.pop(name) if name in self._kept else make()
        if len(self._kept) >= self.most:
            self._kept.pop(next(iter(self._kept)))
        self._kept[name] = found
        return found


class Guides:
    """Channels (n, m, k) uint8 of pictures (H, W, 3) at some of their rows and columns, for a version of SAM-SR.

    v2.1: proposals in colours of their own, new for every crop. v2.2: SAM's answers to points in a coarse mask, which
    is made from the truth anew for every crop; SAM is taken to answer with its best proposal that holds the points.
    """

    def __init__(self, version: str, source: ProposalSource, *, groups: int = 16) -> None:
        assert version in ("sam-sr-v2.1", "sam-sr-v2.2"), version
        self.version, self.source, self.groups = version, source, groups
        self._kept: _Recent[tuple[Proposals, NDArray[np.int32] | None]] = _Recent(KEPT)

    def __call__(
        self,
        image: NDArray[np.uint8],
        truth: NDArray[np.bool_],
        places: Places,
        rng: np.random.Generator,
        name: Path | None,
    ) -> NDArray[np.uint8]:
        """name: of the picture, so that its proposals are not asked for again; None for one that will not come back."""
        proposals, numbers = self._kept.of(name, lambda: self._found(image, name))
        at = np.ix_(*(i * n // m for i, n, m in zip(places, proposals.size, truth.shape, strict=True)))
        if numbers is not None:
            return painted(numbers[at], rng)
        small = cv2.resize(truth.view(np.uint8), proposals.size[::-1], interpolation=cv2.INTER_NEAREST) > 0
        coarse = network_like(small, rng) > 0.5
        return channel(*answered(proposals, point_groups(coarse, self.groups, rng)), proposals.size)[at]

    def _found(self, image: NDArray[np.uint8], name: Path | None) -> tuple[Proposals, NDArray[np.int32] | None]:
        """The proposals of a picture and, where they are painted, their labels; on disk only of what comes back."""
        source = self.source
        if name is None and isinstance(source, Cached):
            source = source.source
        proposals = source.propose(image)
        return proposals, labels(proposals) if self.version == "sam-sr-v2.1" else None


Guide = Callable[[NDArray[np.uint8], NDArray[np.bool_], Places, np.random.Generator, Path | None], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Shown:
    """The square of a picture that a crop shows.

    image: the picture (H, W, 3), and name: its file. mask: (H, W) uint8 of 0 to 255, its truth, or if ``beside`` the
    coarse mask that the crop's own is cut from. top, left, side: px of the picture, of which the crop has size x size;
    beyond the picture it is mirrored. flipped: the crop's columns run from right to left.
    """

    image: NDArray[np.uint8]
    name: Path
    mask: NDArray[np.uint8]
    beside: bool
    top: int
    left: int
    side: int
    size: int
    flipped: bool = False

    def places(self, at: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rows and columns, in px of the picture from its edge, of places ``at`` (n,) in px of the crop from its edge.

        Those that are mirrored are told where their mirror image lies.
        """
        along = (at, self.size - at if self.flipped else at)
        rows, columns = (
            length - np.abs(length - (start + x * (self.side / self.size)) % (2 * length))
            for x, start, length in zip(along, (self.top, self.left), self.mask.shape, strict=True)
        )
        return rows, columns

    def shares(self, edges: tuple[NDArray[np.float64], ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Which share of an interval of the picture is a line of the crop, (intervals, size), for rows and columns.

        edges: of the intervals, rising, in px of the picture. What is mirrored counts nothing.
        """
        found = []
        for part, start, length in zip(edges, (self.top, self.left), self.mask.shape, strict=True):
            lines = (start + np.arange(self.size + 1) * (self.side / self.size)).clip(0, length)
            common = np.minimum(part[1:, None], lines[1:]) - np.maximum(part[:-1, None], lines[:-1])
            found.append((common.clip(0) / np.diff(part)[:, None]).astype(np.float32))
        rows, columns = found
        return rows, columns[:, ::-1] if self.flipped else columns


class Wholes:
    """What the deep branch of SAM-SR v3 reads for a crop, of the whole picture that it is a part of.

    Tensors by name: ``features`` (256, 64, 64) float32; ``cells`` (2,) int64, rows and columns of them that the picture
    lies in; ``whole`` (1, 256, 256) float32, its coarse mask in [0, 1] by fourths of cells, 0 beyond those; ``deep8``
    and ``deep16`` (2, n) float64, in cells from the picture's edge where rows and columns of the crop's cells lie that
    have 8 px of it, or 8 px at half its resolution.

    The whole picture's coarse mask is the crop's own where that lies. Elsewhere it is the one beside the picture that
    the crop's is cut from, or such as a network's output, made from the truth anew for every crop.
    """

    def __init__(self, source: ProposalSource | Encoder) -> None:
        self.source = source
        self._kept: _Recent[Embedding] = _Recent(FEATURES_KEPT)

    def __call__(self, shown: Shown, coarse: NDArray[np.float32], rng: np.random.Generator) -> dict[str, Tensor]:
        """coarse: (size, size), the crop's own coarse mask in [0, 1]."""
        embedding = self._kept.of(shown.name, lambda: self._embedding(shown.image))
        mask = _around(shown, embedding, coarse, rng)
        whole = np.zeros((1, *(PARTS * n for n in SHAPE[1:])), np.float32)
        whole[0, : mask.shape[0], : mask.shape[1]] = mask
        out = {
            "features": torch.from_numpy(embedding.features),
            "cells": torch.tensor(embedding.cells),
            "whole": torch.from_numpy(whole),
        }
        for stride in (8, 16):
            centres = np.asarray((np.arange(shown.size // stride) + 0.5) * stride, np.float64)
            places = embedding.places(*map(torch.from_numpy, shown.places(centres)))
            out[f"deep{stride}"] = torch.stack(places)
        return out

    def _embedding(self, image: NDArray[np.uint8]) -> Embedding:
        return Embedding(embedded(self.source, image), image.shape[:2])


def _around(
    shown: Shown, embedding: Embedding, coarse: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """The coarse mask (4 n, 4 m) of the whole picture, with the crop's own in it."""
    whole = embedding.parts(at_size(shown.mask, embedding.seen).astype(np.float32) / np.float32(255))
    if not shown.beside:
        whole = network_like(whole > 0.5, rng, cell=float(rng.uniform(1, 7)))
    side = CELL // PARTS
    inside = [-(-length // side) for length in embedding.seen]  # parts, of which the others continue the last
    edges = tuple(
        (np.arange(n + 1) * (side * length / seen)).clip(max=length)
        for n, length, seen in zip(inside, embedding.size, embedding.seen, strict=True)
    )
    rows, columns = shown.shares(edges)
    elsewhere = 1 - np.outer(rows.sum(1), columns.sum(1))
    mask = rows @ coarse @ columns.T + elsewhere * whole[: inside[0], : inside[1]]
    return np.pad(mask.clip(0, 1), [(0, n - k) for n, k in zip(whole.shape, inside, strict=True)], "edge")
