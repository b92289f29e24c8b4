"""What a user can cause. Every message says what was given, what is accepted and what to do."""

import errno
import os
from collections.abc import Sequence

from refine.texts import plain


class RefineError(Exception):
    """Base of every error that input, options or files can cause; its text is one line, whatever it quotes."""

    def __str__(self) -> str:
        return plain(super().__str__())


class InputError(RefineError, ValueError):
    """An image or mask that cannot be refined: its shape, type or values."""


class FileError(RefineError, OSError):
    """A file that cannot be read or written."""


class OptionError(RefineError, ValueError):
    """An option with an unknown or impossible value; the message lists the known ones."""


class WeightsError(RefineError):
    """Weights that are missing, damaged or belong to another model; the message names what is missing."""


_LONGEST = 80  # characters of a value in a message


def shown(value: object) -> str:
    """A value as a message has it: its `repr`, of a long one the beginning; never an error itself."""
    if isinstance(value, bytes | bytearray | memoryview):  # perhaps what a file holds
        return f"<{type(value).__name__} of {len(value):,}>"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list within lists without end
        text = f"<{type(value).__name__} too large to show>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raises `OptionError` where ``value`` is none of the ``known`` ones, which are texts."""
    if not isinstance(value, str) or value not in known:
        raise OptionError(f"{name}={shown(value)} is unknown; known are {', '.join(known)}")


def check_model(model: object, weights: object) -> None:
    """Raises `OptionError` where a model's name is no text, or ``weights`` are not a path."""
    if not isinstance(model, str):
        raise OptionError(f"model={shown(model)} is not a name; give one as text, as in 'crm-s'")
    check_path("weights", weights)


def check_path(name: str, value: object) -> None:
    """Raises `OptionError` where ``value`` is neither a path of a file nor None."""
    if value is not None and (not isinstance(value, str | os.PathLike) or "\0" in os.fsdecode(value)):
        given = f"<text of {len(value):,} characters>" if isinstance(value, str) else shown(value)
        raise OptionError(f"{name}={given} is not a path; give that of a file, as text or a pathlib.Path")


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more} more" if more > 0 else "")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, for which torch, its backends and OpenCV each have a class or a text of their own."""
    texts = "out of memory", "can't allocate memory", "insufficient memory", "cannot allocate memory", "bad_alloc"
    link: BaseException | None = error
    while link is not None:  # a writer that is stopped by it tells of what it has not written
        text = str(link).lower()
        if (
            isinstance(link, MemoryError)
            or type(link).__name__ == "OutOfMemoryError"
            or (isinstance(link, OSError) and link.errno == errno.ENOMEM)
            or any(words in text for words in (*texts, "can't start new thread", "std::system_error"))
        ):
            return True
        link = link.__cause__ or link.__context__
    return False
