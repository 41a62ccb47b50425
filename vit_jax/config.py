"""The config of a run: `base()` is a tree of the keys in `keys.py`, recipes (configs/) set what
differs, and keys that nothing would read are refused. `resolution.py` turns it into final numbers.
"""

import copy
import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from vit_jax.errors import UserError, did_you_mean, nearest
from vit_jax.fields import Key, in_words, keys_of
from vit_jax.keys import KEYS, OF_TASK, OTHERS, OWN, UNREAD
from vit_jax.models.config_table import CONFIGS, FURTHER

# `init` in a recipe that needs weights, for which the user must name some.
WEIGHTS_WANTED = "PRETRAINED_WEIGHTS"


def of_model(name: str) -> dict[str, Key]:
    """The keys `model.FIELD` that a family has beyond those of `ROWS`, by name. It is one of
    `FURTHER`, or a user's own.

    Raises UserError where there is no such family, or where it must not be imported.
    """
    config = next((config for form, config in FURTHER.items() if re.fullmatch(form, name)), None)
    if ":" in name:
        from vit_jax.models.registry import find_family  # which imports JAX

        config = find_family(name, imports=True)[0].config
    keys = keys_of(config) if config else ()
    return {key.name: key for key in keys if key.name not in ROWS}


def further(config: ConfigDict) -> dict[str, Key]:
    """The keys that a config has beyond those of `ROWS`: its family's, and its task's."""
    return of_model(config.model.name) | {key.name: key for key in OF_TASK.get(config.task, ())}


def _rows() -> dict[str, Key]:
    """`KEYS` by name, and behind `model.name` the fields of every family, each said by the first
    that has it."""
    rows: dict[str, Key] = {}
    for key in KEYS:
        rows[key.name] = key
        if key.name == "model.name":
            for config in CONFIGS:
                rows |= {field.name: field for field in keys_of(config) if field.name not in rows}
    return rows


ROWS = _rows()


class Section(ConfigDict):
    """A part of the tree, or the whole tree, whose refusals are one line that names the key, as the
    command line's are. They are raised as what ConfigDict raises: an AttributeError for an unknown
    key, a TypeError for a value of another kind."""

    _section = ""  # what its dotted keys begin with, such as `optimizer.`

    def __init__(self, *given: Any, section: str = "", **options: Any):
        object.__setattr__(self, "_section", section)
        super().__init__(*given, **options)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        object.__setattr__(self, "_section", state.get("_section", ""))

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise KeyError(self._unknown(key))
        try:
            super().__setitem__(key, value)
        except TypeError:
            kind, now = in_words(self.get_type(key)), self[key]
            raise TypeError(
                f"config key {self._section + key!r} takes {kind}, not {value!r} (now: {now})"
            ) from None

    def __setattr__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise AttributeError(self._unknown(key))
        super().__setattr__(key, value)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_") or key in self:
            return super().__getattr__(key)
        raise AttributeError(self._unknown(key))

    def _unknown(self, key: str) -> str:
        return unknown_key(self._section + key, [*ROWS, *(self._section + own for own in self)])


def unknown_key(name: str, known: Iterable[str]) -> str:
    """The line for a key that is not among the `known` ones, with those that may be meant: keys
    with a similar last part, as in `lr` or `optimizer.lrr`, or those of a section."""
    known, (_, _, leaf) = list(dict.fromkeys(known)), name.rpartition(".")
    ends = {key: key.rpartition(".")[2] for key in known}
    like = difflib.get_close_matches(leaf, sorted(set(ends.values())))
    meant = [key for key in known if ends[key] in like or key.startswith(f"{name}.")]
    meant = difflib.get_close_matches(name, meant, cutoff=0)
    hint = did_you_mean(meant) if meant else "vit train --help lists the keys"
    return f"unknown config key {name!r}: {hint}"


def base(model: str = "", task: str = "") -> ConfigDict:
    """All keys with their defaults.

    Args:
      task: a task whose own keys are wanted too, such as `detection`.
      model: a name of a family whose further fields become keys too, such as `sasa_resnet26`, or
        the import path of your own, `my_package.my_module:MY_FAMILY`.
    """
    c = Section()
    for key in ROWS.values():
        *sections, leaf = key.name.split(".")
        node: ConfigDict = c
        for depth, section in enumerate(sections):
            if section not in node:
                node[section] = Section(section=".".join(sections[: depth + 1]) + ".")
            node = node[section]
        node[leaf] = placeholder(key.default) if key.empty else copy.copy(key.default)
    c.model.name, c.task = model or c.model.name, task or c.task
    fit(c)
    return c.lock()


def fit(config: ConfigDict) -> None:
    """Gives an unlocked config the further keys of the family and the task that it names, and takes
    away those of others."""
    own = further(config)
    sections = {"model", *OF_TASK} & {*config}
    for section in sections:
        for leaf in [leaf for leaf in config[section] if f"{section}.{leaf}" not in ROWS | own]:
            del config[section][leaf]
        if not config[section]:
            del config[section]
    for name, key in own.items():
        section, _, leaf = name.partition(".")
        if section not in config:
            config[section] = Section(section=f"{section}.")
        if leaf not in config[section]:
            config[section][leaf] = placeholder(key.default) if key.empty else key.default


def _read_by(component: str) -> dict[str, set[str]]:
    """For each choice of a component, the keys that it reads and others do not."""
    rows = [key for key in KEYS if key.name.startswith(f"{component}.") and key.read_by]
    fits = ROWS[f"{component}.name"].fits
    return {
        choice: {row.name.partition(".")[2] for row in rows if choice in row.read_by}
        for choice in (fits.choices if fits else ())
    }


# Keys that one choice of a component reads and another does not. What is not listed here is
# always read.
READ_BY = {component: _read_by(component) for component in ("optimizer", "schedule", "loss")}


def choice_of(component: str, name: str) -> str | None:
    """The choice of a component that a name is, a key of `READ_BY`; None if there is none."""
    choices = READ_BY[component]
    if name in choices:
        return name
    return OWN if OWN in choices and ":" in name else OTHERS if OTHERS in choices else None


# What may differ when a run is continued: how long, on what, and what is told and kept of it.
FREE_ON_RESUME = frozenset(key.name for key in ROWS.values() if key.free)

# Of these, what nevertheless makes another run of it.
COUNTS = frozenset(
    ("total_steps", "total_epochs", "total_examples", "stop_after", "init", "resume")
)

# One duration in several units: the keys that exclude each other.
DURATIONS = {
    "total": ("total_steps", "total_epochs", "total_examples"),
    "warm-up": ("schedule.warmup_steps", "schedule.warmup_epochs", "schedule.warmup_examples"),
    "evaluation": ("eval_every_steps", "eval_every_epochs"),
}

# What runs mean that were written before there was such a key.
LATER = {key.name: key.default for key in KEYS if key.later} | {
    f"model.{field.name}": field.default
    for family in CONFIGS
    for field in dataclasses.fields(family)
    if field.metadata["later"]
}


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf, in the order of the tree."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            if prefix + key == "optimizer.kwargs":
                yield prefix + key, value.to_dict()
            else:
                yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def changed(config: ConfigDict, values: Mapping[str, Any]) -> FrozenConfigDict:
    """A config with other values of some dotted keys."""
    c = copy.deepcopy(ConfigDict(config)).unlock()
    c.update_from_flattened_dict(dict(values))
    return FrozenConfigDict(c)


def keys(config: ConfigDict | None = None) -> list[str]:
    """Every dotted key of the tree, and of a config those of its own family and task."""
    return [*ROWS, *(further(config) if config is not None else ())]


def set_by_user(config: ConfigDict, named: Iterable[str] = ()) -> set[str]:
    """Keys whose value is not the default, and those `named` on the command line."""
    default = dict(leaves(base()))
    return {key for key, value in leaves(config) if value != default.get(key)} | set(named)


def check_base(config: ConfigDict, what: str = "this is a config") -> None:
    """Raises UserError where a config is not made from `base()`; `what` says what it is."""
    there = dict(leaves(config))
    if lacks := [key for key in ROWS if key not in there]:
        raise UserError(
            f"{what} without {', '.join(lacks[:3])}{' …' if len(lacks) > 3 else ''}: begin it with "
            "c = vit_jax.config.base(), which has every key"
        )


def check_tree(config: ConfigDict) -> None:
    """Refuses a config that is not made from `base()`.

    Raises UserError naming the first unknown or missing key.
    """
    known, given = set(keys(config)), {key for key, _ in leaves(config)}
    for key in sorted(given - known):
        raise UserError(unknown_key(key, known))
    for key in sorted(ROWS.keys() - given):
        raise UserError(f"config key {key!r} is missing: build the config from vit_jax.config.base")


def check_values(config: ConfigDict) -> None:
    """Raises UserError for the first value that is not what its row says, or that another key's
    value rules out."""
    of_task = {key.name: key for key in OF_TASK.get(config.task, ())}
    for key, value in leaves(config):
        row = ROWS.get(key) or of_task.get(key)
        fits = row.fits if row else None
        if fits and value is not None and key.partition(".")[2] != "name" and fits.refuses(value):
            raise UserError(f"{key} is {fits.words}, not {value!r}")
    optimizer = config.optimizer
    if optimizer.decay_by == "schedule" and optimizer.name in ("adam", "lamb", "lars"):
        raise UserError(
            f"optimizer.decay_by=schedule means nothing to {optimizer.name}, whose decay is none "
            "or a part of the gradient"
        )
    averages = config.ema or optimizer.layer_decay
    if optimizer.name == "schedule_free" and (
        averages or config.schedule.name != "constant" or not optimizer.b1
    ):
        raise UserError(
            "optimizer.name=schedule_free averages the weights itself: it needs "
            "schedule.name=constant (a warm-up is fine), optimizer.b1 above 0, no ema and no "
            "optimizer.layer_decay"
        )


def check_read(config: ConfigDict, user_keys: set[str]) -> None:
    """Refuses keys that were set but that the chosen components do not read."""
    if unread := [key for key in UNREAD.get(config.task, ()) if key in user_keys]:
        raise UserError(
            f"{unread[0]} is set, but task={config.task} does not read it: it is of labels"
        )
    for component, choices in READ_BY.items():
        name = config[component].name
        choice = choice_of(component, name)
        if choice is None:
            own = "; or give my_package.my_module:NAME" if OWN in choices else ""
            known = [one for one in choices if one != OWN]
            raise UserError(f"unknown {component}.name {name!r}: {nearest(name, known)}{own}")
        read = choices[choice]
        for key in sorted(set.union(*choices.values()) - read):
            if f"{component}.{key}" in user_keys:
                readers = [
                    c
                    for c, keys_read in choices.items()
                    if key in keys_read and c not in (OTHERS, OWN)
                ]
                hint = f"read by {', '.join(readers)}" if readers else "read by other choices"
                options = ", ".join(f"{component}.{k}" for k in sorted(read)) or "nothing more"
                raise UserError(
                    f"{component}.{key} is set, but {component}.name={name!r} does not read it "
                    f"({hint}); {name} reads {options}"
                )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every resolved key that decides a run's numbers and differs."""
    keys = sorted((old.keys() | new.keys()) - FREE_ON_RESUME)
    both = [(key, _meant(old, key), _meant(new, key)) for key in keys]
    return [f"{key}: {before!r} -> {now!r}" for key, before, now in both if before != now]


def _meant(config: dict[str, Any], key: str) -> Any:
    """The value of a key, also where the config was written before there was such a key."""
    value = config.get(key)
    return LATER.get(key) if value is None else value


def flat(config: ConfigDict) -> dict[str, Any]:
    """Dotted keys to plain values, as `config.json` holds them (tuples as lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in leaves(config)}


def config_hash(config: dict[str, Any]) -> str:
    """A short hash of a flat config's keys and values, the same as before a key of `LATER` was."""
    config = {
        key: value
        for key, value in config.items()
        if key not in LATER or _meant(config, key) != LATER[key]
    }
    return hashlib.sha1(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
