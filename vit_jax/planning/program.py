"""The text of a compiled program (XLA's optimised HLO), read: its computations, its instructions,
and how often each of them runs."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

BITS = {"pred": 8, "bf16": 16, "f16": 16, "s4": 4, "u4": 4} | {
    f"{kind}{bits}": bits for kind in "suf" for bits in (8, 16, 32, 64)
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z\-]*[a-z0-9]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


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
        return group_of(rf"\b{attribute}=%?([\w.\-]+)", self.rest)


Computation = dict[str, Instruction]
Computations = dict[str, Computation]


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


def group_of(pattern: str, text: str) -> str:
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


def walk(computations: Computations, name: str, times: int, home: str) -> Iterator:
    """Every instruction of a computation and of all that it calls, as (instruction, its
    computation, how often it runs, home). `home` is the name of its computation, or, inside a
    fusion, of the computation that runs the fusion."""
    computation = computations[name]
    for instruction in computation.values():
        yield instruction, computation, times, home
        if instruction.op == "while":
            body, condition = (instruction.called(part) for part in ("body", "condition"))
            trips = _trips(instruction, computation, computations[condition], computations[body])
            yield from walk(computations, body, times * trips, body)
        elif instruction.op == "conditional":
            for branch in re.findall(r"%([\w.\-]+)", instruction.rest.partition("branch")[2]):
                if branch in computations:
                    yield from walk(computations, branch, times, branch)
        elif instruction.op in ("fusion", "call", "async-start"):
            called = instruction.called("calls") or instruction.called("to_apply")
            if called in computations:
                inside = home if instruction.op == "fusion" else called
                yield from walk(computations, called, times, inside)


def _trips(
    loop: Instruction, computation: Computation, condition: Computation, body: Computation
) -> int:
    """How often a loop runs, as the compiler notes it. Without a note, it is computed from the
    counter of the loop: its first value, its step, and the limit in the loop's condition."""
    if known := group_of(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known)
    test = next((part for part in condition.values() if part.root), None)
    operands = [_through_copies(name, condition) for name in test.operands] if test else []
    counters = [part for part in operands if part and part.op == "get-tuple-element"]
    ends = [_constant(part) for part in operands if part and part.op == "constant"]
    if not ends:  # the comparison is in a fusion
        ends = [_constant(part) for part in condition.values() if part.op == "constant"]
        return max((end for end in ends if end), default=1)
    start, step = 0, 1
    index = group_of(r"index=(\d+)", counters[0].rest) if counters else ""
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
    return computation.get(origin(name, computation, ("copy", "bitcast", "convert")))


def _constant(instruction: Instruction | None) -> int | None:
    number = re.match(r"\d+", instruction.rest) if instruction else None
    return int(number[0]) if instruction and instruction.op == "constant" and number else None


def parameters(computation: Computation) -> dict[int, str]:
    """The names of a computation's parameters by their number."""
    return {
        int(part.rest.partition(")")[0]): part.name
        for part in computation.values()
        if part.op == "parameter"
    }


def origin(name: str, computation: Computation, views: Sequence[str] = ("bitcast",)) -> str:
    """The instruction that a name refers to, through any views: of a fusion, its parameter."""
    while name in computation and computation[name].op in views:
        name = computation[name].operands[0]
    return name
