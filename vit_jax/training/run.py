"""A resolved run: its model, mesh and data, the shapes of its state, its compiled steps."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vit_jax.checkpoint.tree import flatten
from vit_jax.data import ops, pipeline
from vit_jax.data.sources import Source
from vit_jax.evaluators.classification import make_eval_step
from vit_jax.evaluators.frozen import make_feature_step
from vit_jax.models import Model
from vit_jax.models.model import Params
from vit_jax.parallel.sharding import BATCH, gather_block, in_host_memory, state_shardings
from vit_jax.pretrained.opened import Weights
from vit_jax.training.evaluation import Opened
from vit_jax.training.groups import counts
from vit_jax.training.state import State, abstract_state, make_init, make_rest
from vit_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """A resolved run. Sources are None where only its shape was asked for."""

    config: ConfigDict
    said: list[str]
    model: Model
    mesh: Mesh
    classes: list[str]
    train_source: Source | None
    evaluators: list[Opened]  # that of `data.eval` first
    train_examples: int
    max_labels: int = 1  # of an example
    weights: Weights | None = None  # those of `init`
    teacher: tuple[Model, Params] | None = None

    @property
    def summary(self) -> str:
        """Model, size and mesh in a line."""
        mesh = " × ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        return f"{self.model.name}, {self.model.num_params:,} parameters; mesh {mesh}"

    @property
    def in_numbers(self) -> list[str]:
        """Batches, steps, rates, and what trains and decays, once everything is resolved."""
        c, o = self.config, self.config.optimizer
        seen = c.total_steps * c.batch_size
        share = c.batch_size // (c.mesh.data * c.mesh.fsdp)
        passes = c.batch_size // c.microbatch
        found = counts(self.abstract_state["params"], o.freeze)
        told = {name: f"{leaves:,} parameters ({numbers:,} numbers)"
                for name, (leaves, numbers) in found.items()}  # fmt: skip
        decay = f"{o.weight_decay:g} by the {o.decay_by} on {told['decayed']}"
        return [
            f"{self.train_examples:,} training examples, {c.model.num_classes:,} classes; batches "
            f"of {c.batch_size:,}, {share:,} on each of {self.mesh.size} devices, "
            f"{passes} passes a step",
            f"{c.total_steps:,} steps = {seen:,} examples = "
            f"{seen / self.train_examples:.4g} epochs",
            f"{o.name}: rate {o.lr:g}, {c.schedule.name} after "
            f"{min(c.schedule.warmup_steps, c.total_steps):,} steps; "
            f"decay {decay if o.weight_decay else 'none'}; frozen "
            f"{told['frozen'] if found['frozen'][0] else 'none'}, trained {told['trained']}",
        ]

    @functools.cached_property
    def held(self) -> dict[str, dict[str, Any]]:
        """What the sources hold, by the keys that name them, as checkpoints keep it: the number of
        examples, and a hash of their names and labels in order (None where a source has no names);
        of a teacher, a hash of its parameters."""
        sources: dict[str, Any] = {"data.train.source": self.train_source}
        if self.config.data.eval.split and self.evaluators:
            sources["data.eval.source"] = self.evaluators[0].test
        found = {
            key: {"examples": len(source), "names": getattr(source, "names_hash", None)}
            for key, source in sources.items() if source is not None
        }  # fmt: skip
        if self.teacher:
            digest = hashlib.blake2b(digest_size=16)
            for path, leaf in sorted(flatten(self.teacher[1]).items()):
                digest.update(path.encode() + jax.device_get(leaf).tobytes())
            found["distill"] = {"examples": None, "names": digest.hexdigest()}
        return found

    @functools.cached_property
    def abstract_state(self) -> State:
        return abstract_state(self.model, self.config)

    @functools.cached_property
    def shardings(self) -> Any:
        where = state_shardings(self.abstract_state, self.mesh, self.config.mesh.min_shard_size)
        if self.config.optimizer.offload:
            where["opt"] = jax.tree.map(in_host_memory, self.abstract_state["opt"], where["opt"])
        return where

    def laid(self, mesh: Mesh, config: ConfigDict) -> "Run":
        """The same run over another mesh, with other microbatches: its state's shapes are known."""
        run = dataclasses.replace(self, mesh=mesh, config=config)
        vars(run)["abstract_state"] = self.abstract_state
        return run

    @property
    def abstract_sharded_state(self) -> State:
        """The abstract state, each leaf with its sharding."""
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            self.abstract_state, self.shardings,
        )  # fmt: skip

    @property
    def batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, BATCH)

    def abstract_batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch on the devices."""
        c, where = self.model.config, self.batch_sharding
        shape = (size, *c.image_size, c.channels)
        labels = (size,) if self.max_labels == 1 else (size, self.max_labels)
        return {
            "image": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=where),
            "label": jax.ShapeDtypeStruct(labels, jnp.int32, sharding=where),
            "id": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=where),
            "damaged": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=where),
        }

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        """For XLA; with `deterministic` on a GPU neither atomics nor algorithms chosen by time."""
        if not self.config.deterministic or self.mesh.devices.flat[0].platform != "gpu":
            return None
        return {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}

    @property
    def jitted_step(self) -> tuple[Any, list[Any]]:
        """The training step to be compiled, and the shapes that it is compiled for."""
        model, params = self.teacher or (None, None)
        everywhere = NamedSharding(self.mesh, PartitionSpec())  # so that every process reads them
        jitted = jax.jit(
            make_train_step(self.model, self.config, self.mesh, model), donate_argnums=0,
            out_shardings=(self.shardings, everywhere), compiler_options=self.compiler_options,
        )  # fmt: skip
        arguments = [self.abstract_sharded_state, self.abstract_batch(self.config.batch_size)]
        if self.teacher:
            arguments.append(jax.tree.map(
                lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=everywhere), params
            ))  # fmt: skip
        return jitted, arguments

    @functools.cached_property
    def compiled_step(self) -> Any:
        """The training step, compiled ahead of time; it takes over the old state's memory."""
        jitted, arguments = self.jitted_step
        return jitted.lower(*arguments).compile()

    def compile_train_step(self) -> Callable:
        """(state, batch) -> (state, metrics), compiled; the old state is gone afterwards."""
        step = self.compiled_step
        if not self.teacher:
            return step
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        params = jax.device_put(jax.device_get(self.teacher[1]), everywhere)
        return lambda state, batch: step(state, batch, params)

    @functools.cached_property
    def row_steps(self) -> dict[str, Any]:
        """What is said of each row of a batch, by what evaluators read; every process has all."""
        c = self.config
        gather = gather_block(self.mesh, c.mesh.min_shard_size, jnp.dtype(c.model.dtype))
        steps = {
            "rows": make_eval_step(self.model, gather=gather),
            "scores": make_eval_step(self.model, scores=True, gather=gather),
            "features": make_feature_step(self.model, gather=gather),
        }
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return {
            name: jax.jit(step, out_shardings=everywhere, compiler_options=self.compiler_options)
            for name, step in steps.items()
        }

    @property
    def train_pipeline(self) -> ops.Pipeline:
        return ops.parse(
            self.config.data.train.pipeline, self.model.config.image_size, imports=True
        )

    def _dataset_sizes(self, batch_size: int) -> dict[str, Any]:
        return {
            "shape": (*self.model.config.image_size, self.model.config.channels),
            "batch_size": batch_size,
            "rows": pipeline.rows_of_process(self.batch_sharding, batch_size),
            "threads": self.config.data.threads,
            "workers": self.config.data.workers,
        }

    def train_host_batches(self, examples_seen: int, steps: int) -> pipeline.Batches:
        """The batches of the next `steps` steps, the rows of this process."""
        assert self.train_source is not None
        return pipeline.train_batches(
            self.train_source, self.train_pipeline, seed=self.config.seed,
            examples_seen=examples_seen, steps=steps,
            **self._dataset_sizes(self.config.batch_size),
        )  # fmt: skip

    def train_batches(self, examples_seen: int, steps: int) -> pipeline.OnDevice:
        """The same on the devices."""
        host = self.train_host_batches(examples_seen, steps)
        return pipeline.OnDevice(host, self.batch_sharding)

    def eval_batches(self, source: Source, text: str) -> pipeline.OnDevice:
        """Every example of a source once, prepared by a pipeline."""
        host = pipeline.eval_batches(
            source,
            ops.parse(text, self.model.config.image_size, imports=True),
            **self._dataset_sizes(self.config.eval_batch_size) | {"workers": 0},
        )
        return pipeline.OnDevice(host, self.batch_sharding)

    def init_state(self, params: Any = None) -> State:
        """The state of step 0, each device making its own part; `params` are fresh, or given."""
        where = self.shardings
        if params is None:
            return jax.jit(make_init(self.model, self.config), out_shardings=where)()
        others = {key: where[key] for key in where if key != "params"}
        return {"params": params} | jax.jit(make_rest(self.config), out_shardings=others)(params)
