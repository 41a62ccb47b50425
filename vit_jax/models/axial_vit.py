"""Axial-ViT (arXiv 2010.11929, appendix D.6): each block of a ViT becomes two. The first attends
along the rows of patches, the second along the columns, and each has its own MLP.

The paper does not state what becomes of the class token. Here there is none, and the head reads the
mean of the patches.
"""

import dataclasses
import math
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.configs import AxialViTConfig
from vit_jax.models.family import BEFORE, BLOCK, FRESH, RESIZED, Family, Names, Param, under
from vit_jax.models.layers import HEAD, LAYER_SCALE, MLP, NORM, SWIGLU
from vit_jax.models.vit import ATTENTION, PATCHES, Block, ViT
from vit_jax.models.vit_names import SIZES, sized


class AxialBlock(nnx.Module):
    """A block along the rows, and one along the columns."""

    def __init__(self, c: AxialViTConfig, rngs: Any):
        self.grid = down, across = c.grid
        # Blocks of one line of patches.
        self.rows, self.columns = (
            Block(dataclasses.replace(c, image_size=(c.patch_size, n * c.patch_size)), rngs)
            for n in (across, down)
        )

    def __call__(
        self,
        z: Float[Array, "batch tokens width"],
        key: Key[Array, ""] | None = None,
        drop_path_rate: Float[Array, ""] | float = 0.0,
        return_weights: bool = False,
    ) -> tuple[Float[Array, "batch tokens width"], None]:
        keys = [None, None] if key is None else jax.random.split(key)
        batch, _, width = z.shape
        down, across = self.grid
        z = z.reshape(batch * down, across, width)
        z, _ = self.rows(z, keys[0], drop_path_rate)
        z = z.reshape(batch, down, across, width).swapaxes(1, 2)
        z, _ = self.columns(z.reshape(batch * across, down, width), keys[1], drop_path_rate)
        return z.reshape(batch, across, down, width).swapaxes(1, 2).reshape(batch, -1, width), None


class AxialViT(ViT):
    """The ViT with axial blocks. There are no attention weights to return."""

    block = AxialBlock


def forward_macs(c: AxialViTConfig) -> int:
    """Multiply-accumulates of one image: patches, both blocks of every layer, head."""
    (down, across), d = c.grid, c.hidden_size
    n = down * across
    mlp = (3 if c.mlp == "swiglu" else 2) * d * c.mlp_dim
    layer = 2 * n * (4 * d * d + mlp) + 2 * n * (down + across) * d
    embed = n * c.patch_size**2 * c.channels * d
    pre_logits = d * d if c.pre_logits else 0
    return embed + c.num_layers * layer + pre_logits + d * c.num_classes


_ONE = "encoder/block/(rows|columns)/"
FAMILY = Family(
    "axial_vit", AxialViTConfig, AxialViT, forward_macs,
    params=(
        *PATCHES,
        Param("pos_embed/grid", (None, None, "fsdp"), depth=BEFORE, at_init=RESIZED),
        *under(f"{_ONE}norm[12]", NORM, BLOCK),
        *under(f"{_ONE}attention", ATTENTION, BLOCK),
        *under(f"{_ONE}mlp", (*MLP, *SWIGLU), BLOCK),
        *under(f"{_ONE}scale[12]", LAYER_SCALE, BLOCK),
        *under("norm", NORM),
        Param("pre_logits/kernel", ("fsdp", None), True, ((0,), (1,)), at_init=FRESH),
        Param("pre_logits/bias", at_init=FRESH),
        *under("head", HEAD),
    ),
    names=(
        Names(
            rf"axial_vit_(?P<size>{'|'.join(SIZES)})_patch(?P<patch>\d+)_(?P<side>\d+)",
            sized,
            tuple(f"axial_vit_base_patch{patch}_224" for patch in (32, 16)),
        ),
    ),
    layer=lambda c, rngs: (AxialBlock(c, rngs), (math.prod(c.grid), c.hidden_size)),
)  # fmt: skip
