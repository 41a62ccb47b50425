"""What a layout is: how its files are recognised, what they say of a model, its table of rows."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import Config
from vit_jax.models.model import Model
from vit_jax.models.vit import ViTConfig
from vit_jax.pretrained.files import Tensors
from vit_jax.pretrained.rows import Row, Shape

SHOWN = 12  # names in an error
LONGEST = 160  # characters of a name in an error


@dataclasses.dataclass(frozen=True)
class Description:
    """What a file says of its model: the family's config class and its fields, how images were
    shown, the names of the classes, the `dialect` in which its tensors are named, and what its
    logits mean. `guessed` are the fields of `data` that neither the file nor its layout states."""

    family: type
    fields: dict[str, Any]
    data: DataConfig
    classes: list[str] | None = None
    dialect: dict[str, Any] = dataclasses.field(default_factory=dict)
    guessed: tuple[str, ...] = ()
    activation: str = "softmax"  # of `ACTIVATIONS` in models/model.py


SHOWN_BY = ("mean", "std", "interpolation", "crop")  # fields that a guess is made of
Dialect = dict[str, Any]  # how one file of a layout names its tensors


@dataclasses.dataclass(frozen=True)
class Layout:
    """One of the layouts that weights are published in.

    Reading: `recognises` looks at names alone, under each of `prefixes`; `describe` gets the file
    and the fields that the user gave (a number of heads is not in every file); `rows` the model's
    config and the dialect. `ignored` are names (patterns) that no model here has a use for, and
    why.

    Writing: to a file with the `suffix`, or a folder with `files` made from the model, its classes
    and the dialect. `positions` says which prefix tokens have positions in its tables (None: as the
    model has them), `refuses` what else it cannot hold, `reader` what its own package computes with
    where the file (or the folder) cannot say otherwise, `notes` what else its readers take
    otherwise, `fillers` shapes of tensors that it insists on.
    """

    name: str
    recognises: Callable[[Iterable[str]], bool]
    describe: Callable[[Tensors, dict[str, Any]], Description]
    rows: Callable[[Config, Dialect], list[Row]]
    prefixes: tuple[str, ...]
    suffix: str
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Tensors], Tensors] = lambda tensors: tensors
    files: dict[str, Callable[[Model, list[str] | None, Dialect], dict[str, Any]]] = (
        dataclasses.field(default_factory=dict)
    )
    dialect: Callable[[Config], Dialect] = lambda config: {}
    positions: Callable[[ViTConfig], str | None] = lambda config: None
    refuses: Callable[[Config], list[str]] = lambda config: []
    reader: Callable[[Config, bool], dict[str, Any]] = lambda config, folder: {}
    notes: Callable[[Model], list[str]] = lambda model: []
    fillers: Callable[[Config, Dialect], dict[str, Shape]] = lambda config, dialect: {}
    finish: Callable[[dict[str, np.ndarray], Config, Dialect], dict[str, np.ndarray]] = (
        lambda tensors, config, dialect: tensors
    )


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = [printable(name)[:LONGEST] for name in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def refused_pool(config: Config, *pools: str) -> list[str]:
    """The pooling, where it is none of those that a layout's readers know."""
    pool = config.pool if isinstance(config, ViTConfig) else None
    return [f"pool {pool!r}"] if pool and pool not in pools else []


def count(names: Iterable[str], pattern: str) -> int:
    """How many layers there are, by the highest number that the pattern's group takes."""
    numbers = [int(found.group(1)) for name in names if (found := re.match(pattern, name))]
    return max(numbers) + 1 if numbers else 0


def units(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """Units of each stage of a ResNet: the pattern's two groups are stage and unit from 1."""
    seen: dict[int, int] = {}
    for name in names:
        if found := re.match(pattern, name):
            stage, unit = int(found.group(1)), int(found.group(2))
            seen[stage] = max(seen.get(stage, 0), unit)
    return tuple(seen[stage] for stage in sorted(seen))


def size_of(
    positions: int, prefixes: Iterable[int], patch: int, image_size: Any, what: str
) -> tuple[tuple[int, int], int]:
    """The (height, width) of the images that a table of positions is for, and how many positions
    belong to prefix tokens.

    Where the image size is known (metadata, or the user's word), it decides, although patches may
    not tile it; otherwise it is that of the square of patches that fits.

    Raises UserError where none fits.
    """
    prefixes = list(dict.fromkeys(prefixes))
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        grid = (height // patch, width // patch)
        for prefix in prefixes:
            if positions - prefix == math.prod(grid):
                return (height, width), prefix
        raise UserError(
            f"{what} has positions for {positions - prefixes[0]} patches, not for the {grid[0]} x "
            f"{grid[1]} of images {height} x {width} (source_image_size is the size that the "
            "weights were trained at)"
        )
    for prefix in prefixes:
        side = math.isqrt(positions - prefix)
        if side * side == positions - prefix:
            return (side * patch, side * patch), prefix
    raise UserError(
        f"{what} has positions for {positions - prefixes[0]} patches, which is no square: say "
        "source_image_size=(HEIGHT, WIDTH) that the weights were trained at"
    )


def needs(tensors: Tensors, *names: str) -> list[Shape]:
    """Shapes of tensors without which a file says nothing of its model. Raises UserError."""
    for name in names:
        if name not in tensors.shapes:
            raise UserError(f"{tensors.path} lacks the tensor {name!r}")
    return [tensors.shapes[name] for name in names]
