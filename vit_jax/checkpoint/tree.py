"""States as flat dicts `path -> array`, and the two layouts of the encoder's layers.

On disk, a state is a nested dict whose keys are the parts of the paths. A model with stacked layers
has `encoder/block/…` with a leading layer axis. Every other model has `encoder/block00/…`,
`encoder/block01/…`. A state can be restored into both.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError
from vit_jax.paths import LISTED, STACKED, path_of

Flat = dict[str, Any]

PLACEHOLDER = (1,)  # shape of a statistic that Adafactor does not keep, and of no parameter


def flatten(tree: Any) -> Flat:
    """path -> leaf of any pytree."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: Flat, like: Any) -> Any:
    """The tree `like` with the leaves of `flat`."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: flat[path_of(keys)], like)


def nest(flat: Flat) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = nested
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return nested


def is_stacked(paths) -> bool:
    """Whether the encoder's layers are stacked in these paths."""
    return any(STACKED.fullmatch(path) for path in paths)


def unstack(flat: Flat) -> Flat:
    """Replaces stacked entries by one entry for each layer. Works on arrays and on shapes."""
    stacked = [leaf for path, leaf in flat.items() if STACKED.fullmatch(path) and leaf.ndim]
    layers = max((leaf.shape[0] for leaf in stacked), default=0)
    result: Flat = {}
    for path, leaf in flat.items():
        match = STACKED.fullmatch(path)
        if match is None or not leaf.ndim:
            result[path] = leaf
            continue
        for layer in range(layers if leaf.shape == PLACEHOLDER else leaf.shape[0]):
            result[f"{match[1]}{layer:02d}{match[2]}"] = _layer_of(leaf, layer)
    return result


def _layer_of(leaf: Any, layer: int) -> Any:
    if leaf.shape == PLACEHOLDER:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[layer]


def stack(flat: Flat) -> Flat:
    """Replaces the entries of single layers by stacked ones. Works on arrays and on shapes."""
    layers: dict[str, dict[int, Any]] = {}
    result: Flat = {}
    for path, leaf in flat.items():
        match = LISTED.fullmatch(path)
        if match is None:
            result[path] = leaf
        else:
            layers.setdefault(match.group(1) + match.group(3), {})[int(match.group(2))] = leaf
    for path, by_layer in layers.items():
        ordered = [by_layer[layer] for layer in sorted(by_layer)]
        if ordered[0].shape == PLACEHOLDER:
            result[path] = ordered[0]
        elif isinstance(ordered[0], jax.ShapeDtypeStruct):
            shape = (len(ordered), *ordered[0].shape)
            result[path] = jax.ShapeDtypeStruct(shape, ordered[0].dtype)
        else:
            result[path] = jnp.stack(ordered)
    return result


def in_layout_of(flat: Flat, paths) -> Flat:
    """`flat` with its layers stacked or listed as in `paths`."""
    if is_stacked(paths) == is_stacked(flat):
        return flat
    return stack(flat) if is_stacked(paths) else unstack(flat)


def check_same(stored: Flat, wanted: Flat, where: str) -> None:
    """Raises UserError that lists every name, shape or dtype that differs."""
    differing = [
        p for p in stored.keys() & wanted.keys()
        if tuple(stored[p].shape) != tuple(wanted[p].shape) or stored[p].dtype != wanted[p].dtype
    ]  # fmt: skip
    lists = {
        "only in the checkpoint": [f"{p} {_described(stored[p])}" for p in stored.keys() - wanted],
        "only in the run": [f"{p} {_described(wanted[p])}" for p in wanted.keys() - stored],
        "different": [
            f"{p}: checkpoint {_described(stored[p])}, run {_described(wanted[p])}"
            for p in differing
        ],
    }
    lines = []
    for title, leaves in lists.items():
        # Parameters before the optimiser's copies of them.
        leaves.sort(key=lambda line: (not line.startswith("params"), line))
        lines += [f"{title} ({len(leaves)}):"] if leaves else []
        lines += [f"  {line}" for line in leaves[:16]] + ["  …"] * (len(leaves) > 16)
    if lines:
        raise UserError(
            f"{where} does not hold this run's state (`init` would load the tensors that fit)\n"
            + "\n".join(lines)
        )


def _described(leaf: Any) -> str:
    return f"{list(leaf.shape)} {leaf.dtype}"
