"""How long a save keeps training waiting, how long it takes until the save is on disk, and how long
it takes to check and restore it. Files are read from the system's cache."""

import tempfile
from pathlib import Path
from typing import Any

import jax

from vit_jax.benching.timing import Row, summary, timed
from vit_jax.checkpoint import checksums, manager
from vit_jax.errors import cannot_write
from vit_jax.training.run import Run


def measure(run: Run, folder: str | None, rounds: int) -> list[Row]:
    """One row for each part of a save and its restore. The first round is not counted. Files go
    below `folder`, or to the folder of temporary files, and are removed."""
    state = run.init_state()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    try:
        place = tempfile.TemporaryDirectory(prefix="vit-bench-", dir=folder)
    except OSError as error:
        raise cannot_write(Path(folder or tempfile.gettempdir()), error) from error
    with place, manager.Checkpoints(Path(place.name), keep=1, keep_best=False) as checkpoints:
        times = [_round(run, state, checkpoints, number, Path(place.name) / str(number))
                 for number in range(1, rounds + 2)][1:]  # fmt: skip
    rows: list[Row] = []
    for part in times[0]:
        spent = summary([seconds[part] for seconds in times])
        rows.append({"case": f"{run.model.name}, {size / 1e9:.3f} GB", "side": part, **spent,
                     "bytes": size, "bytes_per_second": size / spent["median_s"]})  # fmt: skip
    return rows


def _round(
    run: Run, state: Any, checkpoints: manager.Checkpoints, number: int, saved: Path
) -> dict[str, float]:
    """Seconds of each part of one save, which goes to `saved`, and its restore."""

    def restore() -> None:
        jax.block_until_ready(manager.restore(saved, run.abstract_state, run.shardings))

    # As the training loop calls it: `save` returns when the state has been copied.
    waits = timed(lambda: checkpoints.save(number, state, {}, None))()
    return {
        "save: training waits": waits,
        "save: until on disk": waits + timed(checkpoints.wait)(),
        "restore: check of the sums": timed(lambda: checksums.check(saved))(),
        "restore: read and placed": timed(restore)(),
    }
