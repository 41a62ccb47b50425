"""Starts a command on many processes: here, on SLURM, on Kubernetes, or on a Cloud TPU slice.

  vit launch local --processes=2 --devices=4 -- train --config=digits.py
  vit launch slurm --nodes=2 --time-limit=600 -- train --config=configs/pretrain.py:b16,imagenet21k
  vit launch BACKEND … --dry-run -- train …     # prints what would be started
  vit launch BACKEND --help

The work folder of a run without --workdir is DIR/NAME. NAME is the name of its recipe and a hash of
its config, so the same line again continues the run.
"""

import argparse
import dataclasses
import importlib
import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vit_jax import recipe
from vit_jax.commands.arguments import Options, command_line
from vit_jax.commands.output import say
from vit_jax.errors import UserError, nearest, printable
from vit_jax.launch import kubernetes, local, slurm, tpu
from vit_jax.launch.job import Job, job_hash, run_name, verdict

COMMANDS = ("train", "evaluate")  # that can be launched, after --
OF_HOSTS = ("volumes", "setup")  # options that name folders and commands of other machines
ELSEWHERE = ("kubernetes", "tpu")  # back ends whose processes do not see this machine's files


def run(options: argparse.Namespace) -> int:
    """Starts the job. Returns the exit code."""
    if options.overrides:
        key = next(iter(options.overrides))
        raise UserError(f"--config.{key} belongs behind --: vit launch … -- train --config=…")
    if not options.commands:
        raise UserError(
            f"what is to be launched stands behind --: vit launch {options.part} … -- train "
            "--config=…"
        )
    if len(options.commands) > 1 and options.part != "slurm":
        raise UserError("several commands at once (an array) are for vit launch slurm alone")
    _, start = PARTS[options.part]
    return start(options, [_job(options, line) for line in options.commands])


def _job(options: argparse.Namespace, line: list[str]) -> Job:
    """The job that a line behind -- asks for. Raises UserError: there is a mistake in it."""
    command = (line or [""])[0]
    arguments = [_with_home(word, options.part) for word in line[1:]]
    if command not in COMMANDS:
        raise UserError(f"{command!r} cannot be launched: {nearest(command, COMMANDS)}")
    module = importlib.import_module(f"vit_jax.commands.{command}")
    directory = _directory(options)
    if command == "train":
        named = any(a.replace("_", "-").startswith("--workdir") for a in arguments)
        parsed = command_line("train", module, arguments if named else [*arguments, "--workdir="])
        config = recipe.load(parsed.config)
        recipe.override(config, parsed.overrides)
        name = run_name(parsed.config, config)
        if not named:
            arguments = [*arguments, f"--workdir={directory / name}"]
        folder = Path(parsed.workdir).parent if named else directory
        _check_on_volume(options, Path(parsed.workdir) if named else directory)
    else:
        command_line(command, module, arguments)
        name, folder = job_hash(command, arguments), directory
    return Job(name, (command, *arguments), folder / "logs" / name, **job_fields(options))


def job_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a job that options set."""
    fields = {f.name for f in dataclasses.fields(Job)} - {"name", "arguments", "logs"}
    chosen = {k: v for k, v in vars(options).items() if k in fields and v is not None}
    return {"processes": chosen.get("nodes", 1)} | chosen


def sbatch_options(options: argparse.Namespace) -> dict[str, str]:
    """The options of sbatch that options of `vit launch slurm` set."""
    return dict(options.sbatch) | ({"partition": options.partition} if options.partition else {})


def _with_home(word: str, backend: str) -> str:
    """A word behind --, in which this machine's home replaces the ~ that begins it or its value,
    because a shell leaves the ~ of --workdir=~/runs as it is. A recipe is always read here.

    Raises UserError: the word is for another machine.
    """
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if not value.startswith("~"):
        return word
    if backend in ELSEWHERE and name != "--config":
        raise UserError(
            f"{word}: ~ is a home of this machine, and the files of vit launch {backend} are in a "
            "container: write the whole path, as the container has it"
        )
    path = os.path.expanduser(value)
    if path == value and value.partition("/")[0] == "~":
        raise UserError(f"{word}: no home is known here for ~: write the whole path")
    return name + equals + path


def _directory(options: argparse.Namespace) -> Path:
    """The folder of runs. In a container it is on a volume. Raises UserError: there is none."""
    volumes = getattr(options, "volumes", None)
    if volumes == []:
        raise UserError("a container forgets its files: give it a --volume, where its runs go")
    return Path(options.dir or (volumes[0][1] if volumes else "runs"))


def _check_on_volume(options: argparse.Namespace, path: Path) -> None:
    mounts = [place for _, place in getattr(options, "volumes", [])]
    normal = PurePosixPath(posixpath.normpath(path))  # /runs/../etc is not in /runs
    if mounts and not any(normal.is_relative_to(posixpath.normpath(place)) for place in mounts):
        raise UserError(f"{path} is on no volume ({', '.join(mounts)}), and would be forgotten")


# -- back ends ---------------------------------------------------------------------------------
def _local(options: argparse.Namespace, jobs: list[Job]) -> int:
    """on this host: several processes, with several devices each"""
    job = jobs[0]
    if options.dry_run:
        return _shown("\n".join(local.shown(job)))
    folder = _workdir(job.arguments)
    run = f"the run is in {printable(folder)}, " if folder else ""
    say(f"{job.name}: {run}the output of its processes in {printable(job.logs)}")
    return local.run(job)


def _workdir(arguments: Sequence[str]) -> str:
    """The work folder that a command's arguments name; empty if they name none."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--workdir", default="")
    return options.parse_known_args(arguments)[0].workdir


def _shown(text: str) -> int:
    print(text.rstrip("\n"))
    return 0


def _slurm(options: argparse.Namespace, jobs: list[Job]) -> int:
    """on SLURM; several commands, each behind its own --, are one array"""
    sbatch = sbatch_options(options)
    if len(jobs) > 1:
        logs = jobs[0].logs.parent / slurm.array_name(jobs)
        jobs = [dataclasses.replace(job, logs=logs) for job in jobs]
    if options.dry_run:
        return _shown(slurm.script(jobs, sbatch, options.at_once))
    running = slurm.start(jobs, sbatch, options.at_once)
    for job in running:
        print(f"{job.job.name}: job {job.number}; logs: {job.logs[0]}", flush=True)
    return verdict([job.wait() for job in running]) if options.wait else 0


def _kubernetes(options: argparse.Namespace, jobs: list[Job]) -> int:
    """on Kubernetes: an Indexed Job or a JobSet, on CPUs, GPUs or TPUs"""
    made = kubernetes.manifests(
        jobs[0], namespace=options.namespace, nodes=dict(options.node), tpu=options.tpu,
        jobset=options.jobset, slices=options.slices,
    )  # fmt: skip
    return _shown(kubernetes.as_yaml(made) if options.dry_run else kubernetes.apply(made))


def _tpu(options: argparse.Namespace, jobs: list[Job]) -> int:
    """on one Cloud TPU slice, by commands of gcloud"""
    text = tpu.script(
        jobs[0], accelerator=options.accelerator, zone=options.zone, project=options.project,
        runtime=options.runtime, spot=options.spot, setup=options.setup,
    )  # fmt: skip
    return _shown(text) if options.dry_run else tpu.run(text)


# -- options -----------------------------------------------------------------------------------
def _pairs(separator: str, metavar: str, example: str = "", **settings: Any) -> dict[str, Any]:
    """Settings of an option that may be given several times, each with a pair of texts."""

    def parse(text: str) -> tuple[str, str]:
        first, _, second = text.partition(separator)
        if not first or not second:
            raise UserError(f"{text!r} is no {metavar}{example}")
        return first, second

    return settings | {"action": "append", "default": [], "type": parse, "metavar": metavar}


def _containers(source: str) -> Options:
    where = "what is mounted, and where; runs go to the first one"
    example = ", such as runs:/runs"
    return {
        "--image": dict(required=True, help="a container with vit_jax in it"),
        "--volume": _pairs(":", f"{source}:PATH", example, dest="volumes", help=where),
    }


OF_ALL: Options = {
    "--dir": dict(help="folder of runs without a --workdir (runs)"),
    "--dry-run": dict(action="store_true", help="print what would be started"),
    "--restarts": dict(type=int, default=10, metavar="N",
                       help="number of restarts after saves, lost processes and kills (10)"),
}  # fmt: skip
SIZES: Options = OF_ALL | {
    "--processes": dict(type=int, metavar="N", help="processes (one, or one per node)"),
    "--devices": dict(type=int, metavar="M", help="devices per process"),
    "--platform": dict(choices=("cpu", "gpu")),
    "--time-limit": dict(type=float, metavar="MINUTES"),
}
CLUSTER: Options = {
    "--cpus": dict(type=int, metavar="N", help="CPUs per process"),
    "--memory": dict(metavar="64G", help="memory per process"),
}
SLURM: Options = {
    "--nodes": dict(type=int, default=1, metavar="N"),
    "--partition": {},
    "--sbatch": _pairs("=", "OPTION=VALUE", ", such as qos=high", help="another option of sbatch"),
    "--at-once": dict(type=int, default=256, metavar="N", help="jobs of an array at the same time"),
    "--wait": dict(action="store_true", help="wait until the job has ended"),
}
KUBERNETES: Options = {
    "--namespace": dict(default="default"),
    "--node": _pairs("=", "LABEL=VALUE", help="a label that the nodes must have"),
    "--tpu": dict(metavar="TYPE:TOPOLOGY", help="GKE's TPU node pool, such as v5e:4x4"),
    "--jobset": dict(action="store_true", help="a JobSet instead of an Indexed Job"),
    "--slices": dict(type=int, default=1, metavar="N", help="TPU slices, as a JobSet"),
}
TPU: Options = {
    "--accelerator": dict(required=True, metavar="TYPE", help="such as v5litepod-16"),
    "--zone": dict(required=True),
    "--project": {},
    "--runtime": dict(metavar="VERSION", help="the accelerator's own by default"),
    "--spot": dict(action="store_true"),
    "--setup": dict(metavar="COMMAND", help="that every host runs first, such as a mount"),
}
PARTS: dict[str, tuple[Options, Callable[[argparse.Namespace, list[Job]], int]]] = {
    "local": (SIZES, _local),
    "slurm": (SIZES | CLUSTER | SLURM, _slurm),
    "kubernetes": (_containers("CLAIM") | SIZES | CLUSTER | KUBERNETES, _kubernetes),
    "tpu": (OF_ALL | _containers("FOLDER") | TPU, _tpu),
}
