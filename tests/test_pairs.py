import errno
import os
from pathlib import Path

import numpy as np
import pytest

from refine.errors import FileError, OptionError
from refine.io import write_image, write_mask, write_probability
from refine.pairs import (
    MASK_WRITTEN,
    OVERLAY_WRITTEN,
    PROBABILITY_WRITTEN,
    Found,
    find_images,
    find_pairs,
    with_outputs,
)

SUFFIXES = {".jpg", ".png"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")


def find(image: str, mask: str | None = None, exclude: tuple[Path, ...] = ()) -> Found:
    return find_pairs(image, mask, image_suffixes=SUFFIXES, mask_suffixes=SUFFIXES, exclude=exclude)


def seen(found: Found) -> list[tuple[str, str, str]]:
    return [(p.image.as_posix(), p.mask.as_posix(), p.name.as_posix()) for p in found.pairs]


def outputs(found: Found, out: str | None = None, **more: Path) -> list[str]:
    return [
        path.as_posix() for p in with_outputs(found, Path(out) if out else None, **more).pairs for path in p.outputs
    ]


def test_two_files_are_one_pair() -> None:
    touch("cat.jpg", "coarse.png")
    found = find("cat.jpg", "coarse.png")
    assert seen(found) == [("cat.jpg", "coarse.png", "cat")]
    assert not found.many


def test_same_stems_in_two_folders_are_pairs_and_sub_folders_are_kept_apart() -> None:
    touch("i/cat.jpg", "i/a/cat.png", "i/a/dog.jpg", "m/cat.png", "m/a/cat.png", "m/a/dog.png")
    assert seen(find("i", "m")) == [
        ("i/a/cat.png", "m/a/cat.png", "a/cat"),
        ("i/a/dog.jpg", "m/a/dog.png", "a/dog"),
        ("i/cat.jpg", "m/cat.png", "cat"),
    ]


@pytest.mark.parametrize("mask", [None, "big", "./big/"])
def test_one_folder_is_read_by_the_names_of_big(mask: str | None) -> None:
    touch("big/cat_im.jpg", "big/cat_seg.png", "big/cat_gt.png", "big/s/dog_im.png", "big/s/dog_seg.png")
    found = find("big", mask)
    assert seen(found) == [
        ("big/cat_im.jpg", "big/cat_seg.png", "cat"),
        ("big/s/dog_im.png", "big/s/dog_seg.png", "s/dog"),
    ]
    assert found.many
    assert found.images_alone == found.masks_alone == []


def test_names_match_however_their_accents_are_written() -> None:
    composed, apart = "\u00e9t\u00e9", "e\u0301te\u0301"
    touch(f"i/{composed}/{composed}.jpg", f"m/{apart}/{apart}.png")
    assert seen(find("i", "m")) == [
        (f"i/{composed}/{composed}.jpg", f"m/{apart}/{apart}.png", f"{composed}/{composed}")
    ]
    assert seen(find("m", "i"))[0][2] == f"{apart}/{apart}"
    touch(f"big/{composed}_im.jpg", f"big/{apart}_seg.png")
    assert seen(find("big"))[0][2] == composed


def test_a_dead_link_is_an_input_that_fails_alone() -> None:
    touch("i/cat.jpg", "m/cat.png")
    Path("i/dog.jpg").symlink_to("nowhere.jpg")
    Path("m/dog.png").symlink_to("nowhere.png")
    assert [name for _, _, name in seen(find("i", "m"))] == ["cat", "dog"]
    touch("i/dog.png")
    assert outputs(find("i", "m"), "out") == ["out/cat_mask.png"]


def test_names_of_big_match_across_two_folders() -> None:
    touch("i/cat_im.jpg", "m/cat_seg.png", "i/dog_im.jpg", "m/dog_im.png")
    assert [name for *_, name in seen(find("i", "m"))] == ["cat", "dog_im"]


def test_globs_match_within_the_same_sub_folder() -> None:
    touch("i/a/cat.jpg", "i/b/cat.jpg", "m/a/cat.png", "m/b/cat.png", "m/b/cat.txt")
    assert seen(find("i/*/*.jpg", "m/*/*")) == [
        ("i/a/cat.jpg", "m/a/cat.png", "a/cat"),
        ("i/b/cat.jpg", "m/b/cat.png", "b/cat"),
    ]
    assert len(find("i/**/*.jpg", "m").pairs) == 2


def test_globs_in_one_folder_match_by_suffix() -> None:
    touch("d/cat.jpg", "d/cat.png")
    assert seen(find("d/*.jpg", "d/*.png")) == [("d/cat.jpg", "d/cat.png", "cat")]


def test_a_file_whose_name_has_brackets_is_a_file() -> None:
    touch("cat[1].jpg", "m.png")
    assert not find("cat[1].jpg", "m.png").many


def test_files_without_a_partner_are_listed() -> None:
    touch("i/cat.jpg", "i/dog.jpg", "m/cat.png", "m/cow.png")
    found = find("i", "m")
    assert found.images_alone == [Path("i/dog.jpg")]
    assert found.masks_alone == [Path("m/cow.png")]


def test_two_images_of_one_mask_are_ambiguous() -> None:
    touch("i/cat.jpg", "i/cat.png", "m/cat.png", "i/dog.jpg", "m/dog.png")
    found = find("i", "m")
    assert [name for *_, name in seen(found)] == ["dog"]
    assert [image.name for image, _ in found.ambiguous] == ["cat.jpg", "cat.png"]
    assert "cat.png" in found.ambiguous[0][1]


def test_two_masks_of_one_image_are_ambiguous() -> None:
    touch("i/cat.jpg", "m/cat.png", "m/cat.jpg", "i/dog.jpg", "m/dog.png")
    found = find("i", "m")
    assert [(image.name, "2 masks" in why) for image, why in found.ambiguous] == [("cat.jpg", True)]


def test_hidden_files_and_other_files_are_not_looked_at() -> None:
    touch("i/cat.jpg", "i/._cat.jpg", "i/.trash/cat.jpg", "i/notes.txt", "m/cat.png")
    assert find("i", "m").images_alone == []


def test_a_mask_or_output_folder_inside_the_image_folder_holds_no_images() -> None:
    touch("i/cat.jpg", "i/masks/cat.png", "i/out/cat_mask.png")
    found = find("i", "i/masks", (Path("i/out"),))
    assert seen(found) == [("i/cat.jpg", "i/masks/cat.png", "cat")]
    assert found.images_alone == []


@pytest.mark.parametrize(("image", "mask"), [("i", "cat.png"), ("cat.png", "i"), ("i/*.jpg", "cat.png")])
def test_one_file_does_not_go_with_many(image: str, mask: str) -> None:
    touch("i/cat.jpg", "cat.png")
    with pytest.raises(OptionError, match="one file"):
        find(image, mask)


@pytest.mark.parametrize(("image", "mask"), [("ii", "i"), ("i", "mm"), ("ii", None)])
def test_what_is_not_there_is_told_before_what_does_not_go_together(image: str, mask: str | None) -> None:
    touch("i/cat.jpg")
    with pytest.raises(OptionError, match=f"no such file, folder or command: '{mask if mask == 'mm' else image}'"):
        find(image, mask)


def test_a_file_needs_a_mask() -> None:
    touch("cat.jpg")
    with pytest.raises(OptionError, match="no MASK"):
        find("cat.jpg")


def test_no_pair_at_all_is_an_error_that_says_what_was_seen() -> None:
    touch("i/cat.jpg", "m/dog.png", "m/cow.png")
    with pytest.raises(FileError, match=r"1 image in 'i', 2 masks in 'm'"):
        find("i", "m")
    with pytest.raises(FileError, match="0 images"):
        find("nowhere/*.jpg", "m")


def test_the_default_output_lies_beside_the_mask() -> None:
    touch("i/cat.jpg", "m/coarse.png", "big/dog_im.jpg", "big/dog_seg.png")
    assert outputs(find("i/cat.jpg", "m/coarse.png")) == ["m/cat_mask.png"]
    assert outputs(find("big/dog_im.jpg", "big/dog_seg.png")) == ["big/dog_mask.png"]


def test_an_output_may_be_a_file_or_an_existing_folder() -> None:
    touch("cat.jpg", "m.png", "out/x")
    assert outputs(find("cat.jpg", "m.png"), "new.png") == ["new.png"]
    assert outputs(find("cat.jpg", "m.png"), "out") == ["out/cat_mask.png"]


def test_many_outputs_keep_their_sub_folders() -> None:
    touch("i/a/cat.jpg", "m/a/cat.png")
    more = {"overlay": Path("see"), "probability": Path("p")}
    expected = ["out/a/cat_mask.png", "see/a/cat_overlay.jpg", "p/a/cat_probability.png"]
    assert outputs(find("i", "m"), "out", **more) == expected


def test_many_outputs_need_a_folder() -> None:
    touch("i/cat.jpg", "m/cat.png", "file.png")
    with pytest.raises(OptionError, match="-o FOLDER"):
        outputs(find("i", "m"))
    with pytest.raises(OptionError, match="is a file"):
        outputs(find("i", "m"), "file.png")


def test_an_output_never_replaces_an_input() -> None:
    touch("cat.png", "cat_mask.png")
    with pytest.raises(OptionError, match="would replace an input"):
        outputs(find("cat.png", "cat_mask.png"))
    with pytest.raises(OptionError, match="would replace an input"):
        outputs(find("cat.png", "cat_mask.png"), "./cat.png")
    with pytest.raises(OptionError, match="would replace an input"):
        outputs(find("cat.png", "cat_mask.png"), "new.png", overlay=Path("cat.png"))


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_output_never_replaces_an_input_through_a_link(link) -> None:
    touch("cat.jpg", "m.png")
    link("cat.jpg", "linked.png")
    with pytest.raises(OptionError, match="would replace an input"):
        outputs(find("cat.jpg", "m.png"), "linked.png")


def test_an_output_of_one_pair_never_replaces_an_input_of_another() -> None:
    touch("m/cat.png", "i/cat.jpg", "m/cat_mask.png", "i/cat_mask.jpg")
    with pytest.raises(OptionError, match="would replace an input"):
        outputs(find("i", "m"), "m")


def test_two_outputs_never_share_a_name() -> None:
    touch("cat.jpg", "m.png", "i/dog.jpg", "m/dog.png", "i/dog_im.jpg", "m/dog_seg.png")
    with pytest.raises(OptionError, match="same name"):
        outputs(find("cat.jpg", "m.png"), "x.png", overlay=Path("./x.png"))
    with pytest.raises(OptionError, match="same name"):
        outputs(find("i", "m"), "out")


def test_outputs_of_an_earlier_run_are_no_inputs_without_partner() -> None:
    touch("i/cat.jpg", "m/cat.png", "m/cat_mask.png")
    assert with_outputs(find("i", "m"), Path("m")).masks_alone == []


def test_the_suffixes_that_pass_are_those_that_are_written() -> None:
    touch("cat.jpg", "m.png")
    one = np.ones((1, 1), bool)
    writers = {
        "output": (MASK_WRITTEN, lambda path: write_mask(path, one)),
        "overlay": (OVERLAY_WRITTEN, lambda path: write_image(path, np.zeros((1, 1, 3), np.uint8))),
        "probability": (PROBABILITY_WRITTEN, lambda path: write_probability(path, one.astype(np.float32))),
    }
    for option, (suffixes, write) in writers.items():
        for suffix in (".jpg", ".jpeg", ".png", ".PNG", ".tif", ".tiff", ".bmp", ".webp", ".npy", ".gif", ""):
            path = Path(f"new{suffix}")
            names = {"output": Path("out.png")} | {option: path}
            if suffix.lower() in suffixes:
                with_outputs(find("cat.jpg", "m.png"), **names)
                write(path)
                path.unlink()
            else:
                with pytest.raises(OptionError, match="cannot be written; give a name in"):
                    with_outputs(find("cat.jpg", "m.png"), **names)
                with pytest.raises(OptionError):
                    write(path)


def test_outputs_of_an_earlier_run_are_left_out_of_folders_and_globs() -> None:
    touch("i/cat.jpg", "i/cat_mask.png", "i/a/dog_im.jpg", "i/a/dog_mask.png", "m/cat.png", "m/a/dog_seg.png")
    touch("m/a/dog_im_mask.png", "i/cow_mask.png", "m/a/cat_mask.png")
    for image, mask in (("i", "m"), ("i/**/*", "m/**/*")):
        found = find(image, mask)
        assert [name for *_, name in seen(found)] == ["a/dog", "cat"]
        assert found.images_alone == [Path("i/cow_mask.png")]
        assert found.masks_alone == [Path("m/a/cat_mask.png")]  # no image called cat there


@pytest.mark.parametrize("out", ["i", "m"])
def test_an_output_of_an_earlier_run_is_no_rival_of_an_input_of_its_name(out: str) -> None:
    touch("i/cat.jpg", "i/cat_mask.jpg", "m/cat.jpg", "m/cat_mask.jpg")
    first = outputs(find("i", "m"), out)
    touch(*first)
    assert outputs(find("i", "m"), out) == first == [f"{out}/cat_mask.png", f"{out}/cat_mask_mask.png"]


def test_an_image_and_a_mask_that_are_named_like_outputs_stay_a_pair() -> None:
    touch("i/cat.jpg", "i/cat_mask.png", "m/cat.png", "m/cat_mask.png")
    assert [name for *_, name in seen(find("i", "m"))] == ["cat", "cat_mask"]
    with pytest.raises(OptionError, match="would replace an input"):
        outputs(find("i", "m"), "m")


@pytest.mark.parametrize("name", ["photo_saw_mask.png", "d/../photo_saw_kept.png"])
def test_a_debug_picture_never_replaces_an_input_or_an_output(name: str) -> None:
    touch("photo.jpg", "m.png", "d/x", "photo_saw_mask.png", "photo_saw_kept.png")
    with pytest.raises(OptionError, match=r"would replace .*photo_saw_.*; choose another --debug-dir"):
        outputs(find("photo.jpg", name), "fine.png", debug=Path())
    with pytest.raises(OptionError, match="would replace"):
        outputs(find("photo.jpg", "m.png"), name, debug=Path())
    assert outputs(find("photo.jpg", name), "fine.png", debug=Path("d")) == ["fine.png"]


def test_debug_pictures_of_an_earlier_run_are_no_inputs_without_partner() -> None:
    touch("i/a/cat_im.jpg", "i/a/cat_saw_kept.png", "i/cat_saw_kept.png", "m/a/cat_seg.png")
    assert with_outputs(find("i", "m"), Path("out"), debug=Path("i")).images_alone == [Path("i/cat_saw_kept.png")]


def test_linked_folders_are_searched_too() -> None:
    touch("far/cat.jpg", "i/dog.jpg", "m/dog.png", "m/link/cat.png")
    Path("i/link").symlink_to(Path("far").resolve())
    assert [name for *_, name in seen(find("i", "m"))] == ["dog", "link/cat"]


def test_a_folder_is_searched_once_whatever_links_lead_to_it() -> None:
    touch("in/b/cat.jpg", "far/dog.jpg")
    links = {"in/a": "in/b", "in/b/up": "in", "in/b/self": "in/b", "in/z": "far", "in/y": "far", "far/back": "in"}
    for link, target in links.items():
        Path(link).symlink_to(Path(target).resolve())
    found = images("in")
    assert found.count("in/b/cat.jpg") == 1
    assert len(found) == 2


def test_a_linked_output_folder_is_not_searched() -> None:
    touch("i/cat.jpg", "m/cat.png", "out/cat_mask.png")
    Path("i/out").symlink_to(Path("out").resolve())
    assert find("i", "m", (Path("out"),)).images_alone == []


@pytest.mark.parametrize("folder", ["in", "in/locked"])
def test_a_folder_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    def scandir(path: str, scan=os.scandir):
        if os.fspath(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    touch("in/cat.jpg", "in/locked/dog.jpg")
    monkeypatch.setattr(os, "scandir", scandir)  # root reads everything
    with pytest.raises(FileError, match=rf"{folder}: cannot be searched \(Permission denied\)"):
        images("in")


def test_a_name_that_is_too_long_is_no_file_yet() -> None:
    touch("cat.jpg", "m.png", "i/cat.jpg", "m/cat.png")
    long = "x" * 300
    assert outputs(find("cat.jpg", "m.png"), f"{long}.png") == [f"{long}.png"]
    assert outputs(find(f"{long}.jpg", "m.png")) == [f"{long}_mask.png"]
    assert outputs(find("i", "m"), long) == [f"{long}/cat_mask.png"]
    with pytest.raises(FileError, match="no such folder"):
        images(long)


def images(folder: str) -> list[str]:
    return [path.as_posix() for path in find_images(Path(folder), SUFFIXES)]


def test_images_of_a_folder_are_all_of_it_and_of_its_sub_folders() -> None:
    touch("in/b.png", "in/a/c.jpg", "in/a/c.png", "in/notes.txt", "in/.hidden.png", "in/.git/d.png")
    assert images("in") == ["in/a/c.jpg", "in/a/c.png", "in/b.png"]


def test_images_of_bigs_names_leave_the_others_out() -> None:
    touch("in/a_im.jpg", "in/a_seg.png", "in/a_gt.png", "in/sub/b_im.png", "in/c.png", "in/_im.png")
    assert images("in") == ["in/a_im.jpg", "in/sub/b_im.png"]


def test_outputs_of_an_earlier_run_are_no_images() -> None:
    touch("in/a.jpg", "in/a_mask.png", "in/b_mask.png")
    assert images("in") == ["in/a.jpg", "in/b_mask.png"]


@pytest.mark.parametrize(("folder", "message"), [("none", "no such folder"), ("empty", "has no pictures")])
def test_a_folder_without_images_is_told(folder: str, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(FileError, match=f"{folder}: {message}"):
        find_images(Path(folder), SUFFIXES)


def jpeg(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"\xff\xd8\xff\xe0 and so on")


def test_pictures_of_other_suffixes_and_none_are_named_with_the_reason() -> None:
    touch("i/ok.jpg", "m/ok.png", "m/b.png", "m/c.png", "i/ok.json", "i/README", "i/c.txt", "m/notes.md")
    jpeg("i/a", "i/b.xyz", "i/ok.psd", "m/d.dat")
    found = find("i", "m")
    assert found.left_out == [
        (Path("i/a"), "no suffix"),
        (Path("i/b.xyz"), "the suffix .xyz is not read"),
        (Path("m/d.dat"), "the suffix .dat is not read"),
    ]
    assert set(found.others) == {Path(name) for name in ("i/README", "i/c.txt", "i/ok.json", "i/ok.psd", "m/notes.md")}
    assert found.masks_alone == [Path("m/b.png"), Path("m/c.png")]


def test_a_file_of_an_unknown_suffix_with_a_mask_of_its_own_is_named() -> None:
    touch("i/ok.jpg", "m/ok.png", "i/a.raw", "m/a.png", "i/b.raw")
    found = find("i", "m")
    assert found.left_out == [(Path("i/a.raw"), "the suffix .raw is not read")]
    assert found.others == [Path("i/b.raw")]


def test_hidden_pairs_are_named_and_other_hidden_files_are_not() -> None:
    touch("i/ok.jpg", "m/ok.png", "i/.DS_Store", "m/.sub/c.png", "i/._ok.jpg", "m/._ok.png", "m/.f.png")
    jpeg("i/.sub/c.jpg", "i/.sub/lone.jpg", "i/.cache/ok.jpg", "i/.f.jpg")
    found = find("i", "m")
    assert seen(found) == [("i/ok.jpg", "m/ok.png", "ok")]
    assert found.left_out == [(Path("i/.f.jpg"), "hidden"), (Path("i/.sub/c.jpg"), "hidden")]
    assert found.others == []


def test_what_one_folder_holds_beside_its_pairs_is_counted() -> None:
    touch("big/a_im.jpg", "big/a_seg.png", "big/a_gt.png", "big/b.jpg", "big/licence.txt")
    found = find("big")
    assert seen(found) == [("big/a_im.jpg", "big/a_seg.png", "a")]
    assert [path.name for path in found.others] == ["licence.txt", "a_gt.png", "b.jpg"]
    assert found.left_out == []


@pytest.mark.parametrize("folder", ["p [2024]", "a*b", "what?", "[", "x[!y]/z[0-9]"])
def test_a_glob_below_a_folder_whose_name_looks_like_one_finds_its_files(folder: str) -> None:
    touch(f"{folder}/i/a.jpg", f"{folder}/m/a.png", f"{folder}/i/sub/b.jpg", f"{folder}/m/sub/b.png")
    assert seen(find(f"{folder}/i/*.jpg", f"{folder}/m/*.png")) == [(f"{folder}/i/a.jpg", f"{folder}/m/a.png", "a")]
    assert len(find(f"{folder}/i/**/*.jpg", f"{folder}/m/**/*.png").pairs) == 2
    assert len(find(f"{folder}/i/[ab].jpg", f"{folder}/m/[ab].png").pairs) == 1


@pytest.mark.parametrize(
    ("image", "mask", "told"),
    [
        ("i", "empty", "every image needs a coarse mask"),
        ("i", None, "name them *_im and *_seg, or give the folder of the masks as well"),
        ("*/[x].jpg", "i/*.png", "write [[] for a bracket"),
        ("raw", "m", "beside them raw/a.xyz; raw/a.xyz is left out (the suffix .xyz is not read)"),
    ],
)
def test_a_search_that_finds_no_pair_says_what_is_missing(image: str, mask: str | None, told: str) -> None:
    touch("i/a.jpg", "i/b.jpg", "m/a.png", "raw/a.xyz")
    Path("empty").mkdir()
    with pytest.raises(FileError) as error:
        find(image, mask)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
