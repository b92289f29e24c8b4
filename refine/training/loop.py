"""The training loop: seeded, resumable, the same recipe on a CPU and on a GPU.

Every crop teaches both kinds of step of the cascade. First the coarse step: the crop at half resolution with its coarse
mask, decoded on the full grid. Then the last step: a window of the crop at full resolution, whose mask is by turns the
first step's own output, the coarse mask and a better one.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Sampler

from refine.checkpoint import save
from refine.config import Cascade, Spec
from refine.devices import resolve_device
from refine.errors import OptionError, WeightsError, one_of
from refine.io import write_atomic
from refine.models import PRESETS, Network, build, preset
from refine.models.crm_s import DECODERS, TRUNKS, CRMSmall, Trunk
from refine.tiles import Window
from refine.training.data import Crops, find_pairs
from refine.training.losses import crm_loss
from refine.training.pretrained import load_mobilenet_v2


@dataclass(frozen=True)
class Recipe:
    """What a run is: everything that its result depends on, stored beside the weights."""

    data: tuple[str, ...]  # folders of pairs
    model: str = "crm-s"  # name of a preset
    shares: tuple[float, ...] = ()  # how often each folder is drawn; equal where empty
    scenes: float = 0.0  # the share of generated scenes
    steps: int = 4000
    batch: int = 12
    crop: int = 320  # px; the coarse step sees half of it
    window: int = 192  # px of the crop that the last step sees
    learning_rate: float = 1.5e-3
    trunk_factor: float = 0.3  # of the learning rate, for pretrained features
    weight_decay: float = 1e-4
    warmup: int = 150  # steps
    decay: float = 0.3  # the last share of all steps, in which the learning rate falls to zero
    ema: float = 0.998  # of the averaged weights that are kept; less in the first few thousand steps
    seed: int = 0
    pretrained: str = ""  # mobilenetv2.npz; crm-s alone has this field and the next two
    trunk: str = "mobilenetv2"  # or "dense"
    decoder: str = "interpolated"  # or "ensemble"

    def __post_init__(self) -> None:
        if self.shares and len(self.shares) != len(self.data):
            raise OptionError(f"{len(self.shares)} shares for {len(self.data)} data folders; give one for each")
        for name in ("steps", "batch", "crop", "window"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)!r} is not possible; give a whole number above 0")
        if self.crop % 64 or self.window % 32 or self.window > self.crop:
            raise OptionError(
                f"crop={self.crop}, window={self.window} are not possible; the crop is a multiple of 64 px, the window "
                "one of 32 px and no larger"
            )
        one_of("model", self.model, tuple(PRESETS))
        if self.model != "crm-s":
            for name in ("pretrained", "trunk", "decoder"):
                if getattr(self, name) != getattr(Recipe, name):
                    raise OptionError(f"{name}={getattr(self, name)!r} belongs to crm-s; {self.model} has none")
        one_of("trunk", self.trunk, tuple(TRUNKS))
        one_of("decoder", self.decoder, tuple(DECODERS))
        if self.pretrained and self.trunk != "mobilenetv2":
            raise OptionError(f"trunk={self.trunk!r} has no pretrained features; leave pretrained empty")

    def spec(self) -> Spec:
        """Of the model that is trained."""
        base = preset(self.model)
        if self.model != "crm-s":
            return base
        return replace(base, arguments={**base.arguments, "trunk": self.trunk, "decoder": self.decoder})


class _Numbers(Sampler[int]):
    """Item numbers from ``first`` to ``last``; a resumed run goes on with the next one."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))

    def __len__(self) -> int:
        return self.last - self.first


def learning_rate(step: int, recipe: Recipe) -> float:
    """Factor of the learning rate at ``step``: a linear rise, a plateau, a linear fall to zero."""
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    fall = min(1.0, (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps))
    return min(rise, max(fall, 0.0))


def train(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "cpu",
    workers: int = 1,
    save_seconds: float = 120.0,
    stop_at: int | None = None,
) -> Path:
    """Train the model of ``recipe`` and return the path of the averaged weights, ``out/weights.safetensors``.

    ``out`` holds a checkpoint, written every ``save_seconds``, that a second call with the same folder resumes from,
    and a log of one JSON line every 20 steps. ``stop_at`` ends the call after that step, to be resumed.

    Raises `OptionError` for an impossible recipe, `FileError` for data that cannot be read, `WeightsError` where
    ``out`` belongs to another recipe.
    """
    device = str(resolve_device(device))
    out.mkdir(parents=True, exist_ok=True)
    groups = [find_pairs(Path(folder)) for folder in recipe.data]
    shares = recipe.shares or (1.0,) * len(groups)
    crops = Crops(groups, shares, size=recipe.crop, seed=recipe.seed, scenes=recipe.scenes)
    run = _Run.begin(recipe, device)
    run.resume(out / "checkpoint.pt")
    loader = DataLoader(
        crops,
        batch_size=recipe.batch,
        sampler=_Numbers(run.step * recipe.batch, recipe.steps * recipe.batch),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    cascade, choices = recipe.spec().cascade, torch.Generator()
    saved = logged = time.monotonic()
    seen: list[dict[str, float]] = []
    run.network.train()
    for batch in loader:
        seed = recipe.seed * 1_000_003 + run.step
        choices.manual_seed(seed)
        for group in run.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate(run.step, recipe)
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
            torch.manual_seed(seed)  # dropout knows no other generator
            on_device = {name: value.to(device) for name, value in batch.items()}
            losses = _losses(cast(Network, run.network), cascade, on_device, recipe, choices)
        run.optimizer.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros((), device=device)).backward()
        nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        run.optimizer.step()
        run.average.update_parameters(run.network)
        run.step += 1
        seen.append({name: float(value.detach()) for name, value in losses.items()})
        if run.step % 20 == 0:
            means = {name: round(sum(each[name] for each in seen) / len(seen), 5) for name in losses}
            line = {"step": run.step, **means, "seconds": round(time.monotonic() - logged, 2)}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            logged, seen = time.monotonic(), []
        last = run.step in (stop_at, recipe.steps)
        if last or time.monotonic() - saved > save_seconds:
            run.store(out, recipe)
            saved = time.monotonic()
        if last:
            break
    return out / "weights.safetensors"


@dataclass
class _Run:
    """What training changes, on disk as ``checkpoint.pt``."""

    network: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    recipe: str
    step: int = 0

    @classmethod
    def begin(cls, recipe: Recipe, device: str) -> Self:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = build(recipe.spec())
        rates = [(False, recipe.learning_rate)]
        slow: set[int] = set()
        if recipe.pretrained:
            trunk = cast(CRMSmall, network).trunk
            load_mobilenet_v2(cast(Trunk, trunk), Path(recipe.pretrained))
            rates.append((True, recipe.learning_rate * recipe.trunk_factor))
            slow = {id(parameter) for parameter in trunk.parameters()}
        network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = AveragedModel(network, multi_avg_fn=_moving_average(recipe.ema), use_buffers=True)
        groups = [
            {"params": [p for p in network.parameters() if (id(p) in slow) == inside], "initial_lr": rate}
            for inside, rate in rates
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        return cls(network, average, optimizer, _lasting(recipe))

    def store(self, out: Path, recipe: Recipe) -> None:
        """Write the averaged weights, then the checkpoint, each whole or not at all."""
        save(
            out / "weights.safetensors",
            self.average.module.state_dict(),
            spec=recipe.spec().as_dict(),
            metadata={"recipe": json.dumps(asdict(recipe)), "step": str(self.step)},
        )
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "recipe": self.recipe,
            "step": self.step,
        }
        write_atomic(out / "checkpoint.pt", lambda file: torch.save(state, file))

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
            # What a checkpoint does not name yet had its default.
            if json.loads(_lasting(Recipe(data=()))) | json.loads(state["recipe"]) != json.loads(self.recipe):
                raise WeightsError(
                    f"{path} belongs to another recipe: {state['recipe']}, not {self.recipe}; train into a new folder"
                )
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        except (KeyError, RuntimeError, TypeError, ValueError, EOFError, UnpicklingError) as error:
            raise WeightsError(f"{path} is damaged ({error}); delete it to begin anew") from error


def _moving_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """An exponential moving average whose memory grows with the run up to ``decay``: the start is soon forgotten."""

    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        seen = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + seen) / (10 + seen)))(averaged, current, count)

    return update


def _lasting(recipe: Recipe) -> str:
    """What may not change between the parts of a run: everything but where it ends and where its data lies."""
    values = asdict(recipe) | {"data": [Path(folder).name for folder in recipe.data]}
    values["pretrained"] = Path(recipe.pretrained).name
    return json.dumps({k: v for k, v in values.items() if k not in ("steps", "decay")})


def _losses(
    network: Network, cascade: Cascade, batch: dict[str, Tensor], recipe: Recipe, choices: torch.Generator
) -> dict[str, Tensor]:
    """Losses of the coarse and of the last step of a batch of crops."""
    mean, std = (torch.tensor(v, device=batch["image"].device).view(3, 1, 1) for v in (cascade.mean, cascade.std))
    image = (batch["image"].float() / 255 - mean) / std
    truth, size = batch["truth"], recipe.crop
    device_type = image.device.type
    with torch.autocast(device_type, torch.bfloat16):
        half = _halved(torch.cat((image, 2 * batch["coarse"] - 1), 1), cascade.resize)
        again = F.interpolate(half[:, 3:], size=(size, size), mode="bilinear", align_corners=False)
        coarse_logit = _decoded(network, half, torch.cat((image, again), 1))
        y, x = (8 * int(torch.randint((size - recipe.window) // 8 + 1, (), generator=choices)) for _ in range(2))
        part = (..., slice(y, y + recipe.window), slice(x, x + recipe.window))
        kind = torch.rand(len(image), 1, 1, 1, generator=choices).to(image.device)
        own = coarse_logit.detach().sigmoid()
        mask = torch.where(kind < 0.5, own, torch.where(kind < 0.7, batch["coarse"], batch["fine"]))[part]
        full = torch.cat((image[part], 2 * mask - 1), 1)
        fine_logit = _decoded(network, full, full)
    return {"coarse": crm_loss(coarse_logit, truth), "fine": crm_loss(fine_logit, truth[part])}


def _halved(x: Tensor, resize: str) -> Tensor:
    """Crops (B, C, h, w) of even sides at half the resolution, reduced as the cascade reduces pictures."""
    if resize == "area":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, size=(x.shape[-2] // 2, x.shape[-1] // 2), mode="bilinear", align_corners=True)


def _decoded(network: Network, x: Tensor, guide: Tensor) -> Tensor:
    """Logits on the grid of ``guide`` from the network's input ``x``, both square crops."""
    sizes = network.tap_sizes(*x.shape[-2:])
    window = Window(0, sizes[0][0], 0, sizes[0][1])
    latent = network.fuse(network.encode(x), sizes=sizes, origin=(0, 0), window=window)
    axis = network.axis(guide.shape[-1], x.shape[-1]).to(x.device)
    return network.decode(latent, axis, axis, guide if network.guided else None)


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
