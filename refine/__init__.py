"""High-resolution mask refinement: an image and a coarse mask in, a precise mask out.

>>> import refine
>>> refined = refine.run("photo.jpg", "coarse_mask.png")  # doctest: +SKIP
>>> refined.save("mask.png")  # doctest: +SKIP

Names are loaded when they are first used, so that importing `refine` is instant.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from refine.errors import FileError, InputError, OptionError, RefineError, WeightsError

if TYPE_CHECKING:
    from refine.engine import Refiner
    from refine.refiners import refiner, run
    from refine.result import Refined, Report

# Read by OpenMP when torch is loaded. Else its threads wait for one another in a loop, and where another program has
# one of two cores, everything takes ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = [
    "FileError",
    "InputError",
    "OptionError",
    "RefineError",
    "Refined",
    "Refiner",
    "Report",
    "WeightsError",
    "refiner",
    "run",
]

_LAZY = {"run": "refiners", "refiner": "refiners", "Refiner": "engine", "Refined": "result", "Report": "result"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'refine' has no attribute {name!r}")
    return getattr(import_module(f"refine.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
