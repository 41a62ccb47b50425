"""Weights of any layout that a command shows image files to, and these files as they are shown."""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_jax.commands.arguments import opened
from vit_jax.errors import UserError, printable
from vit_jax.files import read_bytes
from vit_jax.user_code import only


@dataclasses.dataclass(frozen=True)
class Shown:
    """A model with its weights, and what prepares images as those that it was evaluated on."""

    path: Any  # of the weights
    model: Any
    params: Any
    prepare: Any  # a pipeline of one image
    names: list[str]  # of the outputs; a number where the weights name none

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
    options: argparse.Namespace, check: Callable[[Any, Any], None] = lambda path, model: None
) -> Shown:
    """Opens and fills the model that `options` name. `check(path, model)` raises UserError before
    the weights are read; `options` also has `trust_code`."""
    from vit_jax.data.ops import parse
    from vit_jax.pretrained.load import as_shown, fill

    with only(None, trust_files=options.trust_code):
        weights = opened(options)
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


def files(given: list[str]) -> tuple[list[Path], list[str]]:
    """The files, and what folders hold of images; and a line on what each folder leaves out.

    Raises UserError where there are none."""
    from vit_jax.data.formats import NAMES
    from vit_jax.data.walking import images_below, left_out_text

    found: list[Path] = []
    notes: list[str] = []
    for path in map(Path, given):
        if path.is_dir():
            images, left_out = images_below(path)
            inside = [path / name for name in images]
            regular = [file for file in inside if file.is_file()]
            left_out["pipe, device or broken link"] += len(inside) - len(regular)
            found += regular
            if left_out := +left_out:
                notes.append(f"{printable(path)}: {left_out_text(left_out)}")
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise UserError(f"{printable(path)} is a device or a pipe, not a file")
        else:
            raise UserError(f"{printable(path)}: no such file or folder")
    if not found:
        why = "; ".join(notes) or f"{NAMES} are read"
        raise UserError(f"no images in {', '.join(map(printable, given))}: {why}")
    return found, notes


def images(shown: Shown, given: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """The images uint8 [height, width, channels], as the model takes them, of paths or of arrays.
    Damaged files are named and skipped. Raises UserError where no file can be read."""
    levels = shown.model.config.channels
    for path, image in _readable(given, lambda data: shown.prepare(
        shown.prepare.open(data, levels), None
    )):  # fmt: skip
        yield path, _fitting(shown, path, image)


def batches(
    readable: Iterable[tuple], size: int, image_of: Callable[[tuple], Any] = lambda one: one[-1]
) -> Iterator[tuple[list[tuple], Any]]:
    """What `images` or `examples` gives, `size` at a time, and its images as one array. The array
    always has that size, so that one compiled function serves: zeros fill up the last one."""
    import numpy as np

    readable = iter(readable)
    while chunk := list(itertools.islice(readable, size)):
        images = list(map(image_of, chunk))
        pixels = np.zeros((size, *images[0].shape), np.uint8)
        pixels[: len(images)] = images
        yield chunk, pixels


def examples(shown: Shown, given: Sequence[Any]) -> Iterator[tuple[Any, tuple[int, int], Any]]:
    """As `images`, for a detector: the file's own (height, width), and the example, whose `objects`
    are none, but say where in the file's image the shown one lies."""
    import numpy as np

    from vit_jax.data.objects import Objects

    def prepared(data: bytes) -> tuple[tuple[int, int], Any]:
        image = shown.prepare.open(data, shown.model.config.channels)
        size = image.shape[:2]
        nothing = Objects.of_pixels(np.zeros((0, 4)), np.zeros(0, int), size)
        return size, shown.prepare.example({"image": image, "objects": nothing}, None)

    for path, (size, example) in _readable(given, prepared):
        _fitting(shown, path, example["image"])
        yield path, size, example


def _readable(given: Sequence[Any], prepared: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    from vit_jax.data.levels import DamagedImage

    read = 0
    for path in given:
        try:
            found = prepared(read_bytes(path) if isinstance(path, Path) else path)
        except (DamagedImage, OSError) as error:
            print(printable(f"skipped: {path} ({error})"), file=sys.stderr)
            continue
        read += 1
        yield path, found
    if not read:
        raise UserError(f"none of the {len(given)} files is an image that can be read")


def name_of(given: Any) -> str:
    """What an image is called in a message."""
    return printable(given) if isinstance(given, Path) else "an image"


def _fitting(shown: Shown, path: Any, image: Any) -> Any:
    if image.shape != shown.shape:
        raise UserError(f"{name_of(path)} becomes {image.shape}, the model takes {shown.shape}")
    return image
