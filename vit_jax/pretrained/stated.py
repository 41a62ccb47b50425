"""Checks the values that files state beside their tensors: JSON of other packages, and metadata of
this one. Type and range are checked before a value is used.

A file is not trusted. Its values may have another type, be far too large, or be no numbers. The
types are those of the dataclasses for the values. `RANGES` has the limits of their numbers.
"""

import ast
import dataclasses
import reprlib
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax import calls
from vit_jax.data.ops import FILTERS
from vit_jax.data.stored import MAX_PIXELS
from vit_jax.errors import UserError, nearest
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import Config
from vit_jax.models.model import ACTIVATIONS, FAMILIES

MOST_BYTES = 2**24  # of a JSON file; the class names of ImageNet-21k need about one MB
MOST_SIDE = 2**14  # pixels
MOST_LAYERS = 1000
MOST = 10**7  # the highest whole number
FAR = 1e9  # the highest number; larger ones are mistakes, and soon overflow

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxdict = _BRIEF.maxlist = _BRIEF.maxtuple = 6
_SIDE = (1, MOST_SIDE)
# The lowest and the highest number of a field, or of each of its numbers. The limits of all other
# fields are -FAR … FAR, and 0 … MOST for whole numbers.
RANGES: dict[str, tuple[float, float]] = {
    "num_layers": (1, MOST_LAYERS), "resnet_layers": (1, MOST_LAYERS), "num_heads": (1, MOST_SIDE),
    "detector_encoder": (0, MOST_LAYERS), "detector_decoder": (1, MOST_LAYERS),
    "detector_heads": (1, MOST_SIDE),
    "decoder_layers": (1, MOST_LAYERS), "decoder_heads": (1, MOST_SIDE),
    "image_size": _SIDE, "patch_size": _SIDE, "channels": _SIDE, "width_factor": (1, 1000),
    "layernorm_eps": (1e-30, 1), "groupnorm_eps": (1e-30, 1),
    "std": (1e-6, FAR), "crop": (1e-3, 1),
}  # fmt: skip
CHOICES: dict[str, Any] = {"interpolation": FILTERS}


def brief(value: Any) -> str:
    """Any value as text that is short enough for one line."""
    return _BRIEF.repr(value)


# -- JSON files of other packages ------------------------------------------------------------------


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -FAR < value < FAR


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _each(fits: Callable[[Any], bool], value: Any) -> bool:
    return fits(value) or (isinstance(value, list) and bool(value) and all(map(fits, value)))


def _side(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST_SIDE


def _sides(value: Any, *lengths: int) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(map(_side, value))


# Keys of Transformers' and timm's JSON files: a description of the value, its test, the keys.
KINDS: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
    ("a word", lambda v: isinstance(v, str), "architecture model_type hidden_act act_layer "
     "global_pool interpolation crop_mode image_processor_type feature_extractor_type "
     "activation_function position_embedding_type"),
    ("a whole number", lambda v: type(v) is int and 0 <= v <= MOST, "hidden_size num_hidden_layers "
     "embed_dim depth num_attention_heads num_heads resample decoder_num_attention_heads "
     "encoder_attention_heads decoder_attention_heads"),
    ("a number in [0, 1)", lambda v: _number(v) and 0 <= v < 1, "mask_ratio"),
    ("a positive number", _positive, "layer_norm_eps crop_pct rescale_factor"),
    ("a number, or one for each channel", lambda v: _each(_number, v), "mean image_mean"),
    ("a positive number, or one for each channel", lambda v: _each(_positive, v), "std image_std"),
    ("true or false", lambda v: isinstance(v, bool),
     "qkv_bias do_resize do_center_crop do_rescale do_normalize do_pad rescale_offset include_top "
     "norm_pix_loss dilation"),
    ("an object", lambda v: isinstance(v, dict),
     "id2label model_args pretrained_cfg backbone_config"),
    ("a size", lambda v: _side(v) or _sides(v, 2), "image_size img_size"),
    ("a number of pixels", _side, "max_size"),
    ("channels, height and width", lambda v: _sides(v, 3), "input_size"),
    ("a size, or an object of sizes", lambda v: _side(v)
     or (isinstance(v, dict) and _sides(list(v.values()), 1, 2)), "size crop_size pad_size"),
)  # fmt: skip


def check_keys(where: Any, config: dict[str, Any]) -> None:
    """Raises UserError for a value that fails the test of its key (`KINDS`). null is no value."""
    parts: list[Any] = [config, config.get("model_args"), config.get("pretrained_cfg")]
    for part in parts:
        for kind, fits, keys in KINDS if isinstance(part, dict) else ():
            for key in keys.split():
                if part.get(key) is not None and not fits(part[key]):
                    most = f" (1 … {MOST_SIDE} pixels)" if "size" in key.split("_") else ""
                    raise UserError(f"{where}: {key} is {kind}, not {brief(part[key])}{most}")


# -- our own metadata ------------------------------------------------------------------------------


def check_metadata(where: Any, metadata: dict[str, Any]) -> None:
    """Raises UserError for metadata that this package cannot have written."""
    if not metadata:
        return
    where = f"{where}: vit_jax's metadata"
    _known(where, metadata, ("fields", "data", "classes", "activation"))
    for part in ("fields", "data"):
        if not isinstance(metadata.get(part), dict):
            raise UserError(f"{where} has no object {part!r}")
    hints: dict[str, Any] = {}
    for family in FAMILIES:
        hints |= {name: hints.get(name, hint) for name, hint in _hints(family).items()}
    hints["resnet_layers"] = tuple[int, ...] | None
    _check(where, hints, metadata["fields"])
    check_data(where, metadata["data"])
    check_classes(where, metadata.get("classes"))
    check_activation(where, metadata.get("activation", "softmax"))


def check_config(where: Any, config: Config | dict[str, Any], family: type) -> None:
    """Raises UserError for fields of a model with a wrong type or a number out of range."""
    _check(where, _hints(family), dict(config if isinstance(config, dict) else vars(config)))


def check_data(where: Any, data: DataConfig | dict[str, Any]) -> None:
    """Raises UserError for settings of images with which nothing can be computed. Of a pipeline,
    only the numbers are checked here; its operations are checked when it is run."""
    stated = data if isinstance(data, dict) else vars(data)
    _check(where, _hints(DataConfig), stated)
    for field in ("mean", "std"):
        if stated.get(field) in ([], ()):
            raise UserError(f"{where}: {field} is a number, or one for each channel, not empty")
    if isinstance(data, DataConfig) and data.image_size:
        check_resized(where, data, data.image_size)
    check_pipeline(where, stated.get("written", ""))


def check_resized(where: Any, data: DataConfig, image_size: tuple[int, int]) -> None:
    """Raises UserError for a crop that makes resized images larger than any that can be read."""
    height, width = data.resized(image_size)
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{where}: images of {height} x {width} pixels (size {image_size}, crop {data.crop}) "
            f"are more than the {MAX_PIXELS:,} pixels allowed"
        )


def check_pipeline(where: Any, text: Any) -> None:
    """Raises UserError for numbers in a pipeline that would need too much memory as sizes."""
    for number in _numbers(text) if isinstance(text, str) else ():
        if not -MOST_SIDE <= number <= MOST_SIDE:
            raise UserError(
                f"{where}: the pipeline {brief(text)} has the number {brief(number)}; sizes are at "
                f"most {MOST_SIDE}"
            )


def _numbers(text: str) -> Iterator[Any]:
    for part in calls.split(text):
        if calls.name_of(part) == "decode":
            continue  # its numbers are values of pixels, not sizes
        try:
            tree = ast.parse(part, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # the parser of pipelines reports the error
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and _is(node.value, float | int, bounded=False):
                yield node.value


def check_classes(where: Any, classes: Any) -> None:
    """Raises UserError for names of classes that are no list of texts."""
    if classes is None:
        return
    if not isinstance(classes, list | tuple):
        raise UserError(f"{where}: classes are a list of names, not {brief(classes)}")
    for number, name in enumerate(classes):
        if not isinstance(name, str):
            raise UserError(f"{where}: class {number} is a name, not {brief(name)}")


def check_activation(where: Any, activation: Any) -> None:
    """Raises UserError for an unknown activation of the logits."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        options = ", ".join(ACTIVATIONS)
        raise UserError(f"{where}: activation is one of {options}, not {brief(activation)}")


def _known(where: Any, stated: dict[str, Any], known: typing.Iterable[str]) -> None:
    for key in stated:
        if key not in known:
            raise UserError(f"{where} has the unknown key {brief(key)}: {nearest(key, known)}")


def _hints(family: type) -> dict[str, Any]:
    hints = typing.get_type_hints(family)
    return {field.name: hints[field.name] for field in dataclasses.fields(family)}


def _check(where: Any, hints: dict[str, Any], stated: dict[str, Any]) -> None:
    _known(where, stated, hints)
    for field, value in stated.items():
        if not _is(value, hints[field]):
            raise UserError(f"{where}: {field} is {_words(hints[field])}, not {brief(value)}")
        low, high = RANGES.get(field, (-FAR, FAR))
        values = value if isinstance(value, list | tuple) else [value]
        if any(_is(x, float | int, bounded=False) and not low <= x <= high for x in values):
            raise UserError(f"{where}: {field} is {low:g} … {high:g}, not {brief(value)}")
        if field in CHOICES and value not in CHOICES[field]:
            raise UserError(
                f"{where}: {field} is one of {', '.join(CHOICES[field])}, not {brief(value)}"
            )
    size = stated.get("image_size")
    if isinstance(size, list | tuple) and size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"{where}: image_size {brief(size)} has more than {MAX_PIXELS:,} pixels")


def _is(value: Any, hint: Any, bounded: bool = True) -> bool:
    """Whether a JSON value has the type of a field. A list may be a tuple."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, option, bounded) for option in inside)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) > MOST_LAYERS:
            return False
        if inside[-1] is ...:
            return all(_is(x, inside[0], bounded) for x in value)
        return len(value) == len(inside) and all(map(_is, value, inside))
    if hint is int:
        return type(value) is int and (not bounded or 0 <= value <= MOST)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (not bounded or -FAR <= value <= FAR)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    """A type in the words of an error message."""
    simple = {int: f"a whole number of 0 … {MOST:,}", float: "a number", bool: "true or false",
              str: "a text", types.NoneType: "null"}  # fmt: skip
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_words, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        inside = typing.get_args(hint)
        how_many = "several" if inside[-1] is ... else str(len(inside))
        return f"{how_many} of {_words(inside[0])}"
    return simple[hint]
