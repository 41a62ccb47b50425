"""Opens weights of any layout.

The names of the tensors decide the layout. Names, shapes, metadata and `config.json` decide the
model. Every tensor must belong to a parameter, or be ignored for a stated reason. The values are
read later, one parameter at a time.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import Config
from vit_jax.models.model import Model
from vit_jax.models.registry import make_config, name_of
from vit_jax.pretrained.files import open_tensors
from vit_jax.pretrained.given import Unstated, spelled
from vit_jax.pretrained.layout import Description, Layout, Reader, some
from vit_jax.pretrained.layouts import readers
from vit_jax.pretrained.mae import as_encoder
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
from vit_jax.pretrained.tensors import Tensors
from vit_jax.pretrained.wrapped import beside, found_in

# Keys of `config.json` for sizes that also follow from tensors: key -> field.
STATED_SIZES = {
    "num_hidden_layers": "num_layers", "depth": "num_layers", "hidden_size": "hidden_size",
    "embed_dim": "hidden_size",
}  # fmt: skip


def open_weights(
    path: str | Path, *, run: Mapping[str, Any] | None = None, decoder: bool = False,
    **overrides: Any,
) -> Weights:  # fmt: skip
    """Opens a file, a folder of Hugging Face or timm, or one of this package's own checkpoints.

    Args:
      run: the fields of the model that the weights are for. They count where neither the file nor
        `overrides` state the number of heads, the pooling, or the grid of the positions.
      decoder: whether that of a masked autoencoder is wanted, too. Without it, such weights are a
        ViT without a head, and the decoder is unused.
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
        weights = weights if decoder else as_encoder(weights)
    else:
        part = path.name if inside else ""
        tensors = _open(path.parent if inside else path, part)
        try:
            weights = _open_file(path, tensors, overrides, run or {}, decoder)
        except UserError as error:
            raise _with_what_fits(error, path, tensors, overrides, decoder) from error
    model = weights.model
    if normalisation:
        data = dataclasses.replace(model.data_config, **normalisation)
        model = dataclasses.replace(model, data_config=data)
    guessed = tuple(field for field in weights.guessed if field not in normalisation)
    return dataclasses.replace(weights, model=model, guessed=guessed)


def _with_what_fits(
    error: UserError, path: Path, tensors: Tensors, overrides: dict[str, Any], decoder: bool
) -> UserError:
    """The error, with the values of the file's own if it opens without the overrides."""
    try:
        config = _open_file(path, tensors, {}, {}, decoder).model.config if overrides else None
    except UserError:
        return error
    theirs = {f: getattr(config, f) for f in overrides if hasattr(config, f)}
    other = [f"model.{f}={value}" for f, value in theirs.items() if value != overrides[f]]
    return UserError(f"{error}; {', '.join(other)} would fit") if other else error


def _open_file(
    path: Path, tensors: Tensors, overrides: dict[str, Any], run: Mapping[str, Any], decoder: bool
) -> Weights:
    check_keys(path / "config.json", tensors.config)
    check_metadata(path, tensors.metadata)
    layout, reader, prefix, others = _recognise(tensors)
    try:
        inside = reader.prepare(tensors.below(prefix))
        known = _known_fields(tensors.metadata) | overrides
        described = reader.describe(inside, known | {"run": run, "decoder": decoder})
        described = _with_refusal(_with_metadata(described, tensors.metadata), run)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    except SENSELESS as error:
        raise UserError(
            f"{path} has names of {layout.name}, but its shapes, or config.json or vit_jax's "
            "metadata with it, make no sense"
        ) from error
    fields = [field.name for field in dataclasses.fields(described.family)]
    overrides = {field: value for field, value in overrides.items() if field in fields}
    if _drops_class_token(described.fields, overrides):
        overrides = overrides | {"idle_class_token": True}
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
    consumed = {name: shape for item in bound for name, shape in item.theirs.items()}
    ignored, others_own = _unread(inside, consumed, reader)
    why_not = ignored | others_own
    check_explained(f"{path} ({layout.name}) does", consumed, inside.shapes, why_not)
    outside = {n: f"outside of {prefix}" for n in tensors.shapes if not n.startswith(prefix)}
    inside.check_numbers(consumed)
    item_of = {ours: item for item in bound for ours in item.ours}
    notes = (*tensors.notes, *_note_on_others(path, prefix, others), *described.notes)
    notes += _note_on_grid(path, config, reader, inside, known, run)

    def read(ours: str) -> np.ndarray:
        item = item_of[ours]
        arrays = [inside.read(name) for name in item.theirs]
        parts = item.codec.read(arrays, list(item.ours.values()))
        return parts[list(item.ours).index(ours)]

    extras = {name: functools.partial(inside.read, name) for name in ignored}
    return Weights(
        path, layout.name, model, classes, {p: item.ours[p] for p, item in item_of.items()}, read,
        tensors.beside | outside | why_not,
        described.dialect | {"prefix_of_all": prefix}, extras, described.guessed, notes,
    )  # fmt: skip


def _unread(
    inside: Tensors, consumed: Iterable[str], reader: Reader
) -> tuple[dict[str, str], dict[str, str]]:
    """Names that are not read, each with the reason: parts that no model here uses, and what
    belongs to something other than the model."""
    consumed = set(consumed)
    ignored = {
        name: why
        for name in inside.shapes
        for pattern, why in reader.ignored.items()
        if name not in consumed and re.fullmatch(pattern, name)
    }
    left = [name for name in inside.shapes if name not in consumed and name not in ignored]
    return ignored, beside(left, consumed)


def _drops_class_token(fields: dict[str, Any], overrides: dict[str, Any]) -> bool:
    """Whether a pooling that is given does not read the class token that the file has."""
    reads = ("cls", "cls_gap")
    given = overrides.get("pool")
    has = fields.get("pool") in reads or fields.get("idle_class_token")
    return bool(given and has) and given not in reads and "idle_class_token" not in overrides


def _note_on_others(path: Path, prefix: str, others: list[str]) -> tuple[str, ...]:
    """A line that names the other models of a file, if there are any."""
    if not others:
        return ()
    rest = ", ".join(f"{path}/{printable(other[:-1])}" for other in others)
    taken = printable(prefix[:-1])
    return (f"{path} holds several models; {taken} is taken (others: {rest})",)


def _note_on_grid(
    path: Path, config: Config, reader: Reader, inside: Tensors, known: dict[str, Any],
    run: Mapping[str, Any],
) -> tuple[str, ...]:  # fmt: skip
    """A line if the run's images decided the grid of the positions."""
    others = {field: value for field, value in run.items() if field != "image_size"}
    if others == run or getattr(config, "posemb", "") != "learned":  # sines are for any grid
        return ()
    with contextlib.suppress(Unstated):
        alone = reader.describe(inside, known | {"run": others}).fields.get(
            "image_size", config.image_size
        )
        if alone == config.image_size:
            return ()
    if not hasattr(config, "grid") or "source_image_size" in known:
        return ()
    rows, columns = config.grid
    return (
        f"{path} does not state the grid of its positions, taken from the run's images: {rows} x "
        f"{columns}; for another one, {spelled('source_image_size')}",
    )


def _open(path: Path, part: str) -> Tensors:
    """Opens a file as the container of the first layout that knows it, or by its content."""
    for _, reader in readers() if not part else ():
        if (tensors := reader.open(path)) is not None:
            return tensors
    return open_tensors(path, part)


def _recognise(tensors: Tensors) -> tuple[Layout, Reader, str, list[str]]:
    """The one layout that has these names, its reader, the prefix of the model's names, and the
    prefixes of other models beside it."""
    known = {layout.name: (layout, reader) for layout, reader in readers()}
    recognised = {name: reader.recognises for name, (_, reader) in known.items()}
    prefix, layouts, others = found_in(tensors.shapes, recognised)
    if not layouts:
        names = ", ".join(map(printable, sorted(tensors.shapes)[:4])) or "no tensors at all"
        raise UserError(
            f"{tensors.path} is of no known layout ({', '.join(known)}): it holds {names}"
            + (" …" if len(tensors.shapes) > 4 else "")
        )
    if len(layouts) > 1:
        raise UserError(
            f"{tensors.path} is ambiguous: its names under {prefix!r} are those of "
            f"{' and '.join(layouts)}; keep the tensors of one"
        )
    return *known[layouts[0]], prefix, others


def _known_fields(metadata: dict[str, Any]) -> dict[str, Any]:
    """The fields in this package's metadata, by the names that `open_weights` has for them."""
    if not metadata:
        return {}
    fields = {field: value for field, value in metadata["fields"].items() if value is not None}
    size = {"source_image_size": fields["image_size"]} if "image_size" in fields else {}
    return fields | size


def _with_refusal(described: Description, run: Mapping[str, Any]) -> Description:
    """Raises UserError if images cannot be shown as the file states. A run shows its own: then a
    note says that what the file states is unused."""
    if described.refusal and not run:
        raise UserError(described.refusal)
    unused = f"{described.refusal}; unused, because the run's pipeline shows the images"
    return dataclasses.replace(
        described, notes=(*described.notes, *([unused] if described.refusal else []))
    )


def _with_metadata(described: Description, metadata: dict[str, Any]) -> Description:
    """The description with this package's metadata, which is exact and overrides the shapes."""
    if not metadata:
        return described
    fields = described.fields | metadata["fields"]
    return dataclasses.replace(
        described, fields=fields, data=DataConfig(**metadata["data"]), guessed=(), refusal="",
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
