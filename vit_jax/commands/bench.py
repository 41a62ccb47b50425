"""Measures parts of a run on this machine, on the run's own data.

vit bench input --config=folder.py:PHOTOS
vit bench input --config=pretrain.py:b16,imagenet2012 --config.data.threads=16 --json=input.json

input: images a second and core at each stage of the training pipeline: one thread reading, decoding
and augmenting, then whole batches on the host and on the devices, as training takes them. What is
read again comes from the system's cache: a cold disk is slower.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vit_jax import recipe
from vit_jax.commands.arguments import add_config
from vit_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("what", choices=["input"], help="the part to measure")
    add_config(parser)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each stage (3)")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="figures as JSON, to FILE or printed"
    )


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    if options.seconds <= 0:
        raise UserError("--seconds must be more than 0")
    config = recipe.load(options.config)
    named = recipe.override(config, options.overrides)
    from vit_jax.training.setup import set_up
    from vit_jax.training.workdir import write_json

    rows = list(_input(set_up(config, named), options.seconds))
    if options.json == "-":
        print(json.dumps({"stages": rows}))
        return 0
    for row in rows:
        print(
            f"{row['stage']:44} {row['images_per_second']:10,.0f} images/s "
            f"{row['images_per_second_per_core']:10,.0f} a core {row['us_per_image']:10,.0f} µs"
        )
    if options.json:
        write_json(Path(options.json), {"stages": rows})
    return 0


def _input(run: Any, seconds: float) -> Iterator[dict[str, Any]]:
    """A row a stage. One thread is one core; batches are made by all that the run may use."""
    import numpy as np

    from vit_jax.data.decode import DamagedImage, encoded

    source, config, size = run.train_source, run.model.config, run.config.batch_size
    rng = np.random.default_rng(0)
    pipeline, stages = run.train_pipeline, {"read": 0.0}
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        at = time.perf_counter()
        image: Any = source[int(rng.integers(len(source)))]["image"]
        stages["read"] += (now := time.perf_counter()) - at
        try:
            at, name = now, "decode"
            if isinstance(image, bytes):
                image = encoded(image, config.channels)
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

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = run.config.data.workers
    made_by = f"{workers} workers" if workers else f"{run.config.data.threads} threads"
    used = min(cores or 1, workers or run.config.data.threads or 1)
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


def _row(stage: str, seconds: float, cores: int) -> dict[str, Any]:
    rate = 1 / max(seconds, 1e-9)
    return {
        "stage": stage, "images_per_second": rate, "images_per_second_per_core": rate / cores,
        "us_per_image": seconds * 1e6,
    }  # fmt: skip
