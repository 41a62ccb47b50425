"""Measures parts of a run on this machine.

vit bench step --config=pretrain.py:b16,imagenet2012 --config.batch_size=256
vit bench forward --config=pretrain.py:b16,imagenet2012 --json=forward.json --csv=forward.csv
vit bench step --config=folder.py:PHOTOS --data=real
vit bench input --config=folder.py:PHOTOS --config.data.threads=16
vit bench checkpoint --config=folder.py:PHOTOS --folder=/the/disk
vit bench compile --config=digits.py

step, forward: time, images/s, MFU (the share of the chip's stated peak), the share of the rate of
matrix products in the same run, and memory. The batch is noise or comes from the run's own data. A
batch that does not fit is halved. --against=linen,timm,huggingface measures these packages in turns
with ours, if they are installed and this package runs from a checkout.
input: images a second and core at each stage of the training pipeline.
checkpoint: how long a save keeps training waiting and takes until it is on disk; its restore.
compile: tracing, lowering, compiling, with an empty and with a warm compile cache.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_jax.commands.arguments import CONFIG, JSON, Options, configured
from vit_jax.commands.output import check_files, say, tell
from vit_jax.errors import UserError


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    for name in ("rounds", "steps", "seconds"):
        number = getattr(options, name, None)
        if number is not None and number <= 0:
            raise UserError(f"--{name} must be more than 0")
    check_files(options)
    _, measure = PARTS[options.part]
    rows = measure(options)
    if rows is None:
        return 0
    from vit_jax.benching.report import busy, figures, table, write

    measured = figures(options.part, rows)
    if options.part == "input":
        measured["stages"] = rows  # the key from before `vit bench` had other parts
    tell(measured, table(rows), options.json)
    if line := busy():
        say(line)
    write(measured, to_csv=options.csv)
    return 0


def _set_up(options: argparse.Namespace, data: bool, devices: Any = None) -> Any:
    config, named = configured(options)
    config.preflight = False  # a batch that does not fit is halved here, not refused
    from vit_jax.training.memory import fitting
    from vit_jax.training.resolve import known, opened
    from vit_jax.training.run import run_of

    # A teacher's classes are checked against the data's.
    what = opened if data or config.distill else known
    return fitting(run_of(config, named, devices, data=what), config)[0]


def _steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time, MFU and memory of the compiled step or forward pass."""
    real = options.data == "real"
    if options.against.strip(",") and real:
        raise UserError("--against measures on one batch of noise: leave out --data=real")
    from vit_jax.benching import steps

    # Before JAX reserves the memory of a GPU, because the peers need a part of it.
    peers = steps.find_peers(options.against)
    import jax

    if peers and len(jax.devices()) > 1:
        say(f"on one of {len(jax.devices())} devices, as the peers are")
    run = _set_up(options, real, jax.devices()[:1] if peers else None)
    if peers and (line := steps.more_than_peers(run)):
        say(line)
    count = options.steps or (1 if jax.default_backend() == "cpu" else 10)
    return steps.measure(
        run, options.part, say=say, peers=peers, real=real, rounds=options.rounds, count=count
    )


def _input(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Images a second and core at each stage of the training pipeline."""
    from vit_jax.benching.stages import stages

    return list(stages(_set_up(options, True), options.seconds))


def _checkpoint(options: argparse.Namespace) -> list[dict[str, Any]]:
    """How long a save keeps training waiting and takes; its restore."""
    from vit_jax.benching.saving import measure

    if options.folder and not Path(options.folder).is_dir():
        raise UserError(f"--folder={options.folder}: there is no such folder; make it first")
    return measure(_set_up(options, False), options.folder, options.rounds)


def _compile(options: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Tracing, lowering, compiling, with an empty and with a warm compile cache."""
    from vit_jax.benching import compiling

    if options.began is None:
        return compiling.measure(options.config, options.overrides, options.rounds)
    print(json.dumps(compiling.once(options.began, lambda: _set_up(options, False))))
    return None


def _rounds(count: int) -> Options:
    words = f"how often each side is measured ({count})"
    return FIGURES | {"--rounds": dict(type=int, default=count, help=words)}


FIGURES: Options = CONFIG | JSON | {
    "--csv": dict(metavar="FILE", help="write the rows of the table to FILE"),
}  # fmt: skip
STEPS: Options = _rounds(20) | {
    "--data": dict(choices=("synthetic", "real"), default="synthetic", help="one batch of noise, "
                   "for which the data need not be here, or the run's data"),
    "--steps": dict(type=int, metavar="N", help="steps in one measurement"),
    "--against": dict(default="", metavar="NAMES", help="any of linen,timm,huggingface"),
}  # fmt: skip
SECONDS: Options = {"--seconds": dict(type=float, default=3.0, help="for each stage (3)")}
FOLDER: Options = {"--folder": dict(metavar="DIR", help="where saves go (temporary files)")}

Part = Callable[[argparse.Namespace], list[dict[str, Any]] | None]
PARTS: dict[str, tuple[Options, Part]] = {
    "step": (STEPS, _steps),
    "forward": (STEPS, _steps),
    "input": (FIGURES | SECONDS, _input),
    "checkpoint": (_rounds(5) | FOLDER, _checkpoint),
    # For the processes that are measured.
    "compile": (_rounds(3) | {"--began": dict(type=float, help=argparse.SUPPRESS)}, _compile),
}
