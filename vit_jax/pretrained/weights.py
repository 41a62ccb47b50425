"""Opens weights of any layout.

The names of the tensors decide the layout. Names, shapes, metadata and `config.json` decide the
model. Every tensor must belong to a parameter, or be ignored for a stated reason. The values are
read later, one parameter at a time.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import Config
from vit_jax.models.model import Model
from vit_jax.models.registry import make_config, name_of
from vit_jax.pretrained.files import Tensors, open_tensors
from vit_jax.pretrained.layout import Description, Layout, Reader, some
from vit_jax.pretrained.layouts import readers
from vit_jax.pretrained.opened import (
    SENSELESS,
    Weights,
    check_depth,
    check_explained,
    listed_params,
)  # fmt: skip
from vit_jax.pretrained.own import EMA, is_own, open_own
from vit_jax.pretrained.rows import expand
from vit_jax.pretrained.stated import (
    brief,
    check_classes,
    check_config,
    check_data,
    check_keys,
    check_metadata,
    check_resized,
)  # fmt: skip

# Keys of `config.json` for sizes that also follow from tensors: key -> field.
STATED_SIZES = {
    "num_hidden_layers": "num_layers", "depth": "num_layers", "hidden_size": "hidden_size",
    "embed_dim": "hidden_size",
}  # fmt: skip


def open_weights(path: str | Path, **overrides: Any) -> Weights:
    """Opens a file, a folder of Hugging Face or timm, or one of this package's own checkpoints.

    Args:
      overrides: values that the file does not state, or states wrongly: any field of the model's
        config (`num_heads`, `gelu`, …), `source_image_size` (the height and width of the training
        images), and the `mean` and `std` that normalise images.

    Raises:
      UserError: the layout is unknown or ambiguous; tensors are missing, superfluous or of another
        shape; the file is damaged or holds code.
    """
    path = Path(path).expanduser()
    overrides = {field: value for field, value in overrides.items() if value is not None}
    keys = overrides.keys() & {"mean", "std"}
    normalisation = {key: overrides.pop(key) for key in sorted(keys)}
    check_data("how images are normalised", normalisation)
    try:
        own, of_own, inside = is_own(path), is_own(path.parent), path.parent.is_file()
    except OSError as error:
        raise UserError(f"{brief(str(path))} cannot be opened: {error.strerror}") from error
    if own or (of_own and path.name == EMA):
        parts = ("params",) if own else ("params", EMA)
        weights = open_own(path if own else path.parent, parts)
    else:
        part = path.name if inside else ""
        weights = _open_file(path, _open(path.parent if inside else path, part), overrides)
    model = weights.model
    if normalisation:
        data = dataclasses.replace(model.data_config, **normalisation)
        model = dataclasses.replace(model, data_config=data)
    guessed = tuple(field for field in weights.guessed if field not in normalisation)
    return dataclasses.replace(weights, model=model, guessed=guessed)


def _open_file(path: Path, tensors: Tensors, overrides: dict[str, Any]) -> Weights:
    check_keys(path / "config.json", tensors.config)
    check_metadata(path, tensors.metadata)
    layout, reader, prefix = _recognise(tensors)
    try:
        inside = reader.prepare(tensors.below(prefix))
        described = reader.describe(inside, _known_fields(tensors.metadata) | overrides)
        described = _with_metadata(described, tensors.metadata)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    except SENSELESS as error:
        raise UserError(
            f"{path} has names of {layout.name}, but its shapes, or config.json or vit_jax's "
            "metadata with it, make no sense"
        ) from error
    fields = [field.name for field in dataclasses.fields(described.family)]
    overrides = {field: value for field, value in overrides.items() if field in fields}
    config = make_config(described.family, described.fields | overrides, str(path))
    check_config(path, config, described.family)
    _check_stated_sizes(tensors, config, overrides)
    check_depth(path, config, len(inside.shapes))
    check_data(path, described.data)
    check_resized(path, described.data, config.image_size)
    check_classes(path, described.classes)
    classes = described.classes if config.num_classes else None
    if classes and len(classes) != config.num_classes:
        raise UserError(f"{path} names {len(classes)} classes, its head has {config.num_classes}")
    like = str(tensors.config.get("architecture") or tensors.config.get("model_type") or "vit")
    name = name_of(config, like.partition("_")[0])
    model = Model(name, config, described.data, described.activation)
    bound, unknown = expand(
        layout.rows(config, described.dialect), listed_params(model), described.dialect.get("chunk")
    )
    if unknown:
        raise UserError(f"{path}: {layout.name} files hold no {some(unknown)}")
    unused = {n: f"outside of {prefix}" for n in tensors.shapes if not n.startswith(prefix)}
    consumed = {name: shape for item in bound for name, shape in item.theirs.items()}
    ignored = {
        name: why
        for name in inside.shapes.keys() - consumed
        for pattern, why in reader.ignored.items()
        if re.fullmatch(pattern, name)
    }
    check_explained(f"{path} ({layout.name}) does", consumed, inside.shapes, ignored)
    inside.check_numbers(consumed)
    item_of = {ours: item for item in bound for ours in item.ours}

    def read(ours: str) -> np.ndarray:
        item = item_of[ours]
        arrays = [inside.read(name) for name in item.theirs]
        parts = item.codec.read(arrays, list(item.ours.values()))
        return parts[list(item.ours).index(ours)]

    extras = {name: functools.partial(inside.read, name) for name in ignored}
    return Weights(
        path, layout.name, model, classes, {p: item.ours[p] for p, item in item_of.items()}, read,
        unused | ignored, described.dialect | {"prefix_of_all": prefix}, extras, described.guessed,
        tensors.notes,
    )  # fmt: skip


def _open(path: Path, part: str) -> Tensors:
    """Opens a file as the container of the first layout that knows it, or by its content."""
    for _, reader in readers() if not part else ():
        if (tensors := reader.open(path)) is not None:
            return tensors
    return open_tensors(path, part)


def _recognise(tensors: Tensors) -> tuple[Layout, Reader, str]:
    """The one layout that has these names, its reader, and the prefix of all names."""
    fits = []
    for layout, reader in readers():
        below = ((prefix, tensors.below(prefix).shapes) for prefix in reader.prefixes)
        prefixes = [prefix for prefix, names in below if names and reader.recognises(names)]
        fits += [(layout, reader, prefix) for prefix in prefixes[:1]]
    if not fits:
        names = ", ".join(map(printable, sorted(tensors.shapes)[:4])) or "no tensors at all"
        known = ", ".join(layout.name for layout, _ in readers())
        raise UserError(
            f"{tensors.path} is of no known layout ({known}): it holds {names}"
            + (" …" if len(tensors.shapes) > 4 else "")
        )
    if len(fits) > 1:
        names = " and ".join(f"{layout.name} (under {prefix!r})" for layout, _, prefix in fits)
        raise UserError(
            f"{tensors.path} is ambiguous: its names are those of {names}; keep the tensors of one"
        )
    return fits[0]


def _known_fields(metadata: dict[str, Any]) -> dict[str, Any]:
    """The fields in this package's metadata, by the names that `open_weights` has for them."""
    if not metadata:
        return {}
    fields = {field: value for field, value in metadata["fields"].items() if value is not None}
    size = {"source_image_size": fields["image_size"]} if "image_size" in fields else {}
    return fields | size


def _with_metadata(described: Description, metadata: dict[str, Any]) -> Description:
    """The description with this package's metadata, which is exact and overrides the shapes."""
    if not metadata:
        return described
    fields = described.fields | metadata["fields"]
    return dataclasses.replace(
        described, fields=fields, data=DataConfig(**metadata["data"]), guessed=(),
        classes=metadata.get("classes") or described.classes,
        activation=metadata.get("activation", described.activation),
    )  # fmt: skip


def _check_stated_sizes(tensors: Tensors, config: Config, overrides: dict[str, Any]) -> None:
    """Raises UserError if sizes in `config.json` and in the tensors differ. Names and shapes alone
    do not show that the last layers are missing."""
    stated = tensors.config | (tensors.config.get("model_args") or {})
    for key, field in STATED_SIZES.items():
        size = getattr(config, field, None)
        if None not in (stated.get(key), size) and stated[key] != size and field not in overrides:
            raise UserError(
                f"{tensors.path / 'config.json'} says {key} {brief(stated[key])}, the tensors are "
                f"those of {size}"
            )
