"""Images a second and core from files to uint8 batches on the host, beside tf.data and timm.

    python benchmarks/input_pipeline.py [--quick] [--json=FILE] [--data=FOLDER] [--rounds=N]

Every side reads the same JPEGs, takes a random part of 5-100% of each (aspect 3/4-4/3) at 224 px,
mirrors every other one, and delivers batches of 64 as uint8: ours
(`decode|inception_crop|flip_lr`), tf.data (decode_and_crop_jpeg, resize, flip; as many calls as it
likes) and timm's own loader (Pillow, its default interpolation, as many workers as there are cores,
collated as uint8; what it does on the device is left out). With
`randaug(2,15)`: ours and timm's. Ours is measured twice, with as many threads as there are cores
and with as many worker processes (`data.workers`). All are endless; a round is an epoch's batches,
after some that are not counted, so that what was made ahead while others ran helps none.
--data=FOLDER holds JPEGs, at any depth; repeat it for several cases. Without it, images are made:
smooth noise of 500 x 375 pixels, about 110 kB each.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np

SIZE, BATCH = 224, 64
AHEAD, ENDLESS = 16, 10**9  # batches: not counted in a round; of a side
CROP = "decode|inception_crop|flip_lr"
RANDAUG = "decode|inception_crop|flip_lr|randaug(2,15)"


def made_images(folder: Path, count: int) -> None:
    """Pictures whose JPEGs are as large as ImageNet's."""
    import cv2
    from PIL import Image

    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        pixels = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC).astype(float)
        pixels += rng.normal(0, 14, pixels.shape)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
            folder / f"{number}.jpg", quality=93, subsampling=0
        )


def folder_of_links(source: Path, root: Path, epoch: int) -> Path:
    """`epoch` links to the JPEGs below `source`, each as often as the next, as one class."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"{source} holds no JPEGs")
    made = root / "train" / "all"
    made.mkdir(parents=True)
    for number in range(epoch):
        (made / f"{number:06d}.jpg").symlink_to(files[number % len(files)].absolute())
    return root


def ours(root: Path, text: str, threads: int, workers: int) -> Iterator[Any]:
    """Batches of our pipeline on the host."""
    from vit_jax.data import ops, pipeline
    from vit_jax.data.sources import open_source
    from vit_jax.tasks.classification import Labels

    source = open_source(f"folder:{root}", "train")
    shape = (SIZE, SIZE, 3)
    return iter(
        pipeline.train_batches(
            source, ops.parse(text, shape[:2]), shape, Labels(1, 1), seed=0, batch_size=BATCH,
            rows=np.arange(BATCH), examples_seen=0, steps=ENDLESS, threads=threads, workers=workers,
        )
    )  # fmt: skip


def tf_data(root: Path) -> Iterator[Any]:
    """Batches of tf.data, decoding only the part that is wanted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    paths = sorted(map(str, (root / "train" / "all").iterdir()))

    def load(path):
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data), tf.zeros([0, 0, 4]), area_range=(0.05, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3), min_object_covered=0.0,
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)
        return tf.image.random_flip_left_right(image), 0

    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    options = tf.data.Options()
    options.deterministic = False
    dataset = dataset.map(load, tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True)
    return dataset.prefetch(AHEAD // 2).with_options(options).as_numpy_iterator()


def timm_loader(root: Path, workers: int, auto_augment: str | None = None) -> Iterator[Any]:
    """Batches of timm's loader, as its workers leave them."""
    import logging

    logging.disable(logging.WARNING)
    import torch
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(root / "train"), is_training=True),
        input_size=(3, SIZE, SIZE), batch_size=BATCH, is_training=True, no_aug=False,
        scale=(0.05, 1.0), hflip=0.5, color_jitter=None, auto_augment=auto_augment,
        num_workers=workers, persistent_workers=True, device=torch.device("cpu"), pin_memory=False,
    )  # fmt: skip
    assert loader.loader.collate_fn.__name__ == "fast_collate"
    while True:
        yield from loader.loader


MAKERS = {
    "ours": lambda root, cores, randaug: ours(root, RANDAUG if randaug else CROP, cores, 0),
    "ours, workers": lambda root, cores, randaug: ours(
        root, RANDAUG if randaug else CROP, 0, cores
    ),
    "tf.data": lambda root, cores, randaug: tf_data(root),
    "timm": lambda root, cores, randaug: timm_loader(
        root, cores, "rand-m15-n2" if randaug else None
    ),
}


def serve(name: str, root: str, randaug: str) -> None:
    """A side in a process of its own (TensorFlow and PyTorch do not bear each other): for every
    number it is sent, the seconds that so many batches took."""
    out = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    try:
        batches = MAKERS[name](Path(root), harness.cores(), randaug == "True")
        next(batches)
    except ImportError as error:
        out.write(f"{error}\n")
        return
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        for _ in itertools.islice(batches, AHEAD):
            pass
        began = time.perf_counter()
        for _ in itertools.islice(batches, int(line)):
            pass
        out.write(f"{time.perf_counter() - began}\n")
        out.flush()
    os._exit(0)  # an endless side has threads and processes that would go on


class Side:
    """Another process that makes so many batches when it is called. Raises ImportError where it
    cannot."""

    def __init__(self, name: str, root: Path, randaug: bool, batches: int):
        self._batches = batches
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, str(root), str(randaug)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        answer = self._process.stdout.readline().strip()
        if answer != "ready":
            raise ImportError(f"{name}: {answer or 'its process ended'}")

    def __call__(self) -> float:
        self._process.stdin.write(f"{self._batches}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


def measure(root: Path, randaug: bool, rounds: int, batches: int) -> dict[str, np.ndarray]:
    """Seconds of so many batches of every side whose package is installed."""
    sides = {}
    for name in MAKERS:
        if name == "tf.data" and randaug:  # which has none
            continue
        try:
            sides[name] = Side(name, root, randaug, batches)
        except ImportError as error:
            print(f"left out: {error}")
    times = harness.alternate(sides, rounds)
    for side in sides.values():
        side.close()
    return times


def main() -> None:
    """Measures every case and prints the table."""
    if sys.argv[1:2] == ["--serve"]:
        return serve(*sys.argv[2:])
    parser = harness.parser(__doc__)
    parser.add_argument("--data", action="append", default=[], help="a folder of JPEGs; repeatable")
    options = parser.parse_args()
    epoch = 2 * BATCH if options.quick else 32 * BATCH
    rounds = options.rounds or (2 if options.quick else 15)
    cores, rows = harness.cores(), []
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(folder) for folder in options.data]
        if not folders:
            folders = [Path(scratch) / "made"]
            folders[0].mkdir()
            made_images(folders[0], 8 if options.quick else 64)
        for number, folder in enumerate(folders):
            root = folder_of_links(folder, Path(scratch) / f"links{number}", epoch)
            size = np.mean([path.stat().st_size for path in (root / "train/all").iterdir()]) / 1e3
            for randaug in (False, True):
                case = f"{folder.name} ({size:.0f} kB){', randaug(2,15)' if randaug else ''}"
                times = measure(root, randaug, rounds, epoch // BATCH)
                for base in ("ours", "ours, workers"):
                    others = {name: t for name, t in times.items() if "ours" not in name}
                    where = f"{case}{base.removeprefix('ours')}"
                    found = harness.compare(where, {base: times[base]} | others, base)
                    for row in found:
                        row["images_per_second"] = epoch / row["median_s"]
                        row["images_per_second_per_core"] = epoch / row["median_s"] / cores
                    rows += found
    harness.report("input_pipeline", rows, options)


if __name__ == "__main__":
    main()
