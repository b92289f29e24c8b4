import copy
import math

import numpy as np
import pytest
import torch

from refine.config import EMBEDDED
from refine.embedding import SHAPE, Embedding
from refine.features import latent_at, whole_latent, with_deep
from refine.frame import Frame, View
from refine.models import PRESETS, build
from refine.planes import Held
from refine.tiles import Window

CPU = torch.device("cpu")


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Statistics that are not the identity, so that nothing cancels; folded for inference."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network.folded()


@pytest.fixture(scope="module", params=PRESETS)
def model(request):
    """A preset's name and network."""
    torch.manual_seed(0)
    return request.param, lively(build(PRESETS[request.param]))


def viewed(model, original: tuple[int, int], scale: float, grid: tuple[int, int] | None = None) -> View:
    """A view of random noise at ``scale``, with queries at all pixels or as many as ``grid``."""
    name, network = model
    rng = np.random.default_rng(0)
    spec = PRESETS[name]
    channels = int(spec.arguments["in_channels"]) - 1
    image, mask = rng.integers(0, 256, (*original, channels), np.uint8), rng.random(original, np.float32)
    deep = spec.guidance in EMBEDDED
    embedding = Embedding(rng.standard_normal(SHAPE, np.float32), original) if deep else None
    frame = Frame(Held(image), Held(mask), spec.cascade, CPU, embedding=embedding)
    size = frame.scaled(scale)
    rows, columns = (network.axis_at(*n) for n in zip(frame.size, size, grid or frame.size, strict=True))
    view = View.of(frame, size, frame.mask, rows, columns)
    return with_deep(network, view, dtype=network.to_latent.weight.dtype) if deep else view


def plainly(network, view: View) -> torch.Tensor:
    """The latent (1, C, h, w) of the whole at once."""
    (height, width), sizes = view.size, network.tap_sizes(*view.size)
    everything = Window(0, height, 0, width)
    taps = network.encode(view.input(everything), view.deep_in(everything, torch.float32))
    return network.fuse(taps, sizes=sizes, origin=(0, 0), window=Window(0, sizes[0][0], 0, sizes[0][1]))


def cells_read(view: View, window: Window, wanted: np.ndarray) -> np.ndarray:
    """The latent's cells that the wanted queries of a window of the grid read, query by query."""
    found = np.zeros([max(int(t.max()) for t in axis.read()) + 1 for axis in (view.rows, view.columns)], bool)
    for y, x in np.argwhere(wanted) + np.array([window.top, window.left]):
        rows, columns = ([int(t[i]) for t in axis.read()] for axis, i in ((view.rows, y), (view.columns, x)))
        found[np.ix_(rows, columns)] = True
    return found


@pytest.mark.parametrize(
    ("original", "scale", "tile", "patch"),
    [((1, 1), 1, 4096, 4096), ((1, 90), 0.5, 64, 32), ((61, 75), 0.5, 32, 32), ((5, 601), 1, 96, 48)],
)
def test_the_latent_of_the_whole_grid_is_that_of_the_network(model, original, scale, tile, patch):
    view = viewed(model, original, scale)
    with torch.inference_mode():
        expected = plainly(model[1], view)
        found, origin = whole_latent(
            model[1], view, Window(0, view.grid[0], 0, view.grid[1]), dtype=torch.float32, tile=tile, patch=patch
        )
    assert origin == (0, 0)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("original", "scale", "grid", "window"),
    [
        ((91, 110), 0.5, None, Window(0, 20, 0, 30)),
        ((91, 110), 0.5, None, Window(77, 78, 3, 4)),
        ((91, 110), 0.5, (91, 120), Window(60, 91, 40, 110)),
        ((5, 601), 1, None, Window(1, 4, 507, 569)),  # whose halo begins inside the picture
        ((601, 5), 1, (401, 5), Window(341, 349, 0, 5)),
    ],
)
def test_the_latent_of_a_window_has_the_cells_that_its_queries_read(model, original, scale, grid, window):
    view = viewed(model, original, scale, grid)
    rows, columns = view.rows[window.top : window.bottom], view.columns[window.left : window.right]
    with torch.inference_mode():
        expected = plainly(model[1], view)
        found, (top, left) = whole_latent(model[1], view, window, dtype=torch.float32, tile=64, patch=32)
    for axis, first, length in ((rows, top, found.shape[2]), (columns, left, found.shape[3])):
        assert first <= axis.cells()[0]
        assert axis.cells()[1] <= first + length
    part = expected[:, :, top : top + found.shape[2], left : left + found.shape[3]]
    assert (found - part).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("original", "scale"), [((1, 1), 1), ((1, 90), 0.5), ((83, 75), 1), ((75, 131), 0.5), ((3, 601), 1)]
)
def test_the_latent_at_wanted_queries_is_that_of_the_network(model, original, scale):
    view = viewed(model, original, scale)
    rng = np.random.default_rng(7)
    with torch.inference_mode():
        expected = plainly(model[1], view)
        for share in (0.1, 0.9):
            top, left = (int(share * rng.integers(n)) for n in view.grid)
            window = Window(top, int(rng.integers(top, view.grid[0])) + 1, left, view.grid[1])
            wanted = rng.random((window.height, window.width)) < 0.001
            wanted[rng.integers(window.height), rng.integers(window.width)] = True
            found = latent_at(model[1], view, window, wanted, dtype=torch.float32)
            cells = np.argwhere(cells_read(view, window, wanted))
            y, x = torch.from_numpy(cells).T
            values = found.at(y - found.origin[0], x - found.origin[1])
            assert (values - expected[0, :, y, x].T).abs().max() <= 1e-5 * expected.abs().max()


def test_a_query_at_a_corner_of_the_picture_finds_its_cells(model):
    view = viewed(model, (71, 97), 1)
    window = Window(0, view.grid[0], 0, view.grid[1])
    with torch.inference_mode():
        expected = plainly(model[1], view)
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            wanted = np.zeros(view.grid, bool)
            wanted[corner] = True
            y, x = torch.from_numpy(np.argwhere(cells_read(view, window, wanted))).T
            found = latent_at(model[1], view, window, wanted, dtype=torch.float32)
            values = found.at(y - found.origin[0], x - found.origin[1])
            assert (values - expected[0, :, y, x].T).abs().max() <= 1e-5 * expected.abs().max()


def test_a_query_in_a_large_picture_reads_a_part_of_it(model, monkeypatch):
    view = viewed(model, (1400, 1500), 1)
    read: list[Window] = []
    original = View.input
    monkeypatch.setattr(View, "input", lambda self, window, *a: read.append(window) or original(self, window, *a))
    wanted = np.zeros((200, 200), bool)
    wanted[100, 100] = True
    with torch.inference_mode():
        found = latent_at(model[1], view, Window(600, 800, 700, 900), wanted, dtype=torch.float32)
    assert found.computed < 0.01 * math.prod(model[1].tap_sizes(*view.size)[0])
    (window,) = read
    longest = 8 + 2 * model[1].halo + 2 * model[1].window
    assert max(window.height, window.width) <= longest


def test_a_latent_has_the_type_that_was_asked_for(model):
    view = viewed(model, (20, 30), 1)
    window, wanted = Window(0, view.grid[0], 0, view.grid[1]), np.zeros(view.grid, bool)
    wanted[3, 4] = True
    dtype = torch.bfloat16
    half = copy.deepcopy(model[1]).to(dtype)
    with torch.inference_mode():
        assert whole_latent(half, view, window, dtype=dtype, tile=4096, patch=128)[0].dtype == dtype
        assert latent_at(half, view, window, wanted, dtype=dtype).values.dtype == dtype
