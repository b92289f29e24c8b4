import subprocess
import sys

import numpy as np
import pytest

from refine.memory import forget_peak, peak_resident_set, resident_set, return_freed

on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere a peak counts from the parent's, stays and is all there is"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the C library cannot be asked")
def test_what_was_freed_counts_in_no_later_peak():
    blocks = [np.ones(60_000, np.uint8) for _ in range(5000)]  # 300 MB in pieces that the C library keeps
    last = blocks[-1]
    forget_peak()
    held = peak_resident_set()
    del blocks
    return_freed()
    forget_peak()
    assert peak_resident_set() < held - 200e6
    assert last.all()


@on_linux
def test_the_peak_of_a_child_does_not_begin_at_its_parents():
    ballast = np.ones(400 * 2**20, np.uint8)
    command = [sys.executable, "-c", "from refine.memory import peak_resident_set; print(peak_resident_set())"]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(child.stdout) < ballast.nbytes / 2
    assert peak_resident_set() > ballast.nbytes


@on_linux
def test_a_peak_can_be_forgotten_and_what_is_resident_goes_down():
    before = resident_set()
    ballast = np.ones(400 * 2**20, np.uint8)
    assert resident_set() - before > 0.9 * ballast.nbytes
    assert peak_resident_set() - before > 0.9 * ballast.nbytes
    size = ballast.nbytes
    del ballast
    forget_peak()
    assert resident_set() - before < 0.5 * size
    assert peak_resident_set() - before < 0.5 * size
