"""Checkpoints: equal values on any mesh, strict names, the last ones and the best one kept."""

import gc
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.digits_run import rows, tiny_config
from vit_jax.checkpoint import manager
from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.checkpoint.tree import flatten, stack, unstack
from vit_jax.errors import UserError
from vit_jax.training.run import run_of
from vit_jax.training.start import first_state

DEVICES = jax.devices()
SMALL = {"mesh__min_shard_size": 64, "mesh__data": 1, "mesh__fsdp": -1}


def values(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}


@pytest.fixture(scope="module")
def written_on_eight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("eight")
    vit_jax.train(tiny_config(**SMALL), workdir, devices=DEVICES, quiet=True)
    return workdir, values(restored(workdir, 8))


def restored(workdir, devices, **changes):
    run = run_of(tiny_config(**SMALL | changes), devices=DEVICES[:devices])
    return first_state(run, workdir).state


@pytest.mark.parametrize("devices", [4, 1])
def test_a_checkpoint_of_eight_devices_restores_on_fewer_with_equal_values(
    written_on_eight, devices
):
    workdir, wanted = written_on_eight
    state = restored(workdir, devices)
    found = values(state)
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path], err_msg=path, strict=True)
    kernel = state["params"]["encoder"]["block00"]["mlp"]["fc1"]["kernel"]
    assert len(kernel.sharding.device_set) == devices
    assert kernel.addressable_shards[0].data.size == kernel.size // devices


def test_listed_layers_restore_stacked_with_equal_values_in_the_optimiser_too(written_on_eight):
    workdir, wanted = written_on_eight
    found = values(restored(workdir, 4, model__scan=True))
    listed = {p: np.asarray(leaf) for p, leaf in unstack(found).items()}
    assert any("/mu/encoder/block01/" in path for path in listed)
    assert listed.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(listed[path], wanted[path], err_msg=path)


def test_stack_and_unstack_are_inverse():
    flat = {f"params/encoder/block{i:02d}/x": np.full((2, 3), i) for i in range(12)} | {
        "a": np.ones(1)
    }
    again = unstack(stack(flat))
    assert again.keys() == flat.keys()
    for path in flat:
        np.testing.assert_array_equal(again[path], flat[path])


def test_the_last_ones_stay_and_the_best_one_and_no_others(tmp_path):
    config = tiny_config(
        total_steps=12, eval_every_steps=2, checkpoint__every_steps=1, checkpoint__keep=2,
        optimizer__lr=1e-2,
    )  # fmt: skip
    vit_jax.train(config, tmp_path, devices=DEVICES[:1], quiet=True)
    accuracy = {
        row["step"]: row["eval/val/accuracy"]
        for row in rows(tmp_path)
        if "eval/val/accuracy" in row
    }
    left = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    best = max(accuracy.values())
    candidates = [step for step, value in accuracy.items() if value == best]
    assert {11, 12} <= set(left)
    assert any(step in left for step in candidates)
    assert len(left) <= 3


def test_a_checkpoint_tells_its_config_classes_and_place(written_on_eight):
    workdir, _ = written_on_eight
    about = manager.about(manager.find(workdir))
    assert about["examples_seen"] == 320
    assert about["classes"] == [str(i) for i in range(10)]
    assert about["config"] == json.loads((workdir / "config.json").read_text())


def test_find_takes_a_work_folder_or_a_checkpoint_and_says_what_is_missing(
    written_on_eight, tmp_path
):
    workdir, _ = written_on_eight
    last = workdir / "checkpoints" / "10"
    assert (
        manager.find(workdir) == manager.find(last) == manager.find(workdir / "checkpoints") == last
    )
    with pytest.raises(UserError, match="holds no checkpoint: expected a work folder"):
        manager.find(tmp_path)


def test_best_names_the_best_checkpoint_of_a_run_everywhere(tmp_path, capsys):
    c = tiny_config(total_steps=8, eval_every_steps=2, optimizer__lr=1e-2, checkpoint__keep=9,
                    best="min loss")  # fmt: skip
    vit_jax.train(c, tmp_path / "run", quiet=True)
    losses = {row["step"]: row["eval/val/loss"] for row in rows(tmp_path / "run")
              if "eval/val/loss" in row}  # fmt: skip
    wanted = tmp_path / "run/checkpoints" / str(min(losses, key=losses.get))
    assert manager.find(tmp_path / "run/best") == wanted
    assert vit_jax.evaluate(tmp_path / "run/best")["checkpoint"] == str(wanted)
    _, found, _ = vit_jax.load_pretrained(tmp_path / "run/best", say=None)
    _, expected, _ = vit_jax.load_pretrained(wanted, say=None)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    for folder in wanted.parent.glob("*/metrics/metrics"):
        folder.unlink()
    with pytest.raises(UserError, match="has no checkpoint that was evaluated"):
        manager.find(tmp_path / "run/best")


def test_a_damaged_checkpoint_is_named(written_on_eight, tmp_path):
    _workdir, _ = written_on_eight
    copy = tmp_path / "checkpoints" / "10"
    (copy / "state").mkdir(parents=True)
    with pytest.raises(UserError, match="no readable checkpoint"):
        manager.stored_shapes(copy)


@pytest.mark.parametrize(
    ("metric", "direction", "values"),
    [("accuracy", max, (0.2, 0.9, 0.3, 0.4, 0.5, 0.6, 0.7)),
     ("loss", min, (0.9, 0.2, 0.7, 0.6, 0.5, 0.4, 0.3))],
)  # fmt: skip
def test_the_best_one_stays_over_a_restart(tmp_path, metric, direction, values):
    state = {"params": {"a": jax.numpy.ones(3)}, "step": jax.numpy.zeros((), "int32")}
    for steps in (1, 2, 3), (4, 5), (6, 7):
        checkpoints = Checkpoints(tmp_path, keep=2, keep_best=True, best=(metric, direction))
        for step in steps:
            checkpoints.save(step, state, {}, {metric: values[step - 1]})
        checkpoints.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 6, 7]


@pytest.mark.parametrize("best", [("", max), ("loss", sorted)])
def test_the_best_one_needs_a_metric_and_a_direction(tmp_path, best):
    with pytest.raises(ValueError, match="keep_best needs best"):
        Checkpoints(tmp_path, keep=1, keep_best=True, best=best)


def test_what_time_asked_for_goes_when_a_newer_one_is_there(tmp_path):
    """Steps 10, 20, 30 by step, 12 … 35 by time; 27 was measured."""
    checkpoints = Checkpoints(tmp_path, keep=2, keep_best=False, every_steps=10, every_minutes=1e-9)
    held = []
    for step in (10, 12, 20, 25, 27, 30, 33, 35):
        metrics = {"accuracy": 0.5} if step == 27 else None
        assert checkpoints.due(step, by_time=True)
        assert checkpoints.due(step, by_time=False) == (step % 10 == 0)
        checkpoints.save(step, {"step": jnp.int32(step)}, {}, metrics)
        checkpoints.wait()
        held.append(sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()))
    checkpoints.close()
    assert held == [
        [10], [10, 12], [10, 20], [10, 20, 25], [20, 27], [27, 30], [27, 30, 33], [27, 30, 35],
    ]  # fmt: skip


def test_a_run_does_not_grow_by_what_it_saves(tmp_path):
    arrays, saves, held = 100, 20, []
    state = {f"p{number}": jnp.zeros(4) for number in range(arrays)}
    with Checkpoints(tmp_path, keep=2, keep_best=False) as checkpoints:
        for step in range(1, 10 + saves + 1):
            checkpoints.save(step, state, {}, None)
            if step in (10, 10 + saves):
                checkpoints.wait()
                gc.collect()
                held.append(sys.getallocatedblocks())
    assert (held[1] - held[0]) / saves < arrays / 2


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_gone_is_named_and_not_made_anew(tmp_path, again):
    folder = tmp_path / "run" / "checkpoints"
    checkpoints = Checkpoints(folder, 1, False)
    (tmp_path / "run").rename(tmp_path / "moved")
    if again:
        folder.mkdir(parents=True)
    with pytest.raises(UserError, match="is another folder now" if again else "is gone"):
        checkpoints.save(1, {"x": jnp.ones(3)}, {}, None)
    assert folder.exists() == again
    assert not list(folder.glob("*"))
