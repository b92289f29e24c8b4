"""Weights of a model as a start for one of the same family: with more channels of input, or with a deep branch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from refine.errors import WeightsError

COLOURS = 3


def widened(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], more: int) -> dict[str, Tensor]:
    """``state`` with zeros for ``more`` channels between the colours and the mask, wherever the input is read.

    wanted: the shapes of the wider model. A layer reads k numbers of each of the n channels (more than one after pixels
    were folded into channels): its weights are (out, n k, ...), those of a channel together.

    Raises `WeightsError` where the two models differ in more than that.
    """
    out = {}
    for name, value in state.items():
        shape = wanted.get(name)
        if shape is None or tuple(value.shape) == shape:
            out[name] = value
            continue
        before, after = value.shape[1], shape[1]
        folded = (after - before) // more
        if (after - before) % more or folded == 0 or before % folded or value.shape[0] != shape[0]:
            raise WeightsError(f"{name} is {tuple(value.shape)} and cannot be widened to {shape}")
        colours, mask = value[:, : COLOURS * folded], value[:, COLOURS * folded :]
        new = torch.zeros(shape[0], more * folded, *shape[2:], dtype=value.dtype)
        out[name] = torch.cat((colours, new, mask), 1)
    return out


def common(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What of ``state`` another network's encoder has too, by name and shape.

    The decoder is left out: as it is made it gives the coarse mask whatever the latent, and the latent is another.

    Raises `WeightsError` where they have nothing in common.
    """
    found = {
        name: value
        for name, value in state.items()
        if wanted.get(name) == tuple(value.shape) and not name.startswith("decoder.")
    }
    if not found:
        raise WeightsError("the two networks have no weights in common")
    return found
