"""How to refine within a given memory: sizes of tiles from a model of the peak, before anything is computed.

The model counts what lives at once. Some of it grows with the picture (its arrays, unless they are mapped to files),
some with a tile and its halo (what the encoder holds, `working` values of the network's type per px), some with
neither. benchmarks/suite.py and tests/test_plan.py measure it against the peak resident set of processes.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from refine.config import Options
from refine.errors import OptionError
from refine.models import Network

GIB, MIB = 2**30, 2**20
LEAST = 256 * MIB  # threads' buffers, compiled kernels and libraries that are loaded on first use
SMALLEST = 256  # px; below, a tile is mostly halo
PER_PIXEL = 26  # bytes per px of a picture in memory: itself, masks before and after, results, scaled copies
PER_QUERY = 34  # bytes per query of a tile: selections, values before and after, guide
PER_COARSE = 16  # of a coarse scale's, which has more of them on a tile, and most are not decoded
WINDOWED = 64 * MIB  # decoded tiles of the files that are read by windows


@dataclass(frozen=True)
class Plan:
    """Sizes for one picture.

    size: (H, W) px; scales: sizes of the cascade's inputs; tile: px of scaled picture that are refined at once, halo
    excluded; windowed: whether files are read and written by windows. Bytes: picture, for what grows with the
    picture; working, for a tile; guidance, what Segment Anything takes before, where it has to look at the picture;
    cap, what is allowed, or None.
    """

    size: tuple[int, int]
    scales: tuple[tuple[int, int], ...]
    tile: int
    halo: int
    windowed: bool
    picture: int
    working: int
    cap: int | None
    guidance: int = 0

    @property
    def peak(self) -> int:
        """Bytes that the cascade is expected to take over what the process holds before."""
        return LEAST + self.picture + self.working

    @property
    def tiles(self) -> int:
        """Tiles of all scales."""
        return sum(math.prod(-(-n // self.tile) for n in size) for size in self.scales)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "peak": self.peak, "tiles": self.tiles}

    def __str__(self) -> str:
        how = "by windows of the files" if self.windowed else "in memory"
        lines = [
            f"{self.size[0]} x {self.size[1]} (H x W), {how}: {self.tiles} tiles of {self.tile} px with {self.halo} px "
            f"around, in {len(self.scales)} scales",
            f"expected peak {self.peak / GIB:.2f} GiB over the program itself: {LEAST / GIB:.2f} always, "
            f"{self.picture / GIB:.2f} for the picture, {self.working / GIB:.2f} for a tile"
            + ("" if self.cap is None else f"; at most {self.cap / GIB:.2f} GiB"),
        ]
        if self.guidance:
            lines.append(
                f"before, Segment Anything takes {self.guidance / GIB:.2f} GiB, where what it finds is not kept yet"
            )
        return "\n".join(lines)


def plan(
    network: Network,
    size: tuple[int, int],
    scales: tuple[tuple[int, int], ...],
    options: Options,
    dtype: torch.dtype,
    *,
    pad: int = 0,
    windowed: bool = False,
    excess: int = 0,
    guidance: int = 0,
    emulated: bool = False,
) -> Plan:
    """Sizes to refine a picture of ``size`` (H, W) with, under ``options.max_memory`` if that is given.

    scales: (h, w) of the inputs, border included. pad: px of the border. windowed: the picture and its masks stay in
    files. excess: bytes of their large tiles or strips, `refine.slides.Slide.excess`. guidance: bytes, see `Plan`; they
    are told, and held to the cap only where it is known that nothing is kept, by the refiner. emulated: the processor
    computes with ``dtype`` by copies in float32.

    Raises `OptionError`: nothing fits under the cap; the message states the least that does.
    """
    picture = WINDOWED + excess if windowed else PER_PIXEL * math.prod(n + 2 * pad for n in size)
    cap, value = options.max_bytes, dtype.itemsize + (torch.float32.itemsize if emulated else 0)

    def at(tile: int) -> Plan:
        working = _working(network, scales, tile, value, full=options.coarse_decode == "full")
        return Plan(size, scales, tile, network.halo, windowed, picture, working, cap, guidance)

    longest = max(max(s) for s in scales)
    if options.tile is not None:
        chosen = at(options.tile)
    else:
        tile = min(network.tile, max(SMALLEST, -(-longest // network.window) * network.window))
        chosen = at(tile)
        while cap is not None and chosen.peak > cap and tile > SMALLEST:
            tile = max(SMALLEST, tile * 7 // 8 // network.window * network.window)
            chosen = at(tile)
    if cap is not None and chosen.peak > cap:
        remedy = "allow more" if options.tile is None else "allow more, or leave the tile's size open"
        hint = "" if windowed else "; a TIFF alone, with -o NAME.tif, is refined by windows, which needs less"
        raise OptionError(
            f"max_memory of {cap / GIB:.2f} GiB is too little for {size[0]} x {size[1]}: at least "
            f"{math.ceil(100 * chosen.peak / GIB) / 100:.2f} GiB are needed; {remedy}{hint}"
        )
    return chosen


def _working(network: Network, scales: tuple[tuple[int, int], ...], tile: int, value: int, *, full: bool) -> int:
    """Bytes that refining the largest tile takes, ``value`` for each of its features.

    full: whether coarse scales have all pixels for queries.
    """
    last = scales[-1]
    encoded = math.prod(
        min(tile + 2 * network.halo + 4 * network.window, -(-n // network.window) * network.window) for n in last
    )
    queries = PER_QUERY * math.prod(min(tile, n) for n in last)
    grids = [last] * len(scales) if full else [*scales[1:], last]
    for size, grid in zip(scales, grids, strict=True):
        queries = max(queries, PER_COARSE * math.prod(min(tile * m // n, m) for n, m in zip(size, grid, strict=True)))
    return int(encoded * network.working * value) + queries
