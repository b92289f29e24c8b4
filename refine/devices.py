"""Where a model runs, in which arithmetic, and what memory it took there."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch

from refine.config import DTYPES
from refine.errors import OptionError
from refine.isolation import check_gpu, numpy_errors, use_threads
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


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a processor computes with this type by way of float32, which takes longer and more memory than that."""
    return device.type == "cpu" and dtype != torch.float32 and not (dtype == torch.bfloat16 and _multiplies_bfloat16())


def _multiplies_bfloat16() -> bool:
    # Torch has no public question for this yet; a release without these two answers no.
    answers = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(bool(answer()) for answer in answers if answer)


@contextmanager
def undisturbed(device: torch.device | None = None, *, inference: bool = True) -> Iterator[None]:
    """Torch and NumPy as they come, whatever the program around sets; that is as it was afterwards.

    Autocast, another default type or device, deterministic algorithms and short products of float32 would change
    results or fail. inference: without gradients, in torch's inference mode; else with them.

    Raises `RefineError` in a forked process that cannot compute on ``device``.
    """
    use_threads()
    if device is not None and device.type == "cuda":
        check_gpu()
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # else every call of torch would pass through Python
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(inference))
        if not inference:
            stack.enter_context(torch.enable_grad())
        stack.enter_context(numpy_errors())
        stack.enter_context(_PROCESS)
        yield


class _ProcessWide:
    """Settings that all threads share: the first one to come changes them, the last one to leave puts them back."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.RLock(), 0, list(_OURS.items())
        if hasattr(os, "register_at_fork"):
            release = self.lock.release
            os.register_at_fork(before=self.lock.acquire, after_in_parent=release, after_in_child=release)

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before = [(name, _SETTINGS[name][0]()) for name in _SETTINGS]
                for name, value in self.before:
                    if value != _OURS[name]:
                        _SETTINGS[name][1](_OURS[name])
            self.inside += 1

    def __exit__(self, *raised: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                for name, value in self.before:
                    if value != _OURS[name]:
                        _SETTINGS[name][1](value)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


_SETTINGS: Final[dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]] = {
    "default type": (torch.get_default_dtype, torch.set_default_dtype),
    "products of float32": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic algorithms": (_deterministic, _set_deterministic),
}
_OURS: Final[dict[str, Any]] = {
    "default type": torch.float32,
    "products of float32": "highest",
    "deterministic algorithms": (False, False),
}
_PROCESS: Final = _ProcessWide()


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
