"""The fault matrix: jobs of two processes hurt at seeded moments, then continued on 1, 2 or 4.

`FAULT_ROUNDS` rounds of each row (`make test-faults`: 20; one otherwise). A round adds a line to
the file `FAULT_TABLE`, where it is set.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from jobs import Job, note

from vit_jax.checkpoint import checksums

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
STEPS, EVERY = 40 if ROUNDS > 1 else 24, 4
KEYS = {
    "total_steps": STEPS, "checkpoint__every_steps": EVERY, "eval_every_steps": 5,
    "checkpoint__keep": 20, "step_timeout": 15.0, "heartbeat_timeout": 6.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    with Job(tmp_path_factory.mktemp("undisturbed") / "run", **KEYS) as job:
        return job.finish()


@pytest.fixture(scope="module")
def undisturbed(whole_run):
    return whole_run.rows


def checkpoints(run):
    return sorted(int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit())


def wait_until(job, rng):
    """A moment of the run: after a step told, and some milliseconds, which fall into steps, saves
    and evaluations alike."""
    at = rng.randrange(2, STEPS - 6)
    job.when(f"step {at:>2}/{STEPS}")
    time.sleep(rng.uniform(0.0, 0.1))  # the moment, not a synchronisation
    return at


def kill_one(job, rng):
    job.send(signal.SIGKILL, 1)
    assert job.codes(0, within=30) == [75]


def kill_coordinator(job, rng):
    job.send(signal.SIGKILL, 0)
    assert job.codes(1, within=30) == [75]


def kill_all(job, rng):
    job.send(signal.SIGKILL, 0, 1)
    assert job.codes() == [-9, -9]


def terminate_one(job, rng):
    job.send(signal.SIGTERM, rng.randrange(2))
    assert job.codes(within=60) in ([75, 75], [0, 0])


def stop_one(job, rng):
    victim = rng.randrange(2)
    job.send(signal.SIGSTOP, victim)
    assert job.codes(1 - victim, within=30)[0] in (75, 76)
    job.send(signal.SIGKILL, victim)
    job.codes()


FAULTS = (kill_one, kill_coordinator, kill_all, terminate_one, stop_one)


def assert_whole(run, told):
    """Every checkpoint that has its name is whole, and no more than the steps since a save (and the
    save that was under way) are lost. Returns the last one."""
    for step in checkpoints(run):
        assert checksums.damages(run / "checkpoints" / str(step)) == []
    last = max(checkpoints(run), default=0)
    assert last >= told - 2 * EVERY
    return last


def assert_continues(run, undisturbed, since, processes):
    """To the end as if nothing had been: examples bit by bit; losses too on the same mesh, and to
    2e-6 over the first 8 steps on another one."""
    with Job(run, processes, **KEYS) as job:
        job.finish()
    assert job.rows.keys() == undisturbed.keys()
    for step, row in job.rows.items():
        wanted = undisturbed[step]
        assert row["examples_hash"] == wanted["examples_hash"]
        if processes == 2 or step <= since:
            assert row["loss"] == wanted["loss"], step
        elif step <= since + 8:
            np.testing.assert_allclose(row["loss"], wanted["loss"], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_after_a_fault_nothing_is_lost_but_the_steps_since_the_last_save(
    undisturbed, tmp_path, fault, number
):
    rng = random.Random(f"{fault.__name__} {number}")
    run = tmp_path / "run"
    with Job(run, **KEYS) as job:
        told = wait_until(job, rng)
        fault(job, rng)
    last = assert_whole(run, told)
    processes = (2, 1, 2, 1, 2, 4, 4)[(number + FAULTS.index(fault)) % 7]
    assert_continues(run, undisturbed, last, processes)
    note(fault.__name__, number, told, last, processes, "continued")


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of a few megabytes."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("this container may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("how", ["full", "read_only"])
def test_a_disk_that_takes_no_more_ends_the_job_with_one_line_and_the_last_save_stays(
    undisturbed, disk, how, number
):
    rng = random.Random(f"{how} {number}")
    run = disk / "run"

    def mount(*arguments):
        subprocess.run(["mount", *map(str, arguments)], check=True)

    folder, ballast = run / "checkpoints", disk / "ballast"
    with Job(run, **KEYS, logs=disk.parent / "job") as job:
        told = wait_until(job, rng)
        if how == "full":
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            os.truncate(ballast, ballast.stat().st_size - 4096 * rng.randrange(1, 30))
        else:
            mount("--bind", folder, folder)
            mount("-o", "remount,bind,ro", folder)
        codes = job.codes(within=60)
        said = "".join(job.said(number) for number in (0, 1))
    assert set(codes) in ({2}, {2, 75}), said
    assert "Traceback" not in said
    assert "vit: error: " in said
    ballast.unlink(missing_ok=True)
    if how == "read_only":
        subprocess.run(["umount", str(folder)], check=True)
    last = assert_whole(run, told)
    assert_continues(run, undisturbed, last, 2)
    note(f"disk_{how}", number, told, last, 2, "continued")


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("how", ["truncated", "bit_flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used_when_asked(
    whole_run, undisturbed, tmp_path, how, number
):
    from vit_jax import cli

    rng = random.Random(f"{how} {number}")
    run = shutil.copytree(whole_run.workdir, tmp_path / "run")
    last = rng.choice(checkpoints(run)[1:])  # as if the run had ended there
    for later in checkpoints(run):
        if later > last:
            shutil.rmtree(run / "checkpoints" / str(later))
    folder = run / "checkpoints" / str(last)
    file = folder / rng.choice([n for n in checksums.files(folder) if n.startswith("state/")])
    data = bytearray(file.read_bytes())
    if how == "truncated":
        data = data[: rng.randrange(len(data))]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    with Job(run, **KEYS) as job:
        assert job.codes() == [2, 2]
        assert f"checkpoints/{last} is damaged: {file.relative_to(folder)}" in job.said()
    assert cli.main(["ckpt", "prune", str(run), "--damaged"]) == 0
    before = max(checkpoints(run), default=0)
    assert before < last
    assert_continues(run, undisturbed, before, 2)
    note(how, number, last, before, 2, "named, then continued")
