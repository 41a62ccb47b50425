"""Time to index a folder of images, and the memory that its index takes.

    python benchmarks/folder_index.py [--quick] [--json=FILE] [--rounds=N]

A million links to one picture, in a thousand classes, are made in the temporary folder, which takes
half a minute. They are opened as `folder:PATH` and, if it is installed, as torchvision's
ImageFolder. Each round is a process of its own. `held` is the growth of its resident memory by the
whole index. --quick takes ten thousand links.
"""

import functools
import gc
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vit_jax.benching import report
from vit_jax.benching.machine import resident
from vit_jax.benching.timing import alternate, compare, json_from

CLASSES = 1000


def make(root: Path, images: int) -> None:
    """Makes links `root/train/CLASS/*.JPEG` to one picture."""
    from PIL import Image

    picture = root / "picture.jpg"
    Image.new("RGB", (32, 32)).save(picture)
    each = images // CLASSES
    for label in range(CLASSES):
        folder = root / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(each):
            os.symlink(picture, folder / f"n{label:08d}_{number}.JPEG")


def ours(root: str):
    from vit_jax.data.sources import open_source

    return lambda: open_source(f"folder:{root}", "train")


def torchvision(root: str):
    from torchvision.datasets import ImageFolder

    return lambda: ImageFolder(f"{root}/train")


SIDES = {"ours": ours, "torchvision": torchvision}


def index(name: str, root: str) -> None:
    """Opens the folder in this process; prints the seconds, bytes and images as JSON."""
    opened = SIDES[name](root)
    gc.collect()
    before, began = resident(), time.perf_counter()
    source = opened()
    seconds = time.perf_counter() - began
    gc.collect()
    print(json.dumps([seconds, resident() - before, len(source)]))


def main() -> None:
    """Measures both sides in turns and prints the table."""
    if sys.argv[1:2] == ["--index"]:
        return index(*sys.argv[2:])
    options = report.parser(__doc__).parse_args()
    images = 10_000 if options.quick else 1_000_000
    names = [name for name in SIDES if name == "ours" or importlib.util.find_spec(name)]
    held: dict[str, list[int]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as root:
        make(Path(root), images)

        def side(name: str) -> float:
            seconds, size, count = json_from([sys.executable, __file__, "--index", name, root])
            assert count == images
            held[name].append(size)
            return seconds

        sides = {name: functools.partial(side, name) for name in names}
        times = alternate(sides, options.rounds or 5)
    rows = compare(f"{images:,} links", times, "ours")
    for row in rows:
        row["held_mb"] = round(float(np.median(held[row["side"]])) / 1e6, 1)
    report.finish("folder_index", rows, options)


if __name__ == "__main__":
    main()
