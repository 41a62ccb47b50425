"""Gradients agree with slopes of the NumPy reference, measured in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import paper_numpy as paper
from tests.models.tiny_vit import images_for, randomised, tiny

MODELS = {
    "class token": {"pre_logits": True, "qk_norm": True, "layer_scale": 0.1, "registers": 1},
    "attention pooling": {"pool": "map", "gelu": "exact", "posemb": "sincos2d"},
    "stacked and recomputed": {"pool": "gap", "scan": True, "remat": "full"},
}


@pytest.mark.parametrize("case", MODELS)
def test_the_gradient_of_every_parameter_is_the_slope_of_the_reference(case):
    model = tiny(**MODELS[case])
    params, images = randomised(model), images_for(model, batch=1)
    target = np.array([[0.5, -1.0, 2.0]])
    options = {"pool": model.config.pool, "gelu": model.config.gelu}

    def slope(direction, h=1e-5):
        """d/dt of the loss along params + t * direction, by central differences."""

        def loss(t):
            at = jax.tree.map(lambda p, d: np.float64(p) + t * d, params, direction)
            return ((paper.forward(at, images, **options)["logits"] - target) ** 2).sum()

        return (loss(h) - loss(-h)) / (2 * h)

    grads = jax.jit(jax.grad(lambda p: jnp.sum((model.apply(p, images)[0] - target) ** 2)))(params)
    rng = np.random.default_rng(2)
    flat, tree = jax.tree_util.tree_flatten_with_path(grads)
    for i, (path, grad) in enumerate(flat):  # one parameter at a time, along a random direction
        direction = [np.zeros(leaf.shape) for _, leaf in flat]
        direction[i] = rng.standard_normal(grad.shape)
        measured = slope(jax.tree.unflatten(tree, direction))
        ours = float(np.sum(np.float64(grad) * direction[i]))
        assert ours == pytest.approx(measured, rel=1e-4, abs=1e-5), jax.tree_util.keystr(path)


def test_no_parameter_is_left_without_a_gradient():
    """Each one takes part in the function, but for the keys' bias, which softmax cancels."""
    model = tiny(pre_logits=True, layer_scale=0.1, registers=1)
    params, images = randomised(model), images_for(model)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, images)[0] ** 2)))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 1e-5, jax.tree_util.keystr(path)
    keys_bias = grads["encoder"]["block00"]["attention"]["qkv"]["bias"][1]
    assert np.abs(keys_bias).max() < 1e-5
