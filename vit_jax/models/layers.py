"""The small parts of an encoder block: MLP, SwiGLU, dropout, stochastic depth, LayerScale.

Randomness comes in as an explicit key, and a missing key means evaluation: a module holds
nothing but parameters.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from vit_jax.models.encoder import KEPT
from vit_jax.models.family import BOTH, CLASSES, Param


class ParamKeys:
    """The keys of a module's parameters, one after the other: those of `nnx.Rngs(params=key)`.

    nnx counts in an array. While a function is traced, each count then costs a search through all
    of the program so far, which took 27 of the 30 seconds in which a ResNet-152 was described.
    """

    def __init__(self, params: Key[Array, ""]):
        self._key, self._count = params, 0

    def params(self) -> Key[Array, ""]:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)


GELU: dict[str, Callable[[Array], Array]] = {
    "exact": functools.partial(jax.nn.gelu, approximate=False),
    "tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # arXiv 1606.08415, section 2; CLIP's
}

# Rows of the parts' parameters (`family.Param`).
NORM = (Param("scale|bias"),)
LAYER_SCALE = (Param("gamma"),)
MLP = (
    Param("fc1/kernel", ("fsdp", "tensor"), decays=True, muon=((0,), (1,))),
    Param("fc1/bias", ("tensor",)),
    Param("fc2/kernel", (BOTH, "fsdp"), decays=True, muon=((0,), (1,))),
    Param("fc2/bias"),
)
SWIGLU = (
    Param("w12/kernel", ("fsdp", None, "tensor"), decays=True, muon=((0,), (2,))),
    Param("w12/bias", (None, "tensor")),
    Param("w3/kernel", (BOTH, "fsdp"), decays=True, muon=((0,), (1,))),
    Param("w3/bias"),
)
HEAD = (
    Param("kernel", ("fsdp", "tensor"), decays=True, at_init=CLASSES),
    Param("bias", at_init=CLASSES),
)

small_normal = nnx.initializers.normal(stddev=1e-6)
xavier_uniform = nnx.initializers.xavier_uniform()


def per_projection(parts: int):
    """Xavier-uniform initialisation for `parts` projections in one array, each by its own size."""

    def init(key, shape, dtype=jnp.float32):
        part_shape = (shape[0], shape[1] // parts)
        keys = jax.random.split(key, parts)
        return jnp.concatenate([xavier_uniform(k, part_shape, dtype) for k in keys], axis=1)

    return init


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and rescales the rest (inverted dropout).

    Without a key, or at rate 0, `x` is returned as it is.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop_path(
    x: Float[Array, "batch ..."], rate: Float[Array, ""] | float, key: Key[Array, ""] | None
) -> Float[Array, "batch ..."]:
    """Stochastic depth (arXiv 1603.09382): drops a residual branch for whole examples."""
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "rows width"], scale: Float[Array, " width"], bias: Float[Array, " width"],
    epsilon: float,
) -> Float[Array, "rows width"]:  # fmt: skip
    """Layer normalisation (arXiv 1607.06450) in float32, whose backward pass keeps `x` and two
    numbers a row. JAX's own derivative keeps three float32 arrays of the size of `x`."""
    return _normalised(x, scale, bias, epsilon)[0]


def _normalised(x, scale, bias, epsilon):
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean)
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _normalised_vjp(epsilon, kept, dy):
    x, scale, mean, inverse = kept
    standard = (x.astype(jnp.float32) - mean) * inverse
    dy = dy.astype(jnp.float32)
    d = dy * scale
    along = (d * standard).mean(axis=-1, keepdims=True)
    dx = inverse * (d - d.mean(axis=-1, keepdims=True) - standard * along)
    return dx.astype(x.dtype), (dy * standard).sum(axis=0), dy.sum(axis=0)


layer_norm.defvjp(_normalised, _normalised_vjp)


def norm_of_rows(norm: nnx.LayerNorm) -> Callable[[Array], Array]:
    """The norm as a function of a matrix, by `layer_norm`."""
    assert norm.scale is not None
    assert norm.bias is not None
    scale, bias = norm.scale[...], norm.bias[...]
    return lambda x: layer_norm(x, scale, bias, norm.epsilon)


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
        # The backward pass computes the GELU again, to save the memory of its temporaries.
        x = jax.checkpoint(GELU[self.gelu])(checkpoint_name(self.fc1(x), KEPT))
        return dropout(self.fc2(dropout(x, self.dropout, inner)), self.dropout, outer)


class SwiGlu(nnx.Module):
    """(silu(x W1) * x W2) W3 (arXiv 2002.05202, eq. 6), W1 and W2 in one `w12` (D, 2, mlp_dim)."""

    def __init__(self, width: int, mlp_dim: int, *, dropout: float, dtype, rngs):
        dense: dict[str, Any] = {"dtype": dtype, "bias_init": small_normal, "rngs": rngs}
        self.w12 = nnx.LinearGeneral(width, (2, mlp_dim), kernel_init=per_projection(2), **dense)
        self.w3 = nnx.Linear(mlp_dim, width, kernel_init=xavier_uniform, **dense)
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "batch tokens width"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens width"]:
        inner, outer = (None, None) if key is None else jax.random.split(key)
        x12 = checkpoint_name(self.w12(x), KEPT)
        x = jax.nn.silu(x12[..., 0, :]) * x12[..., 1, :]
        return dropout(self.w3(dropout(x, self.dropout, inner)), self.dropout, outer)


def make_head(features: int, num_classes: int, *, bias: float, dtype: Any, rngs: Any) -> nnx.Linear:
    """A linear layer with zeros as its kernel, as fine-tuning begins (ViT paper, section 3.2)."""
    return nnx.Linear(
        features, num_classes, kernel_init=nnx.initializers.zeros,
        bias_init=nnx.initializers.constant(bias), dtype=dtype, rngs=rngs,
    )  # fmt: skip
