"""Proposals: the masks that something finds in a picture, kept as runs so that a thousand of them take no room.

SAM's and COCO's uncompressed run lengths: the pixels column by column, background and foreground in turn, background
first (a run of 0 px where the first pixel is foreground).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from refine.errors import InputError

LONGER_SIDE: Final = 1024
"""Px that sources reduce a larger picture to: SAM's own input, from which it makes masks of 256 x 256 cells."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """One mask of a picture, at the size it was found in."""

    counts: NDArray[np.uint32]
    """(n,) px of each run."""
    size: tuple[int, int]
    """(h, w)."""
    area: int
    """Px of that size."""
    box: tuple[int, int, int, int]
    """x, y, width, height in px; zeros where there is no foreground. (SAM's own is 1 px less wide and high.)"""
    predicted_iou: float
    """What the source thinks of it, in [0, 1]; of SAM, whose scale has no end, about that."""
    stability: float
    """IoU of the masks at a higher and a lower threshold, in [0, 1]."""

    @classmethod
    def of(cls, mask: NDArray[np.bool_], *, predicted_iou: float = 1.0, stability: float = 1.0) -> Self:
        """The proposal of a mask (h, w).

        Raises InputError: the array is not (h, w) bool, or has no pixels.
        """
        if mask.dtype != bool or mask.ndim != 2 or mask.size == 0:
            raise InputError(f"mask: {mask.dtype} {mask.shape}; accepted is bool (H, W); threshold it, as in p > 0.5")
        columns = mask.ravel(order="F")
        changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
        ends = np.concatenate([[0] * (1 + bool(columns[0])), changes, [columns.size]])
        return cls.of_runs(np.diff(ends), mask.shape, predicted_iou=predicted_iou, stability=stability)

    @classmethod
    def of_runs(
        cls, counts: ArrayLike, size: tuple[int, ...], *, predicted_iou: float = 1.0, stability: float = 1.0
    ) -> Self:
        """The proposal of runs (n,) of a picture of ``size`` = (h, w).

        Raises InputError: the runs are no whole numbers, or not as long as the picture.
        """
        height, width = size
        given = np.asarray(counts)
        if (
            min(size) < 1
            or given.ndim != 1
            or given.dtype.kind not in "ui"
            or np.any(given < 0)
            or given.sum() != height * width
        ):
            raise InputError(f"runs: {given.dtype} {given.shape} of {given.sum()} px; wanted are {height} x {width} px")
        bounds = np.cumsum(given, dtype=np.int64)
        first, last = bounds[:-1:2], bounds[1::2] - 1  # foreground px of each run, column by column
        some = last >= first
        return cls(
            given.astype(np.uint32),
            (height, width),
            int(given[1::2].sum()),
            _box(first[some], last[some], height),
            float(predicted_iou),
            float(stability),
        )

    def mask(self) -> NDArray[np.bool_]:
        """(h, w)."""
        foreground = np.arange(len(self.counts)) % 2 == 1
        columns = np.repeat(foreground, self.counts).reshape(self.size[::-1])  # (w, h)
        return np.ascontiguousarray(columns.T)


def _box(first: NDArray[np.int64], last: NDArray[np.int64], height: int) -> tuple[int, int, int, int]:
    if not len(first):
        return 0, 0, 0, 0
    (left, right), (tops, bottoms) = (first[0] // height, last[-1] // height), (first % height, last % height)
    top, bottom = tops.min(), bottoms.max()
    if np.any(first // height < last // height):  # a run that goes on in the next column has its end and its start
        top, bottom = 0, height - 1
    return int(left), int(top), int(right - left + 1), int(bottom - top + 1)


@dataclass(frozen=True, eq=False)
class Proposals:
    """The proposals of one picture; none of a picture in which nothing was found.

    Raises `InputError` where one has another size.
    """

    items: tuple[Proposal, ...]
    size: tuple[int, int]
    """(h, w) that all were found in."""
    source: str
    """Name of the source."""

    def __post_init__(self) -> None:
        other = next((item.size for item in self.items if item.size != self.size), None)
        if other is not None:
            raise InputError(
                f"proposals of {self.source}: one of size {other} among those of {self.size}; give one size"
            )

    def check_of(self, size: tuple[int, int]) -> None:
        """Raises `InputError` unless these can be of a picture of ``size`` (H, W), reduced or not."""
        height, width = self.size
        scale = max(self.size) / max(size)
        if max(abs(height - scale * size[0]), abs(width - scale * size[1])) > 1:
            raise InputError(
                f"proposals of {self.source}: of a picture of {height} x {width} px (H x W), or reduced to that; the "
                f"picture here has {size[0]} x {size[1]}; give its own"
            )

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Proposal]:
        return iter(self.items)


class ProposalSource(Protocol):
    """What finds proposals in a picture."""

    @property
    def name(self) -> str:
        """What proposals and messages call it."""

    def settings(self) -> dict[str, Any]:
        """All that the proposals depend on beside the picture and the name, as JSON has it."""

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        """The proposals of a picture (H, W, 3) RGB of any size."""


def at_size(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A picture or a soft mask (H, W) at ``size`` (h, w), by the means of areas."""
    return array if array.shape[:2] == size else np.asarray(cv2.resize(array, size[::-1], interpolation=cv2.INTER_AREA))


def reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) at its `reduced_size`; areas are averaged."""
    height, width = image.shape[:2]
    return np.asarray(at_size(image, reduced_size((height, width))), np.uint8)


def reduced_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size (h, w) of a picture (H, W) at a longer side of at most `LONGER_SIDE`, rounded as SAM's library does."""
    longer = max(size)
    if longer <= LONGER_SIDE:
        return size
    height, width = (max(1, int(side * LONGER_SIDE / longer + 0.5)) for side in size)
    return height, width
