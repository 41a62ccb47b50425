"""One scanned block, or blocks unrolled; recomputed in the backward pass, or kept: one function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_walk import equations, macs

from tests.models import paper_numpy as paper
from tests.models.tiny_vit import images_for, randomised, tiny

FIELDS = {
    "qk_norm": True, "layer_scale": 0.1,
    "dropout": 0.2, "attention_dropout": 0.3, "drop_path": 0.4,
}  # fmt: skip


def loss(model):
    images, key = images_for(model), jax.random.key(3, impl="rbg")

    def of(params):
        logits, out = model.apply(params, images, train=True, key=key)
        return jnp.sum(logits**2), out

    return jax.value_and_grad(of, has_aux=True)


def stacked(params):
    """An unrolled model's tree in the scanned model's layout."""
    return params | {"encoder": {"block": paper.stack_layers(paper.blocks_of(params))}}


def assert_trees_close(ours, theirs, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs
    )


@pytest.fixture(scope="module")
def plain():
    """Loss, intermediates and gradients of the unrolled model that keeps everything."""
    model = tiny(**FIELDS)
    return jax.jit(loss(model))(randomised(model))


@pytest.mark.parametrize(
    ("scan", "remat"),
    [(False, "full"), (False, "dots"), (True, "none"), (True, "full"), (True, "dots")],
)
def test_layout_and_recomputation_change_no_value_and_no_gradient(plain, scan, remat):
    """With every kind of dropout on: the draws are the same too."""
    model = tiny(**FIELDS, scan=scan, remat=remat)
    (value, out), grads = jax.jit(loss(model))(randomised(model))
    (expected, expected_out), expected_grads = plain
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert_trees_close(out, expected_out, 1e-5)
    assert_trees_close(grads, stacked(expected_grads) if scan else expected_grads, 2e-5)


def test_a_scanned_model_starts_from_the_unrolled_models_bits_layer_by_layer():
    unrolled, scanned = tiny().init(seed=7), tiny(scan=True).init(seed=7)
    layers = paper.blocks_of(scanned)
    assert len(layers) == 2
    jax.tree.map(np.testing.assert_array_equal, layers, paper.blocks_of(unrolled))
    del scanned["encoder"], unrolled["encoder"]
    jax.tree.map(np.testing.assert_array_equal, scanned, unrolled)
    kernels = [layer["mlp"]["fc1"]["kernel"] for layer in layers]
    assert not np.array_equal(kernels[0], kernels[1])


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_recomputation_is_none_then_attention_alone_then_everything(scan):
    """Counted in the traced gradient: what is not kept is multiplied again."""
    work = {}
    for remat in ("none", "dots", "full"):
        model = tiny(scan=scan, remat=remat)
        work[remat] = macs(jax.make_jaxpr(loss(model))(randomised(model)))
    c, batch = tiny().config, 2
    attention = batch * c.num_layers * 2 * c.num_tokens**2 * c.hidden_size
    dense = (
        batch * c.num_layers * c.num_tokens * c.hidden_size * (4 * c.hidden_size + 2 * c.mlp_dim)
    )
    assert work["none"] < work["dots"] <= work["none"] + attention
    # The last product of a block is not needed again, so a little less than one forward pass.
    assert work["none"] + attention < work["full"] <= work["none"] + attention + dense


def test_stacked_layers_trace_one_block_and_unrolled_ones_each():
    def equations_of(**fields):
        model = tiny(**fields)
        traced = jax.make_jaxpr(model.apply)(randomised(model), images_for(model))
        return sum(1 for _ in equations(traced))

    assert equations_of(num_layers=8, scan=True) < 1.3 * equations_of(num_layers=2, scan=True)
    assert equations_of(num_layers=8) > 3 * equations_of(num_layers=2)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_gather_maps_the_parameters_of_every_block_and_of_nothing_else(scan):
    model = tiny(scan=scan)
    params, images = randomised(model), images_for(model)
    doubled = params | {"encoder": jax.tree.map(lambda leaf: 2 * leaf, params["encoder"])}

    def gather(block, stack):
        assert block["norm1"]["scale"].shape == (8,)  # one layer's, also where they are stacked
        return jax.tree.map(lambda leaf: 2 * leaf, block)

    gathered, _ = jax.jit(lambda p, x: model.apply(p, x, gather=gather))(params, images)
    expected = paper.forward(doubled, images)["logits"]
    np.testing.assert_allclose(gathered, expected, rtol=1e-5, atol=1e-5)
