"""The training state: a plain dict `{params, opt, step, skipped}` of arrays.

`step` counts every step, `skipped` those whose gradients were not finite: in all, and in a row up
to now. Random keys are not in it: each is folded from (seed, step). The number of examples seen
outgrows 32 bits, so it is kept on the host and saved beside the arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.models import Model

State = dict[str, Any]


def make_rest(tx: optax.GradientTransformation) -> Callable[[Any], State]:
    """A pure function from parameters to the rest of the state of step 0."""

    def rest(params: Any) -> State:
        zero = jnp.zeros((), jnp.int32)
        skipped = {"total": zero, "in_row": zero}
        return {"opt": tx.init(params), "step": zero, "skipped": skipped}

    return rest


def make_init(model: Model, tx: optax.GradientTransformation, seed: int) -> Callable[[], State]:
    """A pure function to the state of step 0, to be compiled with the shardings wanted."""

    def init() -> State:
        params = model.init_fn(jax.random.key(seed))
        return {"params": params} | make_rest(tx)(params)

    return init


def abstract_state(model: Model, tx: optax.GradientTransformation) -> State:
    """Shapes and dtypes of the state; nothing is allocated."""
    return jax.eval_shape(make_init(model, tx, 0))
