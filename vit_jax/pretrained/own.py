"""Opens this package's own checkpoints, which runs and `vit convert` write."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.checkpoint import checksums, manager, steps
from vit_jax.checkpoint.tree import unstack
from vit_jax.errors import UserError, printable
from vit_jax.models.data_config import DataConfig, crop_of
from vit_jax.models.model import Model
from vit_jax.models.registry import create_model, find_family
from vit_jax.pretrained.layouts import OWN
from vit_jax.pretrained.opened import (
    SENSELESS,
    Weights,
    check_depth,
    check_explained,
    listed_params,
)  # fmt: skip
from vit_jax.pretrained.stated import (
    check_activation,
    check_classes,
    check_config,
    check_data,
)  # fmt: skip

EMA = "ema"  # RUN/ema is the moving average of the run in the folder RUN


def is_own(path: Path) -> bool:
    """Whether a path is a work folder, its folder of checkpoints, or one checkpoint."""
    return path.is_dir() and (
        (path / "state").is_dir() or (path / "checkpoints").is_dir() or bool(steps.steps(path))
    )


def _data_config(pipeline: str, image_size: tuple[int, int], stated: dict[str, Any]) -> DataConfig:
    """A run's evaluation pipeline, with the settings from it that other layouts can hold."""
    filter_ = re.search(r"\|\s*resize\w*\([^|]*'(\w+)'", pipeline)
    stated = stated | ({"interpolation": filter_[1]} if filter_ else {})
    resize = re.search(r"\|\s*resize(_small)?(?:\((\()?(\d+))?", pipeline)
    squash = resize is None or not resize[1]
    crop = 1.0 if squash else DataConfig.crop
    if resize and resize[3] and "central_crop" in pipeline:
        side = image_size[0] if resize[2] else max(image_size)
        crop = crop_of(side, max(side, int(resize[3])))
    return DataConfig(written=pipeline, squash=squash, crop=crop, **stated)


def open_own(path: Path, parts: tuple[str, ...]) -> Weights:
    """Opens a checkpoint.

    Each parameter is read from the last of `parts` that holds it, because a frozen parameter has no
    moving average. For a schedule-free run, it is the average x, with which the run is evaluated
    (arXiv 2405.15682, eq. 1).
    """
    checkpoint = manager.find(path)
    checksums.check(checkpoint)
    about = manager.about(checkpoint)
    model, flat = described(checkpoint, about)
    shapes_of = manager.stored_shapes(checkpoint)
    if not all(any(name.startswith(f"{part}/") for name in shapes_of) for part in parts):
        raise UserError(f"{checkpoint} has no moving average: it was trained without --config.ema")
    names = {  # parameter: name in the state. Later parts replace earlier ones.
        name.partition("/")[2]: name
        for part in parts for name in shapes_of if name.startswith(f"{part}/")
    }  # fmt: skip
    stored = {path: shapes_of[name] for path, name in names.items()}
    stored_path = {ours: path for path, leaf in stored.items() for ours in unstack({path: leaf})}
    fast = _fast_weights(flat, shapes_of)
    layers: dict[str, Any] = {}  # of the stored parameter that was read last

    def read(ours: str) -> np.ndarray:
        if ours not in layers:
            path = stored_path[ours]
            wanted = {names[path], fast.get(path, names[path])}
            arrays = manager.read_host(checkpoint, {name: shapes_of[name] for name in wanted})
            array = arrays[names[path]]
            if path in fast:  # the run trained y = b1 x + (1 - b1) z
                b1 = flat["optimizer.b1"]
                array = (array - (1 - b1) * arrays[fast[path]]) / b1
            layers.clear()
            layers.update(unstack({path: array}))
        return layers[ours]

    shapes = {p: tuple(leaf.shape) for p, leaf in unstack(stored).items()}
    check_depth(checkpoint, model.config, len(shapes))
    check_explained(
        f"{checkpoint} does", {p: x.shape for p, x in listed_params(model).items()}, shapes
    )
    return Weights(checkpoint, OWN, model, about["classes"] or None, shapes, read, {}, {})


def _fast_weights(flat: dict[str, Any], stored: Iterable[str]) -> dict[str, str]:
    """The fast weights z of a schedule-free run: parameter -> its name in the saved state.

    The names follow from the state of `optax.contrib.schedule_free`, which `training/optimizer.py`
    builds. This module is below `training`, so it must not import that file.
    """
    if flat.get("optimizer.name") != "schedule_free":
        return {}
    matches = ((name, re.fullmatch(r"opt/\d+/z/(.*)", name)) for name in stored)
    return {match[1]: name for name, match in matches if match}


def described(checkpoint: Path, about: Any) -> tuple[Model, dict[str, Any]]:
    """A run's model and its flat config, from the `about` of its checkpoint.

    Raises UserError if a value makes no sense: a checkpoint is checked like any other file.
    """
    try:
        return _described(checkpoint, about)
    except SENSELESS as error:
        raise UserError(
            f"{checkpoint}: what is saved beside the tensors (about) makes no sense: "
            f"{type(error).__name__}: {printable(error)[:160]}"
        ) from error


def _described(checkpoint: Path, about: Any) -> tuple[Model, dict[str, Any]]:
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise UserError(f"{checkpoint}: what is saved beside the tensors holds no config")
    flat = about["config"]
    fields = {
        key.removeprefix("model."): value
        for key, value in flat.items()
        if key.startswith("model.") and value is not None
    }
    name = fields.pop("name")
    family = find_family(name)[0].config
    check_config(checkpoint, fields, family)
    check_classes(checkpoint, about["classes"])
    model = create_model(name, remainder=True, **fields)
    check_config(checkpoint, model.config, family)
    if len(about["classes"] or ()) > model.config.num_classes > 0:
        raise UserError(
            f"{checkpoint} names {len(about['classes'])} classes, its head has "
            f"{model.config.num_classes}"
        )
    if stated := about.get("data"):  # only `vit convert` writes it
        check_data(checkpoint, stated)
        data = DataConfig(**stated)
    else:
        stated = {key: v for key in ("mean", "std") if (v := flat.get(f"data.{key}")) is not None}
        check_data(checkpoint, stated | {"written": flat["data.eval.pipeline"]})
        data = _data_config(flat["data.eval.pipeline"], model.config.image_size, stated)
    check_data(checkpoint, data)
    if not 0 <= flat.get("optimizer.b1", 0) <= 1:
        raise UserError(f"{checkpoint}: optimizer.b1 is a number of 0 … 1")
    activation = about.get("activation", flat.get("loss.name", "softmax"))
    check_activation(checkpoint, activation)
    return dataclasses.replace(model, data_config=data, activation=activation), flat
