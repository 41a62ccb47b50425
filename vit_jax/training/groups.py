"""Which parameters train, which of them decay, and at what share of the learning rate: decided by
their paths, each parameter exactly once.

A frozen parameter is None in the tree that trains. An empty tree has no gradient, no optimiser's
state and no average, so nothing has to be masked. The whole parameters stay in the state.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.family import BEHIND, BLOCK, Family
from vit_jax.paths import STACKED, is_stacked, layer_of, logical, path_of


def decay_mask(family: Family, params: Any) -> Any:
    """A tree of bools: whether weight decay applies to each parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: family.row(path_of(keys)).decays, params
    )


def frozen_mask(params: Any, pattern: str | None) -> Any:
    """A tree of bools: whether the pattern matches the whole path of each parameter, such as
    `encoder/block03/mlp/fc1/kernel`, or the path without the layer's number.

    Raises UserError: the pattern is no regular expression, it matches nothing or everything, or it
    matches only some layers of a stacked parameter.
    """
    if pattern is None:
        return jax.tree.map(lambda _: False, params)
    try:
        match = re.compile(pattern).fullmatch
    except re.error as error:
        raise UserError(f"optimizer.freeze {pattern!r} is no regular expression: {error}") from None

    def is_frozen(keys: tuple, leaf: Any) -> bool:
        path = path_of(keys)
        names = [path]
        if stack := STACKED.fullmatch(path):
            names = [f"{stack[1]}{i:02d}{stack[2]}" for i in range(leaf.shape[0])]
        matches = {bool(match(name) or match(logical(name))) for name in names}
        if len(matches) > 1:
            raise UserError(
                f"optimizer.freeze {pattern!r} matches some layers of {path}, which model.scan "
                "stacks into one parameter: --config.model.scan=False keeps them apart"
            )
        return matches.pop()

    mask = jax.tree_util.tree_map_with_path(is_frozen, params)
    if len(set(jax.tree.leaves(mask))) > 1:
        return mask
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    which = "every parameter" if all(jax.tree.leaves(mask)) else "no parameter"
    raise UserError(
        f"optimizer.freeze {pattern!r} matches {which}; they are {', '.join(paths[:4])} … "
        f"{', '.join(paths[-2:])}; (?!head(_dist)?/).* freezes all but the head"
    )


def trainable(params: Any, pattern: str | None) -> Any:
    """The parameters, with None (an empty tree) in place of each frozen one. So gradients and the
    optimiser's state take no memory for frozen parameters."""
    if pattern is None:
        return params
    return jax.tree.map(lambda p, f: None if f else p, params, frozen_mask(params, pattern))


def merged(trained: Any, params: Any) -> Any:
    """`params`, with each leaf replaced by that of `trained` if it is not None there."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None
    )


def layer_scales(family: Family, params: Any, decay: float) -> Any:
    """The factor of the learning rate for each parameter: decay ** (number of blocks above it), and
    1 after the last block (arXiv 2106.08254). For stacked layers, an array with one factor a layer.

    Raises UserError if the model has no blocks.
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

    def scale_of(keys: tuple, leaf: Any) -> Any:
        path = path_of(keys)
        place = family.row(path).depth
        if place != BLOCK:
            return 1.0 if place == BEHIND else decay ** (depth + 1)
        if (layer := layer_of(path)) is not None:
            return decay ** (depth - layer)
        scales = decay ** (depth - np.arange(depth, dtype=np.float32))
        return jnp.asarray(scales.reshape(depth, *[1] * (leaf.ndim - 1)))

    return jax.tree_util.tree_map_with_path(scale_of, params)


def rate_scales(
    family: Family, params: Any, decay: float | None, of_parts: Mapping[str, float]
) -> Any:
    """The factor of the learning rate for each parameter: by its layer, where `decay` is set, and
    by its part of the model, a first name of its path. None if all are 1.

    Raises UserError if the model has no blocks.
    """
    if decay is None and not of_parts:
        return None
    scales = jax.tree.map(lambda _: 1.0, params)
    if decay is not None:
        scales = layer_scales(family, params, decay)
    for part, factor in of_parts.items():
        own = jax.tree.map(lambda scale, factor=factor: factor * scale, scales[part])
        scales = scales | {part: own}
    return scales


def by_rate(updates: Any, scales: Any) -> Any:
    """The updates of the trained parameters, times their factors of the learning rate."""
    if scales is None:
        return updates
    return jax.tree.map(
        lambda u, scale: None if u is None else u * scale, updates, scales,
        is_leaf=lambda x: x is None,
    )  # fmt: skip


def counts(family: Family, params: Any, pattern: str | None) -> dict[str, tuple[int, int]]:
    """(arrays, numbers in them) of the parameters that are `trained`, `frozen` and `decayed`.
    A frozen parameter does not count as decayed."""
    frozen, decays = frozen_mask(params, pattern), decay_mask(family, params)
    totals = {"trained": (0, 0), "frozen": (0, 0), "decayed": (0, 0)}
    for leaf, is_frozen, decay in zip(*map(jax.tree.leaves, (params, frozen, decays)), strict=True):
        names = ["frozen"] if is_frozen else ["trained", "decayed"] if decay else ["trained"]
        for name in names:
            totals[name] = (totals[name][0] + 1, totals[name][1] + int(np.prod(leaf.shape)))
    return totals
