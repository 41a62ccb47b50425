"""Who goes on in successive halving: what is stored decides, whatever the order and the kills."""

import itertools

import optuna
import pytest

from vit_jax.sweeping import halving

COMPLETE, PRUNED, RUNNING = (getattr(optuna.trial.TrialState, name)
                             for name in ("COMPLETE", "PRUNED", "RUNNING"))  # fmt: skip


def trial(number, *reached, state=RUNNING, value=None):
    """A trial that has reached so many rungs."""
    made = optuna.trial.create_trial(
        state=state, value=value,
        user_attrs={halving.key(rung): one for rung, one in enumerate(reached)},
    )  # fmt: skip
    made.number = number
    return made


def standing(trials, expected=None, failed=(), sign=1):
    race, rung = halving.standing(trials, expected or len(trials), failed, sign)
    return {one.number for one in race}, rung


def test_all_run_to_the_first_rung_until_all_are_there():
    trials = [trial(0, 0.9), trial(1, 0.8), trial(2)]
    assert standing(trials) == ({0, 1, 2}, 0)
    assert standing(trials[:2], expected=3) == ({0, 1}, 0)


def test_the_best_third_goes_on_at_each_rung_and_to_the_end():
    values = [0.1, 0.5, 0.3, 0.9, 0.2, 0.8, 0.7]
    first = [trial(n, value) for n, value in enumerate(values)]
    assert standing(first) == ({3, 5, 6}, 1)
    then = {3: 0.4, 5: 0.6, 6: 0.5}
    second = [trial(n, v, *([then[n]] if n in then else [])) for n, v in enumerate(values)]
    assert standing(second) == ({5}, None)
    assert standing(second, sign=-1)[0] == {0, 2, 4}  # of a loss the lowest: others go on
    for order in itertools.permutations(second, 7):
        if order[0].number == 6:
            assert standing(order) == ({5}, None)


def test_those_that_are_out_or_at_their_end_count_with_what_they_reached():
    out = trial(1, 0.8, state=PRUNED, value=0.8)
    trials = [out, trial(2, state=COMPLETE, value=0.9), trial(3, 0.7), trial(4, 0.6)]
    assert standing(trials) == ({2}, None)  # 1 has been told to stop, which ranks it below
    trials[0] = trial(1, 0.8, 0.95)
    assert standing(trials) == ({1}, None)
    trials[1] = trial(2, state=COMPLETE, value=0.96)
    assert standing(trials) == ({2}, None)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trial_that_diverged_or_failed_is_the_worst(sign):
    trials = [trial(0, state=PRUNED), trial(1), trial(2, 0.1), trial(3, 0.2)]
    race, rung = standing(trials, failed={1}, sign=sign)
    assert (race, rung) == ({2, 3}, 1)


def test_twelve_trials_spend_two_fifths_of_a_grid():
    steps, left = 0.0, 12
    for begin, end in itertools.pairwise((0.0, *halving.RUNGS, 1.0)):
        steps += left * (end - begin)
        left = -(-left // halving.REDUCTION)
    assert steps / 12 == pytest.approx(0.4)
