"""Command lines: options spelled with - or _, and the overrides of a config.

argparse does the options. Overrides are taken out first; absl's config_flags would end in
tracebacks for unknown keys and reads the process's own arguments.
"""

import argparse
import inspect
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from vit_jax.errors import UserError

PLAIN: dict[str, Any] = dict(
    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
)

# -- options that several commands have ----------------------------------------------------------
Options = dict[str, dict[str, Any]]  # name of an option or argument -> argparse's settings of it

# Every command takes the overrides of a config.
CONFIG: Options = {
    "--config": dict(required=True, metavar="FILE[:ARGS]",
                     help="recipe, such as digits.py or configs/pretrain.py:b16,imagenet21k; "
                     "--config.KEY=VALUE overrides one key"),
}  # fmt: skip
JSON: Options = {
    "--json": dict(nargs="?", const="-", metavar="FILE",
                   help="the result as JSON, to FILE or printed"),
}  # fmt: skip
# Processes that are started by hand.
JOB: Options = {
    "--coordinator": dict(metavar="HOST:PORT", help="address where process 0 listens"),
    "--num-processes": dict(type=int, metavar="N", help="processes of the job"),
    "--process-id": dict(type=int, metavar="I", help="number of this process, from 0"),
}
# What the images of a command may be (data/images.py).
IMAGES = (
    "files, folders, patterns in quotes ('photos/*.jpg'), @FILE with a name on each line, "
    "addresses (https://), pages ('stack.tif[2]')"
)
# Weights to read.
SOURCE: Options = {
    "weights": dict(help="a file, a folder, a work folder, an address (https://, hf://OWNER/REPO) "
                    "or a name of list_pretrained(); --config.model.FIELD=VALUE, "
                    "--config.source_image_size=(H,W), --config.data.mean=VALUE and "
                    "--config.data.std=VALUE state what the file does not"),
    "--layout": dict(metavar="MODULE:NAME", help="register a layout of your own, a "
                     "vit_jax.pretrained.Layout, before the weights are opened"),
}  # fmt: skip


def command_line(command: str, module: ModuleType, arguments: list[str]) -> argparse.Namespace:
    """The parsed options of a command. `overrides` holds its config overrides (key -> text). If the
    module takes other commands (`COMMANDS`), `commands` holds what follows each `--`. `~` is
    expanded, except in options that are meant for other machines (`OF_HOSTS`).

    The module declares its `OPTIONS`, a text below them (`EPILOG`), options of which one must be
    given (`ONE_OF`), and the `PARTS` of `vit COMMAND PART`: name -> (options, function). The
    docstring of the function describes the part.
    """
    parser = argparse.ArgumentParser(
        prog=f"vit {command}", description=module.__doc__,
        epilog=getattr(module, "EPILOG", None), **PLAIN,
    )  # fmt: skip
    if one_of := getattr(module, "ONE_OF", None):
        _add(parser.add_mutually_exclusive_group(required=True), one_of)
    _add(parser, getattr(module, "OPTIONS", {}))
    if parts := getattr(module, "PARTS", None):
        subparsers = parser.add_subparsers(dest="part", required=True, metavar="|".join(parts))
        for name, (part, function) in parts.items():
            text = inspect.getdoc(function) or ""
            short = " ".join(text.split()).partition(". ")[0]
            _add(subparsers.add_parser(name, help=short, description=text, **PLAIN), part)
    commands: list[list[str]] = []
    if getattr(module, "COMMANDS", None):
        ends = [-1, *(at for at, word in enumerate(arguments) if word == "--"), len(arguments)]
        arguments, *commands = [arguments[a + 1 : b] for a, b in itertools.pairwise(ends)]
    overrides, rest = _overrides(arguments)
    dashed = [re.sub("^--[^=]+", lambda name: name[0].replace("_", "-"), word) for word in rest]
    options = parser.parse_args(dashed)
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


def _add(parser: Any, options: Options) -> None:
    for name, settings in options.items():
        parser.add_argument(name, **settings)


def configured(options: argparse.Namespace) -> tuple[Any, list[str]]:
    """The config of `--config` with the overrides, and the keys that these set."""
    from vit_jax import recipe

    config = recipe.load(options.config)
    return config, recipe.override(config, options.overrides)


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


def opened(
    options: argparse.Namespace, check: Callable[[], Any] = lambda: None, *, decoder: bool = False
) -> Any:
    """Opens the weights that `SOURCE` names, with what the overrides say of them (`given`).
    `model.image_size` is the size of the weights. First registers the layout that `--layout` names,
    and then calls `check`, before anything is fetched. `decoder`: whether that of a masked
    autoencoder is wanted, too.

    Raises UserError for any other key of a config.
    """
    from vit_jax import recipe
    from vit_jax.config import base
    from vit_jax.pretrained.given import KEYS, given, two_sides
    from vit_jax.pretrained.layouts import register
    from vit_jax.pretrained.load import fetch_weights
    from vit_jax.pretrained.weights import open_weights
    from vit_jax.user_code import imported

    if options.layout:
        register(imported(options.layout, "a layout"))

    for key in options.overrides:
        if key not in KEYS and (not key.startswith("model.") or key == "model.name"):
            raise UserError(
                f"--config.{key} is not read here: weights decide all but what they do not tell, "
                "such as --config.model.num_heads=12 or --config.data.mean=0.5"
            )
    config = base("mae" if decoder else "")
    recipe.override(config, options.overrides)
    fields = given(config)
    if size := fields.pop("image_size", None):
        fields.setdefault("source_image_size", two_sides(size))
    check()
    return open_weights(fetch_weights(options.weights), decoder=decoder, **fields)


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
