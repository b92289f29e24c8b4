import pytest
import torch

from refine.models import layers
from refine.models.crm_s import DenseTrunk, Trunk
from refine.models.layers import halved_in_strips


@pytest.fixture(scope="module", params=[Trunk, DenseTrunk])
def trunk(request):
    torch.manual_seed(0)
    return request.param(4).eval()


@pytest.mark.parametrize("height", [64, 128, 192, 224])
def test_a_trunk_by_strips_is_the_whole(trunk, monkeypatch, height):
    x = torch.rand(1, 4, height, 64)
    with torch.inference_mode():
        whole = trunk(x)
        monkeypatch.setattr(layers, "STRIP", 64 * 16)
        for found, expected in zip(trunk(x), whole, strict=True):
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_strips_are_as_wide_as_the_map_and_no_higher_than_needed(monkeypatch):
    monkeypatch.setattr(layers, "STRIP", 40 * 20)
    seen = []

    class Halve(torch.nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape[-2:]))
            return x[..., ::2, ::2]

    x = torch.rand(1, 2, 50, 40)
    assert torch.equal(halved_in_strips(Halve(), x, 4), x[..., ::2, ::2])
    assert seen == [(24, 40), (28, 40), (14, 40)]
