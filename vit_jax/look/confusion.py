"""A picture of which classes are taken for which: names, counts, and shades for shares."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vit_jax.look import lettering

MOST = 30  # classes of a picture; of more, those with the most mistakes
SIZE, PAD = 12, 8  # pixels of letters, and around the parts
LONGEST_NAME, SMALLEST_CELL = 170, 26  # pixels
DARK_BLUE = np.array([8.0, 48.0, 107.0])


def picture(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """A row for each class, a column for each prediction, and in the cell how many examples of the
    class got it. A cell is the darker, the larger their share of the class.

    Args:
      counts: [class, prediction].
    """
    title = f"{MOST - 1} of {len(names)} classes: those with the most mistakes"
    if len(names) <= MOST:
        title = ""
    else:
        counts, names = of_the_worst(counts, names)
    names = [lettering.fitted(name, SIZE, LONGEST_NAME) for name in names]
    widest = max(lettering.width(name, SIZE) for name in names)
    cell = max(SMALLEST_CELL, lettering.width(str(counts.max()), SIZE) + PAD)
    line = SIZE + PAD
    left, top = PAD + line + widest + PAD, PAD + line * (2 if title else 1) + widest + PAD
    extent = cell * len(names)
    across = "predicted class"
    wide = max(
        left + max(extent, lettering.width(across, SIZE)), PAD + lettering.width(title, SIZE)
    )
    wide += PAD
    sheet = Image.new("RGB", (wide, top + extent + PAD), "white")
    draw = ImageDraw.Draw(sheet)
    lettering.write(sheet, (PAD, PAD + SIZE), title, SIZE)
    lettering.write(sheet, (left, top - PAD - widest - PAD), across, SIZE)
    of_class = lettering.width("class", SIZE)
    lettering.write_upwards(sheet, (PAD + SIZE, top + of_class), "class", SIZE)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, name in enumerate(names):
        y = top + row * cell
        start = left - PAD - lettering.width(name, SIZE)
        lettering.write(sheet, (start, y + (cell + SIZE) / 2 - 2), name, SIZE)
        lettering.write_upwards(sheet, (left + row * cell + (cell + SIZE) / 2 - 2, top - PAD),
                                name, SIZE)  # fmt: skip
        for column, count in enumerate(counts[row]):
            x, share = left + column * cell, float(shares[row, column])
            shade = 255 + (DARK_BLUE - 255) * np.sqrt(share)
            colour = tuple(shade.astype(int).tolist())
            draw.rectangle((x, y, x + cell, y + cell), colour, "lightgrey")
            if count:
                middle = x + (cell - lettering.width(str(count), SIZE)) / 2
                ink = "white" if share > 0.3 else "black"
                lettering.write(sheet, (middle, y + (cell + SIZE) / 2 - 2), str(count), SIZE, ink)
    return sheet


def of_the_worst(counts: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The counts of the classes with the most mistakes, of and as them, in their order; and, as the
    last row and column, of all others together, without what these are among themselves."""
    wrong = counts - np.diag(counts.diagonal())
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    worst = np.sort(np.argsort(-mistakes, kind="stable")[: MOST - 1])
    others = np.setdiff1d(np.arange(len(names)), worst)
    found = np.zeros((MOST, MOST), counts.dtype)
    found[:-1, :-1] = counts[np.ix_(worst, worst)]
    found[:-1, -1] = counts[np.ix_(worst, others)].sum(axis=1)
    found[-1, :-1] = counts[np.ix_(others, worst)].sum(axis=0)
    return found, [*(names[i] for i in worst), f"{len(others)} others"]
