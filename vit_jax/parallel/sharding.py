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

BATCH = P(("data", "fsdp"))  # the partition of every array with a leading batch axis


def param_spec(family: Family, path: str, shape: tuple[int, ...], mesh: Mesh, min_size: int) -> P:
    """The partition of one parameter: the axes of its row, except those that do not divide it.

    A parameter with fewer than `min_size` elements (in one layer) is replicated.
    """
    stacked = is_stacked(path)
    layer = shape[1:] if stacked else shape
    if math.prod(layer) < min_size:
        return P()
    spec = [None] * stacked + _placed(family.row(path).axes, layer, mesh)
    while spec and spec[-1] is None:
        spec.pop()
    return P(*spec)


def _placed(row_axes: tuple, shape: tuple[int, ...], mesh: Mesh) -> list:
    """The mesh axes that split each dimension of `shape`: one, several or None. `tensor` splits the
    dimensions that the row names. `fsdp` splits only one of its dimensions: the first one whose
    parts need least padding. No axis splits a dimension that it does not divide."""
    spec: list = [None] * len(shape)
    part = list(shape)

    def dimensions(axis: str) -> list[int]:
        size = mesh.shape[axis]
        named = [i for i, axes in enumerate(row_axes[: len(shape)]) if axes and axis in axes]
        return [i for i in named if size > 1 and part[i] % size == 0]

    for i in dimensions("tensor"):
        spec[i] = "tensor"
        part[i] //= mesh.shape["tensor"]

    def padded(i: int) -> int:
        return tiled_size((*part[:i], part[i] // mesh.shape["fsdp"], *part[i + 1 :]))

    if places := dimensions("fsdp"):
        i = min(places, key=padded)
        spec[i] = BOTH if spec[i] else "fsdp"
    return spec


def tiled_size(shape: tuple[int, ...]) -> int:
    """Numbers that an array takes with padding to tiles of 8 x 128, if the tiles lie along the two
    dimensions that need least padding, as the TPU compiler chooses.

    Example: a sixteenth of the qkv kernel of H/14. Split by rows, it is (80, 3, 16, 80) and takes
    1.6 times its numbers. Split by heads, it is (1280, 3, 1, 80) and needs no padding.
    """
    if len(shape) < 2:
        return math.prod(shape)
    return min(
        math.prod(shape) // (rows * columns) * (-(-rows // 8) * 8) * (-(-columns // 128) * 128)
        for rows, columns in permutations(shape, 2)
    )


def state_shardings(family: Family, state: Any, mesh: Mesh, min_size: int) -> Any:
    """Shardings of a whole training state `{params, opt, step, …}`.

    The path of an optimiser's leaf ends with the path of its parameter. If both have the same
    shape, the leaf has the parameter's partition. If the leaf lacks some dimensions (as Adafactor's
    rows and columns), it keeps the axes of the others. All other leaves are replicated.
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
    """The same partition in the memory of each device's host; scalars stay on the devices."""
    return where.with_memory_kind("pinned_host") if leaf.ndim else where


def _suffixes(path: str):
    parts = path.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _derived(spec: P, shape: tuple[int, ...], smaller: tuple[int, ...]) -> P:
    """The partition of a leaf that has the shape of its parameter without some dimensions."""
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
    """The `gather` of `Model.apply`: a function of one block's parameters and its stack's name. It
    casts them to `dtype` and gathers them over `fsdp`. Their gradients are scattered again (stage 3
    of ZeRO, arXiv 1910.02054). None if `fsdp` has one device.

    The cast comes first, because bfloat16 halves the bytes that are sent. The call is inside the
    loop over layers, so that only one layer's gathered weights are in memory at a time.
    """
    if mesh.shape["fsdp"] == 1:
        return None

    def gather_leaf(stack, keys, leaf):
        path = f"{stack}/block00/{path_of(keys)}"
        spec = param_spec(family, path, leaf.shape, mesh, min_size)
        if not any(spec):
            return leaf
        kept = P(*("tensor" if "tensor" in (axes or ()) else None for axes in spec))
        return _gathered(leaf.astype(dtype), NamedSharding(mesh, kept), NamedSharding(mesh, spec))

    return lambda block, stack: jax.tree_util.tree_map_with_path(partial(gather_leaf, stack), block)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x, whole: NamedSharding, parts: NamedSharding):
    """`x` with the sharding `whole`. Its gradient gets the sharding `parts`. By default it would be
    whole on every device, which sends twice the bytes of a scatter."""
    return jax.lax.with_sharding_constraint(x, whole)


def _gathered_forward(x, whole, parts):
    return _gathered(x, whole, parts), None


def _gathered_backward(whole, parts, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, parts),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
