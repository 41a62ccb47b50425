"""Examples in order, prepared, batched and put on the devices.

Everything about example number g of a run (which image, which augmentation) is a function of
(seed, g), and a process reads the rows of the global batch that its devices hold. So a run
continues exactly from `examples_seen`, with any number of threads, workers or processes.
"""

import dataclasses
import signal
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from vit_jax.data.decode import DamagedImage, decode
from vit_jax.data.ops import Pipeline
from vit_jax.data.sources import Source
from vit_jax.errors import UserError

Batch = dict[str, Any]
PADDING = -1  # label of what fills the last evaluation batch
MAX_DAMAGED = 100  # in a row


@dataclasses.dataclass(frozen=True)
class Prepare(grain.transforms.RandomMap):
    """Example number of the source -> decoded, augmented, checked example.

    `damaged` is the number of a damaged image met on the way, or -1. In training the next image
    takes its place; in evaluation it is masked out.
    """

    source: Source
    pipeline: Pipeline
    shape: tuple[int, int, int]
    training: bool

    def random_map(self, element: int, rng: np.random.Generator | None) -> Batch:
        index, damaged = int(element), -1
        for _ in range(MAX_DAMAGED):
            try:
                example = self.source[index]
                image = example["image"]
                image = decode(image, self.shape[-1]) if isinstance(image, bytes) else image
            except (DamagedImage, OSError):
                damaged = int(element) if damaged < 0 else damaged
                if not self.training:
                    return self.filler() | {"damaged": np.int64(damaged)}
                index = (index + 1) % len(self.source)
                continue
            image = self.pipeline(image, rng)
            if image.shape != self.shape:
                raise UserError(
                    f"pipeline {self.pipeline.text!r} makes {self.source.describe(index)} "
                    f"{list(image.shape)}, but the model takes {list(self.shape)}"
                )
            label = np.int32(example["label"])
            return {
                "image": image, "label": label, "id": np.int64(index), "damaged": np.int64(damaged),
            }  # fmt: skip
        raise UserError(
            f"{MAX_DAMAGED} images in a row are damaged, from {self.source.describe(int(element))}"
        )

    def map(self, element: int) -> Batch:
        """Without randomness, for evaluation."""
        return self.random_map(element, None)

    def filler(self) -> Batch:
        """What stands in a row that counts for nothing."""
        return {
            "image": np.zeros(self.shape, np.uint8), "label": np.int32(PADDING),
            "id": np.int64(-1), "damaged": np.int64(-1),
        }  # fmt: skip


class Share:
    """Rows of the global batches that this process feeds, by number, as Grain reads them."""

    def __init__(self, examples, rows: np.ndarray, batch_size: int, first: int, steps: int,
                 limit: int | None = None, filler: Batch | None = None):  # fmt: skip
        self.examples, self.rows, self.batch_size = examples, rows, batch_size
        self.first, self.steps, self.limit, self.filler = first, steps, limit, filler

    def __len__(self) -> int:
        return self.steps * len(self.rows)

    def __getitem__(self, number: int) -> Batch:
        step, row = divmod(int(number), len(self.rows))
        index = self.first + step * self.batch_size + int(self.rows[row])
        if self.limit is not None and index >= self.limit:
            return self.filler  # type: ignore[return-value]
        return self.examples[index]


def rows_of_process(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process's devices hold, in order."""
    held = sharding.addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[where] for where in held.values()]))


def train_dataset(
    source: Source, pipeline: Pipeline, shape: tuple[int, int, int], *, seed: int, batch_size: int,
    rows: np.ndarray, examples_seen: int, steps: int, threads: int, workers: int,
) -> grain.IterDataset:  # fmt: skip
    """Batches of the next `steps` steps of a run that has seen `examples_seen` examples.

    Every epoch has each example once, in an order of its own. A batch is a dict of arrays:
    `image` uint8 [rows, H, W, C], `label` int32, `id` and `damaged` int64 [rows].
    """
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    examples = order.random_map(Prepare(source, pipeline, shape, training=True))
    share = Share(examples, rows, batch_size, examples_seen, steps)
    return _batched(share, len(rows), threads, workers)


def eval_dataset(
    source: Source, pipeline: Pipeline, shape: tuple[int, int, int], *, batch_size: int,
    rows: np.ndarray, threads: int, workers: int = 0,
) -> grain.IterDataset:  # fmt: skip
    """Batches that hold every example once, in order; the last one is padded with label -1."""
    if pipeline.random:
        raise UserError(f"data.eval.pipeline {pipeline.text!r} is random: evaluation is not")
    prepare = Prepare(source, pipeline, shape, training=False)
    examples = grain.MapDataset.range(len(source)).map(prepare.map)
    steps = -(-len(source) // batch_size)
    share = Share(examples, rows, batch_size, 0, steps, len(source), prepare.filler())
    return _batched(share, len(rows), threads, workers)


def _batched(share: Share, rows: int, threads: int, workers: int) -> grain.IterDataset:
    examples = grain.MapDataset.source(share)
    if workers:
        # A worker makes whole batches, so their content does not depend on how many there are.
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers ask for them
        one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = examples.batch(rows).to_iter_dataset(one)
        return batches.mp_prefetch(options, worker_init_fn=_leave_interrupts_to_the_run)
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * rows, threads))
    return examples.to_iter_dataset(ahead).batch(rows)


def _leave_interrupts_to_the_run(worker: int, workers: int) -> None:
    """A terminal sends Ctrl-C to the workers too, which must feed the run until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class OnDevice:
    """Iterates over (host part, device part) of batches, `prefetch` of them on the way in the
    background. The host part has `id` and `damaged`; the device part is global and sharded."""

    def __init__(self, dataset: grain.IterDataset, sharding: NamedSharding, prefetch: int):
        def put(batch: Batch) -> tuple[Batch, Batch]:
            device = {
                name: jax.make_array_from_process_local_data(sharding, batch[name])
                for name in ("image", "label")
            }
            return {name: batch[name] for name in ("id", "damaged")}, device

        ahead = grain.experimental.ThreadPrefetchIterDataset(
            dataset.map(put), prefetch_buffer_size=max(1, prefetch)
        )
        self._iterator = iter(ahead)

    def __iter__(self) -> Iterator[tuple[Batch, Batch]]:
        return self

    def __next__(self) -> tuple[Batch, Batch]:
        return next(self._iterator)

    def close(self) -> None:
        """Ends the background thread and worker processes."""
        self._iterator.close()
