"""Successive halving (arXiv 1502.07943). All trials run to a fifth of their steps, the best third
of them to three fifths, and the best third of those to the end: two fifths of a grid's steps.

Optuna's pruner cannot continue a trial that it has stopped. So it judges each trial as it comes to
a rung, by those that came before, and the steps that are spent depend on the order of the trials.
Here a trial is saved at a rung and waits until all are there. The trials that are continued are
computed from the values that the study has stored.
"""

import math
from collections.abc import Collection, Sequence

from optuna.trial import FrozenTrial, TrialState

REDUCTION = 3
RUNGS = (0.2, 0.6)  # shares of a trial's steps


def key(rung: int) -> str:
    """The attribute of a trial that stores its value at a rung."""
    return f"rung_{rung}"


def standing(
    trials: Sequence[FrozenTrial], expected: int, failed: Collection[int], sign: int
) -> tuple[list[FrozenTrial], int | None]:
    """Returns the trials that are continued, and the rung up to which they may run (None: their
    end).

    Args:
      trials: all trials of the study.
      expected: number of trials that the study will have.
      failed: numbers of the trials that cannot be continued, which rank last.
      sign: 1 if more is better, else -1.
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
