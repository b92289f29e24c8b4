"""Losses between a predicted logit and a binary truth."""

import torch
from torch import Tensor
from torch.nn import functional as F


def gradient_magnitude(x: Tensor) -> Tensor:
    """Sobel gradient magnitude of (B, 1, h, w), at the interior pixels: (B, 1, h - 2, w - 2)."""
    derivative = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=x.device) / 4
    kernels = torch.stack((derivative, derivative.T)).unsqueeze(1)  # (2, 1, 3, 3)
    gradient = F.conv2d(x, kernels)
    return (gradient.square().sum(1, keepdim=True) + 1e-6).sqrt()


def crm_loss(logit: Tensor, truth: Tensor) -> Tensor:
    """BCE + 0.5 L1 + 0.5 L2 + 2 L1 of the Sobel gradient magnitudes (CRM, arXiv 2111.14482, section 3.4).

    logit, truth: (B, 1, h, w) float32, truth in [0, 1]. Returns a scalar, the mean over all pixels.
    """
    p = logit.sigmoid()
    difference = p - truth
    gradients = gradient_magnitude(p) - gradient_magnitude(truth)
    return (
        F.binary_cross_entropy_with_logits(logit, truth)
        + 0.5 * difference.abs().mean()
        + 0.5 * difference.square().mean()
        + 2.0 * gradients.abs().mean()
    )
