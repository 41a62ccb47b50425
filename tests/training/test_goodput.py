"""The ledger, on a clock of the test's own steps."""

import time

from vit_jax.training.goodput import PARTS, Ledger


def test_every_moment_is_of_one_part_also_when_read_in_the_middle_of_one():
    began = time.monotonic()
    ledger = Ledger({"step": 5.0}, began)
    ledger.turn("step")
    with ledger.spent("checkpoint"):
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            inside = ledger.seconds  # as the loop does for what it saves
    after = ledger.seconds
    assert after["checkpoint"] >= inside["checkpoint"] >= 0.04
    assert after["checkpoint"] >= 0.05
    assert 5.0 <= after["step"] < 5.05
    whole = sum(after.values()) - 5.0
    assert abs(whole - (time.monotonic() - began)) < 0.05
    assert list(after) == list(PARTS)
