import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from refine.errors import FileError, InputError
from refine.training import folders
from refine.training.folders import Pair, check_sizes, read_truth, shared_pictures, survey

RECIPES = sorted((Path(__file__).parents[1] / "weights").glob("*.toml"))
DISC = np.hypot(*np.mgrid[-6:7, -8:9]) < 5  # (13, 17)


def write(folder: Path, *names: str) -> Path:
    """Pictures and truths of one size, told by their suffixes; no two pictures are alike."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, DISC)
        elif path.suffix == ".png":
            cv2.imwrite(str(path), 255 * DISC.astype(np.uint8))
        else:
            rng = np.random.default_rng(list(name.encode()))
            cv2.imwrite(str(path), rng.integers(256, size=(*DISC.shape, 3), dtype=np.uint8))
    return folder


def names(folder: Path, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return [tuple(path.relative_to(folder).as_posix() for path in (pair.image, pair.truth)) for pair in pairs]


def relative(folder: Path, paths: Sequence[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


# Layouts: the pairs that must be found, and files beside them that are in none.
LAYOUTS = {
    "big": ([("b_im.jpg", "b_gt.png"), ("c_im.png", "c_gt.png")], ["a_seg.png", "c_mask.png", "d_im.jpg"]),
    "big with several truths": ([("a_im.jpg", "a_gt0.png"), ("a_im.jpg", "a_gt1.png"), ("b_im.jpg", "b_gt.png")], []),
    "big in sub-folders": ([("one/a_im.jpg", "one/a_gt.png"), ("two/a_im.jpg", "two/a_gt.png")], []),
    "truths with an ending": ([("a.jpg", "a_gt.png"), ("b.png", "b_gt.png")], ["c_seg.png"]),
    "msra-10k": ([(f"MSRA10K_Imgs_GT/Imgs/{i}.jpg", f"MSRA10K_Imgs_GT/Imgs/{i}.png") for i in (12, 7)], []),
    "fss-1000": (
        [(f"{kind}/{i}.jpg", f"{kind}/{i}.png") for kind in ("abacus", "camera", "mask") for i in (1, 2)],
        [],
    ),
    "suffixes in capitals": ([("a.JPG", "a.png"), ("b.jpeg", "b.png")], []),
    "a stem like a result's": ([("a.jpg", "a.png"), ("gas_mask.jpg", "gas_mask.png")], ["a_mask.png"]),
    "duts": (
        [(f"DUTS-{part}/DUTS-{part}-Image/a.jpg", f"DUTS-{part}/DUTS-{part}-Mask/a.png") for part in ("TE", "TR")],
        ["DUTS-TR/DUTS-TR-Image/b.jpg"],
    ),
    "duts in one folder": ([(f"DUTS-{part}-Image/a.jpg", f"DUTS-{part}-Mask/a.png") for part in ("TE", "TR")], []),
    "dut-omron": ([("DUT-OMRON-image/a.jpg", "pixelwiseGT-new-PNG/a.png")], ["pixelwiseGT-new-PNG/b.png"]),
    "ecssd": ([("images/0001.jpg", "ground_truth_mask/0001.png")], []),
    "hku-is": ([("imgs/0004.png", "gt/0004.png")], []),
    "hrsod": ([("HRSOD_train/a.jpg", "HRSOD_train_mask/a.png")], []),
    "camel case": ([("TrainImages/a.png", "TrainGroundTruth/a.png")], []),
    "masks that say so": (
        [("images/a.jpg", "masks/a_mask.png"), ("images/b.jpg", "masks/b_gt.png"), ("images/c_im.jpg", "masks/c.png")],
        ["masks/a_seg.png"],
    ),
    "arrays": ([("images/a.jpg", "alpha/a.npy")], []),
    "mattes beside trimaps": ([("original/a.png", "alpha/a.png")], ["trimap/a.png", "alpha_coarse/a.png"]),
    "parts below": ([(f"images/{part}/a.jpg", f"annotations/{part}/a.png") for part in ("train", "val")], []),
    "parts above": ([(f"{part}/image/a.jpg", f"{part}/label/a.png") for part in ("train", "val")], []),
    "voc": (
        [("JPEGImages/a.jpg", "SegmentationClass/a.png"), ("JPEGImages/a.jpg", "SegmentationObject/a.png")],
        ["JPEGImages/b.jpg"],
    ),
    "several annotators": ([("images/a.jpg", "masks1/a.png"), ("images/a.jpg", "masks2/a.png")], []),
    "numbered in a folder of truths": ([("img/a.jpg", "gt/a_gt0.png"), ("img/a.jpg", "gt/a_gt1.png")], []),
    "a folder of truths beside the pictures": ([("a.jpg", "masks/a.png"), ("b.png", "masks/b.png")], []),
    "davis": (
        [
            (f"JPEGImages/{size}/{name}/0000{i}.jpg", f"Annotations/{size}/{name}/0000{i}.png")
            for size in ("480p", "Full-Resolution")
            for name in ("bear", "camel")
            for i in (0, 1)
        ],
        ["JPEGImages/480p/bear/00002.jpg", "JPEGImages/1080p/bear/00000.jpg", "Annotations/240p/bear/00000.png"],
    ),
}


def test_coarse_masks_belong_to_the_picture_they_lie_beside(tmp_path):
    write(tmp_path, "a_im.jpg", "a_gt.png", "a_seg1.png", "a_seg0.png", "b.jpg", "b.png", "b_seg.png", "c_seg.png")
    write(tmp_path, "d.jpg", "d.png", "other/d_seg.png")
    found = survey(tmp_path)
    assert {pair.image.stem: relative(tmp_path, pair.coarse) for pair in found.pairs} == {
        "a_im": ["a_seg0.png", "a_seg1.png"],
        "b": ["b_seg.png"],
        "d": [],
    }
    assert relative(tmp_path, found.left_out) == ["c_seg.png", "other/d_seg.png"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_of_a_layout_are_found_in_the_truths_order_and_nothing_else_is(tmp_path, layout):
    pairs, others = LAYOUTS[layout]
    write(tmp_path, *{name for pair in pairs for name in pair}, *others)
    found = survey(tmp_path)
    assert names(tmp_path, found.pairs) == sorted(pairs, key=lambda pair: tmp_path.joinpath(pair[1]))
    assert not found.ambiguous
    rest = relative(tmp_path, [*found.images_alone, *found.truths_alone, *found.left_out])
    assert sorted(rest) == sorted(others)
    assert survey(tmp_path).pairs == found.pairs
    for pair in found.pairs:
        np.testing.assert_array_equal(read_truth(pair, DISC.shape), 255 * DISC)


def test_what_is_in_no_pair_is_told_by_its_kind(tmp_path):
    write(tmp_path, "images/a.jpg", "images/b.jpg", "masks/a.png", "masks/c.png", "masks/a_seg.png", "edges/a.png")
    found = survey(tmp_path)
    assert names(tmp_path, found.pairs) == [("images/a.jpg", "masks/a.png")]
    assert relative(tmp_path, found.images_alone) == ["images/b.jpg"]
    assert relative(tmp_path, found.truths_alone) == ["masks/c.png"]
    assert relative(tmp_path, found.left_out) == ["edges/a.png", "masks/a_seg.png"]
    told = "1 pictures without a truth; 1 truths without a picture; 2 files that are neither"
    assert found.unused() == f"not trained on: {told}"
    (tmp_path / "images/c.jpeg").write_bytes(b"")
    (tmp_path / "images/c.jpg").write_bytes(b"")
    assert "not trained on: 1 pictures without a truth; 2 files that are neither; c.png: " in survey(tmp_path).unused()


def test_hidden_files_are_not_looked_at(tmp_path):
    write(tmp_path, "a.jpg", "a.png", ".trash/b.jpg", ".trash/b.png", "__MACOSX/._a.jpg", "__MACOSX/._a.png")
    found = survey(tmp_path)
    assert names(tmp_path, found.pairs) == [("a.jpg", "a.png")]
    assert found.unused() == ""


@pytest.mark.parametrize(
    ("files", "doubtful", "reason"),
    [
        (("a.jpg", "a.jpeg", "a.png"), "a.png", r"/a\.jpeg and .*/a\.jpg; keep one"),
        (("images/a.jpg", "images/a.jpeg", "masks/a.png"), "masks/a.png", r"images/a\.jpeg and images/a\.jpg; keep"),
        (("a_im.jpg", "a_im.png", "a_gt.png"), "a_gt.png", r"a_im\.jpg and .*a_im\.png"),
        (("a.jpg", "a.png", "a.tif"), "a.jpg", r"a\.png and .*a\.tif belong to it; keep one, or number them a_gt0"),
        (("a.jpg", "a.png", "a_gt.png"), "a.jpg", r"a\.png and .*a_gt\.png belong to it"),
        (("images/a.jpg", "masks/a.png", "masks/a.npy"), "images/a.jpg", r"masks/a\.npy and masks/a\.png"),
        (("images/a.jpg", "masks/a.png", "masks/a_mask.png"), "images/a.jpg", r"masks/a\.png and masks/a_mask\.png"),
        # The PNG beside the picture may well be the same picture.
        (("images/a.jpg", "images/a.png", "masks/a.png"), "images/a.jpg", r"images/a\.png and masks/a\.png"),
        (("images1/a.jpg", "images2/a.jpg", "masks/a.png"), "masks/a.png", r"images1/a\.jpg and images2/a\.jpg"),
    ],
)
def test_what_names_leave_open_is_left_out_with_its_reason(tmp_path, files, doubtful, reason):
    write(tmp_path, *files, "other/z.jpg", "other/z.png")
    found = survey(tmp_path)
    assert names(tmp_path, found.pairs) == [("other/z.jpg", "other/z.png")]
    ((path, why),) = found.ambiguous
    assert relative(tmp_path, [path]) == [doubtful]
    assert re.search(reason, why)


@pytest.mark.parametrize(
    "files",
    [
        ("train_images/1.jpg", "val_masks/1.png"),
        ("DUTS-TR-Image/1.jpg", "DUTS-TE-Mask/1.png"),
        ("set1_images/1.jpg", "set2_masks/1.png"),
        ("cats_images/1.jpg", "birds_images/1.jpg", "dogs_masks/1.png"),
        ("JPEGImages/1080p/bear/1.jpg", "Annotations/480p/bear/1.png"),
        ("JPEGImages/480p/bear/1.jpg", "Annotations/480p/camel/1.png"),
        ("images/1.jpg", "trimaps/1.png"),
        ("images/1.jpg", "masks_coarse/1.png"),
        ("images/1.jpg", "some/1.png"),
        ("1_im.jpg", "1_seg.png"),
        ("1.jpg", "1_mask.png"),
        ("1.png", "2.png"),
    ],
)
def test_what_may_not_belong_together_is_no_pair(tmp_path, files):
    write(tmp_path, *files)
    with pytest.raises(FileError, match="holds no pairs"):
        survey(tmp_path)


def test_a_folder_without_pairs_is_an_error_that_says_what_was_looked_for_and_found(tmp_path):
    with pytest.raises(
        FileError, match=r"holds no pairs .*; looked for <id>_im\.jpg .*; found no file of \.bmp, \.gif, \.jfif"
    ):
        survey(tmp_path)
    write(tmp_path, *(f"photographs/{i}.jpg" for i in range(3)), "drawn/0.png", "a.jpg", "a.jpeg", "a.png", "b_seg.png")
    found = (
        r"found 1 \.jpeg in the folder itself, 1 \.jpg in the folder itself, 2 \.png in the folder itself, 1 \.png in "
        r"drawn, 3 \.jpg in photographs \(pictures without a truth: 4; truths without a picture: 0; coarse masks and "
        r"results: 1; uncertain: 1, as .*a\.png: its name belongs to .*\); give a folder"
    )
    with pytest.raises(FileError, match=found):
        survey(tmp_path)


def test_a_folder_that_cannot_be_searched_is_an_error(tmp_path):
    with pytest.raises(FileError, match=r"absent: cannot be searched \(No such file"):
        survey(tmp_path / "absent")
    write(tmp_path, "a.jpg")
    with pytest.raises(FileError, match=r"a\.jpg: cannot be searched \(Not a directory"):
        survey(tmp_path / "a.jpg")


# ------------------------------------------------------------------------------------------------------------ truths


def palette_png(path: Path, labels: np.ndarray, colours: Sequence[Sequence[int]]) -> None:
    picture = Image.fromarray(labels.astype(np.uint8))
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    palette[255] = (224, 224, 192)
    picture.putpalette(palette.tobytes())
    assert picture.mode == "P"
    picture.save(path)


def truth_of(path: Path) -> np.ndarray:
    return read_truth(Pair(path.with_name("picture.jpg"), path), DISC.shape)


OBJECTS = DISC * np.where(np.arange(DISC.shape[1]) < 8, 1, 2)  # label 1 on the left, 2 on the right
VOID = cv2.dilate(DISC.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~DISC
DAVIS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]


VALUES = {
    "0 and 1": DISC.astype(np.uint8),
    "0 and 255": 255 * DISC.astype(np.uint8),
    "0 and 1 in 16 bits": DISC.astype(np.uint16),
    "0 and 65535": 65535 * DISC.astype(np.uint16),
    "soft": np.where(DISC, 128, 127).astype(np.uint8),
    "soft in 16 bits": np.where(DISC, 40000, 30000).astype(np.uint16),
    "ids": OBJECTS.astype(np.uint8),
    "ids in 16 bits": 300 * OBJECTS.astype(np.uint16),
    "ids and void": np.where(VOID, 255, 20 * OBJECTS).astype(np.uint8),
    "grey as RGB": np.repeat(255 * DISC[..., None].astype(np.uint8), 3, axis=2),
}


@pytest.mark.parametrize("values", VALUES)
def test_truths_of_any_values_are_read_as_0_and_255(tmp_path, values):
    cv2.imwrite(str(tmp_path / "truth.png"), VALUES[values])
    found = truth_of(tmp_path / "truth.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, 255 * DISC)


@pytest.mark.parametrize(
    ("labels", "colours"),
    [
        (DISC, DAVIS),
        (2 * DISC, DAVIS),
        (OBJECTS, DAVIS),
        (np.where(VOID, 255, 3 * DISC), DAVIS),
        (255 * DISC, DAVIS),
        (~DISC, [(255, 255, 255), (0, 0, 0)]),
        (2 * DISC, [(0, 0, 0), (1, 2, 3), (255, 255, 255)]),
    ],
    ids=["one", "one of many", "two", "one and void", "white", "black is 1", "white is 2"],
)
def test_palette_truths_are_every_object_without_void(tmp_path, labels, colours):
    palette_png(tmp_path / "truth.png", labels, colours)
    np.testing.assert_array_equal(truth_of(tmp_path / "truth.png"), 255 * DISC)


def test_an_alpha_matte_is_cut_at_a_half(tmp_path):
    alpha = np.tile(np.linspace(0, 1, 17, dtype=np.float32), (13, 1))
    np.save(tmp_path / "truth.npy", alpha)
    np.testing.assert_array_equal(truth_of(tmp_path / "truth.npy"), np.where(alpha > 0.5, 255, 0))
    levels = np.rint(alpha * 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "truth.png"), levels)
    np.testing.assert_array_equal(truth_of(tmp_path / "truth.png"), np.where(levels > 127, 255, 0))


@pytest.mark.parametrize("white", [255, 254, 200])
@pytest.mark.parametrize("quality", [50, 75, 95, 100])
@pytest.mark.parametrize("name", ["truth.jpg", "truth.png"])  # the content decides
def test_a_lossy_truth_is_cut_at_half_of_its_white(tmp_path, name, quality, white):
    truth = cv2.circle(np.zeros((200, 260), np.uint8), (120, 90), 70, 255, -1)
    Image.fromarray(np.minimum(truth, np.uint8(white))).save(tmp_path / name, "JPEG", quality=quality)
    found = read_truth(Pair(tmp_path / "a.jpg", tmp_path / name), truth.shape)
    assert np.isin(found, (0, 255)).all()
    assert not (found != truth)[cv2.morphologyEx(truth, cv2.MORPH_GRADIENT, np.ones((5, 5))) == 0].any()


@pytest.mark.parametrize("stray", [1, 254])
def test_a_stray_value_of_a_jpeg_is_no_label(tmp_path, stray, monkeypatch):
    values = np.where(DISC, 255, 0).astype(np.uint8)
    values[0, 0] = stray
    write(tmp_path, "truth.jpg")
    monkeypatch.setattr(folders, "read_mask", lambda path: values)
    np.testing.assert_array_equal(truth_of(tmp_path / "truth.jpg"), np.where(values > 127, 255, 0))


def test_a_jpeg_without_white_may_be_labels(tmp_path, monkeypatch):
    write(tmp_path, "truth.jpg")
    monkeypatch.setattr(folders, "read_mask", lambda path: (20 * OBJECTS // 2 + DISC).astype(np.uint8))
    np.testing.assert_array_equal(truth_of(tmp_path / "truth.jpg"), 255 * DISC)
    monkeypatch.setattr(folders, "read_mask", lambda path: np.arange(100, dtype=np.uint8).reshape(10, 10))
    with pytest.raises(FileError, match="labels"):
        read_truth(Pair(tmp_path / "a.jpg", tmp_path / "truth.jpg"), (10, 10))


@pytest.mark.parametrize("extra", [{}, {"exif": b"Exif\0\0"}])  # which puts other chunks before the pixels
@pytest.mark.parametrize("lossless", [True, False])
def test_a_lossy_webp_is_told_from_a_lossless_one(tmp_path, extra, lossless):
    Image.fromarray(255 * DISC.astype(np.uint8)).save(tmp_path / "a.webp", lossless=lossless, **extra)
    assert folders._is_lossy(tmp_path / "a.webp") == (not lossless)


def test_labels_in_a_lossless_webp_are_labels(tmp_path):
    Image.fromarray(OBJECTS.astype(np.uint8)).save(tmp_path / "truth.webp", lossless=True)
    np.testing.assert_array_equal(truth_of(tmp_path / "truth.webp"), 255 * DISC)


def test_an_empty_truth_is_empty(tmp_path):
    palette_png(tmp_path / "truth.png", 0 * DISC, DAVIS)
    assert not truth_of(tmp_path / "truth.png").any()


@pytest.mark.parametrize("size", [(26, 34), (7, 9), (17, 13)])
def test_a_truth_of_another_size_than_its_picture_is_an_error_that_names_both(tmp_path, size):
    write(tmp_path, "a.jpg", "a.png")
    (pair,) = survey(tmp_path).pairs
    sizes = rf"a\.png: 13 x 17 is not the size of its picture .*a\.jpg, {size[0]} x {size[1]} \(H x W"
    with pytest.raises(FileError, match=sizes):
        read_truth(pair, size)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        # 255 may be an object as white as 85 and 170 are grey, or void; and a lone 1 may be a stray value.
        (np.kron([[0, 85], [170, 255]], np.ones((40, 40))).astype(np.uint8), "255 may be void or object"),
        (np.where(np.indices((12, 16)).sum(0) == 3, 1, np.uint8(255)).astype(np.uint8), "255 may be void or object"),
        (np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 100, "100 values 0..99 are neither a mask nor"),
        (np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 20, "192 values 0..3820 are neither a mask nor"),
    ],
    ids=["greys", "stray", "dim", "dim 16 bits"],
)
def test_a_truth_that_may_mean_two_things_is_an_error(tmp_path, values, message):
    cv2.imwrite(str(tmp_path / "truth.png"), values)
    with pytest.raises(FileError, match=message):
        read_truth(Pair(tmp_path / "a.jpg", tmp_path / "truth.png"), values.shape)


def test_labels_are_no_truth_where_0_may_be_an_object_or_below(tmp_path):
    palette_png(tmp_path / "truth.png", OBJECTS, DAVIS[::-1])
    with pytest.raises(FileError, match="label 0 of its palette is not black"):
        truth_of(tmp_path / "truth.png")
    np.save(tmp_path / "truth.npy", OBJECTS - 1)
    with pytest.raises(FileError, match=r"3 values -1\.\.1 are neither"):
        truth_of(tmp_path / "truth.npy")


def test_a_photograph_is_no_truth(tmp_path):
    write(tmp_path, "a.jpg")
    Image.open(tmp_path / "a.jpg").save(tmp_path / "truth.png")
    with pytest.raises(InputError, match="a coloured mask"):
        truth_of(tmp_path / "truth.png")
    Image.open(tmp_path / "a.jpg").quantize(256).save(tmp_path / "truth.png")
    with pytest.raises(FileError, match=r"truth\.png: "):
        truth_of(tmp_path / "truth.png")


# ------------------------------------------------------------------------------------------------------------- sizes


def test_sizes_are_those_of_the_headers(tmp_path):
    write(tmp_path, "a.jpg", "a.png", "a_seg.png", "b_im.jpg", "b_gt.npy", "c_im.jpg", "c_gt0.tif", "c_gt1.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed upright
    Image.open(tmp_path / "a.jpg").transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif)
    for name in ("a.png", "a_seg.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])  # no pixels are looked at
    pairs = survey(tmp_path).pairs
    check_sizes(pairs, coarse=True)
    cv2.imwrite(str(tmp_path / "a_seg.png"), np.zeros((7, 9), np.uint8))  # smaller, of the picture's aspect
    check_sizes(pairs, coarse=True)
    cv2.imwrite(str(tmp_path / "a_seg.png"), np.zeros((3, 9), np.uint8))
    check_sizes(pairs, coarse=False)
    with pytest.raises(FileError, match=r"^1 masks .*a_seg\.png is 3 x 9, its picture .*a\.jpg 13 x 17; give masks"):
        check_sizes(pairs, coarse=True)


def test_masks_that_do_not_fit_are_told_together(tmp_path):
    write(tmp_path, *(f"{name}{end}" for name in "abcdefg" for end in ("_im.jpg", "_gt.png")), "h_im.jpg", "h_gt.npy")
    pairs = survey(tmp_path).pairs
    for name in "abcde":
        cv2.imwrite(str(tmp_path / f"{name}_gt.png"), np.zeros((3, 4), np.uint8))
    np.save(tmp_path / "h_gt.npy", DISC[1:])
    (tmp_path / "b_gt.png").write_bytes(b"no picture")
    message = (
        r"^6 masks .*a_gt\.png is 3 x 4, .*b_gt\.png: of an unknown format.*e_gt\.png is.*; and 1 more; give masks"
    )
    with pytest.raises(FileError, match=message):
        check_sizes(pairs, coarse=False)


# --------------------------------------------------------------------------------------------------------- held out


def test_a_picture_in_both_sets_is_found_under_another_name(tmp_path):
    write(tmp_path, *(f"train/images/{i}.jpg" for i in range(3)), *(f"heldout/{i}_im.jpg" for i in range(3)))
    training, heldout = (sorted((tmp_path / name).rglob("*.jpg")) for name in ("train", "heldout"))
    assert shared_pictures(training, heldout) == []
    heldout[2].write_bytes(training[0].read_bytes())
    assert shared_pictures([*training, *training], heldout) == [(training[0], heldout[2])]
    with pytest.raises(FileError, match=r"absent\.jpg: cannot be read"):
        shared_pictures(training, [tmp_path / "absent.jpg"])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_trains_on_a_held_out_picture(shared, recipe):
    data = shared / "data"
    if not (data / "heldout").is_dir():
        pytest.skip("the folder ../shared/data/heldout with real photographs is not here")
    named = tomllib.loads(recipe.read_text(encoding="utf-8")).get("data", ())
    # Folders networks/... are copies of train/... with masks that `refine-cli coarse-masks` made.
    folders = [data / name.replace("networks/", "train/") for name in named]
    if not folders:
        pytest.skip("the recipe names no folders")
    training = [pair.image for folder in folders if folder.is_dir() for pair in survey(folder).pairs]
    heldout = [pair.image for pair in survey(data / "heldout").pairs]
    assert heldout
    assert shared_pictures(training, heldout) == []
    if missing := [folder.name for folder in folders if not folder.is_dir()]:
        pytest.skip(f"of the recipe's folders {', '.join(missing)} are not in ../shared/data")
