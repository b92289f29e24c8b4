import hashlib
from dataclasses import replace

import pytest

from refine import checkpoint
from refine.training.card import Card, Origin, Source, WeightsFile, source, stated_terms
from refine.training.recipe import Recipe

FIGURES = {
    "set": "davis",
    "pictures": 24,
    "iou_coarse": 90.371,
    "mba_coarse": 62.094,
    "iou_refined": 92.744,
    "mba_refined": 69.009,
}
CARD = Card(
    recipe=Recipe(data=("train/davis",), loss="bce + 0.5*l1", steps=3000, scenes=0.08).as_dict(),
    step=1500,
    device="cpu",
    dtype="bfloat16",
    date="2026-01-02T03:04:05+00:00",
    sources=[Source("davis", 1246, "research\n\nonly"), Source("mine", 3)],
    files=[WeightsFile("weights.safetensors", 1234567, "ab" * 32)],
    validation={"step": 1400, "gain": 9.288, "sets": [FIGURES]},
    best={"step": 1200, "gain": 9.5, "sets": [FIGURES | {"iou_refined": 93.0}]},
    terms="No commerce.",
    origin=Origin("older.safetensors", "cd" * 32, ("sod", "ccp"), "cite\nthem"),
    commit="c0ffee",
    versions={"torch": "2.9"},
)


@pytest.mark.parametrize(
    "line",
    [
        "# crm-s, trained for 1,500 of 3,000 steps",
        f"| weights.safetensors | 1,234,567 | {'ab' * 32} |",
        "| davis | 1,246 |",
        "| mine | 3 |",
        "8% of the crops are generated scenes.",
        "> research",
        ">",
        "> only",
        "> No commerce.",
        f"| older.safetensors | {'cd' * 32} | sod, ccp |",
        "> cite",
        "> them",
        "The last weights that were validated, of step 1,400; gain +9.288:",
        "| davis | 24 | 90.37/62.09 | 92.74/69.01 |",
        "The best weights that were validated, of step 1,200; gain +9.500:",
        "| davis | 24 | 90.37/62.09 | 93.00/69.01 |",
        '| loss | `"bce + 0.5*l1"` |',
        "| commit | c0ffee |",
        "| torch | 2.9 |",
        "| date | 2026-01-02T03:04:05+00:00 |",
        "| arithmetic | bfloat16 |",
    ],
)
def test_a_card_states_each_fact_on_a_line(line):
    assert line in CARD.text().splitlines()


def test_a_card_lists_every_field_of_the_recipe():
    for name in Recipe().as_dict():
        assert f"| {name} | `" in CARD.text()


def test_the_share_of_scenes_is_of_all_crops():
    recipe = Recipe(scenes=0.5, coarse={"given": 1.0, "network": 3.0}).as_dict()
    assert "38% of the crops are generated scenes." in replace(CARD, recipe=recipe).text().splitlines()


def test_folders_of_one_name_each_keep_their_terms():
    sources = [Source("photos", 2, "cite A"), Source("photos", 3, "cite B"), Source("photos", 4, "cite A")]
    assert stated_terms("", sources, None) == {"photos": "cite A\n\ncite B"}


def test_what_is_not_known_is_said():
    text = replace(CARD, sources=[Source("mine", 3)], terms="", validation=None, best=None, origin=None, commit="")
    text = text.text()
    for line in ("None were stated.", "Not validated.", "| commit | unknown |"):
        assert line in text.splitlines()


def test_the_best_weights_are_shown_once_where_they_are_the_last():
    text = replace(CARD, best=CARD.validation).text()
    assert "The best weights that were validated" not in text


def test_weights_that_were_best_before_are_shown_also_where_there_are_no_last_ones():
    text = replace(CARD, validation=None).text()
    assert "The best weights that were validated, of step 1,200; gain +9.500:" in text
    assert "Not validated." not in text


def test_the_terms_of_weights_that_ship_are_those_of_the_manifest():
    (entry,) = (entry for entry in checkpoint.manifest() if entry.name == "crm-s")
    origin = Origin.of(entry.path, checkpoint.load(entry.path))
    assert (origin.name, origin.sha256, origin.terms) == ("crm-s.safetensors", entry.sha256, entry.licence)
    assert "davis" in origin.data


def test_a_card_is_the_same_for_the_same_facts():
    assert replace(CARD).text() == CARD.text()


def test_a_folder_states_its_own_terms(tmp_path):
    assert source(tmp_path / "none", 3) == Source("none", 3, "")
    (tmp_path / "TERMS.txt").write_text("cite us")
    assert source(tmp_path, 2) == Source(tmp_path.name, 2, "cite us")


def test_a_file_is_described_by_its_size_and_hash(tmp_path):
    (tmp_path / "w").write_bytes(b"12345")
    assert WeightsFile.of(tmp_path / "w") == WeightsFile("w", 5, hashlib.sha256(b"12345").hexdigest())
