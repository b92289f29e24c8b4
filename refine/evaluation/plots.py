"""Plots as SVG, written by hand: they need no library, and stand in a page as text."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from refine.evaluation.scores import Row, Score

_COLOURS: Final = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ee7733",
    "#777777",
)  # told apart by most eyes
_SIDE, _MARGIN, _GAP = 320, 46, 30  # px of a panel, of what stands around it, between two
_FIGURES: Final[tuple[tuple[str, Callable[[Score], float]], ...]] = (
    ("IoU of a picture, %", lambda score: 100 * score.iou),
    ("mBA of a picture, %", lambda score: 100 * score.mba),
)


def scatter(rows: Sequence[Row]) -> str:
    """Every picture as a point, before to the right and after upwards, a colour a set; IoU and mBA beside each other.

    A point above the diagonal gained. Its title, where a browser shows it, is the picture's name.
    """
    sets = list(dict.fromkeys(row.set for row in rows))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(sets)}
    width = len(_FIGURES) * (_MARGIN + _SIDE + _GAP)
    height = 20 * len(sets) + _SIDE + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (title, figure) in enumerate(_FIGURES):
        left = _MARGIN + i * (_MARGIN + _SIDE + _GAP)
        parts.append(f'<g transform="translate({left} {_MARGIN / 2})">')
        points = [(row, figure(row.coarse), figure(row.refined)) for row in rows]
        low, step = _axis([value for _, *values in points for value in values])
        parts += _frame(title, low, step)
        for row, before, after in points:
            x, y = _at(before, low), _SIDE - _at(after, low)
            name = escape(f"{row.set}/{row.name}: {before:.2f} to {after:.2f}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colours[row.set]}" fill-opacity="0.7">'
                f"<title>{name}</title></circle>"
            )
        parts.append("</g>")
    for i, name in enumerate(sets):
        y = _SIDE + 2 * _MARGIN + 20 * i - 14
        parts.append(f'<circle cx="{_MARGIN + 5}" cy="{y}" r="5" fill="{colours[name]}"/>')
        parts.append(f'<text x="{_MARGIN + 18}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axis(values: Sequence[float]) -> tuple[float, float]:
    """Lowest value of an axis that ends at 100, and the distance of its lines: 1, 2 or 5 of a power of ten."""
    span = max(100 - min(values), 1.0)
    power = 10 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 5)
    return 100 - step * math.ceil(span / step - 1e-9), step


def _at(value: float, low: float) -> float:
    return _SIDE * (value - low) / (100 - low)


def _frame(title: str, low: float, step: float) -> list[str]:
    """A panel's axes with their lines and numbers, and its diagonal."""
    parts = [f'<rect width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#888"/>']
    for i in range(round((100 - low) / step) + 1):
        value = low + i * step
        at = _at(value, low)
        parts += [
            f'<path d="M {at:.1f} 0 V {_SIDE} M 0 {_SIDE - at:.1f} H {_SIDE}" stroke="#ddd"/>',
            f'<text x="{at:.1f}" y="{_SIDE + 15}" text-anchor="middle">{value:g}</text>',
            f'<text x="-5" y="{_SIDE - at + 4:.1f}" text-anchor="end">{value:g}</text>',
        ]
    parts.append(f'<path d="M 0 {_SIDE} L {_SIDE} 0" stroke="#888" stroke-dasharray="4 3"/>')
    parts.append(f'<text x="{_SIDE / 2}" y="{_SIDE + 32}" text-anchor="middle">{title}: coarse</text>')
    parts.append(f'<text transform="translate(-34 {_SIDE / 2}) rotate(-90)" text-anchor="middle">refined</text>')
    return parts
