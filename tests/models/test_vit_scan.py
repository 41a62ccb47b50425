"""One scanned block, or blocks unrolled; recomputed in the backward pass, or kept: one function."""

import jax
import jax.numpy as jnp
import numpy as np
import paper_numpy as paper
import pytest
from jaxpr_walk import macs, primitives
from tiny_vit import images_for, randomised, tiny

STOCHASTIC = {"dropout": 0.2, "attention_dropout": 0.3, "drop_path": 0.4}


def loss(model, images, key=None):
    def of(params):
        logits, out = model.apply(params, images, train=key is not None, key=key)
        return jnp.sum(logits**2), out

    return jax.value_and_grad(of, has_aux=True)


def stacked(params):
    """An unrolled model's tree in the scanned model's layout."""
    return params | {"encoder": {"block": paper.stack_layers(paper.blocks_of(params))}}


def assert_trees_close(ours, theirs, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs
    )


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "with every dropout"])
def test_scanned_and_unrolled_models_have_the_same_values_and_gradients(train):
    fields = {"num_layers": 3, "qk_norm": True, "layer_scale": 0.1} | (STOCHASTIC if train else {})
    unrolled, scanned = tiny(**fields), tiny(**fields, scan=True)
    params, images = randomised(unrolled), images_for(unrolled)
    key = jax.random.key(3, impl="rbg") if train else None
    (value, out), grads = jax.jit(loss(unrolled, images, key))(params)
    (scan_value, scan_out), scan_grads = jax.jit(loss(scanned, images, key))(stacked(params))
    assert scan_value == pytest.approx(float(value), rel=1e-5)
    assert_trees_close(scan_out, out, 1e-5)
    assert_trees_close(scan_grads, stacked(grads), 2e-5)


def test_a_scanned_model_starts_from_the_unrolled_models_bits_layer_by_layer():
    unrolled, scanned = tiny(layer_scale=0.1).init(7), tiny(layer_scale=0.1, scan=True).init(7)
    layers = paper.blocks_of(scanned)
    assert len(layers) == 2
    jax.tree.map(np.testing.assert_array_equal, layers, paper.blocks_of(unrolled))
    del scanned["encoder"], unrolled["encoder"]
    jax.tree.map(np.testing.assert_array_equal, scanned, unrolled)
    kernels = [layer["mlp"]["fc1"]["kernel"] for layer in layers]
    assert not np.array_equal(kernels[0], kernels[1])


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_recomputation_changes_no_gradient(scan):
    plain = tiny(scan=scan, **STOCHASTIC)
    params, images, key = randomised(plain), images_for(plain), jax.random.key(5, impl="rbg")
    (value, _), grads = jax.jit(loss(plain, images, key))(params)
    for remat in ("full", "dots"):
        model = tiny(scan=scan, remat=remat, **STOCHASTIC)
        (again, _), same = jax.jit(loss(model, images, key))(params)
        assert again == pytest.approx(float(value), rel=1e-6), remat
        assert_trees_close(same, grads, 1e-5)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_recomputation_is_none_then_attention_alone_then_everything(scan):
    """Counted in the traced gradient: what is not kept is multiplied again."""
    work = {}
    for remat in ("none", "dots", "full"):
        model = tiny(scan=scan, remat=remat)
        gradient = loss(model, images_for(model, batch=1))
        work[remat] = macs(jax.make_jaxpr(gradient)(randomised(model)))
    c = tiny().config
    attention = c.num_layers * 2 * c.num_tokens**2 * c.hidden_size
    dense = c.num_layers * c.num_tokens * c.hidden_size * (4 * c.hidden_size + 2 * c.mlp_dim)
    assert work["none"] < work["dots"] <= work["none"] + attention
    # The last product of a block is not needed again, so a little less than one forward pass.
    assert work["none"] + attention < work["full"] <= work["none"] + attention + dense


def test_stacked_layers_trace_one_block_and_unrolled_ones_each():
    def lines(**fields):
        model = tiny(**fields)
        return len(str(jax.make_jaxpr(model.apply)(randomised(model), images_for(model))))

    assert "scan" in primitives(jax.make_jaxpr(tiny(scan=True).apply)(
        randomised(tiny(scan=True)), images_for(tiny())
    ))  # fmt: skip
    assert lines(num_layers=8, scan=True) < 1.3 * lines(num_layers=2, scan=True)
    assert lines(num_layers=8) > 2 * lines(num_layers=2)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_gather_maps_the_parameters_of_every_block_and_of_nothing_else(scan):
    model = tiny(scan=scan)
    params, images = randomised(model), images_for(model)
    doubled = params | {"encoder": jax.tree.map(lambda leaf: 2 * leaf, params["encoder"])}

    def gather(block):
        assert block["norm1"]["scale"].shape == (8,)  # one layer's, also where they are stacked
        return jax.tree.map(lambda leaf: 2 * leaf, block)

    gathered, _ = jax.jit(lambda p, x: model.apply(p, x, gather=gather))(params, images)
    expected = paper.forward(doubled, images)["logits"]
    np.testing.assert_allclose(gathered, expected, rtol=1e-5, atol=1e-5)
