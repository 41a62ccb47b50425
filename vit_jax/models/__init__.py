"""Vision Transformers as flax.nnx modules behind pure functions of a plain dict of arrays.

Importing it is cheap, because `configs` is read without JAX; the rest is loaded at first use.
"""

import importlib
from typing import Any

_WHERE = {
    "Family": "vit_jax.models.family",
    "Model": "vit_jax.models.model",
    "create_model": "vit_jax.models.registry",
    "list_models": "vit_jax.models.registry",
}
__all__ = ["Family", "Model", "create_model", "list_models"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vit_jax.models' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
