"""Measuring refiners against ground truth: BIG's layout and protocol, tables, a report to look at, and comparisons.

A set is a folder of ``<name>_im.*``, ``<name>_gt.png`` and ``<name>_seg.png``: picture, truth and coarse mask. Truth
and coarse mask are set where > 128, alpha mattes too. Per set: IoU is pooled (the sum of the intersections over the
sum of the unions), mBA is the mean over the pictures. The harm that refining did (`refine.metrics.Harm`): far errors
are pooled as IoU is, fragments and holes are means over the pictures, lost objects are added up.

items      which pictures, and their files
variants   what gives the masks: a refiner with its options, or another system's files
run        picture by picture: refine, score, keep a line
scores     figures of a picture and of a set
report     tables, plots and pictures of all that, beside what was published
"""

from refine.evaluation.command import evaluate_command
from refine.evaluation.compare import Change, Comparison, compare
from refine.evaluation.items import Item, find_items, find_sets, find_work
from refine.evaluation.lines import read_rows
from refine.evaluation.pictures import crop_windows, sheet
from refine.evaluation.run import Failure, Measured, evaluate, measure
from refine.evaluation.scores import Row, Score, Summary, score, summarise

__all__ = [
    "Change",
    "Comparison",
    "Failure",
    "Item",
    "Measured",
    "Row",
    "Score",
    "Summary",
    "compare",
    "crop_windows",
    "evaluate",
    "evaluate_command",
    "find_items",
    "find_sets",
    "find_work",
    "measure",
    "read_rows",
    "score",
    "sheet",
    "summarise",
]
