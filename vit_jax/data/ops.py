"""Operations on one image, named in a pipeline string: `decode|inception_crop(224)|flip_lr`.

An operation is a function of (image, rng, size, *arguments) to an image; `size` is the model's
(height, width), which an operation takes where the string gives no size of its own. Images are
uint8 [height, width, channels].
"""

import ast
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from vit_jax.errors import UserError, nearest

cv2.setNumThreads(0)  # the pipeline's threads are the parallelism

Size = int | tuple[int, int] | None
OPS: dict[str, Callable] = {}
RANDOM: set[str] = set()  # those that draw from `rng`; evaluation refuses them


def op(*, random: bool = False) -> Callable[[Callable], Callable]:
    """Registers an operation under its own name."""

    def register(function: Callable) -> Callable:
        OPS[function.__name__] = function
        if random:
            RANDOM.add(function.__name__)
        return function

    return register


def _pair(size: Size, default: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return default
    return (size, size) if isinstance(size, int) else (size[0], size[1])


# Pillow's filters, antialiased where the image shrinks: those of PyTorch's code bases.
FILTERS = {
    "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}  # fmt: skip


def _resize(image: np.ndarray, height: int, width: int, how: str | None = None) -> np.ndarray:
    """Bilinear, or by area where the image shrinks (antialiased); or with one of `FILTERS`."""
    if image.shape[:2] == (height, width):
        return image
    if how is not None:
        planes = image[..., 0] if image.shape[-1] == 1 else image
        resized = Image.fromarray(planes).resize((width, height), FILTERS[how])
        return np.asarray(resized).reshape(height, width, -1)
    shrinks = height < image.shape[0] and width < image.shape[1]
    filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=filter_).reshape(height, width, -1)


@op()
def resize(image, rng, model_size, size: Size = None, how: str | None = None):
    """To `size` whatever the aspect; `how` is one of nearest, bilinear, bicubic, lanczos, area."""
    return _resize(image, *_pair(size, model_size), how)


@op()
def resize_small(image, rng, model_size, size: int | None = None, how: str | None = None):
    """Short side to `size` (1/0.875 of the model's, as in 256 for 224), aspect kept."""
    short = size or round(max(model_size) / 0.875)
    height, width = image.shape[:2]
    scale = short / min(height, width)
    return _resize(image, max(short, round(height * scale)), max(short, round(width * scale)), how)


@op()
def central_crop(image, rng, model_size, size: Size = None):
    """The middle `size`. The image must be as large."""
    height, width = _pair(size, model_size)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]


@op(random=True)
def inception_crop(
    image, rng, model_size, size: Size = None, area_min: float = 0.05, area_max: float = 1.0
):
    """A random part of `area_min` … `area_max` of the image, aspect 3/4 … 4/3, resized to
    `size` (arXiv 1409.4842, section 6). The central square where ten draws do not fit."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = rng.uniform(area_min, area_max) * height * width
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        h, w = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            break
    else:
        h = w = min(height, width)
        top, left = (height - h) // 2, (width - w) // 2
    return _resize(image[top : top + h, left : left + w], *_pair(size, model_size))


@op(random=True)
def flip_lr(image, rng, model_size):
    """Mirrors left and right with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


@op(random=True)
def shift(image, rng, model_size, pixels: int = 1):
    """Moves the image by up to `pixels` each way; what comes in is black."""
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    top, left = rng.integers(2 * pixels + 1, size=2)
    return padded[top : top + image.shape[0], left : left + image.shape[1]]


@op(random=True)
def rotate(image, rng, model_size, degrees: float = 10.0):
    """Turns the image about its centre by up to `degrees` either way; corners are black."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(
        ((width - 1) / 2, (height - 1) / 2), rng.uniform(-degrees, degrees), 1.0
    )
    return cv2.warpAffine(image, turn, (width, height)).reshape(image.shape)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline string. Call it with (image, rng); `random` says whether it draws."""

    text: str
    steps: tuple[Callable, ...]
    random: bool

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        for step in self.steps:
            image = step(image, rng)
        return np.ascontiguousarray(image)


def parse(text: str, model_size: tuple[int, int]) -> Pipeline:
    """The pipeline that `text` names. `decode` comes first and is done by the reader.

    Raises UserError: an unknown operation (with the nearest), or arguments that it does not take.
    """
    names = [part.strip() for part in text.split("|") if part.strip()]
    if not names or names[0] != "decode":
        raise UserError(f"pipeline {text!r} must begin with decode, as in decode|resize")
    steps, used, blank = [], [], np.zeros((*model_size, 3), np.uint8)
    for part in names[1:]:
        match = re.fullmatch(r"(\w+)(\(.*\))?", part)
        name = match.group(1) if match else part
        if match is None or name not in OPS:
            raise UserError(f"unknown operation {part!r} in pipeline: {nearest(name, OPS)}")
        try:
            inside = (match.group(2) or "()")[1:-1].strip()
            arguments = ast.literal_eval(f"({inside},)") if inside else ()
            inspect.signature(OPS[name]).bind(None, None, None, *arguments)
            made = OPS[name](blank, np.random.default_rng(0), model_size, *arguments)
            if made.ndim != blank.ndim or not made.size:
                raise ValueError(f"makes an image of shape {made.shape}")
        except Exception as error:  # whatever an operation does with arguments it cannot use
            wants = list(map(str, inspect.signature(OPS[name]).parameters.values()))[3:]
            raise UserError(
                f"operation {part!r} in pipeline: {name} takes ({', '.join(wants)})"
            ) from error
        steps.append(functools.partial(_call, name, model_size, arguments))
        used.append(name)
    return Pipeline(text, tuple(steps), any(name in RANDOM for name in used))


def _call(name, model_size, arguments, image, rng):  # by name, so that workers can pickle it
    return OPS[name](image, rng, model_size, *arguments)
