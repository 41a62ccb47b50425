"""A family of models of one's own, in one file: patches, residual MLPs, their mean, a head."""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx

from vit_jax.fields import COUNT, POSITIVE, field
from vit_jax.models.configs import PatchConfig, check_patches
from vit_jax.models.encoder import Encoder
from vit_jax.models.family import BLOCK, Family, under
from vit_jax.models.layers import HEAD, MLP, NORM, Mlp, make_head
from vit_jax.models.vit import PATCHES, PatchEmbed


@dataclasses.dataclass(frozen=True)
class ResidualConfig(PatchConfig):
    """All that decides the parameters and the arithmetic."""

    hidden_size: int = field(32, "of a token", COUNT)
    num_layers: int = field(2, "blocks of the trunk", COUNT)
    mlp_dim: int = field(64, "hidden width of a block's MLP", COUNT)
    patch_size: int = field(4, "in pixels", COUNT)
    image_size: tuple[int, int] = field((8, 8), "(height, width)")
    branch_scale: float = field(1.0, "what a block's MLP is multiplied by", POSITIVE)

    def __post_init__(self):
        super().__post_init__()
        check_patches(self.image_size, self.patch_size)


class Block(nnx.Module):
    """x + branch_scale MLP(LN(x)) of each patch by itself."""

    def __init__(self, c, rngs):
        self.norm = nnx.LayerNorm(c.hidden_size, rngs=rngs)
        self.mlp = Mlp(
            c.hidden_size, c.mlp_dim, gelu="tanh", dropout=0.0,
            dtype=jnp.dtype(c.dtype), rngs=rngs,
        )  # fmt: skip
        self.scale = c.branch_scale

    def __call__(self, z, key, drop_path_rate, return_weights=False):
        return z + self.scale * self.mlp(self.norm(z), key), None


class Residual(nnx.Module):
    """Called as `Model.apply` calls every family."""

    def __init__(self, c, rngs):
        dtype = jnp.dtype(c.dtype)
        self.embed = PatchEmbed(c.patch_size, c.channels, c.hidden_size, dtype=dtype, rngs=rngs)
        self.trunk = Encoder(
            c.num_layers, lambda key: Block(c, nnx.Rngs(params=key)), drop_path=0.0, scan=c.scan,
            remat="none", key=rngs.params(), name="trunk",
        )  # fmt: skip
        self.head = make_head(c.hidden_size, c.num_classes, bias=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, images, key=None, *, return_weights=False, gather=None):
        x, out = self.trunk(self.embed(images), key, gather=gather)
        out["pre_logits"] = x = x.mean(axis=1)
        return self.head(x).astype(jnp.float32), out


def macs(c):
    """Multiply-accumulates of one image."""
    patches = math.prod(c.grid)
    embed = patches * c.patch_size**2 * c.channels * c.hidden_size
    block = patches * 2 * c.hidden_size * c.mlp_dim
    return embed + c.num_layers * block + c.hidden_size * c.num_classes


FAMILY = Family(
    "residual", ResidualConfig, Residual, macs,
    params=(
        *PATCHES,
        *under("trunk/block/norm", NORM, BLOCK),
        *under("trunk/block/mlp", MLP, BLOCK),
        *under("head", HEAD),
    ),
)  # fmt: skip
