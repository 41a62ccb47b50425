"""What a user says of weights whose file does not say it: one way for every command.

A config says it: `vit inspect`, `vit predict` and `vit convert` take `--config.model.num_heads=4`
for a value of the weights. A run with `init` reads its own fields in the same way where the file is
silent. Python's `load_pretrained` has arguments of the same names.
"""

from typing import Any

from ml_collections import ConfigDict

from vit_jax.errors import UserError

# Keys of a config that say something of weights, beside the model's fields: key -> argument of
# `open_weights`.
KEYS = {
    "source_image_size": "source_image_size", "data.mean": "mean", "data.std": "std",
}  # fmt: skip
EXAMPLES = {"num_heads": "N", "source_image_size": "(HEIGHT, WIDTH)", "gelu": "exact"}


class Unstated(UserError):
    """A file does not state a field that the model needs."""

    def __init__(self, what: str, field: str):
        """`what` is missing. The message names the key that says it."""
        super().__init__(f"{what}: say {spelled(field)}")


def spelled(field: str) -> str:
    """How a user says a field: on the command line, and in Python."""
    key = next((key for key, argument in KEYS.items() if argument == field), f"model.{field}")
    value = EXAMPLES.get(field, "VALUE")
    quoted = f"'{value}'" if "(" in value else value
    return f"--config.{key}={quoted} (in Python: {field}={value})"


def given(config: ConfigDict) -> dict[str, Any]:
    """What a config says of weights, by the arguments of `open_weights`: `KEYS`, and the model's
    fields that are set. Its `image_size` is that of the run, if there is one.

    Raises UserError for a `source_image_size` that is no size.
    """
    fields = {k: v for k, v in config.model.to_dict().items() if v is not None and k != "name"}
    for key, argument in KEYS.items():
        section, _, leaf = key.rpartition(".")
        value = (config[section] if section else config)[leaf]
        if value is not None:
            fields[argument] = value
    if "source_image_size" in fields:
        fields["source_image_size"] = two_sides(fields["source_image_size"])
    return fields


def two_sides(size: Any) -> tuple[int, int]:
    """A size as (height, width). Raises UserError if it is none."""
    sides = (size, size) if isinstance(size, int) else size
    whole = isinstance(sides, list | tuple) and len(sides) == 2
    if not whole or not all(type(side) is int and side > 0 for side in sides):
        raise UserError(f"source_image_size is a number or (height, width), not {size!r}")
    return sides[0], sides[1]
