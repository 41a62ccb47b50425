"""Vision Transformers as flax.nnx modules behind pure functions of a plain dict of arrays."""

from vit_jax.models.family import Family
from vit_jax.models.model import Model
from vit_jax.models.registry import create_model, list_models

__all__ = ["Family", "Model", "create_model", "list_models"]
