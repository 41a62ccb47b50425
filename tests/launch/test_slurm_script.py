"""The batch script, shown where no SLURM is; jobs on a real one are tests/cluster's."""

import ast
import os
import subprocess
import sys

import pytest
from vit_jax.launch import slurm
from vit_jax.launch.job import Job

from tests.parallel.jobs import ROOT
from vit_jax import cli
from vit_jax.errors import UserError

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
    }  # fmt: skip
    assert {line.removeprefix("#SBATCH ") for line in lines if "#SBATCH" in line} == wanted
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--kill-on-bad-exit=0 --cpus-per-task=8" in srun
    # -P: the current folder is not looked in
    assert f"{sys.executable} -P -u -m vit_jax.launch.slurm {logs} " in srun
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


# SLURM's commands on one machine: each job runs at once, in a folder of its own.
SBATCH = """#!/bin/bash
[ "$1" = --parsable ] || exit 9
if grep -q partition=nope "$2"; then
  echo "sbatch: error: invalid partition specified: nope" >&2
  echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
  exit 1
fi
range=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$2")
for index in $(seq 0 "${range:-0}"); do
  [ -z "$range" ] || export SLURM_ARRAY_JOB_ID=41 SLURM_ARRAY_TASK_ID=$index
  SLURM_JOB_ID=$((41 + index)) bash "$2" >> "$STANDIN/batch.out" 2>&1 < /dev/null
done
echo "41;here"
"""
SRUN = """#!/bin/bash
while [ "${1:0:2}" = -- ]; do [ "$1" = --output ] && shift; shift; done
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & done
if [ -n "$SIGNAL" ]; then
  until [ "$(wc -l < "$STANDIN/ran")" = 2 ]; do sleep 0.1; done 2> /dev/null
  kill "-$SIGNAL" $(jobs -p)
fi
wait
"""
VIT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
keys = ("JAX_PLATFORMS", "JAX_LOCAL_DEVICE_IDS", "A")
with open(os.environ["STANDIN"] + "/ran", "a") as file:
    file.write(repr((sys.argv[1:], [os.environ.get(key) for key in keys])) + "\\n")
if os.environ.get("SIGNAL"):
    time.sleep(30)
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def slurm_stand_in(tmp_path, monkeypatch):
    """Stand-ins for sbatch, srun, squeue and scontrol, and for the processes that a job runs."""
    stand_ins = {"sbatch": SBATCH, "srun": SRUN, "squeue": "#!/bin/sh\n",
                 "sinfo": "#!/bin/sh\necho main\n",
                 "scontrol": '#!/bin/sh\necho "$@" >> "$STANDIN/requeued"\n'}  # fmt: skip
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "vit.py").write_text(VIT)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfrom vit_jax.launch.job import Job\nJob.command = property(lambda job: "
        f"[sys.executable, {str(tmp_path / 'vit.py')!r}, *job.arguments])\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


def ran(folder):
    """(arguments, [JAX_PLATFORMS, JAX_LOCAL_DEVICE_IDS, A]) of each process that was started."""
    return sorted(map(ast.literal_eval, (folder / "ran").read_text().splitlines()))


def test_each_process_gets_its_words_its_devices_and_its_environment(slurm_stand_in, tmp_path):
    word = 'it\'s $(touch RAN) \\"é\\"'
    jobs = [Job(f"j{n}", ("train", word, str(n)), tmp_path / "logs", processes=2, devices=4,
                environment={"A": f"a {n}\n"}) for n in range(2)]  # fmt: skip
    running = slurm.start(jobs)
    assert [one.number for one in running] == ["41_0", "41_1"]
    assert [one.wait() for one in running] == [0, 0]
    assert ran(tmp_path) == [
        (["train", word, str(n)], [None, gpus, f"a {n}\n"])
        for n in range(2) for gpus in ("0,1,2,3", "4,5,6,7")
    ]  # fmt: skip
    assert (tmp_path / "logs" / "41_submission.sh").is_file()
    assert not list((tmp_path / "logs").glob(".*"))


@pytest.mark.parametrize("name", ["USR1", "USR2", "TERM"])
def test_a_signal_of_slurm_saves_and_requeues(slurm_stand_in, tmp_path, monkeypatch, name):
    monkeypatch.setenv("SIGNAL", name)
    slurm.start([Job("j", ("train",), tmp_path / "logs", processes=2, platform="cpu")])
    assert (tmp_path / "requeued").read_text() == "requeue 41\n"
    assert "back into the queue, restart 1 of 10" in (tmp_path / "batch.out").read_text()
    assert [environment[0] for _, environment in ran(tmp_path)] == ["cpu", "cpu"]


def test_an_error_of_the_command_is_the_jobs_code(slurm_stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("CODE", "2")
    (running,) = slurm.start([Job("j", ("train",), tmp_path / "logs", processes=2)])
    assert (running.wait(), (tmp_path / "requeued").exists()) == (2, False)


def test_what_slurm_refuses_is_one_line_and_leaves_nothing(slurm_stand_in, tmp_path):
    job = Job("j", ("train",), tmp_path / "runs" / "logs")
    with pytest.raises(UserError) as error:
        slurm.start([job], {"partition": "nope"})
    assert str(error.value) == (
        "SLURM refused the job: invalid partition specified: nope; Batch job submission failed: "
        "Invalid partition name specified; partitions here: main"
    )
    assert not (tmp_path / "runs").exists()


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
