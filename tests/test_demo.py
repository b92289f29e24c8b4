from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import refine.demo
from refine.checkpoint import weights_dir
from refine.demo import run_demo
from refine.errors import OptionError
from refine.io import read_image, read_mask

SIZE = (270, 480)


class MedianRefiner:
    """A refiner without weights."""

    def __init__(self, **options):
        self.options = options

    def refine(self, image, mask):
        smooth = cv2.medianBlur(mask.astype(np.uint8), 5) > 0
        report = SimpleNamespace(seconds=0.5, peak_memory=3_000_000, device="cpu", dtype="float32")
        return SimpleNamespace(mask=smooth, report=report)


def test_the_demo_writes_its_pictures_and_gives_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(refine.demo, "refiner", MedianRefiner)
    figures = run_demo(tmp_path / "new", size=SIZE)
    assert 0 < figures["IoU before (%)"] < 100
    assert 50 < figures["mBA before (%)"] < 90
    assert figures["peak memory (MB)"] == 3
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "before_after.png",
        "demo_coarse.png",
        "demo_image.jpg",
        "demo_refined.png",
    ]
    assert read_image(tmp_path / "new" / "demo_image.jpg").shape == (*SIZE, 3)
    coarse, refined = (read_mask(tmp_path / "new" / f"demo_{kind}.png") > 0 for kind in ("coarse", "refined"))
    assert np.array_equal(refined, cv2.medianBlur(coarse.astype(np.uint8), 5) > 0)


def test_a_seed_gives_the_same_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(refine.demo, "refiner", MedianRefiner)
    first, again, other = (run_demo(tmp_path, size=SIZE, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["IoU before (%)"] != other["IoU before (%)"]


@pytest.mark.skipif(not (weights_dir() / "crm-s.safetensors").is_file(), reason="the default weights are not here")
def test_the_default_weights_improve_the_demo(tmp_path):
    figures = run_demo(tmp_path, device="cpu", dtype="float32", size=(540, 960))
    assert figures["mBA after (%)"] > figures["mBA before (%)"]
    assert figures["IoU after (%)"] > figures["IoU before (%)"]


def test_a_seed_below_zero_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(OptionError, match="seed=-1 is not possible"):
        run_demo(tmp_path, seed=-1)
