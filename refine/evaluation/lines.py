"""What an evaluation keeps: a line of JSON for each picture and variant, appended as it is done.

A line without a picture's figures stands where a run began with a variant: its key and its pictures are those that
count from there on.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from refine.errors import FileError, OptionError
from refine.evaluation.scores import Row

ITEMS: Final = "items.jsonl"  # of an evaluation's folder

Place = tuple[str, str, str]
"""The key of a variant, a set and a picture."""


@dataclass
class Lines:
    """The file of a folder, new or with the lines of earlier runs; the newest of a place counts.

    key: what a picture's figures depend on besides its files. stamp: those files, so that changed ones are measured
    again.
    """

    folder: Path
    found: dict[Place, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        path = self.folder / ITEMS
        try:
            text = path.read_bytes() if path.exists() else b""
            whole = text.rfind(b"\n") + 1
            if whole < len(text):  # a kill cut the last line off
                with path.open("r+b") as file:
                    file.truncate(whole)
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror}); evaluate into another folder") from error
        lines = _parsed(path, text[:whole])
        self.found = {(line["key"], line["set"], line["name"]): line for line in lines if "begun" not in line}

    def row(self, place: Place, stamp: str) -> Row | None:
        """The figures of a place, if it was measured with these files."""
        line = self.found.get(place)
        return None if line is None or line["stamp"] != stamp or "error" in line else Row.from_dict(line)

    def begin(self, variant: str, key: str, pictures: Iterable[tuple[str, str]]) -> None:
        """Keeps that a variant has this key and these (set, name) now, also where all its figures are there already."""
        begun = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        self._write({"variant": variant, "key": key, "begun": begun, "pictures": list(pictures)})

    def append(self, place: Place, variant: str, stamp: str, values: dict[str, Any]) -> None:
        """Keeps a row's figures, or an error."""
        key, set_, name = place
        line = {"variant": variant, "key": key, "stamp": stamp, "set": set_, "name": name, **values}
        self._write(line)
        self.found[place] = line

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / ITEMS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            where = self.folder / ITEMS
            raise FileError(f"{where}: cannot be written ({error.strerror}); evaluate into another folder") from error


def read_rows(folder: Path) -> list[Row]:
    """The rows that an evaluation wrote into a folder, in their order; of several variants FOLDER/VARIANT's.

    What failed when it was last measured, and a line that a kill cut off, is not among them. Of a variant that was
    measured with several weights and the like, those of the last run count and its pictures alone, and of a picture the
    newest line.

    Raises FileError for a folder without them or a damaged line, OptionError where a variant has to be named.
    """
    wanted = None
    if not (folder / ITEMS).is_file() and (folder.parent / ITEMS).is_file():
        folder, wanted = folder.parent, folder.name
    path = folder / ITEMS
    try:
        text = path.read_bytes()
    except OSError as error:
        raise FileError(
            f"no {ITEMS} to read in {str(folder)!r} ({error.strerror}); give a folder that refine-cli evaluate -o wrote"
        ) from error
    lines = _parsed(path, text[: text.rfind(b"\n") + 1])
    newest = {line["variant"]: line["key"] for line in lines}
    if wanted is None and len(newest) == 1:
        (wanted,) = newest
    if lines and wanted not in newest:
        given = f"{wanted!r} is none of its variants" if wanted else f"it holds {len(newest)} variants"
        example = folder / next(iter(newest))
        raise OptionError(f"{path}: {given}; give one, as in {str(example)!r}; there are {', '.join(newest)}")
    own = [line for line in lines if line["variant"] == wanted and line["key"] == newest[wanted]]
    kept = {(line["set"], line["name"]): line for line in own if "begun" not in line}
    pictures = next((line["pictures"] for line in reversed(own) if "begun" in line), None) or kept
    rows = [Row.from_dict(line) for place, line in kept.items() if place in pictures and "error" not in line]
    if not rows:
        raise FileError(f"{path}: holds no pictures; evaluate some")
    return rows


def _parsed(path: Path, text: bytes) -> list[dict[str, Any]]:
    """Whole lines; those of before there were variants have an empty one, and older runs begin without pictures."""
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values = {"variant": "", "key": "", "stamp": "", **json.loads(line)}
            if not all(isinstance(values[name], str) for name in ("variant", "key", "stamp")):
                raise ValueError("no variant of a text")
            if "error" in values and "begun" in values:
                raise ValueError("an error and a beginning")
            if "error" in values:
                if not all(isinstance(values[name], str) for name in ("set", "name", "error")):
                    raise ValueError("no error of a picture")
            elif "begun" in values:
                values["pictures"] = {(set_, name) for set_, name in values.get("pictures", ())}
                if not all(isinstance(text, str) for place in values["pictures"] for text in place):
                    raise ValueError("no pictures")
            else:
                Row.from_dict(values)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise FileError(
                f"{path}: line {number} is damaged ({' '.join(str(error).split())}); delete that line or the file and "
                "evaluate these pictures again, or give another folder"
            ) from error
        lines.append(values)
    return lines
