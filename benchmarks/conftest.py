"""The size at which kernels are benchmarked."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--megapixels", type=float, default=4.0, help="size of the picture that kernels work on")
