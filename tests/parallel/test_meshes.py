"""One program on any mesh: the same losses, split memory, gathered weights."""

import jax
import numpy as np
import pytest

from tests.digits_run import tiny_config
from vit_jax.config import base
from vit_jax.planning import hlo
from vit_jax.training.resolve import known
from vit_jax.training.run import run_of

pytestmark = pytest.mark.long

DEVICES = 8


def losses(steps, mesh, devices, **changes):
    data, fsdp, tensor = mesh
    config = tiny_config(
        mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, mesh__min_shard_size=64,
        batch_size=32, microbatch=16, **changes,
    )  # fmt: skip
    run = run_of(config, devices=jax.devices()[:devices])
    step, state = run.compile_train_step(), run.init_state()
    batches = run.train_batches(0, steps)
    found = []
    for _, batch in batches:
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    batches.close()
    return np.array(found), state


@pytest.mark.parametrize("scan", [False, True])
def test_losses_of_four_steps_agree_on_every_mesh(scan):
    reference, _ = losses(4, (1, 1, 1), 1, model__scan=scan)
    assert len(set(reference)) == 4
    for mesh in [(2, 2, 2)] if scan else [(8, 1, 1), (1, 8, 1), (2, 2, 2)]:
        found, _ = losses(4, mesh, DEVICES, model__scan=scan)
        np.testing.assert_allclose(found, reference, rtol=2e-6, err_msg=str(mesh))


def test_state_is_where_the_rules_say():
    _, state = losses(1, (2, 2, 2), DEVICES)
    qkv = state["params"]["encoder"]["block00"]["attention"]["qkv"]["kernel"]
    assert tuple(qkv.sharding.spec) == ("fsdp", None, "tensor")
    assert qkv.addressable_shards[0].data.size == qkv.size // 4
    for leaf in jax.tree.leaves(state["opt"], is_leaf=lambda x: hasattr(x, "mu")):
        if hasattr(leaf, "mu"):
            moment = leaf.mu["encoder"]["block00"]["attention"]["qkv"]["kernel"]
            assert moment.sharding == qkv.sharding


def s16(fsdp):
    c = base()
    c.total_steps = 10
    c.batch_size = 8
    c.model.name = "vit_small_patch16_224"
    c.model.scan = True
    c.data.train.source = "synthetic:size=224,classes=1000"
    c.mesh.data, c.mesh.fsdp = DEVICES // fsdp, fsdp
    return run_of(c, data=known)


def test_fsdp_step_gathers_weights_and_holds_a_sixth_of_the_arguments_at_most():
    whole, split = s16(1).compiled_step, s16(DEVICES).compiled_step
    assert "all-gather" in split.as_text()
    batch = 8 * 224 * 224 * 3
    ratio = (split.memory_analysis().argument_size_in_bytes - batch // DEVICES) / (
        whole.memory_analysis().argument_size_in_bytes - batch // DEVICES
    )
    assert ratio <= 1 / 6, ratio
    assert (
        split.memory_analysis().argument_size_in_bytes
        <= whole.memory_analysis().argument_size_in_bytes / 6
    )


@pytest.mark.parametrize("fsdp", [2, 4, 8])
def test_the_state_that_a_device_holds_falls_as_one_over_fsdp(fsdp):
    config = tiny_config(mesh__data=8 // fsdp, mesh__fsdp=fsdp, mesh__min_shard_size=64)
    state = run_of(config).init_state()
    leaves = [leaf for part in ("params", "opt") for leaf in jax.tree.leaves(state[part])]
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    kernels = sum(leaf.nbytes for leaf in leaves if leaf.ndim > 1)
    others = sum(leaf.nbytes for leaf in leaves if leaf.ndim <= 1)
    assert kernels > 10 * others
    assert held <= kernels / fsdp + others + 0.02 * kernels


@pytest.mark.parametrize("what", ["rows", "features"])
def test_evaluation_divides_its_work_over_all_devices_and_sums_no_activations(what):
    run = s16(4)
    batch = run.abstract_batch(run.config.eval_batch_size)
    compiled = run.row_steps[what].lower(run.abstract_sharded_state["params"], batch).compile()
    found = hlo.costs(compiled.as_text(), run.mesh.shape)
    forward = 2 * run.model.macs * run.config.eval_batch_size
    assert found.flops * DEVICES == pytest.approx(forward, rel=0.01)
    assert {one.kind for one in found.collectives} == {"all-gather"}
