"""How good a mask is: overlap, boundary, distance, probability and matte figures, and the harm that refining did.

Every figure takes arrays (H, W) of the same shape, the truth last. A mask is bool (preferred), integer {0, 1}, integer
0..255 with a pixel above 128 (set where > 128, as the protocol of the BIG data set reads files) or float in [0, 1] (set
where > 0.5). A probability or alpha matte is float in [0, 1], bool, integer {0, 1} or integer 0..255 (divided by 255;
integers of 0 and 1 alone are taken for a mask, so give floats where 1 of 255 may be the highest). Anything else is an
:class:`~refine.errors.InputError`. Where both masks are empty the prediction is perfect: shares are 1.0, errors and
distances 0.0.
"""

from refine.metrics.boundary import boundary_iou, mean_boundary_accuracy
from refine.metrics.damage import Harm, harm, pooled_far
from refine.metrics.distance import (
    average_hausdorff_distance,
    balanced_average_hausdorff_distance,
    hausdorff_distance,
    modified_average_hausdorff_distance,
)
from refine.metrics.matte import connectivity_error, gradient_error, mse, sad
from refine.metrics.overlap import (
    Confusion,
    confusion,
    f1,
    intersection_and_union,
    iou,
    mean_iou,
    pixel_accuracy,
    pooled_iou,
    precision,
    recall,
)
from refine.metrics.probability import average_precision, roc_auc

__all__ = [
    "Confusion",
    "Harm",
    "average_hausdorff_distance",
    "average_precision",
    "balanced_average_hausdorff_distance",
    "boundary_iou",
    "confusion",
    "connectivity_error",
    "f1",
    "gradient_error",
    "harm",
    "hausdorff_distance",
    "intersection_and_union",
    "iou",
    "mean_boundary_accuracy",
    "mean_iou",
    "modified_average_hausdorff_distance",
    "mse",
    "pixel_accuracy",
    "pooled_far",
    "pooled_iou",
    "precision",
    "recall",
    "roc_auc",
    "sad",
]
