"""CascadePSP's two steps (arXiv 2005.02551, section 3.2): a module refines the reduced picture, then crops of it all.

The section gives L = 900 px, the 16 px cut off crops, their averaging, and that the local step begins with the global
one's masks at strides 1 and 4. The rest, the crops' stride among it, follows the published package,
segmentation-refinement (github.com/hkchengrex/CascadePSP); where that is not what one would expect, a line says
"published". All is float32 on the CPU, whatever the module does.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from refine.tiles import Window

Module = Callable[..., tuple[Tensor, Tensor]]
"""`refine.models.cascade_psp.CascadePSP`, or what is called as it is."""

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], as the module expects it."""
MULTIPLE: Final = 8  # px of which the module's sides are multiples
BORDER: Final = 16  # px at a crop's inner sides that are not trusted
LEAST: Final = 0.1  # share of either class in a crop that is refined


class Local(NamedTuple):
    """What the local step gives."""

    probability: Tensor
    """(H, W)."""
    crops: int
    """Those that hold a contour."""
    left: int
    """Those of them with too little of one class, which were not refined."""


def global_step(module: Module, image: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Probabilities (1, 1, h, w) at strides 1 and 4 of a picture whose long side is brought to ``side`` px.

    image: (3, H, W) uint8. mask: (H, W) bool. Smaller pictures are enlarged.
    """
    picture, binary = _normalised(image), _as_mask(mask[None, None])
    factor = side / max(mask.shape)
    if factor < 1:
        # Published: sides are rounded down, by float64, even the long one; none vanishes here.
        size = [max(1, int(n * factor)) for n in mask.shape]
        picture, binary = (F.interpolate(x, size=size, mode="area") for x in (picture, binary))
    elif factor > 1:
        # Published: the factor, not the ratio of the rounded sizes, places samples; bicubic for the picture alone.
        enlarged = partial(F.interpolate, scale_factor=factor, align_corners=False)
        picture, binary = enlarged(picture, mode="bicubic"), enlarged(binary, mode="bilinear")
    return _applied(module, picture, binary)


def enlarged(fine: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """The global step's probability (1, 1, h, w) at the picture's ``size``, where it is the result; (H, W)."""
    # Published: here with the corner pixels kept in place, in the local step by pixel centres.
    if max(size) > side:
        fine = F.interpolate(fine, size=size, mode="bilinear", align_corners=True)
    elif max(size) < side:
        fine = F.interpolate(fine, size=size, mode="area")
    return fine[0, 0].contiguous()


def local_step(module: Module, image: Tensor, fine: Tensor, fine4: Tensor, side: int) -> Local:
    """The global step's probabilities at strides 1 and 4 refined on crops of ``side`` px of the whole picture.

    image: (3, H, W) uint8. The mean of all crops over a pixel; where there is none, the global step's mask.
    """
    height, width = image.shape[-2:]
    whole = partial(F.interpolate, size=(height, width), mode="bilinear", align_corners=False)
    # Published: of the mask at stride 1 the decision goes in, of the one at stride 4 the probability.
    decided, mask8 = whole(fine) > 0.5, whole(fine4).mul_(2).sub_(1)
    total, count = torch.zeros(height, width), torch.zeros(height, width, dtype=torch.int16)
    crops = left = 0
    for window in windows(height, width, side):
        part = decided[..., *window.slices]
        share = part.float().mean()
        crops += bool(0 < share < 1)
        if share < LEAST or share > 1 - LEAST:  # published: nothing is refined there
            left += bool(0 < share < 1)
            continue
        picture = _normalised(image[..., *window.slices])
        p, _ = _applied(module, picture, _as_mask(part), mask8[..., *window.slices])
        inner = _inside(window, height, width)
        total[inner.slices] += p[0, 0, *inner.moved(-window.top, -window.left).slices]
        count[inner.slices] += 1
    probability = torch.where(count > 0, total / count, decided[0, 0].float())
    return Local(probability, crops, left)


def windows(height: int, width: int, side: int) -> Iterator[Window]:
    """Crops of ``side`` px, column by column, a new one every ``side`` // 2 - 32 px.

    The last ones end with the picture; one shorter than a crop is a crop's whole length.
    """
    stride = side // 2 - 2 * BORDER
    lefts, tops = (sorted({max(0, min(i * stride, n - side)) for i in range(n // stride + 1)}) for n in (width, height))
    for left in lefts:
        for top in tops:
            yield Window(top, min(top + side, height), left, min(left + side, width))


def _inside(window: Window, height: int, width: int) -> Window:
    """The window without its border, but for sides that are the picture's own."""
    return Window(
        window.top + BORDER * (window.top > 0),
        window.bottom - BORDER * (window.bottom < height),
        window.left + BORDER * (window.left > 0),
        window.right - BORDER * (window.right < width),
    )


def _applied(module: Module, picture: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
    """The module's probabilities of inputs of any size."""
    h, w = picture.shape[-2:]
    # Published: if one side is no multiple of 8, both grow to the next multiple above, with grey and background.
    right, down = (MULTIPLE - n % MULTIPLE if h % MULTIPLE or w % MULTIPLE else 0 for n in (w, h))
    grow = (0, right, 0, down)
    fine, fine4 = module(F.pad(picture, grow), *(F.pad(mask, grow, value=-1.0) for mask in masks))
    return fine[..., :h, :w], fine4[..., :h, :w]


def _normalised(image: Tensor) -> Tensor:
    """Picture (1, 3, h, w) float32 of (3, h, w) uint8."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return image.float().div_(255).sub_(mean).div_(std)[None]


def _as_mask(binary: Tensor) -> Tensor:
    """-1 and 1, float32, of a mask of bools."""
    return binary.float().mul_(2).sub_(1)
