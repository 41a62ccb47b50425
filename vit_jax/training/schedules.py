"""Learning rates as functions of the step: warm-up, then constant, cosine, linear, rsqrt, drop."""

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

DROP = 2 / 3  # share of the steps before the rate drops


def make_schedule(c: ConfigDict, lr: float, total_steps: int) -> optax.Schedule:
    """A function from the step (from 0) to the learning rate. During the warm-up, the rate is
    lr (step + 1) / (warmup_steps + 1), so no step has rate 0. Then `c.name` applies.

    cosine and linear reach `end_lr` after the last step. rsqrt multiplies lr by
    sqrt(timescale / (timescale + steps since warm-up)) (arXiv 2106.04560, section 3.5), and falls
    linearly to `end_lr` over the last `cooldown_steps`. drop divides lr by ten for
    the last third of the steps behind the warm-up (arXiv 2005.12872, section A.4).
    """
    warmup = min(c.warmup_steps, total_steps)
    decay_steps = max(1, total_steps - warmup)
    after = {
        "constant": lambda: optax.constant_schedule(lr),
        "cosine": lambda: optax.cosine_decay_schedule(lr, decay_steps, c.end_lr / (lr or 1.0)),
        "linear": lambda: optax.linear_schedule(lr, c.end_lr, decay_steps),
        "drop": lambda: optax.piecewise_constant_schedule(lr, {round(DROP * decay_steps): 0.1}),
        "rsqrt": lambda: _rsqrt(lr, c.timescale, decay_steps, c.cooldown_steps, c.end_lr),
    }[c.name]()
    if not warmup:
        return after
    rising = optax.linear_schedule(lr / (warmup + 1), lr, warmup)
    return optax.join_schedules([rising, after], [warmup])


def _rsqrt(lr, timescale, steps, cooldown, end_lr) -> optax.Schedule:
    def schedule(step):
        rate = lr * jnp.sqrt(timescale / (timescale + step))
        if not cooldown:
            return rate
        left = jnp.clip((steps - step) / cooldown, 0.0, 1.0)
        return end_lr + (rate - end_lr) * left

    return schedule
