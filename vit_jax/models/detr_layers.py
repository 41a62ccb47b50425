"""The layers of a DETR's transformer (arXiv 2005.12872, section A.3): attention of queries over
keys, and the heads that predict boxes.

A refining layer looks at the features in the box of each of its queries, as arXiv 2011.12450 does
(Sparse R-CNN, section 3.2), and moves the box by shares of its own sides (arXiv 1311.2524, section
C). So the moves that it learns are relative to the box, whatever its place and size.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.models.attention import attend
from vit_jax.models.family import Param, under
from vit_jax.models.layers import NORM, dropout, xavier_uniform

TEMPERATURE = 10_000.0  # of the positions' lowest frequency
LOOKS = (-0.5, 0.0, 0.5)  # where a refining layer looks, from a box's centre in shares of a side
LEAST, MOST = 1e-3, 2.0  # side of a refined box, as share of the content's
STILL = {"kernel_init": nnx.initializers.zeros}  # boxes do not move at first


def sine(places: Float[Array, "... 2"], width: int) -> Float[Array, "... width"]:
    """The code of places (y, x), each a share of the image's side: sines and cosines in turns of
    width/4 frequencies, of y and then of x."""
    half = width // 2
    frequency = TEMPERATURE ** -(2 * (np.arange(half) // 2) / half)
    angles = 2 * math.pi * places[..., None] * frequency.astype(np.float32)
    code = jnp.stack([jnp.sin(angles[..., 0::2]), jnp.cos(angles[..., 1::2])], axis=-1)
    return code.reshape(*places.shape[:-1], width)


class Heads(nnx.Module):
    """Attention of queries over keys, with a mask of keys. `kernel` shapes: q, k, v (D, H, D/H),
    out (H, D/H, D)."""

    def __init__(self, width: int, heads: int, *, rate: float, dtype, rngs):
        # As in PyTorch, where the three projections are one matrix [3 D, D].
        bound = math.sqrt(6 / (4 * width))
        self.q, self.k, self.v = (
            nnx.LinearGeneral(
                width, (heads, width // heads), kernel_init=uniform(bound), dtype=dtype, rngs=rngs
            )
            for _ in range(3)
        )
        self.out = nnx.LinearGeneral(
            (heads, width // heads), width, axis=(-2, -1), kernel_init=xavier_uniform, dtype=dtype,
            rngs=rngs,
        )  # fmt: skip
        self.rate = rate

    def __call__(self, queries, keys, values, mask, key):
        """`queries` [batch, Q, D], `keys` and `values` [batch, K, D]. `mask` [batch, K] is true
        where a key counts. Returns [batch, Q, D], and the weights [batch, heads, Q, K]."""
        q, k, v = (
            project(x).swapaxes(1, 2)
            for project, x in ((self.q, queries), (self.k, keys), (self.v, values))
        )
        mixed, weights = attend(q, k, v, rate=self.rate, key=key, mask=mask)
        return self.out(mixed), weights


class Layer(nnx.Module):
    """A layer of the encoder, or with `crosses` of the decoder. `x` has places added to its
    queries and keys, never to its values."""

    def __init__(self, c: Any, crosses: bool, rngs: Any):
        width, dtype = c.detector_width, jnp.dtype(c.dtype)
        how: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        norm = {"epsilon": 1e-5} | how
        self.attention = Heads(width, c.detector_heads, rate=c.detector_dropout, **how)
        self.norm1 = nnx.LayerNorm(width, **norm)
        self.crosses = crosses
        if crosses:
            self.cross = Heads(width, c.detector_heads, rate=c.detector_dropout, **how)
            self.norm2 = nnx.LayerNorm(width, **norm)
        dense = {"kernel_init": xavier_uniform} | how
        self.fc1 = nnx.Linear(width, c.detector_mlp_dim, **dense)
        self.fc2 = nnx.Linear(c.detector_mlp_dim, width, **dense)
        self.norm3 = nnx.LayerNorm(width, **norm)
        self.rate, self.first = c.detector_dropout, c.detector_norm == "pre"

    def __call__(
        self, x, key=None, drop_path_rate=0.0, return_weights=False, *, places, mask=None,
        memory=None, memory_places=None,
    ):  # fmt: skip
        """`x` and `places` [batch, N, D]; of the decoder also the encoder's `memory` and its
        places, [batch, M, D]. `mask` [batch, N or M] is true where a feature shows content.

        Returns [batch, N, D], and the weights of the last attention or None.
        """
        keys = [None] * 6 if key is None else list(jax.random.split(key, 6))
        weights = None

        def own(y):
            nonlocal weights
            own_mask = None if self.crosses else mask
            y, weights = self.attention(y + places, y + places, y, own_mask, keys[0])
            return dropout(y, self.rate, keys[1])

        def of_memory(y):
            nonlocal weights
            y, weights = self.cross(y + places, memory + memory_places, memory, mask, keys[2])
            return dropout(y, self.rate, keys[3])

        def mlp(y):
            y = dropout(nnx.relu(self.fc1(y)), self.rate, keys[4])
            return dropout(self.fc2(y), self.rate, keys[5])

        parts = [(own, self.norm1), (mlp, self.norm3)]
        if self.crosses:
            parts.insert(1, (of_memory, self.norm2))
        for part, norm in parts:
            x = x + part(norm(x)) if self.first else norm(x + part(x))
        return x, weights if return_weights else None


class RefiningLayer(Layer):
    """A decoder's layer on queries and their boxes: it adds the features in the box to its query,
    and then moves the box. Boxes are centre, width and height as shares of the content."""

    def __init__(self, c: Any, rngs: Any):
        super().__init__(c, True, rngs)
        width, dtype = c.detector_width, jnp.dtype(c.dtype)
        how: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        seen = len(LOOKS) ** 2 * width
        self.look = nnx.Linear(seen, width, kernel_init=xavier_uniform, **how)
        self.norm_box = nnx.LayerNorm(width, epsilon=1e-5, **how)
        self.box1, self.box2, self.box3 = box_head(width, dtype, rngs, STILL)

    def __call__(
        self, z, key=None, drop_path_rate=0.0, return_weights=False, *, sides, content, **more
    ):
        """`z`: queries [batch, queries, width] and boxes [batch, queries, 4]. `sides`: rows and
        columns of the memory, of which `content` [batch, 2] is shown (None for all).

        Returns queries and boxes of the same shapes, and the weights or None.
        """
        x, box = z
        looked = jax.lax.stop_gradient(box)
        x = x + self.look(in_boxes(more["memory"], looked, sides, content))
        places = sine(looked[..., 1::-1], x.shape[-1]).astype(x.dtype)
        x, weights = super().__call__(x, key, drop_path_rate, return_weights, places=places, **more)
        move = box_numbers(self.norm_box(x), self.box1, self.box2, self.box3)
        centre, size = box[..., :2], box[..., 2:]
        centre = centre + move[..., :2] * size
        size = jnp.clip(size * jnp.exp(jnp.clip(move[..., 2:], -4.0, 4.0)), LEAST, MOST)
        return (x, jnp.concatenate([centre, size], axis=-1)), weights


def in_boxes(
    memory: Float[Array, "batch places width"],
    boxes: Float[Array, "batch queries 4"],
    sides: tuple[int, int],
    content: Float[Array, "batch 2"] | None,
) -> Float[Array, "batch queries seen"]:
    """The features at centre, corners and middles of edges of the boxes, row by row, each
    interpolated between the four nearest."""
    content = jnp.ones((memory.shape[0], 2)) if content is None else content
    parts = []
    for axis, side in enumerate(sides):
        last = rows_shown(content[:, axis], side)[:, None, None] - 1
        centre, size = boxes[..., 1 - axis, None], boxes[..., 3 - axis, None]
        at = (centre + size * jnp.array(LOOKS)) * (content[:, axis, None, None] * side) - 0.5
        at = jnp.clip(at, 0, last)[..., None]  # [batch, queries, looks, 1]
        parts.append(jnp.maximum(0, 1 - jnp.abs(at - jnp.arange(side))).astype(memory.dtype))
    down, across = parts
    features = memory.reshape(memory.shape[0], *sides, -1)
    seen = jnp.einsum("bqjc,bqicd->bqijd", across, jnp.einsum("bqir,brcd->bqicd", down, features))
    return seen.reshape(*seen.shape[:2], -1)


def rows_shown(content: Array, sides: Any) -> Array:
    """How many rows or columns of features show content: also the last one, in part."""
    return jnp.ceil(content * sides - 1e-3)


def box_head(width: int, dtype: Any, rngs: Any, last: dict[str, Any]) -> list[nnx.Linear]:
    """Three dense layers that predict the four numbers of a box. `last`: how the third begins."""
    how: dict[str, Any] = as_torch(width) | {"dtype": dtype, "rngs": rngs}
    hidden = [nnx.Linear(width, width, **how) for _ in range(2)]
    return [*hidden, nnx.Linear(width, 4, dtype=jnp.float32, rngs=rngs, **last)]


def box_numbers(
    x: Float[Array, "... width"], box1: nnx.Linear, box2: nnx.Linear, box3: nnx.Linear
) -> Float[Array, "... 4"]:
    """The four numbers, in float32."""
    return box3(nnx.relu(box2(nnx.relu(box1(x)))).astype(jnp.float32))


def uniform(bound: float):
    """Uniform in ± bound."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def as_torch(inputs: int) -> dict[str, Any]:
    """The first values of PyTorch's linear layers and convolutions: uniform in ± 1/sqrt(inputs)."""
    return {"kernel_init": uniform(inputs**-0.5), "bias_init": uniform(inputs**-0.5)}


_QKV = Param("(q|k|v)/kernel", ("fsdp", "tensor", None), True, ((0,), (1, 2)))
HEADS = (
    _QKV, Param("(q|k|v)/bias", ("tensor", None)),
    Param("out/kernel", ("tensor", None, "fsdp"), True, ((0, 1), (2,))), Param("out/bias"),
)  # fmt: skip
LAYER = (
    *under("attention|cross", HEADS), *under("norm[123]", NORM),
    Param("fc1/kernel", ("fsdp", "tensor"), True, ((0,), (1,))), Param("fc1/bias", ("tensor",)),
    Param("fc2/kernel", ("tensor", "fsdp"), True, ((0,), (1,))), Param("fc2/bias"),
)  # fmt: skip
BOX_HEAD = (
    Param("box[12]/kernel", ("fsdp", None), True, ((0,), (1,))), Param("box3/kernel", (), True),
    Param("box[123]/bias"),
)  # fmt: skip
REFINING = (
    Param("look/kernel", ("fsdp", None), True, ((0,), (1,))), Param("look/bias"),
    *under("norm_box", NORM), *BOX_HEAD,
)  # fmt: skip
