"""Where a model runs, in which arithmetic, and what memory it took there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from refine.config import DTYPES
from refine.errors import OptionError
from refine.memory import peak_resident_set


def resolve_device(name: str) -> torch.device:
    """The device that ``name`` means; "auto" is CUDA, else Apple's GPU, else the CPU.

    Raises `OptionError` for an unknown name and for a device that is not there: another is never taken in its place.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    there = ["auto", "cpu", *(["cuda"] if cuda else []), *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    there += ["mps"] if mps else []
    if name not in there:
        raise OptionError(f"device={name!r} is unknown or not on this machine; here are {', '.join(there)}")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic that ``name`` means; "auto" is the fastest that keeps the quality on the device.

    On CUDA: bfloat16 where the hardware has it, else float16. On a CPU: bfloat16 where it multiplies matrices of it
    (AMX or AVX-512 BF16), else float32. Elsewhere float32. Raises `OptionError` for an unknown name.
    """
    if name not in DTYPES:
        raise OptionError(f"dtype={name!r} is unknown; known are {', '.join(DTYPES)}")
    if name != "auto":
        known: torch.dtype = getattr(torch, name)
        return known
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def _multiplies_bfloat16() -> bool:
    # Torch has no public question for this yet; a release without these two answers no.
    answers = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(bool(answer()) for answer in answers if answer)


def share_threads() -> None:
    """Let kernels use as many threads as torch does in this Python thread."""
    from refine_kernels import set_threads

    set_threads(torch.get_num_threads())


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """A function that gives the peak, in bytes, of the device's memory since here, or of the process on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
    else:
        yield peak_resident_set
