import json
import subprocess
import sys

import pytest
import torch

import refine
from refine.config import Options, parse_bytes
from refine.devices import is_emulated
from refine.errors import OptionError
from refine.guidance import sam_memory
from refine.models import PRESETS, build
from refine.plan import GIB, LEAST, MIB, PER_PIXEL, SMALLEST, plan

SCALES = ((500, 750), (1000, 1500), (2000, 3000), (4000, 6000))


@pytest.fixture(scope="module", params=PRESETS)
def network(request):
    return build(PRESETS[request.param])


def planned(network, **options):
    return plan(network, SCALES[-1], SCALES, Options(**options), torch.bfloat16)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (2**31, 2**31),
        ("7", 7),
        ("2GiB", 2**31),
        ("1.5 GB", 1_500_000_000),
        ("800mb", 800_000_000),
        ("3 KiB", 3072),
    ],
)
def test_memory_is_read_in_bytes_and_words(value, expected):
    assert parse_bytes(value) == expected


@pytest.mark.parametrize("value", ["", "GiB", "-1", 0, -5, "2 gigs", 1.5, True, "0MB", "1e9"])
def test_what_is_no_memory_is_refused(value):
    with pytest.raises(OptionError, match="max_memory"):
        Options(max_memory=value)


def test_without_a_cap_the_networks_own_tile_is_taken(network):
    assert planned(network).tile == network.tile


def test_a_smaller_picture_is_one_tile(network):
    found = plan(network, (300, 500), ((300, 500),), Options(), torch.float32)
    assert 500 <= found.tile < 500 + network.window
    assert found.tiles == 1


def test_a_lower_cap_gives_smaller_tiles_and_stays_below(network):
    tiles = []
    for cap in (8 * GIB, 3 * GIB, 2 * GIB, 1200 * MIB, 1000 * MIB):
        found = planned(network, max_memory=cap)
        assert found.peak <= cap
        assert found.tile % network.window == 0
        tiles.append(found.tile)
    assert tiles == sorted(tiles, reverse=True)
    assert len(set(tiles)) > 2


def test_a_cap_that_is_too_small_states_the_least_that_works(network):
    with pytest.raises(OptionError, match=r"at least \d+\.\d\d GiB are needed") as raised:
        planned(network, max_memory=LEAST)
    least = float(str(raised.value).split("at least ")[1].split(" GiB")[0])
    assert planned(network, max_memory=f"{least:.2f}GiB").tile < SMALLEST + 2 * 32


def test_windows_of_files_need_no_memory_for_the_picture(network):
    slide = (80_000, 40_000)
    scales = tuple((n // k, m // k) for k in (8, 4, 2, 1) for n, m in [slide])
    found = plan(network, slide, scales, Options(max_memory="4GiB"), torch.bfloat16, windowed=True)
    assert found.peak <= 4 * GIB
    assert found.tile >= 1024
    with pytest.raises(OptionError, match=r"with -o NAME\.tif, is refined by windows"):
        plan(network, slide, scales, Options(max_memory="4GiB"), torch.bfloat16)


def test_large_strips_of_files_are_planned_for(network):
    options = Options(max_memory="1GiB")
    few, many = (
        plan(network, (8000, 8000), ((8000, 8000),), options, torch.bfloat16, windowed=True, excess=excess)
        for excess in (0, 2**28)
    )
    assert many.picture - few.picture == 2**28
    assert many.tile < few.tile
    assert many.peak <= GIB


def test_coarse_scales_in_full_have_more_queries_on_a_tile(network):
    slide = (12_000, 12_000)
    scales = tuple((n // k, n // k) for k in (8, 4, 2, 1) for n in slide[:1])
    full, following = (
        plan(network, slide, scales, Options(max_memory="1GiB", coarse_decode=how), torch.bfloat16, windowed=True)
        for how in ("full", "next")
    )
    assert full.tile < following.tile
    assert full.working >= 16 * (8 * full.tile) ** 2
    assert full.peak <= GIB


def test_a_tile_that_was_asked_for_is_kept_or_refused(network):
    assert planned(network, tile=512).tile == 512
    with pytest.raises(OptionError, match="leave the tile's size open"):
        planned(network, tile=4096, max_memory="700MiB")


def test_the_plan_can_be_read_and_stored(network):
    found = planned(network, max_memory="2GiB")
    assert "tiles of" in str(found)
    assert "at most 2.00 GiB" in str(found)
    assert json.loads(json.dumps(found.as_dict()))["peak"] == found.peak


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
import refine

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

decode, dtype, cap = sys.argv[1:]
refiner = refine.Refiner(device="cpu", dtype=dtype, decode=decode, max_memory=cap)
rng = np.random.default_rng(0)
image = rng.integers(0, 256, (1100, 1400, 3), np.uint8)
mask = np.zeros((1100, 1400), bool)
mask[200:900, 300:1100] = True
mask ^= rng.random(mask.shape) < 0.1  # contours everywhere, so that everything is encoded
before = status("VmRSS")
report = refiner.refine(image, mask).report
print(refiner.plan((1100, 1400)).tile, status("VmHWM") - before, report.scales[-1].encoded)
"""


native = pytest.mark.skipif(
    is_emulated(torch.bfloat16, torch.device("cpu")), reason="a processor without bfloat16 takes minutes for it"
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("decode", "dtype", "cap"),
    [
        ("dense", "float32", 600 * MIB),
        ("strided", "float32", 600 * MIB),
        pytest.param("dense", "bfloat16", 480 * MIB, marks=native),
        pytest.param("strided", "bfloat16", 480 * MIB, marks=native),
    ],
)
def test_the_real_peak_stays_under_the_cap(decode, dtype, cap):
    answer = subprocess.run(
        [sys.executable, "-c", PEAK, decode, dtype, str(cap)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "2", "PATH": ""},
    )
    tile, peak, encoded = (float(word) for word in answer.stdout.split())
    assert tile < 1100  # the cap took effect
    assert encoded > 0.7
    assert peak <= cap
    assert peak > cap / 4  # and what was measured is what was meant


def test_arithmetic_that_is_emulated_counts_its_copies(network):
    of = [
        plan(network, SCALES[-1], SCALES, Options(tile=512), dtype, emulated=emulated).working
        for dtype, emulated in ((torch.bfloat16, False), (torch.float32, False), (torch.bfloat16, True))
    ]
    assert of[0] < of[1] < of[2]
    assert of[2] - of[1] == of[1] - of[0]


def test_the_refiner_plans_with_its_cascade():
    refiner = refine.Refiner(device="cpu", dtype="float32")
    found = refiner.plan((1500, 600))
    assert found.size == (1500, 600)
    assert found.scales == ((375, 150), (750, 300), (1500, 600))
    assert refiner.plan((1000, 600)).scales == ((375, 225), (750, 450), (1500, 900))  # seen enlarged


def test_what_segment_anything_takes_is_told_apart_from_the_cascade():
    refiner = refine.Refiner(device="cpu", dtype="float32")
    plain, guided, given = (
        refiner.plan((300, 400), **options)
        for options in ({}, {"guidance": "sam-sr-v1"}, {"guidance": "sam-sr-v1", "proposals": "slic"})
    )
    assert (plain.guidance, guided.guidance, given.guidance) == (0, sam_memory.PEAK["sam-vit-b"], 0)
    assert plain.peak == guided.peak == given.peak
    assert "before, Segment Anything takes 2.45 GiB, where what it finds is not kept yet" in str(guided)
    assert "Segment Anything" not in str(plain)
    assert json.loads(json.dumps(guided.as_dict()))["guidance"] == sam_memory.PEAK["sam-vit-b"]


def test_a_plan_speaks_of_the_picture_and_counts_its_border():
    published = refine.Refiner("crm-r50", device="cpu")
    assert published.plan((1000, 1200)).size == (1000, 1200)
    assert published.plan((1000, 1200)).picture == PER_PIXEL * 1064 * 1264
    with pytest.raises(OptionError, match="too little for 1000 x 1200"):
        published.plan((1000, 1200), max_memory="100MiB")
