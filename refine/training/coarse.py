"""Coarse masks as they really are, made from the truth.

Every generator takes a truth (H, W) bool and a `numpy.random.Generator` and returns a mask (H, W) float32 in [0, 1].
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Mask = NDArray[np.bool_]
Soft = NDArray[np.float32]


def network_like(truth: Mask, rng: np.random.Generator, *, cell: float | None = None) -> Soft:
    """What a segmentation network predicts: low resolution, smooth errors, bias, parts missing and parts too many.

    cell: px of the picture per cell of the network's output; drawn log-uniformly from 3 to 28 by default.
    """
    height, width = truth.shape
    pitch = cell if cell is not None else float(np.exp(rng.uniform(np.log(3), np.log(28))))
    low = (max(2, round(width / pitch)), max(2, round(height / pitch)))  # cv2 sizes are (width, height)
    p = cv2.resize(truth.astype(np.float32), low, interpolation=cv2.INTER_AREA)
    p = cv2.GaussianBlur(p, (0, 0), float(rng.uniform(0.3, 1.3)))
    white = np.asarray(rng.standard_normal(p.shape), np.float32)
    noise: Soft = np.asarray(cv2.GaussianBlur(white, (0, 0), float(rng.uniform(0.6, 2.5))), np.float32)
    noise *= np.float32(rng.uniform(0, 0.22) / max(float(noise.std()), 1e-6))
    p = p + noise * (0.25 + 4 * np.clip(p * (1 - p), 0, None)) + np.float32(rng.normal(0, 0.08))
    p = cv2.resize(p, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.35:
        p = _with_blobs(p, truth, rng)
    if rng.random() < 0.7:
        return (p > 0.5).astype(np.float32)
    sharpness = rng.uniform(3, 12)
    return np.asarray(expit(sharpness * (p - 0.5)), np.float32)


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


GENERATORS: dict[str, Callable[[Mask, np.random.Generator], Soft]] = {
    "network": network_like,
    "contour": contour_perturbed,
}


def random_coarse(truth: Mask, rng: np.random.Generator) -> Soft:
    """A coarse mask of a kind drawn by ``rng``: network-like three times in four."""
    return GENERATORS["network" if rng.random() < 0.75 else "contour"](truth, rng)
