"""Writers of metrics besides `metrics.jsonl`: TensorBoard, and those that a caller passes.

The interface is the part of `clu.metric_writers.MetricWriter` that a run uses, so that any writer
of clu works. clu's writers are not imported here, because they import TensorFlow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class MetricWriter(Protocol):
    """Takes the scalars of a step, in rising order of steps."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """`scalars`: name -> value. A restarted run writes steps after its checkpoint again."""

    def flush(self) -> None:
        """Returns when others can read everything that was written."""

    def close(self) -> None:
        """Flushes. Nothing is written afterwards."""


class TensorBoardWriter:
    """Writes TensorBoard events to `folder` with tensorboardX. Purges those after `last_step`."""

    def __init__(self, folder: Path, last_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
