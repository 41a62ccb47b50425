"""Estimates memory, FLOPs, traffic and time of a run on any TPU or GPU, also if it is not here.

  vit plan --config=pretrain.py:h14,imagenet21k --topology=v5e:16x16
  vit plan --config=pretrain.py:g14,jft300m --topology=v5p:4x4x4 --slices=2 --search
  vit plan --config=pretrain.py:l16,imagenet21k --topology=gpu:h100x8 --json
  vit plan --config=digits.py --topology=local

For TPUs (v4 v5e v5p v6e) the TPU compiler compiles the step; it needs no TPU: pip install
vit_jax[tpu]. For GPUs the CUDA compiler does; it needs no GPU: pip install vit_jax[cuda]. If it is
missing, an analytic model estimates, and the output says so. The data need not be here.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from typing import Any

from vit_jax.commands.arguments import CONFIG, JSON, Options, configured
from vit_jax.commands.output import check_files, say, tell
from vit_jax.errors import UserError

OPTIONS: Options = CONFIG | {
    "--topology": dict(required=True, metavar="NAME", help="v5e:16x16, v5p:4x4x4 …, gpu:h100x8, "
                       "gpu:h100x8x4 (four hosts), or local: the devices of this machine"),
    "--slices": dict(type=int, default=1, metavar="N", help="number of TPU slices (1)"),
    "--search": dict(action="store_true",
                     help="find the fastest mesh, microbatch and rematerialisation that fits"),
    **JSON,
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code: 2 if the run does not fit."""
    check_files(options)
    config, named = configured(options)
    from vit_jax.errors import OK, USER_ERROR
    from vit_jax.launch.local import handling
    from vit_jax.planning import topologies
    from vit_jax.planning.plan import as_json, make_plan
    from vit_jax.planning.search import in_words, search

    target = topologies.find(options.topology, options.slices)
    if options.search and target.chip is None:
        raise UserError(
            "--search compares times, and nothing is stated of a CPU's: name a topology"
        )
    # There is nothing to save. Python would handle signals only after the compiler, and libtpu's
    # own handler prints its stacks.
    with handling(signal.SIG_DFL):
        if not isinstance(target.devices, int):
            say(f"compiling for {target.name}, which can take a minute or two …")
        if options.search:
            choice, plan = search(config, named, target, say)
            say(f"the fastest that fits: {in_words(choice)}")
        else:
            plan = make_plan(config, named, target, evaluation=True)
    tell(as_json(plan), "\n".join(lines(plan)), options.json)
    if not plan.fits:
        print(f"vit: error: {_refusal(plan)}", file=sys.stderr)
    return OK if plan.fits else USER_ERROR


HOW = {
    "compiled": "compiled for it",
    "analytic": "NOT compiled: analytic model, by formula alone",
    "refused": "the compiler refuses it; FLOPs, traffic and times are by formula",
}


def lines(plan: Any) -> Iterator[str]:
    """The plan as lines of text."""
    c, memory, target = plan.run.config, plan.memory, plan.target
    slices = f"{target.slices} slices of " if target.slices > 1 else ""
    yield f"{plan.run.summary}; remat {c.model.remat or 'none'}, {c.model.dtype}"
    why = f"; {target.missing}" if target.missing else ""
    yield f"{slices}{target.name}, {target.count:,} chips; {HOW[plan.how]}{why}"
    yield from plan.run.said
    passes = c.batch_size // c.microbatch
    yield f"batch {c.batch_size:,} in {passes} passes; {c.total_steps:,} steps\n"
    if len(sizes := plan.run.sizes) > 1:
        tall, wide = plan.run.model.config.image_size
        yield f"images have {len(sizes)} sizes; the step below has the largest: {tall} × {wide}\n"
    unit, size_of = _unit(memory.total, (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)))
    yield f"memory, {unit} a chip"
    rows = {
        "arguments: state and batch": memory.arguments, "  of them parameters": memory.params,
        "  of them the optimiser's state": memory.opt_state, "temporaries": memory.temporaries,
        "  of them activations kept, about": memory.saved, "a step in all": memory.total,
        "an evaluation step": plan.evaluation, "the chip": memory.limit or None,
        "headroom": memory.limit - memory.total if memory.limit else None,
    }  # fmt: skip
    for name, size in rows.items():
        if size is not None:
            yield f"  {name:38}{size / size_of:10,.2f}"
    if not memory.limit:
        yield "  the chip: what it has is not stated (a CPU reports none), nor so whether this fits"
    compiled, costs, count = plan.how == "compiled", plan.costs, target.count
    yield "\na step"
    yield f"  FLOPs, 6 per multiply-accumulate      {plan.analytic_flops:10.3e}"
    yield f"  FLOPs, {'as compiled' if compiled else 'by formula':31}{costs.flops * count:10.3e}"
    yield f"    of them recomputed                  {costs.recomputed * count:10.3e}"
    moved = "bytes of memory moved, a chip" + ("" if compiled else ", about")
    yield f"  {moved:38}{costs.bytes:10.3e}"
    if costs.calls:
        told = ", ".join(f"{count:,} of {name}" for name, count in costs.calls.items())
        yield f"  calls: {told}"
    for one in costs.collectives:
        what = f"{one.kind} over {one.axis} ({one.size})"
        yield f"  {what:38}{one.bytes:10.3e} bytes in {one.count:,} calls"
    if plan.roofline is None:
        yield "\nno roofline: no peaks are stated of these devices"
        return
    bounds, ceiling = plan.roofline, "at most" if compiled else "estimated"
    unit, second = _unit(bounds.step_s, (("seconds", 1), ("milliseconds", 1e-3)))
    peak = f"{target.chip.peak(c.model.dtype):.3g} FLOP/s in {c.model.dtype}"
    yield f"\nroofline, {unit} a step at the stated peaks ({peak})"
    for name, seconds in bounds._asdict().items():
        told = "  <- bounds it" if seconds == bounds.step_s else ""
        yield f"  {name.removesuffix('_s'):38}{seconds / second:10.4f}{told}"
    yield f"  {'images/s, ' + ceiling:38}{plan.images_per_second:10,.0f}"
    yield f"  {'MFU, ' + ceiling:38}{plan.mfu_ceiling:10.1%}"
    yield from shares_in_words(plan.shares)
    unit, second = _unit(3600 * plan.hours, (("hours", 3600), ("minutes", 60), ("seconds", 1)))
    name = f"to its end, {'at least' if compiled else ceiling}, {unit}"
    yield f"  {name:38}{3600 * plan.hours / second:10,.1f}, chip-hours {plan.hours * count:,.1f}"


def shares_in_words(shares: Any) -> Iterator[str]:
    """What each kind of kernel takes of a compiled step, the longest first."""
    from vit_jax.planning.shares import COPIES, STACKS

    if not shares:
        return
    moved = sum(share.bytes for share in shares.values())
    whole = sum(share.seconds for share in shares.values())
    unit, second = _unit(whole, (("seconds", 1), ("milliseconds", 1e-3)))
    yield f"\nkernel by kernel, {unit} at the stated peaks       time    memory moved"
    for name, share in sorted(shares.items(), key=lambda item: -item[1].seconds):
        took, bytes_ = share.seconds / whole, share.bytes / moved
        yield f"  {name:38}{share.seconds / second:10.4f}{took:8.1%}{bytes_:12.1%}"
    yield f"  {'all, one after another':38}{whole / second:10.4f}"
    stacks = sum(shares[kind].seconds for kind in (STACKS, COPIES) if kind in shares)
    if STACKS in shares and stacks > whole / 10:
        yield f"  --config.model.scan=False would save the stacks' {stacks / whole:.0%} of the time"
    yield ""


def _unit(largest: float, units: tuple[tuple[str, float], ...]) -> tuple[str, float]:
    """The first unit in which the largest number of a table is at least 1, or the last unit."""
    return next((unit for unit in units if largest >= unit[1]), units[-1])


def _refusal(plan: Any) -> str:
    """What does not fit, and what to change."""
    from vit_jax.planning.plan import GIB

    c, memory, mesh = plan.run.config, plan.memory, plan.run.mesh.shape
    if memory.fits and not plan.evaluation_fits:
        return (
            f"an evaluation step does not fit: {plan.evaluation / GIB:.2f} of "
            f"{memory.limit / GIB:.2f} GiB a chip; what would help: a smaller "
            f"--config.eval_batch_size (now {c.eval_batch_size})"
        )
    remedies = []
    if memory.arguments > memory.limit / 2 and mesh["fsdp"] * mesh["data"] > mesh["fsdp"]:
        remedies.append("--config.mesh.data=1 --config.mesh.fsdp=-1")
    if memory.arguments > memory.limit:
        remedies.append("more chips")
    else:
        if c.microbatch > mesh["data"] * mesh["fsdp"]:
            remedies.append("a smaller --config.microbatch")
        if c.model.remat in ("none", "dots"):
            remedies.append("--config.model.remat=full")
    return (
        f"does not fit: {memory.total / GIB:.2f} of {memory.limit / GIB:.2f} GiB a chip; what "
        f"would help: {', '.join(remedies) or 'more chips'}; --search finds what fits"
    )
