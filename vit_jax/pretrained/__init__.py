"""Published weights: their addresses, their download, and the layouts of their files.

The names below are all that a layout of your own needs. The docstrings of `Layout`, `Reader` and
`Writer` describe each part. `register` adds the layout to those of the package.
"""

import importlib
from typing import Any

_WHERE = {
    "register": "layouts", "Layout": "layout", "Reader": "layout", "Writer": "layout",
    "Description": "layout", "Tensors": "tensors", "row": "rows",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vit_jax.pretrained' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vit_jax.pretrained.{_WHERE[name]}"), name)
