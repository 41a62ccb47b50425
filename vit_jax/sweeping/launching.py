"""How a trial is started on this host: as a job of `vit train`, with its share of the GPUs."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vit_jax.launch import local
from vit_jax.launch.job import Job

MEMORY = 0.9  # of a GPU, for the trials on it


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Starts trials of a recipe, `parallel` of them at a time."""

    spec: str
    overrides: Mapping[str, str]
    parallel: int
    say: Callable[[str], None]
    processes: int = 1  # of each trial
    devices: int | None = None  # of each process
    platform: str | None = None

    def __call__(
        self, name: str, folder: Path, changes: Mapping[str, str], slot: int
    ) -> local.Running:
        """Starts or continues the trial in a folder, on the devices of one of `parallel` slots."""
        keys = {**self.overrides, **changes}
        job = Job(
            name,
            ("train", f"--config={self.spec}", f"--workdir={folder}",
             *(f"--config.{key}={value}" for key, value in keys.items())),
            folder / "logs", self.processes, self.devices, self.platform,
        )  # fmt: skip
        gpus = [] if self.platform == "cpu" else local._gpus()
        with _environment(share(gpus, slot, self.parallel)):
            return local.start(job, self.say)


def share(gpus: Sequence[str], slot: int, parallel: int) -> dict[str, str]:
    """The environment in which a slot sees its own GPUs, or its part of one that several share."""
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
    """For what starts inside: the launcher divides the GPUs that it sees."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
