"""From a model's name to a network with its weights."""

from pathlib import Path
from typing import cast

from torch import nn

from refine import checkpoint
from refine.config import Spec
from refine.errors import WeightsError
from refine.models import Network, build, preset


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
        spec, state = Spec.from_dict(loaded.spec), loaded.state
        if spec.model != model:
            raise WeightsError(f"{path} holds weights of {spec.model}, not of {model}; pass model={spec.model!r}")
    # Weights may be stored in a shorter type than networks are built in.
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    network = build(spec)
    checkpoint.check(state, _shapes(network), path)
    network.load_state_dict(state, assign=True)  # the random ones are freed
    return cast(Network, network), spec, loaded.sha256


def import_published(source: Path, destination: Path, *, model: str = "crm-r50") -> None:
    """Convert a published checkpoint (.pth) of ``model`` to safetensors that hold the model's specification.

    Raises `OptionError` for an unknown model, `WeightsError` for a checkpoint that does not fit it, `FileError` for a
    destination that cannot be written.
    """
    spec = preset(model)
    checkpoint.import_published(source, destination, expected=_shapes(build(spec)), spec=spec.as_dict())


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
