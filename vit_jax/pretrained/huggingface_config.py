"""Reads and writes the JSON files in a folder of Transformers: `config.json` and
`preprocessor_config.json`."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.models.configs import ViTConfig
from vit_jax.models.data_config import IMAGENET, SQUASHED, DataConfig, crop_of
from vit_jax.models.model import Model
from vit_jax.pretrained.layout import SHOWN_BY, some
from vit_jax.pretrained.stated import MOST_BYTES, brief, check_classes, check_keys
from vit_jax.records import read_object

ACTIVATIONS = {
    "gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "quick_gelu": "quick",
}  # fmt: skip
_NAMES = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
# The activation for each `problem_type`. Transformers' pipeline and `vit predict` agree on it.
PROBLEM_TYPES = {
    "single_label_classification": "softmax", "multi_label_classification": "sigmoid",
    "regression": "none",
}  # fmt: skip
_TITLES = {
    "vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
}  # fmt: skip
# Pillow's numbers of its filters.
_FILTERS = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area", 5: "hamming",
}  # fmt: skip

# The default settings of Transformers' processors, by the beginning of their names.
_ANY = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": False,
        "crop_size": {"height": 224, "width": 224}}  # fmt: skip
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": _ANY | {"resample": 2, "size": {"height": 224, "width": 224}},
    "DeiT": _ANY | {"resample": 3, "size": {"height": 256, "width": 256}, "do_center_crop": True},
    "Bit": _ANY | {
        "resample": 3, "size": {"shortest_edge": 224}, "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
}  # fmt: skip
_SIDES = ("height", "width")
_OF_MODEL = {"vit": "ViT", "deit": "DeiT", "dinov2": "Bit", "dinov2_with_registers": "Bit"}

# The preprocessing of the published models, by their processor.
_CROPPED = DataConfig(IMAGENET.mean, IMAGENET.std, "bicubic", crop=0.875, floor=True)
_PUBLISHED = {
    "ViT": SQUASHED, "DeiT": dataclasses.replace(_CROPPED, squash=True), "Bit": _CROPPED,
}  # fmt: skip


def preprocessing(
    folder: Path, model: str, image_size: tuple[int, int]
) -> tuple[DataConfig, tuple[str, ...]]:
    """The settings in `preprocessor_config.json`, and the names of fields that are guessed. Without
    the file, all are guessed: those of the published models.

    Raises UserError if the file is no JSON, or has settings with no counterpart here.
    """
    path, kind = folder / "preprocessor_config.json", _OF_MODEL[model]
    if not path.is_file():
        return _PUBLISHED[kind], SHOWN_BY
    stated = read_object(path, most=MOST_BYTES)
    check_keys(path, stated)
    name = stated.get("image_processor_type") or stated.get("feature_extractor_type") or kind
    match = re.fullmatch(r"(ViT|DeiT|Bit)(ImageProcessor(Fast|Pil)?|FeatureExtractor)?", name)
    if match is None:
        raise UserError(
            f"{path}: {printable(name)[:80]} is no processor of {', '.join(_PROCESSORS)}"
        )
    defaults = _PROCESSORS[match[1]]
    settings = defaults | {key: value for key, value in stated.items() if value is not None}
    size, crop = (
        x if isinstance(x := settings[key], dict) else dict.fromkeys(defaults[key], x)
        for key in ("size", "crop_size")
    )
    short = set(size) == {"shortest_edge"}
    resized = [size.get("shortest_edge" if short else side, 0) for side in _SIDES]
    sides = [crop.get(side, 0) for side in _SIDES] if settings["do_center_crop"] else resized
    part = crop_of(sides[0], resized[0]) if 0 < sides[0] <= resized[0] else math.inf
    fits = [
        settings["do_resize"], settings["resample"] in _FILTERS, short or set(size) == set(_SIDES),
        settings["do_center_crop"] or not short,
        [math.floor(side / part) for side in sides] == resized,
    ]  # fmt: skip
    if not all(fits):  # sizes that vary with the image, a border, another filter
        keys = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
        wrong = ", ".join(f"{key} {brief(settings[key])}" for key in keys)
        raise UserError(f"{path}: {wrong} together have no counterpart here")
    factor = 255 * settings["rescale_factor"] if settings["do_rescale"] else 255
    mean_and_std = (settings["image_mean"], settings["image_std"])
    normalised = mean_and_std if settings["do_normalize"] else (0.0, 1.0)
    with np.errstate(all="ignore"):  # `check_data` refuses what is no number
        mean, std = ((np.asarray(values) / factor).tolist() for values in normalised)
    data = DataConfig(
        mean, std, _FILTERS[settings["resample"]], part, squash=not short, floor=True,
        image_size=None if sides == list(image_size) else (sides[0], sides[1]),
    )  # fmt: skip
    return data, ()


def classes_of(path: Path, config: dict[str, Any], count: int) -> list[str] | None:
    """The outputs' names in `id2label`, if any. Raises UserError if it has other numbers."""
    names = config.get("id2label") or {}
    if not count or len(names) != count:
        return None
    if sorted(names) != sorted(map(str, range(count))):
        raise UserError(f"{path}: id2label numbers {some(sorted(names))}, not 0 … {count - 1}")
    unnamed = names["0"] == "LABEL_0"  # Transformers' text for an output without a name
    listed = [names[str(number)] for number in range(count)]
    check_classes(f"{path}: id2label", listed)
    return None if unnamed else listed


def activation_of(path: Path, config: dict[str, Any]) -> str:
    """The activation for the logits. Raises UserError if the `problem_type` is unknown."""
    problem = config.get("problem_type") or "single_label_classification"
    if problem not in PROBLEM_TYPES:
        raise UserError(
            f"{path}: problem_type is one of {', '.join(PROBLEM_TYPES)}, not {problem!r}"
        )
    return PROBLEM_TYPES[problem]


def config_json(model: Model, classes: list[str] | None, dialect: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` from which Transformers' `from_pretrained(FOLDER)` makes the model."""
    c, kind = model.config, dialect["model"]
    assert isinstance(c, ViTConfig)
    task = "ForImageClassification" if c.num_classes else "Model"
    teacher = "WithTeacher" if c.distilled and c.num_classes else ""
    names = classes or [f"LABEL_{i}" for i in range(c.num_classes)]
    config: dict[str, Any] = {
        "architectures": [f"{_TITLES[kind]}{task}{teacher}"], "model_type": kind,
        "hidden_size": c.hidden_size, "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "image_size": c.image_size[0] if len(set(c.image_size)) == 1 else list(c.image_size),
        "patch_size": c.patch_size, "num_channels": c.channels, "qkv_bias": c.qkv_bias,
        "layer_norm_eps": c.layernorm_eps, "hidden_act": _NAMES[c.gelu],
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }  # fmt: skip
    if c.num_classes:
        types = {activation: problem for problem, activation in PROBLEM_TYPES.items()}
        config |= {"problem_type": types[model.output_activation]}
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
    """The whole number `mlp_ratio` of a DINOv2: the MLP's hidden width is so many times the width.
    A SwiGLU has two thirds of that, rounded up to a multiple of 8.

    Raises UserError if no ratio gives the hidden width.
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
    """The `preprocessor_config.json` for Transformers' image processors."""
    data = model.data_config
    mean, std = data.per_channel(model.config.channels)
    size = data.image_size or model.config.image_size
    resized = data.resized(size)
    kind = "Bit" if not data.squash else "ViT" if resized == tuple(size) else "DeiT"
    resizing: dict[str, Any] = {"size": dict(zip(_SIDES, resized, strict=True))}
    if kind == "Bit":
        resizing = {"size": {"shortest_edge": max(resized)}}
    resizing |= {"do_center_crop": kind != "ViT"}
    resizing |= {"crop_size": dict(zip(_SIDES, size, strict=True))} if kind != "ViT" else {}
    numbers = {name: number for number, name in _FILTERS.items()}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255,
        "image_mean": mean, "image_std": std, "resample": numbers[data.interpolation], **resizing,
    }  # fmt: skip


def notes(model: Model) -> list[str]:
    """Differences that `preprocessor_config.json` cannot state."""
    height, width = size = model.data_config.resized(model.config.image_size)
    if model.data_config.squash or height == width:
        return []
    return [f"images cover {size} here; Transformers resize their short side to {max(size)}"]
