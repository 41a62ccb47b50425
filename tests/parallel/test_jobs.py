"""Jobs of several processes tell the numbers of one, stop together, and come back."""

import json
import os
import re
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from jobs import PATIENCE, ROOT, Job, free_port
from made_images import folder_of_images

from vit_jax.checkpoint import checksums

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process on one device: what every job must tell."""
    with Job(tmp_path_factory.mktemp("alone") / "run", processes=1, devices=1) as job:
        return job.finish().rows


def assert_same(rows, wanted, rtol=2e-6):
    assert rows.keys() == wanted.keys()
    for step, row in rows.items():
        assert row["examples_hash"] == wanted[step]["examples_hash"], step
        np.testing.assert_allclose(row["loss"], wanted[step]["loss"], rtol=rtol, atol=rtol)


FAULTS = int(os.environ.get("FAULT_ROUNDS", "1")) > 1  # make test-faults
MESHES = [
    (1, {"data": 2}), (2, {"data": 1, "fsdp": 4}), (4, {"data": 1, "fsdp": 2, "tensor": 4}),
]  # fmt: skip
if FAULTS:
    MESHES += [
        (2, {"data": 4}), (4, {"data": 2, "fsdp": 4}), (4, {"data": 8}),
        (2, {"data": 1, "fsdp": 1, "tensor": 4}),
    ]  # fmt: skip


@pytest.mark.parametrize(("processes", "mesh"), MESHES, ids=str)
def test_losses_and_examples_are_those_of_one_process(alone, tmp_path, processes, mesh):
    sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    with Job(tmp_path / "run", processes, **sizes) as job:
        job.finish()
    assert_same(job.rows, alone)


def test_a_mistake_that_one_process_sees_is_told_by_all_of_them(tmp_path):
    with Job(tmp_path / "run", optimizer__lr=-1.0) as job:
        assert job.codes() == [2, 2]
    for number in (0, 1):
        line = job.said(number).splitlines()[-1]
        assert line == "vit: error: optimizer.lr is a number of at least 0, not -1.0"
    assert not (tmp_path / "run").exists()


LEAVES = """
import os, sys, time
from vit_jax.parallel import runtime
number = int(sys.argv[2])
runtime.start(runtime.Job("command line", sys.argv[1], 2, number), 5)
runtime.leave_together()
if number == 1:
    sys.stdin.read()  # until the other one, which has the pipe's end, is gone
    time.sleep(1)  # in which JAX would hear of it
os._exit(2)
"""


def test_one_that_leaves_later_keeps_its_code():
    address = f"127.0.0.1:{free_port()}"
    start = [sys.executable, "-c", LEAVES, address]
    end, held = os.pipe()
    first = subprocess.Popen([*start, "0"], cwd=ROOT, pass_fds=[held])
    second = subprocess.Popen([*start, "1"], cwd=ROOT, stdin=end)
    os.close(held)
    os.close(end)
    assert [first.wait(PATIENCE), second.wait(PATIENCE)] == [2, 2]


def test_what_one_process_alone_sees_is_told_by_all_of_them_with_its_number(tmp_path):
    with Job(tmp_path / "run", only={1: ["--config.optimizer.clip_norm=-1"]}) as job:
        assert job.codes() == [2, 2]
    for number in (0, 1):
        line = job.said(number).splitlines()[-1]
        refusal = "optimizer.clip_norm is a number of at least 0, not -1.0"
        assert line == f"vit: error: process 1: {refusal}"


@pytest.mark.parametrize("told", [0, 1] if FAULTS else [0])
def test_sigterm_to_one_saves_the_same_step_everywhere_also_while_starting_again(tmp_path, told):
    keys = {"total_steps": 2000, "checkpoint__every_steps": 1000}
    steps = []
    for line, victim in ("step    9/", told), ("continues ", 1 - told):
        with Job(tmp_path / "run", **keys) as job:
            job.when(line).send(signal.SIGTERM, victim)
            assert job.codes() == [75, 75]
            stops = {job.said(n).split("stopped at step ")[1].split(",")[0] for n in (0, 1)}
        steps += map(int, stops)
    assert len(steps) == 2
    assert 1 <= steps[1] - steps[0] <= 10
    saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved == [str(steps[1])]  # the last one stays


def test_ctrl_c_stops_all_and_keeps_its_code(tmp_path):
    keys = {"total_steps": 2000, "checkpoint__every_steps": 1000}
    with Job(tmp_path / "run", **keys) as job:
        job.when("step    9/").send(signal.SIGINT, 1)
        assert job.codes() == [75, 130]


def test_processes_that_do_not_share_the_work_folder_are_told_so(tmp_path):
    with Job(tmp_path / "run", only={1: [f"--workdir={tmp_path}/other"]}) as job:
        assert job.codes() == [2, 2]
        assert "processes 1 do not see the files that process 0 writes" in job.said(1)


def test_processes_whose_copies_of_the_data_differ_are_told_so(tmp_path):
    for copy, name in (("first", "3.jpg"), ("second", "other.jpg")):
        data = folder_of_images(tmp_path / copy, {"train/a": 20, "train/b": 20, "val/a": 4})
        (data / "train/a/3.jpg").rename(data / "train/a" / name)
    copies = {
        number: [f"--config.data.train.source=folder:{tmp_path}/{copy}"]
        for number, copy in enumerate(("first", "second"))
    }
    keys = {
        "model__channels": 3,
        "data__train__pipeline": "decode|resize",
        "data__eval__pipeline": "decode|resize",
    }
    with Job(tmp_path / "run", only=copies, **keys) as job:
        assert job.codes() == [2, 2]
    line = job.said(0).splitlines()[-1]
    assert "process 1 reads other data than process 0: data.train.source folder:" in line
    assert "has as many images, 40, but other names or labels" in line
    assert not (tmp_path / "run").exists()


def test_too_many_non_finite_steps_end_all_with_77(tmp_path):
    keys = {"optimizer__lr": 1e30, "max_skipped_steps": 3, "total_steps": 200}
    with Job(tmp_path / "run", **keys) as job:
        assert job.codes() == [77, 77]


def test_a_stopped_process_is_noticed_by_the_watchdog(tmp_path):
    keys = {"total_steps": 100_000, "step_timeout": 4.0, "heartbeat_timeout": 100.0}
    with Job(tmp_path / "run", **keys, checkpoint__every_steps=50_000) as job:
        job.when("step     40/")
        job.send(signal.SIGSTOP, 1)
        assert job.codes(0, within=30) == [76]
        assert "stacks of all threads" in job.said(0)
        assert "block_until_ready" in job.said(0) or "loop.py" in job.said(0)
        job.send(signal.SIGCONT, 1)
        assert job.codes(1, within=30) in ([75], [76])


def test_a_silent_process_counts_as_dead_after_the_heartbeat_timeout(tmp_path):
    keys = {"total_steps": 100_000, "heartbeat_timeout": 5.0}
    with Job(tmp_path / "run", **keys, checkpoint__every_steps=50_000) as job:
        job.when("/100000")
        job.send(signal.SIGSTOP, 1)
        assert job.codes(0, within=30) == [75]


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_alone_cannot_write_ends_the_job_with_a_line_each(tmp_path, victim):
    keys = {"total_steps": 400, "checkpoint__every_steps": 1, "heartbeat_timeout": 5.0}
    with Job(tmp_path / "run", **keys) as job:
        job.when("step  15/400")
        limit = 1 << 16  # bytes a file: more than the logs have, less than a part of the state
        resource.prlimit(job.processes[victim].pid, resource.RLIMIT_FSIZE, (limit, limit))
        codes = job.codes(within=60)
        assert codes[victim] == 2
        assert codes[1 - victim] in (2, 75)
        for number in (0, 1):
            assert "Traceback" not in job.said(number)
    saved = [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    for checkpoint in saved:
        assert checksums.damages(checkpoint) == []
    last = max(int(checkpoint.name) for checkpoint in saved)
    assert "vit: error: a checkpoint could not be written to" in job.said(victim)
    assert f"file size limit; the last whole one is step {last}." in job.said(victim)


def test_devices_are_told_first_and_result_and_rows_are_written_once(tmp_path):
    with Job(tmp_path / "run", data__eval__split="val") as job:
        job.finish()
    # Before it stands what Gloo writes, piece by piece: its threads tear each other's lines.
    before, told, after = job.said(0).partition("2 processes, 4 devices\n")
    assert told
    assert "from scratch" not in before
    assert [line.split("  ")[-1] for line in after.splitlines()[:2]] == ["2 × cpu"] * 2
    assert "from scratch" in after
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    command = ["evaluate", f"--workdir={tmp_path}/run", f"--json={tmp_path}/measured.json"]
    with Job(tmp_path / "evaluation", processes=2, devices=1, command=command) as evaluation:
        evaluation.finish()
    measured = json.loads((tmp_path / "measured.json").read_text())
    for metric in ("accuracy", "examples"):
        assert measured[metric] == result[f"eval/val/{metric}"]
    assert result["eval/val/examples"] == 355
    told = [line for line in job.said().splitlines() if line.startswith("process 1: ")][-1]
    assert re.search(r"data [\d.]+ s  step [\d.]+ s  checkpoint [\d.]+ s$", told)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 9), 8]
