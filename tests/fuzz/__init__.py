"""Damaged files, weights, states and calls: whatever is given, there is a result or a `RefineError`.

python -m fuzz --minutes 60 --seed 1    (in tests/; `make fuzz`)

Every input follows from the seed, the target and a number. Two processes read each of them, whose fresh memory is
filled with different bytes: where they differ, something was read that nobody wrote. A third watches that none of them
hangs, crashes or takes too much memory.
"""
