"""Runs the trials of a study, several at a time. Each is `vit train` in a folder of its own. The
sweep reads the rows that they write. It stops a trial early by SIGTERM, so that the trial saves.

study.py decides what is tried next and stores the results.
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

from vit_jax import errors
from vit_jax.checkpoint.steps import steps
from vit_jax.errors import Stopped, UserError, printable
from vit_jax.launch.local import handling
from vit_jax.launch.runs import locked
from vit_jax.records import NOTHING, Kinds, is_number, load, read_rows, reason
from vit_jax.sweeping import halving
from vit_jax.sweeping import study as studies
from vit_jax.sweeping.space import in_words, overrides
from vit_jax.sweeping.study import Search

TICK = 0.1  # seconds between two checks of the trials
PRUNED_AT, STEPS, REASON = "pruned_at", "steps", "reason"  # attributes of a stored trial
DIVERGED = "diverged"


class Rows:
    """The evaluations of a run, read from its `metrics.jsonl` while it is written."""

    def __init__(self, folder: Path, metric: str):
        self._path, self._metric = folder / "metrics.jsonl", metric
        self._seen: Any = None

    def new(self, after: int) -> Iterator[tuple[int, float]]:
        """(step, value) of every evaluation after a step; nothing if the file has not changed."""
        try:
            stat = self._path.stat()
            if (stat.st_ino, stat.st_size) == self._seen:
                return
            rows, _ = read_rows(self._path, self._metric.encode(), infinite=True)
        except OSError:  # the run has not written it yet
            return
        self._seen = stat.st_ino, stat.st_size
        for row in rows:
            if self._metric in row and row["step"] > after:
                yield row["step"], float(row[self._metric])


@dataclasses.dataclass
class Live:
    """A trial that runs, or that waits until a run of an earlier sweep leaves its folder."""

    trial: Trial
    folder: Path
    slot: int
    rows: Rows
    reported: int
    rung: int | None = None  # the rung of successive halving at which the trial stops
    waits: bool = False  # whether it has stopped at its rung, until the others reach theirs
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
        """Returns when every trial has ended. `failed` then holds a line for each that failed.

        Raises Stopped after SIGTERM or Ctrl-C, and UserError if the first trial cannot run, when
        all running trials have saved and stopped.
        """
        with handling(self._remember):
            try:
                while self._fill() or self._live:
                    for live in list(self._live):
                        self._look(live)
                    if self._code is not None:
                        raise Stopped("sweep stopped; the same command continues it", self._code)
                    time.sleep(TICK)
            finally:
                self._stop_all()

    def _remember(self, number: int, frame: object) -> None:
        self._code = errors.INTERRUPTED if number == signal.SIGINT else errors.RESTART
        os.write(2, b"vit: trials save, then the sweep stops\n")
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def _fill(self) -> bool:
        """Takes up trials until `parallel` of them are live. Returns whether some may remain."""
        while len(self._live) < self._parallel and self._code is None:
            trial, rung = self._contender() if self._halves else (self._next(), None)
            if trial is None:
                return False
            folder = self._folder_of(trial)
            slot = min(set(range(self._parallel)) - {live.slot for live in self._live})
            stored = trial.storage.get_trial(trial._trial_id).intermediate_values
            rows = Rows(folder, self._search.metric)
            self._live.append(Live(trial, folder, slot, rows, max(stored, default=0), rung))
        return True

    def _folder_of(self, trial: Any) -> Path:
        return self._folder / f"{trial.number:04d}"

    def _idle(self) -> list[FrozenTrial]:
        """Trials that were begun, have no result, and do not run."""
        busy = self.failed.keys() | {live.trial.number for live in self._live}
        begun = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in begun if trial.number not in busy]

    def _next(self) -> Trial | None:
        """The next trial; first those that a killed sweep has left."""
        if idle := self._idle():
            return studies.taken_up(self._study, self._search, idle[0])
        return studies.following(self._study, self._search)

    def _contender(self) -> tuple[Trial | None, int | None]:
        """The next trial of successive halving, and the rung up to which it may run. Stores the
        trials that are not continued as pruned."""
        search, trials = self._search, self._study.get_trials(deepcopy=False)
        race, rung = halving.standing(trials, search.trials, self.failed, search.sign)
        numbers = {trial.number for trial in race}
        for trial in self._idle():
            if trial.number not in numbers:
                why = f"pruned at step {_steps(self._folder_of(trial))}"
                self._tell(Trial(self._study, trial._trial_id), None, TrialState.PRUNED, why)
            elif rung is None or halving.key(rung) not in trial.user_attrs:
                return studies.taken_up(self._study, search, trial), rung
        return (studies.following(self._study, search) if rung == 0 else None), rung

    def _look(self, live: Live) -> None:
        """Starts, watches or ends one trial."""
        if live.running is not None:
            code = live.running.poll()
            self._report(live)
            if code is not None:
                # A signal that comes when the result is written already takes nothing away.
                self._ended(live, 0 if (live.folder / "result.json").is_file() else code)
        elif (live.folder / "result.json").is_file():  # it ended after the sweep was killed
            self._report(live)
            self._ended(live, 0)
        elif PRUNED_AT in live.trial.user_attrs and not locked(live.folder):
            self._ended(live, errors.RESTART)
        else:
            self._start(live)

    def _start(self, live: Live) -> None:
        number, point = live.trial.number, live.trial.params
        verb = "continues" if (live.folder / "config.json").is_file() else "begins"
        name = f"{self._study.study_name}-{number:04d}-{zlib.crc32(bytes(self._folder)):08x}"
        live.running = self._launch(name, live.folder, overrides(point), live.slot)
        if live.running is not None:
            self._say(f"trial {number} {verb}: {in_words(point)}")
            if PRUNED_AT in live.trial.user_attrs:  # a job on SLURM outlived the killed sweep
                live.running.stop()

    def _report(self, live: Live) -> None:
        """Stores new evaluations of a trial. Stops the trial at its rung, or if it is to be pruned;
        the decision is stored first."""
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
        """Stores the value of a trial at each rung that it has reached. Returns whether it waits at
        its own rung."""
        for rung, at in enumerate(halving.RUNGS):
            if share >= at and halving.key(rung) not in live.trial.user_attrs:
                live.trial.set_user_attr(halving.key(rung), value)
                live.waits = live.waits or rung == live.rung
        return live.waits

    def _ended(self, live: Live, code: int) -> None:
        """Stores the result of a trial that ended; nothing if the trial is continued later."""
        trial, attributes = live.trial, live.trial.user_attrs
        self._live.remove(live)
        value = self._result(live.folder / "result.json") if code == 0 else math.nan
        if not math.isnan(value):
            self._tell(trial, value, TrialState.COMPLETE, "")
        elif code in (0, errors.NON_FINITE):
            self._tell(trial, None, TrialState.PRUNED, DIVERGED)
        elif PRUNED_AT in attributes:
            self._tell(trial, None, TrialState.PRUNED, f"pruned at step {attributes[PRUNED_AT]}")
        elif code != errors.RESTART or not (live.waits or self._stopping):
            why = f"trial {trial.number} ({in_words(trial.params)}): {_why(live, code)}"
            self.failed[trial.number] = why
            if code == errors.USER_ERROR and not studies.finished(self._study):
                raise UserError(why)  # most likely all trials would fail
            self._say(why)

    def _result(self, file: Path) -> float:
        """The metric in the result of a trial, which may be NaN."""
        metric, measured = self._search.metric, _object(file)
        if metric not in measured:
            names = ", ".join(printable(key) for key in measured if key.startswith("eval/"))
            raise UserError(f"no {metric} is measured by the trials: {names}")
        return _number(file, metric)

    def _tell(self, trial: Trial, value: float | None, state: TrialState, reason: str) -> None:
        trial.set_user_attr(STEPS, _steps(self._folder_of(trial)))
        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, value, state)
        reached = reason if value is None else f"{self._search.metric} {value:.4f}"
        of = f"trial {trial.number} of {self._search.trials}"
        self._say(f"{of}: {in_words(trial.params)}: {reached}")

    def _stop_all(self) -> None:
        """Stops all running trials, which save first."""
        self._stopping = True
        running = [live for live in self._live if live.running is not None]
        for live in running:
            live.running.stop()
        for live in running:
            if (code := live.running.wait()) in (0, errors.RESTART):
                self._ended(live, code)


def _object(file: Path, needs: Kinds = NOTHING) -> dict[str, Any]:
    """The object in a file that a trial wrote. Raises UserError if there is none."""
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
    """The step of a trial's last checkpoint."""
    return max(steps(folder / "checkpoints"), default=0)


def _why(live: Live, code: int) -> str:
    """The last message of a trial that failed, or where its log is."""
    log = live.running.logs[0]
    if code == errors.USER_ERROR and log.is_file():
        text = log.read_text("utf-8", errors="replace")
        if lines := re.findall(r"^vit: (?:error: )?(.+)$", text, re.M):
            return printable(lines[-1])
    return f"ended with code {code}; {log}"
