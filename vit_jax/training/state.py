"""The training state: a plain dict `{params, opt, step, skipped, damaged, ema?}` of arrays.

`step` counts every step, `skipped` those whose gradients were not finite: in all, in a row up to
now, and the number of the last one. `damaged` counts images that others stood in for. `opt` and
`ema` have nothing for frozen parameters. Random keys are not in it: each is folded from (seed,
step). The number of examples seen outgrows 32 bits, so it is kept on the host and saved beside the
arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax.models import Model
from vit_jax.training.groups import trainable
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.schedules import make_schedule

State = dict[str, Any]


def make_rest(model: Model, config: ConfigDict) -> Callable[[Any], State]:
    """A pure function from the parameters to all other entries of the state at step 0."""
    schedule = make_schedule(config.schedule, config.optimizer.lr, config.total_steps)
    tx = make_optimizer(config.optimizer, model.family, schedule)

    def rest(params: Any) -> State:
        trained = trainable(params, config.optimizer.freeze)
        zero = jnp.zeros((), jnp.int32)
        skipped = {"total": zero, "in_row": zero, "last": zero}
        state = {"opt": tx.init(trained), "step": zero, "skipped": skipped, "damaged": zero}
        return state | ({"ema": jax.tree.map(jnp.copy, trained)} if config.ema else {})

    return rest


def make_init(model: Model, config: ConfigDict) -> Callable[[], State]:
    """A pure function that returns the state of step 0. Compile it with the shardings to use."""

    def init() -> State:
        params = model.init_fn(jax.random.key(config.seed))
        return {"params": params} | make_rest(model, config)(params)

    return init


def abstract_state(model: Model, config: ConfigDict) -> State:
    """Shapes and dtypes of the state; nothing is allocated."""
    return jax.eval_shape(make_init(model, config))


def moved_average(ema: Any, params: Any, decay: float, step: Any) -> Any:
    """The moving average after a step (counted from 0). Its decay is (1 + step) / (10 + step), at
    most `decay`, so that the initial weights lose their influence quickly."""
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: keep * old + (1.0 - keep) * new, ema, params)
