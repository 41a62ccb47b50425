"""Measures a checkpoint on every example of a split.

vit evaluate --workdir=runs/digits
vit evaluate --checkpoint=runs/digits/checkpoints/500 --data=folder:PATH --json
"""

import argparse
import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from vit_jax import recipe
from vit_jax.config import base
from vit_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", help="a run's folder: its last checkpoint")
    which.add_argument("--checkpoint", help="one checkpoint, such as DIR/checkpoints/500")
    parser.add_argument("--data", metavar="SOURCE", help="another source, such as folder:PATH")
    parser.add_argument("--split", help="another split")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="metrics as JSON, to FILE or printed"
    )


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    from vit_jax.checkpoint import manager

    checkpoint = manager.find(options.workdir or options.checkpoint)
    about = manager.about(checkpoint)
    config = stored_config(about["config"])
    config.mesh.update(base().mesh)  # of this machine, not of the one that trained
    named = recipe.override(config, options.overrides)
    stored = tuple(about["config"]["model.image_size"])
    if (shown := about.get("data", {}).get("image_size")) and "model.image_size" not in named:
        config.model.image_size = shown
    _fit_batches(config, named)
    if options.data:
        config.data.eval.source = options.data
    if options.split:
        config.data.eval.split = options.split
    if not config.data.eval.split:
        raise UserError("the run has no evaluation split: give --split")

    from vit_jax.pretrained.load import fill
    from vit_jax.pretrained.weights import open_weights
    from vit_jax.training.evaluation import measure
    from vit_jax.training.setup import set_up
    from vit_jax.training.workdir import write_json

    run = set_up(config, named, classes=about["classes"])
    if run.model.config.image_size == stored:
        params = manager.restore(
            checkpoint, run.abstract_state["params"], run.shardings["params"], part="params"
        )
    else:
        params, _ = fill(open_weights(checkpoint), run.model, run.shardings["params"])
    metrics = measure(run, params, lambda line: print(line, file=sys.stderr))
    step = int(checkpoint.name) if checkpoint.name.isdigit() else None
    result = {
        "checkpoint": str(checkpoint),
        "step": step,
        "split": config.data.eval.split,
        **metrics,
    }
    if options.json == "-":
        print(json.dumps(result))
        return 0
    print(
        f"{checkpoint}: accuracy {metrics['accuracy']:.2%}, top-5 {metrics['top5_accuracy']:.2%}, "
        f"loss {metrics['loss']:.4f} on {metrics['examples']} examples of "
        f"{config.data.eval.source} {config.data.eval.split}"
    )
    if options.json:
        write_json(Path(options.json), result)
    return 0


def _fit_batches(config: ConfigDict, named: list[str]) -> None:
    """Batch sizes that this machine's devices divide, whatever those of training were."""
    import jax

    config.microbatch, devices = None, jax.device_count()
    for key in ("batch_size", "eval_batch_size"):
        if config[key] is not None and key not in named:
            config[key] = -(-config[key] // devices) * devices


def stored_config(flat: dict) -> ConfigDict:
    """The config tree of a checkpoint's flat one."""
    config = base()
    with config.unlocked():
        for key, value in flat.items():
            config.update_from_flattened_dict({key: value})
    return config
