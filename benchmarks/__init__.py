"""What the library is measured against, and the programs that measure it."""
