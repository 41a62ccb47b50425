"""A layout of weights: a table of rows, a `Reader` and a `Writer`.

`layouts.py` lists the package's own layouts, and `register` adds others.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.models.configs import ViTConfig
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import Config
from vit_jax.models.model import Model
from vit_jax.pretrained.files import write_safetensors
from vit_jax.pretrained.rows import Row, Shape
from vit_jax.pretrained.tensors import Tensors

SHOWN = 12  # names in an error message
LONGEST = 160  # characters of a name in an error message


@dataclasses.dataclass(frozen=True)
class Description:
    """What a file states about its model.

    Attributes:
      family: the config class of the model.
      fields: values for that class.
      data: how images are prepared for the model.
      classes: names of the outputs.
      dialect: how the file names its tensors; the layout's `rows` read it.
      guessed: fields of `data` that neither the file nor its layout states.
      refusal: why images cannot be shown as the file states; empty if they can. A run with `init`
        shows its own images, and does not need it.
      notes: lines about choices that were made for the file.
      activation: how logits become predictions (a key of `ACTIVATIONS` in models/model.py).
    """

    family: type
    fields: dict[str, Any]
    data: DataConfig
    classes: list[str] | None = None
    dialect: dict[str, Any] = dataclasses.field(default_factory=dict)
    guessed: tuple[str, ...] = ()
    activation: str = "softmax"
    refusal: str = ""
    notes: tuple[str, ...] = ()


# Fields of DataConfig that may have to be guessed.
SHOWN_BY = ("mean", "std", "interpolation", "crop")
# What a file states of images: the settings, and the fields of them that are guessed.
Images = tuple[DataConfig, tuple[str, ...]]
Dialect = dict[str, Any]  # how one file of a layout names its tensors


class Unshown(UserError):
    """Images cannot be shown as a file states. `images` are the settings that are still known."""

    def __init__(self, why: str, images: Images):
        super().__init__(why)
        self.images = images


def or_refusal(stated: Callable[..., Images], *arguments: Any) -> tuple[Images, str]:
    """What a file states of images, and why they cannot be shown so; an empty text if they can."""
    try:
        return stated(*arguments), ""
    except Unshown as error:
        return error.images, str(error)


@dataclasses.dataclass(frozen=True)
class Reader:
    """How files of a layout are read.

    Attributes:
      recognises: whether a file's tensor names are those of this layout. The names lack what all
        of them begin with (`wrapped.py`).
      describe: the model of a file, from its tensors and the fields that are known from the user or
        from metadata. (For example, shapes do not state the number of heads.)
      ignored: patterns of tensor names that no model here uses, each with the reason.
      prepare: changes the opened tensors before they are described, for example to unstack layers.
      open: opens files of a container that only this layout has, and returns None for all other
        files. Without it, the layout's files are `.npz`, `.safetensors` or PyTorch's.
    """

    recognises: Callable[[Iterable[str]], bool]
    describe: Callable[[Tensors, dict[str, Any]], Description]
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Tensors], Tensors] = lambda tensors: tensors
    open: Callable[[Path], Tensors | None] = lambda path: None


@dataclasses.dataclass(frozen=True)
class Writer:
    """How files of a layout are written.

    Attributes:
      suffix: of the file; empty if only a folder can be written.
      write: writes tensors and the metadata of this package into one file.
      families: the config classes of the models that the layout can hold; None: of all.
      files: the JSON files of a folder, each made from the model, its classes and the dialect.
        Without them only single files are written.
      dialect: the dialect for the tensor names of a config.
      positions: the prefix tokens that have positions in the layout's table, as a value of
        `prefix_positions`. None: the same tokens as in the model.
      refuses: parts of a config that the layout cannot hold, apart from parameters without a row.
      assumes: settings that the layout's own package uses when the file (or the folder: second
        argument) does not state them. Those of convolutions count for ResNets and hybrids alone.
      notes: other differences that a user of the layout's own package should know.
      fillers: shapes of tensors that the layout's own package expects, written as zeros.
      finish: the inverse of `Reader.prepare`.
    """

    suffix: str = ""
    write: Callable[[Path, dict[str, np.ndarray], dict[str, Any]], None] = write_safetensors
    families: tuple[type, ...] | None = None
    files: dict[str, Callable[[Model, list[str] | None, Dialect], dict[str, Any]]] = (
        dataclasses.field(default_factory=dict)
    )
    dialect: Callable[[Config], Dialect] = lambda config: {}
    positions: Callable[[ViTConfig], str | None] = lambda config: None
    refuses: Callable[[Config], list[str]] = lambda config: []
    assumes: Callable[[Config, bool], dict[str, Any]] = lambda config, folder: {}
    notes: Callable[[Model], list[str]] = lambda model: []
    fillers: Callable[[Config, Dialect], dict[str, Shape]] = lambda config, dialect: {}
    finish: Callable[[dict[str, np.ndarray], Config, Dialect], dict[str, np.ndarray]] = (
        lambda tensors, config, dialect: tensors
    )

    def takes(self, config: Config) -> bool:
        """Whether the layout can hold models of this family, at least some of them."""
        return self.families is None or type(config) in self.families


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout in which weights are published.

    Attributes:
      name: the value of `--to`, and the name that `vit inspect` prints.
      rows: the table of tensors and parameters, for a config and a dialect. Reading and writing
        use the same table.
      reader: None if such files can only be written.
      writer: None if such files can only be read.
    """

    name: str
    rows: Callable[[Config, Dialect], list[Row]]
    reader: Reader | None = None
    writer: Writer | None = None


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = [printable(name)[:LONGEST] for name in names]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def refused_pool(config: Config, *pools: str) -> list[str]:
    """Names the pooling of a config if it is none of `pools`; otherwise an empty list."""
    pool = config.pool if isinstance(config, ViTConfig) else None
    return [f"pool {pool!r}"] if pool and pool not in pools else []
