"""Images a second and core from files to uint8 batches on the host, beside tf.data and timm.

    python benchmarks/input_pipeline.py [--quick] [--json=FILE] [--data=FOLDER] [--rounds=N]

Every side reads the same JPEGs, takes a random part of 5-100% of each (aspect 3/4-4/3) at 224 px,
mirrors every other one, and delivers batches of 64 as uint8. Ours is
`decode|inception_crop|flip_lr`. tf.data decodes and crops in one operation, resizes and flips, with
as many parallel calls as it likes. timm uses its own loader: Pillow, its default interpolation, as
many workers as there are cores, collated as uint8; its work on the device is left out. With
`randaug(2,15)` ours and timm's are measured. Ours is measured twice: with as many threads as there
are cores, and with as many worker processes (`data.workers`). All sides are endless. A round is the
batches of one epoch, after some that are not counted, because they were made while others ran.
--data=FOLDER holds JPEGs at any depth; repeat it for several cases. Without it, images are made:
smooth noise of 500 x 375 pixels, about 110 kB each.
"""

import itertools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.benching import report
from vit_jax.benching.machine import cores
from vit_jax.benching.timing import alternate, compare, timed

SIZE, BATCH = 224, 64
AHEAD, ENDLESS = 16, 10**9  # batches that are not counted in a round; batches of a side
CROP = "decode|inception_crop|flip_lr"
RANDAUG = "decode|inception_crop|flip_lr|randaug(2,15)"


def made_images(folder: Path, count: int) -> None:
    """Makes pictures whose JPEGs are as large as ImageNet's."""
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
    """Makes a class of `epoch` links to the JPEGs below `source`, to each equally often."""
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
    from vit_jax.data import pipeline
    from vit_jax.data.pipeline_text import parse
    from vit_jax.data.sources import open_source
    from vit_jax.tasks.classification import Labels

    source = open_source(f"folder:{root}", "train")
    shape = (SIZE, SIZE, 3)
    return iter(
        pipeline.train_batches(
            source, parse(text, shape[:2]), shape, Labels(1, 1), seed=0, batch_size=BATCH,
            rows=np.arange(BATCH), examples_seen=0, steps=ENDLESS, threads=threads, workers=workers,
        )
    )  # fmt: skip


def tf_data(root: Path) -> Iterator[Any]:
    """Batches of tf.data, which decodes only the part that is shown."""
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
    "ours": lambda root, randaug: ours(root, RANDAUG if randaug else CROP, cores(), 0),
    "ours, workers": lambda root, randaug: ours(root, RANDAUG if randaug else CROP, 0, cores()),
    "tf.data": lambda root, randaug: tf_data(root),
    "timm": lambda root, randaug: timm_loader(root, cores(), "rand-m15-n2" if randaug else None),
}


def serve(name: str, root: Path, randaug: bool, pipe: Any) -> None:
    """A side in a process of its own, because TensorFlow and PyTorch do not work in one. For every
    number that comes through the pipe, returns the seconds that so many batches took."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        batches = MAKERS[name](root, randaug)
        next(batches)
    except ImportError as error:
        return pipe.send(str(error))
    pipe.send(None)
    while count := pipe.recv():
        for _ in itertools.islice(batches, AHEAD):
            pass
        took = timed(lambda count=count: [None for _ in itertools.islice(batches, count)])
        pipe.send(took())
    os._exit(0)  # because the threads and processes of an endless side would go on


def measure(root: Path, randaug: bool, rounds: int, count: int) -> dict[str, np.ndarray]:
    """Seconds of `count` batches of every side whose package is installed."""
    # A side ends without cleaning up, about which Python's tracker of resources would warn.
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning"
    spawn, sides, pipes = multiprocessing.get_context("spawn"), {}, []
    for name in MAKERS:
        if name == "tf.data" and randaug:  # which has none
            continue
        pipe, theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(name, root, randaug, theirs)).start()
        if error := pipe.recv():
            print(f"left out: {name}: {error}")
            continue

        def side(pipe: Any = pipe) -> float:
            pipe.send(count)
            return pipe.recv()

        pipes.append(pipe)
        sides[name] = side
    times = alternate(sides, rounds)
    for pipe in pipes:
        pipe.send(0)
    return times


def main() -> None:
    """Measures every case and prints the table."""
    parser = report.parser(__doc__)
    parser.add_argument("--data", action="append", default=[], help="a folder of JPEGs; repeatable")
    options = parser.parse_args()
    epoch = 2 * BATCH if options.quick else 32 * BATCH
    rounds = options.rounds or (2 if options.quick else 15)
    rows = []
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
                others = {name: t for name, t in times.items() if "ours" not in name}
                for base in ("ours", "ours, workers"):
                    where = f"{case}{base.removeprefix('ours')}"
                    rows += compare(where, {base: times[base]} | others, base)
    for row in rows:
        row["images_per_second"] = epoch / row["median_s"]
        row["images_per_second_per_core"] = row["images_per_second"] / cores()
    report.finish("input_pipeline", rows, options)


if __name__ == "__main__":
    main()
