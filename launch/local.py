"""A job on this host: several processes with several devices each, CPUs or GPUs.

The processes start together and end together: if one dies, the others are stopped, and all start
again if that helps. There are no threads: the owner of a Running polls it.
"""

import contextlib
import ctypes
import glob
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from vit_jax.errors import INTERRUPTED, USER_ERROR, UserError, cannot_write

from . import names
from .job import ABORTED, AGAIN, Job, cpu_devices, in_words, verdict

GRACE = 30.0  # seconds that the others have to end by themselves after the first one has ended
SAVE = 300.0  # seconds that all have to save after a stop
EARLY = 120.0  # seconds after a start; an abort within it that comes twice will come again
TICK = 0.1


def start(job: Job, say: Callable[[str], None] | None = None) -> "Running":
    """Starts the job's processes. `say` is called with a line for each restart; by default the line
    goes to stderr.

    Raises UserError: there are too few GPUs, or the logs cannot be written.
    """
    return Running(job, say or (lambda line: print(f"vit: {line}", file=sys.stderr, flush=True)))


class Started(Protocol):
    """A job that was started, here or elsewhere."""

    def poll(self) -> int | None:
        """The job's exit code; None while it runs."""

    def wait(self) -> int:
        """Polls until the job has ended, and returns its exit code."""
        while (code := self.poll()) is None:
            time.sleep(TICK)
        return code


class Running(Started):
    """A job that runs here. It restarts and stops processes only when it is polled. Its processes
    save and end when the thread that started them has ended."""

    def __init__(self, job: Job, say: Callable[[str], None]):
        self.job, self._say = job, say
        self.logs = [job.logs / f"{number}.log" for number in range(job.processes)]
        self.restarts = self._aborts = 0
        self._code: int | None = None
        self._stopped = False
        self._kill_at: float | None = None
        limit = job.time_limit
        self._stop_at = time.monotonic() + limit * 60 if limit is not None else None
        self._environments = [_environment(job, number) for number in range(job.processes)]
        # The logs keep the output of earlier starts of the job.
        self.log_starts = self.logs[0].stat().st_size if self.logs[0].is_file() else 0
        self._begin()

    def poll(self) -> int | None:
        """The job's exit code, None while it runs."""
        if self._code is not None:
            return self._code
        codes, now = [process.poll() for process in self._processes], time.monotonic()
        if self._stop_at is not None and now >= self._stop_at:
            self._say(f"{self.job.name}: its time limit is over")
            self.stop()
        if None in codes:
            if self._kill_at is None and any(code is not None for code in codes):
                self._kill_at = now + GRACE
            if self._kill_at is not None and now >= self._kill_at:
                self.kill()
            return None
        ended = [code or 0 for code in codes]
        code = verdict(ended)
        early = now - self._began < EARLY
        self._aborts = self._aborts + 1 if early and any(c in ABORTED for c in ended) else 0
        if code in AGAIN and self._aborts > 1:
            self._say(f"{self.job.name}: it aborts at every start, most likely for want of memory")
            code = USER_ERROR
        if code in AGAIN and not self._stopped and self.restarts < self.job.restarts:
            self.restarts += 1
            self._say(f"{self.job.name}: {in_words(ended)}; "
                      f"restart {self.restarts} of {self.job.restarts}")  # fmt: skip
            self._begin()
            return None
        if code and not self._stopped:
            self._say(f"{self.job.name}: {in_words(ended)}; logs: {self.job.logs}")
        self._code = code
        return code

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Asks the processes to save and end; those that have not after SAVE seconds are killed.
        The job is not started again. Returns at once."""
        self._stopped, self._stop_at = True, None
        self._kill_at = self._kill_at or time.monotonic() + SAVE
        self._send(number)

    def kill(self) -> None:
        """Ends the processes at once, without a save."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def _begin(self) -> None:
        self._kill_at, self._began = None, time.monotonic()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._processes: list[subprocess.Popen] = []
        try:
            self.job.logs.mkdir(parents=True, exist_ok=True)
            for log, environment in zip(self.logs, self._environments, strict=True):
                environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
                with log.open("ab") as file:
                    # In a group of its own, so that Ctrl-C at a terminal reaches only the launcher.
                    self._processes.append(subprocess.Popen(
                        self.job.command, env=environment, stdin=subprocess.DEVNULL, stdout=file,
                        stderr=file, process_group=0, preexec_fn=ends_with_its_parent,  # noqa: PLW1509
                    ))  # fmt: skip
        except OSError as error:
            self.kill()
            raise cannot_write(self.job.logs, error) from error
        if self._stopped:  # by a signal that came in the meantime
            self._send(signal.SIGTERM)


def run(job: Job) -> int:
    """Runs the job in the foreground and returns its exit code. Shows the output of process 0, and
    passes on SIGTERM and Ctrl-C; a second Ctrl-C ends all processes at once."""
    running = start(job)
    interrupts = 0

    def passed_on(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        running.stop(number) if interrupts < 2 else running.kill()

    with handling(passed_on), running.logs[0].open("rb") as log:
        log.seek(running.log_starts)
        while (code := running.poll()) is None:
            _show(log)
            time.sleep(TICK)
        _show(log)
    return INTERRUPTED if interrupts > 1 else code


@contextlib.contextmanager
def handling(handler: Any) -> Iterator[None]:
    """Handles SIGINT and SIGTERM in another way for a while."""
    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():  # None: it was no handler of Python's
            signal.signal(number, signal.SIG_DFL if old is None else old)


def shown(job: Job) -> list[str]:
    """The commands of the processes, as lines for a shell."""
    keys = ("XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "JAX_NUM_PROCESSES",
            "JAX_PROCESS_ID", *job.environment, "JAX_COORDINATOR_ADDRESS")  # fmt: skip
    lines = []
    for number in range(job.processes):
        environment = _environment(job, number) | {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:PORT"}
        changes = [f"{key}={environment[key]}" for key in keys if key in environment]
        words = ["env", *changes, *job.command]
        lines.append(shlex.join(names.text("the argument", word) for word in words))
    return lines


def _show(log: IO[bytes]) -> None:
    sys.stdout.buffer.write(log.read())
    sys.stdout.buffer.flush()


def _environment(job: Job, number: int) -> dict[str, str]:
    """The environment of one process: its number, and its devices."""
    environment = {
        **os.environ, **job.environment, "JAX_NUM_PROCESSES": str(job.processes),
        "JAX_PROCESS_ID": str(number), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    if gpus := visible_gpus(job):
        count = job.devices or len(gpus) // job.processes
        if not count or count * job.processes > len(gpus):
            raise UserError(
                f"{job.processes} processes of {count or 1} GPUs need "
                f"{job.processes * (count or 1)}, this host has {len(gpus)}: fewer --processes or "
                "--devices, or --platform=cpu"
            )
        own = gpus[number * count : (number + 1) * count]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    elif job.platform == "gpu":
        raise UserError("this host has no NVIDIA GPU that can be seen: --platform=cpu")
    elif job.platform == "cpu" or job.devices or job.processes > 1:
        environment |= cpu_devices(environment, job.devices or 1)
    return environment


def visible_gpus(job: Job) -> list[str]:
    """The names of the GPUs that CUDA may use for a job."""
    environment = {**os.environ, **job.environment}
    if "cpu" in (job.platform, environment.get("JAX_PLATFORMS")):
        return []
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i, _ in enumerate(glob.glob("/dev/nvidia[0-9]*"))]


_libc = ctypes.CDLL(None)


def ends_with_its_parent() -> None:
    """Makes a new process get SIGTERM, and so save, when its launcher has ended in any way."""
    if sys.platform == "linux":
        _libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
