"""Figures that measure how far two masks are apart, in px: Hausdorff distances, the largest and the averaged ones.

They compare two sets of points X and Y, the centres of pixels. By default these are all set pixels of the masks
(between="masks"), so a point that both masks have is at distance 0. With between="boundaries" they are the masks'
boundaries, the surface distances of medical imaging: the set pixels with an unset one, or the outside of the picture,
above, below, left or right. d(x, Y) is the Euclidean distance of x to the nearest point of Y.

Two empty masks are 0.0 apart; where one alone is empty the distance is infinite.
"""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from refine.errors import OptionError, one_of
from refine.metrics.inputs import binary_masks, box

Between = Literal["masks", "boundaries"]
_SETS: Final = ("masks", "boundaries")

_POINTS: Final = 4096  # of a set from which the modified average is found exactly; larger sets are thinned to these


def hausdorff_distance(
    prediction: NDArray[Any], truth: NDArray[Any], *, percentile: float = 100.0, between: Between = "masks"
) -> float:
    """Hausdorff distance max(max_x d(x, Y), max_y d(y, X)) in px, at least 0; symmetric.

    percentile: above 0, at most 100. Below 100 each of the two maxima over points becomes this percentile of their
    distances (linear between ranks), the robust form that a few wrong pixels do not decide: 95 with
    between="boundaries" is the HD95 of medical imaging.
    """
    if not 0 < percentile <= 100:
        raise OptionError(f"percentile={percentile}; give a number above 0 and at most 100")
    sets = _point_sets(prediction, truth, between)
    if isinstance(sets, float):
        return sets
    return max(directed.percentile(percentile) for directed in _distances(*sets))


def average_hausdorff_distance(prediction: NDArray[Any], truth: NDArray[Any], *, between: Between = "masks") -> float:
    """Average Hausdorff distance (mean_x d(x, Y) + mean_y d(y, X)) / 2 in px, at least 0; symmetric (AHD).

    Source: Aydin et al., European Radiology Experimental 5:4, 2021.
    """
    sets = _point_sets(prediction, truth, between)
    if isinstance(sets, float):
        return sets
    return sum(directed.total / directed.points for directed in _distances(*sets)) / 2


def balanced_average_hausdorff_distance(
    prediction: NDArray[Any], truth: NDArray[Any], *, between: Between = "masks"
) -> float:
    """Average Hausdorff distance whose two sums are both divided by the truth's points, in px, at least 0 (bAHD).

    (sum_x d(x, Y) + sum_y d(y, X)) / (2 |Y|) for the truth Y: not symmetric. A large prediction does not water down
    its own errors, so predictions of one truth are ranked by their errors alone.

    Source: Aydin et al., European Radiology Experimental 5:4, 2021.
    """
    sets = _point_sets(prediction, truth, between)
    if isinstance(sets, float):
        return sets
    there, back = _distances(*sets)
    return (there.total + back.total) / (2 * back.points)


def modified_average_hausdorff_distance(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Average Hausdorff distance of the masks' pixels by a d(x, Y) that heeds more than one point, in px (MAHD).

    d(x, Y) is not the least distance of x to a point of Y but the 95th percentile of the distances in decreasing
    order: the least radius around x that holds a twentieth of Y's points, rounded up. It is therefore above 0 for a
    perfect prediction of more than 20 px, grows with the objects, and compares predictions of one truth only. It is
    not the 95th percentile over x of the least distances, for which see :func:`hausdorff_distance`. Symmetric.

    Exact for masks of up to 4096 px. Of a larger one 4096 px spread evenly stand for all, and the figure is an
    estimate: usually off by less than 1 %, but by far more where a part away from the rest holds about a twentieth of
    the points.
    """
    sets = _point_sets(prediction, truth, "masks")
    if isinstance(sets, float):
        return sets
    x, y = (_spread_points(points) for points in sets)
    return (_mean_distance_to_twentieth(x, y) + _mean_distance_to_twentieth(y, x)) / 2


@dataclass(frozen=True)
class _Directed:
    """Distances of all points of one set to the nearest of the other."""

    points: int
    above_zero: NDArray[np.float64]  # of the points that the other set does not have

    @property
    def total(self) -> float:
        return float(self.above_zero.sum())

    def percentile(self, percentile: float) -> float:
        if percentile == 100:
            return float(self.above_zero.max(initial=0))
        place = (self.points - 1) * percentile / 100
        zeros, low = self.points - self.above_zero.size, int(place)
        ranks = [rank - zeros for rank in (low, min(low + 1, self.points - 1))]
        found = [i for i in ranks if i >= 0]
        ordered = np.partition(self.above_zero, found) if found else self.above_zero
        below, above = (float(ordered[i]) if i >= 0 else 0.0 for i in ranks)
        return below + (above - below) * (place - low)


def _point_sets(
    prediction: NDArray[Any], truth: NDArray[Any], between: Between
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | float:
    """Both sets of points in the least window that holds them; or the distance, where a mask is empty."""
    one_of("between", between, _SETS)
    prediction, truth = binary_masks({"prediction": prediction, "truth": truth})
    window = box(prediction, truth)
    x, y = prediction[window], truth[window]
    if not (x.any() and y.any()):
        return float("inf") if x.size else 0.0
    return (_boundary(x), _boundary(y)) if between == "boundaries" else (x, y)


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels beside an unset one; all around the window of the sets is unset, in the picture or as its outside."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    pixels = np.ascontiguousarray(mask).view(np.uint8)
    inside = np.asarray(cv2.erode(pixels, cross, borderType=cv2.BORDER_CONSTANT, borderValue=(0.0,)))
    return mask & (inside == 0)


def _distances(x: NDArray[np.bool_], y: NDArray[np.bool_]) -> tuple[_Directed, _Directed]:
    """From the points of x to y, and from those of y to x; neither is empty."""
    return _directed(x, y), _directed(y, x)


def _directed(x: NDArray[np.bool_], y: NDArray[np.bool_]) -> _Directed:
    # The distance map of y, read at the points of x. It is float32, and squares of distances are whole numbers: as long
    # as they are below some 4 million, distances below 2000 px, rounding them makes it exact.
    outside = x & ~y
    if not outside.any():
        return _Directed(int(np.count_nonzero(x)), np.zeros(0))
    to_y = np.asarray(cv2.distanceTransform((~y).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
    squares = np.rint(to_y[outside].astype(np.float64) ** 2)
    return _Directed(int(np.count_nonzero(x)), np.sqrt(squares))


def _spread_points(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Points (n, 2) of a mask, (y, x), n <= 4096: all of them, or some that are spread evenly over it.

    Bands of rows are read one after the other, each column by column, and every so many-th pixel is taken. A band has
    as many rows as make each point stand for a square, and no part is passed over however thin it is.
    """
    size = int(np.count_nonzero(mask))
    number = min(size, _POINTS)
    chosen = (2 * np.arange(number) + 1) * size // (2 * number)  # of the set pixels, as they are read
    side = ceil(sqrt(size / number))
    found, read = [], 0
    for top in range(0, len(mask), side):
        band = mask[top : top + side].T
        places = np.flatnonzero(band)
        first, last = np.searchsorted(chosen, (read, read + len(places)))
        columns, rows = np.divmod(places[chosen[first:last] - read], band.shape[1])
        found.append(np.stack([rows + top, columns], -1))
        read += len(places)
    return np.concatenate(found)


def _mean_distance_to_twentieth(x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
    """Mean over points x (n, 2) of the distance to the ceil(m / 20)-th nearest of y (m, 2)."""
    rank = -(-len(y) // 20) - 1
    total = 0.0
    for part in np.array_split(x, -(-len(x) // 256)):
        squares = (part[:, None, 0] - y[:, 0]) ** 2 + (part[:, None, 1] - y[:, 1]) ** 2
        total += float(np.sqrt(np.partition(squares, rank, 1)[:, rank]).sum())
    return total / len(x)
