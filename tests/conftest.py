"""What several test modules share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with fixtures and real data that are not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with published outputs and real photographs is not here")
    return SHARED
