"""Sweeps that are stopped and killed, with all or some of their trials: none is lost, none is run
twice. Real processes and signals; a trial's process is the stand-in of trainer.py."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
GRID = "optimizer.lr=0.1,0.2,0.3,0.4,0.5,0.6;optimizer.weight_decay=0.1,0.2"
PATIENCE = 120
TOTAL = 27  # steps of a trial of the stand-in


class Sweep:
    """The driver as a process in a session of its own, with its trials."""

    def __init__(self, folder: Path, method: str = "grid", space: str = GRID, parallel: int = 2):
        self.folder = folder
        self.line = [sys.executable, str(HERE / "driver.py"), method, str(parallel), str(folder),
                     space]  # fmt: skip
        self.process = None

    def start(self) -> "Sweep":
        environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
        with (self.folder.parent / "said").open("a") as said:
            self.process = subprocess.Popen(
                self.line, env=environment, stdout=said, stderr=said, start_new_session=True
            )
        return self

    def until(self, true) -> "Sweep":
        end = time.monotonic() + PATIENCE
        while not true():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.005)
        return self

    def begun(self, count: int) -> "Sweep":
        """Returns when so many trials were begun and the last has trained a step."""
        return self.until(lambda: len(list(self.folder.glob("*/steps"))) >= count)

    def kill(self) -> "Sweep":
        self.process.kill()
        self.process.wait()
        return self

    def end(self, code: int = 0) -> "Sweep":
        assert self.process.wait(PATIENCE) == code, self.said
        return self

    @property
    def said(self) -> str:
        return (self.folder.parent / "said").read_text()

    @property
    def trials(self) -> list:
        backend = optuna.storages.journal.JournalFileBackend(str(self.folder / "study.journal"))
        storage = optuna.storages.JournalStorage(backend)
        return optuna.load_study(study_name="s", storage=storage).get_trials()

    def living(self) -> list[int]:
        """Process ids of trials that hold their folder."""
        found = subprocess.run(["pgrep", "-f", f"workdir={self.folder}/"], capture_output=True,
                               text=True, check=False)  # fmt: skip
        return [int(line) for line in found.stdout.split()]

    def steps(self) -> dict[str, list[int]]:
        return {path.parent.name: [int(line) for line in path.read_text().split()]
                for path in sorted(self.folder.glob("*/steps"))}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "s"


def points(trials) -> list[tuple]:
    return sorted((t.params["optimizer.lr"], t.params["optimizer.weight_decay"]) for t in trials)


WHOLE = sorted((rate / 10, decay) for rate in range(1, 7) for decay in (0.1, 0.2))


def test_a_sweep_killed_twice_ends_with_every_trial_once(folder):
    sweep = Sweep(folder)
    for begun in (3, 7):
        sweep.start().begun(begun).kill()
    sweep.start().end()
    assert [trial.state.name for trial in sweep.trials] == ["COMPLETE"] * 12
    assert points(sweep.trials) == WHOLE
    # SIGTERM reached the trials that were left behind: they saved, and no step was trained again.
    assert sweep.steps() == {f"{n:04d}": list(range(1, TOTAL + 1)) for n in range(12)}
    values = {t.number: t.value for t in sweep.trials}
    assert values == {t.number: pytest.approx(t.params["optimizer.lr"]) for t in sweep.trials}


def test_killed_together_with_its_trials_it_continues_them_from_their_saves(folder):
    sweep = Sweep(folder).start().begun(3)
    sweep.until((folder / "0002" / "checkpoints" / "5").is_dir)
    sweep.kill()
    for number in sweep.living():
        os.kill(number, signal.SIGKILL)
    before = sweep.steps()
    sweep.start().end()
    assert [trial.state.name for trial in sweep.trials] == ["COMPLETE"] * 12
    for name, steps in sweep.steps().items():
        again = len(steps) - TOTAL
        assert sorted(set(steps)) == list(range(1, TOTAL + 1))
        assert 0 <= again <= (5 if name in before else 0)  # a save every five steps


def test_a_trial_that_is_killed_alone_starts_again(folder):
    sweep = Sweep(folder, space="optimizer.lr=0.1,0.2;total_steps=200").start().begun(2)
    os.kill(sweep.living()[0], signal.SIGKILL)
    sweep.end()
    assert [trial.state.name for trial in sweep.trials] == ["COMPLETE"] * 2
    starts = [(folder / f"000{n}" / "starts").read_text().split() for n in range(2)]
    assert sorted(map(len, starts)) == [1, 2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_sweep_that_is_stopped_saves_its_trials_and_is_continued(folder, number, code):
    total = 150  # so many that none ends before the signal
    sweep = Sweep(folder, space=f"optimizer.lr=0.1,0.2,0.3;total_steps={total}").start().begun(2)
    sweep.process.send_signal(number)
    sweep.end(code)
    assert not sweep.living()
    assert "the same command continues it" in sweep.said
    states = [trial.state.name for trial in sweep.trials]
    assert states == ["RUNNING", "RUNNING", "WAITING"]
    sweep.start().end()
    assert [trial.state.name for trial in sweep.trials] == ["COMPLETE"] * 3
    assert set(map(tuple, sweep.steps().values())) == {tuple(range(1, total + 1))}


def test_halving_lets_the_better_thirds_go_on_and_a_kill_loses_no_decision(folder):
    rates = ",".join(f"0.{n}" for n in range(1, 10))
    total = 600  # so many that a slow machine stops a trial before its end
    sweep = Sweep(
        folder, "halving", f"optimizer.lr={rates};total_steps={total};eval_every_steps=20"
    )
    journal = folder / "study.journal"
    sweep.start().until(lambda: journal.is_file() and "rung_0" in journal.read_text()).kill()
    sweep.start().until(lambda: '"rung_1"' in journal.read_text()).kill()
    sweep.start().end()
    trials = {round(10 * trial.params["optimizer.lr"]): trial for trial in sweep.trials}
    # The stand-in is the better the higher its rate, at every step: 9, then 3, then 1.
    assert {n for n, t in trials.items() if t.state.name == "COMPLETE"} == {9}
    assert {n for n, t in trials.items() if "rung_1" in t.user_attrs} >= {7, 8, 9}
    assert {t.state.name for n, t in trials.items() if n < 9} == {"PRUNED"}
    for rate, trial in trials.items():
        folder_of = folder / f"{trial.number:04d}"
        steps = [int(line) for line in (folder_of / "steps").read_text().split()]
        assert steps == list(range(1, len(steps) + 1))  # nothing again, whatever was killed
        assert trial.user_attrs["steps"] == len(steps)
        assert (folder_of / "result.json").is_file() == (rate == 9)
        assert len(steps) == total if rate == 9 else total / 5 <= len(steps) < total
        assert rate < 7 or len(steps) >= 3 * total / 5
    table = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["state"].split()[0] for row in table] == ["finished", *["pruned"] * 8]
    assert sorted(int(row["trial"]) for row in table) == list(range(9))


def test_pruning_stops_each_trial_that_is_worse_than_those_before_it(folder):
    total = 300
    space = f"optimizer.lr=0.9,0.8,0.7,0.6;total_steps={total};eval_every_steps=10"
    sweep = Sweep(folder, "grid+prune", space, parallel=1)
    journal = folder / "study.journal"
    sweep.start().until(lambda: journal.is_file() and "pruned_at" in journal.read_text()).kill()
    sweep.start().end()
    assert [trial.state.name for trial in sweep.trials] == ["COMPLETE", *["PRUNED"] * 3]
    assert all(total / 5 <= t.user_attrs["steps"] < total for t in sweep.trials[1:])
    assert sweep.steps()["0000"] == list(range(1, total + 1))


def test_of_random_trials_a_kill_changes_nothing(folder, tmp_path):
    space = "optimizer.lr=log(0.1,1);seed=uniform(20,30)"
    other = tmp_path / "other" / "s"
    other.parent.mkdir()
    undisturbed = Sweep(other, "random", space).start()
    Sweep(folder, "random", space).start().begun(4).kill()
    disturbed = Sweep(folder, "random", space).start().end()
    undisturbed.end()
    assert [t.params for t in disturbed.trials] == [t.params for t in undisturbed.trials]
    assert len({t.params["optimizer.lr"] for t in disturbed.trials}) == 12


def test_a_trial_that_fails_is_told_and_tried_again_by_the_same_command(folder):
    sweep = Sweep(folder, space="optimizer.lr=0.1,0.2;seed=0,13", parallel=1).start().end(2)
    assert "seed 13 cannot be had" in sweep.said
    assert [t.state.name for t in sweep.trials] == ["COMPLETE", "RUNNING", "COMPLETE", "RUNNING"]
    sweep.start().end(2)
    assert [t.number for t in sweep.trials] == [0, 1, 2, 3]


def test_a_sweep_whose_first_trial_fails_ends_with_its_line(folder):
    sweep = Sweep(folder, space="seed=13;optimizer.lr=0.1,0.2,0.3", parallel=1).start().end(2)
    assert sweep.said.splitlines()[-1].endswith("seed 13 cannot be had")
    assert [t.state.name for t in sweep.trials] == ["RUNNING", "WAITING", "WAITING"]
