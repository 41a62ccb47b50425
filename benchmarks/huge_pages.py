"""A training step on the CPU with and without the allocator settings of `vit train`.

    python benchmarks/huge_pages.py

`vit train` starts itself again with GLIBC_TUNABLES (see vit_jax/cli.py), because glibc reads them
at the start of a process alone. So each side is a process of its own, made once, which trains as
many steps as it is told to, fed by the pipeline as in a run; the sides are told in turns.
"""

import os
import subprocess
import sys
from pathlib import Path

import harness

from vit_jax.cli import MALLOC

ROOT = Path(__file__).resolve().parent.parent
SIDES = {"vit train's settings": MALLOC, "glibc's defaults": "glibc.malloc.hugetlb=0"}
FULL = ("vit_nano_patch8_64", 64)
STEPS = 5  # a measurement
QUICK = ("vit_mu_patch4_32", 8)


def main() -> None:
    """Measures both sides."""
    options = harness.parser(__doc__).parse_args()
    name, batch = QUICK if options.quick else FULL
    processes = {side: _start(name, batch, tunables) for side, tunables in SIDES.items()}
    sides = {side: _told(process) for side, process in processes.items()}
    times = harness.alternate(sides, options.rounds or (5 if options.quick else 40))
    for process in processes.values():
        process.communicate()
    harness.report(
        "huge_pages", harness.compare(f"{name}, batch {batch}", times, next(iter(SIDES))), options
    )


def _start(name: str, batch: int, tunables: str) -> subprocess.Popen:
    environment = os.environ | {"GLIBC_TUNABLES": tunables, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", name, str(batch)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def _told(process: subprocess.Popen) -> harness.Side:
    def side() -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("step\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return side


def serve(name: str, batch_size: int) -> None:
    """In the other process: a step and its seconds for every line of input."""
    import jax

    from vit_jax.config import base
    from vit_jax.training.setup import set_up

    c = base()
    c.model.name, c.batch_size, c.total_steps, c.mixup = name, batch_size, 10_000, 0.2
    c.data.train.source, c.data.eval.split = "synthetic:size=128", ""
    run = set_up(c)
    step, state = run.compile_train_step(), run.init_state()
    batches = run.train_batches(0, c.total_steps)

    def once() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, _ = step(state, next(batches)[1])
        jax.block_until_ready(state)

    timed = harness.timed(once)
    for _ in sys.stdin:
        print(timed(), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        main()
