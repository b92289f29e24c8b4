import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from conftest import disc, photographed
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from refine.errors import FileError, WeightsError
from refine.guidance.cache import Cache, Cached
from refine.guidance.proposals import Proposal, Proposals
from refine.guidance.sam import SegmentAnything

PICTURE = photographed(disc((30, 40), 10))


@dataclass
class Source:
    """Gives what it is told to, and counts."""

    masks: list[np.ndarray] = field(default_factory=lambda: [disc((30, 40), r) for r in (3, 10)])
    name: str = "test"
    options: dict[str, Any] = field(default_factory=dict)
    asked: int = 0

    def settings(self) -> dict[str, Any]:
        return self.options

    def propose(self, image: np.ndarray) -> Proposals:
        self.asked += 1
        size = image.shape[:2]
        items = (Proposal.of(m, predicted_iou=1 / (i + 3), stability=0.5) for i, m in enumerate(self.masks))
        return Proposals(tuple(items), size, self.name)


def equal(one: Proposals, other: Proposals) -> bool:
    def facts(p: Proposal) -> tuple:
        return p.counts.dtype, p.counts.tolist(), p.size, p.area, p.box, p.predicted_iou, p.stability

    return (one.size, one.source) == (other.size, other.source) and list(map(facts, one)) == list(map(facts, other))


@settings(deadline=None)
@given(st.lists(arrays.arrays(bool, (3, 5)), max_size=4))
def test_proposals_survive_the_cache(tmp_path_factory, masks):
    cache, source = Cache(tmp_path_factory.mktemp("cache")), Source(masks)
    image = np.zeros((3, 5, 3), np.uint8)
    assert cache.kept_proposals(source, image) is None
    found = cache.proposals(source, image)
    again = Cache(cache.folder).proposals(source, image)
    assert source.asked == 1
    assert equal(found, again)
    assert equal(found, source.propose(image))


def test_a_cached_source_is_a_source(tmp_path):
    source = Source()
    cached = Cached(source, Cache(tmp_path))
    assert (cached.name, cached.settings()) == (source.name, source.settings())
    assert equal(cached.propose(PICTURE), cached.propose(PICTURE))
    assert source.asked == 1


def test_what_was_found_in_float32_serves_for_shorter_types_and_not_the_other_way(tmp_path):
    for first, then, asked in (("float32", "bfloat16", 0), ("bfloat16", "float32", 1)):
        cache = Cache(tmp_path / first)
        one, other = (Source(options={"dtype": dtype, "points": 8}) for dtype in (first, then))
        cache.proposals(one, PICTURE)
        assert Cached(other, cache).is_kept(PICTURE) == (not asked)
        cache.proposals(other, PICTURE)
        assert other.asked == asked


def changed_at_the_end(image):
    other = image.copy()
    other[-1, -1, -1] ^= 1
    return other


@pytest.mark.parametrize(
    ("image", "name", "options"),
    [
        (PICTURE[::-1], "test", {}),
        (PICTURE.reshape(40, 30, 3), "test", {}),
        (changed_at_the_end(PICTURE), "test", {}),
        (PICTURE, "other", {}),
        (PICTURE, "test", {"points": 8}),
    ],
)
def test_another_picture_name_or_setting_is_another_entry(tmp_path, image, name, options):
    cache = Cache(tmp_path)
    cache.proposals(Source(), PICTURE)
    source = Source([], name, options)
    assert len(cache.proposals(source, image)) == 0
    assert source.asked == 1
    assert len(cache.proposals(Source(), PICTURE)) == 2


def test_the_order_of_settings_and_of_memory_does_not_matter(tmp_path):
    cache = Cache(tmp_path)
    cache.proposals(Source(options={"a": 1, "b": 2}), PICTURE)
    source = Source(options={"b": 2, "a": 1})
    cache.proposals(source, np.asfortranarray(PICTURE))
    assert source.asked == 0


@pytest.mark.parametrize("damage", ["", "cut", "flip", "text"])
def test_a_damaged_entry_is_found_again_and_replaced(tmp_path, damage):
    cache, source = Cache(tmp_path), Source()
    cache.proposals(source, PICTURE)
    (entry,) = tmp_path.rglob("*.bin")
    whole = entry.read_bytes()
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    entry.write_bytes({"": b"", "cut": whole[:-1], "flip": flipped, "text": b"text"}[damage])
    assert cache.kept_proposals(source, PICTURE) is None
    assert equal(cache.proposals(source, PICTURE), source.propose(PICTURE))
    assert entry.read_bytes() == whole
    assert len(list(tmp_path.rglob("*.*"))) == 1


def test_a_source_that_fails_leaves_no_entry(tmp_path):
    source = Source()
    source.propose = lambda image: (_ for _ in ()).throw(WeightsError("broken"))
    with pytest.raises(WeightsError):
        Cache(tmp_path).proposals(source, PICTURE)
    assert list(tmp_path.rglob("*.*")) == []


def test_embeddings_are_kept_beside_proposals(tmp_path, sam_file, monkeypatch):
    sam, cache = SegmentAnything(sam_file, device="cpu"), Cache(tmp_path)
    found = cache.embedding(sam, PICTURE)
    monkeypatch.setattr(sam, "embedding", None)
    again = cache.embedding(sam, PICTURE)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(found, again)
    assert [path.parent.name for path in tmp_path.rglob("*.bin")] == ["embeddings"]


def test_the_folder_is_the_environments_where_none_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("REFINE_CACHE", str(tmp_path / "cache"))
    assert Cache().folder == tmp_path / "cache"


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="REFINE_CACHE"):
        Cache(tmp_path / "file")


def test_a_folder_that_can_only_be_read_serves_with_what_it_has(tmp_path, monkeypatch):
    Cache(tmp_path).proposals(Source(), PICTURE)
    monkeypatch.setattr("refine.guidance.cache.check_folder", lambda _: (_ for _ in ()).throw(FileError("read-only")))
    assert len(Cache(tmp_path).proposals(Source(), PICTURE)) == 2
    source = Source()
    with pytest.raises(FileError, match="REFINE_CACHE"):
        Cache(tmp_path).proposals(source, PICTURE[::-1])
    assert source.asked == 0


def sealed(content: bytes) -> bytes:
    return hashlib.sha256(content).digest() + content


def packed(**values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **values)
    return sealed(file.getvalue())


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: packed(**{k: v for k, v in whole.items() if k != "runs"}),
        lambda whole: packed(**whole | {"scores": whole["scores"][:0]}),
        lambda whole: packed(**whole | {"size": whole["size"][:1]}),
        lambda whole: packed(**whole | {"size": whole["size"] * 2}),
        lambda whole: packed(**whole | {"runs": whole["runs"] * 2}),
        lambda whole: packed(**whole | {"size": -whole["size"]}),
        lambda whole: packed(**whole | {"counts": whole["counts"].astype(float)}),
        lambda whole: sealed(b"a text"),
        lambda whole: sealed(b""),
        lambda whole: packed(**whole | {"more": np.zeros(2**26 + 1)}),  # more than 512 MiB, of 0.5 MB on disk
    ],
)
def test_an_entry_of_another_program_is_found_again(tmp_path, change):
    cache, source = Cache(tmp_path), Source()
    cache.proposals(source, PICTURE)
    (path,) = (tmp_path / "proposals").iterdir()
    with np.load(io.BytesIO(path.read_bytes()[32:])) as arrays:
        path.write_bytes(change(dict(arrays)))
    assert cache.kept_proposals(source, PICTURE) is None
    assert equal(cache.proposals(source, PICTURE), source.propose(PICTURE))
    assert cache.kept_proposals(source, PICTURE) is not None
