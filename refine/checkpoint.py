"""Weights on disk: the manifest of those that ship, safetensors with their model's spec, published checkpoints.

Files are safetensors; a published PyTorch checkpoint is read with `weights_only`, so no file can run code. Nothing here
knows a network: what a checkpoint must hold is given as names and shapes.
"""

import hashlib
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refine.errors import WeightsError, listed, shown
from refine.io import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

PathLike = str | os.PathLike[str]
_SHOWN = 4
_REPEATED = 2**28  # bytes that values which a file repeats, and holds once, may become
_GIVE = "give a file (weights=..., --weights FILE)"
_NAMES = ("name", "model", "file", "sha256", "bytes", "licence", "data")


@dataclass(frozen=True)
class Entry:
    """One file of `weights/manifest.json`."""

    name: str
    model: str
    file: str
    """Name inside the weights folder."""
    sha256: str
    bytes: int
    licence: str
    data: str
    """What the weights were trained on."""

    @property
    def path(self) -> Path:
        return weights_dir() / self.file


@dataclass(frozen=True)
class Loaded:
    """What a weights file holds."""

    state: "dict[str, Tensor]"
    spec: dict[str, Any] | None
    """What rebuilds the model; None for a published checkpoint, which does not say."""
    metadata: dict[str, str] = field(default_factory=dict)
    sha256: str = ""


def file_sha256(path: PathLike) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_dir() -> Path:
    """Folder of the shipped weights: inside the installed package if it is there, else the checkout's."""
    installed = Path(__file__).parent / "weights"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "weights"


def manifest() -> list[Entry]:
    """Every shipped file, as listed; an empty list where there is no manifest.

    Raises:
        WeightsError: the manifest is not readable or an entry has a missing, unknown or impossible field.

    """
    path = weights_dir() / "manifest.json"
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); reinstall refine") from error
    if not isinstance(listed, list):
        raise WeightsError(f"{path}: holds {type(listed).__name__}; a list of entries is wanted")
    entries = [_entry(values, path) for values in listed]
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise WeightsError(f"{path}: a name is listed twice among {', '.join(names)}")
    return entries


def _entry(values: Any, path: Path) -> Entry:
    if not isinstance(values, dict) or set(values) != set(_NAMES):
        given = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise WeightsError(f"{path}: an entry has {given}; its fields are {', '.join(_NAMES)}")
    entry = Entry(**values)
    for name in _NAMES:
        kind = int if name == "bytes" else str
        if type(getattr(entry, name)) is not kind:
            raise WeightsError(f"{path}: {name} is {values[name]!r}; a value of type {kind.__name__} is wanted")
    if entry.file != Path(entry.file).name or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        raise WeightsError(
            f"{path}: entry {entry.name!r} needs a plain file name and a SHA-256 of 64 hexadecimal digits"
        )
    return entry


def find(name: str) -> Path:
    """Path of the shipped weights `name`, once its size and SHA-256 are those of the manifest.

    Raises:
        WeightsError: no such weights, or the file is missing or damaged.

    """
    entries = {entry.name: entry for entry in manifest()}
    if name not in entries:
        known = ", ".join(entries) or "none"
        raise WeightsError(f"no weights named {name!r} ship with refine ({known} do); {_GIVE}")
    entry = entries[name]
    if not entry.path.is_file():
        raise WeightsError(f"{entry.path}: the weights {name!r} are missing; reinstall refine, or {_GIVE}")
    size = entry.path.stat().st_size
    if size != entry.bytes:
        raise WeightsError(f"{entry.path}: damaged, {size} bytes where {entry.bytes} are listed; reinstall refine")
    digest = file_sha256(entry.path)
    if digest != entry.sha256:
        raise WeightsError(
            f"{entry.path}: damaged, SHA-256 {digest[:12]} where {entry.sha256[:12]} is listed; reinstall refine"
        )
    return entry.path


def save(
    path: PathLike, state: "Mapping[str, Tensor]", *, spec: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, whole or not at all; `spec` is stored as JSON under "spec" beside `metadata`.

    Raises:
        FileError: the file cannot be written; an older one is then untouched.

    """
    from safetensors.torch import save as to_bytes

    metadata = dict(metadata or {})
    assert "spec" not in metadata
    metadata["spec"] = json.dumps(spec)
    # Copies, because safetensors refuses tensors that share memory or are not contiguous.
    copies = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    data = _in_order(to_bytes(copies, metadata))
    write_atomic(path, lambda file: file.write(data))


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its header sorted; the library's order of metadata is another every time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def load(path: PathLike) -> Loaded:
    """Tensors, spec and SHA-256 of a safetensors file or of a published checkpoint (`.pth`), told apart by content.

    A checkpoint is a state dict or {"state_dict": ...}; its keys are as stored, see `published_state`.

    Raises:
        WeightsError: the file is missing, truncated, no checkpoint, or needs pickle to run code; a tensor is no plain
            one of finite numbers.

    """
    path = Path(path)
    try:
        if path.is_dir():
            raise WeightsError(f"{path}: is a folder; give a safetensors file or a published .pth")
        if not path.is_file():
            raise WeightsError(f"{path}: no such weights file; give a safetensors file or a published .pth")
        with path.open("rb") as file:
            head = file.read(9)
        digest = file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{shown(str(path))}: cannot be read ({error.strerror}); give another file") from error
    # Eight bytes of length and the brace of a JSON header open every safetensors file.
    if head[8:] == b"{" or path.suffix == ".safetensors":
        state, metadata = _safetensors(path)
        _check_values(state, path)
        return Loaded(state, _spec(metadata, path), {k: v for k, v in metadata.items() if k != "spec"}, digest)
    state = _published(path)
    _check_values(state, path)
    return Loaded(state, None, {}, digest)


def _check_values(state: "Mapping[str, Tensor]", path: Path) -> None:
    """Raises `WeightsError` for tensors that no network can have: not plain ones, of other types, of no numbers."""
    import torch

    for name, value in state.items():
        counter = name.endswith(".num_batches_tracked")
        kind = next((kind for kind in ("quantized", "meta", "nested") if getattr(value, f"is_{kind}")), None)
        if kind is None and value.layout != torch.strided:
            kind = "sparse"
        if kind is None and not value.is_floating_point() and (not counter or value.dtype != torch.int64):
            kind = str(value.dtype).removeprefix("torch.")
        stored = 0 if kind is not None else value.untyped_storage().nbytes()
        if kind is None and value.numel() * value.element_size() > max(stored, _REPEATED):
            kind = "a few values repeated"
        if kind is not None:
            raise WeightsError(f"{path}: {name} is {kind}; plain tensors of floats are wanted, save them so")
        # As it is computed with: a float64 may be too large for a float32.
        if not counter and not torch.isfinite(value.float()).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinite values; fetch or export the weights again")
        if name.endswith(".running_var") and (value < 0).any():
            raise WeightsError(f"{path}: {name}, a variance, is below 0; fetch or export the weights again")


def _safetensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); fetch or export it again") from error


def _spec(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    if "spec" not in metadata:
        raise WeightsError(f"{path}: says nothing about its model; weights saved or imported by refine do")
    try:
        spec = json.loads(metadata["spec"])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its model's specification is not JSON ({error}); export it again") from error
    if not isinstance(spec, dict):
        raise WeightsError(f"{path}: its model's specification is {type(spec).__name__}; an object is wanted")
    return spec


def unpickled(path: Path) -> Any:
    """What `torch.save` wrote, tensors and plain values alone, on the CPU.

    No more memory is taken than the file has, whatever it says. Raises what torch does, which is anything, of a file
    that is damaged, and ValueError.
    """
    import torch

    with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # of formats that are read or refused then
        if file.read(2) != b"PK":
            file.seek(0)
            return torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
        with zipfile.ZipFile(file) as whole:
            largest = max((entry.file_size for entry in whole.infolist()), default=0)
        if largest > path.stat().st_size:
            raise ValueError(f"a record of {largest:,} bytes in a file of {path.stat().st_size:,}")
        return torch.load(path, map_location="cpu", weights_only=True)


def _published(path: Path) -> "dict[str, Tensor]":
    import torch

    try:
        with path.open("rb") as file:
            head = file.read(2)
        content = unpickled(path)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler takes any bytes for instructions and raises whatever comes of them
        # A text may begin with the letter of an instruction too; what torch saves is a zip or a pickle of protocol 2.
        if head.startswith((b"PK", b"\x80")) and re.search("GLOBAL |unsupported class", str(error)):
            raise WeightsError(
                f"{path}: holds Python objects that only unpickling could load, which may run code; "
                "save its state dict alone"
            ) from error
        raise WeightsError(
            f"{path}: not a checkpoint, or not a whole one ({type(error).__name__}); give a safetensors file or a "
            "published .pth"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path}: holds {type(content).__name__}; a state dict of tensors is wanted")
    odd = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if odd:
        raise WeightsError(f"{path}: {listed(odd, _SHOWN)} are no named tensors; a state dict of tensors is wanted")
    return dict(content)


def published_state(state: "Mapping[str, Tensor]", expected: Iterable[str] | None = None) -> "dict[str, Tensor]":
    """The tensors of a published checkpoint that a network wants, under its names.

    `module.` before a key goes, and so does `feats.layer4`, whose output CRM does not read, and, with `expected`,
    counters of seen batches; but what is among those names stays.
    """
    wanted = None if expected is None else set(expected)
    renamed = {key.removeprefix("module."): value for key, value in state.items()}
    return {
        key: value
        for key, value in renamed.items()
        if (wanted is not None and key in wanted)
        or not (key.startswith("feats.layer4.") or (wanted is not None and key.endswith(".num_batches_tracked")))
    }


def check(state: "Mapping[str, Tensor]", expected: Mapping[str, tuple[int, ...]], source: PathLike) -> None:
    """Raises `WeightsError` naming the tensors that are missing, unexpected or of another shape than `expected`."""
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(value.shape)} for {tuple(expected[key])}"
        for key, value in state.items()
        if key in expected and tuple(value.shape) != tuple(expected[key])
    ]
    faults = [
        f"{len(names)} {what}: {listed(names, _SHOWN)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if not faults:
        return
    fits = len(expected) - len(missing) - len(shapes)
    what = "belongs to another model" if 2 * fits < len(expected) else "is a partial or changed checkpoint"
    told = f"{what}, {fits} of {len(expected)} tensors fit; {'; '.join(faults)}"
    hint = "; give the one it belongs to: model=NAME, --model NAME" if what.startswith("belongs") else ""
    raise WeightsError(f"{os.fspath(source)}: {told}{hint}")


def import_published(
    source: PathLike, destination: PathLike, *, expected: Mapping[str, tuple[int, ...]], spec: Mapping[str, Any]
) -> None:
    """Convert a published checkpoint to safetensors: the tensors in `expected`, float32, with the model's `spec`.

    Raises:
        WeightsError: it cannot be read, does not fit, or holds a specification of its own.
        FileError: `destination` cannot be written.

    """
    loaded = load(source)
    if loaded.spec is not None:
        raise WeightsError(f"{os.fspath(source)}: says itself what it is of; use it as it is (--weights FILE)")
    state = published_state(loaded.state, expected)
    check(state, expected, source)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    save(destination, state, spec=spec, metadata={"source": Path(source).name, "source_sha256": loaded.sha256})
