"""The command line. Torch and numpy are imported when there is something to refine, so that `--help` is instant."""

from __future__ import annotations

import json
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from importlib import metadata
from io import TextIOWrapper
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

import refine
from refine.config import is_guided, number
from refine.errors import OptionError, RefineError, WeightsError, is_out_of_memory, listed, shown
from refine.pairs import SAW, Found, Pair, check_not_itself, find_pairs, with_outputs
from refine.texts import plain

if TYPE_CHECKING:
    from refine import Refiner, Report
    from refine.methods import MethodRefiner
    from refine.plan import Plan
    from refine.precompute import Done

    AnyRefiner = Refiner | MethodRefiner

PROGRAM = "refine-cli"
MAIN = "(main)"  # the main job's name in the group; no file or command has it as a first word
UsageError: Any = typer.BadParameter.__base__  # click's own, or the copy that newer typers carry

SUMMARY = "Refine coarse masks: an image and its coarse mask in, a precise mask of the image's size out."
USAGE = ["[OPTIONS] IMAGE MASK [-o OUT]", "[OPTIONS] FOLDER [MASK_FOLDER] -o OUT_FOLDER", "COMMAND ..."]
EXAMPLES = [
    ("cat.jpg cat_coarse.png -o cat_fine.png", "one image"),
    ("images masks -o refined", "same names in two folders, sub-folders kept"),
    ("big -o refined", "one folder of *_im.jpg and *_seg.png"),
    ("'a/*.jpg' 'b/*.png' -o refined", "quoted globs"),
]


def main(arguments: list[str] | None = None) -> None:
    """`refine-cli`: exits with 0, 1 (a file failed, was left out), 2 (wrong usage or weights) or 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a file's name may be one that they cannot encode
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments or ["--help"], prog_name=PROGRAM, standalone_mode=False)
        code = code or (0 if arguments else 2)
    except UsageError as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        hint = " (quote globs: 'images/*.jpg')" if "unexpected extra argument" in message else ""
        _stderr(f"error: {message}{hint}; see {PROGRAM} --help")
        code = error.exit_code
    if code:
        sys.exit(code)


def _open_streams() -> None:
    """Gives a program that was started without a stream (``>&-``, services, pythonw) one that nobody reads.

    Else the first file that is opened would have the stream's number, and what is printed would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  until the end


class _Group(TyperGroup):
    """Takes the first word for a command if it is the name of one, else for the main job's IMAGE."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, word in zip(["", *args], args, strict=False):
            if not word or (word.startswith("--") and word.endswith("=")):
                option = word.rstrip("=") or (before if before.startswith("-") and before != "--" else "")
                given = f"the value of {option} is" if option else "a file's or folder's name is"
                raise UsageError(f"{given} empty; give a name, or leave the word out")
        return super().parse_args(ctx, self._routed(ctx, args))

    def _routed(self, ctx: Any, args: list[str]) -> list[str]:
        main_job = self.commands[MAIN]
        takes_value = {name for p in main_job.get_params(ctx) if not getattr(p, "is_flag", True) for name in p.opts}
        i = 0
        while i < len(args) and args[i].startswith("-") and args[i] not in ("-", "--"):
            i += 2 if _takes_next(args[i], takes_value) else 1
        if i < len(args) and args[i] in self.commands and args[i] != MAIN:
            return [args[i], *args[:i], *args[i + 1 :]]
        if i < len(args) and args[i].replace("-", "_").isidentifier() and not os.path.lexists(args[i]):
            names = [name for name in self.commands if name != MAIN]
            near = get_close_matches(args[i].lower(), names, n=1)
            meant = (
                f"did you mean the command {near[0]}" if near else f"quote globs; the commands are {', '.join(names)}"
            )
            bare = len(args) > i + 2 and not any(word.startswith("-") for word in args[i : i + 3])
            if near or bare:  # three words are no IMAGE and MASK
                raise UsageError(f"no such file, folder or command: {args[i]!r}; {meant}")
        return [MAIN, *args]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RefineError as error:
            _stderr(f"error: {_one_line(error)}")
            raise typer.Exit(2 if isinstance(error, OptionError | WeightsError) else 1) from error
        except (BrokenPipeError, UsageError, typer.Exit, typer.Abort):
            raise
        except OSError as error:
            _stderr(f"error: {_one_line(error)}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            _stderr("interrupted")
            raise typer.Exit(130) from interrupt
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _stderr("error: out of memory; close other programs, or give this one more")
            raise typer.Exit(1) from error


def _takes_next(word: str, takes_value: set[str]) -> bool:
    """Whether the option's value is the next word: `--model x`, `-o x` and `-qo x`, not `--model=x` or `-ox`."""
    names = [word] if word.startswith("--") else [f"-{letter}" for letter in word[1:]]
    return next((name is names[-1] for name in names if name in takes_value), False)


class _MainJob(TyperCommand):
    """The main job; its help is that of the whole program."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for i, usage in enumerate(USAGE):
            formatter.write_usage(PROGRAM, usage, prefix="Usage: " if i == 0 else "       ")
        formatter.write_paragraph()
        formatter.write_text(SUMMARY)
        with formatter.section("Examples"):
            formatter.write_dl([(f"{PROGRAM} {words}", meaning) for words, meaning in EXAMPLES], col_max=56)
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            panel = getattr(parameter, "rich_help_panel", None) or "Other"
            flag = getattr(parameter, "is_flag", True)
            names = ", ".join(parameter.opts) if parameter.param_type_name == "option" else ""
            value = "" if names and flag else parameter.metavar or ""
            panels.setdefault(panel, []).append((f"{names} {value}".strip(), getattr(parameter, "help", None) or ""))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)
        commands = ctx.parent.command.commands
        with formatter.section("Commands"):
            formatter.write_dl([(name, c.get_short_help_str(120)) for name, c in commands.items() if name != MAIN])


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(rich_markup_mode=None)


@app.callback()
def _all_commands() -> None:
    """Keep typer from taking one command for the program."""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {refine.__version__}")
        raise typer.Exit()


def _row(shown: str, meaning: str, *, panel: str | None = None, **more: Any) -> Any:
    """A parameter by its row in the help: "-o, --out OUT" takes a value, "-q, --quiet" none, "IMAGE" is an argument."""
    words = shown.replace(",", "").split()
    names = [word for word in words if word.startswith("-")]
    metavar = " ".join(words[len(names) :]) or None
    kind: Any = typer.Option if names else typer.Argument
    return kind(*names, metavar=metavar, help=meaning, rich_help_panel=panel, **more)


_input, _output, _method, _machine = (partial(_row, panel=panel) for panel in ("Input", "Output", "Method", "Machine"))
_model = _method(
    "--model NAME",
    "Network: crm-s (the default) or crm-r50; or a method: guided-filter, grabcut, random-walker, bilinear, coarse "
    "(the mask as it is), or cascade-psp, which needs --weights.",
)
_dtype = _machine("--dtype NAME", "auto (the default), float32, bfloat16 or float16.")
_decode = _method(
    "--decode WHICH",
    "Pixels to decode: dense, bbox, contour or strided; the others keep their value. Default: the model's.",
)
Model = Annotated[str | None, _model]
Models = Annotated[list[str] | None, _model]
Dtype = Annotated[str | None, _dtype]
Dtypes = Annotated[list[str] | None, _dtype]
Decode = Annotated[str | None, _decode]
Decodes = Annotated[list[str] | None, _decode]
Set = Annotated[
    list[str] | None,
    _method(
        "--set NAME=NUMBER",
        "An option of a method or of guidance, as in radius=0.02 or fast=1; give it again for more.",
    ),
]
Device = Annotated[str | None, _machine("--device NAME", "auto (the default), cpu, cuda, cuda:1 or mps.")]
Weights = Annotated[Path | None, _method("--weights FILE", "Weights to use: .safetensors, or a published .pth.")]
Tile = Annotated[int | None, _method("--tile PIXELS", "Side of the tiles; smaller ones need less memory.")]
CoarseDecode = Annotated[
    str | None,
    _method(
        "--coarse-decode WHERE",
        "Decode coarse scales at all pixels (full) or where the next reads (next). Default: the model's.",
    ),
]
Stride = Annotated[
    int | None,
    _method(
        "--stride PIXELS",
        "Decode every N-th pixel, then those where something changed. A stride of decoding, not of crops.",
    ),
]
FirstPass = Annotated[
    str | None,
    _method(
        "--first-pass WHERE", "Where a strided pass looks: near the contour and where unsure (near), or everywhere."
    ),
]
Band = Annotated[int | None, _method("--band PIXELS", "Width of the band on either side of the contour.")]
Padding = Annotated[int | None, _method("--padding PIXELS", "Margin of bounding boxes.")]
MaxMemory = Annotated[
    str | None,
    _machine(
        "--max-memory BYTES",
        "Most memory to take, as in 2GiB; a TIFF that does not fit is refined by windows into a TIFF (-o NAME.tif).",
    ),
]
_GUIDED = "Segment Anything beside the mask: sam-sr-v1 with any network; sam-sr-v2.1 to v3.4 with weights of their own"
Guidance = Annotated[str | None, _method("--guidance VERSION", f"{_GUIDED}.")]
Guidances = Annotated[list[str] | None, _method("--guidance VERSION", f"{_GUIDED}; none is without.")]
Source = Annotated[
    str | None,
    _method(
        "--proposals SOURCE",
        "What finds proposals: sam-vit-b (the default), sam-vit-l or sam-vit-h; without weights, felzenszwalb or slic.",
    ),
]
SamCheckpoint = Annotated[
    str | None, _method("--sam-checkpoint FILE", "Segment Anything's weights, instead of downloaded ones.")
]
NoGuard = Annotated[
    bool,
    _method("--no-guard", "Do not hold the result to the coarse mask: keep strays, lose narrow parts."),
]
Lean = Annotated[
    float | None,
    _method(
        "--lean NUMBER",
        "0 (the default): contours at even odds; above, fuller masks, below, tighter ones.",
    ),
]
Passes = Annotated[
    int | None,
    _method("--passes N", "Runs of the last scale; more follow edges closer and take longer. Default: the model's."),
]
White = Annotated[
    float | None,
    _input("--white NUMBER", "The image's value that is white, as 4095 of 12 bits in 16. Default: its type's highest."),
]
Json = Annotated[bool, _output("--json", "Print JSON.")]


@app.command(MAIN, cls=_MainJob, hidden=True)
def _refine(
    image: Annotated[str, _input("IMAGE", "A picture, a folder or a quoted glob.")],
    mask: Annotated[
        str | None,
        _input("MASK", "Its coarse mask, of the image's size or smaller; a folder or glob where IMAGE is one."),
    ] = None,
    white: White = None,
    allow_large: Annotated[bool, _input("--allow-large", "Read pictures beyond 250 megapixels.")] = False,
    out: Annotated[
        Path | None,
        _output("-o, --out OUT", "The refined mask, or the folder for many. Default: NAME_mask.png beside the mask."),
    ] = None,
    overlay: Annotated[
        Path | None, _output("--overlay PICTURE", "Also write the mask drawn over the image; many: a folder.")
    ] = None,
    probability: Annotated[
        Path | None,
        _output("--probability PICTURE", "Also write the probability (.png, .tif or .npy); many: a folder."),
    ] = None,
    skip_existing: Annotated[bool, _output("--skip-existing", "Leave out what is already refined; go on.")] = False,
    as_json: Annotated[
        bool, _output("--json", "Print one line of JSON per image, and of what is left out; nothing else.")
    ] = False,
    quiet: Annotated[bool, _output("-q, --quiet", "Print errors only, no progress bar.")] = False,
    model: Model = None,
    weights: Weights = None,
    changes: Set = None,
    tile: Tile = None,
    device: Device = None,
    dtype: Dtype = None,
    max_memory: MaxMemory = None,
    decode: Decode = None,
    stride: Stride = None,
    first_pass: FirstPass = None,
    band: Band = None,
    padding: Padding = None,
    coarse_decode: CoarseDecode = None,
    no_guard: NoGuard = False,
    lean: Lean = None,
    passes: Passes = None,
    guidance: Guidance = None,
    proposals: Source = None,
    sam_checkpoint: SamCheckpoint = None,
    debug_dir: Annotated[
        Path | None, _output("--debug-dir FOLDER", "Also write pictures of what guidance saw, NAME_saw_*.png.")
    ] = None,
    dry_run: Annotated[bool, _row("--dry-run", "Print how each picture would be refined; do nothing.")] = False,
    version: Annotated[bool, _row("--version", "Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    from refine.io import IMAGE_SUFFIXES, MASK_SUFFIXES, check_folder

    exclude = [path for path in (out, overlay, probability, debug_dir) if path is not None]
    found = find_pairs(image, mask, image_suffixes=IMAGE_SUFFIXES, mask_suffixes=MASK_SUFFIXES, exclude=exclude)
    found = with_outputs(found, out, overlay=overlay, probability=probability, debug=debug_dir)
    talk = _Talk(as_json, quiet)
    _tell_of_rest(found, talk)
    options = _given(
        changes,
        model=model,
        weights=weights,
        device=device,
        dtype=dtype,
        tile=tile,
        max_memory=max_memory,
        allow_large=allow_large or None,
        white=white,
        decode=decode,
        stride=stride,
        first_pass=first_pass,
        band=band,
        padding=padding,
        coarse_decode=coarse_decode,
        guard=False if no_guard else None,
        lean=lean,
        passes=passes,
        guidance=guidance,
        proposals=proposals,
        sam_checkpoint=sam_checkpoint,
        debug_dir=debug_dir,
    )
    if options.pop("debug_dir", None) is not None:
        options["keep_guidance"] = True
    todo: list[Pair] = []
    there: list[Pair] = []
    for pair in found.pairs:
        (there if skip_existing and all(map(_is_there, pair.outputs)) else todo).append(pair)
    # What is wrong with a single pair is told without waiting for the weights.
    for path in (path for pair in todo if not found.many for path in (pair.image, pair.mask)):
        try:
            path.stat()
        except OSError as error:
            what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            talk.failed(todo[0].image, f"{what}: {str(path)!r}", pair=todo[0])
            raise typer.Exit(1) from error
    if todo and not found.many:
        try:
            check_not_itself(todo[0].image, todo[0].mask)
        except RefineError as error:
            talk.failed(todo[0].image, _one_line(error), pair=todo[0])
            raise typer.Exit(1) from error
    for image_path, reason in found.ambiguous:
        talk.failed(image_path, reason)
    if dry_run:
        failed = _print_plans(_refiner(options), todo, talk) + len(found.ambiguous)
        raise typer.Exit(1 if failed or found.left_out else 0)
    folders = {path.parent for pair in todo for path in pair.outputs}
    for folder in sorted(folders if debug_dir is None else {*folders, debug_dir}):
        check_folder(folder)
    for pair in there:
        talk.skipped(pair)
    done = 0
    if todo:
        refiner = _refiner(options)
        if is_guided(model, options.get("guidance")):
            cast("Refiner", refiner).open_proposals()  # what is missing is told once, not for every picture
        done = _refine_all(refiner, todo, many=found.many, talk=talk, debug=debug_dir)
    failed = len(found.ambiguous) + len(todo) - done
    if found.many:
        rest = f", {len(found.left_out)} left out" if found.left_out else ""
        talk.note(f"{done} refined, {len(there)} skipped, {failed} failed{rest}")
    if failed or found.left_out:
        raise typer.Exit(1)


def _print_plans(refiner: AnyRefiner, pairs: list[Pair], talk: _Talk) -> int:
    """Prints how each pair would be refined; gives how many cannot be."""
    from refine.methods import MethodRefiner

    if isinstance(refiner, MethodRefiner):
        raise OptionError(f"--dry-run shows a network's tiles, and {refiner.model} has none; leave it out")
    failed = 0
    for pair in pairs:
        try:
            check_not_itself(pair.image, pair.mask)
            talk.planned(pair, _plan(refiner, pair))
        except (RefineError, OSError) as error:
            failed += 1
            talk.failed(pair.image, _one_line(error), pair=pair)
    return failed


def _plan(refiner: Refiner, pair: Pair) -> Plan:
    """How a pair would be refined, if it can be."""
    if _by_windows(refiner, pair):
        from refine.slides import Slide

        with Slide(pair.image) as image, Slide(pair.mask) as mask:
            return refiner.plan(image.size, windowed=True, excess=image.excess + mask.excess)
    from refine.io import read_size

    return refiner.plan(read_size(pair.image, allow_large=refiner.options.allow_large))


def _by_windows(refiner: Refiner, pair: Pair) -> bool:
    """Whether a pair of TIFF files is too large to be refined in memory."""
    if not {pair.image.suffix.lower(), pair.mask.suffix.lower(), pair.output.suffix.lower()} <= _TIFF:
        return False
    from refine.io import MAX_PIXELS, read_size

    size = read_size(pair.image, allow_large=True)
    if size[0] * size[1] > MAX_PIXELS and not refiner.options.allow_large:
        return True
    try:
        refiner.plan(size)
    except OptionError:
        return True
    return False


_TIFF = {".tif", ".tiff"}


_POLICIES = {"stride": ("strided",), "first_pass": ("strided",), "band": ("strided", "contour"), "padding": ("bbox",)}

_OF_GUIDANCE = ("debug_dir", "proposals", "sam_checkpoint")
_OF_VERSIONS = {
    "coverage": ("sam-sr-v1",),
    "sparsity": ("sam-sr-v1",),
    "deformation": ("sam-sr-v1",),
    "groups": ("sam-sr-v2.2",),
    "seed": ("sam-sr-v2.1", "sam-sr-v2.2"),
}


def _given(changes: list[str] | None, /, **options: Any) -> dict[str, Any]:
    """The refiner's options that the command line gives, ``changes`` by `--set`; the others keep its defaults.

    A stride alone asks for strided decoding, a padding for bounding boxes. Raises `OptionError` for an option of
    another policy or version of guidance than the one chosen, and for what `--set` cannot be.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for change in changes or []:
        name, _, value = (word.strip() for word in change.partition("="))
        if name in {*options, "model", "weights", "device", "dtype"}:
            raise OptionError(f"--set {change!r}: {name} has an option of its own; see {PROGRAM} --help")
        given[name] = _number(change, value, "radius=0.02")
    if given.keys() & {"stride", "first_pass"}:
        given.setdefault("decode", "strided")
    if "padding" in given:
        given.setdefault("decode", "bbox")
    if "decode" in given:
        _check_policy(given, given["decode"])
    model, guidance = given.get("model", ""), given.get("guidance")
    if not is_guided(model, guidance):
        for name in (*_OF_GUIDANCE, *_OF_VERSIONS):
            if name in given:
                option = f"--set {name}" if name not in options else f"--{name.replace('_', '-')}"
                raise OptionError(f"{option} belongs to guidance, and there is none; give --guidance VERSION")
        return given
    version = guidance or f"sam-sr-{model.partition('+')[2]}"
    for name, versions in _OF_VERSIONS.items():
        if name in given and version not in versions:
            raise OptionError(f"--set {name} means nothing with {version}; it belongs to {' and '.join(versions)}")
    return given


def _check_policy(given: dict[str, Any], decode: str) -> None:
    """Raises `OptionError` for an option of another policy than ``decode``."""
    for name, policies in _POLICIES.items():
        if name in given and decode not in policies:
            option, accepted = name.replace("_", "-"), " and ".join(policies)
            raise OptionError(f"--{option} means nothing with --decode {decode}; it belongs to {accepted}")


def _refiner(options: dict[str, Any]) -> AnyRefiner:
    """The refiner of options, of which a band alone leaves the policy to the model."""
    refiner = refine.refiner(**options)
    if "band" in options and "decode" not in options:
        _check_policy(options, cast("Refiner", refiner).spec.cascade.decode)
    return refiner


def _number(change: str, value: str, example: str) -> float:
    """The value of a change by `--set`."""
    try:
        return number(value)
    except ValueError as error:
        raise OptionError(f"--set {shown(change)} is not possible; give NAME=NUMBER, as in {example}") from error


def _several(words: list[str] | None) -> list[str]:
    """Values that are parted by commas, or given again."""
    return [value.strip() for word in words or [] for value in word.split(",")]


def _choices(
    models: list[str],
    guidances: Sequence[str | None],
    decodes: Sequence[str | None],
    dtypes: Sequence[str | None],
    changes: list[str] | None,
    *,
    weights: Path | None,
    device: str | None,
    **options: Any,
) -> list[dict[str, Any]]:
    """What each refiner of a grid is made with: every model with every guidance, policy and type.

    Options of guidance go to those that are guided; "none" is no guidance. Beside a network a method without weights
    takes `--set` alone; an option of one policy goes to those it belongs to.
    """
    from refine.methods import METHODS

    networks = [model for model in models if model not in METHODS]
    if weights is not None and len(networks) > 1:
        raise OptionError(f"--weights belong to one network, and here are {', '.join(networks)}; give one")
    mixed = 0 < len(networks) < len(models)
    choices = []
    for model in models:
        if mixed and model in METHODS:
            choices.append({"model": model, **_given(changes)})
            continue
        for guidance, decode, dtype in product(guidances, decodes, dtypes):
            others = {
                name
                for name, policies in _POLICIES.items()
                if decode not in policies and any(other in policies for other in decodes)
            }
            if not is_guided(model, guidance) and any(is_guided(m, g) for m, g in product(models, guidances)):
                others |= set(_OF_GUIDANCE)
            mine = {name: value for name, value in options.items() if name not in others}
            mine |= {"guidance": None if guidance == "none" else guidance, "decode": decode, "dtype": dtype}
            choices.append(_given(None if mixed else changes, model=model, weights=weights, device=device, **mine))
    return choices


def _refine_all(refiner: AnyRefiner, pairs: list[Pair], *, many: bool, talk: _Talk, debug: Path | None = None) -> int:
    """How many of the pairs were refined; the others are reported."""
    from tqdm import tqdm

    done = 0
    show = len(pairs) > 1 and not talk.quiet and sys.stderr.isatty()
    try:
        for pair in tqdm(pairs, disable=not show, unit="image", dynamic_ncols=True):
            try:
                report = _refine_one(refiner, pair, show=not talk.quiet and sys.stderr.isatty(), debug=debug)
            except Exception as error:
                reason = _reason(error)
                if reason is None and not many:
                    raise
                unexpected = f"unexpected {type(error).__name__}: {_one_line(error)}; refine it alone for the traceback"
                talk.failed(pair.image, reason or unexpected, pair=pair)
            else:
                done += 1
                talk.done(pair, report)
    except KeyboardInterrupt as interrupt:
        rest = "; --skip-existing goes on from here" if many else ""
        talk.error(f"interrupted: {done} of {len(pairs)} refined{rest}")
        raise typer.Exit(130) from interrupt
    return done


def _refine_one(refiner: AnyRefiner, pair: Pair, *, show: bool, debug: Path | None) -> Report:
    from refine.methods import MethodRefiner

    if not isinstance(refiner, MethodRefiner) and _by_windows(refiner, pair):
        return _refine_by_windows(refiner, pair, show=show)
    refined = refiner.refine(pair.image, pair.mask)
    # The mask comes last: where it is, all that was asked for is.
    shown = {} if pair.overlay is None else {pair.overlay: refined.overlay(pair.image)}
    if debug is not None:
        shown |= {debug / f"{pair.name}{SAW}{name}.png": picture for name, picture in refined.guidance.items()}
    if shown:
        from refine.io import write_image

        for path, picture in shown.items():
            write_image(path, picture)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if pair.probability is not None:
            refined.save_probability(pair.probability)
        refined.save(pair.output)
    report = refined.report
    return replace(report, warnings=(*report.warnings, *(str(one.message) for one in told))) if told else report


def _refine_by_windows(refiner: Refiner, pair: Pair, *, show: bool) -> Report:
    from tqdm import tqdm

    if pair.overlay is not None or pair.probability is not None:
        raise OptionError("--overlay and --probability need the picture in memory; allow more, or leave them out")
    with tqdm(disable=not show, unit="tile", dynamic_ncols=True, desc=plain(pair.image.name), leave=False) as bar:

        def progress(done: int, tiles: int) -> None:
            bar.total = tiles
            bar.update(done - bar.n)

        return refiner.refine_file(pair.image, pair.mask, pair.output, progress=progress)


def _reason(error: Exception) -> str | None:
    """What a user can do something about, in one line; None for our own mistakes."""
    if is_out_of_memory(error):
        return "out of memory; --max-memory plans tiles that stay below it, --dtype bfloat16 or --device cpu needs less"
    return _one_line(error) if isinstance(error, RefineError | OSError) else None


def _is_there(path: Path) -> bool:
    """Whether an output exists; an empty file is what a full disk or another program left."""
    return os.path.isfile(path) and os.path.getsize(path) > 0


def _tell_of_rest(found: Found, talk: _Talk) -> None:
    """Names what is not refined: pictures of names that are not searched as errors, what belongs to no pair."""
    for path, reason in found.left_out:
        talk.left_out(reason, image=path)
    if found.left_out:
        count, names = len(found.left_out), listed([f"{path} ({reason})" for path, reason in found.left_out])
        talk.error(f"{count} picture{'s' if count > 1 else ''} left out: {names}; rename or convert what you mean")
    for paths, text in ((found.images_alone, "without a mask"), (found.masks_alone, "without an image")):
        noun = "image" if paths is found.images_alone else "mask"
        for path in paths:
            talk.left_out(text, **{noun: path})
        if paths:
            talk.warning(f"{len(paths)} {noun}{'s' if len(paths) > 1 else ''} {text} left out: {listed(paths)}")
    if found.others:
        names = listed(found.others, 3)
        talk.left_out("files of other kinds", files=len(found.others), names=found.others[:3])
        talk.note(f"{len(found.others)} other file{'s' if len(found.others) > 1 else ''} left alone: {names}")


class _Talk:
    """What is said where: results on stdout, all else on stderr; as JSON, or hardly anything where quiet."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet

    def planned(self, pair: Pair, plan: Plan) -> None:
        self._result(f"{pair.image}: {plan}", "planned", pair.image, pair, plan=plan.as_dict())

    def done(self, pair: Pair, report: Report) -> None:
        for warning in report.warnings:
            self.warning(f"{pair.image}: {warning}")
        self._result(
            f"{pair.output}  ({report.seconds:.1f} s, {report.device})",
            "done",
            pair.image,
            pair,
            report=report.as_dict(),
        )

    def found(self, done: Done) -> None:
        how = "kept" if done.kept else f"{done.seconds:.1f} s"
        status = "kept" if done.kept else "done"
        what = "features" if done.proposals is None else f"{done.proposals} proposals"
        count = {} if done.proposals is None else {"proposals": done.proposals}
        text = f"{done.picture}  ({what}, {how})"
        self._result(text, status, done.picture, None, **count, seconds=done.seconds)

    def skipped(self, pair: Pair) -> None:
        self._result(f"{pair.output}  (skipped: already there)", "skipped", pair.image, pair)

    def left_out(self, reason: str, **what: Any) -> None:
        if self.as_json:
            self._write(_json({"status": "left out", **what, "reason": reason}), sys.stdout)

    def failed(self, image: Path, reason: str, *, pair: Pair | None = None) -> None:
        self.error(reason if str(image) in reason else f"{image}: {reason}")
        if self.as_json:
            self._result("", "failed", image, pair, error=reason)

    def error(self, text: str) -> None:
        self._write(f"error: {text}", sys.stderr)

    def warning(self, text: str) -> None:
        self.note(f"warning: {text}")

    def note(self, text: str) -> None:
        if not self.quiet:
            self._write(text, sys.stderr)

    def _result(self, text: str, status: str, image: Path, pair: Pair | None, **more: Any) -> None:
        if self.as_json:
            files = {} if pair is None else {"mask": pair.mask, "output": pair.output}
            for name in ("overlay", "probability"):
                if pair is not None and getattr(pair, name) is not None:
                    files[name] = getattr(pair, name)
            self._write(_json({"status": status, "image": image, **files, **more}), sys.stdout)
        elif not self.quiet:
            self._write(text, sys.stdout)

    def _write(self, text: str, file: Any) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(plain(text), file=file)  # leaves a running progress bar whole
            file.flush()
        except BrokenPipeError:  # nobody reads any more, as behind `head`; the masks are wanted all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


@weights_app.callback()
def _weights() -> None:
    """List the weights that come with refine, import a published checkpoint, or get others that are published."""


@weights_app.command("list")
def _weights_list(as_json: Json = False) -> None:
    """List the weights that come with refine, and those that `weights get` downloads: name, model, size, licence."""
    from refine.checkpoint import manifest
    from refine.download import PUBLISHED

    entries = [
        {name: getattr(entry, name) for name in ("name", "model", "path", "bytes", "sha256", "licence", "data")}
        | {"there": "ships"}
        for entry in manifest()
    ]
    entries += [
        {name: getattr(published, name) for name in ("path", "bytes", "sha256", "licence", "url")}
        | {"name": name, "model": "segment-anything", "there": published.there}
        for name, published in PUBLISHED.items()
    ]
    if as_json:
        print(_json(entries))
        return
    rows = [("NAME", "MODEL", "SIZE", "SHA256", "THERE", "LICENCE")]
    rows += [
        (e["name"], e["model"], f"{e['bytes'] / 1e6:.1f} MB", e["sha256"][:12], e["there"], e["licence"])
        for e in entries
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]))


@weights_app.command("import")
def _weights_import(
    file: Annotated[Path, _row("FILE", "A published checkpoint (.pth).")],
    out: Annotated[Path | None, _row("-o, --out OUT", "Default: FILE with .safetensors.")] = None,
    model: Annotated[str, _row("--model NAME", "The network it belongs to.")] = "crm-r50",
) -> None:
    """Convert a published checkpoint (.pth) to safetensors."""
    if not file.is_file():
        raise WeightsError(f"{file}: is no file; give a published checkpoint (.pth)")
    destination = file.with_suffix(".safetensors") if out is None else out
    if os.path.exists(destination) and os.path.samefile(file, destination):
        raise OptionError(f"the output {str(destination)!r} would replace the checkpoint; choose another one with -o")
    from refine.io import check_folder

    check_folder(destination.parent)
    from refine.loading import import_published

    import_published(file, destination, model=model)
    print(destination)


@weights_app.command("get")
def _weights_get(
    name: Annotated[str, _row("NAME", "sam-vit-b (375 MB), sam-vit-l (1.2 GB) or sam-vit-h (2.6 GB).")],
    quiet: Annotated[bool, _row("-q, --quiet", "Print errors and the file's name only.")] = False,
) -> None:
    """Download published weights to the cache folder (REFINE_CACHE), checked by SHA-256, unless they are there."""
    from refine.download import fetch

    print(fetch(name, quiet=quiet or not sys.stderr.isatty()))


app.add_typer(weights_app, name="weights")


@app.command("proposals")
def _proposals(
    folder: Annotated[Path, _row("DIR", "Pictures; where some are named *_im, only those.")],
    source: Annotated[str, _row("--source NAME", "sam-vit-b, sam-vit-l, sam-vit-h, sam, felzenszwalb or slic.")],
    sam_checkpoint: Annotated[
        Path | None, _row("--sam-checkpoint FILE", "SAM's weights. Default: those of refine-cli weights get.")
    ] = None,
    out: Annotated[Path | None, _row("-o, --out OUT", "Cache folder. Default: REFINE_CACHE, or the system's.")] = None,
    changes: Annotated[
        list[str] | None, _row("--set NAME=NUMBER", "An option of the source, as in points_per_side=16.")
    ] = None,
    device: Annotated[str, _row("--device NAME", "Where SAM runs: auto, cpu, cuda or cuda:1.")] = "auto",
    embeddings: Annotated[
        bool, _row("--embeddings", "Features of SAM's encoder, which v2.2 and v3 read, instead of proposals.")
    ] = False,
    white: White = None,
    allow_large: Annotated[bool, _row("--allow-large", "Read pictures beyond 250 megapixels.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, _row("-q, --quiet", "Print errors only, no progress bar.")] = False,
) -> None:
    """Find the proposals of every picture of a folder and keep them; what is kept already is not found again."""
    from tqdm import tqdm

    from refine.precompute import Precompute

    options = {}
    for change in changes or []:
        name, _, value = (word.strip() for word in change.partition("="))
        options[name] = _number(change, value, "points_per_side=16")
    work = Precompute.of(
        folder,
        source,
        sam_checkpoint=sam_checkpoint,
        out=out,
        device=device,
        options=options,
        allow_large=allow_large,
        white=white,
        embeddings=embeddings,
    )
    talk = _Talk(as_json, quiet)
    failed = kept = 0
    show = not quiet and sys.stderr.isatty()
    for done in tqdm(work.run(), total=len(work.paths), disable=not show, unit="image", dynamic_ncols=True):
        kept += done.kept
        if done.error is None:
            talk.found(done)
        else:
            failed += 1
            talk.failed(done.picture, _one_line(done.error))
    talk.note(f"{len(work.paths) - failed - kept} found, {kept} kept already, {failed} failed; in {work.cache.folder}")
    if failed:
        raise typer.Exit(1)


@app.command("evaluate")
def _evaluate(
    data: Annotated[
        list[Path] | None, _row("FOLDER...", "Sets, or folders of sets: *_im.*, *_gt.png, *_seg.png.")
    ] = None,
    coarse: Annotated[
        list[Path] | None,
        _input("--coarse FOLDER", "Coarse masks of the one FOLDER's pictures, a set; give it again for more sets."),
    ] = None,
    masks: Annotated[
        list[Path] | None,
        _input(
            "--masks FOLDER",
            "Score masks of CascadePSP (*_mask.png), CRM (<scale>_*_mask.png) or SegRefiner (*_refine.png) as they "
            "are, in it or in sub-folders called like the sets; give it again for more.",
        ),
    ] = None,
    limit: Annotated[
        int | None, _input("--limit NUMBER", "Pictures of a set, the first by name. Default: all.")
    ] = None,
    white: White = None,
    out: Annotated[
        Path | None, _output("-o, --out FOLDER", "Write a report there, and go on where a run was stopped.")
    ] = None,
    table: Annotated[
        str | None, _output("--table NAME", "One of the thesis' tables, thesis-4.1 to thesis-4.6, anew; needs BIG.")
    ] = None,
    guided_weights: Annotated[
        list[Path] | None,
        _method(
            "--guided-weights FILE",
            "With --table: weights of a row that SAM-SR v2 or v3 guides, which is a network of its own and named in "
            "the file; give it again for more.",
        ),
    ] = None,
    model: Models = None,
    weights: Weights = None,
    changes: Set = None,
    tile: Tile = None,
    device: Device = None,
    dtype: Dtypes = None,
    max_memory: Annotated[str | None, _machine("--max-memory BYTES", "Most memory to take, as in 2GiB.")] = None,
    decode: Decodes = None,
    stride: Stride = None,
    first_pass: FirstPass = None,
    band: Band = None,
    padding: Padding = None,
    coarse_decode: CoarseDecode = None,
    no_guard: NoGuard = False,
    lean: Lean = None,
    passes: Passes = None,
    guidance: Guidances = None,
    proposals: Source = None,
    sam_checkpoint: SamCheckpoint = None,
) -> None:
    """Score refined masks against ground truth: IoU and mBA per set, and a report.

    --model, --guidance, --decode and --dtype take several values, parted by commas: every combination is measured.
    """
    from refine.evaluation import evaluate_command

    models, guidances, decodes, dtypes = (_several(words) for words in (model, guidance, decode, dtype))
    if table is not None and (decodes or guidances or masks or len(models) > 1 or len(dtypes) > 1):
        raise OptionError(
            "--table has its own rows; leave out --decode, --guidance, --masks and further models and types"
        )
    given: dict[str, Any] = {
        "weights": weights,
        "device": device,
        "tile": tile,
        "max_memory": max_memory,
        "stride": stride,
        "first_pass": first_pass,
        "band": band,
        "padding": padding,
        "coarse_decode": coarse_decode,
        "guard": False if no_guard else None,
        "lean": lean,
        "passes": passes,
        "proposals": proposals,
        "sam_checkpoint": sam_checkpoint,
    }
    wanted = guidances or decodes or dtypes or changes or any(value is not None for value in given.values())
    if not models and (wanted or not masks):  # masks by others need no model beside them
        models = ["crm-s" if table is None else "crm-r50"]
    choices = _choices(
        models,
        guidances or [None],
        decodes or [None],
        dtypes or [None if table is None else "float32"],
        changes,
        **given,
    )
    try:
        measured = evaluate_command(
            data or [],
            choices,
            coarse=coarse or [],
            masks=masks or [],
            table=table,
            guided_weights=guided_weights or [],
            limit=limit,
            white=white,
            out=out,
        )
    except KeyboardInterrupt as interrupt:
        _stderr("interrupted" + ("; the same command goes on from here" if out is not None else ""))
        raise typer.Exit(130) from interrupt
    if measured.failures:
        raise typer.Exit(1)


@app.command("train")
def _train(
    out: Annotated[Path, _row("-o, --out RUN", "Folder of the run; where it holds one, that goes on.")],
    data: Annotated[
        list[Path] | None, _row("--data DIR", "Folder of pictures with their truths; give it again for more.")
    ] = None,
    recipe: Annotated[
        str | None,
        _row("--recipe NAME|FILE", "Fields of the run: crm-s, crm-r50, crm-paper (as published), ..., or a TOML file."),
    ] = None,
    root: Annotated[
        Path, _row("--root FOLDER", "Where a recipe's relative paths lie. Default: here.", show_default=False)
    ] = Path(),
    model: Annotated[str | None, _row("--model NAME", "Network: crm-s or crm-r50. Default: the recipe's.")] = None,
    initial: Annotated[Path | None, _row("--initial FILE", "Weights to start from. Default: the recipe's.")] = None,
    proposals: Annotated[
        str | None,
        _row("--proposals SOURCE", "What guides a model such as crm-s+v2.1, e.g. sam-vit-b; v3 reads its features."),
    ] = None,
    sam_checkpoint: SamCheckpoint = None,
    loss: Annotated[str | None, _row("--loss TERMS", 'Weighted terms, as in "bce + 0.5*l1".')] = None,
    steps: Annotated[int | None, _row("--steps NUMBER", "Steps in all.")] = None,
    batch: Annotated[int | None, _row("--batch NUMBER", "Crops of a step.")] = None,
    seed: Annotated[int | None, _row("--seed NUMBER", "Of all that is drawn.")] = None,
    changes: Annotated[
        list[str] | None, _row("--set FIELD=VALUE", "Any other field of a recipe, in TOML; give it again for more.")
    ] = None,
    validate: Annotated[
        list[Path] | None,
        _row("--validate DIR", "Held-out set of *_im.*, *_gt.png, *_seg.png, or folder of sets; may be repeated."),
    ] = None,
    validate_every: Annotated[
        str | None,
        _row("--validate-every WHEN", "Steps, as in 500, or minutes, as in 30min (the default); and at the end."),
    ] = None,
    validate_limit: Annotated[
        int | None, _row("--validate-limit NUMBER", "Pictures of a set, the first by name. Default: all.")
    ] = None,
    terms: Annotated[Path | None, _row("--terms FILE", "The data's terms, a text for the model card.")] = None,
    device: Device = None,
    dtype: Annotated[
        str | None,
        _row("--dtype NAME", "Products in auto (the default), float32, bfloat16, or on CUDA float16."),
    ] = None,
    workers: Annotated[int, _row("--workers NUMBER", "Processes that prepare crops.")] = 1,
    threads: Annotated[int | None, _row("--threads NUMBER", "Threads of this process. Default: all cores.")] = None,
    tensorboard: Annotated[bool, _row("--tensorboard", "Also write TensorBoard's events.")] = False,
    quiet: Annotated[bool, _row("-q, --quiet", "Print errors and the weights' name only.")] = False,
) -> None:
    """Train a network on folders of pictures with their truths; goes on where an earlier call was stopped."""
    from refine.training.command import train_command

    given: dict[str, Any] = {"model": model, "loss": loss, "steps": steps, "batch": batch, "seed": seed}
    given |= {"proposals": proposals, "sam_checkpoint": sam_checkpoint}
    given["initial"] = str(initial) if initial is not None else None
    given["data"] = [str(folder) for folder in data] if data else None
    try:
        weights = train_command(
            out,
            recipe=recipe,
            root=root,
            given={name: value for name, value in given.items() if value is not None},
            changes=changes or [],
            validate=validate or [],
            validate_every=validate_every,
            validate_limit=validate_limit,
            terms=terms,
            device=device or "auto",
            dtype=dtype or "auto",
            workers=workers,
            threads=threads,
            tensorboard=tensorboard,
            quiet=quiet,
        )
    except KeyboardInterrupt as interrupt:
        _stderr(": ".join(filter(None, ("interrupted", _one_line(interrupt)))))
        raise typer.Exit(130) from interrupt
    print(weights)


@app.command("coarse-masks")
def _coarse_masks(
    folders: Annotated[list[Path], _row("DIR...", "Folders of pictures with their truths.")],
    out: Annotated[Path, _row("-o, --out FOLDER", "Where copies of them go, with coarse masks beside them.")],
    pretrained: Annotated[Path, _row("--pretrained FILE", "MobileNetV2's features: mobilenetv2.npz.")],
    folds: Annotated[int, _row("--folds NUMBER", "Parts of the data, each predicted by networks of the others.")] = 4,
    steps: Annotated[int, _row("--steps NUMBER", "Of 24 pictures, for each network.")] = 700,
    seed: Annotated[int, _row("--seed NUMBER", "Of all that is drawn.")] = 0,
    quiet: Annotated[bool, _row("-q, --quiet", "Print errors and the last line only.")] = False,
) -> None:
    """Coarse masks as networks predict them, of pictures that they have not learnt from, to train a refiner on.

    A recipe takes them by a share of coarse masks of kind "given".
    """
    from refine.models.crm_s import Trunk
    from refine.training.networks import predict_masks
    from refine.training.pretrained import load_mobilenet_v2

    trunk = Trunk(3)
    load_mobilenet_v2(trunk, pretrained)
    written = 0
    for done in predict_masks(folders, out, trunk, folds=folds, steps=steps, seed=seed):
        written += done.written
        if not quiet:
            _stderr(
                f"part {done.fold + 1} of {folds}, step {done.step}: {done.written} of {done.pictures} predictions "
                f"written, mean IoU {done.mean_iou:.3f}; {done.seconds:.0f} s"
            )
    print(f"{out}  ({written} coarse masks)")


@app.command("compare")
def _compare(
    base: Annotated[Path, _row("BASE", "A folder that evaluate -o wrote; of several variants FOLDER/VARIANT.")],
    runs: Annotated[list[Path], _row("RUN...", "Others, of the same pictures.")],
    as_json: Json = False,
) -> None:
    """Compare evaluations of the same pictures: changes of IoU and mBA per set."""
    from refine.evaluation import compare

    comparisons = [compare(base, run) for run in runs]
    if as_json:
        print(_json([comparison.as_dict() for comparison in comparisons]))
    else:
        print("\n\n".join(comparison.table() for comparison in comparisons))


@app.command("demo")
def _demo(
    out: Annotated[Path, _row("-o, --out FOLDER", "Where the pictures go.")] = Path("refine-demo"),
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Annotated[int, _row("--seed NUMBER", "Seed of the generated scene.")] = 0,
    as_json: Json = False,
) -> None:
    """Refine a generated 4k scene; print accuracy before and after, time and memory."""
    from refine.io import check_folder

    check_folder(out)
    from refine.demo import run_demo

    figures = run_demo(out, model=model or "crm-s", device=device or "auto", dtype=dtype or "auto", seed=seed)
    _print_table(figures, as_json)


@app.command("info")
def _info(as_json: Json = False) -> None:
    """Show versions, devices, threads, the folder of the weights and that of what is kept."""
    import torch

    from refine.checkpoint import weights_dir
    from refine.devices import resolve_device, resolve_dtype
    from refine.download import cache_dir
    from refine.methods import METHODS
    from refine.models import PRESETS

    device = resolve_device("auto")
    devices = ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    facts = {
        "refine": refine.__version__,
        "python": platform.python_version(),
        **{name: _installed(name) for name in ("torch", "numpy", "numba")},
        "opencv": _installed("opencv-python"),
        "devices": devices,
        "device": str(device),
        "dtype": str(resolve_dtype("auto", device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "models": [*PRESETS, *METHODS],
        "weights": weights_dir(),
        "cache": cache_dir(),
    }
    _print_table(facts, as_json)


def _print_table(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(_json(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if isinstance(value, float):
            value = f"{value:.4g}"
        print(f"{name.ljust(width)}  {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _one_line(error: BaseException | str) -> str:
    return plain(" ".join(str(error).split()))


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _stderr(text: str) -> None:
    print(plain(text), file=sys.stderr)


if __name__ == "__main__":
    main()
