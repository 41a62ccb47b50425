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
    """The evaluators that run after this step."""
    last = step == run.config.total_steps
    return [evaluator for evaluator in run.evaluators if last or step % evaluator.every == 0]


def judged(run: Run, state: Any) -> dict[str, Any]:
    """The weights to evaluate, by the suffix of their metrics' names: "" for the trained weights
    (or the optimiser's own average of them), `_ema` for their moving average."""
    c = run.config.optimizer
    average = averaged(c.name, state["opt"], trainable(state["params"], c.freeze))
    weights = {"": state["params"] if average is None else merged(average, state["params"])}
    return weights | ({"_ema": merged(state["ema"], state["params"])} if "ema" in state else {})


def measured(
    run: Run, evaluators: list[Opened], state: Any, say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, float]]]:
    """(name, metrics) of each evaluator, for each kind of weights in `judged`."""
    for suffix, params in judged(run, state).items():
        for evaluator in evaluators:
            yield evaluator.name + suffix, measure_one(run, evaluator, params, say)[0]


def measure(run: Run, params: Any, say: Callable[[str], None]) -> dict[str, float]:
    """The metrics of the evaluation split."""
    return measure_one(run, run.evaluators[0], params, say)[0]


def measure_one(
    run: Run, opened: Opened, params: Any, say: Callable[[str], None]
) -> tuple[dict[str, float], Rows]:
    """The metrics of one evaluator, and the rows that they are computed from."""
    evaluator: Any = opened.evaluator
    reads = evaluator.reads(opened.test)
    rows, damaged = collect(run, reads, params, opened.test, opened.pipeline, say)
    if opened.train is None:
        names = [opened.test.describe(int(i)) for i in rows["index"]] if evaluator.named else []
        metrics = evaluator.measure(rows, names)
    else:
        train, lost = collect(run, reads, params, opened.train, opened.pipeline, say)
        damaged += lost
        metrics = evaluator.measure(train, rows, len(opened.train.classes))
        metrics["examples"] = len(rows["index"])
    return metrics | {"damaged_images": damaged}, rows


def collect(
    run: Run, reads: str, params: Any, source: Source, pipeline: ops.Pipeline,
    say: Callable[[str], None],
) -> tuple[Rows, int]:  # fmt: skip
    """Runs a compiled step over a source. Returns its outputs, one row per example in order, with
    the example's number as `index`; and the number of damaged images, which are left out."""
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
    is_example = rows.pop("id") >= 0
    rows = {name: values[is_example] for name, values in rows.items()}
    return rows | {"index": np.flatnonzero(is_example)}, len(source) - int(is_example.sum())


def report_damaged(
    run: Run, source: Source | None, ids: np.ndarray, say: Callable[[str], None]
) -> None:
    """Names the damaged images among this process's rows of a batch.

    Raises UserError at the first one where `data.damaged` is `fail`.
    """
    damaged = [int(index) for index in ids if index >= 0]
    for index in damaged:
        name = source.describe(index) if source else index
        if run.config.data.damaged == "fail":
            raise UserError(f"damaged image {name} (--config.data.damaged=skip goes on without it)")
        say(f"damaged image skipped: {name}")
