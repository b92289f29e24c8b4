"""What is disturbed: the work, its input, and what of its output is whole."""

import hashlib
import http.server
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refine.errors import FileError

Found = dict[str, Any]
"""What of an output is whole, by name: arrays, or something short that is equal where the content is."""


@dataclass(frozen=True)
class Job:
    """Some work on a folder; ``found`` raises where something is there and is not whole."""

    prepare: Callable[[Path], None]
    work: Callable[[Path], None]
    found: Callable[[Path], Found]
    leaves: Callable[[Path], list[Path]] = lambda folder: []
    """What must be gone at the end."""


def _scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, its truth and a coarse mask."""
    import cv2

    from refine.training.scenes import scene

    image, truth = scene(np.random.default_rng(seed), height, width)
    return image, truth, np.asarray(cv2.GaussianBlur(255 * truth.astype(np.uint8), (0, 0), 4))


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    """Outputs, without what begins with a dot: a kill leaves temporary files."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _pictures(folder: Path) -> Found:
    from refine.io import read_image

    return {str(path.relative_to(folder)): _short(read_image(path).tobytes()) for path in _files(folder)}


# A slide


def _slide_input(folder: Path) -> None:
    import tifffile

    image, _, coarse = _scene(3, 300, 420)
    tifffile.imwrite(folder / "in/im.tif", image, tile=(128, 128), compression="zlib", photometric="rgb")
    tifffile.imwrite(folder / "in/seg.tif", coarse, rowsperstrip=50)


def _slide(folder: Path) -> None:
    from refine.engine import Refiner

    refiner = Refiner(device="cpu", dtype="float32")
    refiner.refine_file(folder / "in/im.tif", folder / "in/seg.tif", folder / "out/o.tif", tile=160)


def _slide_found(folder: Path) -> Found:
    from refine.io import read_mask

    path = folder / "out/o.tif"
    return {"mask": _short(read_mask(path).tobytes())} if path.exists() else {}


# A folder of pictures


def _folder_input(folder: Path) -> None:
    from refine.io import write_image, write_mask

    for number in range(4):
        image, truth, coarse = _scene(number, 80, 100)
        write_image(folder / f"in/{number}_im.png", image)
        write_mask(folder / f"in/{number}_seg.png", coarse > 127)
        write_mask(folder / f"in/{number}_gt.png", truth)


def _command(*words: str) -> None:
    from refine.cli import main

    main(list(words))


def _folder(folder: Path) -> None:
    out = str(folder / "out/masks"), str(folder / "out/overlays"), str(folder / "out/probabilities")
    paths = "-o", out[0], "--overlay", out[1], "--probability", out[2]
    _command(str(folder / "in"), *paths, "--skip-existing", "--device", "cpu", "-q")


def _evaluate(folder: Path) -> None:
    _command("evaluate", str(folder / "in"), "-o", str(folder / "out/e"), "--model", "bilinear")


def _evaluated(folder: Path) -> Found:
    from refine.evaluation.lines import read_rows

    if not (folder / "out/e/items.jsonl").exists():
        return {}
    try:
        rows = read_rows(folder / "out/e")
    except FileError as error:
        if "holds no pictures" in str(error):  # none is done
            return {}
        raise
    return {row.name: (row.coarse, row.refined, row.harm) for row in rows}


# Training


def _train(folder: Path) -> None:
    from refine.training.loop import train
    from refine.training.recipe import Recipe

    recipe = Recipe(data=(str(folder / "in"),), steps=4, batch=2, crop=64, window=64)
    train(recipe, folder / "out/t", workers=0, save_seconds=0, dtype="float32")


def _trained(folder: Path) -> Found:
    import torch

    from refine.checkpoint import load

    place, done = folder / "out/t", False
    if (place / "checkpoint.pt").exists():
        done = torch.load(place / "checkpoint.pt", weights_only=True)["step"] == 4
    if not (place / "weights.safetensors").exists():
        return {}
    loaded = load(place / "weights.safetensors")
    return {name: value.float().numpy() for name, value in loaded.state.items()} if done else {}


# What is kept for later


def _proposals(folder: Path) -> None:
    _command("proposals", str(folder / "in"), "--source", "felzenszwalb", "-o", str(folder / "out/cache"), "-q")


def _entries(folder: Path) -> Found:
    found = {}
    for path in _files(folder / "out/cache"):
        data = path.read_bytes()
        assert hashlib.sha256(data[32:]).digest() == data[:32], f"{path} is not whole"
        found[path.name] = _short(data)
    return found


def _import_input(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from refine.checkpoint import weights_dir

    state = load_file(weights_dir() / "crm-s.safetensors")
    torch.save({name: value.float() for name, value in state.items()}, folder / "in/published.pth")


def _import(folder: Path) -> None:
    _command(
        "weights",
        "import",
        str(folder / "in/published.pth"),
        "-o",
        str(folder / "out/w.safetensors"),
        "--model",
        "crm-s",
    )


def _imported(folder: Path) -> Found:
    from refine.checkpoint import load

    path = folder / "out/w.safetensors"
    return {name: value.float().numpy() for name, value in load(path).state.items()} if path.exists() else {}


_CONTENT = bytes(range(256)) * 8000


class _Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(_CONTENT)))
        self.end_headers()
        with suppress(OSError):  # who asked was killed
            for at in range(0, len(_CONTENT), 2**17):
                self.wfile.write(_CONTENT[at : at + 2**17])
                time.sleep(0.01)

    def log_message(self, *_: object) -> None:
        pass


def _serve(folder: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (folder / "in/url").write_text(f"http://127.0.0.1:{server.server_port}/small.pth")


def _download(folder: Path) -> None:
    from refine import download

    os.environ |= {"REFINE_CACHE": str(folder / "out"), "NO_PROXY": "*", "REFINE_OFFLINE": "0"}
    url, digest = (folder / "in/url").read_text(), hashlib.sha256(_CONTENT).hexdigest()
    download.PUBLISHED["small"] = download.Published(url, digest, len(_CONTENT), "none")
    download.fetch("small", quiet=True)


def _downloaded(folder: Path) -> Found:
    path = folder / "out/weights/small.pth"
    return {"small": _short(path.read_bytes())} if path.exists() else {}


JOBS = {
    "slide": Job(_slide_input, _slide, _slide_found, lambda folder: [folder / "out/o.tif.work"]),
    "folder": Job(_folder_input, _folder, lambda folder: _pictures(folder / "out")),
    "evaluate": Job(_folder_input, _evaluate, _evaluated),
    "train": Job(_folder_input, _train, _trained),
    "proposals": Job(_folder_input, _proposals, _entries),
    "import": Job(_import_input, _import, _imported),
    "download": Job(_serve, _download, _downloaded),
}
