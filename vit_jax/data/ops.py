"""Operations on one image, named in a pipeline string: `decode|inception_crop(224)|flip_lr`.

An operation is a function of (image, rng, size, *arguments) to an image; `size` is the model's
(height, width), which an operation takes where the string gives no size of its own. Images are
uint8 [height, width, channels].
"""

import math
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vit_jax.data.declared import op
from vit_jax.data.decode import EncodedJpeg
from vit_jax.data.objects import WHOLE, Moved, Window
from vit_jax.data.stored import check_size

cv2.setNumThreads(0)  # the pipeline's threads are the parallelism

Size = int | tuple[int, int] | None
LOG_ASPECT = math.log(4 / 3)
MOST_RESIZED = 2**24  # pixels; `resize_small` cuts strips whose result would be larger
STRIP = 32  # a strip is longer than this many times its width


def _pair(size: Size, default: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return default
    return (size, size) if isinstance(size, int) else (size[0], size[1])


# Pillow's filters, which PyTorch's code bases use. They antialias if the image shrinks.
FILTERS = {
    "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX, "hamming": Image.Resampling.HAMMING,
}  # fmt: skip
# The same filters without antialiasing, at pixel centres.
POINTS = {"nearest": cv2.INTER_NEAREST_EXACT, "bilinear": cv2.INTER_LINEAR,
          "bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}  # fmt: skip


def _by_cv2(image: np.ndarray, height: int, width: int, filter_: int) -> np.ndarray:
    parts = [image[..., i : i + 4] for i in range(0, image.shape[-1], 4)]  # OpenCV takes four
    resized = [cv2.resize(part, (width, height), interpolation=filter_) for part in parts]
    return np.dstack(resized) if len(parts) > 1 else resized[0].reshape(height, width, -1)


def _resize(
    image: np.ndarray, height: int, width: int, how: str | None = None, antialias: bool = True
) -> np.ndarray:
    """Resizes with one of `FILTERS`; by default by area if the image shrinks, else bilinear."""
    if how is not None and how not in (FILTERS if antialias else POINTS):
        raise ValueError(f"how is one of {', '.join(FILTERS if antialias else POINTS)}")
    if image.shape[:2] == (height, width):
        return image
    check_size(height, width, "resized, its ")
    if how is None:
        shrinks = height < image.shape[0] and width < image.shape[1]
        return _by_cv2(image, height, width, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if not antialias:
        return _by_cv2(image, height, width, POINTS[how])
    parts = [image] if image.shape[-1] == 3 else np.moveaxis(image, -1, 0)  # what Pillow takes
    resized = [Image.fromarray(part).resize((width, height), FILTERS[how]) for part in parts]
    return np.dstack([np.asarray(part) for part in resized])


def _resize_for_training(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear. If the image shrinks to a half or less, blocks of whole pixels are averaged first.
    That takes a fifth of the time of averaging exact areas."""
    block = min(image.shape[0] // height, image.shape[1] // width)
    if block >= 2:
        tall, wide = image.shape[0] // block, image.shape[1] // block
        image = _by_cv2(image[: tall * block, : wide * block], tall, wide, cv2.INTER_AREA)
    if image.shape[:2] == (height, width):
        return image
    return _by_cv2(image, height, width, cv2.INTER_LINEAR)


@op()
def resize(
    image, rng, model_size, size: Size = None, how: str | None = None, antialias: bool = True
):
    """To `size` whatever the aspect; `how` is one of `FILTERS`."""
    return _resize(image, *_pair(size, model_size), how, antialias)


@op(moves=True, says_where=True)
def resize_small(
    image, rng, model_size, size: Size = None, how: str | None = None, antialias: bool = True
):
    """Resizes the short side to `size` (by default the model's size / 0.875: 256 for 224) and keeps
    the aspect. The long side is rounded down, as in torchvision and Transformers. If `size` is
    (height, width) and no square, the result is the smallest image that covers it, with its sides
    rounded as in timm. A strip whose result would be very large is cut to its middle."""
    tall, wide = _pair(size, (int(model_size[0] / 0.875), int(model_size[1] / 0.875)))
    height, width = image.shape[:2]
    ratio, window = min(height / tall, width / wide), WHOLE
    if height * width > MOST_RESIZED * ratio**2:
        middle = _middle(image, math.ceil(STRIP * tall * ratio), math.ceil(STRIP * wide * ratio))
        image, window = middle.image, middle.window
        height, width = image.shape[:2]
    if tall == wide:
        low = min(height, width)
        image = _resize(image, tall * height // low, tall * width // low, how, antialias)
    else:
        image = _resize(image, round(height / ratio), round(width / ratio), how, antialias)
    return image if window == WHOLE else Moved(image, window)


def _borders(image: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """How many rows and columns the image has beyond `height` and `width`."""
    return max(image.shape[0] - height, 0), max(image.shape[1] - width, 0)


def window_of(image: Any, top: int, left: int, height: int, width: int) -> Window:
    """A part of an image, from pixels."""
    down, across = image.shape[:2]
    return left / across, top / down, (left + width) / across, (top + height) / down


def _part(image: np.ndarray, top: int, left: int, height: int, width: int) -> Moved:
    """A part of an image, where the image reaches as far."""
    part = image[top : top + height, left : left + width]
    return Moved(part, window_of(image, top, left, *part.shape[:2]))


def _middle(image: np.ndarray, height: int, width: int) -> Moved:
    """Cuts rows and columns beyond `height` and `width` off both ends, the same number each."""
    top, left = (border // 2 for border in _borders(image, height, width))
    return _part(image, top, left, image.shape[0] - 2 * top, image.shape[1] - 2 * left)


@op(moves=True, says_where=True)
def central_crop(image, rng, model_size, size: Size = None, floor: bool = False):
    """The middle part of `size`. The image must be as large. A border that ends in half a pixel is
    rounded to even, as in torchvision; with `floor` down, as in Transformers."""
    height, width = _pair(size, model_size)
    borders = _borders(image, height, width)
    top, left = (border // 2 if floor else round(border / 2) for border in borders)
    return _part(image, top, left, height, width)


@op(random=True, moves=True, says_where=True)
def random_crop(image, rng, model_size, size: Size = None, padding: int = 0):
    """A random part of `size` of the image, which first gets a black border of `padding` pixels."""
    height, width = _pair(size, model_size)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0))) if padding else image
    top, left = (int(rng.integers(border + 1)) for border in _borders(padded, height, width))
    part = padded[top : top + height, left : left + width]
    return Moved(part, window_of(image, top - padding, left - padding, *part.shape[:2]))


def rectangle(
    image, rng: np.random.Generator, area_min: float, area_max: float, log_aspect: float
) -> tuple[int, int, int, int] | None:
    """Draws (top, left, height, width) of a part of an image: its share of the area, the logarithm
    of its aspect within ± `log_aspect`, and its place. None if ten draws do not fit."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = (area_min + (area_max - area_min) * rng.random()) * height * width
        aspect = math.exp(log_aspect * (2 * rng.random() - 1))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return None


@op(random=True, moves=True, encoded=True, says_where=True)
def inception_crop(
    image, rng, model_size, size: Size = None, area_min: float = 0.05, area_max: float = 1.0
):
    """A random part of `area_min` … `area_max` of the image, aspect 3/4 … 4/3, resized to
    `size` (arXiv 1409.4842, section 6). If ten draws do not fit, the central square. A JPEG much
    larger than `size` is decoded at a half, quarter or eighth of its resolution."""
    if not 0 < area_min <= area_max <= 1:
        raise ValueError(f"areas {area_min} … {area_max} are not in 0 … 1")
    height, width = image.shape[:2]
    side = min(height, width)
    middle = (height - side) // 2, (width - side) // 2, side, side
    top, left, h, w = rectangle(image, rng, area_min, area_max, LOG_ASPECT) or middle
    size, window = _pair(size, model_size), window_of(image, top, left, h, w)
    if isinstance(image, EncodedJpeg):
        return Moved(_resize_for_training(image.region(top, left, h, w, size), *size), window)
    return Moved(_resize_for_training(image[top : top + h, left : left + w], *size), window)


@op(random=True, moves=True, says_where=True)
def flip_lr(image, rng, model_size):
    """Mirrors the image left to right with probability 1/2."""
    if rng.random() >= 0.5:
        return image
    return Moved(cv2.flip(image, 1).reshape(image.shape), (1.0, 0.0, 0.0, 1.0))


@op(random=True, moves=True, says_where=True)
def shift(image, rng, model_size, pixels: int = 1):
    """Moves the image by up to `pixels` in each direction. New pixels are black."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    top, left = map(int, rng.integers(2 * pixels + 1, size=2))
    part = padded[top : top + height, left : left + width]
    return Moved(part, window_of(image, top - pixels, left - pixels, height, width))


@op(random=True, moves=True)
def rotate(image, rng, model_size, degrees: float = 10.0):
    """Rotates the image about its centre by up to ± `degrees`. New pixels are black."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(
        ((width - 1) / 2, (height - 1) / 2), rng.uniform(-degrees, degrees), 1.0
    )
    return cv2.warpAffine(image, turn, (width, height)).reshape(image.shape)
