"""The training loop: seeded, resumable, the same recipe on a CPU and on a GPU.

A run's folder holds

checkpoint.pt        what a second call goes on from
weights.safetensors  the averaged weights of that step
best.safetensors     those of the validation with the highest gain, if any
card.md              the model card of both
log.jsonl            losses, every 20 steps; validation.jsonl: figures on held-out pictures
"""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import cv2
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from refine.checkpoint import load
from refine.config import EMBEDDED
from refine.devices import resolve_device, undisturbed
from refine.errors import FileError, OptionError, RefineError, WeightsError
from refine.guidance.cache import Cached
from refine.guidance.sources import kept_source
from refine.io import check_folder, write_atomic
from refine.training.card import Card, Source, WeightsFile, source, stated_terms
from refine.training.coarse import GIVEN
from refine.training.data import Crops
from refine.training.folders import survey
from refine.training.guides import Guides, Wholes
from refine.training.progress import EVERY, Log, is_record
from refine.training.recipe import Recipe, lasting
from refine.training.state import Run, arithmetic
from refine.training.validation import Validation, record
from refine.versions import commit, versions

CHECKPOINT: Final = "checkpoint.pt"
WEIGHTS: Final = "weights.safetensors"
BEST: Final = "best.safetensors"
CARD: Final = "card.md"
LOCK: Final = ".lock"


@undisturbed(inference=False)
def train(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    workers: int = 1,
    validation: Validation | None = None,
    terms: str = "",
    quiet: bool = True,
    tensorboard: bool = False,
    save_seconds: float = 120.0,
    stop_at: int | None = None,
) -> Path:
    """Train the model of ``recipe`` and return the path of the averaged weights, ``out/weights.safetensors``.

    A second call with the same folder goes on where the first one was stopped, however that happened; the checkpoint is
    written every ``save_seconds``. An interrupt (Ctrl-C) ends the step, stores it and is raised again, with a text that
    says how to go on; a second one does not wait.

    dtype: of the network's products: "float32", "bfloat16", "float16" (CUDA alone, with a scaled loss) or "auto", the
    fastest that is safe. workers: processes that prepare crops; what guides these and is not kept yet they find on the
    CPU, and without workers this process finds it on ``device`` (`refine.precompute` does so beforehand). terms: of the
    data, for the card. quiet: nothing is told on stderr. stop_at: ends the call after that step, to be resumed.

    Raises `OptionError` for what cannot be trained, `FileError` for data that cannot be read or a folder that cannot be
    written, `WeightsError` where ``out`` belongs to another recipe.
    """
    on = resolve_device(device)
    products = arithmetic(dtype, on)
    if not recipe.data:
        raise OptionError("there is nothing to train on; give folders of pictures with their truths (--data DIR)")
    if workers < 0:
        raise OptionError(f"workers={workers} is not possible; give a number of processes, or 0 for none but this one")
    check_folder(out)
    surveys = {name: survey(Path(name)) for name in recipe.data}
    groups = [surveys[name].pairs for name in recipe.data]
    guiding = _source(recipe, str(on) if workers == 0 else "cpu")
    deep = recipe.spec().guidance in EMBEDDED
    crops = Crops(
        groups,
        recipe.shares or (1.0,) * len(groups),
        size=recipe.crop,
        seed=recipe.seed,
        scenes=recipe.scenes,
        composed=recipe.composed,
        coarse=recipe.coarse,
        augment=recipe.augment,
        guide=None if guiding is None or deep else Guides(recipe.spec().guidance, guiding),
        whole=Wholes(guiding) if guiding is not None and deep else None,
    )
    crops.check_sizes()
    if validation is not None:
        validation.check_apart([pair.image for group in groups for pair in group])
    held = tuple(surveys[name].summary(Path(name)) for name in recipe.data)
    run = Run.begin(recipe, on, products, pictures=held)
    out.mkdir(parents=True, exist_ok=True)
    with _only_run(out):
        run.resume(out / CHECKPOINT)
        log = Log(out, step=run.step, steps=recipe.steps, batch=recipe.batch, quiet=quiet, tensorboard=tensorboard)
        with log:
            log.note(f"{recipe.model}, {sum(map(len, groups))} pairs, {run.began()}; {on}, {run.dtype_name}; {out}")
            for name, found in surveys.items():
                if unused := found.unused():
                    log.note(f"{name}: {unused}")
            beside = len({pair.image for group in groups for pair in group if pair.coarse})
            if beside and not recipe.coarse.get(GIVEN):
                remedy = "" if recipe.augment == "published" else f"; --set coarse.{GIVEN}=0.3"
                log.note(f"{beside} pictures have coarse masks beside them, which this recipe does not take{remedy}")
            sources = [source(Path(folder), len(group)) for folder, group in zip(recipe.data, groups, strict=True)]
            folder = _Folder(out, run, log, validation, sources, terms)
            if run.step >= recipe.steps:
                folder.store()  # perhaps in another type than before
            loader = DataLoader(
                crops,
                batch_size=recipe.batch,
                sampler=_Numbers(run.step * recipe.batch, recipe.steps * recipe.batch),
                num_workers=workers,
                prefetch_factor=4 if workers else None,
                worker_init_fn=_alone,
                pin_memory=on.type == "cuda",
            )
            with folder.interrupt:
                try:
                    _steps(run, loader, folder, save_seconds, stop_at)
                except RefineError as error:
                    raise _as_in_the_worker(error) from error
                except RuntimeError as error:
                    if not str(error).startswith("DataLoader worker (pid"):
                        raise
                    raise OptionError(
                        f"a process that prepares crops was ended ({str(error).strip().rstrip('.')}), mostly for want "
                        "of memory; give fewer --workers; the same command goes on"
                    ) from error
                if run.step >= recipe.steps and validation is not None and not folder.is_validated():
                    folder.validate()
    return out / WEIGHTS


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Raises `FileError` where another process trains in a folder; what it holds would be of neither."""
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FileError(f"{out}: another process trains there; wait for it, or train into another folder") from error
    except OSError as error:
        raise FileError(f"{out / LOCK}: cannot be locked ({error.strerror}); train into another folder") from error
    try:
        yield
    finally:
        lock.release()


def _source(recipe: Recipe, device: str) -> Cached | None:
    """What finds the proposals or features that guide the crops of a recipe, and keeps them on disk."""
    if not recipe.proposals:
        return None
    return kept_source(recipe.proposals, sam_checkpoint=recipe.sam_checkpoint or None, device=device)


def _steps(
    run: Run, loader: DataLoader[dict[str, Tensor]], folder: "_Folder", save_seconds: float, stop_at: int | None
) -> None:
    """The steps that are left, or those up to ``stop_at``; the last one is stored."""
    log, steps = folder.log, run.recipe.steps
    saved = validated = time.monotonic()
    seen: list[dict[str, Tensor]] = []
    run.network.train()
    for batch in loader:
        seen.append(run.advance(batch))
        log.step(run.step)
        last = run.step in (stop_at, steps) or folder.interrupt.wanted
        due = folder.is_due(time.monotonic() - validated)
        wanted = due and run.step < steps and not folder.interrupt.wanted
        store = last or wanted or time.monotonic() - saved > save_seconds
        told = run.step % EVERY == 0 or run.step == steps
        if store or told:
            means = run.means(seen)  # so that nothing is stored that is no number
        if told:
            log.losses(run.step, means, run.rate())
            seen = []
        if store:
            folder.store()
            saved = time.monotonic()
        if wanted:
            folder.validate()
            validated = time.monotonic()
        if last:
            break
    folder.interrupt.check()


class _Numbers(Sampler[int]):
    """Item numbers from ``first`` to ``last``; a resumed run goes on with the next one."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))

    def __len__(self) -> int:
        return max(0, self.last - self.first)


class _Interrupt(AbstractContextManager["_Interrupt"]):
    """Lets an interrupt wait for the end of a step; the second one does not. Signals are the main thread's alone."""

    def __init__(self) -> None:
        self.wanted = False
        self.before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *raised: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def check(self) -> None:
        """Raises KeyboardInterrupt, if one waits; to be called where all is stored."""
        if self.wanted:
            raise KeyboardInterrupt("the last whole step is stored; the same command goes on from there")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


def _alike(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a validation measured what is wanted; earlier versions did not note the files."""
    return all(found.get(name, value if name == "files" else None) == value for name, value in wanted.items())


@dataclass
class _Folder:
    """What a run leaves on disk."""

    out: Path
    run: Run
    log: Log
    validation: Validation | None
    sources: list[Source]
    terms: str
    interrupt: _Interrupt = field(default_factory=_Interrupt)
    commit: str = field(default_factory=commit)

    def store(self) -> None:
        """Write the averaged weights, their card and the checkpoint, each whole or not at all."""
        self.run.save_weights(self.out / WEIGHTS, terms=self.stated())
        self.run.store(self.out / CHECKPOINT)
        self.write_card()

    def stated(self) -> str:
        """All terms in one text, for who starts from the weights."""
        terms = stated_terms(self.terms, self.sources, self.run.origin)
        return "\n\n".join(f"{name}: {text}" for name, text in terms.items())

    def measured(self) -> dict[str, Any]:
        """What figures depend on besides the weights of a step, as it is read from JSON."""
        assert self.validation is not None
        recipe = self.run.recipe
        used = {"store": recipe.store, "cascade": recipe.spec().as_dict()["cascade"]}
        values: dict[str, Any] = json.loads(json.dumps(self.validation.measured() | used))
        return values

    def is_due(self, seconds: float) -> bool:
        return self.validation is not None and self.validation.every.due(step=self.run.step, seconds=seconds)

    def is_validated(self) -> bool:
        """Whether the weights of this step have been measured on these pictures, as they are used now."""
        wanted = {"step": self.run.step, **self.measured()}
        found = self.log.last_validation() or {}
        return _alike(found, wanted)

    def validate(self) -> None:
        """Measure the stored weights and keep them where none were better on the same pictures."""
        assert self.validation is not None
        began = time.monotonic()
        recipe = self.run.recipe
        summaries = self.validation.measure(
            recipe.model,
            self.out / WEIGHTS,
            device=str(self.run.device),
            seen=self.interrupt.check,
            **{name: value for name in ("proposals", "sam_checkpoint") if (value := getattr(recipe, name))},
        )
        measured = self.measured()
        found = {"step": self.run.step, **measured, **record(summaries)}
        best = self.best()
        comparable = best is not None and _alike(best, measured)
        if not comparable and (self.out / BEST).exists():
            self.log.note(f"{BEST} was chosen by another recipe or on other pictures and is replaced")
        if best is None or not comparable or found["gain"] > best["gain"]:
            self.run.save_weights(self.out / BEST, validation=json.dumps(found), terms=self.stated())
        self.log.validated(found, time.monotonic() - began)
        self.write_card()

    def best(self) -> dict[str, Any] | None:
        """The validation of the best weights, which is in their file; none of weights by another recipe."""
        if not (self.out / BEST).exists():
            return None
        path = self.out / BEST
        try:
            stored = load(path).metadata
            if lasting(json.loads(stored["recipe"])) != self.run.recipe.lasting():
                return None
            values: dict[str, Any] = json.loads(stored["validation"])
        except (WeightsError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise WeightsError(
                f"{path} is damaged ({error}); delete it, and the best weights are chosen anew"
            ) from error
        if not is_record(values):
            raise WeightsError(f"{path} is damaged (no validation); delete it, and the best weights are chosen anew")
        return values

    def write_card(self) -> None:
        best = self.best()
        files = [WEIGHTS] if best is None else [WEIGHTS, BEST]
        card = Card(
            recipe=self.run.recipe.as_dict(),
            step=self.run.step,
            device=str(self.run.device),
            dtype=self.run.dtype_name,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            sources=self.sources,
            files=[WeightsFile.of(self.out / name) for name in files],
            validation=self.log.last_validation(),
            best=best,
            terms=self.terms,
            origin=self.run.origin,
            commit=self.commit,
            versions=versions(),
        )
        write_atomic(self.out / CARD, lambda file: file.write(card.text().encode()))


def _as_in_the_worker(error: RefineError) -> RefineError:
    """An error without the traceback that torch adds to the text of those from another process."""
    return type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip())


def _alone(worker: int) -> None:
    """A worker uses one thread, and leaves interrupts to the process that started it."""
    if cv2.getNumThreads() != 1:  # it was not forked, see `survive_forks`
        cv2.setNumThreads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
