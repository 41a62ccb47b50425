"""Operations on one image, named in a pipeline string: `decode|inception_crop(224)|flip_lr`.

An operation is a function of (image, rng, size, *arguments) to an image; `size` is the model's
(height, width), which an operation takes where the string gives no size of its own. Images are
uint8 [height, width, channels].
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vit_jax import calls
from vit_jax.data.declared import DECLARED, OPS, Declared, op
from vit_jax.data.decode import EncodedJpeg, encoded
from vit_jax.data.levels import Levels
from vit_jax.data.objects import WHOLE, Moved, Padded, Window
from vit_jax.data.stored import check_size
from vit_jax.errors import UserError, nearest, printable
from vit_jax.records import is_number
from vit_jax.user_code import imported

cv2.setNumThreads(0)  # the pipeline's threads are the parallelism

Size = int | tuple[int, int] | None
Example = dict[str, Any]
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


def value_range(low: float = -1.0, high: float = 1.0):
    """Maps pixels from 0 … 255 to `low` … `high`. It comes last, because the device does it."""
    if not (is_number(low) and is_number(high) and low < high):
        raise ValueError(f"low is a finite number less than high, not {low!r} and {high!r}")
    return -low / (high - low), 1 / (high - low)


def normalise(mean: float | tuple[float, ...], std: float | tuple[float, ...]):
    """(p / 255 - mean) / std for each pixel p. Both are one number, or one for each channel. It
    comes last in a pipeline, because the device does it."""
    for name, value in (("mean", mean), ("std", std)):
        if wrong := not_shown_by(name, value):
            raise ValueError(wrong)
    return mean, std


def not_shown_by(name: str, value: Any) -> str:
    """The reason why a value cannot be `mean` or `std`; empty if it can. It must be one or several
    finite numbers, and a std must be positive."""
    each = value if isinstance(value, list | tuple) else [value]
    if each and all(is_number(v) and (name == "mean" or v > 0) for v in each):
        return ""
    return f"{name} is {'finite' if name == 'mean' else 'finite and positive'}, not {value!r}"


def decode(
    low: float | tuple[float, ...] | None = None, high: float | tuple[float, ...] | None = None
):
    """The pixels of a file, uint8 [height, width, channels]. It always comes first. With `low` and
    `high` (one number, or one for each channel), values of more than 8 bits become
    round(255 (v - low) / (high - low)), clipped to 0 … 255. Files of 8 bits stay as they are."""
    return None if low is None and high is None else Levels.between(low, high)


# Last operations, which the device does: functions that return (mean, std), as in data.mean.
SHOWN: dict[str, Callable] = {"value_range": value_range, "normalise": normalise}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline string, called with (image, rng). `random`: whether it draws from `rng`."""

    text: str
    steps: tuple["Step", ...]
    random: bool
    encoded: bool = False  # the first operation takes an EncodedJpeg
    levels: Levels | None = None  # the range of values of more than 8 bits
    shown: tuple[Any, Any] | None = None  # mean and std, if the text states them

    def open(self, image: bytes | np.ndarray, channels: int) -> np.ndarray | EncodedJpeg:
        """Prepares the image of a source for a call. Raises DamagedImage and UserError, as
        `decode` does."""
        return encoded(image, channels, self.levels)

    def __call__(
        self, image: np.ndarray | EncodedJpeg, rng: np.random.Generator | None
    ) -> np.ndarray:
        """The pixels after all operations, uint8 [H, W, C]. Raises DamagedImage."""
        return self.example({"image": image}, rng)["image"]

    def example(self, example: Example, rng: np.random.Generator | None) -> Example:
        """An example whose image `open` has prepared, after all operations."""
        if isinstance(example["image"], EncodedJpeg) and not self.encoded:
            example = example | {"image": example["image"].pixels()}
        if (objects := example.get("objects")) is not None:
            objects.check_size(example["image"].shape)
        for step in self.steps:
            example = step(example, rng)
        return example | {"image": np.ascontiguousarray(example["image"])}


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a pipeline, by its name, so that processes which read can have it too."""

    name: str
    model_size: tuple[int, int]
    arguments: list[Any]
    options: dict[str, Any]

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        function = OPS.get(self.name) or imported(self.name, "an operation")
        changes = DECLARED.get(function, Declared()).changes
        taken = {name: example[name] for name in changes if name in example}
        given = example["image"] if changes == ("image",) else taken
        result = function(given, rng, self.model_size, *self.arguments, **self.options)
        if changes != ("image",):
            return example | result
        objects = example.get("objects")
        if isinstance(result, Moved):
            moved = {} if objects is None else {"objects": objects.seen(result.window)}
            return example | {"image": result.image} | moved
        if isinstance(result, Padded):
            moved = {} if objects is None else {"objects": objects.padded(*result.content)}
            return example | {"image": result.image} | moved
        return example | {"image": result}


def parse(
    text: str,
    model_size: tuple[int, int],
    *,
    imports: bool = False,
    channels: int | None = None,
    placed: Iterable[str] = (),
) -> Pipeline:
    """Parses a pipeline. `decode` comes first; `Pipeline.open` does it.

    Args:
      placed: entries of an example that say where something is in its image, such as boxes. An
        operation that moves pixels must declare that it changes them too.
      channels: of the model, to check the number of ranges in `decode(low, high)`.
      imports: whether an operation may be one of the user's own, named by its import path,
        `my_package.my_module:NAME(…)`. True for text that the user wrote; False for text from a
        file, which could run any code otherwise.

    Raises UserError: an unknown operation (with the nearest names), one that must not be imported,
      one that leaves an entry in a wrong place, or arguments that it does not take.
    """
    parts = list(calls.split(text))
    if not parts or calls.name_of(parts[0]) != "decode":
        raise UserError(f"pipeline {text!r} must begin with decode, as in decode|resize")
    try:
        arguments, options = calls.arguments_of(parts[0])
        levels = decode(*arguments, **options)
    except Exception as error:  # wrong arguments may raise anything
        raise _misused(parts[0], decode, error) from error
    if levels is not None and channels is not None:
        levels.check(channels)
    steps: list[Step] = []
    shown, draws, encoded, blank = None, False, False, np.zeros((*model_size, 3), np.uint8)
    for number, part in enumerate(parts[1:], 1):
        name = calls.name_of(part)
        if name in SHOWN and number < len(parts) - 1:
            raise UserError(f"{part!r} in pipeline comes last: it is done on the device")
        if ":" in name and not imports:
            raise UserError(
                f"the pipeline {printable(text)!r} comes from a file: its operation "
                f"{printable(name)!r} is not imported, because it could run any code "
                "(vit predict imports it with --trust-code)"
            )
        known = OPS | SHOWN
        function = imported(name, "an operation") if ":" in name else known.get(name)
        if function is None:
            raise UserError(f"unknown operation {part!r} in pipeline: {nearest(name, known)}")
        try:
            arguments, options = calls.arguments_of(part)
            if name in SHOWN:
                shown = function(*arguments, **options)
                continue
            step = Step(name, model_size, arguments, options)
            result = step({"image": blank}, np.random.default_rng(0))["image"]
            if result.ndim != blank.ndim or not result.size or result.dtype != np.uint8:
                raise ValueError(f"makes an image of {result.dtype}, of shape {result.shape}")
        except Exception as error:  # an operation may raise anything about its arguments
            raise _misused(part, function, error) from error
        steps.append(step)
        declared = DECLARED.get(function, Declared())
        follow = declared.changes + ("objects",) * declared.says_where
        left = sorted(set(placed) - set(follow)) if declared.moves else []
        if left:
            raise UserError(
                f"operation {part!r} in pipeline moves what the image shows, but not the "
                f"example's {', '.join(left)}"
            )
        draws = draws or declared.random
        encoded = encoded or (number == 1 and declared.encoded)
    return Pipeline(text, tuple(steps), draws, encoded, levels, shown)


def _misused(part: str, function: Callable, error: Exception) -> UserError:
    """The error for arguments that an operation cannot use."""
    wants = list(map(str, inspect.signature(function).parameters.values()))
    of_image = function not in (decode, *SHOWN.values())
    name, takes = calls.name_of(part), ", ".join(wants[3 if of_image else 0 :])
    reason = " ".join(f"{error}".split())[:200]
    return UserError(f"operation {part!r} in pipeline: {name} takes ({takes}): {reason}")
