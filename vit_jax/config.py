"""Every key of a run, written once as a row of `KEYS`: `base()` is the tree, recipes (configs/) set
what differs, and keys that nothing would read are refused. `resolution.py` turns it into final
numbers.
"""

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from vit_jax.errors import UserError, nearest
from vit_jax.fields import (
    COUNT,
    INSIDE,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    RATE,
    SHARE,
    Fits,
    Key,
    keys_of,
    one_of,
)
from vit_jax.models.configs import CONFIGS

AUTO = "auto"  # of microbatch
OTHERS = "*"  # every choice of a component that is not listed
SEED = Fits(int, lambda n: 0 <= n < 2**32, "a whole number in 0 … 2**32 - 1")
PASS = Fits(
    object, lambda n: n == AUTO or (type(n) is int and n >= 1), "a number of examples or auto"
)
TRACED = Fits(
    str,
    lambda text: re.fullmatch(r"|[1-9]\d*:[1-9]\d*(:(all|\d+(,\d+)*))?", text) is not None,
    "FIRST:COUNT steps, and of which processes where not of the first alone, as in 100:5, "
    "100:5:all or 100:5:0,3",
)

# A row: name, default (or the type of a key that is empty by default), meaning, what it may hold,
# and which choices of its component read it, where not all do. An empty key takes what its meaning
# says.
KEYS = (
    Key("task", "classification", "or one of your own, my_package.my_module:MyTask", later=True),
    Key("seed", 0, "of parameters, order of examples, augmentation, dropout", SEED),
    Key("batch_size", 128, "examples a step, over all devices", COUNT),
    Key("microbatch", object, "examples a pass; fewer than batch_size accumulates | auto", PASS,
        free=True),
    Key("total_steps", int, "how long to train: exactly one of the three", free=True),
    Key("total_epochs", float, "of the training split", free=True),
    Key("total_examples", int, "seen, over all epochs", free=True),
    Key("log_every_steps", 50, "a row of metrics and a line", COUNT, free=True),
    Key("eval_every_steps", int, "neither: at the end alone", free=True),
    Key("eval_every_epochs", float, "at most one of the two", free=True),
    Key("eval_batch_size", int, "batch_size", COUNT, free=True),
    Key("evaluators", str, "others than data.eval: fewshot('folder:PATH')|knn(…)|…", free=True),
    Key("init", str, "checkpoint or work folder: its parameters, another head", free=True),
    Key("resume", str, "checkpoint or work folder: its whole state", free=True),
    Key("max_skipped_steps", 20, "non-finite steps in a row that end the run", COUNT, free=True),
    Key("deterministic", False, "the same bits from the same config on a GPU too, at some cost"),
    Key("preflight", True, "refuse what the devices' memory cannot hold before it starts",
        free=True),
    Key("profile", str, "FIRST:COUNT steps traced for xprof; FIRST:COUNT:all, :0,3", TRACED,
        free=True),
    Key("step_timeout", 300.0,
        "seconds without a step (or 20 usual ones) that end it: exit code 76", POSITIVE, free=True),
    Key("heartbeat_timeout", 20.0, "seconds of silence after which a process counts as dead",
        POSITIVE, free=True),

    # The fields of the families follow it, model.FIELD: models/configs.py. All of them are empty;
    # what is left empty comes with the name.
    Key("model.name", "vit_base_patch16_224",
        "as `list_models` has them, or one of your own, my_package.my_module:MY_FAMILY"),

    Key("data.train.source", "digits", "digits | folder:PATH | tfds:NAME | synthetic"),
    Key("data.train.split", "train", "as the source names it"),
    Key("data.train.pipeline", "decode|inception_crop|flip_lr",
        "operations of vit_jax/data/ops.py"),
    Key("data.eval.source", str, "data.train.source"),
    Key("data.eval.split", "val", "empty: no evaluation"),
    Key("data.eval.pipeline", "decode|resize_small|central_crop", "none of them random"),
    Key("data.mean", object, "pixels in 0 … 1 less this (0.5, or those of `init`)"),
    Key("data.std", object, "… over this; a number, or one a channel"),
    Key("data.threads", 2, "that read and augment, per process", NATURAL, free=True),
    Key("data.workers", 0, "processes that read and augment instead", NATURAL, free=True),
    Key("data.damaged", "skip", "of files that cannot be read", one_of("skip", "fail")),
    Key("mixup", 0.0, "p of Beta(p, p), the share of an image in its mix with another; 0 is off",
        NOT_NEGATIVE),
    Key("cutmix", 0.0, "p of Beta(p, p), the share outside of a box of another; 0 is off",
        NOT_NEGATIVE),
    Key("mix_each", False, "every example has its own share and box; else a batch has one"),

    Key("optimizer.name", "adamw", "of ours, or any other function of optax",
        one_of("adam", "adamw", "sgd", "adafactor", "muon", "schedule_free", OTHERS)),
    Key("optimizer.lr", 1e-3, "peak, after the warm-up", NOT_NEGATIVE),
    Key("optimizer.lr_per", int, "batch size that lr is for: it grows with batch_size", COUNT),
    Key("optimizer.weight_decay", 0.0, "of kernels", NOT_NEGATIVE,
        ("adamw", "sgd", "adafactor", "muon", "schedule_free", OTHERS)),
    Key("optimizer.decay_by", "rate", "rate: times the learning rate; schedule: its share of lr",
        one_of("rate", "schedule")),
    Key("optimizer.layer_decay", float, "factor of the rate, a block further down", SHARE),
    Key("optimizer.freeze", str, "regular expression of the paths that do not train"),
    Key("optimizer.clip_norm", float, "of the global gradient", NOT_NEGATIVE),
    Key("optimizer.skip_norm", float, "steps of a larger gradient than this are skipped",
        NOT_NEGATIVE),
    Key("optimizer.b1", 0.9, "decay of Adam's first moment", RATE,
        ("adam", "adamw", "adafactor", "muon", "schedule_free")),
    Key("optimizer.b2", 0.999, "decay of its second moment", RATE,
        ("adam", "adamw", "muon", "schedule_free")),
    Key("optimizer.eps", 1e-8, "added to the second moment's root", None,
        ("adam", "adamw", "schedule_free")),
    Key("optimizer.offload", False, "its state in the host's memory, fetched for every update",
        free=True),
    Key("optimizer.mu_dtype", str, "of the first moment", None,
        ("adam", "adamw", "adafactor", "muon")),
    Key("optimizer.momentum", 0.9, "of sgd; 0 is plain gradient descent", RATE, ("sgd",)),
    Key("optimizer.kwargs", ConfigDict(), "arguments of sgd, muon, or any other function of optax",
        None, ("sgd", "muon", OTHERS)),
    Key("ema", float, "decay of an average of the weights, measured beside them", INSIDE),

    Key("schedule.name", "cosine", "of the learning rate",
        one_of("constant", "cosine", "linear", "rsqrt")),
    Key("schedule.warmup_steps", int, "at most one of the three"),
    Key("schedule.warmup_epochs", float, "linear from 0"),
    Key("schedule.warmup_examples", int, "linear from 0"),
    Key("schedule.end_lr", 0.0, "after the last step", None, ("cosine", "linear", "rsqrt")),
    Key("schedule.timescale", 10_000, "of rsqrt, steps", None, ("rsqrt",)),
    Key("schedule.cooldown_steps", 0, "of rsqrt, linear to end_lr", None, ("rsqrt",)),

    Key("loss.name", "softmax", "of the task", one_of("softmax", "sigmoid")),
    Key("loss.label_smoothing", 0.0, "mass spread over all classes", RATE, ("softmax",)),
    Key("loss.class_weights", object, "a number for each class", None, ("softmax", "sigmoid")),
    Key("distill", str, "soft('WEIGHTS', temperature=2) | hard('WEIGHTS', weight=0.5)"),

    # Sizes multiply to the device count; a -1 takes what is left.
    Key("mesh.data", -1, "splits the batch", free=True),
    Key("mesh.fsdp", 1,
        "splits the batch, parameters and optimiser's state; both -1: fsdp up to 16", free=True),
    Key("mesh.tensor", 1, "splits heads and hidden widths", free=True),
    Key("mesh.min_shard_size", 2**16, "parameters of fewer elements are replicated", free=True),

    Key("checkpoint.every_steps", int, "a tenth of the run", COUNT, free=True),
    Key("checkpoint.every_minutes", float, "others in between, of which the newest stays",
        POSITIVE, free=True),
    Key("checkpoint.keep", 3, "the last ones", COUNT, free=True),
    Key("checkpoint.keep_best", True, "and the best evaluated one", free=True),
)  # fmt: skip


def of_model(name: str) -> dict[str, Key]:
    """The keys `model.FIELD` that a family of the user's own has beyond those of `KEYS`, by name.

    Raises UserError where there is no such family, or where it must not be imported.
    """
    if ":" not in name:
        return {}
    from vit_jax.models.registry import find_family  # which imports JAX

    family, _, _ = find_family(name, imports=True)
    return {key.name: key for key in keys_of(family.config) if key.name not in ROWS}


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


def base(model: str = "") -> ConfigDict:
    """All keys with their defaults.

    Args:
      model: the import path of a family of your own, `my_package.my_module:MY_FAMILY`, whose
        fields become keys too.
    """
    tree: dict[str, Any] = {}
    for key in ROWS.values():
        *sections, leaf = key.name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = placeholder(key.default) if key.empty else copy.copy(key.default)
    c = ConfigDict(tree)
    if model:
        c.model.name = model
        fit_to_model(c)
    return c.lock()


def fit_to_model(config: ConfigDict) -> None:
    """Gives an unlocked config the fields of a family of the user's own that its `model.name`
    names, and takes away those of another one."""
    own = of_model(config.model.name)
    for field in config.model:
        if f"model.{field}" not in ROWS.keys() | own.keys():
            del config.model[field]
    for name, key in own.items():
        field = name.removeprefix("model.")
        if field not in config.model:
            config.model[field] = placeholder(key.default)


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

# What may differ when a run is continued: how long, on what, and what is told and kept of it.
FREE_ON_RESUME = frozenset(key.name for key in ROWS.values() if key.free)

# Of these, what nevertheless makes another run of it.
COUNTS = frozenset(("total_steps", "total_epochs", "total_examples", "init", "resume"))

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
    """Every dotted key of the tree, and of a config those of its own family."""
    return [*ROWS, *(of_model(config.model.name) if config is not None else ())]


def set_by_user(config: ConfigDict, named: Iterable[str] = ()) -> set[str]:
    """Keys whose value is not the default, and those `named` on the command line."""
    default = dict(leaves(base()))
    return {key for key, value in leaves(config) if value != default.get(key)} | set(named)


def check_tree(config: ConfigDict) -> None:
    """Refuses a config that is not made from `base()`.

    Raises UserError naming the first unknown or missing key.
    """
    known, given = set(keys(config)), {key for key, _ in leaves(config)}
    for key in sorted(given - known):
        raise UserError(f"unknown config key {key!r}: {nearest(key, known)}")
    for key in sorted(ROWS.keys() - given):
        raise UserError(f"config key {key!r} is missing: build the config from vit_jax.config.base")


def check_values(config: ConfigDict) -> None:
    """Raises UserError for the first value that is not what its row says, or that another key's
    value rules out."""
    for key, value in leaves(config):
        fits = ROWS[key].fits if key in ROWS else None
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
    for component, choices in READ_BY.items():
        name = config[component].name
        if name not in choices and OTHERS not in choices:
            raise UserError(f"unknown {component}.name {name!r}: {nearest(name, choices)}")
        read = choices[name] if name in choices else choices[OTHERS]
        for key in sorted(set.union(*choices.values()) - read):
            if f"{component}.{key}" in user_keys:
                readers = [
                    c for c, keys_read in choices.items() if key in keys_read and c != OTHERS
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
