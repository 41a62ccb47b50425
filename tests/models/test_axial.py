"""Axial attention equals its papers' equations, written here a second time in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resnet import Pure, all_macs, assert_close, group_norm, image_of, images, random_like

from tests.models import paper_numpy as paper
from vit_jax.models import create_model
from vit_jax.models.axial_resnet import AxialAttention, AxialUnit
from vit_jax.models.configs import AxialResNetConfig, AxialViTConfig
from vit_jax.models.model import Model

TINY_RESNET = {"resnet_layers": (1, 2), "stage_width": 64, "spans": (4, 3), "num_classes": 3}
TINY_VIT = {
    "hidden_size": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 48, "patch_size": 4,
    "image_size": (16, 24), "num_classes": 3,
}  # fmt: skip


# The definitions.


def logits_normed(x, p, eps):
    """[lines, n, n, heads] of one image: each head's own mean and variance over all of them."""
    out = np.empty_like(x)
    for h in range(x.shape[-1]):
        out[..., h] = (x[..., h] - x[..., h].mean()) / np.sqrt(x[..., h].var() + eps)
    return out * p["scale"] + p["bias"]


def attention(x, p, heads, span, eps):
    """Eq. 4, line by line, head by head and pair by pair."""
    batch, lines, n, width = x.shape
    dim = width // heads
    out = np.empty_like(x)
    qkv = group_norm(x @ p["qkv"]["kernel"], p["qkv_norm"], eps)
    qkv = qkv.reshape(batch, lines, n, heads, 2 * dim)
    half = dim // 2
    for b in range(batch):
        raw = np.zeros((3, lines, n, n, heads))
        for line, i, j, h in np.ndindex(lines, n, n, heads):
            q, k = qkv[b, line, i, h, :half], qkv[b, line, j, h, half:dim]
            r = p["relative"][np.clip(j - i + span - 1, 0, 2 * span - 2)]
            raw[:, line, i, j, h] = q @ k, q @ r[:half], k @ r[half:dim]
        normed = logits_normed(np.moveaxis(raw, 0, -2).reshape(lines, n, n, -1), p["logit_norm"],
                               eps)  # fmt: skip
        logits = normed.reshape(lines, n, n, 3, heads).sum(axis=-2)
        values, places = np.zeros((2, lines, n, heads, dim))
        for line, i, h in np.ndindex(lines, n, heads):
            near = [j for j in range(n) if abs(j - i) < span]
            weights = paper.softmax(np.array([logits[line, i, j, h] for j in near]))
            values[line, i, h] = sum(
                w * qkv[b, line, j, h, dim:] for w, j in zip(weights, near, strict=True)
            )
            places[line, i, h] = sum(
                w * p["relative"][j - i + span - 1, dim:]
                for w, j in zip(weights, near, strict=True)
            )
        values, places = (v.reshape(1, lines, n, width) for v in (values, places))
        out[b] = (
            group_norm(values, p["value_norm"], eps) + group_norm(places, p["place_norm"], eps)
        )[0]
    return out


def axial_block(z, p, grid, kind="tanh", eps=1e-6):
    """Appendix D.6 for one image [patches, width]: rows, then columns."""
    z = z.reshape(*grid, -1)

    def block(lines, p):
        done = []
        for x in lines:
            x = x + paper.msa(paper.layer_norm(x, p["norm1"], eps), p["attention"], eps)[0]
            done.append(x + paper.mlp(paper.layer_norm(x, p["norm2"], eps), p["mlp"], kind))
        return np.stack(done)

    z = block(z, p["rows"])
    z = block(z.swapaxes(0, 1), p["columns"]).swapaxes(0, 1)
    return z.reshape(grid[0] * grid[1], -1)


# The models are their definitions.


@pytest.mark.parametrize("span", [2, 4, 6])
def test_axial_attention_is_its_equation(span):
    module = Pure(
        lambda rngs: AxialAttention(32, heads=4, span=span, eps=1e-5, dtype=jnp.float32, rngs=rngs)
    )
    x = images(3, 5, 32)
    expected = attention(np.asarray(x, np.float64), paper.as_float64(module.params), 4, span, 1e-5)
    assert_close(module(module.params, x), expected)


def test_gradients_are_finite_differences():
    module = Pure(
        lambda rngs: AxialAttention(32, heads=2, span=3, eps=1e-5, dtype=jnp.float32, rngs=rngs)
    )
    x, cotangent = images(2, 4, 32, batch=1), images(2, 4, 32, batch=1, seed=2)
    grads = jax.grad(lambda p: jnp.sum(module.run(p, x) * cotangent))(module.params)
    params, rng = paper.as_float64(module.params), np.random.default_rng(3)
    towards = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)

    def loss(step):
        p = jax.tree.map(lambda p, d: p + step * d, params, towards)
        return np.sum(attention(np.asarray(x, np.float64), p, 2, 3, 1e-5) * cotangent)

    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), grads, towards)))
    assert along == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, rel=1e-3)


def test_a_unit_attends_along_the_height_and_then_along_the_width():
    conv = {"padding": "symmetric", "standardization": "none", "dtype": jnp.float32}
    how = {"heads": 2, "eps": 1e-5}
    module = Pure(lambda rngs: AxialUnit(64, 32, 64, 1, span=5, conv=conv | {"rngs": rngs}, **how))
    p, x = paper.as_float64(module.params), images(4, 5, 64)
    y = np.asarray(x, np.float64) @ p["conv1"]["kernel"][0, 0]
    y = np.maximum(group_norm(y, p["norm1"], 1e-5), 0)
    y = attention(y.swapaxes(1, 2), p["height"], 2, 5, 1e-5).swapaxes(1, 2)
    y = np.maximum(attention(y, p["width"], 2, 5, 1e-5), 0)
    y = group_norm(y @ p["conv2"]["kernel"][0, 0], p["norm2"], 1e-5)
    assert_close(module(module.params, x), np.maximum(y + x, 0))


@pytest.mark.parametrize("scan", [False, True])
def test_an_axial_vits_blocks_are_their_definition(scan):
    model = Model("tiny", AxialViTConfig(**TINY_VIT, scan=scan))
    params, x = random_like(model.abstract_params), images(16, 24)
    logits, out = jax.jit(model.apply)(params, x)
    p = paper.as_float64(params)
    for image in range(2):
        z = np.asarray(out["patches"][image], np.float64) + p["pos_embed"]["grid"].reshape(24, -1)
        stacked = p["encoder"].get("block")
        for i in range(2):
            layer = paper.take_layer(stacked, i) if scan else p["encoder"][f"block{i:02d}"]
            z = axial_block(z, layer, (4, 6))
            assert_close(out[f"block{i:02d}"][image], z)
        pooled = paper.layer_norm(z, p["norm"], 1e-6).mean(axis=0)
        assert_close(logits[image], pooled @ p["head"]["kernel"] + p["head"]["bias"])


@pytest.mark.parametrize(
    "config", [AxialResNetConfig(**TINY_RESNET, image_size=(48, 64)), AxialViTConfig(**TINY_VIT)],
    ids=["resnet", "vit"],
)  # fmt: skip
def test_a_whole_model_trains_every_parameter(config):
    model = Model("tiny", config)
    params, x = random_like(model.abstract_params), images(*config.image_size)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, x)[0] ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("name", ["resnet14_gn", "nonlocal_resnet14_5", "sasa_resnet14",
                                  "axial_resnet14", "axial_vit_nano_patch8_64"])  # fmt: skip
def test_half_precision_arithmetic_stays_close_and_ends_in_float32(name):
    x, logits = images(32, 32, batch=4), {}
    for dtype in ("float32", "bfloat16"):
        model = create_model(name, image_size=32, num_classes=10, dtype=dtype)
        params = jax.tree.map(lambda leaf: 0.3 * leaf, random_like(model.abstract_params))
        logits[dtype], _ = jax.jit(model.apply)(params, x)
        assert logits[dtype].dtype == np.float32
    scale = np.abs(logits["float32"]).max()
    apart = np.abs(logits["bfloat16"] - logits["float32"]).max()
    assert 0 < apart < 0.05 * scale


def test_recomputing_units_changes_no_gradient():
    x = images(32, 32)
    grads = []
    for remat in ("none", "full"):
        model = Model("t", AxialResNetConfig(**TINY_RESNET, image_size=(32, 32), remat=remat))
        params = random_like(model.abstract_params)
        grads.append(jax.jit(jax.grad(lambda p, m=model: jnp.sum(m.apply(p, x)[0] ** 2)))(params))
    jax.tree.map(lambda a, b: assert_close(a, b, 2e-4), *grads)


# Sizes.


@pytest.mark.parametrize(
    "config",
    [
        AxialResNetConfig(**TINY_RESNET, image_size=(48, 64)),
        AxialResNetConfig(resnet_layers=(1, 1), expansion=4, image_size=(36, 33)),
        AxialViTConfig(**TINY_VIT), AxialViTConfig(**TINY_VIT, scan=True, pre_logits=True),
    ],
    ids=str,
)  # fmt: skip
def test_the_count_from_sizes_is_that_of_the_traced_model(config):
    model = Model("tiny", config)
    traced = jax.make_jaxpr(lambda p, x: model.apply(p, x)[0])
    assert model.macs == all_macs(traced(model.abstract_params, image_of(model)))


def test_an_axial_resnet_is_as_large_as_its_paper_and_code_say():
    """Table 1: conv-stem S, 12.4 x 10^6 parameters and 2.8 x 10^9 multiply-adds; the published
    axial26s, whose tables of offsets are as large as its features: 5.9 x 10^6 parameters."""
    small = create_model("axial_resnet_s")
    assert small.macs / 1e9 == pytest.approx(2.8, rel=0.03)
    assert small.num_params / 1e6 == pytest.approx(12.4, rel=0.01)
    s26 = create_model("axial_resnet_s", resnet_layers=(1, 2, 4, 1), spans=(56, 56, 28, 14))
    assert s26.num_params / 1e6 == pytest.approx(5.9, rel=0.015)


def test_an_axial_vit_has_two_blocks_for_each_of_a_vits():
    """Appendix D.6: the encoder of B has 2 x 85.05 x 10^6 parameters."""
    params = create_model("axial_vit_base_patch16_224").abstract_params["encoder"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    plain = create_model("vit_base_patch16_224").abstract_params["encoder"]
    assert count == 2 * sum(leaf.size for leaf in jax.tree.leaves(plain))
    assert count / 1e6 == pytest.approx(170.1, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "fields", "says"),
    [
        (AxialResNetConfig, {"stage_width": 48}, "multiple of 32"),
        (AxialResNetConfig, {"spans": (56,)}, "a number for each stage"),
        (AxialViTConfig, {"registers": 4}, "has no registers"),
        (AxialViTConfig, {"pool": "cls"}, "pool is one of gap"),
        (AxialViTConfig, {"image_size": (30, 32)}, "not divisible"),
    ],
)
def test_sizes_that_cannot_be_are_refused(config, fields, says):
    with pytest.raises(ValueError, match=says):
        config(**fields)
