"""Evaluators by name: `fewshot('folder:FLOWERS')|knn('folder:FLOWERS', every_steps=500)`.

Each says what it reads (`reads`) and makes numbers of the rows it is given; opening data and
running the model is the caller's. An evaluator of the user's own goes by its import path, and so
does a metric (`own_metrics.py`).
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vit_jax import calls
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.evaluators import classification, frozen
from vit_jax.evaluators.classification import Rows
from vit_jax.evaluators.own_metrics import Metric, kind_of, merged, metrics_named
from vit_jax.user_code import imported

REAL_NUMBER = re.compile(r"_val_0*(\d+)")  # an ImageNet validation image's number, from 1


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The arguments of every evaluator: the data (by default that of `data.eval`), the pipeline of
    its images, how often to measure, and the NAME in the metrics `eval/NAME/METRIC`.

    `measure(rows, names)` returns the metrics of a split's rows. `names` are the names of the
    examples if `named`, else empty."""

    source: str | None = None
    split: str | None = None
    pipeline: str | None = None
    every_steps: int | None = None
    every_epochs: float | None = None
    name: str | None = None

    kind: ClassVar[str]
    named: ClassVar[bool] = False  # whether `measure` needs the examples' names
    # A function of the rows of several views of the same examples (outputs of the step `scores`, as
    # an iterable) to one row of each example; None if it has no such function.
    joined: ClassVar[Any] = None

    def reads(self, source: Source) -> str:
        """The name of the task's compiled step (`Task.judge`) whose outputs it reads."""
        return "rows"

    def check(self, source: Source, outputs: int) -> Sequence[str]:
        """The names of its metrics; none if only measuring shows them.

        Raises UserError if it cannot measure such data of a model with so many outputs."""
        return ()

    def called(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics by what people call them."""
        return metrics

    def __post_init__(self) -> None:
        """Raises ValueError for arguments that cannot work."""
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError("every_steps and every_epochs exclude each other")
        for key, kind in (("every_steps", int), ("every_epochs", int | float)):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, kind) or value <= 0):
                raise ValueError(f"{key} is a number above 0")
        for key in ("source", "split", "pipeline", "name", "labels", "train_split"):
            if not isinstance(getattr(self, key, None), str | None):
                raise ValueError(f"{key} is a text in quotes")


@dataclasses.dataclass(frozen=True)
class Means(Evaluator):
    """The mean of each of the step's outputs: the evaluation of a task that has no other one."""

    kind = "means"

    def measure(self, rows: Rows, names: list[str]) -> dict[str, float]:
        means = {
            name: float(values.astype(np.float64).mean())
            for name, values in rows.items() if name not in ("id", "index")
        }  # fmt: skip
        return means | {"examples": len(rows["index"])}


@dataclasses.dataclass(frozen=True)
class Classification(Evaluator):
    """The metrics of `classification.metrics`, and `metrics` of the user's own, joined by `|`. With
    `subset`, the model may only choose among the classes that occur in the split."""

    subset: bool = False
    metrics: str | None = None
    kind = "classification"
    joined = staticmethod(classification.mean_of_views)

    def __post_init__(self) -> None:
        super().__post_init__()
        metrics_named(self.metrics)

    def reads(self, source: Source) -> str:
        return "scores" if self.subset or self.metrics or source.max_labels > 1 else "rows"

    def check(self, source: Source, outputs: int) -> Sequence[str]:
        known = dict.fromkeys(classification.METRICS, 0.0)
        for metric in metrics_named(self.metrics):
            known = merged(known, metric, metric.tried(outputs, source.max_labels))
        return tuple(known)

    def measure(self, rows: Rows, names: list[str]) -> dict[str, float]:
        if self.subset and rows["label"].ndim == 1 and len(rows["label"]):
            rows = classification.within(rows, np.unique(rows["label"]))
        measured = classification.metrics(rows)
        for metric in metrics_named(self.metrics) if len(rows["label"]) else ():
            measured = merged(measured, metric, metric.of(rows["scores"], rows["label"]))
        return measured


@dataclasses.dataclass(frozen=True)
class Real(Evaluator):
    """ImageNet-ReaL (arXiv 2006.07159): `real_accuracy` on the 50,000 validation images. `labels`
    is the file real.json."""

    labels: str | None = None
    kind = "real"
    named = True
    joined = staticmethod(classification.mean_of_views)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.labels or not Path(self.labels).expanduser().is_file():
            raise ValueError(
                f"labels={self.labels!r} is no file: real.json is had from "
                "https://github.com/google-research/reassessed-imagenet"
            )

    def measure(self, rows: Rows, names: list[str]) -> dict[str, float]:
        try:
            labels = json.loads(Path(str(self.labels)).expanduser().read_text(encoding="utf-8"))
            matches = [REAL_NUMBER.search(name) for name in names]
            numbers = np.array([int(match[1]) - 1 for match in matches if match])
            if len(numbers) < len(names):
                name = names[matches.index(None)]
                raise UserError(
                    f"evaluator real: {name!r} is no validation image of ImageNet "
                    "(ILSVRC2012_val_00000001.JPEG)"
                )
            accuracy = classification.real_accuracy(rows["predicted"], numbers, labels)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"evaluator real: {self.labels} is no list of labels: {error}"
            ) from error
        return {"real_accuracy": accuracy, "examples": len(names)}


@dataclasses.dataclass(frozen=True)
class OfFeatures(Evaluator):
    """An evaluator of frozen features on a data set with its own classes. It learns from one split
    and measures another: `measure(train, test, num_classes)`."""

    train_split: str = "train"

    def reads(self, source: Source) -> str:
        return "features"

    def shots(self) -> int | None:
        """How many training examples of each class are needed; None for all."""
        return None


def _numbers(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError if a value is no list of numbers above 0."""
    several = value if isinstance(value, tuple | list) else ()
    right = [isinstance(n, kind) and not isinstance(n, bool) and n > 0 for n in several]
    if not right or not all(right):
        raise ValueError(f"{name} is a list of numbers above 0, such as (5, 10)")


@dataclasses.dataclass(frozen=True)
class FewShot(OfFeatures):
    """`accuracy_N` of least squares on N images of each class (ViT paper, section 4.1)."""

    n: tuple[int, ...] = (5, 10, 25)
    kind = "fewshot"

    def __post_init__(self) -> None:
        super().__post_init__()
        _numbers("n", self.n, int)

    def shots(self) -> int:
        return max(self.n)

    def called(self, metrics: dict[str, float]) -> dict[str, float]:
        """`5 shots`."""
        names = {f"accuracy_{n}": f"{n} shot{'s' if n > 1 else ''}" for n in self.n}
        return {names.get(key, key): value for key, value in metrics.items()}

    def measure(self, train: Rows, test: Rows, num_classes: int) -> dict[str, float]:
        accuracies = {}
        for n in self.n:
            chosen = first_of_each(train["label"], n)
            accuracy, _ = frozen.few_shot(
                train["features"][chosen], train["label"][chosen],
                test["features"], test["label"], num_classes,
            )  # fmt: skip
            accuracies[f"accuracy_{n}"] = accuracy
        return accuracies


@dataclasses.dataclass(frozen=True)
class Knn(OfFeatures):
    """`accuracy_K` of the K nearest training images (arXiv 1805.01978)."""

    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    kind = "knn"

    def __post_init__(self) -> None:
        super().__post_init__()
        _numbers("k", self.k, int)
        _numbers("temperature", (self.temperature,), int | float)

    def measure(self, train: Rows, test: Rows, num_classes: int) -> dict[str, float]:
        accuracies = frozen.nearest(
            train["features"], train["label"], test["features"], test["label"], num_classes,
            ks=self.k, temperature=self.temperature,
        )  # fmt: skip
        return {f"accuracy_{k}": accuracy for k, accuracy in accuracies.items()}

    def called(self, metrics: dict[str, float]) -> dict[str, float]:
        """`k=10`."""
        return {key.replace("accuracy_", "k="): value for key, value in metrics.items()}


@dataclasses.dataclass(frozen=True)
class LinearProbe(OfFeatures):
    """`accuracy` of logistic regression, its C (`best_c`) chosen from `grid` on training images."""

    grid: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0)
    kind = "linear_probe"

    def __post_init__(self) -> None:
        super().__post_init__()
        _numbers("grid", self.grid, int | float)

    def measure(self, train: Rows, test: Rows, num_classes: int) -> dict[str, float]:
        accuracy, best = frozen.linear_probe(
            train["features"], train["label"], test["features"], test["label"], grid=self.grid
        )
        return {"accuracy": accuracy, "best_c": best}


KINDS: dict[str, type[Evaluator]] = {
    one.kind: one for one in (Classification, Real, FewShot, Knn, LinearProbe)
}


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the first `count` examples of each class, in order."""
    order = np.argsort(labels, kind="stable")
    rank = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return np.sort(order[rank < count])


def parse(
    text: str | None, kinds: dict[str, type[Evaluator]] = KINDS
) -> tuple[list[Evaluator], str | None]:
    """The evaluators that a string names, joined by `|`, and the metrics among them, as a string.
    Each task has its own `kinds`.

    Raises UserError: an unknown evaluator (with the nearest names), arguments that it does not
    take, what cannot be imported, or two evaluators with the same name.
    """
    hint = "write them as fewshot('folder:PATH')|knn('folder:PATH', every_steps=500)"
    parsed = calls.made(text, kinds, "evaluator", hint, own=_own) if text else []
    metrics = [one.call for one in parsed if isinstance(one, Metric)]
    evaluators = [
        dataclasses.replace(e, name=e.name or getattr(e, "kind", type(e).__name__))
        for e in parsed if not isinstance(e, Metric)
    ]  # fmt: skip
    check_names([str(evaluator.name) for evaluator in evaluators])
    return evaluators, "|".join(metrics) or None


def _own(path: str) -> Any:
    """The user's own subclass of Evaluator, or what makes a metric of their function."""
    found = imported(path, "an evaluator")
    if not isinstance(found, type):
        return kind_of(path, found)
    if not issubclass(found, Evaluator) or not dataclasses.is_dataclass(found):
        raise UserError(
            f"evaluator {path} is no dataclass that is a vit_jax.evaluators.named.Evaluator, and "
            "no function of scores and labels"
        )
    return found


def check_names(names: list[str]) -> None:
    """Raises UserError if two evaluators have the same name."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two evaluators are called {name!r}: give one of them name='…'")
