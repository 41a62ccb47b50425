"""Shows what a model sees in images: one page, which needs no network.

vit look runs/pets cat.jpg --output=look.html
vit look hf://google/vit-base-patch16-224 photos/ --output=look.html --class=tabby
vit look runs/pets cat.jpg --output=look.html --data=folder:PHOTOS --split=train
vit look runs/mae photos/ --output=look.html --mask-ratio=0.9

The page has, of each image, attention rollout, the evidence for a class, the attention of every
layer and head, and the last layer's tokens as colours; of a detector its boxes and where each one
looks; of a masked autoencoder the patches that it does not see, as it reconstructs them. Of the
weights: how far each head looks, the similarity of positions, the first filters. With --data, how
far heads look is the mean over images of that source, and the most similar of them are shown.
--arrays writes the numbers behind the page. What a family does not have is named.

The functions are `vit_jax.look` in Python.
"""

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import Any

from vit_jax.commands import shown
from vit_jax.commands.arguments import IMAGES, SOURCE, Options
from vit_jax.commands.output import check_files, say
from vit_jax.errors import UserError, nearest, not_finite, printable
from vit_jax.files import whole, write_text
from vit_jax.user_code import FLAG

MOST = 16  # images on a page
OPTIONS: Options = SOURCE | {
    "images": dict(nargs="+", help=f"{IMAGES}; {MOST} images at most"),
    "--output": dict(required=True, metavar="PAGE.html", help="the page"),
    "--class": dict(metavar="NAME", dest="of_class", help="the class whose evidence is shown, by "
                    "its name or number; by default the predicted one"),
    "--data": dict(metavar="SOURCE", help="images for statistics, such as folder:PATH"),
    "--split": dict(help="their split (the source's first one)"),
    "--examples": dict(type=int, default=256, help="images of --data that are shown (256)"),
    "--mask-ratio": dict(type=float, metavar="SHARE", help="of a masked autoencoder: the share of "
                         "patches that it does not see (as in training)"),
    "--arrays": dict(metavar="FILE.npz", help="write the numbers behind the page"),
    FLAG: dict(action="store_true", help="run the operations that the weights' pipeline names by "
               "import path, such as my_ops:crop; without it such weights are refused"),
}  # fmt: skip

NEAR = 5  # most similar images
AT_ONCE = 8  # images of --data in a pass


def run(options: argparse.Namespace) -> int:
    """Does it; returns the exit code."""
    if options.examples < 1:
        raise UserError("--examples is at least 1")
    from vit_jax.data.images import images_named

    given, notes = images_named(options.images)
    _check_number(len(given))
    check_files(options)
    whole_model = _masking(options.mask_ratio, shown.weights_of(options, decoder=True))
    weights = shown.of_encoder(whole_model)
    wanted = _class(options.of_class, weights)
    source = _source(options)
    for line in notes:
        say(line)

    import numpy as np

    from vit_jax import look, pages
    from vit_jax.look import page

    photographs = list(itertools.islice(_photographs(weights, given), MOST + 1))
    _check_number(len(photographs), of_pages=True)
    pixels = np.stack([one.pixels for one in photographs])
    content = np.stack([one.content for one in photographs])
    classes = None if wanted is None else np.full(len(pixels), wanted)
    seen = look.see(
        weights.model, weights.params, pixels, classes, content if weights.detects else None
    )
    if not np.isfinite(seen.logits).all():
        raise not_finite(f"{printable(weights.path)}: the logits")
    size = weights.model.config.image_size
    own = seen.attention is not None and seen.attention.shape[-1] == seen.attention.shape[-2]
    far = look.distance(seen, size) if own else None
    parts, near = [], None
    if source is not None:
        far, near = _statistics(weights, source, options.examples, seen, own)
        parts = page.of_neighbours(photographs, near)
    table = look.positions(weights.model, weights.params)
    similar = None if table is None else look.position_similarity(table)
    components = look.filters(weights.params)
    lacking = [what for what, lacks in (
        ("attention between patches", not own), ("evidence for a class", seen.gradient is None),
        ("positions", similar is None), ("filters of pixels", components is None),
    ) if lacks]  # fmt: skip
    reconstructed, first = _reconstructed(whole_model, photographs, pixels)
    about = f"{whole_model.model.name}, {whole_model.model.num_params:,} parameters"
    if lacking:
        about += f". It has no {', no '.join(lacking)}"
    write_text(Path(options.output), pages.page(
        f"What {weights.path} sees", pages.paragraph(f"{about}."), *first,
        *page.of_images(weights.model, weights.names, photographs, seen, classes), *parts,
        *page.of_weights(far, similar, components),
    ))  # fmt: skip
    if options.arrays:
        numbers = {"distance": far, "position_similarity": similar, "filters": components}
        _write_arrays(Path(options.arrays), seen, reconstructed, **numbers)
    say(f"{about}: {printable(options.output)}")
    return 0


def _class(name: str | None, weights: shown.Shown) -> int | None:
    """The number of the class that is asked for. Raises UserError where there is none."""
    if name is None:
        return None
    if weights.detects:
        raise UserError("--class is of classifiers; of a detector each box is shown")
    if name in weights.names:
        return weights.names.index(name)
    if name.isdecimal() and int(name) < len(weights.names):
        return int(name)
    raise UserError(f"--class={name}: no class of these weights; {nearest(name, weights.names)}")


def _source(options: argparse.Namespace) -> Any:
    """The data set for statistics; None without --data."""
    if not options.data:
        if options.split:
            raise UserError("--split is of --data=SOURCE")
        return None
    from vit_jax.data.sources import open_source, split_names

    return open_source(options.data, options.split or split_names(options.data)[0])


def _check_number(count: int, of_pages: bool = False) -> None:
    """Raises UserError for more images than a page shows."""
    if count > MOST:
        more = f"more than {MOST}" if of_pages else count
        raise UserError(f"{more} images: a page shows {MOST} at most")


def _photographs(weights: shown.Shown, given: list[Any]) -> Any:
    import numpy as np

    from vit_jax.look.page import Photograph

    if weights.detects:
        for image, _, example in shown.examples(weights, given):
            content = np.asarray(example["objects"].content, np.float32)
            yield Photograph(image.file, example["image"], content)
    else:
        for name, image in shown.images(weights, given):
            yield Photograph(Path(name).name, image, np.ones(2, np.float32))


def _statistics(
    weights: shown.Shown, source: Any, examples: int, seen: Any, own: bool
) -> tuple[Any, list[list[Any]]]:
    """How far heads look, as the mean over examples of a source [layers, heads]; and of each image
    of `seen` those of them that are most similar: (pixels, caption, similarity)."""
    import numpy as np

    from vit_jax import look
    from vit_jax.data.levels import DamagedImage

    model, prepare = weights.model, weights.prepare
    numbers, pixels = [], []
    for number in np.linspace(0, len(source) - 1, min(examples, len(source))).astype(int).tolist():
        try:
            image = prepare.open(source[number]["image"], model.config.channels)
            pixels.append(prepare(image, None))
        except DamagedImage as error:
            say(printable(f"skipped: {source.describe(number)} ({error})"))
            continue
        numbers.append(number)
    if not pixels:
        raise UserError(f"--data: none of {examples} examples is an image that can be read")
    features, far = [], []
    for start in range(0, len(pixels), AT_ONCE):
        batch = pixels[start : start + AT_ONCE]
        filled = np.stack(batch + batch[-1:] * (min(AT_ONCE, len(pixels)) - len(batch)))
        one = look.see(model, weights.params, filled, gradient=False).first(len(batch))
        features.append(_described(one))
        if own:
            far += [len(batch) * look.distance(one, model.config.image_size)]
    order, similar = look.nearest(_described(seen), np.concatenate(features), NEAR)
    near = [
        [(pixels[i], Path(source.describe(numbers[i])).name, float(value))
         for i, value in zip(of_image, values, strict=True)]
        for of_image, values in zip(order.tolist(), similar.tolist(), strict=True)
    ]  # fmt: skip
    return sum(far) / len(pixels) if own else None, near


def _described(seen: Any) -> Any:
    """One vector of each image: what its head reads, or of a detector the mean of its places."""
    return seen.tokens.mean(axis=(1, 2)) if seen.boxes is not None else seen.features


def _reconstructed(weights: shown.Shown, photographs: Any, pixels: Any) -> tuple[Any, list[str]]:
    """What a masked autoencoder reconstructs, and a section on it; None and nothing of others."""
    import numpy as np

    from vit_jax import look
    from vit_jax.look import page

    model = weights.model
    if model.family.encoder is None:
        return None, []
    found = look.reconstruct(model, weights.params, pixels)
    if not np.isfinite(found.prediction).all():
        raise not_finite(f"{printable(weights.path)}: the prediction")
    return found, page.of_reconstructions(photographs, found, model.config.norm_pixels)


def _masking(share: float | None, weights: shown.Shown) -> shown.Shown:
    """The weights with another share of masked patches. Raises UserError where it cannot be."""
    if share is None:
        return weights
    if weights.model.family.encoder is None:
        raise UserError("--mask-ratio is of masked autoencoders, whose decoder is in the weights")
    from vit_jax.models.registry import make_config

    fields = vars(weights.model.config) | {"mask_ratio": share}
    config = make_config(type(weights.model.config), fields, "--mask-ratio")
    return dataclasses.replace(weights, model=dataclasses.replace(weights.model, config=config))


def _write_arrays(path: Path, seen: Any, reconstructed: Any, **others: Any) -> None:
    """Writes what was seen and reconstructed, and the numbers of the weights, by their names."""
    import numpy as np

    arrays = {**vars(seen), **(vars(reconstructed) if reconstructed else {}), **others}
    with whole(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **{k: v for k, v in arrays.items() if v is not None})
