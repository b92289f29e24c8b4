"""Imports point down, never sideways between stages; this list is the architecture."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "refine"

# From the ground up. A module may import what stands on a line above its own; a package is all of its modules.
LAYERS = (
    ("texts",),
    ("errors",),
    ("config", "isolation", "ranges", "values", "memory", "versions", "streams", "arrays"),
    ("pictures", "tiffs", "white"),
    ("io", "coords", "tiles", "planes", "slides", "blocks", "result", "metrics", "checkpoint", "pairs", "devices"),
    ("cells", "parts"),
    ("change",),
    ("download", "embedding"),
    ("models",),
    ("loading",),
    ("prepare", "frame", "regions", "guard", "plan", "guidance", "features", "decode"),
    ("methods",),
    ("engine",),
    ("refiners",),
    ("evaluation", "precompute"),
    ("training",),
    ("demo",),
    ("serving",),
    ("cli",),
)
STAGES = {"prepare", "frame", "regions", "guard", "plan", "guidance", "features", "decode"}

# Imports within a layer, each with its reason.
SIDEWAYS = {
    ("result", "io"): "a result saves itself, and only io touches pixels on disk",
    ("checkpoint", "io"): "weights are written with io's atomic writer",
    ("planes", "tiles"): "planes are read by windows",
    ("planes", "coords"): "between its samples a plane is read where the one coordinate convention says",
    ("slides", "tiles"): "slides are read by windows",
    ("slides", "io"): "only io knows what pixels of a file mean",
    ("guard", "frame"): "what it keeps to is the frame's coarse mask",
    ("features", "frame"): "the network's input is read from a view, whose type frame defines",
}

# `refine/__init__.py` loads the public names lazily and so may name any module.
FACADE = "__init__"
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """Name by which the list of layers knows a file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, at any depth of nesting, type checking included."""
    package = ("refine", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            # `from refine import io` names a module, `from refine import Refiner` a public name of the facade.
            yield from (f"{base}.{alias.name}" if base == "refine" else base for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imports(path))
    known = {part(module) for module in modules()}
    return {words[1] if words[1] in known else FACADE for words in names if words[0] == "refine" and words[1:]}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = part(path)
    if own == FACADE:
        return
    assert own in LAYER_OF, f"{own} is in no layer; the list of layers in this file says what may import it"
    for other in parts_imported(path) - {own}:
        if other == FACADE:
            assert own == "cli", f"{own} imports the public names of refine, which are above it"
            continue
        down = LAYER_OF.get(other, len(LAYERS)) < LAYER_OF[own]
        assert down or (own, other) in SIDEWAYS, f"{own} imports {other}, which is not below it"


def test_no_exception_outlives_its_import():
    used = {(part(path), other) for path in modules() for other in parts_imported(path)}
    assert set(SIDEWAYS) <= used


def test_only_the_engine_composes_stages():
    for path in modules():
        composed = parts_imported(path) & STAGES - {part(path)}
        assert len(composed) < 2 or part(path) == "engine", f"{path.name} composes {sorted(composed)}"


def test_the_kernels_know_nothing_of_refine():
    for path in (ROOT / "kernels" / "refine_kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "refine" for name in names), path


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("refine", {"torch", "numba", "cv2"}),
        ("refine.cli", {"torch", "numba", "cv2"}),
        ("refine.methods, refine.refiners, refine.precompute", {"torch", "skimage"}),
    ],
)
def test_what_is_slow_to_import_comes_with_what_needs_it(imported, absent):
    code = f"import sys, {imported}; sys.exit(sorted({absent} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import refine.io", {"refine.io"}),
        ("from refine import io, Refiner", {"refine.io", "refine.Refiner"}),
        ("from refine.models import build", {"refine.models"}),
        ("from . import io", {"refine.io"}),
        ("from .models.crm_s import CRMSmall", {"refine.models.crm_s"}),
        ("def f():\n    from refine.engine import Refiner", {"refine.engine"}),
    ],
)
def test_every_form_of_import_is_seen(tmp_path, monkeypatch, code, names):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text(code)
    assert set(imports(tmp_path / "module.py")) == names
