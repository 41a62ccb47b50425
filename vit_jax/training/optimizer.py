"""Updates of a step before the learning rate: clipping, the optimiser, decoupled weight decay.

Optimisers are built with learning rate 1; the step multiplies their updates by the schedule at
`state["step"]`, so that a skipped step and a resumed run read the same rate. Those that average by
the rate itself (`HOLD_RATE`) are given the schedule, and their updates are final.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

from vit_jax.errors import UserError, nearest
from vit_jax.parallel.sharding import MLP, RESNET, match_one, path_of
from vit_jax.training.groups import decay_mask

# Functions of optax that are no optimisers, want more than gradients, or whose update is not the
# learning rate times something: they cannot be built with rate 1 and scaled afterwards.
NOT_SCALABLE = ("fromage", "lbfgs", "rprop", "scale_by_learning_rate", "scale_by_rprop")

# What scales by norms of whole parameters, of which model.scan makes one for all layers.
NORM_OF_PARAMETER = ("lamb", "lars", "novograd")

# Kernels as matrices, for Muon: (dimensions summed over, dimensions made) of a single layer's. The
# others are several matrices: queries, keys and values. None is for Adam.
MUON_RULES: tuple[tuple[str, tuple[tuple[int, ...], tuple[int, ...]] | None], ...] = (
    (r"(encoder/block|pool)/(attention/)?(qkv|kv)/kernel", ((0,), (2, 3))),
    (r"pool/q/kernel", ((0,), (1, 2))),
    (r"(encoder/block|pool)/(attention/)?out/kernel", ((0, 1), (2,))),
    (rf"{MLP}/(fc1|fc2|w3)/kernel|pre_logits/kernel", ((0,), (1,))),
    (rf"{MLP}/w12/kernel", ((0,), (2,))),
    (rf"{RESNET}/(conv\d?|proj)/kernel", ((0, 1, 2), (3,))),
    (r"(embed|head|head_dist)/kernel", None),
    (r".*/(bias|scale|gamma)|cls|dist|registers|pos_embed/(grid|prefix)|pool/probe", None),
)


def make_optimizer(
    c: ConfigDict, schedule: optax.Schedule | float = 1.0
) -> optax.GradientTransformation:
    """`clip_norm`, then `c.name` of `OWN` or of optax with its arguments.

    Raises UserError: optax has no such optimiser, or it takes no such argument.
    """
    if c.mu_dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"optimizer.mu_dtype is float32 or bfloat16, not {c.mu_dtype!r}")
    if c.decay_by not in ("rate", "schedule"):
        raise UserError(f"optimizer.decay_by is rate or schedule, not {c.decay_by!r}")
    # The reference code adds the decay after the rate, times schedule / lr.
    decay = c.weight_decay / (c.lr or 1.0) if c.decay_by == "schedule" else c.weight_decay
    steps = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
    try:
        steps.append(OWN[c.name](c, decay, schedule) if c.name in OWN else _of_optax(c, decay))
    except TypeError as error:  # an argument of kwargs
        raise UserError(f"optimiser {c.name}: {error}") from error
    return optax.chain(*steps)


def _of_optax(c: ConfigDict, decay: float) -> optax.GradientTransformation:
    """A function of optax, with the arguments that it has of ours and `kwargs`."""
    make = getattr(optax, c.name, None)
    takes = inspect.signature(make).parameters if inspect.isfunction(make) else {}
    if c.name in NOT_SCALABLE:
        raise UserError(f"optimiser {c.name} cannot follow a schedule here: take another of optax")
    if make is None or "learning_rate" not in takes:
        raise UserError(f"optax has no optimiser {c.name!r}: {nearest(c.name, known())}")
    arguments = {
        "adam": {"b1": c.b1, "b2": c.b2, "eps": c.eps, "mu_dtype": c.mu_dtype},
        "adamw": {"b1": c.b1, "b2": c.b2, "eps": c.eps, "mu_dtype": c.mu_dtype},
    }.get(c.name, c.kwargs.to_dict())  # fmt: skip
    for key in arguments:
        if key not in takes:
            raise UserError(f"optimiser {c.name} takes no {key!r}: {nearest(key, takes)}")
    mask = next((key for key in takes if key == "mask" or key.endswith("decay_mask")), None)
    if "weight_decay" in takes and mask:
        arguments = {"weight_decay": decay, mask: decay_mask} | arguments
        return make(learning_rate=1.0, **arguments)
    if "weight_decay" in takes:  # of everything, where kernels alone are to decay
        arguments = {"weight_decay": 0.0} | arguments
    return _decayed(make(learning_rate=1.0, **arguments), decay)


def _decayed(tx: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """The updates of `tx`, less `decay` times the kernels (arXiv 1711.05101)."""
    return optax.chain(tx, optax.add_decayed_weights(-decay, decay_mask)) if decay else tx


def _sgd(c: ConfigDict, decay: float, _) -> optax.GradientTransformation:
    return _decayed(optax.sgd(1.0, momentum=c.momentum or None, **c.kwargs.to_dict()), decay)


def _adafactor(c: ConfigDict, decay: float, _) -> optax.GradientTransformation:
    """Adafactor as Scaling Vision Transformers has it (arXiv 2106.04560, section 3.4): a factored
    second moment of decay 0.999 at most, a first moment in half precision, no relative steps."""

    def second(count, exponent):
        return jnp.minimum(0.999, 1.0 - (count + 1.0) ** -exponent)

    scaled = optax.scale_by_factored_rms(min_dim_size_to_factor=64, decay_rate_fn=second)
    averaged = optax.ema(c.b1, debias=False, accumulator_dtype=c.mu_dtype or "bfloat16")
    return _decayed(optax.chain(scaled, averaged, optax.scale(-1.0)), decay)


def muon_dimensions(params: Any) -> Any:
    """How Muon reads each parameter as matrices; None for those that Adam updates."""

    def one(keys: tuple, _) -> MuonDimensionNumbers | None:
        path = path_of(keys)
        rule = match_one(MUON_RULES, path, "Muon")
        first = "encoder/block/" in f"{path}/"  # the axis of stacked layers
        return rule and MuonDimensionNumbers(*(tuple(i + first for i in axes) for axes in rule))

    return jax.tree_util.tree_map_with_path(one, params)


def _muon(c: ConfigDict, decay: float, _) -> optax.GradientTransformation:
    """Muon for the kernels inside the model, Adam for all else (optax.contrib.muon)."""
    return _decayed(
        optax.contrib.muon(
            1.0, mu_dtype=c.mu_dtype, adam_b1=c.b1, adam_b2=c.b2, weight_decay=0.0,
            muon_weight_dimension_numbers=muon_dimensions, **c.kwargs.to_dict(),
        ),
        decay,
    )  # fmt: skip


def _schedule_free(c: ConfigDict, decay: float, schedule) -> optax.GradientTransformation:
    """Schedule-free AdamW (arXiv 2405.15682); evaluated at its averaged weights."""
    base = optax.chain(
        optax.scale_by_adam(b1=0.0, b2=c.b2, eps=c.eps),
        optax.add_decayed_weights(decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.contrib.schedule_free(base, schedule, b1=c.b1)


OWN: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd, "adafactor": _adafactor, "muon": _muon, "schedule_free": _schedule_free,
}  # fmt: skip
HOLD_RATE = ("schedule_free",)  # their updates have the learning rate in them


def averaged(name: str, opt: Any, params: Any) -> Any | None:
    """The weights that an optimiser wants to be judged by, or None: those that are trained."""
    if name != "schedule_free":
        return None
    states = jax.tree.leaves(opt, is_leaf=lambda x: isinstance(x, optax.contrib.ScheduleFreeState))
    own = next(s for s in states if isinstance(s, optax.contrib.ScheduleFreeState))
    return optax.contrib.schedule_free_eval_params(own, params)


def check_updates(c: ConfigDict, params: Any) -> None:
    """Raises UserError where an optimiser cannot update such parameters, for its arguments or
    because it wants more than gradients; nothing is computed."""
    tx = make_optimizer(c)
    try:
        jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)
    except Exception as error:  # whatever optax makes of them
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"optimiser {c.name} with optimizer.kwargs {c.kwargs.to_dict()} cannot update the "
            f"parameters: {reason}"
        ) from error


def known() -> list[str]:
    """Names that `make_optimizer` takes: ours, and optax's."""
    return [*OWN] + [
        name for name, thing in inspect.getmembers(optax, inspect.isfunction)
        if "learning_rate" in inspect.signature(thing).parameters
        and not name.startswith("_") and name not in (*NOT_SCALABLE, *OWN)
    ]  # fmt: skip
