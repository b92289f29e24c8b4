"""Which pixels to decode, and what the next scale reads of them."""

from dataclasses import dataclass

from torch import Tensor

from refine.coords import Axis, Samples
from refine.models import Network


@dataclass(frozen=True)
class Grid:
    """Rows x columns of queries.

    samples: how the next scale reads the mask from them, where they are not all pixels of the picture or of that scale.
    """

    rows: Axis
    columns: Axis
    samples: tuple[Samples, Samples] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def mask(self, p: Tensor) -> Tensor:
        """The mask in [-1, 1] that the next scale reads, of probabilities (n, m) at the queries."""
        mask = 2 * p - 1
        if self.samples is None:
            return mask
        rows, columns = self.samples
        return columns.reduce(rows.reduce(mask, 0), 1)


def dense(network: Network, full: tuple[int, int], size: tuple[int, int]) -> Grid:
    """Every pixel of a picture of ``full`` px, from the latent of its ``size``."""
    return Grid(network.axis(full[0], size[0]), network.axis(full[1], size[1]))


def read_by_next(network: Network, full: tuple[int, int], size: tuple[int, int], following: tuple[int, int]) -> Grid:
    """Only the pixels that reducing the mask to the size ``following`` reads: the same mask there (identity g).

    From scale 1/8 to 1/4 they are a quarter of all; from 1/2 on, all.
    """
    samples = Samples.of(full[0], following[0]), Samples.of(full[1], following[1])
    grid = dense(network, full, size)
    if all(len(s.positions) == pixels for s, pixels in zip(samples, full, strict=True)):
        return grid
    return Grid(grid.rows[samples[0].positions], grid.columns[samples[1].positions], samples)


def at_next(network: Network, full: tuple[int, int], size: tuple[int, int], following: tuple[int, int]) -> Grid:
    """The samples of the next scale themselves: the least to decode, and no longer quite the same mask."""
    rows, columns = (network.axis_at(*lengths) for lengths in zip(full, size, following, strict=True))
    return Grid(rows, columns)
