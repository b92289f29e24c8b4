import errno
import os

import numba
import pytest
from numba.core.caching import IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

from refine_kernels import compiled
from refine_kernels.compiled import jit, untold


def twice(x: float) -> float:
    return x + x


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where kernels are kept; nothing was told yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "_told", set())
    monkeypatch.setattr(compiled, "_untold", [])
    return tmp_path


def files(folder, ending: str) -> list:
    return sorted(folder.rglob(f"*{ending}"))


def test_a_kernel_is_kept_and_not_compiled_again(folder):
    assert jit()(twice)(2.0) == 4
    assert len(files(folder, ".nbc")) == 1
    kernel = jit()(twice)
    assert kernel(2.0) == 4
    assert (kernel.stats.cache_hits.total(), kernel.stats.cache_misses.total()) == (1, 0)
    assert untold() == ()


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["cut", "empty", "a byte", "other"])
def test_a_damaged_kernel_is_compiled_again_and_told_once(folder, ending, damage):
    jit()(twice)(2.0)
    (path,) = files(folder, ending)
    whole = path.read_bytes()
    byte = len(whole) // 2 if ending == ".nbc" else 0
    changed = whole[:byte] + bytes([whole[byte] ^ 255]) + whole[byte + 1 :]
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "a byte": changed, "other": b"hello"}[damage])
    kernel = jit()(twice)
    assert kernel(2.0) == 4
    assert kernel.stats.cache_hits.total() == 0
    told = untold()
    assert len(told) == 1
    assert "cannot be read" in told[0]
    assert "NUMBA_CACHE_DIR" in told[0]
    again = jit()(twice)
    assert again(2.0) == 4
    assert again.stats.cache_hits.total() == 1  # it is whole again


def test_a_kernel_runs_where_the_disk_is_full(folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", full)
    assert [jit()(twice)(2.0) for _ in range(2)] == [4, 4]
    (told,) = untold()
    assert "No space left on device" in told


def test_a_kernel_runs_where_no_folder_can_be_written(folder, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
    assert [jit()(twice)(2.0) for _ in range(2)] == [4, 4]
    (told,) = untold()
    assert "cannot be kept on disk (no folder can be written to)" in told


def test_kernels_are_compiled_where_numba_is_told_not_to(folder, monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    kernel = jit()(twice)
    assert isinstance(kernel, Dispatcher)
    assert kernel(2.0) == 4
    assert numba.config.DISABLE_JIT == 1
