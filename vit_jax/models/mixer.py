"""MLP-Mixer (arXiv 2105.01601): a ViT whose attention is an MLP over the patches.

The tokens' MLP has one weight for each patch, so a Mixer's parameters belong to one grid, and
positions need no embedding.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.encoder import REMAT, Encoder
from vit_jax.models.fields import check, check_choices, check_counts, check_patches
from vit_jax.models.layers import GELU, Mlp, drop_path
from vit_jax.models.vit import PatchEmbed

CHOICES = {"gelu": tuple(GELU), "remat": REMAT, "dtype": ("float32", "bfloat16")}


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """Everything that decides a Mixer's parameters and arithmetic. Sizes as in table 1."""

    hidden_size: int = 768  # C
    num_layers: int = 12
    patch_size: int = 16  # P
    tokens_mlp_dim: int = 384  # D_S
    mlp_dim: int = 3072  # D_C, of the channels' MLP
    image_size: tuple[int, int] = (224, 224)  # (H, W)
    channels: int = 3
    num_classes: int = 1000  # 0: no head, logits are the pre-logits
    head_bias: float = 0.0  # negative for sigmoid losses
    dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; grows linearly from 0 at the first
    gelu: str = "tanh"  # tanh | exact | quick
    layernorm_eps: float = 1e-6
    scan: bool = False  # one compiled block over stacked layers
    remat: str = "none"  # none | full | dots
    dtype: str = "float32"  # of the arithmetic; parameters are float32

    def __post_init__(self):
        check_counts(
            self, "hidden_size", "num_layers", "patch_size", "tokens_mlp_dim", "mlp_dim", "channels"
        )
        check(self, "num_classes", int, lambda n: n >= 0, "a whole number of at least 0")
        for field in ("dropout", "drop_path"):
            check(self, field, float, lambda rate: 0 <= rate < 1, "a number in [0, 1)")
        check(self, "layernorm_eps", float, lambda eps: eps > 0, "a positive number")
        check_choices(self, CHOICES)
        check_patches(self.image_size, self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_tokens(self) -> int:
        """S, the number of patches."""
        return self.grid[0] * self.grid[1]


class MixerBlock(nnx.Module):
    """U = X + MLP(LN(X)ᵀ)ᵀ across the patches, Y = U + MLP(LN(U)) within each (eq. 1)."""

    def __init__(self, c: MixerConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(c.dtype)
        norm: dict[str, Any] = {"epsilon": c.layernorm_eps, "dtype": dtype, "rngs": rngs}
        mlp: dict[str, Any] = {"gelu": c.gelu, "dropout": c.dropout, "dtype": dtype, "rngs": rngs}
        self.norm1 = nnx.LayerNorm(c.hidden_size, **norm)
        self.token_mixing = Mlp(c.num_tokens, c.tokens_mlp_dim, **mlp)
        self.norm2 = nnx.LayerNorm(c.hidden_size, **norm)
        self.channel_mixing = Mlp(c.hidden_size, c.mlp_dim, **mlp)
        self.drops_path = c.drop_path > 0.0

    def __call__(
        self,
        z: Float[Array, "batch tokens width"],
        key: Key[Array, ""] | None,
        drop_path_rate: Float[Array, ""],
        return_weights: bool = False,
    ) -> tuple[Float[Array, "batch tokens width"], None]:
        keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
        path = keys[2:] if self.drops_path else [None, None]
        y = self.token_mixing(self.norm1(z).swapaxes(1, 2), keys[0]).swapaxes(1, 2)
        z = z + drop_path(y, drop_path_rate, path[0])
        y = self.channel_mixing(self.norm2(z), keys[1])
        return z + drop_path(y, drop_path_rate, path[1]), None


class Mixer(nnx.Module):
    """Patches, blocks, LayerNorm, mean over the patches, head."""

    def __init__(self, c: MixerConfig, rngs: nnx.Rngs):
        dtype, width = jnp.dtype(c.dtype), c.hidden_size
        self.config = c
        self.embed = PatchEmbed(c.patch_size, c.channels, width, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(
            c.num_layers, lambda key: MixerBlock(c, nnx.Rngs(params=key)), drop_path=c.drop_path,
            scan=c.scan, remat=c.remat, key=rngs.params(),
        )  # fmt: skip
        self.norm = nnx.LayerNorm(width, epsilon=c.layernorm_eps, dtype=dtype, rngs=rngs)
        if c.num_classes:
            constant = nnx.initializers.constant(c.head_bias)
            self.head = nnx.Linear(
                width, c.num_classes, kernel_init=nnx.initializers.zeros, bias_init=constant,
                dtype=dtype, rngs=rngs,
            )  # fmt: skip

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        key: Key[Array, ""] | None = None,
        *,
        return_weights: bool = False,
        gather=None,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """Called as a ViT is; there are no attention weights to return."""
        out = {"patches": self.embed(images)}
        x, blocks = self.encoder(out["patches"], key, gather=gather)
        x = self.norm(x)
        out |= blocks | {"encoded": x}
        out["pre_logits"] = x = x.mean(axis=1)
        logits = self.head(x) if self.config.num_classes else x
        return logits.astype(jnp.float32), out


def forward_macs(c: MixerConfig) -> int:
    """Multiply-accumulates of one image: patch embedding, both MLPs of every block, head."""
    n, d = c.num_tokens, c.hidden_size
    embed = n * c.patch_size**2 * c.channels * d
    block = 2 * n * d * (c.tokens_mlp_dim + c.mlp_dim)
    return embed + c.num_layers * block + d * c.num_classes
