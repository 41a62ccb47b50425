"""Images a second and core at each stage of a run's training pipeline: one thread reading, decoding
and augmenting, then whole batches on the host and on the devices, as training takes them. What is
read again comes from the system's cache: a cold disk is slower."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vit_jax.benching.machine import cores
from vit_jax.benching.timing import Row
from vit_jax.data.levels import DamagedImage
from vit_jax.errors import UserError
from vit_jax.training.run import Run


def stages(run: Run, seconds: float) -> Iterator[Row]:
    """A row a stage. One thread is one core; batches are made by all that the run may use."""
    source: Any = run.train_source
    config, size = run.model.config, run.config.batch_size
    rng = np.random.default_rng(0)
    pipeline, stages = run.resolved.pipelines[0], {"read": 0.0}
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        at = time.perf_counter()
        image: Any = source[int(rng.integers(len(source)))]["image"]
        stages["read"] += (now := time.perf_counter()) - at
        try:
            at, name = now, "decode"
            image = pipeline.open(image, config.channels)
            if not pipeline.encoded and not isinstance(image, np.ndarray):
                image = image.pixels()
            stages[name] = stages.get(name, 0.0) + (now := time.perf_counter()) - at
            for step, name in zip(pipeline.steps, pipeline.text.split("|")[1:], strict=False):
                at, image = now, step(image, rng)
                stages[name] = stages.get(name, 0.0) + (now := time.perf_counter()) - at
        except DamagedImage:
            continue
        images += 1
    if not images:
        raise UserError(f"{run.config.data.train.source}: no image could be read")
    for name, spent in stages.items():
        inside = " (its head; the rest in what follows)" if pipeline.encoded else ""
        yield _row(name + (inside if name == "decode" else ""), spent / images, 1)
    yield _row("one thread", sum(stages.values()) / images, 1)

    workers = run.config.data.workers
    made_by = f"{workers} workers" if workers else f"{run.config.data.threads} threads"
    used = min(cores(), workers or run.config.data.threads or 1)
    host = run.train_host_batches(0, 10**9 // size)
    yield _row(
        f"batches on the host, {made_by}", _rate(iter(host), host.close, size, seconds), used
    )
    device = run.train_batches(0, 10**9 // size)
    yield _row(
        f"batches on the devices, {made_by}", _rate(device, device.close, size, seconds), used
    )


def _rate(batches: Iterator, close: Callable[[], None], size: int, seconds: float) -> float:
    """Seconds an image, after the first batches."""
    try:
        for _ in range(4):  # those that were made while nobody was waiting
            next(batches)
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds or not count:
            next(batches)
            count += 1
        return spent / (count * size)
    finally:
        close()


def _row(stage: str, seconds: float, cores: int) -> Row:
    rate = 1 / max(seconds, 1e-9)
    return {
        "stage": stage, "images_per_second": rate, "images_per_second_per_core": rate / cores,
        "us_per_image": seconds * 1e6,
    }  # fmt: skip
