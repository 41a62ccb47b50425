"""Time until a run's first training step is done: set-up, tracing, lowering, compiling, the step
itself, and everything from the start of the process; with an empty and with a warm cache.

Each round starts two processes, of which the second one finds what the first one compiled. One
process would not do: it remembers more of what it compiled than the cache on disk holds.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.benching.timing import Row, json_from, summary

# Parts of the time, in order -> their names in the table.
PARTS = {
    "set_up": "imports, devices, set-up", "trace": "trace", "lower": "lower",
    "compile": "compile", "first_step": "first state and step",
    "all": "all, from the start of the process",
}  # fmt: skip
CACHES = ("empty cache", "warm cache")


def once(began: float, set_up: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of every part in this process, which started at `began` (by `time.time`)."""
    from vit_jax.benching.steps import synthetic_batch

    marks = [began]

    def mark() -> None:
        marks.append(time.time())

    run = set_up().of_one_size
    mark()
    jitted, arguments = run.jitted_step
    traced = jitted.trace(*arguments)
    mark()
    lowered = traced.lower()
    mark()
    vars(run)["compiled_step"] = lowered.compile()  # so that the run does not compile it again
    mark()
    _, metrics = run.compile_train_step()(run.init_state(), synthetic_batch(run))
    metrics["loss"].block_until_ready()
    mark()
    seconds = dict(zip(PARTS, np.diff(marks).tolist(), strict=False))
    return {"model": run.model.name, "seconds": seconds | {"all": marks[-1] - began}}


def measure(config: str, overrides: Mapping[str, str], rounds: int) -> list[Row]:
    """One row for each part and each state of the cache."""
    measured: dict[str, list[dict[str, Any]]] = {cache: [] for cache in CACHES}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="vit-bench-") as folder:
            for processes in measured.values():
                processes.append(in_a_process(config, overrides, folder))
    return [
        {"case": f"{processes[0]['model']}, {cache}", "side": name,
         **summary([process["seconds"][part] for process in processes])}
        for cache, processes in measured.items() for part, name in PARTS.items()
    ]  # fmt: skip


def in_a_process(config: str, overrides: Mapping[str, str], cache: str) -> dict[str, Any]:
    """Runs `once` in a new process, with the compile cache in the folder `cache`."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }  # fmt: skip
    keys = [f"--config.{key}={value}" for key, value in overrides.items()]
    return json_from(
        [sys.executable, "-P", "-m", "vit_jax.cli", "bench", "compile", f"--config={config}", *keys,
         f"--began={time.time()}"], environment,
    )  # fmt: skip
