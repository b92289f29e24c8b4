"""Refining files window by window: the engine's `refine_file`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

import refine
from refine.errors import FileError, InputError, OptionError
from refine.io import read_mask
from refine.training.scenes import scene


@pytest.fixture(scope="module")
def refiner() -> refine.Refiner:
    return refine.Refiner(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    image, truth = scene(np.random.default_rng(3), 460, 700)
    coarse = cv2.GaussianBlur(255 * truth.astype(np.uint8), (0, 0), 7)
    tifffile.imwrite(folder / "im.tif", image, tile=(128, 128), compression="zlib", photometric="rgb")
    tifffile.imwrite(folder / "seg.tif", coarse, rowsperstrip=50)
    return folder / "im.tif", folder / "seg.tif"


def stored(path: Path) -> np.ndarray:
    return read_mask(path) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"decode": "dense"},
        {"decode": "dense", "guard": True},
        {"decode": "contour"},
        {"decode": "strided", "lean": 1.0},
        {"decode": "strided", "passes": 3},
    ],
    ids=str,
)
def test_window_by_window_is_the_whole(refiner, files, tmp_path, options):
    whole = refiner.refine(*files, **options)
    told: list[tuple[int, int]] = []
    out = tmp_path / "out.tif"
    report = refiner.refine_file(*files, out, tile=256, progress=lambda *at: told.append(at), **options)
    np.testing.assert_array_equal(stored(out), whole.mask)
    assert [(s.size, s.taken_back) for s in report.scales] == [(s.size, s.taken_back) for s in whole.report.scales]
    tiles = refiner.plan((460, 700), tile=256, windowed=True, **options).tiles
    assert tiles > 6
    assert told == [(n + 1, tiles) for n in range(tiles)]
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]
    in_memory = refiner.refine(*files, tile=256, **options)
    np.testing.assert_allclose(in_memory.probability, whole.probability, atol=1e-5)


def test_place_and_resolution_are_kept_in_memory_and_by_windows(refiner, files, tmp_path):
    tags = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 46e5, 0.0), True)]
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32631)
    tags.append((34735, 3, 16, keys, True))
    codes = (282, 283, 296, 33550, 33922, 34735)
    image, mask = tmp_path / "im.tif", tmp_path / "seg.tif"
    picture = tifffile.imread(files[0])[:200, :240]
    tifffile.imwrite(image, picture, photometric="rgb", extratags=tags, resolution=((300, 1), (300, 1)))
    elsewhere = [(33922, 12, 6, (0.0, 0.0, 0.0, 6e5, 46e5, 0.0), True), *(tag for tag in tags if tag[0] != 33922)]
    tifffile.imwrite(mask, tifffile.imread(files[1])[:200, :240], extratags=elsewhere)

    def kept(path: Path) -> dict[int, object]:
        with tifffile.TiffFile(path) as tiff:
            return {tag.code: tag.value for tag in tiff.pages[0].tags if tag.code in codes}

    whole = refiner.refine(image, mask)
    whole.save(tmp_path / "whole.tif")
    whole.save_probability(tmp_path / "p.tif")
    report = refiner.refine_file(image, mask, tmp_path / "windows.tif")
    for name in ("whole.tif", "p.tif", "windows.tif"):
        assert kept(tmp_path / name) == kept(image)
    for warnings in (whole.report.warnings, report.warnings):
        assert sum("image and mask have different positions" in text for text in warnings) == 1
    with pytest.warns(UserWarning, match=r"the image's place on Earth is not kept in \.png; save it as \.tif"):
        whole.save(tmp_path / "whole.png")
    method = refine.run(image, mask, model="coarse")
    assert method.georeference == whole.georeference
    assert any("different positions" in text for text in method.report.warnings)


def test_a_work_folder_that_is_a_link_is_not_followed(refiner, files, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.npy").write_text("years of work")
    (tmp_path / "mine" / "refine.journal").touch()
    (tmp_path / "out.tif.work").symlink_to(tmp_path / "mine")
    with pytest.raises(FileError, match=r"out\.tif\.work: is a link"):
        refiner.refine_file(*files, tmp_path / "out.tif")
    assert (tmp_path / "mine" / "data.npy").read_text() == "years of work"


def test_a_smaller_mask_is_enlarged_as_in_memory(refiner, files, tmp_path):
    small = tmp_path / "small.tif"
    tifffile.imwrite(small, cv2.resize(read_mask(files[1]), (350, 230), interpolation=cv2.INTER_AREA))
    refiner.refine_file(files[0], small, tmp_path / "out.tif")
    assert np.mean(stored(tmp_path / "out.tif") != refiner.refine(files[0], small).mask) < 1e-4


KILLED = """
import os, signal, sys
import refine

image, mask, out, last = sys.argv[1:]

def progress(done, tiles):
    print(done, tiles, flush=True)
    if done == int(last):
        os.kill(os.getpid(), signal.SIGKILL)

def counted(*arguments, original=refine.Refiner._decode):
    global refined
    refined += 1
    return original(*arguments)

refined, refine.Refiner._decode = 0, counted
refiner = refine.Refiner(device="cpu", dtype="float32")
report = refiner.refine_file(image, mask, out, tile=256, decode="contour", progress=progress)
print("refined", refined, *(s.pixels_decoded for s in report.scales))
"""


def test_a_killed_run_goes_on_where_it_was(refiner, files, tmp_path):
    out = tmp_path / "out.tif"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}

    def run(last: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, *map(str, (*files, out, last))]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    killed = run(7)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout.split()[0] == "1"
    assert not out.exists()
    assert (tmp_path / "out.tif.work").is_dir()
    again = run(-1)
    assert again.returncode == 0, again.stderr
    *_, (_, tiles), (_, refined, *decoded) = (line.split() for line in again.stdout.splitlines())
    assert int(refined) == int(tiles) - 7
    whole = refiner.refine(*files, decode="contour", tile=256)
    assert list(map(int, decoded)) == [s.pixels_decoded for s in whole.report.scales]
    np.testing.assert_array_equal(stored(out), whole.mask)
    assert not (tmp_path / "out.tif.work").exists()


def test_large_strips_count_in_the_plan_of_files(refiner, files, tmp_path, monkeypatch):
    size = read_mask(files[1]).shape
    few, many = (refiner.plan(size, windowed=True, excess=excess).peak for excess in (0, 2**31))
    assert many - few == 2**31
    monkeypatch.setattr("refine.engine.Slide.excess", property(lambda slide: 2**30))
    with pytest.raises(OptionError, match="at least"):
        refiner.refine_file(*files, tmp_path / "out.tif", max_memory=f"{2**31}")
    assert list(tmp_path.iterdir()) == []
    refiner.refine_file(*files, tmp_path / "out.tif", max_memory=f"{many}")


def test_a_mask_of_another_shape_leaves_nothing_behind(refiner, files, tmp_path):
    mask = tmp_path / "seg.tif"
    tifffile.imwrite(mask, read_mask(files[1])[:, :300])
    with pytest.raises(InputError):
        refiner.refine_file(files[0], mask, tmp_path / "new" / "out.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["seg.tif"]


def test_a_call_that_failed_before_it_did_anything_leaves_nothing_in_the_way(refiner, files, tmp_path):
    mask, out = tmp_path / "seg.tif", tmp_path / "out.tif"
    tifffile.imwrite(mask, np.arange(460 * 700, dtype=np.uint8).reshape(460, 700) % 9)
    with pytest.raises(InputError):
        refiner.refine_file(files[0], mask, out)
    tifffile.imwrite(mask, read_mask(files[1]))
    refiner.refine_file(files[0], mask, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tif", "seg.tif"]


def test_numbers_of_numpy_are_options_too(refiner, files, tmp_path):
    refiner.refine_file(*files, tmp_path / "a.tif", stride=np.int64(4), lean=np.float32(0.5))
    refiner.refine_file(*files, tmp_path / "b.tif", stride=4, lean=0.5)
    np.testing.assert_array_equal(stored(tmp_path / "a.tif"), stored(tmp_path / "b.tif"))


@pytest.mark.parametrize("which", [0, 1])
def test_an_input_is_never_written_over(refiner, files, tmp_path, which):
    copies = [tmp_path / path.name for path in files]
    for path, copy in zip(files, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    (tmp_path / "link.tif").symlink_to(copies[which])
    before = copies[which].read_bytes()
    for out in (copies[which], tmp_path / "link.tif"):
        with pytest.raises(OptionError, match="is an input"):
            refiner.refine_file(*copies, out)
    assert copies[which].read_bytes() == before


def test_the_work_of_other_options_is_not_taken_for_this_ones(refiner, files, tmp_path):
    class Stop(Exception):
        pass

    def stop(done: int, tiles: int) -> None:
        raise Stop

    out = tmp_path / "out.tif"
    with pytest.raises(Stop):
        refiner.refine_file(*files, out, progress=stop)
    with pytest.raises(FileError, match="options"):
        refiner.refine_file(*files, out, decode="contour")


@pytest.mark.parametrize("options", [{"decode": "bbox"}, {"keep_scales": True}], ids=str)
def test_what_needs_the_mask_whole_is_refused(refiner, files, tmp_path, options):
    with pytest.raises(OptionError, match="whole in memory"):
        refiner.refine_file(*files, tmp_path / "out.tif", **options)
    assert not any(tmp_path.iterdir())


def test_files_that_do_not_fit_or_are_no_tiff_are_refused(refiner, files, tmp_path):
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, np.zeros((100, 100), np.uint8))
    with pytest.raises(InputError, match="does not fit"):
        refiner.refine_file(files[0], other, tmp_path / "out.tif")
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(FileError, match="TIFF"):
        refiner.refine_file(picture, files[1], tmp_path / "out.tif")


def test_an_empty_mask_gives_an_empty_file(refiner, files, tmp_path):
    empty = tmp_path / "empty.tif"
    tifffile.imwrite(empty, np.zeros((460, 700), np.uint8))
    report = refiner.refine_file(files[0], empty, tmp_path / "out.tif")
    assert "all background" in report.warnings[0]
    assert not stored(tmp_path / "out.tif").any()


@pytest.mark.parametrize("given", [b"secret", bytearray(b"secret"), None, np.zeros((4, 4), bool)], ids=type)
def test_what_is_no_path_is_not_read_by_windows(tmp_path, given):
    refiner = refine.Refiner("crm-s", device="cpu", dtype="float32")
    with pytest.raises(OptionError, match=r"by their paths.*or use refine\(\)") as raised:
        refiner.refine_file(tmp_path / "a.tif", given, tmp_path / "out.tif")
    assert "secret" not in str(raised.value)
