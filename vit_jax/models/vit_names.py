"""Names of ViTs, timm's where timm has one, and the sizes behind them."""

import dataclasses
import re
from typing import Any

from vit_jax.models.data_config import IMAGENET, SQUASHED
from vit_jax.models.family import Names

# name: (hidden_size, num_layers, num_heads, mlp_dim). Ti … H: ViT paper table 1 and DeiT; g, G:
# arXiv 2106.04560 table 2; so400m: arXiv 2305.13035; mu: big_vision's test size; nano: ours, for
# a few CPU cores.
SIZES = {
    "mu": (32, 1, 2, 128),
    "nano": (128, 6, 4, 256),
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
    "gigantic": (1664, 48, 16, 8192),
}

# The papers' letters, as in `b16`: size B, patch 16.
LETTERS = {
    "mu": "mu", "nano": "nano", "ti": "tiny", "s": "small", "b": "base", "l": "large",
    "h": "huge", "g": "giant", "G": "gigantic",
}  # fmt: skip

# Names in `list_models`: size -> (patch, resolution). Other patches and resolutions work, too.
LISTED = {
    "mu": [(16, 224), (4, 32)],
    "nano": [(4, 8), (4, 32), (8, 64)],
    "tiny": [(16, 224), (16, 384)],
    "small": [(8, 224), (16, 224), (16, 384), (32, 224), (32, 384)],
    "base": [(8, 224), (16, 224), (16, 384), (32, 224), (32, 384)],
    "large": [(14, 224), (16, 224), (16, 384), (32, 224), (32, 384)],
    "huge": [(14, 224), (14, 336)],
    "giant": [(14, 224)],
    "gigantic": [(14, 224)],
}

# Hybrids: timm's name -> (size, units of each stage of the ResNet, patch in pixels of the image,
# the paper's name as recipes write it). AugReg (arXiv 2106.10270), table 2; ViT paper, table 5.
HYBRIDS = {
    "vit_tiny_r_s16_p8": ("tiny", (), 32, "r_ti16"),
    "vit_small_r26_s32": ("small", (2, 2, 2, 2), 32, "r26_s32"),
    "vit_base_r26_s32": ("base", (2, 2, 2, 2), 32, "r26_b32"),
    "vit_base_r50_s16": ("base", (3, 4, 9), 16, "r50_b16"),
    "vit_base_r50_s32": ("base", (3, 4, 6, 3), 32, "r50_b32"),
    "vit_large_r50_s16": ("large", (3, 4, 9), 16, "r50_l16"),
    "vit_large_r50_s32": ("large", (3, 4, 6, 3), 32, "r50_l32"),
}

# DINOv2's giant (arXiv 2304.07193, table 17) has other sizes than `giant` above, and SwiGLU.
DINOV2 = {"small": SIZES["small"], "base": SIZES["base"], "large": SIZES["large"],
          "giant": (1536, 40, 24, 4096)}  # fmt: skip
SIGLIP = [("base", 16, 224), ("base", 16, 256), ("base", 16, 384), ("large", 16, 256),
          ("large", 16, 384), ("so400m", 14, 224), ("so400m", 14, 378)]  # fmt: skip


def _encoder(size: tuple[int, int, int, int], patch: int, resolution: int, **fields: Any) -> dict:
    sizes = dict(zip(("hidden_size", "num_layers", "num_heads", "mlp_dim"), size, strict=True))
    return sizes | {"patch_size": patch, "image_size": resolution} | fields


def sized(of: dict[str, str], **fields: Any) -> dict[str, Any]:
    """The fields of a name that states size, patch and resolution."""
    return _encoder(SIZES[of["size"]], int(of["patch"]), int(of["side"]), **fields)


def _hybrid(of: dict[str, str]) -> dict[str, Any]:
    size, units, patch, _ = HYBRIDS[of["name"]]
    return _encoder(SIZES[size], patch, int(of["side"]), resnet_layers=units)


def _dinov2(of: dict[str, str]) -> dict[str, Any]:
    registers = 4 if of["registers"] else 0
    return _encoder(
        DINOV2[of["size"]], 14, 518, registers=registers, layer_scale=1e-5, gelu="exact",
        mlp="swiglu" if of["size"] == "giant" else "dense",
        posemb_resize="dinov2_reg" if registers else "dinov2",
    )  # fmt: skip


def _by_letter(short: str, side: int) -> str | None:
    """The full name for `b16` or `B_16`: `vit_base_patch16_224`. Case matters for g and G only. The
    resolution is rounded down to whole patches: `h14` at 384 is `vit_huge_patch14_378`."""
    letter_and_patch = re.fullmatch(r"([A-Za-z]+?)_?(\d+)", short)
    if letter_and_patch is None:
        return None
    letter, patch = letter_and_patch[1], int(letter_and_patch[2])
    size = LETTERS.get(letter, LETTERS.get(letter.lower()))
    return size and f"vit_{size}_patch{patch}_{side // patch * patch}"


def _hybrid_by_letter(short: str, side: int) -> str | None:
    for name, (_, _, patch, known) in HYBRIDS.items():
        if short.lower() == known:
            return f"{name}_{side // patch * patch}"
    return None


_DEIT = (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))
NAMES = (
    Names(
        r"vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)_(?P<side>\d+)", sized,
        tuple(f"vit_{size}_patch{p}_{r}" for size, pairs in LISTED.items() for p, r in pairs),
        full=_by_letter, shorts=("b16",),
    ),
    Names(
        rf"(?P<name>{'|'.join(HYBRIDS)})_(?P<side>\d+)", _hybrid,
        tuple(f"{name}_{side}" for name in HYBRIDS for side in (224, 384)),
        full=_hybrid_by_letter, shorts=tuple(short for *_, short in HYBRIDS.values()),
    ),
    Names(
        r"deit_(?P<size>tiny|small|base)_(?P<two>distilled_)?patch(?P<patch>\d+)_(?P<side>\d+)",
        lambda of: sized(of, gelu="exact", distilled=bool(of["two"])),
        tuple(f"deit_{size}_{two}patch16_{side}" for size, side in _DEIT
              for two in ("", "distilled_")),
        IMAGENET,
    ),
    Names(
        rf"vit_(?P<size>{'|'.join(DINOV2)})_patch14_(?P<registers>reg4_)?dinov2", _dinov2,
        tuple(f"vit_{size}_patch14_{reg}dinov2" for size in DINOV2 for reg in ("", "reg4_")),
        dataclasses.replace(IMAGENET, crop=1.0),
    ),
    Names(
        r"vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)_siglip_(?P<side>\d+)",
        lambda of: sized(of, pool="map"),
        tuple(f"vit_{size}_patch{p}_siglip_{r}" for size, p, r in SIGLIP),
        dataclasses.replace(SQUASHED, interpolation="bicubic"),
    ),
)  # fmt: skip
