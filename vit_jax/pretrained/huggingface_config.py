"""What stands beside the tensors in a folder of Transformers: `config.json` and
`preprocessor_config.json`, read and written."""

import json
import math
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.model import DataConfig, Model
from vit_jax.models.registry import IMAGENET
from vit_jax.models.vit import ViTConfig

ACTIVATIONS = {
    "gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "quick_gelu": "quick",
}  # fmt: skip
_NAMES = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
_TITLES = {
    "vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
}  # fmt: skip
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area"}  # Pillow's numbers


def preprocessing(folder: Path, dinov2: bool) -> DataConfig:
    """`preprocessor_config.json`, or what the published models of the kind have.

    Raises UserError where the file is no JSON.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        published = DataConfig(IMAGENET.mean, IMAGENET.std, "bicubic", crop=0.875)
        return published if dinov2 else DataConfig(squash=True)
    try:
        shown = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    size, crop = shown.get("size", {}), shown.get("crop_size", {})
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    cropped = shown.get("do_center_crop", False) and short and isinstance(crop, dict)
    return DataConfig(
        tuple(shown.get("image_mean", (0.5,) * 3)), tuple(shown.get("image_std", (0.5,) * 3)),
        _FILTERS.get(shown.get("resample", 2), "bilinear"),
        crop.get("height", short) / short if cropped else 1.0, squash=not short,
    )  # fmt: skip


def config_json(model: Model, classes: list[str] | None, dialect: dict[str, Any]) -> dict[str, Any]:
    """The config from which Transformers make the model: `from_pretrained(FOLDER)`."""
    c, kind = model.config, dialect["model"]
    assert isinstance(c, ViTConfig)
    task = "ForImageClassification" if c.num_classes else "Model"
    teacher = "WithTeacher" if c.distilled and c.num_classes else ""
    names = classes or [f"LABEL_{i}" for i in range(c.num_classes)]
    config: dict[str, Any] = {
        "architectures": [f"{_TITLES[kind]}{task}{teacher}"], "model_type": kind,
        "hidden_size": c.hidden_size, "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads, "image_size": c.image_size[0],
        "patch_size": c.patch_size, "num_channels": c.channels, "qkv_bias": c.qkv_bias,
        "layer_norm_eps": c.layernorm_eps, "hidden_act": _NAMES[c.gelu],
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }  # fmt: skip
    if not kind.startswith("dinov2"):
        return config | {"intermediate_size": c.mlp_dim}
    config |= {
        "mlp_ratio": _mlp_ratio(c), "use_swiglu_ffn": c.mlp == "swiglu",
        "layerscale_value": c.layer_scale or 1.0,
    }  # fmt: skip
    if kind == "dinov2":
        return config | {"use_mask_token": dialect.get("masked", True)}
    return config | {"num_register_tokens": c.registers}


def _mlp_ratio(c: ViTConfig) -> int:
    """DINOv2's hidden width comes from a whole ratio; SwiGLU's is two thirds of it, in eights.

    Raises UserError for a width that no ratio gives.
    """

    def width(ratio: int) -> int:
        whole = c.hidden_size * ratio
        return (int(whole * 2 / 3) + 7) // 8 * 8 if c.mlp == "swiglu" else whole

    near = c.mlp_dim / c.hidden_size * (1.5 if c.mlp == "swiglu" else 1)
    for ratio in (math.floor(near), math.ceil(near)):
        if width(ratio) == c.mlp_dim:
            return ratio
    raise UserError(
        f"Transformers have no DINOv2 of width {c.hidden_size} with an mlp_dim of {c.mlp_dim}: "
        "theirs is a whole ratio of the width"
    )


def preprocessor_json(
    model: Model, classes: list[str] | None, dialect: dict[str, Any]
) -> dict[str, Any]:
    """How images are shown, as Transformers' image processors read it."""
    data, (height, width) = model.data_config, model.config.image_size
    mean, std = data.per_channel(model.config.channels)
    size = {"height": height, "width": width}
    shown: dict[str, Any] = {"do_center_crop": False, "size": size}
    if not data.squash:
        short = round(max(height, width) / data.crop)
        shown = {"do_center_crop": True, "crop_size": size, "size": {"shortest_edge": short}}
    numbers = {name: number for number, name in _FILTERS.items()}
    return {
        "image_processor_type": "ViTImageProcessor" if data.squash else "BitImageProcessor",
        "do_resize": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255,
        "image_mean": mean, "image_std": std, "resample": numbers[data.interpolation], **shown,
    }  # fmt: skip
