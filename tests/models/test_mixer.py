"""MLP-Mixers equal eq. 1 of arXiv 2105.01601, written here a second time in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_walk import macs

from tests.models import paper_numpy as paper
from vit_jax.models import mixer
from vit_jax.models.configs import MixerConfig
from vit_jax.models.mixer import Mixer
from vit_jax.models.model import Model

# hidden_size, num_layers, tokens_mlp_dim, mlp_dim: table 1 of the paper.
SIZES = {"s": (512, 8, 256, 2048), "b": (768, 12, 384, 3072), "l": (1024, 24, 512, 4096)}

# Parameters with 1000 classes, as timm 1.0.31 counts them (`mixer_s16_224`, …).
PARAMETERS = {
    ("s", 16): 18_528_264,
    ("s", 32): 19_104_624,
    ("b", 16): 59_880_472,
    ("b", 32): 60_293_428,
    ("l", 16): 208_196_168,
    ("l", 32): 206_939_264,
}

NOISY = {"dropout": 0.3, "drop_path": 0.4}


def tiny(**fields) -> Model:
    """Two blocks of width 8 on 8 x 12 images in 4 x 4 patches; 3 classes."""
    sizes = {
        "hidden_size": 8, "num_layers": 2, "tokens_mlp_dim": 5, "mlp_dim": 12, "patch_size": 4,
        "image_size": (8, 12), "num_classes": 3,
    }  # fmt: skip
    return Model("tiny", MixerConfig(**(sizes | fields)))


def randomised(model: Model, seed: int = 0):
    """Every parameter random. A scanned model gets its unrolled twin's numbers, stacked."""
    if model.config.scan:
        params = randomised(tiny(**vars(model.config) | {"scan": False}), seed)
        return stacked(params)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.abstract_params)


def stacked(params):
    return params | {"encoder": {"block": paper.stack_layers(paper.blocks_of(params))}}


def images_for(model: Model, batch: int = 2):
    shape = (batch, *model.config.image_size, model.config.channels)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def reference(model: Model, params, images) -> dict:
    """Eq. 1: a column of X at a time through the tokens' MLP, a row through the channels'."""
    c, p = model.config, paper.as_float64(params)
    every = []
    for image in np.asarray(images, np.float64):
        x, _ = paper.patch_embedding(image, p["embed"])
        out = {"patches": x}
        for i, block in enumerate(paper.blocks_of(p)):
            normed = paper.layer_norm(x, block["norm1"], c.layernorm_eps)
            columns = [
                paper.mlp(normed[:, channel], block["token_mixing"], c.gelu)
                for channel in range(c.hidden_size)
            ]
            u = x + np.stack(columns, axis=1)
            normed = paper.layer_norm(u, block["norm2"], c.layernorm_eps)
            rows = [paper.mlp(row, block["channel_mixing"], c.gelu) for row in normed]
            out[f"block{i:02d}"] = x = u + np.stack(rows)
        out["encoded"] = x = paper.layer_norm(x, p["norm"], c.layernorm_eps)
        out["pre_logits"] = x = x.mean(axis=0)
        out["logits"] = x @ p["head"]["kernel"] + p["head"]["bias"] if "head" in p else x
        every.append(out)
    return {name: np.stack([one[name] for one in every]) for name in every[0]}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gelu": "exact"},
        {"scan": True, "num_layers": 3},
        {"num_classes": 0},
        {"layernorm_eps": 0.1},
        {"channels": 1, "image_size": (12, 4)},
    ],
    ids=str,
)
def test_logits_and_every_intermediate_equal_the_papers_equation(fields):
    model = tiny(**fields)
    params, images = randomised(model), images_for(model)
    logits, out = jax.jit(model.apply)(params, images)
    expected = reference(model, params, images)
    np.testing.assert_allclose(logits, expected.pop("logits"), rtol=1e-5, atol=1e-5)
    assert set(out) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(out[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("changed", [{"gelu": "exact"}, {"layernorm_eps": 0.1}], ids=str)
def test_the_comparison_is_fine_enough_to_tell_the_options_apart(changed):
    params, images = randomised(tiny()), images_for(tiny())
    ours = reference(tiny(), params, images)["logits"]
    other = reference(tiny(**changed), params, images)["logits"]
    assert np.abs(ours - other).max() > 3e-5


@pytest.mark.parametrize(("size", "patch"), PARAMETERS)
def test_the_published_parameter_counts_are_met_to_the_last_one(size, patch):
    hidden_size, num_layers, tokens_mlp_dim, mlp_dim = SIZES[size]
    config = MixerConfig(
        hidden_size=hidden_size, num_layers=num_layers, tokens_mlp_dim=tokens_mlp_dim,
        mlp_dim=mlp_dim, patch_size=patch, scan=True,
    )  # fmt: skip
    assert Model("mixer", config).num_params == PARAMETERS[size, patch]


def test_parameters_have_their_documented_paths_and_shapes():
    def mlp(width, hidden):
        return {
            "fc1": {"kernel": (width, hidden), "bias": (hidden,)},
            "fc2": {"kernel": (hidden, width), "bias": (width,)},
        }

    norm = {"scale": (8,), "bias": (8,)}
    block = {
        "norm1": norm, "token_mixing": mlp(6, 5), "norm2": norm, "channel_mixing": mlp(8, 12),
    }  # fmt: skip
    params = tiny().abstract_params
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "embed": {"kernel": (4, 4, 3, 8), "bias": (8,)},
        "encoder": {"block00": block, "block01": block},
        "norm": norm,
        "head": {"kernel": (8, 3), "bias": (3,)},
    }
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert (tiny().config.grid, tiny().config.num_tokens) == ((2, 3), 6)


def loss(model):
    images, key = images_for(model), jax.random.key(3, impl="rbg")

    def of(params):
        logits, out = model.apply(params, images, train=True, key=key)
        return jnp.sum(logits**2), out

    return jax.jit(jax.value_and_grad(of, has_aux=True))


@pytest.mark.parametrize(
    ("scan", "remat"),
    [(False, "full"), (False, "dots"), (True, "none"), (True, "full"), (True, "dots")],
)
def test_layout_and_recomputation_change_no_value_and_no_gradient(scan, remat):
    """With dropout and stochastic depth on: the draws are the same too."""
    plain = tiny(**NOISY)
    (expected, expected_out), expected_grads = loss(plain)(randomised(plain))
    model = tiny(**NOISY, scan=scan, remat=remat)
    (value, out), grads = loss(model)(randomised(model))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    expected_grads = stacked(expected_grads) if scan else expected_grads
    for ours, theirs in ((out, expected_out), (grads, expected_grads)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs
        )


def test_gradients_are_finite_and_reach_every_parameter():
    model = tiny()
    _, grads = loss(model)(randomised(model))
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("fields", [{"dropout": 0.3}, {"drop_path": 0.4}], ids=str)
def test_training_is_random_by_its_key_alone_and_evaluation_is_not(fields):
    model = tiny(**fields)
    params, images = randomised(model), images_for(model, batch=16)
    plain = reference(model, params, images)["logits"]

    @jax.jit
    def train(seed):
        return model.apply(params, images, train=True, key=jax.random.key(seed))[0]

    np.testing.assert_array_equal(train(0), train(0))
    assert np.abs(train(0) - train(1)).max() > 1e-3
    assert np.abs(train(0) - plain).max() > 1e-3
    evaluated, _ = jax.jit(model.apply)(params, images)
    np.testing.assert_allclose(evaluated, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise", ["dropout", "drop_path"])
@pytest.mark.parametrize("silent", ["token_mixing", "channel_mixing"])
def test_each_of_a_blocks_mlps_is_dropped_from_on_its_own(silent, noise):
    """With one of the two MLPs silenced in every block, the other one's draws show."""
    model = tiny(**{noise: 0.4})
    params, images = randomised(model), images_for(model, batch=16)
    for block in params["encoder"].values():
        block[silent]["fc2"] = jax.tree.map(np.zeros_like, block[silent]["fc2"])
    train = jax.jit(lambda key: model.apply(params, images, train=True, key=key)[0])
    assert np.abs(train(jax.random.key(0)) - train(jax.random.key(1))).max() > 1e-3


def test_half_precision_arithmetic_stays_close_and_ends_in_float32():
    model = tiny(dtype="bfloat16", scan=True)
    params, images = randomised(model), images_for(model)
    logits, out = jax.jit(model.apply)(params, images)
    expected = reference(model, params, images)["logits"]
    assert logits.dtype == np.float32
    assert {leaf.dtype.name for leaf in out.values()} == {"bfloat16"}
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_a_new_model_answers_with_its_heads_bias():
    model = tiny(head_bias=-4.0)
    logits, _ = jax.jit(model.apply)(model.init(), images_for(model))
    np.testing.assert_array_equal(logits, np.full((2, 3), -4.0))


def test_it_is_called_as_a_vit_is():
    def called(images):
        module = Mixer(tiny().config, nnx.Rngs(params=jax.random.key(0)))
        return module(images, return_weights=True, gather=lambda block, stack: block)

    logits, out = jax.eval_shape(called, images_for(tiny()))
    assert logits.shape == (2, 3)
    assert {name: leaf.shape for name, leaf in out.items()} == {
        "patches": (2, 6, 8),
        "block00": (2, 6, 8),
        "block01": (2, 6, 8),
        "encoded": (2, 6, 8),
        "pre_logits": (2, 8),
    }


def traced_macs(model):
    image = jax.ShapeDtypeStruct((1, *model.config.image_size, model.config.channels), np.float32)
    return macs(jax.make_jaxpr(lambda p, x: model.apply(p, x)[0])(model.abstract_params, image))


@pytest.mark.parametrize(
    "fields",
    [{}, {"scan": True, "num_layers": 5}, {"num_classes": 0, "channels": 5}, {"remat": "full"}],
    ids=str,
)
def test_the_count_from_sizes_is_that_of_the_traced_model(fields):
    model = tiny(**fields)
    assert mixer.forward_macs(model.config) == traced_macs(model)


def test_the_count_is_that_of_timms_model():
    """`mixer_b16_224`, by torch.utils.flop_counter on timm 1.0.31."""
    assert mixer.forward_macs(MixerConfig()) == 12_601_767_936


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("tokens_mlp_dim", 0, "a whole number of at least 1"),
        ("num_classes", -1, "a whole number of at least 0"),
        ("drop_path", 1.0, "a number in [0, 1)"),
        ("layernorm_eps", 0.0, "a positive number"),
        ("gelu", "relu", "one of "),
        ("remat", "some", "one of none, full, dots"),
        ("image_size", (224, 100), "(224, 96) or (224, 112) would work"),
    ],
)
def test_a_field_that_does_not_fit_is_told_with_what_would(field, value, wanted):
    with pytest.raises(ValueError, match=f"^{field} ") as error:
        MixerConfig(**{field: value})
    assert wanted in str(error.value)
