"""What the text of a sweep means, and what is wrong with one that cannot be."""

import itertools

import pytest

from vit_jax import recipe
from vit_jax.errors import UserError
from vit_jax.sweeping import space
from vit_jax.sweeping.launching import share

DIGITS = "digits.py"


def read(text, spec=DIGITS):
    return space.read(text, spec, recipe.load(spec))


def file(path, text):
    path.write_text(text)
    return str(path)


def test_values_make_a_grid_in_the_order_of_the_text():
    found = read("optimizer.lr=1e-3,3e-3;seed=0,1")
    assert found.points == [
        {"optimizer.lr": lr, "seed": seed} for lr, seed in itertools.product((0.001, 0.003), (0, 1))
    ]
    assert str(found) == "optimizer.lr=0.001,0.003; seed=0,1"


def test_a_value_may_hold_commas_in_brackets_or_quotes():
    found = read(
        "data.train.pipeline='decode|shift(1)',\"decode\";model.image_size=(8, 8);loss=sigmoid"
    )
    assert found.points == [
        {"data.train.pipeline": pipeline, "model.image_size": "(8, 8)", "loss.name": "sigmoid"}
        for pipeline in ("decode|shift(1)", "decode")
    ]


def test_what_a_point_sets_is_what_the_command_line_sets():
    point = read("optimizer.lr=1e-05;optimizer.clip_norm=None;deterministic=true").points[0]
    config = recipe.load(DIGITS)
    recipe.override(config, space.overrides(point))
    assert (config.optimizer.lr, config.optimizer.clip_norm, config.deterministic) == (
        1e-5, None, True,
    )  # fmt: skip


def test_ranges_have_the_type_of_their_key():
    found = read(
        "optimizer.lr=log(1e-4,1e-2);seed=uniform(0,9);optimizer.b1=uniform(0,0.9,step=0.1)"
    )
    assert found.ranges == ["optimizer.lr", "seed", "optimizer.b1"]
    lr, seed, b1 = found.distributions.values()
    assert (lr.low, lr.high, lr.log) == (1e-4, 1e-2, True)
    assert (seed.low, seed.high, seed.log) == (0, 9, False)
    assert isinstance(seed.high, int)
    assert b1.step == 0.1


@pytest.mark.parametrize(
    "text",
    [
        'def sweep():\n    return "optimizer.lr=1e-3,3e-3;seed=0,1"',
        'def sweep():\n    return {"optimizer.lr": [1e-3, 3e-3], "seed": "0,1"}',
        "def sweep():\n    for lr in (1e-3, 3e-3):\n        for seed in (0, 1):\n"
        '            yield {"optimizer.lr": lr, "seed": seed}',
    ],
)
def test_a_file_declares_or_yields_the_same(text, tmp_path):
    found = read(file(tmp_path / "rates.py", text))
    assert found.points == read("optimizer.lr=1e-3,3e-3;seed=0,1").points


def test_a_file_of_lines_is_an_expression(tmp_path):
    lines = "optimizer.lr=1e-3,3e-3  # rates\n\nseed=0,1\n"
    assert read(file(tmp_path / "rates.txt", lines)) == read("optimizer.lr=1e-3,3e-3;seed=0,1")


def test_a_key_that_a_yielded_point_lacks_has_the_recipes_value(tmp_path):
    text = 'def sweep():\n    yield {"optimizer.lr": 1e-3}\n    yield {"seed": 3}'
    assert read(file(tmp_path / "some.py", text)).points == [
        {"optimizer.lr": 1e-3, "seed": 0}, {"optimizer.lr": 4e-3, "seed": 3},
    ]  # fmt: skip


# Table 4 of arXiv 2010.11929: rates of fine-tuning.
SMALL, IMAGENET = [0.001, 0.003, 0.01, 0.03], [0.003, 0.01, 0.03, 0.06]


@pytest.mark.parametrize(
    ("spec", "rates"),
    [
        ("finetune.py:b16,imagenet2012", IMAGENET), ("finetune.py:b16,cifar10", SMALL),
        ("finetune.py:b16,cifar100", SMALL), ("finetune.py:l16,oxford_iiit_pet", SMALL),
        ("finetune.py:b16,oxford_flowers102", SMALL), ("finetune.py:b16,folder:PHOTOS", SMALL),
    ],
)  # fmt: skip
def test_fine_tuning_brings_the_papers_rates(spec, rates):
    assert [point["optimizer.lr"] for point in read(None, spec).points] == rates


@pytest.mark.parametrize(("spec", "count"), [(DIGITS, 12), ("pretrain.py", 9), ("augreg.py", 4)])
def test_recipes_bring_their_rates_and_decays(spec, count):
    found = read(None, spec)
    assert len(found.points) == count
    assert "optimizer.weight_decay" in found.distributions


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optimizer.lrr=1e-3", "unknown config key 'optimizer.lrr': did you mean optimizer.lr"),
        ("optimizer.lr=fast", "'optimizer.lr' takes a number, not 'fast'"),
        ("seed=1.5,2", "'seed' takes a whole number, not '1.5'"),
        ("optimizer.lr=1e-3,-1", "optimizer.lr is a number of at least 0, not -1.0"),
        ("optimizer.lr=log(0,1)", "lies above 0"),
        ("optimizer.lr=uniform(-1,1)", "optimizer.lr is a number of at least 0, not -1.0"),
        ("optimizer.lr=uniform(3,1)", "the lower end of a range comes first"),
        ("optimizer.lr=lg(1e-4,1e-2)", "unknown search range 'lg': did you mean log"),
        ("optimizer.lr=log(1e-4)", "missing 1 required positional argument: 'high'"),
        ("model.pool=uniform(1,2)", "model.pool is no number"),
        ("optimizer.momentum=0.8,0.9", "optimizer.name='adamw' does not read it"),
        ("total_steps=5;total_epochs=1", "total_steps and total_epochs are both set"),
        ("seed=1,1", "a value is given twice"),
        ("seed=1;seed=2", "seed is given twice"),
        ("optimizer.lr=", "names no values"),
        ("rates", "'rates' is no file and sets no key"),
        ("rates.py", "no config file 'rates.py'"),
        ("plain.py", r"plain.py defines no sweep\(\)"),
    ],
)
def test_what_cannot_be_searched_is_answered_in_a_line(text, told):
    with pytest.raises(UserError, match=told) as error:
        read(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def sweep():\n    yield 3", r"sweep\(\) yields 3: yield dictionaries"),
        ("def sweep():\n    return {}", "names no key"),
        ("def sweep():\n    yield {'optimizer.lr': {}['x']}", "bad.py, line 2"),
        ("def sweep(a, b):\n    return ''", "needs some"),
    ],
)
def test_a_file_that_declares_nothing_of_use_is_named(text, told, tmp_path):
    with pytest.raises(UserError, match=told):
        read(file(tmp_path / "bad.py", text))


@pytest.mark.parametrize(
    ("gpus", "parallel", "seen"),
    [
        ("", 2, [None, None]), ("0,1,2,3", 1, [None]), ("0,1", 2, ["0", "1"]),
        ("0,1,2,3", 2, ["0,2", "1,3"]), ("4", 2, ["4", "4"]), ("0,1", 3, ["0", "1", "0"]),
    ],
)  # fmt: skip
def test_trials_at_a_time_have_gpus_of_their_own_or_share_one(gpus, parallel, seen):
    names = [name for name in gpus.split(",") if name]
    shares = [share(names, slot, parallel) for slot in range(parallel)]
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in shares] == seen
    if names and len(names) < parallel:  # together they take no more than a GPU has
        fractions = [float(one["XLA_PYTHON_CLIENT_MEM_FRACTION"]) for one in shares]
        assert max(seen.count(name) for name in seen) * max(fractions) < 1
