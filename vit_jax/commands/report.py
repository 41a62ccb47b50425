"""What `vit evaluate --report` writes: which classes are taken for which, and the mistakes that the
model was surest of, as tables and pictures."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vit_jax.data.decode import DamagedImage, decode
from vit_jax.data.ops import parse
from vit_jax.errors import UserError, cannot_write
from vit_jax.evaluators.classification import Confusion, Rows

WORST = 64  # mistakes in the picture
TILE = 128  # px of each


def write_report(folder: Path, run: Any, rows: Rows) -> None:
    """`confusion.csv`, `confusion.png`, `classes.csv`, `mistakes.csv` and `mistakes.png`.

    Raises UserError where the folder cannot be written, or the examples have several labels.
    """
    source, classes = run.evaluators[0].test, run.classes
    if rows["label"].ndim > 1:
        raise UserError("--report is for one label an example; these have several")
    found = Confusion.of(rows, len(classes))
    mistakes = [
        (source.describe(int(rows["index"][row])), classes[rows["label"][row]],
         classes[rows["predicted"][row]], f"{rows['confidence'][row]:.4f}")
        for row in found.mistakes
    ]  # fmt: skip
    counts = found.counts
    right, of_class, of_predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    tables: dict[str, list[Any]] = {
        "confusion.csv": [["class \\ predicted", *classes]]
        + [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)],
        "classes.csv": [["class", "examples", "accuracy", "precision"]]
        + [
            [
                name,
                int(of_class[i]),
                _share(right[i], of_class[i]),
                _share(right[i], of_predicted[i]),
            ]
            for i, name in enumerate(classes)
        ],
        "mistakes.csv": [["example", "class", "predicted", "confidence"], *mistakes],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(table)
        _heat(counts).save(folder / "confusion.png")
        images = [_pixels(run, source, int(rows["index"][row])) for row in found.mistakes[:WORST]]
        titles = [f"{label} > {predicted}" for _, label, predicted, _ in mistakes[:WORST]]
        _tiles(images, titles).save(folder / "mistakes.png")
    except OSError as error:
        raise cannot_write(folder, error) from error


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else ""


def _heat(counts: np.ndarray) -> Image.Image:
    """Each row's shares from white (none) to dark blue (all), a class a row, predictions across."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    dark = np.array([8.0, 48.0, 107.0])
    pixels = 255 + (dark - 255) * np.sqrt(shares)[..., None]
    scale = max(1, 480 // len(counts))
    return Image.fromarray(pixels.astype(np.uint8).repeat(scale, 0).repeat(scale, 1))


def _pixels(run: Any, source: Any, index: int) -> np.ndarray:
    text, c = run.evaluators[0].pipeline, run.model.config
    levels = parse(text, c.image_size, imports=True).levels
    try:
        pixels = decode(source[index]["image"], c.channels, levels)
    except DamagedImage:
        pixels = np.zeros((TILE, TILE, 3), np.uint8)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)


def _tiles(images: list[np.ndarray], titles: list[str]) -> Image.Image:
    """The images in a grid, each under `class > prediction`."""
    columns = max(1, int(np.ceil(np.sqrt(len(images)))))
    height = TILE + 14
    sheet = Image.new("RGB", (columns * TILE, max(1, -(-len(images) // columns)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, title) in enumerate(zip(images, titles, strict=True)):
        left, top = number % columns * TILE, number // columns * height
        filter_ = Image.Resampling.NEAREST if pixels.shape[0] < TILE else Image.Resampling.BOX
        sheet.paste(Image.fromarray(pixels).resize((TILE, TILE), filter_), (left, top + 14))
        draw.text(
            (left + 2, top), title[:24].encode("latin-1", "replace").decode("latin-1"), "black"
        )
    return sheet
