"""`optimizer.offload`: the optimiser's state waits in the host's memory, and no number changes."""

import jax
import pytest

import vit_jax
from tests.digits_run import rows, tiny_config
from vit_jax.training.run import run_of

pytestmark = pytest.mark.long

KEYS = {
    "total_steps": 6, "mesh__data": 2, "mesh__fsdp": 4, "mesh__min_shard_size": 1,
    "checkpoint__every_steps": 3, "schedule__warmup_steps": 0, "schedule__name": "constant",
}  # fmt: skip


def losses(folder):
    return {row["step"]: row["loss"] for row in rows(folder) if "loss" in row}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    vit_jax.train(tiny_config(**KEYS), folder, quiet=True)
    return losses(folder)


def test_the_state_lies_in_the_hosts_memory_before_and_after_a_step():
    run = run_of(tiny_config(**KEYS, optimizer__offload=True))
    state = run.init_state()
    _, batch = next(run.train_batches(0, 1))
    after, _ = run.compiled_step(state, batch)
    for leaf in jax.tree.leaves(after["opt"]):
        assert leaf.sharding.memory_kind == ("pinned_host" if leaf.ndim else "device")
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(after["params"])} == {"device"}


def test_losses_are_the_same_bit_for_bit(plain, tmp_path):
    vit_jax.train(tiny_config(**KEYS, optimizer__offload=True), tmp_path, quiet=True)
    assert losses(tmp_path) == plain


@pytest.mark.parametrize("first", [True, False])
def test_a_run_is_continued_with_and_without(plain, tmp_path, first):
    half = tiny_config(**KEYS | {"total_steps": 3}, optimizer__offload=first)
    vit_jax.train(half, tmp_path, quiet=True)
    vit_jax.train(tiny_config(**KEYS, optimizer__offload=not first), tmp_path, quiet=True)
    assert losses(tmp_path) == plain
