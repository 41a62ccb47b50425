"""Trains a recipe with many values of its keys. Each trial is `vit train` in a folder of its own.

vit sweep --config=digits.py --sweep="optimizer.lr=1e-3,3e-3;seed=0,1" --study=rates --workdir=runs
vit sweep --config=digits.py --sweep="optimizer.lr=log(1e-4,1e-2)" --method=tpe --trials=20 \\
    --study=tpe --workdir=runs --parallel=2
vit sweep --config=finetune.py:b16,cifar10 --study=lr --workdir=runs     # the recipe's own sweep()
vit sweep … --parallel=8 -- slurm --partition=gpu --devices=1     # options of `vit launch`
vit sweep report --study=rates --workdir=runs

DIR/NAME holds the trials, Optuna's study, trials.csv, report.html, and best.py, which is a recipe
for `vit train`. The same command continues a sweep that was stopped or killed.
"""

import argparse
import functools
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_jax.commands.arguments import CONFIG, Options, command_line, configured
from vit_jax.commands.output import say
from vit_jax.errors import UserError
from vit_jax.ranking import ranked_by

COMMANDS = ("local", "slurm")  # back ends after `--`


OPTIONS: Options = {
    "action": dict(nargs="?", choices=("run", "report"), default="run"),
    "--config": CONFIG["--config"] | dict(required=False),
    "--sweep": dict(metavar="EXPR|FILE",
                    help="KEY=VALUE,VALUE;KEY=log(LOW,HIGH);KEY=uniform(LOW,HIGH), a file of such "
                    "lines, or a Python file with a sweep() (default: the sweep() of the recipe)"),
    "--study": dict(required=True, metavar="NAME"),
    "--workdir": dict(required=True, metavar="DIR", help="the study is in DIR/NAME"),
    "--storage": dict(metavar="URL", help="a database (default: a file in DIR/NAME)"),
    "--method": dict(choices=("grid", "random", "tpe", "halving"),
                     help="grid is the default; random and tpe can search ranges; halving "
                     "continues the best third of the trials, twice"),
    "--trials": dict(type=int, metavar="N", help="number of trials of random, tpe or ranges"),
    "--prune": dict(action="store_true", help="stop bad trials of random or tpe early"),
    "--metric": dict(help="such as val/loss (default: config.best of the evaluation split)"),
    "--parallel": dict(type=int, default=1, metavar="N", help="trials at a time"),
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    check_installed("sweep")
    if not re.fullmatch(r"\w([\w. -]*\w)?", options.study):
        raise UserError(
            f"--study is a plain name, not {options.study!r}: it names a folder and jobs, so "
            "it has letters, digits, dots, dashes, underscores and spaces alone"
        )
    folder = Path(options.workdir).expanduser().absolute() / options.study
    if options.action == "run":
        return _run(options, folder)
    from vit_jax.sweeping import report, study

    for name in report.write(study.load(options.study, options.storage, folder), folder):
        print(folder / name)
    return 0


def check_installed(command: str) -> None:
    """Raises UserError if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"vit {command} needs Optuna: pip install 'vit_jax[sweep]'")


def _run(options: argparse.Namespace, folder: Path) -> int:
    from vit_jax.sweeping import report, space

    if not options.config:
        raise UserError("vit sweep needs --config=FILE: the recipe that is trained")
    config, named = configured(options)
    search = _search(options, config, space.read(options.sweep, options.config, config))
    for key in search.space.distributions:
        if key in named:
            raise UserError(f"{key} is searched and also set by --config.{key}: leave one out")
    best, names = carry_out(options, options.study, folder, config, search, report.write)
    winner = "no trial finished"
    if best:
        reached = f"{search.metric} {best[0].value:.4f}"
        winner = f"trial {best[0].number}, {reached}, {space.in_words(best[0].params)}"
    print(f"done: {search.trials} trials; best: {winner}; {', '.join(names)} in {folder}")
    return 0


def carry_out(
    options: argparse.Namespace, name: str, folder: Path, config: ConfigDict, search: Any,
    write: Callable[..., list[str]],
) -> tuple[list[Any], list[str]]:  # fmt: skip
    """Runs the trials of a search, or continues them, and writes a report at their end.

    Args:
      write: of the study, its folder and the best trial's config; returns the names of the files.

    Returns the finished trials, best first, and the names. Raises UserError if a trial failed.
    """
    from vit_jax.sweeping import space, study
    from vit_jax.sweeping.launching import launch
    from vit_jax.sweeping.trials import Sweep

    launcher = functools.partial(
        launch, spec=options.config, overrides=options.overrides, parallel=options.parallel,
        say=say, **_backend(options),
    )  # fmt: skip
    url = getattr(options, "storage", None)
    with study.locked(folder):
        storage = study.opened(url, folder)
        with study.in_one_line(url or str(folder / study.JOURNAL)):
            identity = study.identity(config, search, folder if url else None)
            begun = study.begin(name, storage, search, identity)
            sweep = Sweep(begun, search, folder, options.parallel, launcher, say)
            say(f"study {name}: {search.method} of {search.trials} trials, "
                f"{options.parallel} at a time, by {search.metric}; {folder}")  # fmt: skip
            try:
                sweep.run()
            finally:
                best = study.finished(begun)
                best_config = space.checked(config, best[0].params) if best else None
                names = write(begun, folder, best_config)
    if sweep.failed:
        raise UserError(
            f"{len(sweep.failed)} of {search.trials} trials failed, which the same command tries "
            f"again: {next(iter(sweep.failed.values()))}"
        )
    return best, names


def _search(options: argparse.Namespace, config: ConfigDict, space: Any) -> Any:
    """The search that the options ask for. Raises UserError if they contradict each other."""
    from vit_jax.sweeping.study import Search
    from vit_jax.tasks import find_task

    method = options.method or "grid"
    drawn = method in ("random", "tpe") or bool(space.ranges)
    if method == "grid" and space.ranges:
        raise UserError(
            f"{space.ranges[0]} is searched in a range: list values for a grid, or add "
            "--method=random, tpe or halving and --trials=N"
        )
    if space.listed is not None and method in ("random", "tpe"):
        raise UserError(f"sweep() lists its points: --method={method} draws others; leave it out")
    if drawn != (options.trials is not None):
        raise UserError(
            f"--method={method} needs --trials=N" if drawn
            else f"--trials is for random, tpe and ranges; here are {len(space.points)} points"
        )  # fmt: skip
    for name in ("trials", "parallel"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise UserError(f"--{name} is 1 or more, not {number}")
    split = config.data.eval.split
    if not split and not options.metric:
        raise UserError("a sweep compares by an evaluation: set data.eval.split or give --metric")
    stops = "--prune" if options.prune else "--method=halving" if method == "halving" else None
    if stops and not (config.eval_every_steps or config.eval_every_epochs):
        raise UserError(
            f"{stops} needs evaluations on the way: --config.eval_every_steps=N or "
            "--config.eval_every_epochs=N"
        )
    own, best_of = ranked_by(config.best or find_task(config).best)
    metric = "eval/" + (options.metric or f"{split}/{own}").removeprefix("eval/")
    low = metric.endswith("loss") if options.metric else best_of is min
    return Search(space, method, metric, options.trials or len(space.points),
                  options.prune and method != "halving", low)  # fmt: skip


def _backend(options: argparse.Namespace) -> dict[str, Any]:
    """The options after `--`: `fields` of the trials' jobs, and `sbatch`'s options on SLURM."""
    from vit_jax.commands import launch

    line, *more = options.commands or [["local"]]
    if more or line[:1] not in [[name] for name in COMMANDS]:
        raise UserError(f"behind -- of a sweep stands {' or '.join(COMMANDS)} with its options")
    parsed = command_line("launch", launch, line)
    sbatch = launch.sbatch_options(parsed) if parsed.part == "slurm" else None
    return {"fields": launch.job_fields(parsed), "sbatch": sbatch}
