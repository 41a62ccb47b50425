"""Saving a run's state as training does, and restoring it: how long training waits, how long it is
until a save is on disk, checked and read again. What is read comes from the system's cache."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.benching.timing import Row, summary, timed
from vit_jax.checkpoint import checksums, manager
from vit_jax.errors import cannot_write
from vit_jax.training.run import Run


def measure(run: Run, folder: str | None, rounds: int) -> list[Row]:
    """A row for each part of a save and of a restore, of `rounds` after one that is left out. The
    saves are written below `folder`, or where temporary files are, and removed."""
    state = run.init_state()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    times: dict[str, list[float]] = {}
    try:
        place = tempfile.TemporaryDirectory(prefix="vit-bench-", dir=folder)
    except OSError as error:
        raise cannot_write(Path(folder or tempfile.gettempdir()), error) from error
    with place, manager.Checkpoints(Path(place.name), keep=1, keep_best=False) as checkpoints:
        for number in range(1, rounds + 2):
            seconds = _round(run, state, checkpoints, number, Path(place.name))
            for part, spent in seconds.items() if number > 1 else ():
                times.setdefault(part, []).append(spent)
    case = f"{run.model.name}, {size / 1e9:.3f} GB"
    rows: list[Row] = []
    for part, all_spent in times.items():
        told = summary(np.asarray(all_spent))
        rate = size / told["median_s"]
        rows.append({"case": case, "side": part, **told, "bytes": size, "bytes_per_second": rate})
    return rows


def _round(
    run: Run, state: Any, checkpoints: manager.Checkpoints, number: int, folder: Path
) -> dict[str, float]:
    """Seconds of each part of one save and its restore."""

    def save() -> None:  # as the loop calls it: it returns when the state has been copied
        checkpoints.save(number, state, {}, None)

    def restore() -> None:
        found = manager.restore(folder / str(number), run.abstract_state, run.shardings)
        jax.block_until_ready(found)

    waits = timed(save)()
    return {
        "save: training waits": waits,
        "save: until on disk": waits + timed(checkpoints.wait)(),
        "restore: check of the sums": timed(lambda: checksums.check(folder / str(number)))(),
        "restore: read and placed": timed(restore)(),
    }
