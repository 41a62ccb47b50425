"""Names of models, timm's where timm has one, and the sizes behind them."""

import dataclasses
import fnmatch
import re
from collections.abc import Callable
from typing import Any

from vit_jax.errors import UserError, nearest
from vit_jax.models.fields import check_patches
from vit_jax.models.mixer import MixerConfig
from vit_jax.models.model import Config, DataConfig, Model
from vit_jax.models.resnet import ResNetConfig
from vit_jax.models.vit import ViTConfig

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

# What list_models names: size -> (patch, resolution). Any other patch and resolution works too.
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
    "vit_large_r50_s32": ("large", (3, 4, 6, 3), 32, "r50_l32"),
}

# MLP-Mixer (arXiv 2105.01601), table 1: (hidden_size, num_layers, tokens_mlp_dim, mlp_dim).
MIXERS = {"s": (512, 8, 256, 2048), "b": (768, 12, 384, 3072), "l": (1024, 24, 512, 4096)}

# BiT (arXiv 1912.11370): units of each stage; the widths that were published.
RESNETS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BIT_WIDTHS = {50: (1, 3), 101: (1, 3), 152: (2, 4)}

# DINOv2's giant (arXiv 2304.07193, table 17) is another one, with SwiGLU.
DINOV2 = {"small": SIZES["small"], "base": SIZES["base"], "large": SIZES["large"],
          "giant": (1536, 40, 24, 4096)}  # fmt: skip
SIGLIP = [("base", 16, 224), ("base", 16, 256), ("base", 16, 384), ("large", 16, 256),
          ("large", 16, 384), ("so400m", 14, 224), ("so400m", 14, 378)]  # fmt: skip

# A family's own name: every size is a field.
PLAIN: dict[type, str] = {ViTConfig: "vit", MixerConfig: "mixer", ResNetConfig: "resnetv2"}

IMAGENET = DataConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", crop=0.9)
SQUASHED = DataConfig(crop=1.0, squash=True)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Names of one form: what they mean, which of them are listed, how images are shown."""

    pattern: str
    fields: Callable[[dict[str, str]], tuple[type, dict[str, Any]]]
    listed: tuple[str, ...]
    data: DataConfig = dataclasses.field(default_factory=DataConfig)


def _encoder(size: tuple[int, int, int, int], patch: int, resolution: int, **fields):
    sizes = dict(zip(("hidden_size", "num_layers", "num_heads", "mlp_dim"), size, strict=True))
    return ViTConfig, sizes | {"patch_size": patch, "image_size": resolution} | fields


def _dinov2(of: dict[str, str]):
    registers = 4 if of["registers"] else 0
    return _encoder(
        DINOV2[of["size"]], 14, 518, registers=registers, layer_scale=1e-5, gelu="exact",
        mlp="swiglu" if of["size"] == "giant" else "dense",
        posemb_resize="dinov2_reg" if registers else "dinov2",
    )  # fmt: skip


def _mixer(of: dict[str, str]):
    hidden_size, num_layers, tokens_mlp_dim, mlp_dim = MIXERS[of["size"]]
    return MixerConfig, {
        "hidden_size": hidden_size, "num_layers": num_layers, "tokens_mlp_dim": tokens_mlp_dim,
        "mlp_dim": mlp_dim, "patch_size": int(of["patch"]), "image_size": int(of["side"]),
    }  # fmt: skip


KINDS = (
    Kind(
        r"vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)_(?P<side>\d+)",
        lambda of: _encoder(SIZES[of["size"]], int(of["patch"]), int(of["side"])),
        tuple(f"vit_{size}_patch{p}_{r}" for size, pairs in LISTED.items() for p, r in pairs),
    ),
    Kind(
        rf"(?P<name>{'|'.join(HYBRIDS)})_(?P<side>\d+)",
        lambda of: _encoder(
            SIZES[HYBRIDS[of["name"]][0]], HYBRIDS[of["name"]][2], int(of["side"]),
            resnet_layers=HYBRIDS[of["name"]][1],
        ),
        tuple(f"{name}_{side}" for name in HYBRIDS for side in (224, 384)),
    ),
    Kind(
        r"deit_(?P<size>tiny|small|base)_(?P<two>distilled_)?patch(?P<patch>\d+)_(?P<side>\d+)",
        lambda of: _encoder(
            SIZES[of["size"]], int(of["patch"]), int(of["side"]), gelu="exact",
            distilled=bool(of["two"]),
        ),
        tuple(
            f"deit_{size}_{two}patch16_{side}"
            for size, side in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))
            for two in ("", "distilled_")
        ),
        IMAGENET,
    ),
    Kind(
        r"vit_(?P<size>small|base|large|giant)_patch14_(?P<registers>reg4_)?dinov2",
        _dinov2,
        tuple(f"vit_{size}_patch14_{reg}dinov2" for size in DINOV2 for reg in ("", "reg4_")),
        dataclasses.replace(IMAGENET, crop=1.0),
    ),
    Kind(
        r"vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)_siglip_(?P<side>\d+)",
        lambda of: _encoder(SIZES[of["size"]], int(of["patch"]), int(of["side"]), pool="map"),
        tuple(f"vit_{size}_patch{p}_siglip_{r}" for size, p, r in SIGLIP),
        dataclasses.replace(SQUASHED, interpolation="bicubic"),
    ),
    Kind(
        r"mixer_(?P<size>[sbl])(?P<patch>\d+)_(?P<side>\d+)",
        _mixer,
        tuple(f"mixer_{size}{patch}_224" for size in MIXERS for patch in (32, 16)),
    ),
    Kind(
        r"resnetv2_(?P<depth>50|101|152)x(?P<width>\d+)_bit(_(?P<side>\d+))?",
        lambda of: (ResNetConfig, {
            "resnet_layers": RESNETS[int(of["depth"])], "width_factor": int(of["width"]),
            "image_size": int(of["side"] or 224),
        }),
        tuple(f"resnetv2_{d}x{w}_bit" for d, widths in BIT_WIDTHS.items() for w in widths),
        SQUASHED,
    ),
    Kind(
        rf"(?P<family>{'|'.join(PLAIN.values())})",
        lambda of: (
            next(family for family, name in PLAIN.items() if name == of["family"]),
            {"image_size": 224},
        ),
        (),
    ),
)  # fmt: skip


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows and that match the shell pattern, sorted."""
    return sorted(fnmatch.filter((name for kind in KINDS for name in kind.listed), pattern))


def short_name(written: str) -> str:
    """A recipe's model as it is written here: `B_16` -> `b16`, `R50_B16` -> `r50_b16`,
    `mixer_B16`, `bit_50x1`; only g and G differ by case.

    Raises UserError for a letter that is none of `LETTERS`.
    """
    lower = written.lower()
    if re.fullmatch(r"bit_\d+x\d+|mixer_[sbl]\d+", lower) or lower in _hybrids():
        return lower
    found = re.fullmatch(r"([A-Za-z]+?)_?(\d+)", written)
    short = found.group(1) if found else ""
    letter = short if short in LETTERS else short.lower()
    if found is None or letter not in LETTERS:
        raise UserError(
            f"unknown model size {written!r}: give a letter of {', '.join(LETTERS)} and a patch "
            f"size, such as b16, or {', '.join(_hybrids())}, mixer_b16, bit_50x1"
        )
    return f"{letter}{int(found.group(2))}"


def _hybrids() -> dict[str, str]:
    return {short: name for name, (_, _, _, short) in HYBRIDS.items()}


def full_name(written: str, resolution: int = 224) -> str:
    """The model's name for a recipe's short one: `b16` -> `vit_base_patch16_224`. The resolution
    is the nearest one below that patches tile: `h14` at 384 -> `vit_huge_patch14_378`. A Mixer's is
    224, the grid that its weights are for; a full name stays as it is."""
    if any(re.fullmatch(kind.pattern, written) for kind in KINDS):
        return written
    short = short_name(written)
    if short.startswith("bit_"):
        return f"resnetv2_{short.removeprefix('bit_')}_bit_{resolution}"
    patch = int(re.findall(r"\d+", short)[-1])
    if short in _hybrids():
        name = _hybrids()[short]
        patch = HYBRIDS[name][2]
    elif short.startswith("mixer_"):
        return f"{short}_224"
    else:
        name = f"vit_{LETTERS[short.rstrip('0123456789')]}_patch{patch}"
    return f"{name}_{resolution // patch * patch}"


def takes(name: str, field: str) -> bool:
    """Whether the config of the named model has a field: a ResNet has no `scan`."""
    _, family, _ = find_kind(name)
    return field in {known.name for known in dataclasses.fields(family)}


def find_kind(name: str) -> tuple[Kind, type, dict[str, Any]]:
    """What a name means: its kind, the config's class, and the fields that the name sets.

    Raises UserError with the three nearest names.
    """
    for kind in KINDS if isinstance(name, str) else ():
        found = re.fullmatch(kind.pattern, name)
        if found and found.groupdict().get("size", "base") in {**SIZES, **MIXERS}:
            return kind, *kind.fields(found.groupdict())
    written = str(name).replace("/", "").replace("-", "_").lower().removeprefix("vit_")
    hint = nearest(str(name), list_models())
    if re.fullmatch("|".join(LETTERS) + r"_?\d+", written):
        hint = f"did you mean {full_name(written)}?"
    raise UserError(f"unknown model {name!r}: {hint}")


def create_model(name: str, *, remainder: bool = False, **fields) -> Model:
    """A model by name, with any field of its config (`ViTConfig`, `MixerConfig`, `ResNetConfig`)
    set anew; a field of None keeps the name's.

    `image_size` may be one number or (height, width).

    Args:
      remainder: whether patches may leave a rest of the image that is not read, as in some
        published weights (384 pixels with patches of 14).

    Raises:
      UserError: no such name (the three nearest are shown), no such field, or sizes that do not
        fit each other.
    """
    kind, family, sizes = find_kind(name)
    known = [field.name for field in dataclasses.fields(family)]
    given = {field: value for field, value in fields.items() if value is not None}
    for field in given:
        if field not in known:
            raise UserError(f"{name} has no field {field!r}: {nearest(field, known)}")
    config = make_config(family, sizes | given, f"model {name}")
    if not remainder:
        check_tiled(config, f"model {name}")
    return Model(name, config, kind.data)


def make_config(family: type, fields: dict[str, Any], what: str) -> Config:
    """The config of a family from its fields. Raises UserError where they do not fit each other."""
    try:
        fields = dict(fields, image_size=_two_sides(fields["image_size"]))
        if fields.get("resnet_layers") is not None:
            fields["resnet_layers"] = tuple(fields["resnet_layers"])
        return family(**fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}: {error}") from error


def check_tiled(config: Config, what: str) -> None:
    """Refuses an image size that patches do not tile. Weights may have been trained at one, but
    where a size can be chosen, pixels that are never read are a mistake. Raises UserError."""
    if isinstance(config, ResNetConfig):
        return
    try:
        check_patches(config.image_size, config.patch_size)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


# What a name says beyond sizes and parts: others may compute with other numbers.
_NUMERICS = {"image_size", "gelu", "posemb_resize", "layer_scale"}


def _parts(config: Config) -> tuple:
    """What sets kinds of one family apart."""
    fields = ("resnet_layers", "distilled", "registers", "mlp", "pre_norm")
    scaled, pool = getattr(config, "layer_scale", 0) > 0, getattr(config, "pool", "") == "map"
    return *(getattr(config, field, None) for field in fields), scaled, pool


def name_of(config: Config, like: str = "") -> str:
    """The name of a model with the sizes and parts of a config: one that begins with `like` if it
    can, then one of its numerics and its resolution.

    A config that has no name gets its family's, whose sizes all come from fields.
    """
    best, most = PLAIN[type(config)], (False, 0)
    for name in list_models():
        _, family, fields = find_kind(name)
        if family is not type(config):
            continue
        whole = make_config(family, fields, name)
        same = {field for field, value in vars(whole).items() if getattr(config, field) == value}
        score = (name.startswith(like), len(same))
        if fields.keys() - _NUMERICS <= same and _parts(whole) == _parts(config) and score > most:
            best, most = name, score
    return best


def _two_sides(size) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    if not (
        isinstance(sides, tuple | list)
        and len(sides) == 2
        and all(isinstance(side, int) and side > 0 for side in sides)
    ):
        raise ValueError(f"image_size is a number or (height, width), not {size!r}")
    return sides[0], sides[1]
