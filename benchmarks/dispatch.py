"""Host time of a training step: from the call of the compiled step to its return.

    python benchmarks/dispatch.py

While a step runs on the device, the host prepares the next one. The call itself must take less time
than the device needs, also on a fast device. The model is deep, and its arithmetic takes next to no
time: 24 layers of width 32 on 8 x 8 images. Ours is the step as the package compiles it ahead of
time, with layers stacked and scanned. Beside it: the same unrolled; both under a plain `jax.jit`;
and the linen model of linen_vit.py, which is unrolled. Every call is awaited outside of the
measured part, so that no queue builds up; `until done` includes that wait.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from linen_vit import LinenViT, make_linen_step

from vit_jax.benching import report
from vit_jax.benching.steps import plain_run, synthetic_batch
from vit_jax.benching.timing import Side, alternate, compare
from vit_jax.training.step import make_train_step

OURS = "vit_jax, scanned"
LAYERS, QUICK_LAYERS = 24, 6
SIZES = {"hidden_size": 32, "num_heads": 2, "mlp_dim": 64, "patch_size": 4}
BATCH, CLASSES = 2, 10


def main() -> None:
    """Measures all sides."""
    options = report.parser(__doc__).parse_args()
    rounds = options.rounds or (30 if options.quick else 300)
    layers = QUICK_LAYERS if options.quick else LAYERS
    done: dict[str, list[float]] = {}
    sides = {}
    for side, (step, state, batch) in calls(layers).items():
        done[side] = []
        sides[side] = call(step, state, batch, done[side])
    times = alternate(sides, rounds, warmup=10, rest=0.001)
    rows = compare(f"{layers} layers, width {SIZES['hidden_size']}", times, OURS)
    for row in rows:
        row["until_done_s"] = float(np.median(done[row["side"]][-rounds:]))
    report.finish("dispatch", rows, options)


def calls(layers: int) -> dict[str, tuple]:
    """side -> (step, state, batch), where step(state, batch) returns the next state and a loss."""
    made = {}
    for scan, name in ((True, OURS), (False, "vit_jax, unrolled")):
        run = plain_run("vit_mu_patch4_32", BATCH, CLASSES, image_size=8, num_layers=layers,
                        scan=scan, **SIZES)  # fmt: skip
        batch = synthetic_batch(run)
        plain = make_train_step(run.task, run.config, run.mesh)
        jitted = jax.jit(plain, donate_argnums=0, out_shardings=(run.shardings, None))
        made[name] = (run.compile_train_step(), run.init_state(), batch)
        made[f"{name}, jax.jit"] = (jitted, run.init_state(), batch)
    linen = make_linen_step(LinenViT(num_layers=layers, num_classes=CLASSES, **SIZES))
    images = run.model.data_config.normalise(batch["image"])
    state = linen.init(jax.random.key(0), images)

    def linen_step(state: tuple, batch: tuple) -> tuple:
        *state, loss = linen.step(*state, *batch)
        return state, loss

    made["linen, jax.jit"] = (linen_step, state, (images, batch["label"]))
    return made


def call(step: Callable, state: Any, batch: Any, done: list[float]) -> Side:
    """A side that calls the step once more and returns the seconds until the call returned. The
    seconds until the step was done go to `done`."""

    def side() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = step(state, batch)
        returned = time.perf_counter()
        jax.block_until_ready((state, metrics))
        done.append(time.perf_counter() - began)
        return returned - began

    return side


if __name__ == "__main__":
    main()
