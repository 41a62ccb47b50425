"""A run that gains nothing ends by itself, after the same step however often it was stopped."""

import csv
import json
import math
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vit_jax.launch import runs

import vit_jax
from tests.digits_run import StopsAt, rows, tiny_config
from tests.parallel.jobs import ROOT, Job
from vit_jax import cli
from vit_jax.errors import RESTART, Stopped, UserError
from vit_jax.ranking import without_gain
from vit_jax.resolution import run_hash

ONE = jax.devices()[:1]
# Nothing is learned, so the first evaluation, at step 2, is the best one: the run ends at step 6.
STILL = {
    "optimizer__lr": 0.0, "eval_every_steps": 2, "stop_after": 2, "total_steps": 20,
    "log_every_steps": 4, "checkpoint__every_steps": 5,
}  # fmt: skip


def evaluations(workdir):
    return [row for row in rows(workdir) if "eval/val/accuracy" in row]


@given(st.lists(st.integers(0, 5).map(lambda n: n / 8), min_size=1))
def test_evaluations_without_a_gain_are_those_after_the_first_best_one(values):
    assert without_gain(values, max) == len(values) - 1 - int(np.argmax(values))
    assert without_gain(values, min) == len(values) - 1 - int(np.argmin(values))
    with_nan = [math.nan, *values, math.nan]
    assert without_gain(with_nan, max) == without_gain(values, max) + 1


def test_it_ends_saved_evaluated_and_with_the_reason(tmp_path, capfd):
    config = tiny_config(
        **STILL, evaluators="classification('digits', 'val', name='at_end', every_steps=100)"
    )
    result = vit_jax.train(config, tmp_path, devices=ONE)
    best = evaluations(tmp_path)[0]["eval/val/accuracy"]
    why = (
        "at step 6 of 20: 2 evaluations without a gain; the best one had accuracy "
        f"{best:.2%}"
    )  # fmt: skip
    assert (result["steps"], result["examples_seen"], result["ended"]) == (6, 6 * 32, why)
    assert result["accuracy"] == evaluations(tmp_path)[-1]["eval/val/accuracy"]
    assert result["eval/at_end/accuracy"] == result["accuracy"]
    assert f"ends {why}" in " ".join(capfd.readouterr().err.split())
    assert (tmp_path / "checkpoints" / "6").is_dir()
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [4, 6]
    assert [row["step"] for row in evaluations(tmp_path)] == [2, 4, 6]
    listed = runs.describe(tmp_path)
    assert (listed["status"], listed["step"], listed["problems"]) == ("done", 6, [])
    # Started again, it is done; with more patience it goes on.
    before = rows(tmp_path)
    again = vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    assert (again["steps"], again["ended"], rows(tmp_path)) == (6, why, before)
    more = vit_jax.train(tiny_config(**STILL | {"stop_after": 3}), tmp_path, devices=ONE)
    assert more["steps"] == 8
    assert "3 evaluations" in more["ended"]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_stopped_and_continued_run_ends_at_the_same_step(tmp_path, step):
    """Where the signal comes before an evaluation, that one is left out, and made up for."""
    config = tiny_config(**STILL | {"log_every_steps": 1})
    vit_jax.train(config, tmp_path / "whole", devices=ONE, quiet=True)
    with pytest.raises(Stopped) as stopped:
        vit_jax.train(config, tmp_path / "cut", devices=ONE, quiet=True, writers=[StopsAt(step)])
    assert stopped.value.code == RESTART
    result = vit_jax.train(config, tmp_path / "cut", devices=ONE, quiet=True)
    assert result["steps"] == 6
    assert evaluations(tmp_path / "cut") == evaluations(tmp_path / "whole")


def test_a_run_that_gains_goes_on_to_its_length(tmp_path):
    config = tiny_config(eval_every_steps=2, stop_after=5, optimizer__lr=0.03)
    result = vit_jax.train(config, tmp_path, devices=ONE, quiet=True)
    assert result["steps"] == 10
    assert "ended" not in result
    assert runs.describe(tmp_path)["status"] == "done"


@pytest.mark.parametrize(("changes", "line"), [
    ({"eval_every_steps": None}, "stop_after=2 counts evaluations before the end, and there are "
     "none: --config.eval_every_steps=N"),
    ({"data__eval__split": ""}, "stop_after=2 counts evaluations before the end"),
    ({"stop_after": 0}, "stop_after is a whole number of at least 1, not 0"),
])  # fmt: skip
def test_without_evaluations_it_is_refused(tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        vit_jax.train(tiny_config(**STILL | changes), tmp_path / "run", devices=ONE, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_study_at_equal_compute_refuses_it(tmp_path, capsys):
    arguments = ["study", "--config=study.py:vit+resnet,digits", f"--workdir={tmp_path / 'study'}",
                 "--epochs=1", "--config.stop_after=2"]  # fmt: skip
    assert cli.main(arguments) == 2
    assert "a study compares at equal compute: leave stop_after out" in capsys.readouterr().err


def test_it_makes_another_run_and_without_it_runs_are_named_as_before():
    plain = tiny_config()
    assert run_hash(tiny_config(stop_after=3)) != run_hash(plain)
    with plain.unlocked():
        hashed = run_hash(plain)
        del plain["stop_after"]
    assert run_hash(plain) == hashed


@pytest.mark.long
def test_a_killed_run_and_one_of_two_processes_end_there_too(tmp_path):
    keys = {**STILL, "log_every_steps": 1, "checkpoint__every_steps": 1}
    with Job(tmp_path / "killed", processes=1, devices=1, **keys) as job:
        job.when("step  3/20").send(signal.SIGKILL, 0).codes()
    for name, processes in (("killed", 1), ("two", 2)):
        with Job(tmp_path / name, processes=processes, devices=1, **keys) as job:
            job.finish()
        assert json.loads((tmp_path / name / "result.json").read_text())["steps"] == 6
    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "two")


@pytest.mark.long
def test_for_a_sweep_such_a_trial_is_finished(tmp_path):
    keys = {key.replace("__", "."): value for key, value in STILL.items()} | {
        "model.name": "vit_mu_patch4_32", "model.image_size": 8, "batch_size": 32,
        "schedule.warmup_steps": 4,
    }  # fmt: skip
    del keys["optimizer.lr"]
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.cli", "sweep", "--config=digits.py", "--study=still",
         f"--workdir={tmp_path}", "--sweep=optimizer.lr=0.0,1e-9",
         *(f"--config.{key}={value}" for key, value in keys.items()),
         "--", "local", "--platform=cpu"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = list(csv.DictReader((tmp_path / "still" / "trials.csv").open()))
    assert {(row["steps"], row["state"]) for row in table} == {("6", "finished")}
