"""The masked autoencoder (MAE, arXiv 2111.06377): a ViT encodes a few of an image's patches, and a
small decoder predicts the pixels of the others from them, with a learned token in their places.

Which patches are visible follows from `noise`: those with the smallest numbers. Their count is
fixed. Positions are the sines and cosines of the authors' code. They are parameters, so that
weights of others keep theirs and a classifier may begin with them, but they have no gradient.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from vit_jax.models import vit
from vit_jax.models.attention import ATTENTION
from vit_jax.models.configs import ViTConfig
from vit_jax.models.data_config import IMAGENET
from vit_jax.models.encoder import Encoder
from vit_jax.models.family import RESIZED, Family, Names, Param, under
from vit_jax.models.kernels import LARGEST_HEAD
from vit_jax.models.layers import (
    LAYER_SCALE,
    MLP,
    NORM,
    SWIGLU,
    ParamKeys,
    dropout,
    xavier_uniform,
)
from vit_jax.models.mae_config import MaeConfig
from vit_jax.models.position import LearnedPositions, sincos2d
from vit_jax.models.vit import Block, ViT, through
from vit_jax.models.vit_names import sized

EPSILON = 1e-6  # added to the variance of a patch's pixels


def scales_of(
    patches: Float[Array, "batch patches pixels"],
) -> tuple[Float[Array, "batch patches 1"], Float[Array, "batch patches 1"]]:
    """Mean and standard deviation (with n - 1) of the pixels of each patch (section 3, targets)."""
    mean = patches.mean(axis=-1, keepdims=True)
    return mean, jnp.sqrt(patches.var(axis=-1, keepdims=True, ddof=1) + EPSILON)


def image_of(
    patches: Float[Array, "batch patches pixels"], grid: tuple[int, int], patch: int
) -> Float[Array, "batch height width channels"]:
    """The inverse of `patches_of`."""
    rows, columns = grid
    x = patches.reshape(len(patches), rows, columns, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), rows * patch, columns * patch, -1)


def noise_of(
    images: UInt8[Array, "batch height width channels"], count: int, seed: int = 0
) -> Float[Array, "batch {count}"]:
    """Noise that follows from the pixels of an image alone, so that its mask is the same in every
    evaluation, whatever else is in its batch."""
    flat = images.reshape(len(images), -1).astype(jnp.uint32)
    key = jax.random.key(seed)
    number = (flat * jax.random.bits(key, flat.shape[1:], jnp.uint32)).sum(1, dtype=jnp.uint32)

    def of_one(number: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, number), (count,))

    return jax.vmap(of_one)(number)


def _fixed(c: ViTConfig, rngs: Any) -> LearnedPositions:
    """A table of sines and cosines, w before h; zeros for the class token.

    The authors' n frequencies are 10,000^(-i/n). `sincos2d` divides by n - 1.
    """
    table, (rows, columns), n = LearnedPositions(1, 1, 1, 0, rngs), c.grid, c.hidden_size // 4
    sines = sincos2d(rows, columns, c.hidden_size, temperature=10_000 ** ((n - 1) / n))
    table.grid = nnx.Param(jnp.asarray(sines))
    table.prefix = nnx.Param(jnp.zeros((1, c.hidden_size), jnp.float32))
    return table


class Mae(ViT):
    """The ViT, whose encoder sees the visible patches alone, and the decoder.

    Returns the prediction [batch, patches, P² channels] of the pixels of every patch, visible ones
    too. Only those of the masked ones are trained.
    """

    def __init__(self, c: MaeConfig, rngs: Any):
        super().__init__(c, rngs)  # type: ignore[arg-type]
        width, d = c.hidden_size, _decoder(c)
        dtype, normal = jnp.dtype(c.dtype), nnx.initializers.normal(0.02)
        how: dict[str, Any] = {"kernel_init": xavier_uniform, "dtype": dtype, "rngs": rngs}
        pixels = c.patch_size**2 * c.channels
        kernel = xavier_uniform(rngs.params(), (pixels, width), jnp.float32)
        self.embed.kernel = nnx.Param(kernel.reshape(self.embed.kernel.shape))
        self.cls = nnx.Param(normal(rngs.params(), (1, width), jnp.float32))
        self.mask_token = nnx.Param(normal(rngs.params(), (1, d.hidden_size), jnp.float32))
        self.pos_embed, self.decoder_pos_embed = _fixed(c, rngs), _fixed(d, rngs)
        self.decoder_embed = nnx.Linear(width, d.hidden_size, **how)
        self.decoder = Encoder(
            d.num_layers, lambda key: Block(d, ParamKeys(key)), drop_path=0.0, scan=c.scan,
            remat=c.remat, key=rngs.params(), name="decoder", names_kept=d.attention == "cudnn",
        )  # fmt: skip
        self.decoder_norm = nnx.LayerNorm(
            d.hidden_size, epsilon=c.layernorm_eps, dtype=dtype, rngs=rngs
        )
        self.decoder_pred = nnx.Linear(d.hidden_size, pixels, **how)

    def __call__(  # type: ignore[override]
        self,
        images: Float[Array, "batch height width channels"],
        key: Key[Array, ""] | None = None,
        *,
        return_weights: bool = False,
        gather=None,
        noise: Float[Array, "batch patches"] | None = None,
    ) -> tuple[Float[Array, "batch patches pixels"], dict[str, Array]]:
        """`noise` says which patches are visible. By default it is drawn from `key`; without a key,
        it is the same for every image.

        Also returns `mask` [batch, patches], true where a patch is masked; `encoded`, `block00` …
        of the class token and the visible patches, in the order of their noise; and
        `decoder_block00` … of all tokens.
        """
        c: Any = self.config
        d, first = _decoder(c), c.num_prefix
        drawn, after_positions, in_encoder, in_decoder = (
            [None] * 4 if key is None else jax.random.split(key, 4)
        )
        if noise is None:
            rows = (1, c.num_patches) if drawn is None else (len(images), c.num_patches)
            noise = jax.random.uniform(jax.random.key(0) if drawn is None else drawn, rows)
        noise = jnp.broadcast_to(noise, (len(images), c.num_patches))
        order = jnp.argsort(noise, axis=1)
        rank = jnp.argsort(order, axis=1)
        out = {"patches": self.embed(images), "mask": rank >= c.num_visible}
        x = self._add_tokens(out["patches"])
        visible = jnp.take_along_axis(x[:, first:], order[:, : c.num_visible, None], axis=1)
        x = jnp.concatenate([x[:, :first], visible], axis=1)
        x = dropout(x, c.dropout, after_positions)
        how: dict[str, Any] = {"return_weights": return_weights, "gather": gather}
        x, blocks = through(self.encoder, c, x, in_encoder, **how)
        x = self.norm(x)
        out |= blocks | {"encoded": x, "pre_logits": x[:, 0]}

        y = self.decoder_embed(x)
        masked = self.mask_token[...].astype(y.dtype)
        masked = jnp.broadcast_to(masked, (len(y), c.num_patches - c.num_visible, y.shape[-1]))
        patches = jnp.concatenate([y[:, first:], masked], axis=1)
        patches = jnp.take_along_axis(patches, rank[..., None], axis=1)
        grid, prefix = _without_gradient(self.decoder_pos_embed)
        table = jnp.concatenate([prefix, grid.reshape(-1, grid.shape[-1])]).astype(y.dtype)
        y = jnp.concatenate([y[:, :first], patches], axis=1) + table
        y, blocks = through(self.decoder, d, y, in_decoder, **how)
        out |= {f"decoder_{name}": value for name, value in blocks.items()}
        pixels = self.decoder_pred(self.decoder_norm(y)[:, first:])
        return pixels.astype(jnp.float32), out

    def _positions(self) -> tuple[Array, Array | None]:
        return _without_gradient(self.pos_embed)


def _without_gradient(table: LearnedPositions) -> tuple[Array, Array]:
    return jax.lax.stop_gradient(table.grid[...]), jax.lax.stop_gradient(table.prefix[...])


def _decoder(c: MaeConfig) -> ViTConfig:
    """The decoder's blocks. cuDNN computes their attention only where it can (kernels.py)."""
    d = c.decoder
    head = d.hidden_size // d.num_heads
    fits = head % 8 == 0 and head <= LARGEST_HEAD
    return d if fits or d.attention != "cudnn" else dataclasses.replace(d, attention="xla")


def forward_macs(c: MaeConfig) -> int:
    """Multiply-accumulates of one image through encoder and decoder."""
    d, pixels = c.decoder, c.patch_size**2 * c.channels
    into = c.num_tokens * c.hidden_size * d.hidden_size
    blocks = d.num_layers * vit.block_macs(d)
    return vit.forward_macs(c) + into + blocks + c.num_patches * d.hidden_size * pixels


DECODER = (
    Param("mask_token|decoder_pos_embed/prefix"),
    Param("decoder_pos_embed/grid", (None, None, "fsdp"), at_init=RESIZED),
    Param("decoder_(embed|pred)/kernel", ("fsdp", None), True, ((0,), (1,))),
    Param("decoder_(embed|pred)/bias"),
    *under("decoder_norm|decoder/block/norm[12]", NORM),
    *under("decoder/block/attention", ATTENTION),
    *under("decoder/block/mlp", (*MLP, *SWIGLU)),
    *under("decoder/block/scale[12]", LAYER_SCALE),
)

FAMILY = Family(
    "mae", MaeConfig, Mae, forward_macs,
    params=(*vit.FAMILY.params, *DECODER),
    names=(
        Names(
            r"mae_vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)_(?P<side>\d+)",
            lambda of: sized(of, gelu="exact", posemb_resize="huggingface"),
            ("mae_vit_base_patch16_224", "mae_vit_large_patch16_224", "mae_vit_huge_patch14_224"),
            IMAGENET,
        ),
    ),
    task="masked", encoder=vit.FAMILY,
)  # fmt: skip
