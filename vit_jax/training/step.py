"""The compiled training step: uint8 batch in, new state and metrics out. Nothing here leaves the
device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from ml_collections import ConfigDict

from vit_jax.data.mixing import mix_images, mix_targets, partners
from vit_jax.models import Model
from vit_jax.parallel.sharding import BATCH, gather_block
from vit_jax.training.losses import LOSSES, targets
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.schedules import make_schedule
from vit_jax.training.state import State

Metrics = dict[str, Array]


def make_train_step(model: Model, config: ConfigDict, mesh: Mesh) -> Callable:
    """(state, batch) -> (state, metrics), of a batch with `image` uint8 [B, H, W, C] and `label`
    int32 [B] or [B, labels].

    With `microbatch` m < batch_size B, gradients are the mean over k = B/m passes, of which pass j
    takes rows j::k (so that rows stay on their device). A step whose loss or gradient is not
    finite keeps parameters and optimiser as they were; `step` advances all the same.
    """
    c = config
    tx = make_optimizer(c.optimizer)
    schedule = make_schedule(c.schedule, c.optimizer.lr, c.total_steps)
    loss_fn = LOSSES[c.loss.name]
    passes = c.batch_size // c.microbatch
    mixes = c.mixup or c.cutmix
    dtype = jnp.dtype(c.model.dtype)
    gather = gather_block(mesh, c.mesh.min_shard_size, dtype)
    rows = NamedSharding(mesh, P(None, *BATCH))

    def loss_of(params, batch, key):
        """Mean loss over one microbatch."""
        images = model.data_config.normalise(batch["image"])
        wanted = targets(batch["label"], c.model.num_classes, c.loss.label_smoothing)
        if mixes:
            other = targets(batch["label2"], c.model.num_classes, c.loss.label_smoothing)
            wanted = mix_targets(wanted, other, batch)
            images = mix_images(images, model.data_config.normalise(batch["image2"]), batch)
        logits, _ = model.apply(params, images, train=True, key=key, gather=gather)
        return loss_fn(logits, wanted).mean()

    def gradients(params, batch, key):
        """Loss and gradient of the whole batch."""
        if passes == 1:
            return jax.value_and_grad(loss_of)(params, batch, key)

        def one(total, microbatch_and_key):
            new = jax.value_and_grad(loss_of)(params, *microbatch_and_key)
            return jax.tree.map(jnp.add, total, new), None

        def split(x):  # [B, ...] -> [k, m, ...], of which [j] holds rows j::k
            x = x.reshape(c.microbatch, passes, *x.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(x, rows)

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(
            one, zero, (jax.tree.map(split, batch), jax.random.split(key, passes))
        )
        return jax.tree.map(lambda x: x / passes, total)

    def train_step(state: State, batch: dict[str, Array]) -> tuple[State, Metrics]:
        step = state["step"]
        mixup_key, key = jax.random.split(jax.random.fold_in(jax.random.key(c.seed), step))
        if mixes:
            batch = partners(batch, c.mixup, c.cutmix, c.mix_each, mixup_key)
        loss, grads = gradients(state["params"], batch, key)
        norm = optax.tree.norm(grads)
        rate = schedule(step)
        updates, opt = tx.update(grads, state["opt"], state["params"])
        params = jax.tree.map(lambda p, u: p + rate * u, state["params"], updates)

        fine = jnp.isfinite(loss) & jnp.isfinite(norm)
        kept, skipped = state["skipped"], (~fine).astype(jnp.int32)
        new = {
            "params": _choose(fine, params, state["params"]),
            "opt": _choose(fine, opt, state["opt"]),
            "step": step + 1,
            "skipped": {
                "total": kept["total"] + skipped,
                "in_row": (kept["in_row"] + 1) * skipped,
            },
        }
        return new, {"loss": loss, "grad_norm": norm, "learning_rate": rate, **new["skipped"]}

    return train_step


def _choose(fine: Array, new, old):
    return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
