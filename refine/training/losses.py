"""Losses between a predicted logit and the truth, by name, and weighted sums of them: ``bce + 0.5*l1``.

Every loss is a function of logits, of their probabilities and of the truth, each (B, 1, h, w), and returns a scalar. A
truth lies in [0, 1]; ``lovasz`` and ``boundary`` take it for 1 where it is above 1/2. All are 0 for a perfect binary
prediction (that is: as the logit grows) and positive otherwise.

Those of segmentation-models-pytorch, an optional package, are ratios of areas: they take the batch for one picture, so
that a crop with hardly any of the object in it does not count as much as a crop that is full of it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from math import isfinite
from types import ModuleType

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from refine.errors import OptionError, one_of, shown

# arXiv 2111.14482, section 3.4.
CRM = "bce + 0.5*l1 + 0.5*l2 + 2*gradient"


def _bce(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """Mean of -t log p - (1 - t) log(1 - p). For a soft truth the least value, at p = t, is its entropy and not 0."""
    return F.binary_cross_entropy_with_logits(logit, truth)


def _l1(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """Mean of |p - t|, in [0, 1]."""
    return (p - truth).abs().mean()


def _l2(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """Mean of (p - t)², in [0, 1]."""
    return (p - truth).square().mean()


def gradient_magnitude(x: Tensor) -> Tensor:
    """Sobel gradient magnitude of (B, 1, h, w), at the interior pixels: (B, 1, h - 2, w - 2)."""
    derivative = (
        torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=x.device, dtype=x.dtype) / 4
    )
    kernels = torch.stack((derivative, derivative.T)).unsqueeze(1)  # (2, 1, 3, 3)
    gradient = F.conv2d(x, kernels)
    return (gradient.square().sum(1, keepdim=True) + 1e-6).sqrt()  # 1e-6: the root has no derivative at 0


def _gradient(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of the Sobel gradient magnitudes, of crops of 3 x 3 px and more."""
    return (gradient_magnitude(p) - gradient_magnitude(truth)).abs().mean()


def _overlap(ratio: Callable[[Tensor, Tensor], Tensor], p: Tensor, truth: Tensor) -> Tensor:
    """A loss 1 - ratio of areas of the library, in [0, 1], and the mean of p where no picture holds any truth.

    There the ratio is 0 / 0 or 0, whatever p is, and the library returns 0 without a gradient: a prediction that
    should be empty and is not would go unpunished.
    """
    return torch.where(truth.sum() > 0, ratio(p, truth), p.mean())


def _dice(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """1 - 2 TP / (Σ p + Σ t) (V-Net, arXiv 1606.04797, section 3, with the sums themselves, not their squares).

    TP, here and below, is Σ min(p, t): p t for a binary truth, and a soft one is its own best prediction (arXiv
    2302.05666 and 2303.16296).
    """
    return _overlap(_smp().DiceLoss("binary", from_logits=False), p, truth)


def _jaccard(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """1 - TP / (Σ p + Σ t - TP), the soft intersection over union (arXiv 2302.05666)."""
    return _overlap(_smp().JaccardLoss("binary", from_logits=False), p, truth)


def _tversky(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """1 - TP / (TP + 0.3 FP + 0.7 FN), FP = Σ p - TP, FN = Σ t - TP (T(α, β) of arXiv 1706.05721, its best weights)."""
    return _overlap(_smp().TverskyLoss("binary", from_logits=False, alpha=0.3, beta=0.7), p, truth)


def _focal_tversky(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """The Tversky loss to the power of 3/4 (FTL of arXiv 1810.07842: 1/γ with γ = 4/3, the same weights).

    The library has this power too, but its derivative at 0 is infinite, and times the 0 of a saturated sigmoid no
    number. Here the power starts at 1e-6, whose own is taken off again: it moves the loss by 3e-5 at most.
    """
    start = 1e-6
    return (_tversky(logit, p, truth).clamp_min(0) + start) ** 0.75 - start**0.75


def _focal(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """Mean of -a (1 - q)² log q, q the probability of the true class, a = 1/4 for t = 1, 3/4 for t = 0.

    arXiv 1708.02002, eq. 5, with its best a and γ. Torchvision's, which is installed anyway. For a soft truth the least
    value is above 0.
    """
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(logit, truth, alpha=0.25, gamma=2.0, reduction="mean")


def _lovasz(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """The Lovász hinge: the Jaccard loss of the set of wrong pixels, extended to their hinge losses (arXiv 1705.08790).

    0 where every logit is on its side and at least 1 from 0; unbounded.
    """
    # The library reads labels alone: of a soft truth it would make neither class.
    return _smp().LovaszLoss("binary")(logit, (truth > 0.5).to(truth.dtype))


def distance_map(truth: Tensor) -> Tensor:
    """Signed distances to the contours of masks (B, 1, h, w), in px: below 0 inside, above 0 outside.

    The contour runs between the pixels: the pixels on both sides of it are half a pixel away, and the map of the
    opposite mask is the opposite map. (The authors of the boundary loss set the object's outermost pixels to 0, and so
    teach them nothing.) A mask that is all 0 or all 1 has no contour, and its map is 0. Computed on the CPU.
    """
    maps = np.zeros(truth.shape, np.float32)
    for mask, phi in zip((truth > 0.5).cpu().numpy()[:, 0], maps[:, 0], strict=True):
        if mask.any() and not mask.all():
            inside = mask.astype(np.uint8)
            # As exact as scipy's distance_transform_edt and about four times as fast, which a step of training feels.
            to_outside, to_inside = (
                cv2.distanceTransform(side, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (inside, 1 - inside)
            )
            phi[:] = np.where(mask, 0.5 - to_outside, to_inside - 0.5)
    return torch.from_numpy(maps).to(truth)


def _boundary(logit: Tensor, p: Tensor, truth: Tensor) -> Tensor:
    """Mean of φ (p - t), φ the truth's `distance_map`: half the squared distance of the contours, along each normal.

    arXiv 1812.07032, eq. 4. The loss of its eq. 5 leaves the constant φ t away: the gradient is the same, but the least
    value depends on the truth, where here it is 0. In px, and large beside the others: its authors begin with a weight
    of 0.01, and add it to a loss of areas, since a crop without a contour teaches it nothing.
    """
    return (distance_map(truth) * (p - (truth > 0.5).to(p.dtype))).mean()


Term = Callable[[Tensor, Tensor, Tensor], Tensor]

LOSSES: dict[str, Term] = {
    "bce": _bce,
    "l1": _l1,
    "l2": _l2,
    "gradient": _gradient,
    "dice": _dice,
    "jaccard": _jaccard,
    "tversky": _tversky,
    "focal": _focal,
    "focal-tversky": _focal_tversky,
    "lovasz": _lovasz,
    "boundary": _boundary,
    "boundary-linear": _boundary,
}
# Their weight rises linearly from 0 at the start of a run to the given one at its end: the strategy "increase" of arXiv
# 1812.07032, where the other losses keep theirs. All others are constant.
RISING = frozenset({"boundary-linear"})
_LONGEST = 1000  # characters of an expression; all losses with long weights take 300
_FROM_SMP = frozenset({"dice", "jaccard", "tversky", "focal-tversky", "lovasz"})


def _smp() -> ModuleType:
    """The losses of segmentation-models-pytorch, imported at the first use: it takes seconds."""
    return import_module("segmentation_models_pytorch.losses")


@dataclass(frozen=True)
class Loss:
    """A weighted sum of losses; ``str`` of it is the expression that `parse_loss` reads.

    weights: names of `LOSSES`, each with a finite number above 0.

    Raises `OptionError` for an unknown name, one that is given twice, an impossible weight and a package that is
    missing.
    """

    weights: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        if not self.weights:
            raise OptionError(f"a loss has no terms; give one or more of {', '.join(LOSSES)}")
        for name, weight in self.weights:
            one_of("loss", name, tuple(LOSSES))
            if not (isfinite(weight) and weight > 0):
                raise OptionError(f"the loss {name} has the weight {weight}; give a finite number above 0")
        if twice := sorted(name for name in self.names if self.names.count(name) > 1):
            raise OptionError(f"the loss {twice[0]} is given twice; give it once, with one weight")
        if needing := [name for name in self.names if name in _FROM_SMP]:
            try:
                _smp()
            except ModuleNotFoundError as error:
                raise OptionError(
                    f"the loss {needing[0]} needs segmentation-models-pytorch, which is not installed ({error}); "
                    "run: pip install 'refine-masks[train]'"
                ) from error

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms, as given."""
        return tuple(name for name, _ in self.weights)

    def terms(self, logit: Tensor, truth: Tensor, progress: float = 0.0) -> dict[str, Tensor]:
        """The terms by name, each a scalar times its weight: their sum is the loss.

        logit, truth: (B, 1, h, w), truth in [0, 1]. progress: the share of the run that is done, in [0, 1]; the weights
        of `RISING` losses are multiplied by it. Computed in float32 whatever the logit's type, also under autocast.
        """
        assert logit.shape == truth.shape == (len(logit), 1, *logit.shape[2:]), (logit.shape, truth.shape)
        assert 0 <= progress <= 1, progress
        with torch.autocast(logit.device.type, enabled=False):
            # In one piece, as the first versions of the library need it.
            logit, truth = logit.float().contiguous(), truth.float().contiguous()
            p = logit.sigmoid()
            return {
                name: (weight * progress if name in RISING else weight) * LOSSES[name](logit, p, truth)
                for name, weight in self.weights
            }

    def __call__(self, logit: Tensor, truth: Tensor, progress: float = 0.0) -> Tensor:
        """The sum of `terms`, a scalar."""
        return reduce(torch.add, self.terms(logit, truth, progress).values())


def parse_loss(text: str) -> Loss:
    """The loss of an expression such as ``bce + 0.5*l1``: a sum of names of `LOSSES`, each with or without a weight.

    Raises `OptionError` for an expression that is no such sum, and as `Loss` does.
    """
    if len(text) > _LONGEST:
        raise OptionError(f"loss={shown(text)} has {len(text)} characters; give a sum like 'bce + 0.5*l1'")
    weights = []
    for part in re.split(r"(?<![0-9.][eE])\+", text):  # not the plus sign of 1e+3
        term = re.fullmatch(r"\s*(?:([^*]+)\*)?\s*([a-z][a-z0-9-]*)\s*", part)
        try:
            if term is None:
                raise ValueError(part)
            weights.append((term[2], float(term[1] or 1)))
        except ValueError:
            raise OptionError(
                f"loss={shown(text)} is not understood at {shown(part.strip())}; give a sum like 'bce + 0.5*l1' of "
                f"{', '.join(LOSSES)}"
            ) from None
    return Loss(tuple(weights))
