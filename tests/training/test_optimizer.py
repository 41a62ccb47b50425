"""Updates of a whole step against NumPy statements of Adam, AdamW and SGD."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.checkpoint.tree import flatten
from vit_jax.config import base
from vit_jax.errors import UserError
from vit_jax.models import create_model, list_models
from vit_jax.training.optimizer import DECAY_RULES, decay_mask, known, make_optimizer

RNG = np.random.default_rng(0)
PARAMS = {"a/kernel": RNG.normal(size=(3, 2)), "a/bias": RNG.normal(size=(2,))}
GRADS = [{k: RNG.normal(size=v.shape) for k, v in PARAMS.items()} for _ in range(5)]
LR, WD, B1, B2, EPS = 0.01, 0.3, 0.8, 0.95, 1e-6


def ours(**settings):
    """Parameters after five updates at rate LR."""
    c = base().optimizer
    with c.unlocked():
        c.update(settings)
    tx = make_optimizer(c)
    nested = {
        "a": {"kernel": jnp.float32(PARAMS["a/kernel"]), "bias": jnp.float32(PARAMS["a/bias"])}
    }
    state = tx.init(nested)
    for grads in GRADS:
        tree = {"a": {n: jnp.float32(grads[f"a/{n}"]) for n in ("kernel", "bias")}}
        updates, state = tx.update(tree, state, nested)
        nested = jax.tree.map(lambda p, u: p + LR * u, nested, updates)
    return {f"a/{name}": np.asarray(leaf) for name, leaf in nested["a"].items()}


def clipped(grads, norm):
    total = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {k: g * min(1.0, norm / total) for k, g in grads.items()}


def adam(decay, clip=None):
    p = {k: v.copy() for k, v in PARAMS.items()}
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v = {k: np.zeros_like(x) for k, x in p.items()}
    for t, grads in enumerate(GRADS, 1):
        grads = clipped(grads, clip) if clip else grads
        for k, g in grads.items():
            m[k] = B1 * m[k] + (1 - B1) * g
            v[k] = B2 * v[k] + (1 - B2) * g**2
            step = (m[k] / (1 - B1**t)) / (np.sqrt(v[k] / (1 - B2**t)) + EPS)
            p[k] = p[k] - LR * (step + (decay * p[k] if k.endswith("kernel") else 0))
    return p


def sgd(momentum, nesterov=False):
    p = {k: v.copy() for k, v in PARAMS.items()}
    trace = {k: np.zeros_like(v) for k, v in p.items()}
    for grads in GRADS:
        for k, g in grads.items():
            trace[k] = momentum * trace[k] + g
            p[k] = p[k] - LR * (momentum * trace[k] + g if nesterov else trace[k])
    return p


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"name": "adam", "b1": B1, "b2": B2, "eps": EPS}, adam(0.0)),
        ({"name": "adamw", "b1": B1, "b2": B2, "eps": EPS, "weight_decay": WD}, adam(WD)),
        ({"name": "adamw", "b1": B1, "b2": B2, "eps": EPS, "weight_decay": WD, "clip_norm": 0.5},
         adam(WD, clip=0.5)),
        ({"name": "sgd", "momentum": 0.9}, sgd(0.9)),
        ({"name": "sgd", "momentum": 0.9, "nesterov": True}, sgd(0.9, True)),
    ],
)  # fmt: skip
def test_five_updates_equal_numpy(settings, wanted):
    found = ours(**settings)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_any_optimiser_of_optax_by_name_with_its_arguments():
    tx = optax.lion(learning_rate=1.0, b1=0.7)
    found = ours(name="lion", kwargs={"b1": 0.7})
    nested = {k: jnp.float32(v) for k, v in PARAMS.items()}
    state = tx.init(nested)
    for grads in GRADS:
        updates, state = tx.update({k: jnp.float32(g) for k, g in grads.items()}, state, nested)
        nested = {k: p + LR * (updates[k] - 0) for k, p in nested.items()}
    decay = inspect.signature(optax.lion).parameters["weight_decay"].default
    assert decay > 0  # lion decays by itself, everywhere: the reference above has it too
    for name in PARAMS:
        np.testing.assert_allclose(found[name], nested[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "adamm"}, "adamm"),
        ({"name": "lion", "kwargs": {"b9": 1}}, "b9"),
        ({"name": "global_norm"}, "no optimiser"),
    ],
)
def test_what_optax_does_not_have_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        ours(**settings)


@pytest.mark.parametrize("name", list_models("*mu*") + list_models("*base_patch16_224"))
def test_every_parameter_matches_exactly_one_decay_rule_and_kernels_decay(name):
    for pool in ("cls", "gap", "map"):
        model = create_model(
            name, pool=pool, registers=2, layer_scale=0.1, qk_norm=True, pre_logits=True
        )
        for path, decays in flatten(decay_mask(model.abstract_params)).items():
            assert decays == path.endswith("/kernel"), path
    assert len(DECAY_RULES) == 3


@pytest.mark.parametrize("name", known())
def test_every_optimiser_taken_scales_with_the_rate(name):
    """Two updates at rate 1/4 are a quarter of those at rate 1, whatever optax's next release
    brings: the step applies the schedule outside of the optimiser."""
    make = getattr(optax, name)
    params = {k: jnp.float32(p) for k, p in PARAMS.items()}
    found = {}
    for rate in (1.0, 0.25):
        tx = make(learning_rate=rate)
        state, updates = tx.init(params), None
        for grads in GRADS[:2]:
            tree = {k: jnp.float32(g) for k, g in grads.items()}
            updates, state = tx.update(tree, state, params)
        found[rate] = updates
    for path in params:
        np.testing.assert_allclose(0.25 * found[1.0][path], found[0.25][path], rtol=2e-5, atol=1e-7)
