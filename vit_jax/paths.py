"""Paths of parameters: `encoder/block03/mlp/fc1/kernel`.

A stack of blocks keeps a parameter of each layer (`encoder/block03/…`), or one parameter with a
leading axis of layers (`encoder/block/…`, with `scan`). The stack may have any name: `encoder`,
`decoder`.
"""

import re

import jax

LISTED = re.compile(r"(.*?\w+/block)(\d+)(/.*)")  # of one layer
STACKED = re.compile(r"(.*?\w+/block)(/.*)")  # of all layers


def path_of(keys: tuple) -> str:
    """The path of a pytree's key."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def logical(path: str) -> str:
    """The path without the layer's number: one name for stacked and listed layers."""
    return re.sub(r"(^|/)(\w+/block)\d+/", r"\1\2/", path)


def layer_of(path: str) -> int | None:
    """The number of the layer that a parameter belongs to; None where it belongs to none or all."""
    listed = LISTED.fullmatch(path)
    return int(listed[2]) if listed else None


def in_block(path: str) -> bool:
    """Whether the parameter belongs to a layer of a stack, or to all of them."""
    return is_stacked(logical(path))


def is_stacked(path: str) -> bool:
    """Whether the parameter holds all layers of a stack, along its first axis."""
    return STACKED.fullmatch(path) is not None
