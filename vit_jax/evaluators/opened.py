"""Evaluators with their data: what they measure, what they learn from, and how often."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vit_jax.data import pipeline_text
from vit_jax.data.pipeline import Entries, Prepare
from vit_jax.data.source import GIVES_BOXES, Facts, Source, Subset
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError, nearest
from vit_jax.evaluators.named import Evaluator, OfFeatures, check_names
from vit_jax.ranking import ranked_by


@dataclasses.dataclass(frozen=True)
class Opened:
    """An evaluator with its data: the split `test` that is measured, and for frozen features the
    examples `train` that it learns from. It runs every `every` steps."""

    evaluator: Evaluator
    test: Source
    train: Source | None
    pipeline: pipeline_text.Pipeline
    every: int
    metrics: Sequence[str] = ()  # their names; none if only measuring shows them

    @property
    def name(self) -> str:
        return str(self.evaluator.name)


def open_evaluators(
    c: ConfigDict, asked: list[Evaluator], metrics: str | None, own: type[Evaluator],
    classes: list[str] | None, main: Source | None, epoch: int, pipeline: pipeline_text.Pipeline,
    shape: tuple[int, int, int],
) -> list[Opened]:  # fmt: skip
    """The task's `own` evaluator of the source `main` of `data.eval`, with `metrics` of the user's
    own, then those `asked` for. An epoch is of `epoch` examples. `pipeline` is that of `data.eval`,
    `shape` that of the images.

    Raises UserError: an evaluator's data is missing or has several labels, names are equal, or a
    metric cannot be had.
    """
    opened = []
    more: dict[str, Any] = {}
    if metrics:
        if main is None:
            raise UserError(
                f"{metrics} is measured on data.eval, which has no split: --config.data.eval.split"
            )
        if "metrics" not in own.__dataclass_fields__:
            raise UserError(
                f"{metrics} is a function of scores and labels, which task={c.task} does not have"
            )
        more = {"metrics": metrics}
    if main is not None:
        first = own(name=c.data.eval.split, **more)
        known = first.check(main, c.model.num_classes)
        opened.append(Opened(first, main, None, pipeline, c.eval_every_steps, known))
    for evaluator in asked:
        source = evaluator.source or c.data.eval.source or c.data.train.source
        split = evaluator.split or c.data.eval.split
        if not split:
            raise UserError(f"evaluator {evaluator.name}: name its split, as in split='test'")
        train = None
        if isinstance(evaluator, OfFeatures):
            train = open_source(source, evaluator.train_split)
            _check_labels(evaluator, f"{source}, split {evaluator.train_split!r},", train)
            test = open_source(source, split, train.classes)
            if max(train.max_labels, test.max_labels) > 1:
                raise UserError(f"evaluator {evaluator.name} needs one label for each example")
            if count := evaluator.shots():
                train = Subset.of_each_class(train, count)
        else:
            test = open_source(source, split, classes)
        _check_labels(evaluator, f"{source}, split {split!r},", test)
        evaluator.check(test, c.model.num_classes)
        every = evaluator.every_steps or c.eval_every_steps
        if evaluator.every_epochs:
            every = max(1, round(evaluator.every_epochs * epoch / c.batch_size))
        parsed = pipeline
        if evaluator.pipeline:
            parsed = pipeline_text.parse(
                evaluator.pipeline, shape[:2], imports=True, channels=shape[2]
            )
        opened.append(Opened(evaluator, test, train, parsed, every))
    check_names([e.name + suffix for e in opened for suffix in ("", "_ema")[: 1 + bool(c.ema)]])
    return opened


def check_evaluators(
    opened: list[Opened], shape: tuple[int, int, int], entries: Callable[[Facts], Entries]
) -> None:
    """Prepares the first example of each evaluator's data.

    Raises UserError: the pipeline is random, it does not make images of the model's `shape`, or the
    example lacks entries that the task needs.
    """
    for entry in opened:
        if entry.pipeline.random:
            raise UserError(
                f"evaluator {entry.name}: its pipeline {entry.pipeline.text!r} is random"
            )
        for source in filter(None, (entry.test, entry.train)):
            kept = entries(Facts.of(source))
            Prepare(source, entry.pipeline, shape, kept, training=False).map(0)


def check_ranking(best: str, of_split: Opened) -> None:
    """Raises UserError if the evaluator of `data.eval` has no metric that `best` names."""
    name = ranked_by(best)[0]
    if of_split.metrics and name not in of_split.metrics:
        hint = nearest(name, of_split.metrics)
        raise UserError(f"best is {best!r}, and the evaluation has no {name}: {hint}")


def _check_labels(evaluator: Evaluator, where: str, source: Source) -> None:
    """Raises UserError if the first example has no label, as in many published test sets, or the
    source has boxes."""
    with contextlib.suppress(OSError):
        if source.max_objects:
            raise UserError(f"evaluator {evaluator.name}: {where} {GIVES_BOXES}")
        label = np.atleast_1d(source[0]["label"])
        if source.max_labels == 1 and (not label.size or label[0] < 0):
            raise UserError(f"evaluator {evaluator.name}: {where} has no labels")
