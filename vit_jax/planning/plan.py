"""A plan: memory and costs of one step of a run on each chip, and the lower bound of its time."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.planning import analytic, hlo
from vit_jax.planning.roofline import Roofline, Share, by_kind, roofline
from vit_jax.planning.topologies import Target
from vit_jax.training.memory import step_bytes
from vit_jax.training.resolve import known
from vit_jax.training.run import Run, run_of

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip. On a TPU, `total` is the peak memory that the compiler checks against the
    limit. `arguments` includes the padding to 8 x 128 tiles. `temporaries` is the rest, with the
    activations kept for the backward pass (`saved`, from a trace of the loss). `limit` is 0 if it
    is not known."""

    params: float
    opt_state: float
    arguments: float
    temporaries: float
    saved: float
    total: float
    limit: float

    @property
    def fits(self) -> bool:
        return not self.limit or self.total <= self.limit


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of one run on one machine."""

    run: Run
    target: Target
    how: str  # compiled | analytic | refused: it does not fit, and costs are analytic
    memory: Memory
    costs: hlo.Costs
    roofline: Roofline | None  # None if the chip's peaks are not known
    evaluation: float | None = None  # bytes a chip of the evaluation step

    @property
    def evaluation_fits(self) -> bool:
        return not self.memory.limit or (self.evaluation or 0.0) < self.memory.limit

    @property
    def fits(self) -> bool:
        return self.how != "refused" and self.memory.fits and self.evaluation_fits

    @property
    def analytic_flops(self) -> float:
        """6 FLOPs per multiply-accumulate of the model, for the whole batch."""
        return 6 * self.run.model.macs * self.run.config.batch_size

    @property
    def step_s(self) -> float:
        assert self.roofline
        return self.roofline.step_s

    @property
    def shares(self) -> dict[str, Share]:
        """What each kind of kernel takes of a compiled step (`roofline.by_kind`); else empty."""
        if not self.target.chip:
            return {}
        return by_kind(self.costs, self.target, self.run.config.model.dtype)

    @property
    def images_per_second(self) -> float:
        return self.run.config.batch_size / self.step_s

    @property
    def mfu_ceiling(self) -> float:
        assert self.target.chip
        peak = self.target.count * self.target.chip.peak(self.run.config.model.dtype)
        return self.analytic_flops / peak / self.step_s

    @property
    def hours(self) -> float:
        """Hours to the end of the recipe at the highest possible speed. `step_s` is of the largest
        images; steps with smaller ones take less by their multiply-adds."""
        share = self.run.macs / self.run.model.macs
        return share * self.step_s * self.run.config.total_steps / 3600


def make_plan(
    config: ConfigDict, named: Iterable[str], target: Target, *, evaluation: bool = False
) -> Plan:
    """Plans a run. If a compiler for the target is here, compiles the step that `vit train` would
    run, and with `evaluation` also the evaluation step.

    Raises UserError if the config cannot work on so many devices.
    """
    run = run_of(config, named, target.devices, data=known, gpu=target.gpu)
    if isinstance(target.devices, int):
        return by_formula(run, target)
    return by_compiler(run, target, evaluation)


def by_formula(run: Run, target: Target, trace: analytic.Trace | None = None) -> Plan:
    """The plan by the analytic model. Without a `trace` of the loss, makes one."""
    trace = trace or analytic.trace(run)
    exact = _known(run, target, trace)
    memory = dataclasses.replace(exact, total=exact.arguments + exact.temporaries)
    return _finish(run, target, "analytic", memory, analytic.costs(run, trace.made))


def by_compiler(run: Run, target: Target, evaluation: bool = False) -> Plan:
    """The plan by the target's compiler. If the compiler refuses, the costs are by formula."""
    trace = analytic.trace(run)
    exact = _known(run, target, trace)
    if not exact.fits:
        return dataclasses.replace(by_formula(run, target, trace), how="refused")
    try:
        compiled = run.compiled_step
    except jax.errors.JaxRuntimeError as error:
        total = _asked(error, exact.arguments + exact.temporaries)
        memory = dataclasses.replace(exact, total=total, temporaries=total - exact.arguments)
        return _finish(run, target, "refused", memory, analytic.costs(run, trace.made))
    analysis = compiled.memory_analysis()
    total = step_bytes(compiled) + analysis.generated_code_size_in_bytes
    arguments = analysis.argument_size_in_bytes
    memory = dataclasses.replace(
        exact, arguments=arguments, temporaries=total - arguments, total=total
    )
    costs = hlo.costs(compiled.as_text(), run.mesh.shape, target.slices)
    plan = _finish(run, target, "compiled", memory, costs)
    if evaluation and run.config.data.eval.split:
        plan = dataclasses.replace(plan, evaluation=_evaluation_bytes(run, memory.limit))
    return plan


def _known(run: Run, target: Target, trace: analytic.Trace) -> Memory:
    """The memory before anything is compiled: the arguments are exact, the rest is by formula.
    `total` is that of the arguments."""
    state = {name: (run.abstract_state[name], run.shardings[name]) for name in run.abstract_state}
    sizes = {name: analytic.shard_bytes(*value) for name, value in state.items()}
    if run.config.optimizer.offload:  # the optimiser state is not on the chip
        sizes["opt"] = 0
    batch = run.abstract_batch(run.config.batch_size)
    arguments = sum(sizes.values()) + analytic.shard_bytes(
        batch, jax.tree.map(lambda leaf: leaf.sharding, batch)
    )
    saved = trace.kept.on(run)
    temporaries = analytic.temporaries(run, saved)
    limit = target.chip.memory * GIB if target.chip else 0.0
    opt = sizes["opt"] + sizes.get("ema", 0)
    return Memory(sizes["params"], opt, arguments, temporaries, saved, arguments, limit)


def _asked(error: Exception, least: float) -> float:
    """The highest number of bytes in the compiler's error; at least `least`. Raises the error if it
    is not about memory."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    sizes = re.findall(r"([\d.]+)([KMGT])\b", str(error))
    return max([least, *(float(n) * units[unit] for n, unit in sizes)])


def _evaluation_bytes(run: Run, limit: float) -> float:
    params = run.abstract_sharded_state["params"]
    batch = run.abstract_batch(run.config.eval_batch_size)
    try:
        return float(step_bytes(run.row_steps["rows"].lower(params, batch).compile()))
    except jax.errors.JaxRuntimeError as error:
        return _asked(error, limit)


def _finish(run: Run, target: Target, how: str, memory: Memory, costs: hlo.Costs) -> Plan:
    dtype = run.config.model.dtype
    bounds = roofline(costs, target, run.mesh.shape, dtype) if target.chip else None
    return Plan(run, target, how, memory, costs, bounds)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain numbers: bytes and seconds."""
    mesh = plan.run.mesh.shape
    return {
        "topology": plan.target.name, "slices": plan.target.slices, "chips": plan.target.count,
        "model": plan.run.model.name, "batch_size": plan.run.config.batch_size,
        "microbatch": plan.run.config.microbatch, "mesh": dict(mesh),
        "image_sizes": [list(size) for size in plan.run.sizes],
        "remat": plan.run.config.model.remat, "how": plan.how, "fits": plan.fits,
        "not_compiled": plan.target.missing or None,
        "bytes_per_chip": dataclasses.asdict(plan.memory),
        "evaluation_bytes_per_chip": plan.evaluation,
        "flops_per_step": {
            "analytic": plan.analytic_flops,
            "compiled": plan.costs.flops * plan.target.count if plan.how == "compiled" else None,
            "recomputed": plan.costs.recomputed * plan.target.count,
        },
        "memory_bytes_per_chip": plan.costs.bytes, "calls": plan.costs.calls,
        "collectives": [dataclasses.asdict(item) for item in plan.costs.collectives],
        "shares": {kind: share._asdict() for kind, share in plan.shares.items()},
        "roofline": None if plan.roofline is None else plan.roofline._asdict() | {
            "step_s": plan.step_s, "bound": plan.roofline.bound,
            "images_per_second": plan.images_per_second, "mfu_ceiling": plan.mfu_ceiling,
            "hours": plan.hours, "chip_hours": plan.hours * plan.target.count,
        },
    }  # fmt: skip
