"""Texts of others, such as the names of files, as they can be shown: on a terminal and in Markdown."""

import re
from html import escape

# What moves the cursor, starts a sequence that a terminal obeys, ends a line or turns the direction of what follows.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_MARKUP = re.compile(r"([\\`*\[\]])")


def plain(text: str) -> str:
    """On one line of a terminal: control characters as their escapes."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def in_markdown(text: str) -> str:
    """In Markdown, where it then is no HTML, link, picture or code."""
    return _MARKUP.sub(r"\\\1", escape(plain(text), quote=False))
