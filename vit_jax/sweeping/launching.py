"""Starts trials as jobs of `vit train`: on this host, each with its share of the GPUs, or on
SLURM."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.launch import local, slurm
from vit_jax.launch.job import Job
from vit_jax.launch.runs import locked

MEMORY = 0.9  # share of a GPU's memory that the trials on it may use together


def launch(
    name: str, folder: Path, changes: Mapping[str, str], slot: int, *, spec: str,
    overrides: Mapping[str, str], parallel: int, say: Callable[[str], None],
    fields: Mapping[str, Any], sbatch: Mapping[str, str] | None,
) -> Any:  # fmt: skip
    """Starts or continues the trial of a recipe in a folder, on the devices of one of `parallel`
    slots. `fields` are fields of its job. `sbatch` holds the options of sbatch if it runs on SLURM,
    else None.

    Returns None while a run that a killed sweep left behind holds the folder. On SLURM such a job
    is found by its name.
    """
    keys = {**overrides, **changes}
    arguments = ("train", f"--config={spec}", f"--workdir={folder}",
                 *(f"--config.{key}={value}" for key, value in keys.items()))  # fmt: skip
    job = Job(name, arguments, folder / "logs", **fields)
    if sbatch is not None:
        return slurm.start([job], sbatch)[0]
    if locked(folder):
        return None
    own = share(local.visible_gpus(job), slot, parallel)
    return local.start(dataclasses.replace(job, environment={**job.environment, **own}), say)


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
