import json
from dataclasses import replace
from pathlib import Path

import pytest

from refine import checkpoint
from refine.config import Spec
from refine.errors import OptionError, RefineError
from refine.models import PRESETS
from refine.training.coarse import DEFAULT_MIX
from refine.training.losses import CRM
from refine.training.recipe import Recipe, read_recipe, shipped


def test_a_plateau_rises_stays_and_falls():
    recipe = Recipe(steps=100, warmup=10, decay=0.2)
    rates = [recipe.learning_rate_at(step) for step in range(101)]
    assert rates[0] < rates[5] < rates[9] == rates[80] == 1
    assert 0 == rates[100] < rates[99] < rates[90] < 1


def test_a_schedule_of_steps_falls_by_ten_at_each_milestone():
    recipe = Recipe(steps=100, schedule="steps", milestones=(50, 80), warmup=0)
    rates = [recipe.learning_rate_at(step) for step in (0, 49, 50, 79, 80, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 96, "crop": 64}, "crop is a multiple of 64"),
        ({"crop": 63, "window": 32}, "crop is a multiple of 64"),
        ({"crop": 96}, "crop is a multiple of 64"),
        ({"crop": 80, "passes": 1}, "crop is a multiple of 32"),
        ({"passes": 3}, "passes=3"),
        ({"crop": 64, "window": 64, "batch": 1}, "give a larger batch or crop"),
        ({"crop": 32, "passes": 1, "batch": 1}, "give a larger batch or crop"),
        ({"batch": 0}, "batch=0"),
        ({"steps": 0}, "steps=0"),
        ({"steps": "9"}, "steps='9'"),
        ({"steps": True}, "steps=True"),
        ({"seed": -1}, r"seed=-1 is not possible; give a whole number of 0 up to 1e\+09"),
        ({"seed": 10**14}, r"seed=100000000000000 is not possible; give a whole number of 0 up to 1e\+09"),
        ({"learning_rate": "fast"}, "learning_rate='fast'"),
        ({"learning_rate": 0}, "learning_rate=0 "),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"composed": -0.1}, "composed=-0.1"),
        ({"ema": 1.5}, "ema=1.5 is not possible; give a number of 0 up to 1"),
        ({"shares": (1.0, 2.0)}, "2 shares for 1"),
        ({"shares": (0.0,)}, "none below 0 and one above"),
        ({"shares": 1.0}, "shares=1.0 is not possible; give a list"),
        ({"data": "folder"}, "data='folder' is not possible; give a list"),
        ({"model": "crm-x"}, "model='crm-x' is unknown; known are crm-s, crm-r50"),
        ({"model": 5}, "model=5 is not possible; give a text"),
        ({"trunk": "deep"}, "trunk='deep' is unknown"),
        ({"decoder": "deep"}, "decoder='deep' is unknown"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is unknown; known are adamw, adam"),
        ({"schedule": "cosine"}, "schedule='cosine' is unknown"),
        ({"schedule": "steps"}, "milestones belong to the schedule 'steps', which needs some"),
        ({"milestones": (5,)}, "milestones belong to the schedule 'steps'"),
        ({"augment": "none"}, "augment='none' is unknown"),
        ({"augment": "published", "coarse": {"given": 1.0}}, "leave 'given' out of coarse"),
        ({"store": "int8"}, "store='int8' is unknown"),
        ({"loss": "bce + 0.5*nonsense"}, "nonsense"),
        ({"loss": 3}, "loss=3"),
        ({"coarse": {"scribble": 1.0}}, "scribble"),
        ({"coarse": {}}, "coarse"),
        ({"coarse": 0.5}, "coarse=0.5 is not possible; give a table"),
        ({"trunk": "dense", "pretrained": "mobilenetv2.npz"}, "trunk='dense' has no pretrained features"),
        ({"initial": "a.safetensors", "pretrained": "mobilenetv2.npz"}, "give one of them"),
        ({"model": "crm-r50", "trunk": "dense"}, "trunk='dense' belongs to crm-s; crm-r50 has none"),
        ({"model": "crm-r50", "decoder": "ensemble"}, "decoder='ensemble' belongs to crm-s"),
        ({"model": "crm-r50", "pretrained": "mobilenetv2.npz"}, "pretrained='mobilenetv2.npz' belongs to crm-s"),
        ({"cascade": 360}, "cascade=360 is not possible; give a table with some of decode, smallest"),
        ({"cascade": {"scales": [1.0]}}, "a recipe sets no 'scales' of a cascade; it may set decode, smallest"),
        (
            {"cascade": {"smallest": 1.5}},
            r"cascade\.smallest=1\.5 is not possible; give a whole number of 0 up to 1e",
        ),
        ({"cascade": {"passes": True}}, r"cascade\.passes=True is not possible; give a whole number of 1 up to 16"),
        ({"cascade": {"enlarged": 0.5}}, r"cascade\.enlarged=0\.5 is not possible; give a number of 1 up to 4"),
        ({"cascade": {"lean": float("nan")}}, r"cascade\.lean=nan is not possible; give a number of -6 up to 6"),
        ({"batch": 1, "crop": 64, "window": 64}, "batch norms a single value"),
        (
            {"model": "crm-s+v2.1", "proposals": "slic", "batch": 1, "crop": 64, "window": 64},
            "batch norms a single value",
        ),
        ({"cascade": {"lean_fades": 600}}, r"cascade\.lean_fades=600 is not possible; give two lengths"),
        ({"cascade": {"lean_fades": [600]}}, r"cascade\.lean_fades=\[600\] is not possible; give two lengths"),
        ({"cascade": {"lean_fades": [600, "800"]}}, "cascade.lean_fades='800' is not possible; give a whole number"),
        ({"cascade": {"lean_fades": [800, 600]}}, "cascade.lean_fades=600 is not possible; give a whole number of 800"),
        ({"cascade": {"sure": "0.1"}}, r"cascade\.sure='0\.1' is not possible; give a number of 0 up to 0\.5"),
        ({"cascade": {"decode": "all"}}, "decode='all' is unknown; known are dense"),
    ],
)
def test_an_impossible_recipe_is_refused(change, message):
    with pytest.raises(OptionError, match=message):
        Recipe(**{"data": ("folder",), **change})


def test_a_recipe_says_nothing_of_where_its_data_lies():
    recipe = Recipe(data=("/home/a/one", "/home/a/two"), pretrained="/home/a/mobilenetv2.npz")
    values = json.loads(json.dumps(recipe.as_dict()))
    assert (values["data"], values["pretrained"], values["shares"]) == (["one", "two"], "mobilenetv2.npz", [])
    assert values["coarse"] == DEFAULT_MIX


def test_a_recipe_is_read_from_toml(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        'data = ["a", "b"]\nshares = [1.0, 2.0]\nsteps = 7\npretrained = "p.npz"\n[coarse]\ncontour = 1\n'
    )
    found = read_recipe(tmp_path / "recipe.toml", tmp_path / "root")
    root = tmp_path / "root"
    data = (str(root / "a"), str(root / "b"))
    assert found == Recipe(data=data, shares=(1.0, 2.0), steps=7, pretrained=str(root / "p.npz"), coarse={"contour": 1})


def test_a_recipe_says_how_the_cascade_differs_from_the_models_own():
    own = PRESETS["crm-r50"].cascade
    assert Recipe(model="crm-r50").spec().cascade == own
    changes = {"smallest": 360, "lean": -0.5, "lean_fades": [400, 500]}
    found = Recipe(model="crm-r50", cascade=changes).spec().cascade
    assert found == replace(own, smallest=360, lean=-0.5, lean_fades=(400, 500))


def test_a_cascade_of_a_file_is_in_the_weights_specification(tmp_path):
    (tmp_path / "recipe.toml").write_text('trunk = "dense"\n[cascade]\nsure = 0.1\ndecode = "bbox"\n')
    spec = read_recipe(tmp_path / "recipe.toml").spec()
    assert spec.cascade == replace(PRESETS["crm-s"].cascade, sure=0.1, decode="bbox")
    assert spec.arguments["trunk"] == "dense"
    plain = Recipe(trunk="dense")
    assert replace(plain, cascade={"lean": 1}).lasting() == plain.lasting()


def test_shipped_crm_r50_has_its_recipes_specification():
    spec = checkpoint.load(checkpoint.find("crm-r50")).spec
    assert Spec.from_dict(spec) == read_recipe("crm-r50").spec()


def test_without_a_recipe_fields_have_their_defaults():
    assert read_recipe(None, given={"data": ["a"]}) == Recipe(data=("a",))


def test_changes_win_over_given_fields_and_those_over_the_files(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('data = ["a"]\nsteps = 7\nseed = 3\nbatch = 5\n')
    changes = ["steps = 9", 'trunk="dense"', 'data = ["b"]', "steps = 11"]
    found = read_recipe(path, tmp_path, changes=changes, given={"steps": 8, "batch": 4})
    assert found == Recipe(data=(str(tmp_path / "b"),), steps=11, batch=4, seed=3, trunk="dense")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("cascade.lean=0.5", {"smallest": 360, "lean": 0.5}),
        ("cascade={lean=0.5}", {"lean": 0.5}),
        ("cascade.smallest=100", {"smallest": 100}),
    ],
)
def test_a_dotted_name_changes_one_field_of_a_table_and_a_table_the_whole(tmp_path, change, expected):
    (tmp_path / "recipe.toml").write_text("[cascade]\nsmallest = 360\n")
    assert read_recipe(tmp_path / "recipe.toml", changes=[change]).cascade == expected


def test_a_dotted_name_changes_also_a_default():
    assert read_recipe(None, changes=["coarse.box=0.5"]).coarse == {**DEFAULT_MIX, "box": 0.5}
    with pytest.raises(OptionError, match="seed="):
        read_recipe(None, changes=["seed.low=1"])
    with pytest.raises(OptionError, match="no field 'seeds'"):
        read_recipe(None, changes=["seeds.low=1"])


def test_given_data_lies_where_it_says_and_drops_the_files_shares(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('data = ["a", "b"]\nshares = [0.5, 0.5]\n')
    assert read_recipe(path, tmp_path, given={"data": ["mine"]}) == Recipe(data=("mine",))


def test_a_cascade_of_a_file_that_names_no_network_is_that_of_any(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[cascade]\nlean = 0.5\n")
    assert read_recipe(path, given={"data": ["mine"], "model": "crm-r50"}).cascade == {"lean": 0.5}


def test_another_network_drops_the_files_cascade():
    own = read_recipe("crm-r50").spec().cascade
    assert own.guard > PRESETS["crm-r50"].cascade.guard
    for model, expected in (("crm-s", PRESETS["crm-s"].cascade), ("crm-r50+v2.1", own)):
        given = {"data": ["mine"], "model": model, "proposals": "slic" if "+" in model else ""}
        assert read_recipe("crm-r50", given=given).spec().cascade == expected


def test_given_weights_replace_pretrained_features(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('data = ["a"]\npretrained = "mobilenetv2.npz"\n')
    found = read_recipe(path, tmp_path, given={"initial": "mine.safetensors"})
    assert (found.initial, found.pretrained) == ("mine.safetensors", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trunk=dense", "'trunk=dense' cannot be read"),
        ("steps", "'steps' cannot be read"),
        ("epochs=7", "no field 'epochs'; its fields are data, model"),
        ("steps=0", "steps=0 is not possible"),
        ("data=3", "data=3 is not possible; give a list"),
        ("initial=3", "initial=3 is not possible; give a text"),
        ("data=[3]", "data=3 is not possible; give a text"),
    ],
)
def test_a_broken_change_of_a_recipe_is_refused(tmp_path, change, message):
    (tmp_path / "recipe.toml").write_text('data = ["a"]\n')
    with pytest.raises(OptionError, match=message):
        read_recipe(tmp_path / "recipe.toml", tmp_path, changes=["seed=1", change])


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"absent\.toml' cannot be read; give a TOML file or one of crm-paper"):
        read_recipe(tmp_path / "absent.toml", tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match=r"binary\.toml' cannot be read"):
        read_recipe(tmp_path / "binary.toml", tmp_path)
    with pytest.raises(OptionError, match="cannot be read"):
        read_recipe(tmp_path, tmp_path)


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_that_ships_is_one_by_its_name_and_by_its_path(name):
    path = shipped()[name]
    assert read_recipe(name) == read_recipe(path)
    assert read_recipe(name).model in PRESETS


def test_every_recipe_and_all_weights_of_the_checkout_are_in_the_wheel():
    listed = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    weights = (entry.path for entry in checkpoint.manifest())
    for path in (*shipped().values(), *weights):
        assert f'"weights/{path.name}" = "refine/weights/{path.name}"' in listed


def test_the_published_recipe_is_as_published():
    found = read_recipe("crm-paper", given={"data": ["a"]})
    assert (found.model, found.crop, found.batch, found.steps) == ("crm-r50", 224, 12, 45_000)
    assert (found.optimizer, found.learning_rate, found.weight_decay) == ("adam", 2.25e-4, 1e-4)
    factors = [found.learning_rate_at(step) for step in (0, 22_499, 22_500, 37_499, 37_500)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert (found.loss, found.coarse, found.augment, found.passes) == (CRM, {"contour": 1.0}, "published", 1)


def test_the_recipe_that_is_stored_with_shipped_weights_can_still_be_read():
    for entry in checkpoint.manifest():
        if entry.name not in shipped():
            continue
        stored = json.loads(checkpoint.load(checkpoint.find(entry.name)).metadata["recipe"])
        try:
            Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
        except RefineError as error:
            pytest.fail(f"{entry.name}: {error}")
