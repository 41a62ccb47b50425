"""A job on SLURM: a batch script whose srun starts the processes, or an array of such jobs.

`run_process` watches each process. It turns the signals by which SLURM announces the end of a job
into SIGTERM, so that the process saves. The last line of the batch script is `main`, which knows
the exit codes of all processes and puts the job back into the queue if that helps. The folder of
logs also holds the submitted script and the exit codes.
"""

import dataclasses
import json
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
from .local import Started, ends_with_its_parent

SAVE = 120  # seconds before the time limit at which SLURM sends its signal
CODES = "codes"  # the folder of exit codes, in the folder of logs
ASK = 5.0  # seconds between two questions to the scheduler
SAME = ("processes", "nodes", "devices", "platform", "cpus", "memory", "time_limit", "logs")
OF_PROCESS = ("arguments", "devices", "platform", "environment")  # fields that a process needs

# {tasks}: one line of JSON for each job of the array. All words are quoted.
SCRIPT = """\
#!/bin/bash

# Parameters
{parameters}

# command
tasks=(
{tasks}
)
{srun} "${{tasks[${{SLURM_ARRAY_TASK_ID:-0}}]}}"

exec {main}
"""


def start(
    jobs: Sequence[Job], options: Mapping[str, Any] | None = None, at_once: int = 256
) -> list["Running"]:
    """Submits a job, or several as one array of which `at_once` run at the same time. Jobs that are
    in the queue already are not submitted again.

    `options` are options of sbatch, by their long names. Raises UserError: SLURM is not here, or
    refuses the job.
    """
    jobs = [dataclasses.replace(job, logs=job.logs.absolute()) for job in jobs]
    text, logs = _batch_script(jobs, options or {}, at_once), jobs[0].logs
    if shutil.which("sbatch") is None:
        raise UserError(
            "no scheduler here: sbatch is not on the path; start this where SLURM is, such as a "
            "login node, or see the script with --dry-run"
        )
    if queued := _queued(f"--name={array_name(jobs)}"):
        number = queued[0].partition("_")[0]
    else:
        new = [path for path in (logs, *logs.parents) if not path.exists()]
        try:
            (logs / CODES).mkdir(parents=True, exist_ok=True)
            file = logs / f".submission_{os.getpid()}.sh"
            file.write_text(text, encoding="utf-8")
            number = _submit(file)
            file.rename(logs / f"{number}_submission.sh")
        except (OSError, UserError) as error:
            if new:
                shutil.rmtree(new[-1], ignore_errors=True)
            raise (cannot_write(logs, error) if isinstance(error, OSError) else error) from error
    several = len(jobs) > 1
    return [Running(job, f"{number}_{i}" if several else number) for i, job in enumerate(jobs)]


def script(jobs: Sequence[Job], options: Mapping[str, Any], at_once: int = 256) -> str:
    """The batch script that `start` would submit, and what its jobs run. SLURM is not needed."""
    lines = [f"#   {job.name}: {shlex.join(['vit', *job.arguments])}" for job in jobs]
    return "\n".join([_batch_script(jobs, options, at_once), "# what the tasks run", *lines])


class Running(Started):
    """A submitted job."""

    def __init__(self, job: Job, number: str):
        self.job, self.number = job, number
        self.logs = [job.logs / f"{number}_{i}_log.out" for i in range(job.processes)]
        self._code: int | None = None
        self._ask_at = 0.0

    def poll(self) -> int | None:
        """The job's exit code; None while it waits or runs; RESTART if SLURM has dropped it."""
        if self._code is None and time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + ASK
            waits = _queued(f"--jobs={self.number}")  # before looking for its exit code
            self._code = _read_code(self.job.logs, self.number)
            if self._code is None and waits == []:
                self._code = RESTART
        return self._code

    def stop(self) -> None:
        """Cancels the job. If it runs, it has SLURM's KillWait to save."""
        subprocess.run(["scancel", self.number], check=False, capture_output=True)


def run_process(job: Job) -> int:
    """Runs one process of the job on its node. Returns its exit code, and writes it to a file."""
    child: subprocess.Popen | None = None
    asked = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if child is not None:
            child.terminate()

    announced = (signal.SIGUSR1, signal.SIGUSR2)
    for number in (signal.SIGTERM, *announced):
        signal.signal(number, pass_on)
    # The child inherits the blocked signals. SLURM sends them to it, too.
    signal.pthread_sigmask(signal.SIG_BLOCK, announced)
    child = subprocess.Popen(
        job.command, env=_environment(job), process_group=0,
        preexec_fn=ends_with_its_parent,  # noqa: PLW1509
    )  # fmt: skip
    signal.pthread_sigmask(signal.SIG_UNBLOCK, announced)
    if asked:
        child.terminate()
    code = child.wait()
    _write_code(job.logs, _of_process(os.environ["SLURM_PROCID"]), code)
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    """`FOLDER JSON` runs one process. `FOLDER PROCESSES RESTARTS` ends the batch script: it decides
    by the exit codes of the processes."""
    folder = Path(arguments[0])
    if len(arguments) == 2:
        fields = json.loads(arguments[1])
        return run_process(Job("", tuple(fields.pop("arguments")), folder, **fields))
    processes, restarts = int(arguments[1]), int(arguments[2])
    codes = [_read_code(folder, _of_process(rank)) for rank in range(processes)]
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
    _write_code(folder, number, code)
    return code


def _batch_script(jobs: Sequence[Job], options: Mapping[str, Any], at_once: int) -> str:
    """Raises UserError: the jobs are no array, or a text would end its line of the script."""
    job, name = jobs[0], array_name(jobs)
    if at_once < 1:
        raise UserError(f"--at-once is 1 or more, not {at_once}")
    if other := [f for f in SAME if len({getattr(each, f) for each in jobs}) > 1]:
        raise UserError(f"jobs of one array have the same {', '.join(other)}")
    for each in jobs:
        names.one_line("the job's name", each.name)
        names.one_line("the folder of logs (--dir, --workdir)", str(each.logs))
        for argument in each.arguments:
            names.one_line("the argument", argument)
    for option, value in options.items():
        names.one_line(f"--sbatch={names.checked('--sbatch', option)}", str(value))
    per_node, several = job.processes // job.nodes, len(jobs) > 1
    log = f"{job.logs}/{'%A_%a' if several else '%j'}_%t_log.out"
    parameters: dict[str, Any] = {
        "job-name": name, "nodes": job.nodes, "ntasks-per-node": per_node, "requeue": True,
        "signal": f"USR2@{SAVE}", "open-mode": "append", "output": log.replace("%t", "0"),
        "array": f"0-{len(jobs) - 1}%{min(len(jobs), at_once)}" if several else None,
        "time": None if job.time_limit is None else max(1, round(job.time_limit)),
        "cpus-per-task": job.cpus,
        "gpus-per-node": job.devices and job.devices * per_node if job.platform != "cpu" else None,
        # SLURM counts it per node.
        "mem": job.memory and f"{int(job.memory[:-1]) * per_node}{job.memory[-1]}",
        **{option.replace("_", "-"): value for option, value in options.items()},
    }  # fmt: skip
    # Since SLURM 22.05 srun does not take --cpus-per-task from the script.
    cpus = [f"--cpus-per-task={job.cpus}"] if job.cpus else []
    srun = ["srun", "--unbuffered", "--output", log, "--kill-on-bad-exit=0", *cpus]
    module, logs = ["-m", "vit_jax.launch.slurm"], str(job.logs)
    tasks = [json.dumps({field: getattr(each, field) for field in OF_PROCESS}, default=dict)
             for each in jobs]  # fmt: skip
    return SCRIPT.format(
        parameters="\n".join(
            f"#SBATCH --{option}" + (f"={shlex.quote(str(value))}" if value is not True else "")
            for option, value in sorted(parameters.items())
            if value is not None
        ),
        tasks="\n".join(map(shlex.quote, tasks)),
        srun=shlex.join([*srun, *PYTHON, "-u", *module, logs]),
        main=shlex.join([*PYTHON, *module, logs, str(job.processes), str(job.restarts)]),
    )


def array_name(jobs: Sequence[Job]) -> str:
    """The name of a job, or one name for several."""
    all_names = [job.name for job in jobs]
    return all_names[0] if len(all_names) == 1 else job_hash("array", all_names)


def _environment(job: Job) -> dict[str, str]:
    """The environment of a process. It takes its part of the GPUs of its node."""
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    if job.platform == "cpu":
        environment |= cpu_devices(environment, job.devices or 1)
    elif job.devices:
        first = int(os.environ["SLURM_LOCALID"]) * job.devices
        own = range(first, first + job.devices)
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, own))
    return environment | dict(job.environment)


def _ask(*line: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of SLURM. A job that is submitted from within an array must not inherit its
    number."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_ARRAY_")}
    return subprocess.run(line, check=False, capture_output=True, text=True, env=clean)


def _queued(which: str) -> list[str] | None:
    """Numbers of the user's jobs that wait or run; None if the scheduler does not answer."""
    answer = _ask("squeue", "--noheader", "--array", "--me", "--format=%i", which)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    return answer.stdout.split()


def _submit(file: Path) -> str:
    """Submits a script, and returns the number of its job. Raises UserError with SLURM's reason;
    for a wrong partition also with a list of partitions."""
    answer = _ask("sbatch", "--parsable", str(file))
    number = answer.stdout.strip().partition(";")[0]
    if answer.returncode == 0 and number.isdecimal():
        return number
    lines = [line.strip() for line in (answer.stderr or answer.stdout).splitlines()]
    said = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines]
    reason = printable("; ".join(dict.fromkeys(filter(None, said))) or "sbatch gave no reason")
    if "partition" in reason:
        partitions = set(_ask("sinfo", "--noheader", "--format=%R").stdout.split())
        reason += f"; partitions here: {', '.join(sorted(partitions))}"
    raise UserError(f"SLURM refused the job: {reason}")


def _of_process(rank: int | str) -> str:
    """The file of the exit code of one process of this start of the job."""
    start = os.environ.get("SLURM_RESTART_COUNT", "0")
    return f"{os.environ['SLURM_JOB_ID']}-{start}-{rank}"


def _read_code(folder: Path, name: str) -> int | None:
    """The exit code of a process, or of a whole job by its number; None before it has ended."""
    file = folder / CODES / name
    return int(file.read_text(encoding="utf-8")) if file.is_file() else None


def _write_code(folder: Path, name: str, code: int) -> None:
    (folder / CODES / name).write_text(str(code), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
