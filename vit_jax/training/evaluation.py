"""The evaluation split, and whatever else `evaluators` names, measured with a run's weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.data import ops
from vit_jax.data.pipeline import Prepare
from vit_jax.data.source import PADDING, Subset
from vit_jax.data.sources import Source, open_source
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import Rows
from vit_jax.evaluators.named import Classification, Evaluator, OfFeatures, parse
from vit_jax.training.groups import merged, trainable
from vit_jax.training.optimizer import averaged

if TYPE_CHECKING:
    from vit_jax.training.run import Run

IN_FLIGHT = 4  # batches queued on the device at most


@dataclasses.dataclass(frozen=True)
class Opened:
    """An evaluator with its data: the split that is measured and, of frozen features, the examples
    that are learned from; `every` so many steps."""

    evaluator: Evaluator
    test: Source
    train: Source | None
    pipeline: str
    every: int

    @property
    def name(self) -> str:
        return str(self.evaluator.name)


def open_evaluators(
    c: ConfigDict, classes: list[str] | None, main: Source | None, epoch: int
) -> list[Opened]:
    """That of `data.eval` (over its source `main`), then those of `c.evaluators`; an epoch is of
    so many examples.

    Raises UserError: an evaluator that is none, or whose data is not there or has several labels.
    """
    opened = []
    if main is not None:
        own = Classification(name=c.data.eval.split)
        opened.append(Opened(own, main, None, c.data.eval.pipeline, c.eval_every_steps))
    for one in parse(c.evaluators):
        source = one.source or c.data.eval.source or c.data.train.source
        split = one.split or c.data.eval.split
        if not split:
            raise UserError(f"evaluator {one.name}: name its split, as in split='test'")
        train = None
        if isinstance(one, OfFeatures):
            train = open_source(source, one.train_split)
            test = open_source(source, split, train.classes)
            if max(train.max_labels, test.max_labels) > 1:
                raise UserError(f"evaluator {one.name} wants one label an example, not several")
            if count := one.shots():
                train = Subset.of_each_class(train, count)
        else:
            test = open_source(source, split, classes)
        _check_labels(one, f"{source}, split {split!r},", test)
        every = one.every_steps or c.eval_every_steps
        if one.every_epochs:
            every = max(1, round(one.every_epochs * epoch / c.batch_size))
        opened.append(Opened(one, test, train, one.pipeline or c.data.eval.pipeline, every))
    names = [one.name + suffix for one in opened for suffix in ("", "_ema")[: 1 + bool(c.ema)]]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two evaluators are called {name!r}: give one of them name='…'")
    return opened


def check_evaluators(opened: list[Opened], shape: tuple[int, int, int]) -> None:
    """Refuses an evaluator whose pipeline does not make the model's images of its first example.

    Raises UserError.
    """
    for one in opened:
        parsed = ops.parse(one.pipeline, shape[:2], imports=True, channels=shape[2])
        if parsed.random:
            raise UserError(f"evaluator {one.name}: its pipeline {one.pipeline!r} is random")
        for source in filter(None, (one.test, one.train)):
            Prepare(source, parsed, shape, training=False).map(0)


def _check_labels(one: Evaluator, where: str, source: Source) -> None:
    """Refuses a split whose first example has no label, as published test sets have none."""
    with contextlib.suppress(OSError):
        label = np.atleast_1d(source[0]["label"])
        if source.max_labels == 1 and (not label.size or label[0] < 0):
            raise UserError(f"evaluator {one.name}: {where} has no labels")


def due(run: Run, step: int) -> list[Opened]:
    """The evaluators that are to measure after a step."""
    last = step == run.config.total_steps
    return [one for one in run.evaluators if last or step % one.every == 0]


def judged(run: Run, state: Any) -> dict[str, Any]:
    """Weights by what their metrics' names end in: those that are trained (or that the optimiser
    wants to be judged by), and their moving average."""
    c = run.config.optimizer
    own = averaged(c.name, state["opt"], trainable(state["params"], c.freeze))
    weights = {"": state["params"] if own is None else merged(own, state["params"])}
    return weights | ({"_ema": merged(state["ema"], state["params"])} if "ema" in state else {})


def measured(
    run: Run, evaluators: list[Opened], state: Any, say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, float]]]:
    """(name, metrics) of each evaluator, of each kind of weights."""
    for suffix, params in judged(run, state).items():
        for one in evaluators:
            yield one.name + suffix, measure_one(run, one, params, say)[0]


def measure(run: Run, params: Any, say: Callable[[str], None]) -> dict[str, float]:
    """The metrics of the evaluation split."""
    return measure_one(run, run.evaluators[0], params, say)[0]


def measure_one(
    run: Run, one: Opened, params: Any, say: Callable[[str], None]
) -> tuple[dict[str, float], Rows]:
    """An evaluator's metrics with some weights, and the rows of the split that they are made of."""
    evaluator: Any = one.evaluator
    reads = evaluator.reads(one.test.max_labels)
    rows, damaged = collect(run, reads, params, one.test, one.pipeline, say)
    if one.train is None:
        names = [one.test.describe(int(i)) for i in rows["index"]] if evaluator.named else []
        found = evaluator.measure(rows, names)
    else:
        train, lost = collect(run, reads, params, one.train, one.pipeline, say)
        damaged += lost
        found = evaluator.measure(train, rows, len(one.train.classes))
        found["examples"] = len(rows["label"])
    return found | {"damaged_images": damaged}, rows


def collect(
    run: Run, reads: str, params: Any, source: Source, pipeline: str, say: Callable[[str], None]
) -> tuple[Rows, int]:
    """What a compiled step says of each example of a source, in order, with its number as `index`;
    and how many images were damaged and left out."""
    step, batches = run.row_steps[reads], run.eval_batches(source, pipeline)
    waiting: deque[Any] = deque()
    parts: list[Rows] = []
    try:
        for host, batch in batches:
            report_damaged(run, source, host["damaged"], say)
            waiting.append(step(params, batch))
            if len(waiting) > IN_FLIGHT:
                parts.append(jax.device_get(waiting.popleft()))
    finally:
        batches.close()
    parts += jax.device_get(list(waiting))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    there = (rows["label"] if rows["label"].ndim == 1 else rows["label"][:, 0]) != PADDING
    rows = {name: values[there] for name, values in rows.items()}
    return rows | {"index": np.flatnonzero(there)}, len(source) - int(there.sum())


def report_damaged(
    run: Run, source: Source | None, ids: np.ndarray, say: Callable[[str], None]
) -> None:
    """Names the damaged images among this process's rows of a batch.

    Raises UserError at the first one where `data.damaged` is `fail`.
    """
    found = [int(index) for index in ids if index >= 0]
    for index in found:
        name = source.describe(index) if source else index
        if run.config.data.damaged == "fail":
            raise UserError(f"damaged image {name} (--config.data.damaged=skip goes on without it)")
        say(f"damaged image skipped: {name}")
