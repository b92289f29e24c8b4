import copy

import numpy as np
import pytest
import torch

from refine import decode as decoding
from refine.blocks import Area, Blocks
from refine.coords import Axis
from refine.decode import decode
from refine.models import NETWORKS
from refine_kernels import queries

CHOICES = [("CRMResNet50", {}), ("CRMSmall", {}), ("CRMSmall", {"decoder": "ensemble"})]
SAMPLES, QUERIES = (42, 68), (80, 106)
CELLS = (21, 34)


@pytest.fixture(scope="module", params=CHOICES, ids=str)
def network(request):
    torch.manual_seed(0)
    name, arguments = request.param
    network = NETWORKS[name](**arguments)
    for last in (m for n, m in network.named_modules() if n in ("decoder.last", "imnet.layers.8")):
        torch.nn.init.normal_(last.weight, 0, 10 if name == "CRMResNet50" else 1)
    return network.folded()


@pytest.fixture
def by_torch(monkeypatch, network):
    """No kernel for the network, as for a decoder or on a device that has none."""
    monkeypatch.setattr(type(network), "point_kernel", lambda *_: None)


@pytest.fixture(scope="module")
def latent():
    x = torch.randn(1, 32, *CELLS, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def axes(network):
    return [network.axis(q, n) for q, n in zip(QUERIES, SAMPLES, strict=True)]


INPUT = 2 * torch.rand(1, 4, *QUERIES, generator=torch.Generator().manual_seed(2)) - 1


def guide(network, top: int = 0, left: int = 0):
    """What queries read of their own pixel, in a window of the grid that begins at (top, left)."""
    return (lambda at: INPUT[0, :, top + at[:, 0], left + at[:, 1]].T) if network.guided else None


@pytest.fixture(scope="module")
def expected(network, latent, axes):
    """Probabilities of all queries, by the network alone."""
    with torch.inference_mode():
        p = network.decode(latent, *axes, INPUT if network.guided else None)[0, 0].sigmoid().numpy()
    assert p.std() > 0.05
    return p


class Contract:
    """What holds by a kernel and by torch."""

    @pytest.mark.parametrize("points_at_once", [1000, 2**17])
    def test_all_queries_have_the_networks_values(self, monkeypatch, network, latent, axes, expected, points_at_once):
        monkeypatch.setattr(decoding, "POINTS", points_at_once)
        with torch.inference_mode():
            found = decode(network, Blocks.whole(latent, 2), *axes, None, guide(network))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("window", [(0, 1, 0, 1), (79, 80, 0, 106), (14, 60, 40, 106)])
    def test_a_window_of_the_grid_needs_only_the_cells_that_it_reads(self, network, latent, axes, expected, window):
        top, bottom, left, right = window
        rows, columns = axes[0][top:bottom], axes[1][left:right]
        part = cut(latent, rows, columns)
        with torch.inference_mode():
            found = decode(network, part, rows, columns, None, guide(network, top, left))
        np.testing.assert_allclose(found, expected[top:bottom, left:right], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("points_at_once", [100, 2**17])
    @pytest.mark.parametrize("count", [0, 1, 777])
    def test_points_have_the_values_that_they_have_in_the_grid(
        self, monkeypatch, network, latent, axes, expected, count, points_at_once
    ):
        monkeypatch.setattr(decoding, "POINTS", points_at_once)
        points = np.random.default_rng(0).integers((0, 0), QUERIES, (count, 2))
        with torch.inference_mode():
            found = decode(network, Blocks.whole(latent, 2), *axes, points, guide(network))
        assert found.shape == (count,)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[tuple(points.T)], rtol=0, atol=1e-5)

    def test_the_corners_of_the_grid_are_points_like_others(self, network, latent, axes, expected):
        points = np.array([(y, x) for y in (0, 79) for x in (0, 105)])
        with torch.inference_mode():
            found = decode(network, Blocks.whole(latent, 2), *axes, points, guide(network))
        np.testing.assert_allclose(found, expected[tuple(points.T)], rtol=0, atol=1e-5)

    def test_points_of_a_window_are_read_by_the_origin_of_its_cells(self, network, latent, axes, expected):
        rows, columns = axes[0][20:60], axes[1][30:]
        points = np.argwhere(np.random.default_rng(0).random((40, 76)) < 0.1)
        with torch.inference_mode():
            found = decode(network, cut(latent, rows, columns), rows, columns, points, guide(network, 20, 30))
        np.testing.assert_allclose(found, expected[20:60, 30:][tuple(points.T)], rtol=0, atol=1e-5)

    def test_points_are_read_from_blocks_of_which_only_some_exist(self, network, latent, axes, expected):
        needed = np.zeros((6, 9), bool)
        needed[1, 2] = needed[5, 8] = True
        whole = Blocks.whole(latent, 2)
        some = Area(needed, SAMPLES).compute(2, 0, lambda b: b.read(whole), side=8)
        assert 0 < int((some.slots >= 0).sum()) < some.slots.numel()
        exists = some.slots.numpy().repeat(8, 0).repeat(8, 1) >= 0
        (top, bottom), (left, right) = (axis.read() for axis in axes)
        points = np.argwhere(np.all([exists[np.ix_(y, x)] for y in (top, bottom) for x in (left, right)], 0))
        assert 100 < len(points) < 80 * 106
        with torch.inference_mode():
            found = decode(network, some, *axes, points, guide(network))
        np.testing.assert_allclose(found, expected[tuple(points.T)], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_stays_close(self, network, latent, axes, expected, dtype):
        points = np.random.default_rng(0).integers((0, 0), QUERIES, (300, 2))
        half = copy.deepcopy(network).to(dtype)
        with torch.inference_mode():
            found = decode(half, Blocks.whole(latent.to(dtype), 2), *axes, points, guide(network))
        assert found.dtype == np.float32
        difference = np.abs(found - expected[tuple(points.T)])
        assert difference.mean() < 0.01
        assert difference.max() < 0.15


class TestByKernel(Contract):
    pass


@pytest.mark.usefixtures("by_torch")
class TestByTorch(Contract):
    pass


def cut(latent: torch.Tensor, rows: Axis, columns: Axis) -> Blocks:
    """The cells that the queries of two axes read, as a map of its own."""
    (top, bottom), (left, right) = rows.cells(), columns.cells()
    part = latent[:, :, top:bottom, left:right].contiguous(memory_format=torch.channels_last)
    return Blocks.around(part, 2, (top, left))


@pytest.mark.parametrize(
    ("dtype", "taken"), [(torch.float32, True), (torch.bfloat16, True), (torch.float16, False)], ids=str
)
def test_the_kernel_is_taken_where_there_is_one(monkeypatch, network, latent, axes, dtype, taken):
    calls = []
    for name in ("ensemble_decode", "interpolated_decode"):
        kernel = getattr(queries, name)
        monkeypatch.setattr(queries, name, lambda *a, kernel=kernel: calls.append(len(a)) or kernel(*a))
    points = np.array([[3, 4], [70, 80]])
    with torch.inference_mode():
        decode(copy.deepcopy(network).to(dtype), Blocks.whole(latent.to(dtype), 2), *axes, points, guide(network))
    ensemble_of_crm_s = network.guided and network.neighbours == 4
    assert len(calls) == (taken and not ensemble_of_crm_s)


def test_a_points_value_does_not_depend_on_the_cells_that_it_does_not_read(network, latent, axes, expected):
    point = np.array([[40, 60]])
    (top, bottom), (left, right) = (axis[i : i + 1].cells() for axis, i in zip(axes, point[0], strict=True))
    torn = torch.full_like(latent, torch.nan)
    torn[:, :, top:bottom, left:right] = latent[:, :, top:bottom, left:right]
    with torch.inference_mode():
        found = decode(network, Blocks.whole(torn, 2), *axes, point, guide(network))
    np.testing.assert_allclose(found, expected[40, 60], rtol=0, atol=1e-5)
