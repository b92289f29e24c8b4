"""Odd arrays and options, through the interface."""

import math
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from . import mutate

_SHAPES = (
    (40, 50),
    (40, 50, 1),
    (40, 50, 3),
    (40, 50, 4),
    (3, 40, 50),
    (1, 40, 50),
    (40, 50, 2),
    (40, 50, 5),
    (20, 25),
    (50, 40),
)
_SHAPES += ((1, 1), (1, 50), (2, 3), (0, 5), (5, 0, 3), (0,), (), (40,), (1, 40, 50, 3), (7, 200), (64, 64, 3))  # type: ignore[assignment]
_TYPES = (
    "?",
    "u1",
    "u2",
    "u4",
    "u8",
    "i1",
    "i2",
    "i4",
    "i8",
    "f2",
    "f4",
    "f8",
    "g",
    "c8",
    ">u2",
    ">f4",
    "O",
    "U3",
    "S2",
    "M8[s]",
    "m8[s]",
    "V4",
)


def _array(rng: Random, shapes: Any = _SHAPES, odd: float = 0.3) -> np.ndarray:
    """An array of any shape, type, layout and range, each of which is an odd one with a chance of ``odd``."""
    shape = rng.choice(shapes if rng.random() < odd or shapes is not _SHAPES else ((40, 50), (40, 50), (40, 50, 3)))
    kind = rng.choice(_TYPES if rng.random() < odd else ("?", "u1", "u1", "u2", "f4"))
    numbers = np.random.default_rng(rng.getrandbits(32))
    values = numbers.random(shape)
    if rng.random() < 0.6 and len(shape) >= 2 and min(shape[:2]) > 0:  # an object
        values = np.zeros(shape)
        values[shape[0] // 4 : -(-shape[0] // 2), shape[1] // 4 : -(-shape[1] // 2)] = 1
    factor: float = {"u1": 255, "u2": 65535}.get(kind, 1)
    if rng.random() < odd:
        factor = rng.choice((1, 255, 2, 127, 128, 4095, 65535, 1000, -1, 1e-3, 0, 1e30, math.nan, math.inf))
    with np.errstate(all="ignore"):
        try:
            array = np.asarray(values * factor).astype(kind)
        except (ValueError, TypeError, OverflowError):
            array = np.zeros(shape, kind)
    if array.dtype.kind == "f" and array.size and rng.random() < 0.1:
        array.flat[0] = rng.choice((math.nan, math.inf, -0.0, 1 + 1e-7, -1e-7, 5e-324))
    match rng.randrange(7) if rng.random() < odd else 7:
        case 0:
            array = np.asfortranarray(array)
        case 1 if array.ndim >= 2:
            array = array[::-1, ::-1]
        case 2 if array.ndim >= 2:
            array = array[::2, ::2]
        case 3:
            array = np.broadcast_to(array[..., :1], array.shape) if array.ndim and array.shape[-1] else array
        case 4:
            array.flags.writeable = False
        case 5:
            array = np.ma.masked_array(array, mask=rng.choice((False, True)))
        case 6 if array.ndim == 2:
            array = np.matrix(array)
    return array


def _thing(rng: Random) -> Any:
    """What somebody may pass in an array's place."""
    things: tuple[Any, ...] = (
        None,
        5,
        1.5,
        "x",
        "",
        "\0",
        "a" * 5000,
        b"x",
        b"\x89PNG",
        [],
        [[1, 2], [3, 4]],
        {},
        dict,
        True,
    )
    things += (
        Path("nothing.png"),
        Path(),
        "https://example.com/x.png",
        "~nosuchuser/x",
        (1, 2),
        {1},
        math.nan,
        range(3),
        1j,
        Ellipsis,
    )
    return rng.choice(things)


def arrays(rng: Random, folder: Path, calls: Any) -> None:
    """A picture and a mask of any kind are refined, or refused in one line."""
    from refine.metrics import iou
    from refine.prepare import prepare

    made = refiner()
    odd = rng.choice((0.03, 0.1, 0.5))
    picture = _array(rng, odd=odd) if rng.random() < 0.95 else _thing(rng)
    mask = _array(rng, odd=odd) if rng.random() < 0.95 else _thing(rng)
    if rng.random() < 0.6 and isinstance(picture, np.ndarray) and picture.ndim >= 2 and 0 not in picture.shape[:2]:
        mask = _array(rng, (picture.shape[:2],), odd)
    (folder / "call.txt").write_text(f"{_text(picture)}\n\n{_text(mask)}\n", errors="backslashreplace")
    before = [array.copy() for array in (picture, mask) if isinstance(array, np.ndarray)]
    pair = calls("prepare", lambda: (lambda p: (p.image, p.mask))(prepare(picture, mask)))
    if pair is not None:
        image, soft = pair
        calls.check(image.dtype == np.uint8 and image.shape == (*soft.shape, 3), f"{image.dtype} {image.shape}")
        fine = soft.dtype == np.float32 and np.isfinite(soft).all() and soft.min() >= 0 and soft.max() <= 1
        calls.check(bool(fine), "a mask outside of [0, 1]")
        calls.check(type(image) is np.ndarray and type(soft) is np.ndarray, f"{type(image)} {type(soft)}")
        if rng.random() < 0.3:
            _refined(calls, "refine", lambda: made.refine(picture, mask), image)
    else:
        _refined(calls, "refine", lambda: made.refine(picture, mask), None)
    after = [array for array in (picture, mask) if isinstance(array, np.ndarray)]
    for old, new in zip(before, after, strict=True):
        calls.check(old.tobytes() == new.tobytes(), "an array that was given is another now")
    if len(after) == 2:
        calls("iou", lambda: iou(picture, mask))


def _refined(calls: Any, name: str, function: Any, image: Any) -> None:
    refined = calls(name, function)
    if refined is None:
        return
    calls.check(image is not None, "refined what prepare refuses")
    p = refined.probability
    fine = p.shape == image.shape[:2] and np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1
    calls.check(bool(fine), f"a probability {p.shape} outside of [0, 1] of a picture {image.shape}")


@cache
def refiner() -> Any:
    import torch

    from refine.engine import Refiner

    torch.set_num_threads(1)
    made = Refiner("crm-s", device="cpu", dtype="float32")
    for decode in ("dense", "bbox", "contour", "strided"):  # Numba compiles before the clock counts
        made.refine(*_scene(), decode=decode)
    return made


def _odd_option(rng: Random) -> Any:
    values: tuple[Any, ...] = (
        *mutate.ODD_VALUES,
        np.float32(0.5),
        np.int64(2**40),
        np.array(3),
        np.array([1, 2]),
        np.nan,
        Fraction(1, 3),
    )
    values += (
        Decimal("0.5"),
        2**31 - 1,
        2**31,
        2**62,
        10**25,
        "9" * 400,
        "1e400",
        "2GiB",
        "0",
        "-1",
        "1" + "0" * 308 + "GB",
        b"x",
        1j,
    )
    values += (
        "dense",
        "bbox",
        "contour",
        "strided",
        "near",
        "everywhere",
        "next",
        "full",
        "sam-sr-v1",
        "slic",
        "slic:levels=0",
        "slic:levels=1e9",
    )
    values += (
        "felzenszwalb",
        "slic:segments=" + "9" * 400,
        "slic:x",
        "slic:segments=nan",
        "sam-vit-b",
        1,
        2,
        4,
        31,
        32,
        33,
        64,
        128,
        1000,
    )
    return rng.choice(values)


@cache
def _scene() -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).integers(0, 40, (60, 80, 3)).astype(np.uint8)
    image[15:45, 20:60] += 160
    mask = np.zeros((60, 80), bool)
    mask[12:40, 24:64] = True
    return image, mask


def options(rng: Random, folder: Path, calls: Any) -> None:
    """Options of any value are taken or refused in one line, of the refiner and of methods."""
    from dataclasses import fields

    import refine
    from refine.config import Options
    from refine.methods import METHODS

    made = refiner()
    model = "crm-s" if rng.random() < 0.5 else rng.choice(sorted(METHODS))
    chosen: Any = Options if model == "crm-s" else METHODS[model].options
    given: dict[str, Any] = {}
    for field in rng.choices(fields(chosen), k=rng.choice((1, 2, 3))):
        given[field.name] = field.default if rng.random() < 0.4 else _odd_option(rng)
    if model == "crm-s" and rng.random() < 0.5:
        given["decode"] = rng.choice(("dense", "bbox", "contour", "strided"))
    if rng.random() < 0.05:
        given = {rng.choice(("model", "weights", "device", "dtype", "x y", "")): _odd_option(rng)}
    image, mask = _scene()
    (folder / "call.txt").write_text(f"{model} {_text(given)}", errors="backslashreplace")
    if model == "crm-s" and not {"model", "weights", "device", "dtype"} & set(given):
        _refined(calls, "refine", lambda: made.refine(image, mask, **given), image)
    else:
        _refined(calls, model, lambda: refine.run(image, mask, **({"model": model} | given)), image)


def metrics(rng: Random, folder: Path, calls: Any) -> None:
    """Scores of any two arrays are numbers, or they are refused."""
    from refine import metrics as all_

    others = ("harm", "mean_iou", "pooled_far", "pooled_iou")  # which take something else
    name = rng.choice([name for name in all_.__all__ if name[0].islower() and name not in others])
    odd = rng.choice((0.03, 0.1, 0.5))
    first = _array(rng, ((40, 50),) if rng.random() < 0.7 else _SHAPES, odd)
    second = _array(rng, (first.shape,), odd) if rng.random() < 0.9 else _array(rng)
    (folder / "call.txt").write_text(f"{name}\n{_text(first)}\n\n{_text(second)}\n", errors="backslashreplace")
    calls(name, lambda: getattr(all_, name)(first, second))


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        ends = ""
        if value.size and value.dtype.kind in "buif":
            ends = f"{np.min(value)}..{np.max(value)}"
        return f"{type(value).__name__} {value.dtype} {value.shape} {value.strides} {ends}"
    return repr(value)[:3000]
