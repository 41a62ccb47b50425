"""Reads whole splits with threads, for `vit data check` and `vit data prepare`. Training reads
through `vit_jax.data.pipeline`."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from vit_jax.data.source import Source
from vit_jax.data.sources import open_source, split_names
from vit_jax.data.splits import NoSplit
from vit_jax.data.walking import with_progress

R = TypeVar("R")
AHEAD = 64  # examples in memory at a time


def read_ahead(
    read: Callable[[Any], R], items: Sequence | np.ndarray, threads: int, title: str
) -> Iterator[R]:
    """`map(read, items)` in threads: results in order, at most `AHEAD` in memory."""
    with ThreadPoolExecutor(threads) as pool:
        chunks = (items[start : start + AHEAD] for start in range(0, len(items), AHEAD))
        results = (result for chunk in chunks for result in pool.map(read, chunk))
        yield from with_progress(results, len(items), title)


def open_splits(spec: str, names: Sequence[str] = (), **options: Any) -> dict[str, Source]:
    """Every split of a source, or the named ones, by name. All use the classes of the first one.

    Raises UserError as `open_source` does. Only a named split must exist, because a tiny folder has
    no validation split.
    """
    splits: dict[str, Source] = {}
    missing: NoSplit | None = None
    for name in names or split_names(spec):
        classes = next(iter(splits.values())).classes if splits else None
        try:
            splits[name] = open_source(spec, name, classes, **options)
        except NoSplit as error:
            missing = missing or error
            if names:
                raise
    if not splits and missing:
        raise missing
    return splits
