"""What a version of SAM-SR makes of a picture and its coarse mask, as the cascade reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refine.config import Options
from refine.embedding import Embedding
from refine.guidance import pictures
from refine.guidance.cache import Encoder
from refine.guidance.proposals import Proposals, ProposalSource, at_size, reduced_size
from refine.guidance.sources import asked, embedded
from refine.guidance.v1 import covered, sparsity_of, too_sparse
from refine.guidance.v2_1 import labels, painted
from refine.guidance.v2_2 import channel, point_groups
from refine.planes import Beside, Held, Plane, Repeated, at_centres

Picture = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Guided:
    """What is refined instead of a pair.

    image: (H, W, 3) or with the channels of guidance behind the colours; mask: (H, W). record: what the report says.
    skipped: why guidance was left out, or "". pictures: (h, w, 3) RGB of what guidance saw, by name, if they were
    asked for. embedding: of the picture, for a deep branch.
    """

    image: Plane
    mask: Plane
    record: dict[str, Any]
    skipped: str = ""
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    embedding: Embedding | None = None


def by_proposals(
    image: Picture, mask: NDArray[np.float32], source: ProposalSource | Proposals, options: Options
) -> Guided:
    """SAM-SR v1 and v2.1 of a picture (H, W, 3) and its coarse mask (H, W) in [0, 1], by ``options.guidance``.

    source: the picture's proposals, or what finds them; it is not asked where a mask is too sparse for v1, unless
    pictures are kept.
    """
    size = mask.shape
    if not isinstance(source, Proposals) and options.guidance == "sam-sr-v1" and not options.keep_guidance:
        gaps = sparsity_of(at_size(mask, reduced_size(size)) > 0.5)
        if gaps > options.sparsity:
            record = {"version": options.guidance, "source": source.name, "sparsity": round(gaps, 4)}
            skipped = too_sparse(gaps, options.sparsity)
            return Guided(Held(image), Held(mask), record | {"skipped": skipped}, skipped)
    proposals = source if isinstance(source, Proposals) else source.propose(image)
    record = {"version": options.guidance, "source": proposals.source, "proposals": len(proposals)}
    if options.guidance == "sam-sr-v2.1":
        seen = painted(labels(proposals), np.random.default_rng(options.seed))
        shown = {"painted": seen} if options.keep_guidance else {}
        return Guided(_with_channels(image, seen), Held(mask), record, pictures=shown)
    small = at_size(mask, proposals.size) > 0.5
    found = covered(
        proposals, small, coverage=options.coverage, sparsity=options.sparsity, deformation=options.deformation
    )
    record |= {
        "kept": int(found.kept.sum()),
        "sparsity": round(found.sparsity, 4),
        "deformation": round(found.deformation, 4),
        "skipped": found.skipped,
    }
    shown = {}
    if options.keep_guidance:
        below = at_size(image, proposals.size)
        shown = {
            "proposals": pictures.outlined(below, proposals),
            "kept": pictures.tinted(below, proposals, found.kept),
            "dropped": pictures.tinted(below, proposals, ~found.kept),
            "mask": pictures.compared(below, small, found.mask),
        }
    plane = Held(mask) if found.skipped else at_centres(Held(found.mask.astype(np.float32)), size)
    return Guided(Held(image), plane, record, found.skipped, shown)


def by_points(
    image: Picture, mask: NDArray[np.float32], source: ProposalSource | Proposals, options: Options
) -> Guided:
    """SAM-SR v2.2 of a picture (H, W, 3) and its coarse mask (H, W) in [0, 1]; sources as `asked` takes them."""
    ask, size = asked(source, image)
    small = at_size(mask, size) > 0.5
    groups = point_groups(small, options.groups, np.random.default_rng(options.seed))
    masks, confidences = ask(groups) if len(groups) else (np.zeros((0, *size), bool), np.zeros(0))
    grey = channel(masks, confidences, size)
    mean = float(np.mean(confidences)) if len(confidences) else 0.0
    name = source.source if isinstance(source, Proposals) else source.name
    record = {"version": options.guidance, "source": name, "groups": len(groups), "confidence": round(mean, 4)}
    shown = {}
    if options.keep_guidance:
        shown = {"points": pictures.dotted(at_size(image, size), groups), "merged": np.repeat(grey, 3, 2)}
    return Guided(_with_channels(image, grey), Held(mask), record, pictures=shown)


def by_embedding(
    image: Picture,
    mask: NDArray[np.float32],
    source: NDArray[np.float32] | Encoder | ProposalSource,
    options: Options,
) -> Guided:
    """SAM-SR v3 of a picture (H, W, 3) and its coarse mask (H, W) in [0, 1], by ``options.guidance``.

    source: the picture's features (256, 64, 64), or what gives them; see `embedded`.
    """
    features, name = (source, "given") if isinstance(source, np.ndarray) else (embedded(source, image), source.name)
    embedding = Embedding(features, image.shape[:2])
    record = {"version": options.guidance, "source": name}
    shown = {"embedding": pictures.coloured(embedding)} if options.keep_guidance else {}
    return Guided(Held(image), Held(mask), record, pictures=shown, embedding=embedding)


def _with_channels(image: Picture, channels: Picture) -> Plane:
    """A picture (H, W, 3) with channels (h, w, k) behind its own."""
    height, width = image.shape[:2]
    return Beside((Held(image), Repeated(Held(channels), (height, width))))
