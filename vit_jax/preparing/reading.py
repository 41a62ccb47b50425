"""Reads whole splits with threads, in an order of the caller's, and shows how far it is.

For the commands that see every example once (`vit data check`, `vit data prepare`); training reads
through `vit_jax.data.pipeline`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from vit_jax.data.source import Source
from vit_jax.data.sources import open_source, split_names
from vit_jax.data.splits import NoSplit
from vit_jax.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 64  # examples in memory at a time


def read_ahead(
    read: Callable[[Any], R], items: Sequence | np.ndarray, threads: int, title: str
) -> Iterator[R]:
    """`map(read, items)` by threads, in order, at most `AHEAD` results ahead."""
    with ThreadPoolExecutor(threads) as pool:
        chunks = (items[start : start + AHEAD] for start in range(0, len(items), AHEAD))
        yield from shown((r for chunk in chunks for r in pool.map(read, chunk)), len(items), title)


def shown(items: Iterable[T], total: int | None, title: str) -> Iterator[T]:
    """The items, with a bar on a terminal and nothing in a log."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, title, total, console=Console(stderr=True), transient=True)


def open_splits(spec: str, names: Sequence[str] = ()) -> dict[str, Source]:
    """Every split of a source, or those named, by name; the first one's classes are everyone's.

    Raises UserError as `open_source` does. Of a folder of classes without splits, a tiny one may
    hold nothing out.
    """
    found: dict[str, Source] = {}
    missing: UserError | None = None
    for name in names or split_names(spec):
        classes = next(iter(found.values())).classes if found else None
        try:
            found[name] = open_source(spec, name, classes)
        except NoSplit as error:
            missing = missing or error
            if names:
                raise
    if not found and missing:
        raise missing
    return found
