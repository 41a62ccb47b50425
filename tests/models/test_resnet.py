"""ResNets equal their definitions, written here a second time in NumPy and float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_walk import equations, macs

from tests.models import paper_numpy as paper
from vit_jax.models import bit, resnet
from vit_jax.models.bit import ResNet
from vit_jax.models.configs import ResNetConfig
from vit_jax.models.convolution import StdConv, convolve
from vit_jax.models.model import Model
from vit_jax.models.resnet import Backbone, Root, Unit

# Parameters with 1000 classes, as timm 1.0.31 counts them (`resnetv2_50x1_bit`, …).
PARAMETERS = {
    ((3, 4, 6, 3), 1): 25_549_352,
    ((3, 4, 6, 3), 3): 217_319_080,
    ((3, 4, 23, 3), 1): 44_541_480,
    ((3, 4, 23, 3), 3): 387_934_888,
    ((3, 8, 36, 3), 2): 236_335_208,
    ((3, 8, 36, 3), 4): 936_533_224,
}

# Of the hybrids' backbones alone: R+Ti/16, R50+B/16, R26+S/32, R50+L/32 (timm, `backbone`).
BACKBONES = {
    (): 9_536,
    (3, 4, 9): 11_894_848,
    (2, 2, 2, 2): 13_946_176,
    (3, 4, 6, 3): 23_508_032,
}

CONV = {"padding": "symmetric", "standardization": "bit", "dtype": jnp.float32}


class Pure:
    """A module as parameters and a function of them, the parameters random: none is at 0 or 1."""

    def __init__(self, make):
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0))))
        self.graph, state = nnx.split(abstract, nnx.Param)
        self.abstract = nnx.to_pure_dict(state)
        self.params = random_like(self.abstract)
        self.compiled = jax.jit(self.run)

    def run(self, params, x):
        return nnx.merge(self.graph, params)(x)

    def __call__(self, params, x):
        return self.compiled(params, x)


def random_like(tree):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.05
        return (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def backbone(layers, *, preactivation, padding, remat="none", standardization="google", eps=1e-5):
    return Pure(
        lambda rngs: Backbone(
            layers, 1, 3, preactivation=preactivation, padding=padding, groupnorm_eps=eps,
            standardization=standardization, dtype=jnp.float32, remat=remat, rngs=rngs,
        )
    )  # fmt: skip


def images(height, width, channels=3, batch=2, seed=1):
    shape = (batch, height, width, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def assert_close(ours, expected, tolerance=1e-5, name=""):
    scale = np.abs(expected).max()
    assert ours.shape == expected.shape, name
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale, err_msg=name)


# The definitions.


def around(n: int, size: int, stride: int, padding: str) -> tuple[int, int]:
    """Rows added before and after: TensorFlow's SAME, or half the window on either side."""
    if padding == "symmetric":
        return size // 2, size // 2
    total = max((math.ceil(n / stride) - 1) * stride + size - n, 0)
    return total // 2, total - total // 2


def windows(x, size: int, stride: int, padding: str, value: float = 0.0):
    """[batch, h, w, size, size, channels]: every window of x."""
    sides = [around(n, size, stride, padding) for n in x.shape[1:3]]
    x = np.pad(x, ((0, 0), *sides, (0, 0)), constant_values=value)
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    return np.stack([
        np.stack([
            x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            for j in range(columns)
        ], axis=1)
        for i in range(rows)
    ], axis=1)  # fmt: skip


def standardised(kernel, form: str):
    centred = kernel - kernel.mean(axis=(0, 1, 2))
    variance = kernel.var(axis=(0, 1, 2))
    if form == "google":
        return centred / (np.sqrt(variance) + 1e-5)
    return centred / np.sqrt(variance + {"timm": 1e-8, "bit": 1e-10}[form])


def conv(x, p, stride, how):
    kernel = standardised(p["kernel"], how["standardization"])
    patches = windows(x, kernel.shape[0], stride, how["padding"])
    return np.einsum("bhwijc,ijcd->bhwd", patches, kernel)


def group_norm(x, p, eps):
    """One image and one group of channels at a time."""
    out = np.empty_like(x)
    size = x.shape[-1] // 32
    for image in range(x.shape[0]):
        for g in range(32):
            group = x[image, :, :, g * size : (g + 1) * size]
            out[image, :, :, g * size : (g + 1) * size] = (group - group.mean()) / np.sqrt(
                group.var() + eps
            )
    return out * p["scale"] + p["bias"]


def relu(x):
    return np.maximum(x, 0)


def unit_v1(x, p, stride, how):
    eps = how["eps"]
    shortcut = x
    if "proj" in p:
        shortcut = group_norm(conv(x, p["proj"], stride, how), p["proj_norm"], eps)
    y = relu(group_norm(conv(x, p["conv1"], 1, how), p["norm1"], eps))
    y = relu(group_norm(conv(y, p["conv2"], stride, how), p["norm2"], eps))
    return relu(shortcut + group_norm(conv(y, p["conv3"], 1, how), p["norm3"], eps))


def unit_v2(x, p, stride, how):
    eps = how["eps"]
    before = relu(group_norm(x, p["norm1"], eps))
    shortcut = conv(before, p["proj"], stride, how) if "proj" in p else x
    y = conv(before, p["conv1"], 1, how)
    y = conv(relu(group_norm(y, p["norm2"], eps)), p["conv2"], stride, how)
    return shortcut + conv(relu(group_norm(y, p["norm3"], eps)), p["conv3"], 1, how)


def root(x, p, how):
    x = conv(x, p["conv"], 2, how)
    if "norm" in p:
        x = relu(group_norm(x, p["norm"], how["eps"]))
    empty = 0.0 if how["padding"] == "symmetric" else -np.inf
    return windows(x, 3, 2, how["padding"], empty).max(axis=(3, 4))


def features(x, p, *, padding, standardization="google", eps=1e-5):
    """Every intermediate of a backbone by name, in order; v1 has a norm in its root."""
    how = {"padding": padding, "standardization": standardization, "eps": eps}
    p, x = paper.as_float64(p), np.asarray(x, np.float64)
    unit = unit_v1 if "norm" in p["root"] else unit_v2
    out = {"root": root(x, p["root"], how)}
    x = out["root"]
    for stage in sorted(name for name in p if name.startswith("stage")):
        for name in sorted(p[stage]):
            stride = 2 if name == "unit01" and stage != "stage1" else 1
            x = out[f"{stage}_{name}"] = unit(x, p[stage][name], stride, how)
    return out


def logits_of(x, p, **how):
    out = features(x, p["backbone"], padding="symmetric", **how)
    p = paper.as_float64(p)
    x = relu(group_norm(list(out.values())[-1], p["norm"], how["eps"]))
    pooled = x.mean(axis=(1, 2))
    out |= {"encoded": x, "pre_logits": pooled}
    head = p.get("head")
    return pooled @ head["kernel"] + head["bias"] if head else pooled, out


# The model is its definition.


@pytest.mark.parametrize("standardization", ["google", "bit", "timm"])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_a_convolution_is_the_sum_over_every_window_with_its_kernel_standardised(
    size, stride, padding, standardization
):
    how = {"padding": padding, "standardization": standardization}
    module = Pure(lambda rngs: StdConv(5, 4, size, stride, **how, dtype=jnp.float32, rngs=rngs))
    params = {"kernel": 1e-3 * module.params["kernel"]}  # small enough for the epsilons to count
    for height, width in [(9, 12), (8, 7)]:
        x = images(height, width, 5)
        expected = conv(np.asarray(x, np.float64), paper.as_float64(params), stride, how)
        assert_close(module(params, x), expected)


def test_the_forms_of_standardisation_differ_where_weights_are_small():
    kernel = 1e-4 * np.random.default_rng(0).standard_normal((3, 3, 5, 4))
    google, bit, timm = (standardised(kernel, form) for form in ("google", "bit", "timm"))
    assert np.abs(google - bit).max() > 0.05
    assert np.abs(timm - bit).max() > 0.05


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("preactivation", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("size", [(20, 33), (17, 22)], ids=str)
def test_a_backbone_and_every_intermediate_equal_their_definition(preactivation, padding, size):
    module = backbone((2, 2), preactivation=preactivation, padding=padding)
    x = images(*size)
    last, out = module(module.params, x)
    expected = features(x, module.params, padding=padding)
    assert list(out) == list(expected)
    for name, value in expected.items():
        assert_close(out[name], value, name=name)
    np.testing.assert_array_equal(last, out["stage2_unit02"])


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("preactivation", [False, True], ids=["v1", "v2"])
def test_without_stages_the_root_is_the_backbone(preactivation, padding):
    """R+Ti/16. In v2 nothing is rectified before the pool: what it pads with shows."""
    module = backbone((), preactivation=preactivation, padding=padding)
    x = images(11, 14)
    last, out = module(module.params, x)
    assert list(out) == ["root"]
    assert last.shape == (2, 3, 4, 64)
    assert_close(last, features(x, module.params, padding=padding)["root"])


def test_v2s_pool_takes_a_padded_zero_over_negative_values():
    module = Pure(
        lambda rngs: Root(1, 32, preactivation=True, eps=1e-5, conv=CONV | {"rngs": rngs})
    )
    x = -np.ones((1, 4, 4, 1), np.float32)
    kernel = np.zeros((7, 7, 1, 32), np.float32)
    kernel[3, 3] = 1.0  # the centre alone is positive once standardised, and nearly all of it
    corner = module({"conv": {"kernel": kernel}}, x)[0, 0, 0]
    np.testing.assert_array_equal(corner, np.zeros(32))


@pytest.mark.parametrize(
    "fields",
    [{}, {"num_classes": 0}, {"channels": 1}, {"standardization": "timm", "groupnorm_eps": 0.1}],
    ids=str,
)
def test_bits_logits_and_every_intermediate_equal_their_definition(fields):
    c = ResNetConfig(**{"resnet_layers": (1, 2), "image_size": (18, 21), "num_classes": 3} | fields)
    model = Model("tiny", c)
    params, x = random_like(model.abstract_params), images(18, 21, c.channels)
    logits, out = jax.jit(model.apply)(params, x)
    how = {"standardization": c.standardization, "eps": c.groupnorm_eps}
    expected, intermediates = logits_of(x, params, **how)
    assert_close(logits, expected)
    assert set(out) == set(intermediates)
    for name, value in intermediates.items():
        assert_close(out[name], value, name=name)


@pytest.mark.parametrize("changed", [{"standardization": "google"}, {"eps": 1e-3}])
def test_the_comparison_is_fine_enough_to_tell_the_options_apart(changed):
    c = ResNetConfig(resnet_layers=(1,), image_size=(18, 21), num_classes=3)
    params = random_like(Model("tiny", c).abstract_params)
    params["backbone"] = jax.tree.map(lambda leaf: 1e-2 * leaf, params["backbone"])
    x = images(18, 21)
    ours, _ = logits_of(x, params, standardization="bit", eps=1e-5)
    other, _ = logits_of(x, params, **{"standardization": "bit", "eps": 1e-5} | changed)
    assert np.abs(ours - other).max() > 3e-5 * np.abs(ours).max()


def test_group_norm_holds_its_digits_far_from_zero():
    """E[x²] - E[x]² in float32 would lose most of them: the mean is a thousand deviations."""
    module = Pure(lambda rngs: resnet.group_norm(64, 1e-5, dtype=jnp.float32, rngs=rngs))
    x = 128 + np.random.default_rng(0).integers(-8, 9, (2, 6, 6, 64)) / 32
    expected = group_norm(x, paper.as_float64(module.params), 1e-5)
    assert_close(module(module.params, x.astype(np.float32)), expected, 1e-3)
    assert x.mean() > 500 * x.std()


# Sizes.


@pytest.mark.parametrize(("layers", "width"), PARAMETERS)
def test_the_published_parameter_counts_are_met_to_the_last_one(layers, width):
    model = Model("bit", ResNetConfig(resnet_layers=layers, width_factor=width))
    assert model.num_params == PARAMETERS[layers, width]
    assert model.config.hidden_size == 2048 * width


@pytest.mark.parametrize("layers", BACKBONES, ids=str)
def test_hybrids_backbones_have_the_published_parameter_counts(layers):
    module = backbone(layers, preactivation=False, padding="same")
    assert sum(leaf.size for leaf in jax.tree.leaves(module.abstract)) == BACKBONES[layers]


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("layers", [(), (1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("size", [(64, 96), (65, 33), (47, 95)], ids=str)
def test_features_are_the_image_over_the_stride_rounded_up(layers, padding, size):
    module = backbone(layers, preactivation=False, padding=padding)
    shape = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    stride = resnet.stride_of(layers)
    expected = [math.ceil(side / stride) for side in size]
    last, _ = jax.eval_shape(module.run, module.abstract, shape)
    assert last.shape == (1, *expected, resnet.features_of(layers, 1))


def test_strides_and_features_are_the_papers():
    table = {(): (4, 64), (1,): (4, 256), (3, 4, 9): (16, 1024), (2, 2, 2, 2): (32, 2048)}
    for layers, expected in table.items():
        assert (resnet.stride_of(layers), resnet.features_of(layers, 1)) == expected


def test_parameters_have_their_documented_paths_and_shapes():
    v1 = backbone((2,), preactivation=False, padding="same").abstract
    norm = {"scale": (64,), "bias": (64,)}
    wide = {"scale": (256,), "bias": (256,)}
    convs = {
        "conv1": {"kernel": (1, 1, 256, 64)},
        "conv2": {"kernel": (3, 3, 64, 64)},
        "conv3": {"kernel": (1, 1, 64, 256)},
    }
    unit02 = convs | {"norm1": norm, "norm2": norm, "norm3": wide}
    proj = {"proj": {"kernel": (1, 1, 64, 256)}, "conv1": {"kernel": (1, 1, 64, 64)}}
    stem = {"kernel": (7, 7, 3, 64)}
    assert jax.tree.map(lambda leaf: leaf.shape, v1) == {
        "root": {"conv": stem, "norm": norm},
        "stage1": {"unit01": unit02 | proj | {"proj_norm": wide}, "unit02": unit02},
    }
    v2 = Model("tiny", ResNetConfig(resnet_layers=(2,), num_classes=5)).abstract_params
    unit02 = convs | {"norm1": wide, "norm2": norm, "norm3": norm}
    assert jax.tree.map(lambda leaf: leaf.shape, v2) == {
        "backbone": {
            "root": {"conv": stem},
            "stage1": {"unit01": unit02 | proj | {"norm1": norm}, "unit02": unit02},
        },
        "norm": wide,
        "head": {"kernel": (256, 5), "bias": (5,)},
    }
    leaves = jax.tree.leaves((v1, v2))
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}


# How it starts and learns.


@pytest.mark.parametrize(("width", "stride"), [(64, 1), (128, 2)])
def test_a_new_v1_unit_is_the_relu_of_its_shortcut(width, stride):
    def both(key, x):  # op by op: compiled as one, the two may be fused and rounded apart
        conv = CONV | {"rngs": nnx.Rngs(params=key)}
        unit = Unit(256, width, stride, preactivation=False, eps=1e-5, conv=conv)
        return unit(x), unit.proj_norm(unit.proj(x)) if unit.projects else x

    ours, shortcut = both(jax.random.key(0), images(7, 9, 256))
    np.testing.assert_array_equal(ours, relu(shortcut))


def test_a_new_model_answers_with_its_heads_bias():
    c = ResNetConfig(resnet_layers=(1,), image_size=(16, 16), num_classes=3, head_bias=-4.0)
    model = Model("tiny", c)
    logits, _ = jax.jit(model.apply)(model.init(), images(16, 16))
    np.testing.assert_array_equal(logits, np.full((2, 3), -4.0))


def test_a_new_kernel_has_the_variance_of_its_inputs_inverse_number():
    kernel = StdConv(64, 256, 3, **CONV, rngs=nnx.Rngs(params=jax.random.key(0))).kernel[...]
    assert float(kernel.var()) * 9 * 64 == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("preactivation", [False, True], ids=["v1", "v2"])
def test_recomputing_units_changes_no_value_and_no_gradient(preactivation):
    x = images(16, 16)

    def loss(remat):
        module = backbone((2, 1), preactivation=preactivation, padding="same", remat=remat)

        def of(params):
            last, out = module.run(params, x)
            return jnp.sum(last**2), out

        return jax.jit(jax.value_and_grad(of, has_aux=True))(module.params)

    (plain, plain_out), plain_grads = loss("none")
    (full, full_out), full_grads = loss("full")
    assert float(full) == pytest.approx(float(plain), rel=1e-6)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), full_out, plain_out)
    jax.tree.map(lambda a, b: assert_close(a, b, 2e-4), full_grads, plain_grads)


def test_recomputation_does_the_units_convolutions_a_second_time():
    def work(remat):
        c = ResNetConfig(resnet_layers=(1, 1), image_size=(32, 32), num_classes=3, remat=remat)
        model = Model("tiny", c)
        gradient = jax.grad(lambda p, x: model.apply(p, x)[0].sum())
        return all_macs(jax.make_jaxpr(gradient)(model.abstract_params, image_of(model)))

    units = resnet.backbone_macs((1, 1), 1, (32, 32), 3) - resnet.backbone_macs((), 1, (32, 32), 3)
    # conv3 and proj have no reader inside their unit, so less than all of it.
    assert work("none") + units / 2 < work("full") <= work("none") + units


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradients_of_a_convolution_of_size_1_are_those_of_xlas(stride, dtype):
    rng = np.random.default_rng(0)
    x, kernel, dy = (
        jnp.asarray(rng.standard_normal(shape), dtype)
        for shape in ((2, 5, 7, 4), (1, 1, 4, 6), (2, -(-5 // stride), -(-7 // stride), 6))
    )

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    ours, pulled = jax.vjp(lambda x, k: convolve(x, k, stride, "symmetric"), x, kernel)
    theirs, pulled_there = jax.vjp(plain, x, kernel)
    for one, other in zip((ours, *pulled(dy)), (theirs, *pulled_there(dy)), strict=True):
        assert one.dtype == other.dtype == dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, atol=1e-5 if dtype == "float32" else 0.1)


def test_gradients_are_finite_and_reach_every_parameter():
    model = Model("tiny", ResNetConfig(resnet_layers=(1, 1), image_size=(16, 16), num_classes=3))
    params, x = random_like(model.abstract_params), images(16, 16)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, x)[0] ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_half_precision_arithmetic_stays_close_and_ends_in_float32():
    c = ResNetConfig(resnet_layers=(1, 1), image_size=(16, 16), num_classes=3, dtype="bfloat16")
    model = Model("tiny", c)
    params, x = random_like(model.abstract_params), images(16, 16)
    logits, out = jax.jit(model.apply)(params, x)
    expected, _ = logits_of(x, params, standardization="bit", eps=1e-5)
    assert logits.dtype == np.float32
    assert {leaf.dtype.name for leaf in out.values()} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.abstract_params)} == {"float32"}
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_each_image_is_treated_on_its_own():
    model = Model("tiny", ResNetConfig(resnet_layers=(1,), image_size=(16, 16), num_classes=3))
    params, x = random_like(model.abstract_params), images(16, 16, batch=3)
    apply = jax.jit(lambda p, x: model.apply(p, x)[0])
    alone = np.concatenate([apply(params, x[i : i + 1]) for i in range(3)])
    assert_close(apply(params, x), alone)


def test_it_is_called_as_a_vit_is():
    @jax.jit
    def both(key, x):
        module = ResNet(ResNetConfig(resnet_layers=(1,), num_classes=3), nnx.Rngs(params=key))
        return module(x), module(x, key, return_weights=True, gather=lambda block, stack: block)

    (plain, names), (logits, out) = both(jax.random.key(0), images(16, 16))
    np.testing.assert_array_equal(logits, plain)
    assert set(names) == set(out) == {"root", "stage1_unit01", "encoded", "pre_logits"}


# Its cost.


def all_macs(jaxpr) -> int:
    """Multiply-accumulates of convolutions, forward or backward, and of matrix products."""
    total = macs(jaxpr)
    for eqn, times in equations(jaxpr):
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            size = math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // outputs
            # A stride in the forward pass is a dilation in the backward: zeros are no work.
            dilated = math.prod((*eqn.params["lhs_dilation"], *eqn.params["rhs_dilation"]))
            total += times * size // dilated
    return total


def image_of(model):
    return jax.ShapeDtypeStruct((1, *model.config.image_size, model.config.channels), np.float32)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width_factor": 2, "num_classes": 0},
        {"resnet_layers": (1,), "channels": 1},
        {"image_size": (65, 33), "num_classes": 10},
        {"remat": "full", "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_the_count_from_sizes_is_that_of_the_traced_model(fields):
    sizes = {"resnet_layers": (2, 1, 3), "image_size": (64, 96)}
    model = Model("tiny", ResNetConfig(**sizes | fields))
    traced = jax.make_jaxpr(lambda p, x: model.apply(p, x)[0])
    assert bit.forward_macs(model.config) == all_macs(
        traced(model.abstract_params, image_of(model))
    )


def test_the_counts_are_those_of_timms_models():
    """Counted by torch.utils.flop_counter on timm 1.0.31: R50x1 at 224 and R101x3 at 449."""
    r50 = ResNetConfig()
    assert bit.forward_macs(r50) == 4_089_184_256
    r101 = ResNetConfig(resnet_layers=(3, 4, 23, 3), width_factor=3, image_size=(449, 449))
    assert bit.forward_macs(r101) == 297_105_940_032


@pytest.mark.parametrize(("layers", "patch"), [((), 32), ((3, 4, 9), 16), ((2, 2, 2, 2), 32)])
def test_a_hybrids_count_is_its_backbone_and_a_product_for_each_patch(layers, patch):
    module = backbone(layers, preactivation=False, padding="same")
    traced = jax.make_jaxpr(module.run)(module.abstract, jax.ShapeDtypeStruct((1, 64, 96, 3), "f4"))
    inside = (patch // resnet.stride_of(layers)) ** 2 * resnet.features_of(layers, 1)
    embedding = (64 // patch) * (96 // patch) * inside * 192
    assert resnet.hybrid_macs(layers, (64, 96), 3, patch, 192) == all_macs(traced) + embedding


# What cannot be.


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("resnet_layers", (), "the units of each stage, such as (3, 4, 6, 3)"),
        ("resnet_layers", (3, 0), "the units of each stage"),
        ("resnet_layers", 50, "the units of each stage"),
        ("image_size", (224, 224, 3), "(height, width), such as (224, 224)"),
        ("image_size", (0, 224), "(height, width)"),
        ("width_factor", 0.5, "a whole number of at least 1"),
        ("channels", 0, "a whole number of at least 1"),
        ("num_classes", -1, "a whole number of at least 0"),
        ("groupnorm_eps", 0.0, "a positive number"),
        ("standardization", "torch", "one of google, bit, timm"),
        ("remat", "dots", "one of none, full"),
        ("dtype", "float16", "one of float32, bfloat16"),
    ],
)
def test_a_field_that_does_not_fit_is_told_with_what_would(field, value, wanted):
    with pytest.raises(ValueError, match=f"^{field} is ") as error:
        ResNetConfig(**{field: value})
    assert wanted in str(error.value)
    assert repr(value) in str(error.value)
