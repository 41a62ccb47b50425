"""`digit_scenes`: scikit-learn's handwritten digits, several in an image, to be found by boxes."""

from typing import Any

import cv2
import numpy as np

from vit_jax.data.memory import digits, sizes_of
from vit_jax.data.objects import Objects
from vit_jax.data.source import Source
from vit_jax.data.splits import choose
from vit_jax.errors import UserError

SIDES = 14, 30  # pixels of a digit, in a scene of 64
LEAST = 16
NOISE = 60  # the ground's levels are below it
TRIES = 20  # places that a digit tries before it is left out
OVERLAP = 0.1  # of the smaller of two digits' boxes, at most


class DigitScenes(Source):
    """Scenes of one to `most` digits on a noisy ground, grey. A scene is a function of its number:
    scenes of `train` have digits of `train`, those of `val` the digits held out.

    `rest` is `examples=4096,size=64,most=4,seed=1`, or a part of it.
    """

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        defaults = {"examples": 4096, "size": 64, "most": 4, "seed": 1}
        options = sizes_of("digit_scenes", rest, defaults)
        if options["size"] < LEAST:
            raise UserError(f"digit_scenes:{rest}: a scene has a side of {LEAST} pixels at least")
        split = choose("digit_scenes", split, ("train", "val"), classes is None)
        self.digits = digits("", split, classes)
        self.title, self.channels, self.classes = "digit_scenes", 1, self.digits.classes
        self.size, self.max_objects = options["size"], options["most"]
        self._key = options["seed"], int(split == "val")
        self._data = range(options["examples"])
        self.names_hash = f"digit_scenes:{options}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((*self._key, index))
        image = rng.integers(0, NOISE, (self.size, self.size)).astype(np.uint8)
        boxes: list[tuple[int, int, int, int]] = []
        labels: list[int] = []
        for _ in range(rng.integers(1, self.max_objects + 1)):
            example = self.digits[int(rng.integers(len(self.digits)))]
            ink = _inked(example["image"][..., 0])
            side = int(rng.integers(SIDES[0], SIDES[1] + 1)) * self.size // 64
            height = side
            width = max(2, round(side * ink.shape[1] / ink.shape[0]))
            drawn = cv2.resize(ink, (width, height), interpolation=cv2.INTER_LINEAR)
            for _ in range(TRIES):
                top = int(rng.integers(max(1, self.size - height + 1)))
                left = int(rng.integers(max(1, self.size - width + 1)))
                box = left, top, left + width, top + height
                if all(_overlap(box, other) <= OVERLAP for other in boxes):
                    part = image[top : top + height, left : left + width]
                    part[...] = np.maximum(part, drawn[: part.shape[0], : part.shape[1]])
                    boxes.append(box)
                    labels.append(example["label"])
                    break
        objects = Objects.of_pixels(np.array(boxes), np.array(labels), (self.size, self.size))
        return {"image": image[..., None], "objects": objects}


def _inked(image: np.ndarray) -> np.ndarray:
    """The part of an image between its first and last rows and columns that are not black."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Share of the smaller box that lies in the other."""
    sides = [max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return sides[0] * sides[1] / min(areas)
