"""Examples in order, prepared, batched and put on the devices.

Everything about example number g of a run (which image, which augmentation) is a function of
(seed, g), and a process reads the rows of the global batch that its devices hold. So a run
continues exactly from `examples_seen`, with any number of threads, workers or processes.
"""

import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import grain
import jax
import numpy as np
from grain.multiprocessing import SharedMemoryArray
from jax.sharding import NamedSharding

from vit_jax.data.decode import values_of
from vit_jax.data.levels import DamagedImage, NeedsRange, eight_bits, unused
from vit_jax.data.pipeline_text import Pipeline
from vit_jax.data.source import Source
from vit_jax.data.sources import Mixture
from vit_jax.errors import RESTART, Stopped, UserError

Batch = dict[str, Any]
MAX_DAMAGED = 100  # damaged images in a row
SAMPLE = 32  # images whose values are checked before training
PART = 8  # rows that a thread fills at a time
POLL = 0.001  # seconds between two checks of the devices, while no batch is ready


class Entries(Protocol):
    """What a task keeps of an example besides its image (tasks/task.py)."""

    @property
    def filler(self) -> dict[str, np.ndarray]:
        """The entries of an empty row, name -> array. Every row has these shapes and dtypes."""

    def row(self, example: dict[str, Any], name: Callable[[], str]) -> dict[str, Any]:
        """The entries of an example. `name` returns its name for messages."""


@dataclasses.dataclass(frozen=True)
class Prepare(grain.transforms.RandomMap):
    """Example number of the source -> decoded, augmented, checked example.

    `damaged` is the number of a damaged image that was read, or -1. In training, the next image
    takes its place. In evaluation, its row is empty.
    """

    source: Source
    pipeline: Pipeline
    shape: tuple[int, int, int]
    entries: Entries
    training: bool

    def random_map(self, element: int, rng: np.random.Generator | None) -> Batch:
        index, damaged, reason = int(element), -1, ""
        for _ in range(MAX_DAMAGED):
            try:
                example = self.source[index]
                opened = self._open(example["image"], index)
                example = self.pipeline.example(example | {"image": opened}, rng)
            except (DamagedImage, OSError) as error:
                reason = str(error)
                damaged = int(element) if damaged < 0 else damaged
                if not self.training:
                    return self.filler() | {"damaged": np.int64(damaged)}
                index = (index + 1) % len(self.source)
                continue
            image = example["image"]
            if image.shape != self.shape:
                raise UserError(
                    f"pipeline {self.pipeline.text!r} makes {self.source.describe(index)} "
                    f"{list(image.shape)}, but the model takes {list(self.shape)}"
                )
            return {
                "image": image, "id": np.int64(index), "damaged": np.int64(damaged),
                **self.entries.row(example, functools.partial(self.source.describe, index)),
            }  # fmt: skip
        raise UserError(
            f"{MAX_DAMAGED} images in a row are damaged, from "
            f"{self.source.describe(int(element))}; of the last one: {reason}"
        )

    def _open(self, image: Any, index: int) -> Any:
        try:
            return self.pipeline.open(image, self.shape[-1])
        except UserError as error:
            raise UserError(f"{self.source.describe(index)}: {error}") from error

    def map(self, element: int) -> Batch:
        """Without randomness, for evaluation."""
        return self.random_map(element, None)

    def filler(self) -> Batch:
        """An empty row, which does not count."""
        image = np.zeros(self.shape, np.uint8)
        counts = {"id": np.int64(-1), "damaged": np.int64(-1)}
        return {"image": image, **self.entries.filler, **counts}


def check_depth(source: Source, pipeline: Pipeline, channels: int) -> str:
    """A warning if images have more than 8 bits and decoding makes few levels of their values; else
    empty. Reads one image, and if that has more than 8 bits, `SAMPLE` images.

    Raises UserError if an image cannot be decoded without a range.
    """
    least, most, dtype = np.full(channels, np.inf), np.full(channels, -np.inf), None
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int)).tolist():
        try:
            values = values_of(source[index]["image"], channels)
            eight_bits(values[:1, :1], pipeline.levels)
        except NeedsRange as error:
            raise UserError(f"{source.describe(index)}: {error}") from error
        except (DamagedImage, OSError, UserError):  # training reports what is wrong
            continue
        if dtype is None and values.dtype == np.uint8:
            return ""
        if values.dtype == np.uint8 or values.shape[2:] != (channels,):
            continue
        dtype = values.dtype
        least = np.minimum(least, np.nanmin(values, axis=(0, 1)))
        most = np.maximum(most, np.nanmax(values, axis=(0, 1)))
    return "" if dtype is None else unused(dtype, least, most, pipeline.levels)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The examples of a run in order, with images of one size, and the row that does not count."""

    examples: grain.MapDataset
    filler: Batch


def drawn(seed: int, first: int, count: int) -> int:
    """The number of the bucket, of `count`, of a batch that begins with example `first`. It is the
    same in all processes, and after a restart."""
    return int(np.random.default_rng([seed, first]).integers(count)) if count > 1 else 0


class Batches:
    """The batches of a run's next steps: dicts of arrays with a first axis of [rows]. This process
    only makes the rows that its devices hold.

    Iterating makes two batches at a time, so that no thread waits for the slowest image of a batch.
    With workers, each worker makes whole batches, so that the content does not depend on their
    number. Grain reads batch k as `batches[k]`.
    """

    def __init__(
        self, buckets: Sequence["Bucket"], rows: np.ndarray, batch_size: int, *, steps: int,
        threads: int, workers: int, first: int = 0, limit: int | None = None, seed: int = 0,
    ):  # fmt: skip
        self.buckets, self.seed, self.rows, self.batch_size = buckets, seed, rows, batch_size
        self.steps, self.first, self.limit, self.workers = steps, first, limit, workers
        self._threads = None if workers else ThreadPoolExecutor(max(1, threads), "examples")

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        empty = SharedMemoryArray if self.workers else np.empty  # Grain does not copy shared memory
        first = self.first + int(step) * self.batch_size
        bucket = self.buckets[drawn(self.seed, first, len(self.buckets))]
        batch: Batch = {
            name: empty((len(self.rows), *value.shape), value.dtype)
            for name, value in bucket.filler.items()
        }

        def fill(part: range) -> None:
            for row in part:
                number = first + int(self.rows[row])
                past = self.limit is not None and number >= self.limit
                example = bucket.filler if past else bucket.examples[number]
                for name, value in example.items():
                    batch[name][row] = value

        parts = [
            range(row, min(row + PART, len(self.rows))) for row in range(0, len(self.rows), PART)
        ]
        try:
            for _ in self._threads.map(fill, parts) if self._threads else map(fill, parts):
                pass
        except BaseException:
            for shared in batch.values() if self.workers else ():
                shared.unlink_on_del()
            raise
        return batch

    @property
    def dataset(self) -> grain.IterDataset:
        """The batches in order. They are made in the background."""
        dataset = grain.MapDataset.source(self)
        if not self.workers:
            return dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers ask for them
        read_options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=2)
        return dataset.to_iter_dataset(read_options).mp_prefetch(
            options, worker_init_fn=_live_as_long_as_the_run
        )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.dataset)

    def close(self) -> None:
        """Ends the threads. A batch that is being made fails."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)


def rows_of_process(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process's devices hold, in order."""
    held = sharding.addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[where] for where in held.values()]))


def train_batches(
    source: Source, pipeline: Pipeline, shape: tuple[int, int, int], entries: Entries, *, seed: int,
    batch_size: int, rows: np.ndarray, examples_seen: int, steps: int, threads: int, workers: int,
) -> Batches:  # fmt: skip
    """Batches of the next `steps` steps of a run that has seen `examples_seen` examples.

    Every epoch has each example once, in a new order. A batch has `image` uint8
    [rows, H, W, C], `id` and `damaged` int64 [rows], and the task's entries. H and W are those of
    `shape`, or of a bucket of the pipeline.
    """
    prepares = [
        Prepare(source, pipeline.at(size), (*size, shape[-1]), entries, training=True)
        for size in pipeline.sizes or [shape[:2]]
    ]
    order = _order(source, seed)
    return Batches(
        [Bucket(order.random_map(prepare), prepare.filler()) for prepare in prepares], rows,
        batch_size, steps=steps, first=examples_seen, threads=threads, workers=workers, seed=seed,
    )  # fmt: skip


def _order(source: Source, seed: int) -> grain.MapDataset:
    """Numbers of examples, epoch after epoch. A mixture draws from its sources by their weights."""

    def shuffled(first: int, end: int) -> grain.MapDataset:
        return grain.MapDataset.range(first, end).seed(seed).shuffle().repeat()

    if not isinstance(source, Mixture) or not source.weights:
        return shuffled(0, len(source))
    ends = [0, *source.ends.tolist()]
    parts = [shuffled(first, end) for first, end in itertools.pairwise(ends)]
    return grain.MapDataset.mix(parts, source.weights).seed(seed)


def eval_batches(
    source: Source, pipeline: Pipeline, shape: tuple[int, int, int], entries: Entries, *,
    batch_size: int, rows: np.ndarray, threads: int, workers: int = 0,
) -> Batches:  # fmt: skip
    """Batches that hold every example once, in order. The last one is filled up with empty rows,
    whose id is -1."""
    if pipeline.random:
        raise UserError(f"data.eval.pipeline {pipeline.text!r} is random: evaluation is not")
    prepare = Prepare(source, pipeline, shape, entries, training=False)
    examples = grain.MapDataset.range(len(source)).map(prepare.map)
    return Batches(
        [Bucket(examples, prepare.filler())], rows, batch_size, threads=threads, workers=workers,
        steps=-(-len(source) // batch_size), limit=len(source),
    )  # fmt: skip


def _live_as_long_as_the_run(worker: int, workers: int) -> None:
    """Makes a worker ignore Ctrl-C and SIGTERM, which terminals and schedulers send to it, too: the
    run needs batches until it has saved. The worker ends when the run has ended in any way."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        if run := multiprocessing.parent_process():
            run.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class OnDevice:
    """Iterates over (host part, device part) of batches. `prefetch` batches are prepared in the
    background. The host part has `id` and `damaged` of this process's rows. The device part is the
    global batch, sharded, with both as int32."""

    def __init__(self, batches: Batches, sharding: NamedSharding, prefetch: int = 2):
        def put(batch: Batch) -> tuple[Batch, Batch]:
            numbers = {name: batch[name] for name in ("id", "damaged")}
            whole = batch | {name: n.astype(np.int32) for name, n in numbers.items()}
            device = {
                name: jax.make_array_from_process_local_data(
                    sharding, values, (batches.batch_size, *values.shape[1:])
                )
                for name, values in whole.items()
            }
            self._made.release()
            return numbers, device

        ahead = grain.experimental.ThreadPrefetchIterDataset(
            batches.dataset.map(put), prefetch_buffer_size=max(1, prefetch)
        )
        self._batches, self._iterator = batches, iter(ahead)
        self._made, self._there = threading.Semaphore(0), False
        self._workers: list[Any] = []

    def __iter__(self) -> Iterator[tuple[Batch, Batch]]:
        return self

    def wait(self, idle: Callable[[], bool]) -> None:
        """Returns when the next batch is ready, or `idle()` is true."""
        while not self._there and not idle():
            self._there = self._made.acquire(timeout=POLL)

    def __next__(self) -> tuple[Batch, Batch]:
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            dead = [f"process {p.pid}" for p in self._workers if p.exitcode is not None]
            raise Stopped(
                f"a data worker was killed ({', '.join(dead) or 'at once'}); if "
                "memory was too small, take fewer --config.data.workers. Start again: the run goes "
                "on from its last checkpoint",
                RESTART,
            ) from error
        if not self._there:
            self._made.acquire()
        self._there = False
        if len(self._workers) < self._batches.workers:  # they start one by one
            self._workers = multiprocessing.active_children()
        return batch

    def close(self) -> None:
        """Ends the background thread and worker processes."""
        self._batches.close()
        self._iterator.close()
