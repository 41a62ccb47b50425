"""What stands beside the tensors in a folder of Transformers: `config.json` and
`preprocessor_config.json`, read and written."""

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
# What `problem_type` means of the logits; Transformers' pipeline reads it as `vit predict` does.
PROBLEM_TYPES = {
    "single_label_classification": "softmax", "multi_label_classification": "sigmoid",
    "regression": "none",
}  # fmt: skip
_TITLES = {
    "vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
}  # fmt: skip
# Pillow's numbers.
_FILTERS = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area", 5: "hamming",
}  # fmt: skip

# Transformers' processors by the beginning of their names: what they do where the file is silent.
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

# What the published models of a kind have.
_CROPPED = DataConfig(IMAGENET.mean, IMAGENET.std, "bicubic", crop=0.875, floor=True)
_PUBLISHED = {
    "ViT": SQUASHED, "DeiT": dataclasses.replace(_CROPPED, squash=True), "Bit": _CROPPED,
}  # fmt: skip


def preprocessing(
    folder: Path, model: str, image_size: tuple[int, int]
) -> tuple[DataConfig, tuple[str, ...]]:
    """`preprocessor_config.json`, or what the published models of the kind have; and the fields
    that are guessed so.

    Raises UserError where the file is no JSON, or says what nothing here does.
    """
    path, kind = folder / "preprocessor_config.json", _OF_MODEL[model]
    if not path.is_file():
        return _PUBLISHED[kind], SHOWN_BY
    given = read_object(path, most=MOST_BYTES)
    check_keys(path, given)
    name = given.get("image_processor_type") or given.get("feature_extractor_type") or kind
    found = re.fullmatch(r"(ViT|DeiT|Bit)(ImageProcessor(Fast|Pil)?|FeatureExtractor)?", name)
    if found is None:
        raise UserError(
            f"{path}: {printable(name)[:80]} is no processor of {', '.join(_PROCESSORS)}"
        )
    usual = _PROCESSORS[found[1]]
    said = usual | {key: value for key, value in given.items() if value is not None}
    size, crop = (
        said[key] if isinstance(said[key], dict) else dict.fromkeys(usual[key], said[key])
        for key in ("size", "crop_size")
    )
    short = set(size) == {"shortest_edge"}
    resized = [size.get("shortest_edge" if short else side, 0) for side in _SIDES]
    sides = [crop.get(side, 0) for side in _SIDES] if said["do_center_crop"] else resized
    part = crop_of(sides[0], resized[0]) if 0 < sides[0] <= resized[0] else math.inf
    fits = [
        said["do_resize"], said["resample"] in _FILTERS, short or set(size) == set(_SIDES),
        [math.floor(side / part) for side in sides] == resized, said["do_center_crop"] or not short,
    ]  # fmt: skip
    if not all(fits):  # images of any aspect, a border, another filter
        keys = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
        wrong = ", ".join(f"{key} {brief(said[key])}" for key in keys)
        raise UserError(f"{path}: {wrong} together have no counterpart here")
    factor = 255 * said["rescale_factor"] if said["do_rescale"] else 255
    normalised = (said["image_mean"], said["image_std"]) if said["do_normalize"] else (0.0, 1.0)
    with np.errstate(all="ignore"):  # what is no number is refused, with all other settings
        mean, std = ((np.asarray(values) / factor).tolist() for values in normalised)
    data = DataConfig(
        mean, std, _FILTERS[said["resample"]], part, squash=not short, floor=True,
        image_size=None if sides == list(image_size) else (sides[0], sides[1]),
    )  # fmt: skip
    return data, ()


def classes_of(path: Path, config: dict[str, Any], count: int) -> list[str] | None:
    """Names of the outputs, where `id2label` has them. Raises UserError where it numbers others."""
    names = config.get("id2label") or {}
    if not count or len(names) != count:
        return None
    if sorted(names) != sorted(map(str, range(count))):
        raise UserError(f"{path}: id2label numbers {some(sorted(names))}, not 0 … {count - 1}")
    unnamed = names["0"] == "LABEL_0"  # what Transformers write where there are no names
    listed = [names[str(number)] for number in range(count)]
    check_classes(f"{path}: id2label", listed)
    return None if unnamed else listed


def activation_of(path: Path, config: dict[str, Any]) -> str:
    """What the logits mean, where `problem_type` says it. Raises UserError for an unknown one."""
    problem = config.get("problem_type") or "single_label_classification"
    if problem not in PROBLEM_TYPES:
        raise UserError(
            f"{path}: problem_type is one of {', '.join(PROBLEM_TYPES)}, not {problem!r}"
        )
    return PROBLEM_TYPES[problem]


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
    data = model.data_config
    mean, std = data.per_channel(model.config.channels)
    size = data.image_size or model.config.image_size
    resized = data.resized(size)
    kind = "Bit" if not data.squash else "ViT" if resized == tuple(size) else "DeiT"
    shown: dict[str, Any] = {"size": dict(zip(_SIDES, resized, strict=True))}
    if kind == "Bit":
        shown = {"size": {"shortest_edge": max(resized)}}
    shown |= {"do_center_crop": kind != "ViT"}
    shown |= {"crop_size": dict(zip(_SIDES, size, strict=True))} if kind != "ViT" else {}
    numbers = {name: number for number, name in _FILTERS.items()}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255,
        "image_mean": mean, "image_std": std, "resample": numbers[data.interpolation], **shown,
    }  # fmt: skip


def notes(model: Model) -> list[str]:
    """What `preprocessor_config.json` cannot say."""
    height, width = size = model.data_config.resized(model.config.image_size)
    if model.data_config.squash or height == width:
        return []
    return [f"images cover {size} here; Transformers resize their short side to {max(size)}"]
