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
from typing import Any, Final, Protocol, TypeVar, cast
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from refine.download import cache_dir
from refine.errors import FileError, OptionError
from refine.guidance.proposals import Proposal, Proposals, ProposalSource
from refine.io import PathLike, check_folder, write_atomic

FORMAT: Final = 2
"""Of entries, and of how pictures are reduced before anything is found in them; another makes all of them anew."""

MOST_BYTES: Final = 2**29
"""Of an entry, on disk and unpacked; a thousand proposals take some MB, an embedding 4 MB."""

Arrays = dict[str, NDArray[Any]]
Kept = TypeVar("Kept")


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
        kept = self.kept_proposals(source, image)
        if kept is None:
            self.check()  # before the work
            kept = source.propose(image)
            _write(self._path("proposals", source.name, source.settings(), image), _packed(kept))
        return kept

    def embedding(self, encoder: Encoder, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What ``encoder.embedding(image)`` gives, found once for each picture (H, W, 3) and settings.

        Raises FileError: an entry cannot be read or written.
        """
        kept = self.kept_embedding(encoder, image)
        if kept is None:
            self.check()  # before the work
            kept = encoder.embedding(image)
            _write(self._path("embeddings", encoder.name, encoder.encoder_settings(), image), {"embedding": kept})
        return kept

    def kept_proposals(self, source: ProposalSource, image: NDArray[np.uint8]) -> Proposals | None:
        """The proposals of a picture (H, W, 3) where they are there and whole; none are looked for.

        Raises FileError: an entry cannot be read.
        """
        return self._kept(
            "proposals", source.name, source.settings(), image, lambda arrays: _unpacked(arrays, source.name)
        )

    def kept_embedding(self, encoder: Encoder, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """The embedding of a picture (H, W, 3) where it is there and whole; none is made.

        Raises FileError: an entry cannot be read.
        """
        return self._kept("embeddings", encoder.name, encoder.encoder_settings(), image, _embedding)

    def _kept(
        self,
        kind: str,
        name: str,
        settings: dict[str, Any],
        image: NDArray[np.uint8],
        unpack: Callable[[Arrays], Kept],
    ) -> Kept | None:
        """An entry of these settings, or of float32 in place of a shorter type: a GPU's serves on a CPU too."""
        for each in (settings, settings | {"dtype": "float32"}):
            if "dtype" in settings or each is settings:
                kept = _read(self._path(kind, name, each, image), unpack)
                if kept is not None:
                    return kept
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
    if arrays["runs"].sum() != len(arrays["counts"]):
        raise ValueError("runs that are not all there")
    runs = np.split(arrays["counts"], np.cumsum(arrays["runs"])[:-1]) if len(arrays["runs"]) else []
    items = tuple(
        Proposal.of_runs(counts, (height, width), predicted_iou=iou, stability=stability)
        for counts, (iou, stability) in zip(runs, arrays["scores"], strict=True)
    )
    return Proposals(items, (height, width), source)


def _embedding(arrays: Arrays) -> NDArray[np.float32]:
    found = arrays["embedding"]
    if found.dtype != np.float32 or found.ndim != 3 or not np.isfinite(found).all():
        raise ValueError("no embedding")
    return found


def _read(path: Path, unpack: Callable[[Arrays], Kept]) -> Kept | None:
    """What an entry holds; None where there is none, or it is damaged, another program's or too large."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); remove it, or give another folder") from error
    digest, packed = content[:32], content[32:]
    if hashlib.sha256(packed).digest() != digest:
        return None
    try:
        with ZipFile(io.BytesIO(packed)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:  # which zipfile reads no further
                return None
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            return unpack(dict(arrays))
    except MemoryError:
        raise
    except Exception:  # the bytes are those that were written, but not by us: anything can come of them
        return None


def _write(path: Path, arrays: Arrays) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    content = packed.getvalue()
    write_atomic(path, lambda file: file.write(hashlib.sha256(content).digest() + content))
