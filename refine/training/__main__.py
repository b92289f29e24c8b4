"""Train a refiner by a recipe: ``python -m refine.training RECIPE.toml --data FOLDER --out RUN``.

A recipe is a TOML file with the fields of `refine.training.loop.Recipe`; its data folders lie in ``--data``. A second
call with the same ``--out`` goes on where the first one stopped.
"""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refine.errors import OptionError, RefineError
from refine.training.loop import Recipe, train


def read_recipe(path: Path, data: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, with data folders below ``data`` and with ``changes``, lines of TOML; the last wins.

    Raises `OptionError` for what is not one.
    """
    read = str(path)
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        for read in changes:
            values |= tomllib.loads(read)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{read!r} cannot be read ({error}); give TOML, with texts in quotes") from error
    try:
        values["data"] = [str(data / folder) for folder in values["data"]]
        if pretrained := values.get("pretrained"):
            values["pretrained"] = str(data / pretrained)
        return Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise OptionError(f"{path} is no recipe ({error}); give a TOML file with the fields of Recipe") from error


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m refine.training", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that the recipe's data folders lie in")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another value of a field, in TOML",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: checkpoint, log, weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare crops")
    given = parser.parse_args()
    try:
        recipe = read_recipe(given.recipe, given.data, given.set)
        print(train(recipe, given.out, device=given.device, workers=given.workers))
    except RefineError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
