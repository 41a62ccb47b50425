"""ResNet v1.5 (arXiv 1512.03385) with group norm in the place of batch norm: timm's `resnet50_gn`.
`resnet50_frozen_bn` is for published weights: their batch norms are a scale and a bias that stay.

A unit normalises after it convolves, and its 3 x 3 convolution has the stride. Other families are
this one with another module in the place of those convolutions (`sasa.py`), or with modules between
the units (`nonlocal_blocks.py`).
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vit_jax.models import bit
from vit_jax.models.configs import ResNetV1Config
from vit_jax.models.data_config import IMAGENET, DataConfig
from vit_jax.models.family import BEFORE, Family, Names, Param, under
from vit_jax.models.layers import HEAD
from vit_jax.models.resnet import BACKBONE, RESNETS, Backbone, ConvNet, backbone_macs

# Units of each stage. 26 and 38 are of arXiv 1906.05909, section 4.1.
DEPTHS = RESNETS | {26: (1, 2, 4, 1), 38: (2, 3, 5, 2)}
WIDTH = r"(w(?P<width>\d+))?"  # of the first stage, in names behind the depth: resnet14w32_gn


class ResNetV1(ConvNet):
    """Backbone, global mean, head. `parts` are the backbone's: `root`, `spatial`, `inserted`."""

    def __init__(self, c: ResNetV1Config, rngs: Any, **parts: Any):
        self.backbone = Backbone(
            c.resnet_layers, c.width_factor, c.channels, preactivation=False, padding="symmetric",
            groupnorm_eps=c.groupnorm_eps, standardization=c.standardization, remat=c.remat,
            norm=c.norm, dilated=c.dilated, dtype=jnp.dtype(c.dtype), rngs=rngs,
            **parts,
        )  # fmt: skip
        self.add_head(c, rngs)

    def features(self, images):
        return self.backbone(images)


def forward_macs(c: ResNetV1Config, **parts: Any) -> int:
    """Multiply-accumulates of one image. `parts` are those of `backbone_macs`."""
    parts["dilated"] = c.dilated
    backbone = backbone_macs(c.resnet_layers, c.width_factor, c.image_size, c.channels, **parts)
    return backbone + c.hidden_size * c.num_classes


def params_with(*rows: Param) -> tuple[Param, ...]:
    """The rows of a family: those of ResNets, and `rows` of what is in the backbone besides."""
    return *under("backbone", (*BACKBONE, *rows), BEFORE), *under("head", HEAD)


def sizes_of(of: Mapping[str, str | None]) -> dict[str, Any]:
    """The fields that a name's depth and width decide."""
    return {
        "resnet_layers": DEPTHS[int(of["depth"] or 50)], "stage_width": int(of["width"] or 64),
        "image_size": 224,
    }  # fmt: skip


def short_name(short: str, pattern: str) -> str | None:
    """The full name of a short one: a resolution is no part of these names."""
    return short.lower() if re.fullmatch(pattern, short.lower()) else None


FAMILY = Family(
    "resnetv1", ResNetV1Config, ResNetV1, forward_macs, params=params_with(),
    names=(
        Names(
            rf"resnet(?P<depth>14|26|38|50|101){WIDTH}_gn",
            sizes_of,
            tuple(f"resnet{depth}_gn" for depth in (14, 26, 38, 50, 101)),
        ),
        Names(
            r"resnet(?P<depth>50|101|152)_frozen_bn",
            lambda of: sizes_of(of | {"width": None}) | {"norm": "frozen"},
            tuple(f"resnet{depth}_frozen_bn" for depth in (50, 101, 152)),
            DataConfig(IMAGENET.mean, IMAGENET.std),
        ),
    ),
    parts=("resnet_layers", "norm"), layer=bit.FAMILY.layer, any_size=True,
)  # fmt: skip
