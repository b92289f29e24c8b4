"""The process that reads inputs: jobs come as lines "target number", and what came of them goes back as JSON."""

import faulthandler
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from refine.errors import RefineError

from .targets import target

_LONGEST = 50_000  # characters of a message, which may tell a value that was given


class Broken(Exception):
    """A result that cannot be right."""


class Calls:
    """What a target calls: each call gives a result or a `RefineError` of one line, and twice the same."""

    def __init__(self, folder: Path, begins: Callable[[], None] = lambda: None) -> None:
        self.folder, self._begins = folder, begins
        self.outcomes: list[str] = []
        self.names: list[str] = []

    def __call__(self, name: str, function: Callable[[], Any]) -> Any:
        """The result, or None where it was refused."""
        first, result = self._call(function)
        second, result = self._call(function)
        self.check(first == second, f"{name} gives {first}, and then {second}")
        self.outcomes.append(f"{name}: {first}")
        self.names.append(f"{name} {first.partition(':')[0]}")
        return result

    def check(self, fact: bool, text: str) -> None:
        if not fact:
            raise Broken(text)

    def _call(self, function: Callable[[], Any]) -> tuple[str, Any]:
        self._begins()
        try:
            result = function()
        except RefineError as error:
            text = str(error)
            short = re.sub(r"\(.*\)", "(...)", text.replace(os.fspath(self.folder), ""))  # without what a library says
            self.check(
                text.isprintable() and len(text) < _LONGEST, f"a message of several lines, or long: {short[:2000]!r}"
            )
            return f"{type(error).__name__}: {short}", None
        return f"result: {digest(result)}", result


def digest(result: Any) -> str:
    """Short; equal for equal results."""
    if isinstance(result, np.ndarray):
        content = np.ascontiguousarray(result)
        return f"{result.dtype} {result.shape} {hashlib.sha1(content.tobytes()).hexdigest()[:12]}"
    if isinstance(result, dict | list | tuple):
        items = result.items() if isinstance(result, dict) else enumerate(result)
        return " ".join(f"{name}={digest(value)}" for name, value in items)[:500]
    if hasattr(result, "probability"):
        return digest(result.probability)
    if isinstance(result, float):
        return f"{result:.5g}"  # sums of float32 depend on where arrays are in memory
    return repr(result)[:200] if isinstance(result, int | str | None | bytes) else type(result).__name__


def where(error: BaseException) -> str:
    """The class, and the innermost lines of the package and of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/refine/" in frame.filename or "/refine_kernels/" in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in (*own[-1:], *frames[-1:])]
    return " ".join([type(error).__name__, *dict.fromkeys(places)])


def main(seed: str, place: str) -> None:
    out, folder = os.dup(1), Path(place)
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)

    def tell(**message: Any) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    for line in sys.stdin:
        name, number = line.split()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        calls = Calls(folder, lambda: tell(begins=True))
        try:
            target(name)(Random(f"{seed} {name} {number}"), folder, calls)
        except Exception as error:
            place = str(error) if isinstance(error, Broken) else where(error)
            text = str(error) if isinstance(error, Broken) else traceback.format_exc()
            tell(kind="broken" if isinstance(error, Broken) else "raised", text=text[-6000:], where=place[:100])
            continue
        tell(kind="fine", text="\n".join(calls.outcomes), names=calls.names)


if __name__ == "__main__":
    main(*sys.argv[1:])
