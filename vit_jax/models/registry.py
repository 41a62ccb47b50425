"""Names of models: `vit_SIZE_patchP_RESOLUTION`, timm's where timm has one."""

import dataclasses
import fnmatch
import re

from vit_jax.errors import UserError, nearest
from vit_jax.models.model import Model
from vit_jax.models.vit import ViTConfig

# name: (hidden_size, num_layers, num_heads, mlp_dim). Ti … H: ViT paper table 1 and DeiT; g, G:
# arXiv 2106.04560 table 2; mu: big_vision's test size; nano: ours, for a few CPU cores.
SIZES = {
    "mu": (32, 1, 2, 128),
    "nano": (128, 6, 4, 256),
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
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

_NAME = re.compile(r"vit_([a-z]+)_patch(\d+)_(\d+)")


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows and that match the shell pattern, sorted."""
    names = [f"vit_{size}_patch{p}_{r}" for size, pairs in LISTED.items() for p, r in pairs]
    return sorted(fnmatch.filter(names, pattern))


def short_name(letter_and_patch: str) -> str:
    """A recipe's size as it is written here: `B_16` -> `b16`; only g and G differ by case.

    Raises UserError for a letter that is none of `LETTERS`.
    """
    found = re.fullmatch(r"([A-Za-z]+?)_?(\d+)", letter_and_patch)
    short = found.group(1) if found else ""
    letter = short if short in LETTERS else short.lower()
    if found is None or letter not in LETTERS:
        letters = ", ".join(LETTERS)
        raise UserError(
            f"unknown model size {letter_and_patch!r}: give a letter of {letters} and a patch "
            "size, such as b16"
        )
    return f"{letter}{int(found.group(2))}"


def full_name(letter_and_patch: str, resolution: int = 224) -> str:
    """The model's name for a recipe's short one: `b16` -> `vit_base_patch16_224`."""
    short = short_name(letter_and_patch)
    letter = short.rstrip("0123456789")
    return f"vit_{LETTERS[letter]}_patch{short.removeprefix(letter)}_{resolution}"


def create_model(name: str, **fields) -> Model:
    """A model by name, with any field of `ViTConfig` set anew; a field of None keeps the name's.

    `image_size` may be one number or (height, width).

    Raises:
      UserError: no such name (the three nearest are shown), no such field, or sizes that do not
        fit each other.
    """
    match = _NAME.fullmatch(name)
    if match is None or match.group(1) not in SIZES:
        raise UserError(f"unknown model {name!r}: {nearest(name, list_models())}")
    known = [field.name for field in dataclasses.fields(ViTConfig)]
    for field in fields:
        if field not in known:
            raise UserError(f"{name} has no field {field!r}: {nearest(field, known)}")
    hidden_size, num_layers, num_heads, mlp_dim = SIZES[match.group(1)]
    patch_size, resolution = int(match.group(2)), int(match.group(3))
    sizes = {
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
        "patch_size": patch_size,
        "image_size": resolution,
    } | {field: value for field, value in fields.items() if value is not None}
    try:
        sizes["image_size"] = _two_sides(sizes["image_size"])
        return Model(name, ViTConfig(**sizes))
    except (ValueError, TypeError) as error:
        raise UserError(f"model {name}: {error}") from error


def _two_sides(size) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    if not (
        isinstance(sides, tuple | list)
        and len(sides) == 2
        and all(isinstance(side, int) and side > 0 for side in sides)
    ):
        raise ValueError(f"image_size is a number or (height, width), not {size!r}")
    return sides[0], sides[1]
