"""What benchmarks/harness.py says of times is true of times whose truth is known."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "harness.py"
spec = importlib.util.spec_from_file_location("harness", FILE)
harness = importlib.util.module_from_spec(spec)
spec.loader.exec_module(harness)

EXPERIMENTS, ROUNDS = 300, 30


def noisy(rng, seconds, spread=0.1):
    """Times of one side: never below their floor, with a long tail above it."""
    return seconds * (1 + rng.gamma(1.0, spread, ROUNDS))


def intervals(seed, truth, slow_spells=0.0):
    """Low and high ends over many experiments in which the others take `truth` times our time."""
    rng = np.random.default_rng(seed)
    ends = []
    for _ in range(EXPERIMENTS):
        machine = 1 + slow_spells * (rng.random(ROUNDS) < 0.4) * rng.random(ROUNDS)
        ours, theirs = noisy(rng, 0.5) * machine, noisy(rng, 0.5 * truth) * machine
        ends.append(harness.speed_up(ours, theirs, draws=400)[1:])
    return np.array(ends).T


@pytest.mark.parametrize("truth", [0.8, 1.0, 1.3])
def test_the_interval_holds_the_true_ratio_in_about_95_of_100_experiments(truth):
    low, high = intervals(0, truth)
    covered = np.mean((low <= truth) & (truth <= high))
    assert 0.90 <= covered <= 0.99


def test_a_difference_of_a_tenth_is_found_and_none_is_not():
    low, _ = intervals(1, 1.15)
    assert np.mean(low > 1) > 0.9
    low, high = intervals(2, 1.0)
    assert np.mean((low > 1) | (high < 1)) < 0.1


def test_slow_spells_of_the_machine_cancel():
    """The interval is as narrow as on a quiet machine, and as honest."""
    quiet_low, quiet_high = intervals(3, 1.2)
    low, high = intervals(3, 1.2, slow_spells=5.0)
    assert np.median(high - low) < 1.3 * np.median(quiet_high - quiet_low)
    assert np.mean((low <= 1.2) & (high >= 1.2)) >= 0.90


def test_a_round_that_stalls_does_not_move_the_ratio():
    rng = np.random.default_rng(4)
    ours, theirs = noisy(rng, 1.0, 0.01), noisy(rng, 1.5, 0.01)
    ours[7] *= 100
    ratio, low, high = harness.speed_up(ours, theirs)
    assert ratio == pytest.approx(1.5, rel=0.02)
    assert (low, high) == pytest.approx((1.5, 1.5), rel=0.03)


def test_a_ratio_is_above_one_where_ours_is_the_faster():
    ours, theirs = np.full(9, 0.2), np.full(9, 0.5)
    assert harness.speed_up(ours, theirs) == pytest.approx((2.5, 2.5, 2.5))


def test_sides_of_different_runs_are_refused():
    with pytest.raises(ValueError, match="not 3 and 4 rounds"):
        harness.speed_up(np.ones(3), np.ones(4))


def test_sides_take_turns_and_each_begins_as_often():
    order = []

    def side(name, seconds):
        def run():
            order.append(name)
            return seconds * len(order)

        return run

    sides = {"a": side("a", 1.0), "b": side("b", 10.0), "c": side("c", 100.0)}
    times = harness.alternate(sides, rounds=6, warmup=3, rest=0.0)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 27, 3)]
    assert rounds == ["abc", "bca", "cab"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 6, "b": 6, "c": 6}
    assert times["a"][0] == 10.0  # the first call after the three warm-up rounds
    assert times["b"][0] == 110.0


def test_a_timed_side_takes_as_long_as_its_work(monkeypatch):
    clock = iter([3.0, 3.25])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    assert harness.timed(lambda: None)() == 0.25


def test_the_summary_is_median_and_quartiles():
    row = harness.summary(np.array([5.0, 1.0, 4.0, 2.0, 3.0]))
    assert row == {"median_s": 3.0, "q1_s": 2.0, "q3_s": 4.0, "rounds": 5}


def test_the_report_has_the_five_parts_and_the_table_says_the_same(tmp_path, capsys):
    times = {"ours": np.full(5, 0.002), "theirs": np.full(5, 0.003)}
    rows = harness.compare("a case", times, "ours")
    options = harness.parser("").parse_args([f"--json={tmp_path / 'figures.json'}"])
    harness.report("a name", rows, options)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["name", "rows", "ratios", "versions", "hardware"]
    assert figures["name"] == "a name"
    assert figures["ratios"] == {"a case / theirs": pytest.approx(1.5)}
    assert figures["versions"]["jax"]
    assert figures["hardware"]["cores"] >= 1
    # A last line may say that the machine was busy.
    heading, ours, theirs = capsys.readouterr().out.splitlines()[:3]
    assert " ".join(heading.split()) == "case side median quartiles speed-up of ours [95%]"
    assert "2.000 ms" in ours
    assert "1.500 [1.500, 1.500]" in theirs
    assert heading.index("median") == ours.index("2.000 ms") == theirs.index("3.000 ms")


def test_what_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(harness, "PACKAGES", ("numpy", "no_such_package_as_this"))
    found = harness.versions()
    assert found["numpy"] == np.__version__
    assert found["no_such_package_as_this"] is None
