"""What a refinement gives back: the mask, the probability it was cut from, and how it came about."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from refine import arrays, io
from refine.errors import InputError
from refine.tiffs import Georeference

_TINT = (255, 45, 85)  # a red that is rare in photographs
_LINE = (255, 255, 255)


@dataclass(frozen=True)
class ScaleReport:
    """One step of the cascade."""

    scale: float
    """Side of the step's picture over the side of the input."""
    size: tuple[int, int]
    """(H, W) at this scale, in pixels."""
    encode_seconds: float
    decode_seconds: float
    pixels_decoded: int
    """Pixels whose value was computed."""
    pixels_kept: int
    """Pixels that kept the value they had."""
    encoded: float
    """Share of the scale's latent that was computed."""
    taken_back: int = 0
    """Pixels that were added without a hold in the coarse mask, and given its value or the first scale's
    (`refine.guard`)."""
    given_back: int = 0
    """Pixels given the coarse mask's value because the step cannot see what that has there (`refine.guard`)."""


MUCH = {"lost": 0.01, "area": 2.0, "moved": 0.25}
"""Shares and a factor from which a change is warned of."""


@dataclass(frozen=True)
class Change:
    """How a mask differs from its coarse mask, `refine.change`. Parts are connected, with 8 neighbours."""

    parts: int
    """Of the coarse mask."""
    parts_lost: int
    """Those of which the mask has no pixel."""
    lost_share: float
    """Their share of the coarse mask's area."""
    parts_added: int
    """Parts of the mask without a pixel of the coarse mask."""
    area_ratio: float | None
    """The mask's area over the coarse mask's; None where that is empty."""
    contour_moved: float
    """Share of the coarse contour that is further than `contour_distance` from the mask's."""
    contour_distance: int
    """px; a hundredth of the longer side."""

    def __str__(self) -> str:
        area = "" if self.area_ratio is None else f", area x {self.area_ratio:.3g}"
        return (
            f"{self.parts_lost:,} of {self.parts:,} parts of the coarse mask lost ({self.lost_share:.1%} of its area), "
            f"{self.parts_added:,} added{area}, {self.contour_moved:.1%} of its contour moved by more than "
            f"{self.contour_distance} px"
        )

    @property
    def much(self) -> bool:
        """Whether that is more than refining usually changes."""
        area = self.area_ratio is not None and not 1 / MUCH["area"] <= self.area_ratio <= MUCH["area"]
        return area or self.lost_share > MUCH["lost"] or self.contour_moved > MUCH["moved"]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should look at, if anything."""
        return (f"much was changed: {self}; look at the result",) if self.much else ()


@dataclass(frozen=True)
class Report:
    """How a mask came about."""

    model: str
    weights: str
    """SHA-256 of the weights file in hex, or "none"."""
    device: str
    """The device really used."""
    dtype: str
    """The type of the network's arithmetic; coordinates are always float32."""
    size: tuple[int, int]
    """(H, W) of the picture, in pixels."""
    prepare_seconds: float
    """Reading, checking, enlarging and padding the input."""
    scales: tuple[ScaleReport, ...]
    """The steps in the order they ran."""
    seconds: float
    """Wall time of the whole refinement."""
    peak_memory: int
    """Bytes: the peak resident set of the process on a CPU, the allocator's peak on CUDA."""
    options: dict[str, Any] = field(default_factory=dict)
    """The options in force, defaults included."""
    guidance: dict[str, Any] = field(default_factory=dict)
    """What guided the refinement, how much it found, and the rule that left it out if one did; empty without."""
    change: Change | None = None
    """How the mask differs from the coarse mask; None where nothing was compared."""
    warnings: tuple[str, ...] = ()
    """What the caller should know: a fallback, a mask with nothing to refine."""

    def as_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers, ready for JSON."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def __str__(self) -> str:
        rows = [("scale", "H x W", "encode s", "decode s", "decoded", "kept", "encoded")]
        for s in self.scales:
            size = f"{s.size[0]} x {s.size[1]}"
            seconds = (f"{s.encode_seconds:.2f}", f"{s.decode_seconds:.2f}")
            shares = (f"{s.pixels_decoded:,}", f"{s.pixels_kept:,}", f"{s.encoded:.0%}")
            rows.append((f"{s.scale:.3g}", size, *seconds, *shares))
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = [
            f"{self.model} (weights {self.weights[:12]}) on {self.device} in {self.dtype}: "
            f"{self.size[0]} x {self.size[1]} (H x W) in {self.seconds:.2f} s, peak {self.peak_memory / 1e9:.2f} GB"
        ]
        if self.scales:
            lines += ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
        if self.change is not None:
            lines.append(str(self.change))
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings])


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@dataclass(frozen=True, eq=False)
class Refined:
    """A refined mask. ``np.asarray(refined)`` is the mask."""

    mask: NDArray[np.bool_]
    """(H, W), set where the probability is above 0.5."""
    probability: NDArray[np.float32]
    """(H, W) in [0, 1]."""
    report: Report
    scales: Mapping[float, NDArray[np.float32]] = field(default_factory=dict)
    """The probability (h, w) after each step of the cascade, by its scale; empty unless it was asked for."""
    guidance: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Pictures (h, w, 3) of what guidance saw, by name; empty unless they were asked for."""
    georeference: Georeference | None = None
    """The image's place on Earth and resolution, which a TIFF keeps; None if its file said nothing of them."""

    @classmethod
    def of(
        cls,
        probability: NDArray[np.float32],
        report: Report,
        *,
        scales: Mapping[float, NDArray[np.float32]] | None = None,
        guidance: Mapping[str, NDArray[np.uint8]] | None = None,
        georeference: Georeference | None = None,
    ) -> Self:
        """The result whose probability (H, W) float32 in [0, 1] this is."""
        assert probability.ndim == 2, probability.shape
        assert probability.dtype == np.float32, probability.dtype
        return cls(probability > 0.5, probability, report, dict(scales or {}), dict(guidance or {}), georeference)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The mask; without ``copy`` it is this object's own array unless ``dtype`` needs another."""
        if dtype is None or np.dtype(dtype) == self.mask.dtype:
            return self.mask.copy() if copy else self.mask
        if copy is False:
            raise ValueError(f"the mask is bool: {np.dtype(dtype)} needs a copy; pass copy=None")  # numpy's protocol
        return self.mask.astype(dtype)

    def save(self, path: io.PathLike) -> None:
        """Writes the mask as 0 and 255 in 8 bits (.png, .tif, .tiff); see :func:`refine.io.write_mask`.

        Warns (UserWarning) where the image has a place on Earth and the file is no TIFF, which alone keeps it.
        """
        io.write_mask(path, self.mask, georeference=self.georeference)
        self._warn_of_place(path)

    def save_probability(self, path: io.PathLike) -> None:
        """Writes the probability (.png, .tif, .tiff in 16 bits, .npy); see :func:`refine.io.write_probability`.

        Warns as :meth:`save` does.
        """
        io.write_probability(path, self.probability, georeference=self.georeference)
        self._warn_of_place(path)

    def _warn_of_place(self, path: io.PathLike) -> None:
        suffix = os.path.splitext(os.fsdecode(path))[1].lower()
        if self.georeference is not None and self.georeference.on_earth and suffix not in (".tif", ".tiff"):
            text = f"{os.fsdecode(path)}: the image's place on Earth is not kept in {suffix}; save it as .tif"
            warnings.warn(text, stacklevel=3)

    def overlay(self, image: NDArray[Any] | io.Source) -> NDArray[np.uint8]:
        """The picture (H, W, 3) uint8 RGB with the mask tinted and outlined, for looking at.

        ``image`` is the picture of this mask's size: an array, a path or a PIL image. The outline lies on both sides of
        the border and is 1 / 500 of the shorter side thick, at least one pixel.

        Raises InputError: the picture has another size, or is no picture.
        Raises FileError: its file cannot be read.
        """
        # A result exists, so its picture has been read before: however large, it is trusted.
        white, held = self.report.options.get("white"), arrays.plain(image, "image")
        source = image if held is None else held
        if isinstance(source, np.ndarray):
            rgb = io.rgb8(source, "image", white)
        else:
            rgb = io.read_image(source, allow_large=True, white=white)
        if rgb.shape[:2] != self.mask.shape:
            given, wanted = (f"{h} x {w}" for h, w in (rgb.shape[:2], self.mask.shape))
            where = "image" if not isinstance(image, str | os.PathLike) else os.fspath(image)
            raise InputError(f"{where}: {given} (H x W) while the mask is {wanted}; pass the picture that was refined")
        levels = np.arange(256, dtype=np.float32)[:, None]
        tints = np.rint((levels + np.asarray(_TINT, np.float32)) / 2).astype(
            np.uint8
        )  # (256, 3): half picture, half tint
        out = rgb.copy()
        for c in range(3):
            np.copyto(out[..., c], cv2.LUT(rgb[..., c].copy(), tints[:, c].copy()), where=self.mask)
        thickness = max(1, round(min(self.mask.shape) / 500))
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness + 1, thickness + 1))
        border = cv2.morphologyEx(self.mask.astype(np.uint8), cv2.MORPH_GRADIENT, brush)
        out[border > 0] = _LINE
        return out
