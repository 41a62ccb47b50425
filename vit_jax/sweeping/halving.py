"""Successive halving (arXiv 1502.07943): all trials run to a fifth of their steps, the best third
of them to three fifths, the best third of those to the end; two fifths of a grid's steps in all.

Optuna's pruner cannot continue a trial that it has stopped. So it decides on each one when it comes
to a rung, by those that came before, and how much is spent depends on their order. Here trials wait
at a rung, saved, until all are there. Who goes on is computed from what the study has stored.
"""

import math
from collections.abc import Collection, Sequence

from optuna.trial import FrozenTrial, TrialState

REDUCTION = 3
RUNGS = (0.2, 0.6)  # shares of a trial's steps


def key(rung: int) -> str:
    """Where a study keeps what a trial had reached at a rung."""
    return f"rung_{rung}"


def standing(
    trials: Sequence[FrozenTrial], expected: int, failed: Collection[int], sign: int
) -> tuple[list[FrozenTrial], int | None]:
    """The trials that are still in it, and the rung that they may run to; None is their end.

    Args:
      trials: all of the study.
      expected: how many there will be.
      failed: numbers of those that cannot go on, which are the worst.
      sign: 1 where more is better, else -1.
    """
    race = list(trials)
    if len(race) < expected:
        return race, 0
    for rung in range(len(RUNGS)):
        values = {}
        for trial in race:
            at_end = trial.value if trial.state == TrialState.COMPLETE else None
            value = trial.user_attrs.get(key(rung), at_end)
            if value is None:
                if trial.number not in failed and not trial.state.is_finished():
                    return race, rung
                value = -sign * math.inf
            values[trial.number] = sign * value
        race.sort(key=lambda trial: (-values[trial.number], trial.number))
        race = race[: -(-len(race) // REDUCTION)]
    return race, None
