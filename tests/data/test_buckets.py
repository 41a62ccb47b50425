"""Training images of several sizes: each step has one of them, and resizes what it shows to it."""

import multiprocessing

import numpy as np
import pytest
from numbered import assert_same, joined, training

from vit_jax import cli
from vit_jax.data.pipeline_text import parse
from vit_jax.errors import UserError

SIZES = ((4, 8), (6, 6), (8, 8))
TEXT = "decode|buckets((4, 8), 6, 8)|flip_lr|resize"


def sides(batches):
    return [batch["image"].shape[1:3] for batch in batches]


def test_every_step_has_one_of_the_sizes_and_all_of_them_come():
    batches = training(text=TEXT, steps=60)
    counts = [sides(batches).count(size) for size in SIZES]
    assert sum(counts) == 60
    assert min(counts) >= 10
    assert sides(batches) != sides(training(text=TEXT, steps=60, seed=1))


def test_examples_and_augmentation_are_those_of_one_size():
    batches = training(text=TEXT)
    for size in set(sides(batches)):
        alone = training(text="decode|flip_lr|resize", shape=(*size, 3))
        for one, other in zip(batches, alone, strict=True):
            np.testing.assert_array_equal(one["id"], other["id"])
            if one["image"].shape[1:3] == size:
                np.testing.assert_array_equal(one["image"], other["image"])


def test_they_are_the_same_after_a_restart_in_parts_and_in_workers():
    whole = training(text=TEXT, steps=8)
    assert_same(whole[3:], training(text=TEXT, steps=5, seen=24))
    parts = [training(text=TEXT, steps=8, rows=rows) for rows in np.arange(8).reshape(2, 4)]
    assert sides(whole) == sides(parts[0]) == sides(parts[1])
    for one, *halves in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(one["image"], joined(halves, "image"))
    assert_same(whole, training(text=TEXT, steps=8, workers=2))
    assert not multiprocessing.active_children()


def test_shares_are_of_the_models_sides():
    assert parse("decode|buckets(0.5, 0.75, 1.0)", (8, 20)).sizes == ((4, 10), (6, 15), (8, 20))
    assert parse("decode|buckets(0.9, 1.0)", (2, 2)).sizes == ((2, 2),)


@pytest.mark.parametrize(("text", "says"), [
    ("decode|buckets(8)", "two sizes or more, each of them once"),
    ("decode|buckets()", "two sizes or more"),
    ("decode|buckets(8, 0)", "or a share in 0 … 1 of the model's sides, not 0"),
    ("decode|buckets(8, 6.5)", "not 6.5"),
    ("decode|buckets(8, (0.5, 8))", "not (0.5, 8)"),
    ("decode|buckets((8, 6, 3), 8)", "not (8, 6, 3)"),
    ("decode|buckets('8', 8)", "not '8'"),
    ("decode|flip_lr|buckets(8, 6)", "it comes right behind decode"),
    ("decode|buckets(8, 6)|buckets(8, 6)", "it comes right behind decode"),
    ("decode|bucket(8, 6)", "buckets"),
])  # fmt: skip
def test_what_it_does_not_take_is_said_in_one_line(text, says):
    with pytest.raises(UserError) as refused:
        parse(text, (8, 8))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("keys", "says"), [
    ({"data.train.pipeline": "decode|buckets(16, 32)|resize"},
     "takes images of one size; ResNets, and a DETR on a ResNet, take any"),
    ({"model.name": "resnet14w8_gn", "model.image_size": 32,
      "data.train.pipeline": "decode|buckets(16, 48)|resize"},
     "the largest bucket, 48 × 48, is the size of evaluation, but model.image_size is 32 × 32: "
     "--config.model.image_size=48,48"),
    ({"model.name": "resnet14w8_gn", "model.image_size": 32,
      "data.eval.pipeline": "decode|buckets(16, 32)|resize"}, "leave out buckets"),
    ({"recipe": "detr.py:resnet14w8_gn,digit_scenes:examples=8", "model.image_size": "32,1600",
      "model.map_positions": "learned",
      "data.train.pipeline": "decode|buckets((1601, 31), (32, 1600))|resize"},
     "bucket 1601 × 31: map_positions 'learned' has 50 rows and columns at most"),
])  # fmt: skip
def test_what_a_run_cannot_have_is_said_in_one_line(keys, says, capsys):
    recipe = keys.pop("recipe", "digits.py")
    typed = [f"--config.{key}={value}" for key, value in keys.items()]
    assert cli.main(["describe", f"--config={recipe}", *typed]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
