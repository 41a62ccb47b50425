"""A run that is killed and started again tells and holds what an undisturbed one does, bit for
bit. The kills are real (SIGKILL to a real process, at a known line of its output)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.digits_run import rows, told
from tests.xla_flags import xla_flags
from vit_jax.checkpoint import manager

pytestmark = pytest.mark.long

RUNNER = """
import sys, json
from tests.digits_run import tiny_config
from vit_jax.training.loop import train
if __name__ == "__main__":
    train(tiny_config(**json.loads(sys.argv[2])), sys.argv[1])
"""


def start(workdir, **changes):
    environment = os.environ | {"XLA_FLAGS": xla_flags(), "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(workdir), json.dumps(changes)],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def finish(workdir, **changes):
    process = start(workdir, **changes)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def kill_when(process, seen):
    """SIGKILL as soon as a line of the run's output satisfies `seen`."""
    for line in process.stderr:
        if seen(line):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def arrays(workdir, step=10):
    checkpoint = manager.find(workdir / "checkpoints" / str(step))
    stored = manager.stored_shapes(checkpoint)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        for path, leaf in stored.items()
    }
    return {path: np.asarray(leaf) for path, leaf in manager.read(checkpoint, wanted).items()}


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path, strict=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish(workdir)
    return workdir


def test_killed_after_a_save_and_before_the_next_row_then_continued_is_bit_identical(
    undisturbed, tmp_path
):
    process = start(tmp_path)
    # Step 7's line: the save of step 5 is on its way or done, later rows are written.
    kill_when(process, lambda line: line.startswith("step  7/10"))
    before = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert 10 not in before
    finish(tmp_path)
    assert told(tmp_path) == told(undisturbed)
    assert_identical(arrays(tmp_path), arrays(undisturbed))


@pytest.mark.long
def test_the_moving_average_survives_a_kill_bit_for_bit(tmp_path):
    finish(tmp_path / "whole", ema=0.9)
    process = start(tmp_path / "killed", ema=0.9)
    kill_when(process, lambda line: line.startswith("step  7/10"))
    finish(tmp_path / "killed", ema=0.9)
    assert any(path.startswith("ema/") for path in arrays(tmp_path / "whole"))
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    assert_identical(arrays(tmp_path / "killed"), arrays(tmp_path / "whole"))


@pytest.mark.long
def test_rows_after_the_checkpoint_and_a_torn_tail_are_dropped_on_restart(undisturbed, tmp_path):
    finish(tmp_path, total_steps=5, schedule__name="constant")
    finish_rows = rows(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 123.0}) + "\n")
        file.write('{"step": 7, "loss"')
    finish(tmp_path, total_steps=6, schedule__name="constant")
    kept = rows(tmp_path)
    assert kept[: len(finish_rows)] == finish_rows
    assert [row["loss"] for row in kept if row["step"] == 6 and "loss" in row] != [123.0]
    assert all("loss" in row or "eval/val/accuracy" in row for row in kept)


@pytest.mark.long
def test_two_workers_and_a_kill_give_the_numbers_of_threads(undisturbed, tmp_path):
    process = start(tmp_path, data__workers=2)
    kill_when(process, lambda line: line.startswith("step  7/10"))
    finish(tmp_path, data__workers=2)
    assert told(tmp_path) == told(undisturbed)
    assert_identical(arrays(tmp_path), arrays(undisturbed))


@pytest.mark.long
def test_workers_and_their_shared_memory_go_with_a_run_that_is_killed(tmp_path):
    process = start(tmp_path, data__workers=2, total_steps=4000)
    for line in process.stderr:
        if line.startswith("step    7/4000"):
            break
    task = Path(f"/proc/{process.pid}/task")
    children = [pid for one in task.glob("*/children") for pid in one.read_text().split()]
    workers = [Path(f"/proc/{pid}") for pid in children
               if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip
    assert len(workers) == 2
    maps = "".join((worker / "maps").read_text() for worker in workers)
    shared = {Path(name) for name in re.findall(r"/dev/shm/psm_\w+", maps)}
    assert shared
    process.kill()
    process.communicate(timeout=60)  # to the end of what workers could say, too
    until = time.monotonic() + 30
    while any(path.exists() for path in [*workers, *shared]):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.long
def test_a_scanned_run_continues_unrolled_to_1e_6(tmp_path):
    finish(tmp_path / "whole", model__scan=True)
    finish(tmp_path / "parts", model__scan=True, total_steps=5, schedule__name="constant",
           checkpoint__every_steps=5)  # fmt: skip
    finish(tmp_path / "parts", model__scan=False, schedule__name="constant")
    finish(tmp_path / "same", model__scan=True, schedule__name="constant")
    one, other = told(tmp_path / "parts"), told(tmp_path / "same")
    for step in one:
        np.testing.assert_allclose(one[step][0], other[step][0], rtol=1e-6)
        assert one[step][3] == other[step][3]


STOPPED = """
import sys, json
from tests.digits_run import tiny_config
from vit_jax.errors import Stopped
from vit_jax.training.loop import train
if __name__ == "__main__":
    try:
        train(tiny_config(**json.loads(sys.argv[2])), sys.argv[1])
    except Stopped as stopped:
        sys.exit(stopped.code)
"""


def signalled(workdir, at, send, **changes):
    """(exit code, output) of a run in a process group of its own that gets `send` at a line."""
    environment = os.environ | {"XLA_FLAGS": xla_flags(), "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        # As from a terminal: where these tests run under nohup, it would stay ignored.
        ["env", "--default-signal=HUP", sys.executable, "-c", STOPPED, str(workdir),
         json.dumps(changes)],
        stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith(at):
            send(process)
            break
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [(signal.SIGINT, 130, 0), (signal.SIGTERM, 75, 0), (signal.SIGHUP, 75, 0),
     (signal.SIGINT, 130, 2)],
)  # fmt: skip
def test_a_signal_saves_and_the_run_continues_exactly(undisturbed, tmp_path, number, code, workers):
    """Sent to the whole process group, as a terminal does; with workers they are in it."""
    returned, said = signalled(
        tmp_path, "step  3/10", lambda p: os.killpg(p.pid, number), data__workers=workers
    )
    assert returned == code, said
    assert f"{number.name}: saves after this step" in said
    finish(tmp_path, data__workers=workers)
    assert told(tmp_path) == told(undisturbed)
    assert_identical(arrays(tmp_path), arrays(undisturbed))


@pytest.mark.long
def test_a_run_killed_before_its_first_checkpoint_leaves_the_folder_free(tmp_path):
    process = start(tmp_path, checkpoint__every_steps=100)
    kill_when(process, lambda line: line.startswith("step  3/10"))
    finish(tmp_path, optimizer__lr=1e-3)
    steps = [row["step"] for row in rows(tmp_path) if "loss" in row]
    assert steps == list(range(1, 11))
    assert json.loads((tmp_path / "config.json").read_text())["optimizer.lr"] == 1e-3
