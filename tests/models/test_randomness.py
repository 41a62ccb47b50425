"""Dropout and stochastic depth: from explicit keys alone, and unbiased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_walk import equations, primitives

from tests.models import paper_numpy as paper
from tests.models.tiny_vit import images_for, randomised, tiny
from vit_jax.models.attention import Attention, attend
from vit_jax.models.layers import Mlp, drop_path, dropout

RATES = [{"dropout": 0.3}, {"attention_dropout": 0.3}, {"drop_path": 0.3}]
DRAWS = 5_000


def name_of(rate):
    return next(iter(rate))


def draws(function):
    """What `function` gives for many keys, along a leading axis."""
    every = jax.random.split(jax.random.key(0), DRAWS)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(function))(every))


def assert_mean_is(drawn, expected, sigmas=5.0):
    """The mean over the leading axis is `expected` within its own standard error."""
    error = drawn.std(axis=0, dtype=np.float64) / np.sqrt(len(drawn))
    assert error.max() > 0, "nothing was random"
    mean = drawn.mean(axis=0, dtype=np.float64)
    np.testing.assert_array_less(np.abs(mean - expected), sigmas * error + 1e-6)


# The functions


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_at_its_rate_rescales_the_rest_and_keeps_the_mean(rate):
    x = np.linspace(1.0, 2.0, 6, dtype=np.float32).reshape(2, 3)
    dropped = draws(lambda key: dropout(x, rate, key))
    kept = dropped != 0
    np.testing.assert_allclose(dropped, kept * x / np.float32(1 - rate), rtol=1e-6)
    sigma = np.sqrt(rate * (1 - rate) / DRAWS)
    np.testing.assert_allclose(kept.mean(axis=0), 1 - rate, rtol=0, atol=5 * sigma)
    assert_mean_is(dropped, x)


def test_dropout_decides_for_each_element_on_its_own():
    dropped = draws(lambda key: dropout(jnp.ones((2, 2)), 0.5, key))
    correlation = np.corrcoef((dropped.reshape(DRAWS, 4) != 0).T)
    np.testing.assert_allclose(correlation, np.eye(4), atol=5 / np.sqrt(DRAWS))


def test_without_a_key_or_at_rate_zero_x_comes_back_as_it_is():
    x = jnp.arange(6.0).reshape(2, 3)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert drop_path(x, jnp.float32(0.5), None) is x
    np.testing.assert_array_equal(drop_path(x, jnp.float32(0.0), jax.random.key(0)), x)


def test_drop_path_keeps_or_drops_whole_examples_at_its_rate_and_keeps_the_mean():
    rate, x = 0.3, np.linspace(1.0, 2.0, 24, dtype=np.float32).reshape(4, 3, 2)
    dropped = draws(lambda key: drop_path(x, jnp.float32(rate), key))
    kept = (dropped != 0).reshape(DRAWS, 4, 6)
    assert (kept == kept[..., :1]).all(), "an example was dropped in part"
    kept = kept[..., 0]
    sigma = np.sqrt(rate * (1 - rate) / DRAWS)
    np.testing.assert_allclose(kept.mean(axis=0), 1 - rate, rtol=0, atol=5 * sigma)
    np.testing.assert_allclose(np.corrcoef(kept.T), np.eye(4), atol=5 / np.sqrt(DRAWS))
    assert_mean_is(dropped, x)


def test_dropping_keeps_the_dtype_of_the_arithmetic():
    x, key = jnp.ones((2, 3), jnp.bfloat16), jax.random.key(0)
    assert dropout(x, 0.5, key).dtype == jnp.bfloat16
    assert drop_path(x, jnp.float32(0.5), key).dtype == jnp.bfloat16


# The layers: linear in what is dropped, so their mean is the deterministic value


def test_attention_dropout_drops_weights_and_not_the_ones_it_reports():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 3, 2, 4)).astype(np.float32) for _ in range(3))
    expected, weights = paper.attention_heads(*(np.float64(a[0]) for a in (q, k, v)))
    heads_first = [a.swapaxes(1, 2) for a in (q, k, v)]
    mixed, reported = draws(lambda key: attend(*heads_first, rate=0.4, key=key))
    assert_mean_is(mixed.reshape(DRAWS, 3, 8), expected)
    np.testing.assert_allclose(reported[17, 0], weights, atol=1e-6)
    np.testing.assert_array_equal(reported[17], reported[18])


def test_the_mean_of_an_mlp_under_dropout_is_its_deterministic_value():
    layer = Mlp(4, 8, gelu="tanh", dropout=0.2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(1).standard_normal((1, 2, 4)).astype(np.float32)
    assert_mean_is(draws(lambda key: layer(x, key)), layer(x))


def test_the_mean_of_self_attention_under_dropout_is_its_deterministic_value():
    layer = Attention(
        4, 2, tokens=3, dropout=0.2, backend="xla", qk_norm=False, epsilon=1e-6, dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    x = np.random.default_rng(1).standard_normal((1, 3, 4)).astype(np.float32)
    assert_mean_is(draws(lambda key: layer(x, key)[0]), layer(x)[0])


# The model


@pytest.mark.parametrize("rate", RATES, ids=name_of)
def test_a_key_decides_everything_that_is_random(rate):
    model = tiny(**rate)
    params, images = randomised(model), images_for(model)
    step = jax.jit(lambda key: model.apply(params, images, train=True, key=key)[0])
    first, second = (jax.random.key(seed, impl="rbg") for seed in (0, 7))
    np.testing.assert_array_equal(step(first), step(first))
    assert not np.allclose(step(first), step(second))


def test_nothing_is_random_in_evaluation_even_where_a_key_is_given():
    model = tiny(dropout=0.5, attention_dropout=0.5, drop_path=0.5)
    params, images = randomised(model), images_for(model)

    def evaluate(key):
        return model.apply(params, images, key=key)[0]

    def train(key):
        return model.apply(params, images, train=True, key=key)[0]

    assert "random_bits" in primitives(jax.make_jaxpr(train)(jax.random.key(0)))
    used = primitives(jax.make_jaxpr(evaluate)(jax.random.key(0)))
    assert not {name for name in used if name.startswith(("random", "threefry", "rng"))}
    expected = paper.forward(params, images)["logits"]
    np.testing.assert_allclose(jax.jit(evaluate)(jax.random.key(0)), expected, rtol=1e-5, atol=1e-5)


def test_training_without_any_dropout_is_evaluation():
    model = tiny()
    params, images = randomised(model), images_for(model)
    logits, _ = jax.jit(lambda k: model.apply(params, images, train=True, key=k))(jax.random.key(0))
    expected = paper.forward(params, images)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_the_rate_of_stochastic_depth_grows_from_zero_to_that_of_the_last_block(scan):
    """A block that is dropped whole hands on its input: both branches, each at the block's rate."""
    batch, last = 400, 0.8
    model = tiny(num_layers=3, drop_path=last, scan=scan)
    params = randomised(model)
    images = np.repeat(images_for(model, batch=1), batch, axis=0)
    key = jax.random.key(1, impl="rbg")
    _, out = jax.jit(lambda: model.apply(params, images, train=True, key=key))()
    names = ["block00", "block01", "block02"]
    np.testing.assert_array_equal(out["block00"], np.repeat(out["block00"][:1], batch, axis=0))
    for i, rate in ((1, last / 2), (2, last)):
        skipped = (out[names[i]] == out[names[i - 1]]).all(axis=(1, 2)).mean()
        assert skipped == pytest.approx(rate**2, abs=5 * np.sqrt(rate**2 * (1 - rate**2) / batch))


@pytest.mark.parametrize(
    ("rate", "drawn"),
    [
        # Paper, appendix B.1: "after every dense layer except for the qkv-projections and directly
        # after adding positional- to patch embeddings": embedding, U_msa, and the MLP's two.
        ("dropout", [(7, 8), (7, 8), (7, 12), (7, 8)]),
        ("attention_dropout", [(2, 7, 7)]),
        ("drop_path", [(1, 1), (1, 1)]),
    ],
)
def test_each_kind_draws_where_it_should_and_nowhere_else(rate, drawn):
    model = tiny(num_layers=1, **{rate: 0.3})
    params, images = randomised(model), images_for(model, batch=2)

    def train(key):
        return model.apply(params, images, train=True, key=key)[0]

    traced = equations(jax.make_jaxpr(train)(jax.random.key(0)))
    shapes = [eqn.params["shape"] for eqn, _ in traced if eqn.primitive.name == "random_bits"]
    assert sorted(shapes) == sorted((2, *shape) for shape in drawn)


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_what_a_branch_adds_has_elements_dropped_at_the_rate(branch):
    """The other branch is silenced; the second block's input is the first one's output."""
    model = tiny(dropout=0.25)
    params, images = randomised(model), images_for(model, batch=100)
    other = {"attention": "mlp", "mlp": "attention"}[branch]
    block = params["encoder"]["block01"]
    block[other] = jax.tree.map(np.zeros_like, block[other])
    key = jax.random.key(2, impl="rbg")
    _, out = jax.jit(lambda: model.apply(params, images, train=True, key=key))()
    dropped = np.asarray(out["block01"] == out["block00"])
    sigma = np.sqrt(0.25 * 0.75 / dropped.size)
    assert dropped.mean() == pytest.approx(0.25, abs=5 * sigma)


def test_dropout_acts_on_the_embedded_patches():
    model = tiny(dropout=0.5, num_layers=1)
    params, images = randomised(model), images_for(model, batch=1)
    block = params["encoder"]["block00"]
    block |= {name: jax.tree.map(np.zeros_like, block[name]) for name in ("attention", "mlp")}
    key = jax.random.key(0, impl="rbg")
    _, out = jax.jit(lambda: model.apply(params, images, train=True, key=key))()
    embedded = paper.forward(params, images)["block00"]  # the branches add nothing
    kept = np.asarray(out["block00"] != 0)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(out["block00"][kept], 2 * embedded[kept], rtol=1e-5)
