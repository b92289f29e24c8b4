"""The refiner: a cascade of scales on one screen, each line of it one file.

prepare   check the input, normalise it, pad it
features  picture and mask at one scale -> latent
decode    query the latent at the pixels
result    probability, mask and report
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from refine.blocks import Blocks
from refine.change import change as changed
from refine.config import EMBEDDED, UNTRAINED, Options, guided_model, source_and_options
from refine.decode import decode
from refine.devices import is_emulated, peak_memory, resolve_device, resolve_dtype, share_threads, undisturbed
from refine.errors import InputError, OptionError, check_model, one_of, shown
from refine.features import latent_at, whole_latent, with_deep
from refine.frame import Frame, View, scaled
from refine.guard import Guard
from refine.guidance import Encoder, Proposals, ProposalSource
from refine.guidance.cache import Cached
from refine.guidance.guide import Guided, by_embedding, by_points, by_proposals
from refine.guidance.sam_memory import PEAK
from refine.io import PathLike, Source, identity
from refine.loading import load_network
from refine.memory import return_freed
from refine.methods import METHODS
from refine.models import PRESETS, DeepNetwork
from refine.pairs import check_not_itself
from refine.plan import GIB, Plan, plan
from refine.planes import Constant, Held, Interpolated, Plane
from refine.prepare import Pair, mask_plane, prepare
from refine.regions import Grid, Selection, at_next, bounding_boxes, dense, margin, read_by_next, select
from refine.result import Change, Refined, Report, ScaleReport
from refine.slides import Slide, Workspace, check_mask_stream, write_mask_stream
from refine.tiffs import elsewhere
from refine.tiles import Window, cover
from refine_kernels import untold


@dataclass
class _Counts:
    """What was done at a scale."""

    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    decoded: float = 0
    encoded: float = 0

    def add(self, other: dict[str, float]) -> None:
        """Adds what was done of a part, as a journal may have kept it."""
        for name in asdict(self):
            setattr(self, name, getattr(self, name) + other.get(name, 0))


@dataclass
class _Outcome:
    """What a cascade leaves: the last probabilities, those of its scales if kept, and how it went."""

    last: Plane
    kept: dict[float, NDArray[np.float32]] = field(default_factory=dict)
    reports: list[ScaleReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def end(self, frame: Frame, kept: Iterable[float]) -> None:
        """All is background, also after the scales whose probabilities are ``kept``."""
        self.last = Constant(0.0, frame.size)
        self.kept |= {scale: frame.cut(self.last) for scale in kept}


SMALL = 2**14  # queries of a window below which encoding by area gains nothing
MOST = 0.4  # share of a window's queries above which it does not either

Progress = Callable[[int, int], None]
"""Is told tiles done and tiles in all."""


class Refiner:
    """A network with its weights on a device, ready to refine many pictures.

    model: name of a preset, "crm-s" (the default) or "crm-r50", which ship with weights; "crm-s+v2.1" and the like are
        those that a version of SAM-SR guides, and what "crm-s" means with guidance="sam-sr-v2.1".
    weights: path of a safetensors file or of a published .pth; None takes the weights that ship with the model.
    device: "auto" (CUDA, else Apple's GPU, else the CPU), "cpu", "cuda", "cuda:N" or "mps".
    dtype: "auto" (the fastest that is safe on the device), "float32", "bfloat16" or "float16"; coordinates are always
        float32.
    options: defaults of every call; see `refine.config.Options`.

    Raises `OptionError` for unknown values, `WeightsError` for weights that are missing or do not fit.
    """

    def __init__(
        self,
        model: str = "crm-s",
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        **options: Any,
    ) -> None:
        check_model(model, weights)
        if model in METHODS:
            raise OptionError(f"model={model!r} is a method, no cascade; refine.refiner({model!r}) gives it")
        self.options = Options().but(**options)
        model = guided_model(model, self.options.guidance)
        one_of("model", model, (*PRESETS, *METHODS))
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self._opened: tuple[tuple[object, ...], Cached] | None = None
        with undisturbed(self.device, inference=False):
            network, self.spec, self.weights_sha256 = load_network(model, weights)
            self.network = network.folded().to(self.device, self.dtype)

    def refine(
        self,
        image: NDArray[Any] | Source,
        coarse_mask: NDArray[Any] | Source,
        *,
        proposals: Proposals | ProposalSource | str | None = None,
        embedding: NDArray[np.float32] | Encoder | None = None,
        **options: Any,
    ) -> Refined:
        """Refine a coarse mask of an image.

        image: (H, W, 3) uint8 RGB, grey, RGBA, uint16 or float in [0, 1], as an array or a tensor (C, H, W) or
            (H, W, C); or a file: its path, its bytes, open, or a PIL image.
        coarse_mask: (H, W) bool, {0, 1}, {0, 255}, uint8 grey or float in [0, 1]; of the image's size or smaller; or a
            file as above.
        proposals: of this picture, or what finds them, instead of the option of that name.
        embedding: for SAM-SR v3, Segment Anything's features (256, 64, 64) of this picture, or what gives them.
        options: fields of `refine.config.Options` for this call alone.

        Raises `InputError` for arrays, `FileError` for files, `OptionError` for options that cannot be used.
        """
        if isinstance(proposals, str):
            options, proposals = options | {"proposals": proposals}, None
        chosen = self._chosen(options)
        share_threads()
        with undisturbed(self.device), peak_memory(self.device) as peak:
            started = self._now()
            pair = prepare(image, coarse_mask, allow_large=chosen.allow_large, white=chosen.white)
            if proposals is None and embedding is None:
                self._check_seeing(pair, chosen)
            guided = self._guided(pair, chosen, proposals, embedding)
            frame = Frame(guided.image, guided.mask, self.spec.cascade, self.device, embedding=guided.embedding)
            chosen = self._sized(chosen, frame.original)
            prepared = self._now()
            outcome = self._cascade(frame, chosen, self.plan(frame.original, **options))
            probability = frame.cut(outcome.last)
            change = changed(frame.inside(frame.mask), Held(probability), frame.store)
            seconds = self._now() - started
        report = self._report(frame, outcome, change, chosen, seconds, prepared - started, peak())
        if guided.skipped:
            skipped = f"the coarse mask was refined without {chosen.guidance}: {guided.skipped}"
            report = replace(report, warnings=(skipped, *report.warnings))
        report = replace(report, guidance=guided.record, warnings=(*pair.warnings, *report.warnings))
        return Refined.of(
            probability, report, scales=outcome.kept, guidance=guided.pictures, georeference=pair.georeference
        )

    def refine_file(
        self,
        image: PathLike,
        coarse_mask: PathLike,
        out: PathLike,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> Report:
        """Refine a mask in files of any size, window by window, and write it to ``out``.

        image, coarse_mask: TIFF or BigTIFF, best tiled; the mask may be smaller. out: a TIFF, written whole or not at
        all. What is done so far lies in a folder ``<out>.work`` beside it, from which the same call goes on after it
        was interrupted or killed; it is removed at the end. Needs disk space there for some 11 bytes per px, 19 where
        coarse scales are decoded in full, and 4 more for each further pass.

        Gives what `refine` gives for the same files. Raises as `refine` does, and `OptionError` where ``out`` is one of
        the inputs.
        """
        chosen = self._chosen(options)
        check_mask_stream(out)
        for path in (image, coarse_mask):
            if not isinstance(path, str | os.PathLike):
                raise OptionError(f"refine_file reads files by their paths, given was {shown(path)}; or use refine()")
            if os.path.exists(out) and os.path.exists(path) and os.path.samefile(path, out):
                raise OptionError(f"{os.fspath(out)}: is an input, {os.fspath(path)}; give another name")
        check_not_itself(image, coarse_mask)
        if chosen.guidance is not None:
            raise OptionError(
                f"guidance={chosen.guidance!r} needs the picture in memory; use refine(), or leave it out"
            )
        if chosen.keep_scales or chosen.decode == "bbox":
            given = "keep_scales" if chosen.keep_scales else "decode='bbox'"
            raise OptionError(f"{given} needs the mask whole in memory; use refine(), or leave it out")
        share_threads()
        with undisturbed(self.device), peak_memory(self.device) as peak, ExitStack() as stack:
            started = self._now()
            picture = stack.enter_context(Slide(image, white=chosen.white))
            mask = stack.enter_context(Slide(coarse_mask))
            plan = self.plan(picture.size, windowed=True, excess=picture.excess + mask.excess, **options)
            chosen = self._sized(chosen, picture.size)
            key = {
                "files": [identity(path) for path in (image, coarse_mask)],
                "options": chosen.as_dict(),
                "weights": [self.spec.model, self.weights_sha256, str(self.dtype)],
                "tile": plan.tile,
            }
            coarse = mask_plane(mask, picture.size)
            store = stack.enter_context(Workspace(f"{os.fspath(out)}.work", key))
            frame = Frame(picture, coarse, self.spec.cascade, self.device, store)
            prepared = self._now()
            outcome = self._cascade(frame, chosen, plan, progress)
            change = changed(frame.inside(frame.mask), frame.inside(outcome.last), store)
            last, pad, width = outcome.last, self.spec.cascade.pad, picture.size[1]

            def rows(top: int, bottom: int) -> NDArray[np.bool_]:
                band = Window(top, bottom, 0, width).moved(pad, pad)
                found = np.asarray(last.read(band) > 0.5)
                store.release()
                return found

            write_mask_stream(out, picture.size, rows, georeference=picture.georeference)
            store.remove()
            place = elsewhere(picture.georeference, mask.georeference)
            outcome.warnings[:0] = (*picture.warnings, *mask.warnings, *place)
            seconds = self._now() - started
        return self._report(frame, outcome, change, chosen, seconds, prepared - started, peak())

    def plan(self, size: tuple[int, int], *, windowed: bool = False, excess: int = 0, **options: Any) -> Plan:
        """How a picture of ``size`` (H, W) would be refined, and with how much memory; `refine.plan.plan`.

        windowed: as `refine_file` does it; excess: bytes of its files' large tiles or strips, of
        `refine.slides.Slide.excess`.
        """
        chosen, pad = self._chosen(options), self.spec.cascade.pad
        padded = (size[0] + 2 * pad, size[1] + 2 * pad)
        sizes = tuple(scaled(padded, scale) for scale in self.spec.cascade.at(*size, chosen.passes))
        seeing = self._seeing(chosen)
        return plan(
            self.network,
            size,
            sizes,
            chosen,
            self.dtype,
            pad=pad,
            windowed=windowed,
            excess=excess,
            guidance=seeing,
            emulated=is_emulated(self.dtype, self.device),
        )

    def _chosen(self, changes: dict[str, Any]) -> Options:
        """The options of a call, where None is the model's own choice; `_sized` adds what the picture decides."""
        options, cascade = self.options.but(**changes), self.spec.cascade
        guidance = options.guidance or self.spec.guidance or None
        if guidance != (self.spec.guidance or None) and (self.spec.guidance or guidance != UNTRAINED):
            model = self.spec.model
            wanted = self.spec.guidance or f"{UNTRAINED}, or make a refiner of {guided_model(model, guidance)}"
            raise OptionError(f"guidance={guidance!r} is not what {model} was trained with; give {wanted}")
        return options.but(
            guidance=guidance,
            decode=options.decode or cascade.decode,
            coarse_decode=options.coarse_decode or cascade.coarse_decode,
            guard=cascade.guard if options.guard is None else options.guard,
            passes=cascade.passes if options.passes is None else options.passes,
        )

    def _sized(self, options: Options, size: tuple[int, int]) -> Options:
        """The options for a picture of this size (H, W)."""
        return options if options.lean is not None else options.but(lean=self.spec.cascade.leaning(*size))

    def _guided(
        self,
        pair: Pair,
        options: Options,
        proposals: Proposals | ProposalSource | None,
        embedding: NDArray[np.float32] | Encoder | None,
    ) -> Guided:
        """What is refined instead of a pair; the pair itself without guidance, or with a mask that is empty."""
        name, other = ("proposals", proposals) if options.guidance in EMBEDDED else ("embedding", embedding)
        if other is not None:
            raise OptionError(f"{name} was given and means nothing with guidance={options.guidance!r}; leave it out")
        if options.guidance is None or not pair.mask.any():
            return Guided(Held(pair.image), Held(pair.mask), {})
        if options.guidance in EMBEDDED:
            features = self._source(options.proposals, options.sam_checkpoint) if embedding is None else embedding
            return by_embedding(pair.image, pair.mask, features, options)
        if proposals is None:
            proposals = self._source(options.proposals, options.sam_checkpoint)
        elif isinstance(proposals, Proposals):
            proposals.check_of(pair.mask.shape)
        elif not hasattr(proposals, "propose"):
            raise InputError(
                f"proposals={type(proposals).__name__} are neither refine.guidance.Proposals nor what finds them; give "
                "one of these, or a source by its name when the refiner is made"
            )
        if options.guidance == "sam-sr-v2.2":
            return by_points(pair.image, pair.mask, proposals, options)
        return by_proposals(pair.image, pair.mask, proposals, options)

    def _seeing(self, options: Options) -> int:
        """Bytes that Segment Anything takes to look at a picture, if it guides."""
        if options.guidance is None:
            return 0
        name, _ = source_and_options(options.proposals)
        if name == "sam":
            name = self._source(options.proposals, options.sam_checkpoint).name
        return PEAK.get(name, 0)

    def _check_seeing(self, pair: Pair, options: Options) -> None:
        """Raises `OptionError` where Segment Anything has to look at a picture and takes more than is allowed."""
        cap, needed = options.max_bytes, self._seeing(options)
        if cap is None or needed <= cap or not pair.mask.any():
            return
        features = options.guidance not in (UNTRAINED, "sam-sr-v2.1")
        if not self._source(options.proposals, options.sam_checkpoint).is_kept(pair.image, features=features):
            raise OptionError(
                f"max_memory of {cap / GIB:.2f} GiB is too little for Segment Anything to look at a picture: "
                f"{options.proposals} takes {needed / GIB:.2f} GiB; allow more, or have refine-cli proposals "
                f"{'--embeddings ' if features else ''}look at it beforehand, without a limit"
            )

    @property
    def guidance(self) -> str | None:
        """The version of SAM-SR that guides calls which name none."""
        return self._chosen({}).guidance

    def open_proposals(self) -> dict[str, Any] | None:
        """Open what the options say finds proposals, if they are guided by any, now rather than at the first picture.

        Returns all that the proposals depend on beside the picture, as JSON has it. Raises `OptionError` or
        `WeightsError` where it cannot be opened.
        """
        if self.guidance is None:
            return None
        return self._source(self.options.proposals, self.options.sam_checkpoint).settings()

    def _source(self, proposals: str, checkpoint: str | None) -> Cached:
        """The source of an option, opened once."""
        from refine.guidance.sources import kept_source  # of libraries that are slow to import

        key = (proposals, checkpoint, identity(checkpoint))
        if self._opened is None or self._opened[0] != key:
            # Apple's GPU lacks what Segment Anything's library computes with.
            device = "cpu" if self.device.type == "mps" else str(self.device)
            self._opened = key, kept_source(proposals, sam_checkpoint=checkpoint, device=device)
        return self._opened[1]

    def _cascade(self, frame: Frame, options: Options, plan: Plan, progress: Progress | None = None) -> _Outcome:
        outcome = _Outcome(frame.mask)
        scales = self.spec.cascade.at(*frame.original, options.passes)
        if frame.is_empty(frame.mask):
            outcome.warnings.append("the coarse mask is all background, and so is the result")
            outcome.end(frame, scales if options.keep_scales else ())
            return outcome
        sizes = [frame.scaled(scale) for scale in scales]
        guard = Guard(frame, sizes) if options.guard else None
        if guard is not None:
            scales, sizes = scales[guard.start :], sizes[guard.start :]
        between = set(sizes) - {sizes[0], sizes[-1]}
        tell = _Told(progress, replace(plan, scales=tuple(sizes)).tiles)
        for number, (scale, size, following) in enumerate(zip(scales, sizes, (*sizes[1:], None), strict=True)):
            grid = self._grid(frame, size, following, options)
            lean = float(options.lean or 0.0) if following is None else 0.0  # so that no scale adds to another's
            step = partial(self._scale, frame, number, scale, size, outcome.last, options, plan.tile, tell, lean=lean)
            p, report = step(grid)
            if grid.samples and frame.may_be_empty(p):  # too little is known to tell whether it is all empty
                grid = dense(self.network, frame.size, size)
                p, report = step(grid)
            if guard is not None:
                report = self._guarded(guard, p, report, f"{number}-{scale:g}", size, following, between, outcome)
            outcome.last = p if grid.samples is None else Interpolated(p, *(s.table for s in grid.samples))
            outcome.reports.append(report)
            if not grid.samples and frame.is_empty(p):
                if guard is None:
                    outcome.warnings.append(f"nothing of the mask was left at scale {scale:g}")
                    outcome.end(frame, scales[number:] if options.keep_scales else ())
                else:
                    outcome.warnings.append(
                        f"nothing of the mask was left at scale {scale:g}, so the coarse mask is given back as it was"
                    )
                    outcome.last = frame.mask
                break
            if guard is not None and between and number == 0:
                guard.compare(outcome.last)
            if options.keep_scales:
                outcome.kept[scale] = frame.cut(outcome.last)
        return outcome

    def _guarded(
        self,
        guard: Guard,
        p: Held,
        report: ScaleReport,
        name: str,
        size: tuple[int, int],
        following: tuple[int, int] | None,
        between: set[tuple[int, int]],
        outcome: _Outcome,
    ) -> ScaleReport:
        """Holds a scale's probabilities to the coarse mask; its report with what was given back."""
        if following is None:
            settled = guard.settle(p, size, name)
            outcome.warnings.extend(settled.warnings)
            return replace(report, taken_back=settled.taken_back, given_back=settled.given_back)
        taken_back = guard.doubt(p, name) if size in between else 0
        given_back = guard.unseen(p, size, name) if following != size else 0
        return replace(report, taken_back=taken_back, given_back=given_back)

    def _scale(
        self,
        frame: Frame,
        number: int,
        scale: float,
        size: tuple[int, int],
        current: Plane,
        options: Options,
        tile: int,
        tell: "_Told",
        grid: Grid,
        *,
        lean: float = 0.0,
    ) -> tuple[Held, ScaleReport]:
        """Probabilities at a grid of queries, from the ``current`` ones; step ``number`` of the cascade."""
        return_freed()
        view = View.of(frame, size, current, grid.rows, grid.columns)
        if frame.embedding is not None:
            view = with_deep(cast(DeepNetwork, self.network), view, dtype=self.dtype)
        store, counts = frame.store, _Counts()
        name = f"step-{number}-scale-{scale:g}-{grid.shape[0]}x{grid.shape[1]}"
        out = store.array(name, grid.shape, np.float32)
        boxes = None
        if options.decode == "bbox":
            boxes = bounding_boxes(view.before.read(Window(0, grid.shape[0], 0, grid.shape[1])) > 0.5, options.padding)
        for core in cover(*grid.shape, tile * grid.shape[0] // size[0], options.stride):
            step = f"{name} {core.top} {core.left}"
            if not store.done(step):
                seen = core.grown(margin(options), *grid.shape).aligned(options.stride, *grid.shape)
                here = None if boxes is None else boxes[seen.slices]
                before = view.before.read(seen)
                selection = select(before, options, first=number == 0, boxes=here, sure=self.spec.cascade.sure)
                # A strided pass needs the cells around the core, whose lines close its own.
                window = core.grown(options.stride if selection.stride else 0, *grid.shape)
                part = window.moved(-seen.top, -seen.left)
                before, selection = before[part.slices], selection.cut(part)
                if options.max_memory is not None:
                    return_freed()  # the last tile's, which may be of another size
                done = _Counts()
                self._decode(view, window, core, before, selection, options, tile, done, out[core.slices], lean)
                store.mark(step, out, record=asdict(done))
                counts.add(asdict(done))
            else:
                counts.add(store.record(step))
            tell()
        cells = math.prod(self.network.tap_sizes(*size)[0])
        times = counts.encode_seconds, counts.decode_seconds
        decoded = int(counts.decoded)
        kept = math.prod(grid.shape) - decoded
        return Held(out), ScaleReport(scale, size, *times, decoded, kept, min(1.0, counts.encoded / cells))

    def _decode(
        self,
        view: View,
        window: Window,
        core: Window,
        before: NDArray[np.float32],
        selection: Selection,
        options: Options,
        tile: int,
        counts: _Counts,
        out: NDArray[np.float32],
        lean: float,
    ) -> None:
        """Fills ``out``, probabilities of ``core``, with those before and the selected queries decoded.

        before: in a window around the core that holds what it needs; the selection is of that window.
        """
        network = self.network
        inner = core.moved(-window.top, -window.left)
        if not selection.everything:
            out[...] = before[inner.slices]
        if not selection.area.any():
            return
        started = self._now()
        rows, columns = (axis[part] for axis, part in zip((view.rows, view.columns), window.slices, strict=True))
        if selection.area.size <= SMALL or np.count_nonzero(selection.area) > MOST * selection.area.size:
            # The window in one piece, unless a wide stride makes it larger than what memory was planned for.
            side = tile + 2 * min(options.stride, network.window) + 4 * network.window
            latent, first = whole_latent(network, view, window, dtype=self.dtype, tile=side, patch=options.patch)
            cells = Blocks.around(latent, network.stride, first)
        else:
            cells = latent_at(network, view, window, selection.area, dtype=self.dtype)
        encoded = self._now()
        counts.encode_seconds += encoded - started
        counts.encoded += cells.computed
        guide = view.guide(window, before) if network.guided else None
        if selection.everything:
            out[...] = decode(network, cells, rows, columns, None, guide, lean=lean)[inner.slices]
            counts.decoded += out.size
        else:
            changed = np.zeros(before.shape, bool)
            for points in (lambda: selection.points, lambda: selection.rest(changed)):
                flat = np.flatnonzero(points())
                at = np.stack(np.divmod(flat, window.width), 1)
                p = decode(network, cells, rows, columns, at, guide, lean=lean)
                changed.reshape(-1)[flat] = selection.changed(before[tuple(at.T)], p)
                y, x = (at - (inner.top, inner.left)).T
                here = (y >= 0) & (y < core.height) & (x >= 0) & (x < core.width)
                out[y[here], x[here]] = p[here]
                counts.decoded += int(np.count_nonzero(here))
        counts.decode_seconds += self._now() - encoded

    def _grid(self, frame: Frame, size: tuple[int, int], following: tuple[int, int] | None, options: Options) -> Grid:
        """The queries of a scale of ``size``: those that the scale of size ``following`` reads, or all pixels."""
        if following is None:
            return dense(self.network, frame.size, size)
        if options.coarse_decode == "next":
            return at_next(self.network, frame.size, size, following)
        even = options.keep_scales or options.guard  # which read the grid as one of evenly spread queries
        if self.spec.cascade.resize == "corners" and options.decode == "dense" and not even:
            return read_by_next(self.network, frame.size, size, following)
        return dense(self.network, frame.size, size)

    def _report(
        self,
        frame: Frame,
        outcome: _Outcome,
        change: Change,
        options: Options,
        seconds: float,
        preparing: float,
        peak: int,
    ) -> Report:
        told = list(outcome.warnings)
        if outcome.reports and not change.parts:
            told.append(
                "nothing of the coarse mask is above 0.5, so that none of it is the object; if it is soft, of another "
                "range, divide it by its maximum"
            )
        return Report(
            model=self.spec.model,
            weights=self.weights_sha256,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            size=frame.original,
            prepare_seconds=preparing,
            scales=tuple(outcome.reports),
            seconds=seconds,
            peak_memory=peak,
            options=options.as_dict(),
            change=change,
            warnings=(*told, *change.warnings, *untold()),
        )

    def _now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


@dataclass
class _Told:
    """Counts tiles for who wants to know."""

    progress: Progress | None
    tiles: int
    done: int = 0

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.tiles), self.tiles)
