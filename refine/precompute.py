"""Proposals or features of every picture of a folder, into the cache; what is there already is not found again."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from refine.config import check_white
from refine.errors import FileError, InputError, OptionError, is_out_of_memory
from refine.guidance.cache import Cache, encoder_of
from refine.guidance.proposals import ProposalSource
from refine.guidance.sources import open_source
from refine.io import IMAGE_SUFFIXES, PathLike, read_image
from refine.pairs import find_images


def _reason(error: Exception) -> str:
    if is_out_of_memory(error):
        return "out of memory; --device cpu needs none of a GPU's, and a smaller picture less"
    return str(error)


@dataclass(frozen=True)
class Done:
    """What became of one picture."""

    picture: Path
    proposals: int | None = None
    """How many; None where features were wanted."""
    seconds: float = 0.0
    kept: bool = False
    """Whether they were there already."""
    error: str | None = None
    """Why there are none."""


@dataclass(frozen=True)
class Precompute:
    """Pictures whose proposals are wanted, what finds them, and where they are kept.

    Raises `OptionError` for features of a source that has none.
    """

    paths: list[Path]
    source: ProposalSource
    cache: Cache
    allow_large: bool = False
    """Read pictures beyond 250 megapixels."""
    embeddings: bool = False
    """Whether the features of the source's encoder are wanted instead, which SAM-SR v3 reads."""
    white: float | None = None
    """The pictures' value that is white, as in `refine.io.rgb8`."""

    def __post_init__(self) -> None:
        check_white(self.white)
        if self.embeddings:
            encoder_of(self.source)

    @classmethod
    def of(
        cls,
        folder: Path,
        source: str,
        *,
        sam_checkpoint: PathLike | None = None,
        out: Path | None = None,
        device: str = "auto",
        options: Mapping[str, float] | None = None,
        allow_large: bool = False,
        embeddings: bool = False,
        white: float | None = None,
    ) -> Self:
        """The pictures of a folder, as `refine.pairs.find_images` has them, and a source by its name.

        out: the cache's folder; None is `refine.download.cache_dir`. The others: `refine.guidance.sources.open_source`.

        Raises FileError: there is no such folder, no picture in it, or the cache cannot be written.
        Raises OptionError, WeightsError: as `open_source`, and for options of proposals where features are wanted.
        """
        if embeddings and options:
            raise OptionError(f"{', '.join(options)}: features do not depend on options of proposals; leave them out")
        paths = find_images(folder, IMAGE_SUFFIXES)
        cache = Cache(out)
        cache.check()
        opened = open_source(source, sam_checkpoint=sam_checkpoint, device=device, options=options)
        return cls(paths, opened, cache, allow_large, embeddings, white)

    def run(self) -> Iterator[Done]:
        """What became of each picture; a bad one does not end the others.

        Raises FileError: the cache cannot be read or written.
        """
        for path in self.paths:
            started = time.perf_counter()
            try:
                image = read_image(path, allow_large=self.allow_large, white=self.white)
            except (FileError, InputError, MemoryError) as error:
                yield Done(path, error=_reason(error))
                continue
            try:
                proposals, kept = self._found(image)
            except Exception as error:  # what the source cannot see; a cache that fails, fails for all
                if not isinstance(error, InputError) and not is_out_of_memory(error):
                    raise
                yield Done(path, error=_reason(error))
                continue
            yield Done(path, proposals, time.perf_counter() - started, kept)

    def _found(self, image: NDArray[np.uint8]) -> tuple[int | None, bool]:
        """How many proposals a picture has, None of features; and whether they were there."""
        if self.embeddings:
            encoder = encoder_of(self.source)
            there = self.cache.kept_embedding(encoder, image) is not None
            if not there:
                self.cache.embedding(encoder, image)
            return None, there
        kept = self.cache.kept_proposals(self.source, image)
        return len(self.cache.proposals(self.source, image) if kept is None else kept), kept is not None
