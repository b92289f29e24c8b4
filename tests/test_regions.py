import pytest
import torch
from torch.nn import functional as F

from refine.models import NETWORKS
from refine.regions import at_next, dense, read_by_next


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


@pytest.mark.parametrize(("full", "following"), [((64, 96), (16, 24)), ((65, 97), (16, 24)), ((70, 33), (35, 16))])
def test_the_pixels_that_the_next_scale_reads_give_the_mask_it_reads(full, following):
    network = NETWORKS["CRMResNet50"]()
    grid = read_by_next(network, full, (8, 12), following)
    p = torch.rand(full)
    assert grid.samples is not None
    rows, columns = (s.positions for s in grid.samples)
    assert grid.shape == (len(rows), len(columns))
    expected = F.interpolate((2 * p - 1)[None, None], size=following, mode="bilinear", align_corners=True)[0, 0]
    torch.testing.assert_close(grid.mask(p[rows][:, columns]), expected, atol=1e-5, rtol=0)


def test_where_all_pixels_are_read_all_are_decoded():
    network = NETWORKS["CRMResNet50"]()
    grid = read_by_next(network, (9, 9), (5, 5), (9, 9))
    assert grid.samples is None
    assert grid.shape == (9, 9)


def test_dense_is_every_pixel(network):
    assert dense(network, (31, 40), (16, 20)).shape == (31, 40)


def test_the_next_scales_samples_are_as_many_as_it_has(network):
    grid = at_next(network, (64, 80), (16, 20), (32, 40))
    assert grid.shape == (32, 40)
    assert grid.samples is None
    p = torch.rand(32, 40)
    torch.testing.assert_close(grid.mask(p), 2 * p - 1)


def test_at_full_size_the_next_scales_samples_are_its_pixels(network):
    a, b = dense(network, (30, 44), (15, 22)), at_next(network, (30, 44), (15, 22), (30, 44))
    for left, right in ((a.rows, b.rows), (a.columns, b.columns)):
        for name, value in vars(left).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, getattr(right, name), atol=1e-4, rtol=0)
