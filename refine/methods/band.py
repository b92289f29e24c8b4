"""The band around a mask's contour in which a method decides, as picture and seeds of at most so many pixels."""

from dataclasses import dataclass
from typing import Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from refine.methods.options import MethodOptions, Outcome, within
from refine.tiles import Window

CORE: Final = 0.5  # of a part's half width stays sure where the part is narrower than the band


@dataclass(frozen=True, kw_only=True)
class BandOptions(MethodOptions):
    """Where a method decides, and at which size."""

    reach: float = within(0.005, 0, 0.25)
    """How far contours may move, as a share of the picture's longer side; at least 1 px."""

    megapixels: float = within(1.0, 0.01, 100.0)
    """Size that the object and its surroundings are reduced to if they are larger; time and memory grow with it."""


@dataclass(frozen=True, eq=False)
class Band:
    """A part of a picture, perhaps reduced, around all of a mask's contour."""

    window: Window
    """Of the picture; all that is open lies in it."""
    image: NDArray[np.uint8]
    """(h, w, 3) RGB."""
    mask: NDArray[np.bool_]
    """(h, w)."""
    open: NDArray[np.bool_]
    """(h, w): what the method decides; the rest is sure, and each 4-connected part of either class has some."""
    method: str
    """Its name in warnings."""
    factor: float
    """Sides of ``image`` over those of the window; at most 1."""

    @classmethod
    def around(
        cls, method: str, image: NDArray[np.uint8], mask: NDArray[np.float32], *, reach: float, megapixels: float
    ) -> Self:
        """The band of a picture (H, W, 3) RGB and its mask (H, W) in [0, 1] with both classes.

        reach: share of the picture's longer side on both sides of the contour. megapixels: of the band's window, which
        is the mask's bounding box and twice the reach around it; a larger one is reduced.
        """
        foreground = mask > 0.5
        distance = max(1.0, reach * max(mask.shape))
        rows, columns = (np.flatnonzero(foreground.any(axis)) for axis in (1, 0))
        box = Window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
        window = box.grown(int(2 * distance) + 2, *mask.shape)
        size = (window.height, window.width)
        factor = min(1.0, (megapixels * 1e6 / (size[0] * size[1])) ** 0.5)
        small = (max(1, round(size[1] * factor)), max(1, round(size[0] * factor)))  # of OpenCV: width, height
        picture, soft = image[window.slices], mask[window.slices]
        if factor < 1:
            picture = np.asarray(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), np.uint8)
            soft = np.asarray(cv2.resize(soft, small, interpolation=cv2.INTER_AREA), np.float32)
        reduced = soft > 0.5
        decided = _open(reduced, distance * factor)
        return cls(window, np.ascontiguousarray(picture), reduced, decided, method, factor)

    @property
    def usable(self) -> bool:
        """Whether there is something to decide: not in a mask of few px, or of thin parts that were reduced."""
        return bool(self.open.any() and self.mask.any() and not self.mask.all())

    def unchanged(self, mask: NDArray[np.float32]) -> Outcome:
        """The mask (H, W) as it is, where the band is not usable."""
        height, width = self.mask.shape
        reason = f"at {height} x {width} px (H x W) {self.method} finds nothing to decide; the coarse mask stays"
        return Outcome(mask, (reason,))

    def paste(self, found: NDArray[np.float32], mask: NDArray[np.float32]) -> Outcome:
        """The mask (H, W) with what was ``found`` (h, w), in [0, 1], where the band is open."""
        size = (self.window.width, self.window.height)
        out = mask.copy()
        part = out[self.window.slices]
        opened = cv2.resize(self.open.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        np.copyto(part, cv2.resize(found, size, interpolation=cv2.INTER_LINEAR), where=opened > 0)
        if self.factor == 1:
            return Outcome(out)
        (h, w), (height, width) = self.mask.shape, size[::-1]
        reduced = (
            f"{self.method} worked on {height} x {width} px (H x W) reduced to {h} x {w}; what it found is enlarged"
        )
        return Outcome(out, (reduced,))


def _open(mask: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
    """What is within ``distance`` px of the contour, but for the core of each part of the mask or its background."""
    found = np.zeros(mask.shape, bool)
    for part in (mask, ~mask):
        depth = _depth(part)
        labels, count = ndimage.label(part)
        deepest = np.concatenate([[0], np.atleast_1d(ndimage.maximum(depth, labels, np.arange(1, count + 1)))])
        limit = np.minimum(distance, CORE * deepest).astype(np.float32)[labels]
        found |= part & (depth <= limit)
    return found


def _depth(part: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance in px of each pixel of ``part`` to the nearest pixel that is none of it."""
    return np.asarray(cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
