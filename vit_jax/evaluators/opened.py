"""Evaluators with their data: what they measure, what they learn from, and how often."""

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from vit_jax.data import ops
from vit_jax.data.pipeline import Entries, Prepare
from vit_jax.data.source import Facts, Source, Subset
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError
from vit_jax.evaluators.named import Evaluator, OfFeatures


@dataclasses.dataclass(frozen=True)
class Opened:
    """An evaluator with its data: the split that is measured and, of frozen features, the examples
    that are learned from; `every` so many steps."""

    evaluator: Evaluator
    test: Source
    train: Source | None
    pipeline: ops.Pipeline
    every: int

    @property
    def name(self) -> str:
        return str(self.evaluator.name)


def open_evaluators(
    c: ConfigDict, asked: list[Evaluator], own: type[Evaluator], classes: list[str] | None,
    main: Source | None, epoch: int, pipeline: ops.Pipeline, shape: tuple[int, int, int],
) -> list[Opened]:  # fmt: skip
    """The task's `own` of `data.eval` (over its source `main`), then those `asked` for; an epoch
    is of so many examples. `pipeline` is that of `data.eval`, `shape` that of the model's images.

    Raises UserError: an evaluator that is none, or whose data is not there or has several labels.
    """
    opened = []
    if main is not None:
        first = own(name=c.data.eval.split)
        opened.append(Opened(first, main, None, pipeline, c.eval_every_steps))
    for one in asked:
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
        parsed = pipeline
        if one.pipeline:
            parsed = ops.parse(one.pipeline, shape[:2], imports=True, channels=shape[2])
        opened.append(Opened(one, test, train, parsed, every))
    names = [one.name + suffix for one in opened for suffix in ("", "_ema")[: 1 + bool(c.ema)]]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two evaluators are called {name!r}: give one of them name='…'")
    return opened


def check_evaluators(
    opened: list[Opened], shape: tuple[int, int, int], entries: Callable[[Facts], Entries]
) -> None:
    """Refuses an evaluator whose pipeline does not make the model's images of its first example, or
    whose example is none of the task's.

    Raises UserError.
    """
    for one in opened:
        if one.pipeline.random:
            raise UserError(f"evaluator {one.name}: its pipeline {one.pipeline.text!r} is random")
        for source in filter(None, (one.test, one.train)):
            kept = entries(Facts.of(source))
            Prepare(source, one.pipeline, shape, kept, training=False).map(0)


def _check_labels(one: Evaluator, where: str, source: Source) -> None:
    """Refuses a split whose first example has no label, as published test sets have none."""
    with contextlib.suppress(OSError):
        label = np.atleast_1d(source[0]["label"])
        if source.max_labels == 1 and (not label.size or label[0] < 0):
            raise UserError(f"evaluator {one.name}: {where} has no labels")
