"""A pipeline string, parsed: `decode|inception_crop(224)|flip_lr|value_range(-1, 1)`.

The first call is `decode`, which gives pixels; `buckets` may follow. The operations behind stand in
`OPS`, or are the user's own. The last one may say how the device shows the pixels to the model.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vit_jax import calls
from vit_jax.data.declared import DECLARED, OPS, Declared
from vit_jax.data.decode import EncodedJpeg, encoded
from vit_jax.data.levels import Levels
from vit_jax.data.objects import Moved, Padded
from vit_jax.errors import UserError, nearest, printable
from vit_jax.records import is_number
from vit_jax.user_code import imported

Example = dict[str, Any]


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


# Of a bucket: the side of a square, a share of the model's sides, or (height, width).
Size = int | float | tuple[int, int]
MOST_PIXELS = 2**25  # of a bucket: each operation is tried on an image of its size


def buckets(*sizes: Size) -> tuple[Size, ...]:
    """All images of a training step have one of these sizes: (height, width), one side of a square,
    or a share in 0 … 1 of the model's sides. It is drawn for each step, and the operations behind
    take it where they are given none. The training step is compiled for every size before training.
    It comes right behind `decode`. The largest size is the model's, which evaluation has."""
    for size in sizes:
        sides = size if isinstance(size, tuple) else (size, size)
        share = isinstance(size, float) and 0 < size <= 1
        if len(sides) != 2 or not (share or all(type(n) is int and n > 0 for n in sides)):
            raise ValueError(
                "a size is (height, width), one side, or a share in 0 … 1 of the model's sides, "
                f"not {size!r}"
            )
        if not share and sides[0] * sides[1] > MOST_PIXELS:
            raise ValueError(f"{size!r} has more than {MOST_PIXELS:,} pixels")
    if len(set(sizes)) < max(2, len(sizes)):
        raise ValueError("it takes two sizes or more, each of them once")
    shares = [size for size in sizes if isinstance(size, float)]
    if shares and max(shares) < 1:
        raise ValueError("the largest share is 1.0, the model's size; 1 is a side of one pixel")
    return sizes


def _in_pixels(sizes: tuple[Size, ...], model_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Sizes of `buckets` as (height, width)."""

    def of(size: Size) -> tuple[int, int]:
        if isinstance(size, float):
            return max(1, round(size * model_size[0])), max(1, round(size * model_size[1]))
        return size if isinstance(size, tuple) else (size, size)

    return tuple(dict.fromkeys(map(of, sizes)))


# Last operations, which the device does: functions that return (mean, std), as in data.mean.
SHOWN: dict[str, Callable] = {"value_range": value_range, "normalise": normalise}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline string, called with (image, rng). `random`: whether it draws from `rng`, or
    its size for each step."""

    text: str
    steps: tuple["Step", ...]
    random: bool
    encoded: bool = False  # the first operation takes an EncodedJpeg
    levels: Levels | None = None  # the range of values of more than 8 bits
    shown: tuple[Any, Any] | None = None  # mean and std, if the text states them
    sizes: tuple[tuple[int, int], ...] = ()  # those of `buckets`, of which each step has one

    def at(self, size: tuple[int, int]) -> "Pipeline":
        """The same, for images of one size alone."""
        steps = tuple(dataclasses.replace(step, model_size=size) for step in self.steps)
        return dataclasses.replace(self, steps=steps, sizes=())

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
    sizes: tuple[tuple[int, int], ...] = ()
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
        known = OPS | SHOWN | {"buckets": buckets}
        function = imported(name, "an operation") if ":" in name else known.get(name)
        if function is None:
            raise UserError(f"unknown operation {part!r} in pipeline: {nearest(name, known)}")
        try:
            arguments, options = calls.arguments_of(part)
            if name in SHOWN:
                shown = function(*arguments, **options)
                continue
            if function is buckets:
                if number > 1:
                    raise ValueError("it comes right behind decode")
                sizes = _in_pixels(buckets(*arguments, **options), model_size)
                continue
            step = Step(name, model_size, arguments, options)
            result = step({"image": blank}, np.random.default_rng(0))["image"]
            if result.ndim != blank.ndim or not result.size or result.dtype != np.uint8:
                raise ValueError(f"makes an image of {result.dtype}, of shape {result.shape}")
        except Exception as error:  # an operation may raise anything about its arguments
            raise _misused(part, function, error) from error
        declared = DECLARED.get(function, Declared())
        encoded = encoded or (not steps and declared.encoded)
        steps.append(step)
        follow = declared.changes + ("objects",) * declared.says_where
        left = sorted(set(placed) - set(follow)) if declared.moves else []
        if left:
            raise UserError(
                f"operation {part!r} in pipeline moves what the image shows, but not the "
                f"example's {', '.join(left)}"
            )
        draws = draws or declared.random
    draws = draws or bool(sizes)
    parsed = Pipeline(text, tuple(steps), draws, encoded, levels, shown, sizes)
    _check_sizes(parsed)
    return parsed


def _check_sizes(pipeline: Pipeline) -> None:
    """Raises UserError where the operations do not make images of each of the buckets' sizes."""
    largest = max(pipeline.sizes, key=math.prod, default=())
    for size in pipeline.sizes:
        where = f"pipeline {pipeline.text!r} in the bucket {size[0]} × {size[1]}"
        blank = np.zeros((*largest, 3), np.uint8)
        try:
            tall, wide, _ = pipeline.at(size)(blank, np.random.default_rng(0)).shape
        except Exception as error:  # an operation may raise anything about an image
            raise UserError(f"{where}: {error}") from error
        if (tall, wide) != size:
            raise UserError(
                f"{where} makes an image {tall} × {wide}: an operation such as resize, pad or a "
                "crop must make the size, and must not state another one"
            )


def _misused(part: str, function: Callable, error: Exception) -> UserError:
    """The error for arguments that an operation cannot use."""
    wants = list(map(str, inspect.signature(function).parameters.values()))
    of_image = function not in (decode, buckets, *SHOWN.values())
    name, takes = calls.name_of(part), ", ".join(wants[3 if of_image else 0 :])
    reason = " ".join(f"{error}".split())[:200]
    return UserError(f"operation {part!r} in pipeline: {name} takes ({takes}): {reason}")
