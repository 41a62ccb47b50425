"""Trials as they run: each is `vit train` in a folder of its own, so many at a time, watched
through the rows that it writes; stopped early by SIGTERM, so that its state is saved.

What is tried next, and what a study remembers, is in study.py.
"""

import dataclasses
import math
import os
import re
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from vit_jax.checkpoint.steps import steps
from vit_jax.errors import (
    INTERRUPTED,
    NON_FINITE,
    RESTART,
    USER_ERROR,
    Stopped,
    UserError,
    printable,
)
from vit_jax.files import read_bytes
from vit_jax.launch.runs import locked
from vit_jax.records import MOST_ROWS, NOTHING, Kinds, is_number, load, reason, rows_in
from vit_jax.sweeping import halving
from vit_jax.sweeping import study as studies
from vit_jax.sweeping.space import in_words, overrides
from vit_jax.sweeping.study import Search

TICK = 0.1  # seconds between two looks
PRUNED_AT, STEPS, REASON = "pruned_at", "steps", "reason"  # what a study remembers of a trial
DIVERGED = "diverged"


class Rows:
    """The evaluations of a run, as they appear in its `metrics.jsonl`."""

    def __init__(self, folder: Path, metric: str):
        self._path, self._metric = folder / "metrics.jsonl", metric
        self._seen: Any = None

    def new(self, after: int) -> Iterator[tuple[int, float]]:
        """(step, value) of those after a step; nothing where the file is as it was."""
        try:
            stat = self._path.stat()
            if (found := (stat.st_ino, stat.st_size)) == self._seen:
                return
            lines = list(rows_in(read_bytes(self._path, MOST_ROWS), self._metric.encode()))
        except OSError:  # not there yet
            return
        self._seen = found
        for row in (line.row for line in lines if line.row is not None):
            if self._metric in row and row["step"] > after:
                yield row["step"], float(row[self._metric])


@dataclasses.dataclass
class Live:
    """A trial that runs, or waits for what an earlier sweep has left running in its folder."""

    trial: Trial
    folder: Path
    slot: int
    rows: Rows
    reported: int
    rung: int | None = None  # of halving, where it waits for the others
    waits: bool = False
    running: Any = None


class Sweep:
    """Runs the trials of a study. `launch(name, folder, overrides, slot)` starts one."""

    def __init__(self, study: optuna.Study, search: Search, folder: Path, parallel: int,
                 launch: Callable[[str, Path, dict[str, str], int], Any],
                 say: Callable[[str], None]):  # fmt: skip
        self._study, self._search, self._folder = study, search, folder
        self._parallel, self._launch, self._say = parallel, launch, say
        self._halves = search.method == "halving"
        self._live: list[Live] = []
        self._code: int | None = None
        self._stopping = False
        self.failed: dict[int, str] = {}

    def run(self) -> None:
        """Returns when every trial has ended, with a line for each of those that `failed`.

        Raises Stopped after SIGTERM or Ctrl-C, and UserError where the first trial cannot run, when
        all that ran are saved and stopped.
        """
        before = {number: signal.signal(number, self._remember)
                  for number in (signal.SIGINT, signal.SIGTERM)}  # fmt: skip
        try:
            while self._fill() or self._live:
                for live in list(self._live):
                    self._look(live)
                if self._code is not None:
                    raise Stopped("sweep stopped; the same command continues it", self._code)
                time.sleep(TICK)
        finally:
            self._stop_all()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        self._code = INTERRUPTED if number == signal.SIGINT else RESTART
        os.write(2, b"vit: trials save, then the sweep stops\n")
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def _fill(self) -> bool:
        """Takes up trials until there are as many as may run; whether some remain."""
        while len(self._live) < self._parallel and self._code is None:
            trial, rung = self._contender() if self._halves else (self._begun(), None)
            if trial is None:
                return False
            folder = self._folder_of(trial)
            slot = min(set(range(self._parallel)) - {live.slot for live in self._live})
            last = max(trial.storage.get_trial(trial._trial_id).intermediate_values, default=0)
            rows = Rows(folder, self._search.metric)
            self._live.append(Live(trial, folder, slot, rows, last, rung))
        return True

    def _folder_of(self, trial: Any) -> Path:
        return self._folder / f"{trial.number:04d}"

    def _idle(self) -> list[FrozenTrial]:
        """Trials that were begun, not told, and do not run."""
        busy = self.failed.keys() | {live.trial.number for live in self._live}
        begun = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in begun if trial.number not in busy]

    def _begun(self) -> Trial | None:
        """The next trial, those first that a killed sweep has left."""
        for trial in self._idle():
            return studies.taken_up(self._study, self._search, trial)
        return studies.following(self._study, self._search)

    def _contender(self) -> tuple[Trial | None, int | None]:
        """The next trial of successive halving and the rung that it may run to; tells those that
        are out."""
        search, trials = self._search, self._study.get_trials(deepcopy=False)
        race, rung = halving.standing(trials, search.trials, self.failed, search.sign)
        numbers = {trial.number for trial in race}
        for trial in self._idle():
            folder = self._folder_of(trial)
            if trial.number not in numbers:
                self._tell(Trial(self._study, trial._trial_id), None, TrialState.PRUNED,
                           f"pruned at step {_steps(folder)}")  # fmt: skip
            elif rung is None or halving.key(rung) not in trial.user_attrs:
                return studies.taken_up(self._study, search, trial), rung
        return (studies.following(self._study, search) if rung == 0 else None), rung

    def _look(self, live: Live) -> None:
        """Starts, watches or ends one trial."""
        if live.running is None:
            if not self._over(live):
                self._start(live)
            return
        code = live.running.poll()
        self._report(live)
        if code is not None:
            self._ended(live, code)

    def _over(self, live: Live) -> bool:
        """Tells a trial that had ended, or was to be pruned, when the sweep was killed."""
        if (live.folder / "result.json").is_file():
            self._report(live)
            self._ended(live, 0)
        elif PRUNED_AT in live.trial.user_attrs and not locked(live.folder):
            self._ended(live, RESTART)
        return live not in self._live

    def _start(self, live: Live) -> None:
        number, point = live.trial.number, live.trial.params
        again = "continues" if (live.folder / "config.json").is_file() else "begins"
        name = f"{self._study.study_name}-{number:04d}-{zlib.crc32(bytes(self._folder)):08x}"
        live.running = self._launch(name, live.folder, overrides(point), live.slot)
        if live.running is not None:
            self._say(f"trial {number} {again}: {in_words(point)}")
            if PRUNED_AT in live.trial.user_attrs:  # it runs on SLURM, and the sweep was killed
                live.running.stop()

    def _report(self, live: Live) -> None:
        """Tells the study what was measured, and stops the trial where it waits for the others or
        does too badly; the decision is stored first."""
        for step, value in live.rows.new(live.reported):
            live.reported = step
            live.trial.report(value, step)
            total = _number(live.folder / "config.json", "total_steps")
            if step == total:
                continue
            stops = self._halves and self._at_rung(live, step / total, value)
            if self._search.prunes and PRUNED_AT not in live.trial.user_attrs:
                self._study.pruner = studies.pruner(total)
                if live.trial.should_prune():
                    live.trial.set_user_attr(PRUNED_AT, step)
                    stops = True
            if stops and live.running is not None:
                live.running.stop()

    def _at_rung(self, live: Live, share: float, value: float) -> bool:
        """Stores what a trial has reached at each rung; whether it is the one where it waits."""
        for rung, at in enumerate(halving.RUNGS):
            if share >= at and halving.key(rung) not in live.trial.user_attrs:
                live.trial.set_user_attr(halving.key(rung), value)
                live.waits = live.waits or rung == live.rung
        return live.waits

    def _ended(self, live: Live, code: int) -> None:
        """Tells what became of a trial; nothing of one that is to go on."""
        trial, attributes = live.trial, live.trial.user_attrs
        self._live.remove(live)
        if code == 0:
            result = live.folder / "result.json"
            told = _object(result)
            if self._search.metric not in told:
                names = ", ".join(printable(key) for key in told if key.startswith("eval/"))
                raise UserError(f"no {self._search.metric} is measured by the trials: {names}")
            value = _number(result, self._search.metric)
            if math.isnan(value):
                self._tell(trial, None, TrialState.PRUNED, DIVERGED)
            else:
                self._tell(trial, value, TrialState.COMPLETE, "")
        elif code == NON_FINITE:
            self._tell(trial, None, TrialState.PRUNED, DIVERGED)
        elif PRUNED_AT in attributes:
            self._tell(trial, None, TrialState.PRUNED, f"pruned at step {attributes[PRUNED_AT]}")
        elif code != RESTART or not (live.waits or self._stopping):
            why = f"trial {trial.number} ({in_words(trial.params)}): {_why(live, code)}"
            self.failed[trial.number] = why
            if code == USER_ERROR and not studies.finished(self._study):
                raise UserError(why)  # most likely every trial's
            self._say(why)

    def _tell(self, trial: Trial, value: float | None, state: TrialState, reason: str) -> None:
        trial.set_user_attr(STEPS, _steps(self._folder_of(trial)))
        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, value, state)
        reached = f"{self._search.metric} {value:.4f}" if value is not None else reason
        self._say(f"trial {trial.number} of {self._search.trials}: {in_words(trial.params)}: "
                  f"{reached}")  # fmt: skip

    def _stop_all(self) -> None:
        """Everything that runs saves and stops."""
        self._stopping = True
        for live in self._live:
            if live.running is not None:
                live.running.stop()
        for live in list(self._live):
            if live.running is not None and (code := live.running.wait()) in (0, RESTART):
                self._ended(live, code)


def _object(file: Path, needs: Kinds = NOTHING) -> dict[str, Any]:
    """The object in a file that a trial wrote. Raises UserError where there is none."""
    try:
        return load(file, needs)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{printable(file)} is damaged ({reason(error)}): remove {printable(file.parent)}, and "
            "the same command trains it again"
        ) from error


def _number(file: Path, key: str) -> Any:
    return _object(file, {key: ("a number", lambda value: is_number(value, finite=False))})[key]


def _steps(folder: Path) -> int:
    """The step that a trial's last checkpoint is of."""
    return max(steps(folder / "checkpoints"), default=0)


def _why(live: Live, code: int) -> str:
    """The line that a trial ended with, or where to read on."""
    log = live.running.logs[0]
    lines = (
        re.findall(r"^vit: (?:error: )?(.+)$", log.read_text("utf-8", errors="replace"), re.M)
        if log.is_file()
        else []
    )
    return (
        printable(lines[-1]) if lines and code == USER_ERROR else f"ended with code {code}; {log}"
    )
