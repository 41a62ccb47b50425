"""Images a second and core at each stage of a run's training pipeline: one thread that reads,
decodes and augments; then whole batches on the host, and on the devices, as training gets them.

Images that are read again come from the system's cache. A cold disk is slower.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_jax import calls
from vit_jax.benching.machine import cores
from vit_jax.benching.timing import Row
from vit_jax.data.levels import DamagedImage
from vit_jax.errors import UserError
from vit_jax.training.run import Run


def stages(run: Run, seconds: float) -> Iterator[Row]:
    """One row for each stage. A thread uses one core; batches use all cores of the run."""
    data = run.config.data
    one_thread, images = _one_thread(run, seconds)
    if not images:
        raise UserError(f"{data.train.source}: no image could be read")
    for name, spent in [*one_thread.items(), ("one thread", sum(one_thread.values()))]:
        yield _row(name, spent / images, 1)
    workers = f"{data.workers} workers" if data.workers else f"{data.threads} threads"
    used = min(cores(), data.workers or data.threads or 1)
    for place, batches in (("host", run.train_host_batches), ("devices", run.train_batches)):
        feed = batches(0, 10**9 // run.config.batch_size)
        spent = _seconds_an_image(feed, run.config.batch_size, seconds)
        yield _row(f"batches on the {place}, {workers}", spent, used)


def _one_thread(run: Run, seconds: float) -> tuple[dict[str, float], int]:
    """Seconds of each stage in one thread, and the number of images."""
    source: Any = run.train_source
    pipeline, rng, images = run.resolved.pipelines[0], np.random.default_rng(0), 0
    decode = f"decode{' (its head; the rest in what follows)' if pipeline.encoded else ''}"
    names = list(calls.split(pipeline.text))[2 if pipeline.sizes else 1 :]
    spent = dict.fromkeys(["read", decode], 0.0)
    began = now = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal now
        before, now = now, time.perf_counter()
        spent[stage] = spent.get(stage, 0.0) + now - before

    while time.perf_counter() - began < seconds:
        now = time.perf_counter()
        example: dict[str, Any] = source[int(rng.integers(len(source)))]
        mark("read")
        try:
            image = pipeline.open(example["image"], run.model.config.channels)
            if not pipeline.encoded and not isinstance(image, np.ndarray):
                image = image.pixels()
            example = example | {"image": image}
            mark(decode)
            for step, name in zip(pipeline.steps, names, strict=False):
                example = step(example, rng)
                mark(name)
        except DamagedImage:
            continue
        images += 1
    return spent, images


def _seconds_an_image(feed: Any, size: int, seconds: float) -> float:
    """Seconds per image of the batches, without the first ones, which were prepared before."""
    batches = iter(feed)
    with contextlib.closing(feed):
        for _ in range(4):
            next(batches)
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds or not count:
            next(batches)
            count += 1
        return spent / (count * size)


def _row(stage: str, seconds: float, cores: int) -> Row:
    rate = 1 / max(seconds, 1e-9)
    return {"stage": stage, "images_per_second": rate, "images_per_second_per_core": rate / cores,
            "us_per_image": seconds * 1e6}  # fmt: skip
