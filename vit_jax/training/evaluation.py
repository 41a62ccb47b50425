"""The evaluation split, and whatever else `evaluators` names, measured with a run's weights."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vit_jax.data import ops
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import Rows
from vit_jax.evaluators.opened import Opened
from vit_jax.training.groups import merged, trainable
from vit_jax.training.optimizer import averaged
from vit_jax.training.run import Run

IN_FLIGHT = 4  # batches queued on the device at most


def due(run: Run, step: int) -> list[Opened]:
    """The evaluators that are to measure after a step."""
    last = step == run.config.total_steps
    return [one for one in run.evaluators if last or step % one.every == 0]


def judged(run: Run, state: Any) -> dict[str, Any]:
    """Weights by what their metrics' names end in: those that are trained (or that the optimiser
    wants to be judged by), and their moving average."""
    c = run.config.optimizer
    own = averaged(c.name, state["opt"], trainable(state["params"], c.freeze))
    weights = {"": state["params"] if own is None else merged(own, state["params"])}
    return weights | ({"_ema": merged(state["ema"], state["params"])} if "ema" in state else {})


def measured(
    run: Run, evaluators: list[Opened], state: Any, say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, float]]]:
    """(name, metrics) of each evaluator, of each kind of weights."""
    for suffix, params in judged(run, state).items():
        for one in evaluators:
            yield one.name + suffix, measure_one(run, one, params, say)[0]


def measure(run: Run, params: Any, say: Callable[[str], None]) -> dict[str, float]:
    """The metrics of the evaluation split."""
    return measure_one(run, run.evaluators[0], params, say)[0]


def measure_one(
    run: Run, one: Opened, params: Any, say: Callable[[str], None]
) -> tuple[dict[str, float], Rows]:
    """An evaluator's metrics with some weights, and the rows of the split that they are made of."""
    evaluator: Any = one.evaluator
    reads = evaluator.reads(one.test)
    rows, damaged = collect(run, reads, params, one.test, one.pipeline, say)
    if one.train is None:
        names = [one.test.describe(int(i)) for i in rows["index"]] if evaluator.named else []
        found = evaluator.measure(rows, names)
    else:
        train, lost = collect(run, reads, params, one.train, one.pipeline, say)
        damaged += lost
        found = evaluator.measure(train, rows, len(one.train.classes))
        found["examples"] = len(rows["index"])
    return found | {"damaged_images": damaged}, rows


def collect(
    run: Run, reads: str, params: Any, source: Source, pipeline: ops.Pipeline,
    say: Callable[[str], None],
) -> tuple[Rows, int]:  # fmt: skip
    """What a compiled step says of each example of a source, in order, with its number as `index`;
    and how many images were damaged and left out."""
    step, batches = run.row_steps[reads], run.eval_batches(source, pipeline)
    waiting: deque[Any] = deque()
    parts: list[Rows] = []
    try:
        for host, batch in batches:
            report_damaged(run, source, host["damaged"], say)
            waiting.append(step(params, batch))
            if len(waiting) > IN_FLIGHT:
                parts.append(jax.device_get(waiting.popleft()))
    finally:
        batches.close()
    parts += jax.device_get(list(waiting))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    there = rows.pop("id") >= 0
    rows = {name: values[there] for name, values in rows.items()}
    return rows | {"index": np.flatnonzero(there)}, len(source) - int(there.sum())


def report_damaged(
    run: Run, source: Source | None, ids: np.ndarray, say: Callable[[str], None]
) -> None:
    """Names the damaged images among this process's rows of a batch.

    Raises UserError at the first one where `data.damaged` is `fail`.
    """
    found = [int(index) for index in ids if index >= 0]
    for index in found:
        name = source.describe(index) if source else index
        if run.config.data.damaged == "fail":
            raise UserError(f"damaged image {name} (--config.data.damaged=skip goes on without it)")
        say(f"damaged image skipped: {name}")
