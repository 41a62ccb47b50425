"""Time to index a folder of images, and the memory that its index takes.

    python benchmarks/folder_index.py [--quick] [--json=FILE] [--rounds=N]

A million links to one picture, in a thousand classes (made first, in the temporary folder: half a
minute), opened as `folder:PATH` and, where it is installed, as torchvision's ImageFolder. Each
round is a process of its own; what it holds is the growth of its resident memory, the index being
whole. --quick takes ten thousand.
"""

import gc
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np

CLASSES = 1000


def make(root: Path, images: int) -> None:
    """Links `root/train/CLASS/*.jpg` to one picture."""
    from PIL import Image

    picture = root / "picture.jpg"
    Image.new("RGB", (32, 32)).save(picture)
    each = images // CLASSES
    for label in range(CLASSES):
        folder = root / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(each):
            os.symlink(picture, folder / f"n{label:08d}_{number}.JPEG")


def resident() -> int:
    """Bytes of this process that are in memory."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not tell VmRSS")


def ours(root: str):
    from vit_jax.data.sources import open_source

    return lambda: open_source(f"folder:{root}", "train")


def torchvision(root: str):
    from torchvision.datasets import ImageFolder

    return lambda: ImageFolder(f"{root}/train")


SIDES = {"ours": ours, "torchvision": torchvision}


def index(name: str, root: str) -> None:
    """Opens the folder in this process; prints seconds, bytes and images."""
    opened = SIDES[name](root)
    gc.collect()
    before, began = resident(), time.perf_counter()
    source = opened()
    seconds = time.perf_counter() - began
    gc.collect()
    print(seconds, resident() - before, len(source))


def main() -> None:
    """Measures both sides in turns and prints the table."""
    if sys.argv[1:2] == ["--index"]:
        return index(*sys.argv[2:])
    options = harness.parser(__doc__).parse_args()
    images = 10_000 if options.quick else 1_000_000
    names = [name for name in SIDES if name == "ours" or importlib.util.find_spec(name)]
    held: dict[str, list[int]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as root:
        make(Path(root), images)

        def side(name: str) -> harness.Side:
            def run() -> float:
                told = subprocess.run(
                    [sys.executable, __file__, "--index", name, root],
                    capture_output=True, text=True, check=True,
                ).stdout.split()  # fmt: skip
                assert int(told[2]) == images
                held[name].append(int(told[1]))
                return float(told[0])

            return run

        times = harness.alternate({name: side(name) for name in names}, options.rounds or 5)
    rows = harness.compare(f"{images:,} links", times, "ours")
    for row in rows:
        row["held_mb"] = round(float(np.median(held[row["side"]])) / 1e6, 1)
    harness.report("folder_index", rows, options)


if __name__ == "__main__":
    main()
