"""What `vit predict` does with a detector: a row for each box, and pictures of them."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.commands.shown import Shown, batches, examples
from vit_jax.errors import UserError, cannot_write, not_finite, printable
from vit_jax.files import whole
from vit_jax.pages import as_csv

if TYPE_CHECKING:
    from vit_jax.data.images import Image

THRESHOLD = 0.5  # the least score of a box that is shown
HEAD = ("image", "class", "score", "x1", "y1", "x2", "y2")


class Found(NamedTuple):
    """An object of an image: its class, its score, its edges x1, y1, x2, y2 in pixels of the file's
    image, and the number of its class."""

    name: str
    score: float
    box: tuple[float, ...]
    number: int


def check(options: argparse.Namespace, model: Any) -> None:
    """Raises UserError for options that do not fit each other."""
    if options.coco and not (options.output or "").endswith(".json"):
        raise UserError("--coco numbers the results of --output=FILE.json: name that file, too")


def write(options: argparse.Namespace, weights: Shown, given: list["Image"]) -> int:
    """Prints the boxes, or writes them: as COCO's results to a .json, as a table elsewhere. With
    --pictures, also each image with its boxes. Returns the exit code."""
    numbered = _numbers(options, weights, given)
    found, least = predicted(options, weights, given), _least(options)
    if options.pictures:
        channels, levels = weights.model.config.channels, weights.prepare.levels
        found = _drawn(found, Path(options.pictures), channels, levels)
    if not options.output:
        for image, boxes in found:
            print(f"{printable(image)}: " + ("" if boxes else f"no box at or above {least:.2f}"))
            for one in boxes:
                where = ", ".join(f"{edge:.1f}" for edge in one.box)
                print(f"  {printable(one.name)} {one.score:.2%} at {where}")
        return 0
    with (
        whole(Path(options.output)) as part,
        part.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        images = list(found)
        as_json = options.output.endswith(".json")
        file.write(_as_coco(images, *numbered) if as_json else _as_table(images))
    count = sum(len(boxes) for _, boxes in images)
    print(f"boxes: {count}, images: {len(images)}; {printable(options.output)}")
    return 0


def _least(options: argparse.Namespace) -> float:
    """The least score of a box. COCO's results have all, because average precision needs them."""
    usual = 0.0 if (options.output or "").endswith(".json") else THRESHOLD
    return usual if options.threshold is None else options.threshold


def _as_table(images: list[tuple["Image", list[Found]]]) -> str:
    rows = [
        (image.name, one.name, f"{one.score:.6f}", *(f"{edge:.2f}" for edge in one.box))
        for image, boxes in images for one in boxes
    ]  # fmt: skip
    return as_csv([HEAD, *rows])


def _numbers(
    options: argparse.Namespace, weights: Shown, given: list["Image"]
) -> tuple[Callable[["Image"], Any], dict[str, Any]]:
    """The id of an image, and the ids of the classes by name, in COCO's results.

    Those of --coco, which has to know them all. Without it an image has the number that its file is
    named by, or that name, and a class its number, from 0.
    """
    if not options.coco:
        categories = {name: number for number, name in enumerate(weights.names)}
        return lambda image: image.file if image.number is None else image.number, categories
    from vit_jax.data.annotated import coco_numbers

    images, categories = coco_numbers(file := Path(options.coco))

    def check(what: str, known: dict[str, Any], names: list[str]) -> None:
        if missing := [name for name in names if name not in known]:
            raise UserError(
                f"{printable(file)} does not list {len(missing)} of the {len(names)} {what}, such "
                f"as {printable(missing[0])}"
            )

    def id_of(image: "Image") -> Any:
        check("images", images, [image.file])  # which may be a page of one that is listed
        return images[image.file]

    check("images", images, [image.file for image in given])
    check("classes", categories, weights.names)
    return id_of, categories


def _as_coco(
    images: list[tuple["Image", list[Found]]], id_of: Callable[["Image"], Any],
    categories: dict[str, Any],
) -> str:  # fmt: skip
    """COCO's results."""
    results = [
        {
            "image_id": id_of(image), "category_id": categories[name],
            "score": round(score, 6),
            "bbox": [round(n, 2) for n in (x1, y1, x2 - x1, y2 - y1)],
        }
        for image, boxes in images for name, score, (x1, y1, x2, y2), _ in boxes
    ]  # fmt: skip
    return json.dumps(results, indent=1) + "\n"


def predicted(
    options: argparse.Namespace, weights: Shown, given: Sequence["Image"]
) -> Iterator[tuple["Image", list[Found]]]:
    """The boxes of each image in turn, best first. Raises UserError where no image can be read, or
    logits are no numbers."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vit_jax.tasks.detection import edges

    model, least = weights.model, _least(options)

    @jax.jit
    def predict(params, pixels, content):
        images = model.data_config.normalise(pixels)
        logits, out = model.apply(params, images, content=content)
        shares = jax.nn.softmax(logits)[..., :-1]
        finite = jnp.isfinite(logits).all(axis=(1, 2)) & jnp.isfinite(out["boxes"]).all(axis=(1, 2))
        return finite, shares.max(axis=-1), shares.argmax(axis=-1), edges(out["boxes"])

    readable = examples(weights, given)
    for chunk, pixels in batches(readable, options.batch_size, lambda one: one[-1]["image"]):
        content = np.ones((len(pixels), 2), np.float32)
        content[: len(chunk)] = [example["objects"].content for _, _, example in chunk]
        finite, scores, classes, boxes = jax.device_get(predict(weights.params, pixels, content))
        for i, (image, (height, width), example) in enumerate(chunk):
            if not finite[i]:
                raise not_finite(f"{printable(image)}: the logits")
            left, top_edge, right, bottom = example["objects"].window
            start, sides = [left, top_edge] * 2, np.array([right - left, bottom - top_edge] * 2)
            of_image = np.clip(start + boxes[i] * sides, 0, [width, height, width, height])
            order = np.argsort(-scores[i], kind="stable")[: options.top]
            labels = classes[i].tolist()
            yield image, [
                Found(weights.names[labels[q]], float(scores[i, q]), tuple(of_image[q].tolist()),
                      labels[q])
                for q in order if scores[i, q] >= least
            ]  # fmt: skip


def _drawn(
    found: Iterator[tuple["Image", list[Found]]], folder: Path, channels: int, levels: Any
) -> Iterator[tuple["Image", list[Found]]]:
    """Also writes each image with its boxes into a folder, as PNG."""
    from vit_jax.data.decode import decode
    from vit_jax.look.pictures import as_rgb, framed, png
    from vit_jax.tasks.detection import COLOURS

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    for number, (image, boxes) in enumerate(found):
        pixels = as_rgb(decode(image.read(), channels, levels))
        for one in boxes:
            pixels = framed(pixels, one.box, COLOURS[one.number % len(COLOURS)])
        with whole(folder / f"{number:04d}-{image.stem}.png") as part:
            part.write_bytes(png(pixels))
        yield image, boxes
