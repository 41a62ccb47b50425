"""The operations on images by name, and what each declares: whether it draws, whether it moves what
an image shows, which entries of an example it changes."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Declared:
    """What an operation says of itself. The defaults are those of a function that says nothing."""

    random: bool = True  # it draws from `rng`; evaluation refuses it
    moves: bool = True  # what an image shows at a place may be at another one afterwards
    encoded: bool = False  # it also takes an EncodedJpeg, and decodes a part of it
    # It returns `Moved` or `Padded` (data/objects.py) if it moves something, so that boxes follow.
    says_where: bool = False
    # The entries of an example that it changes. With more than the image, it takes and returns a
    # dictionary of those that the example has.
    changes: tuple[str, ...] = ("image",)


OPS: dict[str, Callable] = {}
DECLARED: dict[Callable, Declared] = {}


def op(
    *,
    random: bool = False,
    moves: bool = False,
    encoded: bool = False,
    says_where: bool = False,
    changes: tuple[str, ...] = ("image",),
) -> Callable[[Callable], Callable]:
    """Registers an operation under its own name, with what it declares (`Declared`).

    Raises ValueError where another operation has the name.
    """  # fmt: skip

    def register(function: Callable) -> Callable:
        other = OPS.setdefault(function.__name__, function)
        if other.__module__ != function.__module__:
            raise ValueError(f"{other.__module__} has an operation {function.__name__!r} already")
        DECLARED[function] = Declared(random, moves, encoded, says_where, changes)
        return function

    return register
