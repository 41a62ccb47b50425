"""Commands as functions of Python: `vit_jax.predict`, `vit_jax.evaluate`."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.commands.output import say


def predict(
    weights: str | Path,
    images: str | Path | Sequence[Any],
    *,
    top: int | None = None,
    threshold: float | None = None,
    batch_size: int = 32,
    names: bool = False,
    trust_code: bool = False,
    **fields: Any,
) -> list[Any]:
    """What weights say of images, as `vit predict` does.

    Args:
      weights: a file, a folder, a run, an address, or a name of `list_pretrained()`.
      images: names as `vit predict` takes them (`vit_jax/data/images.py`): a path, a folder, a
        pattern, `@list.txt`, an address, a page; or arrays uint8 [height, width, channels], or
        images of Pillow.
      top: classes of an image, best first (1); of a detector: boxes (all).
      threshold: of weights for several labels: every class of this probability or more; of a
        detector: boxes of this score or more (0.5).
      batch_size: images at a time.
      names: whether each image comes with its name, as (name, what is said of it). A folder, a
        pattern, a list and a file of several images stand for several.
      trust_code: whether operations that the weights name by import path may be run.
      fields: fields of the model that the file does not state, such as `num_heads`.

    Returns:
      For each image the classes, best first (`Predicted`); of a detector the objects (`Found`).

    Raises:
      UserError: there are no weights, a name is nothing, or an image cannot be read.
    """
    from vit_jax.commands import predict as command
    from vit_jax.data.images import images_named, refuse

    options = argparse.Namespace(
        weights=str(weights), layout=None, trust_code=trust_code, top=top, threshold=threshold,
        batch_size=batch_size, output=None, pictures=None, coco=None,
        overrides={f"model.{name}": str(value) for name, value in fields.items()},
    )  # fmt: skip
    command.check_numbers(options)
    given, notes = images_named(images)
    of_task, opened = command.opened(options)
    for line in notes:
        say(line)
    found = of_task.predicted(options, dataclasses.replace(opened, damaged=refuse), given)
    return [(str(image), row) if names else row for image, row in found]


def evaluate(
    run: str | Path,
    *,
    data: str | None = None,
    split: str | None = None,
    weights: str = "trained",
    tta: str | None = None,
    trust_code: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metrics of a run's last checkpoint, or of one checkpoint, as `vit evaluate --json` says
    them.

    Args:
      run: a work folder, or one checkpoint of it.
      data, split: others than the run's own.
      weights: `trained`, or `ema` for their moving average.
      tta: views of each image whose probabilities are averaged: `flip`, `crops`, `flip,crops`.
      trust_code: whether what the run's config names by import path may be run, although this user
        did not train there.
      overrides: dotted keys of the config, with their values.

    Raises UserError: there is no checkpoint, or the data does not fit it.
    """
    from vit_jax.commands import evaluate as command

    options = argparse.Namespace(
        workdir=str(run), checkpoint=None, data=data, split=split, weights=weights, tta=tta,
        trust_code=trust_code, overrides={k: str(v) for k, v in (overrides or {}).items()},
    )  # fmt: skip
    with command.opened(options) as (checkpoint, about):
        return command.measured(options, checkpoint, about).result
