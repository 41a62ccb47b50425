"""Alternating timing, and what can honestly be said of the times.

A side is a function that does its work once and returns the seconds it took (`timed` makes one of
a function that blocks until it is done). Sides are measured in turns, in an order that rotates, so
that whatever else the machine does falls on all of them alike. Times are summarised by medians and
quartiles. A ratio is a speed-up, the other side's time over ours, taken within each round; its
median is reported, with a 95% interval by bootstrap over the rounds.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Side = Callable[[], float]
Row = dict[str, Any]

FEWEST = 3  # rounds that a median is taken of
REST = 0.01  # seconds between two sides, for the threads of the one before to go to sleep


def timed(work: Callable[[], Any]) -> Side:
    """A side of a function that returns when its work is done."""

    def side() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return side


def in_a_row(start: Callable[[], Any], wait: Callable[[Any], Any], count: int) -> Side:
    """A side of work that is queued: seconds of one of `count`, the last of which is awaited."""

    def work() -> None:
        for _ in range(count):
            last = start()
        wait(last)

    side = timed(work)
    return lambda: side() / count


def alternate(
    sides: Mapping[str, Side], rounds: int, *, warmup: int = 2, rest: float = REST,
    within: float = math.inf,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Seconds of every side in every round; element r of all of them was measured in round r.

    Each round runs each side once, beginning one side later than the round before. The first
    `warmup` rounds are left out. After `within` seconds, and `FEWEST` rounds, no other is begun.
    """
    began = time.perf_counter()
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        if turn >= warmup + FEWEST and time.perf_counter() - began > within:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(rest)
            seconds = sides[name]()
            if turn >= warmup:
                times[name].append(seconds)
    return {name: np.asarray(seconds) for name, seconds in times.items()}


def summary(seconds: np.ndarray) -> Row:
    """Median and quartiles, in seconds, and the number of rounds."""
    low, median, high = map(float, np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {"median_s": median, "q1_s": low, "q3_s": high, "rounds": len(seconds)}


def speed_up(
    ours: np.ndarray, theirs: np.ndarray, *, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """How many times faster we are, and the ends of its 95% interval.

    The median over rounds of theirs / ours (both of one round, so that a slow spell of the machine
    cancels), and percentiles of that median over rounds drawn anew with replacement.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"sides of one run, not {len(ours)} and {len(theirs)} rounds")
    ratios = theirs / ours
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(draws, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def compare(case: str, times: Mapping[str, np.ndarray], ours: str) -> list[Row]:
    """A row for each side; those of the others hold our speed-up over them."""
    rows = []
    for side, seconds in times.items():
        row: Row = {"case": case, "side": side, **summary(seconds)}
        if side != ours:
            row["ratio"], row["ratio_low"], row["ratio_high"] = speed_up(times[ours], seconds)
        rows.append(row)
    return rows
