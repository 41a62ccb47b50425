"""What a compiled step's kernels are for, against programs whose kernels are known."""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.digits_run import tiny_config
from vit_jax.commands.plan import shares_in_words
from vit_jax.models import layers
from vit_jax.planning import hlo, shares, topologies
from vit_jax.planning.roofline import Share, by_kind, roofline
from vit_jax.tasks import losses
from vit_jax.training.run import run_of

ONE = {"data": 1}
ROWS = jnp.ones((64, 32))


def kinds(function, *arguments):
    """Kinds of the kernels of a function, as the CPU's compiler makes them."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return {kernel.kind for kernel in hlo.costs(text, ONE).kernels}


def test_a_norm_and_its_gradient_are_normalisation():
    def loss(x, scale):
        return jnp.sum(layers.layer_norm(x, scale, scale, 1e-6) ** 2)

    assert kinds(jax.grad(loss), ROWS, ROWS[0]) == {shares.NORMS}


def test_a_loss_and_its_gradient_are_the_loss():
    def loss(logits, targets):
        return jnp.mean(losses.softmax_cross_entropy(logits, targets))

    assert kinds(jax.grad(loss), ROWS, ROWS / 32) == {shares.LOSS}


def test_what_only_moves_or_casts_is_told_from_what_computes():
    assert kinds(lambda x: x.T, ROWS) == {shares.COPIES}
    assert kinds(lambda x: x.astype(jnp.bfloat16), ROWS) == {shares.CASTS}
    assert kinds(lambda x: x @ x.T, ROWS) == {shares.PRODUCTS}


@pytest.fixture(scope="module")
def costs():
    config = tiny_config(batch_size=32, model__num_layers=3, model__scan=True)
    run = run_of(config)
    return hlo.costs(run.compiled_step.as_text(), run.mesh.shape)


def test_the_kernels_of_a_step_are_all_of_it(costs):
    by = {kind: [k for k in costs.kernels if k.kind == kind] for kind in shares.KINDS}
    assert sum(map(len, by.values())) == len(costs.kernels)
    assert sum(kernel.bytes for kernel in costs.kernels) == pytest.approx(costs.bytes)
    assert sum(kernel.flops for kernel in costs.kernels) == pytest.approx(costs.flops)
    assert sum(kernel.flops for kernel in by[shares.PRODUCTS]) == pytest.approx(costs.flops)
    for kind in (shares.NORMS, shares.ATTENTION, shares.OPTIMISER, shares.STACKS):
        assert sum(kernel.bytes for kernel in by[kind]) > 0, kind
    assert sum(kernel.bytes for kernel in by[shares.REST]) < 0.02 * costs.bytes


def test_kernels_one_after_another_take_at_least_the_roofline(costs):
    target = topologies.find("gpu:h100x1")
    table = by_kind(costs, target, "float32")
    bounds = roofline(costs, target, ONE, "float32")
    whole = sum(share.seconds for share in table.values())
    assert whole >= max(bounds.compute_s, bounds.memory_s)
    assert sum(share.bytes for share in table.values()) == pytest.approx(costs.bytes)
    assert list(table) == [kind for kind in shares.KINDS if kind in table]


def test_a_plan_says_what_a_scan_costs():
    by = {shares.PRODUCTS: 0.3, shares.STACKS: 0.15, shares.COPIES: 0.05}
    table = {kind: Share(0.0, 1e9 * part, part) for kind, part in by.items()}
    told = "\n".join(shares_in_words(table))
    assert re.search(r"stacks of scanned layers +150\.0000 +30\.0% +30\.0%", told)
    assert "--config.model.scan=False would save the stacks' 40% of the time" in told
    assert "scan=False" not in "\n".join(shares_in_words({shares.PRODUCTS: table[shares.PRODUCTS]}))
    assert list(shares_in_words({})) == []
