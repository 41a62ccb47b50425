"""The report of `vit evaluate --report`: which classes are taken for which, and the mistakes of
which the model was surest, as tables and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.decode import DamagedImage, decode
from vit_jax.errors import UserError, cannot_write, printable
from vit_jax.evaluators.classification import Confusion, Rows
from vit_jax.files import write_text
from vit_jax.look import confusion as confusion_matrix
from vit_jax.look import lettering
from vit_jax.look.pictures import as_rgb
from vit_jax.pages import as_csv

WORST = 64  # mistakes in the picture
TILE = 128  # pixels of an image of the picture
LETTERS, LINE = 12, 16  # pixels of letters, and of a line of them, above an image


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
        confusion_matrix.picture(counts, [printable(name) for name in classes]).save(
            folder / "confusion.png"
        )
        images = [_pixels(run, source, int(rows["index"][row])) for row in worst]
        titles = [
            (f"is {printable(label)}", f"{float(confidence):.0%} {printable(predicted)}")
            for _, label, predicted, confidence in mistakes[:WORST]
        ]
        tiles(images, TILE, TILE, titles).save(folder / "mistakes.png")
    except OSError as error:
        raise cannot_write(folder, error) from error


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else ""


def _pixels(run: Any, source: Any, index: int) -> np.ndarray:
    """The image of an example as RGB; black if it is damaged."""
    levels = run.evaluators[0].pipeline.levels
    try:
        return as_rgb(decode(source[index]["image"], run.model.config.channels, levels))
    except DamagedImage:
        return np.zeros((TILE, TILE, 3), np.uint8)


def tiles(
    images: Sequence[np.ndarray], width: int, height: int,
    titles: Sequence[tuple[str, ...]] = (),
) -> Image.Image:  # fmt: skip
    """The images in a grid, each of one size, and under the lines of its title if there are any."""
    columns = max(1, int(np.ceil(np.sqrt(len(images)))))
    lines, above = max(1, -(-len(images) // columns)), len(titles[0]) * LINE if titles else 0
    sheet = Image.new("RGB", (columns * width, lines * (height + above)), "white")
    for number, pixels in enumerate(images):
        left, top = number % columns * width, number // columns * (height + above)
        sampling = Image.Resampling.NEAREST if pixels.shape[0] < height else Image.Resampling.BOX
        sheet.paste(Image.fromarray(pixels).resize((width, height), sampling), (left, top + above))
        for line, text in enumerate(titles[number] if titles else (), start=1):
            shown = lettering.fitted(text, LETTERS, width - 4)
            lettering.write(sheet, (left + 2, top + line * LINE - 4), shown, LETTERS)
    return sheet
