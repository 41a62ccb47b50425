"""Google's `.npz` files: `vision_transformer` (ViT, hybrids, Mixer), BiT and `big_vision`.

The parts of a ViT's block are numbered in one sequence in files from before Linen (`LayerNorm_0`,
`MultiHeadDotProductAttention_1`, …). Linen numbers each class from 0. big_vision has Linen's names,
keeps the positions of patches alone, at the root, and may stack all layers under one name.
"""

import dataclasses
from typing import Any

import numpy as np

from vit_jax.errors import UserError, printable
from vit_jax.models.configs import MixerConfig, ResNetConfig, ViTConfig
from vit_jax.models.data_config import SQUASHED, DataConfig
from vit_jax.models.family import Config
from vit_jax.models.model import Model
from vit_jax.pretrained.files import write_npz
from vit_jax.pretrained.layout import Description, Layout, Reader, Writer, refused_pool
from vit_jax.pretrained.rows import (
    BATCHED,
    POINTWISE_HWIO,
    POSITIONS,
    SAME,
    WIDE,
    Row,
    joined,
    row,
)  # fmt: skip
from vit_jax.pretrained.shown import BLOCK as OURS
from vit_jax.pretrained.shown import Shown, mixer_fields, resnet_fields, vit_fields
from vit_jax.pretrained.stated import MOST_LAYERS
from vit_jax.pretrained.tensors import Tensors

BLOCK = "Transformer/encoderblock"
# Names of a block's attention, second norm and MLP. The first norm is LayerNorm_0 in both.
NUMBERING = {
    "old": ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    "linen": ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
}

# The arithmetic of both code bases, which no file states.
ASSUMED = {
    "gelu": "tanh", "layernorm_eps": 1e-6, "groupnorm_eps": 1e-6, "standardization": "google",
}  # fmt: skip
BIT = {"groupnorm_eps": 1e-5, "standardization": "bit"}


def _pair(ours: str, theirs: str, names=("kernel", "bias"), codec=SAME) -> list[Row]:
    """Rows for two parameters of one layer."""
    return [row(f"{ours}/{name}", f"{theirs}/{name}", codec) for name in names]


def _norm(ours: str, theirs: str, codec=SAME) -> list[Row]:
    return _pair(ours, theirs, ("scale", "bias"), codec)


def _mlp(ours: str, theirs: str) -> list[Row]:
    return _pair(f"{ours}/fc1", f"{theirs}/Dense_0") + _pair(f"{ours}/fc2", f"{theirs}/Dense_1")


def _vit_rows(numbering: str) -> list[Row]:
    """The rows that both code bases share: embedding, blocks, last norm, head."""
    attention, norm2, mlp = NUMBERING[numbering]
    ours, theirs = OURS, BLOCK + "_{i}"
    qkv = [f"{theirs}/{attention}/{part}" for part in ("query", "key", "value")]
    return [
        *_pair("embed", "embedding"),
        row("cls", "cls", BATCHED),
        *_norm(f"{ours}/norm1", f"{theirs}/LayerNorm_0"),
        row(f"{ours}/attention/qkv/kernel", [f"{x}/kernel" for x in qkv], joined(1, 3)),
        row(f"{ours}/attention/qkv/bias", [f"{x}/bias" for x in qkv], joined(0, 3)),
        *_pair(f"{ours}/attention/out", f"{theirs}/{attention}/out"),
        *_norm(f"{ours}/norm2", f"{theirs}/{norm2}"),
        *_mlp(f"{ours}/mlp", f"{theirs}/{mlp}"),
        *_norm("norm", "Transformer/encoder_norm"),
        *_pair("pre_logits", "pre_logits"),
        *_pair("head", "head"),
    ]


def _hybrid_rows(norm_codec) -> list[Row]:
    ours, theirs = "backbone/stage{s}/unit{u:02d}", "block{s}/unit{u}"
    rows = [
        row("backbone/root/conv/kernel", "conv_root/kernel"),
        *_norm("backbone/root/norm", "gn_root", norm_codec),
        row(f"{ours}/proj/kernel", f"{theirs}/conv_proj/kernel"),
        *_norm(f"{ours}/proj_norm", f"{theirs}/gn_proj", norm_codec),
    ]
    for n in (1, 2, 3):
        rows.append(row(f"{ours}/conv{n}/kernel", f"{theirs}/conv{n}/kernel"))
        rows += _norm(f"{ours}/norm{n}", f"{theirs}/gn{n}", norm_codec)
    return rows


MIXER = [
    *_pair("embed", "stem"),
    *_norm(f"{OURS}/norm1", "MixerBlock_{i}/LayerNorm_0"),
    *_mlp(f"{OURS}/token_mixing", "MixerBlock_{i}/token_mixing"),
    *_norm(f"{OURS}/norm2", "MixerBlock_{i}/LayerNorm_1"),
    *_mlp(f"{OURS}/channel_mixing", "MixerBlock_{i}/channel_mixing"),
    *_norm("norm", "pre_head_layer_norm"),
    *_pair("head", "head"),
]


def _bit_rows(norm_codec) -> list[Row]:
    """BiT's rows, with TensorFlow's names: a, b and c are the three convolutions of a unit."""
    conv = "standardized_conv2d/kernel"
    ours, theirs = "backbone/stage{s}/unit{u:02d}", "resnet/block{s}/unit{u:02d}"
    rows = [
        row("backbone/root/conv/kernel", f"resnet/root_block/{conv}"),
        row(f"{ours}/proj/kernel", f"{theirs}/a/proj/{conv}"),
        row("norm/scale", "resnet/group_norm/gamma", norm_codec),
        row("norm/bias", "resnet/group_norm/beta", norm_codec),
        row("head/kernel", "resnet/head/conv2d/kernel", POINTWISE_HWIO),
        row("head/bias", "resnet/head/conv2d/bias"),
    ]
    for n, letter in enumerate("abc", start=1):
        group = f"{theirs}/{letter}/group_norm"
        rows.append(row(f"{ours}/conv{n}/kernel", f"{theirs}/{letter}/{conv}"))
        rows.append(row(f"{ours}/norm{n}/scale", f"{group}/gamma", norm_codec))
        rows.append(row(f"{ours}/norm{n}/bias", f"{group}/beta", norm_codec))
    return rows


def _google_rows(config: Config, dialect: dict[str, Any]) -> list[Row]:
    norms = WIDE if dialect.get("wide_norms") else SAME
    if isinstance(config, MixerConfig):
        return MIXER
    if isinstance(config, ResNetConfig):
        return _bit_rows(norms)
    positions = row(
        ("pos_embed/grid", "pos_embed/prefix"), "Transformer/posembed_input/pos_embedding",
        POSITIONS,
    )  # fmt: skip
    return [*_vit_rows(dialect.get("numbering", "old")), *_hybrid_rows(norms), positions]


def _big_vision_rows(config: Config, dialect: dict[str, Any]) -> list[Row]:
    heads = "MAPHead_0/MultiHeadDotProductAttention_0"
    kv = [f"{heads}/key", f"{heads}/value"]
    return [
        *_vit_rows("linen"),
        row("pos_embed/grid", "pos_embedding", POSITIONS),
        row("pool/probe", "MAPHead_0/probe", BATCHED),
        *_pair("pool/q", f"{heads}/query"),
        row("pool/kv/kernel", [f"{x}/kernel" for x in kv], joined(1, 2)),
        row("pool/kv/bias", [f"{x}/bias" for x in kv], joined(0, 2)),
        *_pair("pool/out", f"{heads}/out"),
        *_norm("pool/norm", "MAPHead_0/LayerNorm_0"),
        *_mlp("pool/mlp", "MAPHead_0/MlpBlock_0"),
    ]


def _vit_fields(shown: Shown, known: dict[str, Any], positions: dict[str, int]) -> dict[str, Any]:
    """The fields that follow from shapes and from the code bases, in files of both."""
    return vit_fields(shown, known, positions) | {
        "num_heads": shown[f"{OURS}/attention/qkv/kernel"][1],
        "pre_logits": bool(shown.get("pre_logits/kernel")), "posemb_resize": "google",
    } | ASSUMED  # fmt: skip


def _describe_google(tensors: Tensors, known: dict[str, Any]) -> Description:
    shapes = tensors.shapes
    dialect: dict[str, Any] = {}
    if "MixerBlock_0/LayerNorm_0/scale" in shapes:
        mixer = mixer_fields(Shown(tensors, MIXER), known)
        return Description(MixerConfig, mixer | {"gelu": "tanh"}, SQUASHED)
    if "resnet/root_block/standardized_conv2d/kernel" in shapes:
        shown = Shown(tensors, _bit_rows(SAME))
        dialect["wide_norms"] = len(shown["norm/scale"]) == 4
        fields = resnet_fields(shown, known) | BIT
        return Description(ResNetConfig, fields, SQUASHED, dialect=dialect)
    old = f"{BLOCK}_0/{NUMBERING['old'][2]}/Dense_0/kernel" in shapes
    dialect["numbering"] = "old" if old else "linen"
    shown = Shown(tensors, _google_rows(ViTConfig(), dialect))
    fields = _vit_fields(shown, known, {"class": int("cls" in shapes)})
    if fields["resnet_layers"] is not None:
        dialect["wide_norms"] = len(shown["backbone/root/norm/scale"]) == 4
    fields["pool"] = "cls" if "cls" in shapes else "gap"
    return Description(ViTConfig, fields, SQUASHED, dialect=dialect)


def _describe_big_vision(tensors: Tensors, known: dict[str, Any]) -> Description:
    shapes = tensors.shapes
    learned = {"none": 0} if "pos_embedding" in shapes else {}
    fields = _vit_fields(Shown(tensors, _big_vision_rows(ViTConfig(), {})), known, learned)
    if not learned:  # sines and cosines are computed, for any size
        patch, size = fields["patch_size"], known.get("source_image_size")
        fields |= {"posemb": "sincos2d", "image_size": size or 224 // patch * patch or patch}
    pool = "cls" if "cls" in shapes else "map" if "MAPHead_0/probe" in shapes else "gap"
    fields |= {"pool": pool, "prefix_positions": "none"}
    data = DataConfig(interpolation="area", crop=0.875)
    return Description(ViTConfig, fields, data, dialect={"scanned": "stacked" in tensors.config})


def _unstacked(tensors: Tensors) -> Tensors:
    """Lists layers one by one that `Transformer/encoderblock/…` stacks along a leading axis."""
    stacked = {name for name in tensors.shapes if name.startswith(f"{BLOCK}/")}
    if not stacked:
        return tensors
    for name in stacked:
        if not 0 < tensors.shapes[name][0] <= MOST_LAYERS:
            raise UserError(
                f"{tensors.path}: {printable(name)} {list(tensors.shapes[name])} stacks no number "
                f"of layers from 1 to {MOST_LAYERS}"
            )
    shapes, dtypes, slices = {}, {}, {}
    for name, shape in tensors.shapes.items():
        for layer in range(shape[0]) if name in stacked else ():
            listed = name.replace(f"{BLOCK}/", f"{BLOCK}_{layer}/", 1)
            shapes[listed], slices[listed] = shape[1:], (name, layer)
            dtypes[listed] = tensors.dtypes[name]
        if name not in stacked:
            shapes[name], dtypes[name] = shape, tensors.dtypes[name]

    def read(name: str) -> np.ndarray:
        if name in slices:
            whole, layer = slices[name]
            return tensors.read(whole)[layer]
        return tensors.read(name)

    config = tensors.config | {"stacked": True}
    return dataclasses.replace(tensors, shapes=shapes, dtypes=dtypes, read=read, config=config)


def _stacked(
    flat: dict[str, np.ndarray], config: Config, dialect: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The inverse of `_unstacked`, if the file that was read had stacked layers."""
    if not dialect.get("scanned") or not isinstance(config, ViTConfig):
        return flat
    first = f"{BLOCK}_0/"
    stacked = {
        name.replace(first, f"{BLOCK}/", 1): np.stack(
            [
                flat[name.replace(first, f"{BLOCK}_{layer}/", 1)]
                for layer in range(config.num_layers)
            ]
        )
        for name in flat
        if name.startswith(first)
    }
    return {n: x for n, x in flat.items() if not n.startswith(f"{BLOCK}_")} | stacked


def _is_google(names) -> bool:
    return (
        "Transformer/posembed_input/pos_embedding" in names
        or f"{BLOCK}_0/{NUMBERING['old'][0]}/query/kernel" in names
        or "MixerBlock_0/LayerNorm_0/scale" in names
        or "resnet/root_block/standardized_conv2d/kernel" in names
    )


def _is_big_vision(names) -> bool:
    query = f"{NUMBERING['linen'][0]}/query/kernel"
    blocks = f"{BLOCK}_0/{query}" in names or f"{BLOCK}/{query}" in names
    return blocks and "Transformer/posembed_input/pos_embedding" not in names


def _notes(model: Model) -> list[str]:
    rows, columns = getattr(model.config, "grid", (0, 0))
    if rows == columns:
        return []
    return [f"the grid is {rows} x {columns} here; readers of such files take it for a square"]


def _google_refuses(config: Config) -> list[str]:
    return refused_pool(config, "cls", "gap") + _refused_parts(config)


def _refused_parts(config: Config) -> list[str]:
    """Parts of a config that no tensor shows, so that a reader of the file would not know them."""
    if not isinstance(config, ViTConfig):
        return []
    refused = {
        "norm_after_pool": config.norm_after_pool,
        "a class token that the pooling does not read": config.idle_class_token
        and config.pool != "cls",
        "projections without a bias": not (config.qkv_bias and config.embed_bias),
    }
    return [name for name, present in refused.items() if present]


def _big_vision_refuses(config: Config) -> list[str]:
    return refused_pool(config, "cls", "gap", "map") + _refused_parts(config)


GOOGLE = Layout(
    "google", _google_rows, Reader(_is_google, _describe_google),
    Writer(
        ".npz", write_npz, (ViTConfig, MixerConfig, ResNetConfig),
        positions=lambda config: "class", refuses=_google_refuses,
        assumes=lambda config, folder: BIT if isinstance(config, ResNetConfig) else ASSUMED,
        notes=_notes,
    ),
)  # fmt: skip
BIG_VISION = Layout(
    "big_vision", _big_vision_rows,
    Reader(_is_big_vision, _describe_big_vision, prepare=_unstacked),
    Writer(
        ".npz", write_npz, (ViTConfig,), positions=lambda config: "none",
        refuses=_big_vision_refuses,
        assumes=lambda config, folder: ASSUMED, notes=_notes, finish=_stacked,
    ),
)  # fmt: skip
