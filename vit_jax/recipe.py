"""Finds a recipe (`configs/digits.py`, `pretrain.py:b16,imagenet21k`), runs it, and applies the
overrides of the command line (`--config.optimizer.lr=1e-3`).

absl's `config_flags` does not serve: an unknown key must name the nearest one, a duration replaces
the recipe's in another unit, and nothing may read `sys.argv`.
"""

import ast
import contextlib
import importlib.util
import inspect
import math
import os
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from vit_jax.config import (
    DURATIONS,
    READ_BY,
    ROWS,
    base,
    check_base,
    choice_of,
    fit,
    further,
    keys,
    leaves,
    unknown_key,
)
from vit_jax.errors import UserError
from vit_jax.fields import Key, in_words
from vit_jax.keys import OF_TASK

EMPTY = "None"  # the text that empties a key
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def load(spec: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of `FILE[:ARGUMENTS]`. A file that is not there is looked up by its name among
    the recipes that came with the package. `overrides` are dotted keys with their values.

    Raises UserError: no such recipe, arguments that it refuses, or a key or value that cannot be.
    """
    config = _called(spec, "get_config", "it is no recipe")
    if not isinstance(config, ConfigDict):
        path = spec.partition(":")[0]
        raise UserError(f"get_config() of {path} gives a {type(config).__name__}, no ConfigDict")
    check_base(config, f"get_config() of {spec.partition(':')[0]} gives a config")
    with config.unlocked():
        fit(config)
    override(config, {key: str(value) for key, value in (overrides or {}).items()})
    return config


def sweep(spec: str) -> Any:
    """What the `sweep()` of a recipe, or of a file beside one, declares: a text, a dictionary of
    keys to values, or a list of dictionaries, which it may also yield.

    Raises UserError as `load` does.
    """
    return _called(spec, "sweep", "give --sweep=KEY=VALUE,VALUE", optional=True)


def _called(spec: str, function: str, without: str, optional: bool = False) -> Any:
    """What a function of `FILE[:ARGUMENTS]` gives; one of no parameters need not take `optional`
    arguments."""
    path, _, arguments = spec.partition(":")
    module = _module(path)
    if not hasattr(module, function):
        raise UserError(f"{path} defines no {function}(): {without}")
    call = getattr(module, function)
    takes = inspect.signature(call)
    given = (arguments,) if arguments and not (optional and not takes.parameters) else ()
    try:
        takes.bind(*given)
    except TypeError as error:
        what = f"takes no arguments, not {arguments!r}" if given else f"needs some: {path}:…"
        raise UserError(f"recipe {path} {what}") from error
    with _errors_of(path, module.__file__):
        made = call(*given)
        return list(made) if inspect.isgenerator(made) else made


@contextlib.contextmanager
def _errors_of(path: str, file: str | None) -> Iterator[None]:
    """Turns an error that the code of a recipe raises inside into a line that names the recipe and
    its line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        where = f"recipe {path}" if error.filename == file else error.filename
        raise UserError(f"{where}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == file), 1)
        what = " ".join(str(error).split())
        if not what or not isinstance(error, (AttributeError, TypeError, ValueError)):
            what = f"{type(error).__name__}: {what}".removesuffix(": ")
        raise UserError(f"recipe {path}, line {line}: {what}") from error


def override(config: ConfigDict, values: Mapping[str, str]) -> list[str]:
    """Sets dotted keys from their text, in place, by each key's type; returns the keys set.

    A duration replaces the recipe's in another unit. With a component's name, what only the
    recipe's own choice of it reads goes back to the default. A component's name can be given for
    the component itself: `loss=sigmoid`. `key=None` empties a key that may be empty, and that key
    alone.

    Raises UserError: unknown key (with the nearest), wrong type, two units for one duration.
    """
    named, lasting = [], []
    with config.unlocked():
        # The names of task and model decide which keys there are.
        for key in sorted(values, key=lambda key: key not in ("task", "model", "model.name")):
            text = values[key]
            key = _full_key(config, key)
            named.append(key)
            for units in DURATIONS.values():
                if key in units and text != EMPTY:
                    twice = [other for other in units if other in lasting and other != key]
                    if twice:
                        raise UserError(f"{twice[0]} and {key} are both set: keep one of them")
                    config.update_from_flattened_dict({other: None for other in units})
                    lasting.append(key)
            if key.startswith("optimizer.kwargs"):
                name = key.removeprefix("optimizer.kwargs").removeprefix(".")
                if not name.isidentifier():
                    raise UserError(f"config key {key!r}: set optimizer.kwargs.ARGUMENT=VALUE")
                config.optimizer.kwargs[name] = _literal(text)
                named[-1] = "optimizer.kwargs"
                continue
            parent, _, leaf = key.rpartition(".")
            node = config
            for part in parent.split(".") if parent else ():
                node = node[part]
            node[leaf] = _parse(key, text, node.get_type(leaf), node[leaf])
            if key in ("task", "model.name"):
                fit(config)
        for component in READ_BY:
            if f"{component}.name" in named:
                _drop_unread(config, component, named)
    return named


def _drop_unread(config: ConfigDict, component: str, named: list[str]) -> None:
    """After a change of component, the recipe's own settings that only the old one read go back
    to their defaults; what the user named stays, and is refused if nothing reads it."""
    choices = READ_BY[component]
    read = choices.get(choice_of(component, config[component].name) or "", set())
    default = base()[component]
    for key in set.union(*choices.values()) - read:
        if f"{component}.{key}" not in named:
            config[component][key] = default[key]


def _full_key(config: ConfigDict, key: str) -> str:
    known = keys(config)
    if key in known or key.startswith("optimizer.kwargs."):
        return key
    if f"{key}.name" in known:
        return f"{key}.name"
    raise UserError(unknown_key(key, known))


def _parse(key: str, text: str, kind: type, current: Any) -> Any:
    """`text` as `kind`. Keys that are empty by default may be emptied by the word None."""
    if text == EMPTY:
        if key.startswith("model.") or (key in ROWS and ROWS[key].empty):
            return None
        if kind is str:
            return ""
        raise UserError(f"config key {key!r} cannot be empty (now: {current})")
    lowered = text.lower()
    try:
        if kind is bool:
            if lowered not in _TRUE + _FALSE:
                raise ValueError
            return lowered in _TRUE
        if kind is int:
            if lowered.lstrip("+-").replace("_", "").isdigit():
                return int(text)
            number = float(text)
            if number != int(number):
                raise ValueError
            return int(number)
        if kind is float:
            if not math.isfinite(float(text)):
                raise ValueError
            return float(text)
        return _literal(text) if kind is object else text
    except (ValueError, OverflowError):
        raise UserError(
            f"config key {key!r} takes {in_words(kind)}, not {text!r} (now: {current})"
        ) from None


def _literal(text: str) -> Any:
    """A Python literal where it is one (`224`, `(224, 160)`, `True`), else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def bundled() -> Path:
    """The folder of the recipes that came with the package."""
    found = importlib.util.find_spec("vit_jax.configs")
    if found is not None and found.submodule_search_locations:
        return Path(next(iter(found.submodule_search_locations)))
    return Path(__file__).resolve().parent.parent / "configs"  # a checkout that is not installed


def _module(path: str) -> ModuleType:
    file = Path(path).expanduser()
    if not file.is_file():
        name = file.name if file.suffix == ".py" else f"{file.name}.py"
        inside = bundled() / name
        if not inside.is_file() or file.parent not in (Path(), Path("configs")):
            names = sorted(p.name for p in bundled().glob("*.py") if p.name != "__init__.py")
            raise UserError(f"no config file {path!r}; recipes of the package: {', '.join(names)}")
        file = inside
    spec = importlib.util.spec_from_file_location(f"vit_jax_recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{os.fspath(file)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    with _errors_of(str(file), module.__file__):
        spec.loader.exec_module(module)
    return module


def as_text(config: ConfigDict) -> str:
    """`key = value  # what it is` of the keys that are set, in the order of their rows."""
    values, rows = dict(leaves(config)), ROWS | further(config)
    return "\n".join(
        f"{f'{name} = {values[name]!r}':<44}  # {row.says}"
        for name, row in rows.items()
        if values.get(name) is not None
    )


def keys_in_words() -> str:
    """Every key with its default and what it is, for `--help`."""

    def lines(rows: Iterable[Key]) -> Iterator[str]:
        for row in rows:
            default = "" if row.empty else row.default
            yield textwrap.fill(
                f"{f'  {row.name}={default}':<46}  {row.says}", 100, subsequent_indent=" " * 48,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip

    parts = ["keys of a config (--config.KEY=VALUE), with their defaults:", *lines(ROWS.values())]
    for task, rows in OF_TASK.items():
        parts += [f"and with --config.task={task}:", *lines(rows)]
    return "\n".join(parts)
