"""A first call that is not timed: what is slow once (kernels, libraries) is done before."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from refine.config import EMBEDDED
from refine.embedding import SHAPE

if TYPE_CHECKING:
    from refine.engine import Refiner
    from refine.methods import MethodRefiner

SIZE: Final = (327, 490)  # px: so large that crm-s runs two scales, the second of which has a mask refined before


def warm_up(refiner: "Refiner | MethodRefiner") -> None:
    """Refine a square in noise.

    A guided refiner is given nothing to be guided by: Segment Anything's view of noise is not worth its time, nor a
    place in the cache.
    """
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    square = np.zeros(SIZE, np.float32)
    square[82:245, 122:368] = 1
    refiner.refine(noise, square, **_nothing(getattr(refiner, "guidance", None)))


def _nothing(guidance: str | None) -> dict[str, Any]:
    """What stands in for all that guides, by the name that `Refiner.refine` has for it."""
    if guidance is None:
        return {}
    if guidance in EMBEDDED:
        return {"embedding": np.zeros(SHAPE, np.float32)}
    from refine.guidance import Proposals

    return {"proposals": Proposals((), SIZE, "none")}
