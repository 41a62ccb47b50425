"""Experiment trackers: Weights & Biases, MLflow and Trackio, a class each.

A tracker gets every row of `metrics.jsonl` (its numbers, with the step), the resolved config as
hyper-parameters, and the name and folder of the run. Its package is imported when it is opened, and
the package's own environment variables decide as they do elsewhere: WANDB_PROJECT, WANDB_MODE,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, TRACKIO_SPACE_ID, …

`writers.py` calls all methods of a tracker in one thread. None of them has to be fast, or to
succeed. A restarted run sends the rows after its checkpoint again.
"""

import contextlib
import dataclasses
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.errors import INTERRUPTED, RESTART

PROJECT = "vit_jax"  # of the tracker, unless its environment variables name another


@dataclasses.dataclass(frozen=True)
class Tracked:
    """What a named writer is made from.

    Attributes:
      folder: the work folder.
      name: a name for people: that of the work folder, and of the folder above it if the work
        folder has only a number, as the trials of a sweep have.
      last_step: rows of steps up to this one were written by earlier starts of the run.
      id: the writer's own identifier of its run when the run is continued, otherwise empty.
    """

    folder: Path
    last_step: int
    id: str = ""

    @property
    def name(self) -> str:
        folder = self.folder
        return f"{folder.parent.name}-{folder.name}" if folder.name.isdigit() else folder.name


class WandB:
    """A run of Weights & Biases. With WANDB_MODE=offline, it lies in the folder `wandb` of the work
    folder; `wandb sync` uploads it.

    The step is a column of its own (`step`), because W&B refuses a step that is not above the last
    one, and a restarted run goes back to its checkpoint.
    """

    def __init__(self, run: Tracked):
        import wandb

        own = {"project": PROJECT, "name": run.name, "dir": str(run.folder)}
        self._run = wandb.init(
            **{key: None if f"WANDB_{key.upper()}" in os.environ else own[key] for key in own},
            id=run.id or None, resume="allow" if run.id else None,
            config={"workdir": str(run.folder)}, reinit="create_new",
            settings=wandb.Settings(console=os.environ.get("WANDB_CONSOLE", "off")),
        )  # fmt: skip
        self.id, self.code = self._run.id, 0
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._run.config.update(dict(hparams), allow_val_change=True)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def flush(self) -> None:
        """Nothing to do: wandb's own process writes and uploads."""

    def close(self) -> None:
        if self.code == RESTART:
            self._run.mark_preempting()
        self._run.finish(exit_code=self.code)


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""

    AT_ONCE = 100  # parameters in one request, at most

    def __init__(self, run: Tracked):
        import mlflow
        from mlflow.exceptions import MlflowException

        self._client, self.code = mlflow.MlflowClient(), 0
        if run.id:  # unless somebody has deleted it
            with contextlib.suppress(MlflowException):
                mlflow.start_run(run.id)
        if mlflow.active_run() is None:  # in this thread
            named = {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"}
            experiment = None if named & os.environ.keys() else self._experiment()
            mlflow.start_run(experiment_id=experiment, run_name=run.name)
        self.id = mlflow.active_run().info.run_id
        self._client.set_tag(self.id, "workdir", str(run.folder))

    def _experiment(self) -> str:
        """The identifier of the experiment `PROJECT`, which another run may be making, too."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            if self._client.get_experiment_by_name(PROJECT) is None:
                self._client.create_experiment(PROJECT)
        return self._client.get_experiment_by_name(PROJECT).experiment_id

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """A parameter never changes: what a continued run changes becomes a tag."""
        from mlflow.entities import Param, RunTag

        had = self._client.get_run(self.id).data.params
        texts = {key: str(value) for key, value in hparams.items()}
        new = [Param(key, text) for key, text in texts.items() if key not in had]
        changed = [
            RunTag(f"continued.{key}", text) for key, text in texts.items()
            if had.get(key, text) != text
        ]  # fmt: skip
        for first in range(0, len(new), self.AT_ONCE):
            self._client.log_batch(self.id, params=new[first : first + self.AT_ONCE])
        if changed:
            self._client.log_batch(self.id, tags=changed)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(_allowed(key), value, now, step) for key, value in scalars.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def flush(self) -> None:
        """Nothing to do: every request is answered when its row is stored."""

    def close(self) -> None:
        import mlflow

        stopped = self.code in (RESTART, INTERRUPTED)
        mlflow.end_run("KILLED" if stopped else "FAILED" if self.code else "FINISHED")


def _allowed(name: str) -> str:
    """A metric's name in characters that MLflow takes: `train[:90%]` has others."""
    return re.sub(r"[^\w\-. /:]", "_", name)


class Trackio:
    """A run of Trackio: local, or of the Space or server that its environment variables name.

    Trackio finds a run by its name, so the name has an ending of its own.
    """

    def __init__(self, run: Tracked):
        import trackio

        self.id = run.id or f"{run.name}-{secrets.token_hex(3)}"
        with contextlib.redirect_stdout(sys.stderr):  # which is for the result of `vit`
            self._run = trackio.init(
                os.environ.get("TRACKIO_PROJECT", PROJECT), name=self.id, resume="allow",
                config={"workdir": str(run.folder)}, embed=False,
            )  # fmt: skip

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._run.config |= dict(hparams)  # sent with the first row

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def flush(self) -> None:
        """Nothing to do: Trackio's own thread sends twice a second."""

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


# name in `writers`, and of the package that is imported -> class
TRACKERS: dict[str, Any] = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}
