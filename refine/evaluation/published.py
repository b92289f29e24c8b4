"""Figures that others published on BIG, as they printed them, and the thesis' tables.

"The thesis" is B. Sydor's, chapter 4; CRM's and the coarse masks' figures are its too. Seconds and GiB are of its GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from refine.errors import OptionError
from refine.evaluation.scores import Summary

ORIGIN: Final = (
    "Published: on BIG, as printed in B. Sydor, Enhancing high-resolution segmentation using a low-resolution dataset, "
    "Ukrainian Catholic University, 2023; CascadePSP: Cheng et al., CVPR 2020; SegRefiner: Wang et al., NeurIPS 2023."
)
WHERE: Final = (
    "BIG and the networks' masks of it are offered at "
    "https://github.com/hkchengrex/CascadePSP/blob/master/docs/dataset.md; where a link is dead, ask its authors"
)

SOURCES: Final = ("FCN-8s", "DeepLabV3+", "RefineNet", "PSPNet")
"""Networks whose masks of BIG's pictures are refined."""

COARSE: Final = "Coarse Mask"
PUBLISHED: Final[Mapping[str, tuple[str, str, str, str]]] = {  # IoU/mBA in %, in the order of the sources
    COARSE: ("72.39/53.63", "89.42/60.25", "90.20/62.03", "90.49/59.63"),
    "CascadePSP": ("77.87/67.04", "92.23/74.59", "92.79/74.77", "93.93/75.32"),
    "CRM": ("79.62/69.47", "91.84/74.96", "92.89/75.50", "94.18/76.09"),
    "SAM-SR-v1": ("79.71/70.07", "93.00/76.69", "93.55/76.93", "94.45/77.17"),
    "SAM-SR-v2.1": ("79.92/70.44", "93.04/76.30", "93.71/76.35", "95.09/76.98"),
    "SAM-SR-v2.2": ("76.19/70.13", "87.89/74.87", "88.15/74.93", "89.55/75.65"),
    "SAM-SR-v3.1": ("79.70/69.61", "91.88/75.05", "92.93/75.61", "94.18/76.25"),
    "SAM-SR-v3.2": ("80.64/69.78", "92.33/75.00", "92.81/75.23", "93.73/75.82"),
    "SAM-SR-v3.3": ("79.74/69.21", "91.95/74.67", "92.96/75.39", "94.23/75.92"),
    "SAM-SR-v3.4": ("79.79/69.12", "91.57/74.73", "92.77/75.32", "93.90/75.82"),
    "SegRefiner": ("86.95/72.81", "94.86/77.64", "95.12/76.93", "95.30/77.46"),
}
AGREES: Final = 0.05  # points of IoU and of mBA


def printed(method: str, source: str) -> str:
    """A method's IoU/mBA on BIG with the masks of a source, as published."""
    return PUBLISHED[method][SOURCES.index(source)]


def recognised(summary: Summary) -> str | None:
    """The source whose masks of BIG a set's coarse masks are: whose published figures they score; else none."""
    for source in SOURCES:
        iou, mba = map(float, printed(COARSE, source).split("/"))
        if abs(summary.iou_coarse - iou) <= AGREES and abs(summary.mba_coarse - mba) <= AGREES:
            return source
    return None


def source_called(name: str) -> str | None:
    """The source that a folder is named after, as in "psp", "PSPNet" or "big_fcn8s"."""
    words = {"fcn": "FCN-8s", "deeplab": "DeepLabV3+", "refinenet": "RefineNet", "psp": "PSPNet"}
    return next((source for word, source in words.items() if word in name.lower()), None)


@dataclass(frozen=True)
class Method:
    """A row, or a column, of one of the thesis' tables: how it is made here and what was printed."""

    name: str
    options: Mapping[str, Any] | None
    """The refiner's, beside model and weights; none for the coarse masks."""
    published: str | None = None
    """Its name in `PUBLISHED`, where its figures are the same."""
    iou_mba: str = ""
    """On PSPNet's masks, where it is in no other table."""
    seconds: str = ""
    memory: str = ""
    """GiB."""
    average: str = ""
    """Mean gain over the sources."""


@dataclass(frozen=True)
class ThesisTable:
    """Methods by their cost and quality on PSPNet's masks, or by their quality on every source's."""

    title: str
    methods: tuple[Method, ...]
    costs: tuple[str, ...] = ()
    """Of "memory" and "seconds"; a table without them is by source."""
    note: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """Whose masks it needs."""
        return ("PSPNet",) if self.costs else SOURCES


_WHOLE = 2**16  # px, and latent cells: more than any picture has
_DENSE: Final = {"decode": "dense", "coarse_decode": "full"}


def _strided(stride: int) -> dict[str, Any]:
    return {**_DENSE, "decode": "strided", "stride": stride, "first_pass": "everywhere"}


def _guided(version: str, average: str) -> Method:
    name = f"SAM-SR-{version}"
    return Method(name, {**_DENSE, "guidance": name.lower()}, name, average=average)


_COARSE = Method(COARSE, None, COARSE, average="0.00/0.00")
_CRM = Method("Original CRM", _DENSE, "CRM", average="4.01/15.12")

TABLES: Final[Mapping[str, ThesisTable]] = {
    "thesis-4.1": ThesisTable(
        "Table 4.1, memory usage optimization",
        (
            Method("Original", {**_DENSE, "tile": _WHOLE, "patch": _WHOLE}, "CRM", seconds="8.97", memory="23.8"),
            Method("Optimized", {**_DENSE, "tile": _WHOLE}, iou_mba="94.18/76.05", seconds="9.10", memory="16.25"),
        ),
        ("memory", "seconds"),
        "Original: the encoder runs on the whole picture and features are fused at once; Optimized: they are fused "
        "patch by patch.",
    ),
    "thesis-4.2": ThesisTable(
        "Table 4.2, inference time optimization",
        (
            Method("Original", _DENSE, "CRM", seconds="8.97"),
            Method("BBox", {**_DENSE, "decode": "bbox"}, iou_mba="94.17/75.79", seconds="5.62"),
            Method("Contour", {**_DENSE, "decode": "contour"}, iou_mba="93.86/75.35", seconds="4.56"),
            Method("Strided 2", _strided(2), iou_mba="94.15/76.06", seconds="5.02"),
            Method("Strided 4", _strided(4), iou_mba="94.14/75.85", seconds="3.97"),
            Method("Strided 8", _strided(8), iou_mba="93.95/74.73", seconds="3.72"),
        ),
        ("seconds",),
    ),
    "thesis-4.3": ThesisTable("Table 4.3, SAM-SR-v1", (_COARSE, _CRM, _guided("v1", "4.55/16.33"))),
    "thesis-4.4": ThesisTable(
        "Table 4.4, SAM-SR-v2", (_COARSE, _CRM, _guided("v2.1", "4.82/16.13"), _guided("v2.2", "-0.18/15.01"))
    ),
    "thesis-4.5": ThesisTable(
        "Table 4.5, SAM-SR-v3",
        (
            _COARSE,
            _CRM,
            _guided("v3.1", "4.05/15.25"),
            _guided("v3.2", "4.25/15.14"),
            _guided("v3.3", "4.1/14.91"),
            _guided("v3.4", "3.88/14.87"),
        ),
    ),
    "thesis-4.6": ThesisTable(
        "Table 4.6, summary of CRM and SAM-SR-v2.1 with the optimizations",
        (
            Method("Original CRM", _DENSE, "CRM", seconds="8.97", memory="23.8"),
            Method("SAM-SR-v2.1, optimized", {**_strided(4), "guidance": "sam-sr-v2.1"}),
        ),
        ("memory", "seconds"),
        "The thesis prints this table as a picture, whose figures are not known here: CRM's are those of its other "
        "tables, and SAM-SR-v2.1's are left out.",
    ),
}


def thesis_table(name: str) -> ThesisTable:
    """Raises `OptionError` for a name that is none of the tables'."""
    if name not in TABLES:
        raise OptionError(f"table={name!r} is unknown; known are {', '.join(TABLES)}")
    return TABLES[name]
