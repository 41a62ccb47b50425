"""Writes a model in any layout, so that the layout's own package can read it.

If the layout cannot hold a part of the model, an error names the part. If the layout's own package
would use other settings than the model here, a note says so. Files appear whole or not at all.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoint import manager
from vit_jax.checkpoint.tree import Flat, flatten, unstack
from vit_jax.config import base, flat
from vit_jax.data import pipeline_text
from vit_jax.errors import UserError, nearest
from vit_jax.files import whole
from vit_jax.models.configs import ViTConfig
from vit_jax.models.family import Config
from vit_jax.models.model import Model, Params
from vit_jax.models.position import sincos2d
from vit_jax.pretrained.layout import Dialect, Writer, some
from vit_jax.pretrained.layouts import OWN, writers
from vit_jax.pretrained.opened import check_explained, listed_params
from vit_jax.pretrained.rows import Bound, expand


def save_pretrained(
    model: Model,
    params: Params,
    path: str | Path,
    to: str,
    *,
    classes: list[str] | None = None,
    dialect: dict[str, Any] | None = None,
    extras: Mapping[str, Callable[[], np.ndarray]] | None = None,
) -> list[str]:
    """Writes parameters in a layout. Returns notes for the users of the file.

    Args:
      path: a file with the layout's suffix, or a folder where the layout has one
        (docs/weights.md). Nothing is there yet.
      to: the name of a layout that can be written, or `orbax`.
      classes: names of the outputs, for layouts that can store them.
      dialect: `Weights.dialect` of a file in the same layout, to use the names of that file.
      extras: `Weights.extras` of that file.

    Raises:
      UserError: there is no such layout, the parameters are not the model's, the layout cannot
        hold them, or `path` exists already.
    """
    path = check_destination(path, to)
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.float32), params)
    wanted, held = (
        {p: x.shape for p, x in flat.items()}
        for flat in (listed_params(model), unstack(flatten(structs)))
    )
    check_explained(f"these parameters and {model.name} do", wanted, held)
    if classes and len(classes) != model.config.num_classes:
        raise UserError(
            f"{len(classes)} names of classes, but {model.name} has {model.config.num_classes}"
        )
    if to == OWN:
        _save_own(model, params, path, classes)
        return []
    layout, writer = writers()[to]
    if not writer.takes(model.config):
        what = type(model.config).__name__.removesuffix("Config")
        others = [name for name, (_, other) in writers().items() if other.takes(model.config)]
        raise UserError(
            f"the {to} layout has no place for {what} models: write {' or '.join([*others, OWN])}"
        )
    dialect = writer.dialect(model.config) if dialect is None else dialect
    listed: Flat = {p: np.asarray(jax.device_get(x)) for p, x in unstack(flatten(params)).items()}
    config, listed = _canonical(model.config, listed, writer, to)
    bound: list[Bound] = []
    refused = writer.refuses(config)
    if not refused:  # a codec may fail on parts that the layout refuses
        bound, refused = expand(layout.rows(config, dialect), listed, dialect.get("chunk"))
    if refused:
        hint = "; without a head (num_classes=0) the hidden layer goes too"
        raise UserError(
            f"the {to} layout has no place for {some(refused)}"
            + (hint if refused[0].startswith("pre_logits") else "")
        )
    tensors: Flat = {
        name: np.zeros(shape, np.float32) for name, shape in writer.fillers(config, dialect).items()
    }
    tensors |= {name: np.array(read()) for name, read in (extras or {}).items()}
    for item in bound:
        written = item.codec.write([listed[p] for p in item.ours])
        arrays = map(np.ascontiguousarray, written)
        tensors |= dict(zip(item.theirs, arrays, strict=True))
    tensors = writer.finish(tensors, config, dialect)
    prefix = dialect.get("prefix_of_all", "")
    tensors = {prefix + name: x for name, x in tensors.items()}
    _write(dataclasses.replace(model, config=config), tensors, path, writer, dialect, classes)
    notes = writer.notes(model)
    convolves = getattr(config, "resnet_layers", None) is not None
    size, size_in_file = model.data_config.image_size or config.image_size, config.image_size
    if isinstance(config, ViTConfig) and not path.is_dir():
        rows, columns = config.grid
        size_in_file = rows * config.patch_size, columns * config.patch_size
    stated = path.is_dir() and "preprocessor_config.json" in writer.files
    if size != size_in_file and not stated:
        notes.append(
            f"images are shown at {size} here; readers of {to} files take the {size_in_file} of "
            "the positions"
        )
    if model.activation != Model.activation and not stated:
        notes.append(
            f"logits become predictions by {model.activation!r} here; readers of {to} files take "
            f"{Model.activation!r} by default"
        )
    return notes + [
        f"{field} is {getattr(config, field)!r} here; "
        f"readers of {to} files compute with {value!r} by default"
        for field, value in writer.assumes(config, path.is_dir()).items()
        if hasattr(config, field) and getattr(config, field) != value
        and (convolves or field not in ("groupnorm_eps", "standardization"))
    ]  # fmt: skip


def check_destination(path: str | Path, to: str) -> Path:
    """The absolute path. Raises UserError if the layout is unknown or cannot be written there."""
    path = Path(path).expanduser().absolute()
    known = writers()
    if to not in (*known, OWN):
        raise UserError(f"unknown layout {to!r}: {nearest(to, (*known, OWN))}")
    _, writer = known.get(to, (None, None))
    suffix = writer.suffix if writer else ""
    if writer and path.suffix != suffix and not writer.files:
        raise UserError(f"{path}: {to} weights are written to a {suffix} file")
    if path.suffix in (".npz", ".safetensors", ".bin", ".pth") and path.suffix != suffix:
        file = f" or a {suffix} file" if suffix else ""
        raise UserError(f"{path}: {to} weights are written to a folder{file}, not to such a file")
    if path.exists():
        raise UserError(f"{path} is there already: name another, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    return path


def _canonical(config: Config, listed: Flat, writer: Writer, to: str) -> tuple[Config, Flat]:
    """The same model in a form that the layout can hold.

    Fixed positions become a table. The class token's position is moved into the table, or is added
    to the token. Without a head, `cls_gap` becomes `cls`, because only a head reads the mean.
    """
    if not isinstance(config, ViTConfig):
        return config, listed
    if config.pool == "cls_gap" and not config.num_classes:
        config = dataclasses.replace(config, pool="cls")
    listed, wanted = dict(listed), writer.positions(config)
    if config.posemb == "sincos2d" and to != "big_vision":
        config = dataclasses.replace(config, posemb="learned", prefix_positions="none")
        listed["pos_embed/grid"] = sincos2d(config.grid[0], config.grid[1], config.hidden_size)
        wanted = writer.positions(config)
    tokens = [token for token in ("cls", "dist") if token in listed]
    if config.posemb != "learned" or not tokens:
        return config, listed
    if (config.prefix_positions, wanted) == ("class", "none"):
        prefix = listed.pop("pos_embed/prefix")
        for number, token in enumerate(tokens):
            listed[token] = listed[token] + prefix[number : number + 1]
    elif (config.prefix_positions, wanted) == ("none", "class"):
        listed["pos_embed/prefix"] = np.zeros((len(tokens), config.hidden_size), np.float32)
    else:
        return config, listed
    return dataclasses.replace(config, prefix_positions=str(wanted)), listed


def _metadata(model: Model, classes: list[str] | None) -> dict[str, Any]:
    fields = dataclasses.asdict(model.config)
    for field in ("scan", "remat", "attention", "dtype"):  # fields of a run, not of weights
        fields.pop(field, None)
    return {
        "fields": fields, "data": dataclasses.asdict(model.data_config), "classes": classes,
        "activation": model.activation,
    }  # fmt: skip


def _write(
    model: Model, tensors: Flat, path: Path, writer: Writer, dialect: Dialect,
    classes: list[str] | None,
) -> None:  # fmt: skip
    metadata = _metadata(model, classes)
    with whole(path) as part:
        if path.suffix == writer.suffix and writer.suffix:
            return writer.write(part, tensors, metadata)
        part.mkdir()
        writer.write(part / "model.safetensors", tensors, metadata)
        for name, make in writer.files.items():
            text = json.dumps(make(model, classes, dialect), indent=2)
            (part / name).write_text(text + "\n", encoding="utf-8")
    return None


def _save_own(model: Model, params: Params, path: Path, classes: list[str] | None) -> None:
    """Writes a checkpoint like that of a run, but without the optimiser's state.

    Raises UserError if the pipeline names operations to import, because a run's config is trusted:
    no text from a file may enter it.
    """
    config = base(task=model.family.task)
    data = model.data_config
    size = data.image_size or model.config.image_size
    pipeline = pipeline_text.parse(data.pipeline(size), size).text
    with config.unlocked():
        config.total_steps = 1  # a config must state a length, but nothing is trained
        config.model.name = model.name
        for field, value in dataclasses.asdict(model.config).items():
            config.model[field] = list(value) if isinstance(value, tuple) else value
        for key in ("mean", "std"):
            value = getattr(data, key)
            config.data[key] = list(value) if isinstance(value, tuple) else value
        if model.activation != "none":  # no loss has this name
            config.loss.name = model.activation
        config.data.eval.pipeline = pipeline
    about = {
        "config": flat(config),
        "classes": classes or [],  # empty: outputs have numbers only
        "data": dataclasses.asdict(data), "activation": model.activation,
        "origin": "converted", "train_examples": 0, "examples_seen": 0, "goodput": {},
    }  # fmt: skip
    with whole(path) as part:
        manager.write(part, {"params": params}, about)
