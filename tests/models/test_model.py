"""`Model`: parameters are a plain dict, functions are pure, mistakes get a clear line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny_vit import images_for, randomised, tiny
from vit_jax.models.data_config import DataConfig


@pytest.fixture(scope="module")
def fresh():
    """One model with each kind of parameter that `cls` has, at its start."""
    model = tiny(
        hidden_size=32, mlp_dim=64, num_layers=1, registers=2, layer_scale=0.1, head_bias=-2.5
    )
    return model, model.init(seed=0)


@pytest.mark.parametrize(
    "shape",
    [(2, 12, 8, 3), (2, 8, 12, 1), (2, 8, 16, 3), (8, 12, 3), (1, 2, 8, 12, 3)],
    ids=["transposed", "channels", "size", "no batch", "two batches"],
)
def test_images_of_another_shape_are_refused_with_both_shapes(shape):
    model = tiny()
    with pytest.raises(ValueError, match="takes images") as error:
        model.apply(model.abstract_params, jnp.zeros(shape))
    assert "[batch, 8, 12, 3]" in str(error.value)
    assert str(list(shape)) in str(error.value)


def test_training_without_a_key_is_refused_with_what_would_work():
    model = tiny()
    with pytest.raises(ValueError, match=r"needs a key: jax\.random\.key"):
        model.apply(model.abstract_params, jnp.zeros((1, 8, 12, 3)), train=True)


def test_init_gives_what_the_abstract_parameters_announce(fresh):
    model, params = fresh
    announced = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), model.abstract_params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), params) == announced
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert model.num_params == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameters_are_plain_dicts_of_arrays(fresh):
    def check(tree):
        assert type(tree) is dict
        for leaf in tree.values():
            if not isinstance(leaf, jax.Array):
                check(leaf)

    check(fresh[1])


def test_a_seed_decides_the_parameters(fresh):
    model, params = fresh
    init = jax.jit(model.init_fn)
    jax.tree.map(np.testing.assert_array_equal, init(jax.random.key(0)), params)
    other = init(jax.random.key(1))
    for tree in ("embed", "pos_embed", "registers"):
        ours, theirs = jax.tree.leaves(params[tree])[-1], jax.tree.leaves(other[tree])[-1]
        assert not np.array_equal(ours, theirs), tree


def test_a_fresh_model_answers_with_the_bias_of_its_head(fresh):
    """The head's kernel starts at zero (paper, section 3.2)."""
    model, params = fresh
    logits, _ = jax.jit(model.apply)(params, images_for(model))
    np.testing.assert_array_equal(logits, np.full((2, 3), -2.5, np.float32))


def test_parameters_start_at_the_papers_distributions(fresh):
    _, params = fresh
    block, width, hidden = params["encoder"]["block00"], 32, 64
    xavier = np.sqrt(6 / (width + width))  # of q, k and v each, not of the three together
    for i in range(3):
        largest = np.abs(block["attention"]["qkv"]["kernel"][:, i]).max()
        assert 0.95 * xavier < largest <= xavier
    assert 0.95 * xavier < np.abs(block["attention"]["out"]["kernel"]).max() <= xavier
    largest = np.abs(block["mlp"]["fc1"]["kernel"]).max()
    assert 0.95 < largest / np.sqrt(6 / (width + hidden)) <= 1
    assert 0 < np.abs(block["mlp"]["fc1"]["bias"]).max() < 1e-5
    assert np.std(params["embed"]["kernel"]) == pytest.approx(np.sqrt(1 / (4 * 4 * 3)), rel=0.1)
    assert np.std(params["pos_embed"]["grid"]) == pytest.approx(0.02, rel=0.2)
    np.testing.assert_array_equal(params["cls"], np.zeros((1, width)))
    np.testing.assert_array_equal(block["norm1"]["scale"], np.ones(width))
    np.testing.assert_array_equal(block["scale2"]["gamma"], np.full(width, 0.1, np.float32))


def test_apply_is_pure_and_works_under_vmap():
    model = tiny()
    models = [randomised(model, seed) for seed in range(3)]
    before = jax.tree.map(np.copy, models[0])
    images = images_for(model)
    apply = jax.jit(model.apply)
    one = [apply(params, images)[0] for params in models]
    together, _ = jax.jit(jax.vmap(model.apply, in_axes=(0, None)))(
        jax.tree.map(lambda *leaves: np.stack(leaves), *models), images
    )
    np.testing.assert_allclose(together, np.stack(one), rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, models[0], before)


def test_building_a_model_allocates_no_array():
    before = len(jax.live_arrays())
    model = tiny(num_layers=3)
    assert model.num_params > 0
    assert len(jax.live_arrays()) <= before  # others may be collected meanwhile


@pytest.mark.parametrize(
    ("mean", "std", "low", "high"), [(0.5, 0.5, -1, 1), (0.0, 1.0, 0, 1), (0.25, 0.125, -2, 6)]
)
def test_normalise_maps_bytes_to_the_models_value_range(mean, std, low, high):
    pixels = np.array([0, 51, 255], np.uint8)
    values = DataConfig(mean=mean, std=std).normalise(pixels)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [low, low + (high - low) / 5, high], atol=1e-6)
