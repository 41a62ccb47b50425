"""Opens weights of any layout as one thing: a model, and its parameters read one by one.

The layout is recognised from names, the model from names and shapes (and what stands beside them);
then every tensor must be explained. Reading happens later, tensor by tensor.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoint import checksums, manager, steps
from vit_jax.checkpoint.tree import flatten, unstack
from vit_jax.errors import UserError, printable
from vit_jax.models.data_config import IMAGENET, SQUASHED, DataConfig, crop_of
from vit_jax.models.family import Config
from vit_jax.models.model import Model
from vit_jax.models.registry import create_model, find_family, make_config, name_of
from vit_jax.pretrained.files import Tensors, open_tensors
from vit_jax.pretrained.google import BIG_VISION, GOOGLE
from vit_jax.pretrained.huggingface import HUGGINGFACE
from vit_jax.pretrained.layout import SHOWN_BY, Description, Layout, some
from vit_jax.pretrained.rows import expand
from vit_jax.pretrained.stated import (
    brief,
    check_activation,
    check_classes,
    check_config,
    check_data,
    check_keys,
    check_metadata,
    check_resized,
)  # fmt: skip
from vit_jax.pretrained.timm import DINOV2_HUB, TIMM

EMA = "ema"  # behind a run's own folder: its moving average
MOST_STAGES = 8  # of a ResNet: each halves its image, so none is left of any that is read
LAYOUTS = {layout.name: layout for layout in (GOOGLE, BIG_VISION, TIMM, DINOV2_HUB, HUGGINGFACE)}
# Sizes that shapes tell too (the number of layers not for sure), as `config.json` names them.
SAID = {
    "num_hidden_layers": "num_layers", "depth": "num_layers", "hidden_size": "hidden_size",
    "embed_dim": "hidden_size",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters that can be had: `shapes` by path (layers listed one by one), `read` one of them
    as a NumPy array, `unused` names of the file with the reason.

    `model` is the one that they were trained with, `classes` the names of its outputs where the
    file has them, `extras` tensors that have no meaning here but belong to the file. `guessed` are
    fields of `model.data_config` that nothing states, `notes` lines on what was chosen of the file.
    """

    path: Path
    layout: str
    model: Model
    classes: list[str] | None
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    unused: dict[str, str]
    dialect: dict[str, Any]
    extras: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)
    guessed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def guesses(self, among: Iterable[str] = SHOWN_BY) -> list[str]:
        """A line that says which settings of the images are a guess; none where none is."""
        fields = [field for field in self.guessed if field in among]
        if not fields:
            return []
        data = self.model.data_config
        what = ", ".join(f"{field} {getattr(data, field)}" for field in fields)
        other, whose = (IMAGENET, "DeiT, MAE and DINO") if data.mean == DataConfig.mean else (
            SQUASHED, "Google's models"
        )  # fmt: skip
        hint = (
            f"; if they were trained as {whose} were: --config.data.mean='{other.mean}' "
            f"--config.data.std='{other.std}'"
        )
        return [
            f"{self.path} does not say how images were shown, guessed: {what}"
            + hint * ("mean" in fields)
        ]


def open_weights(path: str | Path, **given: Any) -> Weights:
    """Opens a file, a folder of Hugging Face or timm, or one of this package's own checkpoints.

    Args:
      given: what the file does not tell, or tells wrongly: any field of the model's config
        (`num_heads`, `gelu`, …), `source_image_size`, the (height, width) trained at, and the
        `mean` and `std` by which images are normalised.

    Raises:
      UserError: unknown or ambiguous layout, tensors missing, superfluous or of another shape, a
        damaged file, or one that holds code.
    """
    path = Path(path).expanduser()
    given = {field: value for field, value in given.items() if value is not None}
    shown: dict[str, Any] = {field: given.pop(field) for field in ("mean", "std") if field in given}
    check_data("how images are normalised", shown)
    try:
        own, of_own, inside = _is_own(path), _is_own(path.parent), path.parent.is_file()
    except OSError as error:
        raise UserError(f"{brief(str(path))} cannot be opened: {error.strerror}") from error
    if own or (of_own and path.name == EMA):
        parts = ("params",) if own else ("params", EMA)
        weights = _open_own(path if own else path.parent, parts)
    else:
        part = path.name if inside else ""
        weights = _open_file(path, open_tensors(path.parent if inside else path, part), given)
    model = weights.model
    if shown:
        data = dataclasses.replace(model.data_config, **shown)
        model = dataclasses.replace(model, data_config=data)
    guessed = tuple(field for field in weights.guessed if field not in shown)
    return dataclasses.replace(weights, model=model, guessed=guessed)


# What describing a model raises where shapes or values make no sense.
_SENSELESS = (
    ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError,
    ValueError,
)  # fmt: skip


def _open_file(path: Path, tensors: Tensors, given: dict[str, Any]) -> Weights:
    check_keys(path / "config.json", tensors.config)
    check_metadata(path, tensors.metadata)
    layout, prefix = _recognise(tensors)
    try:
        inside = layout.prepare(tensors.below(prefix))
        found = layout.describe(inside, _written(tensors.metadata) | given)
        found = _with_metadata(found, tensors.metadata)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    except _SENSELESS as error:
        raise UserError(
            f"{path} has names of {layout.name}, but its shapes, or config.json or vit_jax's "
            "metadata with it, make no sense"
        ) from error
    fields = [field.name for field in dataclasses.fields(found.family)]
    given = {field: value for field, value in given.items() if field in fields}
    config = make_config(found.family, found.fields | given, str(path))
    check_config(path, config, found.family)
    _check_said(tensors, config, given)
    _check_depth(path, config, len(inside.shapes))
    check_data(path, found.data)
    check_resized(path, found.data, config.image_size)
    check_classes(path, found.classes)
    classes = found.classes if config.num_classes else None
    if classes and len(classes) != config.num_classes:
        raise UserError(f"{path} names {len(classes)} classes, its head has {config.num_classes}")
    like = str(tensors.config.get("architecture") or tensors.config.get("model_type") or "vit")
    name = name_of(config, like.partition("_")[0])
    model = Model(name, config, found.data, found.activation)
    bound, unknown = expand(
        layout.rows(config, found.dialect), listed_params(model), found.dialect.get("chunk")
    )
    if unknown:
        raise UserError(f"{path}: {layout.name} files hold no {some(unknown)}")
    unused = {n: f"outside of {prefix}" for n in tensors.shapes if not n.startswith(prefix)}
    consumed = {name: shape for one in bound for name, shape in one.theirs.items()}
    ignored = {
        name: why
        for name in inside.shapes.keys() - consumed
        for pattern, why in layout.ignored.items()
        if re.fullmatch(pattern, name)
    }
    check_explained(f"{path} ({layout.name}) does", consumed, inside.shapes, ignored)
    inside.check_numbers(consumed)
    where = {ours: one for one in bound for ours in one.ours}

    def read(ours: str) -> np.ndarray:
        one = where[ours]
        arrays = [inside.read(name) for name in one.theirs]
        parts = one.codec.read(arrays, list(one.ours.values()))
        return parts[list(one.ours).index(ours)]

    extras = {name: functools.partial(inside.read, name) for name in ignored}
    return Weights(
        path, layout.name, model, classes, {p: one.ours[p] for p, one in where.items()}, read,
        unused | ignored, found.dialect | {"prefix_of_all": prefix}, extras, found.guessed,
        tensors.notes,
    )  # fmt: skip


def listed_params(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """path -> shape of every parameter, layers listed one by one.

    They are those of the scanned model, of which a single block is built, and not all of them.
    """
    if hasattr(model.config, "scan"):
        config = dataclasses.replace(model.config, scan=True)  # type: ignore[arg-type]
        model = dataclasses.replace(model, config=config)
    return unstack(flatten(model.abstract_params))


def _recognise(tensors: Tensors) -> tuple[Layout, str]:
    """The one layout whose names these are, and the prefix under which they stand."""
    found = []
    for layout in LAYOUTS.values():
        prefixes = [p for p in layout.prefixes if _fits(layout, tensors.below(p))]
        found += [(layout, prefix) for prefix in prefixes[:1]]
    if not found:
        some = ", ".join(map(printable, sorted(tensors.shapes)[:4])) or "no tensors at all"
        raise UserError(
            f"{tensors.path} is of no known layout ({', '.join(LAYOUTS)}): it holds {some}"
            + (" …" if len(tensors.shapes) > 4 else "")
        )
    if len(found) > 1:
        names = " and ".join(f"{layout.name} (under {p!r})" for layout, p in found)
        raise UserError(
            f"{tensors.path} is ambiguous: its names are those of {names}; keep the tensors of one"
        )
    return found[0]


def _fits(layout: Layout, tensors: Tensors) -> bool:
    return bool(tensors.shapes) and layout.recognises(tensors.shapes)


def _written(metadata: dict[str, Any]) -> dict[str, Any]:
    """What this package wrote beside the tensors, as a user would give it."""
    if not metadata:
        return {}
    told = {field: value for field, value in metadata["fields"].items() if value is not None}
    size = {"source_image_size": told["image_size"]} if "image_size" in told else {}
    return told | size


def _with_metadata(found: Description, metadata: dict[str, Any]) -> Description:
    """What this package wrote beside the tensors is exact: it goes before what shapes suggest."""
    if not metadata:
        return found
    return dataclasses.replace(
        found, fields=found.fields | metadata["fields"], data=DataConfig(**metadata["data"]),
        classes=metadata.get("classes") or found.classes, guessed=(),
        activation=metadata.get("activation", found.activation),
    )  # fmt: skip


def _check_said(tensors: Tensors, config: Config, given: dict[str, Any]) -> None:
    """The sizes that `config.json` says, where it does: shapes cannot tell that the last layers
    are missing."""
    said = tensors.config | (tensors.config.get("model_args") or {})
    for key, field in SAID.items():
        found = getattr(config, field, None)
        if None not in (said.get(key), found) and said[key] != found and field not in given:
            raise UserError(
                f"{tensors.path / 'config.json'} says {key} {brief(said[key])}, the tensors are "
                f"those of {found}"
            )


def _check_depth(path: Path, config: Config, tensors: int) -> None:
    """Each layer has tensors: a model far deeper than its file is refused before it is made."""
    deep = getattr(config, "num_layers", 0)
    units = getattr(config, "resnet_layers", None) or ()
    if len(units) > MOST_STAGES or deep + sum(units) > tensors:
        what = f"{deep} layers" if deep else f"a ResNet of {brief(tuple(units))} units"
        raise UserError(
            f"{path}: its names, metadata or config.json say {what}, it holds {tensors} tensors"
        )


def check_explained(what: str, wanted: dict, held: dict, ignored: Iterable[str] = ()) -> None:
    """Every tensor that is held has a place, and every place a tensor of its shape."""
    lists = {
        "missing": [f"{n} {list(wanted[n])}" for n in wanted.keys() - held],
        "superfluous": [f"{n} {list(held[n])}" for n in held.keys() - wanted.keys() - set(ignored)],
        "of another shape": [
            f"{n} {list(held[n])}, expected {list(wanted[n])}"
            for n in wanted.keys() & held
            if tuple(held[n]) != tuple(wanted[n])
        ],
    }
    parts = []
    for kind, names in lists.items():
        names.sort()
        if names:
            parts.append(f"{len(names)} {kind}: {some(names)}")
    if parts:
        raise UserError(f"{what} not add up: {'; '.join(parts)}")


def _is_own(path: Path) -> bool:
    """A work folder, its checkpoints, or one of them."""
    return path.is_dir() and (
        (path / "state").is_dir() or (path / "checkpoints").is_dir() or bool(steps.steps(path))
    )


def _shown_by(pipeline: str, image_size: tuple[int, int], shown: dict[str, Any]) -> DataConfig:
    """What a run's evaluation pipeline does, also in the words that other layouts have for it."""
    how = re.search(r"\|\s*resize\w*\([^|]*'(\w+)'", pipeline)
    shown = shown | ({"interpolation": how[1]} if how else {})
    found = re.search(r"\|\s*resize(_small)?(?:\((\()?(\d+))?", pipeline)
    squash = found is None or not found[1]
    crop = 1.0 if squash else DataConfig.crop
    if found and found[3] and "central_crop" in pipeline:
        side = image_size[0] if found[2] else max(image_size)
        crop = crop_of(side, max(side, int(found[3])))
    return DataConfig(written=pipeline, squash=squash, crop=crop, **shown)


def _open_own(path: Path, parts: tuple[str, ...]) -> Weights:
    """A run's parameters, each from the last of the parts of its state that has it; those of a
    schedule-free run are the average x that it is judged by (arXiv 2405.15682, eq. 1)."""
    checkpoint = manager.find(path)
    checksums.check(checkpoint)
    about = manager.about(checkpoint)
    model, flat = described(checkpoint, about)
    shapes_of = manager.stored_shapes(checkpoint)
    if not all(any(name.startswith(f"{part}/") for name in shapes_of) for part in parts):
        raise UserError(f"{checkpoint} has no moving average: it was trained without --config.ema")
    names = {  # what is frozen has no average
        name.partition("/")[2]: name
        for part in parts for name in shapes_of if name.startswith(f"{part}/")
    }  # fmt: skip
    stored = {path: shapes_of[name] for path, name in names.items()}
    where = {ours: path for path, leaf in stored.items() for ours in unstack({path: leaf})}
    schedule_free = flat.get("optimizer.name") == "schedule_free"
    fast = {
        found[1]: name for name in shapes_of if (found := re.fullmatch(r"opt/\d+/z/(.*)", name))
    } if schedule_free else {}  # fmt: skip
    held: dict[str, Any] = {}  # the layers of one stored parameter

    def read(ours: str) -> np.ndarray:
        if ours not in held:
            path = where[ours]
            wanted = {names[path], fast.get(path, names[path])}
            found = manager.read_host(checkpoint, {name: shapes_of[name] for name in wanted})
            array = found[names[path]]
            if path in fast:  # y = b1 x + (1 - b1) z was trained
                b1 = flat["optimizer.b1"]
                array = (array - (1 - b1) * found[fast[path]]) / b1
            held.clear()
            held.update(unstack({path: array}))
        return held[ours]

    shapes = {p: tuple(leaf.shape) for p, leaf in unstack(stored).items()}
    _check_depth(checkpoint, model.config, len(shapes))
    check_explained(
        f"{checkpoint} does", {p: x.shape for p, x in listed_params(model).items()}, shapes
    )
    return Weights(checkpoint, "orbax", model, about["classes"] or None, shapes, read, {}, {})


def described(checkpoint: Path, about: Any) -> tuple[Model, dict[str, Any]]:
    """A run's model and its flat config. What a checkpoint says is checked as any file's is.

    Raises UserError where it makes no sense.
    """
    try:
        return _described(checkpoint, about)
    except _SENSELESS as error:
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
    if told := about.get("data"):  # of weights that were converted
        check_data(checkpoint, told)
        data = DataConfig(**told)
    else:
        shown = {key: v for key in ("mean", "std") if (v := flat.get(f"data.{key}")) is not None}
        check_data(checkpoint, shown | {"written": flat["data.eval.pipeline"]})
        data = _shown_by(flat["data.eval.pipeline"], model.config.image_size, shown)
    check_data(checkpoint, data)
    if not 0 <= flat.get("optimizer.b1", 0) <= 1:
        raise UserError(f"{checkpoint}: optimizer.b1 is a number of 0 … 1")
    activation = about.get("activation", flat.get("loss.name", "softmax"))
    check_activation(checkpoint, activation)
    return dataclasses.replace(model, data_config=data, activation=activation), flat
