"""What is done for cuDNN's attention changes nothing that a model tells or learns: empty tokens
behind the others, and a block that works on one matrix of rows. Another implementation of JAX, with
the same arguments, stands for the kernel."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from tests.digits_run import tiny_config
from tests.models.tiny_vit import randomised, tiny
from vit_jax.models import attention
from vit_jax.models.kernels import Gpu, refusal
from vit_jax.models.layers import layer_norm
from vit_jax.parallel.sharding import BATCH, state_shardings
from vit_jax.training.resolve import known, resolve

H100 = Gpu("NVIDIA H100 80GB HBM3", 9.0, here=False)

FORMS = {
    "class token": {}, "layer scale": {"layer_scale": 0.5}, "mean": {"pool": "gap"},
    "attention pool": {"pool": "map"}, "registers": {"registers": 3},
    "distilled": {"distilled": True, "registers": 1},
    "scan": {"scan": True}, "remat": {"remat": "full"}, "dots": {"remat": "dots", "scan": True},
    "qk_norm": {"qk_norm": True}, "swiglu": {"mlp": "swiglu"},
}  # fmt: skip


@pytest.fixture
def kernel_of_xla(monkeypatch):
    def fused(q, k, v, tokens):
        lengths = jnp.full(q.shape[:1], tokens, jnp.int32)
        return jax.nn.dot_product_attention(
            q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="xla"
        )

    monkeypatch.setattr(attention, "fused", fused)


def of_rows(**fields):
    """A tiny model with cuDNN's attention in float32, which the kernel itself would not take."""
    model = tiny(**fields)
    config = copy.copy(model.config)
    object.__setattr__(config, "attention", "cudnn")
    return dataclasses.replace(model, config=config)


def images(model, count=8):
    shape = (count, *model.config.image_size, model.config.channels)
    return jax.random.normal(jax.random.key(1), shape)


def outcome(model, params, x):
    """(logits, intermediates, gradient of a loss that every logit is part of)."""

    def loss(params, x):
        logits, out = model.apply(params, x)
        return jnp.square(logits - jnp.arange(logits.shape[1])).sum(), (logits, out)

    (_, told), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, x)
    return *told, gradient


def assert_equal(padded, plain):
    logits, out, gradient = padded
    np.testing.assert_allclose(logits, plain[0], atol=1e-6, rtol=1e-6)
    assert out.keys() == plain[1].keys()
    for name, values in out.items():
        assert values.shape == plain[1][name].shape, name
        np.testing.assert_allclose(values, plain[1][name], atol=4e-6, rtol=1e-5, err_msg=name)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[2]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        other = plain[2]
        for key in path:
            other = other[key.key]
        scale = max(float(jnp.abs(other).max()), 1e-3 * largest)
        np.testing.assert_allclose(leaf, other, atol=1e-5 * scale, err_msg=str(path))


@pytest.mark.parametrize("form", FORMS)
def test_a_block_on_rows_tells_and_learns_the_same(form, kernel_of_xla):
    plain, on_rows = tiny(**FORMS[form]), of_rows(**FORMS[form])
    assert on_rows.config.padded_tokens % 2 == 0
    assert on_rows.num_params == plain.num_params
    params, x = randomised(plain), images(plain)
    assert_equal(outcome(on_rows, params, x), outcome(plain, params, x))


def test_the_norm_of_rows_and_its_gradients_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    x, change = rng.normal(2.0, 3.0, (2, 5, 16))
    scale, bias = rng.normal(1.0, 0.3, (2, 16))

    def defined(x, scale, bias):  # arXiv 1607.06450, eq. 3
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6) * scale + bias

    def total(*arguments):
        return (layer_norm(*arguments, 1e-6) * change.astype(np.float32)).sum()

    arguments = [np.float32(a) for a in (x, scale, bias)]
    np.testing.assert_allclose(layer_norm(*arguments, 1e-6), defined(x, scale, bias), atol=1e-5)
    for number, gradient in enumerate(jax.grad(total, (0, 1, 2))(*arguments)):
        direction = rng.normal(size=gradient.shape)
        moved = [[*map(np.copy, (x, scale, bias))] for _ in range(2)]
        for sign, one in zip((1, -1), moved, strict=True):
            one[number] += sign * 1e-6 * direction
        above, below = ((defined(*one) * change).sum() for one in moved)
        slope = (above - below) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_a_block_on_rows_drops_the_same_paths_of_whole_examples(kernel_of_xla):
    fields = {"drop_path": 0.5, "dropout": 0.3, "pool": "gap"}
    plain, on_rows = tiny(**fields), of_rows(**fields)
    assert on_rows.config.padded_tokens == plain.config.num_tokens  # so the masks are the same
    params, x, key = randomised(plain), images(plain), jax.random.key(3)
    wanted, _ = plain.apply(params, x, train=True, key=key)
    logits, _ = on_rows.apply(params, x, train=True, key=key)
    np.testing.assert_allclose(logits, wanted, atol=1e-6, rtol=1e-6)
    assert np.abs(logits - on_rows.apply(params, x)[0]).max() > 0.1


@pytest.mark.parametrize(("axis", "size"), [("data", 8), ("tensor", 4)])
def test_also_where_batch_or_heads_are_split(axis, size, kernel_of_xla):
    mesh = Mesh(
        np.array(jax.devices()).reshape((8 // size, 1, size) if axis == "tensor" else (8, 1, 1)),
        ("data", "fsdp", "tensor"),
    )
    plain, padded = tiny(num_heads=4), of_rows(num_heads=4)
    params, x = randomised(plain), images(plain)
    wanted = outcome(plain, params, x)
    where = state_shardings(plain.family, {"params": plain.abstract_params}, mesh, 1)["params"]
    split = jax.device_put(params, where)
    assert_equal(outcome(padded, split, jax.device_put(x, NamedSharding(mesh, BATCH))), wanted)


def test_attention_weights_are_those_of_the_tokens_that_there_are():
    plain, padded = tiny(), of_rows()
    params, x = randomised(plain), images(plain, 2)
    _, out = padded.apply(params, x, attention_weights=True)
    _, wanted = plain.apply(params, x, attention_weights=True)
    for layer in ("attention00", "attention01"):
        assert out[layer].shape == (2, 2, 7, 7)
        np.testing.assert_allclose(out[layer], wanted[layer], atol=1e-6)


@pytest.mark.parametrize(
    ("side", "fields", "tokens", "padded"),
    [
        (224, {}, 197, 198), (224, {"pool": "gap"}, 196, 196), (384, {}, 577, 578),
        (224, {"distilled": True}, 198, 198), (224, {"registers": 4}, 201, 202),
    ],
)  # fmt: skip
def test_the_kernel_is_given_an_even_number_of_tokens(side, fields, tokens, padded):
    from vit_jax import create_model

    c = create_model(
        "vit_small_patch16_224", image_size=side, dtype="bfloat16", attention="cudnn", **fields
    ).config
    assert (c.num_tokens, c.padded_tokens) == (tokens, padded)


@pytest.mark.parametrize(
    ("fields", "gpu", "says"),
    [
        ({}, None, "there is no NVIDIA GPU"),
        ({}, Gpu("Tesla V100-SXM2-16GB", 7.0, here=False), "Ampere GPU or a newer one"),
        ({"dtype": "float32"}, H100, "--config.model.dtype=bfloat16, not float32"),
        ({"attention_dropout": 0.1}, H100, "--config.model.attention_dropout=0"),
        ({"hidden_size": 24}, H100, "heads of a multiple of 8 up to 128 numbers, not 12"),
        ({}, H100, ""),
        ({}, Gpu("NVIDIA A100-SXM4-40GB", 8.0, here=False), ""),
    ],
)
def test_what_the_kernel_cannot_do_is_said_with_what_would_help(fields, gpu, says):
    model = tiny(**{"dtype": "bfloat16", "hidden_size": 16} | fields)
    reason = refusal(model.config, gpu)
    assert says in reason
    assert bool(says) == bool(reason)
    assert model.on(gpu).config.attention == ("xla" if says else "cudnn")
    assert model.config.attention == "auto"


class Absent:
    """A GPU that is not here, as JAX describes it to a compiler."""

    platform, device_kind, compute_capability = "gpu", "NVIDIA H100 80GB HBM3", "9.0"


def test_auto_is_decided_by_the_devices_to_compile_for_and_stays_auto_in_the_config():
    config = tiny_config(
        model__dtype="bfloat16", model__attention_dropout=0.0, model__attention="auto"
    )
    on_gpu = resolve(config, devices=[Absent()] * 8, data=known)
    assert on_gpu.model.config.attention == "cudnn"
    assert on_gpu.config.model.attention == "auto"
    assert "attention by cuDNN" in on_gpu.said
    here = resolve(config, data=known)
    assert here.model.config.attention == "xla"
    assert not any("attention by" in line for line in here.said)
