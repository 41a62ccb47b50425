"""`vit sweep` as its user has it: real trials of the digits, and what cannot work in one line."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from vit_jax import cli, recipe
from vit_jax.config import flat
from vit_jax.sweeping import space, study

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
TINY = {
    "batch_size": 32, "total_steps": 12, "eval_every_steps": 2, "checkpoint.every_steps": 2,
    "model.name": "vit_mu_patch4_32", "model.image_size": 8, "model.num_layers": 2,
    "schedule.warmup_steps": 4,
}  # fmt: skip
OVERRIDES = [f"--config.{key}={value}" for key, value in TINY.items()]


def line(workdir, *more):
    return ["sweep", "--config=digits.py", "--study=rates", f"--workdir={workdir}", *more]


def refused(arguments, capsys):
    """The one line that a command ends with."""
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("vit: error: ")
    return last


# -- real trials ---------------------------------------------------------------------------


def test_a_sweep_of_digits_killed_in_the_middle_ends_with_its_trials_and_a_recipe(tmp_path):
    arguments = line(tmp_path, "--sweep=optimizer.lr=1e-3,4e-3", *OVERRIDES, "--", "local",
                     "--platform=cpu", "--devices=2")  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-P", "-m", "vit_jax.cli", *arguments]
    folder, here = tmp_path / "rates", tmp_path / "here"
    here.mkdir()
    for name in ("queue", "random"):  # no trial takes them for the standard library's
        (here / f"{name}.py").write_text("raise SystemExit('the module of the current folder')\n")
    sweep = subprocess.Popen(command, env=environment, cwd=here, stderr=subprocess.PIPE)
    end = time.monotonic() + 240
    while not (folder / "0000" / "checkpoints" / "2").is_dir():
        assert sweep.poll() is None, sweep.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    done = subprocess.run(
        command, env=environment, cwd=here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done: 2 trials; best: trial ")

    table = list(csv.DictReader((folder / "trials.csv").open()))
    assert sorted(row["trial"] for row in table) == ["0", "1"]
    assert {(row["steps"], row["state"]) for row in table} == {("12", "finished")}
    for row in table:
        result = json.loads((folder / f"000{row['trial']}" / "result.json").read_text())
        assert float(row["eval/val/accuracy"]) == pytest.approx(result["accuracy"], abs=1e-6)
        rows = (folder / f"000{row['trial']}" / "metrics.jsonl").read_text().splitlines()
        steps = [r["step"] for r in map(json.loads, rows) if "eval/val/accuracy" in r]
        assert steps == list(range(2, 13, 2))
    best = table[0]
    assert float(best["eval/val/accuracy"]) == max(float(r["eval/val/accuracy"]) for r in table)
    # best.py is a recipe of exactly that trial.
    given = recipe.load("digits.py")
    recipe.override(given, {k: str(v) for k, v in TINY.items()})
    recipe.override(given, {"optimizer.lr": best["optimizer.lr"]})
    assert flat(recipe.load(str(folder / "best.py"))) == flat(given)
    page = (folder / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.count("<svg") >= 2


# -- what cannot work ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sweep=optimizer.lrr=1,2"], "unknown config key 'optimizer.lrr'"),
        (["--sweep=optimizer.lr=log(1e-4,1e-2)"], "searched in a range: list values for a grid"),
        (["--sweep=seed=0,1", "--method=tpe"], "--method=tpe needs --trials=N"),
        (["--sweep=seed=0,1", "--trials=3"], "here are 2 points"),
        (["--sweep=seed=uniform(0,9)", "--method=random", "--trials=0"], "--trials is 1 or more"),
        (["--sweep=seed=0,1", "--parallel=0"], "--parallel is 1 or more, not 0"),
        (["--sweep=seed=0,1", "--config.seed=3"], "seed is searched and also set"),
        (["--sweep=seed=0,1", "--config.data.eval.split="], "set data.eval.split"),
        (["--sweep=seed=0,1", "--method=halving", "--config.eval_every_epochs=None"],
         "needs evaluations on the way"),
        (["--sweep=seed=0,1", "--storage=nosql://x"], "storage nosql://x: "),
        (["--sweep=seed=0,1", "--storage=sqlite:////not/there/x.db"], "unable to open"),
        (["--sweep=seed=0,1", "--", "kubernetes"], "stands local or slurm"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_before_anything_is_written(arguments, told, tmp_path, capsys):
    assert told in refused(line(tmp_path, *arguments), capsys)
    assert not list(tmp_path.rglob("*"))


def test_a_study_name_is_no_path(tmp_path, capsys):
    told = refused(["sweep", "--config=digits.py", "--study=a/b", f"--workdir={tmp_path}"], capsys)
    assert "--study is a plain name, not 'a/b'" in told


def begun(folder, **keys):
    """A study of digits' rates, of a config that differs by `keys`, of which nothing has run."""
    config = recipe.load("digits.py")
    recipe.override(config, keys)
    search = study.Search(space.read("seed=0,1", "digits.py", config), "grid",
                          "eval/val/accuracy", 2, False)  # fmt: skip
    with study.locked(folder):
        study.begin("rates", study.opened(None, folder), search, study.identity(config, search))


def test_a_study_of_another_config_is_refused_key_by_key(tmp_path, capsys):
    begun(tmp_path / "rates", batch_size="64")
    before = (tmp_path / "rates" / study.JOURNAL).read_bytes()
    told = refused(line(tmp_path, "--sweep=seed=0,1"), capsys)
    assert "study rates is of another config or search (batch_size: 64 there, None here)" in told
    assert "choose another --study" in told
    told = refused(line(tmp_path, "--sweep=seed=0,2", "--config.batch_size=64"), capsys)
    assert "space: 'seed=0,1' there, 'seed=0,2' here" in told
    assert (tmp_path / "rates" / study.JOURNAL).read_bytes() == before


def test_a_study_that_a_living_sweep_holds_is_refused(tmp_path, capsys):
    with study.locked(tmp_path / "rates"):
        told = refused(line(tmp_path, "--sweep=seed=0,1"), capsys)
    assert f"is locked by a living sweep (process {os.getpid()})" in told


def test_a_database_that_another_holds_is_told_of(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/sweeps.db?timeout=0.2"
    optuna.create_study(study_name="other", storage=url)
    holder = sqlite3.connect(tmp_path / "sweeps.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    told = refused(line(tmp_path, "--sweep=seed=0,1", f"--storage={url}"), capsys)
    holder.close()
    assert "database is locked" in told
    assert not (tmp_path / "rates").exists()


def test_a_report_of_no_study_names_those_there_are(tmp_path, capsys):
    told = refused(["sweep", "report", "--study=rates", f"--workdir={tmp_path}"], capsys)
    assert f"no study in {tmp_path}/rates" in told
    url = f"sqlite:///{tmp_path}/sweeps.db"
    optuna.create_study(study_name="rats", storage=url)
    told = refused(
        ["sweep", "report", "--study=rates", f"--workdir={tmp_path}", f"--storage={url}"], capsys
    )
    assert "no study 'rates'" in told
    assert "did you mean rats?" in told


def test_half_a_record_that_a_power_cut_left_is_dropped(tmp_path):
    folder = tmp_path / "rates"
    begun(folder)
    journal = folder / study.JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":5,"wor')
    begun(folder)
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())
