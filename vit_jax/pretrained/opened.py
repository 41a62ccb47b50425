"""Opened weights of any layout (`Weights`), and the checks for weights of all layouts."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.checkpoint.tree import flatten, unstack
from vit_jax.errors import UserError
from vit_jax.models.data_config import IMAGENET, SQUASHED, DataConfig
from vit_jax.models.family import Config
from vit_jax.models.model import Model
from vit_jax.pretrained.layout import SHOWN_BY, some
from vit_jax.pretrained.stated import brief

MOST_STAGES = 8  # of a ResNet; each stage halves the image, so eight leave nothing of it
# Errors that the description of a model may raise if shapes or values make no sense.
SENSELESS = (
    ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError,
    ValueError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Weights:
    """Opened weights.

    Attributes:
      layout: the name of their layout.
      model: the model that they were trained with.
      classes: names of its outputs, if the file states them.
      shapes: of the parameters by path, with the layers listed one by one.
      read: reads one parameter as a NumPy array.
      unused: names of tensors that are not read, each with the reason.
      dialect: how the file names its tensors.
      extras: functions that read the tensors that the model does not use. A file that is written
        in the same layout keeps them.
      guessed: fields of `model.data_config` that the weights do not state.
      notes: lines about choices that were made while opening.
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
        """A line that names the guessed settings of images; no line if nothing is guessed."""
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
    """path -> shape of every parameter, with the layers listed one by one.

    The shapes are those of the scanned model, because it is built with one block instead of all.
    """
    if hasattr(model.config, "scan"):
        config = dataclasses.replace(model.config, scan=True)  # type: ignore[arg-type]
        model = dataclasses.replace(model, config=config)
    return unstack(flatten(model.abstract_params))


def check_depth(path: Path, config: Config, tensors: int) -> None:
    """Raises UserError if a model, not built yet, has more layers than its file has tensors."""
    stacks = ("num_layers", "decoder_layers", "detector_encoder", "detector_decoder")
    deep = sum(getattr(config, stack, 0) for stack in stacks)
    units = getattr(config, "resnet_layers", None) or ()
    if len(units) > MOST_STAGES or deep + sum(units) > tensors:
        what = f"{deep} layers" if deep else f"a ResNet of {brief(tuple(units))} units"
        raise UserError(
            f"{path}: its names, metadata or config.json say {what}, it holds {tensors} tensors"
        )


def check_explained(what: str, wanted: dict, held: dict, ignored: Iterable[str] = ()) -> None:
    """Raises UserError for tensors that are missing, not wanted, or of another shape."""
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
