"""The Vision Transformer (arXiv 2010.11929), from image to logits, in the order of the paper."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.attention import Attention, AttentionPool
from vit_jax.models.layers import LayerScale, Mlp, drop_path, dropout
from vit_jax.models.position import LearnedPositions, sincos2d

REMAT_POLICIES = {
    "full": None,  # keep a block's input alone
    "dots": "dots_with_no_batch_dims_saveable",  # keep the outputs of the dense layers too
}


CHOICES = {
    "pool": ("cls", "gap", "map"),
    "posemb": ("learned", "sincos2d"),
    "gelu": ("exact", "tanh"),
    "remat": ("none", *REMAT_POLICIES),
    "attention": ("xla", "cudnn"),
    "dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything that decides a ViT's parameters and arithmetic. Sizes as in table 1."""

    hidden_size: int = 768  # D
    num_layers: int = 12  # L
    num_heads: int = 12
    mlp_dim: int = 3072
    patch_size: int = 16  # P
    image_size: tuple[int, int] = (224, 224)  # (H, W)
    channels: int = 3  # C
    num_classes: int = 1000  # 0: no head, logits are the pre-logits
    pool: str = "cls"  # cls | gap | map
    posemb: str = "learned"  # learned | sincos2d
    pre_logits: bool = False  # the hidden tanh layer of the pre-training head
    head_bias: float = 0.0  # negative for sigmoid losses
    registers: int = 0  # extra tokens (arXiv 2309.16588)
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; grows linearly from 0 at the first
    layer_scale: float = 0.0  # initial value; 0 leaves it out
    qk_norm: bool = False
    gelu: str = "tanh"  # tanh | exact
    layernorm_eps: float = 1e-6
    scan: bool = False  # one compiled block over stacked layers
    remat: str = "none"  # none | full | dots
    attention: str = "xla"  # xla | cudnn
    dtype: str = "float32"  # of the arithmetic; parameters are float32

    def __post_init__(self):
        for field in (
            "hidden_size", "num_layers", "num_heads", "mlp_dim", "patch_size", "channels",
        ):  # fmt: skip
            _check(self, field, int, lambda n: n >= 1, "a whole number of at least 1")
        for field in ("num_classes", "registers"):
            _check(self, field, int, lambda n: n >= 0, "a whole number of at least 0")
        for field in ("dropout", "attention_dropout", "drop_path"):
            _check(self, field, float, lambda rate: 0 <= rate < 1, "a number in [0, 1)")
        _check(self, "layer_scale", float, lambda init: init >= 0, "a number of at least 0")
        _check(self, "layernorm_eps", float, lambda eps: eps > 0, "a positive number")
        for field, allowed in CHOICES.items():
            _check(self, field, str, allowed.__contains__, f"one of {', '.join(allowed)}")
        sides = self.image_size
        if any(side < 1 or side % self.patch_size for side in sides):
            down = tuple(max(1, side // self.patch_size) * self.patch_size for side in sides)
            up = tuple(max(1, -(-side // self.patch_size)) * self.patch_size for side in sides)
            raise ValueError(
                f"image_size {tuple(sides)} is not divisible by patch_size {self.patch_size}; "
                f"{' or '.join(map(str, sorted({down, up})))} would work"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}"
            )
        if self.posemb == "sincos2d" and self.hidden_size % 4:
            raise ValueError(
                f"posemb 'sincos2d' needs hidden_size % 4 == 0, not {self.hidden_size}"
            )
        if self.attention == "cudnn" and self.attention_dropout:
            raise ValueError("attention 'cudnn' has no attention_dropout; use attention 'xla'")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError("attention 'cudnn' needs dtype bfloat16")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Length of the encoder's sequence: class token, registers and patches."""
        return (self.pool == "cls") + self.registers + self.grid[0] * self.grid[1]


def _check(c: ViTConfig, field: str, kind: type, fits: Callable, wanted: str) -> None:
    value = getattr(c, field)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    right = number and (kind is float or value == int(value)) if kind is not str else True
    if not right or not fits(value):
        raise ValueError(f"{field} is {wanted}, not {value!r}")


class PatchEmbed(nnx.Module):
    """E of eq. 1: every P x P patch flattened and projected, as one matrix product."""

    def __init__(self, c: ViTConfig, rngs: nnx.Rngs):
        p = c.patch_size
        self.kernel = nnx.Param(
            nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)(
                rngs.params(), (p, p, c.channels, c.hidden_size), jnp.float32
            )
        )
        self.bias = nnx.Param(jnp.zeros((c.hidden_size,), jnp.float32))
        self.dtype = jnp.dtype(c.dtype)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches width"]:
        p, _, channels, hidden = self.kernel.shape
        batch, height, width, _ = images.shape
        rows, columns = height // p, width // p
        x = images.astype(self.dtype).reshape(batch, rows, p, columns, p, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, p * p * channels)
        kernel = self.kernel[...].astype(self.dtype).reshape(p * p * channels, hidden)
        return x @ kernel + self.bias[...].astype(self.dtype)


class Block(nnx.Module):
    """One pre-norm encoder block: z' = MSA(LN(z)) + z (eq. 2), z = MLP(LN(z')) + z' (eq. 3)."""

    def __init__(self, c: ViTConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(c.dtype)
        norm: dict[str, Any] = {"epsilon": c.layernorm_eps, "dtype": dtype, "rngs": rngs}
        self.norm1 = nnx.LayerNorm(c.hidden_size, **norm)
        self.attention = Attention(
            c.hidden_size, c.num_heads, dropout=c.attention_dropout, backend=c.attention,
            qk_norm=c.qk_norm, epsilon=c.layernorm_eps, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.norm2 = nnx.LayerNorm(c.hidden_size, **norm)
        self.mlp = Mlp(
            c.hidden_size, c.mlp_dim, gelu=c.gelu, dropout=c.dropout, dtype=dtype, rngs=rngs
        )
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


class Encoder(nnx.Module):
    """L blocks, unrolled (`block00`, `block01`, …) or stacked under one scan (`block`).

    Layer l's parameters and dropout draws are the same in both.
    """

    def __init__(self, c: ViTConfig, rngs: nnx.Rngs):
        keys = jax.random.split(rngs.params(), c.num_layers)

        def make(key):
            return Block(c, nnx.Rngs(params=key))

        if c.scan:
            graph, _ = nnx.split(nnx.eval_shape(lambda: make(keys[0])))
            stack = jax.vmap(lambda key: nnx.to_pure_dict(nnx.state(make(key), nnx.Param)))
            self.block = nnx.merge(graph, stack(keys))
        else:
            for layer in range(c.num_layers):
                setattr(self, f"block{layer:02d}", make(keys[layer]))
        self.num_layers, self.drop_path, self.scan, self.remat = (
            c.num_layers, c.drop_path, c.scan, c.remat,
        )  # fmt: skip

    def __call__(self, z, key, *, return_weights=False, gather=None):
        """`gather` maps one block's parameters to those it computes with (see parallel/)."""
        rates = jnp.linspace(0.0, self.drop_path, self.num_layers, dtype=jnp.float32)
        keys = None if key is None else jax.random.split(key, self.num_layers)
        first = self.block if self.scan else self.block00
        graph, _ = nnx.split(first)

        def body(z, layer):
            params, key, rate = layer
            block = nnx.merge(graph, params if gather is None else gather(params))
            z, weights = block(z, key, rate, return_weights)
            return z, (z, weights)

        if self.remat != "none":
            name = REMAT_POLICIES[self.remat]
            policy = getattr(jax.checkpoint_policies, name) if name else None
            body = jax.checkpoint(body, prevent_cse=not self.scan, policy=policy)
        if self.scan:
            z, (outputs, weights) = jax.lax.scan(body, z, (_params(self.block), keys, rates))
        else:
            outputs, weights = [], []
            for i in range(self.num_layers):
                layer_key = None if keys is None else keys[i]
                params = _params(getattr(self, f"block{i:02d}"))
                z, (output, weight) = body(z, (params, layer_key, rates[i]))
                outputs.append(output)
                weights.append(weight)
        out = {f"block{i:02d}": outputs[i] for i in range(self.num_layers)}
        if return_weights:
            out |= {f"attention{i:02d}": weights[i] for i in range(self.num_layers)}
        return z, out


def _params(module: nnx.Module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


class ViT(nnx.Module):
    """Patches, class token, positions, encoder, head."""

    def __init__(self, c: ViTConfig, rngs: nnx.Rngs):
        dtype, width = jnp.dtype(c.dtype), c.hidden_size
        self.config = c
        self.embed = PatchEmbed(c, rngs)
        if c.pool == "cls":
            self.cls = nnx.Param(jnp.zeros((1, width), jnp.float32))
        if c.registers:
            normal = nnx.initializers.normal(stddev=0.02)
            self.registers = nnx.Param(normal(rngs.params(), (c.registers, width), jnp.float32))
        if c.posemb == "learned":
            self.pos_embed = LearnedPositions(*c.grid, width, c.pool == "cls", rngs)
        self.encoder = Encoder(c, rngs)
        self.norm = nnx.LayerNorm(width, epsilon=c.layernorm_eps, dtype=dtype, rngs=rngs)
        if c.pool == "map":
            self.pool = AttentionPool(
                width, c.num_heads, c.mlp_dim, gelu=c.gelu, epsilon=c.layernorm_eps,
                dtype=dtype, rngs=rngs,
            )  # fmt: skip
        if c.pre_logits:
            self.pre_logits = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
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
        c = self.config
        after_positions, in_encoder = (None, None) if key is None else jax.random.split(key)
        out = {"patches": self.embed(images)}
        x = self._add_tokens(out["patches"])
        x = dropout(x, c.dropout, after_positions)
        x, blocks = self.encoder(x, in_encoder, return_weights=return_weights, gather=gather)
        x = self.norm(x)  # LN of eq. 4, over the whole sequence
        out |= blocks | {"encoded": x}
        x = self._pool(x)
        if c.pre_logits:
            x = jnp.tanh(self.pre_logits(x))
        out["pre_logits"] = x
        logits = self.head(x) if c.num_classes else x
        return logits.astype(jnp.float32), out

    def _add_tokens(self, patches):
        """z_0 of eq. 1: [class; registers; patches + positions]."""
        c, dtype = self.config, patches.dtype
        batch, _, width = patches.shape
        prefix = []
        if c.posemb == "learned":
            patches = patches + self.pos_embed.grid[...].astype(dtype).reshape(1, -1, width)
        else:
            patches = patches + jnp.asarray(sincos2d(*c.grid, width), dtype).reshape(1, -1, width)
        if c.pool == "cls":
            cls = self.cls[...]
            prefix.append(cls + self.pos_embed.prefix[...] if c.posemb == "learned" else cls)
        if c.registers:
            prefix.append(self.registers[...])
        tokens = [jnp.broadcast_to(t.astype(dtype), (batch, *t.shape)) for t in prefix]
        return jnp.concatenate([*tokens, patches], axis=1)

    def _pool(self, x):
        """y of eq. 4: the class token, or the mean or attention pool of the patch tokens."""
        if self.config.pool == "cls":
            return x[:, 0]
        patches = x[:, self.config.registers :]
        return self.pool(patches) if self.config.pool == "map" else patches.mean(axis=1)
