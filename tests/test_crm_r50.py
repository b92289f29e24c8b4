import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import fixtures
from benchmarks.reference import PADDING, SCALES, ReferenceCRM, centres, nearest, normalised
from refine import checkpoint
from refine.blocks import Blocks
from refine.coords import SHIFTS, axis_tables, corner_aligned
from refine.errors import WeightsError
from refine.models.crm_r50 import CRMResNet50
from refine.tiles import Window, cover

needs_fixtures = pytest.mark.skipif(
    fixtures.folder() is None, reason="the parity fixtures are not part of a plain clone"
)


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights whose statistics are not the identity, so that nothing cancels."""
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for key, value in state.items():
        noise = torch.rand(value.shape, generator=generator)
        if key.endswith("running_var"):
            value.copy_(0.5 + noise)
        elif value.dim() == 1 and value.is_floating_point():
            gain = 0.2 if ".bn3." in key or "downsample" in key else 1
            value.copy_((noise - 0.5) * 0.2 + (gain if key.endswith("weight") else 0))
    return network.eval()


@pytest.fixture(scope="module")
def network() -> CRMResNet50:
    torch.manual_seed(0)
    return lively(CRMResNet50())


@pytest.fixture(scope="module")
def folded(network) -> CRMResNet50:
    return network.folded()


def cascade(network: CRMResNet50, image: np.ndarray, mask: np.ndarray) -> dict[float, np.ndarray]:
    """The published cascade without any of the engine's policy."""
    picture, m = normalised(image, mask)
    full = picture.shape[-2:]
    probabilities = {}
    with torch.inference_mode():
        for scale in SCALES:
            size = [round(n * scale) for n in full]
            x = torch.cat([F.interpolate(v, size=size, mode="bilinear", align_corners=True) for v in (picture, m)], 1)
            latent = network.fuse(network.encode(x))
            axes = [network.axis(pixels, samples) for pixels, samples in zip(full, size, strict=True)]
            p = torch.sigmoid(network.decode(latent, *axes))
            m = 2 * p - 1
            probabilities[scale] = p[0, 0, PADDING:-PADDING, PADDING:-PADDING].numpy()
    return probabilities


@needs_fixtures
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", fixtures.PARITY_FILES)
def test_the_published_outputs_come_out_at_every_scale(tmp_path, name, fold):
    published = tmp_path / "crm.pth"
    torch.save({f"module.{key}": value for key, value in fixtures.checkpoint().items()}, published)
    network = CRMResNet50().eval()
    network.load_state_dict(checkpoint.published_state(checkpoint.load(published).state), strict=True)
    case = fixtures.parity(name)
    got = cascade(network.folded() if fold else network, case.image, case.mask)
    for scale, wanted in case.probabilities.items():
        np.testing.assert_allclose(got[scale], wanted, rtol=0, atol=1e-5, err_msg=f"scale {scale}")


@pytest.mark.parametrize("size", [(40, 33), (1, 70), (1, 1)])
def test_it_computes_what_the_reference_does(size):
    torch.manual_seed(1)
    reference = lively(ReferenceCRM())
    network = CRMResNet50().eval()
    network.load_state_dict(checkpoint.published_state(reference.state_dict()))
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = rng.integers(0, 256, size, dtype=np.uint8)
    mask[0, 0] = 255
    wanted, got = reference.refine(image, mask), cascade(network.folded(), image, mask)
    for scale in SCALES:
        np.testing.assert_allclose(got[scale], wanted[scale], rtol=0, atol=1e-5, err_msg=f"scale {scale}")


@needs_fixtures
def test_a_partial_published_checkpoint_is_refused_by_name():
    expected = {key: tuple(value.shape) for key, value in CRMResNet50().state_dict().items()}
    state = checkpoint.published_state(fixtures.checkpoint(), expected)
    checkpoint.check(state, expected, "crm.pth")
    del state["aspp_.last_conv.0.weight"]
    with pytest.raises(WeightsError, match=r"1 missing: aspp_\.last_conv\.0\.weight"):
        checkpoint.check(state, expected, "crm.pth")


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (64, 64), (117, 82)])
@pytest.mark.parametrize("side", [9, 32])
def test_fusion_in_patches_equals_fusion_of_the_whole(folded, size, side):
    x = torch.randn(2, 4, *size)
    sizes = folded.tap_sizes(*size)
    with torch.inference_mode():
        taps = folded.encode(x)
        assert tuple(tuple(tap.shape[-2:]) for tap in taps) == sizes
        whole = folded.fuse(taps)
        for window in cover(*sizes[0], side, 1):
            patch = folded.fuse(taps, sizes=sizes, window=window)
            assert (patch - whole[(..., *window.slices)]).abs().max() <= 1e-5


def test_fusion_of_the_whole_is_torchs_own(network):
    taps = network.encode(torch.randn(1, 4, 75, 118))
    fusion, size = network.aspp_, taps[0].shape[-2:]
    enlarged = [taps[0], *(F.interpolate(t, size=size, mode="bilinear", align_corners=True) for t in taps[1:])]
    features = fusion.last_conv(F.pad(torch.cat(enlarged, 1), (1, 1, 1, 1)))
    latent = F.conv2d(features, network.decoder_weights().features[..., None, None])
    torch.testing.assert_close(network.fuse(taps), latent, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(421, 90), (75, 502)])
def test_encoder_tiles_with_a_halo_equal_the_whole(folded, size):
    x = torch.randn(1, 4, *size)
    sizes = folded.tap_sizes(*size)
    with torch.inference_mode():
        whole = folded.fuse(folded.encode(x))
        for core in cover(*size, 168, folded.window):
            area = core.grown(folded.halo, *size)
            taps = folded.encode(x[(..., *area.slices)])
            window = core.divided(folded.stride)
            origin = (area.top // folded.stride, area.left // folded.stride)
            tiled = folded.fuse(taps, sizes=sizes, origin=origin, window=window)
            assert (tiled - whole[(..., *window.slices)]).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (64, 97)])
def test_points_have_the_logits_that_they_have_in_the_grid(folded, size):
    cells = tuple(-(-n // 2) for n in size)
    latent = torch.randn(1, 32, *cells)
    rows, columns = (folded.axis(n, n) for n in size)
    points = torch.randint(0, 2**16, (200, 2)) % torch.tensor(size)
    with torch.inference_mode():
        grid = folded.decode(latent, rows, columns)[0, 0]
        found = folded.decode_points(Blocks.whole(latent, 2), rows, columns, points)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, grid[points[:, 0], points[:, 1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("height", [672, 665])
def test_the_halo_holds_all_that_a_cell_depends_on_and_little_more(folded, height):
    assert folded.halo % folded.window == 0
    cells = folded.tap_sizes(height, 16)[0][0]
    reach = 0
    for cell in (cells // 2, cells // 2 + 1, cells - 3):
        x = torch.randn(1, 4, height, 16, requires_grad=True)
        with torch.inference_mode(False):
            latent = folded.fuse(folded.encode(x), window=Window(cell, cell + 1, 3, 4))
        (gradient,) = torch.autograd.grad(latent.square().sum(), x)
        rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0]
        below, above = 2 * cell - int(rows[0]), int(rows[-1]) - (2 * cell + 1)
        reach = max(reach, below, above)
        assert reach <= folded.halo
    assert reach > folded.halo - 24


def test_decoding_in_blocks_equals_decoding_at_once(folded):
    rows, columns = axis_tables(90, 23), axis_tables(61, 16)
    latent = torch.randn(2, 32, 23, 16).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        whole = folded.decode(latent, rows, columns)
        assert whole.shape == (2, 1, 90, 61)
        for part in (slice(0, 1), slice(13, 40), slice(77, 90)):
            first, end = rows[part].cells()
            block = folded.decode(latent[:, :, first:end], rows[part].relative(first), columns)
            torch.testing.assert_close(block, whole[:, :, part], rtol=0, atol=1e-5)
        picked = torch.tensor([5, 6, 40])
        block = folded.decode(latent, rows, columns[picked])
        torch.testing.assert_close(block, whole[..., picked], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(network, folded, dtype):
    x = torch.randn(1, 4, 64, 80)
    axes = folded.axis(128, 64), folded.axis(160, 80)
    half = network.folded().to(dtype)
    with torch.inference_mode():
        wanted = folded.decode(folded.fuse(folded.encode(x)), *axes)
        got = half.decode(half.fuse(half.encode(x.to(dtype))), *axes)
    assert got.dtype == torch.float32
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_every_parameter_learns():
    torch.manual_seed(0)
    network = CRMResNet50().train()
    logit = network.decode(
        network.fuse(network.encode(torch.randn(2, 4, 48, 40))), *map(axis_tables, (48, 40), (24, 20))
    )
    logit.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_guidance_adds_channels():
    network = CRMResNet50(in_channels=7)
    assert network.feats.conv1.weight.shape == (64, 7, 7, 7)


def test_folding_leaves_the_network_as_it_was(network, folded):
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    x = torch.randn(1, 4, 40, 56)
    with torch.inference_mode():
        torch.testing.assert_close(folded.fuse(folded.encode(x)), network.fuse(network.encode(x)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("full", [1, 2, 65, 160, 1088, 2391, 6064])
@pytest.mark.parametrize("divisor", [2, 4, 8, 16])
def test_coordinates_are_the_references_to_the_last_bit(full, divisor):
    for feature in {max(1, full // divisor), -(-full // divisor)}:
        table = axis_tables(full, feature)
        assert torch.equal(table.q, centres(full))
        for row, shift in enumerate(SHIFTS):
            cell = nearest(table.q, shift, feature)
            assert torch.equal(table.index[row], cell)
            assert torch.equal(table.rel[row], (table.q - centres(feature)[cell]) * feature)
        assert table.cells() == (int(table.index.min()), int(table.index.max()) + 1)


def test_queries_at_every_pixel_are_the_pixels(folded):
    at, dense = folded.axis_at(100, 50, 100), folded.axis(100, 50)
    assert torch.equal(at.index, dense.index)
    assert torch.equal(at.q, dense.q)
    few = folded.axis_at(100, 50, 25)
    assert (len(few), few.cell) == (25, dense.cell)
    assert torch.equal(few.q[[0, -1]], dense.q[[0, -1]])


@pytest.mark.parametrize(("source", "target"), [(1, 1), (1, 9), (7, 1), (17, 65), (33, 65), (136, 544), (376, 1502)])
def test_corner_aligned_taps_are_torchs_interpolation(source, target):
    values = torch.randn(source)
    whole = F.interpolate(values[None, None, :, None], size=(target, 1), mode="bilinear", align_corners=True)[
        0, 0, :, 0
    ]
    start, stop = target // 3, max(target // 3 + 1, target - 2)
    lower, upper, weight = corner_aligned(source, target, start, stop)
    torch.testing.assert_close(torch.lerp(values[lower], values[upper], weight), whole[start:stop], rtol=0, atol=1e-6)
