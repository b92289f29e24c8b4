"""What ``refine-cli train`` does with its options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from refine.errors import FileError, OptionError, is_out_of_memory, shown
from refine.training.loop import train
from refine.training.recipe import read_recipe
from refine.training.validation import Interval, Validation

_MOST = 1024  # threads


def train_command(
    out: Path,
    *,
    recipe: str | None,
    root: Path,
    given: Mapping[str, Any],
    changes: Sequence[str],
    validate: Sequence[Path],
    validate_every: str | None,
    validate_limit: int | None,
    terms: Path | None,
    device: str,
    dtype: str,
    workers: int,
    threads: int | None,
    tensorboard: bool,
    quiet: bool,
) -> Path:
    """Reads a recipe and trains by it; the path of the weights.

    recipe, root, given, changes: see `refine.training.recipe.read_recipe`. validate: folders of sets.

    Raises `OptionError`, `FileError` and `WeightsError` as `refine.training.loop.train` does.
    """
    chosen = read_recipe(recipe, root, changes=changes, given=given)
    every = Interval.parse(validate_every or "30min")
    for name, value in (("--validate-every", validate_every), ("--validate-limit", validate_limit)):
        if value is not None and not validate:
            raise OptionError(f"{name} means nothing without --validate; give a held-out set")
    validation = Validation(tuple(validate), every, validate_limit) if validate else None
    if threads is not None:
        if not 1 <= threads <= _MOST:
            raise OptionError(f"threads={shown(threads)} is not possible; give a number from 1 to {_MOST}")
        torch.set_num_threads(threads)
    try:
        return train(
            chosen,
            out,
            device=device,
            dtype=dtype,
            workers=workers,
            validation=validation,
            terms=_text(terms) if terms is not None else "",
            quiet=quiet,
            tensorboard=tensorboard,
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OptionError("out of memory; a smaller --batch, or --set crop and window, needs less") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read ({error}); give a text file with the data's terms") from error
