"""The space that a sweep searches: read from text (`optimizer.lr=1e-3,3e-3;seed=0,1`,
`seed=uniform(0,9)`) or from a `sweep()` in a recipe, and checked against the recipe's config.

Values are of the kinds that Optuna can store: numbers, texts, booleans and None.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from vit_jax import calls, recipe
from vit_jax.config import check_read, check_tree, check_values, leaves, set_by_user
from vit_jax.errors import UserError, printable

HINT = "write KEY=VALUE,VALUE;KEY=log(LOW,HIGH), or name a file that has a sweep()"
KWARGS = "optimizer.kwargs"
Point = dict[str, Any]  # key -> value of one trial


@dataclasses.dataclass(frozen=True)
class Space:
    """The values or the range of each key, and the points if they are listed one by one."""

    distributions: dict[str, BaseDistribution]
    listed: list[Point] | None = None

    @property
    def ranges(self) -> list[str]:
        """The keys that have a range instead of a list of values."""
        return [k for k, d in self.distributions.items() if hasattr(d, "low")]

    @property
    def points(self) -> list[Point]:
        """The listed points, or else the grid of all values."""
        if self.listed is not None:
            return self.listed
        names = list(self.distributions)
        values = [_ends(d) for d in self.distributions.values()]
        return [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]

    def __str__(self) -> str:
        if self.listed is not None:
            return " | ".join(in_words(point) for point in self.listed)
        return "; ".join(f"{key}={_in_words(d)}" for key, d in self.distributions.items())


def read(text: str | None, spec: str, config: ConfigDict) -> Space:
    """Reads `--sweep=TEXT`: an expression, a file of such lines, or a Python file with a `sweep()`.
    Without a text, it is the `sweep()` of the recipe `spec`.

    Raises UserError for a text that cannot be read, an unknown key (with the nearest), and a value
    that the key does not take or that does not work with the rest of the config.
    """
    file = Path((text or spec).partition(":")[0])
    if text is None or file.suffix == ".py":
        declared = recipe.sweep(text or spec)
    else:
        if "=" not in text and not file.is_file():
            raise UserError(f"sweep {text!r} is no file and sets no key: {HINT}")
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else [text]
        declared = ";".join(line.partition("#")[0] for line in lines)
    if isinstance(declared, Mapping):
        declared = ";".join(
            f"{key}={values if isinstance(values, str) else ','.join(map(str, values))}"
            for key, values in declared.items()
        )
    space = _expression(declared, config) if isinstance(declared, str) else listed(declared, config)
    if not space.distributions:
        raise UserError(f"the sweep {text or spec} names no key: {HINT}")
    # With ranges: each value and each end of a range, with the recipe's values of the other keys.
    points = space.points if space.listed is not None or not space.ranges else [
        {key: value} for key, d in space.distributions.items() for value in _ends(d)
    ]  # fmt: skip
    for point in points:
        checked(config, point)
    return space


def checked(config: ConfigDict, point: Point) -> ConfigDict:
    """The config of a trial. Raises UserError if it cannot work, as far as that needs no data."""
    changed = copy.deepcopy(config)
    named = recipe.override(changed, overrides(point))
    check_tree(changed)
    check_read(changed, set_by_user(changed, named))
    check_values(changed)
    return changed


def overrides(point: Point) -> dict[str, str]:
    """A point as the values of `--config.KEY=VALUE`."""
    return {key: repr(v) if isinstance(v, float) else str(v) for key, v in point.items()}


def in_words(point: Point) -> str:
    """A point as `optimizer.lr=0.003 seed=0`, always on one line."""
    return printable(" ".join(
        f"{key}={f'{value:.4g}' if isinstance(value, float) else value}"
        for key, value in point.items()
    ))  # fmt: skip


def _expression(text: str, config: ConfigDict) -> Space:
    distributions: dict[str, BaseDistribution] = {}
    for part in calls.split(text, ";"):
        key, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or not values:
            raise UserError(f"sweep {part.strip()!r} names no values: {HINT}")
        key, distribution = _distribution(config, key, values)
        if key in distributions:
            raise UserError(f"sweep: {key} is given twice")
        distributions[key] = distribution
    return Space(distributions)


def listed(points: Iterable[Any], config: ConfigDict) -> Space:
    """A space of listed points. A key that a point lacks has the recipe's value there."""
    declared = []
    for point in points:
        if not isinstance(point, Mapping):
            raise UserError(
                f"sweep() yields {point!r}: yield dictionaries of config keys to values"
            )
        declared.append(dict(_value(config, key, str(value)) for key, value in point.items()))
    default = {key: _plain(value) for key, value in leaves(config)}
    keys = dict.fromkeys(key for point in declared for key in point)
    whole = [{key: point.get(key, default.get(key)) for key in keys} for point in declared]
    choices = {key: list(dict.fromkeys(point[key] for point in whole)) for key in keys}
    return Space({key: CategoricalDistribution(c) for key, c in choices.items()}, whole)


def _distribution(config: ConfigDict, key: str, text: str) -> tuple[str, BaseDistribution]:
    now = dict(leaves(config)).get(key)
    if "(" in text and (isinstance(now, int | float) or text.startswith(tuple(RANGES))):
        limits, *more = calls.made(text, RANGES, "search range", HINT)
        if more:
            raise UserError(f"sweep {key}={text}: one range a key")
        full, low = _value(config, key, str(limits.pop("low")))
        ends = [low, _value(config, key, str(limits.pop("high")))[1]]
        if not all(type(end) in (int, float) for end in ends):
            raise UserError(f"sweep: {key} is no number and has no range: list its values")
        try:
            whole = all(isinstance(end, int) for end in ends)
            kind: Any = IntDistribution if whole else FloatDistribution
            step = limits.pop("step", None) or (1 if whole else None)
            return full, kind(*ends, step=step, **limits)
        except ValueError as error:
            raise UserError(f"sweep {key}={text}: {error}") from error
    pairs = [_value(config, key, _unquoted(part)) for part in calls.split(text, ",")]
    values = [value for _, value in pairs]
    if len(set(values)) < len(values):
        raise UserError(f"sweep {key}={text}: a value is given twice")
    return pairs[0][0], CategoricalDistribution(values)


def _log(low: float, high: float) -> dict[str, Any]:
    if not 0 < low <= high < math.inf:
        raise ValueError("a logarithmic range lies above 0, its lower end first")
    return {"low": low, "high": high, "log": True}


def _uniform(low: float, high: float, step: float | None = None) -> dict[str, Any]:
    if low > high:
        raise ValueError("the lower end of a range comes first")
    return {"low": low, "high": high, "step": step}


RANGES = {"log": _log, "uniform": _uniform}


def _value(config: ConfigDict, key: str, text: str) -> tuple[str, Any]:
    """The full name of a key, and the value that a text means for it."""
    probe = copy.deepcopy(config)
    (full,) = recipe.override(probe, {key: text.strip()})
    value = dict(leaves(probe))[full]
    if full == KWARGS:
        return key, _plain(value[key.removeprefix(f"{KWARGS}.")])
    return full, _plain(value)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _ends(distribution: Any) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [distribution.low, distribution.high]


def _in_words(distribution: Any) -> str:
    ends = ",".join(map(str, _ends(distribution)))
    if isinstance(distribution, CategoricalDistribution):
        return ends
    step = "" if distribution.step in (None, 1) else f",step={distribution.step}"
    return f"{'log' if distribution.log else 'uniform'}({ends}{step})"


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
