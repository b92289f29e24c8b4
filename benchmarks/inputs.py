"""What the measurements are given: one picture at several sizes, and weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The rest is imported where it is used: what a worker imports counts in its memory.
if TYPE_CHECKING:
    from torch import Tensor

DRAWN = 24.0  # megapixels at which the scene is drawn; smaller ones are reductions of it
SEED = 36  # of a scene with one object: hairy outline, two materials, a fifth of the picture
CELLS = 160  # of the coarse mask, over the picture's height, as of a segmentation network's output
BRANCH = 0.1  # weight of a residual branch in the seeded network

Pixels = NDArray[np.uint8]
Pictures = dict[float, tuple[Pixels, Pixels]]
"""By megapixels: picture (H, W, 3) uint8 RGB and coarse mask (H, W) uint8, 0 or 255."""


def generated(megapixels: Sequence[float], drawn: float | None = None) -> Pictures:
    """One scene, 3:2, with a single object and its coarse mask, at each size.

    drawn: megapixels at which it is drawn before it is reduced, by default the largest of the sizes. What is drawn
    depends on it a little. Reduced, the same contour grows with the square root of the area.
    """
    from refine.training.coarse import network_like
    from refine.training.scenes import scene

    rng = np.random.default_rng(SEED)
    height = max(8, round((max(drawn or 0, *megapixels) * 1e6 / 1.5) ** 0.5))
    image, truth = scene(rng, height, round(height * 1.5))
    coarse = network_like(truth, rng, cell=max(1.0, height / CELLS)) > 0.5
    mask = coarse.astype(np.uint8) * 255
    return {size: resized(image, mask, size) for size in megapixels}


def photograph(image: Path, mask: Path, megapixels: Sequence[float]) -> Pictures:
    """A picture in a file with its coarse mask, cut to 0 and 255, at each size.

    Raises what `refine.prepare.prepare` does.
    """
    from refine.prepare import prepare

    pair = prepare(image, mask)
    coarse = (pair.mask > 0.5).astype(np.uint8) * 255
    return {size: resized(pair.image, coarse, size) for size in megapixels}


def resized(image: Pixels, mask: Pixels, megapixels: float) -> tuple[Pixels, Pixels]:
    """A picture and its mask brought to about so many megapixels; the mask stays 0 and 255."""
    import cv2

    height, width = mask.shape
    factor = (megapixels * 1e6 / (height * width)) ** 0.5
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    pixels, soft = (np.asarray(cv2.resize(a, size, interpolation=method), np.uint8) for a in (image, mask))
    return pixels, np.where(soft > 127, np.uint8(255), np.uint8(0))


def contour_length(mask: Pixels) -> int:
    """Pixels of a mask's foreground that touch its background or the border along a side."""
    inside = np.pad(mask > 127, 1)
    core = inside[1:-1, 1:-1]
    around = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return int(np.count_nonzero(core & ~around))


def published_weights(image: Pixels, mask: Pixels) -> "dict[str, Tensor]":
    """A checkpoint of the published form, with seeded weights that spread a picture's probabilities over (0, 1).

    Batch norms hold the statistics of the picture reduced, and its logits have mean 0 and deviation 1/2: with random
    weights alone values grow from block to block, and a result that is 0 or 1 everywhere is equal to any other.
    Residual branches are small: else a random network is chaotic, and rounding errors grow from scale to scale.
    """
    import cv2
    import torch
    from torch import nn
    from torchvision.models.resnet import Bottleneck

    from benchmarks.reference import ReferenceCRM, centres, normalised

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ReferenceCRM()
        for module in network.imnet.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for module in network.modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, BRANCH)
        elif isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    factor = min(1.0, 256 / max(mask.shape))
    size = (max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor)))
    small, coarse = (np.asarray(cv2.resize(a, size, interpolation=cv2.INTER_AREA), np.uint8) for a in (image, mask))
    x = torch.cat(normalised(small, coarse), dim=1)
    with torch.no_grad():
        features = network.aspp_(*network.feats(x))[0]  # (256, h, w)
        q = torch.cartesian_prod(*(centres(n) for n in features.shape[-2:]))
        logit = network._query(features, q, (x.shape[-2], x.shape[-1]))
        last = network.imnet.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight /= 2 * logit.std()
        last.bias.sub_(logit.mean()).div_(2 * logit.std())
    return {f"module.{key}": value for key, value in network.state_dict().items()}


def published_form(weights: Path) -> "dict[str, Tensor]":
    """The weights of a crm-r50 as the reference reads them, float32: with its fourth stage, random where there is none.

    Nothing reads what that stage gives, but the published computation spends its time there.
    """
    from benchmarks.reference import ReferenceCRM
    from refine import checkpoint

    own = ReferenceCRM().state_dict()
    given = {key.removeprefix("module."): value for key, value in checkpoint.load(weights).state.items()}
    return own | {key: value.to(own[key].dtype) for key, value in given.items()}


class Weights(NamedTuple):
    """A model's weights: the file to load, None for those that ship, and where they come from, in words."""

    path: str | None
    origin: str


def write_weights(folder: Path, models: Sequence[str], weights_r50: Path | None) -> dict[str, Weights]:
    """The weights of models, written to a folder in the form that each reads.

    weights_r50: of crm-r50 and the reference, by default those that ship. Their cascade is the published one whatever
    the file's own, so that the two do the same.

    Raises `WeightsError`: the file cannot be read, or is no crm-r50.
    """
    import torch

    from refine import checkpoint
    from refine.loading import import_published, load_network

    found = {"crm-s": Weights(None, f"shipped, sha256 {checkpoint.file_sha256(checkpoint.find('crm-s'))}")}
    if set(models) <= set(found):
        return found
    own, published = folder / "crm-r50.safetensors", folder / "published.pth"
    given = weights_r50 or checkpoint.find("crm-r50")
    origin = f"{given.name}, sha256 {load_network('crm-r50', given)[2]}"
    torch.save(published_form(given), published)
    import_published(published, own)
    return {**found, "crm-r50": Weights(str(own), origin), "reference": Weights(str(published), origin)}
