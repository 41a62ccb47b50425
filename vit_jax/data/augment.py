"""Augmentations that change what an image looks like: RandAugment, AutoAugment, TrivialAugment,
colour jitter, random erasing, 3-Augment. Sizes, crops and flips are in `ops.py`.

First the transformations, plain functions of an image and their strengths; then the policies,
tables of transformations and the operations that draw from them. Images are uint8 [height, width,
channels] and never changed in place. `greyscale`, `color` and `shift_hue` need colours: they leave
an image that has not three channels as it is. All others take any number of channels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from vit_jax.data.ops import op, rectangle

Image = UInt8[np.ndarray, "height width channels"]
Rng = np.random.Generator

GREY, BLACK = 128, 0
LEVELS = np.arange(256)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


# -- transformations of values --------------------------------------------------------------


def _look_up(image: Image, table: np.ndarray) -> Image:
    """Replaces every value v by table[v]. `table` is [256], or [256, channels]."""
    return cv2.LUT(image, table.astype(np.uint8)[None]).reshape(image.shape)


def _blend(first: Image, second: Image, factor: float) -> Image:
    """first + factor (second - first), clipped and cut to whole levels, as Pillow's `blend`."""
    # OpenCV rounds. To cut instead, subtract a little less than 0.5: 0.5 would lower whole levels.
    return cv2.addWeighted(second, factor, first, 1 - factor, -0.499).reshape(first.shape)


def _blend_level(level: int, image: Image, factor: float) -> Image:
    """`_blend` from an image whose every value is `level`."""
    table = level + np.float32(factor) * (LEVELS - level).astype(np.float32)
    return _look_up(image, np.clip(table, 0, 255))


def auto_contrast(image: Image) -> Image:
    """Stretches each channel's values to 0 … 255, as Pillow's `autocontrast`."""
    rows = image.reshape(len(image), -1)  # columns first, because NumPy is fast there
    low = rows.min(axis=0).reshape(-1, image.shape[-1]).min(axis=0).astype(int)
    high = rows.max(axis=0).reshape(-1, image.shape[-1]).max(axis=0).astype(int)
    scale = 255 / np.maximum(high - low, 1)
    stretched = np.clip(LEVELS[:, None] * scale - low * scale, 0, 255)
    return _look_up(image, np.where(high > low, stretched, LEVELS[:, None]))


def equalize(image: Image) -> Image:
    """Spreads each channel's values evenly over 0 … 255, as Pillow's `equalize`: v becomes
    (pixels below v + s // 2) // s, where s = (pixels - those with the highest value) // 255."""
    tables = []
    for channel in range(image.shape[-1]):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(int)
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        below = np.cumsum(counts) - counts
        tables.append(np.minimum((below + step // 2) // step, 255) if step else LEVELS)
    return _look_up(image, np.stack(tables, axis=-1))


def invert(image: Image) -> Image:
    """255 - v."""
    return 255 - image


def posterize(image: Image, bits: int) -> Image:
    """Keeps the upper `bits` of each value's eight bits: black for 0, the image for 8 or more."""
    return image & np.uint8(256 - 2 ** max(8 - bits, 0))


def solarize_above(image: Image, threshold: float) -> Image:
    """255 - v for values of `threshold` or more. A threshold above 255 changes nothing."""
    return _look_up(image, np.where(threshold > LEVELS, LEVELS, 255 - LEVELS))


def solarize_add(image: Image, addition: int, threshold: int = 128) -> Image:
    """v + `addition`, clipped, for values below `threshold`."""
    return _look_up(image, np.clip(LEVELS + addition * (threshold > LEVELS), 0, 255))


def greyscale(image: Image) -> Image:
    """The luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in each of three channels."""
    if image.shape[-1] != 3:
        return image
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def color(image: Image, factor: float) -> Image:
    """Changes the saturation as Pillow's `ImageEnhance.Color`: 0 is grey, 1 the image, 2 double."""
    return _blend(greyscale(image), image, factor)


def contrast(image: Image, factor: float) -> Image:
    """Changes the contrast as Pillow's `ImageEnhance.Contrast`: 1 is the image, 0 is one level, the
    rounded mean of the grey image (or of all channels if they are not colours)."""
    rows = greyscale(image).reshape(len(image), -1)
    return _blend_level(int(cv2.mean(rows)[0] + 0.5), image, factor)


def brightness(image: Image, factor: float) -> Image:
    """factor v, clipped, as Pillow's `ImageEnhance.Brightness`."""
    return _blend_level(0, image, factor)


def shift_hue(image: Image, fraction: float) -> Image:
    """Turns the hue of HSV by a `fraction` of the colour circle."""
    if image.shape[-1] != 3:
        return image
    work = np.array(image, np.float32, order="C")  # in place: new memory takes five times as long
    cv2.cvtColor(work, cv2.COLOR_RGB2HSV, work)
    work[..., 0] += 360 * (fraction % 1)  # in degrees; OpenCV accepts more than 360
    return cv2.convertScaleAbs(cv2.cvtColor(work, cv2.COLOR_HSV2RGB, work))


# -- transformations of neighbourhoods and places ---------------------------------------------


def sharpness(image: Image, factor: float) -> Image:
    """Changes the sharpness as Pillow's `ImageEnhance.Sharpness`: 0 is the image smoothed by
    `SMOOTH`, 1 the image, 2 sharpened. The border's pixels do not change."""
    sharpened = _blend(cv2.filter2D(image, -1, SMOOTH).reshape(image.shape), image, factor)
    sharpened[[0, -1]], sharpened[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return sharpened


def gaussian_blur(image: Image, sigma: float) -> Image:
    """A Gaussian with a standard deviation of `sigma` pixels. Outside, the border repeats."""
    # With float weights: those of OpenCV's own GaussianBlur have eight bits, and it is slower.
    kernel = cv2.getGaussianKernel(2 * math.ceil(4 * sigma) + 1, sigma, cv2.CV_32F)
    blurred = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return blurred.reshape(image.shape)


def affine(image: Image, matrix, fill: int) -> Image:
    """The new pixel at (x, y) is the old one at matrix @ (x, y, 1), rounded with halves up, or
    `fill` outside the image. `matrix` is [2, 3]. The first pixel is at (0, 0)."""
    height, width = image.shape[:2]
    # OpenCV 5 rounds halves to even, which would double and drop pixels. So add a little.
    matrix = np.asarray(matrix, float) + [[0, 0, 2**-11]]
    how = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(image, matrix, (width, height), flags=how, borderValue=(fill,) * 4)
    return moved.reshape(image.shape)


def rotate(image: Image, degrees: float, fill: int) -> Image:
    """Rotates the image counter-clockwise about its middle."""
    middle = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    return affine(image, cv2.getRotationMatrix2D(middle, -degrees, 1.0), fill)


def cutout(image: Image, half: int, rng: Rng, fill: int) -> Image:
    """Fills a square of side 2 `half` around a random pixel (arXiv 1708.04552). The part outside
    the image is cut off."""
    y, x = (rng.integers(side) for side in image.shape[:2])
    cut = image.copy()
    cut[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = fill
    return cut


# -- policies: tables of transformations ------------------------------------------------------


class Row(NamedTuple):
    """A transformation, and a function of (strength, rng, px) for its arguments after the image.
    The policies were made for images of 224 pixels. Lengths are multiplied by `px` for others."""

    transform: Callable[..., Image]
    arguments: Callable[..., tuple] = lambda s, rng, px=1.0: ()

    def __call__(self, image: Image, strength: float, rng: Rng) -> Image:
        px = min(image.shape[:2]) / 224
        return self.transform(image, *self.arguments(strength, rng, px))


def _sign(rng: Rng) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _happens(probability: float, rng: Rng) -> bool:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability} is not in 0 … 1")
    return rng.random() < probability


def _rows(
    fill: int, turn: float, shear: float, pixels: Callable, factor: Callable
) -> dict[str, Row]:
    """Rows that all policies share. New pixels have the value `fill`. `turn` (degrees) and `shear`
    are those of strength 1. `pixels` and `factor` are functions of the strength."""

    def moved(row: int, column: int, length: Callable[[float, float], float]) -> Row:
        def arguments(s: float, rng: Rng, px: float = 1.0) -> tuple:
            matrix = np.eye(2, 3)
            matrix[row, column] = _sign(rng) * length(s, px)
            return matrix, fill

        return Row(affine, arguments)

    return {
        "AutoContrast": Row(auto_contrast),
        "Equalize": Row(equalize),
        "Rotate": Row(rotate, lambda s, rng, px=1.0: (_sign(rng) * s * turn, fill)),
        "ShearX": moved(0, 1, lambda s, px: s * shear),
        "ShearY": moved(1, 0, lambda s, px: s * shear),
        "TranslateX": moved(0, 2, lambda s, px: pixels(s) * px),
        "TranslateY": moved(1, 2, lambda s, px: pixels(s) * px),
        "Color": Row(color, factor),
        "Contrast": Row(contrast, factor),
        "Brightness": Row(brightness, factor),
        "Sharpness": Row(sharpness, factor),
    }


def _reference_rows(pixels: float, half: float) -> dict[str, Row]:
    """The sixteen of TensorFlow's EfficientNet, which big_vision uses, too; strength = level / 10.

    Two errors of that code are not repeated. Its `contrast` uses the number of pixels / 256 as the
    mean. In its `solarize`, a threshold above 255 wraps around.
    """
    return _rows(GREY, 30, 0.3, lambda s: s * pixels, lambda s, rng, px=1.0: (s * 1.8 + 0.1,)) | {
        "Invert": Row(invert),
        "Posterize": Row(posterize, lambda s, rng, px=1.0: (int(s * 4),)),
        "Solarize": Row(solarize_above, lambda s, rng, px=1.0: (int(s * 256),)),
        "SolarizeAdd": Row(solarize_add, lambda s, rng, px=1.0: (int(s * 110),)),
        "Cutout": Row(cutout, lambda s, rng, px=1.0: (int(s * half * px), rng, GREY)),
    }


RANDAUGMENT = _reference_rows(pixels=100, half=40)
AUTOAUGMENT = _reference_rows(pixels=250, half=100)
# The wide search space of TrivialAugment's code; strength = 0 … 1.
TRIVIALAUGMENT = _rows(
    BLACK, 135, 0.99, lambda s: int(s * 32), lambda s, rng, px=1.0: (1 + _sign(rng) * s * 0.99,)
) | {
    "Identity": Row(lambda image: image),
    "Posterize": Row(posterize, lambda s, rng, px=1.0: (8 - round(s * 6),)),
    "Solarize": Row(solarize_above, lambda s, rng, px=1.0: (255 * (1 - s),)),
}

# Each sub-policy has two transformations: (name, probability, level of ten). `v0` is that of
# EfficientNet's code for ImageNet. It differs from Table 9 of the paper.
POLICIES = {
    "v0": (
        (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)), (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
        (("Color", 0.4, 1), ("Rotate", 0.6, 8)), (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
        (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)), (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
        (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)), (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
        (("Color", 0.6, 1), ("Equalize", 1.0, 2)), (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
        (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)), (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
        (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
        (("Solarize", 0.6, 8), ("Color", 0.6, 9)), (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
        (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)), (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
        (("ShearY", 0.8, 0), ("Color", 0.6, 4)), (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
        (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
        (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
        (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
        (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
        (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)), (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
    ),
}  # fmt: skip


@op(random=True, moves=True)
def randaug(
    image, rng, model_size, num_ops: int = 2, magnitude: float = 15, probability: float = 1.0
):
    """RandAugment (arXiv 1909.13719) as in AugReg (arXiv 2106.10270) and big_vision: `num_ops`
    times one of sixteen equally likely transformations, at level `magnitude` of ten.

    Their code draws a probability of 0.2 … 0.8 for each, but does not use it: it applies each one,
    as in the paper. With these draws, the mean `probability` would be 0.5. Raises ValueError:
    `num_ops` below 1, a negative `magnitude`, a `probability` outside 0 … 1.
    """
    if num_ops < 1 or magnitude < 0:
        raise ValueError(f"num_ops {num_ops} is below 1, or magnitude {magnitude} below 0")
    rows = list(RANDAUGMENT.values())
    for _ in range(num_ops):
        row = rows[rng.integers(len(rows))]
        if _happens(probability, rng):
            image = row(image, magnitude / 10, rng)
    return image


@op(random=True, moves=True)
def autoaugment(image, rng, model_size, policy: str = "v0"):
    """AutoAugment (arXiv 1805.09501): one of the equally likely sub-policies `POLICIES[policy]`.
    Raises KeyError for an unknown policy."""
    policies = POLICIES[policy]
    for name, probability, level in policies[rng.integers(len(policies))]:
        if _happens(probability, rng):
            image = AUTOAUGMENT[name](image, level / 10, rng)
    return image


@op(random=True, moves=True)
def trivialaugment(image, rng, model_size):
    """TrivialAugment (arXiv 2103.10158), wide: one of fourteen transformations at one of 31
    strengths, all equally likely. New pixels are black."""
    rows = list(TRIVIALAUGMENT.values())
    return rows[rng.integers(len(rows))](image, rng.integers(31) / 30, rng)


# (transformation, factor that changes nothing, least factor), in the order of the arguments.
JITTERED = (brightness, 1, 0), (contrast, 1, 0), (color, 1, 0), (shift_hue, 0, -np.inf)


@op(random=True)
def color_jitter(
    image, rng, model_size,
    brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.0,
):  # fmt: skip
    """PyTorch's `ColorJitter`, in random order: factors of 1 ± strength (0 or more) for the first
    three, and a turn of the hue by ± `hue` of the circle. Raises ValueError: negative strength."""
    strengths = (brightness, contrast, saturation, hue)
    for which in rng.permutation(4):
        (transform, middle, least), strength = JITTERED[which], strengths[which]
        if strength:
            factor = rng.uniform(max(middle - strength, least), middle + strength)
            image = transform(image, factor)
    return image


FILLS: dict[str, Callable] = {
    "noise": lambda rng, shape: rng.integers(0, 256, shape, np.uint8),
    "grey": lambda rng, shape: GREY,
    "black": lambda rng, shape: BLACK,
}


@op(random=True)
def random_erasing(
    image, rng, model_size,
    probability: float = 0.25, area_min: float = 0.02, area_max: float = 1 / 3, fill: str = "noise",
):  # fmt: skip
    """Fills a rectangle of `area_min` … `area_max` of the image with one of `FILLS`. Its aspect is
    log-uniform in 0.3 … 1/0.3 (arXiv 1708.04896, Algorithm 1). If ten draws do not fit, nothing
    changes. Raises KeyError: unknown fill; ValueError: impossible areas or probability."""
    filling = FILLS[fill]
    if not 0 < area_min <= area_max <= 1:
        raise ValueError(f"areas {area_min} … {area_max} are not in 0 … 1")
    if not _happens(probability, rng):
        return image
    if drawn := rectangle(image, rng, area_min, area_max, -math.log(0.3)):
        top, left, h, w = drawn
        image = image.copy()
        image[top : top + h, left : left + w] = filling(rng, (h, w, image.shape[2]))
    return image


@op(random=True)
def grey(image, rng, model_size, probability: float = 0.2):
    """`greyscale` with a probability."""
    return greyscale(image) if _happens(probability, rng) else image


@op(random=True)
def solarize(image, rng, model_size, probability: float = 0.2):
    """`solarize_above` 128 with a probability."""
    return solarize_above(image, 128) if _happens(probability, rng) else image


@op(random=True)
def blur(
    image, rng, model_size, probability: float = 0.5, sigma_min: float = 0.1, sigma_max: float = 2.0
):
    """`gaussian_blur` with a probability and a uniformly drawn sigma."""
    sigma = rng.uniform(sigma_min, sigma_max)
    return gaussian_blur(image, sigma) if _happens(probability, rng) else image


THREE_AUGMENT = (grey, solarize, blur)


@op(random=True)
def three_augment(image, rng, model_size):
    """3-Augment of DeiT III (arXiv 2204.07118): `grey`, `solarize` or `blur`, equally likely."""
    return THREE_AUGMENT[rng.integers(3)](image, rng, model_size, 1.0)
