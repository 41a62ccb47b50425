"""What a job is, and what the exit codes of its processes mean together.

A launcher is a module that starts a Job. Only this module decides what an exit code means.
"""

import dataclasses
import math
import re
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from vit_jax.config import config_hash
from vit_jax.errors import INTERRUPTED, RESTART, WATCHDOG, UserError
from vit_jax.resolution import run_hash

AGAIN = (RESTART, WATCHDOG)  # exit codes of `vit` after which the same command continues the run
# Codes after which a container is started again: also those of SIGABRT, SIGKILL, SIGSEGV, SIGTERM.
RESTART_CODES = [*AGAIN, *(128 + number for number in (6, 9, 11, 15))]
ABORTED = (-signal.SIGABRT, 128 + signal.SIGABRT)  # such as by C++ that got no memory
PORT = 8476  # of process 0, if nothing else decides it
PLATFORMS = ("cpu", "gpu", "tpu")
# Without -P, `-m` looks for modules in the current folder first: a queue.py there would replace the
# standard library's.
PYTHON = (sys.executable, "-P")


@dataclasses.dataclass(frozen=True)
class Job:
    """A command of `vit` on `processes` processes. A launcher ignores fields of others."""

    name: str
    arguments: tuple[str, ...]  # of vit: ("train", "--config=digits.py", "--workdir=runs/a")
    logs: Path  # folder of the output of each process
    processes: int = 1
    devices: int | None = None  # per process; None: all devices, divided
    platform: str | None = None  # one of PLATFORMS; None: GPUs if there are some
    restarts: int = 10  # after AGAIN or a kill, not after an error
    time_limit: float | None = None  # minutes
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # For clusters:
    nodes: int = 1
    cpus: int | None = None  # per process
    memory: str | None = None  # per process, such as 64G
    image: str | None = None  # of containers
    volumes: tuple[tuple[str, str], ...] = ()  # (source, path in the container)

    def __post_init__(self) -> None:
        least = {"processes": 1, "devices": 1, "restarts": 0, "nodes": 1, "cpus": 1}
        for field, low in least.items():
            value = getattr(self, field)
            if value is not None and value < low:
                raise UserError(f"--{field} is {low} or more, not {value}")
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise UserError(f"--time-limit is a number of minutes above 0, not {self.time_limit}")
        if self.platform not in (None, *PLATFORMS):
            raise UserError(f"--platform is one of {', '.join(PLATFORMS)}, not {self.platform!r}")
        if self.memory is not None and not re.fullmatch(r"[1-9][0-9]*[KMGT]", self.memory):
            raise UserError(
                f"--memory is a number with K, M, G or T, such as 64G, not {self.memory}"
            )
        if self.processes % self.nodes:
            raise UserError(
                f"{self.processes} processes cannot be divided over {self.nodes} nodes: "
                f"--processes is a multiple of --nodes"
            )

    @property
    def command(self) -> list[str]:
        """The command line of each process, with this Python."""
        return [*PYTHON, "-m", "vit_jax.cli", *self.arguments]


def run_name(spec: str, config: ConfigDict) -> str:
    """`digits-1a2b3c4d5e6f`: the recipe's name, for people, and a hash of its config with the
    overrides."""
    stem = Path(spec.partition(":")[0]).stem
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in stem.lower()).strip("-")
    # In Kubernetes a name begins with a letter.
    letter = plain if plain[:1].isalpha() else f"run-{plain}".rstrip("-")
    return f"{letter[:30]}-{run_hash(config)}"


def job_hash(command: str, arguments: Sequence[str]) -> str:
    """The name of a job that is not a training run: `evaluate-1a2b3c4d5e6f`."""
    return f"{command}-{config_hash({'arguments': list(arguments)})}"


def cpu_devices(environment: Mapping[str, str], count: int) -> dict[str, str]:
    """Environment variables that give a process `count` virtual devices of the CPU."""
    flag = "--xla_force_host_platform_device_count"
    others = re.sub(rf"{flag}=\d+", "", environment.get("XLA_FLAGS", ""))
    return {"XLA_FLAGS": f"{others} {flag}={count}".strip(), "JAX_PLATFORMS": "cpu"}


def shipped(job: Job, folder: str) -> tuple[Path | None, tuple[str, ...]]:
    """(recipe, arguments): the recipe if it is the user's own file, and the arguments that find it
    in a `folder` of a container. The container has the recipes of the package."""
    recipe, arguments, before = None, [], ""
    for argument in job.arguments:
        spec = argument.removeprefix("--config=") if before != "--config" else argument
        path, colon, rest = spec.partition(":")
        if (before == "--config" or spec != argument) and Path(path).is_file():
            recipe = Path(path)
            argument = f"{argument.removesuffix(spec)}{folder}/{recipe.name}{colon}{rest}"
        arguments.append(argument)
        before = argument
    return recipe, tuple(arguments)


def killed(code: int) -> bool:
    """Whether a signal ended a process. Python gives a negative code, a shell 128 and more."""
    return code < 0 or (code > 128 and code != INTERRUPTED)


def verdict(codes: Iterable[int]) -> int:
    """The exit code of a whole job: 0 if all are 0; else the highest code of an error that would
    only come again; else one of AGAIN."""
    ended = [code for code in codes if code]
    if final := [code for code in ended if code not in AGAIN and not killed(code)]:
        return max(final)
    return 0 if not ended else WATCHDOG if WATCHDOG in ended else RESTART


def in_words(codes: Iterable[int]) -> str:
    """`process 1 was killed (signal 9), process 0 ended with 75`: kills come first, because they
    are the cause."""
    numbered = [(not killed(code), i, code) for i, code in enumerate(codes) if code]
    return ", ".join(
        f"process {i} ended with {code}" if by_itself
        else f"process {i} was killed (signal {-code if code < 0 else code - 128})"
        for by_itself, i, code in sorted(numbered)
    )  # fmt: skip
