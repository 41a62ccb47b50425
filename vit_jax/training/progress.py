"""What a run reports: at each interval a row, in `metrics.jsonl` (`rows.py`) and to the metric
writers, and a line for the person watching (`console.py`).

Numbers are fetched one interval late, so that no step waits.
"""

import contextlib
import math
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from vit_jax.config import flat
from vit_jax.errors import (
    INTERRUPTED,
    NON_FINITE,
    USER_ERROR,
    Stopped,
    UserError,
    printable_lines,
)
from vit_jax.parallel.chips import peak_flops
from vit_jax.parallel.runtime import everyones, first_says, process, together
from vit_jax.ranking import in_words, ranked_by, without_gain
from vit_jax.training.console import Console, Repeats, step_line
from vit_jax.training.goodput import TRAINING, Ledger
from vit_jax.training.profiling import Profile
from vit_jax.training.rows import MetricRows, Row
from vit_jax.training.run import Run
from vit_jax.training.start import Start
from vit_jax.training.writers import InBackground, MetricWriter, open_named


class Progress:
    """Takes a step's metrics at each interval, and reports those of the interval before."""

    def __init__(self, workdir: Path, run: Run, start: Start,
                 writers: Sequence[MetricWriter] = (), quiet: bool = False,
                 ledger: Ledger | None = None):  # fmt: skip
        first = process() == 0
        self._config, self._devices, self._task = run.config, run.mesh.size, run.task
        self._epoch = run.config.batch_size / run.train_examples
        peak = peak_flops(run.mesh.devices.flat[0].device_kind, run.config.model.dtype)
        self._flops = 6 * run.macs
        self._peak = peak * self._devices if peak else None
        self._console = Console(run.config.total_steps, start.step, run.config.batch_size)
        self._quiet, self._repeats = quiet or not first, Repeats()
        named = run.config.writers if first else ""
        opened = together(
            lambda: open_named(named, workdir, start.step, flat(run.config), self.warn)
        )
        self._writers: list[MetricWriter] = [*opened, *(writers if first else ())]
        self._rows = MetricRows(workdir / "metrics.jsonl", start.step, first)
        self._profile = Profile(workdir, run.config.profile)
        self._pending: tuple[Row, Any] | None = None
        self.ledger = ledger or Ledger({}, time.monotonic())
        self.ledger.add(start.ledger)
        self.ledger.turn("step")
        trained = [row["seconds"] for row in self._rows.dropped if "seconds" in row]
        self.ledger.lose(max(trained, default=0.0) - self.ledger.train_seconds)
        self._mark = (start.step, self.ledger.seconds)
        self._profile.after(start.step)
        self.told = start.step  # the last step of the last interval
        self.ended: tuple[int, str] | None = None  # the step where `stop_after` ends it, and why
        if not self._quiet:
            self._console.start()
        if self._rows.damage:
            self.warn(self._rows.damage)

    def spent(self, part: str) -> contextlib.AbstractContextManager[None]:
        """Books the time inside on a part of `goodput.PARTS`."""
        return self.ledger.spent(part)

    # -- rows ------------------------------------------------------------------------------
    def interval(self, step: int, metrics: Any) -> None:
        """Takes the metrics of a step, still on the device, and reports those taken before."""
        self.flush()
        (step_then, then), now = self._mark, self.ledger.seconds
        spent = {part: now[part] - then[part] for part in TRAINING}
        seconds = max(sum(spent.values()), 1e-9)
        speed = (step - step_then) * self._config.batch_size / seconds
        row = {
            "step": step, "epoch": round(step * self._epoch, 4),
            "images_per_second": round(speed, 2),
            "images_per_second_per_device": round(speed / self._devices, 2),
            "data_wait": round(spent["data"] / seconds, 4),
            "seconds": round(self.ledger.train_seconds, 3),
        }  # fmt: skip
        if self._peak:
            row["mfu"] = round(speed * self._flops / self._peak, 4)
        self._mark = (step, now)
        self.told = step
        for leaf in jax.tree.leaves(metrics):
            if hasattr(leaf, "copy_to_host_async"):
                leaf.copy_to_host_async()
        self._pending = (row, metrics)

    def check_finite(self, most: int, now: bool = False) -> None:
        """Raises Stopped if the last `most` steps or more were not finite, by the last row that was
        written. With `now`, the row that waits is written first."""
        if now:
            self.flush()
        row = self.last("loss")
        if row.get("skipped_in_row", 0) >= most:
            raise Stopped(
                f"{row['skipped_in_row']} steps in a row up to step {row['step']} were not "
                "finite: start again in a new --workdir with a lower optimizer.lr or with "
                "optimizer.clip_norm",
                NON_FINITE,
            )

    def ends(self, step: int, metrics: Any) -> bool:
        """Whether `stop_after` ends the run at this step. If so, tells it, and the row of the step
        if that was not told before."""
        if self.ended is None:
            return False
        if self.told != step:
            self.interval(step, metrics)
        self.check_finite(self._config.max_skipped_steps, now=True)
        self.say(f"ends {self.ended[1]}")
        return True

    def flush(self) -> None:
        """Fetches the row that waits, if there is one; writes and prints it."""
        if self._pending is None:
            return
        row, metrics = self._pending
        self._pending = None
        values = jax.device_get(metrics)
        skipped = values.pop("skipped")
        row = {
            "step": row["step"],
            **{name: float(values[name]) for name in ("loss", "learning_rate", "grad_norm")},
            **{f"loss/{name}": float(part) for name, part in values["parts"].items()},
            "skipped_steps": int(skipped["total"]), "skipped_in_row": int(skipped["in_row"]),
            "last_skipped_step": int(skipped["last"]),
            "examples_hash": f"{int(values['examples_hash']):08x}",
            "damaged_images": int(values["damaged_images"]), **row,
        }  # fmt: skip
        before = self.last("loss").get("skipped_steps", 0)
        self._write(row)
        if (more := row["skipped_steps"] - before) > 0:
            at, batch = row["last_skipped_step"], self._config.batch_size
            self.say(
                f"{more} steps skipped, the last one {at}: gradient not finite or above "
                f"optimizer.skip_norm; seed {self._config.seed}, examples {(at - 1) * batch:,} to "
                f"{at * batch - 1:,} of the order; --replay-step={at} shows it"
            )
        total, batch_size = self._config.total_steps, self._config.batch_size
        self.say(step_line(row, total, batch_size, self._devices, self._peak, self._console.width))

    def evaluation(self, step: int, name: str, metrics: dict[str, float], words: str) -> None:
        """Writes an evaluation's row, `eval/NAME/METRIC`, and prints it in words."""
        self._write({"step": step} | {f"eval/{name}/{key}": v for key, v in metrics.items()})
        damaged = metrics.get("damaged_images")
        of = f"{metrics['examples']} examples" + (f", {damaged} damaged" if damaged else "")
        self.say(f"step {step}: {name} {words} ({of})")

    def _write(self, row: Row) -> None:
        self._rows.write(row)
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        for writer in self._writers:
            writer.write_scalars(row["step"], numbers)

    def finish(self, *queued: Any) -> None:
        """Waits for queued steps, so that their time is not booked on what comes next. Then reports
        the row that waits."""
        jax.block_until_ready(queued)
        self.flush()

    def sync(self) -> None:
        """Reports the row that waits, and returns when everything is on disk."""
        self.flush()
        self._rows.sync()
        for writer in self._writers:
            writer.flush()

    def last(self, prefix: str = "") -> Row:
        """The last row that has a key starting with `prefix`."""
        rows = (row for row in reversed(self._rows.rows) if any(k.startswith(prefix) for k in row))
        return next(rows, {})

    def lacks_evaluation(self, step: int) -> bool:
        """Whether an earlier start of this run has written rows, and none of an evaluation after
        this step. Process 0 decides."""
        return first_says(bool(self._rows.rows) and not self.evaluated(step))

    def evaluated(self, step: int) -> Row:
        """All evaluation metrics that were measured after a step."""
        measured = [row for row in self._rows.rows if row["step"] == step and "loss" not in row]
        return {key: value for row in measured for key, value in row.items()}

    def is_best(self) -> bool:
        """Whether the last evaluation of `data.eval` is the best so far, by `config.best`.

        Raises UserError where it does not have that metric.
        """
        _, best_of, values = self._ranked()
        return best_of(values) != best_of(values[:-1], default=None)

    def gains_nothing(self, step: int) -> bool:
        """Whether `stop_after` evaluations of `data.eval` had no gain, so that the run has `ended`
        at this step. The rows alone decide, so a run that is continued ends where an undisturbed
        one does."""
        if not (wanted := self._config.stop_after):
            return False
        metric, best_of, values = self._ranked() if self.last(self._of_split) else ("", max, [])
        since = without_gain(values, best_of)
        if first_says(since >= wanted):  # a collective: processes must not differ
            best = in_words(metric, best_of(values, default=math.nan))
            why = f"{since} evaluations without a gain; the best one had {best}"
            self.ended = step, f"at step {step} of {self._config.total_steps}: {why}"
        return self.ended is not None

    @property
    def _of_split(self) -> str:
        """What the metrics of `data.eval` begin with."""
        return f"eval/{self._config.data.eval.split}/"

    def _ranked(self) -> tuple[str, Callable, list[float]]:
        """(The metric that ranks, `max` or `min`, its value in every evaluation of `data.eval`.)"""
        metric, best_of = ranked_by(self._config.best)
        prefix = self._of_split
        last = self.last(prefix)
        if prefix + metric not in last:
            known = [key.removeprefix(prefix) for key in last if key.startswith(prefix)]
            raise UserError(
                f"best is {self._config.best!r}, and the evaluation has no {metric}: "
                f"{', '.join(known)}"
            )
        values = [row[prefix + metric] for row in self._rows.rows if prefix + metric in row]
        return metric, best_of, values

    def times(self) -> None:
        """Prints where the time went. With several processes, prints it for each, to find the one
        that the others waited for: it waited longest for data, or its steps took least time."""
        self.say(f"time: {self.ledger.in_words()}")
        if jax.process_count() > 1:
            mine = self.ledger.seconds
            parts = "  ".join(f"{part} {mine[part]:.1f} s" for part in TRAINING)
            for number, line in enumerate(everyones(f"{socket.gethostname()}  {parts}")):
                self.say(f"process {number}: {line}")

    # -- people ----------------------------------------------------------------------------
    def say(self, text: str) -> None:
        """Prints a line, unless the run is quiet or this is not the first process."""
        if not self._quiet:
            self._console.say(printable_lines(text))

    def warn(self, text: str) -> None:
        """Prints a line in every process, for problems of one process alone. What comes again is
        counted, and the count is printed at the end."""
        for line in self._repeats.new(text):
            self._warn(line)

    def _warn(self, line: str) -> None:
        if process() > 0:
            print(f"process {process()}: {printable_lines(line)}", file=sys.stderr)
        self.say(line)

    def at(self, step: int, loss: Any = None) -> None:
        """Called after every step; `loss` is that of an earlier one, if it is known."""
        self._console.at(step, loss)
        if traced := self._profile.after(step):
            self.say(traced)

    def close(self, code: int = 0) -> None:
        """Ends everything. `code` is what `vit` will exit with."""
        self._profile.close()
        for line in self._repeats.counted():
            self._warn(line)
        self._console.close()
        self._rows.close()
        for writer in self._writers:
            if isinstance(writer, InBackground):
                writer.close(code)
            else:
                writer.close()
        sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        interrupted = isinstance(error, KeyboardInterrupt)
        code = INTERRUPTED if interrupted else getattr(error, "code", USER_ERROR)
        self.close(0 if error is None else code)
