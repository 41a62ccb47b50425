"""Non-local blocks equal their paper's equations, written here a second time in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resnet import Pure, all_macs, assert_close, group_norm, image_of, images, random_like

from tests.models import paper_numpy as paper
from vit_jax.models import create_model
from vit_jax.models.configs import NonLocalConfig
from vit_jax.models.model import Model
from vit_jax.models.nonlocal_blocks import NonLocal, places

AFFINITIES = ("gaussian", "embedded", "dot", "concatenation")
TINY = {"resnet_layers": (1, 2, 3, 1), "image_size": (64, 48), "num_classes": 3}


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def block(x, p, affinity, eps):
    """Equations 1 to 6, one pair of positions at a time."""
    out = np.empty_like(x)
    for b, image in enumerate(x):
        rows = image.reshape(-1, image.shape[-1])
        n = len(rows)
        f = np.empty((n, n))
        for i in range(n):
            for j in range(n):
                if affinity == "gaussian":
                    f[i, j] = rows[i] @ rows[j]
                else:
                    theta, phi = dense(rows[i], p["theta"]), dense(rows[j], p["phi"])
                    if affinity == "concatenation":
                        f[i, j] = max(0, np.concatenate([theta, phi]) @ p["pair"].ravel())
                    else:
                        f[i, j] = theta @ phi
        softmax = affinity in ("gaussian", "embedded")
        weights = paper.softmax(f) if softmax else f / n
        y = dense(weights @ dense(rows, p["g"]), p["out"]).reshape(image.shape)
        out[b] = image + group_norm(y[None], p["norm"], eps)[0]
    return out


def made(affinity):
    return Pure(lambda rngs: NonLocal(64, affinity, eps=1e-5, dtype=jnp.float32, rngs=rngs))


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_a_block_is_its_equations(affinity):
    module, x = made(affinity), images(3, 5, 64)
    params = paper.as_float64(module.params)
    assert_close(module(module.params, x), block(np.asarray(x, np.float64), params, affinity, 1e-5))


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_gradients_are_finite_differences(affinity):
    module, x, cotangent = made(affinity), images(2, 3, 64), images(2, 3, 64, seed=2)
    grads = jax.grad(lambda p: jnp.sum(module.run(p, x) * cotangent))(module.params)
    params, rng = paper.as_float64(module.params), np.random.default_rng(3)
    towards = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)

    def loss(step):
        p = jax.tree.map(lambda p, d: p + step * d, params, towards)
        return np.sum(block(np.asarray(x, np.float64), p, affinity, 1e-5) * cotangent)

    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), grads, towards)))
    assert along == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, rel=1e-3)


def test_a_new_block_passes_its_input_on():
    def both(key, x):
        from flax import nnx

        return NonLocal(64, "embedded", eps=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(params=key))(x)

    x = images(4, 4, 64)
    np.testing.assert_array_equal(jax.jit(both)(jax.random.key(0), x), x)


def test_blocks_stand_where_the_paper_puts_them():
    """0-based in its code: after res3 {1, 3} and res4 {1, 3, 5}; R101: res4 {6, 13, 20}."""
    r50, r101 = (3, 4, 6, 3), (3, 4, 23, 3)
    assert places(r50, 1) == [(3, 6)]  # before the last one of res4
    assert places(r50, 5) == [(2, 3), (3, 1), (3, 3), (3, 5), (4, 1)]
    assert places(r101, 5) == [(2, 3), (3, 1), (3, 8), (3, 15), (3, 22)]
    assert len(places(r50, 10)) == 10
    assert places(r50, 0) == []


def test_parameters_are_those_of_the_papers_blocks():
    """526,592 at 512 channels, 2,101,760 at 1024."""
    plain = create_model("resnet50_gn").num_params
    assert create_model("nonlocal_resnet50_1").num_params - plain == 2_101_760
    assert create_model("nonlocal_resnet50_5").num_params - plain == 7_358_464
    assert create_model("nonlocal_resnet50_10").num_params - plain == 4 * 526_592 + 6 * 2_101_760


@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("blocks", [1, 5, 10])
def test_the_count_from_sizes_is_that_of_the_traced_model(affinity, blocks):
    model = Model("tiny", NonLocalConfig(**TINY, affinity=affinity, nonlocal_blocks=blocks))
    traced = jax.make_jaxpr(lambda p, x: model.apply(p, x)[0])
    assert model.macs == all_macs(traced(model.abstract_params, image_of(model)))


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_a_whole_model_trains_every_parameter(affinity):
    model = Model("tiny", NonLocalConfig(**TINY, affinity=affinity))
    params, x = random_like(model.abstract_params), images(64, 48)
    # Small logits, as in a new model: a softmax at its limit has no gradient.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 1e-3 * leaf if {"theta", "phi"} & {key.key for key in path} else leaf,
        params,
    )
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, x)[0] ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        # The bias of phi adds one number to all logits of a softmax, which changes nothing.
        assert np.abs(leaf).max() > 0 or ("phi" in str(path) and "bias" in str(path)), path


def test_what_has_no_place_for_blocks_is_refused():
    with pytest.raises(ValueError, match="four stages"):
        NonLocalConfig(resnet_layers=(1, 1))
    with pytest.raises(ValueError, match="0, 1, 5 or 10"):
        NonLocalConfig(nonlocal_blocks=3)
