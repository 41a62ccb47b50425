"""StableHLO by `jax.export`: read back by JAX alone, on CPUs, GPUs and TPUs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export

from vit_jax.exporting.function import Function

SUFFIX = ".stablehlo"
PACKAGES = {"flatbuffers": "export"}  # what it needs: module -> extra of setup.py
PLATFORMS = ("cpu", "cuda", "tpu")  # an artefact is lowered for all of them


def write(function: Function, file: Path, facts: dict[str, Any]) -> None:
    """Writes a function with a symbolic batch. `facts` stand in a file of their own."""
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [
        jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype in function.inputs.values()
    ]
    exported = jax.export.export(jax.jit(function.__call__), platforms=PLATFORMS)(*shapes)
    file.write_bytes(exported.serialize())


def read(file: Path) -> Callable[..., dict[str, Any]]:
    """The function in a file."""
    return jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call)
