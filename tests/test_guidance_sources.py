import pytest

from refine.errors import OptionError, WeightsError
from refine.guidance.sources import SOURCES, open_source


def test_sources_open_by_name(sam_file):
    assert [open_source(name).name for name in ("felzenszwalb", "slic")] == ["felzenszwalb", "slic"]
    source = open_source("sam", sam_checkpoint=sam_file, device="cpu", options={"points_per_side": 4})
    assert source.name == "sam-vit-32x2"
    assert source.settings()["points_per_side"] == 4


def test_without_weights_no_other_source_takes_sams_place(tmp_path, monkeypatch):
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path))
    for name in SOURCES:
        if name.startswith("sam-"):
            with pytest.raises(WeightsError, match=f"weights get {name}"):
                open_source(name)


def test_a_checkpoint_of_another_type_than_the_name_is_refused(sam_file):
    with pytest.raises(WeightsError, match="holds sam-vit-32x2, and sam-vit-h was asked for"):
        open_source("sam-vit-h", sam_checkpoint=sam_file)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("nope", {}, "known are sam-vit-b, sam-vit-l, sam-vit-h, sam, felzenszwalb, slic"),
        ("sam", {}, "give one"),
        ("slic", {"sam_checkpoint": "sam.pth"}, "means nothing to slic"),
        ("slic", {"device": "cuda"}, "device='cuda' is not possible with slic"),
        ("slic", {"options": {"scale": 3}}, "slic has no option scale; its options are segments"),
        ("sam-vit-b", {"options": {"points": 3}}, "sam-vit-b has no option points"),
        ("felzenszwalb", {"options": {"levels": 1.5}}, "levels=1.5 is not possible"),
    ],
)
def test_what_cannot_be_is_told(name, more, message):
    with pytest.raises(OptionError, match=message):
        open_source(name, **more)
