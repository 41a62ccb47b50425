"""Operations for images whose aspect and whole content matter, as detectors need them: sizes that
keep the aspect, crops of any shape, and a canvas around an image. Those of `ops.py` serve too.
"""

from collections.abc import Sequence

import numpy as np

from vit_jax.data.objects import Moved, Padded
from vit_jax.data.ops import Size, _pair, _resize, op, window_of

GREY = 128
SHORT = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # DETR's short sides
LONGEST = 1333


def _by_short_side(image: np.ndarray, short: float, longest: float) -> np.ndarray:
    """Resized so that the short side is `short`, or less if the long side would be more than
    `longest`."""
    height, width = image.shape[:2]
    ratio = min(short / min(height, width), longest / max(height, width))
    return _resize(image, max(1, round(height * ratio)), max(1, round(width * ratio)))


def _check_short(short: Sequence[int]) -> None:
    if not isinstance(short, Sequence) or not short or not all(n >= 1 for n in short):
        raise ValueError(f"short is a list of sides, such as (400, 500, 600), not {short!r}")


@op()
def fit(image, rng, model_size, size: Size = None, how: str | None = None, floor: bool = False):
    """Resizes the image as large as `size` holds it whole; keeps the aspect. `how`: `resize`. Sides
    are rounded, with `floor` down, as in Transformers."""
    tall, wide = _pair(size, model_size)
    ratio = min(tall / image.shape[0], wide / image.shape[1])
    rounded = int if floor else round
    height, width = (max(1, rounded(side * ratio)) for side in image.shape[:2])
    return _resize(image, height, width, how)


@op(random=True)
def random_resize(image, rng, model_size, short: Sequence[int] = SHORT, longest: int = LONGEST):
    """Resizes the short side to one of `short`; the long side is at most `longest` (DETR)."""
    _check_short(short)
    return _by_short_side(image, short[int(rng.integers(len(short)))], longest)


@op(random=True, moves=True, says_where=True)
def size_crop(
    image, rng, model_size, least: int = 384, most: int = 600, probability: float = 0.5,
    short: Sequence[int] = (400, 500, 600),
):  # fmt: skip
    """With a probability: resizes the short side to one of `short`, then cuts out a part whose
    sides are in `least` … `most` pixels, each drawn by itself (DETR)."""
    if not 0 < least <= most:
        raise ValueError(f"sides {least} … {most} are not in order")
    _check_short(short)
    if rng.random() >= probability:
        return image
    image = _by_short_side(image, short[int(rng.integers(len(short)))], float("inf"))
    height, width = (
        int(rng.integers(min(least, side), min(most, side) + 1)) for side in image.shape[:2]
    )
    top = int(rng.integers(image.shape[0] - height + 1))
    left = int(rng.integers(image.shape[1] - width + 1))
    part = image[top : top + height, left : left + width]
    return Moved(part, window_of(image, top, left, height, width))


@op(random=True, moves=True, says_where=True)
def canvas_crop(
    image, rng, model_size, size: Size = None, area_min: float = 0.3, stretch: float = 1.25
):
    """A random part with nearly the aspect of `size`, resized to it, so that objects keep their
    shape. It has `area_min` … 1 of the area of the largest such part, and its aspect differs from
    that of `size` by a factor of 1 / `stretch` … `stretch`."""
    if not 0 < area_min <= 1 <= stretch <= 4:
        raise ValueError(f"area_min is in 0 … 1 and stretch in 1 … 4, not {area_min}, {stretch}")
    tall, wide = _pair(size, model_size)
    height, width = image.shape[:2]
    aspect = wide / tall * stretch ** (2 * rng.random() - 1)
    rows = min(height, width / aspect) * (area_min + (1 - area_min) * rng.random()) ** 0.5
    h, w = max(1, round(rows)), min(width, max(1, round(rows * aspect)))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    part = _resize(image[top : top + h, left : left + w], tall, wide)
    return Moved(part, window_of(image, top, left, h, w))


@op(random=True, moves=True, says_where=True)
def zoom_out(image, rng, model_size, most: float = 2.0, probability: float = 0.5):
    """With a probability: places the image on a grey canvas, up to `most` times as large, so that
    objects become smaller (arXiv 1512.02325, section 3.6)."""
    if not 1 <= most <= 16:
        raise ValueError(f"most is in 1 … 16, not {most}")
    if rng.random() >= probability:
        return image
    ratio = rng.uniform(1.0, most)
    height, width = image.shape[:2]
    tall, wide = round(height * ratio), round(width * ratio)
    top, left = int(rng.integers(tall - height + 1)), int(rng.integers(wide - width + 1))
    canvas = np.full((tall, wide, image.shape[2]), GREY, np.uint8)
    canvas[top : top + height, left : left + width] = image
    return Moved(canvas, window_of(image, -top, -left, tall, wide))


@op(moves=True, says_where=True)
def pad(image, rng, model_size, size: Size = None, fill: int | Sequence[int] = GREY):
    """Adds rows at the bottom and columns at the right, up to `size`. It comes behind all
    operations that move what an image shows. A DETR does not attend to what is added. A side that
    is longer stays as it is. `fill` is a value in 0 … 255, or one for each channel. An image of
    another number of channels gets their mean."""
    height, width = image.shape[:2]
    tall, wide = (max(side, least) for side, least in
                  zip(image.shape[:2], _pair(size, model_size), strict=True))  # fmt: skip
    colour = np.atleast_1d(fill)
    if not colour.size or not all(0 <= n <= 255 for n in colour):
        raise ValueError(f"fill is a value in 0 … 255, or one for each channel, not {fill!r}")
    canvas = np.empty((tall, wide, image.shape[2]), np.uint8)
    canvas[:] = colour if len(colour) == image.shape[2] else round(float(colour.mean()))
    canvas[:height, :width] = image
    return Padded(canvas, (height / tall, width / wide))
