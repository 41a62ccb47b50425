"""Averages the weights of several of this package's own checkpoints: of the last ones of a run, or
of several runs (*model soups*, arXiv 2203.05482).

A checkpoint's state holds no statistics of batches: no family of models keeps running means, and a
frozen norm of a ResNet is two parameters that never change. So the mean of the parameters is all
there is to compute. The optimiser's state and the moving average (`ema`) are left out.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.checkpoint import manager
from vit_jax.checkpoint.tree import nest
from vit_jax.errors import UserError, printable
from vit_jax.files import whole
from vit_jax.pretrained.opened import Weights
from vit_jax.pretrained.weights import open_weights
from vit_jax.user_code import only, signed

MOST_NAMED = 5  # differences in one message


def average(checkpoints: Sequence[Path], output: Path) -> int:
    """Writes the mean of the parameters of two checkpoints or more as one checkpoint without an
    optimiser's state. Returns the number of parameters.

    Each parameter is added up in float64, one at a time, and rounded once to float32 (or the number
    format it has). Values that are no floating-point numbers must be the same in all checkpoints.
    Of a schedule-free run, its average counts, which every command reads.

    What stands beside the arrays (the resolved config, the classes) is that of the last checkpoint.

    Raises UserError: the checkpoints are of different models, or a value is not finite.
    """
    abouts = [manager.about(checkpoint) for checkpoint in checkpoints]
    # Code of the user's own is imported for runs that the user trained.
    vouched = {path for about in abouts for path in signed(about)}
    with only(vouched.__contains__):
        opened = [open_weights(checkpoint, decoder=True) for checkpoint in checkpoints]
        for other in opened[:-1]:
            _check_alike(opened[-1], other)
        means = {path: _mean(path, opened) for path in opened[-1].shapes}
    about = abouts[-1] | {
        "origin": "average of " + ", ".join(map(str, checkpoints)), "goodput": {},
    }  # fmt: skip
    with whole(output) as part:
        manager.write(part, {"params": nest(means)}, about)
    return len(means)


def _mean(path: str, opened: Sequence[Weights]) -> np.ndarray:
    first = opened[0].read(path)
    if not np.issubdtype(first.dtype, np.floating) and first.dtype.kind != "V":
        for other in opened[1:]:
            if not np.array_equal(first, other.read(path)):
                raise UserError(
                    f"{path} holds {first.dtype}, which has no mean, and is another one in "
                    f"{other.path} than in {opened[0].path}"
                )
        return first
    total = first.astype(np.float64)
    for other in opened[1:]:
        total += other.read(path)
    mean = total / len(opened)
    if not np.isfinite(mean).all():
        bad = next(one.path for one in opened if not np.isfinite(one.read(path)).all())
        raise UserError(f"{path} of {bad} is not finite: leave that checkpoint out")
    return mean.astype(first.dtype)


def _check_alike(last: Weights, other: Weights) -> None:
    """Raises UserError where two checkpoints are of models that compute different functions."""
    lines = [f"{key} {was!r} and {now!r}" for key, was, now in _differences(other, last)]
    if lines:
        more = f" and {len(lines) - MOST_NAMED} more" if len(lines) > MOST_NAMED else ""
        raise UserError(
            f"{other.path} and {last.path} are of different models: "
            + printable(", ".join(lines[:MOST_NAMED])) + more
        )  # fmt: skip


def _differences(one: Weights, other: Weights) -> Iterator[tuple[str, Any, Any]]:
    """(Key, value, other value) of what decides the function of a model, beside its weights."""
    families = one.model.family.name, other.model.family.name
    if families[0] != families[1]:
        yield "family", *families
        return
    run_alone = other.model.family.of_run - {"image_size", "num_classes", "channels"}
    both = [dataclasses.asdict(weights.model.config) for weights in (one, other)]
    for field, value in both[0].items():
        if field not in run_alone and value != both[1][field]:
            yield f"model.{field}", value, both[1][field]
    for key in ("mean", "std"):
        values = [getattr(weights.model.data_config, key) for weights in (one, other)]
        if values[0] != values[1]:
            yield f"data.{key}", *values
    for path in one.shapes.keys() & other.shapes.keys():
        if one.shapes[path] != other.shapes[path]:
            yield path, list(one.shapes[path]), list(other.shapes[path])
    names = one.classes or [], other.classes or []
    if names[0] != names[1]:
        different = [pair for pair in zip(*names, strict=False) if pair[0] != pair[1]]
        yield "classes", *(different[0] if different else map(len, names))
