"""What several test modules share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from refine.cli import main

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with fixtures and real data that are not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with published outputs and real photographs is not here")
    return SHARED


@dataclass
class Outcome:
    """What a call of the command line leaves."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Outcome:
        try:
            main(list(words))
        except SystemExit as stop:
            return Outcome(int(stop.code or 0), *capsys.readouterr())
        return Outcome(0, *capsys.readouterr())

    return run


def disc(size: tuple[int, int] = (120, 160), radius: float = 40) -> np.ndarray:
    """A truth (H, W) in the middle of a picture."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.hypot(y - size[0] / 2, x - size[1] / 2) < radius


def photographed(truth: np.ndarray) -> np.ndarray:
    """Two noisy colours that a truth parts."""
    noise = np.random.default_rng(0).integers(0, 30, (*truth.shape, 3))
    return (np.where(truth[..., None], (180, 120, 40), (30, 70, 110)) + noise).astype(np.uint8)
