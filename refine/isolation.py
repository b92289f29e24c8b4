"""What a program around refine does to the process: forks, and what it lets NumPy raise; torch's state: `devices`."""

import os
import sys
from functools import cache
from typing import Any

import numpy as np

from refine.errors import RefineError

_SPAWN = "start processes by spawn, as in multiprocessing.get_context('spawn')"


class _Fork:
    """What is known of this process' origin."""

    used = False
    """Whether threads of torch's may have been started here."""
    spoiled = False
    """Whether this is a fork of such a process: those threads are not here, and who waits for them waits for ever."""
    threads = 0
    """OpenCV's, while a fork is made."""


@cache
def survive_forks() -> None:
    """From now on a forked child of this process computes by one thread, and so waits for none that is not there.

    Neither OpenMP's threads, which torch uses, nor OpenCV's survive a fork. OpenCV's are ended before; OpenMP's cannot
    be.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def use_threads() -> None:
    """Tells that torch's threads are about to be used here.

    Raises `RefineError` where that waits for ever: in a fork of a process that used them, with more than one.
    """
    survive_forks()
    torch: Any = sys.modules.get("torch")
    if _Fork.spoiled and torch is not None and torch.get_num_threads() > 1:
        raise RefineError(
            f"this process was forked from one that has refined, and {torch.get_num_threads()} threads were asked for, "
            f"which wait for ever; leave torch.set_num_threads at 1, or {_SPAWN}"
        )
    _Fork.used = True


def check_gpu() -> None:
    """Raises `RefineError` in a fork of a process that used CUDA, which then fails."""
    torch: Any = sys.modules.get("torch")
    forked = getattr(torch.cuda, "_is_in_bad_fork", None) if torch is not None else None  # there is no public question
    if forked is not None and forked():
        raise RefineError(f"this process was forked from one that has used CUDA, which cannot go on in it; {_SPAWN}")


def numpy_errors() -> np.errstate:
    """NumPy's own handling of overflows and the like, whatever a program set."""
    return np.errstate(divide="warn", over="warn", under="ignore", invalid="warn")


def _before() -> None:
    cv2: Any = sys.modules.get("cv2")
    if hasattr(cv2, "setNumThreads"):
        _Fork.threads = cv2.getNumThreads()
        cv2.setNumThreads(1)


def _in_parent() -> None:
    cv2: Any = sys.modules.get("cv2")
    if _Fork.threads and hasattr(cv2, "setNumThreads"):
        cv2.setNumThreads(_Fork.threads)


def _in_child() -> None:
    _Fork.spoiled = _Fork.spoiled or _Fork.used
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)
