"""SAM-SR v2.1: proposals painted as a picture, three more channels of the network's input (the thesis, 3.3.2)."""

import numpy as np
from numpy.typing import NDArray

from refine.guidance.proposals import Proposals

CHANNELS = 3


def labels(proposals: Proposals) -> NDArray[np.int32]:
    """(h, w), the number of the smallest proposal over each pixel, from 1 on by falling area; 0 where there is none.

    Of equal areas the first in reading order is painted first, whatever order the proposals come in.
    """
    out = np.zeros(proposals.size, np.int32)
    large_first = sorted(proposals, key=lambda p: (-p.area, p.box[1], p.box[0], p.box[2:], p.counts.tolist()))
    for number, proposal in enumerate(large_first, 1):
        x, y, width, height = proposal.box
        window = np.s_[y : y + height, x : x + width]
        out[window][proposal.mask()[window]] = number
    return out


def painted(labelled: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (h, w, 3) of labels (h, w): a random colour each, and black where there is none."""
    colours = rng.integers(32, 256, (int(labelled.max(initial=0)) + 1, CHANNELS), np.uint8)
    colours[0] = 0
    return colours[labelled]
