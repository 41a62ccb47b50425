"""Sources whose images tell their number, and short ways to their batches."""

import numpy as np
from made_images import smooth

from vit_jax.data import pipeline
from vit_jax.data.memory import Arrays
from vit_jax.data.pipeline_text import parse
from vit_jax.tasks.classification import Labels

SHAPE = (8, 8, 3)
EXAMPLES = 37  # a prime, which no batch divides


def numbered(examples: int = EXAMPLES) -> Arrays:
    """Smooth images, of which the top left pixel holds the number; labels are it modulo 5."""
    images = np.repeat(smooth(8, 8)[None], examples, axis=0)
    images[:, 0, 0] = np.arange(examples)[:, None]
    return Arrays("numbered", images, np.arange(examples) % 5, list("abcde"))


def training(source=None, *, text="decode|shift(1)|rotate(20)", seed=0, batch_size=8, rows=None,
             seen=0, steps=5, threads=1, workers=0, shape=SHAPE):  # fmt: skip
    """The batches of a run's next steps, as a list."""
    rows = np.arange(batch_size) if rows is None else rows
    source = numbered() if source is None else source
    return list(
        pipeline.train_batches(
            source, parse(text, shape[:2], imports=True), shape, labels_of(source), seed=seed,
            batch_size=batch_size, rows=rows, examples_seen=seen, steps=steps, threads=threads,
            workers=workers,
        )
    )  # fmt: skip


def evaluation(source=None, *, text="decode", batch_size=8, rows=None, threads=1):
    """The batches of one evaluation, as a list."""
    rows = np.arange(batch_size) if rows is None else rows
    source = numbered() if source is None else source
    return list(
        pipeline.eval_batches(
            source, parse(text, SHAPE[:2]), SHAPE, labels_of(source),
            batch_size=batch_size, rows=rows, threads=threads,
        )
    )  # fmt: skip


def labels_of(source):
    """What a classifier keeps of a source's examples."""
    return Labels(source.max_labels, len(source.classes))


def joined(batches, name="id"):
    """One entry of all batches in a row."""
    return np.concatenate([batch[name] for batch in batches])


def assert_same(one, two):
    """Bit for bit the same batches."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])
