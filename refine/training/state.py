"""What training changes: the network, its moving average and the optimizer; one step, and the checkpoint."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from refine import checkpoint
from refine.checkpoint import save, unpickled
from refine.devices import resolve_dtype
from refine.errors import OptionError, WeightsError
from refine.io import write_atomic
from refine.loading import load_network
from refine.models import build
from refine.models.crm_s import CRMSmall, Trunk
from refine.training.card import Origin
from refine.training.losses import Loss, parse_loss
from refine.training.passes import losses
from refine.training.pretrained import load_mobilenet_v2
from refine.training.recipe import Recipe, lasting
from refine.training.widen import common, widened


@dataclass
class Run:
    """A run between two steps; ``begin`` and then ``resume`` make one.

    origin: the file whose weights or features it began with. pictures: what each folder of the recipe holds, in words
    that differ where that does.
    """

    recipe: Recipe
    loss: Loss
    network: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    dtype: torch.dtype
    origin: Origin | None = None
    pictures: tuple[str, ...] = ()
    step: int = 0
    choices: torch.Generator = field(default_factory=torch.Generator)

    @classmethod
    def begin(cls, recipe: Recipe, device: torch.device, dtype: torch.dtype, *, pictures: tuple[str, ...] = ()) -> Self:
        """Before the first step.

        Raises `WeightsError` for weights that cannot be read, or are of another network than the recipe's.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network, origin = _initial(recipe)
        rates = [(False, recipe.learning_rate)]
        slow: set[int] = set()
        if isinstance(network, CRMSmall) and (recipe.pretrained or recipe.initial):
            rates.append((True, recipe.learning_rate * recipe.trunk_factor))
            slow = {id(parameter) for parameter in network.trunk.parameters()}
        network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = AveragedModel(network, multi_avg_fn=_moving_average(recipe.ema), use_buffers=True)
        groups = [
            {"params": [p for p in network.parameters() if (id(p) in slow) == inside], "initial_lr": rate}
            for inside, rate in rates
        ]
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(groups, weight_decay=recipe.weight_decay)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        loss = parse_loss(recipe.loss)
        return cls(recipe, loss, network, average, optimizer, scaler, device, dtype, origin, pictures)

    @property
    def dtype_name(self) -> str:
        """As options name it."""
        return str(self.dtype).removeprefix("torch.")

    def began(self) -> str:
        """Where its weights come from, in words."""
        if self.step:
            return f"from step {self.step}"
        return f"from {self.recipe.initial or self.recipe.pretrained or 'random weights'}"

    def rate(self) -> float:
        """The learning rate of the step before."""
        return self.recipe.learning_rate * self.recipe.learning_rate_at(max(0, self.step - 1))

    def advance(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step on a batch of crops; its losses."""
        recipe = self.recipe
        seed = recipe.seed * 1_000_003 + self.step
        self.choices.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * recipe.learning_rate_at(self.step)
        loss = partial(self.loss, progress=self.step / recipe.steps)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)  # dropout knows no other generator
            on_device = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            found = losses(
                self.network, recipe.spec().cascade, on_device, recipe, self.choices, loss=loss, dtype=self.dtype
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(sum(found.values(), torch.zeros((), device=self.device))).backward()
        if recipe.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.network)
        self.step += 1
        return {name: value.detach() for name, value in found.items()}

    def means(self, seen: list[dict[str, Tensor]]) -> dict[str, float]:
        """Means of steps' losses. In float16 a network may overflow now and then, its steps were left out.

        Raises `OptionError` for losses that are no numbers, or averaged weights, which an overflow reaches through the
        norms' statistics.
        """
        values = torch.stack([torch.stack(list(each.values())) for each in seen]).float().cpu()  # (steps, losses)
        finite = values.isfinite().all(1)
        usable = finite.any() if self.scaler.is_enabled() else finite.all()
        if not usable or not all(value.isfinite().all() for value in self.average.state_dict().values()):
            raise OptionError(
                f"the loss is no number any more at step {self.step}; train into a new folder with a lower "
                "learning_rate, a longer warmup or a clip of 1"
            )
        return dict(zip(seen[0], values[finite].mean(0).tolist(), strict=True))

    def save_weights(self, path: Path, **metadata: str) -> None:
        """Write the averaged weights with the recipe, the step and the folders that their origin was trained on."""
        state = self.average.module.state_dict()
        if self.recipe.store == "float16":  # of vectors, which are few, a norm's can leave its range
            state = {k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in state.items()}
        recipe = json.dumps(self.recipe.as_dict())
        metadata = {name: text for name, text in metadata.items() if text} | {"recipe": recipe, "step": str(self.step)}
        if self.origin is not None and self.origin.data:
            metadata["before"] = json.dumps(self.origin.data)
        save(path, state, spec=self.recipe.spec().as_dict(), metadata=metadata)

    def store(self, path: Path) -> None:
        """Write the checkpoint."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "recipe": json.dumps(self.recipe.lasting()),
            "origin": json.dumps(self.origin and asdict(self.origin)),
            "pictures": list(self.pictures),
            "step": self.step,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)  # which hides what the disk says
        write_atomic(path, lambda file: file.write(buffer.getbuffer()))

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one. Raises `WeightsError` for another recipe's or a damaged one."""
        if not path.exists():
            return
        told = f"{path} is damaged (%s); delete it to begin anew, or train into another folder"
        try:
            state = unpickled(path)
            theirs, ours = lasting(json.loads(state["recipe"])), self.recipe.lasting()
            if changed := [name for name in theirs | ours if theirs.get(name) != ours.get(name)]:
                differences = ", ".join(f"{name} is {theirs.get(name)!r} there" for name in changed)
                raise WeightsError(f"{path} belongs to another recipe: {differences}; train into a new folder")
            before = state.get("pictures", self.pictures)  # earlier versions did not note them
            pairs = zip(self.pictures, before, strict=True)
            if others := [f"{now}, was {then}" for now, then in pairs if now != then]:
                found = "; ".join(others)
                raise WeightsError(f"{path} is of other pictures: {found}; give those, or train into a new folder")
            if (origin := json.loads(state.get("origin", "null"))) is not None:
                self.origin = Origin(**origin | {"data": tuple(origin["data"])})
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scaler.is_enabled() and state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            self.step = int(state["step"])
            self._check_resumed()
        except (WeightsError, MemoryError):
            raise
        except Exception as error:  # the unpickler takes any bytes for instructions, and what it gives can be anything
            raise WeightsError(told % _short(error)) from error

    def _check_resumed(self) -> None:
        """Raises ValueError for what no run can have stored."""
        if not 0 <= self.step < 2**63:
            raise ValueError("an impossible step")
        for module in (self.network, self.average):
            for name, value in module.state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise ValueError(f"{name} is no number")
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                for name, value in self.optimizer.state.get(parameter, {}).items():
                    if name != "step" and value.shape != parameter.shape:
                        raise ValueError(f"{name} of another shape")


def _short(error: Exception) -> str:
    """An error's text on a line; torch's can have a hundred."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def arithmetic(name: str, device: torch.device) -> torch.dtype:
    """The type of products that ``name`` means. Raises `OptionError` for one that gradients do not survive."""
    dtype = resolve_dtype(name, device)
    if dtype == torch.float16 and device.type != "cuda":
        raise OptionError(f"dtype={name!r} cannot be trained in on {device}, only on CUDA; give bfloat16 or float32")
    return dtype


def _initial(recipe: Recipe) -> tuple[nn.Module, Origin | None]:
    """The network that a run begins with, and the file that its weights are from."""
    if recipe.initial:
        held = checkpoint.load(recipe.initial)
        return _begun(recipe, held.spec or {}), Origin.of(Path(recipe.initial), held)
    network = build(recipe.spec())
    if not recipe.pretrained:
        return network, None
    load_mobilenet_v2(cast(Trunk, cast(CRMSmall, network).trunk), Path(recipe.pretrained))
    return network, Origin(Path(recipe.pretrained).name, checkpoint.file_sha256(recipe.pretrained))


def _begun(recipe: Recipe, stored: Mapping[str, Any]) -> nn.Module:
    """The network of a recipe with its initial weights, whose specification is ``stored``."""
    wanted, base = recipe.spec(), recipe.model.partition("+")[0]
    model = recipe.model if stored.get("model") == recipe.model else base
    loaded, spec, _ = load_network(model, recipe.initial)
    start, channels = cast(nn.Module, loaded), spec.arguments["in_channels"]
    if spec.network != wanted.network:
        network = build(wanted)
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        network.load_state_dict(common(start.state_dict(), shapes), strict=False)
        return network
    if spec.arguments | {"in_channels": wanted.arguments["in_channels"]} != wanted.arguments:
        raise WeightsError(f"{recipe.initial} holds {spec.arguments}, the recipe wants {wanted.arguments}")
    if model == recipe.model:
        return start.train()
    network = build(wanted)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    more = int(wanted.arguments["in_channels"]) - int(channels)
    network.load_state_dict(widened(start.state_dict(), shapes, more))
    return network


def _moving_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """An exponential moving average whose memory grows with the run up to ``decay``: the start is soon forgotten."""

    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        seen = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + seen) / (10 + seen)))(averaged, current, count)

    return update
