"""One compiled step: which way it moves, in any number of passes, and what a bad gradient does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.digits_run import tiny_config
from vit_jax.training.run import run_of

ONE = jax.devices()[:1]
RATE = 0.125


@pytest.fixture(scope="module", params=[32, 8])
def stepped(request):
    """(run, state before, batch, state after) of one step of plain SGD; some in four passes."""
    run = run_of(
        tiny_config(
            microbatch=request.param, mixup=0.0, optimizer__name="sgd", optimizer__lr=RATE,
            optimizer__momentum=0.0, optimizer__weight_decay=0.0, optimizer__clip_norm=None,
            optimizer__b1=0.9, schedule__name="constant", schedule__warmup_steps=0,
            model__dropout=0.0, model__attention_dropout=0.0, model__drop_path=0.0,
        ),
        devices=ONE,
    )  # fmt: skip
    state = run.init_state()
    before = jax.device_get(state)
    batches = run.train_batches(0, 1)
    _, batch = next(batches)
    after, metrics = run.compile_train_step()(state, batch)
    batches.close()
    return run, before["params"], batch, jax.device_get(after)["params"], float(metrics["loss"])


def loss_of(run, params, batch):
    """The mean cross-entropy, from the logits in NumPy."""
    shown = run.model.data_config.normalise(np.asarray(batch["image"]))
    logits = np.asarray(run.model.apply(params, shown)[0], np.float64)
    label = np.asarray(batch["label"]).reshape(len(logits), -1)[:, 0]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(label)), label].mean()


def test_it_moves_against_the_gradient_by_the_learning_rate(stepped):
    run, before, batch, after, loss = stepped
    assert loss == pytest.approx(loss_of(run, before, batch), rel=1e-5)
    moved = jax.tree.map(lambda a, b: (b - a) / RATE, before, after)
    squared = sum(float((part.astype(np.float64) ** 2).sum()) for part in jax.tree.leaves(moved))
    near = 1e-2 / np.sqrt(squared)
    ahead, behind = (
        loss_of(run, jax.tree.map(lambda p, g, s=side: p - s * near * g, before, moved), batch)
        for side in (-1, 1)
    )
    # The derivative of the loss along the step is minus the gradient's square.
    assert (ahead - behind) / (2 * near) == pytest.approx(-squared, rel=2e-2)


def test_a_non_finite_step_keeps_the_whole_state_and_is_counted():
    run = run_of(tiny_config(mixup=0.0), devices=ONE)
    step, state = run.compile_train_step(), run.init_state()
    batches = run.train_batches(0, 2)
    _, batch = next(batches)
    state, _ = step(state, batch)
    before = jax.device_get(state)
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.inf), state["params"]["head"])
    poisoned = state | {"params": state["params"] | {"head": broken}}
    wanted = jax.device_get(poisoned)
    after, metrics = step(poisoned, next(batches)[1])
    batches.close()
    after = jax.device_get(after)
    assert int(after["step"]) == int(before["step"]) + 1
    assert (int(after["skipped"]["total"]), int(after["skipped"]["in_row"])) == (1, 1)
    for part in ("params", "opt"):
        for one, other in zip(
            jax.tree.leaves(after[part]), jax.tree.leaves(wanted[part]), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"])
