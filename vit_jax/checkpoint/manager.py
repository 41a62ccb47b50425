"""Checkpoints of a run in `WORKDIR/checkpoints/STEP`.

They are saved in the background. The last ones and the best one are kept. They can be restored on
any mesh, with the layers stacked or listed. A restore must match every name, shape and dtype.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN

from vit_jax import ranking
from vit_jax.checkpoint import checksums, orbax_patches, steps
from vit_jax.checkpoint.tree import check_same, flatten, in_layout_of, nest, unflatten
from vit_jax.errors import (
    FILES_REMEDY,
    MEMORY_REMEDY,
    NO_THREAD,
    TOO_MANY_FILES,
    Stopped,
    UserError,
    printable,
)
from vit_jax.parallel.runtime import first_says
from vit_jax.records import (
    COUNT,
    LIST_OF_TEXTS,
    OBJECT,
    OBJECT_OF_NUMBERS,
    TEXT,
    Kind,
    is_number,
    read_object,
)

POLL = 0.01  # seconds between two checks of a save in which other processes take part
LOOK = 5.0  # seconds between two checks that the folder still exists
BEST = "best"  # RUN/best is the best checkpoint of the run in the folder RUN
Best = tuple[str, Callable]  # the metric that decides which checkpoint is best, and max or min

CONFIG: Kind = (
    "an object with at least model.name",
    lambda value: isinstance(value, dict) and isinstance(value.get("model.name"), str),
)
ABOUT = "about/metadata"  # Orbax's name of the JSON beside the arrays
ABOUT_KINDS = {
    "config": CONFIG, "classes": LIST_OF_TEXTS, "origin": TEXT, "train_examples": COUNT,
    "examples_seen": COUNT, "goodput": OBJECT_OF_NUMBERS,
}  # fmt: skip

# Texts in the errors of libraries if the machine refuses a save: (the reason, the remedy).
# The first text that an error contains is used.
ROOM = "make room, or mount it for writing"
REFUSED = {
    "Too many open files": (TOO_MANY_FILES, FILES_REMEDY),
    "can't start new thread": (NO_THREAD, MEMORY_REMEDY),
    "Cannot allocate memory": ("out of memory", MEMORY_REMEDY),
    "bad_alloc": ("out of memory", MEMORY_REMEDY),
    "No space left": ("disk full", ROOM),
    "Disk quota": ("disk quota reached", ROOM),
    "File too large": ("file size limit", ROOM),
    "Read-only file system": ("read-only file system", ROOM),
}


def find(path: str | Path) -> Path:
    """The checkpoint folder that a path names: itself, the latest one of a work folder RUN, or the
    best one of a run, as RUN/best.

    Raises UserError if there is none.
    """
    path = Path(path).expanduser().absolute()
    if is_best(path):
        return best(path.parent)
    if (path / steps.STATE).is_dir():
        return path
    for folder in (path / "checkpoints", path):
        if (last := steps.latest(folder)) is not None:
            return folder / str(last)
    raise UserError(
        f"{printable(path)} holds no checkpoint: expected a work folder with checkpoints/STEP, or "
        "checkpoints/STEP itself"
    )


def is_best(path: Path) -> bool:
    """Whether a path is RUN/best, and no folder of that name."""
    return path.name == BEST and (path.parent / "checkpoints").is_dir() and not path.exists()


def best(workdir: Path) -> Path:
    """The checkpoint of a run with the best evaluation, as its config ranks them; of equal ones the
    last. Raises UserError if none was evaluated."""
    folder, found = workdir / "checkpoints", []
    for step in steps.steps(folder):
        metric, direction = ranked(about(folder / str(step)))
        if (value := reached(folder / str(step), metric)) is not None:
            found.append((value if direction is max else -value, step))
    if not found:
        raise UserError(
            f"{printable(workdir)} has no checkpoint that was evaluated: name one of its steps, as "
            f"in {printable(folder)}/STEP"
        )
    return folder / str(max(found)[1])


def ranked(about: dict[str, Any]) -> Best:
    """How a run's checkpoints are ranked, by what one of them says of itself."""
    text = about["config"].get("best")
    return ranking.ranked_by(text if ranking.fits(text) else ranking.OLDEST)


def reached(checkpoint: Path, metric: str) -> float | None:
    """The value of a metric in the evaluation that a checkpoint was saved with, if there is one."""
    file = checkpoint / "metrics" / "metrics"
    value = read_object(file).get(metric) if file.is_file() else None
    return value if is_number(value) else None


@contextlib.contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """Turns errors of Orbax, TensorStore or the config's reader about a damaged checkpoint into a
    UserError."""
    try:
        yield
    except (OSError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError,
            RecursionError) as error:  # fmt: skip
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"{checkpoint} is no readable checkpoint ({type(error).__name__}: {reason}); another "
            "one beside it can be named with --config.resume, --config.init or --checkpoint"
        ) from error


def about(checkpoint: Path) -> dict[str, Any]:
    """The JSON that was saved beside the arrays: `examples_seen`, `config`, `classes`, …

    Raises UserError if it cannot be read, or if a key has a value of the wrong kind.
    """
    return read_object(checkpoint / ABOUT, ABOUT_KINDS, {"data": OBJECT})


def stored_shapes(checkpoint: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """path -> shape and dtype of every array in a checkpoint, without reading the arrays."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader, readable(checkpoint):
        tree = reader.metadata(checkpoint / "state").item_metadata.tree
    return {
        path: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)
        for path, leaf in flatten(tree).items()
    }


def read(checkpoint: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The named arrays of a checkpoint, each on the sharding of its `ShapeDtypeStruct`."""
    return _read(checkpoint, wanted, ocp.checkpoint_utils.construct_restore_args)


def read_host(checkpoint: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The named arrays of a checkpoint as NumPy arrays; uses no device."""
    in_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    return _read(checkpoint, wanted, lambda tree: jax.tree.map(lambda _: in_numpy, tree))


def _read(checkpoint: Path, wanted: dict[str, Any], restore_args: Callable) -> dict[str, Any]:
    target = nest(wanted)
    args = ocp.args.PyTreeRestore(target, restore_args=restore_args(target), partial_restore=True)
    with readable(checkpoint):
        return flatten(ocp.PyTreeCheckpointHandler().restore(checkpoint / "state", args=args))


def restore(checkpoint: Path, abstract: Any, shardings: Any, part: str = "") -> Any:
    """Restores a state (or a `part` of it, such as `params`), bit for bit as it was saved. The
    arrays are placed by `shardings`. The encoder's layers are stacked or listed as in `abstract`.

    Raises UserError listing every name, shape or dtype that differs.
    """
    prefix = f"{part}/" if part else ""
    stored = {
        p.removeprefix(prefix): leaf
        for p, leaf in stored_shapes(checkpoint).items()
        if p.startswith(prefix)
    }
    wanted, sharding_of = flatten(abstract), flatten(shardings)
    as_stored = in_layout_of(wanted, stored)
    check_same(stored, as_stored, str(checkpoint))
    if as_stored.keys() != wanted.keys():  # the other layout is read whole, then converted
        whole = NamedSharding(next(iter(sharding_of.values())).mesh, PartitionSpec())
        sharding_of = dict.fromkeys(as_stored, whole)
    target = {
        prefix + p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of[p])
        for p, leaf in as_stored.items()
    }
    flat = {p.removeprefix(prefix): leaf for p, leaf in read(checkpoint, target).items()}
    if as_stored.keys() == wanted.keys():
        return unflatten(flat, abstract)
    convert = jax.jit(
        lambda flat: unflatten(in_layout_of(flat, wanted), abstract), out_shardings=shardings
    )
    return convert(flat)


def write(checkpoint: Path, state: Any, about: dict[str, Any]) -> None:
    """Writes one checkpoint to a path that does not exist yet, as `Checkpoints` does in a run."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(checkpoint.absolute(), args=_items(state, about))
    checksums.write(checkpoint)


def _items(state: Any, about: dict[str, Any]) -> ocp.args.Composite:
    arrays = ocp.args.PyTreeSave(nest(flatten(state)))
    return ocp.args.Composite(state=arrays, about=ocp.args.JsonSave(about))


@dataclasses.dataclass(frozen=True)
class LastOfBothTiers:
    """Tells Orbax which checkpoints to keep: the newest one, and the last `keep` of those that were
    saved by step or have metrics. One that was saved by time is deleted when a newer one is
    complete."""

    keep: int
    every_steps: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        lasting = [
            number for number, checkpoint in enumerate(checkpoints)
            if checkpoint.step % self.every_steps == 0 or checkpoint.metrics
        ]  # fmt: skip
        kept = {*lasting[-self.keep :], len(checkpoints) - 1}
        return [number in kept for number in range(len(checkpoints))]


class Checkpoints:
    """Saves a run's states in the background, every `every_steps` steps and also every
    `every_minutes` minutes. Keeps the last `keep`, and with `keep_best` also the best one. `best`
    is the name of a metric and the function that chooses its best value, `max` or `min`.

    An error of a background save is raised by the next call of `check`, `save` or `close`.
    """

    def __init__(self, folder: Path, keep: int, keep_best: bool, every_steps: int = 1,
                 every_minutes: float | None = None, *, best: Best = ("", max)):  # fmt: skip
        self._every_steps, self._every_minutes = every_steps, every_minutes
        self._saved = self._looked = time.monotonic()
        metric, direction = best
        if keep_best and (not metric or direction not in (max, min)):
            raise ValueError(f"keep_best needs best=(METRIC, max or min), not {best}")
        policies: list[Any] = [LastOfBothTiers(keep, every_steps)]
        if keep_best:
            policies.append(
                BestN(
                    get_metric_fn=lambda metrics: metrics[metric], reverse=direction is min, n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )  # fmt: skip
        orbax_patches.stop_json_leak()
        self._manager = orbax_patches.Manager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                # Without best_fn, Orbax writes no metrics. A restarted run needs them to compare.
                best_fn=lambda metrics: metrics[metric],
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_checksums,
                    # Otherwise, if a folder cannot be made, all processes wait for it.
                    create_directories_asynchronously=False,
                ),
                save_root_metadata=False,
            ),
        )
        self._folder = Path(self._manager.directory)
        self._place = _identity(folder)

    def _write_checksums(self) -> None:
        """Called when all files of a save are on disk, before the checkpoint gets its name."""
        if jax.process_index() == 0:
            for partial in self._folder.glob(steps.PARTIAL):
                checksums.write(partial)

    def latest(self) -> int | None:
        """The last complete checkpoint on disk. Orbax also counts one that is being saved."""
        return max(steps.steps(self._folder), default=None)

    def due(self, step: int, by_time: bool) -> bool:
        """Whether to save after a step. With `by_time`, process 0 compares the time for all."""
        if step % self._every_steps == 0:
            return True
        if not by_time or not self._every_minutes:
            return False
        return first_says(time.monotonic() - self._saved > 60 * self._every_minutes)

    def save(self, step: int, state: Any, about: dict[str, Any], metrics: dict | None) -> None:
        """Starts a save. Returns when the state has been copied, before it is on disk.

        Raises UserError before anything is written if the disk has too little room or the folder
        is gone.
        """
        self.wait()
        self._check_place()
        self._check_room(state)
        self._saved = time.monotonic()
        args = _items(state, about)
        self._guard(lambda: self._manager.save(step, args=args, metrics=metrics, force=True))

    def _check_room(self, state: Any) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._refused(f"disk full ({needed:,} bytes needed, {free:,} free)", ROOM)

    def _check_place(self) -> None:
        """Raises UserError if the folder is not the one that the run began with. Orbax would make
        a new one that holds nothing but checkpoints."""
        self._looked = time.monotonic()
        if _identity(self._folder) == self._place:
            return
        now = "is another folder now" if self._folder.exists() else "is gone"
        raise UserError(
            f"{self._folder} {now}: it was moved or deleted while the run was using it, and "
            "nothing more is saved. Put the work folder back and start again, or start a new run"
        )

    def _refused(self, reason: str, remedy: str) -> UserError:
        last = self.latest()
        kept = "there is none before it" if last is None else f"the last whole one is step {last}"
        return UserError(
            f"a checkpoint could not be written to {self._folder}: {reason}; {kept}. "
            f"{remedy[:1].upper()}{remedy[1:]}, and start again"
        )

    def check(self) -> None:
        """Raises the error of a background save, or UserError if the folder is gone."""
        if time.monotonic() - self._looked > LOOK:
            self._check_place()
        self._guard(self._manager.raise_failure)
        self._guard(self._manager.check_for_errors)

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises its error."""
        while jax.process_count() > 1 and self._manager.is_saving_in_progress():
            self.check()
            time.sleep(POLL)
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the last save."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the last save, except if only this process fails. The others take part in the
        save, and they end only after this process has ended."""
        if kind is None or issubclass(kind, Stopped) or jax.process_count() == 1:
            self.close()

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._check_place()  # if the folder is gone, the error names a file in it
            text = str(error)
            refusal = next((REFUSED[sign] for sign in REFUSED if sign in text), None)
            if refusal is None and "RESOURCE_EXHAUSTED" in text:
                refusal = text.partition("\n")[0][:200], ROOM
            if refusal is None:
                raise
            if jax.process_count() == 1:  # with more, the others may still be writing
                steps.remove_partial(self._folder)
            raise self._refused(*refusal) from error


def _identity(folder: Path) -> tuple[int, int] | None:
    """Identifies a folder apart from its name; None if there is no folder."""
    try:
        facts = folder.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
