"""Generated pictures with exact truth: textured objects over textured ground, thin parts, holes, occluders.

An object is drawn once, as a map of coverage. The picture is blended by it and the truth is where it exceeds one half,
so the two agree at every pixel whatever the shape, down to a hair one pixel wide.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# OpenCV's type hints lose the type of the elements.
Plane = NDArray[Any]  # (H, W) float32
Colours = NDArray[Any]  # (H, W, 3) float32 RGB, 0..255
Coverage = NDArray[Any]  # (H, W) uint8, 0..255
Points = NDArray[Any]  # (N, 2) float64: x, y as OpenCV draws them

_SHIFT = 4  # OpenCV draws at sixteenths of a pixel
_ATTEMPTS = 8


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture (H, W, 3) uint8 RGB and the truth (H, W) bool of its objects.

    Everything is drawn from ``rng``: ground, kinds and number of objects, how far their colours are apart, what
    stands behind and before them, light, focus, noise and compression. Objects cover 2 % to 75 % of a picture of at
    least 32 x 32 pixels, of which what stands before them may take some; at smaller sizes the truth can be empty or
    full.
    """
    for _ in range(_ATTEMPTS):
        objects, before = _objects(rng, height, width)
        share = np.count_nonzero(objects > 127) / objects.size
        if 0.02 <= share <= 0.75:
            break
    else:
        objects, before = _blank(height, width), _blank(height, width)
        middle = np.array([width, height]) / 2
        _fill(objects, _outline(rng, middle, 0.3 * np.array([width, height]), roughness=0.05))
    contrast = rng.uniform(0.25, 1.0)
    palette = _palette(rng)
    picture = _ground(rng, height, width, palette)
    if rng.random() < 0.6:  # distractors: like objects, but behind them and not in the truth
        behind = _distractors(rng, height, width)
        _blend(picture, _texture(rng, height, width, _palette(rng, near=palette, distance=contrast)), behind)
    if rng.random() < 0.5:
        picture = _defocus(picture, rng.uniform(0.5, 4.0) * max(height, width) / 1024)
    if rng.random() < 0.7:
        _cast_shadow(rng, picture, objects)

    surface = _texture(rng, height, width, _palette(rng, near=palette, distance=contrast))
    if rng.random() < 0.5:  # a second material, whose edge inside the object is no boundary
        inner = _threshold(_noise(rng, height, width, cells=rng.uniform(2, 6), octaves=2), rng.uniform(0.4, 0.7))
        _blend(surface, _texture(rng, height, width, _palette(rng, near=palette, distance=contrast)), inner)
    if rng.random() < 0.5:  # in places the object takes the colours of the ground behind it
        likeness = _noise(rng, height, width, cells=rng.uniform(1.5, 4), octaves=1)
        weight = (rng.uniform(0.2, 0.6) * likeness)[..., None]
        surface += weight * (_defocus(picture, 0.02 * max(height, width)) - surface)
    surface *= _relief(rng, objects)[..., None]

    if rng.random() < 0.4:
        sigma = rng.uniform(0.4, 0.9)
        objects, before = (cv2.GaussianBlur(c, (0, 0), sigma) for c in (objects, before))
    _blend(picture, surface, objects)
    if before.any():
        _blend(picture, _texture(rng, height, width, _palette(rng, near=palette, distance=contrast)), before)
        objects = cv2.multiply(objects, cv2.bitwise_not(before), scale=1 / 255)
    return _photograph(rng, picture), objects > 127


# Shapes: coverage of one object at a time, drawn into a map that is given


def _objects(rng: np.random.Generator, height: int, width: int) -> tuple[Coverage, Coverage]:
    """Coverage of the objects, and of what stands before them."""
    objects, before = _blank(height, width), _blank(height, width)
    side = min(height, width)
    count = int(rng.choice([1, 1, 1, 2, 3, 5]))
    for _ in range(count):
        reach = side * rng.uniform(0.25, 0.6) / count**0.35
        centre = rng.uniform([0.2, 0.25], [0.8, 0.75]) * [width, height]
        _SHAPES[rng.integers(len(_SHAPES))](rng, objects, centre, reach)
    if rng.random() < 0.35:
        for _ in range(rng.integers(1, 4)):
            end = rng.uniform([0, 0], [width, height], (2, 2))
            _stroke(before, _wander(rng, end[0], end[1], 0.1), rng.uniform(0.002, 0.02) * side, taper=1.0)
    if rng.random() < 0.2:
        centre = rng.uniform([0, 0], [width, height])
        _fill(before, _outline(rng, centre, side * rng.uniform(0.05, 0.15), roughness=0.2))
    return objects, before


def _distractors(rng: np.random.Generator, height: int, width: int) -> Coverage:
    coverage = _blank(height, width)
    for _ in range(rng.integers(1, 5)):
        centre = rng.uniform([0, 0], [width, height])
        _SHAPES[rng.integers(len(_SHAPES))](rng, coverage, centre, min(height, width) * rng.uniform(0.05, 0.3))
    return coverage


Shape = Callable[[np.random.Generator, Coverage, Points, float], None]


def _draw_blob(rng: np.random.Generator, coverage: Coverage, centre: Points, reach: float) -> None:
    """A rounded or ragged body, often with holes."""
    size = reach * rng.uniform([0.6, 0.6], [1.2, 1.2])
    _fill(coverage, _outline(rng, centre, size, roughness=rng.choice([0.05, 0.15, 0.35])))
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 6)):
            hole = centre + rng.uniform(-0.6, 0.6, 2) * size
            _fill(coverage, _outline(rng, hole, reach * rng.uniform(0.02, 0.2), roughness=0.1), value=0)


def _draw_fur(rng: np.random.Generator, coverage: Coverage, centre: Points, reach: float) -> None:
    """A body with hair standing off its outline."""
    outline = _outline(rng, centre, reach * rng.uniform([0.5, 0.5], [0.9, 0.9]), roughness=0.1)
    _fill(coverage, outline)
    lean, length = rng.uniform(-1, 1), reach * rng.uniform(0.08, 0.4)
    width = rng.uniform(0.0015, 0.006) * reach + 0.8
    for _ in range(int(rng.uniform(60, 260))):
        root = outline[rng.integers(len(outline))]
        away = (root - centre) / (np.linalg.norm(root - centre) + 1e-9)
        turn = lean + rng.normal(0, 0.35)
        away = away @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        tip = root + away * length * rng.uniform(0.3, 1.0)
        _stroke(coverage, _wander(rng, root - away * 2, tip, 0.15, points=8), width * rng.uniform(0.7, 1.8), taper=0.3)


def _draw_tree(rng: np.random.Generator, coverage: Coverage, centre: Points, reach: float) -> None:
    """A branching plant, with or without leaves."""
    leaves, spread = rng.random() < 0.6, rng.uniform(0.35, 0.8)
    root = centre + np.array([0.0, reach])
    twigs = [(root, -np.pi / 2 + rng.normal(0, 0.1), reach * 0.7, reach * rng.uniform(0.03, 0.09))]
    for _ in range(90):
        if not twigs:
            break
        start, angle, length, width = twigs.pop(0)
        end = start + length * np.array([np.cos(angle), np.sin(angle)])
        _stroke(coverage, _wander(rng, start, end, 0.08, points=8), width, taper=0.6)
        if length < 0.06 * reach:
            if leaves:
                _fill(coverage, _outline(rng, end, reach * rng.uniform([0.02, 0.02], [0.07, 0.07]), roughness=0.1))
            continue
        for _ in range(rng.integers(2, 4)):
            fork = angle + rng.normal(0, spread)
            twigs.append((end, fork, length * rng.uniform(0.5, 0.8), max(width * 0.6, 1.0)))


def _draw_wheel(rng: np.random.Generator, coverage: Coverage, centre: Points, reach: float) -> None:
    """Rims, a hub and spokes: mostly holes."""
    squash, tilt = rng.uniform(0.5, 1.0), rng.uniform(0, np.pi)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])

    def at(angle: Points | float, radius: float) -> Points:
        return centre + np.stack([np.cos(angle), squash * np.sin(angle)], -1) * radius @ turn

    circle = np.linspace(0, 2 * np.pi, 181)
    _stroke(coverage, at(circle, reach), reach * rng.uniform(0.02, 0.14), taper=1.0)
    if rng.random() < 0.4:
        _stroke(coverage, at(circle, reach * 0.55), reach * rng.uniform(0.01, 0.06), taper=1.0)
    _fill(coverage, at(circle, reach * rng.uniform(0.06, 0.2)))
    width = reach * rng.uniform(0.004, 0.03)
    skew = rng.uniform(0, 0.5)
    for i, angle in enumerate(np.arange(0, 2 * np.pi, 2 * np.pi / rng.integers(5, 33))):
        _stroke(coverage, np.stack([at(angle + skew * (-1) ** i, reach * 0.06), at(angle, reach)]), width, taper=1.0)


def _draw_machine(rng: np.random.Generator, coverage: Coverage, centre: Points, reach: float) -> None:
    """Straight parts: plates, struts, wires and windows."""
    nodes = centre + rng.uniform(-1, 1, (rng.integers(4, 9), 2)) * reach
    for _ in range(rng.integers(1, 4)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
        plate = centre + rng.uniform(-0.4, 0.4, 2) * reach
        size = reach * rng.uniform(0.2, 0.7)
        corners = plate + size * np.stack([np.cos(angles), np.sin(angles)], -1)
        _fill(coverage, corners)
        if rng.random() < 0.4:
            _fill(coverage, corners.mean(0) + (corners - corners.mean(0)) * rng.uniform(0.2, 0.6), value=0)
    for _ in range(rng.integers(3, 14)):
        a, b = nodes[rng.integers(len(nodes))], nodes[rng.integers(len(nodes))]
        _stroke(coverage, np.stack([a, b]), reach * 10 ** rng.uniform(-2.5, -1.0), taper=1.0)


def _draw_limbs(rng: np.random.Generator, coverage: Coverage, centre: Points, reach: float) -> None:
    """A body with a head, limbs and fingers."""
    lean = rng.normal(0, 0.3)
    up = np.array([np.sin(lean), -np.cos(lean)])
    neck, hip = centre + up * 0.35 * reach, centre - up * 0.25 * reach
    _stroke(coverage, np.stack([neck, hip]), 0.36 * reach * rng.uniform(0.7, 1.2), taper=0.8)
    _fill(coverage, _outline(rng, neck + up * 0.38 * reach, reach * rng.uniform([0.13, 0.16], [0.2, 0.24]), 0.04))
    for joint, count in ((neck, 2), (hip, 2)):
        for _ in range(count):
            angle = rng.uniform(0, 2 * np.pi) if joint is neck else np.pi / 2 + rng.normal(0, 0.5)
            knee = joint + 0.42 * reach * np.array([np.cos(angle), np.sin(angle)])
            angle += rng.normal(0, 0.6)
            foot = knee + 0.4 * reach * np.array([np.cos(angle), np.sin(angle)])
            width = reach * rng.uniform(0.08, 0.16)
            _stroke(coverage, np.stack([joint, knee, foot]), width, taper=0.6)
            for finger in rng.normal(angle, 0.5, 4):
                tip = foot + reach * rng.uniform(0.06, 0.12) * np.array([np.cos(finger), np.sin(finger)])
                _stroke(coverage, np.stack([foot, tip]), width * 0.25, taper=0.7)


_SHAPES: tuple[Shape, ...] = (_draw_blob, _draw_fur, _draw_tree, _draw_wheel, _draw_machine, _draw_limbs)


def _outline(rng: np.random.Generator, centre: Points, size: Points | float, roughness: float) -> Points:
    """A closed curve (N, 2) of x, y around a centre: an ellipse with harmonics that fall off as 1 / frequency."""
    reach = float(np.max(size))
    angle = np.linspace(0, 2 * np.pi, int(np.clip(reach, 24, 720)), endpoint=False)
    frequency = np.arange(2, 2 + int(np.clip(reach / 4, 2, 40)))
    phase = rng.uniform(0, 2 * np.pi, frequency.size)
    height = roughness * rng.normal(0, 1, frequency.size) / frequency**0.8
    radius = 1 + (height * np.sin(angle[:, None] * frequency + phase)).sum(1)
    turn = rng.uniform(0, np.pi)
    points = np.stack([np.cos(angle), np.sin(angle)], -1) * radius.clip(0.25)[:, None] * size
    return centre + points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _wander(rng: np.random.Generator, start: Points, end: Points, bend: float, points: int = 24) -> Points:
    """A bent line (points, 2) from start to end; ``bend`` is the sideways reach over the length."""
    t = np.linspace(0, 1, points)[:, None]
    along = end - start
    across = np.array([-along[1], along[0]])
    sway = rng.normal(0, bend) * np.sin(np.pi * t) + rng.normal(0, bend / 2) * np.sin(2 * np.pi * t)
    return start + along * t + across * sway


def _fill(coverage: Coverage, points: Points, value: int = 255) -> None:
    cv2.fillPoly(coverage, [_fixed(points)], value, cv2.LINE_AA, _SHIFT)


def _stroke(coverage: Coverage, points: Points, width: float, taper: float) -> None:
    """A line through the points whose width falls to ``taper`` times its first."""
    fixed = _fixed(points)
    widths = np.rint(np.linspace(width, width * taper, max(len(points) - 1, 1))).clip(1).astype(int)
    for w in np.unique(widths):  # one call for each run of equal width
        run = np.flatnonzero(widths == w)
        part = fixed[run[0] : run[-1] + 2]
        cv2.polylines(coverage, [part], isClosed=False, color=255, thickness=int(w), lineType=cv2.LINE_AA, shift=_SHIFT)


def _fixed(points: Points) -> NDArray[np.int32]:
    return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def _blank(height: int, width: int) -> Coverage:
    return np.zeros((height, width), np.uint8)


# Surfaces: patterns in [0, 1] and the colours they are painted in


def _noise(rng: np.random.Generator, height: int, width: int, cells: float, octaves: int) -> Plane:
    """Smooth noise in [0, 1] with about ``cells`` bumps along the longer side and finer octaves of falling height."""
    total = np.zeros((height, width), np.float32)
    weight, norm = 1.0, 0.0
    for _ in range(octaves):
        scale = cells / max(height, width)
        grid = rng.random((min(height, int(height * scale) + 2), min(width, int(width * scale) + 2)), dtype=np.float32)
        total += weight * cv2.resize(
            grid, (width, height), interpolation=cv2.INTER_LINEAR if weight < 0.3 else cv2.INTER_CUBIC
        )
        norm += weight
        weight *= 0.55
        cells *= 2.1
    total *= 1 / norm
    return ((total - 0.5) * 1.6 + 0.5).clip(0, 1)


def _pattern(rng: np.random.Generator, height: int, width: int) -> Plane:
    """One of: cloudy noise, warped stripes, plaid, spots, ridges."""
    base = _noise(rng, height, width, cells=2 ** rng.uniform(1, 6), octaves=6)
    kind = rng.choice(["noise", "noise", "stripes", "plaid", "spots", "ridges"])
    if kind == "noise":
        return base
    if kind == "spots":
        return _soft_step(base, 0.5, rng.uniform(0.05, 0.2)) * 0.8 + base * 0.2
    if kind == "ridges":
        return 1 - np.abs(2 * base - 1)
    angle, period = rng.uniform(0, np.pi), max(height, width) / 2 ** rng.uniform(2, 6.5)
    waves = _waves(rng, base, angle, period)
    if kind == "plaid":
        waves = (waves + _waves(rng, base, angle + np.pi / 2, period)) / 2
    if rng.random() < 0.4:
        waves = _soft_step(waves, 0.5, 0.15)
    return 0.75 * waves + 0.25 * base


def _waves(rng: np.random.Generator, base: Plane, angle: float, period: float) -> Plane:
    height, width = base.shape
    x = (np.arange(width) * (2 * np.pi * np.cos(angle) / period)).astype(np.float32)
    y = (np.arange(height) * (2 * np.pi * np.sin(angle) / period)).astype(np.float32)
    phase = base * np.float32(rng.uniform(0, 6))
    phase += x
    phase += y[:, None]
    return 0.5 + 0.5 * np.sin(phase)


def _soft_step(plane: Plane, middle: float, softness: float) -> Plane:
    return ((plane - middle) / softness + 0.5).clip(0, 1)


def _threshold(plane: Plane, level: float) -> Coverage:
    return (_soft_step(plane, level, 0.02) * 255).astype(np.uint8)


def _palette(rng: np.random.Generator, near: Plane | None = None, distance: float = 1.0) -> Plane:
    """Three to five RGB colours (N, 3), 0..255; with ``near``, about ``distance`` of 100 levels from its mean."""
    hue = rng.choice([rng.normal(30, 18), rng.normal(100, 30), rng.normal(210, 25), rng.uniform(0, 360)]) % 360
    saturation, value = rng.beta(1.5, 3.0), rng.uniform(0.3, 0.9)
    wheel = np.clip(np.abs((hue / 60 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    colour = 255 * value * (1 - saturation * (1 - wheel))
    if near is not None:
        step = colour - near.mean(0)
        length = np.linalg.norm(step) + 1e-6
        colour = near.mean(0) + step / length * max(length * distance, 40 + 50 * distance)
    spread = rng.uniform(8, 45)
    colours = colour + rng.normal(0, spread, (rng.integers(3, 6), 1)) + rng.normal(0, spread / 3, (1, 3))
    return (colours + rng.normal(0, 10, (len(colours), 3))).clip(8, 247).astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int, palette: Plane) -> Colours:
    """A pattern painted in a palette's colours, with fine grain."""
    steps = np.linspace(0, len(palette) - 1, 256)
    table = np.stack([np.interp(steps, np.arange(len(palette)), palette[:, c]) for c in range(3)], -1)
    field = _pattern(rng, height, width)
    if rng.random() < 0.6:
        fine = _noise(rng, height, width, cells=max(height, width) / rng.uniform(2, 8), octaves=2)
        field += (fine - 0.5) * np.float32(rng.uniform(0.1, 0.6))
    index = (field.clip(0, 1) * 255).astype(np.uint8)
    return table.astype(np.float32)[index]


def _ground(rng: np.random.Generator, height: int, width: int, palette: Plane) -> Colours:
    picture = _texture(rng, height, width, palette)
    if rng.random() < 0.4:  # a horizon, a wall or a table
        ends = rng.uniform([0, 0.2], [0, 0.8], (2, 2)) * [width, height] + [[0, 0], [width, 0]]
        edge = _wander(rng, ends[0], ends[1], 0.03)
        second = _blank(height, width)
        _fill(second, np.concatenate([edge, [[width, height], [0, height]]]))
        _blend(picture, _texture(rng, height, width, _palette(rng, near=palette, distance=0.5)), second)
    return picture


# Light and lens


def _blend(picture: Colours, over: Colours, coverage: Coverage) -> None:
    """Paint ``over`` on the picture, in place, where there is coverage; work is limited to its bounding box."""
    x, y, w, h = cv2.boundingRect(coverage)
    if not w:
        return
    box = np.s_[y : y + h, x : x + w]
    alpha = coverage[box].astype(np.float32)[..., None] * np.float32(1 / 255)
    picture[box] += alpha * (over[box] - picture[box])


def _small_blur(coverage: Coverage, sigma: float) -> Plane:
    """Coverage in [0, 1] blurred on a grid as coarse as the blur allows."""
    height, width = coverage.shape
    factor = max(sigma / 3, 1)
    grid = (max(round(width / factor), 1), max(round(height / factor), 1))
    small: Plane = cv2.resize(coverage, grid, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    small = cv2.GaussianBlur(small, (0, 0), max(sigma / factor, 0.3))
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _cast_shadow(rng: np.random.Generator, picture: Colours, objects: Coverage) -> None:
    side = max(objects.shape)
    shadow = _small_blur(objects, rng.uniform(0.004, 0.03) * side)
    move: Plane = np.array([[1, 0, rng.normal(0, 0.02) * side], [0, 1, rng.uniform(0, 0.04) * side]])
    shadow = cv2.warpAffine(shadow, move, (objects.shape[1], objects.shape[0]))
    picture *= (1 - np.float32(rng.uniform(0.2, 0.6)) * shadow)[..., None]


def _relief(rng: np.random.Generator, objects: Coverage) -> Plane:
    """Brightness of a rounded surface: blurred coverage is its height, lit from one side."""
    sigma = rng.uniform(0.01, 0.05) * max(objects.shape)
    height = _small_blur(objects, sigma)
    angle = rng.uniform(0, 2 * np.pi)
    step = max(int(sigma), 1)
    lit = np.roll(height, step, 0) * np.float32(np.sin(angle)) + np.roll(height, step, 1) * np.float32(np.cos(angle))
    lit -= height * np.float32(np.sin(angle) + np.cos(angle))
    return (1 + np.float32(rng.uniform(0.2, 1.0)) * lit).clip(0.35, 1.5)


def _defocus(picture: Colours, sigma: float) -> Colours:
    factor = max(sigma / 2, 1)
    if factor == 1:
        return cv2.GaussianBlur(picture, (0, 0), max(sigma, 0.3))
    height, width = picture.shape[:2]
    grid = (max(round(width / factor), 1), max(round(height / factor), 1))
    small = cv2.GaussianBlur(cv2.resize(picture, grid, interpolation=cv2.INTER_AREA), (0, 0), sigma / factor)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _photograph(rng: np.random.Generator, picture: Colours) -> NDArray[np.uint8]:
    """Uneven light, focus, sensor noise and compression."""
    height, width = picture.shape[:2]
    light = _noise(rng, height, width, cells=1.5, octaves=1)
    reach = rng.uniform(0.1, 0.7)
    picture *= ((1 - reach / 2 + reach * light) * np.float32(rng.uniform(0.8, 1.25)))[..., None]
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 0.8))
    strength = rng.uniform(0.5, 7)
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(strength)
    picture += grain[..., None]
    if strength > 3:  # coloured noise too
        picture += cv2.resize(
            rng.standard_normal((height // 2 + 1, width // 2 + 1, 3), dtype=np.float32) * np.float32(strength / 2),
            (width, height),
        )
    pixels: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 96))]
        _, code = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), quality)  # OpenCV's order is BGR
        decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
        assert decoded is not None, "what was just encoded can be decoded"
        pixels = np.ascontiguousarray(decoded[..., ::-1], np.uint8)
    return pixels
