"""The report of `vit evaluate --report`: which classes are taken for which, and the mistakes of
which the model was surest, as tables and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vit_jax.data.decode import DamagedImage, decode
from vit_jax.errors import UserError, cannot_write
from vit_jax.evaluators.classification import Confusion, Rows
from vit_jax.files import write_text
from vit_jax.look.pictures import as_rgb
from vit_jax.pages import as_csv

WORST = 64  # mistakes in the picture
TILE, TITLE = 128, 14  # pixels of an image of the picture, and of the title above it
DARK_BLUE = np.array([8.0, 48.0, 107.0])


def write_report(folder: Path, run: Any, rows: Rows) -> None:
    """Writes `confusion.csv`, `confusion.png`, `classes.csv`, `mistakes.csv` and `mistakes.png`.

    Raises UserError if the folder cannot be written, or if the examples have several labels.
    """
    source, classes = run.evaluators[0].test, run.classes
    if rows["label"].ndim > 1:
        raise UserError("--report is for one label an example; these have several")
    confusion = Confusion.of(rows, len(classes))
    counts, worst = confusion.counts, confusion.mistakes[:WORST]
    right, labelled, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    mistakes = [
        (source.describe(int(rows["index"][row])), classes[rows["label"][row]],
         classes[rows["predicted"][row]], f"{rows['confidence'][row]:.4f}")
        for row in confusion.mistakes
    ]  # fmt: skip
    tables: dict[str, list[Any]] = {
        "confusion.csv": [["class \\ predicted", *classes],
                          *([name, *row] for name, row in zip(classes, counts, strict=True))],
        "classes.csv": [["class", "examples", "accuracy", "precision"], *(
            [name, labelled[i], _share(right[i], labelled[i]), _share(right[i], predicted[i])]
            for i, name in enumerate(classes)
        )],
        "mistakes.csv": [["example", "class", "predicted", "confidence"], *mistakes],
    }  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            write_text(folder / name, as_csv(table))
        _heat_map(counts).save(folder / "confusion.png")
        images = [_pixels(run, source, int(rows["index"][row])) for row in worst]
        titles = [f"{label} > {predicted}" for _, label, predicted, _ in mistakes[:WORST]]
        tiles(images, TILE, TILE, titles).save(folder / "mistakes.png")
    except OSError as error:
        raise cannot_write(folder, error) from error


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else ""


def _heat_map(counts: np.ndarray) -> Image.Image:
    """The share of each prediction, from white (none) to dark blue (all): a row for each class, a
    column for each prediction."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = 255 + (DARK_BLUE - 255) * np.sqrt(shares)[..., None]
    scale = max(1, 480 // len(counts))
    return Image.fromarray(pixels.astype(np.uint8).repeat(scale, 0).repeat(scale, 1))


def _pixels(run: Any, source: Any, index: int) -> np.ndarray:
    """The image of an example as RGB; black if it is damaged."""
    levels = run.evaluators[0].pipeline.levels
    try:
        return as_rgb(decode(source[index]["image"], run.model.config.channels, levels))
    except DamagedImage:
        return np.zeros((TILE, TILE, 3), np.uint8)


def tiles(
    images: Sequence[np.ndarray], width: int, height: int, titles: Sequence[str] = ()
) -> Image.Image:
    """The images in a grid, each of one size, and under its title if there are titles."""
    columns = max(1, int(np.ceil(np.sqrt(len(images)))))
    lines, above = max(1, -(-len(images) // columns)), TITLE if titles else 0
    sheet = Image.new("RGB", (columns * width, lines * (height + above)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, pixels in enumerate(images):
        left, top = number % columns * width, number // columns * (height + above)
        sampling = Image.Resampling.NEAREST if pixels.shape[0] < height else Image.Resampling.BOX
        sheet.paste(Image.fromarray(pixels).resize((width, height), sampling), (left, top + above))
        if titles:
            latin = titles[number][:24].encode("latin-1", "replace").decode("latin-1")
            draw.text((left + 2, top), latin, "black")
    return sheet
