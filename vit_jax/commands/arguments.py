"""Command lines: options spelled with - or _, and the overrides of a config.

argparse does the options. Overrides are taken out first; absl's config_flags would end in
tracebacks for unknown keys and reads the process's own arguments.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from vit_jax.errors import UserError

SHOWN = ("data.mean", "data.std")  # what `model_fields` takes beside fields of the model


def command_line(command: str, module: ModuleType, arguments: list[str]) -> argparse.Namespace:
    """The parsed options of a command. `overrides` holds its config overrides (key -> text). If the
    module takes other commands (`COMMANDS`), `commands` holds what follows each `--`. `~` is
    expanded, except in options that are meant for other machines (`OF_HOSTS`)."""
    parser = argparse.ArgumentParser(
        prog=f"vit {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    commands: list[list[str]] = []
    if getattr(module, "COMMANDS", None):
        arguments, *commands = _split(arguments)
    overrides, rest = _overrides(arguments)
    options = parser.parse_args([_dashes(argument) for argument in rest])
    for name, value in vars(options).items():
        if name not in getattr(module, "OF_HOSTS", ()):
            setattr(options, name, _from_home(value))
    options.overrides = {key: _from_home(value) for key, value in overrides.items()}
    options.commands = commands
    return options


def _from_home(value: Any) -> Any:
    """Expands `~`. A shell does so only at the beginning of a word, not in `--workdir=~/x`."""
    if isinstance(value, list):
        return [_from_home(path) for path in value]
    tilde = isinstance(value, str) and value.startswith("~")
    return os.path.expanduser(value) if tilde else value


def add_config(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--config=FILE[:ARGUMENTS]`. Every command takes the overrides of a config."""
    parser.add_argument(
        "--config", required=required, metavar="FILE[:ARGS]",
        help="recipe, such as digits.py or configs/pretrain.py:b16,imagenet21k; "
        "--config.KEY=VALUE overrides one key",
    )  # fmt: skip


def check_files(options: argparse.Namespace) -> None:
    """Raises UserError if --json or --csv names no possible file, before the work begins."""
    for name in ("json", "csv"):
        file = getattr(options, name, None)
        if file is None or file == "-":
            continue
        if not file:
            raise UserError(f"--{name}= names no file")
        if Path(file).is_dir():
            raise UserError(f"--{name}={file} is a folder: name a file in it")
        if not Path(file).absolute().parent.is_dir():
            raise UserError(f"{file}: there is no folder {Path(file).parent}; make it first")


def add_job(parser: argparse.ArgumentParser) -> None:
    """Adds the options of processes that are started by hand."""
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address where process 0 listens"
    )
    parser.add_argument("--num-processes", type=int, metavar="N", help="processes of the job")
    parser.add_argument(
        "--process-id", type=int, metavar="I", help="number of this process, from 0"
    )


def join_job(options: argparse.Namespace, heartbeat_timeout: float, *, saves: bool = True) -> None:
    """If this process is one of a job, joins it before JAX looks for devices. Process 0 prints a
    line for each process. JAX then listens to SIGTERM, but SIGTERM still ends a command that saves
    nothing."""
    from vit_jax.parallel import runtime

    job = runtime.find_job(options.coordinator, options.num_processes, options.process_id)
    if job is None:
        return
    runtime.start(job, heartbeat_timeout)
    if not saves:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    lines = runtime.table()
    if runtime.process() == 0:
        print("\n".join(lines), file=sys.stderr)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds the argument for weights to read."""
    parser.add_argument(
        "weights",
        help="a file, a folder, a work folder, an address (https://, hf://OWNER/REPO) or a name of "
        "list_pretrained(); --config.model.FIELD=VALUE, --config.data.mean=VALUE and "
        "--config.data.std=VALUE state what the file does not",
    )
    parser.add_argument(
        "--layout", metavar="MODULE:NAME",
        help="register a layout of your own, a vit_jax.pretrained.Layout, before the weights are "
        "opened",
    )  # fmt: skip


def model_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The model's fields from `--config.model.FIELD=VALUE`, and `mean` and `std` from
    `--config.data.mean=VALUE`. `image_size` is the size of the weights.

    Registers the layout that `--layout` names, because the fields are for opening weights.

    Raises UserError for any other key of a config.
    """
    from vit_jax import recipe
    from vit_jax.config import base

    if getattr(options, "layout", None):
        from vit_jax.pretrained.layouts import register
        from vit_jax.user_code import imported

        register(imported(options.layout, "a layout"))

    for key in options.overrides:
        if key not in SHOWN and (not key.startswith("model.") or key == "model.name"):
            raise UserError(
                f"--config.{key} is not read here: weights decide all but what they do not tell, "
                "such as --config.model.num_heads=12 or --config.data.mean=0.5"
            )
    config = base()
    recipe.override(config, options.overrides)
    fields = {k: v for k, v in config.model.to_dict().items() if v is not None and k != "name"}
    if "image_size" in fields:
        size = fields.pop("image_size")
        fields["source_image_size"] = (size, size) if isinstance(size, int) else size
    shown = {key.removeprefix("data."): config.data[key.removeprefix("data.")] for key in SHOWN}
    return fields | {key: value for key, value in shown.items() if value is not None}


def _split(arguments: list[str]) -> list[list[str]]:
    """Splits a command line at every `--`."""
    parts: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            parts.append([])
        else:
            parts[-1].append(argument)
    return parts


def _dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _overrides(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Takes out `--config.KEY=VALUE`, `--config.KEY VALUE` and a bare `--config.KEY` (true)."""
    overrides: dict[str, str] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            value = left.pop(0) if left and not left[0].startswith("--") else "true"
        if overrides.get(key, value) != value:
            raise UserError(f"--config.{key} is given twice: {overrides[key]} and {value}")
        overrides[key] = value
    return overrides, rest
