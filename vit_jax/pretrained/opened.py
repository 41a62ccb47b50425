"""What opening gives, whatever the layout is: `Weights`, and the checks that all weights pass."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoint.tree import flatten, unstack
from vit_jax.errors import UserError
from vit_jax.models.model import Config, DataConfig, Model
from vit_jax.models.registry import IMAGENET, SQUASHED
from vit_jax.pretrained.layout import SHOWN_BY, some
from vit_jax.pretrained.stated import brief

MOST_STAGES = 8  # of a ResNet: each halves its image, so none is left of any that is read
# What describing a model raises where shapes or values make no sense.
SENSELESS = (
    ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError,
    ValueError,
)  # fmt: skip


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


def listed_params(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """path -> shape of every parameter, layers listed one by one.

    They are those of the scanned model, of which a single block is built, and not all of them.
    """
    if hasattr(model.config, "scan"):
        config = dataclasses.replace(model.config, scan=True)  # type: ignore[arg-type]
        model = dataclasses.replace(model, config=config)
    return unstack(flatten(model.abstract_params))


def check_depth(path: Path, config: Config, tensors: int) -> None:
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
