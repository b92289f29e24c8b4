"""Kernels on several threads.

A kernel releases Python's lock and does a range of its parts; here the ranges are shared out. Numba could share a loop
among threads itself (parallel=True), but then a kernel takes 0.7 s longer to compile, torch is given Numba's number of
threads where both use OpenMP, and a forked child that runs a kernel after its parent did is killed.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from numba import config

_RANGES = 4  # for each thread, so that one which is late or has more to do holds up the others little

_chosen = threading.local()


def set_threads(threads: int) -> None:
    """Lets kernels that this Python thread calls use so many threads, at least 1."""
    assert threads >= 1, threads
    _chosen.threads = threads


def get_threads() -> int:
    """How many threads a kernel called here uses: by default NUMBA_NUM_THREADS, else one for each core."""
    return int(getattr(_chosen, "threads", config.NUMBA_NUM_THREADS))


def share(kernel: Callable[..., None], parts: int, *arguments: Any) -> None:
    """Calls ``kernel(first, last, *arguments)`` for ranges that together are ``parts``; returns when all are done."""
    threads = min(get_threads(), parts)
    if threads <= 1:
        kernel(0, parts, *arguments)
        return
    ranges = min(parts, threads * _RANGES)
    ends = [parts * i // ranges for i in range(ranges + 1)]

    def run(i: int) -> None:
        kernel(ends[i], ends[i + 1], *arguments)

    for _ in _pool(os.getpid(), threads).map(run, range(ranges)):
        pass


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child has none of its parent's."""
    return ThreadPoolExecutor(threads, "refine-kernels")
