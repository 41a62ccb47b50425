"""Predicts the classes of images with any weights that can be loaded.

vit predict runs/pets cat.jpg dog.png
vit predict hf://google/vit-base-patch16-224 photos/ --top=3 --output=predictions.csv

Images are prepared as those that the weights were evaluated on (`vit inspect` shows how). A folder
means every image in it, at any depth. Damaged images are named and skipped.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from vit_jax.commands.arguments import add_source, model_fields
from vit_jax.errors import UserError, printable

COLUMNS = ("image", "rank", "class", "label", "probability")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_source(parser)
    parser.add_argument("images", nargs="+", help="files, or folders of them")
    parser.add_argument("--top", type=int, default=1, help="classes an image, best first (1)")
    parser.add_argument("--output", metavar="CSV", help="write the predictions to a file")
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time (32)")


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    given = model_fields(options)
    if options.top < 1 or options.batch_size < 1:
        raise UserError("--top and --batch-size are at least 1")
    paths = _images(options.images)
    output = Path(options.output) if options.output else None
    if output and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}")
    if output and output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file")
    from vit_jax.pretrained.load import as_shown, fetch_weights, fill
    from vit_jax.pretrained.weights import open_weights

    weights = open_weights(fetch_weights(options.weights), **given)
    c = weights.model.config
    if not c.num_classes:
        raise UserError(f"{weights.path} has no head: it predicts no classes")
    if c.channels not in (1, 3):
        raise UserError(f"{weights.path} takes {c.channels} channels: image files have 1 or 3")
    model = as_shown(weights)
    params, report = fill(weights, model)
    for line in report.warnings:
        print(f"warning: {line}", file=sys.stderr)
    names = weights.classes or [str(i) for i in range(c.num_classes)]
    rows = _rows(model, params, names, paths, options.top, options.batch_size)
    if output:
        count = _write(output, rows)
        print(f"{count} images: {output}")
        return 0
    for image, rank, _, label, probability in rows:
        head = f"{image}: " if rank == 1 else " " * (len(str(image)) + 2)
        print(f"{head}{label} {float(probability):.2%}")
    return 0


def _images(given: list[str]) -> list[Path]:
    """The files, and what folders hold of images; tells what is left out of folders.

    Raises UserError where there are none."""
    from vit_jax.data.formats import NAMES
    from vit_jax.data.walking import images_below, told

    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            images, left_out = images_below(path)
            inside = [path / name for name in images]
            files = [file for file in inside if file.is_file()]
            left_out["pipe, device or broken link"] += len(inside) - len(files)
            found += files
            if left_out := +left_out:
                print(f"{printable(path)}: {told(left_out)}", file=sys.stderr)
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise UserError(f"{printable(path)} is a device or a pipe, not a file")
        else:
            raise UserError(f"{printable(path)}: no such file or folder")
    if not found:
        raise UserError(f"no images in {', '.join(map(printable, given))}: {NAMES} are read")
    return found


def _rows(
    model, params, names: list[str], paths: list[Path], top: int, batch_size: int
) -> Iterator[tuple]:
    """COLUMNS of every image in turn, best class first. Raises UserError where none can be read."""
    import jax
    import numpy as np

    from vit_jax.data.levels import DamagedImage
    from vit_jax.data.ops import parse
    from vit_jax.files import read_bytes

    c = model.config
    text = model.data_config.pipeline(c.image_size)
    prepare = parse(text, c.image_size, channels=c.channels)
    shape, batch_size = (*c.image_size, c.channels), min(batch_size, len(paths))

    @jax.jit
    def predict(params, pixels):
        logits, _ = model.apply(params, model.data_config.normalise(pixels))
        return jax.lax.top_k(jax.nn.softmax(logits), min(top, c.num_classes))

    def batches():
        batch, kept, read = np.zeros((batch_size, *shape), np.uint8), [], 0
        for number, path in enumerate(paths):
            try:
                image = prepare(prepare.open(read_bytes(path), c.channels), None)
            except (DamagedImage, OSError) as error:
                print(f"skipped: {path} ({error})", file=sys.stderr)
            else:
                if image.shape != shape:
                    raise UserError(f"{path} becomes {image.shape}, the model takes {shape}")
                batch[len(kept)] = image
                kept.append(path)
                read += 1
            if kept and (len(kept) == batch_size or number == len(paths) - 1):
                yield kept, batch
                kept = []
        if not read:
            raise UserError(f"none of the {len(paths)} files is an image that can be read")

    for kept, batch in batches():
        probabilities, classes = jax.device_get(predict(params, batch.copy()))
        for i, path in enumerate(kept):
            for rank, index in enumerate(classes[i]):
                yield path, rank + 1, index, names[index], f"{probabilities[i, rank]:.6f}"


def _write(output: Path, rows: Iterator[tuple]) -> int:
    """The file appears whole or not at all; returns the number of images."""
    from vit_jax.files import whole

    images = 0
    with whole(output) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for row in rows:
            table.writerow(row)
            images += row[1] == 1
    return images
