"""Axial-ResNet (arXiv 2003.07853): in a bottleneck, position-sensitive attention along the height
and then along the width takes the place of the 3 x 3 convolution.

As in the authors' published code, with group norm in the place of batch norm. Its norm of logits is
one of each head over all of an image's lines. `axial_resnet50` has the widths of a ResNet, as the
ViT paper's AxialResNet (arXiv 2010.11929, appendix D.6).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.models.configs import AxialResNetConfig
from vit_jax.models.convolution import StdConv
from vit_jax.models.family import BEFORE, CHANNELS, Family, Names, Param, under
from vit_jax.models.layers import HEAD, NORM
from vit_jax.models.resnet import (
    ConvNet,
    Root,
    first_layer,
    group_norm,
    positions,
    run_units,
)
from vit_jax.models.resnet_v1 import WIDTH, sizes_of
from vit_jax.models.sasa import einsum32

# Width of the attention in the first stage (L: 128 values), and how much wider a unit's output is.
WIDTHS = {"s": (64, 2), "m": (96, 2), "l": (128, 2)}
WIDE = 255  # span of S, M and L in the authors' code for TensorFlow, which the paper's sizes count


class AxialAttention(nnx.Module):
    """Attention along the next to last axis, with qᵀr^q + kᵀr^k added to the logits and r^v to the
    values (eq. 4). Queries and keys are half as wide as values. `relative` (2 span - 1, 2 dim) has
    r^q, r^k and r^v side by side for each offset; all heads share it (section 3.2)."""

    def __init__(self, width: int, *, heads: int, span: int, eps: float, dtype, rngs):
        dim = width // heads
        norm: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.qkv = nnx.Linear(
            width, 2 * width, use_bias=False, dtype=dtype, rngs=rngs,
            kernel_init=nnx.initializers.normal(width**-0.5),
        )  # fmt: skip
        self.qkv_norm = group_norm(2 * width, eps, **norm)
        embed = nnx.initializers.normal(dim**-0.5)
        self.relative = nnx.Param(embed(rngs.params(), (2 * span - 1, 2 * dim), jnp.float32))
        # Of the products of queries and keys, of queries and r^q, and of keys and r^k.
        self.logit_norm = nnx.GroupNorm(
            3 * heads, 3 * heads, epsilon=eps, use_fast_variance=False, dtype=jnp.float32, rngs=rngs
        )
        self.value_norm, self.place_norm = (group_norm(width, eps, **norm) for _ in range(2))
        self.heads, self.span, self.dtype = heads, span, dtype

    def __call__(
        self, x: Float[Array, "batch lines n width"]
    ) -> Float[Array, "batch lines n width"]:
        batch, lines, n, width = x.shape
        dim = width // self.heads
        qkv = self.qkv_norm(self.qkv(x)).reshape(batch, lines, n, self.heads, 2 * dim)
        q, k, v = jnp.split(qkv, (dim // 2, dim), axis=-1)
        offset = jnp.arange(n) - jnp.arange(n)[:, None] + self.span - 1  # [query, key]
        near = (offset >= 0) & (offset < 2 * self.span - 1)
        table = self.relative[...].astype(self.dtype)[jnp.clip(offset, 0, 2 * self.span - 2)]
        r_q, r_k, r_v = jnp.split(table, (dim // 2, dim), axis=-1)
        logits = jnp.concatenate([
            einsum32("blihd,bljhd->blijh", q, k), einsum32("blihd,ijd->blijh", q, r_q),
            einsum32("bljhd,ijd->blijh", k, r_k),
        ], axis=-1)  # fmt: skip
        logits = self.logit_norm(logits).reshape(batch, lines, n, n, 3, self.heads).sum(axis=-2)
        logits = jnp.where(near[..., None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=3).astype(self.dtype)
        values = jnp.einsum("blijh,bljhd->blihd", weights, v).reshape(x.shape)
        places = jnp.einsum("blijh,ijd->blihd", weights, r_v).reshape(x.shape)
        return self.value_norm(values) + self.place_norm(places)


class AxialUnit(nnx.Module):
    """A bottleneck: 1 x 1 to `width` channels, attention along the height and along the width, an
    average pool with the stride, 1 x 1 to `outputs`."""

    def __init__(
        self, inputs: int, width: int, outputs: int, stride: int, *, span: int, heads: int,
        eps: float, conv: dict,
    ):  # fmt: skip
        norm: dict[str, Any] = {"dtype": conv["dtype"], "rngs": conv["rngs"]}
        along: dict[str, Any] = {"heads": heads, "span": span, "eps": eps, **norm}
        self.stride, self.projects = stride, stride != 1 or inputs != outputs
        if self.projects:
            self.proj = StdConv(inputs, outputs, 1, stride, **conv)
            self.proj_norm = group_norm(outputs, eps, **norm)
        self.conv1 = StdConv(inputs, width, 1, **conv)
        self.norm1 = group_norm(width, eps, **norm)
        self.height = AxialAttention(width, **along)
        self.width = AxialAttention(width, **along)
        self.conv2 = StdConv(width, outputs, 1, **conv)
        self.norm2 = group_norm(outputs, eps, scale=0.0, **norm)

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch h w outputs"]:
        shortcut = self.proj_norm(self.proj(x)) if self.projects else x
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.height(y.swapaxes(1, 2)).swapaxes(1, 2)
        y = self.width(y)
        if self.stride != 1:
            step = (self.stride, self.stride)
            y = nnx.avg_pool(y, step, step, "SAME", count_include_pad=False)
        return nnx.relu(self.norm2(self.conv2(nnx.relu(y))) + shortcut)


def _stages(c: AxialResNetConfig):
    """(stage, inputs of its first unit, width, outputs, stride, span)."""
    inputs = c.stage_width * c.expansion // 4  # of the root
    for s in range(len(c.resnet_layers)):
        width = c.stage_width * 2**s
        yield s + 1, inputs, width, width * c.expansion, 2 if s else 1, c.spans[s]
        inputs = width * c.expansion


class AxialResNet(ConvNet):
    """Root (7 x 7 convolution and pool), units, global mean, head."""

    def __init__(self, c: AxialResNetConfig, rngs: Any):
        dtype = jnp.dtype(c.dtype)
        conv = {
            "padding": "symmetric", "standardization": c.standardization, "dtype": dtype,
            "rngs": rngs,
        }  # fmt: skip
        how: dict[str, Any] = {"eps": c.groupnorm_eps, "conv": conv}
        self.root = Root(c.channels, c.stage_width * c.expansion // 4, preactivation=False, **how)
        how["heads"] = c.num_heads
        for s, inputs, width, outputs, stride, span in _stages(c):
            for u in range(1, c.resnet_layers[s - 1] + 1):
                first = (inputs, stride) if u == 1 else (outputs, 1)
                unit = AxialUnit(first[0], width, outputs, first[1], span=span, **how)
                setattr(self, f"stage{s}_unit{u:02d}", unit)
        self.add_head(c, rngs)

    def features(self, images):
        x = root = self.root(images)
        names = [
            f"stage{s}_unit{u:02d}"
            for s, units in enumerate(self.config.resnet_layers, start=1)
            for u in range(1, units + 1)
        ]
        units = [(name, getattr(self, name)) for name in names]
        x, out = run_units(units, x, self.config.remat != "none")
        return x, {"root": root} | out


def forward_macs(c: AxialResNetConfig) -> int:
    """Multiply-accumulates of one image. Every pair of positions in a line counts, also beyond the
    span."""
    stem = c.stage_width * c.expansion // 4
    total = positions(c.image_size, 2) * 49 * c.channels * stem + c.hidden_size * c.num_classes
    for s, inputs, width, outputs, _, _ in _stages(c):
        # Attention comes before the stride.
        strides = [4 * 2 ** max(s - 2, 0)] + [4 * 2 ** (s - 1)] * (c.resnet_layers[s - 1] - 1)
        after = positions(c.image_size, 4 * 2 ** (s - 1))
        total += after * inputs * outputs if s > 1 or inputs != outputs else 0
        for u, stride in enumerate(strides):
            at = positions(c.image_size, stride)
            sides = sum(-(-side // stride) for side in c.image_size)
            total += at * (inputs if u == 0 else outputs) * width + after * width * outputs
            total += 2 * at * 2 * width * width  # the projections
            # Three products of half the width for the logits, two of the width for the result.
            total += at * sides * (3 * width // 2 + 2 * width)
    return total


_UNIT = r"stage\d+_unit\d+"
PARAMS = (
    Param("root/conv/kernel", (None, None, None, "fsdp"), True, ((0, 1, 2), (3,)), BEFORE,
          CHANNELS),
    Param(rf"{_UNIT}/(conv[12]|proj)/kernel", (None, None, None, "fsdp"), True,
          ((0, 1, 2), (3,)), BEFORE),
    Param(rf"{_UNIT}/(height|width)/qkv/kernel", ("fsdp", "tensor"), True, ((0,), (1,)), BEFORE),
    Param(rf"{_UNIT}/(height|width)/relative", depth=BEFORE),
    *under(rf"root/norm|{_UNIT}/(norm[12]|proj_norm)", NORM, BEFORE),
    *under(rf"{_UNIT}/(height|width)/(qkv|logit|value|place)_norm", NORM, BEFORE),
    *under("head", HEAD),
)  # fmt: skip

FAMILY = Family(
    "axial_resnet", AxialResNetConfig, AxialResNet, forward_macs, params=PARAMS,
    names=(
        Names(
            rf"axial_resnet_(?P<size>[sml])|axial_resnet(?P<depth>14|26|50){WIDTH}",
            lambda of: sizes_of(of) | (
                dict(zip(("stage_width", "expansion"), WIDTHS[of["size"]], strict=True))
                | {"spans": (WIDE,) * 4} if of["size"] else {"expansion": 4}
            ),
            (*(f"axial_resnet_{size}" for size in WIDTHS), "axial_resnet26", "axial_resnet50"),
        ),
    ),
    parts=("resnet_layers", "stage_width", "expansion"),
    layer=lambda c, rngs: first_layer(
        c, lambda width: AxialAttention(
            width, heads=c.num_heads, span=c.spans[0], eps=c.groupnorm_eps,
            dtype=jnp.dtype(c.dtype), rngs=rngs,
        ), c.stage_width,
    ),
)  # fmt: skip
