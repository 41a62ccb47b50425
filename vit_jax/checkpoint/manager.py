"""Checkpoints of a run in `WORKDIR/checkpoints/STEP`: saved in the background, kept by number and
by metric, restored strictly, on any mesh and in either layout of the layers."""

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

from vit_jax.checkpoint import checksums, json_leak, steps
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
from vit_jax.records import COUNT, LIST_OF_TEXTS, OBJECT, OBJECT_OF_NUMBERS, TEXT, Kind, read_object

POLL = 0.01  # seconds between two looks at a save that others have a part in

CONFIG: Kind = (
    "an object with at least model.name",
    lambda value: isinstance(value, dict) and isinstance(value.get("model.name"), str),
)
ABOUT = "about/metadata"  # Orbax's name of the JSON beside the arrays
ABOUT_KINDS = {
    "config": CONFIG, "classes": LIST_OF_TEXTS, "origin": TEXT, "train_examples": COUNT,
    "examples_seen": COUNT, "goodput": OBJECT_OF_NUMBERS,
}  # fmt: skip

# What a save says, through several libraries, that this machine refuses: what that means, and what
# would work. The first sign that is found decides.
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
LOOK = 5.0  # seconds between two looks whether the folder is there still


def find(path: str | Path) -> Path:
    """The checkpoint folder that a path means: itself, or the latest one of a work folder.

    Raises UserError where there is none.
    """
    path = Path(path).expanduser().absolute()
    if (path / steps.STATE).is_dir():
        return path
    for folder in (path / "checkpoints", path):
        if (last := steps.latest(folder)) is not None:
            return folder / str(last)
    raise UserError(
        f"{printable(path)} holds no checkpoint: expected a work folder with checkpoints/STEP, or "
        "checkpoints/STEP itself"
    )


@contextlib.contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise over a damaged checkpoint, or what is made of its
    config, into a UserError."""
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
    """What was saved beside the arrays: `examples_seen`, `config`, `classes`, …

    Raises UserError where it cannot be read, or holds something else.
    """
    return read_object(checkpoint / ABOUT, ABOUT_KINDS, {"data": OBJECT})


def stored_shapes(checkpoint: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """path -> shape and dtype of every array in a checkpoint; reads no array."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader, readable(checkpoint):
        tree = reader.metadata(checkpoint / "state").item_metadata.tree
    return {
        path: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)
        for path, leaf in flatten(tree).items()
    }


def read(checkpoint: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The named arrays of a checkpoint, each on the sharding of its `ShapeDtypeStruct`."""
    target = nest(wanted)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader, readable(checkpoint):
        tree = reader.restore(
            checkpoint / "state",
            args=ocp.args.PyTreeRestore(
                target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
    return flatten(tree)


def read_host(checkpoint: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The named arrays of a checkpoint as NumPy arrays; no device is touched."""
    target = nest(wanted)
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    with readable(checkpoint):
        tree = ocp.PyTreeCheckpointHandler().restore(
            checkpoint / "state",
            args=ocp.args.PyTreeRestore(target, restore_args=kinds, partial_restore=True),
        )
    return flatten(tree)


def restore(checkpoint: Path, abstract: Any, shardings: Any, part: str = "") -> Any:
    """A whole state (or its `part`, such as `params`), bit for bit as it was saved, placed by
    `shardings`, with the encoder's layers stacked or listed as `abstract` has them.

    Raises UserError listing every name, shape or dtype that differs.
    """
    prefix = f"{part}/" if part else ""
    stored = {
        p.removeprefix(prefix): leaf
        for p, leaf in stored_shapes(checkpoint).items()
        if p.startswith(prefix)
    }
    wanted, where = flatten(abstract), flatten(shardings)
    as_stored = in_layout_of(wanted, stored)
    check_same(stored, as_stored, str(checkpoint))
    if as_stored.keys() != wanted.keys():  # the other layout is read whole, then converted
        whole = NamedSharding(next(iter(where.values())).mesh, PartitionSpec())
        where = dict.fromkeys(as_stored, whole)
    target = {
        prefix + p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where[p])
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
    """One checkpoint at a path where nothing is yet, as `Checkpoints` writes those of a run."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(
            checkpoint.absolute(),
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(nest(flatten(state))), about=ocp.args.JsonSave(about)
            ),
        )
    checksums.write(checkpoint)


@dataclasses.dataclass(frozen=True)
class LastOfBothTiers:
    """Orbax's protocol of what stays: the newest checkpoint, and the last `keep` of those that were
    saved by step or measured; what time asked for in between goes when a newer one is there."""

    keep: int
    every_steps: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        lasting = [
            number for number, one in enumerate(checkpoints)
            if one.step % self.every_steps == 0 or one.metrics
        ]  # fmt: skip
        stay = {*lasting[-self.keep :], len(checkpoints) - 1}
        return [number in stay for number in range(len(checkpoints))]


class _Manager(ocp.CheckpointManager):
    """Orbax's, which tells at once when this process could not do its part of a save.

    Orbax itself tells it when all processes have agreed that the save is over. The others wait for
    the part that is missing, so in a job that takes ten minutes.
    """

    failure: BaseException | None = None

    def _wait_for_checkpointers(self) -> None:  # of one save, in the background
        try:
            super()._wait_for_checkpointers()
        except BaseException as error:
            self.failure = error
            raise

    def raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure


class Checkpoints:
    """Saves a run's states in the background, every so many steps and, besides, minutes; the last
    `keep` stay, and the best one.

    An error of a background save is raised by the next call of `check`, `save` or `close`.
    """

    def __init__(
        self, folder: Path, keep: int, keep_best: bool, every_steps: int = 1,
        every_minutes: float | None = None, *, best: tuple[str, Callable] = ("accuracy", max),
    ):  # fmt: skip
        """`best`: the metric that decides which one is best, and whether its max or its min is."""
        self._every_steps, self._every_minutes = every_steps, every_minutes
        self._saved = time.monotonic()

        json_leak.spare()

        def metric(metrics: dict[str, float]) -> float:
            return metrics[best[0]] * (1 if best[1] is max else -1)  # the highest is kept

        policies: list[Any] = [LastOfBothTiers(keep, every_steps)]
        if keep_best:
            one = BestN(get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False)
            policies.append(one)
        self._manager = _Manager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                best_fn=metric,  # makes Orbax write the metrics, to know the best after a restart
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._sum_up,
                    # Made in the background, a folder that cannot be made is waited for by all.
                    create_directories_asynchronously=False,
                ),
                save_root_metadata=False,
            ),
        )

        self._place, self._looked = _identity(folder), time.monotonic()

        # It asks in the background, and so would set back what JAX counts steps by.
        self._manager.reached_preemption = lambda step: False

    def _sum_up(self) -> None:
        """Called when all files of a save are on disk and before it gets its name."""
        if jax.process_index() > 0:
            return
        for partial in Path(self._manager.directory).glob("*.orbax-checkpoint-tmp"):
            checksums.write(partial)

    def latest(self) -> int | None:
        """The last whole checkpoint on disk; Orbax's own counts one that is on its way, too."""
        return max(steps.steps(Path(self._manager.directory)), default=None)

    def due(self, step: int, by_time: bool) -> bool:
        """Whether to save after a step; `by_time` where the processes may be asked to agree."""
        if step % self._every_steps == 0:
            return True
        if not by_time or not self._every_minutes:
            return False
        return first_says(time.monotonic() - self._saved > 60 * self._every_minutes)

    def save(self, step: int, state: Any, about: dict[str, Any], metrics: dict | None) -> None:
        """Starts saving; returns when the state has been copied, before it is on disk.

        Raises UserError, before anything is written, where the disk has too little room, or the
        folder is gone.
        """
        self.wait()
        self._check_place()
        self._check_room(state)
        self._saved = time.monotonic()
        self._guard(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(nest(flatten(state))),
                    about=ocp.args.JsonSave(about),
                ),
                metrics=metrics,
                force=True,
            )
        )

    def _check_room(self, state: Any) -> None:
        folder = Path(self._manager.directory)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise self._refused(f"disk full ({needed:,} bytes needed, {free:,} free)", ROOM)

    def _check_place(self) -> None:
        """Raises UserError where the folder is not the one that the run began with. Orbax would
        make a new one, with checkpoints alone."""
        folder, self._looked = Path(self._manager.directory), time.monotonic()
        if _identity(folder) == self._place:
            return
        now = "is another folder now" if folder.exists() else "is gone"
        raise UserError(
            f"{folder} {now}: it was moved or deleted while the run was using it, and nothing more "
            "is saved. Put the work folder back and start again, or start a new run"
        )

    def _refused(self, reason: str, remedy: str) -> UserError:
        last = self.latest()
        kept = "there is none before it" if last is None else f"the last whole one is step {last}"
        return UserError(
            f"a checkpoint could not be written to {self._manager.directory}: {reason}; {kept}. "
            f"{remedy[:1].upper()}{remedy[1:]}, and start again"
        )

    def check(self) -> None:
        """Raises what went wrong in a background save, and UserError where the folder is gone."""
        if time.monotonic() - self._looked > LOOK:
            self._check_place()
        self._guard(self._manager.raise_failure)
        self._guard(self._manager.check_for_errors)

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong in it."""
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
        """Closes; but a process that fails alone waits for no save, which the others have a part
        in: it leaves, and they with it."""
        if kind is None or issubclass(kind, Stopped) or jax.process_count() == 1:
            self.close()

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._check_place()  # without it, the error would be about some file in it
            found = next((told for sign, told in REFUSED.items() if sign in str(error)), None)
            if found is None and "RESOURCE_EXHAUSTED" in str(error):
                found = (str(error).partition("\n")[0][:200], ROOM)
            if found is None:
                raise
            if jax.process_count() == 1:  # others may be writing still; the next start removes it
                for partial in Path(self._manager.directory).glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(partial, ignore_errors=True)
            raise self._refused(*found) from error


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one with its name; None where there is none."""
    try:
        facts = folder.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
