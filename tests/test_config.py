"""The tree of keys, what one says about it, and which keys the chosen components read."""

import copy
import dataclasses
import pickle
import re

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from ml_collections import ConfigDict

from vit_jax import config, recipe
from vit_jax.config import READ_BY, ROWS, base, differences, flat, keys, leaves
from vit_jax.data.source import Facts
from vit_jax.errors import UserError
from vit_jax.models.config_table import CONFIGS, FURTHER
from vit_jax.models.convolution import STANDARDIZATION
from vit_jax.models.encoder import REMAT_POLICIES
from vit_jax.models.layers import GELU
from vit_jax.models.model import FAMILIES
from vit_jax.models.position import RESIZE_RULES
from vit_jax.resolution import resolve
from vit_jax.tasks.classification import Classification

DATA = Facts(num_examples=1000, num_classes=10, channels=3)


def resolved(data=DATA, devices=1, **changes):
    """The resolved tree; keys of `changes` have __ for the dot."""
    return final(tree(**changes), data, devices)[0]


def final(c, data=DATA, devices=1, named=()):
    return resolve(c, data, devices, Classification.outputs, named)


def tree(**changes):
    c = base()
    with c.unlocked():
        for key, value in ({"total_steps": 10} | changes).items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


# -- the tree -----------------------------------------------------------------------------


def test_every_key_says_what_it_is_and_its_default_is_one_that_it_may_hold():
    assert {key for key, _ in leaves(base())} == ROWS.keys()
    assert [row.name for row in ROWS.values() if not row.says.strip()] == []
    held = [row for row in ROWS.values() if row.fits and not row.empty]
    assert len(held) > 20
    assert [row.name for row in held if row.fits.refuses(row.default)] == []


def test_the_words_of_a_field_are_those_that_the_model_looks_up():
    choices = {name: row.fits.choices for name, row in ROWS.items() if row.fits}
    assert set(choices["model.gelu"]) == GELU.keys()
    assert set(choices["model.posemb_resize"]) == RESIZE_RULES.keys()
    assert set(choices["model.standardization"]) == STANDARDIZATION.keys()
    assert set(choices["model.remat"]) == {"none", *REMAT_POLICIES}


def test_the_number_of_keys_stays_one_that_a_person_can_read():
    assert len(keys()) <= 113


BUILT_IN = [family for family in FAMILIES.values() if ":" not in family.name]


@pytest.mark.parametrize("family", BUILT_IN, ids=lambda family: family.name)
def test_every_field_of_a_family_is_a_key_where_its_name_is_given(family):
    fields = {f"model.{name}" for name in family.fields}
    for name in (family.name, *(name for names in family.names for name in names.listed)):
        c = base(name)
        assert fields <= set(keys(c)) == {key for key, _ in leaves(c)} | {"optimizer.kwargs"}
    assert (family.config in CONFIGS) != (family.config in FURTHER.values())


@pytest.mark.parametrize("family", BUILT_IN, ids=lambda family: family.name)
@given(data=strategies.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_name_that_a_family_takes_brings_its_own_keys_and_no_others(family, data):
    """Also names that are not listed, such as `resnet14w32_gn`."""
    names = data.draw(strategies.sampled_from(family.names))
    name = data.draw(strategies.from_regex(names.pattern, fullmatch=True))
    found = [config for form, config in FURTHER.items() if re.fullmatch(form, name)]
    assert found == ([] if family.config in CONFIGS else [family.config])


def test_the_tree_is_locked():
    with pytest.raises((KeyError, AttributeError), match="learning_rate"):
        base().optimizer.learning_rate = 0.1


def test_the_model_keys_are_the_fields_of_the_families():
    fields = {field.name for family in CONFIGS for field in dataclasses.fields(family)}
    model = base().model.to_dict()
    assert model.pop("name")
    assert model.keys() == fields
    assert set(model.values()) == {None}  # what is left empty comes with the name


def test_every_key_listed_as_read_is_a_key_of_its_component():
    for component, choices in READ_BY.items():
        assert set.union(*choices.values()) <= set(base()[component]) - {"name"}


def test_every_duration_is_made_of_keys():
    assert {key for units in config.DURATIONS.values() for key in units} <= set(keys())


# -- slips of a hand in a recipe or a notebook ---------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "meant"),
    [
        ("optimizer", "lrr", "did you mean optimizer.lr or optimizer.lr_per?"),
        ("", "lr", "did you mean optimizer.lr?"),
        ("model", "num_head", "did you mean model.num_heads?"),
        ("data.train", "pipline", "did you mean data.train.pipeline or data.eval.pipeline?"),
        ("", "bogus", "vit train --help lists the keys"),
        ("model", "bogus", "vit train --help lists the keys"),
    ],
)
def test_an_unknown_key_is_one_line_with_what_may_be_meant(section, key, meant):
    full = f"{section}.{key}".removeprefix(".")
    line = f"unknown config key {full!r}: {meant}"
    for c in base(), copy.deepcopy(base()), pickle.loads(pickle.dumps(base())):
        part = c[section] if section else c
        with pytest.raises(AttributeError) as error:
            setattr(part, key, 1)
        assert str(error.value) == line
        with pytest.raises(AttributeError) as error:
            getattr(part, key)
        assert str(error.value) == line
        with pytest.raises(KeyError) as error:
            part[key] = 1
        assert error.value.args == (line,)
    with pytest.raises(UserError) as refused:
        recipe.override(base(), {full: "1"})
    assert str(refused.value) == line


def test_a_section_is_answered_with_its_keys():
    with pytest.raises(UserError, match=r"'mesh': did you mean (mesh\.\w+(, | or )?){3}\?"):
        recipe.override(base(), {"mesh": "8"})


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("batch_size", "many", "config key 'batch_size' takes a whole number, not 'many' (now: 1"),
        ("optimizer.lr", "x", "config key 'optimizer.lr' takes a number, not 'x' (now: 0.001)"),
        ("total_epochs", [3], "config key 'total_epochs' takes a number, not [3] (now: None)"),
        ("mesh.fsdp", None, ""),
    ],
)
def test_a_value_of_another_kind_is_one_line(key, value, line):
    c = base()
    section, _, leaf = key.rpartition(".")
    if not line:
        c[section][leaf] = value  # as ConfigDict has it, None fits everywhere
        return
    with pytest.raises(TypeError) as error:
        setattr(c[section] if section else c, leaf, value)
    assert str(error.value).startswith(line)


# -- trees that base() did not make -------------------------------------------------------


def test_an_unknown_key_is_answered_with_the_nearest():
    c = base()
    with c.unlocked():
        c.optimizer.weight_decy = 0.1
    with pytest.raises(
        UserError, match=r"'optimizer.weight_decy': did you mean optimizer.weight_d"
    ):
        final(c)


def test_a_missing_key_is_named():
    c = base()
    with c.unlocked():
        del c.schedule["end_lr"]
    with pytest.raises(UserError, match=r"'schedule.end_lr' is missing"):
        final(c)


def test_a_value_of_another_type_is_refused():
    with pytest.raises(TypeError, match="batch_size"):
        base().batch_size = "many"


def test_resolving_leaves_the_given_tree_as_it_was():
    c = tree(total_epochs=3.0, total_steps=None)
    before = dict(leaves(c))
    final(c)
    assert dict(leaves(c)) == before


# -- keys that nothing would read ---------------------------------------------------------

# What each optimiser of optax, schedule and loss is documented to take (their papers' symbols).
READS = {
    ("optimizer", "adam"): {"b1", "b2", "eps", "mu_dtype"},
    ("optimizer", "adamw"): {"b1", "b2", "eps", "mu_dtype", "weight_decay"},
    ("optimizer", "sgd"): {"momentum", "weight_decay", "kwargs"},
    ("optimizer", "lion"): {"weight_decay", "kwargs"},
    ("schedule", "constant"): set(),
    ("schedule", "cosine"): {"end_lr"},
    ("schedule", "linear"): {"end_lr"},
    ("schedule", "rsqrt"): {"end_lr", "timescale", "cooldown_steps"},
}
VALUES = {
    "b1": 0.8, "b2": 0.9, "eps": 1e-6, "mu_dtype": "bfloat16", "weight_decay": 0.1,
    "momentum": 0.5, "kwargs": {"b1": 0.5}, "end_lr": 1e-5, "timescale": 100,
    "cooldown_steps": 5,
}  # fmt: skip
PAIRS = [
    (component, name, key, key in reads)
    for (component, name), reads in READS.items()
    for key in sorted(set.union(*(r for (c, _), r in READS.items() if c == component)))
]


@pytest.mark.parametrize(("component", "name", "key"), [p[:3] for p in PAIRS if p[3]])
def test_a_key_that_the_chosen_component_reads_is_taken(component, name, key):
    c = tree(**{f"{component}__name": name, f"{component}__{key}": VALUES[key]})
    got = final(c)[0][component][key]
    assert (got.to_dict() if isinstance(got, ConfigDict) else got) == VALUES[key]


@pytest.mark.parametrize(("component", "name", "key"), [p[:3] for p in PAIRS if not p[3]])
def test_a_key_that_the_chosen_component_does_not_read_is_refused(component, name, key):
    c = tree(**{f"{component}__name": name, f"{component}__{key}": VALUES[key]})
    with pytest.raises(UserError, match=f"{component}.{key} is set, but") as error:
        final(c)
    assert f"{component}.name={name!r} does not read it" in str(error.value)


def test_the_refusal_says_who_reads_the_key_and_what_the_chosen_one_reads():
    with pytest.raises(UserError) as error:
        resolved(optimizer__momentum=0.5)
    assert str(error.value) == (
        "optimizer.momentum is set, but optimizer.name='adamw' does not read it (read by sgd); "
        "adamw reads optimizer.b1, optimizer.b2, optimizer.eps, optimizer.mu_dtype, "
        "optimizer.weight_decay"
    )


@pytest.mark.parametrize("task", ["detection", "masked"])
def test_a_key_of_labels_is_refused_where_the_task_has_none(task):
    name = {"detection": "detr_vit_nano_patch8_64", "masked": "mae_vit_nano_patch8_64"}[task]
    for key, text in (("mixup", "0.3"), ("loss", "sigmoid"), ("loss.label_smoothing", "0.2")):
        c = base(name, task)
        c.total_steps = 3
        named = recipe.override(c, {key: text})
        with pytest.raises(UserError, match=f"is set, but task={task} does not read it"):
            final(c, named=named)


def test_an_unread_key_given_its_default_on_the_command_line_is_refused_too():
    c = tree()
    named = recipe.override(c, {"optimizer.momentum": "0.9"})
    final(c)  # the value is the default: a recipe cannot be blamed for it
    with pytest.raises(UserError, match=r"optimizer.momentum is set"):
        final(c, named=named)


@pytest.mark.parametrize(
    ("component", "name", "near"), [("schedule", "cosin", "cosine"), ("loss", "softmx", "softmax")]
)
def test_an_unknown_component_is_answered_with_the_nearest(component, name, near):
    with pytest.raises(UserError, match=f"unknown {component}.name '{name}': .*{near}"):
        resolved(**{f"{component}__name": name})


# -- values that cannot be ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("batch_size", 0, "batch_size is a whole number of at least 1, not 0"),
        ("log_every_steps", 0, "log_every_steps is a whole number of at least 1"),
        ("checkpoint__keep", 0, "checkpoint.keep is a whole number of at least 1"),
        ("checkpoint__every_steps", 0, "checkpoint.every_steps is a whole number of at least 1"),
        ("max_skipped_steps", 0, "max_skipped_steps is a whole number of at least 1"),
        ("microbatch", 0, "microbatch is a number of examples or auto, not 0"),
        ("microbatch", "many", "microbatch is a number of examples or auto, not 'many'"),
        ("eval_batch_size", -8, "eval_batch_size is a whole number of at least 1"),
        ("seed", -1, r"seed is a whole number in 0 … 2\*\*32 - 1, not -1"),
        ("seed", 2**32, "seed is a whole number in 0"),
        ("mixup", -0.2, "mixup is a number of at least 0, not -0.2"),
        ("data__threads", -1, "data.threads is a whole number of at least 0"),
        ("data__workers", -1, "data.workers is a whole number of at least 0"),
        ("data__damaged", "ignore", "data.damaged is one of skip, fail, not 'ignore'"),
        ("optimizer__b1", 1.0, r"optimizer.b1 is a number in \[0, 1\), not 1.0"),
        ("ema", 1.0, "ema is a number between 0 and 1, not 1.0"),
        ("profile", "0:5", "profile is FIRST:COUNT steps, .* as in 100:5"),
        ("model__num_layers", 0, "model.num_layers is a whole number of at least 1, not 0"),
        ("schedule__warmup_steps", -3, "schedule.warmup_steps must be positive, not -3"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_the_name_of_its_key(key, value, told):
    with pytest.raises(UserError, match=told):
        resolved(**{key: value})


def test_fewer_classes_than_the_data_set_has_are_refused():
    with pytest.raises(UserError, match=r"num_classes is 9, but digits has 10 classes"):
        resolved(model__num_classes=9)
    assert resolved(model__num_classes=12).model.num_classes == 12
    assert resolved().model.num_classes == 10


def test_a_training_split_without_examples_is_refused():
    with pytest.raises(UserError, match=r"data.train digits has no examples"):
        resolved(Facts(num_examples=0, num_classes=10, channels=3))


def test_what_is_left_empty_comes_from_the_data():
    c = resolved(Facts(num_examples=1000, num_classes=7, channels=1))
    assert (c.model.channels, c.model.num_classes) == (1, 7)
    assert c.data.eval.source == c.data.train.source


# -- continuing a run ---------------------------------------------------------------------

FREE = {
    "total_steps": 20, "log_every_steps": 3, "eval_every_steps": 4, "eval_batch_size": 16,
    "max_skipped_steps": 5, "microbatch": 64, "checkpoint__every_steps": 2, "checkpoint__keep": 9,
    "checkpoint__keep_best": False, "mesh__fsdp": 2, "data__threads": 5, "data__workers": 1,
    "optimizer__offload": True, "model__scan": True, "model__remat": "full", "init": "a",
}  # fmt: skip


def test_what_does_not_change_a_steps_numbers_may_differ_on_resume():
    old, new = resolved(devices=8), resolved(devices=8, **FREE)
    changed = {key for key in flat(old) if flat(old)[key] != flat(new)[key]}
    assert changed >= {key.replace("__", ".") for key in FREE} | {"mesh.data"}
    assert differences(flat(old), flat(new)) == []
    resumed = resolved(devices=8, **FREE | {"init": None, "resume": "b"})
    assert differences(flat(old), flat(resumed)) == []


def test_a_run_from_before_a_key_was_is_the_same_run():
    now = flat(resolved())
    before = {key: value for key, value in now.items() if key != "task"}
    assert differences(before, now) == []
    assert config.config_hash(before) == config.config_hash(now)
    assert differences(before, now | {"task": "a.b:C"}) == ["task: 'classification' -> 'a.b:C'"]


def test_a_field_of_models_that_came_later_changes_no_run_that_was_written_without_it(monkeypatch):
    monkeypatch.setitem(config.LATER, "model.rope", False)
    before = flat(resolved())
    for value in (None, False):  # of another family, and of its own one
        now = before | {"model.rope": value}
        assert differences(before, now) == differences(now, before) == []
        assert config.config_hash(before) == config.config_hash(now)
    now = before | {"model.rope": True}
    assert differences(before, now) == ["model.rope: False -> True"]
    assert config.config_hash(before) != config.config_hash(now)


def test_everything_else_that_differs_is_named_with_both_values():
    new = resolved(seed=3, optimizer__lr=0.5, schedule__warmup_steps=4, model__num_layers=2)
    assert differences(flat(resolved()), flat(new)) == [
        "model.num_layers: None -> 2",
        "optimizer.lr: 0.001 -> 0.5",
        "schedule.warmup_steps: 0 -> 4",
        "seed: 0 -> 3",
    ]


def test_a_key_that_only_one_of_two_versions_knows_is_named():
    assert differences({"gone": 1}, {"come": 2}) == ["come: None -> 2", "gone: 1 -> None"]
