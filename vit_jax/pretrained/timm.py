"""State dicts of timm (ViT, hybrids, DeiT, SigLIP and CLIP towers, Mixer, BiT) and of DINOv2's hub.

Both have the same names for most parts of a block. DINOv2's files have other names for registers
and SwiGLU, have a mask token, and may number their blocks by chunk.
"""

from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.configs import MixerConfig, ResNetConfig, ViTConfig, stride_of
from vit_jax.models.data_config import IMAGENET, DataConfig
from vit_jax.models.family import Config
from vit_jax.models.vit_names import DINOV2, SIZES
from vit_jax.pretrained.files import Tensors
from vit_jax.pretrained.layout import (
    Description,
    Layout,
    Reader,
    Writer,
    count,
    needs,
    refused_pool,
    size_of,
    units,
)  # fmt: skip
from vit_jax.pretrained.rows import BATCHED, CONV, DENSE_OUT, POINTWISE, POSITIONS, Row, Shape, row
from vit_jax.pretrained.rows import torch_dense as _dense
from vit_jax.pretrained.rows import torch_norm as _norm
from vit_jax.pretrained.timm_config import classes_of, config_json, preprocessing, said_by

PREFIXES = ("", "module.", "model.", "visual.trunk.", "backbone.", "student.backbone.")

# The number of heads by width, because shapes do not state it.
HEADS = {width: heads for width, _, heads, _ in SIZES.values()}
# These sizes are this package's own. Files of others with such widths may have other numbers.
del HEADS[SIZES["mu"][0]], HEADS[SIZES["nano"][0]]

AUGREG = DataConfig(interpolation="bicubic", crop=0.9)
MIXED = DataConfig(interpolation="bicubic")
WHOLE = DataConfig(interpolation="bicubic", crop=1.0)
WHOLE_IMAGENET = DataConfig(IMAGENET.mean, IMAGENET.std, "bicubic", crop=1.0)


def _block_rows(block: str, swiglu: tuple[str, str]) -> list[Row]:
    ours = "encoder/block{i:02d}"
    rows = [
        *_dense(f"{ours}/attention/qkv", f"{block}.attn.qkv"),
        *_dense(f"{ours}/attention/out", f"{block}.attn.proj", DENSE_OUT),
        *_dense(f"{ours}/mlp/w12", f"{block}.mlp.{swiglu[0]}"),
        *_dense(f"{ours}/mlp/w3", f"{block}.mlp.{swiglu[1]}"),
    ]
    for n in (1, 2):
        rows += _dense(f"{ours}/mlp/fc{n}", f"{block}.mlp.fc{n}")
        rows += _dense(f"{ours}/token_mixing/fc{n}", f"{block}.mlp_tokens.fc{n}")
        rows += _dense(f"{ours}/channel_mixing/fc{n}", f"{block}.mlp_channels.fc{n}")
        rows += _norm(f"{ours}/norm{n}", f"{block}.norm{n}")
        rows.append(row(f"{ours}/scale{n}/gamma", f"{block}.ls{n}.gamma"))
    for part in "qk":
        rows += _norm(f"{ours}/attention/{part}_norm", f"{block}.attn.{part}_norm")
    return rows


def _backbone_rows(root: str, stages: str) -> list[Row]:
    ours, theirs = "backbone/stage{s}/unit{u:02d}", stages + "stages.{s0}.blocks.{u0}"
    rows = [
        row("backbone/root/conv/kernel", f"{root}conv.weight", CONV),
        *_norm("backbone/root/norm", f"{root}norm"),
        row(f"{ours}/proj/kernel", f"{theirs}.downsample.conv.weight", CONV),
        *_norm(f"{ours}/proj_norm", f"{theirs}.downsample.norm"),
    ]
    for n in (1, 2, 3):
        rows.append(row(f"{ours}/conv{n}/kernel", f"{theirs}.conv{n}.weight", CONV))
        rows += _norm(f"{ours}/norm{n}", f"{theirs}.norm{n}")
    return rows


BIT = [
    *_backbone_rows("stem.", ""),
    *_norm("norm", "norm"),
    *_dense("head", "head.fc", POINTWISE),
]
VIT = [
    row("cls", "cls_token", BATCHED),
    row("dist", "dist_token", BATCHED),
    row(("pos_embed/grid", "pos_embed/prefix"), "pos_embed", POSITIONS),
    row("embed/kernel", "patch_embed.proj.weight", CONV),
    row("embed/bias", "patch_embed.proj.bias"),
    *_norm("pre_norm", "norm_pre"),
    row("pool/probe", "attn_pool.latent", BATCHED),
    *_dense("pool/q", "attn_pool.q"),
    *_dense("pool/kv", "attn_pool.kv"),
    *_dense("pool/out", "attn_pool.proj", DENSE_OUT),
    *_norm("pool/norm", "attn_pool.norm"),
    *_dense("pool/mlp/fc1", "attn_pool.mlp.fc1"),
    *_dense("pool/mlp/fc2", "attn_pool.mlp.fc2"),
    *_dense("head", "head"),
    *_dense("head_dist", "head_dist"),
]
MIXER = [
    row("embed/kernel", "stem.proj.weight", CONV),
    row("embed/bias", "stem.proj.bias"),
    *_block_rows("blocks.{i}", ("fc1", "fc2")),
    *_norm("norm", "norm"),
    *_dense("head", "head"),
]


def _timm_rows(config: Config, dialect: dict[str, Any]) -> list[Row]:
    if isinstance(config, MixerConfig):
        return MIXER
    if isinstance(config, ResNetConfig):
        return BIT
    # A hybrid whose backbone is only a stem has no "stem." in its names.
    backbone = "patch_embed.backbone."
    root = backbone if config.resnet_layers == () else f"{backbone}stem."
    return [
        *VIT,
        row("registers", "reg_token", BATCHED),
        *_backbone_rows(root, backbone),
        *_block_rows("blocks.{i}", ("fc1", "fc2")),
        *_norm("norm", "fc_norm" if config.norm_after_pool else "norm"),
    ]


def _dinov2_rows(config: Config, dialect: dict[str, Any]) -> list[Row]:
    block = "blocks.{c}.{i}" if dialect.get("chunk") else "blocks.{i}"
    return [
        *VIT,
        row("registers", "register_tokens", BATCHED),
        *_block_rows(block, ("w12", "w3")),
        *_norm("norm", "norm"),
    ]


def heads_of(width: int, swiglu: bool, known: dict[str, Any], what: str) -> int:
    """The number of heads, by the width. Raises UserError for an unknown width."""
    if heads := known.get("num_heads"):
        return heads
    giant, _, heads, _ = DINOV2["giant"]
    if width == giant and swiglu:  # other models of this width have other numbers
        return heads
    if width not in HEADS:
        raise UserError(
            f"{what} does not say how many heads its attention has, and {width} is no width of a "
            "published model: say num_heads"
        )
    return HEADS[width]


def _describe_timm(tensors: Tensors, known: dict[str, Any]) -> Description:
    config = tensors.config
    known = said_by(config, known) | known
    if "stem.proj.weight" in tensors.shapes:
        family, fields, default = *_mixer_fields(tensors, known), MIXED
    elif "stem.conv.weight" in tensors.shapes:
        family, fields, default = *_bit_fields(tensors, known), WHOLE
    else:
        fields, default = _vit_fields(tensors, known)
        family = ViTConfig
    data, guessed = preprocessing(config, default)
    return Description(family, fields, data, classes_of(config), guessed=guessed)


def _vit_fields(
    tensors: Tensors, known: dict[str, Any], block: str = "blocks.0"
) -> tuple[dict[str, Any], DataConfig]:
    """The fields of a ViT, a hybrid, DeiT, a SigLIP or CLIP tower, by names and shapes."""
    shapes, file = tensors.shapes, str(tensors.path)
    known = tensors.metadata.get("fields", {}) | known  # a file of this package states its heads
    ((width, channels, patch, _),) = needs(tensors, "patch_embed.proj.weight")
    backbone = "patch_embed.backbone."
    layers = None
    if f"{backbone}conv.weight" in shapes or f"{backbone}stem.conv.weight" in shapes:
        stages = rf"{backbone}stages\.(\d+)\.blocks\.(\d+)\."
        layers = tuple(n + 1 for n in units(shapes, stages))
        patch *= stride_of(layers)
        root = f"{backbone}conv.weight" if not layers else f"{backbone}stem.conv.weight"
        channels = shapes[root][1]
    swiglu = _swiglu(shapes, block)
    mlp_dim = swiglu or needs(tensors, f"{block}.mlp.fc1.weight")[0][0]
    cls, dist = "cls_token" in shapes, "dist_token" in shapes
    registers = (shapes.get("reg_token") or shapes.get("register_tokens") or (1, 0))[1]
    ((_, positions, _),) = needs(tensors, "pos_embed")
    with_positions = {"class": cls + dist, "none": 0, "all": cls + dist + registers}
    size, prefix = size_of(
        positions, with_positions.values(), patch, known.get("source_image_size"), file
    )
    usual = "cls" if cls and "fc_norm.weight" not in shapes else "gap"
    pool = "map" if "attn_pool.latent" in shapes else known.get("pool", usual)
    clip = "norm_pre.weight" in shapes
    fields = {
        "hidden_size": width, "num_heads": heads_of(width, bool(swiglu), known, file),
        "mlp_dim": mlp_dim,
        "patch_size": patch, "channels": channels, "resnet_layers": layers,
        "image_size": size, "pool": pool, "distilled": dist,
        "registers": registers,
        "prefix_positions": next(key for key, n in with_positions.items() if n == prefix),
        "idle_class_token": cls and pool != "cls", "norm_after_pool": "fc_norm.weight" in shapes,
        "num_classes": shapes.get("head.weight", (0,))[0],
        "num_layers": count(shapes, block.replace(".", r"\.").replace("0", r"(\d+)") + r"\."),
        "layer_scale": 1e-5 if f"{block}.ls1.gamma" in shapes else 0.0,
        "qk_norm": f"{block}.attn.q_norm.weight" in shapes,
        "qkv_bias": f"{block}.attn.qkv.bias" in shapes,
        "embed_bias": "patch_embed.proj.bias" in shapes, "pre_norm": clip,
        "layernorm_eps": 1e-5 if clip else 1e-6, "gelu": known.get("gelu", "exact"),
        "mlp": "swiglu" if swiglu else "dense", "posemb_resize": "timm",
        "groupnorm_eps": 1e-5, "standardization": "timm",
    }  # fmt: skip
    default = IMAGENET if dist else AUGREG if pool == "cls" else WHOLE
    if fields["layer_scale"] and patch == 14:
        default = WHOLE_IMAGENET
    return fields, default


def _swiglu(shapes: dict[str, Shape], block: str) -> int | None:
    """The hidden width of a SwiGLU, half the outputs of its first layer; None for other MLPs."""
    first = shapes.get(f"{block}.mlp.w12.weight") or shapes.get(f"{block}.mlp.fc1.weight")
    second = shapes.get(f"{block}.mlp.w3.weight") or shapes.get(f"{block}.mlp.fc2.weight")
    return second[1] if first and second and first[0] == 2 * second[1] else None


def _mixer_fields(tensors: Tensors, known: dict[str, Any]) -> tuple[type, dict[str, Any]]:
    (width, channels, patch, _), (tokens_mlp_dim, tokens), (mlp_dim, _) = needs(
        tensors, "stem.proj.weight", "blocks.0.mlp_tokens.fc1.weight",
        "blocks.0.mlp_channels.fc1.weight",
    )  # fmt: skip
    image_size = known.get("source_image_size")
    size, _ = size_of(tokens, [0], patch, image_size, str(tensors.path))
    return MixerConfig, {
        "hidden_size": width, "patch_size": patch, "channels": channels, "mlp_dim": mlp_dim,
        "tokens_mlp_dim": tokens_mlp_dim, "image_size": size,
        "num_layers": count(tensors.shapes, r"blocks\.(\d+)\."),
        "num_classes": tensors.shapes.get("head.weight", (0,))[0],
        "gelu": known.get("gelu", "exact"),
    }  # fmt: skip


def _bit_fields(tensors: Tensors, known: dict[str, Any]) -> tuple[type, dict[str, Any]]:
    ((width, channels, _, _),) = needs(tensors, "stem.conv.weight")
    size = known.get("source_image_size")
    return ResNetConfig, {
        "resnet_layers": tuple(
            n + 1 for n in units(tensors.shapes, r"stages\.(\d+)\.blocks\.(\d+)\.")
        ),
        "width_factor": width // 64, "channels": channels, "image_size": size or 224,
        "num_classes": tensors.shapes.get("head.fc.weight", (0,))[0],
        "groupnorm_eps": 1e-5, "standardization": "timm",
    }  # fmt: skip


def _describe_dinov2(tensors: Tensors, known: dict[str, Any]) -> Description:
    chunks = count(tensors.shapes, r"blocks\.(\d+)\.\d+\.")
    fields, _ = _vit_fields(tensors, known, "blocks.0.0" if chunks else "blocks.0")
    dialect: dict[str, Any] = {"masked": "mask_token" in tensors.shapes}
    if chunks:  # names have the chunk and the number of a block; all chunks have one length
        fields["num_layers"] = count(tensors.shapes, r"blocks\.\d+\.(\d+)\.")
        dialect["chunk"] = count(tensors.shapes, r"blocks\.0\.(\d+)\.")
    fields["posemb_resize"] = "dinov2_reg" if fields["registers"] else "dinov2"
    return Description(ViTConfig, fields, WHOLE_IMAGENET, dialect=dialect)


def _is_dinov2(names) -> bool:
    signs = ("mask_token", "register_tokens", "blocks.0.0.norm1.weight")
    return "patch_embed.proj.weight" in names and any(sign in names for sign in signs)


def _is_timm(names) -> bool:
    vit = {"patch_embed.proj.weight", "blocks.0.norm1.weight"} <= set(names)
    mixer = {"stem.proj.weight", "blocks.0.mlp_tokens.fc1.weight"} <= set(names)
    bit = {"stem.conv.weight", "stages.0.blocks.0.norm3.weight"} <= set(names)
    return (vit or mixer or bit) and not _is_dinov2(names)


def _positions(config: ViTConfig) -> str | None:
    """timm's tables have positions for all prefix tokens, or for none."""
    return "none" if config.registers and config.prefix_positions == "class" else None


def _timm_assumes(config: Config, folder: bool) -> dict[str, Any]:
    """A ViT's `config.json` states the activation but no epsilon; a Mixer's states neither."""
    assumed: dict[str, Any] = {"layernorm_eps": 1e-5 if getattr(config, "pre_norm", 0) else 1e-6}
    if isinstance(config, MixerConfig) or not folder:
        assumed["gelu"] = "exact"
    if getattr(config, "resnet_layers", None) is not None:
        assumed |= {"groupnorm_eps": 1e-5, "standardization": "timm"}
    return assumed


def _timm_refuses(config: Config) -> list[str]:
    if not isinstance(config, ViTConfig):
        return []
    hybrid = config.resnet_layers is not None
    refused = {
        "an embedding with a bias before pre_norm": config.embed_bias and config.pre_norm,
        "an embedding without a bias": not (config.embed_bias or config.pre_norm),
        "a distilled model with registers": config.distilled and config.registers,
        "a distilled hybrid": config.distilled and hybrid,
        "a hybrid with SwiGLU": config.mlp == "swiglu" and hybrid,
    }
    names = [name for name, present in refused.items() if present]
    return names + refused_pool(config, "cls", "gap", "map")


def _dinov2_refuses(config: Config) -> list[str]:
    if not isinstance(config, ViTConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    refused = {
        "blocks without LayerScale": not config.layer_scale,
        "a head": config.num_classes,
        "a distillation token": config.distilled,
        "norm_after_pool": config.norm_after_pool,
        "pre_norm": config.pre_norm,
        "qk_norm": config.qk_norm,
        "projections without a bias": not (config.qkv_bias and config.embed_bias),
        "positions of registers": config.registers and config.prefix_positions == "all",
    }
    names = [name for name, present in refused.items() if present]
    return names + refused_pool(config, "cls")


TIMM = Layout(
    "timm", _timm_rows, Reader(_is_timm, _describe_timm, PREFIXES),
    Writer(
        ".safetensors", files={"config.json": config_json}, positions=_positions,
        assumes=_timm_assumes, refuses=_timm_refuses,
    ),
)  # fmt: skip
DINOV2_HUB = Layout(
    "dinov2", _dinov2_rows,
    Reader(
        _is_dinov2, _describe_dinov2, PREFIXES,
        ignored={r"mask_token": "the mask token of DINOv2's own training"},
    ),
    Writer(
        ".safetensors", positions=lambda config: "class", refuses=_dinov2_refuses,
        assumes=lambda config, folder: {"gelu": "exact", "layernorm_eps": 1e-6},
        fillers=lambda config, dialect: {"mask_token": (1, config.hidden_size)}
        if dialect.get("masked", True) else {},
    ),
)  # fmt: skip
