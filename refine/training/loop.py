"""The training loop: seeded, resumable, the same recipe on a CPU and on a GPU.

Every crop teaches both kinds of step of the cascade. First the coarse step: the crop at half resolution with its coarse
mask, decoded on the full grid. Then the last step: a window of the crop at full resolution, whose mask is by turns the
first step's own output, the coarse mask and a better one.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler

from refine.checkpoint import save
from refine.errors import OptionError, WeightsError
from refine.io import write_atomic
from refine.models import preset
from refine.models.crm_s import CRMSmall
from refine.training.data import Crops, find_pairs
from refine.training.losses import crm_loss
from refine.training.pretrained import load_mobilenet_v2


@dataclass(frozen=True)
class Recipe:
    """What a run is: everything that its result depends on, stored beside the weights."""

    data: tuple[str, ...]  # folders of pairs
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
    ema: float = 0.998  # of the averaged weights that are kept
    seed: int = 0
    pretrained: str = ""  # mobilenetv2.npz


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
    """Train crm-s by ``recipe`` and return the path of the averaged weights, ``out/weights.safetensors``.

    ``out`` holds a checkpoint, written every ``save_seconds``, that a second call with the same folder resumes from,
    and a log of one JSON line every 20 steps. ``stop_at`` ends the call after that step, to be resumed.

    Raises `OptionError` for an impossible recipe, `FileError` for data that cannot be read, `WeightsError` where
    ``out`` belongs to another recipe.
    """
    if recipe.shares and len(recipe.shares) != len(recipe.data):
        raise OptionError(f"{len(recipe.shares)} shares for {len(recipe.data)} data folders; give one for each")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    groups = [find_pairs(Path(folder)) for folder in recipe.data]
    shares = recipe.shares or (1.0,) * len(groups)
    crops = Crops(groups, shares, size=recipe.crop, seed=recipe.seed, scenes=recipe.scenes)
    network = CRMSmall(**preset("crm-s").arguments)
    if recipe.pretrained:
        load_mobilenet_v2(network.trunk, Path(recipe.pretrained))
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema), use_buffers=True
    )
    trunk = list(network.trunk.parameters())
    known = {id(p) for p in trunk}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in network.parameters() if id(p) not in known], "lr": recipe.learning_rate},
            {"params": trunk, "lr": recipe.learning_rate * (recipe.trunk_factor if recipe.pretrained else 1.0)},
        ],
        weight_decay=recipe.weight_decay,
    )
    step = _resume(out / "checkpoint.pt", network, average, optimizer)
    loader = DataLoader(
        crops,
        batch_size=recipe.batch,
        sampler=_Numbers(step * recipe.batch, recipe.steps * recipe.batch),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    choices = torch.Generator()
    saved = logged = time.monotonic()
    total = {"coarse": 0.0, "fine": 0.0}
    network.train()
    for batch in loader:
        choices.manual_seed(recipe.seed * 1_000_003 + step)
        for group, rate in zip(
            optimizer.param_groups, (1.0, recipe.trunk_factor if recipe.pretrained else 1.0), strict=True
        ):
            group["lr"] = recipe.learning_rate * rate * learning_rate(step, recipe)
        losses = _losses(network, {k: v.to(device) for k, v in batch.items()}, recipe, choices)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros((), device=device)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(network)
        step += 1
        for name, value in losses.items():
            total[name] += float(value.detach())
        if step % 20 == 0:
            now = time.monotonic()
            line = {"step": step, **{k: round(v / 20, 5) for k, v in total.items()}, "seconds": round(now - logged, 2)}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            logged, total = now, dict.fromkeys(total, 0.0)
        if time.monotonic() - saved > save_seconds or step == recipe.steps:
            _store(out, network, average, optimizer, step, recipe)
            saved = time.monotonic()
        if step == stop_at:
            break
    return out / "weights.safetensors"


def _losses(network: CRMSmall, batch: dict[str, Tensor], recipe: Recipe, choices: torch.Generator) -> dict[str, Tensor]:
    """Losses of the coarse and of the last step of a batch of crops."""
    image = batch["image"].float() / 255
    truth, size = batch["truth"], recipe.crop
    device_type = image.device.type
    with torch.autocast(device_type, torch.bfloat16):
        half = F.avg_pool2d(torch.cat((image, 2 * batch["coarse"] - 1), 1), 2)
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


def _decoded(network: CRMSmall, x: Tensor, guide: Tensor) -> Tensor:
    """Logits on the grid of ``guide`` from the network's input ``x``, both square crops."""
    (latent,) = network.encode(x)
    axis = network.axis(guide.shape[-1], x.shape[-1]).to(x.device)
    return network.decode(latent, axis, axis, guide)


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _store(
    out: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int, recipe: Recipe
) -> None:
    """Write the averaged weights, then the checkpoint, each whole or not at all."""
    assert isinstance(average.module, nn.Module)
    averaged = average.module.state_dict()
    save(
        out / "weights.safetensors",
        averaged,
        spec=preset("crm-s").as_dict(),
        metadata={"recipe": json.dumps(asdict(recipe)), "step": str(step)},
    )
    state = {
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    write_atomic(out / "checkpoint.pt", lambda file: torch.save(state, file))


def _resume(path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint, if there is one, and return its step."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    try:
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} belongs to another recipe ({error}); train into a new folder") from error
    return int(state["step"])
