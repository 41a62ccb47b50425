"""Training images of several sizes: each step has one of them, and resizes what it shows to it."""

import multiprocessing

import numpy as np
import pytest
from numbered import assert_same, joined, training

from vit_jax import cli
from vit_jax.data.pipeline_text import parse
from vit_jax.errors import UserError
from vit_jax.models import create_model

SMALL = {"detector_width": 16, "detector_heads": 2, "detector_mlp_dim": 16, "detector_encoder": 1,
         "detector_decoder": 1, "num_queries": 4}  # fmt: skip
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
    parsed = parse("decode|buckets(0.5, 0.75, 1.0)|resize", (8, 20))
    assert parsed.sizes == ((4, 10), (6, 15), (8, 20))


@pytest.mark.parametrize(("text", "says"), [
    ("decode|buckets(8)", "two sizes or more, each of them once"),
    ("decode|buckets()", "two sizes or more"),
    ("decode|buckets(8, 0)", "or a share in 0 … 1 of the model's sides, not 0"),
    ("decode|buckets(8, 6.5)", "not 6.5"),
    ("decode|buckets(8, (0.5, 8))", "not (0.5, 8)"),
    ("decode|buckets((8, 6, 3), 8)", "not (8, 6, 3)"),
    ("decode|buckets('8', 8)", "not '8'"),
    ("decode|buckets(True, 8)", "not True"),
    ("decode|buckets(100000, 8)", "more than 33,554,432 pixels"),
    ("decode|buckets(0.5, 0.8)|resize", "the largest share is 1.0"),
    ("decode|buckets(0.5, 1)|resize", "1 is a side of one pixel"),
    ("decode|buckets(8, 6)", "in the bucket 6 × 6 makes an image 8 × 8"),
    ("decode|buckets(8, 6)|resize(6)", "in the bucket 8 × 8 makes an image 6 × 6"),
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
     "images of one size; resnet…_gn, resnet…_frozen_bn, nonlocal_… and resnetv2_…_bit take any"),
    ({"model.name": "resnet14w8_gn", "model.image_size": 32,
      "data.train.pipeline": "decode|buckets(32, 1.0)|resize"}, "are all 32 × 32"),
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


def test_the_models_size_may_be_any_of_the_largest(capsys):
    typed = ["--config=digits.py", "--config.model.name=resnet14w8_gn",
             "--config.model.image_size=32,16",
             "--config.data.train.pipeline=decode|buckets((16, 32), (32, 16))|resize"]  # fmt: skip
    assert cli.main(["describe", *typed]) == 0
    assert "each step has images of one size: 16 × 32, 32 × 16" in capsys.readouterr().out


@pytest.mark.parametrize("name", [
    "resnet14w8_gn", "nonlocal_resnet14w8_1", "resnetv2_14x1_bit", "detr_resnet14w8_gn",
])  # fmt: skip
def test_families_of_any_size_give_the_numbers_of_a_model_of_that_size(name):
    small, large = (
        create_model(name, image_size=size, num_classes=3, **{
            field: value for field, value in SMALL.items() if name.startswith("detr")
        }) for size in ((48, 32), (64, 64))
    )  # fmt: skip
    params = small.init(seed=0)
    images = np.random.default_rng(0).standard_normal((2, 48, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(large.apply(params, images)[0], small.apply(params, images)[0])
    with pytest.raises(ValueError, match=r"takes images \[batch, height, width, 3\], got"):
        large.apply(params, images[..., :1])


def test_a_model_refuses_a_size_that_it_cannot_have():
    model = create_model("detr_resnet14w8_gn", image_size=32, map_positions="learned", **SMALL)
    with pytest.raises(ValueError, match="'learned' has 50 rows and columns at most"):
        model.apply(model.abstract_params, np.zeros((1, 1700, 33, 3), np.float32))
    with pytest.raises(ValueError, match="takes images"):
        model.apply(model.abstract_params, np.zeros((1, 0, 33, 3), np.float32))
