"""What a network hands to the decode kernels of `refine_kernels`: plain tables and weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class PointKernel(NamedTuple):
    """Decoding at points as a call of a kernel, the same on a CPU (`queries`) and on CUDA (`triton_decode`).

    name: of the kernel. tables: of the rows and of the columns. weights: of the MLP. bias: what is added to the
    kernel's logits, (N,) of the guide (N, channels); None where the network reads no guide. Tensors are float32 and
    int32, on the network's device.
    """

    name: str
    tables: tuple[Any, ...]
    weights: Any
    bias: Callable[[Tensor], Tensor] | None
