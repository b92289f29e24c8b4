"""A checked pair as the cascade reads it: padded, normalised, at any scale; and back to the picture."""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from refine.config import Cascade
from refine.prepare import Pair


class Frame:
    """A picture with its border, on a device, at the scales of a cascade; it keeps what undoing the border needs.

    A side shorter than the border is reflected repeatedly, as numpy's pad does.
    """

    def __init__(self, pair: Pair, cascade: Cascade, device: torch.device) -> None:
        self.coarse = pair.mask
        self.original: tuple[int, int] = pair.mask.shape  # type: ignore[assignment]
        self.cascade, self.device = cascade, device
        border = ((cascade.pad, cascade.pad), (cascade.pad, cascade.pad))
        self._image = np.pad(pair.image, (*border, (0, 0)), mode="reflect") if cascade.pad else pair.image
        mask = np.pad(pair.mask, border, mode="reflect") if cascade.pad else pair.mask
        self.mask: Tensor = self._tensor(mask) * 2 - 1  # (H, W) in [-1, 1], border included
        self.size: tuple[int, int] = mask.shape
        self._last: Tensor | None = None

    def scaled(self, scale: float) -> tuple[int, int]:
        """Size (h, w) of the padded picture at ``scale``; halves are rounded to even."""
        height, width = (max(1, round(side * scale)) for side in self.size)
        return height, width

    def input(self, size: tuple[int, int], mask: Tensor) -> Tensor:
        """The network's input (1, 4, h, w) float32: the picture and ``mask`` (any size, in [-1, 1]) at ``size``."""
        return torch.cat((self._picture(size), self._resized(mask[None, None], size)), 1)

    def guide(self, size: tuple[int, int], x: Tensor) -> Tensor:
        """What queries on a grid of ``size`` read of their own pixel: the picture there and the mask of input ``x``."""
        if x.shape[-2:] == size:
            return x
        mask = F.interpolate(x[:, -1:], size=size, mode="bilinear", align_corners=False)
        return torch.cat((self._picture(size), mask), 1)

    def is_empty(self, p: Tensor) -> bool:
        """Whether probabilities on a grid over the picture come to less foreground than counts.

        As published sum(mask + 1) < 2, which is less than one pixel.
        """
        foreground = float(p.sum()) * (self.size[0] * self.size[1] / p.numel())
        return foreground < self.cascade.empty or foreground == 0

    def may_be_empty(self, p: Tensor) -> bool:
        """Whether probabilities at some of the pixels leave it open that all come to less foreground than counts."""
        return float(p.sum()) < self.cascade.empty

    def cut(self, p: Tensor) -> NDArray[np.float32]:
        """Probabilities (n, m) over the frame without its border, (H, W); enlarged first if on a coarser grid."""
        if p.shape != self.size:
            p = F.interpolate(p[None, None], size=self.size, mode="bilinear", align_corners=False)[0, 0]
        pad, (height, width) = self.cascade.pad, self.original
        return np.ascontiguousarray(p[pad : pad + height, pad : pad + width].float().cpu().numpy())

    def _picture(self, size: tuple[int, int]) -> Tensor:
        """The picture at ``size``; a guide's is kept, since it is the next scale's."""
        if self._last is None or self._last.shape[-2:] != size:
            self._last = self._normalised(size)
        return self._last

    def _normalised(self, size: tuple[int, int]) -> Tensor:
        if self.cascade.resize == "area":
            image = self._image
            if size != self.size:
                image = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
            x = self._tensor(image).permute(2, 0, 1)[None].float()
        else:
            x = self._resized(self._tensor(self._image).permute(2, 0, 1)[None].float(), size)
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.cascade.mean, self.cascade.std)
        )
        return x.div_(255).sub_(mean).div_(std)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # The caller's own array may be read-only, which torch cannot express; it is only read here.
        return torch.from_numpy(np.require(array, requirements="W")).to(self.device)

    def _resized(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.shape[-2:] == size:
            return x
        if self.cascade.resize == "area":
            return F.interpolate(x, size=size, mode="area")
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
