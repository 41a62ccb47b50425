"""Shows what a config resolves to, without training: every key, every parameter with its sharding
and decay, the learning rate over the run, and one augmented batch.

  vit describe --config=configs/pretrain.py:b16,imagenet21k
  vit describe --config=digits.py --batch=batch.png

The data need not be here, unless a batch is asked for.
"""

import argparse
import contextlib
import dataclasses
import sys
from typing import Any

import numpy as np

from vit_jax import recipe
from vit_jax.commands.arguments import CONFIG, Options, configured
from vit_jax.errors import UserError

OPTIONS: Options = CONFIG | {
    "--batch": dict(metavar="PNG", help="write one augmented batch as a picture"),
}
EPILOG = recipe.keys_in_words()


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    config, named = configured(options)
    from vit_jax.training.resolve import known, opened
    from vit_jax.training.run import run_of

    run = run_of(config, named, data=opened if options.batch else known)
    for section in (_recipe, _parameters, _optimizer_state, _rates):
        print("\n".join(section(run)) + "\n")
    for line in run.said:
        print(line)
    if options.batch:
        _contact_sheet(run, options.batch)
    return 0


def _recipe(run) -> list[str]:
    gmacs = run.model.macs / 1e9
    return [
        recipe.as_text(run.config),
        "",
        f"{run.model.name}: {run.model.num_params:,} parameters, {gmacs:.4g} GMACs an image",
        *run.in_numbers,
    ]


_Parameter: Any = dataclasses.make_dataclass(
    "_Parameter", ["parameter", "shape", "size", "sharding", "decay", "rate"]
)


def _parameters(run) -> list[str]:
    from clu.parameter_overview import make_table

    from vit_jax.checkpoint.tree import flatten
    from vit_jax.training.groups import decay_mask, frozen_mask, rate_scales

    params, c = run.abstract_state["params"], run.config.optimizer
    family = run.model.family
    specs, decays = flatten(run.shardings["params"]), flatten(decay_mask(family, params))
    frozen = flatten(frozen_mask(params, c.freeze))
    scales = flatten(rate_scales(family, params, c.layer_decay, run.task.rates) or {})

    def rate(path: str) -> str:
        scale = np.asarray(scales.get(path, 1.0))
        ends = " … ".join(f"{s:.3g}" for s in {scale.min(), scale.max()})
        return "frozen" if frozen[path] else ends

    rows = [
        _Parameter(path, leaf.shape, leaf.size, tuple(specs[path].spec),
                   "yes" if c.weight_decay and decays[path] and not frozen[path] else "no",
                   rate(path))
        for path, leaf in flatten(params).items()
    ]  # fmt: skip
    return [make_table(rows)]


def _optimizer_state(run) -> list[str]:
    from clu.parameter_overview import get_parameter_overview

    from vit_jax.checkpoint.tree import flatten

    state = flatten(run.abstract_sharded_state["opt"])
    return ["optimiser state", get_parameter_overview(state, include_stats="sharding")]


def _rates(run) -> list[str]:
    from vit_jax.training.schedules import make_schedule

    c = run.config
    schedule = make_schedule(c.schedule, c.optimizer.lr, c.total_steps)
    marks = {0, min(c.schedule.warmup_steps, c.total_steps), c.total_steps}
    marks |= {c.total_steps * tenth // 10 for tenth in range(11)}
    rates = [f"{step:>9,}  {float(schedule(step)):.3e}" for step in sorted(marks)]
    return ["     step  learning rate", *rates]


def _contact_sheet(run, path: str) -> None:
    """One augmented batch (64 images at most) side by side, small images enlarged."""
    from vit_jax.commands.mistakes import tiles
    from vit_jax.look.pictures import as_rgb

    with contextlib.closing(run.train_batches(examples_seen=0, steps=1)) as batches:
        _, batch = next(batches)
    images = as_rgb(np.asarray(batch["image"])[:64])
    rows = {name: np.asarray(values)[:64] for name, values in batch.items()}
    count, height, width, _ = images.shape
    scale = max(1, 64 // height)
    shown = [
        run.task.picture(image, {name: values[i] for name, values in rows.items()})
        for i, image in enumerate(images)
    ]
    try:
        tiles(shown, scale * width, scale * height).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture {path}: {error}") from error
    print(f"{count} augmented images of one batch: {path}", file=sys.stderr)
