"""Where the parity fixtures lie and how they are read.

A fixture folder holds `fill.py` (deterministic weights from key and shape), `crm_checkpoint_keys.json` (keys and shapes
of a published checkpoint) and `crm_parity*.npz` (inputs, and outputs of the published system).
"""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PARITY_FILES = ("crm_parity.npz", "crm_parity_odd.npz")


class Parity(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8 RGB
    mask: np.ndarray  # (H, W) uint8, 0..255
    probabilities: dict[float, np.ndarray]  # scale -> (H, W) float32


def folder() -> Path | None:
    """The fixture folder: $REFINE_FIXTURES, `tests/fixtures`, or `shared/fixtures` in or beside the checkout."""
    root = Path(__file__).resolve().parents[1]
    candidates = [root / "tests" / "fixtures", root / "shared" / "fixtures", root.parent / "shared" / "fixtures"]
    if chosen := os.environ.get("REFINE_FIXTURES"):
        candidates = [Path(chosen)]
    return next((path for path in candidates if (path / "fill.py").is_file()), None)


def _folder() -> Path:
    found = folder()
    if found is None:
        raise FileNotFoundError("no parity fixtures; set REFINE_FIXTURES to the folder that holds fill.py")
    return found


def checkpoint_shapes() -> dict[str, tuple[int, ...]]:
    """Every key of a published checkpoint with its shape."""
    listed = json.loads((_folder() / "crm_checkpoint_keys.json").read_text())
    return {key: tuple(shape) for key, shape in listed.items()}


def filled(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Deterministic tensors for the keys and shapes given."""
    spec = importlib.util.spec_from_file_location("parity_fill", _folder() / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: torch.from_numpy(np.asarray(module.fill(key, list(shape)))) for key, shape in shapes.items()}


@lru_cache(maxsize=1)
def checkpoint() -> dict[str, Tensor]:
    """The deterministic checkpoint whose outputs the parity files hold."""
    return filled(checkpoint_shapes())


def parity(name: str) -> Parity:
    """Input and published output of one parity file."""
    with np.load(_folder() / name) as data:
        probabilities = {float(key[2:]): data[key] for key in data.files if key.startswith("p_")}
        return Parity(data["image"], data["mask"], probabilities)
