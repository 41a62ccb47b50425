"""Sources that need no files of the user: arrays, scikit-learn's digits, noise."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.data.source import Source
from vit_jax.data.splits import choose
from vit_jax.errors import UserError


class Arrays(Source):
    """Images in memory: uint8 [N, H, W, C] and labels [N]."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, classes: list[str]):
        self.title, self.images, self.labels, self.classes = name, images, labels, classes
        self._data, self.channels = labels, images.shape[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


def digits(rest: str, split: str, classes: list[str] | None) -> Arrays:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels. Every fifth one of each class is
    held out as `val`, the same ones everywhere."""
    if rest:
        raise UserError(f"digits:{rest}: there is one such set, named digits")
    split = choose("digits", split, ("train", "val"), classes is None)
    package = importlib.util.find_spec("sklearn")  # importing it takes longer than everything here
    assert package is not None
    assert package.origin
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    pixels, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    chosen = held_out if split == "val" else ~held_out
    images = np.round(pixels[chosen] * (255 / 16)).astype(np.uint8)
    return Arrays("digits", images, labels[chosen], [str(label) for label in range(10)])


def sizes_of(name: str, rest: str, defaults: dict[str, int]) -> dict[str, int]:
    """The numbers of `NAME:KEY=NUMBER,…`, each at least 1, over the defaults. Raises UserError."""
    sizes = dict(defaults)
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in sizes or not value.isdecimal() or int(value) < 1:
            options = ",".join(f"{k}={v}" for k, v in defaults.items())
            raise UserError(f"{name}:{rest}: write it as {name}:{options}")
        sizes[key] = int(value)
    return sizes


class Synthetic(Source):
    """Noise whose brightness depends on the label, made from the example's number."""

    title = "synthetic"

    def __init__(self, rest: str, split: str, classes: list[str] | None):
        sizes = sizes_of(
            "synthetic", rest, {"examples": 1024, "classes": 10, "size": 256, "channels": 3}
        )
        split = choose("synthetic", split, ("train", "val"), classes is None)
        self.first = 0 if split == "train" else 2**40
        self._data = range(sizes["examples"])
        self.size, self.channels = sizes["size"], sizes["channels"]
        self.classes = [str(label) for label in range(sizes["classes"])]

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(self.first + index)
        label = int(rng.integers(len(self.classes)))
        low = 128 * label // len(self.classes)
        shape = (self.size, self.size, self.channels)
        return {"image": rng.integers(low, low + 128, shape, np.uint8), "label": label}
