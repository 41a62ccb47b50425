"""A job on SLURM, through submitit: a batch script whose srun starts the processes, or an array of
such jobs.

Each process is watched by `task`, which makes SIGTERM of the signals that SLURM announces an end
with; the batch script ends in `main`, which has the codes of all and puts the job back in the queue
where that is of use. Folder of a submission: pickled tasks, codes and logs.
"""

import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.errors import RESTART, UserError, cannot_write, printable

from . import names
from .job import AGAIN, PYTHON, Job, cpu_devices, in_words, job_hash, verdict
from .local import TICK, ends_with_its_parent

SAVE = 120  # seconds before the time limit at which SLURM says so
CODES = "codes"  # folder in that of the submission
ASK = 5.0  # seconds between questions to the scheduler


def start(
    jobs: Sequence[Job], options: Mapping[str, Any] | None = None, at_once: int = 256
) -> list["Running"]:
    """Submits a job, or several as one array of which `at_once` run. What is in the queue already
    is not submitted again.

    `options` are sbatch's, by their long names. Raises UserError: no SLURM here, or what SLURM
    says against it.
    """
    jobs = [dataclasses.replace(job, logs=job.logs.absolute()) for job in jobs]
    executor = _executor(jobs, options or {}, at_once)
    if shutil.which("sbatch") is None:
        raise UserError(
            "no scheduler here: sbatch is not on the path; start this where SLURM is, such as a "
            "login node, or see the script with --dry-run"
        )
    if queued := _queued(f"--name={array_name(jobs)}"):
        number = queued[0].partition("_")[0]
        many = len(jobs) > 1
        return [Running(one, f"{number}_{i}" if many else number) for i, one in enumerate(jobs)]
    logs = jobs[0].logs
    new = [path for path in (logs, *logs.parents) if not path.exists()]
    try:
        (logs / CODES).mkdir(parents=True, exist_ok=True)
        # submitit prints what sbatch says, too.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            submitted = [executor.submit(task, job) for job in jobs]
    except Exception as error:  # OSError, and submitit's own for all that sbatch refuses
        if new:
            shutil.rmtree(new[-1], ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_write(logs, error) from error
        raise UserError(f"SLURM refused the job: {_reason(error)}") from error
    return [Running(job, one.job_id) for job, one in zip(jobs, submitted, strict=True)]


def script(jobs: Sequence[Job], options: Mapping[str, Any], at_once: int = 256) -> str:
    """The batch script that `start` would submit; SLURM need not be here."""
    executor = _executor(jobs, options, at_once)
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    text = executor._make_submission_file_text(executor._submitit_command_str, "")
    tasks = [f"#   {job.name}: {shlex.join(['vit', *job.arguments])}" for job in jobs]
    return "\n".join([text.rstrip(), "", "# what the tasks run", *tasks])


class Running:
    """A submitted job."""

    def __init__(self, job: Job, number: str):
        self.job, self.number = job, number
        self.logs = [job.logs / f"{number}_{i}_log.out" for i in range(job.processes)]
        self._code: int | None = None
        self._ask_at = 0.0

    def poll(self) -> int | None:
        """The job's exit code, None while it waits or runs; RESTART where SLURM has dropped it."""
        if self._code is None and time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + ASK
            waits = _queued(f"--jobs={self.number}")  # before its code is looked for
            self._code = _read(_code_file(self.job.logs, self.number))
            if self._code is None and waits == []:
                self._code = RESTART
        return self._code

    def wait(self) -> int:
        """Waits to the end; the job's exit code."""
        while (code := self.poll()) is None:
            time.sleep(TICK)
        return code

    def stop(self) -> None:
        """Takes it out of the queue; where it runs, SLURM's KillWait is the time for its save."""
        subprocess.run(["scancel", self.number], check=False, capture_output=True)


def task(job: Job) -> None:
    """One process of the job, on its node; leaves with its code, which the folder keeps."""
    child: subprocess.Popen | None = None
    asked = False

    def passed_on(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if child is not None:
            child.terminate()

    announced = (signal.SIGUSR1, signal.SIGUSR2)
    for number in (signal.SIGTERM, *announced):
        signal.signal(number, passed_on)
    # What is blocked here is blocked in the child too, which SLURM signals as well.
    signal.pthread_sigmask(signal.SIG_BLOCK, announced)
    child = subprocess.Popen(
        job.command, env=_environment(job), process_group=0,
        preexec_fn=ends_with_its_parent,  # noqa: PLW1509
    )  # fmt: skip
    signal.pthread_sigmask(signal.SIG_UNBLOCK, announced)
    if asked:
        child.terminate()
    code = child.wait()
    _task_file(job.logs, int(os.environ["SLURM_PROCID"])).write_text(str(code), encoding="utf-8")
    sys.exit(code if code >= 0 else 128 - code)


def main(arguments: Sequence[str]) -> int:
    """The end of the batch script: FOLDER PROCESSES RESTARTS."""
    folder, processes, restarts = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    codes = [_read(_task_file(folder, rank)) for rank in range(processes)]
    ended = [-signal.SIGKILL if code is None else code for code in codes]
    code, done = verdict(ended), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if code:
        print(f"vit: {in_words(ended)}", flush=True)
    if code in AGAIN and done < restarts:
        print(f"vit: back into the queue, restart {done + 1} of {restarts}", flush=True)
        again = subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        if again.returncode == 0:
            return code
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    number = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    _code_file(folder, number).write_text(str(code), encoding="utf-8")
    return code


def _executor(jobs: Sequence[Job], options: Mapping[str, Any], at_once: int) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError("vit launch slurm needs submitit: pip install 'vit_jax[slurm]'") from error
    if at_once < 1:
        raise UserError(f"--at-once is 1 or more, not {at_once}")
    job = jobs[0]
    shape = ("processes", "nodes", "devices", "platform", "cpus", "memory", "time_limit", "logs")
    if other := [f for f in shape if len({getattr(one, f) for one in jobs}) > 1]:
        raise UserError(f"jobs of one array have the same {', '.join(other)}")

    _check(jobs, options)

    class Executor(submitit.SlurmExecutor):
        """Also renders where there is no srun, and so no SLURM."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = Executor(folder=job.logs, python=shlex.join(PYTHON))
    a_node = job.processes // job.nodes
    more: dict[str, Any] = {"requeue": True, **options}
    if job.cpus:
        more["cpus-per-task"] = job.cpus
    if job.devices and job.platform != "cpu":
        more["gpus-per-node"] = job.devices * a_node
    if job.memory:  # SLURM counts it by node
        amount, unit = job.memory[:-1], job.memory[-1]
        more["mem"] = f"{int(amount) * a_node}{unit}"
    end = [*PYTHON, "-m", "vit_jax.launch.slurm", executor.folder, job.processes, job.restarts]
    minutes = None if job.time_limit is None else max(1, round(job.time_limit))
    # Since SLURM 22.05 srun does not know of the script's own --cpus-per-task.
    cpus = [f"--cpus-per-task={job.cpus}"] if job.cpus else []
    executor.update_parameters(
        job_name=array_name(jobs), time=minutes, nodes=job.nodes, ntasks_per_node=a_node,
        signal_delay_s=SAVE, stderr_to_stdout=True, array_parallelism=at_once,
        srun_args=["--kill-on-bad-exit=0", *cpus],
        teardown=["exec " + shlex.join(map(str, end))], additional_parameters=more,
    )  # fmt: skip
    return executor


def _check(jobs: Sequence[Job], options: Mapping[str, Any]) -> None:
    """Refuses what would end an #SBATCH line, or the comment that shows what the tasks run."""
    for job in jobs:
        names.one_line("the job's name", job.name)
        names.one_line("the folder of logs (--dir, --workdir)", str(job.logs))
        for argument in job.arguments:
            names.one_line("the argument", argument)
    for option, value in options.items():
        names.one_line(f"--sbatch={names.checked('--sbatch', option)}", str(value))


def array_name(jobs: Sequence[Job]) -> str:
    """Of one job its own, of several one for all."""
    all_names = [job.name for job in jobs]
    return all_names[0] if len(all_names) == 1 else job_hash("array", all_names)


def _environment(job: Job) -> dict[str, str]:
    """Of a task: SLURM says which it is; of the node's GPUs it takes its part."""
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    if job.platform == "cpu":
        environment |= cpu_devices(environment, job.devices or 1)
    elif job.devices:
        first = int(os.environ["SLURM_LOCALID"]) * job.devices
        mine = range(first, first + job.devices)
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, mine))
    return environment | dict(job.environment)


def _queued(which: str) -> list[str] | None:
    """Numbers of the user's jobs that wait or run; None where the scheduler does not answer."""
    line = ["squeue", "--noheader", "--array", "--me", "--format=%i", which]
    told = subprocess.run(line, check=False, capture_output=True, text=True)
    if told.returncode and "Invalid job id" not in told.stderr:
        return None
    return told.stdout.split()


def _reason(error: Exception) -> str:
    """What sbatch says, without what submitit puts around it; where a partition is wrong, also
    which there are."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines
            if line.startswith("sbatch: ")]  # fmt: skip
    told = "; ".join(dict.fromkeys(said)) or (lines[-1] if lines else type(error).__name__)
    reason = printable(told)
    if "partition" in reason:
        line = ["sinfo", "--noheader", "--format=%R"]
        there = subprocess.run(line, check=False, capture_output=True, text=True).stdout.split()
        reason += f"; partitions here: {', '.join(sorted(set(there)))}"
    return reason


def _task_file(folder: Path, rank: int) -> Path:
    """Keeps the code of one process of this start of the job."""
    start = os.environ.get("SLURM_RESTART_COUNT", "0")
    return folder / CODES / f"{os.environ['SLURM_JOB_ID']}-{start}-{rank}"


def _code_file(folder: Path, number: str) -> Path:
    """Keeps the code of the whole job, once it is over."""
    return folder / CODES / number


def _read(file: Path) -> int | None:
    return int(file.read_text(encoding="utf-8")) if file.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
