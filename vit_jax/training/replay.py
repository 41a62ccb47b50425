"""Computes one step of a run again, and shows its gradients and examples. Nothing is saved."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax.checkpoint import manager
from vit_jax.checkpoint.steps import steps
from vit_jax.checkpoint.tree import flatten
from vit_jax.errors import UserError
from vit_jax.keys import AUTO
from vit_jax.records import COUNT, read_object
from vit_jax.training.run import run_of
from vit_jax.training.same_run import check_same_run
from vit_jax.training.start import continued, open_origin
from vit_jax.training.step import make_gradients

SHOWN = 10  # gradients that are shown, those with the largest norms


def replay(
    config: ConfigDict, workdir: str | Path, step: int, named: Iterable[str] = ()
) -> list[str]:
    """Trains to `step` from the last checkpoint before it, or from the beginning. Returns lines
    about that step.

    Raises UserError if the run has no such step, or if the checkpoint belongs to another run.
    """
    if jax.process_count() > 1:
        raise UserError("--replay-step is for one process: its numbers are those of any mesh")
    workdir = Path(workdir).expanduser().absolute()
    if config.microbatch == AUTO and (workdir / "config.json").is_file():
        with config.unlocked():
            resolved = read_object(workdir / "config.json", {"microbatch": COUNT})
            config.microbatch = resolved["microbatch"]
    run = run_of(config, named, weights=open_origin(config, workdir))
    if not 1 <= step <= run.config.total_steps:
        raise UserError(f"--replay-step lies in 1 … {run.config.total_steps}, not {step}")
    saved = steps(workdir / "checkpoints")
    before = max((s for s in saved if s < step), default=None)
    if before is None and (config.init or config.resume):
        raise UserError(
            f"{workdir} has no checkpoint before step {step}, and did not begin from scratch"
        )
    source = None if before is None else manager.find(workdir / "checkpoints" / str(before))
    if source:
        check_same_run(run, source)
    start = continued(run, source) if source else None
    state = start.state if start else run.init_state()
    seen, first = (start.examples_seen, start.step) if start else (0, 0)
    held, gradients = run.held_on_devices(), make_gradients(run.task, run.config, run.mesh)

    @jax.jit
    def sizes(state: Any, batch: Any, held: Any) -> Any:
        (loss, _), grads = gradients(state, batch, held)
        return loss, jax.tree.map(jnp.linalg.norm, grads)

    train_step, batches = run.compile_train_step(), run.train_batches(seen, step - first)
    try:
        for _ in range(first + 1, step):
            state, _ = train_step(state, next(batches)[1])
        host, batch = next(batches)
    finally:
        batches.close()
    loss, norms = jax.device_get(sizes(state, batch, held))
    _, metrics = train_step(state, batch)
    metrics = jax.device_get(metrics)
    skipped = " and skipped" if int(metrics["skipped"]["last"]) == step else ""
    ordered = sorted(flatten(norms).items(), key=lambda item: (item[1] <= item[1], -item[1]))
    names = [run.train_source.describe(int(i)) for i in host["id"]] if run.train_source else []
    return [
        f"step {step} from {source or 'the beginning'}: loss {loss:.6g}, gradient "
        f"{metrics['grad_norm']:.6g}, rate {metrics['learning_rate']:.3g}, seed {run.config.seed}, "
        f"examples {int(metrics['examples_hash']):08x}{skipped}",
        "largest gradients:",
        *(f"  {path}  {norm:.6g}" for path, norm in ordered[:SHOWN]),
        "examples:",
        *(f"  {int(number)}  {name}" for number, name in zip(host["id"], names, strict=True)),
    ]
