"""The forward pass is the paper's: equal to its equations in NumPy and float64."""

import jax
import numpy as np
import pytest

from tests.models import paper_numpy as paper
from tests.models.tiny_vit import images_for, randomised, tiny

CASES = {
    "class token, hidden tanh layer": {"pre_logits": True},
    "global average": {"pool": "gap"},
    "attention pooling": {"pool": "map"},
    "attention pooling past registers": {"pool": "map", "registers": 2},
    "fixed positions": {"posemb": "sincos2d"},
    "fixed positions, global average": {"posemb": "sincos2d", "pool": "gap"},
    "tall image": {"image_size": (12, 4)},
    "one channel": {"channels": 1},
    "five channels": {"channels": 5},
    "registers": {"registers": 3},
    "registers, global average": {"registers": 3, "pool": "gap"},
    "LayerScale": {"layer_scale": 0.1},
    "query-key norm": {"qk_norm": True},
    "exact GELU": {"gelu": "exact"},
    "exact GELU in the pool": {"gelu": "exact", "pool": "map"},
    "another epsilon": {"layernorm_eps": 0.1, "pool": "map", "qk_norm": True},
    "stacked layers": {"scan": True, "num_layers": 3, "qk_norm": True, "layer_scale": 0.1},
    "no head": {"num_classes": 0},
    "a patch of one pixel": {"patch_size": 1, "image_size": (2, 3)},
    "one block": {"num_layers": 1},
}


def reference(model, params, images, **changed):
    c = model.config
    options = {"pool": c.pool, "gelu": c.gelu, "eps": c.layernorm_eps} | changed
    return paper.forward(params, images, **options)


def forward(model, params, images, **how):
    return jax.jit(lambda p, x: model.apply(p, x, **how))(params, images)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_every_intermediate_equal_the_papers_equations(case):
    model = tiny(**CASES[case])
    params, images = randomised(model), images_for(model)
    logits, out = forward(model, params, images, attention_weights=True)
    expected = reference(model, params, images)
    np.testing.assert_allclose(logits, expected.pop("logits"), rtol=1e-5, atol=1e-5)
    assert set(out) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(out[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("changed", [{"gelu": "exact"}, {"eps": 0.1}, {"pool": "gap"}])
def test_the_comparison_is_fine_enough_to_tell_the_options_apart(changed):
    model = tiny()
    params, images = randomised(model), images_for(model)
    ours = reference(model, params, images)["logits"]
    other = reference(model, params, images, **changed)["logits"]
    assert np.abs(ours - other).max() > 3e-5


def test_layer_norm_adds_1e_minus_6_unless_told_otherwise():
    """Seen on activations so small that the epsilon is of the size of their variance."""
    model = tiny(num_layers=1)
    params, images = randomised(model), images_for(model)
    small = {"embed": params["embed"], "pos_embed": params["pos_embed"], "cls": params["cls"]}
    params |= jax.tree.map(lambda leaf: 1e-3 * leaf, small)
    logits, _ = forward(model, params, images)
    np.testing.assert_allclose(
        logits, reference(model, params, images, eps=1e-6)["logits"], rtol=1e-5, atol=1e-5
    )
    other = reference(model, params, images, eps=1e-5)["logits"]
    assert np.abs(logits - other).max() > 1e-2


def test_intermediates_have_the_documented_names_and_shapes():
    model = tiny(registers=3, num_layers=2)
    logits, out = jax.eval_shape(
        lambda p, x: model.apply(p, x, attention_weights=True),
        model.abstract_params,
        jax.ShapeDtypeStruct((5, 8, 12, 3), np.float32),
    )
    tokens = 1 + 3 + 6
    assert logits.shape == (5, 3)
    assert {name: leaf.shape for name, leaf in out.items()} == {
        "patches": (5, 6, 8),
        "block00": (5, tokens, 8),
        "block01": (5, tokens, 8),
        "attention00": (5, 2, tokens, tokens),
        "attention01": (5, 2, tokens, tokens),
        "encoded": (5, tokens, 8),
        "pre_logits": (5, 8),
    }
    assert model.config.num_tokens == tokens


@pytest.mark.parametrize("scan", [False, True])
def test_attention_weights_come_only_where_asked_for(scan):
    model = tiny(scan=scan)
    shape = jax.ShapeDtypeStruct((1, 8, 12, 3), np.float32)
    _, plain = jax.eval_shape(model.apply, model.abstract_params, shape)
    assert sorted(plain) == ["block00", "block01", "encoded", "patches", "pre_logits"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_weights_are_probabilities_in_float32(dtype):
    model = tiny(dtype=dtype)
    _, out = forward(model, randomised(model), images_for(model), attention_weights=True)
    for name in ("attention00", "attention01"):
        weights = np.asarray(out[name])
        assert weights.dtype == np.float32
        assert weights.min() >= 0
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "pool"), [("bfloat16", 0.05, "map"), ("bfloat16", 0.05, "cls")]
)
def test_half_precision_arithmetic_stays_close_and_ends_in_float32(dtype, tolerance, pool):
    model = tiny(dtype=dtype, pool=pool, scan=True)
    params, images = randomised(model), images_for(model)
    logits, out = forward(model, params, images)
    expected = reference(model, params, images)["logits"]
    assert logits.dtype == np.float32
    assert {leaf.dtype.name for leaf in out.values()} == {dtype}
    error = np.abs(np.asarray(logits) - expected).max()
    assert 0 < error < tolerance * np.abs(expected).max()


def test_parameters_and_gradients_are_float32_whatever_the_arithmetic():
    model = tiny(dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.abstract_params)} == {"float32"}
    grads = jax.eval_shape(
        jax.grad(lambda p, x: model.apply(p, x)[0].sum()),
        model.abstract_params,
        jax.ShapeDtypeStruct((1, 8, 12, 3), np.float32),
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {"float32"}


@pytest.mark.parametrize("pool", ["gap", "map"])
def test_without_positions_the_order_of_patches_does_not_matter(pool):
    """Self-attention alone is blind to order (paper, section 3.1), pooling over patches too."""
    model = tiny(pool=pool)
    params, images = randomised(model), images_for(model)
    params["pos_embed"]["grid"] *= 0
    swapped = np.concatenate([images[:, 4:], images[:, :4]], axis=1)  # the two rows of patches
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(
        apply(params, images)[0], apply(params, swapped)[0], rtol=1e-5, atol=1e-5
    )


def test_each_image_is_treated_on_its_own():
    model = tiny()
    params, images = randomised(model), images_for(model, batch=3)
    apply = jax.jit(model.apply)
    alone = np.concatenate([apply(params, images[i : i + 1])[0] for i in range(3)])
    np.testing.assert_allclose(apply(params, images)[0], alone, rtol=1e-5, atol=1e-5)
