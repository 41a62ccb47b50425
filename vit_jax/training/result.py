"""`result.json`: what a finished run reached."""

import hashlib
import json
from pathlib import Path
from typing import Any

from vit_jax.config import flat
from vit_jax.training.progress import Progress
from vit_jax.training.setup import Run
from vit_jax.training.workdir import write_json


def config_hash(config: dict[str, Any]) -> str:
    """A short hash of a resolved config's keys and values."""
    return hashlib.sha1(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def write_result(workdir: Path, run: Run, progress: Progress) -> dict[str, Any]:
    """Writes and returns accuracy, steps, times and every final metric."""
    c = run.config
    trained, evaluated = progress.last("loss"), progress.last("eval/")
    examples = c.total_steps * c.batch_size
    result = {
        "accuracy": evaluated.get(f"eval/{c.data.eval.split}/accuracy"),
        "steps": c.total_steps,
        "examples_seen": examples,
        "train_seconds": round(trained.get("seconds", 0.0), 3),
        "images_per_second": round(examples / max(trained.get("seconds", 0.0), 1e-9), 2),
        "num_params": run.model.num_params,
        "config_hash": config_hash(flat(c)),
    }
    final = {k: v for row in (trained, evaluated) for k, v in row.items() if k not in result}
    write_json(workdir / "result.json", result | final)
    return result | final
