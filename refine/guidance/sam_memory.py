"""What Segment Anything takes to look at a picture, so that a limit of memory can be held."""

from typing import Final

PEAK: Final = {"sam-vit-b": 2_630_000_000, "sam-vit-l": 3_460_000_000, "sam-vit-h": 3_490_000_000}
"""Bytes at the encoder's peak over the loaded network, by type: blocks that see all cells compare 4096 with 4096 of
them in each head, some times over. Measured on a CPU in float32, as the rise of the resident set's high-water mark
while a network of the type's width and heads, two blocks deep (they follow one another), embeds 1024 x 1024 px. Another
type's is not known and not counted."""
