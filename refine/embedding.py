"""What Segment Anything's encoder makes of a picture, and where in the picture it lies.

SAM (Kirillov et al., Segment Anything, ICCV 2023) sees a picture of H x W px at a longer side of 1024 px: h x w px in
the upper left of a square, of which the rest is padding. Each 16 x 16 px of the square are a cell, so the picture fills
the first ceil(h / 16) rows of cells and row y lies at (y + 1/2) 16 H / h px from the picture's upper edge. Columns
likewise. Cells of padding alone are never read.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refine.coords import LerpAxis
from refine.errors import InputError

SEEN: Final = 1024  # px
CELL: Final = 16  # px of those
PARTS: Final = 4  # samples of a mask along a cell's side
SHAPE: Final = (256, SEEN // CELL, SEEN // CELL)


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features of a picture.

    features: (256, 64, 64) float32; size: (H, W) of the picture.

    Raises `InputError` for features that no encoder of SAM's makes.
    """

    features: NDArray[np.float32]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.features.shape != SHAPE or not np.issubdtype(self.features.dtype, np.floating):
            raise InputError(
                f"embedding: {self.features.dtype} {self.features.shape}; accepted is float32 {SHAPE}, what the "
                "encoder of Segment Anything gives for the whole picture"
            )
        if not np.isfinite(self.features).all():
            raise InputError("embedding: some of its values are NaN or infinite; compute it again")

    @property
    def seen(self) -> tuple[int, int]:
        """(h, w) px of the picture as SAM sees it."""
        longer = max(self.size)
        height, width = (max(1, int(side * SEEN / longer + 0.5)) for side in self.size)
        return height, width

    @property
    def cells(self) -> tuple[int, int]:
        """(n, m) cells that the picture lies in."""
        rows, columns = (-(-side // CELL) for side in self.seen)
        return rows, columns

    @property
    def inside(self) -> NDArray[np.float32]:
        """(256, n, m): the features without padding."""
        rows, columns = self.cells
        return self.features[:, :rows, :columns]

    def axes(self, size: tuple[int, int], stride: int) -> tuple[LerpAxis, LerpAxis]:
        """Where the cells of ``stride`` px of the picture at ``size`` (h, w) lie among those `inside`."""
        centres = (
            (torch.arange(-(-length // stride), dtype=torch.float64) + 0.5) * (stride * side / length)
            for length, side in zip(size, self.size, strict=True)
        )
        places = self.places(*centres)
        rows, columns = (LerpAxis.at(at, cells) for at, cells in zip(places, self.cells, strict=True))
        return rows, columns

    def places(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Where rows (n,) and columns (m,), in px of the picture from its edge, lie in cells from it, float64."""
        (height, width), (seen_height, seen_width) = self.size, self.seen
        return rows * (seen_height / (CELL * height)), columns * (seen_width / (CELL * width))

    def parts(self, mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """The means (4 n, 4 m) of a mask (h, w) of the picture as it is `seen`; it continues as at its last pixels."""
        margins = ((0, n * CELL - side) for n, side in zip(self.cells, mask.shape, strict=True))
        rows, columns = (n * PARTS for n in self.cells)
        side = CELL // PARTS
        means = np.pad(mask, tuple(margins), "edge").reshape(rows, side, columns, side).mean((1, 3))
        return np.asarray(means, np.float32)
