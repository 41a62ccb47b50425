"""big_vision's ViT, restated in flax.linen, with the names and shapes of its files.

It differs from the older code in where positions go (before the class token, which has none), in
its pools (class token, mean, or an attention head) and in its scanned encoder. It returns (logits,
intermediates by name). Nothing is shared with the package.
"""

import flax.linen as nn
import jax.numpy as jnp
from linen_google import EncoderBlock, LayerNorm, MlpBlock


def sincos2d(rows: int, columns: int, width: int):
    """Positions without parameters, (1, rows * columns, width): sin x, cos x, sin y, cos y."""
    y, x = jnp.mgrid[:rows, :columns]
    omega = 10_000.0 ** -(jnp.arange(width // 4) / (width // 4 - 1))
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)[None]


class ScannedBlock(nn.Module):
    """An encoder block as nn.scan calls it, in the scope of the scan."""

    num_heads: int
    mlp_dim: int
    gelu: str

    @nn.compact
    def __call__(self, x, _):
        block = EncoderBlock(self.num_heads, self.mlp_dim, "linen", self.gelu)
        nn.share_scope(self, block)
        x = block(x)
        return x, x


class Encoder(nn.Module):
    """Blocks and the final norm; every block's output beside the last."""

    depth: int
    num_heads: int
    mlp_dim: int
    scan: bool
    gelu: str

    @nn.compact
    def __call__(self, x):
        if self.scan:
            scanned = nn.scan(
                ScannedBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, stacked = scanned(self.num_heads, self.mlp_dim, self.gelu, name="encoderblock")(
                x, None
            )
            out = {f"block{i:02d}": stacked[i] for i in range(self.depth)}
        else:
            out = {}
            for i in range(self.depth):
                x = EncoderBlock(
                    self.num_heads, self.mlp_dim, "linen", self.gelu, name=f"encoderblock_{i}"
                )(x)
                out[f"block{i:02d}"] = x
        return LayerNorm(name="encoder_norm")(x), out


class MAPHead(nn.Module):
    """A learned probe attends over the tokens; x + MLP(LN(x))."""

    num_heads: int
    mlp_dim: int
    gelu: str

    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, (x.shape[0], 1, 1))
        x = nn.MultiHeadDotProductAttention(
            self.num_heads, deterministic=True, name="MultiHeadDotProductAttention_0"
        )(probe, x)
        y = LayerNorm(name="LayerNorm_0")(x)
        return (x + MlpBlock(self.mlp_dim, self.gelu, name="MlpBlock_0")(y))[:, 0]


class BigVisionViT(nn.Module):
    """`embedding`, positions, `Transformer`, one of the pools, `pre_logits`, `head`."""

    patch: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_classes: int
    pool: str = "gap"  # or tok, map
    posemb: str = "learn"  # or sincos2d
    rep_size: int | None = None  # of the hidden layer before the head
    scan: bool = False
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, x):
        p = (self.patch, self.patch)
        x = nn.Conv(self.width, p, strides=p, padding="VALID", name="embedding")(x)
        batch, rows, columns, width = x.shape
        x = x.reshape(batch, rows * columns, width)
        if self.posemb == "learn":
            shape = (1, rows * columns, width)
            x = x + self.param("pos_embedding", nn.initializers.normal(width**-0.5), shape)
        elif self.posemb == "sincos2d":
            x = x + sincos2d(rows, columns, width)
        else:
            raise ValueError(f"posemb {self.posemb!r}")
        if self.pool == "tok":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, width))
            x = jnp.concatenate([jnp.tile(cls, (batch, 1, 1)), x], axis=1)
        x, out = Encoder(
            self.depth, self.num_heads, self.mlp_dim, self.scan, self.gelu, name="Transformer"
        )(x)
        out["encoded"] = x
        if self.pool == "map":
            x = MAPHead(self.num_heads, self.mlp_dim, self.gelu, name="MAPHead_0")(x)
        else:
            x = {"tok": lambda x: x[:, 0], "gap": lambda x: x.mean(axis=1)}[self.pool](x)
        if self.rep_size is not None:
            x = jnp.tanh(nn.Dense(self.rep_size, name="pre_logits")(x))
        out["pre_logits"] = x
        return nn.Dense(self.num_classes, name="head")(x), out
