"""MLP-Mixer (arXiv 2105.01601): a ViT whose attention is an MLP over the patches.

The tokens' MLP has one weight for each patch, so a Mixer's parameters belong to one grid, and
positions need no embedding.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.configs import MixerConfig
from vit_jax.models.encoder import Encoder
from vit_jax.models.family import BLOCK, Family, Names, under
from vit_jax.models.layers import HEAD, MLP, NORM, Mlp, ParamKeys, drop_path, make_head
from vit_jax.models.vit import PATCHES, PatchEmbed

# Table 1: (hidden_size, num_layers, tokens_mlp_dim, mlp_dim).
SIZES = {"s": (512, 8, 256, 2048), "b": (768, 12, 384, 3072), "l": (1024, 24, 512, 4096)}


class MixerBlock(nnx.Module):
    """U = X + MLP(LN(X)ᵀ)ᵀ across the patches, Y = U + MLP(LN(U)) within each (eq. 1)."""

    def __init__(self, c: MixerConfig, rngs: Any):
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

    def __init__(self, c: MixerConfig, rngs: Any):
        dtype, width = jnp.dtype(c.dtype), c.hidden_size
        self.config = c
        self.embed = PatchEmbed(c.patch_size, c.channels, width, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(
            c.num_layers, lambda key: MixerBlock(c, ParamKeys(key)), drop_path=c.drop_path,
            scan=c.scan, remat=c.remat, key=rngs.params(),
        )  # fmt: skip
        self.norm = nnx.LayerNorm(width, epsilon=c.layernorm_eps, dtype=dtype, rngs=rngs)
        if c.num_classes:
            self.head = make_head(width, c.num_classes, bias=c.head_bias, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        key: Key[Array, ""] | None = None,
        *,
        return_weights: bool = False,
        gather=None,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """The same arguments as for a ViT. There are no attention weights to return."""
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


FAMILY = Family(
    "mixer", MixerConfig, Mixer, forward_macs,
    params=(
        *PATCHES,
        *under("encoder/block/norm[12]", NORM, BLOCK),
        *under("encoder/block/(token|channel)_mixing", MLP, BLOCK),
        *under("norm", NORM),
        *under("head", HEAD),
    ),
    names=(
        Names(
            rf"mixer_(?P<size>{'|'.join(SIZES)})(?P<patch>\d+)_(?P<side>\d+)",
            lambda of: dict(
                zip(("hidden_size", "num_layers", "tokens_mlp_dim", "mlp_dim"),
                    SIZES[of["size"]], strict=True),
                patch_size=int(of["patch"]), image_size=int(of["side"]),
            ),
            tuple(f"mixer_{size}{patch}_224" for size in SIZES for patch in (32, 16)),
            # A short name has no resolution, because the weights fit one grid of patches only.
            full=lambda short, side: (
                f"{short.lower()}_224" if re.fullmatch(r"mixer_[sbl]\d+", short.lower()) else None
            ),
            shorts=("mixer_b16",),
        ),
    ),
)  # fmt: skip
