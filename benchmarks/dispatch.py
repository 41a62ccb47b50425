"""Host time of a training step: from the call of the compiled step to its return.

    python benchmarks/dispatch.py

While a step runs on the device the host prepares the next one; what the call itself costs must
stay below what the device needs, also on a fast one. The model is a deep one whose arithmetic is
next to nothing: 24 layers of width 32 on 8 x 8 images. Ours is the step as the package compiles it
ahead of time, with layers stacked and scanned; beside it, the same unrolled, both under a plain
`jax.jit`, and the linen model of linen_vit.py, which is unrolled. Every call is awaited outside
the measured part, so that no queue builds up; `until done` has that wait in it.
"""

import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import numpy as np
from linen_vit import LinenViT, make_linen_step

from vit_jax.config import base
from vit_jax.training.run import Run, run_of
from vit_jax.training.step import make_train_step

OURS = "vit_jax, scanned"
LAYERS, QUICK_LAYERS = 24, 6
SIZES = {"hidden_size": 32, "num_heads": 2, "mlp_dim": 64, "patch_size": 4, "image_size": 8}
BATCH = 2


def main() -> None:
    """Measures all sides."""
    options = harness.parser(__doc__).parse_args()
    rounds = options.rounds or (30 if options.quick else 300)
    layers = QUICK_LAYERS if options.quick else LAYERS
    done: dict[str, list[float]] = {}
    sides = {}
    for side, (step, state, batch) in calls(layers).items():
        done[side] = []
        sides[side] = call(step, state, batch, done[side])
    times = harness.alternate(sides, rounds, warmup=10, rest=0.001)
    rows = harness.compare(f"{layers} layers, width {SIZES['hidden_size']}", times, OURS)
    for row in rows:
        row["until_done_s"] = float(np.median(done[row["side"]][-rounds:]))
    harness.report("dispatch", rows, options)


def calls(layers: int) -> dict[str, tuple]:
    """side -> (step, state, batch), where step(state, batch) gives the next state and a loss."""
    made = {}
    for scan, name in ((True, OURS), (False, "vit_jax, unrolled")):
        run = our_run(layers, scan)
        _, batch = next(run.train_batches(0, 1))
        plain = make_train_step(run.task, run.config, run.mesh)
        jitted = jax.jit(plain, donate_argnums=0, out_shardings=(run.shardings, None))
        made[name] = (run.compile_train_step(), run.init_state(), batch)
        made[f"{name}, jax.jit"] = (jitted, run.init_state(), batch)
    c = run.model.config
    linen = make_linen_step(
        LinenViT(
            hidden_size=c.hidden_size, num_layers=layers, num_heads=c.num_heads,
            mlp_dim=c.mlp_dim, patch_size=c.patch_size, num_classes=c.num_classes,
        )
    )  # fmt: skip
    images = run.model.data_config.normalise(batch["image"])
    state = linen.init(jax.random.key(0), images)
    made["linen, jax.jit"] = (linen_call(linen.step), state, (images, batch["label"]))
    return made


def linen_call(step: Callable) -> Callable:
    """The linen step in the form of ours."""

    def one(state: tuple, batch: tuple) -> tuple:
        params, opt_state, loss = step(*state, *batch)
        return (params, opt_state), loss

    return one


def our_run(layers: int, scan: bool) -> Run:
    """A plain run of the tiny, deep model."""
    c = base()
    c.batch_size, c.total_steps = BATCH, 1_000_000
    c.model.name = "vit_mu_patch4_32"
    c.model.update(SIZES | {"num_layers": layers, "scan": scan})
    c.data.train.source = f"synthetic:examples={BATCH},size={SIZES['image_size']}"
    c.data.train.pipeline, c.data.eval.split = "decode", ""
    c.schedule.name = "constant"
    return run_of(c, devices=jax.devices()[:1])


def call(step: Callable, state: Any, batch: Any, done: list[float]) -> harness.Side:
    """One more step: seconds until its call returned. Those until it was done go to `done`."""

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
