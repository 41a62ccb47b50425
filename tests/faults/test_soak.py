"""A long job of two processes, with many saves and evaluations: nothing grows, nothing is left.

In `make test-faults` alone: in less than 2,000 steps the allocator still settles. It has two arenas
here: of the sixteen or more that it would take, a thread now and then meets one for the first time,
which looks like a leak of a few huge pages.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from jobs import Job, note

from vit_jax.process import MALLOC

STEPS, SAVE, EVALUATE = 2000, 50, 100
GROWTH = 0.005  # of resident memory, over the last half


def resident(pid: int) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()


@pytest.mark.skipif(
    int(os.environ.get("FAULT_ROUNDS", "1")) == 1, reason="make test-faults: four minutes"
)
def test_memory_handles_and_processes_do_not_grow(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", f"{MALLOC}:glibc.malloc.arena_max=2")
    shared = set(os.listdir("/dev/shm"))
    keys = {"total_steps": STEPS, "checkpoint__every_steps": SAVE, "eval_every_steps": EVALUATE,
            "log_every_steps": 10, "checkpoint__keep": 3}  # fmt: skip
    samples: dict[int, list[tuple[float, float, int]]] = {}
    with Job(tmp_path / "run", **keys) as job:
        job.when(f"step {10:>{len(str(STEPS))}}/{STEPS}")
        while all(process.poll() is None for process in job.processes):
            for process in job.processes:
                try:
                    handles = len(os.listdir(f"/proc/{process.pid}/fd"))
                    sample = (time.monotonic(), resident(process.pid), handles)
                except OSError:
                    break
                samples.setdefault(process.pid, []).append(sample)
            assert all(len(children(p.pid)) == 0 for p in job.processes if p.poll() is None)
            time.sleep(0.1)  # between samples
        job.finish()
    for number, taken in enumerate(samples.values()):
        at, memory, handles = np.array(taken[len(taken) // 2 : -2]).T
        assert len(at) > 20
        blocks = np.array_split(np.arange(len(at)), 20)
        x, y = (np.array([values[block].mean() for block in blocks]) for values in (at, memory))
        pairs = [(i, j) for j in range(20) for i in range(j)]
        slope = np.median([(y[j] - y[i]) / (x[j] - x[i]) for i, j in pairs])  # Theil and Sen's
        grown = slope * (x[-1] - x[0])
        assert grown <= GROWTH * np.median(memory), f"{grown:.1f} MiB: {y.round(1)}"
        assert np.median(handles[-10:]) <= np.median(handles[:10]) + 2
        note("soak", number, STEPS, STEPS, 2, f"grew {grown:.1f} of {memory.max():.0f} MiB")
    assert set(os.listdir("/dev/shm")) <= shared
    named = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in named)
    assert len(named) <= 4
