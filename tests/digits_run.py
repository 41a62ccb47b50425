"""A run that takes seconds: a two-layer ViT on the digits, with dropout, mixup and accumulation."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

from vit_jax.config import base


def tiny_config(**changes: Any):
    """The config; `changes` are dotted keys with __ for the dot."""
    c = base()
    c.batch_size = 32
    c.total_steps = 10
    c.log_every_steps = 1
    c.eval_every_steps = 10
    c.checkpoint.every_steps = 5
    c.model.name = "vit_mu_patch4_32"
    c.model.image_size = 8
    c.model.num_layers = 2
    c.model.dropout = 0.1
    c.model.attention_dropout = 0.1
    c.model.drop_path = 0.1
    c.data.train.source = "digits"
    c.data.train.pipeline = "decode|shift(1)"
    c.data.eval.pipeline = "decode"
    c.mixup = 0.2
    c.optimizer.lr = 3e-3
    c.optimizer.weight_decay = 0.1
    c.optimizer.clip_norm = 1.0
    c.schedule.warmup_steps = 4
    with c.unlocked():
        for key, value in changes.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


def rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def told(workdir: Path) -> dict[int, tuple]:
    """step -> what a run of the same numbers must tell again: loss, norm, rate and examples."""
    keys = ("loss", "grad_norm", "learning_rate", "examples_hash")
    return {row["step"]: tuple(row[k] for k in keys) for row in rows(workdir) if "loss" in row}


class StopsAt:
    """A writer for `vit_jax.train(writers=…)` that sends SIGTERM when it is told of a step."""

    def __init__(self, step):
        self.step = step

    def write_scalars(self, step, scalars):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def flush(self):
        pass

    def close(self):
        pass


def with_data(run: Any, **changes: Any) -> Any:
    """The run with other sources or classes."""
    data = dataclasses.replace(run.resolved.data, **changes)
    return dataclasses.replace(run, resolved=dataclasses.replace(run.resolved, data=data))
