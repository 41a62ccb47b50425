"""Non-local blocks in a ResNet (arXiv 1711.07971): z = W y + x, where y is a mean of g(x) over all
positions, weighted by how well two positions fit.

The last norm's scale starts at zero, so that a new block passes its input on (section 4.1). Batch
norm's place is taken by group norm. Nothing is scaled or pooled besides: equations 2 to 5.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.models.configs import NonLocalConfig, features_of, stride_of
from vit_jax.models.family import Family, Names, Param
from vit_jax.models.layers import NORM
from vit_jax.models.resnet import first_layer, group_norm, positions
from vit_jax.models.resnet_v1 import WIDTH, ResNetV1, forward_macs, params_with, sizes_of

# Number of blocks -> how many of them follow units of stage 2 and of stage 3, at equal distances
# (section 5.1). None: after every unit. One block stands before the last unit of stage 3.
SPREAD = {0: (0, 0), 5: (2, 3), 10: (None, None)}


def places(layers: tuple[int, ...], blocks: int) -> list[tuple[int, int]]:
    """(stage, unit) before which a block stands, both from 1. After the last unit of a stage is
    before the first one of the next."""
    if blocks == 1:
        return [(3, layers[2])]
    before = []
    for stage, count in zip((2, 3), SPREAD[blocks], strict=True):
        units = layers[stage - 1]
        count = units if count is None else min(count, units)
        after = [(i + 1) * (units // count) for i in range(count)] if count else []
        before += [(stage, unit + 1) if unit < units else (stage + 1, 1) for unit in after]
    return before


class NonLocal(nnx.Module):
    """One block on features of `width` channels. `affinity` names f of equations 2 to 5."""

    def __init__(self, width: int, affinity: str, *, eps: float, dtype, rngs):
        inner, self.affinity, self.dtype = width // 2, affinity, dtype
        small = nnx.initializers.normal(0.01)
        dense: dict[str, Any] = {"kernel_init": small, "dtype": dtype, "rngs": rngs}
        self.g = nnx.Linear(width, inner, **dense)
        if affinity != "gaussian":
            self.theta, self.phi = (nnx.Linear(width, inner, **dense) for _ in range(2))
        if affinity == "concatenation":
            self.pair = nnx.Param(small(rngs.params(), (2, inner), jnp.float32))
        self.out = nnx.Linear(inner, width, **dense)
        self.norm = group_norm(width, eps, scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch height width features"]:
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        mixed = jnp.einsum("bij,bjd->bid", self._weights(rows).astype(self.dtype), self.g(rows))
        return x + self.norm(self.out(mixed).reshape(x.shape))

    def _weights(self, rows: Float[Array, "batch n features"]) -> Float[Array, "batch n n"]:
        """f(x_i, x_j) / C(x), in float32."""
        if self.affinity == "gaussian":
            theta = phi = rows
        else:
            theta, phi = self.theta(rows), self.phi(rows)
        if self.affinity == "concatenation":
            pair = self.pair[...].astype(self.dtype)
            sums = (theta @ pair[0])[:, :, None] + (phi @ pair[1])[:, None, :]
            return nnx.relu(sums).astype(jnp.float32) / rows.shape[1]
        products = jnp.einsum("bid,bjd->bij", theta, phi, preferred_element_type=jnp.float32)
        if self.affinity == "dot":
            return products / rows.shape[1]
        return jax.nn.softmax(products)


class NonLocalResNet(ResNetV1):
    """The ResNet with blocks between its units."""

    def __init__(self, c: NonLocalConfig, rngs: Any):
        how: dict[str, Any] = {
            "eps": c.groupnorm_eps, "dtype": jnp.dtype(c.dtype), "rngs": rngs,
        }  # fmt: skip
        super().__init__(
            c, rngs, inserted={
                f"stage{stage}_unit{unit:02d}": NonLocal(_width(c, stage, unit), c.affinity, **how)
                for stage, unit in places(c.resnet_layers, c.nonlocal_blocks)
            },
        )  # fmt: skip


def _width(c: NonLocalConfig, stage: int, unit: int) -> int:
    """Channels of the features before a unit."""
    return features_of(c.resnet_layers[: stage - (unit == 1)], c.width_factor)


def nonlocal_macs(c: NonLocalConfig) -> int:
    """Multiply-accumulates of one image through the ResNet and its blocks."""
    total = forward_macs(c)
    for stage, unit in places(c.resnet_layers, c.nonlocal_blocks):
        width, inner = _width(c, stage, unit), _width(c, stage, unit) // 2
        n = positions(c.image_size, stride_of(c.resnet_layers[: stage - (unit == 1)]))
        total += 2 * n * width * inner + n * n * inner  # g, out, and the mean
        if c.affinity == "gaussian":
            total += n * n * width
        else:
            total += 2 * n * width * inner
            total += 2 * n * inner if c.affinity == "concatenation" else n * n * inner
    return total


_BLOCK = r"before_stage\d+_unit\d+"
ROWS = (
    Param(rf"{_BLOCK}/(g|theta|phi)/kernel", ("fsdp", "tensor"), decays=True, muon=((0,), (1,))),
    Param(rf"{_BLOCK}/(g|theta|phi)/bias", ("tensor",)),
    Param(rf"{_BLOCK}/pair", (None, "tensor")),
    Param(rf"{_BLOCK}/out/kernel", ("tensor", "fsdp"), decays=True, muon=((0,), (1,))),
    Param(rf"{_BLOCK}/out/bias"),
    Param(rf"{_BLOCK}/norm/({NORM[0].path})"),
)

FAMILY = Family(
    "nonlocal", NonLocalConfig, NonLocalResNet, nonlocal_macs, params=params_with(*ROWS),
    names=(
        Names(
            rf"nonlocal_resnet(?P<depth>14|26|38|50|101){WIDTH}_(?P<blocks>1|5|10)",
            lambda of: sizes_of(of) | {"nonlocal_blocks": int(of["blocks"])},
            tuple(f"nonlocal_resnet{d}_{n}" for d, n in ((50, 1), (50, 5), (50, 10), (101, 5))),
        ),
    ),
    parts=("resnet_layers", "nonlocal_blocks"), any_size=True,
    layer=lambda c, rngs: first_layer(
        c, lambda width: NonLocal(
            width, c.affinity, eps=c.groupnorm_eps, dtype=jnp.dtype(c.dtype), rngs=rngs
        ), features_of((), c.width_factor),
    ),
)  # fmt: skip
