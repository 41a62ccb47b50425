"""Writers of metrics besides `metrics.jsonl`: those that `writers` names, and those of a caller.

The interface is the part of `clu.metric_writers.MetricWriter` that a run uses, so that any writer
of clu works. clu's writers are not imported here, because they import TensorFlow.

The classes of the experiment trackers stand in `trackers.py`. Here is what all of them have in
common: a thread of their own, so that no step waits for a network; failures, which are counted and
end no run; and the identifier of the tracker's run, which a continued run continues.
"""

import contextlib
import functools
import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from vit_jax.errors import UserError, printable
from vit_jax.files import write_json
from vit_jax.records import TEXT, reason
from vit_jax.records import load as load_object
from vit_jax.training.trackers import TRACKERS, Tracked
from vit_jax.user_code import imported

IDS = "writers.json"  # in the work folder: the name of a writer -> the identifier of its run
OPENS = 120.0  # seconds in which a tracker opens its run, at most
CLOSES = 60.0  # seconds in which it takes the rows that are left, at the end of a run
CLOSES_AT_STOP = 10.0  # and when the run was stopped: a cluster gives a process half a minute


class MetricWriter(Protocol):
    """Takes the scalars of a step, in rising order of steps."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """`scalars`: name -> value. A restarted run writes steps after its checkpoint again."""

    def flush(self) -> None:
        """Returns when others can read everything that was written."""

    def close(self) -> None:
        """Flushes. Nothing is written afterwards."""


class TensorBoardWriter:
    """Writes TensorBoard events to `folder` with tensorboardX. Purges those after `last_step`."""

    def __init__(self, folder: Path, last_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class InBackground:
    """A writer that `make` makes and that is called in a thread of its own: training does not wait
    for it. Its errors end nothing: `warn` prints the first one, and at the end how many rows were
    lost.

    The writer may have `id`, the identifier of its run, and `code`, which is set to the exit code
    of `vit` before it is closed.
    """

    def __init__(self, name: str, make: Callable[[], Any], warn: Callable[[str], None]):
        self._name, self._make, self._warn = name, make, warn
        self._calls: queue.SimpleQueue[tuple[str, tuple] | None] = queue.SimpleQueue()
        self._opened = threading.Event()
        self._writer: Any = None
        self._error: BaseException = TimeoutError(f"no answer in {OPENS:.0f} s")
        self._rows = self._taken = 0
        self._failed = False
        # At the end of the process, nothing waits for a thread that hangs in a network.
        self._thread = threading.Thread(target=self._work, name=f"writer {name}", daemon=True)
        self._thread.start()

    def begun(self, again: bool) -> str:
        """Waits until the writer is open, and returns the identifier of its run.

        Raises UserError if it does not open. If the run is started `again`, that is a failure like
        any other: a run is not lost because its tracker is away.
        """
        self._opened.wait(OPENS)
        if self._writer is None:
            if not again:
                raise UserError(
                    f"writer {self._name} cannot be opened: {_in_a_line(self._error)}; without it: "
                    "leave it out of --config.writers"
                ) from self._error
            self._fail(self._error)
        return str(getattr(self._writer, "id", "") or "")

    def _work(self) -> None:
        """What the thread does: opens the writer, and calls what is queued, in order."""
        try:
            self._writer = self._make()
        except BaseException as error:  # whatever a package does, also SystemExit
            self._error = error
        self._opened.set()
        while (call := self._calls.get()) is not None:
            method, arguments = call
            try:
                if self._writer is not None:
                    getattr(self._writer, method)(*arguments)
                    self._taken += method == "write_scalars"
            except BaseException as error:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._warn(
                f"writer {self._name} failed ({_in_a_line(error)}); the run goes on, and "
                "metrics.jsonl has every row"
            )

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._calls.put(("write_hparams", (hparams,)))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._rows += 1
        self._calls.put(("write_scalars", (step, scalars)))

    def flush(self) -> None:
        """Flushes soon: what waits for it here is a checkpoint."""
        self._calls.put(("flush", ()))

    def close(self, code: int = 0) -> None:
        """Closes the writer when it has taken all rows, and waits for that for a limited time."""
        with contextlib.suppress(AttributeError):
            self._writer.code = code
        self._calls.put(("close", ()))
        self._calls.put(None)
        self._thread.join(CLOSES if not code else CLOSES_AT_STOP)
        if lost := self._rows - self._taken:
            self._warn(
                f"writer {self._name}: {lost} of {self._rows} rows of this start were not taken; "
                "metrics.jsonl has them"
            )
        elif self._thread.is_alive():
            self._warn(f"writer {self._name} did not close in time")


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)


# -- writers by name -----------------------------------------------------------------------------
def names_of(text: str | None) -> list[str]:
    """The names in a config's `writers`."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def check_named(text: str | None) -> None:
    """Raises UserError if the package of a named writer is not installed, or if a writer of the
    user's own cannot be imported."""
    for name in names_of(text):
        if ":" in name:
            imported(name, "a writer")
        elif name in TRACKERS and importlib.util.find_spec(name) is None:
            raise UserError(
                f"writers={text}: the package {name} is not installed: pip install "
                f"'vit_jax[{name}]', or pip install {name}"
            )


def open_named(
    text: str | None, folder: Path, last_step: int, config: Mapping[str, Any],
    warn: Callable[[str], None],
) -> list[Any]:  # fmt: skip
    """Opens the writers that a config's `writers` names, and gives them the config.

    Raises UserError if one of them cannot be opened when the run begins.
    """
    ids = _ids(folder)
    opened: list[Any] = []
    try:
        for name in names_of(text):
            if name == "tensorboard":
                opened.append(TensorBoardWriter(folder, last_step))
                continue
            kind = imported(name, "a writer") if ":" in name else TRACKERS[name]
            run = Tracked(folder, last_step, ids.get(name, ""))
            writer = InBackground(name, functools.partial(kind, run), warn)
            opened.append(writer)
            if (found := writer.begun(again=bool(run.id or last_step))) and found != run.id:
                ids[name] = found
                write_json(folder / IDS, ids)  # before the first row: a killed run continues too
            writer.write_hparams(config)
    except UserError:
        for before in opened:
            before.close()
        raise
    return opened


def _ids(folder: Path) -> dict[str, str]:
    """The identifiers of the trackers' runs that the work folder keeps."""
    try:
        kept = load_object(folder / IDS)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / IDS} cannot be read: {reason(error)}; without it, the trackers of --config."
            "writers begin new runs: remove it"
        ) from error
    return {name: value for name, value in kept.items() if TEXT[1](value)}
