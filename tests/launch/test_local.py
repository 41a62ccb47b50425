"""`vit launch local`: real processes, which are killed and stopped from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vit_jax.launch import local
from vit_jax.launch.job import Job

from tests.parallel.jobs import PATIENCE, ROOT, TINY

pytestmark = pytest.mark.long

LONG = {"total_steps": 36, "checkpoint.every_steps": 12}


def train(workdir, **changes):
    keys = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    overrides = [f"--config.{key}={value}" for key, value in keys.items()]
    return ("train", "--config=digits.py", f"--workdir={workdir}", *overrides)


class Launched:
    """`vit launch local … -- train …`, and the processes that it has."""

    def __init__(self, *options, command):
        line = [sys.executable, "-m", "vit_jax.cli", "launch", "local", "--platform=cpu", *options]
        self.process = subprocess.Popen(
            [*line, "--", *command], env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.out = ""

    @property
    def children(self):
        """In the order of their starts."""
        of = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return sorted(map(int, of.read_text(encoding="utf-8").split()))

    def when(self, text):
        for line in self.process.stdout:
            self.out += line
            if text in line:
                return self
        raise AssertionError(self.out + self.process.stderr.read())

    def end(self):
        out, err = self.process.communicate(timeout=2 * PATIENCE)
        self.out += out
        return self.process.returncode, err

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()


def until(true):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def gone(pid):
    """Also where whoever has inherited it has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0] == "Z"
    except FileNotFoundError:
        return True


def rows(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    keys = ("loss", "grad_norm", "examples_hash")
    return {row["step"]: [row[key] for key in keys] for row in lines if "loss" in row}


def final(workdir):
    """What a result says, without times."""
    result = json.loads((workdir / "result.json").read_text())
    told = ("accuracy", "steps", "examples_seen", "num_params", "config_hash", "loss", "grad_norm")
    return {key: result[key] for key in told}


@pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="make test-cluster: two minutes")
def test_two_processes_of_four_devices_one_killed_all_stop_start_again_and_end_the_same(tmp_path):
    shape = ("--processes=2", "--devices=4")
    with Launched(*shape, command=train(tmp_path / "undisturbed", **LONG)) as job:
        code, err = job.end()
    assert code == 0, err  # a machine that does much else may have let it start again
    assert "2 processes, 8 devices" in job.out
    with Launched(*shape, command=train(tmp_path / "killed", **LONG)) as job:
        until((tmp_path / "killed" / "checkpoints" / "12").exists)
        before = job.children
        os.kill(before[1], signal.SIGKILL)
        job.when("continues ")
        assert all(map(gone, before))
        assert not set(before) & set(job.children)
        code, err = job.end()
    assert code == 0
    assert "process 1 was killed (signal 9)" in err
    assert "restart 1 of 10" in err
    assert rows(tmp_path / "killed") == rows(tmp_path / "undisturbed")
    assert final(tmp_path / "killed") == final(tmp_path / "undisturbed")
    assert len(rows(tmp_path / "killed")) == 36
    names = sorted(log.name for log in (tmp_path / "logs").rglob("*.log"))
    assert names == ["0.log", "1.log"]  # both runs have one config, and so one name


def test_sigterm_saves_and_the_same_line_again_continues_under_the_name_of_its_config(tmp_path):
    command = [a for a in train("", total_steps=4000, log_every_steps=10,
                                checkpoint__every_steps=4000) if "workdir" not in a]  # fmt: skip
    with Launched(f"--dir={tmp_path}", command=command) as job:
        job.when("step   10/")
        job.process.send_signal(signal.SIGTERM)
        code, err = job.end()
    assert code == 75
    assert len(err.splitlines()) == 1  # where the run is
    (run,) = [path for path in tmp_path.iterdir() if path.name != "logs"]
    assert run.name.startswith("digits-")
    (saved,) = [path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    with Launched(f"--dir={tmp_path}", command=command) as job:
        job.when(f"continues {run}/checkpoints/{saved} ")
        # The launcher is gone without a word: its process saves all the same.
        job.when("step ")
        (child,) = job.children
        job.process.kill()
        until(lambda: gone(child))
    steps = {int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()}
    assert max(steps) > int(saved)


def test_a_mistake_is_not_tried_again(tmp_path):
    with Launched(command=train(tmp_path / "run", optimizer__lr=-1.0)) as job:
        code, err = job.end()
    assert code == 2
    assert job.out.count("vit: error: optimizer.lr is a number of at least 0, not -1.0") == 1
    assert "process 0 ended with 2; logs: " in err
    assert not (tmp_path / "run").exists()


def test_restarts_end_and_a_running_job_says_so(tmp_path):
    said = []
    job = Job("a", train(tmp_path / "run", total_steps=100_000), tmp_path / "logs", restarts=1,
              platform="cpu")  # fmt: skip
    running = local.start(job, said.append)
    pids = []
    for _ in range(2):
        until(lambda: running.poll() is None and running._processes[0].pid not in pids)
        pids.append(running._processes[0].pid)
        os.kill(pids[-1], signal.SIGKILL)
    assert running.wait() == 75
    assert running.poll() == 75
    assert [line.partition("; ")[2] for line in said] == ["restart 1 of 1", f"logs: {job.logs}"]


def test_an_abort_at_every_start_is_not_tried_again(tmp_path):
    """As by C++ that gets no memory (std::bad_alloc)."""
    said = []
    job = Job("a", train(tmp_path / "run"), tmp_path / "logs", restarts=10, platform="cpu")
    running = local.start(job, said.append)
    pids = []
    for _ in range(2):
        until(lambda: running.poll() is None and running._processes[0].pid not in pids)
        pids.append(running._processes[0].pid)
        os.kill(pids[-1], signal.SIGABRT)
    assert running.wait() == 2
    assert running.restarts == 1
    assert "aborts at every start, most likely for want of memory" in said[1]


@pytest.mark.parametrize(
    ("visible", "fields", "wanted"),
    [
        ("0,1,2,3", {"processes": 2}, ["0,1", "2,3"]),
        ("4,6,7", {"processes": 2, "devices": 1}, ["4", "6"]),
    ],
)
def test_gpus_are_divided(monkeypatch, tmp_path, visible, fields, wanted):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    lines = local.shown(Job("a", ("train",), tmp_path, **fields))
    assert [f"CUDA_VISIBLE_DEVICES={one} " in line for one, line in
            zip(wanted, lines, strict=True)] == [True] * len(wanted)  # fmt: skip
