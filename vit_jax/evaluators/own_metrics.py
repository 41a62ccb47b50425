"""Metrics of the user's own, by their import paths: `my_package.my_module:macro_f1`.

A metric is a function of scores and labels, NumPy arrays of a whole split, to a number, or to a
dictionary of numbers by their names. Scores are float32 [examples, classes]: the logits, or, over
several views of each image, logarithms of mean probabilities. Labels are int32 [examples], or
[examples, max_labels] of examples that may have several, filled up with numbers below 0.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax import calls
from vit_jax.errors import UserError, printable
from vit_jax.user_code import imported

TAKES = "a metric takes scores [examples, classes] and labels, and returns a number"
NAME = re.compile(r"[\w.@+-]+")  # a part of eval/NAME/METRIC, and a word of `best`
MOST_CLASSES = 1000  # of which a metric is tried on made-up scores


@dataclasses.dataclass(frozen=True)
class Metric:
    """A function of the user's own with its further arguments. `name` is what its number is called
    (the function's name by default), or how the names of its numbers begin."""

    call: str  # as the config has it
    function: Callable
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    name: str | None = None

    def of(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metric's numbers of a split. Raises UserError: it fails, or returns no numbers."""
        scores, labels = (_read_only(values) for values in (scores, labels))
        try:
            found = self.function(scores, labels, *self.arguments, **self.options)
            if isinstance(found, dict):
                start = f"{self.name}_" if self.name else ""
                return {f"{start}{name}": _number(value) for name, value in found.items()}
            return {self.name or calls.name_of(self.call).partition(":")[2]: _number(found)}
        except UserError:
            raise
        except Exception as error:  # the user's function may raise anything
            said = printable(str(error).strip().partition("\n")[0])[:300]
            raise UserError(
                f"metric {self.call}: {type(error).__name__}: {said}; {TAKES}"
            ) from error

    def tried(self, num_classes: int, max_labels: int) -> dict[str, float]:
        """The metric's numbers of made-up scores, in which each class occurs twice; none of many
        classes, because the scores would be large.

        Raises UserError: it fails, or returns what is NaN, infinite or has no fit name.
        """
        if num_classes > MOST_CLASSES:
            return {}
        rng = np.random.default_rng(0)
        labels = np.tile(np.arange(num_classes, dtype=np.int32), 2)
        scores = rng.standard_normal((len(labels), num_classes), np.float32)
        if max_labels > 1:
            more = np.full((len(labels), max_labels - 1), -2, np.int32)
            labels = np.concatenate([labels[:, None], more], axis=1)
        found = self.of(scores, labels)
        for name, value in found.items():
            if not NAME.fullmatch(name):
                raise UserError(f"metric {self.call}: {name!r} cannot be the name of a metric")
            if not np.isfinite(value):
                raise UserError(
                    f"metric {self.call}: {name} is {value} for random scores, with each class "
                    "twice among the labels"
                )
        return found


def merged(measured: dict[str, float], metric: Metric, own: dict[str, float]) -> dict[str, float]:
    """What was measured, and a metric's numbers. Raises UserError if two have one name."""
    if twice := sorted(own.keys() & measured.keys()):
        raise UserError(
            f"metric {metric.call}: there is another metric {twice[0]}; give it a name, as in "
            "my_package.my_module:f(name='…')"
        )
    return measured | own


def metrics_named(text: str | None) -> list[Metric]:
    """The metrics that a text names, joined by `|`.

    Raises UserError: there is no such function, or it does not take the arguments.
    """
    hint = "write them as my_package.my_module:macro_f1|my_package.my_module:f(beta=2, name='f2')"
    return calls.made(text, {}, "metric", hint, own=kind) if text else []


def kind(path: str) -> Callable[..., Metric]:
    """What makes a metric of the arguments of a call, by the function's import path."""
    return kind_of(path, imported(path, "a metric"))


def kind_of(path: str, function: Any) -> Callable[..., Metric]:
    """As `kind`, of a function that is imported."""
    if not callable(function) or isinstance(function, type):
        raise UserError(f"metric {path} is no function: {TAKES}")

    @functools.wraps(function)
    def made(*arguments: Any, name: str | None = None, **options: Any) -> Metric:
        inspect.signature(function).bind(None, None, *arguments, **options)
        given = [*map(repr, arguments), *(f"{key}={value!r}" for key, value in options.items())]
        given += [f"name={name!r}"] if name else []
        call = path + (f"({', '.join(given)})" if given else "")
        return Metric(call, function, arguments, options, name)

    return made


def _number(value: Any) -> float:
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "buif":
        raise TypeError(f"it returns {array.dtype} {list(array.shape)}")
    return float(array)


def _read_only(values: np.ndarray) -> np.ndarray:
    view = values.view()
    view.flags.writeable = False
    return view
