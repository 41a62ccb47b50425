"""Durations in steps, the mesh, and batch sizes: the numbers that `resolve` makes final."""

import itertools
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_jax import recipe
from vit_jax.config import DURATIONS, base, leaves
from vit_jax.data.source import Facts
from vit_jax.errors import UserError
from vit_jax.resolution import resolve
from vit_jax.sizes import mesh_sizes
from vit_jax.tasks.classification import Classification


def resolved(examples=1000, devices=1, **changes):
    """(config, what is said); keys of `changes` have __ for the dot."""
    return resolve(tree(**changes), Facts(examples, 10, 3), devices, Classification.outputs)


def tree(**changes):
    c = base()
    with c.unlocked():
        for key, value in changes.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


def numbers_after(text, what):
    """The whole numbers that stand between `what` and the word would."""
    return [int(n) for n in re.findall(r"\d+", text[text.index(what) :].split(" would")[0])]


# -- durations ----------------------------------------------------------------------------

# B/16 on ImageNet-21k at batch 4096: 90 epochs of 14,197,122 images are 311,948 steps. The others
# are small enough for the head.
STEPS = [
    ("total_epochs", 90.0, 14_197_122, 4096, 311_948),
    ("total_epochs", 300.0, 1_281_167, 4096, 93_835),
    ("total_epochs", 1.0, 100, 10, 10),
    ("total_epochs", 2.5, 100, 10, 25),
    ("total_epochs", 0.001, 100, 10, 1),
    ("total_examples", 100, 77, 10, 10),
    ("total_examples", 104, 77, 10, 10),
    ("total_examples", 106, 77, 10, 11),
    ("total_examples", 1, 77, 10, 1),
    ("total_steps", 7, 77, 10, 7),
]


@pytest.mark.parametrize(("key", "value", "examples", "batch", "steps"), STEPS)
def test_the_length_of_a_run_in_steps(key, value, examples, batch, steps):
    c, _ = resolved(examples, batch_size=batch, **{key: value})
    assert c.total_steps == steps
    assert c.total_epochs is None
    assert c.total_examples is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 300),
    st.integers(1, 20_000_000),
    st.integers(1, 8192),
    st.sampled_from(["epochs", "examples"]),
)
def test_steps_times_batch_differ_from_the_examples_asked_for_by_half_a_batch_at_most(
    epochs, examples, batch, unit
):
    asked = epochs * examples
    key, value = ("total_epochs", float(epochs)) if unit == "epochs" else ("total_examples", asked)
    steps = resolved(examples, batch_size=batch, **{key: value})[0].total_steps
    assert abs(Fraction(asked, batch) - steps) <= Fraction(1, 2) or steps == 1


def test_warm_up_and_evaluation_take_their_units_too():
    c, _ = resolved(
        1000, batch_size=100, total_epochs=5.0, schedule__warmup_epochs=0.5, eval_every_epochs=2.0
    )
    assert (c.schedule.warmup_steps, c.eval_every_steps) == (5, 20)
    assert c.schedule.warmup_epochs is None
    assert c.eval_every_epochs is None


def test_without_them_there_is_no_warm_up_and_one_evaluation_at_the_end():
    c, _ = resolved(total_steps=30)
    assert (c.schedule.warmup_steps, c.eval_every_steps, c.checkpoint.every_steps) == (0, 30, 3)


def test_a_run_without_a_length_is_told_which_keys_give_one():
    with pytest.raises(UserError, match="total_steps, total_epochs, total_examples"):
        resolved()


PAIRS = [pair for units in DURATIONS.values() for pair in itertools.combinations(units, 2)]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_one_duration_in_two_units_is_refused_by_both_names(one, other):
    changes = {} if one.startswith("total") else {"total_steps": 10}
    changes |= {key.replace(".", "__"): 2 for key in (one, other)}
    with pytest.raises(UserError, match="are both set: keep one") as error:
        resolved(**changes)
    assert one in str(error.value)
    assert other in str(error.value)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_an_override_replaces_the_recipes_duration_in_another_unit(one, other):
    c = tree(**{one.replace(".", "__"): 2})
    assert recipe.override(c, {other: "5"}) == [other]
    values = dict(leaves(c))
    assert (values[one], values[other]) == (None, 5)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_units_given_as_overrides_are_refused(one, other):
    with pytest.raises(UserError, match=f"{one} and {other} are both set"):
        recipe.override(base(), {one: "1", other: "2"})


# -- the mesh -----------------------------------------------------------------------------


def mesh(data, fsdp, tensor, devices):
    return mesh_sizes(tree(mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor).mesh, devices)


sizes = st.one_of(st.just(-1), st.integers(-2, 12))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes, sizes, sizes, st.integers(1, 16))
def test_an_accepted_mesh_has_all_devices_and_a_refused_one_could_not(data, fsdp, tensor, devices):
    asked = (data, fsdp, tensor)
    fillings = [
        filled
        for filled in itertools.product(range(1, devices + 1), repeat=3)
        if filled[0] * filled[1] * filled[2] == devices
        and all(size in (-1, given) for size, given in zip(asked, filled, strict=True))
    ]
    if asked[:2] == (-1, -1) and tensor != -1 and fillings:
        assert mesh(*asked, devices) == max((f for f in fillings if f[1] <= 16), key=lambda f: f[1])
    elif asked.count(-1) <= 1 and fillings:
        assert fillings == [mesh(*asked, devices)]
    else:
        with pytest.raises(UserError):
            mesh(*asked, devices)


def test_minus_one_takes_what_is_left():
    assert mesh(-1, 2, 2, 8) == (2, 2, 2)
    assert mesh(1, -1, 1, 8) == (1, 8, 1)
    assert mesh(-1, 1, 1, 1) == (1, 1, 1)
    assert mesh(1, -1, 1, 256) == (1, 256, 1)


def test_data_takes_what_sixteen_of_fsdp_leave():
    assert mesh(-1, -1, 1, 1) == (1, 1, 1)
    assert mesh(-1, -1, 1, 8) == (1, 8, 1)
    assert mesh(-1, -1, 2, 24) == (1, 12, 2)
    assert mesh(-1, -1, 1, 4096) == (256, 16, 1)


def test_an_illegal_mesh_is_answered_with_the_sizes_that_work():
    with pytest.raises(UserError) as error:
        mesh(3, 1, 1, 8)
    assert "mesh data=3, fsdp=1, tensor=1 does not multiply to the 8 devices" in str(error.value)
    assert "each size must be one of 1, 2, 4, 8" in str(error.value)
    example = re.search(
        r"mesh.data=(-?\d+), mesh.fsdp=(-?\d+), mesh.tensor=(-?\d+)$", str(error.value)
    )
    assert mesh(*map(int, example.groups()), 8) == (8, 1, 1)


@pytest.mark.parametrize("asked", [(-1, 1, -1), (-1, -1, -1), (0, 1, 1), (-2, 1, 1)])
def test_other_blanks_and_sizes_below_one_are_refused(asked):
    with pytest.raises(UserError, match="sizes are positive, and one of them, or data and fsdp"):
        mesh(*asked, 8)


# -- batch sizes --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 16), st.sampled_from(["batch_size", "eval_batch_size"]))
def test_a_batch_that_the_devices_do_not_divide_is_answered_with_ones_that_they_do(
    size, devices, key
):
    asked = {"batch_size": 16 * 9 * 5 * 7 * 11 * 13} | {key: size}
    if size % devices == 0:
        assert resolved(devices=devices, total_steps=1, **asked)[0][key] == size
        return
    with pytest.raises(UserError, match=f"{key} {size} is not divisible by mesh.data x") as error:
        resolved(devices=devices, total_steps=1, **asked)
    offered = numbers_after(str(error.value), "; ")
    assert offered
    for number in offered:
        assert resolved(devices=devices, total_steps=1, **asked | {key: number})[0][key] == number


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 24), st.integers(1, 8), st.integers(1, 200))
def test_a_microbatch_that_does_not_fit_is_answered_with_all_that_do(times, devices, microbatch):
    asked = {"batch_size": times * devices, "devices": devices, "total_steps": 1}
    fits = microbatch % devices == 0 and asked["batch_size"] % microbatch == 0
    if fits:
        assert resolved(**asked, microbatch=microbatch)[0].microbatch == microbatch
        return
    with pytest.raises(UserError, match=f"microbatch {microbatch} does not divide") as error:
        resolved(**asked, microbatch=microbatch)
    offered = numbers_after(str(error.value), "; ")
    assert offered
    for number in offered:
        assert resolved(**asked, microbatch=number)[0].microbatch == number


def test_without_a_microbatch_the_whole_batch_goes_through_at_once():
    assert resolved(total_steps=1, batch_size=64)[0].microbatch == 64


def test_evaluation_takes_the_training_batch_unless_told_otherwise():
    assert resolved(total_steps=1, batch_size=64)[0].eval_batch_size == 64
    assert resolved(total_steps=1, batch_size=64, eval_batch_size=50)[0].eval_batch_size == 50


def test_the_tensor_axis_does_not_split_the_batch():
    c, _ = resolved(devices=8, total_steps=1, batch_size=4, mesh__data=1, mesh__tensor=8)
    assert c.batch_size == 4
