"""From a model's name to a network with its weights."""

from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor, nn

from refine import checkpoint
from refine.config import Spec
from refine.errors import WeightsError, shown
from refine.models import Network, build, preset
from refine.models.cascade_psp import CascadePSP

_FETCH: Final = (
    "fetch https://github.com/hkchengrex/CascadePSP/releases/download/v1.0/model (259 MB, MIT) and give that file "
    "(weights=..., --weights FILE)"
)


def load_network(model: str, weights: str | Path | None) -> tuple[Network, Spec, str]:
    """A network with its weights, the specification it was built from, and the sha256 of the weights' file.

    Raises `OptionError` for an unknown model, `WeightsError` for weights that are missing, damaged or of another model.
    """
    wanted = preset(model)
    path = checkpoint.find(model) if weights is None else Path(weights)
    loaded = checkpoint.load(path)
    if loaded.spec is None:
        spec, state = wanted, checkpoint.published_state(loaded.state)
    else:
        try:
            spec, state = Spec.from_dict(loaded.spec), loaded.state
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        if spec.model != model:
            raise WeightsError(
                f"{path} holds weights of {spec.model}, not of {model}; give model={spec.model!r}, --model {spec.model}"
            )
    _check_like(spec, wanted, path)
    network = _empty(spec, path)
    checkpoint.check(state, _shapes(network), path)
    network.load_state_dict(_as_built(state), assign=True)
    return cast(Network, network), spec, loaded.sha256


def _check_like(spec: Spec, wanted: Spec, path: str | Path) -> None:
    """Raises `WeightsError` for a specification of another network or input than that of the model it names."""
    theirs, ours = (
        {"network": each.network, "guidance": each.guidance, "in_channels": each.arguments.get("in_channels", 4)}
        for each in (spec, wanted)
    )
    for name, value in theirs.items():
        if value != ours[name]:
            raise WeightsError(
                f"{path}: its specification cannot be that of {wanted.model}, whose {name} is {ours[name]!r} and not "
                f"{shown(value)}; it is not made by refine"
            )


def _empty(spec: Spec, path: str | Path) -> nn.Module:
    """The network of a specification without memory for its weights, which a file may say need all of it."""
    try:
        with torch.device("meta"):
            return build(spec)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: its specification builds no network ({error}); it is not made by refine"
        ) from error


def load_cascade_psp(weights: str | Path | None) -> tuple[CascadePSP, str]:
    """CascadePSP's network with the weights of a published checkpoint, and the sha256 of that file.

    Raises `WeightsError` for weights that are missing, damaged or of another model.
    """
    if weights is None:
        raise WeightsError(f"cascade-psp needs weights, and none of it ship with refine; {_FETCH}")
    loaded = checkpoint.load(weights)
    if loaded.spec is not None:
        raise WeightsError(f"{weights} holds weights of {loaded.spec.get('model')}, not of cascade-psp; {_FETCH}")
    with torch.device("meta"):  # no random weights
        network = CascadePSP()
    # Counters of seen batches mean nothing here; torch sets those that a state lacks.
    expected = {name: shape for name, shape in _shapes(network).items() if not name.endswith(".num_batches_tracked")}
    state = checkpoint.published_state(loaded.state, expected)
    checkpoint.check(state, expected, weights)
    network.load_state_dict(_as_built(state), assign=True)
    return network.eval().requires_grad_(False), loaded.sha256


def import_published(source: Path, destination: Path, *, model: str = "crm-r50") -> None:
    """Convert a published checkpoint (.pth) of ``model`` to safetensors that hold the model's specification.

    Raises `OptionError` for an unknown model, `WeightsError` for a checkpoint that does not fit it, `FileError` for a
    destination that cannot be written.
    """
    spec = preset(model)
    checkpoint.import_published(source, destination, expected=_shapes(_empty(spec, model)), spec=spec.as_dict())


def _as_built(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the type that networks are built in; weights may be stored in a shorter one."""
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
