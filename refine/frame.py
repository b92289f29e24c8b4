"""A checked pair as the cascade reads it: with its border, at any scale, by windows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refine.config import Cascade
from refine.coords import Axis, corner_aligned
from refine.embedding import Embedding
from refine.planes import Interpolated, Memory, Plane, Reduced, Reflected, Section, Store, at_centres, kept, reaches
from refine.tiles import Window

STRIP = 2**17  # px that are normalised at once, so that what lies between stays in a processor's cache


class Frame:
    """A picture and its coarse mask with the cascade's border around them.

    image: a plane of (h, w, C) uint8, colours first and then what guides the network, if anything; mask: one of (h, w)
    float32 in [0, 1], of the same size. store: where reduced pictures and masks are kept. embedding: of the picture,
    for networks with a deep branch; their cascades have no border.
    """

    def __init__(
        self,
        image: Plane,
        mask: Plane,
        cascade: Cascade,
        device: torch.device,
        store: Store | None = None,
        embedding: Embedding | None = None,
    ) -> None:
        assert embedding is None or not cascade.pad
        self.embedding = embedding
        self.store: Store = store or Memory()
        self.original, self.cascade, self.device = image.size, cascade, device
        self.image, self.mask = (Reflected(p, cascade.pad) if cascade.pad else p for p in (image, mask))
        self.size = self.image.size
        self._pictures: dict[tuple[int, int], Plane] = {self.size: self.image}

    def scaled(self, scale: float) -> tuple[int, int]:
        """Size (h, w) of the picture with its border at ``scale``; halves are rounded to even."""
        return scaled(self.size, scale)

    def picture(self, size: tuple[int, int]) -> Plane:
        """The picture at ``size``; kept, since a scale's queries lie on the next one's samples."""
        if size not in self._pictures:
            picture = self.resized(self.image, size)
            self._pictures[size] = self.kept(picture, f"picture-{size[0]}x{size[1]}")
        return self._pictures[size]

    def probabilities(self, current: Plane, size: tuple[int, int]) -> Plane:
        """Probabilities ``current``, at any size, at ``size``; kept."""
        return self.kept(self.resized(current, size), f"mask-{size[0]}x{size[1]}")

    def kept(self, plane: Plane, name: str) -> Plane:
        """The plane, held if reading it costs more than a look at its own pixels."""
        return kept(plane, self.store, name) if isinstance(plane, Reduced) else plane

    def resized(self, plane: Plane, size: tuple[int, int]) -> Plane:
        """A plane over the picture at ``size``, as the cascade reduces or enlarges."""
        if plane.size == size:
            return plane
        if self.cascade.resize == "corners":
            rows, columns = (corner_aligned(n, m, 0, m) for n, m in zip(plane.size, size, strict=True))
            return Interpolated(plane, rows, columns)
        if all(m <= n for n, m in zip(plane.size, size, strict=True)):
            return Reduced(plane, size)
        return at_centres(plane, size)

    def is_empty(self, p: Plane) -> bool:
        """Whether probabilities at places spread over the picture are less foreground than counts.

        As published sum(mask + 1) < 2, which is less than one pixel.
        """
        return not reaches(p, self.cascade.empty * math.prod(p.size) / math.prod(self.size), self.store)

    def may_be_empty(self, p: Plane) -> bool:
        """Whether probabilities at some of the pixels leave it open that there is less than counts."""
        return not reaches(p, self.cascade.empty, self.store)

    def inside(self, plane: Plane) -> Plane:
        """A plane of the frame's size without the border."""
        pad, (height, width) = self.cascade.pad, self.original
        return Section(plane, Window(pad, pad + height, pad, pad + width)) if pad else plane

    def cut(self, p: Plane) -> NDArray[np.float32]:
        """Probabilities over the frame without its border, (H, W); enlarged first if on a coarser grid."""
        pad, (height, width) = self.cascade.pad, self.original
        return np.ascontiguousarray(self.resized(p, self.size).read(Window(pad, pad + height, pad, pad + width)))


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """A size (h, w), border included, at ``scale``; halves are rounded to even."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


@dataclass(frozen=True)
class View:
    """One scale of a frame: what the network reads, and the grid of its queries.

    size: (h, w) px of the network's input; mask: probabilities at that size; rows, columns: the queries' axes.
    before: probabilities at the queries before they are decoded. read: those of the network's input there, which are
    smoother where ``before`` was known more finely. deep: the map (h, w, C) of the deep branch, of a network that has
    one, at cells of ``deep_stride`` px of the input.
    """

    frame: Frame
    size: tuple[int, int]
    mask: Plane
    rows: Axis
    columns: Axis
    before: Plane
    read: Plane
    deep: Plane | None = None
    deep_stride: int = 1

    @classmethod
    def of(cls, frame: Frame, size: tuple[int, int], current: Plane, rows: Axis, columns: Axis) -> "View":
        """The view at ``size`` of probabilities ``current`` at any size, with the queries ``rows`` x ``columns``.

        A query's value before is the current one where it is known there, else that of the network's input.
        """
        mask = frame.probabilities(current, size)
        grid = (len(rows), len(columns))
        read = frame.resized(mask, grid)
        return cls(frame, size, mask, rows, columns, current if current.size == grid else read, read)

    @property
    def grid(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def input(self, window: Window, dtype: torch.dtype = torch.float32, multiple: int = 1) -> Tensor:
        """The network's input (1, C + 1, h, w), channels last, in a window of the scaled picture: the mask comes last.

        Sides that are no ``multiple`` are continued by their last pixels.
        """
        picture, mask = self.frame.picture(self.size).read(window), self.mask.read(window)
        height, width = mask.shape
        size = tuple(-(-n // multiple) * multiple for n in mask.shape)
        channels = picture.shape[2] + 1
        x = torch.empty((1, channels, *size), dtype=dtype, device=self.frame.device, memory_format=torch.channels_last)
        self._fill(x[:, :, :height, :width], picture, mask)
        x[:, :, :height, width:] = x[:, :, :height, width - 1 : width]
        x[:, :, height:] = x[:, :, height - 1 : height]
        return x

    def deep_in(self, area: Window, dtype: torch.dtype) -> Tensor | None:
        """The deep map (1, C, n, m), channels last, at the cells of an area of the network's input."""
        if self.deep is None:
            return None
        found = self.deep.read(area.divided(self.deep_stride))
        return torch.from_numpy(found).to(self.frame.device, dtype).permute(2, 0, 1)[None]

    def guide(self, window: Window, before: NDArray[np.float32]) -> Callable[[NDArray[np.int64]], Tensor]:
        """What queries in a window of the grid read of their own pixel: (N, C + 1) of points (N, 2) of the window.

        before: the plane of that name in the window.
        """
        picture = self.frame.picture(self.grid).read(window)
        mask = before if self.read is self.before else self.read.read(window)

        def at(points: NDArray[np.int64]) -> Tensor:
            y, x = points.T
            out = torch.empty(len(points), picture.shape[2] + 1, device=self.frame.device)
            self._fill(out.T[None, :, None], picture[y, x][None], mask[y, x][None])
            return out

        return at

    def _statistics(self, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and shift (channels,) that normalise colours of 0..255; the channels behind them become 0..1."""
        cascade, more = self.frame.cascade, channels - 3
        scale = np.float32(1) / (255 * np.asarray((*cascade.std, *[1] * more), np.float32))
        return scale, -np.asarray((*cascade.mean, *[0] * more), np.float32) * 255 * scale

    def _fill(self, x: Tensor, picture: NDArray[Any], mask: NDArray[np.float32]) -> None:
        """Fills x (1, C + 1, h, w) with a picture (h, w, C), uint8 or enlarged in float32, and its mask (h, w)."""
        scale, shift = self._statistics(picture.shape[2])
        on_cpu, bits = x.device.type == "cpu", x.dtype == torch.bfloat16
        if on_cpu and picture.dtype == np.uint8 and (bits or x.dtype == torch.float32):
            from refine_kernels import network_input

            out = x[0].permute(1, 2, 0)
            network_input(picture, mask, scale, shift, (out.view(torch.uint16) if bits else out).numpy())
            return
        scales, shifts = (torch.from_numpy(v).to(x.device).view(-1, 1, 1) for v in (scale, shift))
        step = max(1, STRIP // mask.shape[1])
        for top in range(0, len(mask), step):
            rows = slice(top, top + step)
            colour = _tensor(picture[rows]).to(x.device).permute(2, 0, 1).float()
            x[0, :-1, rows] = torch.addcmul(shifts, colour, scales)
            x[0, -1, rows] = _tensor(mask[rows]).to(x.device).mul(2).sub_(1)


def _tensor(array: NDArray[Any]) -> Tensor:
    # The caller's own array may be read-only, which torch cannot express; it is only read here.
    return torch.from_numpy(np.require(array, requirements="W"))
