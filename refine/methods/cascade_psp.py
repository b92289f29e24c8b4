"""CascadePSP: a network that refines the reduced picture as a whole, then crops of the picture at its own size.

Ho Kei Cheng, Jihoon Chung, Yu-Wing Tai, Chi-Keung Tang: CascadePSP. CVPR 2020, arXiv 2005.02551. The network is
`refine.models.cascade_psp`, its two steps are `refine.methods.global_local`. Torch is imported with the weights.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from refine.errors import OptionError
from refine.methods.options import Loaded, MethodOptions, Outcome, switch, within

if TYPE_CHECKING:
    from refine.methods.global_local import Module

DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class CascadePSPOptions(MethodOptions):
    """The paper's two choices."""

    crop: int = within(900, 66, 10_000)
    """The paper's L, in px: long side of the reduced picture, side of the crops. Memory grows with its square."""

    fast: bool = switch(False)
    """Only the global step: details come from the reduced picture."""


def load(weights: str | Path | None, device: str, dtype: str) -> Loaded:
    """The network with the weights of a published checkpoint, on a device.

    dtype: "auto", which is float32 as published, "float32" or "bfloat16".

    Raises `OptionError` for a device or type that cannot be, `WeightsError` for weights that are missing or do not fit.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype={dtype!r} is not possible with cascade-psp; give {', '.join(DTYPES)}")
    import torch

    from refine.devices import peak_memory, resolve_device, undisturbed
    from refine.loading import load_cascade_psp

    place, kind = resolve_device(device), torch.bfloat16 if dtype == "bfloat16" else torch.float32
    with undisturbed(place, inference=False):
        network, sha256 = load_cascade_psp(weights)
        network = network.to(place, kind).to(memory_format=torch.channels_last)

    def module(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(p.float().cpu() for p in network(*(x.to(place, kind) for x in inputs)))

    name = str(kind).removeprefix("torch.")
    return Loaded(module, sha256, str(place), name, partial(peak_memory, place))


def cascade_psp(
    image: NDArray[np.uint8], mask: NDArray[np.float32], options: CascadePSPOptions, *, network: "Module"
) -> Outcome:
    """The mask refined as published: the global step, then, unless ``fast``, the local one.

    image (H, W, 3) RGB, mask (H, W) in [0, 1], of which what exceeds one half is taken. A warning tells of crops that
    hold a contour and were left because they have less than 10 % of one class.
    """
    import torch

    from refine.devices import undisturbed
    from refine.methods.global_local import enlarged, global_step, local_step

    with undisturbed():
        picture, coarse = torch.tensor(image).permute(2, 0, 1), torch.from_numpy(mask > 0.5)
        fine, fine4 = global_step(network, picture, coarse, options.crop)
        if options.fast:
            return Outcome(enlarged(fine, mask.shape, options.crop).numpy())
        found = local_step(network, picture, fine, fine4, options.crop)
    if not found.left:
        return Outcome(found.probability.numpy())
    reason = (
        f"{found.left} of {found.crops} crops with a contour have less than 10 % of one class; cascade-psp leaves them"
    )
    return Outcome(found.probability.numpy(), (reason,))
