import math

import pytest
import torch
from torch.nn import functional as F

from refine.blocks import Blocks
from refine.coords import LerpAxis
from refine.errors import OptionError
from refine.models import PRESETS, build
from refine.models.crm_s import MASK_LOGIT_LIMIT, TRUNKS, CRMSmall, mask_logit
from refine.models.layers import ConvNorm
from refine.tiles import Window

CHOICES = [{}, {"trunk": "dense"}, {"decoder": "ensemble"}]


@pytest.fixture(scope="module", params=CHOICES, ids=str)
def network(request) -> CRMSmall:
    torch.manual_seed(0)
    network = CRMSmall(**request.param).eval()
    torch.nn.init.normal_(network.decoder.last.weight)
    return network


def multiplications(network: torch.nn.Module, x: torch.Tensor) -> int:
    """Multiplications of all convolutions and linear layers in `encode` and of the decoder at every pixel of ``x``."""
    total = 0

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()  # type: ignore[operator,index]

    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    (latent,) = network.encode(x)
    axes = [network.axis(n, n) for n in x.shape[-2:]]
    network.decode(latent, *axes, x)
    for hook in hooks:
        hook.remove()
    return total


def test_it_is_as_small_as_promised(network):
    assert sum(p.numel() for p in network.parameters()) <= 5e6
    with torch.inference_mode():
        giga = multiplications(network, torch.zeros(1, 4, 256, 256)) / 1e9
    assert giga * 16 <= 40  # a megapixel is 16 times as much


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_latent_cell_sees_no_farther_than_the_halo(trunk):
    network = CRMSmall(trunk=trunk).eval()
    for module in network.modules():  # linear and positive, so that nothing hides an influence
        if isinstance(module, ConvNorm):
            module.activation = None
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    before = after = 0
    for cell in range(256, 256 + 16):
        x = torch.rand(1, 4, 32, 1024, requires_grad=True)
        (gradient,) = torch.autograd.grad(network.encode(x)[0][0, :, :, cell].sum(), x)
        seen = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        before = max(before, 2 * cell - int(seen.min()))
        after = max(after, int(seen.max()) - (2 * cell + 1))
    assert max(before, after) <= network.halo
    if trunk == "mobilenetv2":
        assert max(before, after) > network.halo - network.window, "the halo is larger than it has to be"


def test_folded_is_unfolded(network):
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.rand(1, 4, 96, 64)
    with torch.inference_mode():
        a, b = network.encode(x)[0], network.folded().encode(x)[0]
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 33), (64, 65)])
def test_a_latent_has_half_the_inputs_size_rounded_up(network, size):
    with torch.inference_mode():
        (latent,) = network.encode(torch.rand(1, 4, *size))
    assert latent.shape == (1, 32, *network.tap_sizes(*size)[0])
    assert network.tap_sizes(*size)[0] == tuple(-(-n // 2) for n in size)


@pytest.mark.parametrize("size", [(1, 1), (40, 33), (64, 65)])
def test_a_side_between_two_windows_is_continued_by_its_last_pixels(network, size):
    x = torch.rand(1, 4, *size)
    rows, columns = (torch.arange(-(-n // 32) * 32).clamp(max=n - 1) for n in size)
    with torch.inference_mode():
        continued = network.encode(x[:, :, rows][:, :, :, columns])[0]
        (latent,) = network.encode(x)
    torch.testing.assert_close(latent, continued[:, :, : latent.shape[2], : latent.shape[3]])


def test_a_fresh_network_changes_nothing():
    network = CRMSmall().eval()
    x = torch.rand(1, 4, 32, 64)
    x[:, 3] = 2 * x[:, 3] - 1
    axes = [network.axis(n, n) for n in x.shape[-2:]]
    with torch.inference_mode():
        p = network.decode(network.encode(x)[0], *axes, x).sigmoid()
    limit = torch.tensor(MASK_LOGIT_LIMIT).sigmoid()
    expected = ((x[:, 3:] + 1) / 2).clamp(1 - limit, limit)
    torch.testing.assert_close(p, expected)


def test_the_masks_logit_is_limited():
    logits = mask_logit(torch.tensor([-1.0, 0.0, 0.5, 1.0]))
    torch.testing.assert_close(logits, torch.tensor([-MASK_LOGIT_LIMIT, 0.0, math.log(3), MASK_LOGIT_LIMIT]))


@pytest.mark.parametrize("queries", [16, 32, 37, 64])
def test_latents_are_interpolated_at_pixel_centres(queries):
    x = torch.rand(1, 3, 16, 16)
    axis = LerpAxis.between(queries, 32, 2, 16)
    expected = F.interpolate(x, size=(queries, queries), mode="bilinear", align_corners=False)
    torch.testing.assert_close(axis.interpolate(axis.interpolate(x, 2), 3), expected, atol=1e-5, rtol=0)


def test_a_part_of_the_queries_is_decoded_as_among_all(network):
    x = torch.rand(1, 4, 64, 96)
    rows, columns = (network.axis(2 * n, n) for n in x.shape[-2:])
    guide = torch.rand(1, 4, 128, 192)
    with torch.inference_mode():
        (latent,) = network.encode(x)
        whole = network.decode(latent, rows, columns, guide)
        part, across = rows[40:70], columns[30:50]
        (top, bottom), (left, right) = part.cells(), across.cells()
        window = network.fuse(
            (latent,), sizes=network.tap_sizes(64, 96), origin=(0, 0), window=Window(top, bottom, left, right)
        )
        found = network.decode(window, part.relative(top), across.relative(left), guide[:, :, 40:70, 30:50])
    torch.testing.assert_close(found, whole[:, :, 40:70, 30:50], atol=1e-5, rtol=1e-5)


def test_the_ensemble_is_the_mean_of_the_four_cells_answers_by_area():
    torch.manual_seed(2)
    network = CRMSmall(decoder="ensemble").eval()
    torch.nn.init.normal_(network.decoder.last.weight)
    latent, guide = torch.randn(1, 32, 5, 7), 2 * torch.rand(1, 4, 10, 14) - 1
    rows, columns = network.axis(10, 10), network.axis(14, 14)
    d = network.decoder
    with torch.inference_mode():
        found = network.decode(latent, rows, columns, guide)
        for i, j in ((0, 0), (3, 8), (9, 13), (6, 2)):
            # Cell k is centred at 2 k + 0.5 px; a query beyond the outer centres reads the outer cell alone.
            y, x = (min(max((q - 0.5) / 2, 0.0), n - 1.0) for q, n in ((i, 5), (j, 7)))
            expected = mask_logit(guide[0, 3, i, j])
            for cy in {min(int(y), 3), min(int(y), 3) + 1}:
                for cx in {min(int(x), 5), min(int(x), 5) + 1}:
                    first = latent[0, :, cy, cx] + d.guide(guide[0, :, i, j])
                    first = first + (y - cy) * d.phase.weight[:, 0] + (x - cx) * d.phase.weight[:, 2]
                    answer = d.last(d.hidden(first.relu()).relu())[0]
                    expected = expected + answer * (1 - abs(y - cy)) * (1 - abs(x - cx))
            torch.testing.assert_close(found[0, 0, i, j], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (64, 97)])
def test_points_have_the_logits_that_they_have_in_the_grid(network, size):
    x = 2 * torch.rand(1, 4, *size) - 1
    rows, columns = (network.axis(n, n) for n in size)
    points = torch.randint(0, 2**16, (200, 2)) % torch.tensor(size)
    with torch.inference_mode():
        (latent,) = network.encode(x)
        grid = network.decode(latent, rows, columns, x)[0, 0]
        found = network.decode_points(
            Blocks.whole(latent, 2), rows, columns, points, x[0, :, points[:, 0], points[:, 1]].T
        )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, grid[points[:, 0], points[:, 1]], atol=1e-5, rtol=1e-5)


def test_an_unknown_side_of_a_choice_is_an_error():
    with pytest.raises(OptionError, match="trunk='vgg' is unknown; known are mobilenetv2, dense"):
        CRMSmall(trunk="vgg")
    with pytest.raises(OptionError, match="decoder='mean' is unknown"):
        CRMSmall(decoder="mean")


def test_every_preset_is_rebuilt_from_its_specification():
    for spec in PRESETS.values():
        again = type(spec).from_dict(spec.as_dict())
        assert again == spec
        assert build(again).state_dict().keys() == build(spec).state_dict().keys()
