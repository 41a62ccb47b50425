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
import sys
from pathlib import Path

from vit_jax.commands import classes, found
from vit_jax.commands.arguments import SOURCE, Options, opened
from vit_jax.commands.output import check_files
from vit_jax.errors import UserError, printable
from vit_jax.user_code import FLAG, only

# What is done with the images, by what the weights have learned.
OF_TASK = {"classification": classes, "detection": found}

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
    of_task = OF_TASK[model.family.task]
    of_task.check(options, model)
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
    return of_task.write(options, model, params, prepare, paths, names)


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
