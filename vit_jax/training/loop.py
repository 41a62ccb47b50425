"""The training loop."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.checkpoint.manager import Checkpoints
from vit_jax.config import flat
from vit_jax.evaluators.opened import check_ranking
from vit_jax.parallel.preemption import StopSignals
from vit_jax.parallel.runtime import share, together
from vit_jax.parallel.watchdog import Watchdog
from vit_jax.ranking import ranked_by
from vit_jax.training.evaluation import due, evaluate, last_step, report_damaged
from vit_jax.training.goodput import Ledger
from vit_jax.training.memory import fitting
from vit_jax.training.progress import Progress
from vit_jax.training.result import write_result
from vit_jax.training.run import Run, run_of
from vit_jax.training.start import Start, first_state, open_origin
from vit_jax.training.workdir import WorkFolder
from vit_jax.training.writers import MetricWriter, check_named

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
    number beside those that the config names, and may be those of `clu.metric_writers`.

    Raises UserError for anything the caller can mend, and Stopped where the run ended early: with
    its state saved (Ctrl-C, SIGTERM), or after too many non-finite steps.
    """
    ledger, workdir = Ledger({}, time.monotonic()), Path(workdir).expanduser().absolute()
    run = together(lambda: run_of(config, named, devices, weights=open_origin(config, workdir)))
    together(lambda: check_named(run.config.writers))
    if run.config.data.eval.split:
        together(lambda: check_ranking(run.config.best, run.evaluators[0]))
    with ledger.spent("compile"):  # where the devices' memory is known, the step is compiled here
        run, fitted = fitting(run, config)
    watchdog = Watchdog(run.config.step_timeout, at_once=share()[1] > 1)
    with WorkFolder(workdir) as folder, StopSignals() as stop, watchdog:
        start = first_state(run, folder.path)
        folder.keep(flat(run.config), run.classes)
        where, best = folder.path / "checkpoints", ranked_by(run.config.best)
        checkpoints = Checkpoints(where, **run.config.checkpoint, best=best)
        with Progress(folder.path, run, start, writers, quiet, ledger) as progress:
            progress.say("\n".join([*run.said, *fitted, *start.said, *run.in_numbers]))
            began = time.monotonic()
            with progress.spent("compile"):
                train_step = run.compile_train_step()
            progress.say(f"{run.summary}\ncompiled in {time.monotonic() - began:.1f} s")
            fit(run, train_step, start, checkpoints, progress, stop, watchdog)
            progress.times()
            return write_result(folder.path, run, start, progress)


def fit(
    run: Run, train_step: Callable, start: Start, checkpoints: Checkpoints, progress: Progress,
    stop: StopSignals, watchdog: Watchdog,
) -> None:  # fmt: skip
    """Steps from `start` to the end: batch, step, tell, evaluate, save; in this order."""
    c, state, examples_seen = run.config, start.state, start.examples_seen
    total = last_step(run, state, start.step, progress, watchdog)
    in_flight, known = deque[Any](), None  # losses of queued steps, and the last computed one
    batches = run.train_batches(examples_seen, total - start.step)
    with ExitStack() as at_end:
        at_end.callback(progress.sync)
        at_end.enter_context(checkpoints)
        at_end.callback(batches.close)
        at_end.callback(watchdog.slow_down)
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
                known = jax.block_until_ready(in_flight.popleft())
            watchdog.beat()
            checkpoints.check()
            progress.at(step, known)
            stop.after_step()
            last, evaluated = step == total, None
            if step % c.log_every_steps == 0 or last:
                progress.interval(step, metrics)
                progress.check_finite(c.max_skipped_steps, now=last)
            if due(run, step) and (last or not stop.code):
                progress.finish(state, metrics)
                with watchdog.slow, progress.spent("evaluate"):
                    evaluated = evaluate(run, state, step, progress)
                last = last or progress.ends(step, metrics)
            better = c.checkpoint.keep_best and evaluated and progress.is_best()
            if last or better or stop.code or checkpoints.due(step, progress.told == step):
                progress.finish(state, metrics)
                with watchdog.slow, progress.spent("checkpoint"):
                    progress.sync()
                    about = start.about(run, examples_seen, progress.ledger.seconds)
                    checkpoints.save(step, state, about, evaluated)
            if last:
                break
            if stop.code:
                raise stop.stopped(step)
