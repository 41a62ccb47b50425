"""Where numbers go besides `metrics.jsonl`: TensorBoard, and whatever a caller brings.

The interface is that of `clu.metric_writers.MetricWriter`, of which a run uses three methods, so
that any writer of clu serves. clu's own are not imported here: they import TensorFlow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class MetricWriter(Protocol):
    """Takes the scalars of a step, in rising order of steps."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """`scalars`: name to value. A restarted run tells steps after its checkpoint again."""

    def flush(self) -> None:
        """Returns when everything written so far can be read by others."""

    def close(self) -> None:
        """Flushes; nothing is written afterwards."""


class TensorBoardWriter:
    """TensorBoard events in `folder`, through tensorboardX; those after `last_step` are purged."""

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
