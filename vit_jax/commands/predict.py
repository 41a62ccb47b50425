"""Predicts the classes of images with any weights that can be loaded.

vit predict runs/pets cat.jpg dog.png
vit predict hf://google/vit-base-patch16-224 photos/ --top=3 --output=predictions.csv
vit predict runs/scenes photos/ --threshold=0.5

Images are prepared as those that the weights were evaluated on (`vit inspect` shows how). A folder
means every image in it, at any depth. Damaged images are named and skipped.

The loss of the weights decides what is shown: the share of each class (softmax), the probability of
each class by itself (sigmoid: several labels, or a single output), or the values of a regression.
"""

import argparse
import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_jax.commands.arguments import add_source, model_fields
from vit_jax.errors import UserError, cannot_write, printable

COLUMNS = ("image", "rank", "class", "label", "probability")

# How values are written, in a table and in a terminal, by the activation that they come from.
FORMATS = {"softmax": (".6f", ".2%"), "sigmoid": (".6f", ".2%"), "none": (".9g", ".6g")}

Chosen = list[tuple[int, float]]  # classes and their values, best first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_source(parser)
    parser.add_argument("images", nargs="+", help="files, or folders of them")
    parser.add_argument("--top", type=int, help="classes an image, best first (1)")
    parser.add_argument(
        "--threshold", type=float, metavar="P",
        help="of weights for several labels: every class whose probability is P or more",
    )  # fmt: skip
    parser.add_argument("--output", metavar="CSV", help="write the predictions to a file")
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time (32)")
    parser.add_argument(
        "--trust-code", action="store_true",
        help="run the operations that the weights' pipeline names by import path, such as "
        "my_ops:crop; without it such weights are refused",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    given = model_fields(options)
    if (options.top is not None and options.top < 1) or options.batch_size < 1:
        raise UserError("--top and --batch-size are at least 1")
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise UserError(f"--threshold lies between 0 and 1, not at {options.threshold:g}")
    paths, notes = _images(options.images)
    output = None if options.output is None else _output(options.output)
    from vit_jax.data.ops import parse
    from vit_jax.pretrained.load import as_shown, fetch_weights, fill
    from vit_jax.pretrained.weights import open_weights
    from vit_jax.user_code import trusting_files

    with trusting_files(options.trust_code):
        weights = open_weights(fetch_weights(options.weights), **given)
    c = weights.model.config
    if not c.num_classes:
        raise UserError(f"{weights.path} has no head: it predicts no classes")
    if c.channels not in (1, 3):
        raise UserError(f"{weights.path} takes {c.channels} channels: image files have 1 or 3")
    model = as_shown(weights)
    count = _count(model, options.top, options.threshold)
    size = model.config.image_size
    text = model.data_config.pipeline(size)
    try:
        prepare = parse(text, size, imports=options.trust_code, channels=c.channels)
    except UserError as error:
        raise UserError(f"{printable(weights.path)}: {error}") from error
    params, report = fill(weights, model)
    for line in [*notes, *(f"warning: {line}" for line in report.warnings)]:
        print(line, file=sys.stderr)
    names = [*(weights.classes or ())]  # a head may have more outputs than there are names
    names += map(str, range(len(names), c.num_classes))
    of_table, of_terminal = FORMATS[model.output_activation]
    least = -math.inf if options.threshold is None else options.threshold
    predicted = _predicted(model, params, prepare, paths, options.batch_size, count, least)
    if output:
        images = _write(output, predicted, names, of_table)
        print(f"{images} images: {printable(output)}")
        return 0
    for path, chosen in predicted:
        head = f"{printable(path)}: "
        if not chosen:
            print(f"{head}no class at or above {options.threshold:.2%}")
        for index, value in chosen:
            print(f"{head}{printable(names[index])} {value:{of_terminal}}")
            head = " " * len(head)
    return 0


def _output(given: str) -> Path:
    """The table's place. Raises UserError where there can be no file."""
    if not given:
        raise UserError("--output= names no file")
    output = Path(given)
    folder = output.absolute().parent
    try:
        if output.is_dir():
            raise UserError(f"--output {printable(output)} is a folder: name a file")
        if not folder.is_dir():
            raise UserError(f"--output {printable(output)}: there is no folder {printable(folder)}")
    except OSError as error:  # a name that is too long
        raise cannot_write(output, error) from error
    return output


def _count(model: Any, top: int | None, threshold: float | None) -> int:
    """How many classes of an image are looked at. Raises UserError where the options are none for
    what the weights predict."""
    outputs, activation = model.config.num_classes, model.output_activation
    if activation == "none" and (threshold is not None or (top or outputs) < outputs):
        raise UserError(
            "these weights predict values (a regression), and all of them are shown: leave out "
            "--top and --threshold"
        )
    if activation == "softmax" and threshold is not None:
        raise UserError(
            "--threshold is for weights of several labels; these predict one label (softmax): --top"
        )
    return min(top or (1 if activation != "none" and threshold is None else outputs), outputs)


def _images(given: list[str]) -> tuple[list[Path], list[str]]:
    """The files, and what folders hold of images; and a line on what each folder leaves out.

    Raises UserError where there are none."""
    from vit_jax.data.formats import NAMES
    from vit_jax.data.walking import images_below, left_out_text

    found: list[Path] = []
    notes: list[str] = []
    for path in map(Path, given):
        if path.is_dir():
            images, left_out = images_below(path)
            inside = [path / name for name in images]
            files = [file for file in inside if file.is_file()]
            left_out["pipe, device or broken link"] += len(inside) - len(files)
            found += files
            if left_out := +left_out:
                notes.append(f"{printable(path)}: {left_out_text(left_out)}")
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise UserError(f"{printable(path)} is a device or a pipe, not a file")
        else:
            raise UserError(f"{printable(path)}: no such file or folder")
    if not found:
        why = "; ".join(notes) or f"{NAMES} are read"
        raise UserError(f"no images in {', '.join(map(printable, given))}: {why}")
    return found, notes


def _prepared(path: Path, prepare: Any, channels: int) -> Any:
    """One image as the weights' pipeline shows it. Raises DamagedImage or OSError."""
    from vit_jax.files import read_bytes

    return prepare(prepare.open(read_bytes(path), channels), None)


def _predicted(
    model: Any, params: Any, prepare: Any, paths: list[Path], batch_size: int, count: int,
    least: float,
) -> Iterator[tuple[Path, Chosen]]:  # fmt: skip
    """Of each image in turn the `count` best classes that have a value of at least `least`; of a
    regression all outputs in their order.

    Raises UserError where no image can be read, or an image's logits are no numbers.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vit_jax.data.levels import DamagedImage
    from vit_jax.models.model import ACTIVATIONS

    c, activation = model.config, model.output_activation
    shape, batch_size = (*c.image_size, c.channels), min(batch_size, len(paths))

    @jax.jit
    def predict(params, pixels):
        logits, _ = model.apply(params, model.data_config.normalise(pixels))
        finite, values = jnp.isfinite(logits).all(axis=-1), ACTIVATIONS[activation](logits)
        if activation == "none":
            return finite, values, jnp.broadcast_to(jnp.arange(count), values.shape)
        return finite, *jax.lax.top_k(values, count)

    def batches():
        batch, kept, read = np.zeros((batch_size, *shape), np.uint8), [], 0
        for number, path in enumerate(paths):
            try:
                image = _prepared(path, prepare, c.channels)
            except (DamagedImage, OSError) as error:
                print(printable(f"skipped: {path} ({error})"), file=sys.stderr)
            else:
                if image.shape != shape:
                    raise UserError(
                        f"{printable(path)} becomes {image.shape}, the model takes {shape}"
                    )
                batch[len(kept)] = image
                kept.append(path)
                read += 1
            if kept and (len(kept) == batch_size or number == len(paths) - 1):
                yield kept, batch
                kept = []
        if not read:
            raise UserError(f"none of the {len(paths)} files is an image that can be read")

    for kept, batch in batches():
        finite, values, classes = jax.device_get(predict(params, batch.copy()))
        for i, path in enumerate(kept):
            if not finite[i]:
                raise UserError(
                    f"{printable(path)}: the logits are NaN or infinite; the weights are damaged, "
                    "or of another model than the one that they are taken for (vit inspect)"
                )
            # Probabilities are compared as they are written.
            of_image = [x if activation == "none" else round(x, 6) for x in values[i].tolist()]
            both = zip(classes[i].tolist(), of_image, strict=True)
            yield path, [(index, value) for index, value in both if value >= least]


def _write(
    output: Path, predicted: Iterator[tuple[Path, Chosen]], names: list[str], form: str
) -> int:
    """The file appears whole or not at all; returns the number of images."""
    from vit_jax.files import whole

    images = 0
    with (
        whole(output) as part,
        # Names of files may be any bytes.
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for path, chosen in predicted:
            images += 1
            for rank, (index, value) in enumerate(chosen, 1):
                table.writerow((path, rank, index, names[index], f"{value:{form}}"))
    return images
