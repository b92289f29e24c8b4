"""Coarse masks as they really are, made from the truth.

Every generator takes a truth (H, W) bool and a `numpy.random.Generator` and returns a mask (H, W) float32 in [0, 1];
the truth is read, never written. Those that are a network's output ("network", "missing", "extra", "shifted", "blocky")
are binary seven times in ten, as they are in files, else soft; "cascade" is soft; the others are binary. Lengths are in
px of the truth, which may be a crop.

Where the truth has an object, some of the mask is above one half, but for "network" and "contour". Where the truth is
empty, "contour", "shifted", "polygon", "box" and "exact" are, too; the others may see an object, "extra" mostly does.

IoU ranges are those with truths of real pictures, objects some 50 px wide and more. Where an object is thin, errors are
limited by its half width: its area over the length of its contour, half the width of a ribbon.
"""

import math
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from refine.errors import OptionError, shown

Mask = NDArray[np.bool_]
Soft = NDArray[np.float32]


def network_like(truth: Mask, rng: np.random.Generator, *, cell: float | None = None) -> Soft:
    """What a segmentation network predicts: low resolution, smooth errors, bias, parts missing and parts too many.

    cell: px of the picture per cell of the network's output; drawn log-uniformly from 3 to 28 by default.
    IoU with the truth mostly from 0.6 to 0.98.
    """
    pitch = cell if cell is not None else _log_uniform(rng, 3, 28)
    p = _enlarged(_predicted(truth, rng, pitch), truth)
    if rng.random() < 0.35:
        p = _with_blobs(p, truth, rng)
    return saved(p, rng)


def contour_perturbed(truth: Mask, rng: np.random.Generator, *, lowest_iou: float = 0.8) -> Soft:
    """The published perturbation: contour vertices removed and subsampled, then random dilations and erosions.

    Stops at an IoU with the truth drawn from [lowest_iou, 1] (CascadePSP, arXiv 2005.02551, section 3.4; used by CRM).
    """
    target = rng.uniform(lowest_iou, 1.0)
    contours, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros(truth.shape, np.uint8)
    kept = []
    step = int(rng.integers(2, 14))
    for contour in contours:
        points = contour[:: max(1, min(step, len(contour) // 4))]
        points = points[rng.random(len(points)) > 0.1]
        if len(points) >= 3:
            kept.append(points)
    if kept:
        cv2.drawContours(mask, kept, -1, 1, cv2.FILLED)
    truth_area = np.count_nonzero(truth)
    for _ in range(40):
        inside = np.count_nonzero(truth & (mask > 0))
        union = truth_area + np.count_nonzero(mask) - inside
        if union == 0 or inside / union <= target:
            break
        size = int(rng.integers(2, 9))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        y, x = (int(rng.integers(0, side)) for side in truth.shape)
        reach = int(rng.integers(8, max(9, max(truth.shape) // 2)))
        window = np.s_[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach]
        change = cv2.dilate if rng.random() < 0.5 else cv2.erode
        mask[window] = change(np.ascontiguousarray(mask[window]), kernel)
    return mask.astype(np.float32)


def parts_missing(truth: Mask, rng: np.random.Generator, *, most: float = 0.4) -> Soft:
    """A network's output that lacks one to six whole parts: limbs, objects among several, patches of the surface.

    most: the largest share of the truth's area that can be missing; a tenth of it and more is drawn log-uniformly. A
    limb is what an opening by a disc removes, a patch is where smooth noise is high. IoU with the truth from 0.55 to
    0.99.
    """
    area = int(np.count_nonzero(truth))
    depth = _distance(~truth)
    radius = rng.uniform(0.15, 0.6) * min(float(depth.max()), min(truth.shape) / 2)
    parts = truth & (_distance(depth > radius) > radius)
    if rng.random() < 0.6:
        noise = _noise(truth, rng, _log_uniform(rng, 0.1, 0.6) * math.sqrt(max(area, 1)))
        parts |= truth & (noise > rng.uniform(0.7, 1.5))
    _, objects, stats, _ = cv2.connectedComponentsWithStats(truth.astype(np.uint8))
    parts |= truth & (stats[objects, cv2.CC_STAT_AREA] <= most * area)
    return _output(truth & ~_some(parts, rng, 6, _log_uniform(rng, 0.1, 1) * most * area), truth, rng)


def extra_parts(truth: Mask, rng: np.random.Generator, *, most: float = 0.4) -> Soft:
    """A network's output with one to six parts too many: leaks beyond the contour, or blobs anywhere on the ground.

    most: the largest area that can be added, as a share of the truth's, or of a tenth of the picture where the truth is
    empty; a tenth of it and more is drawn log-uniformly. Parts are where smooth noise is high, which for leaks counts
    for less with the distance from the truth. IoU with the truth mostly from 0.6 to 0.99.
    """
    area = np.count_nonzero(truth) or truth.size / 10
    noise = _noise(truth, rng, _log_uniform(rng, 0.1, 0.7) * math.sqrt(area))
    if truth.any() and rng.random() < 0.6:
        noise -= _distance(truth) / np.float32(rng.uniform(0.05, 0.3) * math.sqrt(area))
    parts = ~truth & (noise > rng.uniform(0.6, 1.6))
    return _output(truth | _some(parts, rng, 6, _log_uniform(rng, 0.1, 1) * most * area), truth, rng)


def shifted(truth: Mask, rng: np.random.Generator) -> Soft:
    """The truth displaced as a whole and bent: a mask of another frame, of another sensor, of careless resampling.

    Displaced by 0.3 % to 3 % of the longer side, at most 0.7 half widths; what lies beyond the border is as at the
    border. Soft masks are blurred. IoU with the truth from 0.6 to 0.99. The sides are at most 32,767 px (OpenCV's
    limit).
    """
    height, width = truth.shape
    limit = _half_width(truth)
    length = min(_log_uniform(rng, 0.003, 0.03) * max(truth.shape), 0.7 * limit)
    angle = rng.uniform(0, 2 * np.pi)
    bend = np.float32(length * rng.uniform(0, 0.6))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y += np.float32(length * math.sin(angle)) + bend * _noise(truth, rng, rng.uniform(0.1, 0.5) * max(truth.shape))
    x += np.float32(length * math.cos(angle)) + bend * _noise(truth, rng, rng.uniform(0.1, 0.5) * max(truth.shape))
    p = cv2.remap(truth.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    p = cv2.GaussianBlur(p, (0, 0), max(0.1, min(rng.uniform(0.5, 3.0), 0.5 * limit)))
    return saved(_not_lost(np.asarray(p, np.float32), truth), rng)


def blocky(truth: Mask, rng: np.random.Generator) -> Soft:
    """A network's output enlarged by nearest neighbours, so that its edges are stairs.

    Stairs of 3 to 28 px, at most 1.5 half widths. IoU with the truth mostly from 0.65 to 0.98.
    """
    cell = min(_log_uniform(rng, 3, 28), 1.5 * _half_width(truth))
    p = _predicted(truth, rng, max(1.0, cell))
    return saved(_not_lost(_enlarged(p, truth, cv2.INTER_NEAREST), truth), rng)


def cascade_like(truth: Mask, rng: np.random.Generator) -> Soft:
    """A soft mask such as an earlier scale of the cascade hands to a later one: smooth, slightly wrong, mostly sure.

    Either the truth or one with errors that the earlier scale left ("missing", "extra", "shifted"), reduced by area to
    a half, a fourth or an eighth (at most a half width), made probabilities with smooth errors of the logit and patches
    of less confidence, and enlarged bilinearly. IoU with the truth mostly from 0.7 to 0.99.
    """
    left = str(rng.choice(["", "missing", "extra", "shifted"], p=[0.4, 0.2, 0.2, 0.2]))
    base = GENERATORS[left](truth, rng) > 0.5 if left else truth
    reduction = min(float(rng.choice([2, 4, 8], p=[0.6, 0.3, 0.1])), max(1.0, _half_width(base)))
    low = cv2.GaussianBlur(_reduced(base, reduction), (0, 0), rng.uniform(0.2, 0.7))
    longest = max(low.shape)
    confidence = 0.25 + 0.75 * expit(2.5 + 1.5 * _noise(low, rng, _log_uniform(rng, 0.03, 0.3) * longest))
    error = rng.uniform(0, 1.2) * _noise(low, rng, _log_uniform(rng, 0.02, 0.2) * longest)
    p = expit(confidence * (rng.uniform(4.5, 10) * (2 * low - 1) + error))
    return _not_lost(_enlarged(np.asarray(p, np.float32), truth), truth)


def clicked_polygon(truth: Mask, rng: np.random.Generator) -> Soft:
    """A polygon clicked by hand around each object, binary.

    Each contour, a little smoothed, by Douglas and Peucker with a tolerance of 1 to 3 px or 0.5 % to 2 % of its
    bounding box's longer side, whichever is more, less where the object is small or thin; the vertices miss by a third
    of the tolerance (standard deviation). Specks and holes of less than the tolerance squared are left out, and three
    holes in ten. IoU with the truth from 0.75 to 0.99.
    """
    pixels, share = rng.uniform(1, 3), rng.uniform(0.005, 0.02)
    smooth = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), max(0.1, min(pixels, 0.5 * _half_width(truth))))
    contours, tree = cv2.findContours((smooth > 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(contour) for contour in contours]
    mask = np.zeros(truth.shape, np.uint8)
    polygons: dict[int, list[NDArray[np.int32]]] = {}  # by the outer contour, its holes with it
    for i, contour in enumerate(contours):
        outer = int(tree[0, i, 3])
        widest = max(0.5 * areas[i] / max(1.0, cv2.arcLength(contour, True)), 0.03 * math.sqrt(areas[i]))
        tolerance = min(max(pixels, share * max(cv2.boundingRect(contour)[2:])), widest)
        speck = areas[i] < max(pixels, tolerance) ** 2
        if (speck and areas[i] < max(areas)) or (outer >= 0 and rng.random() < 0.3):
            continue
        points = cv2.approxPolyDP(contour, tolerance, True).astype(np.float64)
        points += rng.normal(0, tolerance / 3, points.shape)
        polygons.setdefault(outer if outer >= 0 else i, []).append(np.rint(16 * points).astype(np.int32))
    for rings in polygons.values():
        cv2.fillPoly(mask, rings, 1, shift=4)
    return _not_lost(mask.astype(np.float32), truth)


def bounding_box(truth: Mask, rng: np.random.Generator) -> Soft:
    """The bounding box of each object, each of its four sides off by -3 % (inwards) to 8 % of the box, binary.

    Objects of less than a hundredth of the largest have none. IoU with the exact boxes of the others from 0.7 to 1;
    with the truth it is what the object fills of its box.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(truth.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    boxes = stats[1:][areas >= 0.01 * areas.max(initial=0)]
    first, size = boxes[:, :2], boxes[:, 2:4]  # x, y and width, height
    sides = np.array(truth.shape[::-1])
    low = np.rint(first - size * rng.uniform(-0.03, 0.08, size.shape)).astype(int).clip(0, sides - 1)
    high = np.rint(first + size * (1 + rng.uniform(-0.03, 0.08, size.shape))).astype(int).clip(low + 1, sides)
    mask = np.zeros(truth.shape, np.float32)
    for (left, top), (right, bottom) in zip(low, high, strict=True):
        mask[top:bottom, left:right] = 1
    return mask


def nearly_exact(truth: Mask, rng: np.random.Generator) -> Soft:
    """The truth, or off by one pixel: grown, shrunk, or grown here and shrunk there, binary.

    Teaches a refiner to leave a good mask alone. Parts less than 3 px wide are not shrunk. IoU with the truth from 0.85
    to 1.
    """
    kind = rng.choice(["truth", "grown", "shrunk", "both"], p=[0.4, 0.15, 0.15, 0.3])
    mask, square = truth.astype(np.uint8), np.ones((3, 3), np.uint8)
    grown, wide = cv2.dilate(mask, square), cv2.morphologyEx(mask, cv2.MORPH_OPEN, square)
    inner = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    shrunk = np.where(wide > 0, inner, mask)
    if kind == "both":
        noise = _noise(truth, rng, _log_uniform(rng, 0.03, 0.3) * max(truth.shape))
        return np.where(noise > 0, grown, shrunk).astype(np.float32)
    return {"truth": mask, "grown": grown, "shrunk": shrunk}[str(kind)].astype(np.float32)


GENERATORS: dict[str, Callable[[Mask, np.random.Generator], Soft]] = {
    "network": network_like,
    "contour": contour_perturbed,
    "missing": parts_missing,
    "extra": extra_parts,
    "shifted": shifted,
    "blocky": blocky,
    "cascade": cascade_like,
    "polygon": clicked_polygon,
    "box": bounding_box,
    "exact": nearly_exact,
}

GIVEN = "given"  # a mask beside the picture, of a real network: see `refine.training.folders.survey`

DEFAULT_MIX: dict[str, float] = {"network": 0.75, "contour": 0.25}


def random_coarse(truth: Mask, rng: np.random.Generator, mix: Mapping[str, float] = DEFAULT_MIX) -> Soft:
    """A coarse mask of a kind drawn by the shares in ``mix``, one that :func:`check_mix` accepts.

    The same for the same ``rng`` and shares, in whatever order they are listed. A share of `GIVEN` is not looked at.
    """
    kinds = [kind for kind in GENERATORS if mix.get(kind, 0) > 0]
    ends = np.cumsum([mix[kind] for kind in kinds])
    return GENERATORS[kinds[int(np.searchsorted(ends[:-1] / ends[-1], rng.random(), "right"))]](truth, rng)


MOST_SHARE = 1_000_000


def check_mix(mix: Mapping[str, float]) -> None:
    """Raises `OptionError` unless ``mix`` gives known kinds of coarse masks shares of at least 0, one of them above."""
    kinds = (*GENERATORS, GIVEN)
    accepted = f"give shares from 0 to {MOST_SHARE:,}, one of them above 0, for any of {', '.join(kinds)}"
    unknown = [str(kind) for kind in mix if kind not in kinds]
    if unknown:
        raise OptionError(f"coarse masks of kind {', '.join(unknown)} are unknown; {accepted}")
    for kind, share in mix.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 <= share <= MOST_SHARE:
            raise OptionError(f"the share {shown(share)} of coarse masks of kind {kind} is not possible; {accepted}")
    if not any(mix.values()):
        raise OptionError(f"no kind of coarse mask has a share in {dict(mix)}; {accepted}")


# A network's output


def _predicted(truth: Mask, rng: np.random.Generator, cell: float) -> Soft:
    """Map of ``cell`` px per px, blurred, with smooth noise (stronger at the contour) and bias; about [0, 1]."""
    p = np.asarray(cv2.GaussianBlur(_reduced(truth, cell), (0, 0), float(rng.uniform(0.3, 1.3))), np.float32)
    white = np.asarray(rng.standard_normal(p.shape), np.float32)
    noise: Soft = np.asarray(cv2.GaussianBlur(white, (0, 0), float(rng.uniform(0.6, 2.5))), np.float32)
    noise *= np.float32(rng.uniform(0, 0.22) / max(float(noise.std()), 1e-6))
    return p + noise * (0.25 + 4 * np.clip(p * (1 - p), 0, None)) + np.float32(rng.normal(0, 0.08))


def _with_blobs(p: Soft, truth: Mask, rng: np.random.Generator) -> Soft:
    """``p`` with one to three ellipses near the truth's contour missing or added."""
    height, width = truth.shape
    inner = cv2.erode(truth.astype(np.uint8), np.ones((3, 3), np.uint8))
    ys, xs = np.nonzero(truth & (inner == 0))
    if not ys.size:
        return p
    p = p.copy()
    for _ in range(int(rng.integers(1, 4))):
        i = int(rng.integers(ys.size))
        axes = (int(rng.uniform(0.02, 0.12) * width) + 1, int(rng.uniform(0.02, 0.12) * height) + 1)
        value = 0.0 if rng.random() < 0.5 else 1.0
        cv2.ellipse(p, (int(xs[i]), int(ys[i])), axes, float(rng.uniform(0, 180)), 0, 360, value, -1)
    return p


def saved(p: Soft, rng: np.random.Generator) -> Soft:
    """``p`` as it comes in a file: thresholded, or three times in ten as a probability."""
    if rng.random() < 0.7:
        return (p > 0.5).astype(np.float32)
    sharpness = rng.uniform(3, 12)
    return np.asarray(expit(sharpness * (p - 0.5)), np.float32)


def _output(seen: Mask, truth: Mask, rng: np.random.Generator) -> Soft:
    """A network's output where what it sees is ``seen``; its cells are 2 to 16 px, at most a half width."""
    cell = max(1.0, min(_log_uniform(rng, 2, 16), _half_width(truth)))
    return saved(_not_lost(_enlarged(_predicted(seen, rng, cell), truth), seen), rng)


# Parts of the above


def _reduced(mask: Mask, cell: float) -> Soft:
    """``mask`` by area at ``cell`` px per px, at least 2 x 2."""
    height, width = mask.shape
    low = (max(2, round(width / cell)), max(2, round(height / cell)))  # cv2 sizes are (width, height)
    return np.asarray(cv2.resize(mask.astype(np.float32), low, interpolation=cv2.INTER_AREA), np.float32)


def _enlarged(p: Soft, truth: Mask, how: int = cv2.INTER_LINEAR) -> Soft:
    return np.asarray(cv2.resize(p, truth.shape[::-1], interpolation=how), np.float32)


def _not_lost(p: Soft, mask: Mask) -> Soft:
    """``p``, or ``mask`` where a mask that has an object would have none."""
    return p if not mask.any() or (p > 0.5).any() else mask.astype(np.float32)


def _half_width(mask: Mask) -> float:
    """Area over length of the contour, in px: half the width of a ribbon; infinite where there is no contour."""
    length = sum(np.count_nonzero(np.diff(mask, axis=axis)) for axis in (0, 1))
    return np.count_nonzero(mask) / length if length else math.inf


def _distance(mask: Mask) -> Soft:
    """Distance in px of each pixel from ``mask``; from no mask it is more than any in a picture."""
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def _noise(like: NDArray[np.generic], rng: np.random.Generator, length: float) -> Soft:
    """Smooth noise of ``like``'s shape, mean 0 and variance 1, that varies over ``length`` px and, less, finer."""
    noise = np.zeros(like.shape, np.float32)
    for weight, step in ((1.0, length), (0.4, length / 2.5)):
        grid = rng.standard_normal([min(side, int(side / step) + 2) for side in like.shape], np.float32)
        noise += weight * cv2.resize(grid, like.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return (noise - noise.mean()) / max(noise.std(), np.float32(1e-6))


def _some(parts: Mask, rng: np.random.Generator, count: int, area: float) -> Mask:
    """One to ``count`` of the connected ``parts``, together at most ``area`` px, large ones more likely than small."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(parts.astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA]
    fitting = 1 + np.flatnonzero(areas[1:] <= area)
    chosen = np.zeros(len(areas), bool)
    if fitting.size:
        likely = np.sqrt(areas[fitting])
        number = min(fitting.size, int(rng.integers(1, count + 1)))
        drawn = rng.choice(fitting, number, replace=False, p=likely / likely.sum())
        chosen[drawn[np.cumsum(areas[drawn]) <= area]] = True
    return chosen[labels]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
