"""The costs of a step by formula, for chips without a compiler, and for a search to choose what to
compile. The counts are those of fully sharded data parallelism and of Megatron-LM's tensor axis.

Parameters and optimiser state are counted exactly, from the shardings. Activations are those that
the real loss keeps for its backward pass. They are found by tracing the loss.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from vit_jax.config import changed
from vit_jax.models.model import Model
from vit_jax.parallel.sharding import BATCH
from vit_jax.paths import in_block, path_of
from vit_jax.planning.hlo import Collective, Costs
from vit_jax.tasks import find_task
from vit_jax.training.groups import trainable
from vit_jax.training.run import Run
from vit_jax.training.step import entries_of, make_loss

TRACED = 1009  # examples in the trace, a prime: no other dimension is a multiple of it
# Number of times that each activation of the backward pass crosses memory: one write, one read, its
# gradient, and the intermediates computed with it; what is computed twice crosses again. In steps
# compiled for TPU v5e it is 4 to 11, whatever they keep (docs/scaling.md).
PASSES = {"none": 7, "dots": 8, "full": 9}


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes of one example. Each device of the `tensor` axis has `whole`, and a part of `split`."""

    whole: float
    split: float

    def on(self, run: Run) -> float:
        """Bytes of one microbatch on one device."""
        tensor = run.mesh.shape["tensor"]
        return (self.whole + self.split / tensor) * run.config.microbatch / _rows(run)


@dataclasses.dataclass(frozen=True)
class Trace:
    """Activations between the forward and the backward pass: those that are `kept`, and those that
    are `made`, which would all be kept without rematerialisation."""

    kept: Activations
    made: Activations


def shard_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of a tree of arrays on one device."""
    parts = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        tree, shardings,
    )  # fmt: skip
    return sum(jax.tree.leaves(parts))


def trace(run: Run) -> Trace:
    """The activations that the run's loss keeps; no mesh or microbatch changes them."""
    kept = _activations(run, run.model)
    if getattr(run.model.config, "remat", "none") == "none":
        return Trace(kept, kept)
    plain = dataclasses.replace(run.model.config, remat="none")
    return Trace(kept, _activations(run, dataclasses.replace(run.model, config=plain)))


def _activations(run: Run, model: Model) -> Activations:
    # Without devices there may be no cuDNN to trace. Its attention keeps what XLA's does, without
    # the weights of every pair of tokens.
    fused = isinstance(run.mesh, AbstractMesh) and getattr(model.config, "attention", "") == "cudnn"
    if fused:
        plain: Any = dataclasses.replace(model.config, attention="xla")
        model = dataclasses.replace(model, config=plain)
    config = changed(run.config, {"mixup": 0.0, "cutmix": 0.0, "distill": None})
    task = find_task(config)(config, model, run.task.facts)
    loss, key = make_loss(task), jax.random.key(0)
    params = run.abstract_state["params"]
    trained = jax.eval_shape(lambda p: trainable(p, config.optimizer.freeze), params)
    batch = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in entries_of(run.abstract_batch(TRACED)).items()
    }
    batch = jax.eval_shape(task.prepared, batch, key)

    def kept(trained, params, batch):
        def total(t):
            return loss(t, params, None, batch, key)[0]

        return jax.vjp(total, trained)[1]

    leaves = jax.tree.leaves(jax.eval_shape(kept, trained, params, batch))
    stacks = [model.config, getattr(model.config, "decoder", model.config)]
    width = getattr(model.config, "hidden_size", None)
    sizes = {True: 0.0, False: 0.0}  # key: whether as wide as the residual path, never split
    for x in leaves:
        if fused and x.shape[-2:] in [(stack.num_tokens,) * 2 for stack in stacks]:
            continue
        if any(size and size % TRACED == 0 for size in x.shape):
            sizes[x.shape[-1] == width] += math.prod(x.shape) * x.dtype.itemsize / TRACED
    return Activations(whole=sizes[True], split=sizes[False])


def temporaries(run: Run, kept: float) -> float:
    """Bytes besides the arguments: `kept` activations, float32 gradients, two gathered blocks."""
    params = run.abstract_state["params"]
    gradients = shard_bytes(params, run.shardings["params"])
    itemsize = jnp.dtype(run.config.model.dtype).itemsize
    block = run.model.num_params / max(1, getattr(run.model.config, "num_layers", 1))
    gathered = 2 * block * itemsize / run.mesh.shape["tensor"]
    return kept + gradients + (gathered if run.mesh.shape["fsdp"] > 1 else 0.0)


def costs(run: Run, activations: Activations) -> Costs:
    """Costs of one step on one device; `activations` are those without rematerialisation."""
    c, shape, devices = run.config, run.mesh.shape, run.mesh.size
    forward = 2 * run.model.macs * c.batch_size / devices
    recomputed = forward * _recomputed(run)
    passes = c.batch_size // c.microbatch
    itemsize = jnp.dtype(c.model.dtype).itemsize
    state = shard_bytes(run.abstract_state, run.shardings)
    weights = run.model.num_params * itemsize / shape["tensor"]
    again = PASSES[getattr(run.model.config, "remat", "none")]
    moved = 2 * state + 3 * passes * weights + again * passes * activations.on(run)
    return Costs(3 * forward + recomputed, recomputed, moved, _collectives(run, passes, itemsize))


def _rows(run: Run) -> int:
    """Number of devices over which a batch is split."""
    return math.prod(run.mesh.shape[axis] for axis in BATCH[0])


def _recomputed(run: Run) -> float:
    """The share of the forward pass that rematerialisation repeats."""
    c: Any = run.model.config
    remat = getattr(c, "remat", "none")
    if remat == "none":
        return 0.0
    if remat == "full":
        return 1.0
    scores = 2 * c.num_tokens**2 * c.hidden_size * c.num_layers
    return scores / run.model.macs


def _collectives(run: Run, passes: int, itemsize: int) -> list[Collective]:
    """For each microbatch, blocks are gathered for the forward and for the backward pass, and their
    gradients are scattered. All other gradients are summed over `data`."""
    shape = run.mesh.shape
    fsdp, data, tensor = shape["fsdp"], shape["data"], shape["tensor"]
    split = whole = 0.0
    flat = jax.tree_util.tree_leaves_with_path(run.abstract_state["params"])
    for (keys, leaf), sharding in zip(flat, jax.tree.leaves(run.shardings["params"]), strict=True):
        size = math.prod(leaf.shape) * itemsize
        axes = jax.tree.leaves(tuple(sharding.spec))  # several axes may split one dimension
        size /= tensor if "tensor" in axes else 1
        if "fsdp" in axes:
            split += size * (passes if in_block(path_of(keys)) else 1)
        else:
            whole += size
    collectives = [
        Collective("all-gather", "fsdp", fsdp, 2 * split, 2),
        Collective("reduce-scatter", "fsdp", fsdp, split, 1),
        Collective("all-reduce", "data", data, split / fsdp, 1),
        Collective("all-reduce", "data+fsdp", data * fsdp, whole, 1),
    ]
    if tensor > 1:
        c: Any = run.model.config
        rows = run.config.batch_size / _rows(run)
        width = rows * c.num_tokens * c.hidden_size * itemsize
        sums = (4 + 2 * (c.remat == "full")) * c.num_layers
        collectives.append(Collective("all-reduce", "tensor", tensor, sums * width, sums))
    return [item for item in collectives if item.size > 1 and item.bytes]
