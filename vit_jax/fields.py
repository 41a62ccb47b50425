"""What one value of a config is: its default, its meaning, and what it may hold.

A key of a run (`keys.py`) and a field of a family of models (`models/configs.py`) are both
written once, as a row. The tree of keys, `vit describe`, `--help` and every refusal of a wrong
value are made from these rows. Nothing here imports JAX, because launchers read configs too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple


class Fits(NamedTuple):
    """What a value may be: its kind, a test, and the test in words."""

    kind: type
    test: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()  # all that there are, where these are a few words

    def refuses(self, value: Any) -> bool:
        """Whether the value is not of this kind, or fails the test."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.kind in (int, float) and not number:
            return True
        if self.kind is int and isinstance(value, float) and not value.is_integer():
            return True
        return not self.test(value)


COUNT = Fits(int, lambda n: n >= 1, "a whole number of at least 1")
NATURAL = Fits(int, lambda n: n >= 0, "a whole number of at least 0")
RATE = Fits(float, lambda rate: 0 <= rate < 1, "a number in [0, 1)")
SHARE = Fits(float, lambda share: 0 < share <= 1, "a number in (0, 1]")
INSIDE = Fits(float, lambda share: 0 < share <= 1 - 1e-9, "a number between 0 and 1")
POSITIVE = Fits(float, lambda value: value > 0, "a positive number")
NOT_NEGATIVE = Fits(float, lambda value: value >= 0, "a number of at least 0")


def in_words(kind: type) -> str:
    """What a value of a kind is called."""
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(
        kind, f"a {kind.__name__}"
    )


def one_of(*words: str) -> Fits:
    """One of a few words."""
    return Fits(str, words.__contains__, f"one of {', '.join(words)}", words)


def field(
    default: Any, says: str, fits: Fits | None = None, *,
    of_run: bool = False, free: bool = False, later: bool = False,
) -> Any:  # fmt: skip
    """A field of a family's config.

    Args:
      says: what it means.
      fits: what it may hold; anything by default.
      of_run: whether a run decides it. All others come with the weights, and to change one of them
        changes what the weights compute.
      free: whether it may also differ when a run is continued.
      later: whether models were written before there was such a field: they mean its default.
    """
    row = {
        "says": says, "fits": fits, "of_run": of_run or free, "free": free, "later": later
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=row)


def check_fields(config: Any) -> None:
    """Refuses a field that is not of its kind or does not fit.

    Raises ValueError: `FIELD is WORDS, not VALUE`.
    """
    for row in dataclasses.fields(config):
        fits, value = row.metadata.get("fits"), getattr(config, row.name)
        if fits is not None and fits.refuses(value):
            raise ValueError(f"{row.name} is {fits.words}, not {value!r}")


class Key(NamedTuple):
    """A key of a run's config."""

    name: str  # dotted
    default: Any  # its value, or the type of a key that is empty by default
    says: str
    fits: Fits | None = None
    # The choices of its component (`optimizer.name=sgd`) that read it; (): all of them.
    read_by: tuple[str, ...] = ()
    # Whether it may differ when a run is continued: it decides none of a step's numbers.
    free: bool = False
    # Whether runs were written before there was such a key: they mean its default.
    later: bool = False

    @property
    def empty(self) -> bool:
        """Whether it is empty by default."""
        return isinstance(self.default, type)


def keys_of(config: type) -> tuple[Key, ...]:
    """The keys `model.FIELD` of a family's config, all of them empty: what is left empty comes with
    the model's name."""
    return tuple(
        Key(
            f"model.{row.name}",
            row.type if row.type in (int, float, bool, str) else object,
            row.metadata.get("says", ""),
            row.metadata.get("fits"),
            free=row.metadata.get("free", False),
        )
        for row in dataclasses.fields(config)
    )
