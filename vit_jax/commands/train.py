"""Trains a model, or continues the work folder where it stopped.

vit train --config=digits.py --workdir=runs/digits
vit train --config=configs/pretrain.py:b16,imagenet21k --workdir=DIR --config.seed=1
"""

import argparse

from vit_jax import ranking, recipe
from vit_jax.commands.arguments import CONFIG, JOB, Options, configured, join_job
from vit_jax.parallel import runtime

OPTIONS: Options = CONFIG | {
    "--workdir": dict(required=True, help="folder of the run, made if it is not there"),
    "--replay-step": dict(type=int, metavar="N", help="train nothing: show the gradients and "
                          "examples of step N of the run"),
    **JOB,
    "--quiet": dict(action="store_true", help="errors and the result alone"),
}  # fmt: skip
EPILOG = recipe.keys_in_words()


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    config, named = configured(options)
    join_job(options, config.heartbeat_timeout)
    from vit_jax.parallel.compile_cache import keep_compiled
    from vit_jax.training.console import tell
    from vit_jax.training.loop import train

    keep_compiled(options.workdir)

    if options.replay_step is not None:
        from vit_jax.training.replay import replay

        print("\n".join(replay(config, options.workdir, options.replay_step, named)))
        return 0
    result = train(config, options.workdir, named=named, quiet=options.quiet)
    runtime.stop()
    if runtime.process():
        return 0
    metric, best = next(iter(result.items()))  # the task's own comes first
    reached = "" if best is None else f"held-out {ranking.in_words(metric, best)}, "
    tell(
        f"done: {reached}{result['steps']} steps in {result['train_seconds']:.1f} s of training "
        f"({result['images_per_second']:.0f} images/s); {options.workdir}/result.json"
    )
    return 0
