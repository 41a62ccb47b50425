"""A masked autoencoder equals the paper's description, written again in NumPy, one image and one
patch at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_walk import macs

from tests.models import paper_numpy as paper
from tests.models.tiny_vit import images_for, randomised
from vit_jax.errors import UserError
from vit_jax.models import create_model
from vit_jax.models.mae import image_of, noise_of, scales_of
from vit_jax.models.vit import patches_of

# As Transformers' ViTMAEForPreTraining counts them, positions too.
PARAMETERS = {
    "mae_vit_base_patch16_224": 111_907_840, "mae_vit_large_patch16_224": 329_541_888,
    "mae_vit_huge_patch14_224": 657_074_508,
}  # fmt: skip
SIZES = {
    "hidden_size": 8, "num_heads": 2, "num_layers": 2, "mlp_dim": 12, "image_size": (8, 16),
    "decoder_width": 12, "decoder_layers": 3, "decoder_heads": 3, "decoder_mlp_dim": 20,
    "mask_ratio": 0.6,
}  # fmt: skip
EPS = 1e-6


def mae(**fields):
    return create_model("mae_vit_mu_patch4_8", **(SIZES | fields))


def drawn(model, batch=2, seed=3):
    count = model.config.num_patches
    return np.random.default_rng(seed).uniform(size=(batch, count)).astype(np.float32)


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def predicted(p, image, noise, c):
    """The prediction of every patch of one image, and whether it is masked."""
    patches, _ = paper.patch_embedding(image, p["embed"])
    tokens = patches + p["pos_embed"]["grid"].reshape(patches.shape)
    first = sorted(range(len(noise)), key=lambda n: noise[n])
    visible = first[: math.floor(len(noise) * (1 - c.mask_ratio))]
    x = np.stack([p["cls"][0] + p["pos_embed"]["prefix"][0], *(tokens[n] for n in visible)])
    for block in paper.blocks_of(p):
        x, _ = paper.encoder_block(x, block, c.gelu, EPS)
    x = linear(paper.layer_norm(x, p["norm"], EPS), p["decoder_embed"])
    table = p["decoder_pos_embed"]
    y = [x[0] + table["prefix"][0]]
    for n, place in enumerate(table["grid"].reshape(len(noise), -1)):
        y.append((x[1 + visible.index(n)] if n in visible else p["mask_token"][0]) + place)
    y = np.stack(y)
    for name in sorted(p["decoder"]):
        y, _ = paper.encoder_block(y, p["decoder"][name], c.gelu, EPS)
    told = linear(paper.layer_norm(y, p["decoder_norm"], EPS), p["decoder_pred"])[1:]
    return told, np.array([n not in visible for n in range(len(noise))])


def test_the_prediction_is_the_papers():
    model = mae()
    params, images, noise = randomised(model), images_for(model, 3), drawn(model, 3)
    told, out = jax.jit(model.apply)(params, images, noise=noise)
    assert out["encoded"].shape == (3, 1 + 3, 8)  # of 8 patches, 40%, rounded down
    for i in range(3):
        expected, masked = predicted(paper.as_float64(params), images[i], noise[i], model.config)
        np.testing.assert_allclose(told[i], expected, atol=2e-5)
        np.testing.assert_array_equal(out["mask"][i], masked)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_papers_models_have_their_peers_parameter_counts(name):
    assert create_model(name, scan=True).num_params == PARAMETERS[name]


@pytest.mark.parametrize("fields", [{}, {"mask_ratio": 0.0}, {"scan": True}, {"remat": "full"}])
def test_the_count_of_multiplications_is_that_of_the_traced_model(fields):
    model = mae(**fields)
    image = jax.ShapeDtypeStruct((1, 8, 16, 3), np.float32)
    traced = macs(jax.make_jaxpr(lambda p, x: model.apply(p, x)[0])(model.abstract_params, image))
    assert model.macs == traced


def sines(rows, columns, width):
    """Of util/pos_embed.py in the authors' code: w goes first, frequencies are 10000^(-i / n)."""
    table = np.zeros((rows, columns, width))
    n = width // 4
    for y in range(rows):
        for x in range(columns):
            for half, place in ((0, x), (2 * n, y)):
                for i in range(n):
                    angle = place / 10_000 ** (i / n)
                    table[y, x, half + i] = math.sin(angle)
                    table[y, x, half + n + i] = math.cos(angle)
    return table


def test_positions_are_fixed_sines_of_which_the_class_token_has_none():
    model = mae()
    params = model.init()
    for name, width in (("pos_embed", 8), ("decoder_pos_embed", 12)):
        np.testing.assert_allclose(params[name]["grid"], sines(2, 4, width), atol=1e-6)
        assert not np.asarray(params[name]["prefix"]).any()

    def total(p):
        return jnp.square(model.apply(p, images_for(model))[0]).sum()

    gradient = jax.grad(total)(params)
    for name in ("pos_embed", "decoder_pos_embed"):
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient[name]))
    assert np.asarray(gradient["mask_token"]).any()
    assert np.asarray(gradient["decoder"]["block02"]["mlp"]["fc2"]["kernel"]).any()


def test_masked_pixels_are_not_seen():
    model = mae()
    params, images, noise = randomised(model), images_for(model), drawn(model)
    told, out = model.apply(params, images, noise=noise)
    patches = np.array(patches_of(images, 4))
    patches[np.asarray(out["mask"])] = 7.0
    other = image_of(patches, model.config.grid, 4)
    np.testing.assert_array_equal(model.apply(params, other, noise=noise)[0], told)


def test_stacked_layers_and_recomputed_ones_predict_the_same():
    plain = mae()
    params, images, noise = randomised(plain), images_for(plain), drawn(plain)
    expected, _ = plain.apply(params, images, noise=noise)
    again, _ = jax.jit(mae(remat="full").apply)(params, images, noise=noise)
    np.testing.assert_allclose(again, expected, atol=1e-5)
    stacked = dict(params)
    for stack in ("encoder", "decoder"):
        layers = [params[stack][name] for name in sorted(params[stack])]
        stacked[stack] = {"block": paper.stack_layers(layers)}
    scanned, _ = mae(scan=True).apply(stacked, images, noise=noise)
    np.testing.assert_allclose(scanned, expected, atol=1e-5)


def test_training_draws_masks_from_the_key_and_otherwise_every_image_has_the_same():
    model = mae()
    params, images = model.init(), images_for(model, 4)
    masks = [
        np.asarray(model.apply(params, images, train=True, key=jax.random.key(seed))[1]["mask"])
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    assert len({mask.tobytes() for mask in masks[0]}) > 1
    assert len({mask.tobytes() for mask in np.asarray(model.apply(params, images)[1]["mask"])}) == 1


def test_the_noise_of_an_image_does_not_depend_on_its_batch():
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 16, 3), dtype=np.uint8)
    images[8] = images[0]
    images[8, 7, 15, 2] ^= 1  # one bit of one pixel
    noise = np.asarray(noise_of(jnp.asarray(images), 32))
    alone = np.concatenate([noise_of(jnp.asarray(images[i : i + 1]), 32) for i in range(9)])
    np.testing.assert_array_equal(noise, alone)
    assert len({row.tobytes() for row in noise}) == 9
    assert (np.asarray(noise_of(jnp.asarray(images), 32, seed=1)) != noise).all(axis=1).any()
    assert 0.4 < noise.mean() < 0.6


def test_patches_are_cut_and_put_together_again():
    images = np.arange(2 * 8 * 12 * 3, dtype=np.float32).reshape(2, 8, 12, 3)
    patches = np.asarray(patches_of(images, 4))
    for number in range(6):
        top, left = 4 * (number // 3), 4 * (number % 3)
        np.testing.assert_array_equal(
            patches[1, number], images[1, top : top + 4, left : left + 4].reshape(-1)
        )
    np.testing.assert_array_equal(image_of(patches, (2, 3), 4), images)
    mean, deviation = scales_of(patches)
    np.testing.assert_allclose(mean[1, 2, 0], patches[1, 2].mean(), rtol=1e-6)
    expected = np.sqrt(patches[1, 2].astype(float).var(ddof=1) + 1e-6)
    np.testing.assert_allclose(deviation[1, 2, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mask_ratio": 0.99}, "mask_ratio 0.99 leaves none of 8 patches visible"),
        ({"mask_ratio": 1.0}, r"mask_ratio is a number in \[0, 1\)"),
        ({"decoder_width": 10}, "decoder_width is divisible by 4 and by decoder_heads, 3, not 10"),
        ({"num_classes": 5}, "num_classes is 0: a masked autoencoder has no head, .* not 5"),
        ({"registers": 2}, "a masked autoencoder has no registers, not 2"),
        ({"pool": "gap"}, "pool is one of cls"),
        ({"image_size": (8, 18)}, r"not divisible by patch_size 4; \(8, 16\) or \(8, 20\)"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(fields, told):
    with pytest.raises(UserError, match=told):
        mae(**fields)
