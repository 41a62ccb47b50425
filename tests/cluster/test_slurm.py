"""`vit launch slurm` on a real SLURM of one node. SLURM lets a job that goes back into the queue
wait for two minutes; what else there is to try is tried in the meantime."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_here import Slurm
from vit_jax.launch import slurm as launcher

from tests.parallel.jobs import ROOT, TINY

PATIENCE = 600  # seconds
LONG = {"total_steps": 300, "checkpoint.every_steps": 250, "log_every_steps": 10}
TWO = ("--processes=2", "--devices=2", "--platform=cpu", "--time-limit=30")
ONE = ("--platform=cpu", "--time-limit=30")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def train(**changes):
    """What stands behind --."""
    keys = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return ["--", "train", "--config=digits.py", *(f"--config.{k}={v}" for k, v in keys.items())]


def vit(slurm, *arguments):
    line = [sys.executable, "-m", "vit_jax.cli", *map(str, arguments)]
    return subprocess.run(
        line, env=slurm.environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, timeout=PATIENCE, cwd=ROOT,
    )  # fmt: skip


class Submitted:
    """A job, from what `vit launch slurm` says of it."""

    def __init__(self, slurm, folder, *arguments):
        self.slurm = slurm
        told = vit(slurm, "launch", "slurm", f"--dir={folder}", *arguments)
        assert told.returncode == 0, told.stderr
        name, _, rest = told.stdout.partition(": job ")
        self.number, _, log = rest.strip().partition("; logs: ")
        self.run, self.log = folder / name, Path(log)

    def until(self, true):
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, self.said
            time.sleep(0.2)

    @property
    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    @property
    def state(self):
        return self.slurm.say("squeue", "-h", "-j", self.number, "-o", "%T", check=False).strip()

    def told(self):
        """The number of times that each step was told, and its row."""
        rows = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: (row["loss"], row["examples_hash"]) for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return Submitted(slurm, folder, *TWO, "--wait", *train(**LONG))


@pytest.fixture(scope="module")
def signalled(slurm, undisturbed, tmp_path_factory):
    """Jobs that were sent signals in the middle: SIGTERM of two processes, SIGUSR1 of one."""
    folder = tmp_path_factory.mktemp("signalled")
    jobs = {}
    for signal, shape, seed in (("TERM", TWO, 0), ("USR1", ONE, 1)):
        job = Submitted(slurm, folder, *shape, *train(**LONG, seed=seed))
        job.until(lambda job=job: "step  50/" in job.said)
        slurm.say("scancel", f"--signal={signal}", job.number)
        job.until(lambda job=job: job.state == "PENDING")
        jobs[signal] = job
    return jobs


def test_two_tasks_find_each_other_train_and_save(undisturbed):
    assert "2 processes, 4 devices" in undisturbed.said
    assert json.loads((undisturbed.run / "result.json").read_text())["steps"] == 300
    assert (undisturbed.run / "checkpoints" / "300").is_dir()


@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_a_signal_saves_and_puts_the_job_back_into_the_queue(signalled, signal):
    job = signalled[signal]
    (step,) = [int(p.name) for p in (job.run / "checkpoints").iterdir() if p.name.isdigit()]
    assert 50 <= step < 300
    assert f"stopped at step {step}, saved" in job.said
    assert "back into the queue, restart 1 of 10" in job.said


def test_starting_what_is_in_the_queue_finds_it(slurm, signalled):
    job = signalled["TERM"]
    again = Submitted(slurm, job.run.parent, *TWO, *train(**LONG))
    assert again.number == job.number


def test_an_array_of_four_trials_completes(slurm, signalled, tmp_path):
    trials = [part for seed in range(4) for part in train(seed=seed)]
    told = vit(
        slurm, "launch", "slurm", f"--dir={tmp_path}", "--at-once=2", *ONE, "--wait", *trials
    )
    assert told.returncode == 0, told.stderr
    numbers = [line.split(": job ")[1].partition(";")[0] for line in told.stdout.splitlines()]
    assert {number.partition("_")[0] for number in numbers} == {numbers[0].partition("_")[0]}
    assert [number.partition("_")[2] for number in numbers] == ["0", "1", "2", "3"]
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert len({result["config_hash"] for result in results}) == 4
    listed = json.loads(vit(slurm, "runs", tmp_path, "--json").stdout)
    assert [run["status"] for run in listed] == ["done"] * 4


def test_a_mistake_ends_the_job_with_its_code(slurm, signalled, tmp_path):
    told = vit(slurm, "launch", "slurm", f"--dir={tmp_path}", *TWO, "--wait",
               *train(optimizer__lr=-1.0))  # fmt: skip
    assert told.returncode == 2
    log = Path(told.stdout.strip().partition("; logs: ")[2]).read_text(encoding="utf-8")
    assert "vit: error: optimizer.lr is a number of at least 0, not -1.0" in log
    assert "back into the queue" not in log


def test_an_unknown_partition_is_one_clear_line_and_leaves_nothing(slurm, tmp_path):
    folder = tmp_path / "runs"
    told = vit(slurm, "launch", "slurm", f"--dir={folder}", "--partition=nope", *ONE, *train())
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert "invalid partition specified: nope" in told.stderr
    assert told.stderr.endswith("partitions here: main\n")
    assert not folder.exists()


def test_what_is_submitted_is_the_script_of_a_dry_run(slurm, signalled):
    job = signalled["USR1"]
    submitted = (job.log.parent / f"{job.number}_submission.sh").read_text()
    shown = vit(slurm, "launch", "slurm", f"--dir={job.run.parent}", *ONE, "--dry-run",
                *train(**LONG, seed=1)).stdout  # fmt: skip
    assert shown.startswith(submitted.rstrip())


def test_after_its_wait_the_job_ends_with_the_undisturbed_curve(slurm, undisturbed, signalled):
    for job in signalled.values():
        job.until(lambda job=job: not job.state)
        assert json.loads((job.run / "result.json").read_text())["steps"] == 300
        assert (job.log.parent / launcher.CODES / job.number).read_text() == "0"
        assert "continues " in job.said
    assert signalled["TERM"].told() == undisturbed.told()
    assert len(undisturbed.told()) == 30
