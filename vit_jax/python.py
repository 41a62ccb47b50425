"""Commands as functions of Python: `vit_jax.predict`, `vit_jax.evaluate`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.commands.classes import Predicted
from vit_jax.commands.found import Found
from vit_jax.errors import UserError


def predict(
    weights: str | Path,
    images: Sequence[Any],
    *,
    top: int | None = None,
    threshold: float | None = None,
    batch_size: int = 32,
    trust_code: bool = False,
    **fields: Any,
) -> list[list[Predicted]] | list[list[Found]]:
    """What weights say of images, as `vit predict` does.

    Args:
      weights: a file, a folder, a run, an address, or a name of `list_pretrained()`.
      images: paths, arrays uint8 [height, width, channels], or images of Pillow.
      top: classes of an image, best first (1); of a detector: boxes (all).
      threshold: of weights for several labels: every class of this probability or more; of a
        detector: boxes of this score or more (0.5).
      batch_size: images at a time.
      trust_code: whether operations that the weights name by import path may be run.
      fields: fields of the model that the file does not state, such as `num_heads`.

    Returns:
      For each image the classes, best first; of a detector the objects.

    Raises:
      UserError: there are no weights, or an image cannot be read.
    """
    from vit_jax.commands import predict as command
    from vit_jax.data.decode import as_given

    options = argparse.Namespace(
        weights=str(weights), layout=None, trust_code=trust_code, top=top, threshold=threshold,
        batch_size=batch_size, output=None, pictures=None,
        overrides={f"model.{name}": str(value) for name, value in fields.items()},
    )  # fmt: skip
    command.check_numbers(options)
    of_task, opened = command.opened(options)
    given = [Path(one) if isinstance(one, str) else one for one in images]
    read = [one if isinstance(one, Path) else as_given(one) for one in given]
    found = [row for _, row in of_task.predicted(options, opened, read)] if read else []
    if len(found) < len(read):
        raise UserError(f"{len(read) - len(found)} of {len(read)} images cannot be read")
    return found


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
