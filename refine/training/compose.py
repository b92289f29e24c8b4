"""Pictures made of others, so that only the coarse mask can say what the object is.

A network that always sees the same things as objects learns to find them, whatever its mask says: plants on soil, the
one person in front. Here an object becomes ground, a part of it the whole, and something else an occluder.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_LEAST: Final = 0.002  # of a picture's area; smaller parts are specks


def pasted(below: tuple[Image, Mask], above: tuple[Image, Mask], rng: np.random.Generator) -> tuple[Image, Mask]:
    """The object of one picture cut out and laid over another of the same size.

    below, above: picture (H, W, 3) and truth (H, W). The truth of the result is, by turns, the object above, so that
    the one below is ground; what is left in sight of the one below, so that the one above is an occluder; or both.
    """
    (ground, behind), (image, front) = below, above
    alpha = front.astype(np.float32)
    alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), float(rng.uniform(0.3, 1.0))), np.float32)
    x = ground.astype(np.float32)
    x += (image.astype(np.float32) - x) * alpha[..., None]
    front = alpha > 0.5
    kind = rng.random()
    truth = front if kind < 0.5 else behind & ~front if kind < 0.85 else behind | front
    return np.rint(x).astype(np.uint8), truth


def some_parts(truth: Mask, rng: np.random.Generator) -> Mask:
    """Some of the connected components of a truth (H, W), at least one, of those that are no specks."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(truth.view(np.uint8), connectivity=8)
    sizeable = np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= _LEAST * truth.size) + 1
    if len(sizeable) < 2:
        return truth
    kept = np.zeros(count, bool)
    kept[rng.choice(sizeable, int(rng.integers(1, len(sizeable))), replace=False)] = True
    return np.asarray(kept[labels], bool)
