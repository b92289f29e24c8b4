"""Windows that cover a picture, and the same windows with a halo."""

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right``, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """To index the last two axes with."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, halo: int, height: int, width: int) -> "Window":
        """The window with ``halo`` more on every side, cut at a picture of ``height`` x ``width``."""
        return Window(
            max(0, self.top - halo),
            min(height, self.bottom + halo),
            max(0, self.left - halo),
            min(width, self.right + halo),
        )

    def moved(self, rows: int, columns: int) -> "Window":
        """The window so much further down and to the right."""
        return Window(self.top + rows, self.bottom + rows, self.left + columns, self.right + columns)

    def aligned(self, multiple: int, height: int, width: int) -> "Window":
        """The window grown to multiples of ``multiple``, cut at a picture of ``height`` x ``width``."""
        return Window(
            self.top // multiple * multiple,
            min(height, -(-self.bottom // multiple) * multiple),
            self.left // multiple * multiple,
            min(width, -(-self.right // multiple) * multiple),
        )

    def divided(self, by: int) -> "Window":
        """The window on a grid ``by`` times coarser; origins must be multiples of ``by``, ends are rounded up."""
        assert self.top % by == 0
        assert self.left % by == 0
        return Window(self.top // by, -(-self.bottom // by), self.left // by, -(-self.right // by))

    def split(self, side: int) -> Iterator["Window"]:
        """Windows of at most ``side`` that cover this one exactly once, row by row."""
        for top in range(self.top, self.bottom, side):
            for left in range(self.left, self.right, side):
                yield Window(top, min(top + side, self.bottom), left, min(left + side, self.right))


def cover(height: int, width: int, side: int, multiple: int) -> Iterator[Window]:
    """Windows that cover ``height`` x ``width`` exactly once, with origins at multiples of ``multiple``.

    They are at most ``side`` long, rounded up to such a multiple, and about equally long: halos cost least then.
    """
    rows, columns = (_even(length, side, multiple) for length in (height, width))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield Window(top, min(top + rows, height), left, min(left + columns, width))


def _even(length: int, side: int, multiple: int) -> int:
    """The length of equal parts of ``length``, at most about ``side`` long, as a multiple of ``multiple``."""
    parts = -(-length // max(side, multiple))
    return -(-length // (parts * multiple)) * multiple
