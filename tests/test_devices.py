import pytest
import torch

from refine.devices import peak_memory, resolve_device, resolve_dtype
from refine.errors import OptionError

CPU = torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test wants missing")
def test_a_missing_gpu_is_an_error_and_never_the_cpu():
    with pytest.raises(OptionError, match="not on this machine; here are auto, cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_taken(name):
    assert resolve_dtype(name, CPU) is getattr(torch, name)


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_where_a_cpu_multiplies_it(monkeypatch, multiplies, dtype):
    monkeypatch.setattr("refine.devices._multiplies_bfloat16", lambda: multiplies)
    assert resolve_dtype("auto", CPU) is dtype
    assert resolve_dtype("auto", torch.device("mps")) is torch.float32


def test_an_unknown_dtype_lists_the_known_ones():
    with pytest.raises(OptionError, match="auto, float32, bfloat16, float16"):
        resolve_dtype("half", CPU)


def test_a_cpus_peak_is_the_process_resident_set():
    with peak_memory(CPU) as peak:
        before = peak()
        held = torch.ones(before // 8 * 3)  # float32: more than the process ever had
        assert peak() > before
        assert held.numel()
