"""From the values of a file to the 256 levels of a pixel: `decode(low, high)` of a pipeline."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

from vit_jax.errors import UserError
from vit_jax.records import is_number

FEW = 32  # fewer of the 256 levels than this are worth a warning
BLOCK = 2**20  # values that are converted at a time, in float64


class DamagedImage(ValueError):
    """The bytes are not a whole image."""


class NeedsRange(DamagedImage):
    """The type of the values has no range of its own, and the pipeline states none."""

    def __init__(self, dtype: np.dtype):
        kind = "floats" if dtype.kind == "f" else "integers"
        super().__init__(
            f"its pixels are {kind} ({dtype}) without a range of their own: begin the pipeline "
            "with decode(low, high), the range of their values (vit data check SOURCE "
            "--statistics prints it)"
        )


@dataclasses.dataclass(frozen=True)
class Levels:
    """The range of a file's values, for all channels or for each. `between` makes it."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def between(cls, low: Any, high: Any) -> "Levels":
        """Each end is a number, or one for each channel. Raises ValueError if they are no range."""
        lows, highs = _numbers("low", low), _numbers("high", high)
        count = max(len(lows), len(highs))
        if {len(lows), len(highs)} - {1, count}:
            raise ValueError(f"low has {len(lows)} numbers and high {len(highs)}")
        lows, highs = (v * count if len(v) == 1 else v for v in (lows, highs))
        for least, most in zip(lows, highs, strict=True):
            if not least < most or not math.isfinite(most - least):
                raise ValueError(f"low is less than high, not {least:g} and {most:g}")
        return cls(lows, highs)

    def check(self, channels: int) -> None:
        """Raises UserError unless there is one range, or one for each channel."""
        if len(self.low) not in (1, channels):
            raise UserError(
                f"decode(low, high) of the pipeline has {len(self.low)} ranges, the images have "
                f"{channels} channel{'s' * (channels > 1)}: write one range, or one for each"
            )

    def eight_bits(
        self, values: Num[np.ndarray, "height width channels"]
    ) -> UInt8[np.ndarray, "height width channels"]:
        """Value v becomes round(255 (v - low) / (high - low)), clipped to 0 … 255.

        Raises DamagedImage if a value is not a number.
        """
        self.check(values.shape[-1])
        low, high = np.array(self.low), np.array(self.high)
        pixels = np.empty(values.shape, np.uint8)
        for rows in blocks(values):
            shares = (values[rows].astype(np.float64) - low) / (high - low)
            if np.isnan(shares).any():
                raise DamagedImage("some of its values are not numbers (NaN)")
            pixels[rows] = np.rint(255 * np.clip(shares, 0, 1))
        return pixels


def blocks(values: np.ndarray) -> list[slice]:
    """Slices of rows that hold about `BLOCK` values, or one row, for a whole image."""
    rows = max(1, BLOCK // max(1, values[0].size))
    return [slice(top, top + rows) for top in range(0, len(values), rows)]


def eight_bits(values: np.ndarray, levels: Levels | None) -> np.ndarray:
    """Pixels of a file's values. 8 bits stay as they are. Without a range, 16 unsigned bits become
    their upper eight, and other values raise NeedsRange."""
    if values.dtype == np.uint8:
        return values
    if levels is not None:
        return levels.eight_bits(values)
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    raise NeedsRange(values.dtype)


def unused(dtype: np.dtype, least: np.ndarray, most: np.ndarray, levels: Levels | None) -> str:
    """A warning if decoding makes few levels of values between `least` and `most` [channels];
    empty if it makes enough, or if the values have 8 bits."""
    ends = np.stack([least, most])[:, None].astype(dtype)
    pixels = eight_bits(ends, levels).astype(int)
    if dtype == np.uint8 or (pixels[1] - pixels[0]).max() >= FEW:
        return ""
    return (
        f"values of {dtype} from {least.min():,.6g} to {most.max():,.6g} become {pixels.min()} to "
        f"{pixels.max()} of 255: begin the pipeline with decode(low, high), the range that they "
        "have (vit data check SOURCE --statistics prints it)"
    )


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    each = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not each or not all(map(is_number, each)):
        raise ValueError(f"{name} is a finite number, or one for each channel, not {value!r}")
    return tuple(map(float, each))
