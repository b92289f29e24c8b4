"""Pictures to look at: contours on a picture and on its crops."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from refine.evaluation.items import Mask, Picture

_BEFORE, _AFTER, _TRUTH, _EDGE = (255, 60, 40), (40, 230, 60), (70, 150, 255), (20, 20, 20)
_PANEL, _CAPTION, _GAP = 480, 34, 8  # px
_OUTSIDE = 4  # px, more than half of the widest line


def sheet(image: Picture, coarse: Mask, refined: Mask, truth: Mask, *, title: str, count: int = 3) -> Picture:
    """A picture to look at: the whole with both contours, then ``count`` rows of crops: before, after, truth.

    image (H, W, 3) uint8 RGB or grey (H, W), masks (H, W). The crops lie where the three masks differ most.
    """
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    width = 3 * _PANEL + 2 * _GAP
    whole = _with_contours(image, [(coarse, _BEFORE), (refined, _AFTER)], width)
    parts = [_caption(f"{title}   (red: before, green: after, blue: truth)", width), whole]
    for window in crop_windows(coarse, refined, truth, count=count):
        kinds = ((coarse, _BEFORE, "before"), (refined, _AFTER, "after"), (truth, _TRUTH, "truth"))
        y, x = window[0].start, window[1].start
        panels = []
        for mask, colour, caption in kinds:
            panel = _with_contours(image[window], [(mask[window], colour)], _PANEL)
            panels.append(np.vstack([_caption(f"{caption} ({x}, {y})", _PANEL), panel]))
        gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
        parts.append(np.hstack([panels[0], gap, panels[1], gap, panels[2]]))
    return np.vstack(parts)


def strip(image: Picture, coarse: Mask, refined: Mask, truth: Mask) -> Picture:
    """Side by side: the whole with both contours, and a crop with both contours, and with the truth's.

    The crop lies where the three masks differ most, and is framed in the whole. Where they are equal the whole stands
    alone. Red: before, green: after, blue: truth.
    """
    both = [(coarse, _BEFORE), (refined, _AFTER)]
    whole = _with_contours(image, both, _PANEL)
    panels = [whole]
    for window in crop_windows(coarse, refined, truth, count=1):
        scale = _PANEL / max(truth.shape)
        corners = [tuple(round(side * scale) for side in (x, y)) for y, x in _corners(window)]
        cv2.rectangle(whole, corners[0], corners[1], (255, 255, 255), 3)
        cv2.rectangle(whole, corners[0], corners[1], (0, 0, 0), 1)
        masks = (both, [(truth, _TRUTH)])
        panels += [
            _with_contours(image[window], [(mask[window], colour) for mask, colour in shown], _PANEL) for shown in masks
        ]
    height = max(panel.shape[0] for panel in panels)
    return np.hstack(
        [
            cv2.copyMakeBorder(p, 0, height - p.shape[0], 0, _GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))
            for p in panels
        ]
    )


def _corners(window: tuple[slice, slice]) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = window
    return (rows.start, columns.start), (rows.stop - 1, columns.stop - 1)


def crop_windows(coarse: Mask, refined: Mask, truth: Mask, *, count: int) -> Iterator[tuple[slice, slice]]:
    """Up to ``count`` squares, apart from each other, where the three masks differ in most pixels; (rows, columns).

    Their side is an eighth of the picture's longer side, at least 96 px, at most the shorter side.
    """
    height, width = truth.shape
    side = min(max(96, max(height, width) // 8), height, width)
    step = max(side // 8, 1)
    differ = ((coarse != truth) | (refined != truth)).astype(np.float32)
    # Sums of the square whose first pixel is (y, x), from the integral image, at every step.
    total = cv2.integral(differ, sdepth=cv2.CV_64F)
    rows, columns = np.arange(0, height - side + 1, step), np.arange(0, width - side + 1, step)
    sums = (
        total[np.ix_(rows + side, columns + side)]
        - total[np.ix_(rows, columns + side)]
        - total[np.ix_(rows + side, columns)]
        + total[np.ix_(rows, columns)]
    )
    for _ in range(count):
        i, j = np.unravel_index(int(np.argmax(sums)), sums.shape)
        if sums[i, j] <= 0:
            return
        y, x = int(rows[i]), int(columns[j])
        yield np.s_[y : y + side, x : x + side]
        sums[np.ix_(np.abs(rows - y) < side, np.abs(columns - x) < side)] = 0


def _with_contours(image: Picture, masks: Sequence[tuple[Mask, tuple[int, int, int]]], side: int) -> Picture:
    """The picture fitted into a width and at most that height, each mask's contour on it as a line with a dark edge."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    drawn: Picture = np.ascontiguousarray(cv2.resize(image, size, interpolation=how))
    lines = []
    for mask, _ in masks:
        scaled = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=how) > 127
        # A repeated edge keeps the picture's border, which is no contour, out of sight.
        padded = np.pad(scaled.astype(np.uint8), _OUTSIDE, mode="edge")
        lines.append(cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0])
    thick = 2 if scale > 1 else 1
    # All edges first: none covers another's line. They part a line from what has its colour, as blue from a sky.
    for contours in lines:
        cv2.drawContours(drawn, contours, -1, _EDGE, thick + 2, cv2.LINE_8, offset=(-_OUTSIDE, -_OUTSIDE))
    for contours, (_, colour) in zip(lines, masks, strict=True):
        cv2.drawContours(drawn, contours, -1, colour, thick, cv2.LINE_8, offset=(-_OUTSIDE, -_OUTSIDE))
    return cv2.copyMakeBorder(drawn, 0, 0, 0, side - size[0], cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _caption(text: str, width: int) -> Picture:
    bar = np.full((_CAPTION, width, 3), 255, np.uint8)
    plain = text.encode("ascii", "replace").decode()  # the letters that OpenCV draws
    cv2.putText(bar, plain, (6, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return bar
