import json

import numpy as np
import pytest

from refine.config import DECODES, Cascade, Options, Spec, number
from refine.errors import OptionError, WeightsError
from refine.models import PRESETS


def test_options_are_changed_one_by_one():
    changed = Options().but(tile=64, keep_scales=True)
    assert (changed.tile, changed.keep_scales, changed.patch) == (64, True, Options().patch)
    assert Options().tile is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode": "all"}, "decode='all' is unknown; known are dense"),
        ({"coarse_decode": 1}, "known are full, next"),
        ({"tile": 31}, "at least 32"),
        ({"tile": True}, "at least 32"),
        ({"patch": 64.0}, "at least 32"),
        ({"stride": 0}, "stride=0 is not possible; give a whole number of at least 1"),
        ({"stride": 2.5}, "at least 1"),
        ({"band": 0}, "band=0 is not possible; give a whole number of at least 1"),
        ({"band": True}, "at least 1"),
        ({"padding": -1}, "padding=-1 is not possible; give a whole number of at least 0"),
        ({"first_pass": "far"}, "first_pass='far' is unknown; known are near, everywhere"),
        ({"first_pass": None}, "known are near, everywhere"),
        ({"keep_scales": 1}, "give True or False"),
        ({"strides": 8}, "there is no option 'strides'; the options are decode, stride, first_pass, band, padding"),
    ],
)
def test_an_impossible_option_is_refused(change, message):
    with pytest.raises(OptionError, match=message):
        Options().but(**change)


@pytest.mark.parametrize("least", [{"stride": 1}, {"band": 1}, {"padding": 0}, {"tile": 32}, {"patch": 32}])
def test_the_least_value_of_an_option_is_possible(least):
    assert Options().but(**least).as_dict() == Options().as_dict() | least


def test_numbers_of_numpy_are_numbers():
    options = Options().but(stride=np.uint8(8), tile=np.int64(64))
    assert options == Options(stride=8, tile=64)
    assert {type(options.stride), type(options.tile)} == {int}


@pytest.mark.parametrize("field", ["decode", "coarse_decode", "tile", "max_memory"])
def test_what_is_left_open_is_the_models_or_the_networks_choice(field):
    assert getattr(Options(), field) is None
    assert {PRESETS[model].cascade.decode for model in PRESETS} <= set(DECODES)


@pytest.mark.parametrize(
    ("size", "scales"),
    [
        ((480, 800), (0.75, 1.5)),
        ((321, 481), (0.75, 1.5)),
        ((300, 479), (1.0,)),
        ((1200, 10), (0.5, 1.0)),
        ((1438, 100), (0.5, 1.0)),
        ((2328, 3492), (0.125, 0.25, 0.5, 1.0)),
    ],
)
def test_scales_too_small_to_show_an_object_are_left_out(size, scales):
    assert PRESETS["crm-s"].cascade.at(*size) == scales


@pytest.mark.parametrize(
    ("size", "scales"),
    [
        ((480, 800), (0.75, 1.5)),
        ((533, 200), (1.0,)),  # enlarged, its half would be below 400 px
        ((534, 200), (0.75, 1.5)),
        ((1000, 10), (0.75, 1.5)),
        ((1200, 1), (0.5, 1.0)),
        ((9, 1201), (0.5, 1.0)),
    ],
)
def test_small_pictures_are_enlarged_by_a_factor_where_they_are_seen_at_two_scales_then(size, scales):
    cascade = Cascade(scales=(0.25, 0.5, 1.0), smallest=400, least=1200, enlarged=1.5)
    assert cascade.at(*size) == pytest.approx(scales)


def test_the_last_scale_alone_has_passes():
    assert PRESETS["crm-s"].cascade.at(480, 800, 3) == (0.75, 1.5, 1.5, 1.5)
    assert PRESETS["crm-s"].cascade.at(300, 479, 2) == (1.0, 1.0)
    assert Cascade(scales=(0.5, 1.0), passes=2).at(300, 479) == (0.5, 1.0, 1.0)


def test_the_published_cascade_always_runs_all_its_scales():
    assert PRESETS["crm-r50"].cascade.at(1, 1) == (0.125, 0.25, 0.5, 1.0)


def test_a_specification_survives_json():
    spec = PRESETS["crm-s"]
    assert Spec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@pytest.mark.parametrize("broken", [{}, {"cascade": {}}, {"cascade": {"scale": [1]}, "model": "crm-s"}, {"cascade": 3}])
def test_a_broken_specification_is_refused(broken):
    with pytest.raises(WeightsError, match="specification cannot be read"):
        Spec.from_dict(broken)


@pytest.mark.parametrize("change", [{"arguments": odd} for odd in ([], "in_channels", None, [["in_channels", 4]])])
def test_arguments_without_names_are_refused(change):
    with pytest.raises(WeightsError, match=r"specification cannot be read \(arguments=.* have no names\)"):
        Spec.from_dict(PRESETS["crm-s"].as_dict() | change)


@pytest.mark.parametrize("scales", [["a"], [], 1.0, "1", [1, None], [0], [-1.0], [float("nan")]])
def test_scales_that_are_no_numbers_are_refused(scales):
    values = PRESETS["crm-s"].as_dict()
    with pytest.raises(WeightsError, match="specification cannot be read"):
        Spec.from_dict(values | {"cascade": values["cascade"] | {"scales": scales}})


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("3.0", 3.0), ("-1e3", -1000.0), ("inf", float("inf"))])
def test_numbers_are_whole_where_they_are_written_so(text, value):
    assert (number(text), type(number(text))) == (value, type(value))


def test_the_last_scale_is_never_left_out():
    assert Cascade(smallest=1000).at(3, 4) == (1.0,)


@pytest.mark.parametrize("value", [2**31, 2**63, 10**400])
@pytest.mark.parametrize("name", ["tile", "patch", "stride", "band", "padding", "passes", "groups", "lean", "coverage"])
def test_an_option_beyond_a_machines_numbers_is_refused(name, value):
    with pytest.raises(OptionError, match=f"{name}=.* is not possible; give") as told:
        Options().but(**{name: value})
    assert len(str(told.value)) < 250


@pytest.mark.parametrize(
    "value", [2**63, "9" * 400, "1" + "0" * 308 + "GB", "9" * 5000, pytest.param(10**5000, id="digits"), "0.1"]
)
def test_memory_beyond_a_machines_numbers_is_refused(value):
    with pytest.raises(OptionError, match=r"max_memory=.* is not possible"):
        Options().but(max_memory=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("pad", value) for value in ("x", 1.5, 10**7, -5, True, None)),
        *(("lean", value) for value in ("x", 7, float("nan"))),
        *(("lean_fades", value) for value in ([1], [800, 600], 5)),
        *(("mean", value) for value in (["a", "b", "c"], [0], [0, 0, 2])),
        *(("std", value) for value in ([0, 0, 0], [1, 1, -1], "abc")),
        *(("scales", value) for value in ([1e5], [float("inf")], [1e-9], [0.5] * 17, {})),
        *((name, "x") for name in ("sure", "empty", "smallest", "least", "enlarged", "passes", "guard")),
        *((name, "bogus") for name in ("resize", "decode", "coarse_decode")),
        ("resize", ["corners"]),
    ],
)
def test_an_impossible_cascade_of_a_file_is_refused(name, value):
    values = json.loads(json.dumps(PRESETS["crm-s"].as_dict()))
    values["cascade"][name] = value
    with pytest.raises(WeightsError, match="specification cannot be read"):
        Spec.from_dict(values)


@pytest.mark.parametrize("change", [{"arguments": {"in_channels": 10**6}}, {"model": 3}, {"guidance": None}])
def test_an_impossible_network_of_a_file_is_refused(change):
    with pytest.raises(WeightsError, match="specification cannot be read"):
        Spec.from_dict(PRESETS["crm-s"].as_dict() | change)
