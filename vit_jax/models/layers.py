"""The small parts of an encoder block: MLP, dropout, stochastic depth, LayerScale.

Randomness comes in as an explicit key, and a missing key means evaluation: a module holds
nothing but parameters.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

GELU = {"exact": False, "tanh": True}  # name -> `approximate` of jax.nn.gelu

small_normal = nnx.initializers.normal(stddev=1e-6)
xavier_uniform = nnx.initializers.xavier_uniform()


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and rescales the rest (inverted dropout).

    Without a key, or at rate 0, `x` is returned as it is.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop_path(
    x: Float[Array, "batch ..."], rate: Float[Array, ""], key: Key[Array, ""] | None
) -> Float[Array, "batch ..."]:
    """Stochastic depth (arXiv 1603.09382): drops a residual branch for whole examples."""
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - rate).astype(x.dtype), jnp.zeros_like(x))


class LayerScale(nnx.Module):
    """A learned scale per channel on a residual branch (arXiv 2103.17239, eq. 5)."""

    def __init__(self, hidden_size: int, init: float):
        self.gamma = nnx.Param(jnp.full((hidden_size,), init, jnp.float32))

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return x * self.gamma[...].astype(x.dtype)


class Mlp(nnx.Module):
    """Two dense layers with a GELU between them (ViT paper, eq. 3 and appendix A)."""

    def __init__(self, width: int, mlp_dim: int, *, gelu: str, dropout: float, dtype, rngs):
        dense: dict[str, Any] = {
            "dtype": dtype,
            "kernel_init": xavier_uniform,
            "bias_init": small_normal,
        }
        self.fc1 = nnx.Linear(width, mlp_dim, rngs=rngs, **dense)
        self.fc2 = nnx.Linear(mlp_dim, width, rngs=rngs, **dense)
        self.gelu, self.dropout = gelu, dropout

    def __call__(
        self, x: Float[Array, "batch tokens width"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens width"]:
        inner, outer = (None, None) if key is None else jax.random.split(key)
        # The backward pass computes the GELU again rather than keep its half dozen temporaries.
        gelu = jax.checkpoint(functools.partial(jax.nn.gelu, approximate=GELU[self.gelu]))
        x = gelu(self.fc1(x))
        return dropout(self.fc2(dropout(x, self.dropout, inner)), self.dropout, outer)
