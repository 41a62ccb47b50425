"""The study of a sweep, in Optuna's storage: the points to try, and the results.

Everything that a sweep knows is in the storage and in the trials' folders, so that a killed sweep
can be continued. A trial stays RUNNING in the storage until its result is stored. Only one process
at a time sweeps a study, because the folder is locked. Any number may read it, also Optuna's
dashboard.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import optuna
from ml_collections import ConfigDict
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from vit_jax.config import COUNTS, FREE_ON_RESUME, base, flat
from vit_jax.errors import UserError, cannot_write, nearest
from vit_jax.sweeping import halving
from vit_jax.sweeping.space import Space

JOURNAL, LOCK = "study.journal", ".sweep.lock"
IDENTITY = "identity"  # attribute of a study: its config, space, method and metric


optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclasses.dataclass(frozen=True)
class Search:
    """The space that is searched, and the method."""

    space: Space
    method: str
    metric: str  # a key of metrics.jsonl
    trials: int
    prunes: bool = False  # by Optuna's pruner
    low: bool = False  # whether the lowest value of the metric is the best

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return "minimize" if self.low else "maximize"

    @property
    def sign(self) -> int:
        return 1 if self.direction == "maximize" else -1


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes and locks the folder of a study. Raises UserError if a living sweep holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"study {folder} is locked by a living sweep (process {lock.read().strip()}): wait "
                "for it, stop it, or choose another --study"
            ) from None
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            _mend(folder / JOURNAL)
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [LOCK]:  # no study was made
                (folder / LOCK).unlink()
                folder.rmdir()


@contextlib.contextmanager
def in_one_line(storage: str, *more: type[Exception]) -> Iterator[None]:
    """Turns errors of a storage, and errors of `more` types, into a UserError."""
    from sqlalchemy.exc import SQLAlchemyError

    errors: Any = (optuna.exceptions.StorageInternalError, SQLAlchemyError, *more)
    try:
        yield
    except errors as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(
            f"storage {storage}: {reason}; it is a URL such as sqlite:////PATH/sweeps.db, which "
            "must be there to read and write, or none for a file in the work folder"
        ) from error


class _Journal(JournalFileBackend):
    """Optuna's file. If it cannot be written, half a record is removed and the error names it."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        path = Path(self._file_path)
        try:
            super().append_logs(logs)
        except OSError as error:
            with contextlib.suppress(OSError):
                _mend(path)
            raise cannot_write(path, error) from error


def opened(url: str | None, folder: Path) -> Any:
    """The storage at a URL, or the study's own file. Raises UserError if it cannot be used."""
    if url:
        with in_one_line(url, ImportError, ValueError, OSError):
            return optuna.storages.get_storage(url)
    journal = folder / JOURNAL
    if journal.exists() and not journal.is_file():
        raise UserError(f"{journal} is no file: move it away, or choose another --study")
    damage = ""
    try:
        if damage := _damage(journal):
            raise ValueError(damage)
        return optuna.storages.JournalStorage(_Journal(str(journal)))
    except OSError as error:
        raise cannot_write(journal, error) from error
    except Exception as error:  # Optuna may raise anything for foreign records
        problem = damage or f"is no journal of Optuna's ({type(error).__name__})"
        raise UserError(
            f"{journal} {problem}: put back a copy of the file, or choose another --study"
        ) from error


def _damage(journal: Path) -> str:
    """The first line of a journal that is no record; empty if there is none. A last line without
    an end is not damaged, because a sweep may be writing it. Optuna finds some damages only when
    it writes the next record."""
    with journal.open("rb") if journal.exists() else contextlib.nullcontext(()) as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                return f"is damaged: line {number} is no JSON" if line.endswith(b"\n") else ""
            if not isinstance(record, dict) or "op_code" not in record:
                return f"is damaged: line {number} is no record of Optuna's"
    return ""


def _mend(journal: Path) -> None:
    """Removes what a sweep leaves if it is killed while it writes: half a record, which would make
    the next record unreadable, too, and Optuna's lock, for which the next sweep would wait."""
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if not journal.is_file():
        return
    data = journal.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(journal, data.rfind(b"\n") + 1)


def load(name: str, url: str | None, folder: Path) -> optuna.Study:
    """Loads a study. Raises UserError if there is none of this name, with the nearest names."""
    if not url and not (folder / JOURNAL).is_file():
        raise UserError(f"no study in {folder}: give the --workdir and --study of a sweep")
    storage = opened(url, folder)
    with in_one_line(url or str(folder / JOURNAL)):
        names = optuna.study.get_all_study_names(storage)
    if name not in names:
        raise UserError(f"no study {name!r} in {url or folder / JOURNAL}: {nearest(name, names)}")
    study = optuna.load_study(study_name=name, storage=storage)
    if _stored_identity(study) is None:
        raise UserError(f"study {name} has not begun: there is nothing to report")
    return study


def _stored_identity(study: optuna.Study) -> dict[str, Any] | None:
    """The identity of a study; None if the sweep was killed before it stored one. Raises UserError
    if another program has made the study."""
    stored = study.user_attrs.get(IDENTITY)
    if stored is None and not study.get_trials(deepcopy=False):
        return None
    keys = ("space", "method", "metric")
    if not isinstance(stored, dict) or not all(isinstance(stored.get(key), str) for key in keys):
        raise UserError(
            f"study {study.study_name} is none of vit sweep: its config and search are not stored: "
            "choose another --study or --storage"
        )
    return stored


def identity(config: ConfigDict, search: Search, elsewhere: Path | None = None) -> dict[str, Any]:
    """The identity of a study: how it searches, and the keys that its trials share and that decide
    their numbers. If the storage is not in the folder of the trials, `elsewhere` is that folder."""
    default = flat(base())
    keys = {
        key: value for key, value in flat(config).items()
        if value != default.get(key) and key not in search.space.distributions
        and key not in FREE_ON_RESUME - COUNTS
    }  # fmt: skip
    keys |= {"space": str(search.space), "method": search.method, "metric": search.metric}
    keys |= {"folder": str(elsewhere)} if elsewhere else {}
    return json.loads(json.dumps(keys))


def begin(name: str, storage: Any, search: Search, of: dict[str, Any]) -> optuna.Study:
    """Begins or continues a study; all points of a grid wait in its queue.

    Raises UserError if a study of this name has another config or another search.
    """
    if name in optuna.study.get_all_study_names(storage):  # so that a refusal writes nothing
        study = optuna.load_study(study_name=name, storage=storage)
    else:
        study = optuna.create_study(study_name=name, storage=storage, direction=search.direction)
    before = _stored_identity(study)
    if before is None:
        study.set_user_attr(IDENTITY, of)
    elif differing := [
        f"{key}: {before.get(key)!r} there, {of.get(key)!r} here"
        for key in sorted(before.keys() | of.keys()) if before.get(key) != of.get(key)
    ]:  # fmt: skip
        raise UserError(
            f"study {name} is of another config or search ({'; '.join(differing[:5])}"
            f"{' …' if len(differing) > 5 else ''}): choose another --study, or the old config"
        )
    if not search.space.ranges and search.method in ("grid", "halving"):
        points = search.space.points
        for point in points[len(study.get_trials(deepcopy=False)) :]:
            study.enqueue_trial(point)
    return study


def following(study: optuna.Study, search: Search) -> Trial | None:
    """The next new trial; None if there are as many as were asked for."""
    trials = study.get_trials(deepcopy=False)
    waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
    if not waiting and len(trials) >= search.trials:
        return None
    study.sampler = _sampler(study, search, min(waiting, default=len(trials)))
    return study.ask(search.space.distributions)


def taken_up(study: optuna.Study, search: Search, trial: FrozenTrial) -> Trial:
    """A trial that was begun and has no result yet. If it had no values yet, it draws the values
    that it would have drawn."""
    study.sampler = _sampler(study, search, trial.number)
    again = Trial(study, trial._trial_id)
    for key, distribution in search.space.distributions.items():
        again._suggest(key, distribution)
    return again


def _sampler(study: optuna.Study, search: Search, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial. Each trial has a seed of its own, because a sampler that starts
    again with the same seed would draw the same values once more."""
    seed = zlib.crc32(study.study_name.encode()) + number
    if search.method == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def pruner(total_steps: int) -> optuna.pruners.SuccessiveHalvingPruner:
    """The pruner of random and TPE, whose later points depend on earlier ones. A trial at a rung
    goes on if it is in the best third of those that came there before (arXiv 1810.05934)."""
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=max(1, round(total_steps * halving.RUNGS[0])),
        reduction_factor=halving.REDUCTION,
    )


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to their end, without the pruned ones, best first."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best_is_high = study.direction == optuna.study.StudyDirection.MAXIMIZE
    return sorted(done, key=lambda trial: trial.value or 0.0, reverse=best_is_high)
