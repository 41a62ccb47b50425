"""Stand-alone self-attention equals its paper's equations, written here a second time in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resnet import Pure, assert_close, group_norm, images, random_like, relu

from tests.models import paper_numpy as paper
from vit_jax.models import create_model, sasa
from vit_jax.models.configs import SasaConfig
from vit_jax.models.model import Model

F32 = {"dtype": jnp.float32}

# Table 1 of arXiv 1906.05909: 10^6 parameters, 10^9 FLOPs (two for each multiply-add).
TABLE_1 = {
    "resnet26_gn": (13.7, 4.7), "resnet38_gn": (19.6, 6.5), "resnet50_gn": (25.6, 8.2),
    "sasa_resnet26_convstem": (10.3, 4.5), "sasa_resnet38_convstem": (14.1, 5.7),
    "sasa_resnet50_convstem": (18.0, 7.0), "sasa_resnet26": (10.3, 4.7),
    "sasa_resnet38": (14.1, 6.0), "sasa_resnet50": (18.0, 7.2),
}  # fmt: skip


# The definitions.


def local(q, k, v, rows, columns):
    """Eq. 3 for one image [h, w, heads, dim], position by position."""
    window, (height, width, heads, _) = rows.shape[0], q.shape
    out, reach = np.zeros_like(v), rows.shape[0] // 2
    for i in range(height):
        for j in range(width):
            for n in range(heads):
                logits, values = [], []
                for a in range(window):
                    for b in range(window):
                        y, x = i + a - reach, j + b - reach
                        inside = 0 <= y < height and 0 <= x < width
                        key = k[y, x, n] if inside else 0 * q[i, j, n]
                        offset = np.concatenate([rows[a, n], columns[b, n]])
                        logits.append(q[i, j, n] @ key + q[i, j, n] @ offset)
                        values.append(v[y, x, n] if inside else 0 * v[i, j, n])
                out[i, j, n] = paper.softmax(np.array(logits)) @ np.array(values)
    return out


def projected(x, p):
    return np.einsum("...c,cnd->...nd", x, p["kernel"])


def attention(x, p, stride):
    q, k, v = (projected(x, p[name]) for name in "qkv")
    y = np.stack([local(*one, p["rows"], p["columns"]) for one in zip(q, k, v, strict=True)])
    y = y.reshape(x.shape)
    if stride == 1:
        return y
    high, wide = (-(-n // 2) for n in y.shape[1:3])
    return np.stack([
        np.stack([
            y[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(1, 2)) for j in range(wide)
        ], axis=1) for i in range(high)
    ], axis=1)  # fmt: skip


def stem(x, p, eps):
    """Section 3.2, one 4 x 4 block and one head at a time."""
    batch, height, width, _ = x.shape
    heads, dim = p["q"]["kernel"].shape[1:]
    out = np.zeros((batch, height, width, heads, dim))
    for b, top, left in np.ndindex(batch, height // 4, width // 4):
        block = x[b, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4].reshape(16, -1)
        place = [(s, t) for s in range(4) for t in range(4)]
        for n in range(heads):
            values = []
            for pixel, (s, t) in zip(block, place, strict=True):
                share = paper.softmax(p["mixtures"] @ (p["value_rows"][s] + p["value_columns"][t]))
                values.append(np.einsum("m,cmd,c->d", share, p["v"]["kernel"][:, :, n], pixel))
            for one, (i, j) in zip(block, place, strict=True):
                q = one @ p["q"]["kernel"][:, n]
                logits = [
                    q @ (other @ p["k"]["kernel"][:, n])
                    + q @ np.concatenate([p["rows"][s - i + 3, n], p["columns"][t - j + 3, n]])
                    for other, (s, t) in zip(block, place, strict=True)
                ]
                mixed = paper.softmax(np.array(logits)) @ np.array(values)
                out[b, 4 * top + i, 4 * left + j, n] = mixed
    y = relu(group_norm(out.reshape(batch, height, width, -1), p["norm"], eps))
    return y.reshape(batch, height // 4, 4, width // 4, 4, -1).max(axis=(2, 4))


# The model is its definition.


@pytest.mark.parametrize("window", [3, 5, 7, 11])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9), (3, 2)])
def test_local_attention_is_the_sum_over_the_neighbourhood(window, height, width):
    module = Pure(lambda rngs: sasa.LocalAttention(16, 1, window=window, heads=2, **F32, rngs=rngs))
    x = images(height, width, 16)
    expected = attention(np.asarray(x, np.float64), paper.as_float64(module.params), 1)
    assert_close(module(module.params, x), expected)


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_a_stride_is_an_average_of_what_there_is(size):
    module = Pure(lambda rngs: sasa.LocalAttention(16, 2, window=3, heads=4, **F32, rngs=rngs))
    x = images(*size, 16)
    expected = attention(np.asarray(x, np.float64), paper.as_float64(module.params), 2)
    assert_close(module(module.params, x), expected)


def test_the_stem_attends_within_blocks_with_values_that_know_their_place():
    module = Pure(lambda rngs: sasa.AttentionStem(3, 64, heads=2, eps=1e-5, **F32, rngs=rngs))
    x = images(8, 12)
    expected = stem(np.asarray(x, np.float64), paper.as_float64(module.params), 1e-5)
    assert_close(module(module.params, x), expected)


def test_gradients_are_finite_differences():
    module = Pure(lambda rngs: sasa.LocalAttention(8, 1, window=3, heads=2, **F32, rngs=rngs))
    x, cotangent = images(5, 6, 8), images(5, 6, 8, seed=2)
    grads = jax.grad(lambda p: jnp.sum(module.run(p, x) * cotangent))(module.params)
    params = paper.as_float64(module.params)

    def loss(p):
        return np.sum(attention(np.asarray(x, np.float64), p, 1) * cotangent)

    rng = np.random.default_rng(3)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        direction = jax.tree.map(np.zeros_like, params)
        towards = jax.tree_util.tree_map_with_path(
            lambda at, zero, path=path, leaf=leaf: rng.standard_normal(leaf.shape)
            if at == path else zero, direction,
        )  # fmt: skip
        up, down = (
            loss(jax.tree.map(lambda p, d, s=s: p + s * 1e-5 * d, params, towards)) for s in (1, -1)
        )
        along = sum(np.sum(g * d) for g, d in zip(
            jax.tree.leaves(grads), jax.tree.leaves(towards), strict=True))  # fmt: skip
        assert along == pytest.approx((up - down) / 2e-5, rel=1e-3), path


@pytest.mark.parametrize("stem", ["conv", "attention"])
def test_a_whole_model_trains_every_parameter(stem):
    c = SasaConfig(resnet_layers=(1, 1), image_size=(32, 32), num_classes=3, stem=stem, window=3)
    model = Model("tiny", c)
    params, x = random_like(model.abstract_params), images(32, 32)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, x)[0] ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_blocks_pad_nothing_that_a_position_sees():
    """A shifted image gives shifted features, away from the border, for every shift of a block."""
    module = Pure(lambda rngs: sasa.LocalAttention(8, 1, window=3, heads=2, **F32, rngs=rngs))
    x = images(12, 12, 8)
    whole = module(module.params, x)
    for shift in range(1, 5):
        moved = module(module.params, x[:, shift:, shift:])
        assert_close(moved[:, 1:, 1:], whole[:, shift + 1 :, shift + 1 :])


# Sizes.


@pytest.mark.parametrize("name", TABLE_1)
def test_parameters_and_flops_are_those_of_table_1(name):
    model = create_model(name)
    params, flops = TABLE_1[name]
    assert model.num_params / 1e6 == pytest.approx(params, rel=0.01)
    assert 2 * model.macs / 1e9 == pytest.approx(flops, rel=0.03)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"window": 4}, "window is odd, not 4"),
        ({"num_heads": 5}, "num_heads divides 32, not 5"),
        ({"image_size": (30, 32)}, "image_size (30, 32) is not divisible"),
        ({"stem": "patches"}, "stem is one of conv, attention"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, says):
    with pytest.raises(ValueError, match=r"is|divides") as error:
        SasaConfig(**fields)
    assert says in str(error.value)
