"""The compiled training step: uint8 batch in, new state and metrics out. Nothing here leaves the
device.

If the gradient is not finite, the step keeps the whole state and counts itself as skipped; the data
goes on. Pass j of k takes the rows j::k of the batch, so that no row changes its device. What every
process must know (the checksum of the batch's examples, the number of damaged images) is computed
on the devices, so that it is the same in all of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from vit_jax.parallel.sharding import BATCH, gather_block
from vit_jax.tasks import Task
from vit_jax.training.groups import by_rate, merged, rate_scales, trainable
from vit_jax.training.optimizer import HOLD_RATE, make_optimizer
from vit_jax.training.schedules import make_schedule
from vit_jax.training.state import State, moved_average

Metrics = dict[str, Array]


def make_gradients(task: Task, config: ConfigDict, mesh: Mesh) -> Callable:
    """A function of (state, batch, what the task holds). It returns the loss and its parts, and the
    gradients of the trained parameters: ((loss, parts), gradients).

    With `microbatch` m < batch_size B, all of these are means over k = B/m passes. Pass j takes
    rows j::k, so that rows stay on their device.
    """
    c, family = config, task.model.family
    gather = gather_block(family, mesh, c.mesh.min_shard_size, jnp.dtype(c.model.dtype))
    loss_of = make_loss(task, gather)
    passes = c.batch_size // c.microbatch
    rows = NamedSharding(mesh, P(None, *BATCH))

    def split(x):  # [B, ...] -> [k, m, ...], of which [j] holds rows j::k
        x = x.reshape(c.microbatch, passes, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, rows)

    def gradients(state: State, batch: dict[str, Array], held=None):
        trained = trainable(state["params"], c.optimizer.freeze)
        of_step = jax.random.fold_in(jax.random.key(c.seed), state["step"])
        of_batch, key = jax.random.split(of_step)
        seen = task.prepared(entries_of(batch), of_batch)
        loss_and_gradients = jax.value_and_grad(loss_of, has_aux=True)
        if passes == 1:
            return loss_and_gradients(trained, state["params"], held, seen, key)

        def add_pass(total, microbatch_and_key):
            new = loss_and_gradients(trained, state["params"], held, *microbatch_and_key)
            return jax.tree.map(jnp.add, total, new), None

        parts = (jax.tree.map(split, seen), jax.random.split(key, passes))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(lambda: loss_and_gradients(trained, state["params"], held, *first))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add_pass, zero, parts)
        return jax.tree.map(lambda x: x / passes, total)

    return gradients


def entries_of(batch: dict[str, Any]) -> dict[str, Any]:
    """The entries of a batch that a task reads: all but `id` and `damaged`."""
    return {name: rows for name, rows in batch.items() if name not in ("id", "damaged")}


def make_train_step(task: Task, config: ConfigDict, mesh: Mesh) -> Callable:
    """A function (state, batch, what the task holds) -> (state, metrics). The batch has `image`
    uint8 [B, H, W, C], the task's entries, and `id` and `damaged` int32 [B].

    A step is skipped if its loss or gradient is not finite, or if the gradient's norm is above
    `optimizer.skip_norm`: the parameters and the optimiser's state stay, but `step` still advances.
    """
    c, family = config, task.model.family
    schedule = make_schedule(c.schedule, c.optimizer.lr, c.total_steps)
    tx = make_optimizer(c.optimizer, family, schedule)
    gradients = make_gradients(task, c, mesh)

    def scales_of(params):
        return rate_scales(family, params, c.optimizer.layer_decay, task.rates)

    def train_step(state: State, batch: dict[str, Array], held=None) -> tuple[State, Metrics]:
        step, trained = state["step"], trainable(state["params"], c.optimizer.freeze)
        if c.optimizer.offload:
            state = state | {"opt": jax.device_put(state["opt"], jax.memory.Space.Device)}
        (loss, parts), grads = gradients(state, batch, held)
        norm = optax.tree.norm(grads)
        rate = schedule(step)
        factor = 1.0 if c.optimizer.name in HOLD_RATE else rate
        updates, opt = tx.update(grads, state["opt"], trained)
        # Of all parameters, because frozen ones count for the number of blocks, too.
        updates = by_rate(updates, scales_of(state["params"]))
        moved = jax.tree.map(lambda p, u: p + factor * u, trained, updates)
        updated = {"params": merged(moved, state["params"]), "opt": opt}
        if c.ema:
            updated["ema"] = moved_average(state["ema"], moved, c.ema, step)

        fine = jnp.isfinite(loss) & jnp.isfinite(norm)
        if c.optimizer.skip_norm:
            fine &= norm <= c.optimizer.skip_norm
        kept, skipped = state["skipped"], (~fine).astype(jnp.int32)
        new = {name: _choose(fine, value, state[name]) for name, value in updated.items()} | {
            "step": step + 1,
            "skipped": {
                "total": kept["total"] + skipped,
                "in_row": (kept["in_row"] + 1) * skipped,
                "last": jnp.where(fine, kept["last"], step + 1),
            },
            "damaged": state["damaged"] + jnp.sum(batch["damaged"] >= 0, dtype=jnp.int32),
        }
        return new, {
            "loss": loss, "parts": parts, "grad_norm": norm, "learning_rate": rate,
            "skipped": new["skipped"], "damaged_images": new["damaged"],
            "examples_hash": examples_hash(batch["id"]),
        }  # fmt: skip

    return train_step


def examples_hash(ids: Int[Array, " batch"]) -> Array:
    """A uint32 hash of a batch's example numbers and their order, the same on any mesh: the sum of
    (2 row + 1) mix(id), modulo 2^32, where mix is the last step of MurmurHash3."""
    x = ids.astype(jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    x = x ^ (x >> 16)
    return jnp.sum(x * (2 * jnp.arange(len(ids), dtype=jnp.uint32) + 1), dtype=jnp.uint32)


def make_loss(task: Task, gather: Any = None) -> Callable:
    """A function (trained parameters, all parameters, what the task holds, batch, key) -> (mean
    loss, its parts). The batch is one that the task has prepared."""

    def loss_of(trained, params, held, batch, key):
        return task.loss(merged(trained, params), batch, key, gather=gather, held=held)

    return loss_of


def _choose(fine: Array, new, old):
    return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
