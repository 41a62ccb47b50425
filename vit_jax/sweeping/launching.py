"""Starts trials as jobs of `vit train`: on this host, each with its share of the GPUs, or on
SLURM."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.launch import local, slurm
from vit_jax.launch.job import Job
from vit_jax.launch.runs import locked

MEMORY = 0.9  # share of a GPU's memory that the trials on it may use together


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Starts trials of a recipe, `parallel` of them at a time. `fields` are fields of their jobs.
    `sbatch` holds the options of sbatch if they run on SLURM, else None."""

    spec: str
    overrides: Mapping[str, str]
    parallel: int
    say: Callable[[str], None]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sbatch: Mapping[str, str] | None = None
    job: type[Job] = Job

    def __call__(self, name: str, folder: Path, changes: Mapping[str, str], slot: int) -> Any:
        """Starts or continues the trial in a folder, on the devices of one of `parallel` slots.

        Returns None while a run that a killed sweep left behind holds the folder. On SLURM such a
        job is found by its name.
        """
        keys = {**self.overrides, **changes}
        arguments = ("train", f"--config={self.spec}", f"--workdir={folder}",
                     *(f"--config.{key}={value}" for key, value in keys.items()))  # fmt: skip
        job = self.job(name, arguments, folder / "logs", **self.fields)
        if self.sbatch is not None:
            return slurm.start([job], self.sbatch)[0]
        if locked(folder):
            return None
        gpus = (
            [] if "cpu" in (job.platform, os.environ.get("JAX_PLATFORMS")) else local.visible_gpus()
        )
        with _environment(share(gpus, slot, self.parallel)):
            return local.start(job, self.say)


def share(gpus: Sequence[str], slot: int, parallel: int) -> dict[str, str]:
    """The environment in which a slot sees its own GPUs, or its part of one that several use."""
    if not gpus or parallel == 1:
        return {}
    if len(gpus) >= parallel:
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot::parallel])}
    together = -(-parallel // len(gpus))
    return {
        "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)],
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{MEMORY / together:.3f}",
    }


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Changes the environment for a while, because the launcher divides the GPUs that it sees."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
