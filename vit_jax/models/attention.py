"""Multi-head self-attention (ViT paper, appendix A) and attention pooling.

Queries, keys and values come from one fused projection. Scores and softmax are float32 whatever
the compute dtype is. `auto` is cuDNN's fused attention where the devices that a step is compiled
for can use it, and XLA's everywhere else. A config keeps the word `auto`, so that a run may change
machines.

The kernel takes an even number of tokens alone, and a ViT's is odd: 196 patches and a class token.
So a model appends empty tokens before its blocks and cuts them off behind them. In between they are
masked: no token attends to them, and no gradient comes from them. With the kernel a block works on
one matrix of rows (`Attention.on_rows`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Key

from vit_jax.models.encoder import KEPT
from vit_jax.models.family import BOTH, Param, under
from vit_jax.models.layers import MLP, NORM, Mlp, dropout, per_projection, xavier_uniform

# Rows of the parameters of `Attention` and of `AttentionPool`.
_KERNEL: tuple = ("fsdp", None, BOTH, None)
_OUT = (
    Param("out/kernel", (BOTH, None, "fsdp"), decays=True, muon=((0, 1), (2,))),
    Param("out/bias"),
)
ATTENTION = (
    Param("qkv/kernel", _KERNEL, decays=True, muon=((0,), (2, 3))),
    Param("qkv/bias", (None, "tensor", None)),
    *_OUT,
    *under("q_norm|k_norm", NORM),
)
ATTENTION_POOL = (
    Param("probe"),
    Param("q/kernel", ("fsdp", BOTH, None), decays=True, muon=((0,), (1, 2))),
    Param("q/bias", ("tensor", None)),
    Param("kv/kernel", _KERNEL, decays=True, muon=((0,), (2, 3))),
    Param("kv/bias", (None, "tensor", None)),
    *_OUT,
    *under("norm", NORM),
    *under("mlp", MLP),
)


@jax.custom_jvp
def softmax(scores: Float[Array, "... keys"]) -> Float[Array, "... keys"]:
    """Softmax over the last axis. Its derivative needs only its result: dy = y (ds - <y, ds>).

    `jax.nn.softmax` differentiates its exponential and its division separately. So it keeps three
    arrays of the scores' size for the backward pass, instead of one.
    """
    return jax.nn.softmax(scores, axis=-1)


@softmax.defjvp
def _softmax_jvp(primals, tangents):
    (scores,), (tangent,) = primals, tangents
    y = softmax(scores)
    return y, y * (tangent - (y * tangent).sum(axis=-1, keepdims=True))


def attend(
    q: Float[Array, "batch heads queries dim"],
    k: Float[Array, "batch heads keys dim"],
    v: Float[Array, "batch heads keys dim"],
    *,
    rate: float = 0.0,
    key: Key[Array, ""] | None = None,
    mask: Bool[Array, "batch keys"] | None = None,
    added: Float[Array, "batch heads queries keys"] | None = None,
) -> tuple[Float[Array, "batch queries heads dim"], Float[Array, "batch heads queries keys"]]:
    """softmax(q kᵀ / sqrt(dim)) v (eq. 6, 7), with dropout on the weights; and the weights. Keys
    that are false in `mask` do not count. `added` is added to the weights: its gradient is theirs.

    The axis of heads comes before that of tokens, so that each head's numbers are contiguous.
    """
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    weights = softmax(scores)
    weights = weights if added is None else weights + added
    mixed = dropout(weights, rate, key).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", mixed, v).swapaxes(1, 2), weights


def fused(
    q: Float[Array, "batch tokens heads dim"],
    k: Float[Array, "batch tokens heads dim"],
    v: Float[Array, "batch tokens heads dim"],
    tokens: int,
) -> Float[Array, "batch tokens heads dim"]:
    """`attend` by cuDNN's kernel, which never writes the weights to memory. Of more than `tokens`
    tokens, the last ones are masked."""
    lengths = None
    if tokens < q.shape[1]:
        lengths = jnp.full(q.shape[:1], tokens, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )


class Attention(nnx.Module):
    """Self-attention over `tokens` tokens; any after them are masked. `kernel` shapes: qkv
    (D, 3, H, D/H), out (H, D/H, D)."""

    def __init__(
        self, width: int, num_heads: int, *, tokens: int, dropout: float, backend: str,
        qk_norm: bool, epsilon: float, dtype, rngs, qkv_bias: bool = True,
    ):  # fmt: skip
        head_dim = width // num_heads
        self.qkv = nnx.LinearGeneral(
            width, (3, num_heads, head_dim), kernel_init=per_projection(3), use_bias=qkv_bias,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.out = nnx.LinearGeneral(
            (num_heads, head_dim), width, axis=(-2, -1), kernel_init=xavier_uniform,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = nnx.LayerNorm(head_dim, epsilon=epsilon, dtype=dtype, rngs=rngs)
            self.k_norm = nnx.LayerNorm(head_dim, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.tokens, self.dropout, self.backend = tokens, dropout, backend

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        key: Key[Array, ""] | None = None,
        return_weights: bool = False,
        added: Float[Array, "batch heads tokens tokens"] | None = None,
    ) -> tuple[
        Float[Array, "batch tokens width"], Float[Array, "batch heads tokens tokens"] | None
    ]:
        q, k, v = self.qkv(x).transpose(2, 0, 3, 1, 4)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed, weights = attend(q, k, v, rate=self.dropout, key=key, added=added)
        return self.out(mixed), weights if return_weights else None

    def on_rows(
        self,
        x: Float[Array, "rows width"],
        batch: int,
        norm: Callable[[Array], Array],
    ) -> Float[Array, "rows width"]:
        """The same of `norm(x)` by cuDNN's kernel, for the tokens of all `batch` examples as the
        rows of one matrix.

        The kernel takes queries, keys and values from three arrays. So each has a product of its
        own, which moves less memory than one product whose result is split. The backward pass
        computes the norm again, to save the memory of its output.
        """

        def projected(x: Array) -> list[Array]:
            x = norm(x)
            kernel = self.qkv.kernel[...].astype(x.dtype)
            parts = [x @ kernel[:, part].reshape(x.shape[-1], -1) for part in range(3)]
            if self.qkv.bias is not None:
                bias = self.qkv.bias[...].astype(x.dtype)
                parts = [y + bias[part].ravel() for part, y in enumerate(parts)]
            return [checkpoint_name(y.reshape(batch, -1, *kernel.shape[2:]), KEPT) for y in parts]

        q, k, v = jax.checkpoint(projected)(x)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = fused(q, k, v, self.tokens)
        return self.out(mixed.reshape(-1, *mixed.shape[2:]))


class AttentionPool(nnx.Module):
    """MAP head: a learned query attends over the tokens (arXiv 2106.04560, section 3.4)."""

    def __init__(
        self, width: int, num_heads: int, mlp_dim: int, *, gelu: str, epsilon: float, dtype, rngs
    ):
        head_dim = width // num_heads
        dense: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.probe = nnx.Param(xavier_uniform(rngs.params(), (1, width), jnp.float32))
        heads = (num_heads, head_dim)
        self.q = nnx.LinearGeneral(width, heads, kernel_init=xavier_uniform, **dense)
        self.kv = nnx.LinearGeneral(width, (2, *heads), kernel_init=per_projection(2), **dense)
        self.out = nnx.LinearGeneral(
            heads, width, axis=(-2, -1), kernel_init=xavier_uniform, **dense
        )
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, **dense)
        self.mlp = Mlp(width, mlp_dim, gelu=gelu, dropout=0.0, **dense)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        k, v = self.kv(x).transpose(2, 0, 3, 1, 4)
        mixed, _ = attend(self.q(probe).swapaxes(1, 2), k, v)
        pooled = self.out(mixed)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
