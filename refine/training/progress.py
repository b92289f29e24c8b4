"""What a run tells while it lasts: lines of JSON, TensorBoard's events, and a line on the terminal."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from tqdm import tqdm

from refine.errors import FileError, OptionError
from refine.io import write_atomic
from refine.texts import plain

EVERY: Final = 20  # steps between two lines
STEPS: Final = "log.jsonl"  # of a run's folder: a line every few steps
VALIDATIONS: Final = "validation.jsonl"  # a line a validation


class Log:
    """Writes into a run's folder and, unless quiet, to stderr: a rewritten line on a terminal, else plain lines.

    What the files hold beyond ``step`` was done after the last checkpoint, is done again, and is removed first.

    Raises `OptionError` where TensorBoard is asked for and missing, `FileError` for files that cannot be written.
    """

    def __init__(
        self, out: Path, *, step: int, steps: int, batch: int, quiet: bool = True, tensorboard: bool = False
    ) -> None:
        self.out, self.quiet, self.batch, self.steps = out, quiet, batch, steps
        self.began = self.logged = time.monotonic()
        self.first = self.last = step
        for name in (STEPS, VALIDATIONS):
            _shorten(out / name, step)
        self.writer: Any = _event_writer(out / "tensorboard", step) if tensorboard else None
        terminal = not quiet and sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=step, disable=not terminal, unit="step", dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def note(self, text: str) -> None:
        """A line for who watches."""
        if not self.quiet:
            tqdm.write(plain(text), file=sys.stderr)
            sys.stderr.flush()

    def step(self, step: int) -> None:
        """Moves the terminal's bar."""
        self.bar.update(step - self.bar.n)

    def losses(self, step: int, losses: Mapping[str, float], rate: float) -> None:
        """Figures of the steps since the last call: the losses' means; ``rate`` is the learning rate."""
        now = time.monotonic()
        figures = {name: round(value, 5) for name, value in losses.items()}
        seconds, crops = now - self.logged, (step - self.last) * self.batch
        self._line(STEPS, {"step": step, **figures, "rate": float(f"{rate:.4g}"), "seconds": round(seconds, 2)})
        speed = crops / max(seconds, 1e-9)
        self._events(
            step, {**{f"loss/{name}": value for name, value in losses.items()}, "rate": rate, "crops/s": speed}
        )
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.bar.set_postfix_str(f"{shown}  {speed:.1f} crops/s", refresh=False)
        if self.bar.disable:
            left = (now - self.began) / (step - self.first) * (self.steps - step)
            self.note(f"step {step}/{self.steps}  {shown}  {speed:.1f} crops/s  {tqdm.format_interval(left)} left")
        self.logged, self.last = now, step

    def validated(self, record: Mapping[str, Any], seconds: float) -> None:
        """A record of `refine.training.validation`; ``seconds`` are those it took, which are not training's."""
        self._line(VALIDATIONS, record)
        sets = {f"{figure}/{s['set']}": s[f"{figure}_refined"] for s in record["sets"] for figure in ("iou", "mba")}
        self._events(record["step"], {"validation/gain": record["gain"], **sets})
        figures = "  ".join(
            f"{s['set']} {s['iou_refined']:.2f}/{s['mba_refined']:.2f} "
            f"({s['iou_refined'] - s['iou_coarse']:+.2f}/{s['mba_refined'] - s['mba_coarse']:+.2f})"
            for s in record["sets"]
        )
        self.note(f"validated at step {record['step']}: gain {record['gain']:+.3f}; IoU/mBA {figures}")
        self.began += seconds
        self.logged += seconds

    def last_validation(self) -> dict[str, Any] | None:
        """The newest record that was written, also by an earlier part of the run."""
        lines = [line for line in _lines(self.out / VALIDATIONS) if is_record(line)]
        return lines[-1] if lines else None

    def _line(self, name: str, values: Mapping[str, Any]) -> None:
        try:
            with (self.out / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise FileError(
                f"{self.out / name}: cannot be written ({error.strerror}); train into another folder"
            ) from error

    def _events(self, step: int, figures: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name, value in figures.items():
                self.writer.add_scalar(name, value, step)


def is_record(values: Any) -> bool:
    """Whether these can be figures of `refine.training.validation.record`, read from a file."""
    figures = [f"{figure}_{when}" for figure in ("iou", "mba") for when in ("coarse", "refined")]

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63

    return (
        isinstance(values, dict)
        and all(is_number(values.get(name)) for name in ("step", "gain"))
        and isinstance(values.get("sets"), list)
        and all(
            isinstance(each, dict)
            and isinstance(each.get("set"), str)
            and all(is_number(each.get(name)) for name in ("pictures", *figures))
            for each in values["sets"]
        )
    )


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError(
            "TensorBoard's package is not installed; install it with pip install 'refine-masks[train]', or leave "
            "--tensorboard out: log.jsonl has the same figures"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)  # type: ignore[no-untyped-call]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a kill may have cut off the last."""
    lines = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise FileError(
            f"{path}: cannot be read ({error.strerror}); delete it, or train into another folder"
        ) from error
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            lines.append(values)
    return lines


def _shorten(path: Path, step: int) -> None:
    """Removes what a log says of steps after ``step``."""
    if path.exists():
        kept = "".join(json.dumps(values) + "\n" for values in _lines(path) if values["step"] <= step)
        write_atomic(path, lambda file: file.write(kept.encode()))
