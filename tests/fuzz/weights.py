"""Damaged weights: safetensors, published checkpoints, and tensors of odd kinds."""

import io
import json
import math
import pickle
import struct
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from refine.checkpoint import load, weights_dir
from refine.engine import Refiner
from refine.loading import import_published, load_cascade_psp

from . import mutate
from .calls import refiner

_IMAGE = np.full((40, 60, 3), (30, 60, 90), np.uint8)
_IMAGE[8:30, 20:50] = 200
_MASK = np.zeros((40, 60), bool)
_MASK[10:28, 24:48] = True


@cache
def _shipped() -> tuple[dict[str, Any], bytes]:
    """The header and the tensors of a file that ships."""
    torch.set_num_threads(1)
    data = (weights_dir() / "crm-s.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@cache
def _state() -> dict[str, torch.Tensor]:
    """As a published checkpoint has it."""
    torch.set_num_threads(1)
    state = load_file(weights_dir() / "crm-s.safetensors")
    return {f"module.{name}": value.float() if value.is_floating_point() else value for name, value in state.items()}


@cache
def _saved(zipped: bool, few: bool) -> bytes:
    state = dict(list(_state().items())[:5]) if few else _state()
    if not zipped:
        return _pickled(state)
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _pickled(state: dict[str, torch.Tensor]) -> bytes:
    """As torch saved before it used zip; its own way to do so names and sorts tensors by where they are in memory."""
    file, storages = io.BytesIO(), []
    sizes = {"short": 2, "int": 4, "long": 4}
    for head in (
        MAGIC_NUMBER,
        PROTOCOL_VERSION,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes},
    ):
        pickle.dump(head, file, protocol=2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, stored: Any) -> Any:
            if not isinstance(stored, torch.storage.TypedStorage):
                return None
            storages.append(stored)
            kind = getattr(torch, stored.pickle_storage_type())
            return "storage", kind, f"{len(storages):04d}", "cpu", stored.size(), None

    Pickler(file, protocol=2).dump(state)
    pickle.dump([f"{number:04d}" for number in range(1, len(storages) + 1)], file, protocol=2)
    for stored in storages:
        file.write(struct.pack("<q", stored.size()))
        file.write(torch.empty(0, dtype=torch.uint8).set_(stored.untyped()).numpy().tobytes())
    return file.getvalue()


def _use(path: Path, calls: Any) -> None:
    """What can be loaded refines, and what it gives is a probability."""
    refiner()  # warms up
    refined = calls(
        "refine", lambda: Refiner("crm-s", weights=path, device="cpu", dtype="float32").refine(_IMAGE, _MASK)
    )
    if refined is not None:
        p = refined.probability
        calls.check(bool(np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1), "a probability outside of [0, 1]")


def safetensors(rng: Random, folder: Path, calls: Any) -> None:
    header, body = _shipped()
    header, path = json.loads(json.dumps(header)), folder / "weights.safetensors"
    match rng.randrange(6):
        case 0 | 1 | 2:  # what it says of its model
            about = header["__metadata__"]
            spec = mutate.value(json.loads(about["spec"]), rng)
            about["spec"] = mutate.json_text(about["spec"], rng) if rng.random() < 0.1 else json.dumps(spec)
        case 3:
            header = mutate.value(header, rng)
        case 4:  # a number that is none
            at = 2 * rng.randrange(len(body) // 2)
            body = body[:at] + rng.choice((b"\xff\x7f", b"\x00\x7c", b"\x00\xfc", b"\xff\xff")) * 2 + body[at + 4 :]
        case _:
            body = mutate.some_bytes(body, rng)
    try:
        text = json.dumps(header).encode()
    except UnicodeEncodeError:
        text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = struct.pack("<Q", len(text))
    data = length + text + body
    if rng.random() < 0.1:
        data = mutate.some_bytes(length + text, rng) + body
    path.write_bytes(data)
    _use(path, calls)


def pth(rng: Random, folder: Path, calls: Any) -> None:
    """A published checkpoint whose bytes are changed: of a zip, or of a pickle alone."""
    few = rng.random() < 0.7
    path, out = folder / "weights.pth", folder / "out.safetensors"
    data = _saved(rng.random() < 0.7, few)
    at = rng.choice((0, max(0, len(data) - 3000), rng.randrange(len(data))))  # where it says what it holds
    path.write_bytes(data[:at] + mutate.some_bytes(data[at : at + 3000], rng) + data[at + 3000 :])
    if few:
        calls("load", lambda: sorted(load(path).state))
        calls("cascade-psp", lambda: load_cascade_psp(path)[1])
    else:
        _use(path, calls)

    def imported() -> bytes:
        import_published(path, out, model="crm-s")
        return out.read_bytes()

    made = calls("import", imported)
    calls.check((made is not None) == out.exists(), "an import that failed left a file")


def _odd(value: torch.Tensor, rng: Random) -> Any:
    changes = (
        lambda v: v.to_sparse(),
        lambda v: v.to("meta"),
        lambda v: v.long(),
        lambda v: v.to(torch.complex64),
        lambda v: v.bool(),
        lambda v: v.double() * 1e200,
        lambda v: v * math.nan,
        lambda v: v * math.inf,
        lambda v: v.half(),
        lambda v: v.to(torch.bfloat16),
        lambda v: v.to(torch.float8_e4m3fn),
        lambda v: torch.quantize_per_tensor(v.float(), 0.1, 0, torch.qint8),
        lambda v: v[None],
        lambda v: v.flatten()[:1].expand(v.shape),
        lambda v: v.requires_grad_() if v.is_floating_point() else v,
        lambda v: torch.nn.Parameter(v) if v.is_floating_point() else v,
        lambda v: torch.nested.nested_tensor([v.float().flatten()]),
        lambda v: v.to_mkldnn() if v.dtype == torch.float32 else v,
        lambda v: v.numpy().tolist(),
        lambda v: None,
        lambda v: {"x": v},
        lambda v: "x",
    )
    try:
        return rng.choice(changes)(value.detach().clone())
    except (RuntimeError, TypeError, NotImplementedError):  # not of this kind of tensor
        return value[None]


def tensors(rng: Random, folder: Path, calls: Any) -> None:
    """A checkpoint that is whole and holds something else than numbers of the right kind."""
    state: dict[Any, Any] = dict(_state())
    for name in rng.sample(list(state), rng.choice((1, 1, 3, len(state)))):
        state[name] = _odd(state[name], rng)
    match rng.randrange(8):
        case 0:
            state[rng.choice((1, None, ("a",), "", "x\n", "module.module.x"))] = torch.zeros(1)
        case 1:
            del state[rng.choice(list(state))]
        case 2:
            state = {rng.choice(("state_dict", "model", "state_dict")): rng.choice((state, [], {}, None))}
    path = folder / "weights.pth"
    try:
        torch.save(state, path)
    except (RuntimeError, NotImplementedError):  # torch cannot write it
        return
    _use(path, calls)
    out = folder / "out.safetensors"
    calls("import", lambda: import_published(path, out, model="crm-s"))
