import sys

import numpy as np
import pytest

from refine.memory import forget_peak, peak_resident_set, return_freed


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
