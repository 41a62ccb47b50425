"""A resolved run on its devices: the shapes of its state, its shardings, its compiled steps."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vit_jax.checkpoint.tree import flatten
from vit_jax.data import pipeline, pipeline_text
from vit_jax.data.source import Facts, Source
from vit_jax.evaluators.opened import Opened
from vit_jax.models import Model
from vit_jax.models.kernels import Gpu
from vit_jax.parallel import compiler
from vit_jax.parallel.mesh import make_mesh
from vit_jax.parallel.sharding import BATCH, gather_block, in_host_memory, state_shardings
from vit_jax.pretrained.opened import Weights
from vit_jax.tasks import Task
from vit_jax.training.groups import counts
from vit_jax.training.resolve import Data, Resolved, opened, resolve
from vit_jax.training.state import State, abstract_state, make_init, make_rest
from vit_jax.training.step import entries_of, make_train_step


def run_of(
    config: ConfigDict,
    named: Iterable[str] = (),
    devices: Sequence[jax.Device] | int | None = None,
    *,
    data: Callable[[ConfigDict], Data] = opened,
    weights: Weights | None = None,
    gpu: Gpu | None = None,
) -> "Run":
    """Resolves a config (`resolve`), and places the run on a mesh of the devices."""
    resolved = resolve(config, named, devices, data=data, weights=weights, gpu=gpu)
    mesh = resolved.config.mesh
    shapes = abstract_state(resolved.model, resolved.config)
    return Run(resolved, make_mesh((mesh.data, mesh.fsdp, mesh.tensor), devices), shapes)


@dataclasses.dataclass(frozen=True)
class Run:
    """A resolved run on a mesh."""

    resolved: Resolved
    mesh: Mesh
    abstract_state: State  # shapes and dtypes

    @property
    def config(self) -> ConfigDict:
        return self.resolved.config

    @property
    def said(self) -> tuple[str, ...]:
        return self.resolved.said

    @property
    def model(self) -> Model:
        return self.resolved.model

    @property
    def task(self) -> Task:
        return self.resolved.task

    @property
    def classes(self) -> list[str]:
        """Names of the model's outputs; empty if the outputs are not classes."""
        return self.resolved.data.classes if self.task.outputs_are_classes else []

    @property
    def train_source(self) -> Source | None:
        return self.resolved.data.train

    @property
    def evaluators(self) -> tuple[Opened, ...]:
        """The evaluators of the run; the first one is that of `data.eval`."""
        return self.resolved.evaluators

    @property
    def train_examples(self) -> int:
        return self.resolved.data.facts.num_examples

    @property
    def summary(self) -> str:
        """One line: the model, its number of parameters and the mesh."""
        mesh = " × ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        return f"{self.model.name}, {self.model.num_params:,} parameters; mesh {mesh}"

    @property
    def in_numbers(self) -> list[str]:
        """Lines on batches, steps, the rate, and how many tensors train and decay."""
        c, o = self.config, self.config.optimizer
        seen, passes = c.total_steps * c.batch_size, c.batch_size // c.microbatch
        share = c.batch_size // (c.mesh.data * c.mesh.fsdp)
        devices = (
            f"{self.mesh.size} devices, {share:,} on each" if self.mesh.size > 1 else "1 device"
        )
        accumulation = f"{passes} passes of {c.microbatch:,}" if passes > 1 else "no accumulation"
        many = "es" if c.model.num_classes != 1 else ""
        classes = f", {c.model.num_classes:,} class{many}" if c.model.num_classes else ""
        warmup = min(c.schedule.warmup_steps, c.total_steps)
        after = f" after {warmup:,} steps of warm-up" if warmup else ""
        totals = counts(self.model.family, self.abstract_state["params"], o.freeze)
        (trained, numbers), (frozen, _) = totals["trained"], totals["frozen"]
        decays = f"{o.weight_decay:g} (times the {o.decay_by}) on {totals['decayed'][0]:,} tensors"
        those = f"{trained:,} of {trained + frozen:,}" if frozen else f"all {trained:,}"
        sides = ", ".join(f"{tall} × {wide}" for tall, wide in self.sizes)
        return [
            f"{self.train_examples:,} training examples{classes}; batch {c.batch_size:,} "
            f"({devices}, {accumulation})",
            f"{c.total_steps:,} steps = {seen:,} examples = "
            f"{seen / self.train_examples:.4g} epochs",
            *([f"each step has images of one size: {sides}"] if len(self.sizes) > 1 else []),
            f"{o.name}: rate {o.lr:g}, {c.schedule.name}{after}",
            f"weight decay {decays}" if o.weight_decay else "no weight decay",
            f"{those} tensors train ({numbers:,} parameters)",
        ]

    @functools.cached_property
    def held(self) -> dict[str, dict[str, Any]]:
        """What identifies the run's data, as checkpoints save it, by config key: the number of
        examples, and a hash of their names and classes in order (None if a source has no names).
        `distill` has a hash of the arrays that the task holds."""
        sources: dict[str, Any] = {"data.train.source": self.train_source}
        if self.config.data.eval.split and self.evaluators:
            sources["data.eval.source"] = self.evaluators[0].test
        facts = {
            key: {"examples": len(source), "names": getattr(source, "names_hash", None)}
            for key, source in sources.items() if source is not None
        }  # fmt: skip
        if self.task.held is not None:
            digest = hashlib.blake2b(digest_size=16)
            for path, leaf in sorted(flatten(self.task.held).items()):
                digest.update(path.encode() + jax.device_get(leaf).tobytes())
            facts["distill"] = {"examples": None, "names": digest.hexdigest()}
        return facts

    @functools.cached_property
    def shardings(self) -> Any:
        where = state_shardings(
            self.model.family, self.abstract_state, self.mesh, self.config.mesh.min_shard_size
        )
        if self.config.optimizer.offload:
            where["opt"] = jax.tree.map(in_host_memory, self.abstract_state["opt"], where["opt"])
        return where

    @property
    def of_one_size(self) -> "Run":
        """The same run, whose training images all have the model's size."""
        train, evaluation = self.resolved.pipelines
        pipelines = (train.at(self.model.config.image_size), evaluation)
        return dataclasses.replace(
            self, resolved=dataclasses.replace(self.resolved, pipelines=pipelines)
        )

    def changed(self, keys: Mapping[str, Any], mesh: Mesh | None = None) -> "Run":
        """The same run on another mesh, or with other values of some keys. The keys must not change
        the shapes of the state (`microbatch` does not)."""
        return dataclasses.replace(
            self, resolved=self.resolved.changed(keys), mesh=mesh or self.mesh
        )

    @property
    def abstract_sharded_state(self) -> State:
        """The shapes and dtypes of the state, with shardings."""
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            self.abstract_state, self.shardings,
        )  # fmt: skip

    @property
    def batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, BATCH)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes (height, width) of training images, of which each step has one."""
        return self.resolved.pipelines[0].sizes or (self.model.config.image_size,)

    @property
    def macs(self) -> float:
        """Multiply-adds of one training image through the model, as the mean over its sizes."""
        if not self.resolved.pipelines[0].sizes:
            return self.model.macs
        c, macs = self.model.config, self.model.family.macs
        each = [macs(dataclasses.replace(c, image_size=size)) for size in self.sizes]
        return sum(each) / len(each)

    def abstract_batch(
        self, size: int, sides: tuple[int, int] | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and sharding of a batch of `size` examples. `sides`: of its images; the
        model's by default."""
        c, where = self.model.config, self.batch_sharding
        filler = self.task.entries(self.resolved.data.facts).filler
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "image": ((*(sides or c.image_size), c.channels), jnp.uint8), "id": ((), jnp.int32),
            "damaged": ((), jnp.int32),
        }  # fmt: skip
        shapes |= {name: (value.shape, value.dtype) for name, value in filler.items()}
        return {
            name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=where)
            for name, (shape, dtype) in shapes.items()
        }

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        """Options for XLA."""
        return compiler.options(self.mesh.devices, deterministic=self.config.deterministic)

    @property
    def jitted_step(self) -> tuple[Any, list[Any]]:
        """The training step before compilation, and the shapes of its arguments, with images of the
        model's size."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())  # every process reads the metrics
        jitted = jax.jit(
            make_train_step(self.task, self.config, self.mesh), donate_argnums=0,
            out_shardings=(self.shardings, everywhere), compiler_options=self.compiler_options,
        )  # fmt: skip
        arguments = [self.abstract_sharded_state, self.abstract_batch(self.config.batch_size)]
        if self.task.held is not None:
            arguments.append(jax.tree.map(
                lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=everywhere),
                self.task.held,
            ))  # fmt: skip
        return jitted, arguments

    def held_on_devices(self) -> Any:
        """The arrays that the task holds, on every device; None if it holds none."""
        if self.task.held is None:
            return None
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.device_put(jax.device_get(self.task.held), everywhere)

    @functools.cached_property
    def compiled_step(self) -> Any:
        """The training step for images of the model's size, compiled ahead of time. It reuses the
        memory of the old state."""
        jitted, arguments = self.jitted_step
        return jitted.lower(*arguments).compile()

    def compile_train_step(self) -> Callable:
        """(state, batch) -> (state, metrics), compiled for every size of images. The old state
        cannot be used afterwards. Arguments that are not on the devices are an error, because a
        transfer would delay every step."""
        steps, held = {self.model.config.image_size: self.compiled_step}, self.held_on_devices()
        jitted, (state, _, *more) = self.jitted_step
        for sides in self.sizes:
            if sides not in steps:
                batch = self.abstract_batch(self.config.batch_size, sides)
                steps[sides] = jitted.lower(state, batch, *more).compile()
        more = [] if held is None else [held]

        def guarded(state: State, batch: Any) -> Any:
            with jax.transfer_guard("disallow"):
                return steps[batch["image"].shape[1:3]](state, batch, *more)

        return guarded

    @functools.cached_property
    def row_steps(self) -> dict[str, Any]:
        """Compiled steps (params, batch) -> outputs per row, by the kind of output that evaluators
        read. Every process gets all rows."""
        c = self.config
        gather = gather_block(
            self.model.family, self.mesh, c.mesh.min_shard_size, jnp.dtype(c.model.dtype)
        )
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def compiled(step: Callable) -> Any:
            def with_id(params: Any, batch: Any) -> Any:
                return step(params, entries_of(batch)) | {"id": batch["id"]}

            options = self.compiler_options
            return jax.jit(with_id, out_shardings=everywhere, compiler_options=options)

        return {name: compiled(step) for name, step in self.task.judge(gather).items()}

    def _dataset_sizes(self, batch_size: int, source: Source) -> dict[str, Any]:
        return {
            "entries": self.task.entries(Facts.of(source)),
            "shape": (*self.model.config.image_size, self.model.config.channels),
            "batch_size": batch_size,
            "rows": pipeline.rows_of_process(self.batch_sharding, batch_size),
            "threads": self.config.data.threads,
            "workers": self.config.data.workers,
        }

    def train_host_batches(self, examples_seen: int, steps: int) -> pipeline.Batches:
        """The batches of the next `steps` steps on the host: the rows of this process."""
        assert self.train_source is not None
        return pipeline.train_batches(
            self.train_source, self.resolved.pipelines[0], seed=self.config.seed,
            examples_seen=examples_seen, steps=steps,
            **self._dataset_sizes(self.config.batch_size, self.train_source),
        )  # fmt: skip

    def train_batches(self, examples_seen: int, steps: int) -> pipeline.OnDevice:
        """The batches of the next `steps` steps, on the host and on the devices."""
        host = self.train_host_batches(examples_seen, steps)
        return pipeline.OnDevice(host, self.batch_sharding)

    def eval_batches(self, source: Source, parsed: pipeline_text.Pipeline) -> pipeline.OnDevice:
        """Batches with every example of a source once, prepared by a pipeline."""
        host = pipeline.eval_batches(
            source,
            parsed,
            **self._dataset_sizes(self.config.eval_batch_size, source) | {"workers": 0},
        )
        return pipeline.OnDevice(host, self.batch_sharding)

    def init_state(self, params: Any = None) -> State:
        """The state of step 0, with random `params` by default. Each device computes its part."""
        where = self.shardings
        if params is None:
            return jax.jit(make_init(self.model, self.config), out_shardings=where)()
        others = {key: where[key] for key in where if key != "params"}
        rest = jax.jit(make_rest(self.model, self.config), out_shardings=others)
        return {"params": params} | rest(params)
