"""What was found in a picture, kept on disk: proposals and embeddings cost minutes and are asked for again.

An entry is named after the SHA-256 of all that it depends on and begins with that of the rest of itself, so that damage
of any kind is seen before anything is parsed.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from refine.download import cache_dir
from refine.errors import FileError, OptionError
from refine.guidance.proposals import Proposal, Proposals, ProposalSource
from refine.io import PathLike, check_folder, write_atomic

FORMAT: Final = 2
"""Of entries, and of how pictures are reduced before anything is found in them; another makes all of them anew."""

Arrays = dict[str, NDArray[Any]]


class Encoder(Protocol):
    """What has an embedding of a picture."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def encoder_settings(self) -> dict[str, Any]:
        """All that it depends on beside the picture and the name, as JSON has it."""

    def embedding(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(C, h, w) of a picture (H, W, 3) RGB of any size."""


class Cache:
    """Entries in a folder, by default `refine.download.cache_dir`; one that can only be read gives what it has.

    Raises `FileError` where there is no folder, and none can be made.
    """

    def __init__(self, folder: PathLike | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_dir()
        if not self.folder.is_dir():
            self.check()

    def check(self) -> None:
        """Raises `FileError` where nothing can be written there."""
        try:
            check_folder(self.folder)
        except FileError as error:
            raise FileError(f"cache: {error} (REFINE_CACHE names one)") from error

    def proposals(self, source: ProposalSource, image: NDArray[np.uint8]) -> Proposals:
        """What ``source.propose(image)`` gives, found once for each picture (H, W, 3) and settings.

        Raises FileError: an entry cannot be read or written.
        """
        arrays = self._entry("proposals", source.name, source.settings(), image, lambda: _packed(source.propose(image)))
        return _unpacked(arrays, source.name)

    def embedding(self, encoder: Encoder, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What ``encoder.embedding(image)`` gives, found once for each picture (H, W, 3) and settings.

        Raises FileError: an entry cannot be read or written.
        """
        arrays = self._entry(
            "embeddings",
            encoder.name,
            encoder.encoder_settings(),
            image,
            lambda: {"embedding": encoder.embedding(image)},
        )
        return arrays["embedding"]

    def kept_proposals(self, source: ProposalSource, image: NDArray[np.uint8]) -> Proposals | None:
        """The proposals of a picture (H, W, 3) where they are there and whole; none are looked for.

        Raises FileError: an entry cannot be read.
        """
        arrays = self._kept("proposals", source.name, source.settings(), image)
        return None if arrays is None else _unpacked(arrays, source.name)

    def kept_embedding(self, encoder: Encoder, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """The embedding of a picture (H, W, 3) where it is there and whole; none is made.

        Raises FileError: an entry cannot be read.
        """
        arrays = self._kept("embeddings", encoder.name, encoder.encoder_settings(), image)
        return None if arrays is None else arrays["embedding"]

    def _entry(
        self, kind: str, name: str, settings: dict[str, Any], image: NDArray[np.uint8], find: Callable[[], Arrays]
    ) -> Arrays:
        arrays = self._kept(kind, name, settings, image)
        if arrays is None:
            self.check()  # before the work
            arrays = find()
            _write(self._path(kind, name, settings, image), arrays)
        return arrays

    def _kept(self, kind: str, name: str, settings: dict[str, Any], image: NDArray[np.uint8]) -> Arrays | None:
        """An entry of these settings, or of float32 in place of a shorter type: a GPU's serves on a CPU too."""
        for each in (settings, settings | {"dtype": "float32"}):
            if "dtype" in settings or each is settings:
                arrays = _read(self._path(kind, name, each, image))
                if arrays is not None:
                    return arrays
        return None

    def _path(self, kind: str, name: str, settings: dict[str, Any], image: NDArray[np.uint8]) -> Path:
        about = {"format": FORMAT, "name": name, "settings": settings, "shape": image.shape, "dtype": str(image.dtype)}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(image).data)
        return self.folder / kind / f"{digest.hexdigest()}.bin"


@dataclass(frozen=True)
class Cached:
    """A source whose proposals are kept; a source itself."""

    source: ProposalSource
    cache: Cache

    @property
    def name(self) -> str:
        return self.source.name

    def settings(self) -> dict[str, Any]:
        return self.source.settings()

    def propose(self, image: NDArray[np.uint8]) -> Proposals:
        return self.cache.proposals(self.source, image)

    def is_kept(self, image: NDArray[np.uint8], *, features: bool = False) -> bool:
        """Whether the proposals of a picture are there, or the features of the source's encoder.

        Raises OptionError: features of a source that has no encoder.
        """
        if features:
            return self.cache.kept_embedding(encoder_of(self.source), image) is not None
        return self.cache.kept_proposals(self.source, image) is not None


def encoder_of(source: ProposalSource | Encoder) -> Encoder:
    """The encoder that a source of proposals has, or itself.

    Raises OptionError: it has none.
    """
    found = getattr(source, "sam", source)
    if not hasattr(found, "embedding"):
        raise OptionError(f"proposals={source.name!r} has no features to read; give sam-vit-b, sam-vit-l or sam-vit-h")
    return cast(Encoder, found)


def _packed(proposals: Proposals) -> Arrays:
    runs = [proposal.counts for proposal in proposals]
    return {
        "counts": np.concatenate([np.zeros(0, np.uint32), *runs]),
        "runs": np.array([len(counts) for counts in runs], np.int64),
        "scores": np.array([(p.predicted_iou, p.stability) for p in proposals], np.float64).reshape(-1, 2),
        "size": np.array(proposals.size, np.int64),
    }


def _unpacked(arrays: Arrays, source: str) -> Proposals:
    height, width = map(int, arrays["size"])
    runs = np.split(arrays["counts"], np.cumsum(arrays["runs"])[:-1]) if len(arrays["runs"]) else []
    items = tuple(
        Proposal.of_runs(counts, (height, width), predicted_iou=iou, stability=stability)
        for counts, (iou, stability) in zip(runs, arrays["scores"], strict=True)
    )
    return Proposals(items, (height, width), source)


def _read(path: Path) -> Arrays | None:
    """An entry's arrays; None where there is none that is whole."""
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); remove it, or give another folder") from error
    digest, packed = content[:32], content[32:]
    if hashlib.sha256(packed).digest() != digest:
        return None
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return dict(arrays)


def _write(path: Path, arrays: Arrays) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    content = packed.getvalue()
    write_atomic(path, lambda file: file.write(hashlib.sha256(content).digest() + content))
