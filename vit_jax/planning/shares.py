"""What the kernels of a compiled step are for: products, attention, normalisation and so on. The
text of a program names the functions in the source that each instruction comes from."""

import re
from collections.abc import Iterator
from typing import Any

from vit_jax.planning.program import Computation, Instruction

PRODUCTS, ATTENTION, COLLECTIVES = "products", "attention", "collectives"
STACKS, CASTS, COPIES = "stacks of scanned layers", "casts", "copies and fills"
NORMS, MLP, LOSS, OPTIMISER = "normalisation", "GELU and dropout", "loss", "optimiser"
SUMS, REST = "biases and residual sums", "rest"

# File and function -> kind. The first frame that matches counts, from the innermost outwards.
SOURCES = (
    (r"models/attention\.py:.*projected", SUMS),
    (r"models/attention\.py:", ATTENTION),
    (r"layers\.py:(layer_norm|norm_of_rows|_normalised)|nn/normalization\.py:", NORMS),
    (r"models/layers\.py:(Mlp|SwiGlu|dropout|drop_path)", MLP),
    (r"optax/losses/|/tasks/\w+\.py:", LOSS),
    (r"models/\w+\.py:", SUMS),
    (r"optax/|training/\w+\.py:", OPTIMISER),
)
KINDS = (
    PRODUCTS, ATTENTION, NORMS, MLP, SUMS, LOSS, OPTIMISER, CASTS, COPIES, STACKS, COLLECTIVES,
    REST,
)  # fmt: skip
# The kind of a fusion is the first of these that something in it has.
FIRST = (ATTENTION, NORMS, LOSS, OPTIMISER, MLP, SUMS)
# Instructions that compute nothing.
MOVES = {
    "parameter", "constant", "bitcast", "broadcast", "iota", "copy", "transpose", "slice", "pad",
    "concatenate", "reshape", "reverse", "tuple", "get-tuple-element", "dynamic-slice",
    "dynamic-update-slice",
}  # fmt: skip

Frames = dict[int, tuple[str, ...]]


def frames(text: str) -> Frames:
    """The stack frames of a program's text: number of a frame -> its file and function, then those
    of its callers. Empty if the text has none."""
    files = {number: name for number, name in _table(text, "FileNames", r'"(.*)"')}
    functions = {number: name for number, name in _table(text, "FunctionNames", r'"(.*)"')}
    places = {
        number: f"{files[int(file)]}:{functions[int(function)]}"
        for number, file, function in _table(
            text, "FileLocations", r"\{file_name_id=(\d+) function_name_id=(\d+).*"
        )
    }
    known: Frames = {}
    row = r"\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?.*"
    for number, place, caller in _table(text, "StackFrames", row):
        # XLA writes the number of the caller's frame plus one.
        known[number] = (places[int(place)], *known.get(int(caller or 0) - 1, ()))
    return known


def _table(text: str, title: str, row: str) -> Iterator[Any]:
    """The rows of a table at the start of a program's text, each as its number and its groups."""
    section = re.search(rf"^{title}\n((?:\d+ .*\n?)*)", text, re.MULTILINE)
    for number, *groups in re.findall(rf"^(\d+) {row}$", section[1] if section else "", re.M):
        yield int(number), *groups


def kind_of(instruction: Instruction, inner: Computation, known: Frames) -> str:
    """The kind of a kernel that is no call of a library. `inner` is the computation of a fusion,
    and empty for another instruction."""
    parts = list(inner.values()) or [instruction]
    if any(part.op in ("dot", "convolution") for part in parts):
        return PRODUCTS
    arrays = [part for part in parts if any(shape.dims for shape in part.shapes)]
    computed = [part for part in arrays if part.op not in MOVES and part.op != "convert"]
    if computed:
        kinds = {_source(part, known) for part in computed}
        return next((kind for kind in FIRST if kind in kinds), REST)
    ops = {part.op for part in arrays}
    if ops & {"dynamic-slice", "dynamic-update-slice"}:
        return STACKS
    return CASTS if "convert" in ops else COPIES


def _source(instruction: Instruction, known: Frames) -> str:
    number = re.search(r"stack_frame_id=(\d+)", instruction.rest)
    for place in known.get(int(number[1]), ()) if number else ():
        for pattern, kind in SOURCES:
            if re.search(pattern, place):
                return kind
    return REST
