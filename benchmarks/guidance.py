"""SAM-SR v1: its thresholds by a sweep, and what it gains where its proposals are right.

    python -m benchmarks.guidance sweep --data FOLDER    # of sets to train on: IoU of what v1 refines, by thresholds
    python -m benchmarks.guidance judge --data FOLDER    # of held-out sets: refined without guidance and with it
    python -m benchmarks.guidance judge --data FOLDER --proposals sam-vit-b    # with Segment Anything's as well

Coarse masks lack whole parts or have some too many (`refine.training.coarse`). Two sources: an oracle, whose proposals
are parts of the truth and of the ground, and "felzenszwalb", which knows no objects. For the rule of sparsity a third,
"solid": an oracle that fills the gaps of objects, as SAM does.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.engine import Refiner
from refine.errors import FileError, RefineError
from refine.guidance import Proposal, Proposals, ProposalSource
from refine.guidance.proposals import at_size
from refine.guidance.sources import kept_source
from refine.guidance.superpixels import Felzenszwalb
from refine.guidance.v1 import covered, sparsity_of, without_gaps
from refine.io import read_image
from refine.metrics import iou, mean_boundary_accuracy
from refine.training.coarse import GENERATORS
from refine.training.folders import read_truth, survey

KINDS = ("missing", "extra", "network")
COVERAGES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DEFORMATIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
LEAST = 0.0005  # of a picture: smaller pieces are no proposals of the oracle

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Case:
    """A picture (H, W, 3), its truth and a coarse mask (H, W), and the proposals of each source."""

    name: str
    kind: str
    image: NDArray[np.uint8]
    truth: Mask
    coarse: Mask
    sources: dict[str, Proposals]


def cases(data: Path, each: int, seed: int, more: ProposalSource | None = None) -> Iterator[Case]:
    """``each`` pictures of every set in ``data``, spread over it, with a coarse mask of each kind.

    more: a source beside the oracles and "felzenszwalb".

    Raises `FileError` for a folder without sets, and for what cannot be read in them.
    """
    sets = sorted(data.glob("*/"))
    if not sets:
        raise FileError(f"{str(data)!r} has no folders of pictures; give the folder that holds the sets")
    for folder in sets:
        pairs = survey(folder).pairs
        for i in sorted({round(k * (len(pairs) - 1) / max(1, each - 1)) for k in range(each)}):
            image = read_image(pairs[i].image)
            truth = read_truth(pairs[i], image.shape[:2]) > 127
            if not truth.any() or truth.all():
                continue
            segments = Felzenszwalb().propose(image)
            solid = without_gaps(truth)
            sources = {"oracle": oracle(segments, truth), "felzenszwalb": segments, "solid": oracle(segments, solid)}
            if more is not None:
                sources[more.name] = more.propose(image)
            for number, kind in enumerate(KINDS):
                rng = np.random.default_rng((seed, i, number))
                coarse = GENERATORS[kind](truth, rng) > 0.5
                yield Case(f"{folder.name}/{pairs[i].image.stem}", kind, image, truth, coarse, sources)


def oracle(segments: Proposals, truth: Mask) -> Proposals:
    """Proposals that know a truth (H, W): it, its components, and every segment's parts inside and outside of it."""
    small = reduced(truth, segments.size)
    count, components = cv2.connectedComponents(small.view(np.uint8))
    found = [small, *(components == label for label in range(1, count))]
    for segment in segments:
        mask = segment.mask()
        found += [mask & small, mask & ~small]
    return Proposals(
        tuple(Proposal.of(mask) for mask in found if np.count_nonzero(mask) >= LEAST * mask.size), small.shape, "oracle"
    )


def reduced(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask (H, W) at ``size`` (h, w)."""
    return np.asarray(at_size(mask.astype(np.float32), size) > 0.5, bool)


def sweep(found: Sequence[Case]) -> str:
    """Mean gain of IoU, in points, of what v1 refines over the coarse mask: tables of the thresholds."""
    lines = []
    for source in ("oracle", "felzenszwalb"):
        for kind in KINDS:
            gains = np.zeros((len(COVERAGES), len(DEFORMATIONS)))
            chosen = [case for case in found if case.kind == kind]
            for case in chosen:
                proposals = case.sources[source]
                truth, coarse = (reduced(m, proposals.size) for m in (case.truth, case.coarse))
                before = iou(coarse, truth)
                for i, coverage in enumerate(COVERAGES):
                    v1 = covered(proposals, coarse, coverage=coverage, sparsity=1, deformation=1)
                    gain = iou(v1.mask, truth) - before
                    gains[i] += [gain if v1.deformation <= limit else 0 for limit in DEFORMATIONS]
            head = f"{source}, {kind} ({len(chosen)} masks)"
            lines += ["", f"| {head}: coverage | " + " | ".join(f"deformation {d:g}" for d in DEFORMATIONS) + " |"]
            lines.append("|---" * (1 + len(DEFORMATIONS)) + "|")
            for coverage, row in zip(COVERAGES, 100 * gains / max(1, len(chosen)), strict=True):
                lines.append(f"| {coverage:g} | " + " | ".join(f"{gain:+.2f}" for gain in row) + " |")
    return "\n".join([*lines, "", _sparsities(found)])


def _sparsities(found: Sequence[Case]) -> str:
    """What the rule of sparsity keeps from v1: masks above each threshold, and v1's gain there."""
    lines = ["| sparsity above | masks | oracle | felzenszwalb | solid |", "|---|---|---|---|---|"]
    values = []
    for case in found:
        row = []
        for proposals in case.sources.values():
            truth, coarse = (reduced(m, proposals.size) for m in (case.truth, case.coarse))
            v1 = covered(proposals, coarse, coverage=0.7, sparsity=1, deformation=0.3)
            row.append(100 * (iou(v1.mask, truth) - iou(coarse, truth)))
        values.append((sparsity_of(coarse), *row))
    table = np.array(values)
    for limit in SPARSITIES:
        above = table[table[:, 0] > limit]
        if len(above):
            means = " | ".join(f"{mean:+.2f}" for mean in above[:, 1:].mean(0))
            lines.append(f"| {limit:g} | {len(above)} | {means} |")
    return "\n".join(lines)


def judge(found: Iterator[Case]) -> str:
    """Mean IoU / mBA in % by kind of mask: the coarse one, refined, and refined with v1 of each source but "solid"."""
    refiner = Refiner()
    names: list[str] = []
    figures: dict[str, list[list[tuple[float, float]]]] = {}
    for case in found:
        results = [case.coarse, refiner.refine(case.image, case.coarse).mask]
        names = [name for name in case.sources if name != "solid"]
        for name in names:
            proposals = case.sources[name]
            results.append(refiner.refine(case.image, case.coarse, guidance="sam-sr-v1", proposals=proposals).mask)
        scores = [(iou(mask, case.truth), mean_boundary_accuracy(mask, case.truth)) for mask in results]
        figures.setdefault(case.kind, []).append(scores)
    heads = ["coarse masks", "pictures", "coarse", "crm-s", *(f"v1, {name}" for name in names)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for kind, rows in figures.items():
        means = 100 * np.mean(rows, 0)
        lines.append(f"| {kind} | {len(rows)} | " + " | ".join(f"{a:.2f}/{b:.2f}" for a, b in means) + " |")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("sweep", "judge"))
    parser.add_argument("--data", type=Path, required=True, help="folder of sets of pictures with truths")
    parser.add_argument("--each", type=int, default=8, help="pictures of a set (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--proposals", help="judge: a source more, as the option of that name: sam-vit-b, slic, ...")
    parser.add_argument("--sam-checkpoint", type=Path, help="Segment Anything's weights, instead of downloaded ones")
    given = parser.parse_args()
    if given.what == "sweep" and given.proposals is not None:
        parser.error("--proposals is of judge; leave it out")
    try:
        more = None if given.proposals is None else kept_source(given.proposals, sam_checkpoint=given.sam_checkpoint)
        found = cases(given.data, given.each, given.seed, more)
        print(sweep(list(found)) if given.what == "sweep" else judge(found))
    except RefineError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
