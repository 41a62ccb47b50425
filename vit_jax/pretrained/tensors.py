"""An opened file of weights, of any container: names, shapes, and how a tensor is read."""

import contextlib
import dataclasses
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError, printable

NUMBERS = r"b?float(16|32|64|96|128)"  # dtypes that parameters are read from
# Dtypes of quantised weights, which mean nothing without their scales.
QUANTISED = r"(q?u?int|float[48]|F[468]|I|U)\d*.*"


@dataclasses.dataclass
class Tensors:
    """An opened file, or the opened files of a folder.

    `dtypes` are NumPy's names if it has one. `metadata` is what this package wrote beside the
    tensors, such as sizes that do not follow from shapes. `config` is the folder's `config.json`.
    `notes` are lines about choices that were made while opening. `parts` are the names of the state
    dicts in a file that has several, and `beside` those of its other entries, each with the reason
    why it is not read.
    """

    path: Path
    container: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    beside: dict[str, str] = dataclasses.field(default_factory=dict)

    def below(self, prefix: str) -> "Tensors":
        """The tensors whose names begin with `prefix`. The new names lack it."""
        inside = [name for name in self.shapes if name.startswith(prefix)]
        return dataclasses.replace(
            self,
            shapes={name.removeprefix(prefix): self.shapes[name] for name in inside},
            dtypes={name.removeprefix(prefix): self.dtypes[name] for name in inside},
            read=lambda name: self.read(prefix + name),
        )

    def check_numbers(self, names: Iterable[str]) -> None:
        """Raises UserError for the first tensor whose dtype is not that of weights."""
        for name in names:
            dtype = self.dtypes[name]
            if re.fullmatch(NUMBERS, dtype):
                continue
            why = "weights are dense arrays of floating-point numbers (16, 32 or 64 bits)"
            if re.fullmatch(QUANTISED, dtype):
                why = "quantised weights without their scales; take the file that is not quantised"
            raise UserError(f"{self.path}: {printable(name)} is {printable(dtype)}: {why}")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the errors that the containers' readers raise for a damaged file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError,
                 LookupError, AttributeError, TypeError, RuntimeError)  # fmt: skip
        if not isinstance(error, known) and type(error).__name__ != "SafetensorError":
            raise
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """The error for a file that cannot be read, with the reason of the container's reader."""
    reason = printable(str(error).strip().partition("\n")[0])[:160] or type(error).__name__
    return UserError(f"{path} is damaged or cut short ({path.stat().st_size:,} bytes): {reason}")
