"""Google's published JAX models, restated in flax.linen: ViT, its ResNet hybrids, Mixer and BiT.

The trees of parameters have the names and shapes of the published files (arXiv 2010.11929,
2106.10270, 2105.01601, 1912.11370), so that an imported checkpoint can be held to what the model
computed where it was trained. Every module returns (logits, intermediates by name). Nothing is
shared with the package.

What a port may do differently is a field: `gelu`, `gn_eps` and `weight_std`, whose defaults are
what the published code does.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# How a kernel is standardised: ("std", eps) is (w - mean) / (std + eps), as in the hybrids, and
# ("var", eps) is (w - mean) / sqrt(var + eps).
GOOGLE_STD = ("std", 1e-5)
BIT_STD = ("var", 1e-10)

LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


def gelu_of(x, kind: str):
    """'tanh' is the approximation that flax.linen.gelu takes by default, 'exact' the erf."""
    return nn.gelu(x, approximate={"tanh": True, "exact": False}[kind])


class MlpBlock(nn.Module):
    """Dense_0, GELU, Dense_1."""

    mlp_dim: int
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, x):
        hidden = gelu_of(nn.Dense(self.mlp_dim)(x), self.gelu)
        return nn.Dense(x.shape[-1])(hidden)


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP. The files count all four parts, Linen counts within a class."""

    num_heads: int
    mlp_dim: int
    numbering: str = "old"
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, x):
        attention, norm, mlp = {"old": (1, 2, 3), "linen": (0, 1, 0)}[self.numbering]
        y = LayerNorm(name="LayerNorm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(
            self.num_heads, deterministic=True, name=f"MultiHeadDotProductAttention_{attention}"
        )(y, y)
        y = LayerNorm(name=f"LayerNorm_{norm}")(x)
        return x + MlpBlock(self.mlp_dim, self.gelu, name=f"MlpBlock_{mlp}")(y)


class PositionEmbedding(nn.Module):
    """One learned vector for every token, the class token's first."""

    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))


class Encoder(nn.Module):
    """Positions, blocks and the final norm; every block's output beside the last."""

    depth: int
    num_heads: int
    mlp_dim: int
    numbering: str
    gelu: str

    @nn.compact
    def __call__(self, x):
        x = PositionEmbedding(name="posembed_input")(x)
        out = {}
        for i in range(self.depth):
            x = EncoderBlock(
                self.num_heads, self.mlp_dim, self.numbering, self.gelu, name=f"encoderblock_{i}"
            )(x)
            out[f"block{i:02d}"] = x
        return LayerNorm(name="encoder_norm")(x), out


class GoogleViT(nn.Module):
    """ViT, or with `resnet` (units per stage; () is the stem alone) a hybrid.

    `patch` counts pixels of the image, or positions of what the ResNet gives.
    """

    patch: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_classes: int
    pool: str = "tok"  # or gap
    rep_size: int | None = None  # of the hidden layer before the head
    numbering: str = "old"  # or linen
    gelu: str = "tanh"
    resnet: tuple[int, ...] | None = None
    resnet_width: int = 64
    gn_eps: float = 1e-6
    weight_std: tuple[str, float] = GOOGLE_STD

    @nn.compact
    def __call__(self, x):
        out = {}
        if self.resnet is not None:
            x, out = self.backbone(x)
        p = (self.patch, self.patch)
        x = nn.Conv(self.width, p, strides=p, padding="VALID", name="embedding")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        if self.pool == "tok":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
            x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        x, blocks = Encoder(
            self.depth, self.num_heads, self.mlp_dim, self.numbering, self.gelu, name="Transformer"
        )(x)
        out |= blocks | {"encoded": x}
        x = {"tok": lambda x: x[:, 0], "gap": lambda x: x.mean(axis=1)}[self.pool](x)
        if self.rep_size is not None:
            x = jnp.tanh(nn.Dense(self.rep_size, name="pre_logits")(x))
        out["pre_logits"] = x
        return nn.Dense(self.num_classes, name="head")(x), out

    def backbone(self, x):
        """The ResNet in the scope of the whole model: `conv_root`, `gn_root`, `block1` and on."""
        x = StdConv(self.resnet_width, 7, 2, weight_std=self.weight_std, name="conv_root")(x)
        x = GroupNorm(epsilon=self.gn_eps, name="gn_root")(x)
        x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding="SAME")
        out = {"stem": x}
        for i, units in enumerate(self.resnet):
            x, of_stage = Stage(
                units,
                self.resnet_width * 2**i,
                1 if i == 0 else 2,
                self.gn_eps,
                self.weight_std,
                name=f"block{i + 1}",
            )(x)
            out |= {f"block{i + 1}/{unit}": y for unit, y in of_stage.items()}
        return x, out


GroupNorm = functools.partial(nn.GroupNorm, num_groups=32, use_fast_variance=False)


def standardised(kernel, weight_std: tuple[str, float]):
    """Mean zero and deviation one for every output channel."""
    form, eps = weight_std
    kernel = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
    variance = jnp.square(kernel).mean(axis=(0, 1, 2), keepdims=True)
    return kernel / {"std": jnp.sqrt(variance) + eps, "var": jnp.sqrt(variance + eps)}[form]


class StdConv(nn.Module):
    """A convolution without bias whose kernel is standardised; `pad` pads both sides alike."""

    features: int
    size: int
    stride: int = 1
    pad: int | None = None  # None: SAME
    weight_std: tuple[str, float] = GOOGLE_STD

    @nn.compact
    def __call__(self, x):
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return jax.lax.conv_general_dilated(
            x,
            standardised(kernel, self.weight_std),
            window_strides=(self.stride, self.stride),
            padding="SAME" if self.pad is None else [(self.pad, self.pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Unit(nn.Module):
    """A post-activation bottleneck (ResNet v1), strided at its 3 x 3 convolution."""

    width: int
    stride: int
    gn_eps: float
    weight_std: tuple[str, float]

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(StdConv, weight_std=self.weight_std)
        norm = functools.partial(GroupNorm, epsilon=self.gn_eps)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != 4 * self.width:
            shortcut = conv(4 * self.width, 1, self.stride, name="conv_proj")(x)
            shortcut = norm(name="gn_proj")(shortcut)
        y = nn.relu(norm(name="gn1")(conv(self.width, 1, name="conv1")(x)))
        y = nn.relu(norm(name="gn2")(conv(self.width, 3, self.stride, name="conv2")(y)))
        y = norm(name="gn3")(conv(4 * self.width, 1, name="conv3")(y))
        return nn.relu(shortcut + y)


class Stage(nn.Module):
    """`unit1`, which strides, and the units after it; every unit's output beside the last."""

    units: int
    width: int
    stride: int
    gn_eps: float
    weight_std: tuple[str, float]

    @nn.compact
    def __call__(self, x):
        out = {}
        for i in range(self.units):
            stride = self.stride if i == 0 else 1
            unit = Unit(self.width, stride, self.gn_eps, self.weight_std, name=f"unit{i + 1}")
            out[unit.name] = x = unit(x)
        return x, out


class MixerBlock(nn.Module):
    """An MLP across the tokens and one across the channels."""

    tokens_mlp_dim: int
    channels_mlp_dim: int
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, x):
        y = LayerNorm(name="LayerNorm_0")(x).swapaxes(1, 2)
        y = MlpBlock(self.tokens_mlp_dim, self.gelu, name="token_mixing")(y)
        x = x + y.swapaxes(1, 2)
        y = LayerNorm(name="LayerNorm_1")(x)
        return x + MlpBlock(self.channels_mlp_dim, self.gelu, name="channel_mixing")(y)


class GoogleMixer(nn.Module):
    """MLP-Mixer: patches, blocks, norm, mean over the tokens, head."""

    patch: int
    width: int
    depth: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    num_classes: int
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, x):
        p = (self.patch, self.patch)
        x = nn.Conv(self.width, p, strides=p, padding="VALID", name="stem")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        out = {}
        for i in range(self.depth):
            x = MixerBlock(
                self.tokens_mlp_dim, self.channels_mlp_dim, self.gelu, name=f"MixerBlock_{i}"
            )(x)
            out[f"block{i:02d}"] = x
        out["encoded"] = x = LayerNorm(name="pre_head_layer_norm")(x)
        out["pre_logits"] = x = x.mean(axis=1)
        return nn.Dense(self.num_classes, name="head")(x), out


class Scope(nn.Module):
    """A name around one module, as TensorFlow's variable scopes make them."""

    inner: Any  # makes the module when called with its name
    inner_name: str

    @nn.compact
    def __call__(self, x):
        return self.inner(name=self.inner_name)(x)


class BiTNorm(nn.Module):
    """GroupNorm with 32 groups, then ReLU; the parameters are called gamma and beta."""

    eps: float

    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.ones, (x.shape[-1],))
        beta = self.param("beta", nn.initializers.zeros, (x.shape[-1],))
        groups = x.reshape(*x.shape[:3], 32, -1)
        centred = groups - groups.mean(axis=(1, 2, 4), keepdims=True)
        variance = jnp.square(centred).mean(axis=(1, 2, 4), keepdims=True)
        return nn.relu((centred / jnp.sqrt(variance + self.eps)).reshape(x.shape) * gamma + beta)


class BiTConv(nn.Module):
    """`a`, `b` or `c` of a unit: norm, ReLU, convolution. `a` also projects the shortcut."""

    features: int
    size: int
    stride: int
    eps: float
    weight_std: tuple[str, float]
    project: tuple[int, int] | None = None  # features and stride of the shortcut

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(StdConv, weight_std=self.weight_std)
        name = "standardized_conv2d"
        x = BiTNorm(self.eps, name="group_norm")(x)
        shortcut = None
        if self.project is not None:
            features, stride = self.project
            shortcut = Scope(functools.partial(conv, features, 1, stride, 0), name, name="proj")(x)
        pad = (self.size - 1) // 2
        return conv(self.features, self.size, self.stride, pad, name=name)(x), shortcut


class BiTUnit(nn.Module):
    """A pre-activation bottleneck (ResNet v2), strided at its 3 x 3 convolution."""

    width: int
    stride: int
    eps: float
    weight_std: tuple[str, float]

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(BiTConv, eps=self.eps, weight_std=self.weight_std)
        outside = 4 * self.width
        changes = self.stride != 1 or x.shape[-1] != outside
        project = (outside, self.stride) if changes else None
        y, shortcut = conv(self.width, 1, 1, project=project, name="a")(x)
        y, _ = conv(self.width, 3, self.stride, name="b")(y)
        y, _ = conv(outside, 1, 1, name="c")(y)
        return y + (shortcut if changes else x)


class BiTStage(nn.Module):
    """`unit01`, which strides, and the units after it; every unit's output beside the last."""

    units: int
    width: int
    stride: int
    eps: float
    weight_std: tuple[str, float]

    @nn.compact
    def __call__(self, x):
        out = {}
        for i in range(self.units):
            stride = self.stride if i == 0 else 1
            unit = BiTUnit(self.width, stride, self.eps, self.weight_std, name=f"unit{i + 1:02d}")
            out[unit.name] = x = unit(x)
        return x, out


class BiTBody(nn.Module):
    """All of BiT, inside the scope `resnet`. Every padding is symmetric, whatever the stride."""

    layers: tuple[int, ...]
    width: int
    num_classes: int
    eps: float
    weight_std: tuple[str, float]

    @nn.compact
    def __call__(self, x):
        root = functools.partial(StdConv, self.width, 7, 2, 3, self.weight_std)
        x = Scope(root, "standardized_conv2d", name="root_block")(x)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # with zeros, though a maximum follows
        out = {"stem": (x := nn.max_pool(x, (3, 3), strides=(2, 2), padding="VALID"))}
        for i, units in enumerate(self.layers):
            stride = 1 if i == 0 else 2
            x, of_stage = BiTStage(
                units, self.width * 2**i, stride, self.eps, self.weight_std, name=f"block{i + 1}"
            )(x)
            out |= {f"block{i + 1}/{unit}": y for unit, y in of_stage.items()}
        out["encoded"] = x = BiTNorm(self.eps, name="group_norm")(x)
        out["pre_logits"] = x.mean(axis=(1, 2))
        head = functools.partial(nn.Conv, self.num_classes, (1, 1))
        logits = Scope(head, "conv2d", name="head")(x.mean(axis=(1, 2), keepdims=True))
        return logits[:, 0, 0], out


class BiTResNet(nn.Module):
    """Big Transfer's ResNets, R50x1 by default, under the TensorFlow names of their files."""

    num_classes: int
    layers: tuple[int, ...] = (3, 4, 6, 3)
    width_factor: int = 1
    eps: float = 1e-5
    weight_std: tuple[str, float] = BIT_STD

    @nn.compact
    def __call__(self, x):
        return BiTBody(
            self.layers,
            64 * self.width_factor,
            self.num_classes,
            self.eps,
            self.weight_std,
            name="resnet",
        )(x)
