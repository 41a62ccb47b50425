"""Every key of a run, written once: `base()` is the tree, recipes (configs/) set what differs, and
keys that nothing would read are refused. `resolution.py` turns it into final numbers.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from vit_jax.errors import UserError, nearest


def base() -> ConfigDict:  # noqa: PLR0915
    """All keys with their defaults. A key without a value takes what its comment says."""
    c = ConfigDict()
    c.task = "classification"  # or one of your own, my_package.my_module:MyTask
    c.seed = 0  # of parameters, order of examples, augmentation, dropout
    c.batch_size = 128  # examples a step, over all devices
    c.microbatch = placeholder(object)  # examples a pass; fewer than batch_size accumulates | auto
    c.total_steps = placeholder(int)  # how long to train: exactly one of the three
    c.total_epochs = placeholder(float)  # of the training split
    c.total_examples = placeholder(int)  # seen, over all epochs
    c.log_every_steps = 50  # a row of metrics and a line
    c.eval_every_steps = placeholder(int)  # neither: at the end alone
    c.eval_every_epochs = placeholder(float)  # at most one of the two
    c.eval_batch_size = placeholder(int)  # batch_size
    c.evaluators = placeholder(str)  # others than data.eval: fewshot('folder:PATH')|knn(…)|…
    c.init = placeholder(str)  # checkpoint or work folder: its parameters, another head
    c.resume = placeholder(str)  # checkpoint or work folder: its whole state
    c.max_skipped_steps = 20  # non-finite steps in a row that end the run
    c.deterministic = False  # the same bits from the same config on a GPU too, at some cost
    c.preflight = True  # refuse what the devices' memory cannot hold before it starts
    c.profile = placeholder(str)  # FIRST:COUNT steps traced for xprof; FIRST:COUNT:all, :0,3
    c.step_timeout = 300.0  # seconds without a step (or 20 usual ones) that end it: exit code 76
    c.heartbeat_timeout = 20.0  # seconds of silence after which a process counts as dead

    c.model = ConfigDict()  # what is left empty comes with the name
    c.model.name = "vit_base_patch16_224"  # vit_SIZE_patchP_RESOLUTION, as `list_models` has them
    c.model.patch_size = placeholder(int)  # P, pixels
    c.model.hidden_size = placeholder(int)  # D, of a token
    c.model.num_layers = placeholder(int)  # L, blocks of the encoder
    c.model.num_heads = placeholder(int)  # of attention; they divide hidden_size
    c.model.mlp_dim = placeholder(int)  # hidden width of a block's MLP
    c.model.image_size = placeholder(object)  # a number or (height, width)
    c.model.channels = placeholder(int)  # the data set's
    c.model.num_classes = placeholder(int)  # the data set's
    c.model.pool = placeholder(str)  # cls | gap | map | cls_gap
    c.model.posemb = placeholder(str)  # learned | sincos2d
    c.model.posemb_resize = placeholder(str)  # interpolation of positions: models/position.py
    c.model.prefix_positions = placeholder(str)  # none | class | all: of tokens before the patches
    c.model.idle_class_token = placeholder(bool)  # a class token that pooling does not read
    c.model.distilled = placeholder(bool)  # DeiT's second token and head
    c.model.registers = placeholder(int)  # extra tokens
    c.model.resnet_layers = placeholder(object)  # units of each stage of a ResNet or hybrid
    c.model.width_factor = placeholder(int)  # of a ResNet's channels
    c.model.groupnorm_eps = placeholder(float)  # added to the variance, ResNets and hybrids
    c.model.standardization = placeholder(str)  # google | timm: of their convolutions
    c.model.tokens_mlp_dim = placeholder(int)  # hidden width of a Mixer's MLP over tokens
    c.model.pre_norm = placeholder(bool)  # LayerNorm before the encoder
    c.model.embed_bias = placeholder(bool)  # of the patches' projection
    c.model.qkv_bias = placeholder(bool)  # of queries, keys and values
    c.model.qk_norm = placeholder(bool)  # LayerNorm of queries and keys
    c.model.mlp = placeholder(str)  # dense | swiglu
    c.model.gelu = placeholder(str)  # tanh | exact | quick
    c.model.layernorm_eps = placeholder(float)  # added to the variance
    c.model.layer_scale = placeholder(float)  # initial value; 0 leaves it out
    c.model.norm_after_pool = placeholder(bool)  # the last LayerNorm follows the pooling
    c.model.pre_logits = placeholder(bool)  # hidden tanh layer in the head
    c.model.head_bias = placeholder(float)  # initial; negative for sigmoid losses, many classes
    c.model.dropout = placeholder(float)  # after the positions and in every block's two branches
    c.model.attention_dropout = placeholder(float)  # of attention weights
    c.model.drop_path = placeholder(float)  # of the last block's branches; grows linearly from 0
    c.model.scan = placeholder(bool)  # compile one block and loop over stacked layers
    c.model.remat = placeholder(str)  # none | full | dots: what the backward pass recomputes
    c.model.attention = placeholder(str)  # auto | xla | cudnn
    c.model.dtype = placeholder(str)  # float32 | bfloat16: of the arithmetic

    c.data = ConfigDict()
    c.data.train = ConfigDict()
    c.data.train.source = "digits"  # digits | folder:PATH | tfds:NAME | synthetic
    c.data.train.split = "train"  # as the source names it
    c.data.train.pipeline = "decode|inception_crop|flip_lr"  # operations of vit_jax/data/ops.py
    c.data.eval = ConfigDict()
    c.data.eval.source = placeholder(str)  # data.train.source
    c.data.eval.split = "val"  # empty: no evaluation
    c.data.eval.pipeline = "decode|resize_small|central_crop"  # none of them random
    c.data.mean = placeholder(object)  # pixels in 0 … 1 less this (0.5, or those of `init`)
    c.data.std = placeholder(object)  # … over this; a number, or one a channel
    c.data.threads = 2  # that read and augment, per process
    c.data.workers = 0  # processes that read and augment instead
    c.data.damaged = "skip"  # skip | fail
    c.mixup = 0.0  # p of Beta(p, p), the share of an image in its mix with another; 0 is off
    c.cutmix = 0.0  # p of Beta(p, p), the share outside of a box of another; 0 is off
    c.mix_each = False  # every example has its own share and box; else a batch has one

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # … adam | sgd | adafactor | muon | schedule_free | any of optax
    c.optimizer.lr = 1e-3  # peak, after the warm-up
    c.optimizer.lr_per = placeholder(int)  # batch size that lr is for: it grows with batch_size
    c.optimizer.weight_decay = 0.0  # of kernels
    c.optimizer.decay_by = "rate"  # times the learning rate | schedule: times its share of lr
    c.optimizer.layer_decay = placeholder(float)  # factor of the rate, a block further down
    c.optimizer.freeze = placeholder(str)  # regular expression of the paths that do not train
    c.optimizer.clip_norm = placeholder(float)  # of the global gradient
    c.optimizer.skip_norm = placeholder(float)  # steps of a larger gradient than this are skipped
    c.optimizer.b1 = 0.9  # decay of Adam's first moment
    c.optimizer.b2 = 0.999  # decay of its second moment
    c.optimizer.eps = 1e-8  # added to the second moment's root
    c.optimizer.offload = False  # its state in the host's memory, fetched for every update
    c.optimizer.mu_dtype = placeholder(str)  # of the first moment
    c.optimizer.momentum = 0.9  # of sgd; 0 is plain gradient descent
    c.optimizer.kwargs = ConfigDict()  # arguments of sgd, muon, or any other function of optax
    c.ema = placeholder(float)  # decay of an average of the weights, measured beside them

    c.schedule = ConfigDict()
    c.schedule.name = "cosine"  # constant | cosine | linear | rsqrt
    c.schedule.warmup_steps = placeholder(int)  # at most one of the three
    c.schedule.warmup_epochs = placeholder(float)  # linear from 0
    c.schedule.warmup_examples = placeholder(int)  # linear from 0
    c.schedule.end_lr = 0.0  # after the last step
    c.schedule.timescale = 10_000  # of rsqrt, steps
    c.schedule.cooldown_steps = 0  # of rsqrt, linear to end_lr

    c.loss = ConfigDict()
    c.loss.name = "softmax"  # softmax | sigmoid
    c.loss.label_smoothing = 0.0  # mass spread over all classes
    c.loss.class_weights = placeholder(object)  # a number for each class
    c.distill = placeholder(str)  # soft('WEIGHTS', temperature=2) | hard('WEIGHTS', weight=0.5)

    c.mesh = ConfigDict()  # sizes multiply to the device count; a -1 takes what is left
    c.mesh.data = -1  # splits the batch
    c.mesh.fsdp = 1  # splits the batch, parameters and optimiser's state; both -1: fsdp up to 16
    c.mesh.tensor = 1  # splits heads and hidden widths
    c.mesh.min_shard_size = 2**16  # parameters of fewer elements are replicated

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = placeholder(int)  # a tenth of the run
    c.checkpoint.every_minutes = placeholder(float)  # others in between, of which the newest stays
    c.checkpoint.keep = 3  # the last ones
    c.checkpoint.keep_best = True  # and the best evaluated one
    return c.lock()


# Keys that one choice of a component reads and another does not. What is not listed here is
# always read; "*" stands for every other choice.
READ_BY = {
    "optimizer": {
        "adam": {"b1", "b2", "eps", "mu_dtype"},
        "adamw": {"b1", "b2", "eps", "mu_dtype", "weight_decay"},
        "sgd": {"momentum", "weight_decay", "kwargs"},
        "adafactor": {"b1", "mu_dtype", "weight_decay"},
        "muon": {"b1", "b2", "mu_dtype", "weight_decay", "kwargs"},
        "schedule_free": {"b1", "b2", "eps", "weight_decay"},
        "*": {"weight_decay", "kwargs"},
    },
    "schedule": {
        "constant": set(),
        "cosine": {"end_lr"},
        "linear": {"end_lr"},
        "rsqrt": {"timescale", "cooldown_steps", "end_lr"},
    },
    "loss": {"softmax": {"label_smoothing", "class_weights"}, "sigmoid": {"class_weights"}},
}

# One duration in several units: the keys that exclude each other.
DURATIONS = {
    "total": ("total_steps", "total_epochs", "total_examples"),
    "warm-up": ("schedule.warmup_steps", "schedule.warmup_epochs", "schedule.warmup_examples"),
    "evaluation": ("eval_every_steps", "eval_every_epochs"),
}

# What may differ when a run is continued: how long, on what, and what is told and kept of it.
FREE_ON_RESUME = (
    "total_", "log_every_steps", "eval_every", "eval_batch_size", "checkpoint.", "mesh.",
    "microbatch", "data.threads", "data.workers", "optimizer.offload", "model.scan", "model.remat",
    "max_skipped_steps", "init", "resume", "evaluators", "step_timeout", "heartbeat_timeout",
    "profile", "preflight",
)  # fmt: skip


# Keys that came after runs had been written without them: what such a run means by their absence.
LATER = {"task": "classification"}


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


def keys() -> list[str]:
    """Every dotted key of the tree."""
    return [key for key, _ in leaves(base())]


def set_by_user(config: ConfigDict, named: Iterable[str] = ()) -> set[str]:
    """Keys whose value is not the default, and those `named` on the command line."""
    default = dict(leaves(base()))
    return {key for key, value in leaves(config) if value != default[key]} | set(named)


def check_tree(config: ConfigDict) -> None:
    """Refuses a config that is not made from `base()`.

    Raises UserError naming the first unknown or missing key.
    """
    known, given = set(keys()), {key for key, _ in leaves(config)}
    for key in sorted(given - known):
        raise UserError(f"unknown config key {key!r}: {nearest(key, known)}")
    for key in sorted(known - given):
        raise UserError(f"config key {key!r} is missing: build the config from vit_jax.config.base")


def check_read(config: ConfigDict, user_keys: set[str]) -> None:
    """Refuses keys that were set but that the chosen components do not read."""
    for component, choices in READ_BY.items():
        name = config[component].name
        if name not in choices and "*" not in choices:
            raise UserError(f"unknown {component}.name {name!r}: {nearest(name, choices)}")
        read = choices[name] if name in choices else choices["*"]
        for key in sorted(set.union(*choices.values()) - read):
            if f"{component}.{key}" in user_keys:
                readers = [c for c, keys_read in choices.items() if key in keys_read and c != "*"]
                hint = f"read by {', '.join(readers)}" if readers else "read by other choices"
                options = ", ".join(f"{component}.{k}" for k in sorted(read)) or "nothing more"
                raise UserError(
                    f"{component}.{key} is set, but {component}.name={name!r} does not read it "
                    f"({hint}); {name} reads {options}"
                )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every resolved key that decides a run's numbers and differs."""
    old, new = LATER | old, LATER | new
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(FREE_ON_RESUME)
    ]


def flat(config: ConfigDict) -> dict[str, Any]:
    """Dotted keys to plain values, as `config.json` holds them (tuples as lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in leaves(config)}


def config_hash(config: dict[str, Any]) -> str:
    """A short hash of a flat config's keys and values, the same as before a key of `LATER` was."""
    config = {key: v for key, v in config.items() if key not in LATER or v != LATER[key]}
    return hashlib.sha1(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
