"""The Vision Transformer (arXiv 2010.11929), from image to logits, in the order of the paper."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.attention import Attention, AttentionPool
from vit_jax.models.encoder import REMAT, Encoder
from vit_jax.models.fields import check, check_choices, check_counts, check_patches
from vit_jax.models.layers import GELU, LayerScale, Mlp, SwiGlu, drop_path, dropout
from vit_jax.models.position import RESIZE_RULES, LearnedPositions, sincos2d
from vit_jax.models.resnet import STANDARDIZATION, Backbone, stride_of

CHOICES = {
    "pool": ("cls", "gap", "map", "cls_gap"),
    "posemb": ("learned", "sincos2d"),
    "posemb_resize": RESIZE_RULES,
    "prefix_positions": ("none", "class", "all"),
    "mlp": ("dense", "swiglu"),
    "gelu": tuple(GELU),
    "standardization": tuple(STANDARDIZATION),
    "remat": REMAT,
    "attention": ("auto", "xla", "cudnn"),
    "dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything that decides a ViT's parameters and arithmetic. Sizes as in table 1."""

    hidden_size: int = 768  # D
    num_layers: int = 12  # L
    num_heads: int = 12
    mlp_dim: int = 3072
    patch_size: int = 16  # P, pixels of the image, of hybrids too
    image_size: tuple[int, int] = (224, 224)  # (H, W); whole patches of it are read
    channels: int = 3  # C
    num_classes: int = 1000  # 0: no head, logits are the pre-logits
    pool: str = "cls"  # cls | gap | map | cls_gap: class token and mean side by side
    posemb: str = "learned"  # learned | sincos2d
    posemb_resize: str = "timm"  # the interpolation that the weights were made for (position.py)
    prefix_positions: str = "class"  # prefix tokens that have positions: none | class | all
    idle_class_token: bool = False  # a class token although `pool` does not read it
    distilled: bool = False  # DeiT's distillation token and its head (arXiv 2012.12877)
    registers: int = 0  # extra tokens (arXiv 2309.16588)
    resnet_layers: tuple[int, ...] | None = None  # hybrid: units of each stage; (): the stem alone
    groupnorm_eps: float = 1e-6  # of the hybrid's ResNet
    standardization: str = "google"  # of the hybrid's convolutions: google | timm
    pre_norm: bool = False  # LayerNorm before the encoder, as in CLIP
    embed_bias: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    mlp: str = "dense"  # dense | swiglu
    gelu: str = "tanh"  # tanh | exact | quick
    layernorm_eps: float = 1e-6
    layer_scale: float = 0.0  # initial value; 0 leaves it out
    norm_after_pool: bool = False  # the last LayerNorm follows the pooling
    pre_logits: bool = False  # the hidden tanh layer of the pre-training head
    head_bias: float = 0.0  # negative for sigmoid losses
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; grows linearly from 0 at the first
    scan: bool = False  # one compiled block over stacked layers
    remat: str = "none"  # none | full | dots
    attention: str = "auto"  # auto (cuDNN's where it can) | xla | cudnn
    dtype: str = "float32"  # of the arithmetic; parameters are float32

    def __post_init__(self):
        check_counts(
            self, "hidden_size", "num_layers", "num_heads", "mlp_dim", "patch_size", "channels"
        )
        for field in ("num_classes", "registers"):
            check(self, field, int, lambda n: n >= 0, "a whole number of at least 0")
        for field in ("dropout", "attention_dropout", "drop_path"):
            check(self, field, float, lambda rate: 0 <= rate < 1, "a number in [0, 1)")
        check(self, "layer_scale", float, lambda init: init >= 0, "a number of at least 0")
        for field in ("layernorm_eps", "groupnorm_eps"):
            check(self, field, float, lambda eps: eps > 0, "a positive number")
        check_choices(self, CHOICES)
        # A ResNet's features pad where patches cut, so only tiled images have a known meaning.
        hybrid = self.resnet_layers is not None
        check_patches(self.image_size, self.patch_size, remainder=not hybrid)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}"
            )
        if self.posemb == "sincos2d" and self.hidden_size % 4:
            raise ValueError(
                f"posemb 'sincos2d' needs hidden_size % 4 == 0, not {self.hidden_size}"
            )
        if self.resnet_layers is not None and self.patch_size % stride_of(self.resnet_layers):
            raise ValueError(
                f"patch_size of a hybrid is a multiple of its ResNet's stride, "
                f"{stride_of(self.resnet_layers)}, not {self.patch_size}"
            )
        if self.distilled and self.pool != "cls":
            raise ValueError(f"distilled needs pool 'cls', not {self.pool!r}")
        if self.attention == "cudnn" and self.attention_dropout:
            raise ValueError("attention 'cudnn' has no attention_dropout; use attention 'xla'")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError("attention 'cudnn' needs dtype bfloat16")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def class_token(self) -> bool:
        """Whether there is a class token."""
        return self.pool in ("cls", "cls_gap") or self.idle_class_token

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return self.class_token + self.distilled + self.registers

    @property
    def num_prefix_positions(self) -> int:
        """How many of them, from the first, have a position of their own."""
        with_position = {"none": 0, "class": self.class_token + self.distilled}
        return with_position.get(self.prefix_positions, self.num_prefix)

    @property
    def num_tokens(self) -> int:
        """Length of the encoder's sequence: class token, registers and patches."""
        return self.num_prefix + self.grid[0] * self.grid[1]

    @property
    def num_features(self) -> int:
        """Width of what the head reads."""
        return self.hidden_size * (2 if self.pool == "cls_gap" else 1)


class PatchEmbed(nnx.Module):
    """E of eq. 1: every P x P patch flattened and projected, as one matrix product.

    What is left at the bottom and right edge is not read, as in a convolution without padding.
    """

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
        batch, height, width, _ = images.shape
        rows, columns = height // p, width // p
        x = images[:, : rows * p, : columns * p].astype(self.dtype)
        x = x.reshape(batch, rows, p, columns, p, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, p * p * channels)
        kernel = self.kernel[...].astype(self.dtype).reshape(p * p * channels, hidden)
        x = x @ kernel
        return x + self.bias[...].astype(self.dtype) if self.has_bias else x


class Block(nnx.Module):
    """One pre-norm encoder block: z' = MSA(LN(z)) + z (eq. 2), z = MLP(LN(z')) + z' (eq. 3)."""

    def __init__(self, c: ViTConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(c.dtype)
        norm: dict[str, Any] = {"epsilon": c.layernorm_eps, "dtype": dtype, "rngs": rngs}
        self.norm1 = nnx.LayerNorm(c.hidden_size, **norm)
        self.attention = Attention(
            c.hidden_size, c.num_heads, dropout=c.attention_dropout, backend=c.attention,
            qk_norm=c.qk_norm, qkv_bias=c.qkv_bias, epsilon=c.layernorm_eps, dtype=dtype, rngs=rngs,
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

    def __call__(
        self,
        z: Float[Array, "batch tokens width"],
        key: Key[Array, ""] | None,
        drop_path_rate: Float[Array, ""],
        return_weights: bool = False,
    ) -> tuple[
        Float[Array, "batch tokens width"], Float[Array, "batch heads tokens tokens"] | None
    ]:
        keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
        path = keys[3:] if self.drops_path else [None, None]
        y, weights = self.attention(self.norm1(z), keys[0], return_weights)
        y = dropout(y, self.dropout, keys[1])
        z = z + drop_path(self.scale1(y) if self.scaled else y, drop_path_rate, path[0])
        y = self.mlp(self.norm2(z), keys[2])
        z = z + drop_path(self.scale2(y) if self.scaled else y, drop_path_rate, path[1])
        return z, weights


class ViT(nnx.Module):
    """Patches (of the image, or of a ResNet's features), tokens, positions, encoder, head."""

    def __init__(self, c: ViTConfig, rngs: nnx.Rngs):
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
            c.num_layers, lambda key: Block(c, nnx.Rngs(params=key)), drop_path=c.drop_path,
            scan=c.scan, remat=c.remat, key=rngs.params(),
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
            self.head = self._make_head(width if c.pre_logits else c.num_features, rngs)
        if c.num_classes and c.distilled:
            self.head_dist = self._make_head(width, rngs)

    def _make_head(self, features: int, rngs: nnx.Rngs) -> nnx.Linear:
        """Zero-initialised: a fresh head leaves the pre-trained features alone (section 3.2)."""
        c = self.config
        return nnx.Linear(
            features, c.num_classes, kernel_init=nnx.initializers.zeros,
            bias_init=nnx.initializers.constant(c.head_bias), dtype=jnp.dtype(c.dtype), rngs=rngs,
        )  # fmt: skip

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        key: Key[Array, ""] | None = None,
        *,
        return_weights: bool = False,
        gather=None,
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
        x, blocks = self.encoder(x, in_encoder, return_weights=return_weights, gather=gather)
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
            # DeiT's prediction: the mean of what the two tokens say (arXiv 2012.12877, section 4).
            out["logits_dist"] = self.head_dist(tokens[:, 1]).astype(jnp.float32)
            out["logits_cls"] = logits.astype(jnp.float32)
            logits = (out["logits_cls"] + out["logits_dist"]) / 2
        return logits.astype(jnp.float32), out

    def _add_tokens(self, patches):
        """z_0 of eq. 1: [class; distillation; registers; patches], positions where there are."""
        c, dtype = self.config, patches.dtype
        batch, _, width = patches.shape
        if c.posemb == "learned":
            grid = self.pos_embed.grid[...]
        else:
            grid = jnp.asarray(sincos2d(*c.grid, width))
        patches = patches + grid.astype(dtype).reshape(1, -1, width)
        names = {"cls": c.class_token, "dist": c.distilled, "registers": c.registers > 0}
        prefix = [getattr(self, name)[...] for name, there in names.items() if there]
        if not prefix:
            return patches
        tokens = jnp.concatenate(prefix)
        if c.posemb == "learned" and c.num_prefix_positions:
            tokens = tokens.at[: c.num_prefix_positions].add(self.pos_embed.prefix[...])
        tokens = jnp.broadcast_to(tokens.astype(dtype), (batch, *tokens.shape))
        return jnp.concatenate([tokens, patches], axis=1)

    def _pool(self, x):
        """y of eq. 4: the class token, the mean or attention pool of the patch tokens, or two."""
        c = self.config
        patches = x[:, c.num_prefix :]
        if c.pool == "map":
            return self.pool(patches)
        parts = {"cls": lambda: x[:, 0], "gap": lambda: patches.mean(axis=1)}
        return jnp.concatenate([parts[part]() for part in c.pool.split("_")], axis=-1)
