"""`vit runs`: a table from files alone, also of runs that live, have stopped, or have damaged
files."""

import json
import os
import shutil
import subprocess
import sys
import time

import jax
import pytest
from vit_jax.launch import runs

import vit_jax
from tests.digits_run import rows, tiny_config
from tests.parallel.jobs import ROOT
from vit_jax import cli
from vit_jax.training.workdir import WorkFolder

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Evaluated twice, saved twice."""
    folder = tmp_path_factory.mktemp("trained") / "digits"
    config = tiny_config(eval_every_steps=5, optimizer__lr=0.03)
    vit_jax.train(config, folder, devices=jax.devices()[:1], quiet=True)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """Of one finished run, and files that are none."""
    shutil.copytree(trained, tmp_path / "study" / "digits")
    (tmp_path / "logs" / "digits").mkdir(parents=True)
    (tmp_path / "logs" / "digits" / "0.log").write_text("…")
    return tmp_path


def listed(folder, capsys):
    assert cli.main(["runs", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_finished_run_tells_what_its_rows_and_its_result_do(folder, capsys):
    run = folder / "study" / "digits"
    result = json.loads((run / "result.json").read_text())
    measured = [row["eval/val/accuracy"] for row in rows(run) if "eval/val/accuracy" in row]
    assert len(measured) == 2
    spent = result["goodput"]
    assert listed(folder, capsys) == [{
        "run": str(run), "status": "done", "step": 10, "total_steps": 10,
        "metric": "eval/val/accuracy", "best": max(measured),
        "goodput": round(spent["step"] / sum(spent.values()), 4), "problems": [],
    }]  # fmt: skip
    assert cli.main(["runs", str(folder)]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:3] == ["study/digits", "done", "10/10"]
    assert f"{max(measured):.2%}" in line
    assert listed(run, capsys)[0]["status"] == "done"


def test_running_stopped_and_begun_are_told_apart(folder, capsys):
    run = folder / "study" / "digits"
    (run / "result.json").unlink()
    with WorkFolder(run):
        assert listed(folder, capsys)[0]["status"] == "running"
    assert listed(folder, capsys)[0]["status"] == "stopped"
    shutil.rmtree(run / "checkpoints")
    assert listed(folder, capsys)[0]["status"] == "begun"


def test_a_run_that_was_made_longer_is_not_done(folder, capsys):
    run = folder / "study" / "digits"
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"total_steps": 20}))
    (told,) = listed(folder, capsys)
    assert (told["status"], told["step"], told["total_steps"]) == ("stopped", 10, 20)


def cut(file):
    file.write_text(file.read_text()[:-20])


def remove(file):
    file.unlink()


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("result.json", cut, ["result.json cannot be read"]),
        ("config.json", cut, ["config.json cannot be read"]),
        ("config.json", remove, ["no config.json"]),
        ("metrics.jsonl", cut, []),  # as it is while a row is written
        ("metrics.jsonl", remove, []),
        ("checkpoints/10/about/metadata", remove, []),
    ],
)
def test_a_file_that_is_half_written_or_missing_is_said(folder, capsys, name, damage, says):
    damage(folder / "study" / "digits" / name)
    (told,) = listed(folder, capsys)
    assert [problem[: len(line)] for problem, line in zip(told["problems"], says, strict=True)] == (
        says
    )
    assert told["step"] == 10
    assert cli.main(["runs", str(folder)]) == 0
    out = capsys.readouterr().out
    assert all(line in out for line in says)


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "config.json"])
def test_nobody_waits_for_a_pipe(folder, capsys, name):
    run = folder / "study" / "digits"
    (run / name).unlink()
    os.mkfifo(run / name)
    assert listed(folder, capsys)[0]["step"] == 10


def test_looking_does_not_keep_a_run_from_starting(folder):
    run = folder / "study" / "digits"
    looks = subprocess.Popen([sys.executable, "-c", (
        "import sys; from pathlib import Path; from vit_jax.launch import runs\n"
        "while True: runs.locked(Path(sys.argv[1]))"), str(run)], cwd=ROOT)  # fmt: skip
    try:
        for _ in range(200):
            with WorkFolder(run):
                pass
    finally:
        looks.kill()
        looks.wait()


def test_a_thousand_runs_are_listed_in_seconds_without_jax(folder):
    run = folder / "study" / "digits"
    for number in range(1000):
        copy = folder / "many" / str(number)
        (copy / "checkpoints" / "10").mkdir(parents=True)
        for name in ("config.json", "result.json", "metrics.jsonl"):
            (copy / name).write_bytes((run / name).read_bytes())
    began = time.monotonic()
    found = [runs.describe(one) for one in runs.find(folder / "many")]
    assert time.monotonic() - began < 10
    assert len(found) == 1000
    assert {one["status"] for one in found} == {"done"}
    code = (
        "import sys; from vit_jax import cli; cli.main(sys.argv[1:]); print('jax' in sys.modules)"
    )
    line = [sys.executable, "-c", code, "runs", str(run)]
    told = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "False"


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path, capsys):
    assert cli.main(["runs", str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
