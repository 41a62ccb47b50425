"""Reads and writes timm's `config.json`, which is beside the tensors in a folder.

`timm.create_model("local-dir:FOLDER", pretrained=True)` makes the model from a written folder.
"""

import re
from typing import Any

from vit_jax.data.ops import FILTERS
from vit_jax.errors import UserError, printable
from vit_jax.models.configs import MixerConfig, ResNetConfig
from vit_jax.models.data_config import IMAGENET, DataConfig
from vit_jax.models.family import Config
from vit_jax.models.model import Model
from vit_jax.models.registry import create_model, find_family, list_models
from vit_jax.pretrained.given import spelled
from vit_jax.pretrained.layout import SHOWN_BY, Images, Unshown
from vit_jax.pretrained.stated import brief

ACTIVATIONS = {"gelu": "exact", "gelu_tanh": "tanh", "quick_gelu": "quick"}
_NAMES = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
_POOL = {"cls": "token", "gap": "avg", "map": "map"}
_POOLS = {theirs: ours for ours, theirs in _POOL.items()}

# Fields that follow from the names of timm's architectures, but not from shapes.
_FIELDS_BY_NAME: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"vit_\w+_clip_quickgelu_\d+", {"gelu": "quick"}),
    (r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_\w+", {"gelu": "tanh"}),
    (r"vit_large_patch16_siglip_(gap_)?512", {"gelu": "tanh"}),
    (r"vit_(wee|xsmall)_\w+", {"num_heads": 4}),
    (r"vit_little_\w+", {"num_heads": 5}),
    (r"(vit|deit3)_mediumd?_\w+", {"num_heads": 8}),
    (r"vit_betwixt_\w+", {"num_heads": 10}),
    (r"vit_so150m2_\w+", {"num_heads": 13}),
    (r"vit_so150m_\w+|vit_base_patch\d+_plus_\w+", {"num_heads": 14}),
    (r"vit_base_patch16_gap_224|vit_giantopt_\w+", {"num_heads": 16}),
)
_POST_NORM = r"vit_\w+_rpn_\d+"  # its tensors have the names and shapes of a pre-norm ViT


def said_by(
    config: dict[str, Any], known: dict[str, Any], headless: bool = False, gated: bool = False
) -> dict[str, Any]:
    """The fields that timm's `config.json` states and shapes do not: heads, activation, pooling,
    the image size. A pooling or activation that is in `known` is not read.

    Args:
      headless: whether the file has no head. Then `global_pool=''` is no pooling to follow.
      gated: whether the MLPs are SwiGLUs, which state SiLU as their activation.

    Raises UserError for settings that no model here computes, because shapes do not show them.
    """
    stated: dict[str, Any] = {}
    architecture = str(config.get("architecture", "")).partition(".")[0]
    arguments = config.get("model_args") or {}
    if size := arguments.get("img_size"):
        stated["source_image_size"] = (size, size) if isinstance(size, int) else tuple(size)
    elif size := _pretrained_cfg(config).get("input_size"):
        stated["source_image_size"] = tuple(size[1:])
    if re.fullmatch(_POST_NORM, architecture):
        raise UserError(
            f"timm's {printable(architecture)} normalises after its blocks: no model here does"
        )
    if arguments.get("pool_include_prefix"):
        raise UserError("timm's pool_include_prefix: no model here pools registers too")
    for pattern, fields in _FIELDS_BY_NAME:
        if re.fullmatch(pattern, architecture):
            stated |= fields
    try:
        _, fields, _ = find_family(architecture)
        stated |= {key: fields[key] for key in ("num_heads",) if key in fields}
    except UserError:  # the architecture has no name here, so shapes decide
        pass
    stated |= {key: arguments[key] for key in ("num_heads",) if key in arguments}
    pool = arguments.get("global_pool", config.get("global_pool"))
    if pool is not None and "pool" not in known and not (headless and not pool):
        if pool not in _POOLS:
            raise UserError(
                f"timm's global_pool {brief(pool)}: no model here pools so; give one that does, "
                "such as --config.model.pool=cls"
            )
        stated["pool"] = _POOLS[pool]
    activation = arguments.get("act_layer")
    if activation and "gelu" not in known and not (gated and activation in ("silu", "swish")):
        if activation not in ACTIVATIONS:
            raise UserError(
                f"timm's act_layer {brief(activation)} has no counterpart here; another one is "
                f"computed with {spelled('gelu')}"
            )
        stated["gelu"] = ACTIVATIONS[activation]
    return stated


def _pretrained_cfg(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the training. Old files have them at the top level."""
    return config.get("pretrained_cfg") or (config if "architecture" in config else {})


def classes_of(config: dict[str, Any]) -> list[str] | None:
    """The names of the outputs, if the file lists them."""
    names = config.get("label_names") or _pretrained_cfg(config).get("label_names")
    return names if isinstance(names, list) else None


def preprocessing(config: dict[str, Any], default: DataConfig) -> Images:
    """The image settings in `pretrained_cfg`, and the names of fields that are guessed. Without a
    `pretrained_cfg`, all are guessed: `default`. A single one that is missing is timm's default.

    Raises Unshown for a mode of cropping that pads, and for an unknown filter.
    """
    stated = {key: value for key, value in _pretrained_cfg(config).items() if value is not None}
    if not stated:
        return default, SHOWN_BY
    refusal = ""
    if (mode := stated.get("crop_mode", "center")) not in ("center", "squash"):
        refusal = f"timm's crop_mode {brief(mode)} has no counterpart here"
    how = stated.get("interpolation", "bicubic").lower()
    guessed = [field for field in ("mean", "std") if field not in stated]
    if how == "random":  # drawn for each training image: bilinear or bicubic
        how = "bicubic"
        guessed.append("interpolation")
    how = "area" if how == "box" else how
    if how not in FILTERS:
        refusal = f"timm's interpolation {brief(how)} is none of {', '.join(FILTERS)}"
        how = "bicubic"
    data = DataConfig(
        stated.get("mean", IMAGENET.mean), stated.get("std", IMAGENET.std), how,
        stated.get("crop_pct", 0.875), mode == "squash",
    )  # fmt: skip
    if refusal:
        raise Unshown(refusal, (data, tuple(guessed)))
    return data, tuple(guessed)


def config_json(model: Model, classes: list[str] | None, dialect: dict) -> dict[str, Any]:
    """The `config.json` from which `timm.create_model("local-dir:FOLDER")` makes the model."""
    c, data = model.config, model.data_config
    mean, std = data.per_channel(c.channels)
    architecture, arguments = architecture_of(model)
    return {
        "architecture": architecture, "num_classes": c.num_classes,
        "num_features": getattr(c, "num_features", c.hidden_size), "model_args": arguments,
        "label_names": classes,
        "pretrained_cfg": {
            "input_size": [c.channels, *c.image_size], "mean": mean, "std": std,
            "interpolation": {"area": "box"}.get(data.interpolation, data.interpolation),
            "crop_pct": data.crop,
            "crop_mode": "squash" if data.squash else "center", "num_classes": c.num_classes,
        },
    }  # fmt: skip


def architecture_of(model: Model) -> tuple[str, dict[str, Any]]:
    """The name of a timm model and the arguments that make it this one.

    Raises UserError if timm has no such model.
    """
    c = model.config
    if isinstance(c, MixerConfig):
        return _same(c, "mixer_*", "patch_size", "num_layers", "hidden_size"), {
            "img_size": list(c.image_size), "in_chans": c.channels,
            "mlp_ratio": [_ratio(n, c.hidden_size) for n in (c.tokens_mlp_dim, c.mlp_dim)],
        }  # fmt: skip
    if isinstance(c, ResNetConfig):
        return _same(c, "resnetv2_*_bit", "resnet_layers", "width_factor"), {"in_chans": c.channels}
    arguments: dict[str, Any] = {
        "img_size": list(c.image_size), "patch_size": c.patch_size, "in_chans": c.channels,
        "embed_dim": c.hidden_size, "depth": c.num_layers, "num_heads": c.num_heads,
        "mlp_ratio": _ratio(c.mlp_dim, c.hidden_size), "qkv_bias": c.qkv_bias,
        "qk_norm": c.qk_norm,
        "init_values": c.layer_scale or None, "class_token": c.class_token,
        "no_embed_class": bool(c.num_prefix) and not c.num_prefix_positions,
        "reg_tokens": c.registers,
        "pre_norm": c.pre_norm, "global_pool": _POOL[c.pool], "fc_norm": c.norm_after_pool,
    }  # fmt: skip
    if c.mlp == "swiglu":  # timm counts both halves
        arguments["mlp_ratio"] = _ratio(2 * c.mlp_dim, c.hidden_size)
        return "vit_giant_patch14_dinov2", arguments
    arguments["act_layer"] = _NAMES[c.gelu]
    if c.resnet_layers is not None:
        del arguments["patch_size"]  # of the ResNet's features; follows from the architecture
        return _same(c, "vit_*_r*", "resnet_layers", "patch_size"), arguments
    if c.distilled:
        return "deit_base_distilled_patch16_224", {
            k: v for k, v in arguments.items() if k not in ("no_embed_class", "global_pool")
        }
    # The two architectures differ in the epsilon of their norms.
    return "vit_base_patch16_clip_224" if c.pre_norm else "vit_base_patch16_224", arguments


def _ratio(hidden: int, width: int) -> float:
    """The `mlp_ratio` from which timm computes the hidden width, as int(width * ratio)."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _same(c: Config, pattern: str, *fields: str) -> str:
    """The name of timm's architecture with the same `fields`, which no argument can change."""
    for name in list_models(pattern):
        other = create_model(name).config
        if all(getattr(other, field, 1) == getattr(c, field, 1) for field in fields):
            return name
    numbers = ", ".join(f"{field} {getattr(c, field, 1)}" for field in fields)
    raise UserError(
        f"timm has no architecture {pattern} with {numbers}: write the tensors alone, to a "
        ".safetensors file"
    )
