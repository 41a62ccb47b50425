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
from vit_jax.pretrained.layout import SHOWN_BY, Images, Unshown, some
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
    "Siglip": _ANY | {"resample": 3, "size": {"height": 224, "width": 224}},
    "ConvNext": _ANY | {
        "resample": 3, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256,
    },
    "EfficientNet": _ANY | {
        "resample": 3, "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289}, "include_top": True,
    },
}  # fmt: skip
_PROCESSORS["CLIP"] = _PROCESSORS["Bit"]
WHOLE_FROM = 384  # short side from which ConvNext's processor crops nothing
_SIDES = ("height", "width")
_OF_MODEL = {
    "vit": "ViT", "vit_mae": "ViT", "deit": "DeiT", "dinov2": "Bit", "dinov2_with_registers": "Bit",
}  # fmt: skip

# The preprocessing of the published models, by their processor.
_CROPPED = DataConfig(IMAGENET.mean, IMAGENET.std, "bicubic", crop=0.875, floor=True)
_PUBLISHED = {
    "ViT": SQUASHED, "DeiT": dataclasses.replace(_CROPPED, squash=True), "Bit": _CROPPED,
}  # fmt: skip


def preprocessing(folder: Path, model: str, image_size: tuple[int, int]) -> Images:
    """The settings in `preprocessor_config.json`, and the names of fields that are guessed. Without
    the file, all are guessed: those of the published models.

    Raises Unshown if they have no counterpart here; UserError if the file is no JSON, or if a value
    has another type than its key.
    """
    path, kind = folder / "preprocessor_config.json", _OF_MODEL[model]
    if not path.is_file():
        data = _PUBLISHED[kind]
        if model == "vit_mae":
            data = dataclasses.replace(data, mean=IMAGENET.mean, std=IMAGENET.std)
        return data, SHOWN_BY
    stated = read_object(path, most=MOST_BYTES)
    check_keys(path, stated)
    name = stated.get("image_processor_type") or stated.get("feature_extractor_type") or kind
    match = re.fullmatch(
        rf"({'|'.join(_PROCESSORS)})(ImageProcessor(Fast|Pil)?|FeatureExtractor)?", name
    )
    refusal = ""
    if match is None:
        refusal = f"{path}: {printable(name)[:80]} is no processor of {', '.join(_PROCESSORS)}"
    defaults = _PROCESSORS[match[1] if match else kind]
    settings = defaults | {key: value for key, value in stated.items() if value is not None}
    data, fits = _shown(settings, defaults, stated, image_size)
    if not fits and not refusal:  # sizes that vary with the image, a border, another filter
        keys = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
        wrong = ", ".join(f"{key} {brief(settings[key])}" for key in keys)
        refusal = f"{path}: {wrong} together have no counterpart here"
    if refusal:
        unknown = {"mean", "std"} - {key.removeprefix("image_") for key in stated}
        raise Unshown(refusal, (data, tuple(sorted(unknown)) if match is None else ()))
    return data, ()


def _shown(
    settings: dict[str, Any], defaults: dict[str, Any], stated: dict[str, Any],
    image_size: tuple[int, int],
) -> tuple[DataConfig, bool]:  # fmt: skip
    """How a processor shows images, and whether its resizing and its crop can be done here."""
    size, crop = (
        x if isinstance(x := settings[key], dict) else dict.fromkeys(defaults[key], x)
        for key in ("size", "crop_size")
    )
    cropped, known = settings["do_center_crop"], True
    if "crop_pct" in defaults:  # ConvNext's, which crops by itself
        side = size.get("shortest_edge", 0)
        crop, known = dict.fromkeys(_SIDES, side), not cropped and "shortest_edge" in size
        if cropped := side < WHOLE_FROM:
            size = {"shortest_edge": int(side / settings["crop_pct"])}
        else:
            size = crop
    short = set(size) == {"shortest_edge"}
    resized = [size.get("shortest_edge" if short else side, 0) for side in _SIDES]
    sides = [crop.get(side, 0) for side in _SIDES] if cropped else resized
    mean, std = normalised(settings)
    if not settings["do_resize"]:  # images have their size already, or more, which is cut off
        own = stated.get("crop_size" if cropped else "size") is not None
        written = "decode|central_crop(floor=True)" if cropped else "decode"
        data = DataConfig(mean, std, crop=1.0, squash=not cropped, floor=True, written=written)
        return data, known and own and sides == list(image_size) and not settings.get("do_pad")
    part = crop_of(sides[0], resized[0]) if 0 < sides[0] <= resized[0] else math.inf
    fits = [
        known, settings["resample"] in _FILTERS, short or set(size) == set(_SIDES),
        cropped or not short, not settings.get("do_pad"),
        [math.floor(side / part) for side in sides] == resized,
    ]  # fmt: skip
    if not all(fits):
        return DataConfig(mean, std), False
    return DataConfig(
        mean, std, _FILTERS[settings["resample"]], part, squash=not short, floor=True,
        image_size=None if sides == list(image_size) else (sides[0], sides[1]),
    ), True  # fmt: skip


def normalised(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Mean and standard deviation of pixels in 0 … 1 that give a processor's values."""
    factor = 255 * settings["rescale_factor"] if settings["do_rescale"] else 255
    mean, std = (np.asarray(settings[f"image_{key}"], float) for key in ("mean", "std"))
    divisor = std if settings.get("include_top") else 1.0  # EfficientNet's divides once more
    if not settings["do_normalize"]:
        mean, std = np.zeros(()), np.ones(())
    if settings.get("rescale_offset") and settings["do_rescale"]:
        mean = mean + 1
    with np.errstate(all="ignore"):  # `check_data` refuses what is no number
        return (mean / factor).tolist(), (std * divisor / factor).tolist()


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
    config = {
        "architectures": [f"{_TITLES[kind]}{task}{teacher}"], "model_type": kind,
        **encoder_keys(c), **labels(classes, c.num_classes),
        "image_size": c.image_size[0] if len(set(c.image_size)) == 1 else list(c.image_size),
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


def encoder_keys(c: ViTConfig) -> dict[str, Any]:
    """What every `config.json` with a ViT states of it, apart from the size of its images."""
    return {
        "hidden_size": c.hidden_size, "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads, "patch_size": c.patch_size, "num_channels": c.channels,
        "qkv_bias": c.qkv_bias, "layer_norm_eps": c.layernorm_eps, "hidden_act": _NAMES[c.gelu],
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip


def labels(classes: list[str] | None, count: int) -> dict[str, Any]:
    """The names of the outputs, both ways. Without names, those that Transformers would give."""
    names = classes or [f"LABEL_{i}" for i in range(count)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


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
    if data.written in ("decode", "decode|central_crop(floor=True)"):  # read from such a file
        resizing |= {"do_resize": False}
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
