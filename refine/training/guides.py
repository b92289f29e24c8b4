"""Channels of guidance for crops: what SAM-SR v2.1 and v2.2 add to the network's input, from proposals kept on disk."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.guidance.proposals import Proposals, ProposalSource
from refine.guidance.v2_1 import labels, painted
from refine.guidance.v2_2 import answered, channel, point_groups
from refine.training.coarse import network_like

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows (n,) and columns (m,) of a picture."""

KEPT = 64  # pictures whose proposals a process keeps


class Guides:
    """Channels (n, m, k) uint8 of pictures (H, W, 3) at some of their rows and columns, for a version of SAM-SR.

    v2.1: proposals in colours of their own, new for every crop. v2.2: SAM's answers to points in a coarse mask, which
    is made from the truth anew for every crop; SAM is taken to answer with its best proposal that holds the points.
    """

    def __init__(self, version: str, source: ProposalSource, *, groups: int = 16) -> None:
        assert version in ("sam-sr-v2.1", "sam-sr-v2.2"), version
        self.version, self.source, self.groups = version, source, groups
        self._kept: dict[Path, tuple[Proposals, NDArray[np.int32] | None]] = {}

    def __call__(
        self,
        image: NDArray[np.uint8],
        truth: NDArray[np.bool_],
        places: Places,
        rng: np.random.Generator,
        name: Path | None,
    ) -> NDArray[np.uint8]:
        """name: of the picture, so that its proposals are not asked for again; None for one that will not come back."""
        proposals, numbers = self._of(image, name)
        at = np.ix_(*(i * n // m for i, n, m in zip(places, proposals.size, truth.shape, strict=True)))
        if numbers is not None:
            return painted(numbers[at], rng)
        small = cv2.resize(truth.view(np.uint8), proposals.size[::-1], interpolation=cv2.INTER_NEAREST) > 0
        coarse = network_like(small, rng) > 0.5
        return channel(*answered(proposals, point_groups(coarse, self.groups, rng)), proposals.size)[at]

    def _of(self, image: NDArray[np.uint8], name: Path | None) -> tuple[Proposals, NDArray[np.int32] | None]:
        """The proposals of a picture and, where they are painted, their labels."""
        found = None if name is None else self._kept.pop(name, None)
        if found is None:
            proposals = self.source.propose(image)
            found = proposals, labels(proposals) if self.version == "sam-sr-v2.1" else None
        if name is not None:
            if len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[name] = found
        return found


Guide = Callable[[NDArray[np.uint8], NDArray[np.bool_], Places, np.random.Generator, Path | None], NDArray[np.uint8]]
