"""BiT's ResNet v2 (arXiv 1912.11370): its units normalise before they convolve."""

import re
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vit_jax.models.configs import ResNetConfig, features_of
from vit_jax.models.convolution import StdConv
from vit_jax.models.data_config import SQUASHED
from vit_jax.models.family import BEFORE, Family, Names, under
from vit_jax.models.layers import HEAD, NORM
from vit_jax.models.resnet import (
    BACKBONE,
    RESNETS,
    Backbone,
    ConvNet,
    backbone_macs,
    first_layer,
    group_norm,
)

# Depth -> published width factors.
BIT_WIDTHS = {50: (1, 3), 101: (1, 3), 152: (2, 4)}


class ResNet(ConvNet):
    """BiT's ResNet v2: backbone, group norm, ReLU, global mean, head."""

    def __init__(self, c: ResNetConfig, rngs: Any):
        dtype = jnp.dtype(c.dtype)
        self.backbone = Backbone(
            c.resnet_layers, c.width_factor, c.channels, preactivation=True, padding="symmetric",
            groupnorm_eps=c.groupnorm_eps, standardization=c.standardization, remat=c.remat,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.norm = group_norm(c.hidden_size, c.groupnorm_eps, dtype=dtype, rngs=rngs)
        self.add_head(c, rngs)

    def features(self, images):
        x, out = self.backbone(images)
        return nnx.relu(self.norm(x)), out


def forward_macs(c: ResNetConfig) -> int:
    """Multiply-accumulates of one image through a BiT ResNet: convolutions and head."""
    backbone = backbone_macs(c.resnet_layers, c.width_factor, c.image_size, c.channels)
    return backbone + c.hidden_size * c.num_classes


FAMILY = Family(
    "resnetv2", ResNetConfig, ResNet, forward_macs,
    params=(
        *under("backbone", BACKBONE, BEFORE), *under("norm", NORM), *under("head", HEAD),
    ),
    names=(
        Names(
            r"resnetv2_(?P<depth>14|50|101|152|200)x(?P<width>\d+)_bit(_(?P<side>\d+))?",
            lambda of: {
                "resnet_layers": RESNETS[int(of["depth"])], "width_factor": int(of["width"]),
                "image_size": int(of["side"] or 224),
            },
            tuple(f"resnetv2_{d}x{w}_bit" for d, widths in BIT_WIDTHS.items() for w in widths),
            SQUASHED,
            lambda short, side: (
                f"resnetv2_{short.lower().removeprefix('bit_')}_bit_{side}"
                if re.fullmatch(r"bit_\d+x\d+", short.lower()) else None
            ),
            ("bit_50x1",),
        ),
    ),
    parts=("resnet_layers",), any_size=True,
    layer=lambda c, rngs: first_layer(
        c, lambda width: StdConv(
            width, width, 3, padding="symmetric", standardization=c.standardization,
            dtype=jnp.dtype(c.dtype), rngs=rngs,
        ), features_of((), c.width_factor),
    ),
)  # fmt: skip
