"""The model card: what weights were trained on, how, and what they reach, for who gets them without the run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refine.checkpoint import Loaded, file_sha256, manifest
from refine.texts import in_markdown
from refine.training.coarse import GIVEN

_TERMS = ("TERMS", "TERMS.txt", "TERMS.md")  # of a data folder


@dataclass(frozen=True)
class Source:
    """A folder that was trained on."""

    folder: str
    pairs: int
    terms: str = ""
    """Text of the folder's own file TERMS, if it has one."""


@dataclass(frozen=True)
class Origin:
    """A file that a run began with, and what it says of its own origin."""

    name: str
    sha256: str
    data: tuple[str, ...] = ()
    """Folders that it, and what it began with itself, were trained on."""
    terms: str = ""

    @classmethod
    def of(cls, path: Path, held: Loaded) -> "Origin":
        """Weights; the terms of those that ship are in the manifest."""
        before = json.loads(held.metadata.get("before", "[]"))
        data = dict.fromkeys((*before, *json.loads(held.metadata.get("recipe", "{}")).get("data", ())))
        licences = (entry.licence for entry in manifest() if entry.sha256 == held.sha256)
        return cls(path.name, held.sha256, tuple(data), held.metadata.get("terms") or next(licences, ""))


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights that a card is for."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "WeightsFile":
        """A file as it is."""
        return cls(path.name, path.stat().st_size, file_sha256(path))


@dataclass(frozen=True)
class Card:
    """The facts of a card; `text` is the card."""

    recipe: Mapping[str, Any]
    """All fields of a recipe."""
    step: int
    device: str
    dtype: str
    date: str
    sources: Sequence[Source] = ()
    files: Sequence[WeightsFile] = ()
    validation: Mapping[str, Any] | None = None
    """The newest record of `refine.training.validation`."""
    best: Mapping[str, Any] | None = None
    """The record of the best weights."""
    terms: str = ""
    origin: Origin | None = None
    commit: str = ""
    """Of the code, where it is a checkout."""
    versions: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Markdown."""
        parts = [f"# {self.recipe['model']}, trained for {self.step:,} of {self.recipe['steps']:,} steps\n"]
        parts.append(_table(("file", "bytes", "sha256"), [(f.name, f"{f.bytes:,}", f.sha256) for f in self.files]))
        parts.append("## Data\n")
        parts.append(_table(("folder", "pairs"), [(in_markdown(s.folder), f"{s.pairs:,}") for s in self.sources]))
        if self.recipe["scenes"]:
            mix = self.recipe["coarse"]
            made = 1 - mix.get(GIVEN, 0) / sum(mix.values())  # crops with a given coarse mask are no scenes
            parts.append(f"{self.recipe['scenes'] * made:.0%} of the crops are generated scenes.\n")
        if self.origin is not None:
            parts.append("It began with\n")
            data = in_markdown(", ".join(self.origin.data))
            row = (in_markdown(self.origin.name), self.origin.sha256, data or "not stated")
            parts.append(_table(("file", "sha256", "trained on"), [row]))
        parts.append("## Terms\n")
        stated = stated_terms(self.terms, self.sources, self.origin)
        parts += [f"{in_markdown(name)}:\n\n{_quoted(text)}\n" for name, text in stated.items()] or [
            "None were stated.\n"
        ]
        parts.append("## Figures\n")
        parts += self._figures()
        parts.append("## Recipe\n")
        parts.append(_table(("field", "value"), [(k, f"`{_code(v)}`") for k, v in self.recipe.items()]))
        parts.append("## Made by\n")
        made = {"date": self.date, "device": self.device, "arithmetic": self.dtype, "commit": self.commit or "unknown"}
        parts.append(_table(("what", "value"), list((made | dict(self.versions)).items())))
        return "\n".join(parts)

    def _figures(self) -> list[str]:
        if self.validation is None and self.best is None:
            return ["Not validated.\n"]
        parts = []
        for which, record in (("The last weights", self.validation), ("The best weights", self.best)):
            if record is None or (
                record is self.best and self.validation and record["step"] == self.validation["step"]
            ):
                continue
            rows = [
                (
                    in_markdown(s["set"]),
                    str(s["pictures"]),
                    f"{s['iou_coarse']:.2f}/{s['mba_coarse']:.2f}",
                    f"{s['iou_refined']:.2f}/{s['mba_refined']:.2f}",
                )
                for s in record["sets"]
            ]
            parts.append(f"{which} that were validated, of step {record['step']:,}; gain {record['gain']:+.3f}:\n")
            parts.append(_table(("set", "pictures", "coarse IoU/mBA", "refined IoU/mBA"), rows))
        parts.append(
            "IoU is pooled over a set, mBA the mean of its pictures, in %. The gain is the mean over the sets of the "
            "two changes added up; the best weights have the highest.\n"
        )
        return parts


def stated_terms(terms: str, sources: Sequence[Source], origin: Origin | None) -> dict[str, str]:
    """The terms that are stated, by what they are of: all, the folders of a name, what the run began with."""
    began = [] if origin is None else [(origin.name, origin.terms)]
    stated: dict[str, list[str]] = {}
    for name, text in (("All", terms), *((source.folder, source.terms) for source in sources), *began):
        texts = stated.setdefault(name, [])
        if text.strip() not in ("", *texts):
            texts.append(text.strip())
    return {name: "\n\n".join(texts) for name, texts in stated.items() if texts}


def terms_files(folder: Path) -> list[Path]:
    """The files in which a data folder states its terms."""
    return [path for name in _TERMS if (path := folder / name).is_file()]


def source(folder: Path, pairs: int) -> Source:
    """A folder with the terms that it states itself."""
    stated = [path.read_text(encoding="utf-8", errors="replace") for path in terms_files(folder)]
    return Source(folder.name or str(folder), pairs, "\n\n".join(stated))


def _code(value: Any) -> str:
    """JSON that no backtick ends."""
    return json.dumps(value).replace("`", "\\u0060")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines())
