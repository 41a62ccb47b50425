"""Updates of a step before the learning rate: clipping, the optimiser, decoupled weight decay.

Every optimiser is built with learning rate 1; the step multiplies its updates by the schedule at
`state["step"]`, so that a skipped step and a resumed run read the same rate.
"""

import inspect
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from vit_jax.errors import UserError, nearest
from vit_jax.parallel.sharding import match_one, path_of

# Which parameters decay: kernels alone (vision_transformer and AugReg). Each matches exactly one.
DECAY_RULES: tuple[tuple[str, bool], ...] = (
    (r".*/kernel", True),
    (r".*/(bias|scale|gamma)", False),
    (r"cls|dist|registers|pos_embed/(grid|prefix)|pool/probe", False),
)


# Functions of optax that are no optimisers, want more than gradients, or whose update is not the
# learning rate times something: they cannot be built with rate 1 and scaled afterwards.
NOT_SCALABLE = ("fromage", "lbfgs", "rprop", "scale_by_learning_rate", "scale_by_rprop")


def decay_mask(params: Any) -> Any:
    """True for every parameter that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: match_one(DECAY_RULES, path_of(keys), "decay"), params
    )


def make_optimizer(c: ConfigDict) -> optax.GradientTransformation:
    """`clip_norm`, then `optax.NAME(learning_rate=1.0, …)` with its arguments from the config.

    Raises UserError: optax has no such optimiser, or it takes no such argument.
    """
    if c.mu_dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"optimizer.mu_dtype is float32 or bfloat16, not {c.mu_dtype!r}")
    arguments = {
        "adam": {"b1": c.b1, "b2": c.b2, "eps": c.eps, "mu_dtype": c.mu_dtype},
        "adamw": {"b1": c.b1, "b2": c.b2, "eps": c.eps, "mu_dtype": c.mu_dtype,
                  "weight_decay": c.weight_decay, "mask": decay_mask},
        "sgd": {"momentum": c.momentum or None, "nesterov": c.nesterov},
    }.get(c.name)  # fmt: skip
    if arguments is None:
        arguments = c.kwargs.to_dict()
        if c.weight_decay:
            arguments |= {"weight_decay": c.weight_decay, "mask": decay_mask}
    make = getattr(optax, c.name, None)
    takes = inspect.signature(make).parameters if inspect.isfunction(make) else {}
    if c.name in NOT_SCALABLE:
        raise UserError(f"optimiser {c.name} cannot follow a schedule here: take another of optax")
    if make is None or "learning_rate" not in takes:
        raise UserError(f"optax has no optimiser {c.name!r}: {nearest(c.name, known())}")
    if c.name not in ("adam", "adamw", "sgd") and "mask" in arguments and "mask" not in takes:
        mask_key = next((key for key in takes if key.endswith("decay_mask")), None)
        arguments[mask_key or "mask"] = arguments.pop("mask")
    for key in arguments:
        if key not in takes:
            raise UserError(f"optimiser {c.name} takes no {key!r}: {nearest(key, takes)}")
    steps = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
    return optax.chain(*steps, make(learning_rate=1.0, **arguments))


def known() -> list[str]:
    """Names of optax's optimisers that `make_optimizer` takes."""
    return [
        name for name, thing in inspect.getmembers(optax, inspect.isfunction)
        if "learning_rate" in inspect.signature(thing).parameters
        and not name.startswith("_") and name not in NOT_SCALABLE
    ]  # fmt: skip
