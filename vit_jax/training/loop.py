"""The training loop."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.checkpoint.manager import Best, Checkpoints
from vit_jax.config import flat
from vit_jax.errors import Stopped
from vit_jax.parallel.preemption import StopSignals
from vit_jax.parallel.runtime import share, together
from vit_jax.parallel.watchdog import Watchdog
from vit_jax.training.evaluation import due, measured, report_damaged
from vit_jax.training.goodput import Ledger
from vit_jax.training.memory import fitting
from vit_jax.training.progress import Progress
from vit_jax.training.result import write_result
from vit_jax.training.setup import Run, Start, first_state, open_origin, set_up
from vit_jax.training.workdir import WorkFolder
from vit_jax.training.writers import MetricWriter
from vit_jax.user_code import signature

BEST: Best = ("accuracy", max)  # which checkpoint is the best one
METRIC, _ = BEST
IN_FLIGHT = 4  # steps queued on the device at most, so that batches do not pile up there


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    named: Iterable[str] = (),
    devices: Sequence[jax.Device] | None = None,
    writers: Sequence[MetricWriter] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains to the end and returns what `result.json` holds. A work folder is continued.

    `named` are the keys given explicitly, for the check of unread ones; `writers` are told every
    number that TensorBoard is, and may be those of `clu.metric_writers`.

    Raises UserError for anything the caller can mend, and Stopped where the run ended early: with
    its state saved (Ctrl-C, SIGTERM), or after too many non-finite steps.
    """
    ledger, workdir = Ledger({}, time.monotonic()), Path(workdir).expanduser().absolute()
    run = together(lambda: set_up(config, named, devices, weights=open_origin(config, workdir)))
    with ledger.spent("compile"):  # where the devices' memory is known, the step is compiled here
        run = fitting(run, config)
    watchdog = Watchdog(run.config.step_timeout, at_once=share()[1] > 1)
    with WorkFolder(workdir) as folder, StopSignals() as stop, watchdog:
        start = first_state(run, folder.path)
        folder.keep(flat(run.config), run.classes)
        checkpoints = Checkpoints(folder.path / "checkpoints", **run.config.checkpoint, best=BEST)
        progress = Progress(folder.path, run, start, writers, quiet, ledger)
        try:
            progress.say("\n".join([*run.said, *start.said, *run.in_numbers]))
            began = time.monotonic()
            with progress.spent("compile"):
                train_step = run.compile_train_step()
            progress.say(f"{run.summary}; compiled in {time.monotonic() - began:.1f} s")
            fit(run, train_step, start, checkpoints, progress, stop, watchdog)
            progress.times()
            return write_result(folder.path, run, start, progress)
        finally:
            progress.close()


def fit(
    run: Run, train_step: Callable, start: Start, checkpoints: Checkpoints, progress: Progress,
    stop: StopSignals, watchdog: Watchdog,
) -> None:  # fmt: skip
    """Steps from `start` to the end: batch, step, tell, evaluate, save; in this order."""
    c, state, examples_seen = run.config, start.state, start.examples_seen
    total, best = c.total_steps, progress.best(f"eval/{run.config.data.eval.split}/{METRIC}")
    in_flight: deque[Any] = deque()
    batches = run.train_batches(examples_seen, total - start.step)
    with contextlib.ExitStack() as at_end:
        at_end.callback(progress.sync)
        at_end.enter_context(checkpoints)
        at_end.callback(batches.close)
        at_end.callback(watchdog.slow.__enter__)
        at_end.callback(progress.ledger.turn, "checkpoint")
        for step in range(start.step + 1, total + 1):
            batches.wait(state["step"].is_ready)  # while steps are queued, this is their time
            with progress.spent("data"):
                host, batch = next(batches)
            report_damaged(run, run.train_source, host["damaged"], progress.warn)

            state, metrics = train_step(state, batch)
            examples_seen += c.batch_size
            in_flight.append(metrics["loss"])
            if len(in_flight) > IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            watchdog.beat()
            checkpoints.check()
            progress.at(step)
            stop.after_step()
            last, found = step == total, None
            if step % c.log_every_steps == 0 or last:
                progress.interval(step, metrics)
                progress.check_finite(c.max_skipped_steps, now=last)
            if (evaluators := due(run, step)) and (last or not stop.code):
                finish_queued(state, metrics, progress)
                with watchdog.slow, progress.spent("evaluate"):
                    for name, told in measured(run, evaluators, state, progress.say):
                        progress.evaluation(step, name, told)
                        found = told if name == c.data.eval.split else found
            better = c.checkpoint.keep_best and found and found[METRIC] > best
            best = max(best, found[METRIC]) if found else best

            if last or better or stop.code or checkpoints.due(step, progress.told == step):
                finish_queued(state, metrics, progress)
                with watchdog.slow, progress.spent("checkpoint"):
                    progress.sync()
                    about = {"config": flat(c), "classes": run.classes, "origin": start.origin,
                             "sources": run.held,
                             "train_examples": run.train_examples, "examples_seen": examples_seen,
                             "goodput": progress.ledger.seconds,
                             **signature(flat(c))}  # fmt: skip
                    checkpoints.save(step, state, about, found)
            if stop.code and not last:
                raise Stopped(f"stopped at step {step}; its state is saved", stop.code)


def finish_queued(state: Any, metrics: Any, progress: Progress) -> None:
    """Waits for the queued steps, as a part of them, before anything else is timed; tells the row
    that waits for them."""
    jax.block_until_ready((state, metrics))
    progress.flush()
