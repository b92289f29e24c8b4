"""What a user can cause. Every message says what was given, what is accepted and what to do."""

from collections.abc import Sequence


class RefineError(Exception):
    """Base of every error that input, options or files can cause."""


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
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list within lists without end
        text = f"<{type(value).__name__} too large to show>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raises `OptionError` where ``value`` is none of the ``known`` ones."""
    if value not in known:
        raise OptionError(f"{name}={shown(value)} is unknown; known are {', '.join(known)}")


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more} more" if more > 0 else "")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, for which torch, its backends and OpenCV each have a class or a text of their own."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in text for words in ("out of memory", "can't allocate memory", "insufficient memory"))
    )
