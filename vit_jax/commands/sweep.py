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
import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_jax import recipe
from vit_jax.commands.arguments import add_config, command_line
from vit_jax.errors import UserError

COMMANDS = ("local", "slurm")  # back ends after `--`
METHODS = ("grid", "random", "tpe", "halving")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("action", nargs="?", choices=("run", "report"), default="run")
    add_config(parser, required=False)
    parser.add_argument(
        "--sweep", metavar="EXPR|FILE",
        help="KEY=VALUE,VALUE;KEY=log(LOW,HIGH);KEY=uniform(LOW,HIGH), a file of such lines, or a "
        "Python file with a sweep() (default: the sweep() of the recipe)",
    )  # fmt: skip
    parser.add_argument("--study", required=True, metavar="NAME")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the study is in DIR/NAME")
    parser.add_argument("--storage", metavar="URL", help="a database (default: a file in DIR/NAME)")
    parser.add_argument(
        "--method", choices=METHODS,
        help="grid is the default; random and tpe can search ranges; halving continues the best "
        "third of the trials, twice",
    )  # fmt: skip
    parser.add_argument(
        "--trials", type=int, metavar="N", help="number of trials of random, tpe or ranges"
    )
    parser.add_argument(
        "--prune", action="store_true", help="stop bad trials of random or tpe early"
    )
    parser.add_argument(
        "--metric", help="such as val/loss (default: accuracy on the evaluation split)"
    )
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="trials at a time")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("vit sweep needs Optuna: pip install 'vit_jax[sweep]'")
    if not re.fullmatch(r"\w([\w. -]*\w)?", options.study):
        raise UserError(
            f"--study is a plain name, not {options.study!r}: it names a folder and jobs, so "
            "it has letters, digits, dots, dashes, underscores and spaces alone"
        )
    folder = Path(options.workdir).expanduser().absolute() / options.study
    return _report(options, folder) if options.action == "report" else _run(options, folder)


def _report(options: argparse.Namespace, folder: Path) -> int:
    from vit_jax.sweeping import report, study

    stored = study.load(options.study, options.storage, folder)
    for name in report.write(stored, folder):
        print(folder / name)
    return 0


def _run(options: argparse.Namespace, folder: Path) -> int:
    from vit_jax.sweeping import report, space, study
    from vit_jax.sweeping.launching import Launcher
    from vit_jax.sweeping.trials import Sweep

    if not options.config:
        raise UserError("vit sweep needs --config=FILE: the recipe that is trained")
    config = recipe.load(options.config)
    named = recipe.override(config, options.overrides)
    search = _search(options, config, space.read(options.sweep, options.config, config))
    for key in search.space.distributions:
        if key in named:
            raise UserError(f"{key} is searched and also set by --config.{key}: leave one out")
    launcher = Launcher(options.config, options.overrides, options.parallel, _say,
                        *_backend(options))  # fmt: skip
    where = options.storage or str(folder / study.JOURNAL)
    with study.locked(folder):
        storage = study.opened(options.storage, folder)
        with study.in_one_line(where):
            identity = study.identity(config, search, folder if options.storage else None)
            begun = study.begin(options.study, storage, search, identity)
            sweep = Sweep(begun, search, folder, options.parallel, launcher, _say)
            _say(f"study {options.study}: {search.method} of {search.trials} trials, "
                 f"{options.parallel} at a time, by {search.metric}; {folder}")  # fmt: skip
            try:
                sweep.run()
            finally:
                best = study.finished(begun)
                best_config = space.checked(config, best[0].params) if best else None
                names = report.write(begun, folder, best_config)
    if sweep.failed:
        raise UserError(
            f"{len(sweep.failed)} of {search.trials} trials failed, which the same command tries "
            f"again: {next(iter(sweep.failed.values()))}"
        )
    winner = "no trial finished"
    if best:
        reached = f"{search.metric} {best[0].value:.4f}"
        winner = f"trial {best[0].number}, {reached}, {space.in_words(best[0].params)}"
    print(f"done: {search.trials} trials; best: {winner}; {', '.join(names)} in {folder}")
    return 0


def _search(options: argparse.Namespace, config: ConfigDict, space: Any) -> Any:
    """The search that the options ask for. Raises UserError if they contradict each other."""
    from vit_jax.sweeping.study import Search

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
    metric = "eval/" + (options.metric or f"{split}/accuracy").removeprefix("eval/")
    return Search(space, method, metric, options.trials or len(space.points),
                  options.prune and method != "halving")  # fmt: skip


def _backend(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str] | None]:
    """The options after `--`: fields of the trials' jobs, and sbatch's options on SLURM."""
    from vit_jax.commands import launch
    from vit_jax.launch.job import Job

    line, *more = options.commands or [["local"]]
    if more or line[:1] not in [[name] for name in COMMANDS]:
        raise UserError(f"behind -- of a sweep stands {' or '.join(COMMANDS)} with its options")
    parsed = vars(command_line("launch", launch, line))
    names = {field.name for field in dataclasses.fields(Job)}
    fields = {k: v for k, v in parsed.items() if k in names and v is not None}
    fields.setdefault("processes", fields.get("nodes", 1))
    sbatch = dict(parsed.get("sbatch", []))
    if partition := parsed.get("partition"):
        sbatch["partition"] = partition
    return fields, sbatch if line[0] == "slurm" else None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
