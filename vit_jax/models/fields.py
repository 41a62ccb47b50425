"""The check that every model's config makes of its fields, in one form of words."""

from collections.abc import Callable
from typing import Any


def check(config: Any, field: str, kind: type, fits: Callable, wanted: str) -> None:
    """Refuses a field of a config that is not of its kind or that does not fit.

    Raises ValueError: `FIELD is WANTED, not VALUE`.
    """
    value = getattr(config, field)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    right = number and (kind is float or value == int(value)) if kind is not str else True
    if not right or not fits(value):
        raise ValueError(f"{field} is {wanted}, not {value!r}")


def check_counts(config: Any, *fields: str) -> None:
    """Whole numbers of at least 1."""
    for field in fields:
        check(config, field, int, lambda n: n >= 1, "a whole number of at least 1")


def check_choices(config: Any, choices: dict[str, tuple[str, ...]]) -> None:
    """Fields that take one of a few words."""
    for field, allowed in choices.items():
        check(config, field, str, allowed.__contains__, f"one of {', '.join(allowed)}")


def check_patches(image_size: tuple[int, int], patch_size: int, *, remainder: bool = False) -> None:
    """Images that patches tile, or with `remainder` images of at least one patch each way.

    Raises ValueError with the sizes that would work.
    """
    if any(side < patch_size or (side % patch_size and not remainder) for side in image_size):
        down = tuple(max(1, side // patch_size) * patch_size for side in image_size)
        up = tuple(max(1, -(-side // patch_size)) * patch_size for side in image_size)
        raise ValueError(
            f"image_size {tuple(image_size)} is not divisible by patch_size {patch_size}; "
            f"{' or '.join(map(str, sorted({down, up})))} would work"
        )
