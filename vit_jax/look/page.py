"""The page of `vit look`: what a model sees in images, and what its weights are like."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from vit_jax import pages
from vit_jax.look import pictures
from vit_jax.look.attention import evidence, of_boxes, read, rollout
from vit_jax.look.embeddings import token_colours
from vit_jax.look.reconstruction import Reconstructed
from vit_jax.look.seen import Seen
from vit_jax.models.model import ACTIVATIONS, Model

TOP = 5  # classes, or boxes, of an image
LEAST = 0.1  # score of a box that is shown
SIDE = 224  # pixels of a picture, at least
GREY = 128  # of masked patches


@dataclasses.dataclass(frozen=True)
class Photograph:
    """An image as the model is shown it, uint8 [height, width, channels], and its file's name.
    `content` [2]: the shares of its sides that are no padding."""

    name: str
    pixels: np.ndarray
    content: np.ndarray


def of_images(
    model: Model, names: Sequence[str], photographs: Sequence[Photograph], seen: Seen,
    wanted: np.ndarray | None,
) -> list[str]:  # fmt: skip
    """A section for each image. `wanted` [batch] are the classes of the evidence, where they are
    not those predicted."""
    colours = token_colours(seen.tokens)
    parts: list[str] = []
    for number, photograph in enumerate(photographs):
        parts.append(pages.heading(photograph.name))
        of_one = _boxes if seen.boxes is not None else _classes
        parts += of_one(model, names, photograph, seen, number, wanted)
        shown = np.round(255 * colours[number]).astype(np.uint8)
        parts.append(
            pages.details(
                "Tokens of the last layer: their first three principal components as colours",
                pages.tiles([pages.picture(pictures.png(shown), "tokens")], 3, 200),
            )
        )
        parts += _heads(model, photograph, seen, number)
    return parts


def _classes(
    model: Model, names: Sequence[str], photograph: Photograph, seen: Seen, number: int,
    wanted: np.ndarray | None,
) -> Iterable[str]:  # fmt: skip
    """What the model predicts, and which parts of the image its attention leads from."""
    photo = _enlarged(photograph.pixels)
    shown = [pages.figure(_photo(photo), "as the model is shown it")]
    if seen.attention is not None:
        row = read(model, rollout(seen.attention[:, number : number + 1]), seen)[0]
        shown.append(pages.figure(_photo(pictures.lit(photo, row)), "attention rollout"))
    if seen.gradient is not None and seen.attention is not None:
        one = slice(number, number + 1)
        relevance = evidence(seen.attention[:, one], seen.gradient[:, one])
        relevance -= np.eye(relevance.shape[-1])  # what each token began with is no evidence
        row = read(model, relevance, seen)[0]
        label = int(seen.logits[number].argmax() if wanted is None else wanted[number])
        caption = f"evidence for {names[label]}"
        shown.append(pages.figure(_photo(pictures.lit(photo, row)), caption))
    yield pages.tiles(shown, 3, 200)
    if names:
        values = np.asarray(ACTIVATIONS[model.output_activation](seen.logits[number]))
        best = np.argsort(-values, kind="stable")[:TOP]
        written = ".4g" if model.output_activation == "none" else ".2%"
        yield pages.table(
            [("class", "value"), *((names[i], f"{values[i]:{written}}") for i in best)]
        )


def _boxes(
    model: Model, names: Sequence[str], photograph: Photograph, seen: Seen, number: int,
    wanted: np.ndarray | None,
) -> Iterable[str]:  # fmt: skip
    """The surest boxes, each with where its query looks."""
    assert seen.boxes is not None
    shares = _shares(seen, number)
    best = [int(q) for q in np.argsort(-shares.max(axis=1), kind="stable")[:TOP]]
    photo = _enlarged(photograph.pixels)
    down, across = photograph.content * photo.shape[:2]
    looks = of_boxes(seen)[number]
    shown = [pages.figure(_photo(photo), "as the model is shown it")]
    for query in best:
        score, label = shares[query].max(), int(shares[query].argmax())
        if score < LEAST:
            continue
        x, y, width, height = seen.boxes[number, query]
        edges = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        edges = edges * [across, down, across, down]
        picture = pictures.framed(pictures.lit(photo, looks[query]), edges, pictures.ORANGE)
        shown.append(pages.figure(_photo(picture), f"{names[label]} {score:.0%}"))
    yield pages.tiles(shown, 3, 200)
    if len(shown) == 1:
        yield pages.paragraph(f"No box has a score of {LEAST:.0%} or more.")


def _shares(seen: Seen, number: int) -> np.ndarray:
    """The probability of each class for each query of an image [queries, classes]."""
    return np.asarray(ACTIVATIONS["softmax"](seen.logits[number]))[:, :-1]


def _heads(model: Model, photograph: Photograph, seen: Seen, number: int) -> Iterable[str]:
    """Attention of each layer and head, over the image: of the token that the head reads, or of a
    detector's surest query."""
    if seen.attention is None:
        return
    patches = slice(seen.prefix, seen.prefix + seen.grid[0] * seen.grid[1])
    background = pictures.jpeg(pictures.as_rgb(photograph.pixels))
    address = pages.data_address(background)
    style = f".of{number} {{ background: url({address}) 0 0 / 100% 100% }}"
    layers, heads = seen.attention.shape[0], seen.attention.shape[2]
    maps = []
    for layer in range(layers):
        for head in range(heads):
            weights = seen.attention[layer, number : number + 1, head]
            if seen.boxes is None:
                row = read(model, weights, seen)[0]
            else:
                queries = weights[0, -seen.boxes.shape[1] :]
                surest = int(_shares(seen, number).max(axis=-1).argmax())
                row = queries[surest, patches].reshape(seen.grid)
            title = f"layer {layer + 1}, head {head + 1}"
            maps.append(pages.picture(pictures.png(pictures.shade(row)), title, f"of{number}"))
    of = "the surest box" if seen.boxes is not None else "the representation that the head reads"
    summary = f"Attention of {of}: {layers} layers (rows), {heads} heads (columns)"
    yield pages.details(summary, pages.style(style), pages.tiles(maps, heads))


def of_reconstructions(
    photographs: Sequence[Photograph], found: Reconstructed, normalised: bool
) -> list[str]:
    """Each photograph, what the encoder saw of it, and what the decoder made of that. `normalised`:
    whether the model predicts normalised pixels."""
    share = f"{found.masked[0].mean():.0%} of the patches are masked."
    borrowed = (
        " Masked patches have the mean and deviation of the image's, which are not predicted."
    )
    parts = [pages.heading("Reconstruction"), pages.paragraph(share + borrowed * normalised)]
    for photograph, masked, image in zip(
        photographs, found.masked, found.reconstruction, strict=True
    ):
        pixels = photograph.pixels
        sides = [n // m for n, m in zip(pixels.shape[:2], masked.shape, strict=True)]
        hidden = masked.repeat(sides[0], axis=0).repeat(sides[1], axis=1)[..., None]
        whole = np.round(np.clip(image, 0, 255)).astype(np.uint8)
        seen = np.where(hidden, np.uint8(GREY), pixels)
        shown = {photograph.name: pixels, "visible patches": seen, "reconstruction": whole}
        tiles = [pages.figure(_photo(_enlarged(x)), name) for name, x in shown.items()]
        parts.append(pages.tiles(tiles, 3, 200))
    return parts


def of_weights(
    far: np.ndarray | None, similar: np.ndarray | None, components: np.ndarray | None
) -> list[str]:
    """The sections about the weights, whatever image is shown.

    Args:
      far: mean attention distance in pixels [layers, heads].
      similar: similarity of positions [rows, columns, rows, columns].
      components: of the first filters [count, height, width, channels].
    """
    parts: list[str] = []
    if far is not None:
        parts.append(pages.heading("Mean attention distance"))
        columns = {str(layer): row.tolist() for layer, row in enumerate(far, 1)}
        parts.append(pages.points(columns, "layer; a point for each head", "pixels"))
    if similar is not None:
        parts.append(pages.heading("Similarity of position embeddings"))
        rows, columns_ = similar.shape[:2]
        flat = pictures.spread(similar.reshape(-1, rows, columns_))
        sheet = pictures.enlarged(pictures.mosaic(flat, columns_), 3 * SIDE)
        parts.append(pages.picture(pictures.png(sheet), "a tile for each position"))
    if components is not None:
        parts.append(pages.heading("Principal components of the first filters"))
        first = pictures.as_rgb(components[: 4 * 7])
        tiles = np.stack([pictures.spread(one) for one in first])
        sheet = pictures.enlarged(pictures.mosaic(tiles, 14), 160)
        parts.append(pages.picture(pictures.png(sheet), "the largest first"))
    return parts


def of_neighbours(
    photographs: Sequence[Photograph], others: Sequence[Sequence[tuple[np.ndarray, str, float]]]
) -> list[str]:
    """The most similar images of a data set: of each photograph, (pixels, caption, similarity)."""
    parts = [pages.heading("Most similar images")]
    for photograph, near in zip(photographs, others, strict=True):
        shown = [pages.figure(_photo(_enlarged(photograph.pixels)), photograph.name)]
        shown += [
            pages.figure(_photo(_enlarged(pixels)), f"{caption}, {similarity:.3f}")
            for pixels, caption, similarity in near
        ]
        parts.append(pages.tiles(shown, 1 + len(near), 90))
    return parts


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    """As RGB, with a short side of `SIDE` pixels at least."""
    return pictures.enlarged(pictures.as_rgb(pixels), SIDE)


def _photo(pixels: np.ndarray) -> str:
    return pages.picture(pictures.jpeg(pixels), kind="smooth")
