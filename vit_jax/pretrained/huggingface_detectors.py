"""Reads and writes the JSON files in a folder of Transformers that holds a detector: a DETR or a
YOLOS.

Their processors make images as large as a canvas holds them, and pad a batch to its largest image.
A model here has one canvas, which `pad_size` states.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_jax import calls
from vit_jax.errors import UserError, printable
from vit_jax.models.data_config import IMAGENET, DataConfig
from vit_jax.models.detector_configs import DetrResNetConfig, YolosConfig
from vit_jax.models.model import Model
from vit_jax.pretrained.huggingface_config import encoder_keys, labels, normalised
from vit_jax.pretrained.layout import Dialect, Images, Unshown
from vit_jax.pretrained.stated import MOST_BYTES, brief, check_keys
from vit_jax.records import read_object

FITTED = "decode|fit(how='bilinear')|pad"
SQUASHED = "decode|resize(how='bilinear')"
BILINEAR = 2  # Pillow's number
# What a written processor does, but for the filter by which images shrink.
SAME = (FITTED, SQUASHED, "decode|fit|pad", "decode|resize")
_PROCESSOR = re.compile(
    r"(Detr|ConditionalDetr|DeformableDetr|Yolos)(ImageProcessor(Fast|Pil)?|FeatureExtractor)"
)
_DEFAULTS: dict[str, Any] = {
    "image_processor_type": "DetrImageProcessor", "do_resize": True, "max_size": 1333,
    "size": {"shortest_edge": 800, "longest_edge": 1333}, "resample": BILINEAR,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": IMAGENET.mean, "image_std": IMAGENET.std,
}  # fmt: skip

# The ResNets that timm has by name, by their units: a dilated one is theirs in Transformers.
TIMM: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"
}  # fmt: skip


def processor_of(folder: Path) -> dict[str, Any]:
    """The settings of `preprocessor_config.json`; those of DETR's authors without the file.

    Raises UserError if the file is no JSON, or if a value has another type than its key.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return _DEFAULTS
    stated = read_object(path, most=MOST_BYTES)
    check_keys(path, stated)
    old = {"image_processor_type": stated.get("feature_extractor_type")}
    given = {key: value for key, value in (old | stated).items() if value is not None}
    return _DEFAULTS | given


def canvas_of(settings: dict[str, Any]) -> tuple[int, int]:
    """The (height, width) of the canvas: of a wide image, if the sides are a short and a long one.
    (0, 0) if `size` states none."""
    size, longest = settings["size"], settings["max_size"]
    if not isinstance(size, dict):
        return size, longest
    for first, second in (("max_height", "max_width"), ("height", "width")):
        if first in size and second in size:
            return size[first], size[second]
    return size.get("shortest_edge", 0), size.get("longest_edge", longest)


def shown_by(folder: Path, settings: dict[str, Any]) -> Images:
    """How a processor shows images, and the names of guessed fields, of which there are none.

    Raises Unshown if that has no counterpart here.
    """
    where = folder / "preprocessor_config.json"
    squashes = isinstance(settings["size"], dict) and "height" in settings["size"]
    data = DataConfig(*normalised(settings), written=SQUASHED if squashes else FITTED)
    name = settings["image_processor_type"]
    if not _PROCESSOR.fullmatch(name):
        raise Unshown(f"{where}: {printable(name)[:80]} is no processor of DETR, YOLOS", (data, ()))
    keys = ("do_resize", "size", "resample")
    if (
        not settings["do_resize"]
        or not all(canvas_of(settings))
        or settings["resample"] != BILINEAR
    ):
        wrong = ", ".join(f"{key} {brief(settings[key])}" for key in keys)
        raise Unshown(f"{where}: {wrong} together have no counterpart here", (data, ()))
    return data, ()


def processor_json(title: str) -> Callable[[Model, list[str] | None, Dialect], dict[str, Any]]:
    """Makes the `preprocessor_config.json` of a DETR (`Detr`) or a YOLOS (`Yolos`)."""

    def made(model: Model, classes: list[str] | None, dialect: Dialect) -> dict[str, Any]:
        mean, std = model.data_config.per_channel(model.config.channels)
        height, width = model.data_config.image_size or model.config.image_size
        sides = {"height": height, "width": width}
        sizes: dict[str, Any] = {"size": sides, "do_pad": False}
        if _given(model) == FITTED:
            size = {f"max_{side}": length for side, length in sides.items()}
            sizes = {"size": size, "do_pad": True, "pad_size": sides}
        return {
            "image_processor_type": f"{title}ImageProcessor", "format": "coco_detection",
            "do_resize": True, "resample": BILINEAR, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": mean, "image_std": std, **sizes,
        }  # fmt: skip

    return made


def _operations(pipeline: str) -> list[str]:
    return [calls.name_of(part) for part in calls.split(pipeline)]


def _given(model: Model) -> str:
    """The pipeline that a written processor has."""
    pipeline = model.data_config.pipeline(model.config.image_size)
    return SQUASHED if _operations(pipeline) == _operations(SQUASHED) else FITTED


def notes(model: Model) -> list[str]:
    """Differences that `preprocessor_config.json` cannot state."""
    pipeline, given = model.data_config.pipeline(model.config.image_size), _given(model)
    if pipeline in SAME:
        return []
    return [f"images are shown by {pipeline!r} here; Transformers are given the like of {given!r}"]


def yolos_json(model: Model, classes: list[str] | None, dialect: Dialect) -> dict[str, Any]:
    """The `config.json` from which Transformers make a YOLOS."""
    c = model.config
    assert isinstance(c, YolosConfig)
    return {
        "architectures": ["YolosForObjectDetection"], "model_type": "yolos", **encoder_keys(c),
        "intermediate_size": c.mlp_dim, "image_size": list(c.image_size),
        "num_detection_tokens": c.num_queries, "use_mid_position_embeddings": c.mid_positions,
        **labels(classes, c.num_classes),
    }  # fmt: skip


def detr_json(model: Model, classes: list[str] | None, dialect: Dialect) -> dict[str, Any]:
    """The `config.json` from which Transformers make a DETR. Its backbone is their own ResNet, or
    timm's, as `dialect` says.

    Raises UserError if it is timm's, which has none of such units.
    """
    c = model.config
    assert isinstance(c, DetrResNetConfig)
    return {
        "architectures": ["DetrForObjectDetection"], "model_type": "detr",
        **(_timm(c) if dialect["resnet"] == "torchvision" else _own(c)), "dilation": c.dilated,
        "num_channels": c.channels, "num_queries": c.num_queries, "d_model": c.detector_width,
        "encoder_layers": c.detector_encoder, "decoder_layers": c.detector_decoder,
        "encoder_attention_heads": c.detector_heads, "decoder_attention_heads": c.detector_heads,
        "encoder_ffn_dim": c.detector_mlp_dim, "decoder_ffn_dim": c.detector_mlp_dim,
        "dropout": c.detector_dropout, "attention_dropout": c.detector_dropout,
        "activation_dropout": c.detector_dropout, "activation_function": "relu",
        "position_embedding_type": "sine", **labels(classes, c.num_classes),
    }  # fmt: skip


def _timm(c: DetrResNetConfig) -> dict[str, Any]:
    name = TIMM.get(c.resnet_layers)
    if name is None or c.stage_width != 64:
        raise UserError(
            f"timm has no ResNet of {c.resnet_layers} units that begins with {c.stage_width} "
            f"channels: those of 64 channels with {', '.join(map(str, TIMM))}"
        )
    return {"use_timm_backbone": True, "backbone": name, "backbone_config": None,
            "use_pretrained_backbone": False}  # fmt: skip


def _own(c: DetrResNetConfig) -> dict[str, Any]:
    stages = range(len(c.resnet_layers))
    return {"use_timm_backbone": False, "backbone": None, "backbone_config": {
        "model_type": "resnet", "num_channels": c.channels, "depths": list(c.resnet_layers),
        "embedding_size": c.stage_width, "layer_type": "bottleneck", "hidden_act": "relu",
        "hidden_sizes": [4 * c.stage_width * 2**stage for stage in stages],
        "downsample_in_first_stage": False, "downsample_in_bottleneck": False,
        "out_features": [f"stage{len(stages)}"],
    }}  # fmt: skip
