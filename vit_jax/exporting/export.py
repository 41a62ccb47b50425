"""Writes weights as StableHLO or ONNX, and reads them back before they count as written.

DEST is a folder with a file for each image size, such as `224x224.stablehlo`, and `about.json`. An
ONNX file of one size may also be named itself (`pets.onnx`): it holds the same facts.
"""

import datetime
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

import vit_jax
from vit_jax.errors import UserError, cannot_write, nearest, not_finite, printable
from vit_jax.exporting import onnx, stablehlo
from vit_jax.exporting.function import Function, functions, predicted
from vit_jax.files import whole, write_json
from vit_jax.pretrained.load import fetch_weights
from vit_jax.pretrained.opened import Weights
from vit_jax.pretrained.weights import open_weights

FORMATS: dict[str, ModuleType] = {"stablehlo": stablehlo, "onnx": onnx}
ABOUT = "about.json"
BATCHES = (1, 7)  # that are compared
# The largest difference from our own model that is accepted: of any output, and of the logarithm of
# each probability of LIKELY or more, which differ as logits do. In bfloat16, as a share of the
# largest output, if that is more than one.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
LIKELY = 1e-3
SHARES = ("probabilities", "scores")  # outputs that are probabilities
MOST_BYTES = 2**31 - 2**24  # of weights in a file: both formats count bytes in 31 bits


def export(
    name_or_path: str | Path,
    destination: str | Path,
    to: str = "stablehlo",
    *,
    sizes: Sequence[int | tuple[int, int]] = (),
    dtype: str = "float32",
    raw: bool = False,
    overwrite: bool = False,
    trust_code: bool = False,
    say: Callable[[str], None] | None = print,
    **fields: Any,
) -> dict[str, Any]:
    """Exports weights for programs without this package. Returns what `about.json` holds.

    Args:
      name_or_path: as of `load_pretrained`.
      destination: a folder, or with `onnx` and one size a file that ends in `.onnx`.
      to: `stablehlo` (read by JAX alone) or `onnx`.
      sizes: image sizes, each a number or (height, width); a file for each. By default, the size
        that the weights were evaluated at. Positions are interpolated, as by the weights' own code
        base.
      dtype: of the arithmetic and of the stored kernels, `float32` or `bfloat16`.
      raw: from normalised float32 images to logits, instead of from uint8 images to probabilities.
      overwrite: replaces an export that is there.
      trust_code: imports the operations of the weights' pipeline that are named by import path.
      say: is called with each line about what was done; None for no output.
      fields: what the weights do not state, as of `load_pretrained`.

    Raises:
      UserError: the destination is taken or cannot be written, a package is missing, the weights
        have no such size, or what was read back differs from our own model. Nothing is written.
    """
    two_sides = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes]
    path = check(destination, to, two_sides, dtype, overwrite=overwrite)
    weights = open_weights(fetch_weights(name_or_path), **fields)
    return export_weights(
        weights, path, to, two_sides, dtype, raw=raw, imports=trust_code, say=say or _nothing
    )


def _nothing(line: str) -> None:
    pass


def check(
    destination: str | Path, to: str, sizes: Sequence[tuple[int, ...]], dtype: str, *,
    overwrite: bool,
) -> Path:  # fmt: skip
    """The absolute path to write to. Raises UserError for whatever cannot work, before weights are
    fetched."""
    if to not in FORMATS:
        raise UserError(f"unknown format {to!r} of an export: {nearest(to, FORMATS)}")
    if dtype not in TOLERANCE:
        raise UserError(f"unknown dtype {dtype!r}: {nearest(dtype, TOLERANCE)}")
    if dtype == "bfloat16" and to == "onnx":
        raise UserError(
            "onnxruntime computes no bfloat16 on a CPU, so that such an ONNX file could not be "
            "checked here: --dtype=float32, or --to=stablehlo"
        )
    for size in sizes:
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise UserError(f"an image size is a number or (height, width), not {size!r}")
    if len(set(sizes)) < len(sizes):
        raise UserError("an image size is given twice")
    for module, extra in FORMATS[to].PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f"--to={to} needs {module}: pip install 'vit_jax[{extra}]'")
    if not str(destination):
        raise UserError("the destination is an empty name")
    path = Path(destination).expanduser().absolute()
    shown = printable(path)
    one_file = path.suffix == onnx.SUFFIX
    if one_file and to != "onnx":
        raise UserError(f"{shown}: {to} is written to a folder; name one without {path.suffix}")
    if one_file and len(sizes) > 1:
        raise UserError(f"{shown} holds one image size; of several name a folder")
    if os.path.lexists(path):
        if not overwrite:
            raise UserError(f"{shown} is there already: name another, or give --overwrite")
        ours = path.is_file() if one_file else _exported(path)
        if not ours:
            raise UserError(f"{shown} is no export, so --overwrite does not replace it")
    if not path.parent.is_dir():
        raise UserError(f"{shown}: there is no folder {printable(path.parent)}")
    _try(path)
    return path


def _try(path: Path) -> None:
    """Raises UserError if nothing can be made beside a path. Removes what a killed export left."""
    part = path.with_name(f".{path.name}.part")
    try:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
        part.mkdir()
        part.rmdir()
    except OSError as error:
        raise cannot_write(path, error) from error


def _exported(path: Path) -> bool:
    """Whether a folder holds nothing but an export."""
    suffixes = {module.SUFFIX for module in FORMATS.values()}
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    return ABOUT in names and all(
        name == ABOUT or Path(name).suffix in suffixes for name in names
    )  # fmt: skip


def export_weights(
    weights: Weights, path: Path, to: str, sizes: Sequence[tuple[int, ...]] = (),
    dtype: str = "float32", *, raw: bool = False, imports: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """`export` of opened weights, to a path that `check` returned."""
    made, params, lines = functions(weights, sizes, dtype, raw, imports)  # type: ignore[arg-type]
    for line in lines:
        say(f"warning: {line}")
    largest = max(sum(x.nbytes for x in jax.tree.leaves(one.params)) for one in made)
    if largest > MOST_BYTES:
        half = ": --dtype=bfloat16 halves them" if (dtype, to) == ("float32", "stablehlo") else ""
        raise UserError(
            f"the weights have {largest / 2**30:.1f} GiB, and a file of --to={to} holds less than "
            f"2 GiB{half}"
        )
    facts = _facts(weights, made, to, dtype)
    form = FORMATS[to]
    one_file = path.suffix == onnx.SUFFIX
    aside = path.with_name(f".{path.name}.replaced")
    with whole(path) as part:
        if not one_file:
            part.mkdir()
        for function, own in zip(made, params, strict=True):
            file = part if one_file else part / f"{function.size}{form.SUFFIX}"
            form.write(function, file, facts | {"images": facts["images"][function.size]})
            facts["checked"][function.size] = found = compared(form.read(file), function, own)
            say(accepted(function, found, weights.path))
        if not one_file:
            write_json(part / ABOUT, facts)
            if path.is_dir():  # --overwrite: no folder is renamed onto one that holds files
                os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)
    return facts


def _facts(weights: Weights, made: list[Function], to: str, dtype: str) -> dict[str, Any]:
    """What a reader needs to know, as JSON has it."""
    model = made[0].model
    c, data = model.config, model.data_config
    mean, std = data.per_channel(c.channels)
    return {
        "format": to, "model": model.name, "made_by": f"vit_jax {vit_jax.__version__}",
        "jax": jax.__version__, "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "dtype": dtype, "classes": weights.classes, "outputs": c.num_classes,
        "activation": "none" if made[0].raw else model.output_activation,
        "normalisation": {
            "inside": not made[0].raw, "mean": mean, "std": std, "of": "(pixel / 255 - mean) / std",
        },
        "images": {function.size: _of_images(function) for function in made},
        "checked": {},
    }  # fmt: skip


def _of_images(function: Function) -> dict[str, Any]:
    """The inputs of a file, and how an image becomes one of them."""
    inputs = {
        name: {"shape": ["batch", *shape], "dtype": dtype.name}
        for name, (shape, dtype) in function.inputs.items()
    }
    return {"inputs": inputs, "pipeline": function.pipeline}


def compared(
    theirs: Callable[..., dict[str, Any]], function: Function, own: Any
) -> dict[str, float]:
    """The largest differences between what was read back and our own model. Both are computed on
    the CPU: a GPU's products of float32 matrices are less exact."""
    differences: dict[str, float] = {}

    @jax.jit
    def ours(params: Any, images: Any, *content: Any) -> dict[str, Any]:
        return predicted(function.model, params, images, content, raw=function.raw)

    half = getattr(function.model.config, "dtype", "float32") == "bfloat16"
    with jax.default_device(_cpu()):
        for batch in BATCHES:
            inputs = function.example(batch, seed=batch)
            wanted = jax.device_get(ours(own, *inputs))
            found = jax.device_get(theirs(*inputs))
            if not all(np.isfinite(x).all() for x in wanted.values()):
                raise not_finite("the outputs of the model")
            if wanted.keys() != found.keys():
                raise UserError(f"read back: outputs {[*found]}, expected {[*wanted]}")
            for name, expected in wanted.items():
                share = max(1.0, float(np.abs(expected).max(initial=0))) if half else 1.0
                for what, error in _differences(name, np.asarray(found[name]), expected).items():
                    differences[what] = max(differences.get(what, 0.0), error / share)
    return differences


def _cpu() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "what is exported is compared on the CPU, which JAX may not use here: add cpu to "
            "JAX_PLATFORMS, as in cuda,cpu"
        ) from error


def _differences(name: str, found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return {name: float("inf")}
    errors = {name: float(np.abs(found - wanted).max(initial=0))}
    if name in SHARES:
        likely = wanted >= LIKELY
        with np.errstate(divide="ignore"):
            apart = np.abs(np.log(found[likely]) - np.log(wanted[likely]))
        errors[f"log of {name}"] = float(apart.max(initial=0))
    return errors


def accepted(function: Function, found: dict[str, float], source: Path) -> str:
    """What was compared. Raises UserError if the difference is too large."""
    most = TOLERANCE[getattr(function.model.config, "dtype", "float32")]
    told = ", ".join(f"{name} {error:.1e}" for name, error in found.items())
    what = f"{function.size}, largest difference from our own model: {told}"
    if not all(error <= most for error in found.values()):
        raise UserError(
            f"{printable(source)}: read back at {what}, which is more than {most:g}: nothing is "
            "written"
        )
    return what
