"""Counts the FLOPs, bytes and collectives in the text of a compiled program (XLA's optimised HLO),
for one run on one device. The body of a loop is counted as often as it runs.

XLA's own `cost_analysis` counts a loop's body once. Bytes are those that the program's instructions
move between a device's main memory and its cores.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "s4": 4, "u4": 4} | {
    f"{kind}{bits}": bits for kind in "suf" for bits in (8, 16, 32, 64)
}  # fmt: skip
# Instructions that move no bytes themselves: names, views, and calls, whose parts are counted.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "copy-done", "all-gather-done", "all-reduce-done",
    "collective-permute-done",
    "async-done", "async-update", "partition-id", "iota", "add-dependency", "opt-barrier",
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z\-]*[a-z0-9]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program. If it is `fast`, it is in the memory beside the cores (VMEM)."""

    bits: int
    dims: tuple[int, ...]
    fast: bool

    @property
    def bytes(self) -> float:
        return self.bits * math.prod(self.dims) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    op: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str  # text of the operands and attributes
    root: bool

    def called(self, attribute: str) -> str:
        return _group_of(rf"\b{attribute}=%?([\w.\-]+)", self.rest)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one set of mesh axes, in one run of the program. `count` is
    the number of calls. `bytes` is that of the whole arrays, gathered or not yet scattered."""

    kind: str
    axis: str
    size: int  # devices that take part together
    bytes: float
    count: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one run of a program on one device."""

    flops: float  # of matrix products and convolutions
    recomputed: float  # the part of `flops` that rematerialisation repeats
    bytes: float
    collectives: list[Collective]


Computation = dict[str, Instruction]
Computations = dict[str, Computation]


def costs(text: str, axes: dict[str, int], slices: int = 1) -> Costs:
    """Costs of a program that is partitioned over a mesh with `axes` (name: size, in the mesh's
    order) and over `slices`. Traffic between slices has the axis `slices`."""
    computations, entry = parse(text)
    flops = recomputed = moved = 0.0
    totals: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    seen: set[tuple[str, str, str]] = set()
    for instruction, computation, times, home in _walk(computations, entry, 1, entry):
        if instruction.op in ("dot", "convolution"):
            amount = times * _flops(instruction, computation)
            flops += amount
            recomputed += amount * ("rematted_computation" in instruction.rest)
        kind = _kind(instruction, computation)
        if kind:
            # The start, steps and end of an asynchronous collective are several instructions.
            channel = _group_of(r"channel_id=(\d+)", instruction.rest) or instruction.name
            if (kind, channel, home) not in seen:
                seen.add((kind, channel, home))
                between = instruction.op == "send"
                axis, size = ("slices", slices) if between else _axis(instruction.rest, axes)
                total = totals[kind, axis, size]
                total[0] += times * _whole(instruction, computation)
                total[1] += times
        if computation is computations[home]:
            moved += times * _moved(instruction, computation, computations)
    collectives = [Collective(*key, *total) for key, total in sorted(totals.items()) if key[2] > 1]
    return Costs(flops, recomputed, moved, collectives)


def parse(text: str) -> tuple[Computations, str]:
    """The computations of a program by name, and the name of the one it starts with."""
    computations: Computations = {}
    entry, current = "", {}
    for line in text.splitlines():
        if (start := _COMPUTATION.match(line)) and " = " not in line.partition("(")[0]:
            current = computations[start[2]] = {}
            entry = start[2] if start[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            root, name, shapes, op, rest = instruction.groups()
            current[name] = Instruction(
                name, op, tuple(_shapes(shapes)), tuple(_operands(rest)), rest, bool(root)
            )
    return computations, entry


def _group_of(pattern: str, text: str) -> str:
    """The first group of the first match of a pattern in a text; empty if there is none."""
    match = re.search(pattern, text)
    return match[1] if match else ""


def _shapes(text: str) -> Iterator[Shape]:
    for kind, dims, layout in _SHAPE.findall(text):
        if kind in BITS or kind.startswith("f8"):
            sizes = tuple(int(n) for n in dims.split(",") if n)
            yield Shape(BITS.get(kind, 8), sizes, "S(1)" in layout)


def _operands(rest: str) -> Iterator[str]:
    """The names of the operands, which end at the closing parenthesis."""
    depth, end = 1, len(rest)
    for at, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            end = at
            break
    yield from re.findall(r"%([\w.\-]+)", rest[:end])


def _walk(computations: Computations, name: str, times: int, home: str) -> Iterator:
    """Every instruction of a computation and of all that it calls, as (instruction, its
    computation, how often it runs, home). `home` is the name of its computation, or, inside a
    fusion, of the computation that runs the fusion."""
    computation = computations[name]
    for instruction in computation.values():
        yield instruction, computation, times, home
        if instruction.op == "while":
            body, condition = (instruction.called(part) for part in ("body", "condition"))
            trips = _trips(instruction, computation, computations[condition], computations[body])
            yield from _walk(computations, body, times * trips, body)
        elif instruction.op == "conditional":
            for branch in re.findall(r"%([\w.\-]+)", instruction.rest.partition("branch")[2]):
                if branch in computations:
                    yield from _walk(computations, branch, times, branch)
        elif instruction.op in ("fusion", "call", "async-start"):
            called = instruction.called("calls") or instruction.called("to_apply")
            if called in computations:
                inside = home if instruction.op == "fusion" else called
                yield from _walk(computations, called, times, inside)


def _trips(
    loop: Instruction, computation: Computation, condition: Computation, body: Computation
) -> int:
    """How often a loop runs, as the compiler notes it. Without a note, it is computed from the
    counter of the loop: its first value, its step, and the limit in the loop's condition."""
    if known := _group_of(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known)
    test = next((part for part in condition.values() if part.root), None)
    operands = [_through_copies(name, condition) for name in test.operands] if test else []
    counters = [part for part in operands if part and part.op == "get-tuple-element"]
    ends = [_constant(part) for part in operands if part and part.op == "constant"]
    if not ends:  # the comparison is in a fusion
        ends = [_constant(part) for part in condition.values() if part.op == "constant"]
        return max((end for end in ends if end), default=1)
    start, step = 0, 1
    index = _group_of(r"index=(\d+)", counters[0].rest) if counters else ""
    root = next((part for part in body.values() if part.root), None)
    if index and root and root.op == "tuple":
        added = _through_copies(root.operands[int(index)], body)
        if added and added.op == "add":
            steps = [_constant(_through_copies(name, body)) for name in added.operands]
            step = next((n for n in steps if n), 1)
        first = computation.get(loop.operands[0])
        if first and first.op == "tuple":
            start = _constant(_through_copies(first.operands[int(index)], computation)) or 0
    return max(1, -(-((ends[0] or 0) - start) // step))


def _through_copies(name: str, computation: Computation) -> Instruction | None:
    return computation.get(_origin(name, computation, ("copy", "bitcast", "convert")))


def _constant(instruction: Instruction | None) -> int | None:
    number = re.match(r"\d+", instruction.rest) if instruction else None
    return int(number[0]) if instruction and instruction.op == "constant" and number else None


def _flops(instruction: Instruction, computation: Computation) -> float:
    """2 x multiply-accumulates of a `dot` or `convolution`, without those on padding."""
    result = instruction.shapes[0].dims
    left, right = (computation[name].shapes[0].dims for name in instruction.operands[:2])
    if instruction.op == "dot":
        dims = _group_of(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        contracted = [left[int(n)] for n in dims.split(",") if n]
        return 2 * math.prod(result) * math.prod(contracted)
    labels: Any = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    attributes = _group_of(r"window=\{([^}]*)\}", instruction.rest)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", attributes))
    spatial = sorted(set(labels[3]) - set("bf"))
    pairs = 1.0
    for number, label in enumerate(spatial):
        part = {key: value.split("x")[number] for key, value in window.items()}
        low = int(part.get("pad", "0_0").split("_")[0])
        out, inside = result[labels[3].index(label)], left[labels[1].index(label)]
        spread, step = int(part.get("lhs_dilate", 1)), int(part.get("stride", 1))
        taps = int(part.get("size", 1))
        apart = int(part.get("rhs_dilate", 1))
        position = np.arange(out)[:, None] * step + np.arange(taps) * apart - low
        real = (position >= 0) & (position <= (inside - 1) * spread) & (position % spread == 0)
        pairs *= int(real.sum())
    batch, features = (result[labels[3].index(label)] for label in "bf")
    return 2 * pairs * batch * features * right[labels[2].index("i")]


def _kind(instruction: Instruction, computation: Computation) -> str | None:
    """The kind of collective that an instruction is or starts, or None. For a reduce-scatter, a
    TPU program has an all-reduce in a small fusion, and each device keeps a part of the result."""
    op = instruction.op.removesuffix("-start")
    if op == "send":  # between slices
        transfer = _group_of(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
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
        pairs = _group_of(r"source_target_pairs=\{([\d,{}]*)\}", rest)
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
    listed = _group_of(r"replica_groups=\{\{([\d,]+)\}", rest)
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
    parameters = _parameters(inner)
    aliases = _group_of(r"output_to_operand_aliasing=\{(.*?\})\}", instruction.rest)
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{", aliases)
    passed = {int(operand): int(output or 0) for output, operand in pairs}
    updates = [part for part in inner.values() if part.op == "dynamic-update-slice"]
    in_place = {_origin(part.operands[0], inner) for part in updates}
    total = sum(_slow(inner[part.operands[1]].shapes) for part in updates)
    for number, name in enumerate(instruction.operands):
        shapes = computation[name].shapes if name in computation else ()
        inside = parameters.get(number)
        if number in passed or inside in in_place:
            continue
        if whole := _slow(shapes):
            total += min(whole, _read(inside, inner, computations)) if inside else whole
    outputs = enumerate(instruction.shapes)
    written = [shape for number, shape in outputs if number not in passed.values()]
    arrays = [inner[name].shapes for name in in_place if name in inner]
    return total + max(0.0, _slow(written) - sum(map(_slow, arrays)))


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
            elif part.op == "dynamic-slice":
                total += sum(shape.bytes for shape in part.shapes)
            elif part.op == "fusion" and number in (inside := _parameters(nested)):
                total += _read(inside[number], nested, computations)
            else:
                return math.inf
    return total


def _parameters(computation: Computation) -> dict[int, str]:
    return {
        int(part.rest.partition(")")[0]): part.name
        for part in computation.values()
        if part.op == "parameter"
    }


def _origin(name: str, computation: Computation, views: Sequence[str] = ("bitcast",)) -> str:
    """The instruction that a name refers to, through any views: of a fusion, its parameter."""
    while name in computation and computation[name].op in views:
        name = computation[name].operands[0]
    return name


def _slow(shapes: Sequence[Shape]) -> float:
    return sum(shape.bytes for shape in shapes if not shape.fast)
