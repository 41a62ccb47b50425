"""The reference of these benchmarks: a ViT in plain flax.linen, and its training step, as a
competent user writes them.

The model follows Google's vision_transformer (`nn.Conv` for the patches,
`nn.MultiHeadDotProductAttention`, `nn.Dense`, `nn.LayerNorm`, tanh GELU, class token, learned
positions, a linear head). The step is `jax.value_and_grad` of softmax cross-entropy, `optax.adamw`
at a constant rate, `optax.apply_updates`, all under one `jax.jit` with the old state donated. It
takes float32 images normalised beforehand, so it does less than ours, which takes uint8.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class MlpBlock(nn.Module):
    """Dense, GELU, dense."""

    mlp_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(stddev=1e-6),
        )
        hidden = nn.gelu(dense(self.mlp_dim)(x))
        return dense(x.shape[-1])(hidden)


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each with its residual."""

    num_heads: int
    mlp_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(
            num_heads=self.num_heads,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            deterministic=True,
        )(y, y)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        return x + MlpBlock(self.mlp_dim, self.dtype)(y)


class LinenViT(nn.Module):
    """Images [B, H, W, C] to logits [B, classes], with a class token."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    patch_size: int
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images):
        p = (self.patch_size, self.patch_size)
        x = nn.Conv(self.hidden_size, p, strides=p, padding="VALID", dtype=self.dtype)(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.hidden_size))
        cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.hidden_size)).astype(x.dtype)
        x = jnp.concatenate([cls, x], axis=1)
        x = x + self.param(
            "pos_embedding", nn.initializers.normal(stddev=0.02), (1, x.shape[1], x.shape[2])
        ).astype(x.dtype)
        for _ in range(self.num_layers):
            x = EncoderBlock(self.num_heads, self.mlp_dim, self.dtype)(x)
        x = nn.LayerNorm(dtype=self.dtype)(x)[:, 0]
        head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.zeros)
        return head(x).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class LinenStep:
    """A model's step, (params, opt_state, images, labels) to (params, opt_state, loss)."""

    model: LinenViT
    step: Callable
    init: Callable  # (key, images) -> params, opt_state


def make_linen_step(model: LinenViT, *, lr: float = 1e-3, weight_decay: float = 1e-4) -> LinenStep:
    """The step of `model` with AdamW."""
    tx = optax.adamw(lr, weight_decay=weight_decay)

    def loss_of(params, images, labels):
        logits = model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, images, labels):
        loss, grads = jax.value_and_grad(loss_of)(params, images, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    @jax.jit
    def init(key, images):
        params = model.init(key, images)
        return params, tx.init(params)

    return LinenStep(model, step, init)
