"""ONNX by jax2onnx, read back by onnxruntime.

jax2onnx replaces functions of JAX and Flax while it traces, and some of these replacements fail
with a symbolic batch. So a function is traced before, and jax2onnx sees primitive operations alone
(`primitives.py`).
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from vit_jax.errors import UserError
from vit_jax.exporting import primitives
from vit_jax.exporting.function import Function

SUFFIX = ".onnx"
PACKAGES = {"jax2onnx": "onnx", "onnx": "onnx", "onnxruntime": "onnx"}
LOGGERS = ("jax2onnx", "onnx_ir")  # they report plug-ins for packages that are not here
ERRORS = 3  # the level of onnxruntime's log that holds errors alone


def write(function: Function, file: Path, facts: dict[str, Any]) -> None:
    """Writes a function with a symbolic batch, and each fact as text of the file's metadata.

    Raises UserError for a model that jax2onnx cannot convert."""
    import onnx

    with _quiet():
        from jax2onnx import to_onnx

        (batch,) = jax.export.symbolic_shape("batch")
        shapes = [
            jax.ShapeDtypeStruct((batch, *shape), dtype)
            for shape, dtype in function.inputs.values()
        ]
        traced, names = primitives.traced(function.__call__, shapes)
        try:
            graph = to_onnx(
                traced, shapes, model_name=function.model.name, input_names=[*function.inputs],
                output_names=names,
            )  # fmt: skip
        except Exception as error:  # it may raise anything about an operation that it lacks
            raise UserError(
                f"jax2onnx cannot convert {function.model.name}: {type(error).__name__}: "
                f"{str(error).partition(chr(10))[0][:160]}; --to=stablehlo takes every model"
            ) from error
    onnx.helper.set_model_props(
        graph, {key: v if isinstance(v, str) else json.dumps(v) for key, v in facts.items()}
    )
    onnx.save(graph, file)


def read(file: Path) -> Callable[..., dict[str, np.ndarray]]:
    """The function in a file."""
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = ERRORS
    session = onnxruntime.InferenceSession(file, quiet, providers=["CPUExecutionProvider"])
    inputs, outputs = ([one.name for one in get()] for get in (
        session.get_inputs, session.get_outputs
    ))  # fmt: skip

    def call(*arrays: np.ndarray) -> dict[str, np.ndarray]:
        given = dict(zip(inputs, map(np.asarray, arrays), strict=True))
        return dict(zip(outputs, session.run(None, given), strict=True))

    return call


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
