"""Folders of Hugging Face's Transformers: ViT, DeiT, DINOv2 with and without registers, ViTMAE.

The tensor names here are those on disk; newer versions of Transformers rename tensors in memory.
`config.json` states the heads, the epsilon, the activation and the classes.
`preprocessor_config.json` states how images are prepared.
"""

from typing import Any

from vit_jax.errors import UserError
from vit_jax.models.configs import ViTConfig
from vit_jax.models.family import Config
from vit_jax.models.mae_config import MaeConfig
from vit_jax.pretrained.given import Unstated, spelled
from vit_jax.pretrained.huggingface_config import (
    ACTIVATIONS,
    activation_of,
    classes_of,
    config_json,
    notes,
    preprocessing,
    preprocessor_json,
)  # fmt: skip
from vit_jax.pretrained.layout import Description, Layout, Reader, Writer, or_refusal, refused_pool
from vit_jax.pretrained.mae import decoder_fields, decoder_rows, has_decoder
from vit_jax.pretrained.rows import (
    BATCHED,
    CONV,
    DENSE,
    DENSE_OUT,
    FLAT,
    POSITIONS,
    Row,
    Shape,
    joined,
    row,
)  # fmt: skip
from vit_jax.pretrained.rows import torch_dense as _dense
from vit_jax.pretrained.rows import torch_norm as _norm
from vit_jax.pretrained.shown import BLOCK, Shown, vit_fields
from vit_jax.pretrained.stated import brief
from vit_jax.pretrained.tensors import Tensors

MODELS = ("vit", "deit", "dinov2", "dinov2_with_registers")
PREFIXES = ("", *(f"{model}." for model in MODELS))
ENCODERS = {"vit_mae": "vit"}  # models whose encoder is another one's
DECODER = "decoder."  # prefix of a ViTMAE's

# Names of a block's parts: (first norm, second norm, MLP's first, MLP's second).
PARTS = {
    "vit": ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"),
    "dinov2": ("norm1", "norm2", "mlp.fc1", "mlp.fc2"),
}


def vit_rows(model: str, pre: str, distilled: bool, layer: str = "encoder.layer.{i}") -> list[Row]:
    """`model` is one of MODELS, and `pre` the prefix of all tensors except the heads'. `layer` is
    what the names of a block's tensors begin with behind it."""
    norm1, norm2, fc1, fc2 = PARTS["dinov2" if "dinov2" in model else "vit"]
    theirs = pre + layer
    qkv = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
    tokens, head = {"cls": "cls_token"}, "classifier"
    if model == "dinov2_with_registers":
        tokens["registers"] = "register_tokens"
    elif model == "deit" and distilled:
        tokens["dist"], head = "distillation_token", "cls_classifier"
    elif model == "deit":  # no head reads its second token, so it is a register
        tokens["registers"] = "distillation_token"
    return [
        *(row(here, f"{pre}embeddings.{name}", BATCHED) for here, name in tokens.items()),
        row(
            ("pos_embed/grid", "pos_embed/prefix"),
            f"{pre}embeddings.position_embeddings",
            POSITIONS,
        ),
        row("embed/kernel", f"{pre}embeddings.patch_embeddings.projection.weight", CONV),
        row("embed/bias", f"{pre}embeddings.patch_embeddings.projection.bias"),
        *_norm(f"{BLOCK}/norm1", f"{theirs}.{norm1}"),
        row(f"{BLOCK}/attention/qkv/kernel", [f"{x}.weight" for x in qkv], joined(1, 3, DENSE)),
        row(f"{BLOCK}/attention/qkv/bias", [f"{x}.bias" for x in qkv], joined(0, 3, FLAT)),
        *_dense(f"{BLOCK}/attention/out", f"{theirs}.attention.output.dense", DENSE_OUT),
        row(f"{BLOCK}/scale1/gamma", f"{theirs}.layer_scale1.lambda1"),
        *_norm(f"{BLOCK}/norm2", f"{theirs}.{norm2}"),
        *_dense(f"{BLOCK}/mlp/fc1", f"{theirs}.{fc1}"),
        *_dense(f"{BLOCK}/mlp/fc2", f"{theirs}.{fc2}"),
        *_dense(f"{BLOCK}/mlp/w12", f"{theirs}.mlp.weights_in"),
        *_dense(f"{BLOCK}/mlp/w3", f"{theirs}.mlp.weights_out"),
        row(f"{BLOCK}/scale2/gamma", f"{theirs}.layer_scale2.lambda1"),
        *_norm("norm", f"{pre}layernorm"),
        *_dense("head", head),
        *_dense("head_dist", "distillation_classifier"),
    ]


def _describe(tensors: Tensors, known: dict[str, Any]) -> Description:
    shapes, c = tensors.shapes, tensors.config
    kind = c.get("model_type")
    if kind not in (*MODELS, *ENCODERS):
        raise UserError(
            f"{tensors.path} has Hugging Face's names but no config.json of "
            f"{', '.join((*MODELS, *ENCODERS))} beside it (model_type {kind!r})"
            + ("" if kind else ": give the folder")
        )
    model = ENCODERS.get(kind, kind)
    prefix = next(p for p in PREFIXES if f"{p}embeddings.cls_token" in shapes)
    masked = f"{prefix}embeddings.mask_token" in shapes
    dialect = {"model": model, "prefix": prefix, "masked": masked}
    teacher = "cls_classifier.weight" in shapes
    dist = f"{prefix}embeddings.distillation_token" in shapes
    one_head = dist and not teacher
    family: type = ViTConfig
    if known.get("decoder") and has_decoder(shapes, DECODER):
        family, old = MaeConfig, f"{DECODER}decoder_layers.0.layernorm_before.weight"
        dialect["decoder_layer"] = "decoder_" + (
            "layers.{i}" if old in shapes else "encoder.layer.{i}"
        )
    shown = Shown(tensors, _rows(family, dialect, distilled=teacher), torch=True)
    known = {"source_image_size": c.get("image_size")} | known
    fields = vit_fields(shown, known, {"all" if one_head else "class": 1 + dist})
    heads, gelu = heads_and_gelu(tensors, known)
    dinov2, head = "dinov2" in model, shown.get("head/kernel")
    fields |= {
        "num_heads": heads, "gelu": gelu,
        "layernorm_eps": c.get("layer_norm_eps", 1e-6 if dinov2 else 1e-12),
        "layer_scale": 1e-5 if dinov2 else 0.0,
        "pool": "cls_gap" if dinov2 and head[:1] == (2 * fields["hidden_size"],) else "cls",
        "qkv_bias": c.get("qkv_bias", True),
        # Transformers resize the positions of this one model as its authors do.
        "posemb_resize": "dinov2_reg" if model == "dinov2_with_registers" else "huggingface",
        "distilled": teacher, "registers": (shown.get("registers") or (1, 0))[1],
    }  # fmt: skip
    if family is MaeConfig:
        of_decoder = c.get("decoder_num_attention_heads")
        fields |= decoder_fields(shown, of_decoder, known, c.get("norm_pix_loss", False))
        fields["mask_ratio"] = known.get("mask_ratio", c.get("mask_ratio", 0.75))
    file = tensors.path / "config.json"
    classes, activation = classes_of(file, c, fields["num_classes"]), activation_of(file, c)
    (data, guessed), refusal = or_refusal(preprocessing, tensors.path, kind, fields["image_size"])
    return Description(family, fields, data, classes, dialect, guessed, activation, refusal)


def _rows(family: type, dialect: dict[str, Any], distilled: bool) -> list[Row]:
    rows = vit_rows(dialect["model"], dialect["prefix"], distilled)
    if family is not MaeConfig:
        return rows
    blocks = vit_rows(dialect["model"], DECODER, False, dialect["decoder_layer"])
    return [*rows, *decoder_rows(blocks, DECODER)]


def heads_and_gelu(tensors: Tensors, known: dict[str, Any]) -> tuple[int, str]:
    """What a `config.json` says of attention heads and of the activation, or the user.

    Raises UserError if nobody says it, or if no model here has such an activation.
    """
    c, where = tensors.config, tensors.path / "config.json"
    run = known.get("run", {}).get("num_heads")
    heads = known.get("num_heads") or c.get("num_attention_heads") or run
    if heads is None:
        raise Unstated(f"{where} has no num_attention_heads", "num_heads")
    activation = c.get("hidden_act", "gelu")
    if not known.get("gelu") and activation not in ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act {brief(activation)} has no counterpart here; another one is "
            f"computed with {spelled('gelu')}"
        )
    return heads, known.get("gelu") or ACTIVATIONS[activation]


def _is_huggingface(names) -> bool:
    return any(
        f"{prefix}embeddings.patch_embeddings.projection.weight" in names
        and f"{prefix}encoder.layer.0.attention.attention.query.weight" in names
        and f"{prefix}embeddings.detection_tokens" not in names  # of a YOLOS
        for prefix in PREFIXES
    )


def _fillers(config: Config, dialect: dict[str, Any]) -> dict[str, Shape]:
    masked = "dinov2" in dialect["model"] and dialect.get("masked", True)
    return {f"{dialect['prefix']}embeddings.mask_token": (1, config.hidden_size)} if masked else {}


def _dialect(config: Config) -> dict[str, Any]:
    """The `dialect` of `_rows` for a config: the model of Transformers that can hold it."""
    assert isinstance(config, ViTConfig)
    model = "vit"
    if config.layer_scale or config.mlp == "swiglu":
        model = "dinov2_with_registers" if config.registers else "dinov2"
    elif config.distilled or (config.registers == 1 and config.prefix_positions == "all"):
        model = "deit"
    prefix = f"{model}." if config.num_classes else ""
    return {"model": model, "prefix": prefix}


def _positions(config: ViTConfig) -> str:
    """DeiT's second token has a position. DINOv2's registers have none."""
    one_head = _dialect(config)["model"] == "deit" and not config.distilled
    return "all" if one_head else "class"


def _refuses(config: Config) -> list[str]:
    assert isinstance(config, ViTConfig)
    pools: tuple[str, ...] = ("cls",)
    if "dinov2" in _dialect(config)["model"]:
        pools = ("cls_gap",) if config.num_classes else ("cls", "cls_gap")
    refused = refused_pool(config, *pools)
    refused += ["norm_after_pool"] * config.norm_after_pool
    refused += ["patches projected without a bias"] * (not config.embed_bias)
    if config.prefix_positions == "all" and _positions(config) != "all":
        refused += ["positions of registers"] * bool(config.registers)
    if len(set(config.grid)) > 1 and "dinov2" in _dialect(config)["model"]:
        rows, columns = config.grid
        refused.append(f"a grid of {rows} x {columns} (their DINOv2 takes squares)")
    return refused


HUGGINGFACE = Layout(
    "huggingface",
    lambda config, dialect: _rows(
        type(config), dialect, getattr(config, "distilled", False)
    ),
    Reader(_is_huggingface, _describe, ignored={
        r"(\w+\.)?pooler\.dense\.(weight|bias)": "the pooler, which classification does not use",
        r"(\w+\.)?embeddings\.mask_token": "the mask token of DINOv2's own training",
    }),
    Writer(
        families=(ViTConfig,),
        files={"config.json": config_json, "preprocessor_config.json": preprocessor_json},
        dialect=_dialect, positions=_positions, refuses=_refuses, fillers=_fillers, notes=notes,
    ),
)  # fmt: skip
