"""Updates of a step before the learning rate: clipping, the optimiser, decoupled weight decay.

Optimisers are built with learning rate 1; the step multiplies their updates by the schedule at
`state["step"]`, so that a skipped step and a resumed run read the same rate. Those that average by
the rate itself (`HOLD_RATE`) are given the schedule, and their updates are final.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

from vit_jax.errors import UserError, nearest
from vit_jax.models.family import Family
from vit_jax.paths import is_stacked, path_of
from vit_jax.training.groups import decay_mask

# Functions of optax that cannot be built with rate 1 and scaled afterwards: they are no optimisers,
# they need more than gradients, or their update is not proportional to the learning rate.
NOT_SCALABLE = ("fromage", "lbfgs", "rprop", "scale_by_learning_rate", "scale_by_rprop")

# Optimisers that scale by the norm of a parameter. With model.scan, one parameter holds all layers.
NORM_OF_PARAMETER = ("lamb", "lars", "novograd")


class _For(NamedTuple):
    """What an optimiser needs to know of the run."""

    family: Family
    decay: float  # weight decay of the kernels
    schedule: optax.Schedule | float

    def mask(self, params: Any) -> Any:
        return decay_mask(self.family, params)


def make_optimizer(
    c: ConfigDict, family: Family, schedule: optax.Schedule | float = 1.0
) -> optax.GradientTransformation:
    """Clipping by `clip_norm`, followed by the optimiser `c.name` from `OWN` or from optax.

    Raises UserError: there is no such optimiser, or it takes no such argument.
    """
    if c.mu_dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"optimizer.mu_dtype is float32 or bfloat16, not {c.mu_dtype!r}")
    # The reference code adds decay * schedule / lr after it has applied the learning rate.
    decay = c.weight_decay / (c.lr or 1.0) if c.decay_by == "schedule" else c.weight_decay
    steps = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
    try:
        steps.append(OWN.get(c.name, _of_optax)(c, _For(family, decay, schedule)))
    except TypeError as error:  # an argument of kwargs
        raise UserError(f"optimiser {c.name}: {error}") from error
    return optax.chain(*steps)


def _of_optax(c: ConfigDict, of: _For) -> optax.GradientTransformation:
    """An optimiser of optax, with our own arguments for Adam and `kwargs` for all others."""
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
        arguments = {"weight_decay": of.decay, mask: of.mask} | arguments
        return make(learning_rate=1.0, **arguments)
    if "weight_decay" in takes:  # optax would decay everything, not only kernels
        arguments = {"weight_decay": 0.0} | arguments
    return _decayed(make(learning_rate=1.0, **arguments), of)


def _decayed(tx: optax.GradientTransformation, of: _For) -> optax.GradientTransformation:
    """The updates of `tx`, less `decay` times the kernels (arXiv 1711.05101)."""
    return optax.chain(tx, optax.add_decayed_weights(-of.decay, of.mask)) if of.decay else tx


def _sgd(c: ConfigDict, of: _For) -> optax.GradientTransformation:
    return _decayed(optax.sgd(1.0, momentum=c.momentum or None, **c.kwargs.to_dict()), of)


def _adafactor(c: ConfigDict, of: _For) -> optax.GradientTransformation:
    """Adafactor as in Scaling Vision Transformers (arXiv 2106.04560, section 3.4): a factored
    second moment with decay 0.999 at most, a first moment in half precision, no relative steps."""

    def second(count, exponent):
        return jnp.minimum(0.999, 1.0 - (count + 1.0) ** -exponent)

    scaled = optax.scale_by_factored_rms(min_dim_size_to_factor=64, decay_rate_fn=second)
    averaged = optax.ema(c.b1, debias=False, accumulator_dtype=c.mu_dtype or "bfloat16")
    return _decayed(optax.chain(scaled, averaged, optax.scale(-1.0)), of)


def muon_dimensions(family: Family, params: Any) -> Any:
    """The axes that Muon reads as a matrix, for each parameter; None if Adam updates it."""

    def dimensions_of(keys: tuple, _) -> MuonDimensionNumbers | None:
        path = path_of(keys)
        kernel, first = family.row(path).muon, is_stacked(path)  # then axis 0 is that of the layers
        return kernel and MuonDimensionNumbers(*(tuple(i + first for i in axes) for axes in kernel))

    return jax.tree_util.tree_map_with_path(dimensions_of, params)


def _muon(c: ConfigDict, of: _For) -> optax.GradientTransformation:
    """Muon for the kernels inside the model, Adam for all else (optax.contrib.muon)."""
    return _decayed(
        optax.contrib.muon(
            1.0, mu_dtype=c.mu_dtype, adam_b1=c.b1, adam_b2=c.b2, weight_decay=0.0,
            muon_weight_dimension_numbers=partial(muon_dimensions, of.family),
            **c.kwargs.to_dict(),
        ),
        of,
    )  # fmt: skip


def _schedule_free(c: ConfigDict, of: _For) -> optax.GradientTransformation:
    """Schedule-free AdamW (arXiv 2405.15682). Evaluation uses its averaged weights (`averaged`)."""
    base = optax.chain(
        optax.scale_by_adam(b1=0.0, b2=c.b2, eps=c.eps),
        optax.add_decayed_weights(of.decay, of.mask),
        optax.scale_by_learning_rate(of.schedule),
    )
    return optax.contrib.schedule_free(base, of.schedule, b1=c.b1)


OWN: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd, "adafactor": _adafactor, "muon": _muon, "schedule_free": _schedule_free,
}  # fmt: skip
HOLD_RATE = ("schedule_free",)  # their updates already include the learning rate


def averaged(name: str, opt: Any, params: Any) -> Any | None:
    """The averaged weights that an optimiser is evaluated with; None for the trained weights."""
    if name != "schedule_free":
        return None
    states = jax.tree.leaves(opt, is_leaf=lambda x: isinstance(x, optax.contrib.ScheduleFreeState))
    state = next(s for s in states if isinstance(s, optax.contrib.ScheduleFreeState))
    return optax.contrib.schedule_free_eval_params(state, params)


def check_updates(c: ConfigDict, family: Family, params: Any) -> None:
    """Raises UserError if the optimiser cannot update such parameters, because of its arguments or
    because it needs more than gradients. Only shapes are computed."""
    tx = make_optimizer(c, family)
    try:
        jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)
    except Exception as error:  # optax may raise anything
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
