"""Predicts the classes of images with any weights that can be loaded.

vit predict runs/pets cat.jpg dog.png
vit predict runs/pets photos/ 'more/*.jpg' @list.txt https://example.org/cat.jpg 'stack.tif[2]'
vit predict hf://google/vit-base-patch16-224 photos/ --top=3 --output=predictions.csv
vit predict runs/scenes photos/ --threshold=0.5
vit predict runs/cells photos/ --output=boxes.csv --pictures=found
vit predict hf://facebook/dinov2-small photos/ --features=features.npz

Images are prepared as those that the weights were evaluated on (`vit inspect` shows how). A folder
means every image in it, at any depth; @list.txt the names in that file, one on each line. A TIFF of
several pages is an image for each page, stack.tif[0] and so on, and a NumPy file [N, height, width,
channels] is N images. Damaged images are named and skipped.

A detector shows the boxes whose score is --threshold (0.5) or more, in pixels of each image, and
--pictures=DIR draws them. --output=FILE.json is in the format of COCO's results. Its images and
classes have the ids of --coco=instances_val2017.json.

The loss of a classifier decides what is shown: the share of each class (softmax), the probability
of each class by itself (sigmoid: several labels, or a single output), or the values of a
regression.
"""

import argparse
from pathlib import Path
from typing import Any

from vit_jax.commands import classes, found, shown
from vit_jax.commands.arguments import IMAGES, JSON, SOURCE, Options
from vit_jax.commands.output import check_files, say, tell
from vit_jax.errors import UserError, printable
from vit_jax.files import whole
from vit_jax.user_code import FLAG

# What is done with the images, by what the weights have learned.
OF_TASK = {"classification": classes, "detection": found}

OPTIONS: Options = SOURCE | {
    "images": dict(nargs="+", help=IMAGES),
    "--top": dict(type=int, help="classes of an image, best first (1); of a detector: boxes (all)"),
    "--threshold": dict(type=float, metavar="P", help="of weights for several labels: every class "
                        "whose probability is P or more; of a detector: boxes of this score"),
    "--pictures": dict(metavar="DIR", help="of a detector: write each image with its boxes"),
    "--coco": dict(metavar="FILE.json", help="of a detector: annotations whose ids of images and "
                   "classes stand in --output=FILE.json"),
    "--output": dict(metavar="CSV", help="write the predictions to a file"),
    "--features": dict(metavar="FILE.npz", help="write, in the place of predictions, what the head "
                       "reads of each image: features [images, width], and images"),
    **JSON,
    "--batch-size": dict(type=int, default=32, help="images at a time (32)"),
    FLAG: dict(action="store_true", help="run the operations that the weights' pipeline names by "
               "import path, such as my_ops:crop; without it such weights are refused"),
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    from vit_jax.data.images import images_named

    check_numbers(options)
    if sum(map(bool, (options.output, options.json, options.features))) > 1:
        raise UserError("--output, --json and --features: name one of them")
    given, notes = images_named(options.images)
    check_files(options)
    if options.features:
        of_task, weights = None, shown.weights_of(options)
    else:
        of_task, weights = opened(options)
    for line in notes:
        say(line)
    if of_task is None:
        return _write_features(options, weights, given)
    if not options.json:
        return of_task.write(options, weights, given)
    found = [
        {"image": str(image), "predictions": [one._asdict() for one in row]}
        for image, row in of_task.predicted(options, weights, given)
    ]
    tell(found, f"{len(found)} images: {printable(options.json)}", options.json)
    return 0


def _write_features(options: argparse.Namespace, weights: shown.Shown, given: list[Any]) -> int:
    """Writes what the head reads of each image, also of weights without a head."""
    import jax
    import numpy as np

    model = weights.model

    @jax.jit
    def features(params: Any, pixels: Any) -> Any:
        return model.apply(params, model.data_config.normalise(pixels))[1]["pre_logits"]

    names, rows = [], []
    with whole(Path(options.features)) as part, part.open("wb") as file:
        for chunk, pixels in shown.batches(shown.images(weights, given), options.batch_size):
            rows.append(np.asarray(features(weights.params, pixels), np.float32)[: len(chunk)])
            names += [name for name, _ in chunk]
        np.savez(file, features=np.concatenate(rows), images=np.array(names))
    print(f"{len(names)} images, {rows[0].shape[-1]} features: {printable(options.features)}")
    return 0


def check_numbers(options: argparse.Namespace) -> None:
    """Raises UserError for numbers of options that cannot be."""
    if (options.top is not None and options.top < 1) or options.batch_size < 1:
        raise UserError("--top and --batch-size are at least 1")
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise UserError(f"--threshold lies between 0 and 1, not at {options.threshold:g}")


def opened(options: argparse.Namespace) -> tuple[Any, shown.Shown]:
    """The weights, and what their task does with images: its `write` and `predicted`."""

    def check(path: Any, model: Any) -> None:
        if not model.config.num_classes:
            raise UserError(f"{path} has no head: it predicts no classes")
        OF_TASK[model.family.task].check(options, model)

    weights = shown.weights_of(options, check)
    return OF_TASK[weights.model.family.task], weights
