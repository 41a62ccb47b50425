"""The study of a sweep: what is tried next and what came of it, in Optuna's storage.

Everything that a sweep knows is in the storage and in the trials' folders, so that a killed one
goes on: a trial that was begun is RUNNING there until it is told. One process at a time sweeps a
study (its folder is locked); any number may read it, Optuna's dashboard too.
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
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from vit_jax.config import FREE_ON_RESUME, base, flat
from vit_jax.errors import UserError, cannot_write, nearest
from vit_jax.sweeping import halving
from vit_jax.sweeping.space import Space

JOURNAL, LOCK = "study.journal", ".sweep.lock"
IDENTITY = "identity"  # the study's attribute that says what it is of

# method: what draws a point. A grid is drawn from nothing: all of its points wait in line.
METHODS: dict[str, Any] = {
    "grid": optuna.samplers.RandomSampler,
    "random": optuna.samplers.RandomSampler,
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
    "halving": optuna.samplers.RandomSampler,
}

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclasses.dataclass(frozen=True)
class Search:
    """What is searched, and how."""

    space: Space
    method: str
    metric: str  # a key of the rows of metrics.jsonl
    trials: int
    prunes: bool = False  # by Optuna's pruner

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return "minimize" if self.metric.endswith("loss") else "maximize"

    @property
    def sign(self) -> int:
        return 1 if self.direction == "maximize" else -1


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder of a study, which is made. Raises UserError where a living sweep does."""
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
            if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing came of it
                (folder / LOCK).unlink()
                folder.rmdir()


@contextlib.contextmanager
def told(storage: str, *more: type[Exception]) -> Iterator[None]:
    """Makes what a storage says of its troubles, and errors of `more` types, the user's line."""
    from sqlalchemy.exc import SQLAlchemyError

    troubles: Any = (optuna.exceptions.StorageInternalError, SQLAlchemyError, *more)
    try:
        yield
    except troubles as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(
            f"storage {storage}: {reason}; it is a URL such as sqlite:////PATH/sweeps.db, which "
            "must be there to read and write, or none for a file in the work folder"
        ) from error


class _Journal(JournalFileBackend):
    """Optuna's file, which names itself where it cannot be written, and keeps no half record."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        path = Path(self._file_path)
        try:
            super().append_logs(logs)
        except OSError as error:
            with contextlib.suppress(OSError):
                _mend(path)
            raise cannot_write(path, error) from error


def opened(url: str | None, folder: Path) -> Any:
    """The storage at a URL, or the study's own file. Raises UserError where it cannot be used."""
    if url:
        with told(url, ImportError, ValueError, OSError):
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
    except Exception as error:  # also whatever Optuna makes of records that it has not written
        what = damage or f"is no journal of Optuna's ({type(error).__name__})"
        raise UserError(
            f"{journal} {what}: put back a copy of the file, or choose another --study"
        ) from error


def _damage(journal: Path) -> str:
    """Which line of a journal is no record; nothing where all are, or where a sweep is still
    writing the last one. Optuna tells of some of them only when it writes the next."""
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
    """After a sweep that was killed while it wrote: half a record, which would make the next one
    unreadable too, and Optuna's lock, which would be waited for."""
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if not journal.is_file():
        return
    data = journal.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(journal, data.rfind(b"\n") + 1)


def load(name: str, url: str | None, folder: Path) -> optuna.Study:
    """A study that is there. Raises UserError where it is not, with the nearest."""
    if not url and not (folder / JOURNAL).is_file():
        raise UserError(f"no study in {folder}: give the --workdir and --study of a sweep")
    storage = opened(url, folder)
    with told(url or str(folder / JOURNAL)):
        names = optuna.study.get_all_study_names(storage)
    if name not in names:
        raise UserError(f"no study {name!r} in {url or folder / JOURNAL}: {nearest(name, names)}")
    study = optuna.load_study(study_name=name, storage=storage)
    if _stored_identity(study) is None:
        raise UserError(f"study {name} has not begun: there is nothing to report")
    return study


def _stored_identity(study: optuna.Study) -> dict[str, Any] | None:
    """What a study says that it is of; None of one that was killed before it said so. Raises
    UserError where another program has made it."""
    found = study.user_attrs.get(IDENTITY)
    if found is None and not study.get_trials(deepcopy=False):
        return None
    told = ("space", "method", "metric")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in told):
        raise UserError(
            f"study {study.study_name} is none of vit sweep, for it does not say what it is of: "
            "choose another --study or --storage"
        )
    return found


def identity(config: ConfigDict, search: Search, elsewhere: Path | None = None) -> dict[str, Any]:
    """What a study is of: how it searches, and the keys that its trials share and that decide their
    numbers; of a storage `elsewhere` than in the folder of the trials, that folder too."""
    lengths = ("total_", "init", "resume")  # which may change when one run goes on
    default = flat(base())
    keys = {
        key: value for key, value in flat(config).items()
        if value != default[key] and key not in search.space.distributions
        and (key.startswith(lengths) or not key.startswith(FREE_ON_RESUME))
    }  # fmt: skip
    keys |= {"space": str(search.space), "method": search.method, "metric": search.metric}
    keys |= {"folder": str(elsewhere)} if elsewhere else {}
    return json.loads(json.dumps(keys))


def begin(name: str, storage: Any, search: Search, of: dict[str, Any]) -> optuna.Study:
    """The study, new or continued; the points of a grid wait in it.

    Raises UserError where it is there, but of another config or another search.
    """
    if name in optuna.study.get_all_study_names(storage):
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
            f"{' …' if len(differing) > 5 else ''}): choose another --study, or what it was"
        )
    if not search.space.ranges and search.method in ("grid", "halving"):
        points = search.space.points
        for point in points[len(study.get_trials(deepcopy=False)) :]:
            study.enqueue_trial(point)
    return study


def following(study: optuna.Study, search: Search) -> Trial | None:
    """The next trial to begin; None where there are as many as were asked for."""
    trials = study.get_trials(deepcopy=False)
    waits = any(trial.state == TrialState.WAITING for trial in trials)
    if not waits and len(trials) >= search.trials:
        return None
    begun = min((t.number for t in trials if t.state == TrialState.WAITING), default=len(trials))
    study.sampler = _sampler(study, search, begun)
    return _at_its_point(study.ask(), search)


def taken_up(study: optuna.Study, search: Search, trial: FrozenTrial) -> Trial:
    """A trial that was begun and not told; one that had no values yet draws the same."""
    study.sampler = _sampler(study, search, trial.number)
    return _at_its_point(Trial(study, trial._trial_id), search)


def _sampler(study: optuna.Study, search: Search, number: int) -> Any:
    """Of one trial: one that starts again with its seed would draw the same once more."""
    return METHODS[search.method](seed=zlib.crc32(study.study_name.encode()) + number)


def _at_its_point(trial: Trial, search: Search) -> Trial:
    """With a value for every key."""
    d: Any
    for key, d in search.space.distributions.items():
        if isinstance(d, CategoricalDistribution):
            trial.suggest_categorical(key, d.choices)
        elif isinstance(d, FloatDistribution):
            trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)
        else:
            trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
    return trial


def pruner(total_steps: int) -> optuna.pruners.SuccessiveHalvingPruner:
    """What stops trials of random or TPE, whose later points depend on earlier ones: a trial that
    comes to a rung goes on where it is of the best third up to then (arXiv 1810.05934)."""
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=max(1, round(total_steps * halving.RUNGS[0])),
        reduction_factor=halving.REDUCTION,
    )


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to their end, best first; those that were pruned are not among them."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    return sorted(done, key=lambda trial: sign * (trial.value or 0.0))
