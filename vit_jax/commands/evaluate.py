"""Measures a checkpoint, or weights of any layout, on every example of a split.

vit evaluate --workdir=runs/digits
vit evaluate --checkpoint=runs/digits/checkpoints/500 --data=folder:PATH --json
vit evaluate --workdir=runs/digits --report=DIR
vit evaluate --workdir=runs/b16 --tta=flip,crops
vit evaluate --weights=hf://google/vit-base-patch16-224 --data=folder:PHOTOS --split=val
vit evaluate --workdir=runs/b16 --config.evaluators="fewshot('folder:PATH')|knn('folder:PATH')"
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_jax import recipe
from vit_jax.commands.arguments import JOB, JSON, Options, join_job
from vit_jax.commands.output import say, tell
from vit_jax.config import base
from vit_jax.errors import UserError, printable, printable_lines
from vit_jax.parallel import runtime
from vit_jax.user_code import FLAG, only, signed

PARTS_OF_A_RUN = ("trained", "ema")
OPTIONS: Options = {
    "--workdir": dict(help="a run's folder: its last checkpoint"),
    "--checkpoint": dict(help="one checkpoint, such as DIR/checkpoints/500"),
    "--data": dict(metavar="SOURCE", help="another source, such as folder:PATH"),
    "--split": dict(help="another split"),
    "--weights": dict(default="trained", metavar="WEIGHTS", help="of a run: trained (default) or "
                      "ema, their moving average; or weights of any layout, measured on --data"),
    "--tta": dict(metavar="VIEWS", help="average the probabilities over views of each image: flip "
                  "(and its mirror image), crops (and the four corners), or flip,crops"),
    "--report": dict(metavar="DIR", help="confusion matrix and worst mistakes, as tables and "
                     "pictures"),
    FLAG: dict(action="store_true", help="run the sources and operations that the run's config "
               "names by import path, although this user did not train there"),
    **JOB, **JSON,
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    _check(options)
    join_job(options, base().heartbeat_timeout, saves=False)
    if options.weights not in PARTS_OF_A_RUN:
        from vit_jax.commands.foreign import measured_weights

        return _told(options, measured_weights(options))
    with opened(options) as (checkpoint, about):
        return _told(options, measured(options, checkpoint, about))


def _check(options: argparse.Namespace) -> None:
    """Raises UserError where it is not said what is measured."""
    named = (options.workdir is not None) + (options.checkpoint is not None)
    if options.weights in PARTS_OF_A_RUN and named != 1:
        raise UserError(
            "name what is measured: --workdir=DIR or --checkpoint=DIR/checkpoints/STEP, or "
            "--weights=WEIGHTS with --data=SOURCE"
        )
    if options.weights not in PARTS_OF_A_RUN and (named or not options.data):
        raise UserError(
            f"--weights={printable(options.weights)} is measured on --data=SOURCE, without "
            "--workdir and --checkpoint; of a run it is trained or ema"
        )


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The checkpoint that `options` name, checked, and what it says of itself. Inside, its config's
    import paths may be followed as far as this user vouches for them."""
    from vit_jax.checkpoint import checksums, manager
    from vit_jax.parallel.compile_cache import keep_compiled
    from vit_jax.pretrained.own import described

    if options.workdir:
        keep_compiled(options.workdir)
    checkpoint = runtime.together(lambda: manager.find(options.workdir or options.checkpoint))
    runtime.together(lambda: checksums.check(checkpoint, *runtime.share()))
    about = manager.about(checkpoint)
    trusts = options.trust_code
    with only(None if trusts else _vouched(options, about), trust_files=trusts):
        described(checkpoint, about)  # which is refused before anything of that size is made
        yield checkpoint, about


def _vouched(options: argparse.Namespace, about: dict[str, Any]) -> Callable[[str], bool]:
    """Which import paths may be followed: those of a run of this user's, and those typed now."""
    own, typed = signed(about), [*options.overrides.values(), options.data or ""]
    return lambda path: path in own or any(path in text for text in typed)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A checkpoint, measured: the run, its weights, the metrics by their names, a line for each
    evaluator, and the rows of the evaluation split; None where it has none."""

    checkpoint: Path
    run: Any
    params: Any
    result: dict[str, Any]
    lines: list[str]
    rows: dict[str, Any] | None


def measured(options: argparse.Namespace, checkpoint: Path, about: dict[str, Any]) -> Measured:
    """Measures what was asked for."""
    from vit_jax.checkpoint import manager, steps
    from vit_jax.training.resolve import of_trained
    from vit_jax.training.run import run_of

    with manager.readable(checkpoint):
        config = stored_config(about["config"])
        stored = tuple(about["config"]["model.image_size"])
    config.mesh.update(base().mesh)  # of this machine, not of the one that trained
    named = recipe.override(config, options.overrides)
    if (shown := about.get("data", {}).get("image_size")) and "model.image_size" not in named:
        config.model.image_size = shown
    _fit_batches(config, named)
    chosen = {"source": options.data, "split": options.split}
    config.data.eval.update({key: value for key, value in chosen.items() if value})
    if not config.data.eval.split and not config.evaluators:
        raise UserError("the run has no evaluation split: give --split")
    run = runtime.together(lambda: run_of(config, named, data=of_trained(about["classes"])))
    params = _weights(run, checkpoint, stored, options.weights)
    return judge(options, checkpoint, run, params, {"step": steps.number(checkpoint.name)})


def judge(
    options: argparse.Namespace, path: Path, run: Any, params: Any, more: dict[str, Any]
) -> Measured:
    """Measures the weights of a path with every evaluator of a run. `more` stands in the result."""
    from vit_jax.training.evaluation import measure_one, measure_views

    config = run.config

    def told(evaluator: Any, metrics: dict[str, float], of: str = "") -> str:
        words = run.task.in_words(evaluator.called(metrics))
        return f"{words} ({metrics['examples']} examples{of})"

    result: dict[str, Any] = {"checkpoint": str(path), **more}
    lines, of_split = [], None
    for one in run.evaluators:
        of = ""
        if options.tta is None:
            found, rows = measure_one(run, one, params, say)
        else:
            found, rows, views = measure_views(run, one, params, options.tta, say)
            result |= {"tta": options.tta, "views": views}
            of = f"; mean of {len(views)} views: {options.tta}"
        if one.name == config.data.eval.split:
            result |= {"split": one.name, **found}
            of = f" of {config.data.eval.source} {one.name}{of}"
            lines.append(f"{path}: {told(one.evaluator, found, of)}")
            of_split = rows
        else:
            result |= {f"{one.name}/{key}": value for key, value in found.items()}
            lines.append(f"{one.name}: {told(one.evaluator, found, of)}")
    return Measured(path, run, params, result, lines, of_split)


def _told(options: argparse.Namespace, found: Measured) -> int:
    """Tells what was measured, and returns the exit code."""
    from vit_jax.commands.mistakes import write_report

    if options.report and found.rows is None:
        raise UserError("--report is of the evaluation split: give --split")
    if runtime.process() == 0:
        if options.report and found.rows:
            write_report(Path(options.report), found.run, found.rows)
            say(f"confusion matrix and worst mistakes: {options.report}")
        tell(found.result, printable_lines("\n".join(found.lines)), options.json, indent=None)
    runtime.stop()
    return 0


def _weights(run: Any, checkpoint: Path, stored: tuple[int, ...], which: str) -> Any:
    """The weights of a checkpoint that are to be measured, placed for the run."""
    from vit_jax.checkpoint import manager
    from vit_jax.pretrained.load import check_finite, fill
    from vit_jax.pretrained.own import EMA
    from vit_jax.pretrained.weights import open_weights
    from vit_jax.training.optimizer import HOLD_RATE

    abstract, shardings = run.abstract_state, run.shardings
    resized = run.model.config.image_size != stored
    if which == "ema" or resized or run.config.optimizer.name in HOLD_RATE:
        place = checkpoint / EMA if which == "ema" else checkpoint
        weights = open_weights(place, decoder=True)
        return fill(weights, run.model, shardings["params"])[0]
    params = manager.restore(checkpoint, abstract["params"], shardings["params"], part="params")
    check_finite(params, checkpoint)
    return params


def _fit_batches(config: ConfigDict, named: list[str]) -> None:
    """Batch sizes that this machine's devices divide, whatever those of training were."""
    import jax

    config.microbatch, devices = None, jax.device_count()
    for key in ("batch_size", "eval_batch_size"):
        if config[key] is not None and key not in named:
            config[key] = -(-config[key] // devices) * devices


def stored_config(flat: dict) -> ConfigDict:
    """The config tree of a checkpoint's flat one."""
    config = base(task=flat.get("task", ""))
    with config.unlocked():
        for key, value in flat.items():
            config.update_from_flattened_dict({key: value})
    return config
