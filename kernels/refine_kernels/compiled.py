"""How kernels are compiled: at the first call, kept on disk where that is possible, and always.

Numba's own cache fails a call where no folder can be written to, the disk is full or a file is damaged. What is kept
saves seconds and is no condition: here it is left out or made again, and that is told once.
"""

import hashlib
import pickle
import threading
from collections.abc import Callable
from typing import Any

from numba import config, njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.serialize import dumps

_REMEDY = "NUMBA_CACHE_DIR names a folder"

_decorating = threading.Lock()
_untold: list[str] = []
_told: set[str] = set()


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a kernel: ``numba.njit`` with these options, kept on disk where that is possible.

    It is compiled with NUMBA_DISABLE_JIT too, which is meant for who looks for faults in code of their own; some
    functions that kernels call mean nothing in plain Python.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        with _decorating:
            disabled, config.DISABLE_JIT = config.DISABLE_JIT, 0
            try:
                kernel = njit(**options)(function)
            finally:
                config.DISABLE_JIT = disabled
        try:
            kernel._cache = _Cache(function)
        except (RuntimeError, OSError) as error:  # there is no such folder
            _tell("none", f"compiled kernels cannot be kept on disk ({_reason(error)}), so every process compiles them")
        return kernel

    return decorate


def untold() -> tuple[str, ...]:
    """What happened to the kernels on disk and was not told yet; each is given once in a process."""
    found = []
    while _untold:
        found.append(_untold.pop(0))
    return tuple(found)


def _tell(kind: str, text: str) -> None:
    if kind not in _told:
        _told.add(kind)
        _untold.append(f"{text}; {_REMEDY}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or (
        "no folder can be written to" if "locator" in str(error) else str(error)
    )


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's files of a function; what is wrong with them is told, and no reason to fail."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        file: Any = vars(self)["_cache_file"]
        self._cache_file = _Whole(file._cache_path, self._impl.filename_base, file._source_stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # unpickling what is damaged raises anything
            _tell(
                "damaged", f"compiled kernels in {self.cache_path} cannot be read ({_reason(error)}) and are made anew"
            )
            try:
                self.flush()
            except OSError as unwritten:
                _tell("full", f"compiled kernels cannot be kept in {self.cache_path} ({_reason(unwritten)})")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:  # it reads before it writes
            _tell("full", f"compiled kernels cannot be kept in {self.cache_path} ({_reason(error)})")


class _Whole(IndexDataCacheFile):  # type: ignore[misc]
    """Entries that say what they are of and are checked before they are run: damaged code would end the process."""

    def save(self, key: Any, data: Any) -> None:
        content = dumps((key, data))
        super().save(key, (hashlib.sha256(content).digest(), content))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        if found is None:
            return None
        digest, content = found
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("damaged")
        theirs, data = pickle.loads(content)
        if theirs != key:
            raise ValueError("another kernel's")
        return data
