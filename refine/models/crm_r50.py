"""CRM with a ResNet-50 encoder (arXiv 2111.14482): the published parameters, the same numbers for less work.

Three identities make the difference to the published form, and none changes a result:

* nothing reads the encoder's fourth stage, so there is none;
* the MLP's first layer is linear in its input, W [F; rel; q; cell] = W_F F + W_rel rel + W_q q + W_cell cell, so W_F
  becomes a 1x1 convolution of the feature map and a query gathers 32 numbers for each neighbour, not 256;
* rel and q separate into a row term and a column term and cell is a constant, so no tensor of coordinates is needed.

Names of submodules are those of the published checkpoints. Numbers in names are strides, save in published keys.
"""

import copy
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from refine.blocks import Area, Batch, Blocks
from refine.coords import EnsembleAxis, axis_tables, corner_aligned, interpolated
from refine.models.kernels import PointKernel
from refine.tiles import Window
from refine_kernels.reference_queries import EnsembleTable, EnsembleWeights

Taps = tuple[Tensor, Tensor, Tensor]
Pair = tuple[int, int]


class FirstLayer(NamedTuple):
    """The MLP's first layer by what its columns multiply; pairs are (y, x)."""

    features: Tensor  # W_F (32, 256)
    rel: Tensor  # (32, 2)
    q: Tensor  # (32, 2)
    cell: Tensor  # (32, 2)
    bias: Tensor  # (32,)


class Bottleneck(nn.Module):
    """ResNet's block (arXiv 1512.03385, figure 5), with the stride at the 3x3 convolution."""

    expansion = 4

    def __init__(
        self, channels: int, width: int, stride: int = 1, downsample: nn.Module | None = None, *, dilation: int = 1
    ) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return y.relu_()

    def valid(self, b: Batch, source: Blocks) -> Tensor:
        """The block of a folded network on a batch's windows of ``source``."""
        stride, halo = _first(self.conv2.stride), _first(self.conv2.dilation)
        x = b.read(source, halo, 0 if stride == 2 else halo)
        y = b.inside(self.conv1(x).relu_(), source, halo)
        y = F.conv2d(y, self.conv2.weight, self.conv2.bias, stride, 0, halo).relu_()
        y = self.conv3(y)
        x = x[..., halo : halo + b.side * stride, halo : halo + b.side * stride]
        y += x if self.downsample is None else self.downsample(x)
        return y.relu_()


def stage(channels: int, width: int, blocks: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Bottlenecks; the first one carries the stride and is never dilated."""
    out = width * Bottleneck.expansion
    downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    first = Bottleneck(channels, width, stride, downsample)
    return nn.Sequential(first, *(Bottleneck(out, width, dilation=dilation) for _ in range(blocks - 1)))


class Trunk(nn.Module):
    """ResNet-50 without its last stage; layer3 keeps stride 8."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(64, 64, 3)
        self.layer2 = stage(256, 128, 4, stride=2)
        self.layer3 = stage(512, 256, 6, dilation=2)


class _Tap(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.atrous_conv = nn.Conv2d(channels, out, 1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.atrous_conv(x)).relu_()


class _Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.aspp1_128 = _Tap(64, 64)
        self.aspp1_256 = _Tap(256, 64)
        self.aspp1_1024 = _Tap(1024, 128)
        self.bn1_128: nn.Module = nn.BatchNorm2d(64)
        self.bn1_256: nn.Module = nn.BatchNorm2d(64)
        self.bn1_1024: nn.Module = nn.BatchNorm2d(128)
        self.dropout = nn.Dropout(0.5)
        # Its zero padding belongs to the picture's border only: `fuse` writes it.
        self.last_conv = nn.Sequential(nn.Conv2d(256, 256, 3, bias=False), nn.BatchNorm2d(256), nn.ReLU(inplace=True))

    def tap2(self, x: Tensor) -> Tensor:
        return self.dropout(self.bn1_128(self.aspp1_128(x)).relu_())

    def tap4(self, x: Tensor) -> Tensor:
        return self.dropout(self.bn1_256(self.aspp1_256(x)).relu_())

    def tap8(self, x: Tensor) -> Tensor:
        return self.dropout(self.bn1_1024(self.aspp1_1024(x)).relu_())


class _MLP(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(features + 6, width), nn.ReLU(inplace=True)]
        for _ in range(3):
            layers += [nn.Linear(width, width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))


class _ScaleShift(nn.Module):
    """A batch norm at inference that no convolution can take in, since a ReLU stands before it."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.register_buffer("scale", scale.detach()[:, None, None])
        self.register_buffer("shift", (norm.bias - norm.running_mean * scale).detach()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return torch.addcmul(self.shift, x, self.scale)
        return x.mul_(self.scale).add_(self.shift)  # the widest map of the encoder is not held twice


class CRMResNet50(nn.Module):
    """The published network. `encode` -> `fuse` -> `decode` give one scale of the cascade.

    in_channels: 4 for RGB and the mask; guidance adds channels.
    """

    stride = 2  # px of network input for one latent cell
    window = 8  # origins of encoder tiles are multiples of this many px
    multiple = 1  # inputs of any size are taken as they are
    latent_channels = 32
    tile = 2048  # px of input that make about 2 GB of features in float32
    working = 80.0  # values per px at the peak: 35 measured where all is encoded, 74 by areas at 1 megapixel
    neighbours = 4  # cells that the MLP is evaluated for at a query
    guided = False  # a query reads the latent alone

    def __init__(self, *, in_channels: int = 4) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.feats = Trunk(in_channels)
        self.aspp_ = _Fusion()
        self.imnet = _MLP(256, self.latent_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.halo = _halo(self.feats, self.window)

    @property
    def decoder(self) -> nn.Sequential:
        """The MLP after its first layer's sum: ReLU, three hidden layers, output."""
        return self.imnet.layers[1:]

    def decoder_weights(self) -> FirstLayer:
        first = self.imnet.layers[0]
        assert isinstance(first, nn.Linear)
        features, rel, q, cell = first.weight.split((first.in_features - 6, 2, 2, 2), dim=1)
        return FirstLayer(features, rel, q, cell, first.bias)

    def encode(self, x: Tensor, deep: None = None) -> Taps:
        """Taps (B, 64, /2), (B, 64, /4), (B, 128, /8) of network input `x` (B, in_channels, h, w); sides round up."""
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.feats.bn1(self.feats.conv1(x)).relu_()  # (B, 64, /2)
        t2 = self.aspp_.tap2(x)
        x = self.feats.maxpool(x)  # and the wide map before it is freed
        x = self.feats.layer1(x)  # (B, 256, /4)
        t4 = self.aspp_.tap4(x)
        x = self.feats.layer2(x)
        x = self.feats.layer3(x)  # (B, 1024, /8)
        return t2, t4, self.aspp_.tap8(x)

    def encode_area(
        self,
        x: Tensor,
        needed: NDArray[np.bool_],
        *,
        sizes: tuple[Pair, ...] | None = None,
        origin: Pair = (0, 0),
        deep: None = None,
    ) -> Blocks:
        """The latent of one input (1, in_channels, h, w) where it is ``needed``; see `refine.blocks.Area`.

        x: a whole picture, or a window of one whose taps have `sizes`, from its cell `origin` on. The reaches grow by
        what each layer reads, in px, from the latent backwards; they end at the 150 px of `halo`.
        """
        area = Area(needed, (x.shape[-2], x.shape[-1]), x.device)
        sizes = sizes or self.tap_sizes(*area.size)
        trunk, fusion = self.feats, self.aspp_
        pixels = Blocks.whole(x, 1)
        blocks = list(_blocks(trunk))
        reaches = [18]  # of the last block: a cell of the fusion, drawn by a cell of /8, read between two of them
        for block, stride in zip(reversed(blocks), [8] * 9 + [4] * 4, strict=True):
            reaches.append(reaches[-1] + stride * _first(block.conv2.dilation))
        pooled, *reaches = reversed(reaches)
        y = x2 = area.compute(2, pooled + 2, lambda b: _valid(trunk.conv1, b.read(pixels, 3, 2)).relu_())
        y = area.compute(4, pooled, lambda b: F.max_pool2d(b.read(x2, 1, 0), 3, 2))
        for block, reach in zip(blocks[:3], reaches, strict=False):
            y = area.compute(4, reach, partial(block.valid, source=y))
        x4 = y
        for block, reach in zip(blocks[3:], reaches[3:], strict=True):
            y = area.compute(8, reach, partial(block.valid, source=y))
        t4 = area.compute(4, 10, lambda b: fusion.tap4(b.read(x4)))
        t8 = area.compute(8, 18, lambda b: fusion.tap8(b.read(y)))
        aligned = [_Aligned(tap, size, sizes[0], origin) for tap, size in ((t4, sizes[1]), (t8, sizes[2]))]
        weight = self.decoder_weights().features[:, :, None, None]

        def fuse(b: Batch) -> Tensor:
            taps = [fusion.tap2(b.read(x2, 1)), *(tap.read(b, 1) for tap in aligned)]
            return F.conv2d(fusion.last_conv(b.inside(torch.cat(taps, 1), x2, 1)), weight)

        return area.compute(2, 0, fuse)

    def tap_sizes(self, height: int, width: int) -> tuple[Pair, Pair, Pair]:
        """(h, w) of the taps of an input of `height` x `width` px."""
        s2, s4, s8 = ((-(-height // stride), -(-width // stride)) for stride in (2, 4, 8))
        return s2, s4, s8

    def fuse(
        self,
        taps: Taps,
        *,
        sizes: tuple[Pair, ...] | None = None,
        origin: Pair = (0, 0),
        window: Window | None = None,
    ) -> Tensor:
        """Latent (B, 32, window.height, window.width) of the cells `window`, channels last; by default of all cells.

        taps: of the whole picture, or of an encoder tile whose first cell at stride 2 is `origin`.
        sizes: (h, w) of the three taps of the whole picture; by default those of `taps`.
        Cells are global. The latent is W_F F, without the first layer's bias.
        """
        sizes = sizes or tuple((tap.shape[-2], tap.shape[-1]) for tap in taps)
        y0, y1, x0, x1 = window or Window(0, sizes[0][0], 0, sizes[0][1])
        above, left = max(y0 - 1, 0), max(x0 - 1, 0)
        below, right = min(y1 + 1, sizes[0][0]), min(x1 + 1, sizes[0][1])
        top, side = above - (y0 - 1), left - (x0 - 1)  # 1 at the picture's own border, which is padded with zeros
        fused = taps[0].new_zeros(taps[0].shape[0], y1 - y0 + 2, x1 - x0 + 2, 256)
        inner = fused[:, top : top + below - above, side : side + right - left]
        (oy, ox), channel = origin, 0
        for tap, size, factor in zip(taps, sizes, (1, 2, 4), strict=True):
            part = tap.permute(0, 2, 3, 1)  # (B, h, w, C)
            if factor == 1:
                part = part[:, above - oy : below - oy, left - ox : right - ox]
            else:
                begin = (oy // factor, ox // factor)
                part = _enlarge(part, size, sizes[0], (above, below), (left, right), begin)
            inner[..., channel : channel + part.shape[-1]] = part
            channel += part.shape[-1]
        features = self.aspp_.last_conv(fused.permute(0, 3, 1, 2))  # (B, 256, y1 - y0, x1 - x0)
        return F.conv2d(features, self.decoder_weights().features[:, :, None, None])

    def axis(self, pixels: int, samples: int) -> EnsembleAxis:
        """Where each of `pixels` reads the latent of `samples` px of input."""
        return axis_tables(pixels, -(-samples // self.stride))

    def axis_at(self, pixels: int, samples: int, queries: int) -> EnsembleAxis:
        """Where `queries`, spread over `pixels` with the corner pixels kept in place, read that latent."""
        lower, _, weight = corner_aligned(pixels, queries, 0, queries)
        return axis_tables(pixels, -(-samples // self.stride), lower + weight)

    def decode(self, latent: Tensor, rows: EnsembleAxis, columns: EnsembleAxis, guide: Tensor | None = None) -> Tensor:
        """Logits (B, 1, n, m) float32 of the queries `rows` x `columns`.

        latent: (B, 32, h, w), best channels last, whose first row and column are number 0 of the axes' cells.
        guide: the input at the queries, for networks that read it; this one does not.
        """
        dtype, device = latent.dtype, latent.device
        rows, columns = rows.to(device), columns.to(device)
        along_y, along_x = self._along(rows, columns)

        # Rows first: the queries of a row share its term, and coarse scales have far fewer cells than columns.
        z = latent.permute(0, 2, 3, 1).index_select(1, rows.index.flatten())  # (B, 2n, w, 32)
        z = (z + along_y.flatten(0, 1)[:, None]).to(dtype)
        z = z.index_select(2, columns.index.flatten()).add_(along_x.flatten(0, 1).to(dtype))  # (B, 2n, 2m, 32)
        z = self.decoder(z)
        logits = z.float().view(-1, 2, len(rows), 2, len(columns))
        # |rel_y rel_x| + 1e-9 of the opposite corner; the sums run over both shifts of both axes.
        area = rows.rel.flip(0)[:, :, None, None] * columns.rel.flip(0)  # (2, n, 2, m)
        area = area.abs_().add_(1e-9)
        logits = logits * (area / area.sum(dim=(0, 2), keepdim=True))
        return logits.sum(dim=(1, 3))[:, None]

    def decode_points(
        self,
        latent: Blocks,
        rows: EnsembleAxis,
        columns: EnsembleAxis,
        points: Tensor,
        guide: Tensor | None = None,
    ) -> Tensor:
        """Logits (N,) float32 of the queries `points` (N, 2) among `rows` x `columns`; as `decode` for a grid."""
        y, x = rows[points[:, 0]], columns[points[:, 1]]
        along_y, along_x = self._along(y, x)
        logits, areas = [], []
        for k, m in ((0, 0), (0, 1), (1, 0), (1, 1)):
            z = latent.at(y.index[k], x.index[m])
            z = z + (along_y[k] + along_x[m]).to(z)
            logits.append(self.decoder(z)[:, 0].float())
            areas.append((y.rel[1 - k] * x.rel[1 - m]).abs() + 1e-9)  # of the opposite corner
        area = torch.stack(areas)
        return (torch.stack(logits) * (area / area.sum(0))).sum(0)

    def point_kernel(self, rows: EnsembleAxis, columns: EnsembleAxis) -> PointKernel:
        """`decode_points` by `refine_kernels`: see `refine.models.PointKernel`."""
        tables = tuple(
            EnsembleTable(axis.index.int(), axis.rel, along)
            for axis, along in zip((rows, columns), self._along(rows, columns), strict=True)
        )
        *hidden, last = (layer for layer in self.decoder if isinstance(layer, nn.Linear))
        weights = EnsembleWeights(
            torch.stack([layer.weight.detach().float() for layer in hidden]),
            torch.stack([layer.bias.detach().float() for layer in hidden]),
            last.weight.detach().float()[0].contiguous(),
            float(last.bias),
        )
        return PointKernel("ensemble_decode", tables, weights, None)

    def _along(self, rows: EnsembleAxis, columns: EnsembleAxis) -> tuple[Tensor, Tensor]:
        """What each axis adds to the first layer: (2, n, 32) and (2, m, 32) float32, the constants in the rows'."""
        rel, q, cell, bias = (weight.float() for weight in self.decoder_weights()[1:])
        constant = bias + cell @ cell.new_tensor([rows.cell, columns.cell])
        along_y, along_x = (
            axis.rel[..., None] * rel[:, k] + axis.q[:, None] * q[:, k] for k, axis in enumerate((rows, columns))
        )
        return along_y + constant, along_x

    def folded(self) -> "CRMResNet50":
        """A copy for inference whose batch norms are part of the convolutions before them. Fold before any cast."""
        net = copy.deepcopy(self).eval().requires_grad_(False)
        trunk, fusion = net.feats, net.aspp_
        _fold(trunk, "conv1", "bn1")
        for block in _blocks(trunk):
            for k in (1, 2, 3):
                _fold(block, f"conv{k}", f"bn{k}")
            if block.downsample is not None:
                _fold(block.downsample, "0", "1")
        for tap in (fusion.aspp1_128, fusion.aspp1_256, fusion.aspp1_1024):
            _fold(tap, "atrous_conv", "bn")
        _fold(fusion.last_conv, "0", "1")
        for name in ("bn1_128", "bn1_256", "bn1_1024"):
            setattr(fusion, name, _ScaleShift(getattr(fusion, name)))
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _blocks(trunk: Trunk) -> Iterator[Bottleneck]:
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3):
        yield from (block for block in stage if isinstance(block, Bottleneck))


def _fold(parent: nn.Module, conv: str, norm: str) -> None:
    setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
    setattr(parent, norm, nn.Identity())


def _enlarge(x: Tensor, source: Pair, target: Pair, rows: Pair, cols: Pair, origin: Pair) -> Tensor:
    """Window `rows` x `cols` of (B, h, w, C) enlarged from `source` to `target`; `x` begins at `origin`."""
    for dim, (n, m, (start, stop), first) in enumerate(zip(source, target, (rows, cols), origin, strict=True), 1):
        lower, upper, weight = corner_aligned(n, m, start, stop)
        begin, end = int(lower[0]), int(upper[-1]) + 1
        x = x.narrow(dim, begin - first, end - begin)
        x = interpolated(x, dim, lower - begin, upper - begin, weight)
    return x


def _halo(trunk: Trunk, window: int) -> int:
    """Pixels around a latent cell that its value can depend on, as a multiple of `window`.

    Kernels are odd and padded evenly, so a cell is centred on its index times the stride, and each layer adds
    dilation (k - 1) / 2 samples of its input to both sides. Fusion takes one cell more; enlarging with corners kept in
    place draws a sample towards the picture's origin by less than a coarse cell, and reads the two nearest ones.
    """
    reach, jump = 0, 1
    layers: list[nn.Conv2d | nn.MaxPool2d] = [trunk.conv1, trunk.maxpool, *(b.conv2 for b in _blocks(trunk))]
    for layer in layers:
        size, dilation, stride = (_first(v) for v in (layer.kernel_size, layer.dilation, layer.stride))
        reach += dilation * (size - 1) // 2 * jump
        jump *= stride
    finest = _first(trunk.conv1.stride)
    reach += finest + (jump - finest) + jump  # the fusion's cell, the draw, the lower of the two cells read
    return -(-reach // window) * window


def _valid(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride)


class _Aligned:
    """A tap as the latent's grid reads it: enlarged with the whole picture's corners kept in place."""

    def __init__(self, tap: Blocks, size: Pair, target: Pair, origin: Pair) -> None:
        self.tap, self.origin, factor = tap, origin, tap.stride // 2
        self.first = [o // factor for o in origin]  # the tap's first cell in the whole picture
        device = tap.values.device
        tables = (corner_aligned(n, m, 0, m) for n, m in zip(size, target, strict=True))
        self.axes = [tuple(t.to(device) for t in table) for table in tables]

    def read(self, b: Batch, halo: int) -> Tensor:
        """Windows (M, C, side + 2 halo, side + 2 halo) of the enlarged tap; beyond the picture anything."""
        count = b.side + 2 * halo
        cells, weights = [], []
        for axis in (0, 1):
            lower, upper, weight = self.axes[axis]
            steps = torch.arange(-halo, b.side + halo, device=lower.device)
            at = (b.origins[:, axis : axis + 1] + self.origin[axis] + steps).clamp_(0, len(lower) - 1)
            low, high, weight = lower[at], upper[at], weight[at]  # (M, count)
            length = int((high[:, -1] - low[:, 0]).max()) + 1
            # A row of it sums the two cells that a sample is between.
            between = torch.zeros(len(at), count, length, device=lower.device)
            between.scatter_add_(2, (low - low[:, :1])[..., None], (1 - weight)[..., None])
            between.scatter_add_(2, (high - low[:, :1])[..., None], weight[..., None])
            cells.append(low[:, :1] - self.first[axis] + torch.arange(length, device=lower.device))
            weights.append(between.to(self.tap.values.dtype))
        x = b.gather(self.tap, *cells).permute(0, 2, 3, 1)  # (M, h, w, C)
        m, h, w, channels = x.shape
        x = torch.bmm(weights[0], x.reshape(m, h, w * channels)).view(m * count, w, channels)
        x = torch.bmm(weights[1].repeat_interleave(count, 0), x)  # (M * count, count, C)
        return x.view(m, count, count, channels).permute(0, 3, 1, 2)


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]
