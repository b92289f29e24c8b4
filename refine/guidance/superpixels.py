"""Proposals without weights: superpixels of several scales, merged so that every segment is a union of finer ones.

They follow colours and know no objects; they are named as what they are and never stand in for SAM. As scikit-image has
them, of the picture reduced to `LONGER_SIDE`:

* felzenszwalb: Felzenszwalb and Huttenlocher, Efficient Graph-Based Image Segmentation, IJCV 2004.
* slic: Achanta et al., SLIC Superpixels Compared to State-of-the-Art Superpixel Methods, PAMI 2012.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine.guidance.proposals import LONGER_SIDE, Proposal, Proposals, reduced
from refine.ranges import Ranged, within

Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FelzenszwalbOptions(Ranged):
    """Scales from fine to coarse."""

    scale: float = within(100.0, 1, 1e6)
    """Of the finest: how much contrast a contour needs; larger segments need more."""

    ratio: float = within(4.0, 1.1, 100)
    """Of one scale to the one before."""

    levels: int = within(3, 1, 8)
    """How many scales."""

    sigma: float = within(0.8, 0, 20)
    """Px of the smoothing before."""

    least: int = within(100, 1, 100_000)
    """Px of the smallest segment."""


@dataclass(frozen=True, kw_only=True)
class SlicOptions(Ranged):
    """Scales from fine to coarse."""

    segments: int = within(600, 1, 20_000)
    """Of the finest."""

    ratio: float = within(4.0, 1.1, 100)
    """Of one number of segments to the next."""

    levels: int = within(3, 1, 8)
    """How many scales."""

    compactness: float = within(20.0, 0.01, 1000)
    """How much nearness counts beside colour; with less, noise joins segments across contours."""


@dataclass(frozen=True)
class Felzenszwalb:
    """Segments that contrast parts, as a source of proposals."""

    options: FelzenszwalbOptions = FelzenszwalbOptions()
    name: str = field(default="felzenszwalb", init=False)

    def settings(self) -> dict[str, Any]:
        return _settings(self.options)

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Segments of a picture (H, W, 3) RGB; scores are 1, for there are none."""
        from skimage.segmentation import felzenszwalb  # takes longer to import than all else here

        o, picture = self.options, reduced(image)
        levels = (
            felzenszwalb(picture, scale=o.scale * o.ratio**level, sigma=o.sigma, min_size=o.least, channel_axis=-1)
            for level in range(o.levels)
        )
        return _proposals(levels, self.name)


@dataclass(frozen=True)
class Slic:
    """Segments of like colours and about one size, as a source of proposals."""

    options: SlicOptions = SlicOptions()
    name: str = field(default="slic", init=False)

    def settings(self) -> dict[str, Any]:
        return _settings(self.options)

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """Segments of a picture (H, W, 3) RGB; scores are 1, for there are none."""
        from skimage.segmentation import slic  # takes longer to import than all else here

        o, picture = self.options, reduced(image)
        numbers = [max(1, round(o.segments / o.ratio**level)) for level in range(o.levels)]
        levels = (slic(picture, n, compactness=o.compactness, start_label=0, channel_axis=-1) for n in numbers)
        return _proposals(levels, self.name)


def _settings(options: Ranged) -> dict[str, Any]:
    return {"library": f"scikit-image {version('scikit-image')}", "longer_side": LONGER_SIDE, **options.as_dict()}


def _proposals(levels: Iterable[Labels], source: str) -> Proposals:
    found: dict[bytes, Proposal] = {}  # a segment that several levels share is one
    for labels in nested(levels):
        size = labels.shape
        for proposal in segments(labels):
            found.setdefault(proposal.counts.tobytes(), proposal)
    return Proposals(tuple(found.values()), size, source)


def nested(levels: Iterable[Labels]) -> Iterator[Labels]:
    """Labels (h, w) of each level from fine to coarse, where each segment is a union of those of the level before.

    levels: labels (h, w) from 0 on. A fine segment goes to the coarse one that has most of it.
    """
    finer = None
    for level in levels:
        labels = np.asarray(level, np.int64)
        if finer is not None:
            fine, coarse = int(finer.max()) + 1, int(labels.max()) + 1
            shared = np.bincount((finer * coarse + labels).ravel(), minlength=fine * coarse).reshape(fine, coarse)
            labels = shared.argmax(axis=1)[finer]
        finer = labels
        yield labels


def segments(labels: Labels) -> Iterator[Proposal]:
    """The proposal of each label that occurs in (h, w), by rising label; all runs are found in one pass."""
    columns = labels.ravel(order="F")
    first = np.concatenate([[0], np.flatnonzero(columns[1:] != columns[:-1]) + 1])
    end = np.concatenate([first[1:], [columns.size]])
    order = np.argsort(columns[first], kind="stable")  # runs of a label stay in the order of the picture
    parts = np.flatnonzero(np.diff(columns[first][order])) + 1
    for runs in np.split(order, parts):
        bounds = np.stack([first[runs], end[runs]], axis=1).ravel()
        ends = bounds if bounds[-1] == columns.size else np.append(bounds, columns.size)
        yield Proposal.of_runs(np.diff(ends, prepend=0), labels.shape)
