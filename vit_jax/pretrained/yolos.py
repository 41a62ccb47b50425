"""Weights of YOLOS: Transformers' `YolosForObjectDetection`, as they lie on disk.

The names are those of its ViT, with tokens for objects. One table has the positions of the class
token, the patches and the objects, in this order; those between the blocks are stacked by layer.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.detector_configs import YolosConfig
from vit_jax.models.family import BACKBONE, Config
from vit_jax.pretrained.huggingface import heads_and_gelu, vit_rows
from vit_jax.pretrained.huggingface_config import classes_of
from vit_jax.pretrained.huggingface_detectors import (
    notes,
    processor_json,
    processor_of,
    yolos_json,
)  # fmt: skip
from vit_jax.pretrained.layout import Description, Layout, Reader, Writer
from vit_jax.pretrained.rows import BATCHED, Codec, Row, row, torch_dense
from vit_jax.pretrained.shown import Shown, vit_fields
from vit_jax.pretrained.tensors import Tensors

PRE = "vit."
POSITIONS = f"{PRE}embeddings.position_embeddings"
MID = f"{PRE}encoder.mid_position_embeddings"
MOST_LAYERS = 1000


def _read_table(xs: list, shapes: list) -> list:
    """(1, prefix + h w + objects, D) as grid, prefix and objects."""
    (x,), (grid, prefix, queries) = xs, shapes
    first, last = prefix[0], len(xs[0][0]) - queries[0]
    return [x[0, first:last].reshape(grid), x[0, :first], x[0, last:]]


def _write_table(ps: list) -> list:
    grid, prefix, queries = ps
    import jax.numpy as jnp

    like = np if isinstance(grid, np.ndarray) else jnp
    return [like.concatenate([prefix, grid.reshape(-1, grid.shape[-1]), queries])[None]]


TABLE = Codec(_read_table, _write_table)


def _rows(config: Config | None, dialect: dict[str, Any]) -> list[Row]:
    own = [
        one for one in vit_rows("vit", PRE, False) if not one.ours[0].startswith(("pos_", "head"))
    ]
    heads = [("class1", "class_labels_classifier.layers.0"),
             ("class2", "class_labels_classifier.layers.1"),
             ("head", "class_labels_classifier.layers.2"),
             *((f"box{n + 1}", f"bbox_predictor.layers.{n}") for n in range(3))]  # fmt: skip
    return [
        *(dataclasses.replace(one, ours=tuple(f"{BACKBONE}/{path}" for path in one.ours))
          for one in own),
        row((f"{BACKBONE}/pos_embed/grid", f"{BACKBONE}/pos_embed/prefix",
             f"{BACKBONE}/query_positions"), POSITIONS, TABLE),
        row((f"{BACKBONE}/mid{{i:02d}}/grid", f"{BACKBONE}/mid{{i:02d}}/prefix",
             f"{BACKBONE}/mid{{i:02d}}/queries"), f"{MID}.{{i}}", TABLE),
        row(f"{BACKBONE}/queries", f"{PRE}embeddings.detection_tokens", BATCHED),
        *(one for ours, theirs in heads for one in torch_dense(ours, theirs)),
    ]  # fmt: skip


def _unstacked(tensors: Tensors) -> Tensors:
    """Lists the positions between the blocks one by one, from 1 on."""
    shape = tensors.shapes.get(MID)
    if shape is None:
        return tensors
    if len(shape) != 4 or not 0 < shape[0] <= MOST_LAYERS:
        raise UserError(f"{tensors.path}: {MID} is [layers, 1, tokens, width], not {list(shape)}")
    listed = {f"{MID}.{layer + 1}": layer for layer in range(shape[0])}
    names = [name for name in tensors.shapes if name != MID]
    stack = functools.cache(lambda: tensors.read(MID))
    return dataclasses.replace(
        tensors,
        shapes={name: tensors.shapes[name] for name in names} | dict.fromkeys(listed, shape[1:]),
        dtypes={name: tensors.dtypes[name] for name in names}
        | dict.fromkeys(listed, tensors.dtypes[MID]),
        read=lambda name: stack()[listed[name]] if name in listed else tensors.read(name),
    )


def _stacked(
    flat: dict[str, np.ndarray], config: Config, dialect: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The inverse of `_unstacked`."""
    if not config.mid_positions:
        return flat
    names = [f"{MID}.{layer}" for layer in range(1, config.num_layers)]
    kept = {name: x for name, x in flat.items() if name not in names}
    return kept | {MID: np.stack([flat[name] for name in names])}


def _describe(tensors: Tensors, known: dict[str, Any]) -> Description:
    c, shapes = tensors.config, tensors.shapes
    if c.get("model_type") != "yolos":
        raise UserError(
            f"{tensors.path} has the names of YOLOS but no config.json of it beside it: give the "
            "folder"
        )
    rows = [
        dataclasses.replace(one, ours=tuple(x.removeprefix(f"{BACKBONE}/") for x in one.ours))
        for one in _rows(None, {})
    ]
    shown = Shown(tensors, rows, torch=True)
    fields = vit_fields(shown, known, {})
    size = c.get("image_size")
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) != 2:
        raise UserError(f"{tensors.path}: its config.json has no image_size")
    heads, gelu = heads_and_gelu(tensors, known)
    count = shown["head/kernel"][-1] - 1
    if count < 1:
        raise UserError(f"{tensors.path}: its head has {count + 1} outputs, fewer than two")
    fields |= {
        "image_size": known.get("image_size", sides), "num_classes": count,
        "num_heads": heads, "gelu": gelu,
        "layernorm_eps": c.get("layer_norm_eps", 1e-12), "qkv_bias": c.get("qkv_bias", True),
        "num_queries": shapes[f"{PRE}embeddings.detection_tokens"][1],
        "mid_positions": f"{MID}.1" in shapes, "posemb_resize": "huggingface",
    }  # fmt: skip
    shows = processor_of(tensors.path, patch_size=fields["patch_size"])
    data, guessed = shows.images
    if "mean" not in guessed and all(shows.canvas) and shows.canvas != sides:
        data = dataclasses.replace(data, image_size=shows.canvas)
    return Description(
        YolosConfig, fields, data, classes_of(tensors.path / "config.json", c, count),
        guessed=guessed, refusal=shows.refusal, notes=shows.notes,
    )  # fmt: skip


def _refuses(config: Config) -> list[str]:
    """Parts of a ViT that Transformers' YOLOS does not have, though there are names for them."""
    assert isinstance(config, YolosConfig)
    refused = [f"mlp {config.mlp!r}"] * (config.mlp != "dense")
    refused += ["layer_scale"] * bool(config.layer_scale)
    refused += ["a ViT without a class token"] * (not config.class_token)
    without = config.class_token and not config.num_prefix_positions
    refused += ["a class token without a position"] * without
    refused += ["a detector of no class"] * (not config.num_classes)
    refused += ["mid_positions of a single block"] * (
        config.mid_positions and config.num_layers < 2
    )
    return refused + ["patches projected without a bias"] * (not config.embed_bias)


HUGGINGFACE_YOLOS = Layout(
    "huggingface-yolos", _rows,
    Reader(
        lambda names: f"{PRE}embeddings.detection_tokens" in names, _describe, prepare=_unstacked,
    ),
    Writer(
        families=(YolosConfig,), finish=_stacked, refuses=_refuses, notes=notes,
        files={"config.json": yolos_json, "preprocessor_config.json": processor_json("Yolos")},
    ),
)  # fmt: skip
