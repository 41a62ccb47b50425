"""Starts a command on many processes: here, on SLURM, on Kubernetes, or on a Cloud TPU slice.

  vit launch local --processes=2 --devices=4 -- train --config=digits.py
  vit launch slurm --nodes=2 --time-limit=600 -- train --config=configs/pretrain.py:b16,imagenet21k
  vit launch BACKEND … --dry-run -- train …     # shows what would be done
  vit launch BACKEND --help

A run without --workdir is DIR/NAME, NAME being its recipe's name and a hash of its config: the same
line again continues it.
"""

import argparse
import dataclasses
import importlib
import os
import posixpath
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from vit_jax import recipe
from vit_jax.commands.arguments import command_line
from vit_jax.errors import UserError, nearest

COMMANDS = ("train", "evaluate")  # that can be launched, after --
OF_HOSTS = ("volumes", "setup")  # options that name places and commands of other machines
ELSEWHERE = ("kubernetes", "tpu")  # back ends whose processes see other files than this machine's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    backends = parser.add_subparsers(dest="backend", required=True, metavar="BACKEND")
    for name, (what, add, _) in BACKENDS.items():
        one = backends.add_parser(name, help=what, description=what, allow_abbrev=False)
        one.add_argument("--dir", help="of runs without a --workdir (runs)")
        one.add_argument("--dry-run", action="store_true", help="show what would be done")
        one.add_argument("--restarts", type=int, default=10, metavar="N",
                         help="after saves, lost processes and kills, not errors (10)")  # fmt: skip
        add(one)


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    if options.overrides:
        key = next(iter(options.overrides))
        raise UserError(f"--config.{key} belongs behind --: vit launch … -- train --config=…")
    if not options.commands:
        raise UserError(
            f"what is to be launched stands behind --: vit launch {options.backend} … -- train "
            "--config=…"
        )
    if len(options.commands) > 1 and options.backend != "slurm":
        raise UserError("several commands at once (an array) are for vit launch slurm alone")
    _, _, start = BACKENDS[options.backend]
    return start(options, [_job(options, line) for line in options.commands])


def _job(options: argparse.Namespace, line: list[str]) -> Any:
    """The job that a line behind -- asks for; a mistake in it is told here and now."""
    from vit_jax.launch.job import Job, job_hash, run_name

    command = (line or [""])[0]
    arguments = [_with_home(word, options.backend) for word in line[1:]]
    if command not in COMMANDS:
        raise UserError(f"{command!r} cannot be launched: {nearest(command, COMMANDS)}")
    module = importlib.import_module(f"vit_jax.commands.{command}")
    directory = _directory(options)
    if command == "train":
        given = any(a.replace("_", "-").startswith("--workdir") for a in arguments)
        parsed = command_line("train", module, arguments if given else [*arguments, "--workdir="])
        config = recipe.load(parsed.config)
        recipe.override(config, parsed.overrides)
        name = run_name(parsed.config, config)
        if not given:
            arguments = [*arguments, f"--workdir={directory / name}"]
        folder = Path(parsed.workdir).parent if given else directory
        _on_volume(options, Path(parsed.workdir) if given else directory)
    else:
        command_line(command, module, arguments)
        name, folder = job_hash(command, arguments), directory
    fields = {f.name for f in dataclasses.fields(Job)} - {"name", "arguments", "logs"}
    wanted = {k: v for k, v in vars(options).items() if k in fields and v is not None}
    wanted.setdefault("processes", wanted.get("nodes", 1))
    return Job(name, (command, *arguments), folder / "logs" / name, **wanted)


def _with_home(word: str, backend: str) -> str:
    """A word behind --, with this machine's home for the ~ that begins it or its value: a shell
    leaves the one of --workdir=~/runs as it is. A recipe is always read here.

    Raises UserError where the word is for another machine.
    """
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if not value.startswith("~"):
        return word
    if backend in ELSEWHERE and name != "--config":
        raise UserError(
            f"{word}: ~ is a home of this machine, and the files of vit launch {backend} are in a "
            "container: write the whole path, as the container has it"
        )
    found = os.path.expanduser(value)
    if found == value and value.partition("/")[0] == "~":
        raise UserError(f"{word}: no home is known here for ~: write the whole path")
    return name + equals + found


def _directory(options: argparse.Namespace) -> Path:
    """Of runs; in containers it is on a volume. Raises UserError where there is none."""
    volumes = getattr(options, "volumes", None)
    if volumes == []:
        raise UserError("a container forgets its files: give it a --volume, where its runs go")
    return Path(options.dir or (volumes[0][1] if volumes else "runs"))


def _on_volume(options: argparse.Namespace, path: Path) -> None:
    mounts = [place for _, place in getattr(options, "volumes", [])]
    found = PurePosixPath(posixpath.normpath(path))  # /runs/../etc is in no /runs
    if mounts and not any(found.is_relative_to(posixpath.normpath(place)) for place in mounts):
        raise UserError(f"{path} is on no volume ({', '.join(mounts)}), and would be forgotten")


# -- back ends ---------------------------------------------------------------------------------
def _pair(separator: str, what: str) -> Callable[[str], tuple[str, str]]:
    def parse(text: str) -> tuple[str, str]:
        one, found, other = text.partition(separator)
        if not found or not one or not other:
            raise UserError(f"{text!r} is no {what}")
        return one, other

    return parse


def _add_sizes(parser: argparse.ArgumentParser, processes: int | None = 1) -> None:
    parser.add_argument("--processes", type=int, default=processes, metavar="N")
    parser.add_argument("--devices", type=int, metavar="M", help="of each process")
    parser.add_argument("--platform", choices=("cpu", "gpu"))
    parser.add_argument("--time-limit", type=float, metavar="MINUTES")


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cpus", type=int, metavar="N", help="of each process")
    parser.add_argument("--memory", metavar="64G", help="of each process")


def _add_containers(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument("--image", required=True, help="a container with vit_jax in it")
    parser.add_argument(
        "--volume", dest="volumes", action="append", default=[],
        type=_pair(":", f"{source}:PATH, such as runs:/runs"), metavar=f"{source}:PATH",
        help="what is mounted where; runs go to the first one",
    )  # fmt: skip


def _add_local(parser: argparse.ArgumentParser) -> None:
    _add_sizes(parser)


def _local(options: argparse.Namespace, jobs: list[Any]) -> int:
    from vit_jax.launch import local

    if options.dry_run:
        print("\n".join(local.shown(jobs[0])))
        return 0
    return local.run(jobs[0])


def _add_slurm(parser: argparse.ArgumentParser) -> None:
    _add_sizes(parser, None)
    _add_cluster(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N",
                        help="--processes, a multiple of it, is one a node by default")  # fmt: skip
    parser.add_argument("--partition")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION=VALUE",
        type=_pair("=", "OPTION=VALUE, such as qos=high"), help="any other option of sbatch",
    )  # fmt: skip
    parser.add_argument("--at-once", type=int, default=256, metavar="N", help="of an array")
    parser.add_argument("--wait", action="store_true", help="until it is over")


def _slurm(options: argparse.Namespace, jobs: list[Any]) -> int:
    from vit_jax.launch import slurm
    from vit_jax.launch.job import verdict

    sbatch = dict(options.sbatch) | ({"partition": options.partition} if options.partition else {})
    if len(jobs) > 1:
        logs = jobs[0].logs.parent / slurm.array_name(jobs)
        jobs = [dataclasses.replace(job, logs=logs) for job in jobs]
    if options.dry_run:
        print(slurm.script(jobs, sbatch, options.at_once))
        return 0
    running = slurm.start(jobs, sbatch, options.at_once)
    for one in running:
        print(f"{one.job.name}: job {one.number}; logs: {one.logs[0]}", flush=True)
    return verdict([one.wait() for one in running]) if options.wait else 0


def _add_kubernetes(parser: argparse.ArgumentParser) -> None:
    _add_containers(parser, "CLAIM")
    _add_sizes(parser)
    _add_cluster(parser)
    parser.add_argument("--namespace", default="default")
    parser.add_argument(
        "--node", action="append", default=[], type=_pair("=", "LABEL=VALUE"),
        metavar="LABEL=VALUE", help="that the nodes must have, for a pool of them",
    )  # fmt: skip
    parser.add_argument("--tpu", metavar="TYPE:TOPOLOGY", help="of GKE's node pool, as v5e:4x4")
    parser.add_argument("--jobset", action="store_true", help="a JobSet instead of an Indexed Job")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="of TPUs, as a JobSet")


def _kubernetes(options: argparse.Namespace, jobs: list[Any]) -> int:
    from vit_jax.launch import kubernetes

    made = kubernetes.manifests(
        jobs[0], namespace=options.namespace, nodes=dict(options.node), tpu=options.tpu,
        jobset=options.jobset, slices=options.slices,
    )  # fmt: skip
    text = kubernetes.as_yaml(made) if options.dry_run else f"{kubernetes.apply(made)}\n"
    print(text, end="")
    return 0


def _add_tpu(parser: argparse.ArgumentParser) -> None:
    _add_containers(parser, "FOLDER")
    parser.add_argument("--accelerator", required=True, metavar="TYPE", help="as v5litepod-16")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project")
    parser.add_argument("--runtime", metavar="VERSION", help="the accelerator's own by default")
    parser.add_argument("--spot", action="store_true")
    parser.add_argument("--setup", metavar="COMMAND", help="that every host runs first, as a mount")


def _tpu(options: argparse.Namespace, jobs: list[Any]) -> int:
    from vit_jax.launch import tpu

    text = tpu.script(
        jobs[0], accelerator=options.accelerator, zone=options.zone, project=options.project,
        runtime=options.runtime, spot=options.spot, setup=options.setup,
    )  # fmt: skip
    if options.dry_run:
        print(text, end="")
        return 0
    return tpu.run(text)


# name: (what, its options, what starts it)
BACKENDS: dict[str, tuple[str, Callable, Callable]] = {
    "local": ("on this host: so many processes of so many devices", _add_local, _local),
    "slurm": ("on SLURM; several commands, each behind its own --, are one array", _add_slurm,
              _slurm),
    "kubernetes": ("on Kubernetes: an Indexed Job or a JobSet, on CPUs, GPUs or TPUs",
                   _add_kubernetes, _kubernetes),
    "tpu": ("on one Cloud TPU slice, as commands of gcloud", _add_tpu, _tpu),
}  # fmt: skip
