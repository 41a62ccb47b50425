"""DETR (arXiv 2005.12872): a backbone's features go through a transformer whose queries are told as
a class and a box each. As in the authors' code, but for what `queries` says.

With `queries: points`, a query is a learned point of the image. It has the same code of its place
as a feature, and its box is told relative to it (arXiv 2109.07107, section 3). So a query need not
learn where it looks. With `queries: sampled`, it also begins with the features at its point, not
with zeros, so that the first layer need not find them.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models import resnet_v1, vit
from vit_jax.models.attention import attend
from vit_jax.models.configs import stride_of
from vit_jax.models.data_config import IMAGENET
from vit_jax.models.detector_configs import LEARNED, DetrResNetConfig, DetrViTConfig
from vit_jax.models.encoder import Encoder
from vit_jax.models.family import OWN, Family, Names, Param, under
from vit_jax.models.layers import CLASSES, NORM, ParamKeys, dropout, xavier_uniform

TEMPERATURE = 10_000.0  # of the positions' lowest frequency
SMALL = -2.0  # first logit of a box's sides around a point: 0.12 of the image's


def sine(places: Float[Array, "... 2"], width: int) -> Float[Array, "... width"]:
    """The code of places (y, x), each a share of the image's side: sines and cosines in turns of
    width/4 frequencies, of y and then of x."""
    half = width // 2
    frequency = TEMPERATURE ** -(2 * (np.arange(half) // 2) / half)
    angles = 2 * math.pi * places[..., None] * frequency.astype(np.float32)
    code = jnp.stack([jnp.sin(angles[..., 0::2]), jnp.cos(angles[..., 1::2])], axis=-1)
    return code.reshape(*places.shape[:-1], width)


def spread(count: int) -> np.ndarray:
    """Points (y, x) evenly in 0 … 1: the sequence of the plastic number's powers (R2)."""
    plastic = 1.32471795724474602596
    steps = np.arange(1, count + 1)[:, None] / plastic ** np.arange(1, 3)
    return ((0.5 + steps) % 1).astype(np.float32)


class Heads(nnx.Module):
    """Attention of queries over keys, with a mask of keys. `kernel` shapes: q, k, v (D, H, D/H),
    out (H, D/H, D)."""

    def __init__(self, width: int, heads: int, *, rate: float, dtype, rngs):
        # As in PyTorch, where the three projections are one matrix [3 D, D].
        bound = math.sqrt(6 / (4 * width))
        self.q, self.k, self.v = (
            nnx.LinearGeneral(
                width, (heads, width // heads), kernel_init=_uniform(bound), dtype=dtype, rngs=rngs
            )
            for _ in range(3)
        )
        self.out = nnx.LinearGeneral(
            (heads, width // heads), width, axis=(-2, -1), kernel_init=xavier_uniform, dtype=dtype,
            rngs=rngs,
        )  # fmt: skip
        self.rate = rate

    def __call__(self, queries, keys, values, mask, key):
        """`mask` [batch, keys] is true where a key counts. Also returns the weights."""
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


class Detr(nnx.Module):
    """Backbone, projection, encoder, decoder, heads. `backbone` is the family of the backbone.

    Logits are [batch, queries, classes + 1]; the last one is of no object.
    """

    def __init__(self, c: Any, rngs: Any, backbone: Family):
        self.config = c
        width, dtype = c.detector_width, jnp.dtype(c.dtype)
        own = {field: getattr(c, field) for field in backbone.fields} | {"num_classes": 0}
        self.backbone_config = backbone.config(**own)
        self.backbone = backbone.module(self.backbone_config, rngs)
        how: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.project = nnx.Linear(c.hidden_size, width, **_as_torch(c.hidden_size), **how)
        stack: dict[str, Any] = {
            "drop_path": 0.0, "scan": getattr(c, "scan", False),
            "remat": "none" if c.remat == "none" else "full",
        }  # fmt: skip
        if c.detector_encoder:
            self.encoder = Encoder(
                c.detector_encoder, lambda key: Layer(c, False, ParamKeys(key)),
                key=rngs.params(), **stack,
            )  # fmt: skip
            if c.detector_norm == "pre":
                self.encoder_norm = nnx.LayerNorm(width, epsilon=1e-5, **how)
        self.decoder = Encoder(
            c.detector_decoder, lambda key: Layer(c, True, ParamKeys(key)), name="decoder",
            key=rngs.params(), **stack,
        )  # fmt: skip
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, **how)
        if c.map_positions == "learned":
            uniform = nnx.initializers.uniform(1.0)
            self.rows, self.columns = (
                nnx.Param(uniform(rngs.params(), (LEARNED, width // 2), jnp.float32))
                for _ in range(2)
            )
        if c.queries != "learned":
            points = spread(c.num_queries)
            self.points = nnx.Param(jnp.asarray(np.log(points / (1 - points))))
        else:
            normal = nnx.initializers.normal(1.0)
            self.queries = nnx.Param(normal(rngs.params(), (c.num_queries, width), jnp.float32))
        self.head = nnx.Linear(width, c.num_classes + 1, **_as_torch(width), **how)
        self.box1, self.box2 = (nnx.Linear(width, width, **_as_torch(width), **how) for _ in "12")
        last = _as_torch(width)
        if c.queries != "learned":
            bias = jnp.array([0.0, 0.0, SMALL, SMALL])
            last = {"kernel_init": nnx.initializers.zeros, "bias_init": lambda *_: bias}
        self.box3 = nnx.Linear(width, 4, dtype=jnp.float32, rngs=rngs, **last)

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        key: Key[Array, ""] | None = None,
        *,
        return_weights: bool = False,
        gather=None,
        content: Float[Array, "batch 2"] | None = None,
    ) -> tuple[Float[Array, "batch queries outputs"], dict[str, Array]]:
        """`content`: (height, width) of what the images show, as shares of their sides; the rest is
        padding at the bottom and at the right.

        Also returns `boxes` [batch, queries, 4] (centre, width and height as shares of the content)
        and both of all decoder layers: `layers_logits`, `layers_boxes` [layers, batch, …].
        """
        c = self.config
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        _, out = self.backbone(images, keys[0])
        x = self.feature_map(out["encoded"])
        batch, rows, columns, _ = x.shape
        out = {f"backbone_{name}": value for name, value in out.items()}
        mask, places = self._places(batch, rows, columns, content)
        x = self.project(x).reshape(batch, rows * columns, -1)
        places = places.astype(x.dtype)
        if c.detector_encoder:
            x, blocks = self.encoder(
                x, keys[1], return_weights=return_weights, gather=gather, places=places, mask=mask
            )
            out |= {f"encoder_{name}": value for name, value in blocks.items()}
            if c.detector_norm == "pre":
                x = self.encoder_norm(x)
        out["encoded"] = x
        if c.queries != "learned":
            code = sine(nnx.sigmoid(self.points[...]), c.detector_width)
        else:
            code = self.queries[...]
        code = jnp.broadcast_to(code.astype(x.dtype), (batch, *code.shape))
        first = jnp.zeros_like(code)
        if c.queries == "sampled":
            first = self._sampled(x, (rows, columns), content)
        _, blocks = self.decoder(
            first, keys[2], return_weights=return_weights, gather=gather,
            places=code, mask=mask, memory=x, memory_places=places,
        )  # fmt: skip
        out |= {f"decoder_{name}": value for name, value in blocks.items()}
        states = jnp.stack([blocks[f"block{i:02d}"] for i in range(c.detector_decoder)])
        states = self.norm(states)
        out["pre_logits"] = states[-1]
        out["layers_logits"] = self.head(states).astype(jnp.float32)
        out["layers_boxes"] = self._boxes(states)
        out["boxes"] = out["layers_boxes"][-1]
        return out["layers_logits"][-1], out

    def feature_map(self, encoded: Array) -> Float[Array, "batch rows columns features"]:
        """The backbone's last features in their places."""
        if encoded.ndim == 4:
            return encoded
        c = self.backbone_config
        patches = encoded[:, c.num_prefix :]
        return patches.reshape(patches.shape[0], *c.grid, -1)

    def _places(self, batch: int, rows: int, columns: int, content: Array | None):
        """Which features show content [batch, N], None for all; their positions [batch, N, D]."""
        sides = jnp.array([rows, columns])
        count = sides if content is None else jnp.ceil(content * sides - 1e-3)
        count = jnp.broadcast_to(count, (batch, 2))[:, None, None]
        where = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), -1)
        mask = None
        if content is not None:
            mask = (where < count).all(axis=-1).reshape(batch, rows * columns)
        if self.config.map_positions == "learned":
            y, x = where[..., 0], where[..., 1]
            code = jnp.concatenate([self.columns[...][x], self.rows[...][y]], axis=-1)
            code = jnp.broadcast_to(code, (batch, *code.shape))
        else:
            places = jnp.minimum(where + 1, count) / (count + 1e-6)
            code = sine(places, self.config.detector_width)
        return mask, code.reshape(batch, rows * columns, -1)

    def _sampled(
        self, x: Float[Array, "batch places width"], sides: tuple[int, int], content: Array | None
    ) -> Float[Array, "batch queries width"]:
        """The features at the points, interpolated between the four nearest."""
        parts = []
        for axis, side in enumerate(sides):
            count = side if content is None else jnp.ceil(content[:, axis] * side - 1e-3)
            count = jnp.broadcast_to(count, x.shape[:1])[:, None]
            at = nnx.sigmoid(self.points[...][:, axis]) * count - 0.5
            at = jnp.clip(at, 0, count - 1)[..., None]  # [batch, queries, 1]
            parts.append(jnp.maximum(0, 1 - jnp.abs(at - jnp.arange(side))).astype(x.dtype))
        down, across = parts
        shares = down[..., :, None] * across[..., None, :]  # [batch, queries, rows, columns]
        return shares.reshape(*shares.shape[:2], -1) @ x

    def _boxes(self, states: Array) -> Float[Array, "layers batch queries 4"]:
        x = nnx.relu(self.box2(nnx.relu(self.box1(states))))
        x = self.box3(x.astype(jnp.float32))
        if self.config.queries != "learned":
            point = self.points[...][:, ::-1]  # (x, y)
            x = x + jnp.pad(point, ((0, 0), (0, 2)))
        return nnx.sigmoid(x)


def _uniform(bound: float):
    """Uniform in ± bound."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def _as_torch(inputs: int) -> dict[str, Any]:
    """The first values of PyTorch's linear layers and convolutions: uniform in ± 1/sqrt(inputs)."""
    return {"kernel_init": _uniform(inputs**-0.5), "bias_init": _uniform(inputs**-0.5)}


def _macs(backbone: Family):
    def macs(c: Any) -> int:
        """Multiply-accumulates of one image through backbone, transformer and heads."""
        own = {field: getattr(c, field) for field in backbone.fields} | {"num_classes": 0}
        config = backbone.config(**own)
        d, q = c.detector_width, c.num_queries
        rows, columns = _grid(config)
        n, mlp = rows * columns, 2 * c.detector_width * c.detector_mlp_dim
        encoder = n * (4 * d * d + mlp) + 2 * n * n * d
        decoder = q * (4 * d * d + mlp) + 2 * q * q * d  # on the queries
        decoder += 2 * q * d * d + 2 * n * d * d + 2 * q * n * d  # on the memory
        heads = q * d * (c.num_classes + 1) + q * (2 * d * d + 4 * d)
        sampled = q * n * d if c.queries == "sampled" else 0
        return (
            backbone.macs(config) + n * c.hidden_size * d + c.detector_encoder * encoder
            + sampled + c.detector_decoder * (decoder + heads)
        )  # fmt: skip

    return macs


def _grid(config: Any) -> tuple[int, int]:
    """Rows and columns of a backbone's last features."""
    if hasattr(config, "grid"):
        return config.grid
    stride = stride_of(config.resnet_layers) // (2 if config.dilated else 1)
    return -(-config.image_size[0] // stride), -(-config.image_size[1] // stride)


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
ROWS = (
    *under("(encoder|decoder)/block", LAYER), *under("norm|encoder_norm", NORM),
    Param("project/kernel", ("fsdp", None), True, ((0,), (1,))), Param("project/bias"),
    Param("rows|columns|points|queries"),
    Param("head/kernel", ("fsdp", None), True, at_init=CLASSES),
    Param("head/bias", at_init=CLASSES),
    Param("box[12]/kernel", ("fsdp", None), True, ((0,), (1,))),
    Param("box3/kernel", (), True), Param("box[123]/bias"),
)  # fmt: skip


def _family(name: str, config: type, backbone: Family, published: tuple[Names, ...] = ()) -> Family:
    """DETRs on a family of backbones. Their names are `published`, and the backbones' behind
    `detr_`."""
    behind = tuple(
        dataclasses.replace(row, path=f"backbone/({row.path})") for row in backbone.params
    )
    names = tuple(
        Names(f"detr_({one.pattern})", one.fields, data=one.data) for one in backbone.names
    )
    return Family(
        name, config, lambda c, rngs: Detr(c, rngs, backbone), _macs(backbone),
        params=(*behind, *(dataclasses.replace(row, at_init=row.at_init or OWN) for row in ROWS)),
        names=(*published, *names), parts=backbone.parts,
        backbone=backbone, task="detection",
    )  # fmt: skip


VIT = _family("detr_vit", DetrViTConfig, vit.FAMILY)
RESNET = _family(
    "detr_resnet", DetrResNetConfig, resnet_v1.FAMILY,
    (
        Names(
            r"detr_resnet(?P<depth>50|101)(?P<dilated>_dc5)?",
            lambda of: {
                "resnet_layers": resnet_v1.DEPTHS[int(of["depth"])], "norm": "frozen",
                "image_size": (800, 1333), "num_classes": 91, "dilated": bool(of["dilated"]),
            },
            tuple(f"detr_resnet{depth}{dc5}" for depth in (50, 101) for dc5 in ("", "_dc5")),
            IMAGENET,
        ),
    ),
)  # fmt: skip
