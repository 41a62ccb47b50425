"""The compiled training step: uint8 batch in, new state and metrics out. Nothing here leaves the
device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from vit_jax.data.mixing import mix_images, mix_targets, partners
from vit_jax.models import Model
from vit_jax.parallel.sharding import BATCH, gather_block
from vit_jax.training.distillation import parse
from vit_jax.training.groups import by_layer, merged, trainable
from vit_jax.training.losses import LOSSES, targets, weighted
from vit_jax.training.optimizer import HOLD_RATE, make_optimizer
from vit_jax.training.schedules import make_schedule
from vit_jax.training.state import State, moved_average

Metrics = dict[str, Array]


def make_gradients(
    model: Model, config: ConfigDict, mesh: Mesh, teacher: Model | None = None
) -> Callable:
    """(state, batch, teacher's parameters) -> (loss, gradients of what trains) of a whole batch.

    With `microbatch` m < batch_size B, gradients are the mean over k = B/m passes, of which pass j
    takes rows j::k (so that rows stay on their device).
    """
    c = config
    loss_of = make_loss(
        model,
        c,
        gather_block(model.family, mesh, c.mesh.min_shard_size, jnp.dtype(c.model.dtype)),
        teacher,
    )
    passes = c.batch_size // c.microbatch
    rows = NamedSharding(mesh, P(None, *BATCH))

    def split(x):  # [B, ...] -> [k, m, ...], of which [j] holds rows j::k
        x = x.reshape(c.microbatch, passes, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, rows)

    def gradients(state: State, batch: dict[str, Array], teacher_params=None):
        trained = trainable(state["params"], c.optimizer.freeze)
        of_step = jax.random.fold_in(jax.random.key(c.seed), state["step"])
        mixup_key, key = jax.random.split(of_step)
        shown = {name: batch[name] for name in ("image", "label")}
        if c.mixup or c.cutmix:
            shown = partners(shown, c.mixup, c.cutmix, c.mix_each, mixup_key)
        both = jax.value_and_grad(loss_of)
        if passes == 1:
            return both(trained, state["params"], teacher_params, shown, key)

        def one(total, microbatch_and_key):
            new = both(trained, state["params"], teacher_params, *microbatch_and_key)
            return jax.tree.map(jnp.add, total, new), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
        parts = (jax.tree.map(split, shown), jax.random.split(key, passes))
        total, _ = jax.lax.scan(one, zero, parts)
        return jax.tree.map(lambda x: x / passes, total)

    return gradients


def make_train_step(
    model: Model, config: ConfigDict, mesh: Mesh, teacher: Model | None = None
) -> Callable:
    """(state, batch, teacher's parameters) -> (state, metrics), of a batch with `image` uint8
    [B, H, W, C], `label` int32 [B] or [B, labels], and `id` and `damaged` int32 [B].

    A step whose loss or gradient is not finite, or whose gradient's norm is above
    `optimizer.skip_norm`, keeps parameters and optimiser as they were; `step` advances all the
    same.
    """
    c = config
    schedule = make_schedule(c.schedule, c.optimizer.lr, c.total_steps)
    tx = make_optimizer(c.optimizer, model.family, schedule)
    gradients = make_gradients(model, c, mesh, teacher)

    def train_step(
        state: State, batch: dict[str, Array], teacher_params=None
    ) -> tuple[State, Metrics]:
        step, trained = state["step"], trainable(state["params"], c.optimizer.freeze)
        if c.optimizer.offload:
            state = state | {"opt": jax.device_put(state["opt"], jax.memory.Space.Device)}
        loss, grads = gradients(state, batch, teacher_params)
        norm = optax.tree.norm(grads)
        rate = schedule(step)
        factor = 1.0 if c.optimizer.name in HOLD_RATE else rate
        updates, opt = tx.update(grads, state["opt"], trained)
        updates = by_layer(model.family, updates, state["params"], c.optimizer.layer_decay)
        moved = jax.tree.map(lambda p, u: p + factor * u, trained, updates)
        made = {"params": merged(moved, state["params"]), "opt": opt}
        if c.ema:
            made["ema"] = moved_average(state["ema"], moved, c.ema, step)

        fine = jnp.isfinite(loss) & jnp.isfinite(norm)
        if c.optimizer.skip_norm:
            fine &= norm <= c.optimizer.skip_norm
        kept, skipped = state["skipped"], (~fine).astype(jnp.int32)
        new = {name: _choose(fine, value, state[name]) for name, value in made.items()} | {
            "step": step + 1,
            "skipped": {
                "total": kept["total"] + skipped,
                "in_row": (kept["in_row"] + 1) * skipped,
                "last": jnp.where(fine, kept["last"], step + 1),
            },
            "damaged": state["damaged"] + jnp.sum(batch["damaged"] >= 0, dtype=jnp.int32),
        }
        return new, {
            "loss": loss, "grad_norm": norm, "learning_rate": rate, "skipped": new["skipped"],
            "damaged_images": new["damaged"], "examples_hash": examples_hash(batch["id"]),
        }  # fmt: skip

    return train_step


def examples_hash(ids: Int[Array, " batch"]) -> Array:
    """uint32 [] of the numbers of a batch's examples and their order, the same on any mesh: the sum
    of (2 row + 1) mix(id), modulo 2^32, where mix is MurmurHash3's last step."""
    x = ids.astype(jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    x = x ^ (x >> 16)
    return jnp.sum(x * (2 * jnp.arange(len(ids), dtype=jnp.uint32) + 1), dtype=jnp.uint32)


def make_loss(
    model: Model, config: ConfigDict, gather: Callable | None, teacher: Model | None
) -> Callable:
    """(trained parameters, all of them, the teacher's, batch, key) -> mean loss of a batch that
    `partners` has mixed where it is to be."""
    c = config
    loss_fn = weighted(LOSSES[c.loss.name], c.loss.class_weights)
    mixes = c.mixup or c.cutmix
    distill = parse(c.distill)

    def pixels(model, batch):
        """Images as a model wants to be shown them, mixed where the batch says so."""
        images = model.data_config.normalise(batch["image"])
        if not mixes:
            return images
        return mix_images(images, model.data_config.normalise(batch["image2"]), batch)

    def loss_of(trained, params, teacher_params, batch, key):
        """Mean loss over one microbatch."""
        wanted = targets(batch["label"], c.model.num_classes, c.loss.label_smoothing)
        if mixes:
            other = targets(batch["label2"], c.model.num_classes, c.loss.label_smoothing)
            wanted = mix_targets(wanted, other, batch)
        params = merged(trained, params)
        logits, out = model.apply(params, pixels(model, batch), train=True, key=key, gather=gather)
        if distill is None:
            return loss_fn(logits, wanted).mean()
        # DeiT's second token learns from the teacher, the class token from the labels.
        student, logits = out.get("logits_dist", logits), out.get("logits_cls", logits)
        taught, _ = teacher.apply(teacher_params, pixels(teacher, batch))
        part = distill.weight * distill.loss(student, taught)
        return ((1 - distill.weight) * loss_fn(logits, wanted) + part).mean()

    return loss_of


def _choose(fine: Array, new, old):
    return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
