import copy

import numpy as np
import pytest
import torch
from conftest import with_statistics
from test_encode_area import error_in, nothing_needed, poison_what_does_not_exist

from refine.errors import OptionError
from refine.models.layers import ConvNorm
from refine.models.sam_sr import MASKS, Attention, SamSR
from refine.tiles import Window, cover


def sam_sr(mask: str) -> SamSR:
    torch.manual_seed(3)
    return with_statistics(SamSR(mask=mask))


@pytest.fixture(scope="module", params=MASKS)
def network(request) -> SamSR:
    return sam_sr(request.param)


def given(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An input and a deep map of its cells."""
    torch.manual_seed(0)
    return torch.randn(1, 4, height, width), torch.randn(1, 64, -(-height // 8), -(-width // 8))


def softmax_twin(attention: Attention, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The sum over the cells of each cell's window, in float64 and cell by cell; maps are (C, n, m)."""

    def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
        return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()

    channels, n, m = image.shape
    out = np.zeros((n, m, channels))
    for y in range(n):
        for x in range(m):
            side = attention.window or max(n, m)
            top, left = y // side * side, x // side * side
            window = (slice(None), slice(top, top + side), slice(left, left + side))
            seen, values = (v[window].reshape(channels, -1).T for v in (image, mask))
            q = linear(attention.query, image[:, y, x])
            k, v = linear(attention.key, seen), linear(attention.value, values)
            found = []
            for part in np.split(np.arange(channels), attention.heads):
                scores = k[:, part] @ q[part] / np.sqrt(len(part))
                weights = np.exp(scores - scores.max())
                found.append(weights / weights.sum() @ v[:, part])
            out[y, x] = linear(attention.out, np.concatenate(found))
    return out.transpose(2, 0, 1)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("size", [(8, 4), (6, 9), (1, 3)])
def test_attention_is_a_softmax_over_the_cells_that_are_seen(window, size):
    torch.manual_seed(1)
    attention = Attention(16, heads=4, window=window)
    image, mask = torch.randn(2, 16, *size), torch.randn(2, 16, *size)
    with torch.inference_mode():
        found = attention(image, mask).numpy()
    for i in range(2):
        expected = softmax_twin(attention, image[i].double().numpy(), mask[i].double().numpy())
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


@pytest.mark.parametrize("window", [None, 8])
def test_windowed_attention_does_not_see_beyond_its_window_and_global_sees_all(window):
    torch.manual_seed(1)
    attention = Attention(16, window=window)
    image, mask = torch.randn(1, 16, 20, 24), torch.randn(1, 16, 20, 24)
    changed = [x.clone() for x in (image, mask)]
    for x in changed:
        x[:, :, 9, 10] += 1
    with torch.inference_mode():
        differs = ((attention(image, mask) - attention(*changed)).abs().amax((0, 1)) > 1e-7).numpy()
    assert differs[8:16, 8:16].all()
    differs[8:16, 8:16] = False
    assert differs.any() == (window is None)


def test_the_mask_comes_into_the_deep_branch_of_all_but_the_first_version(network):
    torch.manual_seed(0)
    features, mask = torch.randn(1, 256, 9, 16), 2 * torch.rand(1, 1, 36, 64) - 1
    with torch.inference_mode():
        one, other = network.deep(features, mask), network.deep(features, -mask)
        elsewhere = network.deep(features.flip(3), mask)
    assert one.shape == (1, 64, 9, 16)
    assert ((one - other).abs().max() > 1e-2) == (network.embed is not None)
    assert (one - elsewhere).abs().max() > 1e-2


def test_addition_is_of_the_masks_own_cells_and_global_attention_of_all():
    torch.manual_seed(0)
    features, mask = torch.randn(1, 256, 16, 24), 2 * torch.rand(1, 1, 64, 96) - 1
    changed = mask.clone()
    changed[:, :, 4 * 9 : 4 * 10, 4 * 3 : 4 * 4] *= -1  # cell (9, 3)
    reached = {}
    for kind in MASKS:
        network = sam_sr(kind)
        with torch.inference_mode():
            difference = (network.deep(features, mask) - network.deep(features, changed)).abs().amax((0, 1)) > 1e-6
        reached[kind] = {tuple(cell) for cell in difference.nonzero().tolist()}
    around = {(y, x) for y in (8, 9, 10) for x in (2, 3, 4)}  # what a 3x3 convolution reads
    assert not reached["none"]
    assert reached["add"] == around
    assert reached["windowed"] == {(y, x) for y in range(8, 16) for x in range(8)}
    assert len(reached["global"]) == 16 * 24


def test_the_deep_map_flips_with_the_picture_where_its_kernels_do(network):
    # Of the whole network that cannot be said: a kernel is not its own mirror image, and strides begin at the left.
    network = copy.deepcopy(network)
    if network.embed is not None:
        weight = network.embed[1].conv.weight
        parts = weight.detach().view(-1, 4, 4, 3, 3)  # a cell's 4 x 4 pixels are its channels
        network.embed[1].conv.weight.data = ((parts + parts.flip(2, 4)) / 2).view_as(weight)
    torch.manual_seed(0)
    features, mask = torch.randn(1, 256, 16, 24), 2 * torch.rand(1, 1, 64, 96) - 1
    with torch.inference_mode():
        found = network.deep(features.flip(3), mask.flip(3))
        torch.testing.assert_close(found, network.deep(features, mask).flip(3), atol=1e-5, rtol=1e-5)


SIZES = ((9, 16), (16, 9), (1, 3), (9, 16))


def test_deep_maps_of_several_sizes_are_those_of_each_by_itself(network):
    torch.manual_seed(0)
    pictures = [(torch.randn(1, 256, n, m), 2 * torch.rand(1, 1, 4 * n, 4 * m) - 1) for n, m in SIZES]
    for one in (network, network.folded()):
        with torch.inference_mode():
            for found, given in zip(one.deep_each(pictures), pictures, strict=True):
                torch.testing.assert_close(found, one.deep(*given), atol=1e-5, rtol=1e-5)


def test_while_training_the_statistics_are_those_of_all_pictures(network):
    torch.manual_seed(0)
    features, mask = torch.randn(3, 256, 5, 7), 2 * torch.rand(3, 1, 20, 28) - 1
    one, other = (copy.deepcopy(network).train() for _ in range(2))
    found = torch.cat(one.deep_each([(features[i : i + 1], mask[i : i + 1]) for i in range(3)]))
    torch.testing.assert_close(found, other.deep(features, mask), atol=1e-5, rtol=1e-4)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], atol=1e-6, rtol=1e-4)


def test_folded_is_unfolded(network):
    torch.manual_seed(0)
    features, mask = torch.randn(1, 256, 12, 8), 2 * torch.rand(1, 1, 48, 32) - 1
    x, folded = torch.rand(1, 4, 96, 64), network.folded()
    with torch.inference_mode():
        a, b = (n.encode(x, n.deep(features, mask))[0] for n in (network, folded))
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_a_latent_cell_sees_no_farther_than_the_halo():
    network = SamSR().eval()
    for module in network.modules():  # linear and positive, so that nothing hides an influence
        if isinstance(module, ConvNorm):
            module.activation = None
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    reaches = {"picture": 0, "deep": 0}
    for cell in range(80, 80 + 8):
        inputs = torch.rand(1, 4, 32, 320, requires_grad=True), torch.rand(1, 64, 4, 40, requires_grad=True)
        gradients = torch.autograd.grad(network.encode(*inputs)[0][0, :, :, cell].sum(), inputs)
        for name, gradient, side in zip(reaches, gradients, (1, 8), strict=True):
            seen = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
            before, after = 2 * cell - side * int(seen.min()), side * int(seen.max() + 1) - (2 * cell + 2)
            reaches[name] = max(reaches[name], before, after)
    assert max(reaches.values()) <= network.halo
    assert reaches["picture"] > network.halo - network.window, "the halo is larger than it has to be"


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 33), (64, 65)])
def test_sides_between_two_windows_are_continued_by_their_last_pixels(size):
    network = sam_sr("none")
    x, deep = given(*size)
    rows, columns = (torch.arange(-(-n // 8) * 8).clamp(max=n - 1) for n in size)
    with torch.inference_mode():
        continued = network.encode(x[:, :, rows][:, :, :, columns], deep)[0]
        (latent,) = network.encode(x, deep)
    assert latent.shape == (1, 32, *network.tap_sizes(*size)[0])
    torch.testing.assert_close(latent, continued[:, :, : latent.shape[2], : latent.shape[3]])


@pytest.mark.parametrize("square", [(k, k) for k in (0, 3, 4, 8, 11, 12, 15)])
def test_no_stage_reads_what_the_one_before_it_did_not_compute(monkeypatch, square):
    network = sam_sr("none").folded()
    x, deep = given(150, 189)
    needed = nothing_needed(150, 189)
    needed[square] = True
    with torch.inference_mode():
        (latent,) = network.encode(x, deep)
        poison_what_does_not_exist(monkeypatch)
        assert error_in(network.encode_area(x, needed, deep=deep), latent, needed) <= 1e-5


def test_an_area_in_a_window_needs_the_halo_alone():
    network, size = sam_sr("none").folded(), (40, 421)
    x, deep = given(*size)
    with torch.inference_mode():
        (latent,) = network.encode(x, deep)
        for core in cover(*size, 96, network.window):
            area = core.grown(network.halo, *size)
            inner: Window = core.moved(-area.top, -area.left)
            needed = nothing_needed(area.height, area.width)
            needed[inner.top // 8, inner.left // 8] = needed[(inner.bottom - 1) // 8, (inner.right - 1) // 8] = True
            cells = deep[(..., *area.divided(8).slices)]
            found = network.encode_area(x[(..., *area.slices)], needed, deep=cells)
            assert error_in(found, latent, needed, (area.top // 2, area.left // 2)) <= 1e-5


def test_a_fresh_network_changes_nothing():
    network = SamSR().eval()
    x, deep = given(32, 64)
    x = x.sigmoid()
    x[:, 3] = 2 * x[:, 3] - 1
    axes = [network.axis(n, n) for n in x.shape[-2:]]
    with torch.inference_mode():
        p = network.decode(network.encode(x, deep)[0], *axes, x).sigmoid()
    torch.testing.assert_close(p, ((x[:, 3:] + 1) / 2).clamp(0.018, 0.982), atol=1e-3, rtol=0)


def test_it_is_small(network):
    assert sum(p.numel() for p in network.parameters()) < 6e5


def test_an_unknown_way_of_the_mask_is_an_error():
    with pytest.raises(OptionError, match="mask='mean' is unknown; known are none, add, global, windowed"):
        SamSR(mask="mean")
