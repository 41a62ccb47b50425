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

from vit_jax import ranking
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
from vit_jax.models.config_table import CONFIGS, FURTHER

AUTO = "auto"  # of microbatch
OTHERS = "*"  # every choice of a component that is not listed
SEED = Fits(int, lambda n: 0 <= n < 2**32, "a whole number in 0 … 2**32 - 1")
PASS = Fits(
    object, lambda n: n == AUTO or (type(n) is int and n >= 1), "a number of examples or auto"
)
BEST = Fits(str, ranking.fits, ranking.WANTED)
TRACED = Fits(
    str,
    lambda text: re.fullmatch(r"|[1-9]\d*:[1-9]\d*(:(all|\d+(,\d+)*))?", text) is not None,
    "FIRST:COUNT steps, and of which processes where not of the first alone, as in 100:5, "
    "100:5:all or 100:5:0,3",
)

WRITERS = ("tensorboard", "wandb", "mlflow", "trackio")
WRITTEN = Fits(
    str,
    lambda text: all(re.fullmatch(rf"{'|'.join(WRITERS)}|[\w.]+:\w+|", name.strip())
                     for name in text.split(",")),
    f"names of {', '.join(WRITERS)}, joined by commas, or a writer of your own by its import path",
)  # fmt: skip

# A row: name, default (or the type of a key that is empty by default), meaning, what it may hold,
# and which choices of its component read it, where not all do. An empty key takes what its meaning
# says.
KEYS = (
    Key("task", "classification", "what is learned: classification, detection, or a task of your "
        "own by its import path, my_package.my_module:MyTask", later=True),
    Key("seed", 0, "decides the first parameters, the order of examples, augmentation and dropout",
        SEED),
    Key("batch_size", 128, "examples in a step, over all devices", COUNT),
    Key("microbatch", object, "examples in one pass; if fewer than batch_size, gradients are "
        "summed over passes. auto: as many as the memory holds", PASS, free=True),
    Key("total_steps", int, "length of the training. Exactly one of total_steps, total_epochs and "
        "total_examples is set", free=True),
    Key("total_epochs", float, "the length in passes over the training split", free=True),
    Key("total_examples", int, "the length in examples, over all epochs", free=True),
    Key("log_every_steps", 50, "steps between two rows of metrics", COUNT, free=True),
    Key("writers", "tensorboard", "who gets every row beside metrics.jsonl, joined by commas: "
        "tensorboard | wandb | mlflow | trackio, or a writer of your own by its import path, "
        "my_package.my_module:MyWriter. None: nobody", WRITTEN, free=True, later=True),
    Key("eval_every_steps", int, "steps between two evaluations. Without it and "
        "eval_every_epochs: at the end alone", free=True),
    Key("eval_every_epochs", float, "the same in epochs; at most one of the two is set", free=True),
    Key("eval_batch_size", int, "examples in a step of evaluation. Empty: batch_size", COUNT,
        free=True),
    Key("evaluators", str, "evaluations beside that of data.eval: fewshot('folder:PATH')|knn(…)|…",
        free=True),
    Key("best", str, "how evaluations of data.eval are ranked: max or min and a metric, as in "
        "'min loss'. Empty: as the task does, such as 'max accuracy'", BEST, free=True),
    Key("stop_after", int, "evaluations of data.eval in a row without a gain by `best` that end "
        "the run. Empty: it goes on to its length", COUNT, free=True, later=True),
    Key("init", str, "weights, checkpoint or work folder that the parameters come from; the head "
        "is new", free=True),
    Key("source_image_size", object, "(height, width) of the images that the weights of init were "
        "trained on, if their file does not state it", free=True),
    Key("resume", str, "checkpoint or work folder that the whole state comes from", free=True),
    Key("max_skipped_steps", 20, "this many non-finite steps in a row end the run", COUNT,
        free=True),
    Key("deterministic", False, "the same config gives the same bits on a GPU too, at some cost "
        "of speed"),
    Key("preflight", True, "refuse a run that the devices' memory cannot hold, before it starts",
        free=True),
    Key("profile", str, "steps to trace for xprof, as FIRST:COUNT; processes as in "
        "FIRST:COUNT:all or :0,3", TRACED, free=True),
    Key("step_timeout", 300.0, "seconds without a step (or the time of 20 usual ones) that end "
        "the run with exit code 76", POSITIVE, free=True),
    Key("heartbeat_timeout", 20.0, "seconds of silence after which a process counts as dead",
        POSITIVE, free=True),

    # The fields of the families follow it, model.FIELD: models/configs.py. All of them are empty;
    # what is left empty comes with the name.
    Key("model.name", "vit_base_patch16_224", "a name that `list_models` gives, or a family of "
        "your own by its import path, my_package.my_module:MY_FAMILY"),

    Key("data.train.source", "digits", "where the examples are: digits | folder:PATH | tfds:NAME "
        "| synthetic, with boxes coco:PATH | voc:PATH | digit_scenes"),
    Key("data.train.split", "train", "which part of the source, by the source's name for it"),
    Key("data.train.pipeline", "decode|inception_crop|flip_lr",
        "operations on each image, joined by |"),
    Key("data.eval.source", str, "where the examples of evaluation are. Empty: data.train.source"),
    Key("data.eval.split", "val", "the part that is evaluated. Empty: no evaluation"),
    Key("data.eval.pipeline", "decode|resize_small|central_crop",
        "operations on each image in evaluation, none of them random"),
    Key("data.mean", object, "subtracted from pixels in 0 … 1; a number, or one for each channel. "
        "Empty: that of init, or 0.5"),
    Key("data.std", object, "then divides them; a number, or one for each channel. Empty: that of "
        "init, or 0.5"),
    Key("data.threads", 2, "threads of each process that read and augment", NATURAL, free=True),
    Key("data.workers", 0, "processes that read and augment instead of the threads", NATURAL,
        free=True),
    Key("data.damaged", "skip", "what happens at a file that cannot be read: skip takes the next "
        "one", one_of("skip", "fail")),
    Key("mixup", 0.0, "p of Beta(p, p), from which an image's share in its mix with another is "
        "drawn; 0: off", NOT_NEGATIVE),
    Key("cutmix", 0.0, "p of Beta(p, p), from which the share outside of another image's box is "
        "drawn; 0: off", NOT_NEGATIVE),
    Key("mix_each", False, "every example has its own share and box; otherwise a batch has one"),

    Key("optimizer.name", "adamw", "one of those named here, or any other function of optax",
        one_of("adam", "adamw", "sgd", "adafactor", "muon", "schedule_free", OTHERS)),
    Key("optimizer.lr", 1e-3, "learning rate at its peak, after the warm-up", NOT_NEGATIVE),
    Key("optimizer.lr_per", int, "batch size for which lr is stated; the rate grows in proportion "
        "to batch_size", COUNT),
    Key("optimizer.weight_decay", 0.0, "decay of the kernels", NOT_NEGATIVE,
        ("adamw", "sgd", "adafactor", "muon", "schedule_free", OTHERS)),
    Key("optimizer.decay_by", "rate", "what multiplies the decay. rate: the learning rate; "
        "schedule: its share of the peak", one_of("rate", "schedule")),
    Key("optimizer.layer_decay", float, "factor by which the rate shrinks from a block to the one "
        "before it", SHARE),
    Key("optimizer.freeze", str, "regular expression of the parameters' paths that do not train"),
    Key("optimizer.clip_norm", float, "largest norm of the global gradient, to which longer ones "
        "are scaled", NOT_NEGATIVE),
    Key("optimizer.skip_norm", float, "steps with a gradient of a larger norm are skipped",
        NOT_NEGATIVE),
    Key("optimizer.b1", 0.9, "decay of Adam's first moment", RATE,
        ("adam", "adamw", "adafactor", "muon", "schedule_free")),
    Key("optimizer.b2", 0.999, "decay of its second moment", RATE,
        ("adam", "adamw", "muon", "schedule_free")),
    Key("optimizer.eps", 1e-8, "added to the second moment's root", None,
        ("adam", "adamw", "schedule_free")),
    Key("optimizer.offload", False, "the optimiser's state is in the host's memory, fetched for "
        "every update", free=True),
    Key("optimizer.mu_dtype", str, "number format of the first moment. Empty: float32", None,
        ("adam", "adamw", "adafactor", "muon")),
    Key("optimizer.momentum", 0.9, "momentum of sgd; 0 is plain gradient descent", RATE, ("sgd",)),
    Key("optimizer.kwargs", ConfigDict(),
        "further arguments of sgd, muon, or another function of optax", None,
        ("sgd", "muon", OTHERS)),
    Key("ema", float, "decay of a moving average of the weights, which is evaluated beside them",
        INSIDE),

    Key("schedule.name", "cosine", "how the learning rate falls after the warm-up",
        one_of("constant", "cosine", "linear", "rsqrt", "drop")),
    Key("schedule.warmup_steps", int, "steps in which the rate rises linearly; at most one of the "
        "three lengths is set"),
    Key("schedule.warmup_epochs", float, "the warm-up in epochs"),
    Key("schedule.warmup_examples", int, "the warm-up in examples"),
    Key("schedule.end_lr", 0.0, "learning rate after the last step", None,
        ("cosine", "linear", "rsqrt")),
    Key("schedule.timescale", 10_000, "timescale of rsqrt, in steps", None, ("rsqrt",)),
    Key("schedule.cooldown_steps", 0, "last steps of rsqrt, in which the rate falls linearly to "
        "end_lr", None, ("rsqrt",)),

    Key("loss.name", "softmax", "cross-entropy by a softmax over the classes, or a sigmoid for "
        "each", one_of("softmax", "sigmoid")),
    Key("loss.label_smoothing", 0.0, "share of the target that is spread over all classes", RATE,
        ("softmax",)),
    Key("loss.class_weights", object, "how much each class counts, a number for each", None,
        ("softmax", "sigmoid")),
    Key("distill", str, "teacher: soft('WEIGHTS', temperature=2) | hard('WEIGHTS', weight=0.5)"),

    # Sizes multiply to the device count; a -1 takes what is left.
    Key("mesh.data", -1, "devices among which the batch is split; one -1 takes the devices that "
        "are left", free=True),
    Key("mesh.fsdp", 1, "devices that split batch, parameters and optimiser's state. Both -1: up "
        "to 16", free=True),
    Key("mesh.tensor", 1, "devices that split heads and hidden widths", free=True),
    Key("mesh.min_shard_size", 2**16, "parameters with fewer elements are replicated", free=True),

    Key("checkpoint.every_steps", int, "steps between two checkpoints. Empty: a tenth of the run",
        COUNT, free=True),
    Key("checkpoint.every_minutes", float,
        "minutes between further checkpoints, of which the newest stays", POSITIVE, free=True),
    Key("checkpoint.keep", 3, "how many of the last checkpoints stay", COUNT, free=True),
    Key("checkpoint.keep_best", True, "the best evaluated checkpoint stays, too", free=True),
)  # fmt: skip

# Keys of one task alone, which are there where `task` names it.
OF_TASK = {
    "detection": (
        Key("detection.l1", 5.0, "weight of the distance of boxes, in the matching and in the "
            "loss", NOT_NEGATIVE),
        Key("detection.giou", 2.0, "weight of their generalised intersection over union",
            NOT_NEGATIVE),
        Key("detection.empty", 0.1, "weight of a query without an object", NOT_NEGATIVE),
        Key("detection.auxiliary", True, "every layer of the decoder has the loss, not only the "
            "last"),
        Key("detection.backbone_rate", 1.0, "factor of the learning rate of the backbone",
            NOT_NEGATIVE),
    ),
}  # fmt: skip


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


def base(model: str = "", task: str = "") -> ConfigDict:
    """All keys with their defaults.

    Args:
      task: a task whose own keys are wanted too, such as `detection`.
      model: a name of a family whose further fields become keys too, such as `sasa_resnet26`, or
        the import path of your own, `my_package.my_module:MY_FAMILY`.
    """
    tree: dict[str, Any] = {}
    for key in ROWS.values():
        *sections, leaf = key.name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = placeholder(key.default) if key.empty else copy.copy(key.default)
    c = ConfigDict(tree)
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
            config[section] = ConfigDict()
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
