"""Every private part of Orbax and TensorStore that this package replaces, and why; and the warnings
of Orbax that are not passed on.

Orbax 0.12.8 and TensorStore 0.1.86, the newest releases in November 2026 on Python 3.11,
need all three patches; no later release is known that needs none. To try a new one, take a patch
out and run the test that its docstring names.
"""

import copy
import functools
import logging
from typing import Any

import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint._src.serialization import tensorstore_utils


class Manager(ocp.CheckpointManager):
    """Orbax's manager with two methods replaced.

    https://github.com/google/orbax/blob/main/checkpoint/orbax/checkpoint/checkpoint_manager.py
    """

    failure: BaseException | None = None

    def _wait_for_checkpointers(self) -> None:
        """Keeps the error of this process's part of a background save in `failure`.

        `_finalize` calls this method in a thread. Orbax raises the error only after all processes
        have agreed that the save is over, but the others wait for the part that is missing.
        Without the patch, a job ends ten minutes after one process ran out of disk
        (https://github.com/google/orbax/issues/605 reports such a barrier). Test:
        tests/parallel/test_jobs.py, the one that alone cannot write.
        """
        try:
            super()._wait_for_checkpointers()
        except BaseException as error:
            self.failure = error
            raise

    def reached_preemption(self, step: int) -> bool:
        """Never asks JAX for the step after which SIGTERM stops the job.

        JAX takes the argument of each `reached_preemption_sync_point` as the current step, and
        Orbax calls it from `_finalize_checkpoint` in a thread, with the step of a save. Without
        the patch, that call sets back the steps that `StopSignals` counts, by which all processes
        agree on the step to stop after (https://github.com/google/orbax/issues/3406 shows the
        calls). Test: tests/parallel/test_jobs.py, SIGTERM to one process.
        """
        return False

    def raise_failure(self) -> None:
        """Raises the error of a background save."""
        if self.failure is not None:
            raise self.failure


@functools.cache
def stop_json_leak() -> None:
    """Keeps a process from growing by its saves. The patch is applied once.

    TensorStore never frees what it converts from JSON, because `JsonToPyObject` releases keys and
    values to `PyDict_SetItem`, which takes references of its own:
    https://github.com/google/tensorstore/blob/master/python/tensorstore/json_type_caster.cc
    At every save, Orbax converts a folder's description once an array, and all counters for
    `jax.monitoring`. Without the patch, a save costs 0.3 kB an array and 13 kB for ever
    (test: tests/checkpoint/test_manager.py, a run does not grow). With it, a description is
    converted once, and the counters are not read.
    """
    convert = tensorstore.KvStore.Spec.to_json
    last: tuple[str, Any] = "", None

    @functools.wraps(convert)
    def to_json(self: Any, *options: Any, **named: Any) -> Any:
        nonlocal last
        key, cached = repr((self, options, named)), last  # another thread may replace `last`
        if cached[0] != key:
            last = cached = key, convert(self, *options, **named)
        return copy.deepcopy(cached[1])

    tensorstore.KvStore.Spec.to_json = to_json  # type: ignore[method-assign]
    tensorstore_utils.get_tensorstore_raw_bytes = lambda direction=None: 0


# Warnings that tell a user nothing: a save between evaluations has no metrics, and an item of a
# checkpoint has its description in the checkpoint's own file. Test: tests/test_python.py.
_EXPECTED = ("Requested `tracked_metric`; did not provide", "Metadata file does not exist")


def _of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_EXPECTED)


logging.getLogger("absl").addFilter(_of_use)
