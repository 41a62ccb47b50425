"""Timing by turns, and the statistics of the times.

A side is a function that does its work once and returns the seconds that the work took. The sides
are measured in turns, in an order that rotates, so that a slow spell of the machine falls on all of
them alike. Times are summarised by medians and quartiles. A ratio is a speed-up: the other side's
time over ours, within each round. Its median is reported with a 95% interval.
"""

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import USER_ERROR, UserError

Side = Callable[[], float]
Row = dict[str, Any]

MIN_ROUNDS = 3  # rounds that a median needs
REST = 0.01  # seconds between two sides, in which the threads of the first one become idle


def timed(work: Callable[[], Any]) -> Side:
    """A side of a function that returns when its work is done."""

    def side() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return side


def in_a_row(start: Callable[[], Any], wait: Callable[[Any], Any], count: int) -> Side:
    """A side of asynchronous work: starts it `count` times, waits for the last result, and returns
    the seconds of one."""

    def work() -> None:
        for _ in range(count):
            last = start()
        wait(last)

    side = timed(work)
    return lambda: side() / count


def json_from(command: Sequence[Any], environment: Mapping[str, str] | None = None) -> Any:
    """Runs a new process and returns the JSON object in its last line of output.

    Raises UserError with the process's message if it ends with exit code 2.
    """
    ended = subprocess.run(
        list(map(str, command)), env=os.environ | dict(environment or {}), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if ended.returncode == USER_ERROR:
        raise UserError(ended.stderr.strip().splitlines()[-1].removeprefix("vit: error: "))
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return json.loads(ended.stdout.splitlines()[-1])


def alternate(
    sides: Mapping[str, Side], rounds: int, *, warmup: int = 2, rest: float = REST,
    within: float = math.inf,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Returns the seconds of every side in every round: element r is from round r.

    Each round runs every side once and begins one side later than the round before. The first
    `warmup` rounds are not counted. No round begins after `within` seconds and `MIN_ROUNDS` rounds.
    """
    began = time.perf_counter()
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        if turn >= warmup + MIN_ROUNDS and time.perf_counter() - began > within:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(rest)
            seconds = sides[name]()
            if turn >= warmup:
                times[name].append(seconds)
    return {name: np.asarray(seconds) for name, seconds in times.items()}


def summary(seconds: Any) -> Row:
    """Median and quartiles in seconds, and the number of rounds."""
    low, median, high = map(float, np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {"median_s": median, "q1_s": low, "q3_s": high, "rounds": len(seconds)}


def speed_up(
    ours: np.ndarray, theirs: np.ndarray, *, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Returns how many times faster ours is, and the two ends of its 95% interval.

    This is the median over rounds of theirs / ours. The interval is a bootstrap: percentiles of
    that median over rounds that are drawn again with replacement.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"sides of one run, not {len(ours)} and {len(theirs)} rounds")
    ratios = theirs / ours
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(draws, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def compare(case: str, times: Mapping[str, np.ndarray], ours: str) -> list[Row]:
    """One row for each side; a row of another side also has our speed-up over it."""
    rows = [{"case": case, "side": side, **summary(seconds)} for side, seconds in times.items()]
    for row in rows:
        if row["side"] != ours:
            ratios = speed_up(times[ours], times[row["side"]])
            row |= zip(("ratio", "ratio_low", "ratio_high"), ratios, strict=True)
    return rows
