"""The evaluation split, and whatever else `evaluators` names, measured with a run's weights."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vit_jax.data import pipeline_text
from vit_jax.data.source import Source
from vit_jax.data.views import views_of
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import Rows
from vit_jax.evaluators.opened import Opened
from vit_jax.parallel.watchdog import Watchdog
from vit_jax.training.groups import merged, trainable
from vit_jax.training.optimizer import averaged
from vit_jax.training.run import Run

if TYPE_CHECKING:
    from vit_jax.training.progress import Progress

IN_FLIGHT = 4  # batches queued on the device at most


def due(run: Run, step: int) -> list[Opened]:
    """The evaluators that run after this step."""
    last = step == run.config.total_steps
    return [evaluator for evaluator in run.evaluators if last or step % evaluator.every == 0]


def evaluate(run: Run, state: Any, step: int, progress: "Progress") -> dict[str, float] | None:
    """Measures and tells what is due after a step. Returns the metrics of `data.eval`, if they are.

    If `stop_after` ends the run here, the other evaluators are measured, too, as at every end.
    """
    evaluators, of_split = due(run, step), None
    for name, metrics, words in measured(run, evaluators, state, progress.warn):
        progress.evaluation(step, name, metrics, words)
        of_split = metrics if name == run.config.data.eval.split else of_split
    if of_split and step < run.config.total_steps and progress.gains_nothing(step):
        others = [evaluator for evaluator in run.evaluators if evaluator not in evaluators]
        for name, metrics, words in measured(run, others, state, progress.warn):
            progress.evaluation(step, name, metrics, words)
    return of_split


def last_step(run: Run, state: Any, step: int, progress: "Progress", watchdog: Watchdog) -> int:
    """The last step of a run that begins after `step`: that one, if `stop_after` has ended the run
    there. First measures what was due there and was left out because of a signal."""
    c = run.config
    if not c.stop_after or not 0 < step < c.total_steps:
        return c.total_steps
    if due(run, step) and progress.lacks_evaluation(step):
        with watchdog.slow, progress.spent("evaluate"):
            evaluate(run, state, step, progress)
    return step if progress.ended or progress.gains_nothing(step) else c.total_steps


def judged(run: Run, state: Any) -> dict[str, Any]:
    """The weights to evaluate, by the suffix of their metrics' names: "" for the trained weights
    (or the optimiser's own average of them), `_ema` for their moving average."""
    c = run.config.optimizer
    average = averaged(c.name, state["opt"], trainable(state["params"], c.freeze))
    weights = {"": state["params"] if average is None else merged(average, state["params"])}
    return weights | ({"_ema": merged(state["ema"], state["params"])} if "ema" in state else {})


def measured(
    run: Run, evaluators: list[Opened], state: Any, say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, float], str]]:
    """(name, metrics, metrics in words) of each evaluator, for each kind of weights in `judged`."""
    for suffix, params in judged(run, state).items():
        for one in evaluators:
            metrics, _ = measure_one(run, one, params, say)
            words = run.task.in_words(one.evaluator.called(metrics))
            yield one.name + suffix, metrics, words


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


def measure_views(
    run: Run, opened: Opened, params: Any, views: str, say: Callable[[str], None]
) -> tuple[dict[str, float], Rows, list[str]]:
    """The metrics of one evaluator over several views of each image (`data/views.py`), as it joins
    them; the joined rows; the pipelines of the views.

    Raises UserError: there are no such views, or the evaluator does not join views.
    """
    evaluator: Any = opened.evaluator
    if evaluator.joined is None:
        raise UserError(
            f"--tta is for classification: evaluator {evaluator.name} of the task "
            f"{run.config.task} has no probabilities to average"
        )
    size, channels = run.model.config.image_size, run.model.config.channels
    texts, damaged = views_of(views, opened.pipeline.text), 0

    def each() -> Iterator[Rows]:
        nonlocal damaged
        for text in texts:
            parsed = pipeline_text.parse(text, size, imports=True, channels=channels)
            rows, damaged = collect(run, "scores", params, opened.test, parsed, say)
            yield rows

    rows = evaluator.joined(each())
    names = [opened.test.describe(int(i)) for i in rows["index"]] if evaluator.named else []
    return evaluator.measure(rows, names) | {"damaged_images": damaged}, rows, texts


def collect(
    run: Run, reads: str, params: Any, source: Source, pipeline: pipeline_text.Pipeline,
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
