"""Which split a name means, and what is held out if a data set has no splits."""

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from vit_jax.errors import UserError, printable

# A split as configs name it: the names that mean the same, in upper or lower case.
ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_MEANING = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
ENOUGH = 100  # held-out images; with fewer, a note warns that they choose checkpoints by chance
SHARE = Fraction(1, 10)  # of each class that is held out as `val`, unless `?val=` says otherwise
_LISTED = 50


class NoSplit(UserError):
    """The source exists, but has no such split."""


def meaning(name: str) -> str | None:
    """`train`, `val` or `test` if a split's name means one of them, else None.

    >>> meaning("Validation")
    'val'
    """
    return _MEANING.get(name.lower())


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts splits: that of training first, then `val`, then `test`."""
    order = list(ALIASES)
    return sorted(names, key=lambda n: (order.index(meaning(n) or order[-1]), not meaning(n), n))


def choose(what: str, split: str, names: Iterable[str], training: bool = False,
           lacks: str = "", also: str = "") -> str:  # fmt: skip
    """The split of a source with the name that is asked for, else the one that means the same.

    Args:
      what: the source, for messages.
      split: the name asked for. `train`, `val` and `test` stand for all their aliases.
      names: the splits that exist.
      training: whether a split of an unknown name is for training.
      lacks: the beginning of the message if there is no such split; by default
        `WHAT has no split …`.
      also: one more split to evaluate on, and what to write for it.

    Raises NoSplit: there is none. Raises UserError: there are several.
    """
    names = in_order(names)
    if split in names:
        return split
    same = [name for name in names if split in ALIASES and meaning(name) == split]
    if len(same) == 1:
        return same[0]
    part = "train" if meaning(split) == "train" or (training and not meaning(split)) else "eval"
    if same:
        raise UserError(
            f"{what}: {_listed(same, ' and ')} all mean the split {split!r}; choose one, as in "
            f"--config.data.{part}.split={printable(same[0])}"
        )
    others = [name for name in names if part == "train" or meaning(name) != "train"]
    fixes = [f"on {printable(name)}: --config.data.{part}.split={printable(name)}"
             for name in others[:1]]  # fmt: skip
    if part == "eval":
        fixes += ["on nothing: --config.data.eval.split=", *([also] if also else [])]
    raise NoSplit(
        (lacks or f"{what} has no split {split!r}")
        + f": it has {_listed(names) or 'none'}"
        + (f"; {'train' if part == 'train' else 'evaluate'} {'; '.join(fixes)}" if fixes else "")
    )


def _listed(names: Sequence[str], between: str = ", ") -> str:
    shown = between.join(map(printable, names[:_LISTED]))
    return shown + (f" and {len(names) - _LISTED:,} more" if names[_LISTED:] else "")


def passed_over(what: str, split: str, names: Iterable[str]) -> list[str]:
    """A note about splits that mean the same as the one that is read, but are not read."""
    means = meaning(split)
    same = [name for name in in_order(names) if means and name != split and meaning(name) == means]
    return [f"{what}: {split!r} is read, {_listed(same)} is not"] if same else []


def share_of(spec: str, query: Mapping[str, str]) -> Fraction | None:
    """The share that `?val=SHARE` holds out; None without it.

    Raises UserError: it is not between 0 and 1.
    """
    text = query.get("val")
    if text is None:
        return None
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(
            f"{printable(spec)}: val={printable(text)} is the share of each class to hold out: a "
            "number between 0 and 1, such as val=0.1"
        )
    return Fraction(repr(share))


class Part(NamedTuple):
    """What a split consists of: the split `of` the source (None: all of it), of which `held` takes
    what is held out, or the rest; None takes all."""

    name: str
    of: str | None
    held: bool | None


def part_of(what: str, split: str, existing: Sequence[str] | None, training: bool,
            share: Fraction | None) -> Part:  # fmt: skip
    """The part of a source that a split means.

    Args:
      what, split, training: as for `choose`.
      existing: the splits that the source has; None if it has none, so that a hash makes them.
      share: what `?val=` says. Then `val` is held out of the split of training.

    Raises UserError as `choose` does, and if there is a split of evaluation already.
    """
    if existing is None:
        name = choose(what, split, ("train", "val"), training)
        return Part(name, None, name == "val")
    if share is None:
        trains = any(meaning(name) == "train" for name in existing)
        also = "on a tenth of training: ?val=0.1 behind the source" if trains else ""
        name = choose(what, split, existing, training, also=also if split == "val" else "")
        return Part(name, name, None)
    if val := [name for name in existing if meaning(name) == "val"]:
        raise UserError(f"{what} has the split {printable(val[0])!r} already: leave ?val= out")
    name = choose(what, split, [*existing, "val"], training)
    if name != "val" and meaning(name) != "train":
        return Part(name, name, None)
    whole = choose(what, "train", existing, training=True)
    return Part(name, whole if name == "val" else name, name == "val")


def held_out(names: Sequence[str], share: Fraction | None = None) -> set[str]:
    """The images of a class that belong to `val` if nothing else decides it: a tenth of the
    distinct names, or another share, those with the smallest hashes; at least one of two or more.

    It depends on the set of names alone, and every class has some."""
    distinct = sorted(set(names))
    hashes = np.array([zlib.crc32(os.fsencode(name)) for name in distinct], np.uint32)
    count = max(1, int(len(distinct) * (share or SHARE))) if len(distinct) > 1 else 0
    return {distinct[place] for place in np.argsort(hashes, kind="stable")[:count]}


def name_hashes(names: Iterable[str], count: int, salt: str) -> np.ndarray:
    """uint64 [count]: hashes that give an order of files which depends on their names alone."""
    start, hashes = blake2b(f"{salt}/".encode(), digest_size=8), np.empty(count, np.uint64)
    for place, name in enumerate(names):
        named = start.copy()
        named.update(os.fsencode(name))
        hashes[place] = int.from_bytes(named.digest(), "little")
    return hashes


def too_few(what: str, count: int, remedy: str) -> tuple[str, ...]:
    """A note if so few images are held out that choosing a checkpoint by them is mostly chance."""
    if count >= ENOUGH:
        return ()
    images = "1 image is" if count == 1 else f"{count} images are"
    return (
        f"{what}: {images} held out, too few to choose a checkpoint by: the standard error of an "
        f"accuracy is up to {50 / count**0.5:.0f} points; {remedy}",
    )
