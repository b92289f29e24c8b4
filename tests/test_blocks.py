import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from refine import blocks
from refine.blocks import FINE, Area, Blocks, upsampled

SIZES = [(8, 8), (1, 1), (1, 40), (37, 1), (33, 70), (64, 96), (129, 50)]


def dense(blocks: Blocks) -> torch.Tensor:
    """The map (1, C, h, w), zero where it does not exist."""
    height, width = blocks.size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return blocks.at(y.flatten(), x.flatten()).view(1, height, width, -1).permute(0, 3, 1, 2)


def squares(size: tuple[int, int], seed: int, share: float = 0.15) -> np.ndarray:
    """Needed squares of a picture of ``size`` px, at least one."""
    rng = np.random.default_rng(seed)
    needed = rng.random([-(-n // FINE) for n in size]) < share
    needed[tuple(rng.integers(n) for n in needed.shape)] = True
    return needed


def within(needed: np.ndarray, size: tuple[int, int], reach: int, stride: int) -> np.ndarray:
    """Cells of ``stride`` px with a pixel within ``reach`` px of the needed squares, (h, w) bool."""
    pixels = needed.repeat(FINE, 0).repeat(FINE, 1)[: size[0], : size[1]]
    near = ndimage.maximum_filter(pixels, 2 * reach + 1, mode="constant")
    rows, columns = (np.arange(0, n, stride) for n in size)
    return np.logical_or.reduceat(np.logical_or.reduceat(near, rows, 0), columns, 1)


def compared(found: Blocks, whole: torch.Tensor, area: Area, needed: np.ndarray, reach: int) -> None:
    """Asserts that a map is that of the whole (1, C, h, w) wherever it has to be."""
    cells = torch.from_numpy(within(needed, area.size, reach, found.stride))
    assert found.size == tuple(cells.shape) == tuple(whole.shape[-2:])
    error = (dense(found) - whole).abs().amax((0, 1))[cells]
    assert error.max() <= 1e-5 * whole.abs().max()


class TestBlocks:
    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (20, 31)])
    def test_a_whole_map_is_itself_and_zero_beyond_its_border(self, size):
        x = torch.randn(1, 3, *size)
        found = Blocks.whole(x, 2)
        assert (found.size, found.stride, found.computed) == (size, 2, size[0] * size[1])
        assert torch.equal(dense(found), x)
        rows = found.rows(torch.arange(-2, size[0] + 2)[:, None], torch.arange(-3, size[1] + 3)[None])
        padded = found.values[rows.flatten()].view(*rows.shape, 3)
        assert torch.equal(padded, F.pad(x, (3, 3, 2, 2))[0].permute(1, 2, 0))

    def test_a_map_in_memory_is_not_copied(self):
        x = torch.randn(1, 3, 4, 5).contiguous(memory_format=torch.channels_last)
        found = Blocks.around(x, 2, (6, 8))
        assert found.origin == (6, 8)
        assert found.values.data_ptr() == x.data_ptr()
        rows, columns = torch.tensor([0, 3, 2]), torch.tensor([0, 4, 1])
        assert torch.equal(found.at(rows, columns), x[0, :, rows, columns].T)
        assert torch.equal(dense(found), x)

    @pytest.mark.parametrize("side", [1, 4, 5])
    @pytest.mark.parametrize("size", [(1, 1), (8, 12), (10, 13)])
    def test_cells_are_found_in_their_blocks_and_elsewhere_there_is_zero(self, side, size):
        grid = tuple(-(-n // side) for n in size)
        rng = np.random.default_rng(0)
        there = rng.random(grid) < 0.5
        there.flat[0] = True
        slots = np.full(grid, -1, np.int32)
        slots[there] = rng.permutation(there.sum())
        values = torch.randn(int(there.sum()) * side * side + 1, 2)
        values[-1] = 0
        found = Blocks(values, torch.from_numpy(slots), side, size, 4)
        for y in range(-1, size[0] + 1):
            for x in range(-1, size[1] + 1):
                expected = torch.zeros(2)
                inside = 0 <= y < size[0] and 0 <= x < size[1]
                if inside and there[y // side, x // side]:
                    block = values[slots[y // side, x // side] * side * side :]
                    expected = block[y % side * side + x % side]
                assert torch.equal(found.at(torch.tensor([y]), torch.tensor([x]))[0], expected)
                if inside:
                    assert torch.equal(dense(found)[0, :, y, x], expected)


class TestArea:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("reach", [0, 1, 7, 8, 9, 30])
    def test_it_grows_to_the_squares_within_reach(self, size, reach):
        needed = squares(size, reach)
        grown = Area(needed, size).grown(reach)
        steps = -(-reach // FINE)
        np.testing.assert_array_equal(grown, ndimage.maximum_filter(needed, 2 * steps + 1, mode="constant"))
        # No pixel that a layer could read is forgotten.
        assert (grown >= within(needed, size, reach, FINE)).all()

    def test_squares_that_are_not_given_are_not_needed(self):
        area = Area(np.ones((1, 2), bool), (20, 40))
        assert area.needed.shape == (3, 5)
        assert area.needed.sum() == 2

    def test_an_area_without_a_needed_square_is_our_own_mistake(self):
        with pytest.raises(AssertionError, match="without a needed cell"):
            Area(np.zeros((2, 2), bool), (16, 16)).compute(2, 0, lambda b: torch.zeros(len(b.origins), 1, 16, 16))

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("side", [8, 16])
    @pytest.mark.parametrize(("kernel", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 1, 2), (3, 2, 1), (7, 2, 1)])
    def test_a_convolution_of_blocks_is_that_of_the_whole(self, size, side, kernel, stride, dilation):
        torch.manual_seed(0)
        pixels = torch.randn(1, 3, *size)
        weight = torch.randn(5, 3, kernel, kernel)
        halo = dilation * (kernel // 2)
        whole = F.conv2d(pixels, weight, stride=stride, padding=halo, dilation=dilation)
        source = Blocks.whole(pixels, 1)
        after = halo - (stride - 1)  # the last window of a strided convolution ends so much earlier
        for seed, reach in ((1, 0), (2, 5)):
            needed = squares(size, seed)
            area = Area(needed, size)
            found = area.compute(
                stride,
                reach,
                lambda b: F.conv2d(b.read(source, halo, max(after, 0)), weight, stride=stride, dilation=dilation),
                side=side,
            )
            assert found.side == side
            compared(found, whole, area, needed, reach)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("side", [8, 16])
    def test_stages_at_several_strides_are_those_of_the_whole(self, size, side):
        torch.manual_seed(1)
        pixels = torch.randn(1, 3, *size)
        first, second = torch.randn(4, 3, 3, 3), torch.randn(6, 4, 3, 3) / 6
        third, last = torch.randn(4, 6, 3, 3) / 7, torch.randn(2, 8, 3, 3) / 8
        half = tuple(-(-n // 2) for n in size)
        x2 = F.relu(F.conv2d(pixels, first, stride=2, padding=1))
        x4 = F.relu(F.conv2d(x2, second, stride=2, padding=1))
        x4 = F.relu(F.conv2d(x4, third, padding=1))
        up = F.interpolate(x4, scale_factor=2.0, mode="bilinear")[:, :, : half[0], : half[1]]
        whole = F.conv2d(torch.cat((x2, up), 1), last, padding=1)

        needed = squares(size, 3)
        area = Area(needed, size)
        source = Blocks.whole(pixels, 1)
        # From the last stage backwards: a cell of its own convolution, one of /4 between which it reads, one of /4 of
        # the third, a pixel to the left and above of the second.
        b2 = area.compute(2, 12, lambda b: F.relu(F.conv2d(b.read(source, 1, 0), first, stride=2)), side=side)
        b4 = area.compute(4, 10, lambda b: F.relu(F.conv2d(b.read(b2, 1, 0), second, stride=2)), side=side)
        b4 = area.compute(4, 6, lambda b: F.relu(F.conv2d(b.read(b4, 1), third)), side=side)

        def fuse(b):
            enlarged = b.inside(upsampled(b.read(b4, 1, repeat=True)), b2, 1)
            return F.conv2d(torch.cat((b.read(b2, 1), enlarged), 1), last)

        compared(area.compute(2, 0, fuse, side=side), whole, area, needed, 0)

    @pytest.mark.parametrize("chunk", [1, 40_000, 2**24])
    def test_batches_do_not_change_a_map(self, monkeypatch, chunk):
        monkeypatch.setattr(blocks, "CHUNK", chunk)
        torch.manual_seed(0)
        pixels, weight = torch.randn(1, 3, 300, 200), torch.randn(4, 3, 3, 3)
        source, needed = Blocks.whole(pixels, 1), squares((300, 200), 0)
        area, batches = Area(needed, (300, 200)), []

        def layer(b):
            x = b.read(source, 1)
            batches.append((len(b.origins), b.bytes))
            return F.conv2d(x, weight)

        found = area.compute(1, 0, layer)
        compared(found, F.conv2d(pixels, weight, padding=1), area, needed, 0)
        lengths = [n for n, _ in batches]
        assert sum(lengths) == len(found.values) // found.side**2 == int((found.slots >= 0).sum())
        assert all(n == 1 or gathered <= chunk for n, gathered in batches)
        assert {1: max(lengths) == 1, 40_000: len(lengths) > 5, 2**24: len(lengths) == 2}[chunk]

    def test_a_batch_counts_all_that_it_gathers(self):
        source = Blocks.whole(torch.randn(1, 3, 32, 32), 1)
        seen = []

        def layer(b):
            b.read(source, 1), b.read(source)
            seen.append(b.bytes)
            return torch.zeros(len(b.origins), 1, 16, 16)

        Area(np.ones((1, 1), bool), (32, 32)).compute(1, 0, layer)
        assert seen == [4 * 3 * (18 * 18 + 16 * 16)]

    @pytest.mark.parametrize("where", [(0, 0), (0, 24), (24, 0), (24, 24), (11, 13)])
    def test_one_needed_square_costs_one_block(self, where):
        needed = np.zeros((25, 25), bool)
        needed[where] = True
        source = Blocks.whole(torch.randn(1, 1, 200, 200), 1)
        found = Area(needed, (200, 200)).compute(2, 0, lambda b: F.avg_pool2d(b.read(source), 2))
        assert int((found.slots >= 0).sum()) == 1

    def test_no_block_is_computed_out_of_reach(self):
        size, reach, side, stride = (300, 420), 20, 8, 4
        needed = squares(size, 5, share=0.005)
        source = Blocks.whole(torch.randn(1, 1, *size), 1)
        found = Area(needed, size).compute(stride, reach, lambda b: F.avg_pool2d(b.read(source), stride), side=side)
        near = within(needed, size, -(-reach // FINE) * FINE, side * stride)
        np.testing.assert_array_equal(found.slots.numpy() >= 0, near)


class TestBatch:
    @pytest.mark.parametrize("size", SIZES)
    def test_beyond_the_picture_its_outermost_cells_are_repeated(self, size):
        pixels = torch.randn(1, 2, *size)
        source = Blocks.whole(pixels, 1)
        weight = torch.randn(3, 2, 3, 3)
        whole = F.conv2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), weight)
        area = Area(np.ones([-(-n // FINE) for n in size], bool), size)
        found = area.compute(1, 0, lambda b: F.conv2d(b.read(source, 1, repeat=True), weight))
        assert (dense(found) - whole).abs().max() <= 1e-5

    @pytest.mark.parametrize("size", SIZES)
    def test_what_lies_beyond_the_picture_is_set_to_zero(self, size):
        source = Blocks.whole(torch.randn(1, 2, *size), 1)
        first, second = torch.randn(3, 2, 1, 1), torch.randn(4, 3, 3, 3)
        bias = torch.ones(3)  # which would be beyond the picture otherwise
        whole = F.conv2d(F.conv2d(dense(source), first, bias), second, padding=1)
        area = Area(np.ones([-(-n // FINE) for n in size], bool), size)
        found = area.compute(
            1, 0, lambda b: F.conv2d(b.inside(F.conv2d(b.read(source, 1), first, bias), source, 1), second)
        )
        assert (dense(found) - whole).abs().max() <= 1e-5 * whole.abs().max()

    def test_windows_inside_the_picture_are_not_touched(self):
        source, needed = Blocks.whole(torch.randn(1, 2, 64, 64), 1), np.zeros((8, 8), bool)
        needed[3, 3] = True

        def layer(b):
            x = b.read(source, 1)
            assert b.inside(x, source, 1) is x
            return x[..., 1:-1, 1:-1]

        Area(needed, (64, 64)).compute(1, 0, layer)


@pytest.mark.parametrize("side", [1, 4, 8])
def test_a_window_is_enlarged_as_among_its_neighbours(side):
    x = torch.randn(1, 2, 20, 20)
    whole = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    window = upsampled(x[..., 5 : 5 + side + 2, 7 : 7 + side + 2])
    n = 2 * (side + 2) - 2
    torch.testing.assert_close(window, whole[..., 11 : 11 + n, 15 : 15 + n])
