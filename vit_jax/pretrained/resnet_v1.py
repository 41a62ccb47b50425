"""Weights of ResNets v1.5: torchvision's and timm's, of 50 layers and more.

A batch norm's four tensors become a scale and a bias here, which stay (`norm: frozen`). So such a
model predicts, and is the backbone of a detector, as the DETR paper begins (arXiv 2005.12872,
section 4). timm's ResNets with group norm have the same names.
"""

import dataclasses
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.configs import ResNetV1Config
from vit_jax.models.data_config import IMAGENET, DataConfig
from vit_jax.models.family import Config
from vit_jax.pretrained.layout import Description, Layout, Reader, or_refusal
from vit_jax.pretrained.rows import CONV, Codec, Row, row, torch_dense, torch_norm
from vit_jax.pretrained.shown import Shown
from vit_jax.pretrained.tensors import Tensors
from vit_jax.pretrained.timm_config import classes_of, preprocessing, said_by

EPSILON = 1e-5  # of the batch norms
SHOWN = DataConfig(IMAGENET.mean, IMAGENET.std)  # as torchvision's first weights of each size
UNIT = "stage{s}/unit{u:02d}"
COUNTERS = {r".*\.num_batches_tracked": "a counter"}


def _read_frozen(xs: list, shapes: list) -> list:
    weight, bias, mean, variance = (np.asarray(x, np.float64) for x in xs)
    scale = weight / np.sqrt(variance + EPSILON)
    return [scale.astype(np.float32), (bias - mean * scale).astype(np.float32)]


def _write_frozen(ps: list) -> list:
    scale, bias = ps
    return [scale, bias, 0 * bias, 0 * bias + (1 - EPSILON)]


# weight, bias, running mean and variance of a batch norm: a scale and a bias.
FROZEN = Codec(_read_frozen, _write_frozen)


@dataclasses.dataclass(frozen=True)
class ResNetNames:
    """A code base's names of a ResNet's parts; those of a unit are below it, by their number."""

    root: str
    root_norm: str
    unit: str
    convs: tuple[str, str, str]
    norms: tuple[str, str, str]
    proj: str
    proj_norm: str

    def rows(self, backbone: str, pre: str, norm: str = "frozen") -> list[Row]:
        """The rows of our parameters below `backbone`, and of tensors behind a prefix."""

        def norms(ours: str, theirs: str) -> list[Row]:
            ours, theirs = f"{backbone}/{ours}", f"{pre}{theirs}"
            if norm == "group":
                return torch_norm(ours, theirs)
            parts = ("weight", "bias", "running_mean", "running_var")
            names = [f"{theirs}.{part}" for part in parts]
            return [row((f"{ours}/scale", f"{ours}/bias"), names, FROZEN)]

        def conv(ours: str, theirs: str) -> Row:
            return row(f"{backbone}/{ours}/kernel", f"{pre}{theirs}.weight", CONV)

        rows = [conv("root/conv", self.root), *norms("root/norm", self.root_norm)]
        for n, (of_conv, of_norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            rows.append(conv(f"{UNIT}/conv{n}", f"{self.unit}.{of_conv}"))
            rows += norms(f"{UNIT}/norm{n}", f"{self.unit}.{of_norm}")
        rows.append(conv(f"{UNIT}/proj", f"{self.unit}.{self.proj}"))
        return rows + norms(f"{UNIT}/proj_norm", f"{self.unit}.{self.proj_norm}")


RESNET_NAMES = {
    "torchvision": ResNetNames(
        "conv1", "bn1", "layer{s}.{u0}", ("conv1", "conv2", "conv3"), ("bn1", "bn2", "bn3"),
        "downsample.0", "downsample.1",
    ),
    "transformers": ResNetNames(
        "embedder.embedder.convolution", "embedder.embedder.normalization",
        "encoder.stages.{s0}.layers.{u0}",
        ("layer.0.convolution", "layer.1.convolution", "layer.2.convolution"),
        ("layer.0.normalization", "layer.1.normalization", "layer.2.normalization"),
        "shortcut.convolution", "shortcut.normalization",
    ),
}  # fmt: skip


def _rows(config: Config | None, dialect: dict[str, Any]) -> list[Row]:
    rows = RESNET_NAMES["torchvision"].rows("backbone", "", dialect["norm"])
    return [*rows, *torch_dense("head", "fc")]


def _describe(tensors: Tensors, known: dict[str, Any]) -> Description:
    dialect = {"norm": "frozen" if "bn1.running_mean" in tensors.shapes else "group"}
    shown = Shown(tensors, _rows(None, dialect), torch=True)
    _, _, channels, width = shown["backbone/root/conv/kernel"]
    outputs, inputs, _, _ = tensors.shapes["layer1.0.conv2.weight"]
    if (inputs, outputs) != (width, width):
        raise UserError(
            f"{tensors.path}: a ResNet whose first 3 x 3 convolution has a kernel of {inputs} to "
            f"{outputs} channels, not {width} to {width}: ResNeXt and wide ResNets are not read"
        )
    said = said_by(tensors.config, known) | known
    fields = {
        "resnet_layers": shown.units(f"backbone/{UNIT}/conv1/kernel"), "stage_width": width,
        "channels": channels, "image_size": said.get("source_image_size") or 224,
        "num_classes": shown.classes(), "groupnorm_eps": EPSILON, "norm": dialect["norm"],
        "standardization": "none",
    }  # fmt: skip
    (data, guessed), refusal = or_refusal(preprocessing, tensors.config, SHOWN)
    return Description(
        ResNetV1Config, fields, data, classes_of(tensors.config), dialect, guessed,
        refusal=refusal,
    )  # fmt: skip


TORCHVISION_RESNET = Layout(
    "torchvision", _rows,
    Reader(
        lambda names: {"conv1.weight", "bn1.weight", "layer1.0.conv3.weight"} <= set(names),
        _describe, ignored=COUNTERS,
    ),
)  # fmt: skip
