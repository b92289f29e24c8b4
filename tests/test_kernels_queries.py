"""Decoding at scattered pixels: the kernel against its plain twin, and both against the networks' own decoders."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from refine.coords import LerpAxis, axis_tables
from refine.models.crm_r50 import CRMResNet50
from refine.models.crm_s import InterpolatedDecoder, mask_logit
from refine_kernels import queries, reference_queries
from refine_kernels.queries import EnsembleTable, EnsembleWeights, InterpolatedTable, InterpolatedWeights

CHANNELS = 32
DECODES = ("interpolated_decode", "ensemble_decode")
DTYPES = ("float32", "bfloat16")


class Case(NamedTuple):
    """The arguments of a decode, in their order; `picture` is the latent they were stored from, (h, w, C)."""

    picture: np.ndarray
    arguments: tuple[Any, ...]


def bits(x: np.ndarray) -> np.ndarray:
    """The bits of bfloat16, rounded by torch."""
    return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.uint16).numpy()


def widened(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).view(torch.bfloat16).float().numpy() if x.dtype == np.uint16 else x


def stored(picture, side, needed):
    """Values and slots of a latent (h, w, C) of which the blocks with a `needed` cell exist, in a random order."""
    height, width, channels = picture.shape
    down, across = -(-height // side), -(-width // side)
    padded = np.pad(picture, ((0, down * side - height), (0, across * side - width), (0, 0)))
    blocks = padded.reshape(down, side, across, side, channels).swapaxes(1, 2)
    y, x = np.nonzero(needed)
    exists = np.zeros((down, across), bool)
    exists[y // side, x // side] = True
    slots = np.full((down, across), -1, np.int32)
    slots[exists] = np.random.default_rng(0).permutation(exists.sum())
    values = np.zeros((exists.sum() * side * side + 1, channels), picture.dtype)
    for slot, block in zip(slots[exists], blocks[exists], strict=True):
        values[slot * side * side : (slot + 1) * side * side] = block.reshape(-1, channels)
    return values, slots


def read_by(points, rows, columns, shape):
    """The cells (h, w) bool that points read; rows and columns hold the two cells of each position, (2, n)."""
    needed = np.zeros(shape, bool)
    i, j = points.T
    for y in rows:
        for x in columns:
            needed[y[i], x[j]] = True
    return needed


def case(decode, *, count, grid=(33, 21), latent=(17, 11), side=4, dtype="float32", guide=4, seed=0, whole=False):
    """Random arguments of a decode at `count` points: any two cells may be neighbours, any number a weight."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    picture = draw(*latent, CHANNELS) if dtype == "float32" else bits(draw(*latent, CHANNELS))
    points = np.stack([rng.integers(0, n, count, dtype=np.int32) for n in grid], axis=1)
    pairs = [rng.integers(0, cells, (2, n), dtype=np.int32) for n, cells in zip(grid, latent, strict=True)]
    hidden = draw(3, CHANNELS, CHANNELS) / np.float32(CHANNELS**0.5)
    values, slots = stored(picture, side, np.ones(latent, bool) if whole else read_by(points, *pairs, latent))
    if decode == "ensemble_decode":
        tables = [EnsembleTable(pair, draw(2, n), draw(2, n, CHANNELS)) for pair, n in zip(pairs, grid, strict=True)]
        weights = EnsembleWeights(hidden, draw(3, CHANNELS), draw(CHANNELS), 0.25)
        return Case(picture, (values, slots, side, *tables, points, weights))
    tables = [
        InterpolatedTable(pair[0], pair[1], rng.random(n, dtype=np.float32), draw(n, CHANNELS))
        for pair, n in zip(pairs, grid, strict=True)
    ]
    weights = InterpolatedWeights(
        draw(CHANNELS, guide), draw(CHANNELS), hidden[0], draw(CHANNELS), draw(CHANNELS), 0.25
    )
    return Case(picture, (values, slots, side, *tables, points, draw(count, guide), weights))


def both(decode, arguments):
    return getattr(queries, decode)(*arguments), getattr(reference_queries, decode)(*arguments)


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 2500])
def test_kernel_equals_its_twin_for_every_filling_of_a_chunk(decode, dtype, count):
    logits, expected = both(decode, case(decode, count=count, dtype=dtype, seed=count).arguments)
    assert logits.shape == (count,)
    assert logits.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("side", [1, 3, 16])
@pytest.mark.parametrize(
    ("grid", "latent"), [((1, 1), (1, 1)), ((1, 9), (1, 5)), ((9, 1), (5, 1)), ((7, 5), (16, 16)), ((40, 3), (2, 33))]
)
def test_kernel_equals_its_twin_for_every_size(decode, side, grid, latent):
    logits, expected = both(decode, case(decode, count=77, grid=grid, latent=latent, side=side, seed=side).arguments)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("guide", [1, 4, 5, 7, 8])
def test_a_guide_may_have_any_number_of_channels(guide):
    logits, expected = both("interpolated_decode", case("interpolated_decode", count=40, guide=guide).arguments)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("decode", DECODES)
def test_blocks_that_no_point_reads_need_not_exist(decode):
    sparse, dense = (case(decode, count=9, latent=(60, 70), grid=(99, 80), whole=whole) for whole in (False, True))
    slots = sparse.arguments[1]
    assert (slots == -1).any()
    np.testing.assert_array_equal(
        getattr(queries, decode)(*sparse.arguments), getattr(queries, decode)(*dense.arguments)
    )


@pytest.mark.parametrize("decode", DECODES)
def test_bits_of_bfloat16_are_what_their_floats_are(decode):
    _, (values, *others) = case(decode, count=200, dtype="bfloat16")
    assert values.dtype == np.uint16
    function = getattr(queries, decode)
    np.testing.assert_array_equal(function(values, *others), function(widened(values), *others))


@pytest.mark.parametrize("decode", DECODES)
def test_a_logit_does_not_depend_on_the_points_decoded_with_it(decode):
    _, arguments = case(decode, count=1500)
    function, at = getattr(queries, decode), 5
    whole = function(*arguments)
    order = np.random.default_rng(1).permutation(1500)[:700]
    per_point = [k for k, x in enumerate(arguments) if isinstance(x, np.ndarray) and len(x) == 1500]
    assert at in per_point
    some = [x[order] if k in per_point else x for k, x in enumerate(arguments)]
    np.testing.assert_array_equal(function(*some), whole[order])


@pytest.mark.parametrize("decode", DECODES)
def test_layout_and_width_of_arguments_do_not_matter(decode):
    def odd(x):
        if isinstance(x, tuple):
            return type(x)(*map(odd, x))
        if not isinstance(x, np.ndarray):
            return x
        return np.asfortranarray(x.astype({"i": np.int64, "f": np.float64}[x.dtype.kind]))

    _, (values, *others) = case(decode, count=100)
    function = getattr(queries, decode)
    expected = function(values, *others)
    np.testing.assert_array_equal(function(np.asfortranarray(values), *map(odd, others)), expected)


@pytest.mark.parametrize("decode", DECODES)
def test_a_nan_in_the_latent_is_not_hidden(decode):
    _, (values, *others) = case(decode, count=50)
    values[:] = np.nan
    logits, expected = both(decode, (values, *others))
    assert np.isnan(logits).all()
    assert np.isnan(expected).all()


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("wrong", [np.zeros((17, CHANNELS), np.float16), np.zeros((17, 16), np.float32)])
def test_another_dtype_or_width_of_latent_is_our_mistake(decode, wrong):
    _, (_, *others) = case(decode, count=3)
    with pytest.raises(AssertionError):
        getattr(queries, decode)(wrong, *others)


# The networks' decoders, on every pixel of a grid.

SIZES = [(1, 1), (1, 13), (26, 1), (37, 23), (64, 50)]


def every_pixel(height, width):
    return np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2).astype(np.int32)


def latent_of(height, width, dtype):
    cells = -(-height // 2), -(-width // 2)
    picture = np.random.default_rng(height).standard_normal((*cells, CHANNELS), dtype=np.float32)
    return bits(picture) if dtype == "bfloat16" else picture


def as_tensor(picture):
    return torch.from_numpy(widened(picture)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("module", [queries, reference_queries], ids=["kernel", "twin"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), SIZES)
@torch.no_grad()
def test_interpolated_decode_is_that_of_crm_s_without_the_mask(module, height, width, dtype):
    torch.manual_seed(0)
    decoder = InterpolatedDecoder(4, CHANNELS)
    torch.nn.init.normal_(decoder.last.weight)
    rows, columns = (LerpAxis.between(n, n, 2, -(-n // 2)) for n in (height, width))
    guide = torch.rand(1, 4, height, width) * 2 - 1
    picture = latent_of(height, width, dtype)
    expected = decoder(as_tensor(picture), rows, columns, guide) - mask_logit(guide[:, -1:])

    values, slots = stored(picture, 16, np.ones(picture.shape[:2], bool))
    halves = decoder.phase.weight.split(2, dim=1)
    tables = [
        InterpolatedTable(a.low.numpy(), a.high.numpy(), a.fraction.numpy(), (a.phase @ half.T).numpy())
        for a, half in zip((rows, columns), halves, strict=True)
    ]
    weights = InterpolatedWeights(
        decoder.guide.weight.numpy(),
        decoder.guide.bias.numpy(),
        decoder.hidden.weight.numpy(),
        decoder.hidden.bias.numpy(),
        decoder.last.weight[0].numpy(),
        decoder.last.bias.item(),
    )
    colours = guide[0].flatten(1).T.numpy()
    logits = module.interpolated_decode(values, slots, 16, *tables, every_pixel(height, width), colours, weights)
    np.testing.assert_allclose(logits, expected.flatten().numpy(), atol=5e-6)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CRMResNet50().requires_grad_(False)


@pytest.mark.parametrize("module", [queries, reference_queries], ids=["kernel", "twin"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_ensemble_decode_is_that_of_crm_r50(network, module, height, width, dtype):
    picture = latent_of(height, width, dtype)
    rows, columns = (axis_tables(n, -(-n // 2)) for n in (height, width))
    expected = network.decode(as_tensor(picture), rows, columns)

    values, slots = stored(picture, 16, np.ones(picture.shape[:2], bool))
    first = network.decoder_weights()
    constant = first.bias + first.cell @ torch.tensor([rows.cell, columns.cell])
    tables = [
        EnsembleTable(
            a.index.numpy(),
            a.rel.numpy(),
            (a.rel[..., None] * first.rel[:, k] + a.q[:, None] * first.q[:, k] + (constant if k == 0 else 0)).numpy(),
        )
        for k, a in enumerate((rows, columns))
    ]
    *hidden, last = (layer for layer in network.decoder if isinstance(layer, torch.nn.Linear))
    weights = EnsembleWeights(
        np.stack([layer.weight.numpy() for layer in hidden]),
        np.stack([layer.bias.numpy() for layer in hidden]),
        last.weight[0].numpy(),
        last.bias.item(),
    )
    logits = module.ensemble_decode(values, slots, 16, *tables, every_pixel(height, width), weights)
    np.testing.assert_allclose(logits, expected.flatten().numpy(), atol=2e-6)


# Threads.


def test_threads_of_torch_are_left_alone():
    before = torch.get_num_threads()
    for decode in DECODES:
        getattr(queries, decode)(*case(decode, count=5000).arguments)
    assert torch.get_num_threads() == before


def test_threads_may_decode_at_once():
    jobs = [(getattr(queries, d), case(d, count=20000, seed=s).arguments) for d in DECODES for s in range(2)]
    alone = [function(*arguments) for function, arguments in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = [pool.submit(function, *arguments) for function, arguments in jobs]
            for future, expected in zip(together, alone, strict=True):
                np.testing.assert_array_equal(future.result(), expected)
