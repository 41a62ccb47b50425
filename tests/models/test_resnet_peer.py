"""BiT, the hybrids' backbones and Mixers compute what timm's do, with timm's random weights.

Runs where timm is installed (`pip install .[peers]`). The weights are carried over by hand here, so
that the comparison does not rest on the package's own import.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.models.configs import MixerConfig, ResNetConfig
from vit_jax.models.model import Model
from vit_jax.models.resnet import Backbone

timm = pytest.importorskip("timm", reason="timm is not installed: pip install .[peers]")
torch = pytest.importorskip("torch", reason="torch is not installed: pip install .[peers]")


def randomised(module):
    """timm's module with every parameter random, as float32 arrays by name."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        # Kernels as small as a new model's, for the epsilon of their standardisation to count.
        spread = 0.02 if parameter.ndim > 1 else 0.3
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(centre + spread * noise)
    return {name: leaf.numpy() for name, leaf in module.state_dict().items()}


def kernel(weights, name):
    return {"kernel": weights[f"{name}.weight"].transpose(2, 3, 1, 0)}  # OIHW to HWIO


def norm(weights, name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def dense(weights, name):
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def backbone_params(weights, layers):
    stem = "stem." if layers else ""
    params = {"root": {"conv": kernel(weights, f"{stem}conv")}}
    if f"{stem}norm.weight" in weights:
        params["root"]["norm"] = norm(weights, f"{stem}norm")
    for s, units in enumerate(layers):
        stage = params[f"stage{s + 1}"] = {}
        for u in range(units):
            theirs = f"stages.{s}.blocks.{u}"
            unit = {f"conv{i}": kernel(weights, f"{theirs}.conv{i}") for i in (1, 2, 3)}
            unit |= {f"norm{i}": norm(weights, f"{theirs}.norm{i}") for i in (1, 2, 3)}
            if u == 0:
                unit["proj"] = kernel(weights, f"{theirs}.downsample.conv")
                if f"{theirs}.downsample.norm.weight" in weights:
                    unit["proj_norm"] = norm(weights, f"{theirs}.downsample.norm")
            stage[f"unit{u + 1:02d}"] = unit
    return params


def images(height, width):
    shape = (2, height, width, 3)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


@torch.no_grad()
def theirs_of(module, x):
    """Channels last, as ours."""
    out = module.eval()(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))).numpy()
    return out.transpose(0, 2, 3, 1) if out.ndim == 4 else out


def difference(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@functools.cache
def bit():
    model = timm.create_model("resnetv2_50x1_bit", num_classes=10)
    return model, randomised(model)


def our_bit(x, **fields):
    _, weights = bit()
    layers = (3, 4, 6, 3)
    params = {
        "backbone": backbone_params(weights, layers),
        "norm": norm(weights, "norm"),
        "head": {
            "kernel": weights["head.fc.weight"][:, :, 0, 0].T,
            "bias": weights["head.fc.bias"],
        },
    }
    config = ResNetConfig(resnet_layers=layers, image_size=x.shape[1:3], num_classes=10, **fields)
    return jax.jit(Model("bit", config).apply)(params, x)[0]


@pytest.mark.parametrize("size", [(64, 64), (75, 50)], ids=str)
def test_bit_r50x1_is_timms(size):
    x = images(*size)
    assert difference(our_bit(x, standardization="timm"), theirs_of(bit()[0], x)) < 3e-5


@pytest.mark.parametrize(
    "name", ["vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224", "vit_base_r50_s16_224"]
)
@pytest.mark.parametrize("size", [(64, 64), (75, 50)], ids=str)
def test_a_hybrids_backbone_is_timms(name, size):
    layers = {"vit_tiny": (), "vit_small": (2, 2, 2, 2), "vit_base": (3, 4, 9)}[
        name[: name.index("_r")]
    ]
    theirs = timm.create_model(name).patch_embed.backbone
    params = backbone_params(randomised(theirs), layers)

    def ours(params, x):
        def make():
            return Backbone(
                layers, 1, 3, preactivation=False, padding="same", groupnorm_eps=1e-5,
                standardization="timm", dtype=jnp.float32, remat="none",
                rngs=nnx.Rngs(params=jax.random.key(0)),
            )  # fmt: skip

        graph, _ = nnx.split(nnx.eval_shape(make), nnx.Param)
        return nnx.merge(graph, params)(x)[0]

    x = images(*size)
    assert difference(jax.jit(ours)(params, x), theirs_of(theirs, x)) < 1e-4


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mixer_s32_224", (512, 8, 32, 256, 2048)),
        ("mixer_b16_224", (768, 12, 16, 384, 3072)),
    ],
)
def test_a_mixer_is_timms(name, sizes):
    hidden_size, num_layers, patch_size, tokens_mlp_dim, mlp_dim = sizes
    theirs = timm.create_model(name, num_classes=10)
    weights = randomised(theirs)
    params = {
        "embed": kernel(weights, "stem.proj") | {"bias": weights["stem.proj.bias"]},
        "encoder": {
            f"block{i:02d}": {
                "norm1": norm(weights, f"blocks.{i}.norm1"),
                "norm2": norm(weights, f"blocks.{i}.norm2"),
                "token_mixing": {
                    fc: dense(weights, f"blocks.{i}.mlp_tokens.{fc}") for fc in ("fc1", "fc2")
                },
                "channel_mixing": {
                    fc: dense(weights, f"blocks.{i}.mlp_channels.{fc}") for fc in ("fc1", "fc2")
                },
            }
            for i in range(num_layers)
        },
        "norm": norm(weights, "norm"),
        "head": dense(weights, "head"),
    }
    config = MixerConfig(
        hidden_size=hidden_size, num_layers=num_layers, patch_size=patch_size,
        tokens_mlp_dim=tokens_mlp_dim, mlp_dim=mlp_dim, num_classes=10, gelu="exact",
    )  # fmt: skip
    x = images(224, 224)
    ours, _ = jax.jit(Model(name, config).apply)(params, x)
    assert difference(ours, theirs_of(theirs, x)) < 1e-4
