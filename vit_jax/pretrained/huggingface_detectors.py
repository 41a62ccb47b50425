"""Reads and writes the JSON files in a folder of Transformers that holds a detector: a DETR or a
YOLOS.

Their processors make images as large as a canvas holds them, and pad a batch to its largest image,
or to `pad_size`. A model here has one canvas.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import calls
from vit_jax.errors import UserError, printable
from vit_jax.models.data_config import IMAGENET, DataConfig
from vit_jax.models.detector_configs import DetrResNetConfig, YolosConfig
from vit_jax.models.model import Model
from vit_jax.pretrained.huggingface_config import encoder_keys, labels, normalised
from vit_jax.pretrained.layout import Dialect, Images, Unshown, or_refusal
from vit_jax.pretrained.stated import MOST_BYTES, brief, check_keys
from vit_jax.records import read_object

SQUASHED = "decode|resize(how='bilinear')"
BILINEAR = 2  # Pillow's number
_PROCESSOR = re.compile(
    r"(Detr|ConditionalDetr|DeformableDetr|Yolos)(ImageProcessor(Fast|Pil)?|FeatureExtractor)"
)
_DEFAULTS: dict[str, Any] = {
    "image_processor_type": "DetrImageProcessor", "do_resize": True, "max_size": 1333,
    "size": {"shortest_edge": 800, "longest_edge": 1333}, "resample": BILINEAR,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_pad": True,
    "image_mean": IMAGENET.mean, "image_std": IMAGENET.std,
}  # fmt: skip
_SIDES = ("height", "width")
_LARGEST = ("max_height", "max_width")

# The ResNets that timm has by name, by their units: a dilated one is theirs in Transformers.
TIMM: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"
}  # fmt: skip
# What Transformers' own ResNet is as a backbone here.
_RESNET = {"downsample_in_first_stage": False, "downsample_in_bottleneck": False,
           "hidden_act": "relu", "model_type": "resnet"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Processor:
    """How a folder says that images are shown.

    Attributes:
      canvas: (height, width), of a wide image if the sides are a short and a long one. A side that
        is not stated is 0.
      images: the settings, and the names of those that are guessed.
      refusal: why images cannot be shown so; empty if they can.
      notes: differences that remain.
    """

    canvas: tuple[int, int]
    images: Images
    refusal: str
    notes: tuple[str, ...]


def processor_of(
    folder: Path, *, authors: bool = False, patch_size: int | None = None
) -> Processor:
    """What `preprocessor_config.json` states. Without the file, what the authors of DETR do; their
    own files (`authors`) state nothing, so that this is no guess. With a `patch_size`, the model is
    a YOLOS: its canvas is cut to whole patches, and it sees padding.

    Raises UserError if the file is no JSON, or if a value has another type than its key.
    """
    path = folder / "preprocessor_config.json"
    stated = read_object(path, most=MOST_BYTES) if path.is_file() else {}
    check_keys(path, stated)
    old = {"image_processor_type": stated.get("feature_extractor_type")}
    given = {key: value for key, value in (old | stated).items() if value is not None}
    settings = _DEFAULTS | given
    inside, padded = _inside(settings), _padded(settings)
    patch = patch_size or 1
    height, width = (side // patch * patch for side in padded or inside)
    canvas = height, width
    images, refusal = or_refusal(_shown, path, settings, inside, canvas)
    if not path.is_file() and not authors:
        images = images[0], ("mean", "std")
    there = [f"the short side is {inside[0]}, so that an upright image is larger"]
    there *= _kind(settings) == "short"
    if patch_size and not padded and _kind(settings) != "exact":
        there.append("an image alone has no padding")
    text = f"{folder}: images are fitted into {height} x {width}; in Transformers "
    notes = (text + ", and ".join(there),) if there and path.is_file() else ()
    return Processor(canvas, images, refusal, notes)


def _kind(settings: dict[str, Any]) -> str:
    """What `size` states: `exact` sides, the `largest`, or a `short` and a long one."""
    size = settings["size"] if isinstance(settings["size"], dict) else {}
    for kind, sides in (("exact", _SIDES), ("largest", _LARGEST)):
        if set(sides) <= set(size):
            return kind
    return "short"


def _inside(settings: dict[str, Any]) -> tuple[int, int]:
    """(height, width) that an image is resized to, or fitted into."""
    size, kind = settings["size"], _kind(settings)
    if kind != "short":
        height, width = (size[side] for side in (_SIDES if kind == "exact" else _LARGEST))
        return height, width
    if not isinstance(size, dict):
        return size, settings["max_size"]
    return size.get("shortest_edge", 0), size.get("longest_edge", settings["max_size"])


def _padded(settings: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) that every image is padded to, if it is one for all."""
    size = settings.get("pad_size") if settings["do_pad"] else None
    if not isinstance(size, dict):
        return (size, size) if isinstance(size, int) else None
    return size.get("height", 0), size.get("width", 0)


def _shown(
    where: Path, settings: dict[str, Any], inside: tuple[int, int], canvas: tuple[int, int]
) -> Images:
    """How a processor shows images. Raises Unshown if that has no counterpart here."""
    mean, std = normalised(settings)
    padded = _padded(settings)
    fits = [
        settings["do_resize"], settings["resample"] == BILINEAR, all(inside), all(canvas),
        padded is None or (inside[0] <= padded[0] and inside[1] <= padded[1]),
    ]  # fmt: skip
    within = min(inside[0], canvas[0]), min(inside[1], canvas[1])
    written = SQUASHED if _kind(settings) == "exact" and within == canvas else fitted(mean)
    if within != canvas:
        written = written.replace("fit(", f"fit({within}, ")
        if _kind(settings) == "exact":
            written = written.replace("fit(", "resize(").replace(", floor=True", "")
    data = DataConfig(mean, std, crop=1.0, squash=True, written=written)
    name = settings["image_processor_type"]
    if not _PROCESSOR.fullmatch(name):
        raise Unshown(f"{where}: {printable(name)[:80]} is no processor of DETR, YOLOS", (data, ()))
    if not all(fits):
        keys = ("do_resize", "size", "pad_size", "resample")
        wrong = ", ".join(f"{key} {brief(settings.get(key))}" for key in keys)
        raise Unshown(f"{where}: {wrong} together have no counterpart here", (data, ()))
    return data, ()


def fitted(mean: Any) -> str:
    """The pipeline of a processor that pads: with the colour that becomes 0."""
    colour = np.round(255 * np.clip(np.atleast_1d(mean), 0, 1)).astype(int).tolist()
    fill = colour[0] if len(set(colour)) == 1 else tuple(colour)
    return f"decode|fit(how='bilinear', floor=True)|pad(fill={fill})"


def check_backbone(where: Path, stated: Any) -> None:
    """Raises UserError for a `backbone_config` of another ResNet than those here, whose tensors
    have the same names."""
    known = _RESNET if (stated or {}).get("model_type") != "timm_backbone" else {}
    for key, value in known.items():
        if (stated or {}).get(key, value) != value:
            raise UserError(f"{where}: its backbone has {key} {brief(stated[key])}, here {value}")


def processor_json(title: str) -> Callable[[Model, list[str] | None, Dialect], dict[str, Any]]:
    """Makes the `preprocessor_config.json` of a DETR (`Detr`) or a YOLOS (`Yolos`)."""

    def made(model: Model, classes: list[str] | None, dialect: Dialect) -> dict[str, Any]:
        mean, std = model.data_config.per_channel(model.config.channels)
        sides = dict(zip(_SIDES, _size(model), strict=True))
        sizes: dict[str, Any] = {"size": sides, "do_pad": False}
        if _given(model) != SQUASHED:
            size = dict(zip(_LARGEST, _size(model), strict=True))
            sizes = {"size": size, "do_pad": True, "pad_size": sides}
        return {
            "image_processor_type": f"{title}ImageProcessor", "format": "coco_detection",
            "do_resize": True, "resample": BILINEAR, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": mean, "image_std": std, **sizes,
        }  # fmt: skip

    return made


def _size(model: Model) -> tuple[int, int]:
    return model.data_config.image_size or model.config.image_size


def _given(model: Model) -> str:
    """The pipeline that a written processor has."""
    pipeline = model.data_config.pipeline(_size(model))
    names = [calls.name_of(part) for part in calls.split(pipeline)]
    return SQUASHED if names == ["decode", "resize"] else fitted(model.data_config.mean)


def notes(model: Model) -> list[str]:
    """Differences that `preprocessor_config.json` cannot state."""
    pipeline, given = model.data_config.pipeline(_size(model)), _given(model)
    if pipeline in (given, "decode|resize", SQUASHED):
        return []
    if pipeline == "decode|fit|pad":
        seen = isinstance(model.config, YolosConfig)  # a DETR does not attend to padding
        return [
            "padding is grey here; Transformers' has the mean colour, and a YOLOS sees it"
        ] * seen
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
