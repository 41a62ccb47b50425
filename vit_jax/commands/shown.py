"""Weights of any layout that a command shows images to, and these images as they are shown."""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vit_jax.commands.arguments import opened
from vit_jax.errors import UserError, printable
from vit_jax.user_code import only

if TYPE_CHECKING:
    from vit_jax.data.images import Image


def say_skipped(name: str, error: Exception) -> None:
    """A line about an image that cannot be read."""
    print(printable(f"skipped: {name} ({error})"), file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A model with its weights, and what prepares images as those that it was evaluated on."""

    path: Any  # of the weights
    model: Any
    params: Any
    prepare: Any  # a pipeline of one image
    names: list[str]  # of the outputs; a number where the weights name none
    # What is done about the name of an image that cannot be read, and the reason.
    damaged: Callable[[str, Exception], None] = say_skipped

    @property
    def detects(self) -> bool:
        """Whether the model finds boxes."""
        return hasattr(self.model.config, "num_queries")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        c = self.model.config
        return (*c.image_size, c.channels)


def weights_of(
    options: argparse.Namespace, check: Callable[[Any, Any], None] = lambda path, model: None,
    *, decoder: bool = False,
) -> Shown:  # fmt: skip
    """Opens and fills the model that `options` name. `check(path, model)` raises UserError before
    the weights are read; `options` also has `trust_code`. `decoder`: whether that of a masked
    autoencoder is wanted, too."""
    from vit_jax.data.pipeline_text import parse
    from vit_jax.pretrained.load import as_shown, fill

    with only(None, trust_files=options.trust_code):
        weights = opened(options, decoder=decoder)
    c = weights.model.config
    model = as_shown(weights)
    check(weights.path, model)
    size = model.config.image_size
    try:
        prepare = parse(
            model.data_config.pipeline(size), size, imports=options.trust_code, channels=c.channels
        )
    except UserError as error:
        raise UserError(f"{printable(weights.path)}: {error}") from error
    params, report = fill(weights, model)
    for line in report.warnings:
        print(f"warning: {line}", file=sys.stderr)
    names = [*(weights.classes or ())]  # a head may have more outputs than there are names
    names += map(str, range(len(names), c.num_classes or 0))
    return Shown(weights.path, model, params, prepare, names)


def of_encoder(shown: Shown) -> Shown:
    """A masked autoencoder without its decoder. All others stay as they are."""
    if shown.model.family.encoder is None:
        return shown
    from vit_jax.pretrained.mae import encoder_of

    model = encoder_of(shown.model)
    params = {name: shown.params[name] for name in model.abstract_params}
    return dataclasses.replace(shown, model=model, params=params)


def images(shown: Shown, given: Sequence["Image"]) -> Iterator[tuple[str, Any]]:
    """(Name, uint8 [height, width, channels]) of each image, as the model takes it. Damaged ones
    are skipped, as `shown.damaged` says. Raises UserError where none can be read."""
    levels = shown.model.config.channels
    for image, pixels in _readable(shown, given, lambda data: shown.prepare(
        shown.prepare.open(data, levels), None
    )):  # fmt: skip
        yield image.name, _fitting(shown, image, pixels)


def batches(
    readable: Iterable[tuple], size: int, image_of: Callable[[tuple], Any] = lambda one: one[-1]
) -> Iterator[tuple[list[tuple], Any]]:
    """What `images` or `examples` gives, `size` at a time, and its images as one array. All arrays
    have the size of the first one, so that one compiled function serves: zeros fill up the last."""
    import numpy as np

    readable = iter(readable)
    chunk = list(itertools.islice(readable, size))
    size = len(chunk)
    while chunk:
        images = list(map(image_of, chunk))
        pixels = np.zeros((size, *images[0].shape), np.uint8)
        pixels[: len(images)] = images
        yield chunk, pixels
        chunk = list(itertools.islice(readable, size))


def examples(
    shown: Shown, given: Sequence["Image"]
) -> Iterator[tuple["Image", tuple[int, int], Any]]:
    """As `images`, for a detector: the file's own (height, width), and the example, whose `objects`
    are none, but say where in the file's image the shown one lies."""
    import numpy as np

    from vit_jax.data.objects import Objects

    def prepared(data: Any) -> tuple[tuple[int, int], Any]:
        image = shown.prepare.open(data, shown.model.config.channels)
        size = image.shape[:2]
        nothing = Objects.of_pixels(np.zeros((0, 4)), np.zeros(0, int), size)
        return size, shown.prepare.example({"image": image, "objects": nothing}, None)

    for image, (size, example) in _readable(shown, given, prepared):
        _fitting(shown, image, example["image"])
        yield image, size, example


def _readable(
    shown: Shown, given: Sequence["Image"], prepared: Callable[[Any], Any]
) -> Iterator[tuple["Image", Any]]:
    from vit_jax.data.images import readable

    read = 0
    for image, found in readable(given, prepared, shown.damaged):
        read += 1
        yield image, found
    if given and not read:
        raise UserError(f"none of the {len(given)} images can be read")


def _fitting(shown: Shown, image: "Image", pixels: Any) -> Any:
    if pixels.shape != shown.shape:
        raise UserError(
            f"{printable(image)} becomes {pixels.shape}, the model takes {shown.shape}: the "
            f"weights' pipeline, {shown.prepare.text}, does not resize to it"
        )
    return pixels
