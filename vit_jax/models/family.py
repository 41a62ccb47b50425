"""What a family of models states about itself: one `Family`, at the end of the family's file.

Everything that the rest of the house wants to know of an architecture is asked here: its fields
(which become the config keys `model.FIELD`), its names, its multiply-adds, and one row for each of
its parameters. A family of your own is a `Family` too; `model.name` names it by its import path,
`my_package.my_module:MY_FAMILY`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

from flax import nnx

from vit_jax.models.configs import ImageConfig
from vit_jax.models.data_config import DataConfig
from vit_jax.paths import logical

# A family's config: a frozen dataclass of fields that `vit_jax.fields.field` makes. It has at least
# image_size, channels, num_classes and dtype; each family has more of its own.
Config = Any

# -- parameters ------------------------------------------------------------------------------------

BACKBONE = "backbone"  # the part of a detector that may begin as a classifier
BOTH = ("tensor", "fsdp")  # one dimension over both axes of the mesh

# Where a parameter stands for layer-wise rates, as in BEiT (arXiv 2106.08254, appendix).
BEFORE, BLOCK, BEHIND = "before the blocks", "in a block", "behind the blocks"

# What may happen to a parameter at `init` that the weights lack, or have in another shape.
FRESH = "made anew"
CLASSES = "made anew, or its last axis permuted: the classes"
RESIZED = "interpolated: positions"
CHANNELS = "summed or repeated over the image's channels"
OWN = "made anew, if the weights are those of a backbone alone"


@dataclasses.dataclass(frozen=True)
class Param:
    """One row: everything that is decided by a parameter's path.

    A kernel is split over `fsdp` along one dimension, and over `tensor` along the heads or the
    hidden width (Megatron-LM's layout: one reduction after `out`, one after `fc2`). Where a row
    names `fsdp` for several dimensions, the one whose parts pad least in a TPU's tiles takes it.
    """

    path: str  # a regular expression of the whole logical path
    axes: tuple = ()  # of the mesh, for each dimension of a single layer's parameter
    decays: bool = False  # whether weight decay applies: kernels alone (vision_transformer, AugReg)
    # How Muon reads it as matrices: (dimensions summed over, dimensions made); None: Adam.
    muon: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    depth: str = BEHIND
    at_init: str | None = None  # None: the weights must have it, in this shape


def below(part: str, gather: Callable | None) -> Callable | None:
    """The `gather` of a part of a model, whose stacks have the rows below the part's name."""
    return gather and (lambda params, stack: gather(params, f"{part}/{stack}"))


def under(prefix: str, rows: tuple[Param, ...], depth: str = BEHIND) -> tuple[Param, ...]:
    """The rows of a part, below the path of the part."""
    return tuple(
        dataclasses.replace(row, path=f"({prefix})/({row.path})", depth=depth) for row in rows
    )


# -- names -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Names:
    """Names of one form: what they mean, which of them are listed, how images are shown."""

    pattern: str
    fields: Callable[[dict[str, str]], dict[str, Any]]  # of the pattern's groups; KeyError: no name
    listed: tuple[str, ...] = ()
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    # The full name of a recipe's short one (`b16`) at a resolution; None where it is not of these.
    full: Callable[[str, int], str | None] = lambda short, side: None
    shorts: tuple[str, ...] = ()  # examples of short names, for messages


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models."""

    name: str  # of the model whose sizes are all given as fields
    config: type  # a frozen dataclass: all that decides parameters and arithmetic
    # Of a config and the keys of its parameters; called as `Model.apply` says.
    module: Callable[[Any, Any], nnx.Module]
    macs: Callable[[Any], int]  # multiply-adds of one image through the model
    params: tuple[Param, ...]
    names: tuple[Names, ...] = ()
    parts: tuple[str, ...] = ()  # fields that set kinds of the family apart: names.name_of
    # Of a config and the keys of its parameters: the layer that sets the family apart, and the
    # shape of its input for one image. Benchmarks measure it against the number of pixels.
    layer: Callable[[Any, Any], tuple[nnx.Module, tuple[int, ...]]] | None = None
    # The family whose models are its part `backbone`, and whose weights it may begin with.
    backbone: "Family | None" = None
    # The family of its models less their decoders: what weights of them are without it.
    encoder: "Family | None" = None
    task: str = "classification"  # of the package's tasks, the one that its models are for
    any_size: bool = False  # its models take images of any size: `image_size` is the usual one

    @property
    def fields(self) -> dict[str, dataclasses.Field]:
        """The fields of its config, by name."""
        return {row.name: row for row in dataclasses.fields(self.config)}

    @property
    def of_run(self) -> set[str]:
        """The fields that a run decides; all others come with the weights."""
        flagged = {name for name, row in self.fields.items() if row.metadata.get("of_run")}
        return flagged | {row.name for row in dataclasses.fields(ImageConfig)}

    def row(self, path: str) -> Param:
        """The row of a parameter, by its path with or without the layer's number.

        Raises ValueError where none or several match: a table that does not decide is a bug in it.
        """
        return _row(self.params, logical(path))

    def at_init(self, path: str) -> str | None:
        """What may happen at `init` to a parameter, or to a tensor that is none of the family's."""
        rows = [row for row in self.params if re.fullmatch(row.path, logical(path))]
        return rows[0].at_init if rows else None


@functools.lru_cache(maxsize=4096)
def _row(params: tuple[Param, ...], path: str) -> Param:
    rows = [row for row in params if re.fullmatch(row.path, path)]
    if len(rows) != 1:
        raise ValueError(f"parameter {path!r} matches {len(rows)} rows of its family, not one")
    return rows[0]
