"""DETR (arXiv 2005.12872): a backbone's features go through a transformer, each of whose queries
predicts a class and a box. As in the authors' code, but for what `queries` says.

With `queries: points`, a query is a learned point of the image. It has the same code of its place
as a feature, and its box is relative to it (arXiv 2109.07107, section 3). So a query need not
learn where it looks. With `queries: refined`, a query begins as a box around such a point, and each
layer looks at the features in the box before and moves it (`detr_layers.RefiningLayer`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models import resnet_v1, vit
from vit_jax.models.data_config import IMAGENET
from vit_jax.models.detector_configs import (
    LEARNED,
    DetrResNetConfig,
    DetrViTConfig,
    feature_grid,
)  # fmt: skip
from vit_jax.models.detr_layers import (
    BOX_HEAD,
    LAYER,
    LOOKS,
    REFINING,
    STILL,
    Layer,
    RefiningLayer,
    as_torch,
    box_head,
    box_numbers,
    rows_shown,
    sine,
)
from vit_jax.models.encoder import Encoder
from vit_jax.models.family import BACKBONE, OWN, Family, Names, Param, below, under
from vit_jax.models.layers import CLASSES, NORM, ParamKeys

NO_HEAD = {"num_classes": 0}
SMALL = -2.0  # first logit of a box's sides around a point: 0.12 of the image's


def spread(count: int) -> np.ndarray:
    """Points (y, x) evenly in 0 … 1, [count, 2]: the sequence R2 of the plastic number's powers
    (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences")."""
    plastic = 1.32471795724474602596
    steps = np.arange(1, count + 1)[:, None] / plastic ** np.arange(1, 3)
    return ((0.5 + steps) % 1).astype(np.float32)


class Detr(nnx.Module):
    """Backbone, projection, encoder, decoder, heads. `backbone` is the family of the backbone.

    Logits are [batch, queries, classes + 1]; the last one is of no object.
    """

    def __init__(self, c: Any, rngs: Any, backbone: Family):
        self.config = c
        width, dtype = c.detector_width, jnp.dtype(c.dtype)
        self.backbone_config = _of_backbone(c, backbone)
        self.backbone = backbone.module(self.backbone_config, rngs)
        how: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.project = nnx.Linear(c.hidden_size, width, **as_torch(c.hidden_size), **how)
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
        self.refines = c.queries == "refined"
        self.decoder = Encoder(
            c.detector_decoder,
            lambda key: RefiningLayer(c, ParamKeys(key)) if self.refines
            else Layer(c, True, ParamKeys(key)),
            name="decoder", key=rngs.params(), **stack,
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
        self.head = nnx.Linear(width, c.num_classes + 1, **as_torch(width), **how)
        if not self.refines:
            last = as_torch(width)
            if c.queries == "points":
                bias = jnp.array([0.0, 0.0, SMALL, SMALL])
                last = STILL | {"bias_init": lambda *_: bias}
            self.box1, self.box2, self.box3 = box_head(width, dtype, rngs, last)

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
        padding at the bottom and at the right. `gather`, `return_weights`: `Model.apply`.

        Also returns `boxes` [batch, queries, 4] (centre, width and height as shares of the content)
        and both of all decoder layers: `layers_logits`, `layers_boxes` [layers, batch, …]. The
        other outputs of backbone and stacks have `backbone_`, `encoder_` and `decoder_` before
        their names.
        """
        c = self.config
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        _, out = self.backbone(images, keys[0], gather=below(BACKBONE, gather))
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
        how: dict[str, Any] = {
            "mask": mask, "memory": x, "memory_places": places, "gather": gather,
        }  # fmt: skip
        first: Any
        if self.refines:
            first, how["sides"], how["content"] = self._first_boxes(x), (rows, columns), content
        else:
            first, how["places"] = self._first_queries(x)
        _, blocks = self.decoder(first, keys[2], return_weights=return_weights, **how)
        layers = [blocks.pop(f"block{i:02d}") for i in range(c.detector_decoder)]
        out |= {f"decoder_{name}": value for name, value in blocks.items()}
        if self.refines:
            out["layers_boxes"] = jnp.stack([boxes for _, boxes in layers])
            layers = [queries for queries, _ in layers]
        out |= {f"decoder_block{i:02d}": layer for i, layer in enumerate(layers)}
        states = self.norm(jnp.stack(layers))
        if not self.refines:
            out["layers_boxes"] = self._boxes(states)
        out["pre_logits"] = states[-1]
        out["layers_logits"] = self.head(states).astype(jnp.float32)
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
        count = sides if content is None else rows_shown(content, sides)
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

    def _first_queries(self, x: Array) -> tuple[Array, Array]:
        """Queries before the first layer, and their places, which are added in every layer."""
        if self.config.queries == "learned":
            places = self.queries[...]
        else:
            places = sine(nnx.sigmoid(self.points[...]), self.config.detector_width)
        places = jnp.broadcast_to(places.astype(x.dtype), (x.shape[0], *places.shape))
        return jnp.zeros_like(places), places

    def _first_boxes(self, x: Array) -> tuple[Array, Array]:
        """Queries before the first layer, and their boxes around the points."""
        centre = nnx.sigmoid(self.points[...][:, ::-1])
        boxes = jnp.concatenate([centre, jnp.full_like(centre, nnx.sigmoid(SMALL))], axis=-1)
        queries = jnp.zeros((x.shape[0], len(boxes), self.config.detector_width), x.dtype)
        return queries, jnp.broadcast_to(boxes, (x.shape[0], *boxes.shape))

    def _boxes(self, states: Array) -> Float[Array, "layers batch queries 4"]:
        x = box_numbers(states, self.box1, self.box2, self.box3)
        if self.config.queries == "points":
            x = x + jnp.pad(self.points[...][:, ::-1], ((0, 0), (0, 2)))
        return nnx.sigmoid(x)


def _of_backbone(c: Any, backbone: Family) -> Any:
    """The backbone's config, without a head."""
    return backbone.config(**{field: getattr(c, field) for field in backbone.fields} | NO_HEAD)


def _macs(backbone: Family):
    def macs(c: Any) -> int:
        """Multiply-accumulates of one image through backbone, transformer and heads."""
        config = _of_backbone(c, backbone)
        d, q = c.detector_width, c.num_queries
        rows, columns = config.grid if hasattr(config, "grid") else feature_grid(config)
        n, mlp = rows * columns, 2 * c.detector_width * c.detector_mlp_dim
        encoder = n * (4 * d * d + mlp) + 2 * n * n * d
        decoder = q * (4 * d * d + mlp) + 2 * q * q * d  # on the queries
        decoder += 2 * q * d * d + 2 * n * d * d + 2 * q * n * d  # on the memory
        heads = q * d * (c.num_classes + 1) + q * (2 * d * d + 4 * d)
        if c.queries == "refined":
            looks = len(LOOKS)
            decoder += q * (looks * n * d + looks**2 * columns * d + looks**2 * d * d)
        return (
            backbone.macs(config) + n * c.hidden_size * d + c.detector_encoder * encoder
            + c.detector_decoder * (decoder + heads)
        )  # fmt: skip

    return macs


ROWS = (
    *under("(encoder|decoder)/block", LAYER), *under("decoder/block", REFINING),
    *under("norm|encoder_norm", NORM),
    Param("project/kernel", ("fsdp", None), True, ((0,), (1,))), Param("project/bias"),
    Param("rows|columns|points|queries"),
    Param("head/kernel", ("fsdp", None), True, at_init=CLASSES),
    Param("head/bias", at_init=CLASSES), *BOX_HEAD,
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
        backbone=backbone, task="detection", any_size=backbone.any_size,
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
