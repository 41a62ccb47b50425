"""The Vision Transformer (arXiv 2010.11929), from image to logits, in the order of the paper."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from vit_jax.models.attention import ATTENTION, ATTENTION_POOL, Attention, AttentionPool
from vit_jax.models.configs import ViTConfig, stride_of
from vit_jax.models.encoder import KEPT, Encoder
from vit_jax.models.family import BEFORE, BLOCK, CHANNELS, FRESH, RESIZED, Family, Param, under
from vit_jax.models.layers import (
    HEAD,
    LAYER_SCALE,
    MLP,
    NORM,
    SWIGLU,
    LayerScale,
    Mlp,
    ParamKeys,
    SwiGlu,
    drop_path,
    dropout,
    make_head,
    norm_of_rows,
)
from vit_jax.models.position import LearnedPositions, sincos2d
from vit_jax.models.resnet import BACKBONE, Backbone, hybrid_macs
from vit_jax.models.vit_names import NAMES

PATCHES = (
    Param("embed/kernel", (None, None, None, "fsdp"), decays=True, depth=BEFORE, at_init=CHANNELS),
    Param("embed/bias", depth=BEFORE),
)


def patches_of(
    images: Float[Array, "batch height width channels"], patch: int
) -> Float[Array, "batch patches pixels"]:
    """The patches of images, row by row; the numbers of one in the order of its rows, columns and
    channels. Pixels at the bottom and right edge that fill no patch are left out."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    x = images[:, : rows * patch, : columns * patch]
    x = x.reshape(batch, rows, patch, columns, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch * patch * channels)


class PatchEmbed(nnx.Module):
    """E of eq. 1: each P x P patch is flattened and projected, as one matrix product."""

    def __init__(self, patch: int, channels: int, width: int, *, bias: bool = True, dtype, rngs):
        init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        self.kernel = nnx.Param(init(rngs.params(), (patch, patch, channels, width), jnp.float32))
        if bias:
            self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.has_bias, self.dtype = bias, dtype

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches width"]:
        p, _, channels, hidden = self.kernel.shape
        x = patches_of(images.astype(self.dtype), p)
        kernel = self.kernel[...].astype(self.dtype).reshape(p * p * channels, hidden)
        x = x @ kernel
        return x + self.bias[...].astype(self.dtype) if self.has_bias else x


class Block(nnx.Module):
    """One pre-norm encoder block: z' = MSA(LN(z)) + z (eq. 2), z = MLP(LN(z')) + z' (eq. 3)."""

    def __init__(self, c: ViTConfig, rngs: Any):
        dtype = jnp.dtype(c.dtype)
        norm: dict[str, Any] = {"epsilon": c.layernorm_eps, "dtype": dtype, "rngs": rngs}
        self.norm1 = nnx.LayerNorm(c.hidden_size, **norm)
        self.attention = Attention(
            c.hidden_size, c.num_heads, tokens=c.num_tokens, dropout=c.attention_dropout,
            backend=c.attention, qk_norm=c.qk_norm, qkv_bias=c.qkv_bias, epsilon=c.layernorm_eps,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.norm2 = nnx.LayerNorm(c.hidden_size, **norm)
        self.mlp: Mlp | SwiGlu
        shared: dict[str, Any] = {"dropout": c.dropout, "dtype": dtype, "rngs": rngs}
        if c.mlp == "swiglu":
            self.mlp = SwiGlu(c.hidden_size, c.mlp_dim, **shared)
        else:
            self.mlp = Mlp(c.hidden_size, c.mlp_dim, gelu=c.gelu, **shared)
        self.scaled = c.layer_scale > 0.0
        if self.scaled:
            self.scale1 = LayerScale(c.hidden_size, c.layer_scale)
            self.scale2 = LayerScale(c.hidden_size, c.layer_scale)
        self.dropout, self.drops_path = c.dropout, c.drop_path > 0.0
        self.on_rows = c.attention == "cudnn"

    def __call__(
        self,
        z: Float[Array, "batch tokens width"],
        key: Key[Array, ""] | None = None,
        drop_path_rate: Float[Array, ""] | float = 0.0,
        return_weights: bool = False,
        attention_added: Float[Array, "batch heads tokens tokens"] | None = None,
    ) -> tuple[
        Float[Array, "batch tokens width"], Float[Array, "batch heads tokens tokens"] | None
    ]:
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
        path = keys[3:] if self.drops_path else [None, None]
        shape = z.shape
        weights = None
        if self.on_rows and not return_weights:
            # One matrix [batch x tokens, width], which XLA's GPU compiler keeps in one layout: with
            # three dimensions, it moves the batch to the end and back at every norm.
            z = z.reshape(-1, shape[-1])
            norm1, norm2 = norm_of_rows(self.norm1), norm_of_rows(self.norm2)
            y = self.attention.on_rows(z, shape[0], norm1)
        else:
            norm2 = self.norm2
            y, weights = self.attention(self.norm1(z), keys[0], return_weights, attention_added)
        y = dropout(y, self.dropout, keys[1])
        y = self.scale1(y) if self.scaled else y
        z = z + drop_path(y.reshape(shape), drop_path_rate, path[0]).reshape(z.shape)
        z = checkpoint_name(z, KEPT)
        y = self.mlp(norm2(z), keys[2])
        y = self.scale2(y) if self.scaled else y
        z = z + drop_path(y.reshape(shape), drop_path_rate, path[1]).reshape(z.shape)
        return z.reshape(shape), weights


def through(
    stack: Encoder, c: ViTConfig, x: Float[Array, "batch tokens width"],
    key: Key[Array, ""] | None, *, return_weights: bool,
    added: Callable[[int], Array | None] = lambda empty: None, **more: Any,
) -> tuple[Float[Array, "batch tokens width"], dict[str, Array]]:  # fmt: skip
    """Tokens behind a stack of blocks of this config, and what the stack returns beside them.

    An empty token, which the blocks mask, may stand behind the others for cuDNN's attention
    (models/attention.py). `added(empty)` is the stack's `added`, for so many further tokens.
    """
    empty = 0 if return_weights else c.padded_tokens - c.num_tokens
    if empty:
        x = jnp.pad(x, ((0, 0), (0, empty), (0, 0)))
    x, blocks = stack(x, key, return_weights=return_weights, added=added(empty), **more)
    if empty:
        x, blocks = jax.tree.map(lambda z: z[:, : c.num_tokens], (x, blocks))
    return x, blocks


class ViT(nnx.Module):
    """Patches (of the image, or of a ResNet's features), tokens, positions, encoder, head."""

    block: ClassVar[Any] = Block  # of the encoder

    def __init__(self, c: ViTConfig, rngs: Any):
        dtype, width = jnp.dtype(c.dtype), c.hidden_size
        norm: dict[str, Any] = {"epsilon": c.layernorm_eps, "dtype": dtype, "rngs": rngs}
        self.config = c
        patch, channels = c.patch_size, c.channels
        if c.resnet_layers is not None:
            self.backbone = Backbone(
                c.resnet_layers, 1, c.channels, preactivation=False, padding="same",
                groupnorm_eps=c.groupnorm_eps, standardization=c.standardization,
                remat=c.remat, dtype=dtype, rngs=rngs,
            )  # fmt: skip
            patch, channels = patch // stride_of(c.resnet_layers), self.backbone.features
        self.embed = PatchEmbed(patch, channels, width, bias=c.embed_bias, dtype=dtype, rngs=rngs)
        if c.class_token:
            self.cls = nnx.Param(jnp.zeros((1, width), jnp.float32))
        normal = nnx.initializers.normal(stddev=0.02)
        if c.distilled:
            self.dist = nnx.Param(normal(rngs.params(), (1, width), jnp.float32))
        if c.registers:
            self.registers = nnx.Param(normal(rngs.params(), (c.registers, width), jnp.float32))
        if c.posemb == "learned":
            self.pos_embed = LearnedPositions(*c.grid, width, c.num_prefix_positions, rngs)
        if c.pre_norm:
            self.pre_norm = nnx.LayerNorm(width, **norm)
        self.encoder = Encoder(
            c.num_layers, lambda key: self.block(c, ParamKeys(key)), drop_path=c.drop_path,
            scan=c.scan, remat=c.remat, key=rngs.params(), names_kept=c.attention == "cudnn",
        )  # fmt: skip
        self.norm = nnx.LayerNorm(c.num_features if c.norm_after_pool else width, **norm)
        if c.pool == "map":
            self.pool = AttentionPool(
                width, c.num_heads, c.mlp_dim, gelu=c.gelu, epsilon=c.layernorm_eps,
                dtype=dtype, rngs=rngs,
            )  # fmt: skip
        if c.pre_logits:
            self.pre_logits = nnx.Linear(c.num_features, width, dtype=dtype, rngs=rngs)
        if c.num_classes:
            features = width if c.pre_logits else c.num_features
            self.head = make_head(features, c.num_classes, bias=c.head_bias, dtype=dtype, rngs=rngs)
        if c.num_classes and c.distilled:
            self.head_dist = make_head(
                width, c.num_classes, bias=c.head_bias, dtype=dtype, rngs=rngs
            )

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        key: Key[Array, ""] | None = None,
        *,
        return_weights: bool = False,
        gather=None,
        attention_added: Float[Array, "layers batch heads tokens tokens"] | None = None,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        c = self.config
        after_positions, in_encoder = (None, None) if key is None else jax.random.split(key)
        out: dict[str, Array] = {}
        if c.resnet_layers is not None:
            images, out = self.backbone(images)
        out["patches"] = self.embed(images)
        x = self._add_tokens(out["patches"])
        x = dropout(x, c.dropout, after_positions)
        if c.pre_norm:
            x = self.pre_norm(x)
        x, blocks = through(
            self.encoder, c, x, in_encoder, return_weights=return_weights, gather=gather,
            added=self._added, attention_added=attention_added,
        )  # fmt: skip
        if not c.norm_after_pool:
            x = self.norm(x)  # LN of eq. 4, over the whole sequence
        out |= blocks | {"encoded": x}
        tokens, x = x, self._pool(x)
        if c.norm_after_pool:
            x = self.norm(x)
        if c.pre_logits:
            x = jnp.tanh(self.pre_logits(x))
        out["pre_logits"] = x
        logits = self.head(x) if c.num_classes else x
        if c.distilled and c.num_classes:
            # DeiT's prediction: the mean of both heads' logits (arXiv 2012.12877, section 4).
            out["logits_dist"] = self.head_dist(tokens[:, 1]).astype(jnp.float32)
            out["logits_cls"] = logits.astype(jnp.float32)
            logits = (out["logits_cls"] + out["logits_dist"]) / 2
        return logits.astype(jnp.float32), out

    def _add_tokens(self, patches):
        """z_0 of eq. 1: [class; distillation; registers; patches], with their positions."""
        c, dtype = self.config, patches.dtype
        batch, _, width = patches.shape
        grid, of_prefix = self._positions()
        patches = patches + grid.astype(dtype).reshape(1, -1, width)
        names = {"cls": c.class_token, "dist": c.distilled, "registers": c.registers > 0}
        prefix = [getattr(self, name)[...] for name, exists in names.items() if exists]
        if not prefix:
            return patches
        tokens = jnp.concatenate(prefix)
        if of_prefix is not None:
            tokens = tokens.at[: c.num_prefix_positions].add(of_prefix)
        tokens = jnp.broadcast_to(tokens.astype(dtype), (batch, *tokens.shape))
        return jnp.concatenate([tokens, patches], axis=1)

    def _positions(self) -> tuple[Array, Array | None]:
        """Positions of the patches [rows, columns, D], and of the prefix tokens that have one."""
        c = self.config
        if c.posemb != "learned":
            return jnp.asarray(sincos2d(*c.grid, c.hidden_size)), None
        return self.pos_embed.grid[...], (
            self.pos_embed.prefix[...] if c.num_prefix_positions else None
        )

    def _added(self, empty: int) -> Float[Array, "layers tokens width"] | None:
        """What is added before each block, with `empty` further tokens; None: nothing."""
        return None

    def _pool(self, x):
        """y of eq. 4: the class token, mean or attention pool of the patches, or two of them."""
        c = self.config
        patches = x[:, c.num_prefix :]
        if c.pool == "map":
            return self.pool(patches)
        parts = {"cls": lambda: x[:, 0], "gap": lambda: patches.mean(axis=1)}
        return jnp.concatenate([parts[part]() for part in c.pool.split("_")], axis=-1)


def block_macs(c: ViTConfig) -> int:
    """Multiply-accumulates of one image in a block: qkv and out, q·kᵀ and ·v, MLP."""
    n, d = c.num_tokens, c.hidden_size
    mlp = (3 if c.mlp == "swiglu" else 2) * d * c.mlp_dim
    return n * d * 4 * d + 2 * n * n * d + n * mlp


def forward_macs(c: ViTConfig) -> int:
    """Multiply-accumulates of one image through a ViT or a hybrid."""
    d = c.hidden_size
    patches = c.grid[0] * c.grid[1]
    embed = patches * c.patch_size**2 * c.channels * d
    if c.resnet_layers is not None:
        embed = hybrid_macs(c.resnet_layers, c.image_size, c.channels, c.patch_size, d)
    pool = 0
    if c.pool == "map":
        pool = patches * 2 * d * d + 2 * d * d + 2 * patches * d + 2 * d * c.mlp_dim
    pre_logits = c.num_features * d if c.pre_logits else 0
    head = (d if c.pre_logits else c.num_features) * c.num_classes * (1 + c.distilled)
    return embed + c.num_layers * block_macs(c) + pool + pre_logits + head


FAMILY = Family(
    "vit", ViTConfig, ViT, forward_macs,
    params=(
        *PATCHES,
        Param("cls|dist|registers|pos_embed/prefix", depth=BEFORE),
        Param("pos_embed/grid", (None, None, "fsdp"), depth=BEFORE, at_init=RESIZED),
        *under("pre_norm", NORM, BEFORE),
        *under("backbone", BACKBONE, BEFORE),
        *under("encoder/block/norm[12]", NORM, BLOCK),
        *under("encoder/block/attention", ATTENTION, BLOCK),
        *under("encoder/block/mlp", (*MLP, *SWIGLU), BLOCK),
        *under("encoder/block/scale[12]", LAYER_SCALE, BLOCK),
        *under("norm", NORM),
        *under("pool", ATTENTION_POOL),
        Param("pre_logits/kernel", ("fsdp", None), True, ((0,), (1,)), at_init=FRESH),
        Param("pre_logits/bias", at_init=FRESH),
        *under("head|head_dist", HEAD),
    ),
    names=NAMES,
    parts=("resnet_layers", "distilled", "registers", "mlp", "pre_norm"),
    layer=lambda c, rngs: (Block(c, rngs), (c.padded_tokens, c.hidden_size)),
)  # fmt: skip
