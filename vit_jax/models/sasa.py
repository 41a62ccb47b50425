"""Stand-alone self-attention (arXiv 1906.05909): a ResNet whose 3 x 3 convolutions are attention
over the k x k neighbourhood of a position, and whose first convolution may be attention too.

The paper has no published code. What it leaves open is decided as in HaloNet (arXiv 2103.12731), by
the same authors: keys and values outside of the image are zeros, which take part in the softmax.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.models.configs import SasaConfig
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import CHANNELS, Family, Names, Param
from vit_jax.models.resnet import first_layer, group_norm, positions
from vit_jax.models.resnet_v1 import WIDTH, ResNetV1, forward_macs, params_with, sizes_of

BLOCK = 4  # sides of the blocks of queries in `attend_locally`, measured on a CPU
lecun = nnx.initializers.lecun_normal()
einsum32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)  # of logits
MIXTURES = 4  # value projections that the stem mixes by position (section 3.2)
PATCH = 4  # sides of the stem's blocks, and of the pool behind it


def attend_locally(
    q: Float[Array, "batch height width heads dim"],
    k: Float[Array, "batch height width heads dim"],
    v: Float[Array, "batch height width heads dim"],
    rows: Float[Array, "window heads half"],
    columns: Float[Array, "window heads half"],
) -> Float[Array, "batch height width heads dim"]:
    """Sum over the window of softmax(qᵀk + qᵀr) v (eq. 3), where r is the embedding of the row's
    offset and that of the column's, side by side. Without the root of d.

    Blocks of queries share the keys around them, as in HaloNet. So keys and values are copied about
    (1 + window / BLOCK)² times, not window² times, and both products are matrix products.
    """
    window, (height, width) = rows.shape[0], q.shape[1:3]
    halo, size = window // 2, BLOCK + 2 * (window // 2)
    down, across = (-side % BLOCK for side in (height, width))
    high, wide = (height + down) // BLOCK, (width + across) // BLOCK
    q = jnp.pad(q, ((0, 0), (0, down), (0, across), (0, 0), (0, 0)))
    batch, *_, heads, dim = q.shape
    q = q.reshape(batch, high, BLOCK, wide, BLOCK, heads, dim).transpose(0, 1, 3, 5, 2, 4, 6)

    def around(x):
        x = jnp.pad(x, ((0, 0), (halo, halo + down), (halo, halo + across), (0, 0), (0, 0)))
        top, left = (jnp.arange(n)[:, None] * BLOCK + jnp.arange(size) for n in (high, wide))
        return x[:, top][:, :, :, left].transpose(0, 1, 3, 5, 2, 4, 6)

    k, v = around(k), around(v)
    # Offset of a key in a block's surroundings from a query in the block; no neighbour: outside.
    offset = jnp.arange(size) - jnp.arange(BLOCK)[:, None]
    inside = (offset >= 0) & (offset < window)
    at, half = jnp.clip(offset, 0, window - 1), rows.shape[-1]
    rows, columns = (table.astype(q.dtype)[at] for table in (rows, columns))  # [query, key, …]
    logits = einsum32("bxynpqd,bxynstd->bxynpqst", q, k)
    logits += einsum32("bxynpqd,psnd->bxynpqs", q[..., :half], rows)[..., None]
    logits += einsum32("bxynpqd,qtnd->bxynpqt", q[..., half:], columns)[..., None, :]
    near = inside[:, None, :, None] & inside[None, :, None, :]
    logits = jnp.where(near, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=(-2, -1)).astype(v.dtype)
    mixed = jnp.einsum("bxynpqst,bxynstd->bxypqnd", weights, v).swapaxes(2, 3)
    return mixed.reshape(batch, high * BLOCK, wide * BLOCK, heads, dim)[:, :height, :width]


def _table(rngs: Any, dim: int, *shape: int) -> nnx.Param:
    """Embeddings of places or offsets for heads of `dim` numbers."""
    return nnx.Param(nnx.initializers.normal(dim**-0.5)(rngs.params(), shape, jnp.float32))


class LocalAttention(nnx.Module):
    """Attention over the neighbourhood of each position, then an average pool with the stride.

    `kernel` shapes: q, k, v (width, heads, width/heads). `rows` and `columns`: (window, heads,
    width/heads/2), the embeddings of offsets.
    """

    def __init__(self, width: int, stride: int, *, window: int, heads: int, dtype, rngs):
        dim = width // heads
        self.q, self.k, self.v = (
            nnx.LinearGeneral(width, (heads, dim), use_bias=False, kernel_init=lecun, dtype=dtype,
                              rngs=rngs)
            for _ in range(3)
        )  # fmt: skip
        self.rows, self.columns = (_table(rngs, dim, window, heads, dim // 2) for _ in range(2))
        self.stride = stride

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch h w outputs"]:
        y = attend_locally(self.q(x), self.k(x), self.v(x), self.rows[...], self.columns[...])
        y = y.reshape(x.shape)
        if self.stride == 1:
            return y
        step = (self.stride, self.stride)
        return nnx.avg_pool(y, step, step, "SAME", count_include_pad=False)


class AttentionStem(nnx.Module):
    """Attention within each 4 x 4 block of the image, group norm, ReLU, 4 x 4 max pool (section
    3.2). Values are projected by a mixture of matrices that depends on the place in the block:
    v = (sum over m of p_m W_m) x, where p = softmax((row + column)ᵀ mixtures)."""

    def __init__(self, channels: int, width: int, *, heads: int, eps: float, dtype, rngs):
        dim = width // heads
        how: dict[str, Any] = {
            "use_bias": False, "kernel_init": lecun, "dtype": dtype, "rngs": rngs,
        }  # fmt: skip
        self.q, self.k = (nnx.LinearGeneral(channels, (heads, dim), **how) for _ in range(2))
        self.v = nnx.LinearGeneral(channels, (MIXTURES, heads, dim), **how)
        offsets = 2 * PATCH - 1
        self.rows, self.columns = (_table(rngs, dim, offsets, heads, dim // 2) for _ in range(2))
        self.value_rows, self.value_columns = (_table(rngs, dim, PATCH, dim) for _ in range(2))
        self.mixtures = _table(rngs, dim, MIXTURES, dim)
        self.norm = group_norm(width, eps, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch h w features"]:
        batch, height, width, channels = x.shape
        down, across = height // PATCH, width // PATCH
        x = x.reshape(batch, down, PATCH, across, PATCH, channels).swapaxes(2, 3)
        q, k = self.q(x), self.k(x)  # [batch, down, across, PATCH, PATCH, heads, dim]
        place = self.value_rows[...][:, None] + self.value_columns[...]
        shares = jax.nn.softmax(place @ self.mixtures[...].T)
        v = jnp.einsum("...pqmnd,pqm->...pqnd", self.v(x), shares.astype(self.dtype))
        half = self.rows.shape[-1]
        offset = jnp.arange(PATCH) - jnp.arange(PATCH)[:, None] + PATCH - 1  # [query, key]
        rows, columns = (
            table[...][offset].astype(self.dtype) for table in (self.rows, self.columns)
        )
        logits = einsum32("...pqnd,...stnd->...npqst", q, k)
        logits += einsum32("...pqnd,psnd->...npqs", q[..., :half], rows)[..., None]
        logits += einsum32("...pqnd,qtnd->...npqt", q[..., half:], columns)[..., None, :]
        weights = jax.nn.softmax(logits, axis=(-2, -1)).astype(self.dtype)
        y = jnp.einsum("...npqst,...stnd->...pqnd", weights, v)
        y = y.swapaxes(2, 3).reshape(batch, down * PATCH, across * PATCH, -1)
        return nnx.max_pool(nnx.relu(self.norm(y)), (PATCH, PATCH), (PATCH, PATCH))


class Sasa(ResNetV1):
    """The ResNet with local attention."""

    def __init__(self, c: SasaConfig, rngs: Any):
        how: dict[str, Any] = {"heads": c.num_heads, "dtype": jnp.dtype(c.dtype), "rngs": rngs}
        parts: dict[str, Any] = {}
        if c.stem == "attention":
            parts["root"] = AttentionStem(c.channels, c.stage_width, eps=c.groupnorm_eps, **how)
        super().__init__(
            c, rngs, **parts,
            spatial=lambda width, stride: LocalAttention(width, stride, window=c.window, **how),
        )  # fmt: skip


def sasa_macs(c: SasaConfig) -> int:
    """Multiply-accumulates of one image, as the paper counts them: three projections, and for each
    of a position's neighbours the products of the query with the key and with the embedding, and of
    the weight with the value."""

    def attention(width: int, before: int, after: int) -> int:
        return before * (3 * width * width + 3 * c.window**2 * width)

    root, width = None, c.stage_width
    if c.stem == "attention":
        pixels = positions(c.image_size, 1)
        root = pixels * width * ((2 + MIXTURES) * c.channels + 3 * PATCH**2)
    return forward_macs(c, spatial=attention, root=root)


# A projection's kernel is split like a dense layer's; offsets and mixtures do not decay.
ROWS = (
    Param(r"stage\d+/unit\d+/conv2/(q|k|v)/kernel", ("fsdp", "tensor", None), decays=True,
          muon=((0,), (1, 2))),
    Param(r"stage\d+/unit\d+/conv2/(rows|columns)", (None, "tensor", None)),
    Param(r"root/(q|k)/kernel", (None, "tensor", None), decays=True, muon=((0,), (1, 2)),
          at_init=CHANNELS),
    Param(r"root/v/kernel", (None, None, "tensor", None), decays=True, muon=((0,), (1, 2, 3)),
          at_init=CHANNELS),
    Param(r"root/(rows|columns)", (None, "tensor", None)),
    Param(r"root/(value_rows|value_columns|mixtures)", (None, None)),
)  # fmt: skip

FAMILY = Family(
    "sasa", SasaConfig, Sasa, sasa_macs, params=params_with(*ROWS),
    names=(
        Names(
            rf"sasa_resnet(?P<depth>14|26|38|50){WIDTH}(?P<stem>_convstem)?",
            lambda of: sizes_of(of) | {"stem": "conv" if of["stem"] else "attention"},
            tuple(f"sasa_resnet{d}{stem}" for d in (26, 38, 50) for stem in ("", "_convstem")),
            DataConfig(),
            lambda short, side: (
                f"sasa_resnet{short[4:]}"
                if re.fullmatch(r"sasa(26|38|50)(_convstem)?", short) else None
            ),
            ("sasa26",),
        ),
    ),
    parts=("resnet_layers", "stem"),
    layer=lambda c, rngs: first_layer(
        c, lambda width: LocalAttention(
            width, 1, window=c.window, heads=c.num_heads, dtype=jnp.dtype(c.dtype), rngs=rngs
        ), c.stage_width,
    ),
)  # fmt: skip
