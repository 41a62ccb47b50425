"""Which device holds which part of each array: rules on names, printed and tested.

A parameter's path is `encoder/block03/mlp/fc1/kernel`, or `encoder/block/mlp/fc1/kernel` with a
leading layer axis when layers are stacked. One rule serves both.
"""

import math
import re
from functools import partial
from itertools import permutations
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = P(("data", "fsdp"))  # of every array with a leading batch axis

MLP = r"(encoder/block|pool)/(mlp|token_mixing|channel_mixing)"
RESNET = r"backbone/(root|stage\d+/unit\d+)"
BOTH = ("tensor", "fsdp")  # one dimension over both
NORM = r"(norm|norm1|norm2|norm3|pre_norm|proj_norm|q_norm|k_norm)"

# (pattern of the logical path, axes of a single layer's parameter). Every parameter must match
# exactly one. Kernels are split over `fsdp` along one dimension, and over `tensor` along heads or
# the MLP's hidden one (Megatron-LM's layout: one reduction after `out`, one after `fc2`). Where a
# rule names `fsdp` for several dimensions, the one whose parts pad least in a TPU's tiles takes it.
PARAM_RULES: tuple[tuple[str, tuple], ...] = (
    (r"embed/kernel", (None, None, None, "fsdp")),
    (r"pos_embed/grid", (None, None, "fsdp")),
    (r"(encoder/block|pool)/(attention/)?(qkv|kv)/kernel", ("fsdp", None, BOTH, None)),
    (r"(encoder/block|pool)/(attention/)?(qkv|kv)/bias", (None, "tensor", None)),
    (r"pool/q/kernel", ("fsdp", BOTH, None)),
    (r"pool/q/bias", ("tensor", None)),
    (r"(encoder/block|pool)/(attention/)?out/kernel", (BOTH, None, "fsdp")),
    (rf"{MLP}/fc1/kernel", ("fsdp", "tensor")),
    (rf"{MLP}/fc1/bias", ("tensor",)),
    (rf"{MLP}/w12/kernel", ("fsdp", None, "tensor")),
    (rf"{MLP}/w12/bias", (None, "tensor")),
    (rf"{MLP}/(fc2|w3)/kernel", (BOTH, "fsdp")),
    (r"pre_logits/kernel", ("fsdp", None)),
    (r"(head|head_dist)/kernel", ("fsdp", "tensor")),
    # A ResNet's convolutions compute on all their channels: split over `fsdp` alone.
    (rf"{RESNET}/(conv\d?|proj)/kernel", (None, None, None, "fsdp")),
    # Small ones, the same everywhere.
    (rf"((encoder/block|pool)/(attention/)?out|{MLP}/(fc2|w3))/bias", ()),
    (r"(embed|pre_logits|head|head_dist)/bias", ()),
    (rf"({RESNET}/)?((encoder/block|pool)/(attention/)?)?{NORM}/(scale|bias)", ()),
    (r"encoder/block/(scale1|scale2)/gamma", ()),
    (r"cls|dist|registers|pos_embed/prefix|pool/probe", ()),
)


def path_of(keys: tuple) -> str:
    """The path of a pytree key, as in `encoder/block03/mlp/fc1/kernel`."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def logical(path: str) -> str:
    """The layer's number taken out: one name for stacked and listed layers."""
    return re.sub(r"(^|/)encoder/block\d+/", r"\1encoder/block/", path)


def match_one(rules: tuple, path: str, what: str) -> Any:
    """The value of the only rule whose pattern is the whole logical path.

    Raises ValueError where none or several match: a table that does not decide is a bug in it.
    """
    found = [value for pattern, value in rules if re.fullmatch(pattern, logical(path))]
    if len(found) != 1:
        raise ValueError(f"parameter {path!r} matches {len(found)} of the {what} rules, not one")
    return found[0]


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh, min_size: int) -> P:
    """The partition of one parameter: its rule, less the axes that do not divide it.

    Parameters of fewer than `min_size` elements (of one layer) are replicated.
    """
    rule = match_one(PARAM_RULES, path, "sharding")
    stacked = "encoder/block/" in f"{path}/"
    layer = shape[1:] if stacked else shape
    if math.prod(layer) < min_size:
        return P()
    spec = [None] * stacked + _placed(rule, layer, mesh)
    while spec and spec[-1] is None:
        spec.pop()
    return P(*spec)


def _placed(rule: tuple, shape: tuple[int, ...], mesh: Mesh) -> list:
    """What splits each dimension of `shape`: an axis, several or None. `tensor` splits where the
    rule says, `fsdp` that one of its dimensions whose parts pad least (the first of equals);
    neither what it does not divide."""
    spec: list = [None] * len(shape)
    held = list(shape)

    def dimensions(axis: str) -> list[int]:
        size = mesh.shape[axis]
        named = [i for i, axes in enumerate(rule[: len(shape)]) if axes and axis in axes]
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


def state_shardings(state: Any, mesh: Mesh, min_size: int) -> Any:
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
        full = param_spec(name, params[name], mesh, min_size)
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


def gather_block(mesh: Mesh, min_size: int, dtype):
    """For `Model.apply`: one block's parameters cast to `dtype`, then gathered over `fsdp`; their
    gradients scattered again (ZeRO's third stage, arXiv 1910.02054).

    Casting first halves the bytes that travel when the arithmetic is bfloat16. Placed inside the
    loop over layers, it keeps one layer's gathered weights alive at a time. None where `fsdp` has
    one device.
    """
    if mesh.shape["fsdp"] == 1:
        return None

    def one(keys, leaf):
        path = "encoder/block00/" + path_of(keys)
        spec = param_spec(path, leaf.shape, mesh, min_size)
        if not any(spec):
            return leaf
        kept = P(*("tensor" if "tensor" in (axes or ()) else None for axes in spec))
        return _gathered(leaf.astype(dtype), NamedSharding(mesh, kept), NamedSharding(mesh, spec))

    return lambda block: jax.tree_util.tree_map_with_path(one, block)


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
