"""Empty tokens behind the others change nothing that a model tells, and nothing that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from tiny_vit import randomised, tiny

from tests.digits_run import tiny_config
from vit_jax.models.kernels import Gpu, refusal
from vit_jax.parallel.sharding import BATCH, state_shardings
from vit_jax.training.resolve import known, resolve

H100 = Gpu("NVIDIA H100 80GB HBM3", 9.0, here=False)

FORMS = {
    "class token": {}, "mean": {"pool": "gap"}, "attention pool": {"pool": "map"},
    "registers": {"registers": 3}, "distilled": {"distilled": True, "registers": 1},
    "scan": {"scan": True}, "remat": {"remat": "full"}, "dots": {"remat": "dots", "scan": True},
    "qk_norm": {"qk_norm": True}, "swiglu": {"mlp": "swiglu"},
}  # fmt: skip


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
def test_logits_intermediates_and_gradients_are_those_without_padding(form):
    plain, padded = tiny(**FORMS[form]), tiny(**FORMS[form], pad_tokens_to=16)
    assert padded.config.padded_tokens == 16 > padded.config.num_tokens
    assert padded.num_params == plain.num_params
    params, x = randomised(plain), images(plain)
    assert_equal(outcome(padded, params, x), outcome(plain, params, x))


@pytest.mark.parametrize(("axis", "size"), [("data", 8), ("tensor", 2)])
def test_also_where_batch_or_heads_are_split(axis, size):
    mesh = Mesh(
        np.array(jax.devices()).reshape((8 // size, 1, size) if axis == "tensor" else (8, 1, 1)),
        ("data", "fsdp", "tensor"),
    )
    plain, padded = tiny(), tiny(pad_tokens_to=16)
    params, x = randomised(plain), images(plain)
    wanted = outcome(plain, params, x)
    where = state_shardings(plain.family, {"params": plain.abstract_params}, mesh, 1)["params"]
    split = jax.device_put(params, where)
    assert_equal(outcome(padded, split, jax.device_put(x, NamedSharding(mesh, BATCH))), wanted)


def test_attention_weights_are_those_of_the_tokens_that_there_are():
    plain, padded = tiny(), tiny(pad_tokens_to=16)
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
        (224, {"pad_tokens_to": 64}, 197, 256), (224, {"pad_tokens_to": 3}, 197, 198),
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
