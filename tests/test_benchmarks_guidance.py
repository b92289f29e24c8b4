import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import guidance
from refine.guidance.superpixels import Slic
from refine.io import write_image, write_mask
from refine.metrics import iou
from refine.training.scenes import scene


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A set of one generated picture with its truth."""
    folder = tmp_path_factory.mktemp("data")
    image, truth = scene(np.random.default_rng(1), 200, 260)
    (folder / "set").mkdir()
    write_image(folder / "set" / "a_im.png", image)
    write_mask(folder / "set" / "a_gt.png", truth)
    return folder


@pytest.fixture(scope="module")
def found(data) -> list[guidance.Case]:
    return list(guidance.cases(data, each=1, seed=0, more=Slic()))


def test_an_oracle_s_proposals_are_of_the_truth_or_of_the_ground(found):
    for case in found:
        oracle = case.sources["oracle"]
        truth = guidance.reduced(case.truth, oracle.size)
        shares = [truth[proposal.mask()].mean() for proposal in oracle]
        assert {0.0, 1.0} == set(shares)
        assert not {0.0, 1.0} >= {truth[proposal.mask()].mean() for proposal in case.sources["slic"]}


def test_a_row_of_the_judge_has_the_coarse_mask_and_every_source(found):
    heads, _, *rows = guidance.judge(iter(found)).split("\n")
    assert heads.endswith("| coarse | crm-s | v1, oracle | v1, felzenszwalb | v1, slic |")
    assert [row.split(" | ")[0] for row in rows] == [f"| {kind}" for kind in guidance.KINDS]
    gains = []
    for row, case in zip(rows, found, strict=True):
        before, alone, oracle, *_ = (float(cell.split("/")[0]) for cell in row.split(" | ")[2:])
        assert before == pytest.approx(100 * iou(case.coarse, case.truth), abs=0.01)
        gains.append(oracle - alone)
    assert max(gains) > 0
    assert min(gains) >= 0  # where too much is missing v1 leaves the mask as it is


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["judge", "--proposals", "nothing"], "proposals='nothing' is unknown; known are sam-vit-b"),
        (["judge", "--proposals", "sam-vit-b", "--sam-checkpoint", "missing.pth"], "missing.pth"),
        (["sweep", "--proposals", "slic"], "--proposals is of judge"),
    ],
)
def test_a_source_that_cannot_be_had_is_told_in_a_line(data, monkeypatch, capsys, words, told):
    monkeypatch.setattr(sys, "argv", ["guidance", *words, "--data", str(data)])
    with pytest.raises(SystemExit, match="2"):
        guidance.main()
    assert told in capsys.readouterr().err


def test_a_folder_without_sets_is_told_in_a_line(data, monkeypatch, capsys):
    for folder in (data / "missing", data / "set"):
        monkeypatch.setattr(sys, "argv", ["guidance", "judge", "--data", str(folder)])
        with pytest.raises(SystemExit, match="2"):
            guidance.main()
        assert "has no folders of pictures" in capsys.readouterr().err
