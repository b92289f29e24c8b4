"""Damaged state on disk: journals, lines of JSON, checkpoints, entries of the cache, recipes."""

import hashlib
import io
import json
import shutil
import tempfile
from functools import cache as once
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from refine.slides import Workspace

from . import mutate

_KEY = {"files": [["a.tif", 10, 1234]], "options": {"lean": 0.0}, "tile": 512}
_SHAPE = (12, 15)


@once
def _workspace() -> dict[str, bytes]:
    """The files of a run that was interrupted."""
    with tempfile.TemporaryDirectory() as place:
        with Workspace(f"{place}/w", _KEY) as store:
            for name in ("step-0", "step-1"):
                array = store.array(name, _SHAPE, np.float32)
                for top in range(0, 12, 4):
                    array[top : top + 4] = top + 1
                    store.mark(f"{name} {top} 0", array, record={"decoded": 60, "seconds": 0.5})
        return {path.name: path.read_bytes() for path in Path(place, "w").iterdir()}


def journal(rng: Random, folder: Path, calls: Any) -> None:
    """Of a resumed run: either it is refused, or what is done is what was done."""
    name = rng.choice(("refine.journal", "refine.journal", "step-0.npy"))
    files = dict(_workspace())
    if name == "refine.journal" and rng.random() < 0.8:
        lines = files[name].splitlines()
        at = rng.randrange(len(lines))
        lines[at] = mutate.json_text(lines[at].decode(), rng).encode("utf-8", "surrogatepass")
        files[name] = b"\n".join(lines) + b"\n"
    elif name != "refine.journal" and rng.random() < 0.7:
        files[name] = mutate.some_bytes(files[name][:128], rng) + files[name][128:]
    else:
        files[name] = mutate.some_bytes(files[name], rng)
    place = folder / "out.tif.work"
    for kept in ("input", "again"):  # what is read may be changed by it
        (folder / kept).mkdir(exist_ok=True)
    for file, data in files.items():
        (folder / "input" / file).write_bytes(data)

    def resume() -> Any:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "input", place)
        with Workspace(place, _KEY) as store:
            found: dict[str, Any] = {}
            for step in ("step-0", "step-1"):
                found[step] = np.array(store.array(step, _SHAPE, np.float32))
                for top in range(0, 12, 4):
                    found[f"{step} {top}"] = (store.done(f"{step} {top} 0"), store.record(f"{step} {top} 0"))
                    for value in store.record(f"{step} {top} 0").values():
                        calls.check(isinstance(value, int | float), f"a record of {type(value).__name__}")
            return found

    calls("Workspace", resume)


@once
def _rows() -> list[str]:
    row = {"set": "a", "name": "n", "seconds": 0.5, "peak_memory": 10**6, "commit": "c"}
    row |= {
        f"{figure}_{when}": 0.5 if figure in ("iou", "mba") else 5
        for figure in ("iou", "mba", "intersection", "union")
        for when in ("coarse", "refined")
    }
    lines: list[dict[str, Any]] = [
        {"variant": "v", "key": "k", "begun": "2026-01-01 00:00:00", "pictures": [["a", "n"], ["a", "m"]]}
    ]
    lines += [
        {"variant": "v", "key": "k", "stamp": "s", **row},
        {"variant": "v", "key": "k", "stamp": "s", **row, "name": "m"},
    ]
    lines += [{"variant": "v", "key": "k", "stamp": "s", "set": "a", "name": "o", "error": "bad"}]
    return [json.dumps(line) for line in lines]


def lines(rng: Random, folder: Path, calls: Any) -> None:
    """Of an evaluation."""
    from refine.evaluation.lines import Lines, read_rows

    rows = list(_rows())
    at = rng.randrange(len(rows))
    rows[at] = mutate.json_text(rows[at], rng)
    data = "\n".join([*rows, ""]).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        data = mutate.some_bytes(data, rng)
    path = folder / "items.jsonl"

    def fresh() -> Path:
        path.write_bytes(data)
        return folder

    def rows_of() -> Any:
        return [row.as_dict() for row in read_rows(fresh())]

    def places() -> Any:
        held = Lines(fresh())
        return [(place, held.row(place, "s") is not None) for place in held.found]

    calls("read_rows", rows_of)
    calls("Lines", places)


@once
def _run() -> tuple[Any, bytes]:
    """A training and its checkpoint."""
    import torch

    from refine.training.recipe import Recipe
    from refine.training.state import Run

    torch.set_num_threads(1)
    run = Run.begin(Recipe(steps=10), torch.device("cpu"), torch.float32)
    with tempfile.TemporaryDirectory() as place:
        run.store(Path(place, "checkpoint.pt"))
        return run, Path(place, "checkpoint.pt").read_bytes()


def training(rng: Random, folder: Path, calls: Any) -> None:
    """A checkpoint of which values or bytes are changed."""
    import torch

    run, data = _run()
    path = folder / "checkpoint.pt"
    if rng.random() < 0.6:
        content = torch.load(io.BytesIO(data), weights_only=True)
        match rng.randrange(5):
            case 0:
                del content[rng.choice(list(content))]
            case 1:
                content[rng.choice(list(content))] = rng.choice(mutate.ODD_VALUES)
            case 2:
                content["recipe"] = mutate.json_text(content["recipe"], rng)
            case 3:
                part = content[rng.choice(("network", "average"))]
                part[rng.choice(list(part))] = rng.choice((torch.zeros(1), None, torch.zeros(3, device="meta"), "x"))
            case _:
                content["optimizer"] = mutate.value(content["optimizer"], rng)
        torch.save(content, path)
    else:
        at = rng.choice((0, len(data) - 3000, rng.randrange(len(data))))
        path.write_bytes(data[:at] + mutate.some_bytes(data[at : at + 3000], rng) + data[at + 3000 :])

    def resume() -> int:
        run.step = 0
        run.resume(path)
        calls.check(isinstance(run.step, int) and run.step >= 0, f"resumed at step {run.step!r}")
        return run.step

    calls("resume", resume)


class _Source:
    """Finds a square, once; of a damaged entry it is asked again."""

    name = "square"

    def settings(self) -> dict[str, Any]:
        return {"side": 3}

    def propose(self, image: np.ndarray) -> Any:
        from refine.guidance.proposals import Proposal, Proposals

        masks = np.zeros((2, *image.shape[:2]), bool)
        masks[0, 2:5, 3:6] = masks[1, 8:20] = True
        return Proposals(tuple(map(Proposal.of, masks)), masks.shape[1:], self.name)


def cache(rng: Random, folder: Path, calls: Any) -> None:
    """An entry that was damaged, also by a program that knows its hash, is found again."""
    from refine.guidance.cache import Cache

    image, kept = np.zeros((40, 50, 3), np.uint8), Cache(folder)
    kept.proposals(_Source(), image)
    path = next((folder / "proposals").glob("*.bin"))
    whole = path.read_bytes()
    if rng.random() < 0.2:
        data = mutate.some_bytes(whole, rng)
    else:
        arrays = dict(np.load(io.BytesIO(whole[32:])))
        name = rng.choice(list(arrays))
        match rng.randrange(6):
            case 0:
                del arrays[name]
            case 1:
                arrays[name] = arrays[name][:-1]
            case 2:
                dtype = rng.choice((np.float32, np.int8, np.uint64, "<U3", bool, np.complex64, "<M8[s]"))
                arrays[name] = arrays[name].astype(dtype)
            case 3:
                arrays[name] = np.array(rng.choice((0, -1, 2**62, np.nan, [[1]], [2**32 - 1] * 4)))
            case 4:
                arrays[name] = np.concatenate([arrays[name], arrays[name]])
            case _:
                arrays[name] = arrays[name].astype(np.float64) * rng.choice((0, -1, 2, 10**6))
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        packed = file.getvalue() if rng.random() < 0.6 else mutate.some_bytes(file.getvalue(), rng)
        data = hashlib.sha256(packed).digest() + packed

    def found() -> Any:
        path.write_bytes(data)
        proposals = kept.proposals(_Source(), image)
        return [proposal.mask() for proposal in proposals]

    calls("proposals", found)


def recipe(rng: Random, folder: Path, calls: Any) -> None:
    """A recipe in TOML, and changes of it."""
    from refine.checkpoint import weights_dir
    from refine.training.recipe import read_recipe

    path = folder / "recipe.toml"
    text = rng.choice(sorted(weights_dir().glob("*.toml"))).read_text()
    lines = text.splitlines()
    values = (
        "-1",
        "0",
        "1e400",
        "9" * 400,
        "9" * 5000,
        "nan",
        "inf",
        '""',
        "[]",
        "{}",
        "[" * 3000,
        "true",
        "2026-01-01",
        "'''",
        '"\\u0000"',
        "1.5",
        '"+".+."',
        "[1, 2]",
        "{a = 1}",
        '"x' + "+x" * 9999 + '"',
        '"dice"',
        "0x7fffffffffffffff",
    )
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        name, equals, _ = lines[at].partition("=")
        lines[at] = f"{name}= {rng.choice(values)}" if equals else lines[at]
    text = "\n".join(lines)
    path.write_text(text if rng.random() < 0.8 else mutate.some_bytes(text.encode(), rng).decode("latin-1"))
    calls("read_recipe", lambda: read_recipe(path).as_dict())
    names = (
        "steps",
        "batch",
        "crop",
        "window",
        "seed",
        "loss",
        "milestones",
        "coarse",
        "coarse.given",
        "cascade.lean",
        "data",
        "shares",
        "model",
        "x",
        "cascade",
        "a.b.c.d",
        "",
    )
    change = f"{rng.choice(names)}={rng.choice(values)}"
    calls("changes", lambda: read_recipe(None, changes=[change]).as_dict())
