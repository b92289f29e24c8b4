from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import disc, photographed

from refine.devices import peak_memory, resolve_device, resolve_dtype, undisturbed
from refine.engine import Refiner
from refine.errors import OptionError

CPU = torch.device("cpu")
DISC = disc((90, 120), 30)


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


@contextmanager
def _set(change, back):
    before = back()
    change()
    try:
        yield
    finally:
        before()


def _default_dtype(dtype):
    before = torch.get_default_dtype()
    return _set(lambda: torch.set_default_dtype(dtype), lambda: lambda: torch.set_default_dtype(before))


STATES = {
    "default dtype float16": lambda: _default_dtype(torch.float16),
    "default dtype float64": lambda: _default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "deterministic": lambda: _set(
        lambda: torch.use_deterministic_algorithms(True), lambda: lambda: torch.use_deterministic_algorithms(False)
    ),
    "short products": lambda: _set(
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: lambda: torch.set_float32_matmul_precision("highest"),
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
}


def state_of_the_process() -> tuple:
    return (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        np.geterr(),
    )


@pytest.fixture(scope="module")
def undisturbed_probability() -> np.ndarray:
    return Refiner(device="cpu", dtype="float32").refine(photographed(DISC), DISC).probability


@pytest.mark.parametrize("state", STATES)
def test_what_a_program_sets_changes_no_bit_and_stays_set(undisturbed_probability, state):
    with STATES[state]():
        before = state_of_the_process()
        refined = Refiner(device="cpu", dtype="float32").refine(photographed(DISC), DISC)
        assert state_of_the_process() == before
    np.testing.assert_array_equal(refined.probability, undisturbed_probability)


def test_loading_weights_draws_no_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Refiner(device="cpu", dtype="float32")
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_of_all_threads_are_put_back_by_the_last_to_leave():
    with _default_dtype(torch.float64):
        first, second = undisturbed(), undisturbed()
        with first:
            with second:
                assert torch.get_default_dtype() is torch.float32
            assert torch.get_default_dtype() is torch.float32
        assert torch.get_default_dtype() is torch.float64
