"""Every kernel of `refine_kernels` and its plain twin on the same input, by pytest-benchmark.

    python -m pytest benchmarks/test_kernels.py --benchmark-enable --megapixels 4

A kernel is timed once its result is its twin's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from refine_kernels import (
    any_in_cells,
    area_reduce,
    band_counts,
    classes_in_cells,
    contour_band,
    fill_cells,
    grid_lines,
    interpolate,
    mask_and_doubt,
    network_input,
    queries,
    reference,
    reference_queries,
    strided_changes,
)
from refine_kernels.reference_queries import EnsembleTable, EnsembleWeights, InterpolatedTable, InterpolatedWeights

CHANNELS, GUIDES, SIDE = 32, 4, 16  # as in refine's networks and blocks
POINTS = 16  # one pixel in so many is decoded, as by a first strided pass
RADII = (1, 3, 6, 8, 11)  # of the boundary accuracy, for a picture of 4 megapixels


class Comparison(NamedTuple):
    """A kernel, its plain twin, and what both are given; floats may differ by ``tolerance``."""

    kernel: Callable[..., Any]
    plain: Callable[..., Any]
    arguments: tuple[Any, ...]
    tolerance: float = 0.0

    def check(self) -> None:
        """Raises `AssertionError` if the two differ."""
        ours, theirs = self.kernel(*self.arguments), self.plain(*self.arguments)
        np.testing.assert_allclose(ours, theirs, rtol=self.tolerance, atol=self.tolerance)


def comparison(name: str, shape: tuple[int, int]) -> Comparison:
    """The kernel of a name on a seeded picture (H, W)."""
    height, width = shape
    rng = np.random.default_rng(0)
    if name == "contour_band":
        return Comparison(contour_band, reference.contour_band, (_object(shape), 24))
    if name == "mask_and_doubt":
        return Comparison(mask_and_doubt, reference.mask_and_doubt, (rng.random(shape, np.float32), 0.02))
    if name == "network_input":
        picture = rng.integers(0, 256, (*shape, 3), np.uint8)
        statistics = rng.random(3, np.float32), rng.random(3, np.float32)
        kernel, plain = (_filled(f, (*shape, 4)) for f in (network_input, reference.network_input))
        return Comparison(kernel, plain, (picture, rng.random(shape, np.float32), *statistics))
    if name == "strided_changes":
        stride = 4
        changed = cv2.resize(
            _object(shape).view(np.uint8), (len(grid_lines(width, stride)), len(grid_lines(height, stride)))
        )
        return Comparison(strided_changes, reference.strided_changes, (changed.astype(bool), shape, stride))
    if name.startswith("area_reduce"):
        half = (max(1, height // 2), max(1, width // 2))
        arguments = (shape, half, (0, half[0], 0, half[1]), (0, 0))
        if name.endswith("float32"):
            source: NDArray[Any] = rng.random(shape, np.float32)
            return Comparison(area_reduce, reference.area_reduce, (source, *arguments), 1e-6)
        return Comparison(area_reduce, reference.area_reduce, (rng.integers(0, 256, (*shape, 3), np.uint8), *arguments))
    if name == "any_in_cells":
        return Comparison(any_in_cells, reference.any_in_cells, (_object(shape), *(np.arange(0, n, 4) for n in shape)))
    if name == "classes_in_cells":
        ends = tuple(np.arange(0, n, 8) for n in shape)
        return Comparison(classes_in_cells, reference.classes_in_cells, (rng.random(shape, np.float32), *ends))
    if name == "fill_cells":
        starts = [np.arange(0, n, 4) for n in shape]
        cells = _object((len(starts[0]), len(starts[1])))
        return Comparison(fill_cells, reference.fill_cells, (cells, *starts, shape))
    if name == "interpolate":
        halves = [max(1, n // 2) for n in shape]
        axes = [_between(n, m, rng) for n, m in zip(halves, shape, strict=True)]
        return Comparison(interpolate, reference.interpolate, (rng.random(halves, np.float32), *axes))
    if name == "band_counts":
        truth = _object(shape)
        return Comparison(band_counts, reference.band_counts, (np.roll(truth, 2, 1), truth, RADII))
    return _decode(name, shape, rng)


NAMES = (
    "contour_band",
    "mask_and_doubt",
    "network_input",
    "strided_changes",
    "area_reduce uint8",
    "area_reduce float32",
    "any_in_cells",
    "classes_in_cells",
    "fill_cells",
    "interpolate",
    "band_counts",
    "interpolated_decode",
    "ensemble_decode",
)


def _filled(function: Callable[..., None], shape: tuple[int, ...]) -> Callable[..., Any]:
    """``function``, which fills its last argument, as one that returns the bits of bfloat16."""

    def call(*arguments: Any) -> NDArray[np.uint16]:
        out = np.empty(shape, np.uint16)
        function(*arguments, out)
        return out

    return call


def _object(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask with one body, whose outline is ragged."""
    y, x = (np.linspace(-1, 1, n)[:, None] if i == 0 else np.linspace(-1, 1, n) for i, n in enumerate(shape))
    angle = np.arctan2(y, x)
    found: NDArray[np.bool_] = np.hypot(y, x) < 0.6 + 0.05 * np.sin(9 * angle) + 0.02 * np.sin(71 * angle)
    return found


def _between(samples: int, count: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Positions between the samples of an axis, as `interpolate` takes them."""
    low = np.minimum(np.arange(count) * samples // count, samples - 1)
    return low, np.minimum(low + 1, samples - 1), rng.random(count, np.float32)


def _decode(name: str, shape: tuple[int, int], rng: np.random.Generator) -> Comparison:
    """A kernel that decodes scattered pixels of a latent of half the resolution, all of whose blocks exist."""
    cells = tuple(-(-n // 2) for n in shape)
    blocks = tuple(-(-n // SIDE) for n in cells)
    values = _normal(rng, blocks[0] * blocks[1] * SIDE**2 + 1, CHANNELS)
    slots = np.arange(blocks[0] * blocks[1], dtype=np.int32).reshape(blocks)
    points = np.stack([rng.integers(0, n, max(1, shape[0] * shape[1] // POINTS), np.int32) for n in shape], 1)
    hidden, bias, last = _normal(rng, CHANNELS, CHANNELS) / 6, _normal(rng, CHANNELS), _normal(rng, CHANNELS)
    lows = [np.minimum(np.arange(n, dtype=np.int32) // 2, m - 1) for n, m in zip(shape, cells, strict=True)]
    highs = [np.minimum(low + 1, m - 1) for low, m in zip(lows, cells, strict=True)]
    if name == "interpolated_decode":
        tables = [
            InterpolatedTable(low, high, rng.random(len(low), np.float32), _normal(rng, len(low), CHANNELS))
            for low, high in zip(lows, highs, strict=True)
        ]
        guides = _normal(rng, CHANNELS, GUIDES)
        weights = InterpolatedWeights(guides, bias, hidden, bias, last, 0.1)
        arguments = (values, slots, SIDE, *tables, points, _normal(rng, len(points), GUIDES), weights)
        return Comparison(queries.interpolated_decode, reference_queries.interpolated_decode, arguments, 1e-3)
    assert name == "ensemble_decode", name
    axes = [
        EnsembleTable(
            np.stack((low, high)), rng.random((2, len(low)), np.float32) - 0.5, _normal(rng, 2, len(low), CHANNELS)
        )
        for low, high in zip(lows, highs, strict=True)
    ]
    layers = EnsembleWeights(np.stack([hidden] * 3), np.stack([bias] * 3), last, 0.1)
    arguments = (values, slots, SIDE, *axes, points, layers)
    return Comparison(queries.ensemble_decode, reference_queries.ensemble_decode, arguments, 1e-3)


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, np.float32)


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def compared(name: str, pytestconfig: pytest.Config) -> Comparison:
    height = max(2, round((pytestconfig.getoption("--megapixels") * 1e6 / 1.5) ** 0.5))
    found = comparison(name, (height, round(1.5 * height)))
    found.check()
    return found


@pytest.mark.parametrize(("which", "rounds"), [("kernel", 9), ("plain", 3)])
def test_kernel(benchmark: Any, compared: Comparison, which: str, rounds: int) -> None:
    benchmark.pedantic(getattr(compared, which), compared.arguments, rounds=rounds, warmup_rounds=1)
