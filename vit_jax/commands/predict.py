"""Predicts the classes of images with any weights that can be loaded.

vit predict runs/pets cat.jpg dog.png
vit predict hf://google/vit-base-patch16-224 photos/ --top=3 --output=predictions.csv
vit predict runs/scenes photos/ --threshold=0.5
vit predict runs/cells photos/ --output=boxes.csv --pictures=found

Images are prepared as those that the weights were evaluated on (`vit inspect` shows how). A folder
means every image in it, at any depth. Damaged images are named and skipped.

A detector shows the boxes whose score is --threshold (0.5) or more, in pixels of each image, and
--pictures=DIR draws them. --output=FILE.json is in the format of COCO's results.

The loss of a classifier decides what is shown: the share of each class (softmax), the probability
of each class by itself (sigmoid: several labels, or a single output), or the values of a
regression.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_jax.commands import found
from vit_jax.commands.arguments import SOURCE, Options, opened
from vit_jax.commands.output import check_files
from vit_jax.errors import UserError, printable
from vit_jax.files import read_bytes, whole
from vit_jax.pages import as_csv
from vit_jax.user_code import FLAG, only

# How values are written, in a table and in a terminal, by the activation that they come from.
FORMATS = {"softmax": (".6f", ".2%"), "sigmoid": (".6f", ".2%"), "none": (".9g", ".6g")}

Chosen = list[tuple[int, float]]  # classes and their values, best first


OPTIONS: Options = SOURCE | {
    "images": dict(nargs="+", help="files, or folders of them"),
    "--top": dict(type=int, help="classes of an image, best first (1); of a detector: boxes (all)"),
    "--threshold": dict(type=float, metavar="P", help="of weights for several labels: every class "
                        "whose probability is P or more; of a detector: boxes of this score"),
    "--pictures": dict(metavar="DIR", help="of a detector: write each image with its boxes"),
    "--output": dict(metavar="CSV", help="write the predictions to a file"),
    "--batch-size": dict(type=int, default=32, help="images at a time (32)"),
    FLAG: dict(action="store_true", help="run the operations that the weights' pipeline names by "
               "import path, such as my_ops:crop; without it such weights are refused"),
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    if (options.top is not None and options.top < 1) or options.batch_size < 1:
        raise UserError("--top and --batch-size are at least 1")
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise UserError(f"--threshold lies between 0 and 1, not at {options.threshold:g}")
    paths, notes = _images(options.images)
    check_files(options)
    from vit_jax.data.ops import parse
    from vit_jax.pretrained.load import as_shown, fill

    with only(None, trust_files=options.trust_code):
        weights = opened(options)
    c = weights.model.config
    if not c.num_classes:
        raise UserError(f"{weights.path} has no head: it predicts no classes")
    if c.channels not in (1, 3):
        raise UserError(f"{weights.path} takes {c.channels} channels: image files have 1 or 3")
    model = as_shown(weights)
    detects = model.family.task == "detection"
    if options.pictures and not detects:
        raise UserError(f"{weights.path} finds no boxes that --pictures could show")
    count = 0 if detects else _count(model, options.top, options.threshold)
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
    if detects:
        return found.write(options, model, params, prepare, paths, names)
    of_table, of_terminal = FORMATS[model.output_activation]
    least = -math.inf if options.threshold is None else options.threshold
    predicted = _predicted(model, params, prepare, paths, options.batch_size, count, least)
    if options.output:
        # The file is opened before the work begins. Names of images may be any bytes.
        with (
            whole(Path(options.output)) as part,
            part.open("w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            images = list(predicted)
            file.write(as_csv([("image", "rank", "class", "label", "probability"), *(
                (path, rank, index, names[index], f"{value:{of_table}}")
                for path, chosen in images for rank, (index, value) in enumerate(chosen, 1)
            )]))  # fmt: skip
        print(f"{len(images)} images: {printable(options.output)}")
        return 0
    for path, chosen in predicted:
        head = f"{printable(path)}: "
        if not chosen:
            print(f"{head}no class at or above {options.threshold:.2%}")
        for index, value in chosen:
            print(f"{head}{printable(names[index])} {value:{of_terminal}}")
            head = " " * len(head)
    return 0


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

    files: list[Path] = []
    notes: list[str] = []
    for path in map(Path, given):
        if path.is_dir():
            images, left_out = images_below(path)
            inside = [path / name for name in images]
            regular = [file for file in inside if file.is_file()]
            left_out["pipe, device or broken link"] += len(inside) - len(regular)
            files += regular
            if left_out := +left_out:
                notes.append(f"{printable(path)}: {left_out_text(left_out)}")
        elif path.is_file():
            files.append(path)
        elif path.exists():
            raise UserError(f"{printable(path)} is a device or a pipe, not a file")
        else:
            raise UserError(f"{printable(path)}: no such file or folder")
    if not files:
        why = "; ".join(notes) or f"{NAMES} are read"
        raise UserError(f"no images in {', '.join(map(printable, given))}: {why}")
    return files, notes


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

    def images():
        read = 0
        for path in paths:
            try:
                image = prepare(prepare.open(read_bytes(path), c.channels), None)
            except (DamagedImage, OSError) as error:
                print(printable(f"skipped: {path} ({error})"), file=sys.stderr)
                continue
            if image.shape != shape:
                raise UserError(f"{printable(path)} becomes {image.shape}, the model takes {shape}")
            read += 1
            yield path, image
        if not read:
            raise UserError(f"none of the {len(paths)} files is an image that can be read")

    readable = images()
    while chunk := list(itertools.islice(readable, batch_size)):
        batch = np.zeros((batch_size, *shape), np.uint8)
        batch[: len(chunk)] = [image for _, image in chunk]
        finite, values, classes = jax.device_get(predict(params, batch))
        for i, (path, _) in enumerate(chunk):
            if not finite[i]:
                raise UserError(
                    f"{printable(path)}: the logits are NaN or infinite; the weights are damaged, "
                    "or of another model than the one that they are taken for (vit inspect)"
                )
            # Probabilities are compared as they are written.
            of_image = [x if activation == "none" else round(x, 6) for x in values[i].tolist()]
            both = zip(classes[i].tolist(), of_image, strict=True)
            yield path, [(index, value) for index, value in both if value >= least]
