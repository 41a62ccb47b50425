"""Loads weights into a model, which may differ in its head, resolution, channels or layer layout.

Every tensor is loaded, resized, adapted, re-initialised or unused: this is its fate, which the
report states. Any other difference is an error.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from vit_jax.checkpoint.manager import find, is_best
from vit_jax.checkpoint.tree import Flat, flatten, is_stacked, nest, unstack
from vit_jax.errors import UserError, nearest, printable
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import BACKBONE, CHANNELS, CLASSES, FRESH, OWN, RESIZED
from vit_jax.models.model import Model, Params
from vit_jax.models.position import resize_grid
from vit_jax.models.registry import check_tiled, create_model, make_config
from vit_jax.parallel.sharding import state_shardings
from vit_jax.pretrained.backbone import as_backbone
from vit_jax.pretrained.catalog import CATALOG
from vit_jax.pretrained.download import fetch
from vit_jax.pretrained.layout import some
from vit_jax.pretrained.opened import Weights, listed_params
from vit_jax.pretrained.own import EMA
from vit_jax.pretrained.report import Report
from vit_jax.pretrained.weights import open_weights

# Fields that decide which tokens and norms there are around the pooling.
POOLING = ("pool", "idle_class_token", "norm_after_pool")


def load_pretrained(
    name_or_path: str | Path,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    *,
    source_image_size: tuple[int, int] | None = None,
    mean: float | tuple[float, ...] | None = None,
    std: float | tuple[float, ...] | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    decoder: bool = False,
    say: Callable[[str], None] | None = print,
    **fields: Any,
) -> tuple[Model, Params, Report]:
    """A model with its weights, published or your own: the model, its parameters, and a report.

    Args:
      name_or_path: a name of `list_pretrained`, a file or folder, or an address (`https://`,
        `hf://OWNER/REPO`, `gs://`, `file://`).
      num_classes: a number that differs from the weights' replaces the head by a new one of zeros;
        0 removes the head; None keeps it.
      image_size: if it differs from the weights', positions are interpolated, as by the weights'
        own code base.
      channels: if it differs from the weights', the first layer's kernel is summed or repeated.
      source_image_size: the (height, width) of the training images, if they were not square and
        the file does not state it.
      mean, std: the normalisation of the training images, if the file does not state it.
      mesh: the parameters are sharded over its devices by the rules of `parallel/sharding.py`.
      seed: for the parameters that are re-initialised.
      decoder: whether a masked autoencoder is wanted whole. Otherwise its weights are those of its
        encoder, a ViT without a head.
      say: is called with each line of the report; None for no output.
      fields: any other field of the model, such as `scan=True`, `dtype`, or `num_heads` if the
        file does not state it.

    Returns:
      model, params (a plain dict of float32 arrays), report.

    Raises:
      UserError: there are no weights, their layout is unknown, tensors are missing or do not
        belong to the model, or a tensor holds NaN or infinite values.
    """
    path = fetch_weights(name_or_path)
    weights = open_weights(
        path, decoder=decoder, source_image_size=source_image_size, mean=mean, std=std, **fields
    )
    wanted = {"num_classes": num_classes, "image_size": image_size, "channels": channels} | fields
    model = fitted(weights, {key: value for key, value in wanted.items() if value is not None})
    keep = num_classes in (None, 0, weights.model.config.num_classes)
    shardings = None
    if mesh is not None:
        state = {"params": model.abstract_params}
        shardings = state_shardings(model.family, state, mesh, 2**16)["params"]
    params, report = fill(weights, model, shardings, keep_head=keep, seed=seed)
    for line in report.lines() if say else ():
        say(line)  # type: ignore[misc]
    return model, params, report


def fetch_weights(name_or_path: str | Path) -> Path:
    """The local path of weights, from a name of the catalogue, an address or a path."""
    text = str(name_or_path)
    if not text:
        raise UserError("the weights are an empty name: give a file, a folder, or a name of them")
    if "://" in text:
        return fetch(text)
    path = Path(text).expanduser()
    try:
        # The moving average of a run (RUN/ema), or a state dict in a file (FILE/NAME).
        part = path.parent.is_file() or (path.name == EMA and path.parent.is_dir())
        there = path.exists()
        if is_best(path):
            return find(path)
    except OSError as error:
        raise UserError(f"{printable(text)[:80]} cannot be opened: {error.strerror}") from error
    if there:
        return fetch(text)
    if part:
        return path
    if text in CATALOG:
        return fetch(CATALOG[text].address, CATALOG[text].sha256)
    hint = nearest(text, CATALOG)
    if not hint.startswith("did you mean"):
        hint = "vit_jax.list_pretrained() has the names"
    raise UserError(
        f"{printable(text)} is no file, no folder and no name of published weights: {hint}"
    )


def fitted(weights: Weights, wanted: dict[str, Any]) -> Model:
    """The weights' model with the fields `wanted`. A new head has no hidden layer."""
    config = weights.model.config
    fields = dict(vars(config))
    if wanted.get("num_classes", config.num_classes) != config.num_classes:
        fields |= {"pre_logits": False} if "pre_logits" in fields else {}
    for field in wanted:
        if field not in fields:
            raise UserError(f"{weights.model.name} has no field {field!r}")
    new = make_config(type(config), fields | wanted, str(weights.path))
    data = weights.model.data_config
    if new.image_size not in (config.image_size, data.image_size):  # not the weights' own
        check_tiled(new, str(weights.path))
    if "image_size" in wanted:
        data = dataclasses.replace(data, image_size=None)
    same_head = new.num_classes == config.num_classes
    activation = weights.model.activation if same_head else Model.activation
    return dataclasses.replace(weights.model, config=new, data_config=data, activation=activation)


def as_shown(weights: Weights) -> Model:
    """The weights' model for the image size of its preprocessing."""
    size = weights.model.data_config.image_size
    return fitted(weights, {"image_size": size} if size else {})


def fill(
    weights: Weights,
    model: Model,
    shardings: Any = None,
    *,
    keep_head: bool = True,
    order: list[int] | None = None,
    seed: int = 0,
) -> tuple[Params, Report]:
    """Reads the model's parameters from the weights, each directly to its devices.

    Args:
      shardings: a tree like the parameters; None for the default device.
      keep_head: False re-initialises the head, also if its shape is the same.
      order: for each output of the model, its number in the weights (`order_of`); None if the
        outputs have the same order.

    Raises UserError that lists the tensors that do not fit, or those with NaN or infinite values.
    """
    if model.family.backbone is weights.model.family:
        weights = as_backbone(weights, model)
    wanted, family = listed_params(model), model.family
    stacked = flatten(model.abstract_params) if getattr(model.config, "scan", False) else wanted
    _check_sizes(weights, model)
    fates = _fates(weights, model, wanted, keep_head)
    sharding_of: Flat = dict.fromkeys(stacked, SingleDeviceSharding(jax.local_devices()[0]))
    if shardings is not None:
        sharding_of = flatten(shardings)
    fresh = [p for p, fate in fates.items() if fate.startswith("re-initialised")]
    flat = _initialised(model, fresh, sharding_of, seed) if fresh else {}
    not_finite: list[str] = []

    def read(path: str) -> np.ndarray:
        x = _shaped(weights, path, np.asarray(weights.read(path)), tuple(wanted[path].shape))
        with np.errstate(over="ignore"):  # infinite values are reported below
            x = x.astype(np.float32, copy=False)
        if not np.isfinite(x).all():
            not_finite.append(path)
        if order is not None and family.at_init(path) == CLASSES:
            fates[path] = "loaded (classes in another order)"
            further = range(len(order), x.shape[-1])  # a detector's "no object"
            return x[..., [*order, *further]]
        return x

    for path, leaf in stacked.items():
        if path not in fresh:
            layers = list(unstack({path: leaf})) if is_stacked([path]) else [path]
            flat[path] = _place(leaf, sharding_of[path], layers, read)
    _refuse(weights.path, not_finite)
    warnings = [*weights.notes, *_changed_numerics(weights, model)]
    if _same_preprocessing(weights.model.data_config, model.data_config):
        warnings += weights.guesses()
    fates |= {name: f"unused ({why})" for name, why in weights.unused.items()}
    ordered = {p: flat[p] for p in stacked}
    return nest(ordered), Report(str(weights.path), fates, warnings)


def check_finite(params: Params, path: Path) -> None:
    """Raises UserError if parameters hold NaN or infinite values, as `fill` does."""
    finite = jax.jit(lambda flat: {name: jnp.isfinite(x).all() for name, x in flat.items()})
    is_finite = jax.device_get(finite(flatten(params)))
    _refuse(path, [name for name in is_finite if not is_finite[name]])


def _refuse(path: Path, not_finite: list[str]) -> None:
    if not_finite:
        raise UserError(
            f"{path} holds NaN or infinite values in {some(not_finite)}: nothing can be "
            "computed with them; take weights from before training diverged, or another copy"
        )


def order_of(theirs: list[str] | None, ours: list[str]) -> list[int] | None:
    """For each class in `ours`, its number in `theirs`; None if the classes are not the same."""
    place = {name: number for number, name in enumerate(theirs or ())}
    if len(place) != len(theirs or ()) or len(set(ours)) != len(ours) or place.keys() != set(ours):
        return None
    return [place[name] for name in ours]


def _same_preprocessing(theirs: DataConfig, ours: DataConfig) -> bool:
    """Whether a model prepares images as its weights state. The pipeline of a run may differ."""
    return dataclasses.replace(theirs, image_size=None) == dataclasses.replace(
        ours, image_size=None
    )


def _check_sizes(weights: Weights, model: Model) -> None:
    """Raises one short UserError for weights of other sizes, instead of a line for each tensor."""
    theirs, ours = vars(weights.model.config), vars(model.config)
    shapes = {path: leaf.shape for path, leaf in listed_params(model).items()}
    body = {path for path in shapes if model.family.at_init(path) in (None, OWN)}
    body = {path for path in body if BACKBONE not in weights.dialect or path in weights.shapes}
    other = [f for f in ours if f not in model.family.of_run and ours[f] != theirs.get(f)]
    if set(other) - set(POOLING) and any(weights.shapes.get(path) != shapes[path] for path in body):
        sizes = ", ".join(f"{f} {theirs.get(f)} (the model here: {ours[f]})" for f in other)
        by_name = vars(create_model(weights.model.name).config)
        behind = f"{model.name.partition('_')[0]}_" if BACKBONE in weights.dialect else ""
        fits = f"model.name={behind}{weights.model.name}"
        if fits == f"model.name={model.name}" or any(by_name[f] != theirs.get(f) for f in other):
            fits = ", ".join(f"model.{f}={theirs.get(f)}" for f in other)
        raise UserError(f"{weights.path} has {sizes}: {fits} would fit")


def _fates(
    weights: Weights, model: Model, wanted: dict[str, Any], keep_head: bool
) -> dict[str, str]:
    """What becomes of each tensor. Raises UserError if one has no explanation."""
    fates, wrong = _judged(weights, model, wanted, keep_head)
    if wrong and (pooled := _pooled_otherwise(weights, model, keep_head)):
        raise UserError(pooled)
    if wrong:
        more = [f"  … and {len(wrong) - 24} more"] if len(wrong) > 24 else []
        raise UserError(
            f"{weights.path} ({weights.layout}, {weights.model.name}) does not fit the model: "
            f"{len(wrong)} tensors have no explanation\n" + "\n".join(sorted(wrong)[:24] + more)
        )
    return fates


def _pooled_otherwise(weights: Weights, model: Model, keep_head: bool) -> str:
    """A line with the keys that make weights fit which pool otherwise than the model; an empty text
    if these do not."""
    theirs, ours = weights.model.config, model.config
    if getattr(theirs, "pool", None) == getattr(ours, "pool", None) or not hasattr(ours, "pool"):
        return ""
    same = {field: getattr(theirs, field) for field in POOLING}
    for keys in ({"idle_class_token": True}, same):
        with contextlib.suppress(ValueError):
            other = dataclasses.replace(model, config=dataclasses.replace(ours, **keys))
            if not _judged(weights, other, listed_params(other), keep_head)[1]:
                what = " ".join(
                    f"--config.model.{key}={value}"
                    for key, value in keys.items()
                    if getattr(ours, key) != value
                )
                return (
                    f"{weights.path} pools by {theirs.pool!r}, the model here by {ours.pool!r}: it "
                    f"fits with {what}"
                )
    return ""


def _judged(
    weights: Weights, model: Model, wanted: dict[str, Any], keep_head: bool
) -> tuple[dict[str, str], list[str]]:
    """What becomes of each tensor, and lines on those without an explanation."""
    fates, wrong = {}, []
    for path, leaf in wanted.items():
        theirs, shape = weights.shapes.get(path), tuple(leaf.shape)
        rule = model.family.at_init(path)
        if rule in (FRESH, CLASSES) and not (keep_head and theirs == shape):
            why = "other classes" if theirs else "not in the weights"
            fates[path] = f"re-initialised ({why})"
        elif theirs is None and rule in (OWN, RESIZED) and BACKBONE in weights.dialect:
            fates[path] = "re-initialised (not in the weights)"
        elif theirs == shape:
            fates[path] = "loaded"
        elif theirs and rule == RESIZED and theirs[2:] == shape[2:]:
            how = getattr(weights.model.config, "posemb_resize", "timm")
            fates[path] = f"resized ({theirs[0]} x {theirs[1]} to {shape[0]} x {shape[1]}, {how})"
        elif theirs and rule == CHANNELS and theirs[:2] + theirs[3:] == shape[:2] + shape[3:]:
            fates[path] = f"adapted ({theirs[2]} to {shape[2]} channels)"
        else:
            has = f"have it as {list(theirs)}" if theirs is not None else "lack it"
            wrong.append(f"  {path} {list(shape)}: the weights {has}")
    for path, theirs in weights.shapes.items():
        if path not in wanted and model.family.at_init(path) in (FRESH, CLASSES):
            fates[path] = "unused (another head)"
        elif path not in wanted:
            wrong.append(f"  {path} {list(theirs)}: only in the weights")
    return fates, wrong


def _shaped(weights: Weights, path: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resizes positions to the model's grid, and the first layer to its channels."""
    if x.shape == shape:
        return x
    x = x.astype(np.float32)
    if weights.model.family.at_init(path) == RESIZED:
        how = getattr(weights.model.config, "posemb_resize", "timm")
        return resize_grid(x, (shape[0], shape[1]), how)
    old, new = x.shape[2], shape[2]
    if new == 1:  # as if every channel had the value of the grey image
        return x.sum(axis=2, keepdims=True)
    repeated = np.concatenate([x] * -(-new // old), axis=2)[:, :, :new]
    return repeated * (old / new)  # so that activations keep their size


def _initialised(model: Model, fresh: list[str], sharding_of: Flat, seed: int) -> Flat:
    """Initial values of the `fresh` parameters. The compiler removes the code for all others."""

    def init(key):
        flat = flatten(model.init_fn(key))
        return {path: flat[path] for path in fresh}

    out = {path: sharding_of[path] for path in fresh}
    return jax.jit(init, out_shardings=out)(jax.random.key(seed))


def _place(
    leaf: Any, sharding: Sharding, layers: list[str], read: Callable[[str], np.ndarray]
) -> jax.Array:
    """A parameter on its devices. Their parts are filled layer by layer, without a whole copy."""
    shape = tuple(leaf.shape)
    parts = sharding.addressable_devices_indices_map(shape)
    keys = {device: _key(index or (), shape) for device, index in parts.items()}
    buffers = {key: _aligned([stop - start for start, stop in key]) for key in keys.values()}
    for number, path in enumerate(layers):
        x = read(path)
        for key, buffer in buffers.items():
            index = tuple(slice(start, stop) for start, stop in key)
            if x.ndim == len(shape):
                buffer[...] = x[index]
            else:  # one layer of several; the axis of layers is never split
                buffer[number] = x[index[1:]]
    arrays = [jax.device_put(buffers[key], device) for device, key in keys.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _aligned(shape: list[int]) -> np.ndarray:
    """An array aligned to 64 bytes. A CPU device uses such memory without a copy."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


def _key(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    bounds = (part.indices(n)[:2] for part, n in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop in bounds)


def _changed_numerics(weights: Weights, model: Model) -> list[str]:
    theirs, ours = vars(weights.model.config), vars(model.config)
    return [
        f"{field} is {ours[field]!r}, the weights were trained with {theirs[field]!r}"
        for field in ours
        if field not in model.family.of_run and ours[field] != theirs.get(field)
    ]
