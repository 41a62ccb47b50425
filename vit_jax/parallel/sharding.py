"""Which device holds which part of each array. The axes of each parameter stand in its family's
rows (models/family.py); one row serves stacked and listed layers.

TPUs keep arrays in tiles of 8 x 128, so `fsdp` splits the dimension whose parts pad least.
Gathering a block's weights (`gather_block`) has a gradient of its own, which scatters. The
transpose of a sharding constraint would sum the whole gradient on every chip.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.models.family import BOTH, Family
from vit_jax.paths import is_stacked, path_of

BATCH = P(("data", "fsdp"))  # of every array with a leading batch axis


def param_spec(family: Family, path: str, shape: tuple[int, ...], mesh: Mesh, min_size: int) -> P:
    """The partition of one parameter: the axes of its row, less those that do not divide it.

    Parameters of fewer than `min_size` elements (of one layer) are replicated.
    """
    stacked = is_stacked(path)
    layer = shape[1:] if stacked else shape
    if math.prod(layer) < min_size:
        return P()
    spec = [None] * stacked + _placed(family.row(path).axes, layer, mesh)
    while spec and spec[-1] is None:
        spec.pop()
    return P(*spec)


def _placed(wanted: tuple, shape: tuple[int, ...], mesh: Mesh) -> list:
    """What splits each dimension of `shape`: an axis, several or None. `tensor` splits where the
    row says, `fsdp` that one of its dimensions whose parts pad least (the first of equals);
    neither what it does not divide."""
    spec: list = [None] * len(shape)
    held = list(shape)

    def dimensions(axis: str) -> list[int]:
        size = mesh.shape[axis]
        named = [i for i, axes in enumerate(wanted[: len(shape)]) if axes and axis in axes]
        return [i for i in named if size > 1 and held[i] % size == 0]

    for i in dimensions("tensor"):
        spec[i] = "tensor"
        held[i] //= mesh.shape["tensor"]

    def padded(i: int) -> int:
        return tiled_size((*held[:i], held[i] // mesh.shape["fsdp"], *held[i + 1 :]))

    if places := dimensions("fsdp"):
        i = min(places, key=padded)
        spec[i] = BOTH if spec[i] else "fsdp"
    return spec


def tiled_size(shape: tuple[int, ...]) -> int:
    """Numbers in the tiles of 8 x 128 that hold an array, over the two dimensions that pad least.

    The TPU compiler lays arrays out by such a choice: of H/14's kernel of queries, keys and values
    a sixteenth by rows, (80, 3, 16, 80), takes 1.6 times its numbers, by heads, (1280, 3, 1, 80),
    just them.
    """
    if len(shape) < 2:
        return math.prod(shape)
    return min(
        math.prod(shape) // (rows * columns) * (-(-rows // 8) * 8) * (-(-columns // 128) * 128)
        for rows, columns in permutations(shape, 2)
    )


def state_shardings(family: Family, state: Any, mesh: Mesh, min_size: int) -> Any:
    """Shardings of a whole training state `{params, opt, step, …}`.

    A leaf of the optimiser takes the partition of the parameter whose path ends its own and whose
    shape it has; one that lacks some of the parameter's dimensions (Adafactor's rows and columns)
    keeps the axes of the others; anything else is replicated.
    """
    params = {
        path_of(keys): leaf.shape
        for keys, leaf in jax.tree_util.tree_leaves_with_path(state["params"])
    }

    def spec(keys, leaf) -> P:
        path = path_of(keys)
        name = next((p for p in _suffixes(path) if p in params), None)
        if name is None:
            return P()
        full = param_spec(family, name, params[name], mesh, min_size)
        if leaf.shape == params[name]:
            return full
        return _derived(full, params[name], leaf.shape)

    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: NamedSharding(mesh, spec(keys, leaf)), state
    )


def in_host_memory(leaf: Any, where: NamedSharding) -> NamedSharding:
    """The same partition of an array in the memory of each device's host; scalars stay."""
    return where.with_memory_kind("pinned_host") if leaf.ndim else where


def _suffixes(path: str):
    parts = path.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _derived(spec: P, shape: tuple[int, ...], smaller: tuple[int, ...]) -> P:
    """The spec of a leaf whose shape is its parameter's with some dimensions left out."""
    axes, rest = [], list(zip(shape, (*spec, *[None] * len(shape)), strict=False))
    for n in smaller:
        while rest and rest[0][0] != n:
            rest.pop(0)
        if not rest:
            return P()
        axes.append(rest.pop(0)[1])
    return P(*axes)


def gather_block(
    family: Family, mesh: Mesh, min_size: int, dtype: Any
) -> Callable[[Any, str], Any] | None:
    """For `Model.apply`: a function of one block's parameters and the name of its stack. They are
    cast to `dtype`, then gathered over `fsdp`; their
    gradients scattered again (ZeRO's third stage, arXiv 1910.02054).

    Casting first halves the bytes that travel when the arithmetic is bfloat16. Placed inside the
    loop over layers, it keeps one layer's gathered weights alive at a time. None where `fsdp` has
    one device.
    """
    if mesh.shape["fsdp"] == 1:
        return None

    def one(stack, keys, leaf):
        path = f"{stack}/block00/{path_of(keys)}"
        spec = param_spec(family, path, leaf.shape, mesh, min_size)
        if not any(spec):
            return leaf
        kept = P(*("tensor" if "tensor" in (axes or ()) else None for axes in spec))
        return _gathered(leaf.astype(dtype), NamedSharding(mesh, kept), NamedSharding(mesh, spec))

    return lambda block, stack: jax.tree_util.tree_map_with_path(partial(one, stack), block)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x, whole: NamedSharding, parts: NamedSharding):
    """`x` as `whole` places it. Its gradient is wanted as `parts` has it: a constraint's own
    transpose would ask for the whole of it on every device, twice the bytes of a scatter."""
    return jax.lax.with_sharding_constraint(x, whole)


def _gathered_forward(x, whole, parts):
    return _gathered(x, whole, parts), None


def _gathered_backward(whole, parts, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, parts),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
