"""Stand-alone attention, non-local blocks and the ResNet with group norm compute what timm's do.

timm has no model of the first two, but blocks with the same arithmetic. Weights are timm's random
ones, carried over by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.models import create_model
from vit_jax.models.nonlocal_blocks import NonLocal
from vit_jax.models.sasa import LocalAttention

timm = pytest.importorskip("timm", reason="timm is not installed: pip install .[peers]")
torch = pytest.importorskip("torch", reason="torch is not installed: pip install .[peers]")


def randomised(module):
    """timm's module with every parameter random, as float32 arrays by name."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        norm = parameter.ndim == 1 and name.endswith("weight")
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(float(norm) + (0.3 if parameter.ndim == 1 else 0.05) * noise)
    return {name: leaf.detach().numpy() for name, leaf in module.named_parameters()}


def images(*shape):
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


@torch.no_grad()
def theirs_of(module, x):
    out = module.eval()(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))).numpy()
    return out.transpose(0, 2, 3, 1) if out.ndim == 4 else out


def ours_of(make, params, x):
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(params=0))), nnx.Param)
    return jax.jit(lambda p, x: nnx.merge(graph, p)(x))(params, x)


def difference(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("window", [3, 7])
def test_local_attention_is_timms_halo_attention_of_blocks_of_one(window):
    """HaloNet's embeddings of both axes have all of a head's numbers: half of each is zero. It
    divides qᵀk, but not qᵀr, by the root of d."""
    from timm.layers.halo_attn import HaloAttn

    heads, dim, halo = 4, 8, window // 2
    theirs = HaloAttn(heads * dim, num_heads=heads, dim_head=dim, block_size=1, halo_size=halo)
    randomised(theirs)
    with torch.no_grad():
        theirs.pos_embed.height_rel[:, dim // 2 :] = 0
        theirs.pos_embed.width_rel[:, : dim // 2] = 0
    weights = {name: leaf.detach().numpy() for name, leaf in theirs.named_parameters()}
    q = weights["q.weight"][:, :, 0, 0].T.reshape(-1, heads, dim)
    kv = weights["kv.weight"][:, :, 0, 0].T.reshape(-1, heads, 2 * dim)
    seen = slice(window - 1, 2 * window - 1)
    rows = weights["pos_embed.height_rel"][seen, : dim // 2]
    columns = weights["pos_embed.width_rel"][seen, dim // 2 :]
    params = {
        "q": {"kernel": q}, "k": {"kernel": kv[..., :dim] * dim**-0.5},
        "v": {"kernel": kv[..., dim:]},
        "rows": np.repeat(rows[:, None], heads, axis=1),
        "columns": np.repeat(columns[:, None], heads, axis=1),
    }  # fmt: skip
    x = images(2, 9, 6, heads * dim)

    def make(rngs):
        return LocalAttention(
            heads * dim, 1, window=window, heads=heads, dtype=jnp.float32, rngs=rngs
        )

    assert difference(ours_of(make, params, x), theirs_of(theirs, x)) < 1e-5


def test_a_non_local_block_is_timms():
    from timm.layers.non_local_attn import NonLocalAttn

    theirs = NonLocalAttn(64, use_scale=False, rd_channels=32)
    theirs.norm = torch.nn.GroupNorm(32, 64)
    weights = randomised(theirs)

    def dense(name):
        kernel = weights[f"{name}.weight"][:, :, 0, 0].T
        return {"kernel": kernel, "bias": weights[f"{name}.bias"]}

    params = {ours: dense(name) for ours, name in
              {"theta": "t", "phi": "p", "g": "g", "out": "z"}.items()}  # fmt: skip
    params["norm"] = {"scale": weights["norm.weight"], "bias": weights["norm.bias"]}
    x = images(2, 7, 5, 64)

    def make(rngs):
        return NonLocal(64, "embedded", eps=1e-5, dtype=jnp.float32, rngs=rngs)

    assert difference(ours_of(make, params, x), theirs_of(theirs, x)) < 1e-4


def test_the_resnet_with_group_norm_is_timms():
    theirs = timm.create_model("resnet50_gn", num_classes=10)
    weights = randomised(theirs)

    def kernel(name):
        return {"kernel": weights[f"{name}.weight"].transpose(2, 3, 1, 0)}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    backbone = {"root": {"conv": kernel("conv1"), "norm": norm("bn1")}}
    for s, units in enumerate((3, 4, 6, 3), start=1):
        stage = backbone[f"stage{s}"] = {}
        for u in range(units):
            name = f"layer{s}.{u}"
            unit = {f"conv{i}": kernel(f"{name}.conv{i}") for i in (1, 2, 3)}
            unit |= {f"norm{i}": norm(f"{name}.bn{i}") for i in (1, 2, 3)}
            if u == 0:
                unit |= {"proj": kernel(f"{name}.downsample.0"),
                         "proj_norm": norm(f"{name}.downsample.1")}  # fmt: skip
            stage[f"unit{u + 1:02d}"] = unit
    head = {"kernel": weights["fc.weight"].T, "bias": weights["fc.bias"]}
    x = images(2, 75, 50, 3)
    model = create_model("resnet50_gn", num_classes=10, image_size=(75, 50))
    logits, _ = jax.jit(model.apply)({"backbone": backbone, "head": head}, x)
    assert difference(logits, theirs_of(theirs, x)) < 1e-4
