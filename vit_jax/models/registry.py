"""Models by name: timm's names where timm has one."""

import fnmatch
import re
from collections.abc import Iterator
from typing import Any

from vit_jax.errors import UserError, nearest, printable
from vit_jax.models.configs import check_patches
from vit_jax.models.data_config import DataConfig
from vit_jax.models.family import Config, Family, Names
from vit_jax.models.model import FAMILIES, Model
from vit_jax.models.vit_names import LETTERS
from vit_jax.user_code import imported, may_import


def _names() -> Iterator[tuple[Family, Names]]:
    return ((family, names) for family in FAMILIES.values() for names in family.names)


def list_models(pattern: str = "*") -> list[str]:
    """The sorted names of models that match a shell pattern."""
    return sorted(fnmatch.filter((name for _, names in _names() for name in names.listed), pattern))


def full_name(short: str, resolution: int = 224) -> str:
    """The full name of a model for a short name of recipes, such as `b16` (which is
    `vit_base_patch16_224`), `R50_B16`, `mixer_b16` or `bit_50x1`. A full name stays as it is.

    Raises UserError for a short name that no family knows.
    """
    if any(re.fullmatch(names.pattern, short) for _, names in _names()):
        return short
    for _, names in _names():
        if full := names.full(short, resolution):
            return full
    examples = ", ".join(example for _, names in _names() for example in names.shorts)
    raise UserError(
        f"unknown model size {short!r}: give a letter of {', '.join(LETTERS)} and a patch size, "
        f"such as {examples}"
    )


def takes(name: str, field: str) -> bool:
    """Whether the config of the named model has a field. A ResNet has no `scan`, for example."""
    return field in find_family(name, imports=True)[0].fields


def find_family(name: str, *, imports: bool = False) -> tuple[Family, dict[str, Any], DataConfig]:
    """The family of a name, the fields that the name sets, and how its images are prepared.

    Args:
      imports: whether `my_package.my_module:MY_FAMILY`, a `Family` of the user's own, may be
        imported. True for a name that the user wrote; False for one from a file, which could run
        any code otherwise.

    Raises UserError with the three nearest names.
    """
    if isinstance(name, str) and ":" in name:
        return _own(name, imports), {}, DataConfig()
    for family in FAMILIES.values():
        if name == family.name:
            return family, {"image_size": 224}, DataConfig()
    for family, names in _names() if isinstance(name, str) else ():
        if groups := re.fullmatch(names.pattern, name):
            try:
                return family, names.fields(groups.groupdict()), names.data
            except KeyError:  # an unknown size
                continue
    short = str(name).replace("/", "").replace("-", "_").lower().removeprefix("vit_")
    hint = nearest(str(name), list_models())
    if re.fullmatch("|".join(LETTERS) + r"_?\d+", short):
        hint = f"did you mean {full_name(short)}?"
    raise UserError(f"unknown model {name!r}: {hint}")


def _own(name: str, imports: bool) -> Family:
    """Imports a family. Raises UserError if it is no family, or must not be imported."""
    if not (imports or may_import(name)):
        raise UserError(
            f"the model's name {printable(name)!r} comes from a file: it is not imported, because "
            "it could run any code (vit predict imports it with --trust-code)"
        )
    family = imported(name, "a family of models")
    if not isinstance(family, Family):
        raise UserError(
            f"model.name {name} is a {type(family).__name__}, not a vit_jax.models.Family"
        )
    return FAMILIES.setdefault(family.config, family)


def create_model(name: str, *, remainder: bool = False, **fields: Any) -> Model:
    """A model by name. `fields` replace fields of its family's config; None keeps the name's value.

    `image_size` may be one number or (height, width).

    Args:
      remainder: whether the image size need not be a multiple of the patch size, as in some
        published weights (384 pixels with patches of 14). The rest of the image is not read.

    Raises:
      UserError: an unknown name (with the three nearest), an unknown field, or sizes that do not
        fit each other.
    """
    family, sizes, shown = find_family(name, imports=True)
    changes = {field: value for field, value in fields.items() if value is not None}
    for field in changes:
        if field not in family.fields:
            raise UserError(f"{name} has no field {field!r}: {nearest(field, family.fields)}")
    config = make_config(family.config, sizes | changes, f"model {name}")
    if not remainder:
        check_tiled(config, f"model {name}")
    return Model(name, config, shown)


def make_config(family: type, fields: dict[str, Any], what: str) -> Config:
    """The config of a family from its fields. Raises UserError if they do not fit each other."""
    try:
        if "image_size" in fields:
            fields = dict(fields, image_size=_two_sides(fields["image_size"]))
        if fields.get("resnet_layers") is not None:
            fields["resnet_layers"] = tuple(fields["resnet_layers"])
        return family(**fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}: {error}") from error


def check_tiled(config: Config, what: str) -> None:
    """Raises UserError if the image size is no multiple of the patch size. Published weights may
    have such a size. A user who chooses one has made a mistake: some pixels are never read."""
    if not hasattr(config, "patch_size"):
        return
    try:
        check_patches(config.image_size, config.patch_size)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


# Fields of a name besides sizes and parts. A config may have other values and the same name.
_NUMERICS = {"image_size", "gelu", "posemb_resize", "layer_scale"}


def _parts(family: Family, config: Config) -> tuple:
    """The values that distinguish architectures of one family, besides their sizes."""
    scaled, pool = getattr(config, "layer_scale", 0) > 0, getattr(config, "pool", "") == "map"
    return *(getattr(config, field) for field in family.parts), scaled, pool


def name_of(config: Config, like: str = "") -> str:
    """The name of a model with the sizes and parts of a config. Names that begin with `like` come
    first, then names with most fields equal (its numerics and resolution).

    A config without such a name gets the family's name, for which fields state all sizes.
    """
    family = FAMILIES[type(config)]
    best, most = family.name, (False, 0)
    for name in (name for names in family.names for name in names.listed):
        _, fields, _ = find_family(name)
        whole = make_config(family.config, fields, name)
        same = {field for field, value in vars(whole).items() if getattr(config, field) == value}
        score = (name.startswith(like), len(same))
        alike = _parts(family, whole) == _parts(family, config)
        if fields.keys() - _NUMERICS <= same and alike and score > most:
            best, most = name, score
    return best


def _two_sides(size: Any) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    if not (
        isinstance(sides, tuple | list)
        and len(sides) == 2
        and all(isinstance(side, int) and side > 0 for side in sides)
    ):
        raise ValueError(f"image_size is a number or (height, width), not {size!r}")
    return sides[0], sides[1]
