"""Fast math on plain arrays; knows nothing of refine.

Each public function has a plain twin of the same name in `refine_kernels.reference`. Numba is loaded, and a kernel
compiled, when a function is first used; compiled kernels are cached on disk.
"""

from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refine_kernels.counts import band_counts
    from refine_kernels.regions import contour_band, grid_lines, strided_changes
    from refine_kernels.resize import area_reduce, covered

__all__ = ["area_reduce", "band_counts", "contour_band", "covered", "grid_lines", "strided_changes"]

# Held while a parallel kernel runs. Numba has the threading layer that the machine offers: tbb and omp bear calls from
# two Python threads but would use twice the threads asked for, and workqueue, the last resort, aborts the process.
LOCK = Lock()

_LAZY = {
    "area_reduce": "resize",
    "band_counts": "counts",
    "contour_band": "regions",
    "covered": "resize",
    "grid_lines": "regions",
    "strided_changes": "regions",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'refine_kernels' has no attribute {name!r}")
    return getattr(import_module(f"refine_kernels.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
