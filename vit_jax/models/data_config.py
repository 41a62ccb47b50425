"""How images are shown to a model: value range, resizing and crop."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How images were shown to the model: pixels p in 0..255 become (p/255 - mean) / std.

    At evaluation the image is resized to the model's size divided by `crop`, and the middle is cut
    out. The aspect ratio is kept, unless `squash`.
    """

    mean: float | tuple[float, ...] = 0.5  # one for all channels, or one each
    std: float | tuple[float, ...] = 0.5
    interpolation: str = "bilinear"  # one of `FILTERS` in data/ops.py
    crop: float = 0.875  # side of the central crop / side of the resized image
    squash: bool = False
    floor: bool = False  # rounds the border of the crop: `central_crop` in data/ops.py
    image_size: tuple[int, int] | None = None  # the size to resize for, if it is not the model's
    written: str = ""  # the whole pipeline, if a run's config states it

    def __post_init__(self):  # JSON has no tuples
        for field, value in vars(self).items():
            object.__setattr__(self, field, tuple(value) if isinstance(value, list) else value)

    def normalise(self, pixels: Array) -> Float[Array, "..."]:
        """uint8 pixels [..., C] to float32 in the model's value range ([-1, 1] by default)."""
        mean, std = (np.asarray(v, np.float32) for v in self.per_channel(pixels.shape[-1]))
        return pixels.astype(jnp.float32) * (1 / (255 * std)) - mean / std

    def pixels(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """The inverse of `normalise`: numbers in 0 … 255, not rounded."""
        mean, std = (np.asarray(v, np.float32) for v in self.per_channel(values.shape[-1]))
        return 255 * (values * std + mean)

    def per_channel(self, channels: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation for each channel. If they were computed for another number of
        channels, each channel gets the average over those."""
        mean, std = (np.atleast_1d(np.asarray(v, float)) for v in (self.mean, self.std))
        values = [v if len(v) == channels else v.mean().repeat(channels) for v in (mean, std)]
        return values[0].tolist(), values[1].tolist()

    def pipeline(self, image_size: tuple[int, int]) -> str:
        """The evaluation pipeline, as `data.eval.pipeline` would state it."""
        if self.written:
            return self.written
        height, width = self.resized(image_size)
        size = height if height == width and not self.squash else (height, width)
        resize = f"resize{'' if self.squash else '_small'}({size}, {self.interpolation!r})"
        crop = "|central_crop" + "(floor=True)" * self.floor
        return f"decode|{resize}" + crop * (not self.squash or (height, width) != tuple(image_size))

    def resized(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) before the crop. An image that is not square covers this size (timm's rule)."""
        return math.floor(image_size[0] / self.crop), math.floor(image_size[1] / self.crop)


def crop_of(side: int, resized: int) -> float:
    """The `DataConfig.crop` that cuts `side` out of a side of `resized`: the default, or the
    shortest decimal."""
    decimals = [side * 10**digits // resized / 10**digits for digits in range(1, 17)]
    crops = (crop for crop in (DataConfig.crop, *decimals) if crop)
    return next(crop for crop in crops if math.floor(side / crop) == resized)


IMAGENET = DataConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", crop=0.9)
SQUASHED = DataConfig(crop=1.0, squash=True)
