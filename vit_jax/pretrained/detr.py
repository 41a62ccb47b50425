"""Weights of DETR: facebookresearch's state dicts, and Transformers' `DetrForObjectDetection`.

Both have torchvision's names for the ResNet, Transformers also their own. Its batch norms are
frozen: their four tensors are a scale and a bias here. Transformers name the transformer's parts
otherwise. Their folders state the sizes; facebookresearch's files state what their shapes show, and
have eight heads.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.detector_configs import DetrResNetConfig
from vit_jax.models.family import Config
from vit_jax.pretrained.huggingface_config import classes_of
from vit_jax.pretrained.huggingface_detectors import (
    check_backbone,
    detr_json,
    notes,
    processor_json,
    processor_of,
)  # fmt: skip
from vit_jax.pretrained.layout import Description, Layout, Reader, Writer
from vit_jax.pretrained.resnet_v1 import COUNTERS, RESNET_NAMES, UNIT
from vit_jax.pretrained.rows import (
    DENSE,
    DENSE_OUT,
    POINTWISE,
    Codec,
    Row,
    row,
    torch_dense,
    torch_norm,
)  # fmt: skip
from vit_jax.pretrained.shown import Shown
from vit_jax.pretrained.tensors import Tensors

HEADS = 8
RESNET = "backbone/backbone"


# Queries, keys and values in one matrix (3 D, D): three kernels (D, H, D/H), or three biases.
IN_PROJECTION = Codec(
    lambda xs, shapes: [
        part.T.reshape(shape) for part, shape in zip(np.split(xs[0], 3), shapes, strict=True)
    ],
    lambda ps: [_concatenated([p.reshape(p.shape[0], -1).T for p in ps])],
)
IN_BIAS = Codec(
    lambda xs, shapes: [
        part.reshape(shape) for part, shape in zip(np.split(xs[0], 3), shapes, strict=True)
    ],
    lambda ps: [_concatenated([p.reshape(-1) for p in ps])],
)


def _concatenated(parts: list) -> Any:
    import jax.numpy as jnp

    return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts)


def _joined_attention(ours: str, theirs: str) -> list[Row]:
    kernels, biases = ([f"{ours}/{x}/{part}" for x in "qkv"] for part in ("kernel", "bias"))
    return [
        row(kernels, f"{theirs}.in_proj_weight", IN_PROJECTION),
        row(biases, f"{theirs}.in_proj_bias", IN_BIAS),
        *torch_dense(f"{ours}/out", f"{theirs}.out_proj", DENSE_OUT),
    ]


def _parted_attention(ours: str, theirs: str) -> list[Row]:
    return [
        *(one for x in "qkv" for one in torch_dense(f"{ours}/{x}", f"{theirs}.{x}_proj", DENSE)),
        *torch_dense(f"{ours}/out", f"{theirs}.out_proj", DENSE_OUT),
    ]


@dataclasses.dataclass(frozen=True)
class _Names:
    """The names of one code base. Those in `layer` are below `stack`, by our names."""

    resnet: str
    stack: str
    attention: Callable[[str, str], list[Row]]
    layer: dict[str, str]
    last_norm: dict[str, str]  # of a layer, by its stack
    others: dict[str, str]
    box: str

    def rows(self, config: Config | None, dialect: dict[str, Any]) -> list[Row]:
        """The table, which is the same for every config. The dialect says whose ResNet it is."""
        rows = RESNET_NAMES[dialect.get("resnet", "torchvision")].rows(RESNET, self.resnet)
        others, layer = self.others, self.layer
        for stack in ("encoder", "decoder"):
            ours, theirs = f"{stack}/block{{i:02d}}", self.stack.format(stack) + ".{i}."
            rows += self.attention(f"{ours}/attention", theirs + layer["attention"])
            rows += self.attention(f"{ours}/cross", theirs + layer["cross"])
            for name in ("norm1", "norm2"):
                rows += torch_norm(f"{ours}/{name}", theirs + layer[name])
            rows += torch_norm(f"{ours}/norm3", theirs + self.last_norm[stack])
            rows += torch_dense(f"{ours}/fc1", theirs + layer["fc1"])
            rows += torch_dense(f"{ours}/fc2", theirs + layer["fc2"])
        for n in range(3):
            rows += torch_dense(f"box{n + 1}", f"{self.box}.layers.{n}")
        return [
            *rows, *torch_norm("norm", others["norm"]), row("queries", others["queries"]),
            *torch_dense("project", others["project"], POINTWISE),
            *torch_dense("head", others["head"]),
        ]  # fmt: skip


FACEBOOK = _Names(
    "backbone.0.body.", "transformer.{}.layers", _joined_attention,
    {"attention": "self_attn", "cross": "multihead_attn", "norm1": "norm1", "norm2": "norm2",
     "fc1": "linear1", "fc2": "linear2"},
    {"encoder": "norm2", "decoder": "norm3"},
    {"norm": "transformer.decoder.norm", "queries": "query_embed.weight",
     "project": "input_proj", "head": "class_embed"},
    "bbox_embed",
)  # fmt: skip
TRANSFORMERS = _Names(
    "model.backbone.conv_encoder.model.", "model.{}.layers", _parted_attention,
    {"attention": "self_attn", "cross": "encoder_attn", "norm1": "self_attn_layer_norm",
     "norm2": "encoder_attn_layer_norm", "fc1": "fc1", "fc2": "fc2"},
    {"encoder": "final_layer_norm", "decoder": "final_layer_norm"},
    {"norm": "model.decoder.layernorm", "queries": "model.query_position_embeddings.weight",
     "project": "model.input_projection", "head": "class_labels_classifier"},
    "bbox_predictor",
)  # fmt: skip


def _described(names: _Names) -> Callable[[Tensors, dict[str, Any]], Description]:
    def describe(tensors: Tensors, known: dict[str, Any]) -> Description:
        own = f"{names.resnet}{RESNET_NAMES['transformers'].root}.weight" in tensors.shapes
        dialect = {"resnet": "transformers" if own else "torchvision"}
        shown = Shown(tensors, names.rows(None, dialect), torch=True)
        c = tensors.config
        count = shown["head/kernel"][-1] - 1
        if count < 1:
            raise UserError(f"{tensors.path}: its head has {count + 1} outputs, fewer than two")
        width, mlp = shown["decoder/block{i:02d}/fc1/kernel"]
        layers = {
            stack: shown.layers(f"{stack}/block{{i:02d}}/norm1/scale")
            for stack in ("encoder", "decoder")
        }
        units = shown.units(f"{RESNET}/{UNIT}/conv1/kernel")
        heads = known.get("detector_heads") or c.get("decoder_attention_heads", HEADS)
        _check_stated(tensors.path, c, layers["encoder"])
        shows = processor_of(tensors.path, authors=names is FACEBOOK)
        of_run = known.get("run", {}).get("image_size")
        size = known.get("image_size") or (shows.canvas if all(shows.canvas) else of_run)
        if not size:
            raise UserError(shows.refusal)
        fields = {
            "resnet_layers": units, "norm": "frozen", "num_classes": count,
            "stage_width": shown[f"{RESNET}/root/conv/kernel"][-1], "image_size": size,
            "channels": shown[f"{RESNET}/root/conv/kernel"][2],
            "dilated": bool(known.get("dilated", c.get("dilation", False))) and not own,
            "num_queries": tensors.shapes[shown.template("queries")][0],
            "detector_width": width, "detector_mlp_dim": mlp, "detector_heads": heads,
            "detector_encoder": layers["encoder"], "detector_decoder": layers["decoder"],
        }  # fmt: skip
        classes = classes_of(tensors.path / "config.json", c, count)
        return Description(
            DetrResNetConfig, fields, shows.images[0], classes, dialect, shows.images[1],
            refusal=shows.refusal, notes=shows.notes,
        )  # fmt: skip

    return describe


def _check_stated(path: Path, c: dict[str, Any], encoder: int) -> None:
    """Raises UserError for a `config.json` of another model than those here."""
    heads = [c.get(f"{stack}_attention_heads", HEADS) for stack in ("encoder", "decoder")]
    if encoder and heads[0] != heads[1]:
        raise UserError(f"{path}: encoder and decoder have {heads} heads, here equal")
    if c.get("position_embedding_type", "sine") != "sine":
        raise UserError(f"{path}: learned positions of Transformers are not read")
    if c.get("activation_function", "relu") != "relu":
        raise UserError(f"{path}: the activation is relu here")
    check_backbone(path / "config.json", c.get("backbone_config"))


def _refuses(config: Config) -> list[str]:
    """Settings that the authors' code does not have, and Transformers neither."""
    papers = {
        "queries": "learned", "detector_norm": "post", "map_positions": "sine", "norm": "frozen",
        "standardization": "none",
    }  # fmt: skip
    other = [
        f"{field} {getattr(config, field)!r}"
        for field, only in papers.items() if getattr(config, field) != only
    ]  # fmt: skip
    return other + ["a detector of no class"] * (not config.num_classes)


def _whose_resnet(config: Config) -> dict[str, Any]:
    """Transformers' own ResNet has no dilated stage, timm's has."""
    assert isinstance(config, DetrResNetConfig)
    return {"resnet": "torchvision" if config.dilated else "transformers"}


FACEBOOK_DETR = Layout(
    "detr", FACEBOOK.rows,
    Reader(
        lambda names: "transformer.decoder.norm.weight" in names and "query_embed.weight" in names,
        _described(FACEBOOK),
    ),
    Writer(
        ".safetensors", families=(DetrResNetConfig,), refuses=_refuses,
        assumes=lambda config, folder: {"detector_heads": HEADS, "dilated": False},
    ),
)  # fmt: skip
HUGGINGFACE_DETR = Layout(
    "huggingface-detr", TRANSFORMERS.rows,
    Reader(
        lambda names: "model.query_position_embeddings.weight" in names,
        _described(TRANSFORMERS), ignored=COUNTERS,
    ),
    Writer(
        families=(DetrResNetConfig,),
        files={"config.json": detr_json, "preprocessor_config.json": processor_json("Detr")},
        dialect=_whose_resnet, refuses=_refuses, notes=notes,
    ),
)  # fmt: skip
