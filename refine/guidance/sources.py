"""Sources of proposals by name."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine.config import SOURCES, source_and_options
from refine.errors import OptionError, one_of
from refine.guidance.cache import Cache, Cached, Encoder, encoder_of
from refine.guidance.proposals import Proposals, ProposalSource
from refine.guidance.superpixels import Felzenszwalb, FelzenszwalbOptions, Slic, SlicOptions
from refine.guidance.v2_2 import Ask, answered
from refine.io import PathLike


def open_source(
    name: str,
    *,
    sam_checkpoint: PathLike | None = None,
    device: str = "auto",
    options: Mapping[str, float] | None = None,
) -> ProposalSource:
    """The source of a name, which is never replaced by another.

    sam_checkpoint: file of SAM's weights; None is the downloaded one. device: where SAM runs. options: the source's
    own, see its module.

    Raises OptionError: an unknown name or option, or a checkpoint for a source that has none.
    Raises WeightsError: SAM's weights are missing, damaged or of another type.
    """
    one_of("source", name, SOURCES)
    given: dict[str, Any] = dict(options or {})
    if name.startswith("sam"):
        from refine.guidance.sam import SamOptions, SamProposals, SegmentAnything  # torch

        chosen = SamOptions().but(name, **given)
        if name == "sam" and sam_checkpoint is None:
            raise OptionError(
                "source='sam' is the type that a checkpoint has; give one (--sam-checkpoint FILE), or a type"
            )
        return SamProposals(
            SegmentAnything(sam_checkpoint, name=None if name == "sam" else name, device=device), chosen
        )
    if sam_checkpoint is not None:
        raise OptionError(f"sam_checkpoint={str(sam_checkpoint)!r} means nothing to {name}; leave it out")
    if device not in ("auto", "cpu"):
        raise OptionError(f"device={device!r} is not possible with {name}; give auto or cpu")
    if name == "felzenszwalb":
        return Felzenszwalb(FelzenszwalbOptions().but(name, **given))
    return Slic(SlicOptions().but(name, **given))


def kept_source(proposals: str, *, sam_checkpoint: PathLike | None = None, device: str = "auto") -> Cached:
    """The source that `refine.config.Options.proposals` names, whose proposals are kept on disk; raises as above."""
    name, options = source_and_options(proposals)
    where = {"device": device} if name.startswith("sam") else {}  # the others run on a CPU wherever networks do
    return Cached(open_source(name, sam_checkpoint=sam_checkpoint, options=options, **where), Cache())


def embedded(source: ProposalSource | Encoder, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(256, 64, 64) of SAM's encoder, of a picture (H, W, 3): by an encoder, or by the one of a source of proposals.

    Raises OptionError: the source has none.
    """
    if isinstance(source, Cached):
        return source.cache.embedding(encoder_of(source.source), image)
    return encoder_of(source).embedding(image)


def asked(source: ProposalSource | Proposals, image: NDArray[np.uint8]) -> tuple[Ask, tuple[int, int]]:
    """What answers groups of points in a picture (H, W, 3), and the size (h, w) of its masks.

    SAM itself; for a source that takes no points, its proposals.
    """
    if isinstance(source, Proposals):
        return partial(answered, source), source.size
    found = source.source if isinstance(source, Cached) else source
    if hasattr(found, "sam"):
        embedding = partial(source.cache.embedding, found.sam) if isinstance(source, Cached) else None
        prompted = found.sam.prompted(image, embedding)
        scale = np.array(image.shape[:2]) / prompted.size

        def ask(groups: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
            answers = [prompted.mask(points) for points in (groups + 0.5) * scale - 0.5]
            masks, confidences = zip(*answers, strict=True) if answers else ((), ())
            return np.array(masks, bool).reshape(-1, *prompted.size), np.array(confidences, np.float64)

        return ask, prompted.size
    proposals = source.propose(image)
    return partial(answered, proposals), proposals.size
