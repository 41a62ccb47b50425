"""Views of one image, for averages over them (test-time augmentation): its mirror, its corners.

A view is a pipeline made from that of evaluation. So each of them can also be evaluated by itself.
"""

from collections.abc import Callable

from vit_jax import calls
from vit_jax.data.declared import op
from vit_jax.data.objects import Moved
from vit_jax.data.ops import Size, window_of
from vit_jax.data.pipeline_text import SHOWN
from vit_jax.errors import UserError, nearest


@op(moves=True, says_where=True)
def mirror(image, rng, model_size):
    """Mirrors the image left to right, always."""
    return Moved(image[:, ::-1], (1.0, 0.0, 0.0, 1.0))


@op(moves=True, says_where=True)
def corner_crop(image, rng, model_size, down: int = 0, across: int = 0, size: Size = None):
    """The part of `size` in a corner: at the top or, with `down=1`, at the bottom; on the left or,
    with `across=1`, on the right."""
    if down not in (0, 1) or across not in (0, 1):
        raise ValueError("down and across are 0 or 1")
    height, width = model_size if size is None else (size, size) if isinstance(size, int) else size
    height, width = min(height, image.shape[0]), min(width, image.shape[1])
    top, left = down * (image.shape[0] - height), across * (image.shape[1] - width)
    part = image[top : top + height, left : left + width]
    return Moved(part, window_of(image, top, left, height, width))


def flipped(text: str) -> list[str]:
    """A pipeline, and the same with the mirror image."""
    parts = list(calls.split(text))
    end = len(parts) - (calls.name_of(parts[-1]) in SHOWN)
    return [text, "|".join([*parts[:end], "mirror", *parts[end:]])]


def cropped(text: str) -> list[str]:
    """A pipeline, and the same with each of the four corners in place of the middle.

    Raises UserError if it does not crop the middle.
    """
    parts = list(calls.split(text))
    at = [number for number, part in enumerate(parts) if calls.name_of(part) == "central_crop"]
    if not at:
        raise UserError(
            f"crops: the pipeline {text!r} has no central_crop, in whose place the corners would "
            "be cut: --config.data.eval.pipeline='decode|resize_small|central_crop'"
        )
    arguments, options = calls.arguments_of(parts[at[-1]])
    size = arguments[0] if arguments else options.get("size")
    corners = [f"corner_crop({down}, {across}, {size})" for down in (0, 1) for across in (0, 1)]
    return [text, *("|".join([*parts[: at[-1]], c, *parts[at[-1] + 1 :]]) for c in corners)]


VIEWS: dict[str, Callable[[str], list[str]]] = {"flip": flipped, "crops": cropped}


def views_of(names: str, text: str) -> list[str]:
    """The pipelines of all views that some names, joined by commas, make of one pipeline. The first
    one is the pipeline itself. `flip,crops` makes ten.

    Raises UserError: there is no such name, or the pipeline cannot be changed so.
    """
    texts = [text]
    for name in dict.fromkeys(name.strip() for name in names.split(",")):
        if name not in VIEWS:
            raise UserError(f"unknown view {name!r}: {nearest(name, VIEWS)}")
        texts = [view for each in texts for view in VIEWS[name](each)]
    return texts
