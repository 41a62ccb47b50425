"""How long a run's training step takes until it runs: tracing, lowering, compiling, with an empty
and with a warm compile cache, and all of it from the start of the process.

Each round is two processes of their own, of which the second finds what the first has compiled: a
process that has compiled a program once remembers more of it than the cache on disk does.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.benching.timing import Row, summary
from vit_jax.errors import USER_ERROR, UserError

# What `once` times, in the order in which it happens.
PARTS = {
    "set_up": "imports, devices, set-up", "trace": "trace", "lower": "lower",
    "compile": "compile", "first_step": "first state and step",
    "all": "all, from the start of the process",
}  # fmt: skip


def once(began: float, set_up: Any) -> dict[str, Any]:
    """Seconds of every part in this process, which was started at `began` (of `time.time`)."""
    from vit_jax.benching.steps import synthetic_batch

    marks = [began]

    def mark() -> None:
        marks.append(time.time())

    run = set_up()
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
    """A row for each part, cold and warm."""
    told: dict[str, list[dict[str, float]]] = {"empty cache": [], "warm cache": []}
    model = ""
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="vit-bench-") as cache:
            for seconds in told.values():
                found = _in_a_process(config, overrides, cache)
                seconds.append(found["seconds"])
                model = found["model"]
    rows = []
    for name, seconds in told.items():
        for part, words in PARTS.items():
            spent = np.asarray([one[part] for one in seconds])
            rows.append({"case": f"{model}, {name}", "side": words, **summary(spent)})
    return rows


def _in_a_process(config: str, overrides: Mapping[str, str], cache: str) -> dict[str, Any]:
    given = [f"--config.{key}={value}" for key, value in overrides.items()]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }  # fmt: skip
    line = [sys.executable, "-P", "-m", "vit_jax.cli", "bench", "compile", f"--config={config}",
            *given]  # fmt: skip
    ended = subprocess.run(
        [*line, f"--began={time.time()}"], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if ended.returncode == USER_ERROR:
        raise UserError(ended.stderr.strip().splitlines()[-1].removeprefix("vit: error: "))
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return json.loads(ended.stdout.splitlines()[-1])
