"""Learning rates against the formulas, step by step."""

import math

import jax
import numpy as np
import pytest

from vit_jax.config import base
from vit_jax.training.schedules import make_schedule

TOTAL, WARMUP, LR, END = 50, 8, 0.3, 0.01


def rate_by_hand(name, step):
    if step < WARMUP:
        return LR * (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / (TOTAL - WARMUP)
    return {
        "constant": LR,
        "cosine": END + (LR - END) * 0.5 * (1 + math.cos(math.pi * done)),
        "linear": LR + (END - LR) * done,
        "rsqrt": END
        + (LR * math.sqrt(20 / (20 + step - WARMUP)) - END) * min(1.0, (TOTAL - step) / 10),
    }[name]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "rsqrt"])
def test_rates_equal_the_formula_at_every_step(name):
    c = base().schedule
    c.name, c.warmup_steps, c.end_lr, c.timescale, c.cooldown_steps = name, WARMUP, END, 20, 10
    schedule = jax.jit(make_schedule(c, LR, TOTAL))
    found = [float(schedule(step)) for step in range(TOTAL)]
    np.testing.assert_allclose(found, [rate_by_hand(name, s) for s in range(TOTAL)], rtol=1e-5)


def test_no_step_is_spent_at_rate_zero():
    c = base().schedule
    c.warmup_steps = WARMUP
    schedule = make_schedule(c, LR, TOTAL)
    assert all(float(schedule(step)) > 0 for step in range(TOTAL))


def test_a_warm_up_longer_than_the_run_rises_to_the_end():
    c = base().schedule
    c.warmup_steps = 1000
    schedule = make_schedule(c, LR, 10)
    rates = [float(schedule(step)) for step in range(10)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(LR * 10 / 11)
