"""What is fuzzed, by name: each makes an input of random numbers, leaves it in a folder, and calls what reads it."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Final

GROUPS: Final = {
    "files": ("tiff", "picture", "npy", "pair"),
    "state": ("journal", "lines", "cache", "recipe", "training"),
    "calls": ("arrays", "options", "metrics"),
    "weights": ("safetensors", "pth", "tensors"),
}
"""The targets of each module."""


def target(name: str) -> Callable[[Random, Path, Any], None]:
    """Its module is loaded when it is asked for: some need torch."""
    module = next(module for module, names in GROUPS.items() if name in names)
    return getattr(import_module(f".{module}", __package__), name)
