"""`encode_area` of every network: the latent of the needed squares alone is that of the whole picture."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import with_statistics
from test_crm_r50 import lively

from refine.blocks import FINE, Area, Batch, Blocks
from refine.models.crm_r50 import CRMResNet50
from refine.models.crm_s import TRUNKS, CRMSmall
from refine.tiles import Window, cover


def crm_r50() -> CRMResNet50:
    torch.manual_seed(0)
    return lively(CRMResNet50()).folded()


def crm_s(trunk: str) -> CRMSmall:
    torch.manual_seed(3)
    return with_statistics(CRMSmall(trunk=trunk)).folded()


NETWORKS = {"crm-r50": crm_r50, **{trunk: partial(crm_s, trunk) for trunk in TRUNKS}}


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> Any:
    return NETWORKS[request.param]()


def cases(names: str, *, r50: list[tuple], small: list[tuple]) -> pytest.MarkDecorator:
    """`names` take the values of `r50` for that network and those of `small` for crm-s with each trunk."""
    values = [("crm-r50", *case) for case in r50] + [(trunk, *case) for trunk in TRUNKS for case in small]
    return pytest.mark.parametrize(f"network, {names}", values, indirect=["network"])


def latent_of(network: Any, x: torch.Tensor) -> torch.Tensor:
    sizes = network.tap_sizes(*x.shape[-2:])
    window = Window(0, sizes[0][0], 0, sizes[0][1])
    return network.fuse(network.encode(x), sizes=sizes, origin=(0, 0), window=window)


def nothing_needed(height: int, width: int) -> np.ndarray:
    return np.zeros((-(-height // FINE), -(-width // FINE)), bool)


def error_in(found: Blocks, latent: torch.Tensor, needed: np.ndarray, origin: tuple[int, int] = (0, 0)) -> float:
    """The largest error in the needed squares, relative to the latent's range; both begin at cell ``origin``."""
    latent = latent[0, :, origin[0] :, origin[1] :]
    cells = torch.from_numpy(needed).repeat_interleave(FINE // 2, 0).repeat_interleave(FINE // 2, 1)
    y, x = cells[: latent.shape[1], : latent.shape[2]].nonzero().T
    return float((found.at(y, x) - latent[:, y, x].T).abs().max() / latent.abs().max())


@cases(
    "size",
    r50=[((1, 1),), ((1, 70),), ((65, 66),), ((75, 118),)],
    small=[((1, 1),), ((1, 70),), ((40, 33),), ((97, 64),)],
)
def test_an_areas_latent_is_that_of_the_whole(network, size):
    x = torch.randn(1, 4, *size)
    rng = np.random.default_rng(0)
    shape = nothing_needed(*size).shape
    few, many = rng.random(shape), rng.random(shape)
    maps = [few < 0.03, few < 0.05, many < 0.4, np.ones(shape, bool)]
    for at in ((0, 0), (-1, -1), (shape[0] // 2, -1), (shape[0] // 2, shape[1] // 2)):
        maps.append(np.zeros(shape, bool))
        maps[-1][at] = True
    with torch.inference_mode():
        latent = latent_of(network, x)
        for needed in maps:
            if needed.any():
                assert error_in(network.encode_area(x, needed), latent, needed) <= 1e-5


def poison_what_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes cells inside the picture that were not computed so large that no reader of them stays unnoticed."""
    gather = Batch.gather

    def poisoned(self: Batch, source: Blocks, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out, (height, width) = gather(self, source, y, x), source.size
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        missing = inside & (source.rows(y[:, :, None], x[:, None, :]) == len(source.values) - 1)
        return out + 1e4 * missing[:, None]

    monkeypatch.setattr(Batch, "gather", poisoned)


@cases(
    "size, square",
    r50=[case for k in (31, 32, 33, 40) for case in (((16, 544), (0, k)), ((521, 9), (k, 0)))],
    small=[((160, 192), (k, k)) for k in (3, 4, 8, 11, 12, 15)],
)
def test_no_stage_reads_what_the_one_before_it_did_not_compute(network, monkeypatch, size, square):
    x = torch.randn(1, 4, *size)
    needed = nothing_needed(*size)
    needed[square] = True
    with torch.inference_mode():
        latent = latent_of(network, x)
        poison_what_does_not_exist(monkeypatch)
        assert error_in(network.encode_area(x, needed), latent, needed) <= 1e-5


@cases("size, side", r50=[((501, 37), 120), ((38, 502), 120)], small=[((40, 1301), 320)])
def test_an_areas_latent_in_a_window_needs_the_halo_alone_and_lies_on_the_whole_pictures_grid(network, size, side):
    x = torch.randn(1, 4, *size)
    with torch.inference_mode():
        latent = latent_of(network, x)
        for core in cover(*size, side, network.window):
            area = core.grown(network.halo, *size)
            inner = core.moved(-area.top, -area.left)
            needed = nothing_needed(area.height, area.width)
            needed[inner.top // FINE, inner.left // FINE] = True
            needed[(inner.bottom - 1) // FINE, (inner.right - 1) // FINE] = True
            origin = (area.top // 2, area.left // 2)
            found = network.encode_area(x[(..., *area.slices)], needed, sizes=network.tap_sizes(*size), origin=origin)
            assert error_in(found, latent, needed, origin) <= 1e-5


@cases(
    "side, square, largest, last",
    r50=[(640, (40, 38), 0.4, 0.003)],
    small=[(512, (32, 31), 0.07, 0.07)],  # four blocks of 64 px
)
def test_one_needed_square_is_a_small_part_of_the_work(network, monkeypatch, side, square, largest, last):
    stages: list[Blocks] = []
    compute = Area.compute
    monkeypatch.setattr(Area, "compute", lambda *a, **k: stages.append(compute(*a, **k)) or stages[-1])
    needed = nothing_needed(side, side)
    needed[square] = True
    with torch.inference_mode():
        found = network.encode_area(torch.zeros(1, 4, side, side), needed)
    assert stages[-1] is found
    assert int((found.slots >= 0).sum()) == 1
    shares = [stage.computed / math.prod(stage.size) for stage in stages]
    assert shares[-1] < last
    assert max(shares) < largest
