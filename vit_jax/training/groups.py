"""Which parameters train, which of them decay, and at what share of the learning rate: decided by
their paths, each parameter exactly once.

A frozen parameter is None in the tree that trains. An empty tree has no gradient, no optimiser's
state and no average, so nothing has to be masked. The whole parameters stay in the state.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.family import BEHIND, BLOCK, Family
from vit_jax.paths import STACKED, is_stacked, layer_of, logical, path_of


def decay_mask(family: Family, params: Any) -> Any:
    """True for every parameter that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: family.row(path_of(keys)).decays, params
    )


def frozen_mask(params: Any, pattern: str | None) -> Any:
    """True for every parameter whose whole path the pattern is: `encoder/block03/mlp/fc1/kernel`,
    or without the layer's number.

    Raises UserError: no pattern of `re`, one that matches nothing or everything, or stacked layers
    of which it matches some.
    """
    if pattern is None:
        return jax.tree.map(lambda _: False, params)
    try:
        match = re.compile(pattern).fullmatch
    except re.error as error:
        raise UserError(f"optimizer.freeze {pattern!r} is no regular expression: {error}") from None

    def one(keys: tuple, leaf: Any) -> bool:
        path = path_of(keys)
        names = [path]
        if stack := STACKED.fullmatch(path):
            names = [f"{stack[1]}{i:02d}{stack[2]}" for i in range(leaf.shape[0])]
        found = {bool(match(name) or match(logical(name))) for name in names}
        if len(found) > 1:
            raise UserError(
                f"optimizer.freeze {pattern!r} matches some layers of {path}, which model.scan "
                "stacks into one parameter: --config.model.scan=False keeps them apart"
            )
        return found.pop()

    mask = jax.tree_util.tree_map_with_path(one, params)
    if len(set(jax.tree.leaves(mask))) > 1:
        return mask
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    which = "every parameter" if all(jax.tree.leaves(mask)) else "no parameter"
    raise UserError(
        f"optimizer.freeze {pattern!r} matches {which}; they are {', '.join(paths[:4])} … "
        f"{', '.join(paths[-2:])}; (?!head(_dist)?/).* freezes all but the head"
    )


def trainable(params: Any, pattern: str | None) -> Any:
    """The parameters with None, an empty tree, in place of each frozen one: such a tree's gradients
    and optimiser state have nothing for them."""
    if pattern is None:
        return params
    return jax.tree.map(lambda p, f: None if f else p, params, frozen_mask(params, pattern))


def merged(trained: Any, params: Any) -> Any:
    """`params` with the leaves of `trained` where it has some."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None
    )


def layer_scales(family: Family, params: Any, decay: float) -> Any:
    """The share of the learning rate of each parameter: decay ** (number of blocks above it), and
    1 behind the last block (arXiv 2106.08254). Of stacked layers, an array with their leading axis.

    Raises UserError where there are no blocks.
    """
    in_blocks = [
        (path, leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
        if family.row(path := path_of(keys)).depth == BLOCK
    ]  # fmt: skip
    stacked = [leaf.shape[0] for path, leaf in in_blocks if is_stacked(path)]
    depth = stacked[0] if stacked else len({layer_of(path) for path, _ in in_blocks})
    if not depth:
        raise UserError(
            "optimizer.layer_decay is set, but the model has no encoder blocks: it is for ViTs, "
            "hybrids and Mixers"
        )

    def one(keys: tuple, leaf: Any) -> Any:
        path = path_of(keys)
        place = family.row(path).depth
        if place != BLOCK:
            return 1.0 if place == BEHIND else decay ** (depth + 1)
        if (layer := layer_of(path)) is not None:
            return decay ** (depth - layer)
        scales = decay ** (depth - np.arange(depth, dtype=np.float32))
        return jnp.asarray(scales.reshape(depth, *[1] * (leaf.ndim - 1)))

    return jax.tree_util.tree_map_with_path(one, params)


def by_layer(family: Family, updates: Any, params: Any, decay: float | None) -> Any:
    """The updates of the parameters that train, at each one's share of the rate; `params` are all
    of them, which decide how many blocks there are."""
    if decay is None:
        return updates
    return jax.tree.map(
        lambda u, scale: None if u is None else u * scale, updates,
        layer_scales(family, params, decay), is_leaf=lambda x: x is None,
    )  # fmt: skip


def counts(family: Family, params: Any, pattern: str | None) -> dict[str, tuple[int, int]]:
    """(parameters, numbers in them) that are `trained`, `frozen` and, of the trained, `decayed`."""
    frozen, decays = frozen_mask(params, pattern), decay_mask(family, params)
    found = {"trained": (0, 0), "frozen": (0, 0), "decayed": (0, 0)}
    for leaf, still, decay in zip(*map(jax.tree.leaves, (params, frozen, decays)), strict=True):
        names = ["frozen"] if still else ["trained", "decayed"] if decay else ["trained"]
        for name in names:
            found[name] = (found[name][0] + 1, found[name][1] + int(np.prod(leaf.shape)))
    return found
