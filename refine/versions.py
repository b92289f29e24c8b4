"""What computed a figure: versions, and the commit of a checkout."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path


def versions() -> dict[str, str]:
    """Of what computes."""
    found = {"python": platform.python_version()}
    for name in ("refine-masks", "torch", "numpy", "opencv-python"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit(root: Path = Path(__file__).parents[1]) -> str:
    """Of the checkout at ``root``, marked where files differ from it; empty where there is none, or no git."""
    top = git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != root.resolve():  # inside another project's checkout
        return ""
    head = git(root, "rev-parse", "HEAD") or ""
    return f"{head} and uncommitted changes" if head and git(root, "status", "--porcelain", "-uno") else head


def git(root: Path, *words: str) -> str | None:
    """What git prints in a folder, without the ends' white space; none where it fails, or there is none."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
