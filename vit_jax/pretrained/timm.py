"""State dicts of timm (ViT, hybrids, DeiT, SigLIP and CLIP towers, Mixer, BiT) and of DINOv2's hub.

Both have the same names for most parts of a block. DINOv2's files have other names for registers
and SwiGLU, have a mask token, and may number their blocks by chunk. A masked autoencoder of
facebookresearch has timm's names, and a decoder (`mae.py`).
"""

import re
from typing import Any

from vit_jax.models.configs import MixerConfig, ResNetConfig, ViTConfig
from vit_jax.models.data_config import IMAGENET, DataConfig
from vit_jax.models.family import Config
from vit_jax.models.mae_config import MaeConfig
from vit_jax.models.vit_names import DINOV2, SIZES
from vit_jax.pretrained.given import Unstated
from vit_jax.pretrained.layout import Description, Layout, Reader, Writer, or_refusal, refused_pool
from vit_jax.pretrained.mae import decoder_fields, decoder_rows, has_decoder
from vit_jax.pretrained.rows import BATCHED, CONV, DENSE_OUT, POINTWISE, POSITIONS, Row, row
from vit_jax.pretrained.rows import torch_dense as _dense
from vit_jax.pretrained.rows import torch_norm as _norm
from vit_jax.pretrained.shown import BLOCK, Shown, mixer_fields, resnet_fields, vit_fields
from vit_jax.pretrained.tensors import Tensors
from vit_jax.pretrained.timm_config import classes_of, config_json, preprocessing, said_by

# The number of heads by width, because shapes do not state it.
HEADS = {width: heads for width, _, heads, _ in SIZES.values()}
# These sizes are this package's own. Files of others with such widths may have other numbers.
del HEADS[SIZES["mu"][0]], HEADS[SIZES["nano"][0]]

AUGREG = DataConfig(interpolation="bicubic", crop=0.9)
MIXED = DataConfig(interpolation="bicubic")
WHOLE = DataConfig(interpolation="bicubic", crop=1.0)
NORMALISED = {"groupnorm_eps": 1e-5, "standardization": "timm"}  # of ResNets and hybrids
WHOLE_IMAGENET = DataConfig(IMAGENET.mean, IMAGENET.std, "bicubic", crop=1.0)


def _block_rows(block: str, swiglu: tuple[str, str]) -> list[Row]:
    rows = [
        *_dense(f"{BLOCK}/attention/qkv", f"{block}.attn.qkv"),
        *_dense(f"{BLOCK}/attention/out", f"{block}.attn.proj", DENSE_OUT),
        *_dense(f"{BLOCK}/mlp/w12", f"{block}.mlp.{swiglu[0]}"),
        *_dense(f"{BLOCK}/mlp/w3", f"{block}.mlp.{swiglu[1]}"),
    ]
    for n in (1, 2):
        rows += _dense(f"{BLOCK}/mlp/fc{n}", f"{block}.mlp.fc{n}")
        rows += _dense(f"{BLOCK}/token_mixing/fc{n}", f"{block}.mlp_tokens.fc{n}")
        rows += _dense(f"{BLOCK}/channel_mixing/fc{n}", f"{block}.mlp_channels.fc{n}")
        rows += _norm(f"{BLOCK}/norm{n}", f"{block}.norm{n}")
        rows.append(row(f"{BLOCK}/scale{n}/gamma", f"{block}.ls{n}.gamma"))
    for part in "qk":
        rows += _norm(f"{BLOCK}/attention/{part}_norm", f"{block}.attn.{part}_norm")
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
    if isinstance(config, MaeConfig):
        return MAE
    norm = "fc_norm" if config.norm_after_pool else "norm"
    return _vit_rows(config.resnet_layers == (), norm)


def _vit_rows(stem_alone: bool, norm: str) -> list[Row]:
    """`stem_alone`: of a hybrid whose backbone is only a stem. Its names have no "stem."."""
    backbone = "patch_embed.backbone."
    return [
        *VIT,
        row("registers", "reg_token", BATCHED),
        *_backbone_rows(backbone if stem_alone else f"{backbone}stem.", backbone),
        *_block_rows("blocks.{i}", ("fc1", "fc2")),
        *_norm("norm", norm),
    ]


MAE = [
    *_vit_rows(stem_alone=False, norm="norm"),
    *decoder_rows(_block_rows("decoder_blocks.{i}", ("fc1", "fc2"))),
]


def _dinov2_rows(config: Config, dialect: dict[str, Any]) -> list[Row]:
    block = "blocks.{c}.{i}" if dialect.get("chunk") else "blocks.{i}"
    return [
        *VIT,
        row("registers", "register_tokens", BATCHED),
        *_block_rows(block, ("w12", "w3")),
        *_norm("norm", "norm"),
    ]


def _heads_of(fields: dict[str, Any], known: dict[str, Any], what: str) -> int:
    """The number of heads, by the width. Raises UserError for an unknown width."""
    if heads := known.get("num_heads") or known.get("run", {}).get("num_heads"):
        return heads
    width, (giant, _, heads, _) = fields["hidden_size"], DINOV2["giant"]
    if width == giant and fields["mlp"] == "swiglu":  # other models of this width have others
        return heads
    if width not in HEADS:
        raise Unstated(
            f"{what} does not say how many heads its attention has, and {width} is no width of a "
            "published model",
            "num_heads",
        )
    return HEADS[width]


def _describe_timm(tensors: Tensors, known: dict[str, Any]) -> Description:
    config, shapes = tensors.config, tensors.shapes
    headless = "head.weight" not in shapes
    widths = [shapes.get(f"blocks.0.mlp.fc{n}.weight", (0, 0)) for n in (1, 2)]
    gated = len(widths[1]) == 2 and widths[0][0] == 2 * widths[1][1] > 0
    known = said_by(config, known, headless, gated) | known
    family: type = ViTConfig
    if "stem.proj.weight" in shapes:
        fields = mixer_fields(Shown(tensors, MIXER, torch=True), known)
        family, default = MixerConfig, MIXED
        fields["gelu"] = known.get("gelu", "exact")
    elif "stem.conv.weight" in shapes:
        fields = resnet_fields(Shown(tensors, BIT, torch=True), known) | NORMALISED
        family, default = ResNetConfig, WHOLE
    else:
        stem_alone = "patch_embed.backbone.conv.weight" in shapes
        fields, default = _vit_fields(tensors, _vit_rows(stem_alone, norm="norm"), known)
    notes = _note_on_pool(config, fields, known, headless)
    if known.get("decoder") and has_decoder(shapes):
        family, default, notes = MaeConfig, IMAGENET, ()
        more = decoder_fields(Shown(tensors, MAE, torch=True), None, known, norm_pixels=True)
        fields |= more
        if "norm_pixels" not in known.get("run", {}) | known:
            notes = (
                f"{tensors.path} does not say whether its decoder predicts pixels normalised by "
                "patch, taken: that it does; otherwise --config.model.norm_pixels=False",
            )
    (data, guessed), refusal = or_refusal(preprocessing, config, default)
    return Description(
        family, fields, data, classes_of(config), guessed=guessed, refusal=refusal,
        notes=notes,
    )  # fmt: skip


def _note_on_pool(
    config: dict[str, Any], fields: dict[str, Any], known: dict[str, Any], headless: bool
) -> tuple[str, ...]:
    """A line if timm's `config.json` says that the output is not pooled."""
    pool = (config.get("model_args") or {}).get("global_pool", config.get("global_pool"))
    if pool != "" or not headless or "pool" in known or "pool" not in fields:
        return ()
    return (
        f"timm's global_pool '' gives every token; the representation here is that of pool "
        f"{fields['pool']!r}, and `out` has the tokens",
    )


def _vit_fields(
    tensors: Tensors, rows: list[Row], known: dict[str, Any]
) -> tuple[dict[str, Any], DataConfig]:
    """The fields of a ViT, a hybrid, DeiT, a SigLIP or CLIP tower, by names and shapes."""
    shapes, shown = tensors.shapes, Shown(tensors, rows, torch=True)
    known = tensors.metadata.get("fields", {}) | known  # a file of this package states its heads
    cls, dist = "cls_token" in shapes, "dist_token" in shapes
    registers = (shown.get("registers") or (1, 0))[1]
    with_positions = {"class": cls + dist, "none": 0, "all": cls + dist + registers}
    fields = vit_fields(shown, known, with_positions)
    usual = "cls" if cls and "fc_norm.weight" not in shapes else "gap"
    if usual == "cls" and not dist and known.get("run", {}).get("pool") == "gap":
        usual = "gap"  # the class token is there, and idle
    pool = "map" if "attn_pool.latent" in shapes else known.get("pool", usual)
    clip = "norm_pre.weight" in shapes
    fields |= {
        "num_heads": _heads_of(fields, known, str(tensors.path)),
        "pool": pool, "distilled": dist, "registers": registers,
        "idle_class_token": cls and pool != "cls", "norm_after_pool": "fc_norm.weight" in shapes,
        "layer_scale": 1e-5 if shown.get(f"{BLOCK}/scale1/gamma") else 0.0,
        "qk_norm": bool(shown.get(f"{BLOCK}/attention/q_norm/scale")),
        "qkv_bias": bool(shown.get(f"{BLOCK}/attention/qkv/bias")),
        "embed_bias": "patch_embed.proj.bias" in shapes, "pre_norm": clip,
        "layernorm_eps": 1e-5 if clip else 1e-6, "gelu": known.get("gelu", "exact"),
        "posemb_resize": "timm",
    } | NORMALISED  # fmt: skip
    default = IMAGENET if dist else AUGREG if pool == "cls" else WHOLE
    if fields["layer_scale"] and fields["patch_size"] == 14:
        default = WHOLE_IMAGENET
    return fields, default


def _describe_dinov2(tensors: Tensors, known: dict[str, Any]) -> Description:
    dialect: dict[str, Any] = {"masked": "mask_token" in tensors.shapes}
    chunks = [re.match(r"blocks\.0\.(\d+)\.", name) for name in tensors.shapes]
    if numbers := [int(match[1]) for match in chunks if match]:
        dialect["chunk"] = max(numbers) + 1  # all chunks have one length
    fields, _ = _vit_fields(tensors, _dinov2_rows(ViTConfig(), dialect), known)
    fields["posemb_resize"] = "dinov2_reg" if fields["registers"] else "dinov2"
    return Description(ViTConfig, fields, WHOLE_IMAGENET, dialect=dialect)


def _is_dinov2(names) -> bool:
    signs = ["register_tokens", "blocks.0.0.norm1.weight"]
    if not any(name.startswith("decoder") for name in names):  # otherwise a MAE, with timm's names
        signs.append("mask_token")
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
    stated = folder and not isinstance(config, MixerConfig)
    epsilon = 1e-5 if getattr(config, "pre_norm", False) else 1e-6
    return NORMALISED | {"layernorm_eps": epsilon} | ({} if stated else {"gelu": "exact"})


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
    assert isinstance(config, ViTConfig)
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
    "timm", _timm_rows, Reader(_is_timm, _describe_timm),
    Writer(
        ".safetensors", families=(ViTConfig, MixerConfig, ResNetConfig),
        files={"config.json": config_json}, positions=_positions,
        assumes=_timm_assumes, refuses=_timm_refuses,
    ),
)  # fmt: skip
DINOV2_HUB = Layout(
    "dinov2", _dinov2_rows,
    Reader(
        _is_dinov2, _describe_dinov2,
        ignored={r"mask_token": "the mask token of DINOv2's own training"},
    ),
    Writer(
        ".safetensors", families=(ViTConfig,), positions=lambda config: "class",
        refuses=_dinov2_refuses,
        assumes=lambda config, folder: {"gelu": "exact", "layernorm_eps": 1e-6},
        fillers=lambda config, dialect: {"mask_token": (1, config.hidden_size)}
        if dialect.get("masked", True) else {},
    ),
)  # fmt: skip
