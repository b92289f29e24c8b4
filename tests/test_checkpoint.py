import hashlib
import json
import pickle
import tomllib
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from refine import checkpoint
from refine.errors import FileError, WeightsError
from refine.loading import load_network
from refine.models import PRESETS

SPEC = {"model": "crm-r50", "arguments": {"in_channels": 4}}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {
        "conv.weight": torch.randn(3, 2, 3, 3).to(memory_format=torch.channels_last),
        "conv.bias": torch.randn(3, dtype=torch.float64),
        "bn.num_batches_tracked": torch.tensor(7),
    }


@pytest.fixture
def shapes(state) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A weights folder with one file, and a function that rewrites its manifest entry."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(checkpoint, "weights_dir", lambda: folder)

    def entry(**changes) -> None:
        values = {
            "name": "crm-s",
            "model": "crm-s",
            "file": "a.safetensors",
            "sha256": hashlib.sha256(b"weights").hexdigest(),
            "bytes": 7,
            "licence": "MIT",
            "data": "scenes",
        }
        values = {k: v for k, v in (values | changes).items() if v is not None}
        (folder / "manifest.json").write_text(json.dumps([values]))

    entry()
    return entry


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_what_is_saved_is_loaded(tmp_path, state):
    path = tmp_path / "w.safetensors"
    checkpoint.save(path, state, spec=SPEC, metadata={"step": "12"})
    loaded = checkpoint.load(path)
    assert same(loaded.state, state)
    assert (loaded.spec, loaded.metadata) == (SPEC, {"step": "12"})
    assert loaded.sha256 == checkpoint.file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_share_memory_can_be_saved(tmp_path):
    base = torch.randn(4)
    checkpoint.save(tmp_path / "w.safetensors", {"a": base, "b": base}, spec=SPEC)
    assert same(checkpoint.load(tmp_path / "w.safetensors").state, {"a": base, "b": base})


def test_a_file_that_cannot_be_written_is_a_file_error(tmp_path, state):
    with pytest.raises(FileError):
        checkpoint.save(tmp_path, state, spec=SPEC)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_published_checkpoint_is_loaded(tmp_path, state, wrapped, prefix, legacy):
    content = OrderedDict((prefix + key, value) for key, value in state.items())
    path = tmp_path / "crm.pth"
    torch.save({"state_dict": content} if wrapped else content, path, _use_new_zipfile_serialization=not legacy)
    loaded = checkpoint.load(path)
    assert same(checkpoint.published_state(loaded.state), state)
    assert loaded.spec is None


class Network:
    """A class that unpickling would have to import."""


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_needs_pickle_is_refused(tmp_path, legacy):
    path = tmp_path / "crm.pth"
    torch.save({"model": Network()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"crm\.pth: holds Python objects .* save its state dict alone"):
        checkpoint.load(path)


def test_a_length_that_a_checkpoint_does_not_have_takes_no_memory(tmp_path, state):
    path = tmp_path / "crm.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    name = b"little_endian"
    length = len(name).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(length + name, (2**31).to_bytes(4, "little") + name))
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match="not a checkpoint, or not a whole one"):
            checkpoint.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_record_that_a_checkpoint_does_not_hold_is_refused_before_memory_is_taken(tmp_path, state):
    path = tmp_path / "crm.pth"
    torch.save(state, path)
    with zipfile.ZipFile(path) as whole:
        entry = max(whole.infolist(), key=lambda entry: entry.file_size)
    sizes = entry.file_size.to_bytes(4, "little")
    head, directory = path.read_bytes().rsplit(2 * sizes + len(entry.filename).to_bytes(2, "little"), 1)
    path.write_bytes(head + sizes + b"\xfe\xff\xff\xff" + len(entry.filename).to_bytes(2, "little") + directory)
    with pytest.raises(ValueError, match="a record of 4,294,967,294 bytes in a file of"):
        checkpoint.unpickled(path)
    with pytest.raises(WeightsError, match="not a checkpoint, or not a whole one"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [3, [torch.zeros(1)], {}, {"epoch": 3}, {3: torch.zeros(1)}])
def test_a_checkpoint_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "crm.pth")
    with pytest.raises(WeightsError, match="a state dict of tensors is wanted"):
        checkpoint.load(tmp_path / "crm.pth")


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0 a picture", pickle.dumps(3), b"PK\x03\x04rest"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="w"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, state, name, kept):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        checkpoint.save(path, state, spec=SPEC)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(WeightsError, match=r"whole|not a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "hello world\n",
        "GLOBAL warming\n",
        "# a recipe\nmodel: crm-s\n",
        "model = 3\n",
        "config.model\nnetwork\n",  # its first letter is the instruction that imports a class
        "version https://git-lfs.github.com/spec/v1\n",
        "<html>Unsupported GLOBAL</html>",
        "\x89PNG\r\n\x1a\n",
    ],
)
def test_a_text_is_not_said_to_hold_python_objects(tmp_path, text):
    path = tmp_path / "w.pth"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(WeightsError, match=r"w\.pth: not a checkpoint, or not a whole one"):
        checkpoint.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        checkpoint.load(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        checkpoint.load(tmp_path)


def test_safetensors_without_a_spec_are_refused(tmp_path, state):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="says nothing about its model"):
        checkpoint.load(path)
    for spec in ("{", "[]"):
        save_file({"a": torch.zeros(2)}, path, {"spec": spec})
        with pytest.raises(WeightsError, match="specification"):
            checkpoint.load(path)


def test_published_state_has_the_networks_names(state):
    extra = {"feats.layer4.0.conv1.weight": torch.zeros(1)}
    assert same(checkpoint.published_state({f"module.{k}": v for k, v in (state | extra).items()}), state)
    wanted = [key for key in state if not key.endswith("num_batches_tracked")]
    assert list(checkpoint.published_state(state | extra, wanted)) == wanted
    assert same(checkpoint.published_state(state | extra, [*wanted, *extra]), {k: state[k] for k in wanted} | extra)


def test_a_partial_checkpoint_is_refused_by_name(state, shapes):
    checkpoint.check(state, shapes, "crm.pth")
    del state["conv.bias"]
    with pytest.raises(WeightsError, match=r"crm\.pth: .*partial.*2 of 3 tensors fit; 1 missing: conv\.bias$"):
        checkpoint.check(state, shapes, "crm.pth")


def test_another_models_checkpoint_is_refused_by_name(shapes):
    other = {f"layer{i}.weight": torch.zeros(1) for i in range(9)} | {"conv.bias": torch.zeros(5)}
    with pytest.raises(WeightsError) as caught:
        checkpoint.check(other, shapes, "vit.pth")
    message = str(caught.value)
    assert message.startswith("vit.pth: belongs to another model, 0 of 3 tensors fit; 2 missing: conv.weight, bn.")
    assert "9 unexpected: layer0.weight, layer1.weight, layer2.weight, layer3.weight and 5 more" in message
    assert "1 of another shape: conv.bias (5,) for (3,)" in message


def test_a_published_checkpoint_is_imported_as_float32(tmp_path, state, shapes):
    source, destination = tmp_path / "crm.pth", tmp_path / "crm.safetensors"
    extra = {"feats.layer4.0.conv1.weight": torch.zeros(1)}
    torch.save({f"module.{key}": value for key, value in (state | extra).items()}, source)
    checkpoint.import_published(source, destination, expected=shapes, spec=SPEC)
    loaded = checkpoint.load(destination)
    assert loaded.spec == SPEC
    assert loaded.metadata == {"source": "crm.pth", "source_sha256": checkpoint.file_sha256(source)}
    assert same(loaded.state, state | {"conv.bias": state["conv.bias"].float()})


def test_weights_with_a_specification_are_not_imported(tmp_path, state, shapes):
    source, destination = tmp_path / "own.safetensors", tmp_path / "crm.safetensors"
    checkpoint.save(source, state, spec=SPEC)
    with pytest.raises(WeightsError, match="use it as it is"):
        checkpoint.import_published(source, destination, expected=shapes, spec=SPEC)
    assert not destination.exists()


def test_an_import_that_does_not_fit_writes_nothing(tmp_path, state, shapes):
    source, destination = tmp_path / "crm.pth", tmp_path / "crm.safetensors"
    torch.save({"conv.bias": state["conv.bias"]}, source)
    with pytest.raises(WeightsError, match=r"crm\.pth: .* 2 missing"):
        checkpoint.import_published(source, destination, expected=shapes, spec=SPEC)
    assert not destination.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"network": ["CRMSmall"]},
        {"network": "Nope"},
        {"arguments": {"in_channels": 4, "foo": 1}},
        {"arguments": {"in_channels": "4"}},
        {"arguments": {"in_channels": -4}},
        {"arguments": [4]},
        {"cascade": {"scales": ["a"]}},
        {"cascade": {"colour": "red"}},
    ],
    ids=str,
)
def test_a_specification_that_builds_no_network_is_refused_by_the_files_name(tmp_path, state, change):
    path = tmp_path / "odd.safetensors"
    checkpoint.save(path, state, spec=PRESETS["crm-s"].as_dict() | change)
    with pytest.raises(WeightsError, match=r"odd\.safetensors: .*specification (builds no|cannot be).*made by refine"):
        load_network("crm-s", path)


def test_a_torch_is_required_whose_checkpoints_run_no_code():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert {"torch>=2.6", "torchvision>=0.21"} <= set(project["dependencies"])


def test_the_weights_folder_is_the_checkouts_or_the_packages():
    package = Path(checkpoint.__file__).parent
    assert checkpoint.weights_dir() in (package / "weights", package.parent / "weights")


def test_shipped_weights_are_found_and_verified(shipped):
    (entry,) = checkpoint.manifest()
    assert (entry.name, entry.bytes, entry.licence, entry.data) == ("crm-s", 7, "MIT", "scenes")
    assert checkpoint.find("crm-s") == entry.path == checkpoint.weights_dir() / "a.safetensors"


def test_every_shipped_file_is_whole():
    for entry in checkpoint.manifest():
        assert checkpoint.find(entry.name).is_file()


def test_without_a_manifest_nothing_ships(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "weights_dir", lambda: tmp_path)
    assert checkpoint.manifest() == []
    with pytest.raises(WeightsError, match=r"no weights named 'crm-s' ship.*\(weights=\.\.\., --weights FILE\)"):
        checkpoint.find("crm-s")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bytes": 8}, "damaged, 7 bytes where 8 are listed"),
        ({"sha256": "0" * 64}, "damaged, SHA-256"),
        ({"file": "b.safetensors"}, r"are missing; .*\(weights=\.\.\., --weights FILE\)"),
        ({"name": "other"}, r"no weights named 'crm-s' ship with refine \(other do\)"),
        ({"bytes": "7"}, "bytes is '7'; a value of type int is wanted"),
        ({"licence": None}, "its fields are name, model"),
        ({"colour": "red"}, "its fields are name, model"),
        ({"file": "../a.safetensors"}, "a plain file name"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
    ],
)
def test_what_is_wrong_with_shipped_weights_is_named(shipped, changes, message):
    shipped(**changes)
    with pytest.raises(WeightsError, match=message):
        checkpoint.find("crm-s")


@pytest.mark.parametrize("content", ["{", "{}", "[3]"])
def test_a_broken_manifest_is_refused(shipped, content):
    (checkpoint.weights_dir() / "manifest.json").write_text(content)
    with pytest.raises(WeightsError, match=r"manifest\.json"):
        checkpoint.manifest()


def test_a_name_listed_twice_is_refused(shipped):
    path = checkpoint.weights_dir() / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    with pytest.raises(WeightsError, match="listed twice"):
        checkpoint.manifest()


@pytest.mark.filterwarnings("ignore")  # torch's, of its formats
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.to_sparse(), "is sparse"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "is quantized"),
        (lambda v: v.to("meta"), "is meta"),
        (lambda v: v.long(), "is int64"),
        (lambda v: v > 0, "is bool"),
        (lambda v: v.to(torch.complex64), "is complex64"),
        (lambda v: v * float("nan"), "NaN or infinite"),
        (lambda v: v + float("inf"), "NaN or infinite"),
        (lambda v: v.double() + 1e300, "NaN or infinite"),
        (lambda v: torch.zeros(1).expand(2**40), "is a few values repeated"),
    ],
)
def test_a_tensor_that_no_network_can_have_is_refused(tmp_path, change, message):
    path = tmp_path / "odd.pth"
    torch.save({"weight": change(torch.ones(2, 3))}, path)
    with pytest.raises(WeightsError, match=rf"odd\.pth: weight .*{message}"):
        checkpoint.load(path)


def test_a_variance_below_zero_is_refused(tmp_path, state):
    checkpoint.save(tmp_path / "w.safetensors", state | {"bn.running_var": -torch.ones(3)}, spec=SPEC)
    with pytest.raises(WeightsError, match=r"bn\.running_var, a variance, is below 0"):
        checkpoint.load(tmp_path / "w.safetensors")


def test_equal_weights_are_equal_files(tmp_path, state):
    metadata = {f"name {i}": "text" for i in range(8)}
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, state, spec=SPEC, metadata=metadata)
        metadata = dict(reversed(metadata.items()))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert same(checkpoint.load(tmp_path / "a").state, state)


@pytest.mark.parametrize("arguments", [{"in_channels": 7}, {"in_channels": 4, "latent_channels": 4096}])
def test_a_network_of_another_size_is_told_before_it_takes_memory(tmp_path, state, arguments):
    path = tmp_path / "odd.safetensors"
    checkpoint.save(path, state, spec=PRESETS["crm-s"].as_dict() | {"arguments": arguments})
    with pytest.raises(WeightsError, match=r"odd\.safetensors"):
        load_network("crm-s", path)


def test_a_name_that_is_too_long_for_a_file_is_told():
    with pytest.raises(WeightsError, match="cannot be read"):
        checkpoint.load("x" * 5000)
