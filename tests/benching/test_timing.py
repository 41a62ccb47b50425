"""What is said of times is true of times whose truth is known."""

import csv
import io
import json
import time

import numpy as np
import pytest

from vit_jax.benching import machine, report, timing
from vit_jax.errors import UserError

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
        ends.append(timing.speed_up(ours, theirs, draws=400)[1:])
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
    ratio, low, high = timing.speed_up(ours, theirs)
    assert ratio == pytest.approx(1.5, rel=0.02)
    assert (low, high) == pytest.approx((1.5, 1.5), rel=0.03)


def test_a_ratio_is_above_one_where_ours_is_the_faster():
    ours, theirs = np.full(9, 0.2), np.full(9, 0.5)
    assert timing.speed_up(ours, theirs) == pytest.approx((2.5, 2.5, 2.5))


def test_sides_of_different_runs_are_refused():
    with pytest.raises(ValueError, match="not 3 and 4 rounds"):
        timing.speed_up(np.ones(3), np.ones(4))


def test_sides_take_turns_and_each_begins_as_often():
    order = []

    def side(name, seconds):
        def run():
            order.append(name)
            return seconds * len(order)

        return run

    sides = {"a": side("a", 1.0), "b": side("b", 10.0), "c": side("c", 100.0)}
    times = timing.alternate(sides, rounds=6, warmup=3, rest=0.0)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 27, 3)]
    assert rounds == ["abc", "bca", "cab"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 6, "b": 6, "c": 6}
    assert times["a"][0] == 10.0  # the first call after the three warm-up rounds
    assert times["b"][0] == 110.0


def spin(seconds):
    """Work that takes so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_timed_side_takes_as_long_as_its_work():
    began = time.perf_counter()
    told = timing.timed(lambda: spin(0.02))()
    assert 0.02 <= told <= time.perf_counter() - began


def test_of_work_in_a_row_one_is_told_and_the_last_is_awaited():
    started, awaited = iter(range(100)), []
    began = time.perf_counter()
    side = timing.in_a_row(
        lambda: next(started), lambda last: (awaited.append(last), spin(0.02)), 4
    )
    told = side()
    assert 0.02 / 4 <= told <= (time.perf_counter() - began) / 4
    side()
    assert awaited == [3, 7]


def test_no_round_begins_when_time_is_over_but_a_median_has_its_three():
    sides = {"slow": timing.timed(lambda: spin(0.02)), "other": lambda: 1.0}
    times = timing.alternate(sides, rounds=1000, warmup=1, rest=0.0, within=0.0)
    assert [len(seconds) for seconds in times.values()] == [3, 3]
    times = timing.alternate(sides, rounds=1000, warmup=1, rest=0.0, within=0.2)
    assert 3 <= len(times["slow"]) <= 10


def test_the_summary_is_median_and_quartiles():
    row = timing.summary(np.array([5.0, 1.0, 4.0, 2.0, 3.0]))
    assert row == {"median_s": 3.0, "q1_s": 2.0, "q3_s": 4.0, "rounds": 5}


def test_the_figures_have_five_parts_and_table_and_csv_say_the_same(tmp_path):
    times = {"ours": np.full(5, 0.002), "theirs": np.full(5, 0.003)}
    rows = timing.compare("a case", times, "ours")
    report.write(report.figures("a name", rows), str(tmp_path / "f.json"), str(tmp_path / "f.csv"))
    figures = json.loads((tmp_path / "f.json").read_text())
    assert list(figures) == ["name", "rows", "ratios", "versions", "hardware"]
    assert figures["name"] == "a name"
    assert figures["ratios"] == {"a case / theirs": pytest.approx(1.5)}
    assert figures["versions"]["jax"]
    assert figures["hardware"]["cores"] >= 1
    heading, ours, theirs = report.table(rows).splitlines()
    assert " ".join(heading.split()) == "case side median quartiles speed-up of ours [95%]"
    assert "2.000 ms" in ours
    assert "1.500 [1.500, 1.500]" in theirs
    assert heading.index("median") == ours.index("2.000 ms") == theirs.index("3.000 ms")
    read = list(csv.DictReader(io.StringIO((tmp_path / "f.csv").read_text())))
    assert [row["side"] for row in read] == ["ours", "theirs"]
    assert (read[0]["ratio"], float(read[1]["ratio"])) == ("", pytest.approx(1.5))


def test_a_place_that_takes_no_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*f\.json: Not a directory"):
        report.write({"rows": []}, str(tmp_path / "file" / "f.json"))


def test_what_is_not_installed_has_no_version():
    found = machine.versions(("numpy", "no_such_package_as_this"))
    assert found["numpy"] == np.__version__
    assert found["no_such_package_as_this"] is None


class Device:
    """A device that counts its memory, or does not."""

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_memory_is_the_devices_count_or_else_the_peak_of_the_process():
    assert machine.high_water(Device({"peak_bytes_in_use": 5})) == {"peak_device_bytes": 5}
    uncounted = Device(None)
    before = machine.high_water(uncounted)["peak_process_bytes"]
    more = 2**26
    held = np.ones(before + more, np.uint8)  # whatever else the process has comes on top
    assert machine.high_water(uncounted)["peak_process_bytes"] >= before + more
    del held
    again = machine.high_water(uncounted)["peak_process_bytes"]
    assert again >= before + more


@pytest.mark.parametrize(
    ("error", "too_small"),
    [
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), True),
        (RuntimeError("INTERNAL: Error dispatching: Out of memory allocating 9 bytes."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("INTERNAL: no kernel image"), False),
    ],
)
def test_memory_that_is_too_small_is_told_from_other_errors(error, too_small):
    assert machine.out_of_memory(error) is too_small
