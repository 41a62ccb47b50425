"""What ResNets are made of, with group norm and weight standardisation: units, stages, backbone.

BiT (arXiv 1912.11370) is a ResNet v2: its units normalise before they convolve. The hybrids of the
ViT paper (arXiv 2010.11929, section 3.1) put a ResNet v1 under the transformer, whose units
normalise after. Both replace batch norm by group norm (arXiv 1803.08494) and standardised
convolutions (arXiv 1903.10520), so that an image's features do not depend on its batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.configs import features_of, stride_of
from vit_jax.models.convolution import StdConv
from vit_jax.models.family import BEFORE, CHANNELS, Param, under
from vit_jax.models.layers import NORM, make_head

GROUPS = 32

# A convolution needs all of its channels, so its kernel is split over `fsdp` only.
_CONV = Param(
    "kernel", (None, None, None, "fsdp"), decays=True, muon=((0, 1, 2), (3,)), depth=BEFORE
)
BACKBONE = (
    dataclasses.replace(_CONV, path="root/conv/kernel", at_init=CHANNELS),
    dataclasses.replace(_CONV, path=r"stage\d+/unit\d+/(conv\d|proj)/kernel"),
    *under(r"root/norm|stage\d+/unit\d+/(norm[123]|proj_norm)", NORM),
)

# Depth -> units of each stage. 14 is for small images. 200 is of the ViT paper's table 6.
RESNETS = {
    14: (1, 1, 1, 1),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


# (width, stride) -> a module from [batch, h, w, width] to [batch, h/stride, w/stride, width].
Spatial = Callable[[int, int], nnx.Module]


def group_norm(features: int, epsilon: float, *, dtype, rngs, scale: float = 1.0) -> nnx.GroupNorm:
    """32 groups, or as many of them as divide the features. Statistics are in float32, and not by
    `use_fast_variance`, because E[x²] - E[x]² is inexact."""
    return nnx.GroupNorm(
        features, math.gcd(features, GROUPS), epsilon=epsilon, use_fast_variance=False,
        scale_init=nnx.initializers.constant(scale), dtype=dtype, rngs=rngs,
    )  # fmt: skip


class FrozenNorm(nnx.Module):
    """A batch norm whose statistics and parameters were made into a scale and a bias, which never
    learn: as in detectors whose batches are too small for statistics."""

    def __init__(self, features: int, epsilon: float, *, dtype, rngs, scale: float = 1.0):
        self.scale = nnx.Param(jnp.full((features,), scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... features"]:
        scale, bias = map(jax.lax.stop_gradient, (self.scale[...], self.bias[...]))
        return x.astype(self.dtype) * scale.astype(self.dtype) + bias.astype(self.dtype)


# What normalises a ResNet's features, by the name in its config.
NORMS: dict[str, Callable[..., Any]] = {"group": group_norm, "frozen": FrozenNorm}


class Root(nnx.Module):
    """The first convolution, 7 x 7 with stride 2 (v1 normalises it), and a 3 x 3 max pool."""

    def __init__(
        self, channels: int, width: int, *, preactivation: bool, eps: float, conv: dict,
        norm: str = "group",
    ):  # fmt: skip
        self.conv = StdConv(channels, width, 7, 2, **conv)
        self.normalises, self.padding = not preactivation, conv["padding"]
        if self.normalises:
            self.norm = NORMS[norm](width, eps, dtype=conv["dtype"], rngs=conv["rngs"])

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch h w features"]:
        x = self.conv(x)
        if self.normalises:
            x = nnx.relu(self.norm(x))
        if self.padding == "same":
            return nnx.max_pool(x, (3, 3), (2, 2), "SAME")
        # BiT pads with zeros. They can be the maximum, because there is no ReLU before the pool.
        return nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))


class Unit(nnx.Module):
    """A bottleneck: 1 x 1 to `width` channels, 3 x 3 with the stride, 1 x 1 to 4 `width`.

    v1 (arXiv 1512.03385) normalises after each convolution, v2 (arXiv 1603.05027) before. The last
    scale of v1 starts at zero, so that a new unit is its shortcut (projected if shapes differ).
    `spatial(width, stride)` makes what stands in the place of the 3 x 3 convolution.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, *, preactivation: bool, eps: float, conv: dict,
        spatial: Spatial | None = None, norm: str = "group", dilation: int = 1,
    ):  # fmt: skip
        make: Callable[..., Any] = functools.partial(
            NORMS[norm], dtype=conv["dtype"], rngs=conv["rngs"]
        )
        outputs = 4 * width
        self.preactivation, self.projects = preactivation, stride != 1 or inputs != outputs
        if self.projects:
            self.proj = StdConv(inputs, outputs, 1, stride, **conv)
            if not preactivation:
                self.proj_norm = make(outputs, eps)
        self.conv1 = StdConv(inputs, width, 1, **conv)
        spatial = spatial or (
            lambda width, stride: StdConv(width, width, 3, stride, dilation=dilation, **conv)
        )
        self.conv2 = spatial(width, stride)
        self.conv3 = StdConv(width, outputs, 1, **conv)
        self.norm1 = make(inputs if preactivation else width, eps)
        self.norm2 = make(width, eps)
        last = (width, 1.0) if preactivation else (outputs, 0.0)
        self.norm3 = make(last[0], eps, scale=last[1])

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch h w outputs"]:
        if self.preactivation:
            y = nnx.relu(self.norm1(x))
            shortcut = self.proj(y) if self.projects else x
            y = self.conv2(nnx.relu(self.norm2(self.conv1(y))))
            return self.conv3(nnx.relu(self.norm3(y))) + shortcut
        shortcut = self.proj_norm(self.proj(x)) if self.projects else x
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        return nnx.relu(self.norm3(self.conv3(y)) + shortcut)


class Stage(nnx.Module):
    """Units `unit01`, `unit02`, … of one width. The first one has the stride, the others the
    dilation."""

    def __init__(
        self, units: int, inputs: int, width: int, stride: int, dilation: int = 1, **how: Any
    ):
        self.unit01 = Unit(inputs, width, stride, **how)
        for u in range(2, units + 1):
            setattr(self, f"unit{u:02d}", Unit(4 * width, width, 1, dilation=dilation, **how))


class Backbone(nnx.Module):
    """Root and stages: images to `features` channels at 1 / `stride_of(layers)` of their sides.

    `layers` are the numbers of units in each stage; () is the root alone. `padding` is "same" (of
    TensorFlow, for hybrids; it depends on the size) or "symmetric" (half the kernel, for BiT).
    With `dilated`, the last stage has no stride, and its convolutions are wider instead.
    `root` takes the place of the first convolution and its pool, `spatial` that of the 3 x 3
    convolutions. `inserted` are modules by the name of the unit that they stand before.
    """

    def __init__(
        self, layers: tuple[int, ...], width_factor: float, channels: int, *, preactivation: bool,
        padding: str, groupnorm_eps: float, standardization: str, dtype, remat: str, rngs,
        root: nnx.Module | None = None, spatial: Spatial | None = None,
        inserted: Mapping[str, nnx.Module] = MappingProxyType({}), norm: str = "group",
        dilated: bool = False,
    ):  # fmt: skip
        conv = dict(padding=padding, standardization=standardization, dtype=dtype, rngs=rngs)
        how: dict[str, Any] = {
            "preactivation": preactivation, "eps": groupnorm_eps, "conv": conv, "norm": norm,
        }  # fmt: skip
        self.root = root or Root(channels, features_of((), width_factor), **how)
        how["spatial"] = spatial
        for s, units in enumerate(layers):
            inputs, outputs = (features_of(layers[:n], width_factor) for n in (s, s + 1))
            if dilated and s == len(layers) - 1:  # positions of the stage before (DC5)
                stage = Stage(units, inputs, outputs // 4, 1, 2, **how)
            else:
                stage = Stage(units, inputs, outputs // 4, 2 if s else 1, **how)
            setattr(self, f"stage{s + 1}", stage)
        for name, module in inserted.items():
            setattr(self, f"before_{name}", module)
        self.layers, self.recomputes = tuple(layers), remat != "none"
        self.features = features_of(layers, width_factor)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch h w features"], dict[str, Array]]:
        """The features, and `root`, `stage1_unit01`, … by name."""
        x = root = self.root(images)
        x, out = run_units(self._units(), x, self.recomputes)
        return x, {"root": root} | out

    def _units(self) -> Iterator[tuple[str, Any]]:
        for s, units in enumerate(self.layers, start=1):
            for u in range(1, units + 1):
                name = f"stage{s}_unit{u:02d}"
                if inserted := getattr(self, f"before_{name}", None):
                    yield f"before_{name}", inserted
                yield name, getattr(getattr(self, f"stage{s}"), f"unit{u:02d}")


def run_units(
    units: Iterable[tuple[str, Callable]], x: Array, recomputes: bool
) -> tuple[Array, dict[str, Array]]:
    """Applies modules in a row. Returns the last output, and each module's by its name. With
    `recomputes`, the backward pass keeps only their inputs."""
    out = {}
    for name, unit in units:
        out[name] = x = _recomputed(unit, x) if recomputes else unit(x)
    return x, out


def _recomputed(unit: Callable, x: Array) -> Array:
    graph, params = nnx.split(unit, nnx.Param)
    return jax.checkpoint(lambda p, x: nnx.merge(graph, p)(x))(nnx.to_pure_dict(params), x)


class ConvNet(nnx.Module):
    """Features, their global mean, and a head: what ResNets have in common. A subclass makes its
    parts, then the head by `add_head`, and defines `features`."""

    def add_head(self, c: Any, rngs: Any) -> None:
        """Makes the head of a config, if it has classes."""
        self.config = c
        if c.num_classes:
            self.head = make_head(
                c.hidden_size, c.num_classes, bias=c.head_bias, dtype=jnp.dtype(c.dtype), rngs=rngs
            )

    def features(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch h w features"], dict[str, Array]]:
        """The last features, and the intermediate ones by name."""
        raise NotImplementedError

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        key: Key[Array, ""] | None = None,
        *,
        return_weights: bool = False,
        gather=None,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """The same arguments as for a ViT; all but `images` have no effect."""
        x, out = self.features(images)
        out["encoded"] = x
        out["pre_logits"] = x = x.mean(axis=(1, 2))
        logits = self.head(x) if self.config.num_classes else x
        return logits.astype(jnp.float32), out


def positions(image_size: tuple[int, int], stride: int) -> int:
    """Number of positions of features at 1 / `stride` of an image's sides."""
    return math.prod(-(-side // stride) for side in image_size)


def conv_macs(width: int, before: int, after: int) -> int:
    """Multiply-accumulates of a unit's 3 x 3 convolution at `after` positions."""
    return after * 9 * width * width


def backbone_macs(
    layers: tuple[int, ...], width_factor: float, image_size: tuple[int, int], channels: int,
    spatial: Callable[[int, int, int], int] = conv_macs, root: int | None = None,
    dilated: bool = False,
) -> int:  # fmt: skip
    """Multiply-accumulates of one image's convolutions, with their padding.

    Args:
      spatial: (width, positions before, positions after) -> those of the module in the place of a
        3 x 3 convolution.
      root: those of what takes the place of the first convolution.
      dilated: the last stage has no stride.
    """
    first = positions(image_size, 2) * 7 * 7 * channels * features_of((), width_factor)
    macs = first if root is None else root
    for s, units in enumerate(layers):
        before, after = (positions(image_size, stride_of(layers[:n])) for n in (s, s + 1))
        after = before if dilated and s == len(layers) - 1 else after
        inputs, outputs = (features_of(layers[:n], width_factor) for n in (s, s + 1))
        width = outputs // 4
        macs += inputs * (before * width + after * outputs)  # the first unit's conv1 and proj
        macs += (units - 1) * after * outputs * width  # the others' conv1
        macs += spatial(width, before, after) + (units - 1) * spatial(width, after, after)
        macs += units * after * width * outputs  # conv3
    return macs


def first_layer(
    c: Any, make: Callable[[int], nnx.Module], width: int
) -> tuple[nnx.Module, tuple[int, int, int]]:
    """A module on the features of a ResNet's first stage, and their shape for one image."""
    down, across = (-(-side // stride_of(())) for side in c.image_size)
    return make(width), (down, across, width)


def hybrid_macs(
    layers: tuple[int, ...], image_size: tuple[int, int], channels: int, patch: int, width: int
) -> int:
    """The same for a hybrid's backbone and embedding: `patch` in pixels of the image, `width` D."""
    backbone = backbone_macs(layers, 1, image_size, channels)
    embedded = math.prod(side // patch for side in image_size) * (patch // stride_of(layers)) ** 2
    return backbone + embedded * features_of(layers, 1) * width
