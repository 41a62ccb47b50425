"""Finding a recipe by its name, and the overrides of a command line."""

import pytest

from vit_jax import recipe
from vit_jax.config import ROWS, base, flat, leaves
from vit_jax.errors import UserError

RECIPES = (
    "augreg.py, base.py, bit.py, deit3.py, detr.py, digits.py, finetune.py, folder.py, "
    "linear_probe.py, mae.py, mixer.py, plain.py, pretrain.py, study.py, table6.py, vtab.py, "
    "yolos.py"
)

ONE_KEY = """
from vit_jax.config import base

def get_config({parameter}):
    c = base()
    c.seed = {value}
    return c
"""


def file(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def overridden(**values):
    """The value of the one key given, after its override; __ stands for the dot."""
    ((key, text),) = values.items()
    c = base()
    (named,) = recipe.override(c, {key.replace("__", "."): text})
    return dict(leaves(c))[named]


# -- finding ------------------------------------------------------------------------------


def test_a_recipe_is_a_file_of_ones_own(tmp_path):
    mine = file(tmp_path / "mine.py", ONE_KEY.format(parameter="", value=11))
    assert recipe.load(str(mine)).seed == 11


@pytest.mark.parametrize("spec", ["digits.py", "digits", "configs/digits.py"])
def test_a_bundled_recipe_is_found_by_its_name_from_any_folder(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe.load(spec).model.name == "vit_nano_patch4_8"


def test_a_file_that_is_there_goes_before_the_bundled_one(tmp_path, monkeypatch):
    file(tmp_path / "configs" / "digits.py", ONE_KEY.format(parameter="", value=12))
    monkeypatch.chdir(tmp_path)
    assert recipe.load("configs/digits.py").seed == 12
    assert recipe.load("digits.py").seed == 0


def test_what_follows_the_colon_goes_to_the_recipe(tmp_path):
    mine = file(tmp_path / "mine.py", ONE_KEY.format(parameter="text='5'", value="int(text)"))
    assert recipe.load(f"{mine}:31").seed == 31
    assert recipe.load(str(mine)).seed == 5


def test_arguments_may_hold_colons(tmp_path):
    mine = file(tmp_path / "mine.py", ONE_KEY.format(parameter="text", value="len(text)"))
    assert recipe.load(f"{mine}:folder:/a:b").seed == len("folder:/a:b")


def test_the_recipes_own_user_error_comes_through():
    with pytest.raises(UserError, match=r"folder.py needs the folder: --config=folder.py:PATH"):
        recipe.load("folder.py")


@pytest.mark.parametrize(
    "spec", ["digit.py", "missing/digits.py", "/nowhere/configs/digits.py", "configs/nothing:b16"]
)
def test_a_missing_file_lists_the_bundled_recipes(spec):
    with pytest.raises(UserError) as error:
        recipe.load(spec)
    path = spec.partition(":")[0]
    assert str(error.value) == f"no config file {path!r}; recipes of the package: {RECIPES}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "defines no get_config"),
        ("def get_config():\n    return {}", "gives a dict, no ConfigDict"),
        (
            "import ml_collections\n\ndef get_config():\n"
            "    c = ml_collections.ConfigDict()\n    c.batch_size = 8\n"
            "    c.model = dict(width=3)\n    return c",
            r"without task, seed.* …: begin it with c = vit_jax\.config\.base\(\)",
        ),
        ("def get_config(:", "line 1: invalid syntax"),
        ("\nimport no_such_module", "line 2: ModuleNotFoundError: No module named 'no_such_mod"),
        ("size = 8\n\n\nwidth = size * nothing", "line 4: NameError: name 'nothing' is not"),
        (
            "def half(n):\n    return n / 0\n\ndef get_config():\n    return half(4)",
            "line 2: ZeroDivisionError: division by zero",
        ),
        ("def get_config():\n    return [1, 2][5]", "line 2: IndexError: list index out of range"),
        ("def get_config():\n    assert 1 > 2", "line 2: AssertionError$"),
        (
            "from pathlib import Path\n\ndef get_config():\n    return Path('/none').read_text()",
            "line 4: FileNotFoundError: .*'/none'$",
        ),
        ("def get_config():\n    raise ValueError('two\\nlines')", "line 2: two lines$"),
        (
            "from vit_jax.config import base\n\ndef get_config():\n    c = base()\n"
            "    c.schedule.warm_steps = 3",
            "line 5: unknown config key 'schedule.warm_steps': did "
            r"you mean schedule\.warmup_steps",
        ),
        (
            "from vit_jax.config import base\n\ndef get_config():\n    c = base()\n"
            "    c.mesh.fsdp = 'all'",
            r"line 5: config key 'mesh\.fsdp' takes a whole number, not 'all' \(now: 1\)$",
        ),
    ],
)
def test_a_file_that_is_no_recipe_says_why(text, told, tmp_path):
    mine = file(tmp_path / "mine.py", text)
    with pytest.raises(UserError, match=told) as error:
        recipe.load(str(mine))
    assert str(mine) in str(error.value)


def test_a_file_that_is_not_python_is_refused(tmp_path):
    notes = file(tmp_path / "notes.txt", "seed = 1")
    with pytest.raises(UserError, match="no Python file"):
        recipe.load(str(notes))


def test_arguments_for_a_recipe_without_any_are_refused():
    with pytest.raises(UserError, match=r"recipe digits.py takes no arguments, not 'b16'"):
        recipe.load("digits.py:b16")


def test_a_recipe_that_needs_an_argument_says_so(tmp_path):
    mine = file(tmp_path / "mine.py", ONE_KEY.format(parameter="text", value="len(text)"))
    with pytest.raises(UserError, match=f"needs some: {mine}:"):
        recipe.load(str(mine))


# -- overrides ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("-1", -1), ("1e3", 1000), ("1_000", 1000), ("64.0", 64), ("+5", 5)],
)
def test_whole_numbers_are_written_as_people_write_them(text, value):
    got = overridden(batch_size=text)
    assert (got, type(got)) == (value, int)


def test_large_whole_numbers_keep_every_digit():
    assert overridden(total_examples="9007199254740993") == 2**53 + 1


@pytest.mark.parametrize("text", ["1.5", "1e-3", "many", "", "nan", "inf", "1e999", "0x10", "--5"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(UserError) as error:
        overridden(batch_size=text)
    told = f"config key 'batch_size' takes a whole number, not {text!r} (now: 128)"
    assert str(error.value) == told


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), (".5", 0.5), ("3", 3.0), ("-1", -1.0)])
def test_numbers(text, value):
    got = overridden(optimizer__lr=text)
    assert (got, type(got)) == (value, float)


@pytest.mark.parametrize("text", ["fast", "", "1e-3x", "nan", "inf"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(UserError, match=r"'optimizer.lr' takes a number, not .* \(now: 0.001\)"):
        overridden(optimizer__lr=text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("yes", True), ("1", True)]
    + [("false", False), ("FALSE", False), ("no", False), ("0", False)],
)
def test_truth_values(text, value):
    assert overridden(model__scan=text) is value


@pytest.mark.parametrize("text", ["maybe", "", "2", "tru"])
def test_what_is_neither_true_nor_false_is_refused(text):
    with pytest.raises(UserError, match=r"'model.scan' takes true or false, not"):
        overridden(model__scan=text)


@pytest.mark.parametrize(
    ("text", "value"), [("384", 384), ("(224, 160)", (224, 160)), ("224,160", (224, 160))]
)
def test_an_image_size_is_a_number_or_a_pair(text, value):
    assert overridden(model__image_size=text) == value


@pytest.mark.parametrize("text", ["digits", "folder:/a b/c=d", "1e3", "true", "1,2"])
def test_text_is_taken_as_it_is(text):
    assert overridden(data__train__source=text) == text


def test_none_empties_what_may_be_empty():
    c = recipe.load("digits.py")
    recipe.override(c, {"optimizer.clip_norm": "None", "data.eval.split": "None"})
    assert c.optimizer.clip_norm is None
    assert c.data.eval.split == ""


@pytest.mark.parametrize("first", ["total_epochs", "total_steps"])
def test_none_empties_a_duration_and_another_unit_may_follow(first):
    values = {"total_epochs": "None", "total_steps": "7"}
    c = recipe.load("digits.py")
    recipe.override(c, {first: values.pop(first), **values})
    assert (c.total_epochs, c.total_steps) == (None, 7)


def test_none_leaves_the_duration_in_another_unit_as_it_is():
    c = recipe.load("digits.py")
    before = c.total_epochs
    recipe.override(c, {"total_steps": "None", "schedule.warmup_epochs": "None"})
    assert (c.total_epochs, c.schedule.warmup_epochs) == (before, None)


@pytest.mark.parametrize("key", ["seed", "batch_size", "optimizer.lr", "data.threads"])
def test_none_is_refused_where_a_value_is_needed(key):
    with pytest.raises(UserError, match=f"config key '{key}' cannot be empty"):
        recipe.override(base(), {key: "None"})


@pytest.mark.parametrize(
    ("short", "key", "value"),
    [
        ("loss", "loss.name", "sigmoid"),
        ("optimizer", "optimizer.name", "sgd"),
        ("schedule", "schedule.name", "rsqrt"),
        ("model", "model.name", "vit_tiny_patch16_224"),
    ],
)
def test_a_components_name_can_be_given_for_the_component(short, key, value):
    c = base()
    assert recipe.override(c, {short: value}) == [key]
    assert dict(leaves(c))[key] == value


def test_arguments_of_any_optimiser_go_under_kwargs():
    c = base()
    values = {"optimizer.kwargs.b1": "0.95", "optimizer.kwargs.mode": "fast"}
    named = recipe.override(c, {"optimizer": "lion"} | values)
    assert c.optimizer.kwargs.to_dict() == {"b1": 0.95, "mode": "fast"}
    assert set(named) == {"optimizer.name", "optimizer.kwargs"}


@pytest.mark.parametrize(
    "key", ["optimizer.kwargs", "optimizer.kwargs.", "optimizer.kwargs.a.b", "optimizer.kwargs.1"]
)
def test_other_ways_to_write_kwargs_are_refused(key):
    with pytest.raises(UserError, match=r"set optimizer.kwargs.ARGUMENT=VALUE"):
        recipe.override(base(), {key: "1"})


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("optimiser.lr", "optimizer.lr"),
        ("batchsize", "batch_size"),
        ("data.train.sorce", "data.train.source"),
        ("mesh", "mesh.data"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, near):
    with pytest.raises(UserError, match=f"unknown config key '{key}': .*{near}"):
        recipe.override(base(), {key: "1"})


def test_overrides_leave_the_tree_locked():
    c = base()
    recipe.override(c, {"seed": "1", "optimizer.kwargs.b1": "0.5"})
    with pytest.raises((KeyError, AttributeError)):
        c.sed = 2
    with pytest.raises((KeyError, AttributeError)):
        c.model.nam = "x"


def test_a_config_is_told_as_lines_without_the_empty_keys():
    text = recipe.as_text(base()).splitlines()
    said = {
        key.strip(): value.strip() for key, _, value in (line.partition("  #") for line in text)
    }
    assert said["optimizer.lr = 0.001"] == "learning rate at its peak, after the warm-up"
    assert said["model.name = 'vit_base_patch16_224'"] == ROWS["model.name"].says
    assert not any(line.startswith("total_steps") for line in text)


def test_overrides_of_python_are_those_of_the_command_line():
    values = {"optimizer.lr": 3e-4, "model.image_size": (8, 12), "loss": "sigmoid", "ema": None}
    c = recipe.load("digits.py", values)
    typed = recipe.load("digits.py")
    recipe.override(typed, {"optimizer.lr": "3e-4", "model.image_size": "8,12", "loss": "sigmoid",
                            "ema": "None"})  # fmt: skip
    assert flat(c) == flat(typed)
    with pytest.raises(UserError, match=r"did you mean optimizer\.lr"):
        recipe.load("digits.py", {"optimizer.lrr": 1.0})
