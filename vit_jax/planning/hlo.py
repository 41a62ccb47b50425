"""Counts the FLOPs, bytes and collectives in the text of a compiled program (XLA's optimised HLO),
for one run on one device. The body of a loop is counted as often as it runs.

XLA's own `cost_analysis` counts a loop's body once. Bytes are those that the program's instructions
move between a device's main memory and its cores.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.planning import shares
from vit_jax.planning.program import (
    Computation,
    Computations,
    Instruction,
    Shape,
    group_of,
    origin,
    parameters,
    parse,
    walk,
)

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move no bytes themselves: names, views, and calls, whose parts are counted.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "copy-done", "all-gather-done", "all-reduce-done",
    "reduce-scatter-done", "collective-permute-done", "async-done", "async-update",
    "partition-id", "iota", "add-dependency", "opt-barrier",
}  # fmt: skip

# Libraries that a GPU's program calls: start of the target -> what it is.
CALLS = {
    "__cublas$": "cuBLAS product", "__cudnn$fmhaSoftmaxBackward": "cuDNN attention, backward",
    "__cudnn$fmha": "cuDNN attention", "__cudnn$conv": "cuDNN convolution",
}  # fmt: skip
# Which of a convolution's input, filter and output the two operands and the result are.
ROLES = {
    "__cudnn$convBackwardInput": ("output", "filter", "input"),
    "__cudnn$convBackwardFilter": ("input", "output", "filter"),
}

_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one set of mesh axes, in one run of the program. `count` is
    the number of calls. `bytes` is that of the whole arrays, gathered or not yet scattered."""

    kind: str
    axis: str
    size: int  # devices that take part together
    bytes: float
    count: int


class Kernel(NamedTuple):
    """A kernel or a call of a library. `flops` and `bytes` are those of all of its runs."""

    kind: str  # one of `shares.KINDS`
    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one run of a program on one device."""

    flops: float  # of matrix products and convolutions
    recomputed: float  # the part of `flops` that rematerialisation repeats
    bytes: float
    collectives: list[Collective]
    calls: dict[str, int] = dataclasses.field(default_factory=dict)  # of libraries, and of fusions
    kernels: tuple[Kernel, ...] = ()


def costs(text: str, axes: dict[str, int], slices: int = 1) -> Costs:
    """Costs of a program that is partitioned over a mesh with `axes` (name: size, in the mesh's
    order) and over `slices`. Traffic between slices has the axis `slices`."""
    computations, entry = parse(text)
    frames = shares.frames(text)
    flops = recomputed = 0.0
    kernels: list[Kernel] = []
    calls: collections.Counter[str] = collections.Counter()
    totals: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    seen: set[tuple[str, str, str]] = set()
    for instruction, computation, times, home in walk(computations, entry, 1, entry):
        call = _called(instruction)
        if computation is computations[home]:  # what is in a fusion follows it
            moved = times * _moved(instruction, computation, computations)
            inner = computations.get(instruction.called("calls"), {})
            share = _share(instruction, call) or shares.kind_of(instruction, inner, frames)
            kernels.append(Kernel(share, 0.0, moved))
        if call or instruction.op in ("dot", "convolution"):
            amount = times * _flops(instruction, computation, call)
            flops += amount
            kernels[-1] = kernels[-1]._replace(flops=kernels[-1].flops + amount)
            recomputed += amount * ("rematted_computation" in instruction.rest)
            if call.endswith("attention, backward"):  # it multiplies queries and keys once more
                recomputed += amount / 5
        if call or (instruction.op == "fusion" and computation is computations[home]):
            calls[call or "fusion"] += times
        kind = _kind(instruction, computation)
        if kind:
            # The start, steps and end of an asynchronous collective are several instructions.
            channel = group_of(r"channel_id=(\d+)", instruction.rest) or instruction.name
            if (kind, channel, home) not in seen:
                seen.add((kind, channel, home))
                between = instruction.op == "send"
                axis, size = ("slices", slices) if between else _axis(instruction.rest, axes)
                total = totals[kind, axis, size]
                total[0] += times * _whole(instruction, computation)
                total[1] += times
    collectives = [Collective(*key, *total) for key, total in sorted(totals.items()) if key[2] > 1]
    moved = sum(kernel.bytes for kernel in kernels)
    used = tuple(kernel for kernel in kernels if kernel.bytes or kernel.flops)
    return Costs(flops, recomputed, moved, collectives, dict(calls.most_common()), used)


def _share(instruction: Instruction, call: str) -> str:
    """The kind of share that a library's call or a collective belongs to; empty for the rest."""
    if call:
        return shares.ATTENTION if "attention" in call else shares.PRODUCTS
    return shares.COLLECTIVES if instruction.op.startswith((*KINDS, "send", "recv")) else ""


def _called(instruction: Instruction) -> str:
    """What library's work an instruction calls (`CALLS`); empty if it calls none."""
    target = group_of(r'custom_call_target="([^"]+)"', instruction.rest)
    return next((what for start, what in CALLS.items() if target.startswith(start)), "")


def _flops(instruction: Instruction, computation: Computation, call: str) -> float:
    """2 x multiply-accumulates of a product, a convolution or an attention, without those on
    padding of a convolution."""
    left, right = (computation[name].shapes[0].dims for name in instruction.operands[:2])
    result = instruction.shapes[0].dims
    if call.startswith("cuDNN attention"):
        dims = group_of(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]',
                        instruction.rest)  # fmt: skip
        keys = int(re.findall(r"\d+", dims)[-1])
        products = 5 if call.endswith("backward") else 2
        return products * 2 * math.prod(left) * keys
    if call == "cuBLAS product":
        dims = group_of(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest)
        contracted = [left[int(n)] for n in re.findall(r"\d+", dims)]
        return 2 * math.prod(result) * math.prod(contracted)
    if instruction.op == "dot":
        dims = group_of(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        contracted = [left[int(n)] for n in dims.split(",") if n]
        return 2 * math.prod(result) * math.prod(contracted)
    target = group_of(r'custom_call_target="([^"]+)"', instruction.rest)
    roles = ROLES.get(target, ("input", "filter", "output"))
    return _convolved(instruction.rest, dict(zip(roles, (left, right, result), strict=True)))


def _convolved(rest: str, dims: dict[str, tuple[int, ...]]) -> float:
    """FLOPs of a convolution, or of one of its two gradients, which are as many."""
    labels: Any = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", group_of(r"window=\{([^}]*)\}", rest)))
    spatial = sorted(set(labels[3]) - set("bf"))
    pairs = 1.0
    for number, label in enumerate(spatial):
        part = {key: value.split("x")[number] for key, value in window.items()}
        low = int(part.get("pad", "0_0").split("_")[0])
        out = dims["output"][labels[3].index(label)]
        inside = dims["input"][labels[1].index(label)]
        spread, step = int(part.get("lhs_dilate", 1)), int(part.get("stride", 1))
        taps = int(part.get("size", 1))
        apart = int(part.get("rhs_dilate", 1))
        position = np.arange(out)[:, None] * step + np.arange(taps) * apart - low
        real = (position >= 0) & (position <= (inside - 1) * spread) & (position % spread == 0)
        pairs *= int(real.sum())
    batch, features = (dims["output"][labels[3].index(label)] for label in "bf")
    return 2 * pairs * batch * features * dims["filter"][labels[2].index("i")]


def _kind(instruction: Instruction, computation: Computation) -> str | None:
    """The kind of collective that an instruction is or starts, or None. For a reduce-scatter, a
    TPU program has an all-reduce in a small fusion, and each device keeps a part of the result."""
    op = instruction.op.removesuffix("-start")
    if op == "send":  # between slices
        transfer = group_of(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
        return transfer.lower().replace("_", "-") or None
    if op not in KINDS or _continues(instruction, computation):
        return None
    if op == "all-reduce" and any(other.op == "dynamic-slice" for other in computation.values()):
        return "reduce-scatter" if len(computation) < 40 else op
    return op


def _continues(instruction: Instruction, computation: Computation) -> bool:
    """Whether an instruction continues or ends a collective that another fusion started. It may be
    in a loop inside the computation with the start."""
    return "chain_id=" in instruction.rest and not any(
        "AsyncCollectiveStart" in other.rest and instruction.name in other.operands
        for other in computation.values()
    )


def _whole(instruction: Instruction, computation: Computation) -> float:
    """Bytes of a collective's whole arrays: before a scatter, or after a gather."""
    if instruction.op.startswith("all-gather"):
        shapes = instruction.shapes
        if instruction.op.endswith("-start"):  # its shapes are (operands, results)
            shapes = shapes[len(shapes) // 2 :]
        return sum(shape.bytes for shape in shapes)
    operands = instruction.operands[:1] if instruction.op == "send" else instruction.operands
    known = [computation[name] for name in operands if name in computation]
    return sum(shape.bytes for operand in known for shape in operand.shapes)


def _axis(rest: str, axes: dict[str, int]) -> tuple[str, int]:
    """The mesh axes along which a collective's devices differ, and the number of devices."""
    count = math.prod(axes.values())
    group = _group(rest, count)
    if group is None:
        pairs = group_of(r"source_target_pairs=\{([\d,{}]*)\}", rest)
        group = [int(n) for n in re.findall(r"\d+", pairs)][:2] or range(count)
    places = np.array(np.unravel_index(np.asarray(group), tuple(axes.values())))
    along = [name for name, place in zip(axes, places, strict=True) if len(set(place)) > 1]
    return "+".join(along), len(group)


def _group(rest: str, count: int) -> Any:
    """The first group of devices of a collective; None if the text has no groups."""
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids="
        rf"\((?:{_IOTA}|([\d,]+))\))? \{{([^}}]*)\}}",
        rest,
    )
    if named:
        sizes = {name: int(n) for name, n in re.findall(r"'([\w.]+)'=(\d+)", named[1])}
        ids = _iota(named[2], named[3]) if named[2] else np.arange(count)
        if named[4]:
            ids = np.array([int(n) for n in named[4].split(",")])
        inside = re.findall(r"'([\w.]+)'", named[5])
        index = tuple(slice(None) if name in inside else 0 for name in sizes)
        return ids.reshape(tuple(sizes.values()))[index].ravel()
    if iota := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={_IOTA}", rest):
        return _iota(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))[0]
    listed = group_of(r"replica_groups=\{\{([\d,]+)\}", rest)
    return [int(n) for n in listed.split(",")] if listed else None


def _iota(dims: str, order: str | None) -> np.ndarray:
    """Device numbers from their short form in the text: counted over `dims`, then transposed."""
    sizes = [int(n) for n in dims.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in order.split(",")]) if order else ids


def _moved(instruction: Instruction, computation: Computation, computations: Computations) -> float:
    """Bytes that one instruction reads and writes in main memory. If it slices an array, or updates
    it in place, only that part counts. An array that it only passes through does not count."""
    if instruction.op in FREE or 'custom_call_target="AllocateBuffer"' in instruction.rest:
        return 0.0
    inner = computations.get(instruction.called("calls"), {})
    if instruction.op == "dynamic-slice":
        return 2 * _slow(instruction.shapes)
    if instruction.op == "dynamic-update-slice":
        return 2 * _slow(computation[instruction.operands[1]].shapes)
    names = parameters(inner)
    aliases = group_of(r"output_to_operand_aliasing=\{(.*?\})\}", instruction.rest)
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{", aliases)
    passed = {int(operand): int(output or 0) for output, operand in pairs}
    updates = [part for part in inner.values() if part.op == "dynamic-update-slice"]
    in_place = {origin(part.operands[0], inner) for part in updates}
    total = sum(_slow(inner[part.operands[1]].shapes) for part in updates)
    for number, name in enumerate(instruction.operands):
        shapes = computation[name].shapes if name in computation else ()
        inside = names.get(number)
        if number in passed or inside in in_place:
            continue
        if whole := _slow(shapes):
            total += min(whole, _read(inside, inner, computations)) if inside else whole
    outputs = enumerate(_results(instruction))
    written = [shape for number, shape in outputs if number not in passed.values()]
    arrays = [inner[name].shapes for name in in_place if name in inner]
    return total + max(0.0, _slow(written) - sum(map(_slow, arrays)))


def _results(instruction: Instruction) -> tuple[Shape, ...]:
    """The arrays that an instruction writes, without a library's workspace, which comes last."""
    workspace = _called(instruction) and len(instruction.shapes) > 1
    return instruction.shapes[:-1] if workspace else instruction.shapes


def _read(name: str, inner: Computation, computations: Computations) -> float:
    """Bytes that a fusion reads from its parameter `name`, also in views and fusions inside it."""
    total = 0.0
    for part in inner.values():
        for number, operand in enumerate(part.operands):
            if operand != name:
                continue
            nested = computations.get(part.called("calls"), {})
            if part.op == "bitcast":
                total += _read(part.name, inner, computations)
            elif part.op in ("dynamic-slice", "slice"):
                total += sum(shape.bytes for shape in part.shapes)
            elif part.op == "fusion" and number in (inside := parameters(nested)):
                total += _read(inside[number], nested, computations)
            else:
                return math.inf
    return total


def _slow(shapes: Sequence[Shape]) -> float:
    return sum(shape.bytes for shape in shapes if not shape.fast)
