"""Fast math on plain arrays; knows nothing of refine.

Each kernel has a plain twin of the same name in `refine_kernels.reference`. Numba is loaded, and a kernel
compiled, when a function is first used; compiled kernels are kept on disk where that is possible, see
`refine_kernels.compiled`. `refine_kernels.threads` says how many threads they use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine_kernels.compiled import untold
    from refine_kernels.counts import band_counts, part_sums
    from refine_kernels.inputs import network_input
    from refine_kernels.regions import (
        any_in_cells,
        classes_in_cells,
        contour_band,
        fill_cells,
        grid_lines,
        mask_and_doubt,
        strided_changes,
    )
    from refine_kernels.resize import area_reduce, covered, interpolate
    from refine_kernels.threads import set_threads

__all__ = [
    "any_in_cells",
    "area_reduce",
    "band_counts",
    "classes_in_cells",
    "contour_band",
    "covered",
    "fill_cells",
    "grid_lines",
    "interpolate",
    "mask_and_doubt",
    "network_input",
    "part_sums",
    "set_threads",
    "strided_changes",
    "untold",
]

_LAZY = {
    "any_in_cells": "regions",
    "area_reduce": "resize",
    "band_counts": "counts",
    "classes_in_cells": "regions",
    "contour_band": "regions",
    "covered": "resize",
    "fill_cells": "regions",
    "grid_lines": "regions",
    "interpolate": "resize",
    "mask_and_doubt": "regions",
    "network_input": "inputs",
    "part_sums": "counts",
    "set_threads": "threads",
    "strided_changes": "regions",
    "untold": "compiled",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'refine_kernels' has no attribute {name!r}")
    return getattr(import_module(f"refine_kernels.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
