"""What `vit predict` does with a classifier: the classes of each image, best first."""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_jax.commands.shown import Shown, batches, images
from vit_jax.errors import UserError, not_finite, printable
from vit_jax.files import whole
from vit_jax.pages import as_csv

# How values are written, in a table and in a terminal, by the activation that they come from.
FORMATS = {"softmax": (".6f", ".2%"), "sigmoid": (".6f", ".2%"), "none": (".9g", ".6g")}


class Predicted(NamedTuple):
    """A class of an image: its name, its probability (of a regression its value), its number."""

    name: str
    value: float
    number: int


def check(options: argparse.Namespace, model: Any) -> None:
    """Raises UserError where the options are none for what the weights predict."""
    outputs, activation = model.config.num_classes, model.output_activation
    top, threshold = options.top, options.threshold
    if options.pictures:
        raise UserError("--pictures shows boxes, and these weights predict classes")
    if activation == "none" and (threshold is not None or (top or outputs) < outputs):
        raise UserError(
            "these weights predict values (a regression), and all of them are shown: leave out "
            "--top and --threshold"
        )
    if activation == "softmax" and threshold is not None:
        raise UserError(
            "--threshold is for weights of several labels; these predict one label (softmax): --top"
        )


def write(options: argparse.Namespace, weights: Shown, given: list[Any]) -> int:
    """Prints the classes, or writes them as a table. Returns the exit code."""
    of_table, of_terminal = FORMATS[weights.model.output_activation]
    if options.output:
        # The file is opened before the work begins. Names of images may be any bytes.
        with (
            whole(Path(options.output)) as part,
            part.open("w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            found = list(predicted(options, weights, given))
            file.write(as_csv([("image", "rank", "class", "label", "probability"), *(
                (name, rank, one.number, one.name, f"{one.value:{of_table}}")
                for name, chosen in found for rank, one in enumerate(chosen, 1)
            )]))  # fmt: skip
        print(f"{len(found)} images: {printable(options.output)}")
        return 0
    for name, chosen in predicted(options, weights, given):
        head = f"{printable(name)}: "
        if not chosen:
            print(f"{head}no class at or above {options.threshold:.2%}")
        for one in chosen:
            print(f"{head}{printable(one.name)} {one.value:{of_terminal}}")
            head = " " * len(head)
    return 0


def predicted(
    options: argparse.Namespace, weights: Shown, given: Sequence[Any]
) -> Iterator[tuple[str, list[Predicted]]]:
    """The name of each image in turn, and its best classes; of a regression all outputs in their
    order.

    Raises UserError where no image can be read, or an image's logits are no numbers.
    """
    import jax
    import jax.numpy as jnp

    from vit_jax.models.model import ACTIVATIONS

    model, activation = weights.model, weights.model.output_activation
    outputs = model.config.num_classes
    all_of_them = activation == "none" or options.threshold is not None
    count = min(options.top or (outputs if all_of_them else 1), outputs)
    least = -math.inf if options.threshold is None else options.threshold

    @jax.jit
    def predict(params, pixels):
        logits, _ = model.apply(params, model.data_config.normalise(pixels))
        finite, values = jnp.isfinite(logits).all(axis=-1), ACTIVATIONS[activation](logits)
        if activation == "none":
            return finite, values, jnp.broadcast_to(jnp.arange(count), values.shape)
        return finite, *jax.lax.top_k(values, count)

    for chunk, pixels in batches(images(weights, given), options.batch_size):
        finite, values, classes = jax.device_get(predict(weights.params, pixels))
        for i, (name, _) in enumerate(chunk):
            if not finite[i]:
                raise not_finite(f"{printable(name)}: the logits")
            # Probabilities are compared as they are written.
            of_image = [x if activation == "none" else round(x, 6) for x in values[i].tolist()]
            both = zip(classes[i].tolist(), of_image, strict=True)
            yield name, [
                Predicted(weights.names[index], value, index)
                for index, value in both if value >= least
            ]  # fmt: skip
