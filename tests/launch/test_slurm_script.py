"""The batch script, shown where no SLURM is; jobs on a real one are tests/cluster's."""

import os
import subprocess
import sys

import pytest

from tests.parallel.jobs import ROOT
from vit_jax import cli

SHAPE = ["--nodes=2", "--processes=4", "--devices=2", "--cpus=8", "--memory=32G",
         "--time-limit=90", "--partition=gpu", "--sbatch=qos=high", "--restarts=3"]  # fmt: skip
TRAIN = ["--", "train", "--config=digits.py"]


@pytest.fixture
def elsewhere(tmp_path):
    """Runs `vit launch slurm` with nothing but Python on the path."""

    def run(*arguments):
        line = [sys.executable, "-m", "vit_jax.cli", "launch", "slurm", f"--dir={tmp_path}/runs"]
        return subprocess.run(
            [*line, *arguments], env=os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


def test_a_dry_run_shows_the_script_where_no_slurm_is(elsewhere, tmp_path):
    shown = elsewhere(*SHAPE, "--dry-run", *TRAIN)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    name = lines[-1].split()[1].rstrip(":")
    logs = f"{tmp_path}/runs/logs/{name}"
    wanted = {
        "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=4", "--cpus-per-task=8", "--mem=64G",
        "--time=90", "--partition=gpu", "--qos=high", "--requeue", "--signal=USR2@120",
        "--open-mode=append", f"--job-name={name}", f"--output={logs}/%j_0_log.out",
        "--wckey=submitit",
    }  # fmt: skip
    assert {line.removeprefix("#SBATCH ") for line in lines if "#SBATCH" in line} == wanted
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--kill-on-bad-exit=0 --cpus-per-task=8" in srun
    assert f"{sys.executable} -P -u -m submitit" in srun  # the current folder is not looked in
    assert lines[-4] == f"exec {sys.executable} -P -m vit_jax.launch.slurm {logs} 4 3"
    assert lines[-1].endswith(f"vit train --config=digits.py --workdir={tmp_path}/runs/{name}")
    assert not (tmp_path / "runs").exists()
    assert (
        subprocess.run(["bash", "-n"], input=shown.stdout, text=True, check=False).returncode == 0
    )


def test_several_commands_are_an_array(elsewhere):
    more = ["--", "train", "--config=digits.py", "--config.seed=1"]
    shown = elsewhere("--at-once=1", "--dry-run", *TRAIN, *more).stdout
    assert "#SBATCH --array=0-1%1" in shown
    assert "%A_%a_0_log.out" in shown


@pytest.mark.parametrize(
    ("codes", "restarts", "ends", "requeued"),
    [
        (["0", "0"], "0", 0, False),
        (["75", "75"], "0", 75, True),
        (["75", "75"], "2", 75, True),
        (["75", "75"], "3", 75, False),  # as often as it may
        (["75", "-9"], "0", 75, True),
        (["75", None], "0", 75, True),  # a node that is gone
        (["75", "2"], "0", 2, False),
    ],
)
def test_the_script_ends_with_going_back_into_the_queue_or_with_the_jobs_code(
    tmp_path, codes, restarts, ends, requeued
):
    stand_in = tmp_path / "scontrol"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/record\n')
    stand_in.chmod(0o755)
    (tmp_path / "codes").mkdir()
    for rank, code in enumerate(codes):
        if code is not None:
            (tmp_path / "codes" / f"7-{restarts}-{rank}").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.launch.slurm", str(tmp_path), "2", "3"], check=False,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                          "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts},
        capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == ends, done.stderr
    record, kept = tmp_path / "record", tmp_path / "codes" / "7"
    assert record.exists() == requeued
    assert kept.exists() != requeued
    assert (record if requeued else kept).read_text().strip() == (
        "requeue 7" if requeued else str(ends)
    )


def test_without_a_scheduler_on_the_path_it_is_one_clear_line(elsewhere, tmp_path):
    told = elsewhere(*TRAIN)
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert "no scheduler here: sbatch is not on the path" in told.stderr
    assert not (tmp_path / "runs").exists()


KUBERNETES = ["kubernetes", "--image=i"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["local"], "what is to be launched stands behind --"),
        (["local", "--config.seed=1", *TRAIN], "--config.seed belongs behind --"),
        (["local", "--", "trian"], "'trian' cannot be launched: did you mean train?"),
        (["local", "--", "train", "--config=none.py"], "no config file 'none.py'"),
        (["local", *TRAIN, "--config.sed=1"], "unknown config key 'sed': did you mean seed"),
        (["local", *TRAIN, *TRAIN], "several commands at once"),
        (["local", "--processes=0", *TRAIN], "--processes is 1 or more, not 0"),
        (["slurm", "--sbatch=qos", *TRAIN], "'qos' is no OPTION=VALUE"),
        (["slurm", "--nodes=2", "--processes=3", *TRAIN], "3 processes cannot be divided"),
        ([*KUBERNETES, *TRAIN], "a container forgets its files: give it a --volume"),
        ([*KUBERNETES, "--volume=runs", *TRAIN], "'runs' is no CLAIM:PATH"),
        ([*KUBERNETES, "--volume=runs:/runs", *TRAIN, "--workdir=a"], "a is on no volume (/runs)"),
        (["tpu", "--image=i", "--volume=/a:/a", "--zone=z", "--accelerator=x9-4", *TRAIN],
         "no runtime known for --accelerator=x9-4"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_nothing_is_made(
    tmp_path, monkeypatch, capsys, arguments, says
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["launch", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
