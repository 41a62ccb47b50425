"""Sections of a run's report about its evaluation: which examples it gets wrong, and how."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from vit_jax import pages
from vit_jax.data.decode import DamagedImage
from vit_jax.evaluators import detection
from vit_jax.evaluators.classification import Confusion, Rows, by_confidence
from vit_jax.look import pictures
from vit_jax.look.attention import read, rollout
from vit_jax.look.seen import see

WORST = 12  # examples
MOST = 40  # classes of a confusion matrix with a row for each; of more, its largest cells
SIDE = 160  # pixels of an example's picture, at least


def classes(run: Any, params: Any, rows: Rows) -> Iterable[str]:
    """Of a classifier: calibration, confusion, a row for each class, and its worst mistakes."""
    names = run.classes
    if rows["label"].ndim > 1:
        yield pages.paragraph("Examples have several labels: no class is taken for another.")
        return
    yield pages.heading("Calibration")
    yield pages.curves(
        {"accuracy": by_confidence(rows), "calibrated": [(0, 0), (1, 1)]},
        "confidence",
    )
    confusion = Confusion.of(rows, len(names))
    yield pages.heading("Classes taken for others")
    yield pages.table(_largest(confusion.counts, names))
    yield _matrix(confusion.counts, names)
    yield pages.heading("Classes")
    counts = confusion.counts
    of_class, right = counts.sum(axis=1), counts.diagonal()
    worst_first = np.argsort(right / np.maximum(of_class, 1), kind="stable")
    table = [
        (names[i], int(of_class[i]), _share(right[i], of_class[i]),
         _share(right[i], counts[:, i].sum()))
        for i in worst_first if of_class[i]
    ]  # fmt: skip
    head = ("class", "examples", "accuracy", "precision")
    yield pages.details(f"{len(table)} classes, the worst first", pages.table([head, *table]))
    worst = confusion.mistakes[:WORST]
    yield pages.heading("Mistakes, the surest first")
    titles = [
        f"{names[rows['label'][i]]}, taken for {names[rows['predicted'][i]]} "
        f"({rows['confidence'][i]:.0%})"
        for i in worst
    ]
    shown = _attended(run, params, rows["index"][worst])
    yield pages.tiles(map(pages.figure, shown, titles), 4, 150)


def objects(run: Any, params: Any, rows: Rows) -> Iterable[str]:
    """Of a detector: a row for each class, and the images with the most errors."""
    yield pages.heading("Classes")
    table = [
        (run.classes[label], count, f"{ap:.2%}", f"{ap50:.2%}")
        for label, (count, ap, ap50) in detection.of_classes(rows).items()
    ]
    yield pages.table([("class", "objects", "AP", "AP50"), *table])
    wrong = detection.errors(rows)
    worst = np.argsort(-wrong, kind="stable")[:WORST]
    yield pages.heading("Images with the most errors")
    yield pages.paragraph("Orange: found, with a score of 0.5 or more. Blue: annotated.")
    parts = []
    for i in worst:
        source = run.evaluators[0].test
        image = _file(run, source, int(rows["index"][i]))
        if image is None:
            continue
        for box in rows["true_boxes"][i][rows["true_class"][i] >= 0]:
            image = pictures.framed(image, box, pictures.BLUE)
        for box in rows["boxes"][i][rows["scores"][i] >= 0.5]:
            image = pictures.framed(image, box, pictures.ORANGE)
        caption = f"{source.describe(int(rows['index'][i])).rpartition('/')[2]}: {wrong[i]} errors"
        parts.append(pages.figure(pages.picture(pictures.jpeg(image), kind="smooth"), caption))
    yield pages.tiles(parts, 3, 220)


SECTIONS = {"classification": classes, "detection": objects}  # by the name of the task


def _largest(counts: np.ndarray, names: list[str]) -> list[tuple[object, ...]]:
    """The ten pairs of classes of which the one is taken for the other most often."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    cells = np.argsort(-wrong, axis=None, kind="stable")[:10]
    rows = [(*np.unravel_index(cell, wrong.shape), int(wrong.flat[cell])) for cell in cells]
    head = ("class", "taken for", "examples")
    return [head, *((names[i], names[j], count) for i, j, count in rows if count)]


def _matrix(counts: np.ndarray, names: list[str]) -> str:
    """The share of each prediction in the examples of each class, as a table with a row for each
    class. Of more than `MOST` classes, a picture of it."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(counts) > MOST:
        sheet = pictures.png(pictures.enlarged(255 - pictures.levels(np.sqrt(shares)), 480))
        return pages.details("All of them", pages.picture(sheet, "class and prediction"))
    cells = [[f"{share:.0%}" if share else "" for share in row] for row in shares]
    rows = [[name, *row] for name, row in zip(names, cells, strict=True)]
    return pages.details("All of them", pages.table([["class \\ predicted", *names], *rows]))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else ""


def _file(run: Any, source: Any, number: int) -> np.ndarray | None:
    """The image of an example in its own size, as RGB; None if it is damaged."""
    from vit_jax.data.decode import decode

    try:
        levels = run.evaluators[0].pipeline.levels
        return pictures.as_rgb(decode(source[number]["image"], run.model.config.channels, levels))
    except DamagedImage:
        return None


def _attended(run: Any, params: Any, numbers: np.ndarray) -> list[str]:
    """Examples as the model is shown them, as bright as attention leads from them to the head,
    where the model has attention between patches."""
    if not len(numbers):
        return []
    opened, model = run.evaluators[0], run.model
    images = np.stack([
        opened.pipeline(
            opened.pipeline.open(opened.test[int(n)]["image"], model.config.channels), None
        )
        for n in numbers
    ])  # fmt: skip
    seen = see(model, params, images, gradient=False)
    photographs = [pictures.enlarged(one, SIDE) for one in pictures.as_rgb(images)]
    if seen.attention is not None:
        rows = read(model, rollout(seen.attention), seen)
        photographs = list(map(pictures.lit, photographs, rows))
    return [pages.picture(pictures.jpeg(one), kind="smooth") for one in photographs]
