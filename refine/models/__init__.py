"""Networks and their presets: no input or output, no devices, no chunking."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refine.blocks import Blocks
from refine.config import Cascade, Spec, guided_model
from refine.coords import Axis
from refine.errors import OptionError
from refine.models.crm_r50 import CRMResNet50
from refine.models.crm_s import CRMSmall
from refine.models.kernels import PointKernel
from refine.models.sam_sr import SamSR
from refine.tiles import Window


class Network(Protocol):
    """What the engine asks of a network: encode once, query any pixel."""

    stride: int
    """px of the network's input per latent cell."""
    window: int
    """Origins of tiles are multiples of this many px of input."""
    multiple: int
    """Sides of its input that are none of this are continued by their last pixels."""
    halo: int
    """px of input around a latent cell that it depends on; a multiple of ``window``."""
    latent_channels: int
    tile: int
    """px of input to encode at once unless told otherwise: a good trade of halos against memory."""
    working: float
    """Values per px of input that are alive at the encoder's peak, latent included; as measured."""
    neighbours: int
    """How often the MLP is evaluated for a query."""
    guided: bool
    """Whether a query also reads the network's input at its own pixel."""

    def tap_sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(h, w) of each tap for an input of ``height`` x ``width`` px; the first is the latent's."""

    def encode(self, x: Tensor, deep: Tensor | None = None) -> tuple[Tensor, ...]:
        """Taps of an input (B, channels, h, w); deep: what `DeepNetwork.deep` gave, at the input's cells."""

    def fuse(
        self, taps: tuple[Tensor, ...], *, sizes: tuple[tuple[int, int], ...], origin: tuple[int, int], window: Window
    ) -> Tensor:
        """Latent of a window of cells of the whole picture, from taps that begin at its cell ``origin``."""

    def encode_area(
        self,
        x: Tensor,
        needed: NDArray[np.bool_],
        *,
        sizes: tuple[tuple[int, int], ...],
        origin: tuple[int, int],
        deep: Tensor | None = None,
    ) -> Blocks:
        """The latent of an input (1, channels, h, w) in the ``needed`` squares of `refine.blocks.FINE` px alone.

        x is a window of a picture whose taps have ``sizes`` and begins at its cell ``origin``.
        """

    def axis(self, pixels: int, samples: int) -> Axis:
        """Where each of ``pixels`` reads the latent of ``samples`` px of input."""

    def axis_at(self, pixels: int, samples: int, queries: int) -> Axis:
        """Where ``queries`` that are spread over ``pixels`` as the next scale's samples are read that latent."""

    def decode(self, latent: Tensor, rows: Any, columns: Any, guide: Tensor | None) -> Tensor:
        """Logits (B, 1, n, m) float32 of the queries ``rows`` x ``columns``."""

    def decode_points(self, latent: Blocks, rows: Any, columns: Any, points: Tensor, guide: Tensor | None) -> Tensor:
        """Logits (N,) float32 of the queries ``points`` (N, 2) among ``rows`` x ``columns``; guide: (N, channels)."""

    def point_kernel(self, rows: Any, columns: Any) -> PointKernel | None:
        """What a kernel needs to do `decode_points` in one pass; None where there is no kernel for it."""

    def folded(self) -> Self:
        """A copy for inference."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """As `torch.nn.Module.to`."""


class DeepNetwork(Network, Protocol):
    """A network that also reads features of the whole picture."""

    deep_stride: int
    """px of the network's input per cell of the deep map that `encode` takes."""

    def deep(self, features: Tensor, mask: Tensor) -> Tensor:
        """The deep map (B, C, n, m) of whole pictures.

        features: (B, 256, n, m) of `refine.embedding`, without padding; mask: (B, 1, 4 n, 4 m) in [-1, 1].
        """

    def deep_each(self, pictures: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The deep map of each of several pictures (1, ...) of their own sizes, as `deep` takes them."""


NETWORKS: Final[dict[str, type[nn.Module]]] = {"CRMResNet50": CRMResNet50, "CRMSmall": CRMSmall, "SamSR": SamSR}

_UNGUIDED: Final[dict[str, Spec]] = {
    "crm-s": Spec(
        model="crm-s",
        network="CRMSmall",
        arguments={"in_channels": 4, "latent_channels": 32, "trunk": "mobilenetv2", "decoder": "interpolated"},
        cascade=Cascade(
            smallest=360,  # below, an object is too small to be told from what is around it
            least=1200,
            enlarged=1.5,
            pad=0,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            resize="area",
            coarse_decode="next",
            decode="strided",
            guard=True,
            sure=0.005,
            empty=0.0,
        ),
    ),
    "crm-r50": Spec(model="crm-r50", network="CRMResNet50", arguments={"in_channels": 4}, cascade=Cascade()),
}


# Versions of SAM-SR that add channels to the network's input, before the mask: `refine.guidance`.
_CHANNELS: Final = {"sam-sr-v2.1": 3, "sam-sr-v2.2": 1}

# Versions with a deep branch, by how the mask comes into it.
_MASKS: Final = {
    "sam-sr-v3.1": "none",
    "sam-sr-v3.2": "add",
    "sam-sr-v3.3": "global",
    "sam-sr-v3.4": "windowed",
}

PRESETS: Final[dict[str, Spec]] = (
    _UNGUIDED
    | {
        (name := guided_model(base, version)): replace(
            spec,
            model=name,
            arguments={**spec.arguments, "in_channels": 4 + channels},
            guidance=version,
        )
        for base, spec in _UNGUIDED.items()
        for version, channels in _CHANNELS.items()
    }
    | {
        (name := guided_model("crm-s", version)): replace(
            _UNGUIDED["crm-s"],
            model=name,
            network="SamSR",
            arguments={"in_channels": 4, "latent_channels": 32, "deep_channels": 64, "mask": mask},
            guidance=version,
        )
        for version, mask in _MASKS.items()
    }
)


def preset(name: str) -> Spec:
    """The specification of a preset. Raises `OptionError` that lists the known ones."""
    if name not in PRESETS:
        raise OptionError(f"model={name!r} is unknown; known are {', '.join(PRESETS)}")
    return PRESETS[name]


def build(spec: Spec) -> nn.Module:
    """A network with random weights, in training mode. Raises `OptionError` for an unknown class."""
    if spec.network not in NETWORKS:
        raise OptionError(f"network {spec.network!r} is unknown; known are {', '.join(NETWORKS)}")
    return NETWORKS[spec.network](**spec.arguments)
