"""What a network is asked on a batch of crops, and its losses: two steps of the cascade, or one as published."""

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refine.config import Cascade
from refine.coords import LerpAxis
from refine.embedding import PARTS
from refine.models import DeepNetwork, Network
from refine.tiles import Window
from refine.training.recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits and their truth, both (B, 1, h, w) float32: a scalar."""

ALL: Final = slice(None)


def losses(
    module: nn.Module,
    cascade: Cascade,
    batch: dict[str, Tensor],
    recipe: Recipe,
    choices: torch.Generator,
    *,
    loss: Loss,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Losses of a batch of `refine.training.data.Crops`, by the name of the pass; the network's products in ``dtype``.

    Two passes: "coarse", the crop at half resolution with its coarse mask, asked for every other pixel in y and x from
    a random one on; and "fine", a window of the crop at full resolution, whose mask is by turns the first pass's
    output, the coarse mask and a better one. One pass: "crop", the crop with its coarse mask, as published (CRM, arXiv
    2111.14482).

    A deep branch's maps are made once, with the whole pictures' coarse masks, and read by both passes.
    """
    network = cast(Network, module)
    more = batch["image"].shape[1] - 3  # channels of guidance, which stay 0..1
    statistics = ((*cascade.mean, *[0.0] * more), (*cascade.std, *[1.0] * more))
    mean, std = (torch.tensor(v, device=batch["image"].device).view(-1, 1, 1) for v in statistics)
    image = (batch["image"].float() / 255 - mean) / std
    truth, size = batch["truth"], recipe.crop
    whole = torch.cat((image, 2 * batch["coarse"] - 1), 1)
    low = dtype != torch.float32
    with torch.autocast(image.device.type, dtype if low else torch.bfloat16, enabled=low):
        deep = _deep_maps(cast(DeepNetwork, network), batch) if "features" in batch else []
        if recipe.passes == 1:
            latent = _encoded(network, whole, _read(deep, batch.get("deep8")))
            logits = {"crop": (_decoded(network, latent, whole), truth)}
        else:
            half = _halved(whole, cascade.resize)
            again = F.interpolate(half[:, -1:], size=(size, size), mode="bilinear", align_corners=False)
            guide, latent = torch.cat((image, again), 1), _encoded(network, half, _read(deep, batch.get("deep16")))
            top, left = (int(torch.randint(2, (), generator=choices)) for _ in range(2))
            asked = (..., slice(top, None, 2), slice(left, None, 2))
            logits = {"coarse": (_decoded(network, latent, guide, asked), truth[asked])}
            y, x = (8 * int(torch.randint((size - recipe.window) // 8 + 1, (), generator=choices)) for _ in range(2))
            part = (..., slice(y, y + recipe.window), slice(x, x + recipe.window))
            with torch.no_grad():
                own = _decoded(network, latent, guide, part).sigmoid()
            kind = torch.rand(len(image), 1, 1, 1, generator=choices).to(image.device)
            given = torch.where(kind < 0.7, batch["coarse"], batch["fine"])[part]
            full = torch.cat((image[part], 2 * torch.where(kind < 0.5, own, given) - 1), 1)
            cells = slice(y // 8, (y + recipe.window) // 8), slice(x // 8, (x + recipe.window) // 8)
            latent = _encoded(network, full, _read(deep, batch.get("deep8"), cells))
            logits["fine"] = (_decoded(network, latent, full), truth[part])
    return {name: loss(logit, wanted) for name, (logit, wanted) in logits.items()}


def _halved(x: Tensor, resize: str) -> Tensor:
    """Crops (B, C, h, w) of even sides at half the resolution, reduced as the cascade reduces pictures."""
    if resize == "area":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, size=(x.shape[-2] // 2, x.shape[-1] // 2), mode="bilinear", align_corners=True)


def _deep_maps(network: DeepNetwork, batch: dict[str, Tensor]) -> list[Tensor]:
    """The deep map (1, C, n, m) float32 of the whole picture of each crop; see `refine.training.guides.Wholes`."""
    pictures = []
    for features, mask, (n, m) in zip(batch["features"], batch["whole"], batch["cells"].tolist(), strict=True):
        pictures.append((features[None, :, :n, :m], 2 * mask[None, :, : PARTS * n, : PARTS * m] - 1))
    return [found.float() for found in network.deep_each(pictures)]


def _read(maps: list[Tensor], places: Tensor | None, cells: tuple[slice, slice] = (ALL, ALL)) -> Tensor | None:
    """Deep maps where the ``cells`` of their crops lie, (B, C, n, m); None where there are none.

    places: (B, 2, n), of all cells of a crop in those of its picture; rows, columns.
    """
    if places is None:
        return None
    found = []
    for one, both in zip(maps, places, strict=True):
        rows, columns = (LerpAxis.at(at[part], n) for at, part, n in zip(both, cells, one.shape[-2:], strict=True))
        found.append(rows.interpolate(columns.interpolate(one, 3), 2))
    return torch.cat(found)


def _encoded(network: Network, x: Tensor, deep: Tensor | None) -> Tensor:
    """The latent of the network's input ``x``, whole crops; deep: the deep map at its cells."""
    sizes = network.tap_sizes(*x.shape[-2:])
    window = Window(0, sizes[0][0], 0, sizes[0][1])
    return network.fuse(network.encode(x, deep), sizes=sizes, origin=(0, 0), window=window)


def _decoded(network: Network, latent: Tensor, guide: Tensor, part: tuple[Any, ...] = (..., ALL, ALL)) -> Tensor:
    """Logits of a ``part`` of the pixels of ``guide``, both square crops, from the latent of the crops."""
    samples = latent.shape[-1] * network.stride
    rows, columns = (network.axis(guide.shape[-1], samples)[along].to(guide.device) for along in part[1:])
    return network.decode(latent, rows, columns, guide[part] if network.guided else None)
