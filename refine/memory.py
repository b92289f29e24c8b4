"""The memory that this process took."""

import re
import sys
from pathlib import Path


def peak_resident_set() -> int:
    """Bytes. On Linux the high-water mark of this process; getrusage's survives exec and begins at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
