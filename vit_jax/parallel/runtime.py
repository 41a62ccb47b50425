"""Several processes as one job: how they find each other, agree, and end together.

JAX's distributed runtime does the work. This file finds the addresses for it. A mistake that one
process sees ends all of them with the same line. A process whose peer has died leaves with the exit
code on which launchers restart.
"""

import collections
import contextlib
import ctypes
import dataclasses
import glob
import importlib.util
import os
import signal
import socket
import traceback
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vit_jax.errors import RESTART, Stopped, UserError, printable

T = TypeVar("T")
MESSAGE = 2000  # bytes of a line that processes send to each other, at most

# Parts of the errors that libraries raise in a collective when another process is gone.
LOST = (
    "Gloo", "NCCL", "Connection reset by peer", "Connection closed by peer", "Socket closed",
    "coordination service", "CoordinationService", "heartbeats", "distributed service",
    "Barrier timed out",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """The address where process 0 listens, the number of processes, and the number of this one;
    None if JAX finds it out. `how` is the source of the three."""

    how: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def find_job(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Job | None:
    """The job that this process is a part of: from the command line, otherwise from the
    environment. None if the process runs alone.

    Raises UserError if the three arguments contradict each other.
    """
    by_hand = {"--coordinator": coordinator, "--num_processes": num_processes,
               "--process_id": process_id}  # fmt: skip
    missing = [name for name, value in by_hand.items() if value is None]
    if len(missing) < len(by_hand):
        if missing:
            raise UserError(
                f"{' and '.join(missing)} missing: several processes are started by hand with "
                "--coordinator=HOST:PORT --num_processes=N --process_id=I, on a cluster with none"
            )
        job: Job | None = Job("command line", coordinator, num_processes, process_id)
    else:
        job = next(filter(None, (find(how, environ) for how, find in FOUND.items())), None)
    if job is None:
        return None
    n, i = job.num_processes, job.process_id
    if n is not None and (n < 1 or (i is not None and not 0 <= i < n)):
        raise UserError(f"process {i} of {n} cannot be: processes are numbered from 0 to {n - 1}")
    host, _, port = (job.coordinator or "host:1").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"coordinator {job.coordinator!r} is no HOST:PORT, such as node0:8476")
    return None if n == 1 else job


def _named(how: str, environ: Mapping[str, str]) -> Job | None:
    """JAX's own variables, which our launchers set. Kubernetes adds the number of the pod."""
    if "JAX_COORDINATOR_ADDRESS" not in environ or "JAX_NUM_PROCESSES" not in environ:
        return None
    number = environ.get("JAX_PROCESS_ID", environ.get("JOB_COMPLETION_INDEX", ""))
    count = environ["JAX_NUM_PROCESSES"]
    if not number.isdecimal() or not count.isdecimal():
        raise UserError(
            f"JAX_NUM_PROCESSES={count!r} with JAX_PROCESS_ID (or JOB_COMPLETION_INDEX) "
            f"{number!r}: both are numbers"
        )
    return Job(how, environ["JAX_COORDINATOR_ADDRESS"], int(count), int(number))


def _slurm(how: str, environ: Mapping[str, str]) -> Job | None:
    """A task of srun. The batch script itself is no task."""
    many = int(environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1
    return Job(how) if many and "SLURM_STEP_NODELIST" in environ else None


def _open_mpi(how: str, environ: Mapping[str, str]) -> Job | None:
    if int(environ.get("OMPI_COMM_WORLD_SIZE") or 1) == 1:
        return None
    if "OMPI_MCA_orte_hnp_uri" not in environ:
        raise UserError(
            "this Open MPI does not tell where the job's first process is (version 5 does not): "
            "set JAX_COORDINATOR_ADDRESS=HOST:PORT and JAX_NUM_PROCESSES, and JAX_PROCESS_ID from "
            "OMPI_COMM_WORLD_RANK"
        )
    return Job(how)


def _tpu(how: str, environ: Mapping[str, str]) -> Job | None:
    """A slice of several hosts. The environment or the metadata server has their names."""
    if "," in environ.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
        return Job(how)
    on_tpu = importlib.util.find_spec("libtpu") and any(
        map(glob.glob, ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"))
    )
    return Job(how) if on_tpu and "TPU_SKIP_MDS_QUERY" not in environ else None


# Where the environment names a job, in this order.
FOUND = {"environment": _named, "SLURM": _slurm, "Open MPI": _open_mpi, "TPU": _tpu}


def start(job: Job, heartbeat_timeout: float, wait: int = 300) -> None:
    """Joins the job; returns when all its processes have joined.

    A process that is silent for `heartbeat_timeout` seconds counts as dead, and the others leave
    with RESTART. If not all join within `wait` seconds, raises UserError if a person typed the
    address, and Stopped with RESTART if a launcher set it, because it may have lost a process.
    """
    import jax

    _leave_with_restart_on_abort()
    try:
        jax.distributed.initialize(
            job.coordinator, job.num_processes, job.process_id,
            initialization_timeout=wait, heartbeat_timeout_seconds=max(1, round(heartbeat_timeout)),
        )  # fmt: skip
    except Exception as error:  # RuntimeError, ValueError, gRPC's, by the version
        reason = " ".join(str(error).split())[:300]
        line = (
            f"the processes of the job ({job.how}) did not come together: {reason}; expected "
            f"{job.num_processes or 'all'} of them at {job.coordinator or 'the coordinator'}"
        )
        typed = job.how == "command line"
        raise (UserError(line) if typed else Stopped(line, RESTART)) from error


def stop() -> None:
    """Leaves the job, if there is one, when all processes are ready to leave."""
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def leave_together(seconds: int = 5) -> None:
    """Waits until every process has shut down its JAX client, for `seconds` at most. JAX aborts a
    process whose coordinator (process 0) exits first, and then its exit code is wrong."""
    from jax._src import distributed  # no public name has a barrier with a timeout

    if (client := distributed.global_state.client) is not None:
        with contextlib.suppress(Exception):
            client.wait_at_barrier("vit_jax leaves", seconds * 1000)
            stop()


def process() -> int:
    """The number of this process, from 0. Process 0 writes what is written once."""
    return share()[0]


def share() -> tuple[int, int]:
    """(number of this process, number of processes)."""
    import jax

    return jax.process_index(), jax.process_count()


def together(call: Callable[[], T]) -> T:
    """Calls `call()` in every process. If it raises UserError in one, all raise it, with its line.

    The calls must not wait for each other.
    """
    if share()[1] == 1:
        return call()
    message, result, unexpected = "", None, None
    try:
        result = call()
    except UserError as error:
        message = str(error) or "error"
    except Exception as error:  # a bug: it is raised unchanged, after the others have its message
        message, unexpected = f"{type(error).__name__}: {error}", error
    lines = everyones(message)
    if unexpected is not None:
        raise unexpected
    for number, line in enumerate(lines):
        if line:
            raise UserError(line if len(set(lines)) == 1 else f"process {number}: {line}")
    return result  # type: ignore[return-value]


def first_says(yes: bool) -> bool:
    """Returns process 0's `yes` in all processes."""
    return everyones("yes" if yes else "")[0] == "yes"


def everyones(line: str) -> list[str]:
    """The `line` of every process, in the order of their numbers."""
    if share()[1] == 1:
        return [line]
    import numpy as np
    from jax.experimental import multihost_utils

    padded = np.frombuffer(line.encode()[:MESSAGE].ljust(MESSAGE, b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def table() -> list[str]:
    """A line for each process with its host and devices, if there are several processes.

    Raises UserError if they have different numbers or kinds of devices.
    """
    import jax

    if jax.process_count() == 1:
        return []
    each = collections.Counter(device.process_index for device in jax.devices())
    if len(set(each.values())) > 1:  # then no collective works
        have = ", ".join(f"process {number}: {count}" for number, count in sorted(each.items()))
        raise UserError(f"processes have different numbers of devices ({have}); give each as many")
    mine = jax.local_devices()
    hosts = everyones(f"{socket.gethostname()}  {len(mine)} × {mine[0].device_kind}")
    lines = [f"process {number}: {line}" for number, line in enumerate(hosts)]
    if len({line.partition(" × ")[2] for line in hosts}) > 1:
        raise UserError("processes have different devices:\n  " + "\n  ".join(lines))
    _leave_with_restart_on_abort()  # again, because a back end may have set its own handler
    return [f"{len(hosts)} processes, {jax.device_count()} devices", *lines]


def probe(folder: Path) -> None:
    """Raises UserError if the processes do not share this folder."""
    if share()[1] == 1:
        return
    mark = f".probe-{uuid.uuid4().hex}"
    if process() == 0:
        (folder / mark).touch()
    mark = everyones(mark)[0]
    seen = everyones("yes" if (folder / mark).exists() else "")
    if process() == 0:
        (folder / mark).unlink()
    blind = ", ".join(str(number) for number, yes in enumerate(seen) if not yes)
    if blind:
        raise UserError(
            f"processes {blind} do not see the files that process 0 writes to {folder}: --workdir "
            "must be on a file system that all of them share"
        )


def lost_peer(error: Exception) -> str | None:
    """The line for an error that means, or is caused by one that means, that another process is
    gone. None for any other error."""
    cause: BaseException | None = error
    while cause is not None and not any(sign in str(cause) for sign in LOST):
        cause = cause.__cause__
    if cause is None or share()[1] == 1:
        return None
    reason = " ".join(str(cause).split())[:160]
    return (
        f"process {process()} lost another one ({reason}); start again: the last checkpoint is safe"
    )


# What a platform needs, by its name in JAX_PLATFORMS.
_GPU = "an NVIDIA GPU with its driver, and pip install 'vit_jax[cuda]'"
NEEDS = {"cuda": _GPU, "gpu": _GPU, "tpu": "a TPU, and pip install 'vit_jax[tpu]'"}


def no_device(error: Exception) -> str | None:
    """The line for an error that JAX raises because it cannot open the devices of this machine, or
    has none of those that JAX_PLATFORMS asks for. None for any other error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not any(frame.f_globals.get("__name__") == "jax._src.xla_bridge" for frame in frames):
        return None
    reason = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0][:300].rstrip(".")
    asked = os.environ.get("JAX_PLATFORMS", "")
    if not asked:
        return f"JAX cannot use the devices of this machine: {reason}"
    needs = [NEEDS[name] for name in asked.split(",") if name in NEEDS]
    why = f"it needs {needs[0]}" if needs else reason or "it is no platform of JAX"
    return (
        f"JAX_PLATFORMS={printable(asked)}, but JAX finds no such device here: {why}; what would "
        "work: unset JAX_PLATFORMS, or JAX_PLATFORMS=cpu"
    )


_handlers: list[Any] = []  # that C calls; the list keeps them from the garbage collector


def _leave_with_restart_on_abort() -> None:
    """Makes SIGABRT leave with RESTART. JAX's runtime aborts the process from a thread of its own
    when another process is gone, with an exit code that means a crash. Python handles signals in
    the main thread only, so C calls this handler."""
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)

    @kind
    def handler(number: int) -> None:
        os.write(2, b"vit: another process of the job is gone; start again: the last checkpoint "
                    b"is safe\n")  # fmt: skip
        os._exit(RESTART)

    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, kind], ctypes.c_void_p
    libc.signal(signal.SIGABRT, handler)
    _handlers.append(handler)
