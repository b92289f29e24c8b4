"""What several test modules share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from refine.cli import main

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with fixtures and real data that are not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with published outputs and real photographs is not here")
    return SHARED


@dataclass
class Outcome:
    """What a call of the command line leaves."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Outcome:
        try:
            main(list(words))
        except SystemExit as stop:
            return Outcome(int(stop.code or 0), *capsys.readouterr())
        return Outcome(0, *capsys.readouterr())

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a shared processor the threads of a small operation mostly wait for each other."""
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def disc(size: tuple[int, int] = (120, 160), radius: float = 40) -> np.ndarray:
    """A truth (H, W) in the middle of a picture."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.hypot(y - size[0] / 2, x - size[1] / 2) < radius


def photographed(truth: np.ndarray) -> np.ndarray:
    """Two noisy colours that a truth parts."""
    noise = np.random.default_rng(0).integers(0, 30, (*truth.shape, 3))
    return (np.where(truth[..., None], (180, 120, 40), (30, 70, 110)) + noise).astype(np.uint8)


def with_statistics(network):
    """A network whose statistics are not the identity and whose biases are not zero, so that a wrong border shows."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def small_sam(seed: int = 0, *, side: int = 256, width: int = 32, depth: int = 2, far: bool = True):
    """Segment Anything as its library builds it, with random weights and a small encoder.

    far: its last block sees all cells, not those of a window alone.
    """
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = ImageEncoderViT(
            img_size=side,
            embed_dim=width,
            depth=depth,
            num_heads=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=(depth - 1,) if far else (),
            window_size=14,
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
        network = Sam(
            encoder,
            PromptEncoder(256, (side // 16, side // 16), (side, side), mask_in_chans=16),
            MaskDecoder(transformer_dim=256, transformer=transformer),
            pixel_mean=[123.675, 116.28, 103.53],
            pixel_std=[58.395, 57.12, 57.375],
        )
        for block in encoder.blocks:  # zero in a fresh encoder
            torch.nn.init.normal_(block.attn.rel_pos_h)
            torch.nn.init.normal_(block.attn.rel_pos_w)
        torch.nn.init.normal_(encoder.pos_embed)
    return network.eval()


@pytest.fixture(scope="session")
def sam_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small SAM in its library's layout."""
    import torch

    path = tmp_path_factory.mktemp("sam") / "small.pth"
    torch.save(small_sam().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def large_sam_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one that sees 1024 px, as those published do, so that its features have their shape."""
    import torch

    path = tmp_path_factory.mktemp("sam") / "large.pth"
    torch.save(small_sam(side=1024, width=16, depth=1, far=False).state_dict(), path)
    return path


def features_of(size: tuple[int, int], *, seed: int = 0, beyond: float = 0.0) -> np.ndarray:
    """Random features (256, 64, 64) of a picture (H, W), such as Segment Anything's, with ``beyond`` in the padding."""
    features = np.random.default_rng(seed).standard_normal((256, 64, 64), np.float32)
    rows, columns = (-(-max(1, int(side * 1024 / max(size) + 0.5)) // 16) for side in size)
    features[:, rows:] = features[:, :, columns:] = beyond
    return features


def dot(x: int = 40) -> np.ndarray:
    """A disc of 20 px in a mask of 60 x 80."""
    return cv2.circle(np.zeros((60, 80), np.uint8), (x, 30), 20, 255, -1) > 0


def write_set(folder: Path, names: Sequence[str] = ("a", "b", "c")) -> Path:
    """Bright dots on grey in BIG's layout; their coarse masks lie 3, 4, 5, ... px to the right."""
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / f"{name}_im.png"), np.where(dot()[..., None], np.uint8([200] * 3), np.uint8([90] * 3)))
        cv2.imwrite(str(folder / f"{name}_gt.png"), dot() * np.uint8(255))
        cv2.imwrite(str(folder / f"{name}_seg.png"), dot(43 + i) * np.uint8(255))
    return folder


def brighter(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The truth of `write_set`'s pictures."""
    return image.mean(2) > 128


class FakeRefiner:
    """Finds the dots, and remembers in ``made`` what it was made with and in ``seen`` the pictures."""

    made: ClassVar[list[dict[str, Any]]] = []
    seen: ClassVar[list[np.ndarray]] = []

    def __init__(self, **options: Any) -> None:
        self.made.append(options)
        self.weights_sha256, self.device, self.dtype = "c0ffee", "cpu", "torch.float32"

    def refine(self, image: np.ndarray, mask: np.ndarray) -> SimpleNamespace:
        if image.shape == (60, 80, 3):  # not what it warms up with
            self.seen.append(image)
        return SimpleNamespace(mask=brighter(image, mask), report=SimpleNamespace(peak_memory=5_000_000))


@pytest.fixture
def fake_refiner(monkeypatch: pytest.MonkeyPatch) -> type[FakeRefiner]:
    """In the place of `refine.engine.Refiner`."""
    monkeypatch.setattr(FakeRefiner, "made", [])
    monkeypatch.setattr(FakeRefiner, "seen", [])
    monkeypatch.setattr("refine.engine.Refiner", FakeRefiner)
    return FakeRefiner
