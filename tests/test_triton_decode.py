"""Decoding in Triton, by its interpreter on every machine and on a CUDA device where there is one."""

import importlib
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from test_kernels_queries import DECODES, case

from refine_kernels import reference_queries

triton = pytest.importorskip("triton", reason="Triton is not installed: it comes with torch for Linux and CUDA")
triton_decode = importlib.import_module("refine_kernels.triton_decode")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COUNTS = (0, 1, 63, 64, 65, 129)
CASES = tuple(product(DECODES, DTYPES, COUNTS))


class Recorder:
    """Stands before a kernel and keeps the grid, the arguments and the options of each launch."""

    def __init__(self, kernel, *, launch=True):
        self.kernel, self.launch, self.launches = kernel, launch, []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.launches.append((grid, arguments, options))
            if self.launch:
                self.kernel[grid](*arguments, **options)

        return launch


def kernel_of(decode):
    return f"_{decode.removesuffix('_decode')}_kernel"


def on(device, x):
    if isinstance(x, tuple):
        return type(x)(*(on(device, item) for item in x))
    return torch.from_numpy(x).to(device) if isinstance(x, np.ndarray) else x


def arguments_of(decode, dtype, count, device="cpu"):
    _, (values, *others) = case(decode, count=count, seed=count)
    return on(device, values).to(DTYPES[dtype]), *(on(device, x) for x in others)


def expected_of(decode, dtype, count):
    _, (values, *others) = case(decode, count=count, seed=count)
    values = torch.from_numpy(values).to(DTYPES[dtype]).float().numpy()
    return getattr(reference_queries, decode)(values, *others)


def decoded(decode, dtype, count, device):
    """Logits of a case, and the grids of the launches that gave them."""
    name = kernel_of(decode)
    recorder = Recorder(getattr(triton_decode, name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_decode, name, recorder)
        logits = getattr(triton_decode, decode)(*arguments_of(decode, dtype, count, device))
    assert logits.device.type == device
    return logits.cpu().numpy(), [grid for grid, _, _ in recorder.launches]


def save_decoded(path):
    """All cases decoded on the CPU, for a process of its own: Triton asks whether to interpret when it is imported."""
    results = {}
    for arguments in CASES:
        logits, grids = decoded(*arguments, "cpu")
        results[repr(arguments)], results[f"{arguments} grids"] = logits, np.array(grids)
    np.savez(path, **results)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    path = tmp_path_factory.mktemp("triton") / "logits.npz"
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, __file__, path]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    with np.load(path) as results:
        return dict(results)


@pytest.mark.parametrize(("decode", "dtype", "count"), CASES)
def test_interpreted_kernel_equals_the_plain_twin(interpreted, decode, dtype, count):
    logits = interpreted[repr((decode, dtype, count))]
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected_of(decode, dtype, count), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("decode", "dtype", "count"), CASES)
def test_every_block_of_points_is_one_program_of_the_kernel(interpreted, decode, dtype, count):
    grids = interpreted[f"{(decode, dtype, count)} grids"]
    assert grids.tolist() == [[-(-count // triton_decode.BLOCK)]]


@pytest.mark.parametrize(("capability", "size"), [(80, 9), (90, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("decode", DECODES)
def test_kernels_compile_for_cuda_without_a_device(monkeypatch, decode, dtype, capability, size):
    # The interpreter runs Python that the compiler would refuse, so being right there is not enough.
    name = kernel_of(decode)
    kernel = getattr(triton_decode, name)
    recorder = Recorder(kernel, launch=False)
    monkeypatch.setattr(triton_decode, name, recorder)
    _, (values, *others) = case(decode, count=size, grid=(size, size), latent=(size, size), side=size)
    getattr(triton_decode, decode)(on("cpu", values).to(DTYPES[dtype]), *(on("cpu", x) for x in others))
    [(_, arguments, options)] = recorder.launches
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    constants = {key: given[key] for key in kernel.arg_names if key in options}
    constants |= {key: 1 for key, x in given.items() if type(x) is int and x == 1}  # as a launch does
    types = {key: type_name(x) for key, x in given.items() if key not in options}
    compiled = triton.compile(
        triton.compiler.ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constexprs=constants),
        target=triton.backends.compiler.GPUTarget("cuda", capability, 32),
        options={key: x for key, x in options.items() if key not in constants},
    )
    assert compiled.asm["cubin"]
    assert ("tf32" in compiled.asm["ptx"]) == (dtype == "bfloat16")


def type_name(x):
    """A kernel's argument in Triton's notation."""
    if isinstance(x, torch.Tensor):
        return {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}[x.dtype]
    return {int: "i32", float: "fp32"}[type(x)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("decode", "dtype", "count"), CASES)
def test_kernel_on_a_device_equals_the_plain_twin(decode, dtype, count):
    logits, grids = decoded(decode, dtype, count, "cuda")
    assert grids == [(-(-count // triton_decode.BLOCK),)]
    expected = expected_of(decode, dtype, count)
    tolerance = 1e-4 if dtype == "float32" else 3e-2  # TF32 rounds to 11 bits what the layers multiply
    np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("decode", DECODES)
def test_scattered_memory_is_our_mistake(decode):
    values, *others = arguments_of(decode, "float32", 3)
    with pytest.raises(AssertionError):
        getattr(triton_decode, decode)(values.T.contiguous().T, *others)


if __name__ == "__main__":
    save_decoded(Path(sys.argv[1]))
