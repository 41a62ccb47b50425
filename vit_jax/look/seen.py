"""One pass of images through a model, and all that it leaves behind to be looked at."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax.models.model import Model, Params

ATTENTION = re.compile(r"(decoder_)?attention\d+")  # of a detector that of its queries


@dataclasses.dataclass(frozen=True)
class Seen:
    """NumPy arrays, float32. What a family does not have is None.

    logits: [batch, classes], or [batch, queries, classes + 1] of a detector.
    attention: weights [layers, batch, heads, queries, keys]. Of a ViT, queries and keys are its
      tokens: first those that are no patches, `prefix` in number, then the patches. Of a DETR the
      queries are those of its decoder, and the keys are the places of the image.
    gradient: of the logits asked for by `attention`; of classifiers alone.
    tokens: the last layer's [batch, rows, columns, width], each in its place in the image.
    features: [batch, width], which the head reads; [batch, queries, width] of a detector.
    boxes: [batch, queries, 4] of a detector: centre, width and height as shares of the content.
    prefix: number of tokens before the patches.
    grid: rows and columns of the places in `attention`.
    """

    logits: np.ndarray
    attention: np.ndarray | None
    gradient: np.ndarray | None
    tokens: np.ndarray
    features: np.ndarray
    boxes: np.ndarray | None
    prefix: int
    grid: tuple[int, int]

    def first(self, count: int) -> "Seen":
        """What was seen of the first `count` images."""
        axis = {"attention": 1, "gradient": 1}
        kept: dict[str, Any] = {
            name: value.take(range(count), axis=axis.get(name, 0))
            for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }  # fmt: skip
        return dataclasses.replace(self, **kept)


def see(
    model: Model,
    params: Params,
    images: np.ndarray,
    classes: np.ndarray | None = None,
    content: np.ndarray | None = None,
    *,
    gradient: bool = True,
) -> Seen:
    """Shows images to a model.

    Args:
      model, params: as `vit_jax.load_pretrained` gives them.
      images: uint8 [batch, height, width, channels], of the model's size.
      classes: [batch], the classes of which evidence is asked; by default the predicted ones.
      content: [batch, 2] of a detector: the shares of the sides that are no padding.
      gradient: whether that of the attention is wanted, where there is one.
    """
    found = jax.device_get(_compiled(model, gradient)(params, images, classes, content))
    rows, columns = found["tokens"].shape[1:3]
    weights = found["attention"]
    patches_alone = weights is None or weights.shape[-1] == rows * columns
    prefix = 0 if patches_alone else getattr(model.config, "num_prefix", 0)
    return Seen(**found, prefix=prefix, grid=(rows, columns))


@functools.lru_cache(maxsize=4)
def _compiled(model: Model, gradient: bool) -> Callable[..., dict[str, Any]]:
    return jax.jit(functools.partial(_seen, model, gradient))


def _seen(
    model: Model, wanted: bool, params: Params, images: Array, classes: Array | None,
    content: Array | None,
) -> dict[str, Any]:  # fmt: skip
    """The arrays of `Seen`. Where the model has logits of classes and attention between tokens,
    zeros are added to its weights: their gradient is the weights'."""
    shown = model.data_config.normalise(images)
    padded: dict[str, Any] = {} if content is None else {"content": content}

    def applied(**more: Any) -> tuple[Array, dict[str, Array]]:
        return model.apply(params, shown, attention_weights=True, **padded, **more)

    def of_class(added: Array) -> tuple[Array, Any]:
        logits, out = applied(attention_added=added)
        chosen = logits.argmax(axis=-1) if classes is None else classes
        return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum(), (logits, out)

    logits, out = jax.eval_shape(applied)
    weights = jax.eval_shape(_attention, out)
    gradient = None
    if wanted and weights is not None and logits.ndim == 2 and model.config.num_classes:
        zeros = jnp.zeros(weights.shape, weights.dtype)
        gradient, (logits, out) = jax.grad(of_class, has_aux=True)(zeros)
    else:
        logits, out = applied()
    return {
        "logits": logits, "attention": _attention(out), "gradient": gradient,
        "tokens": _in_places(model, out).astype(jnp.float32),
        "features": out["pre_logits"].astype(jnp.float32), "boxes": out.get("boxes"),
    }  # fmt: skip


def _attention(out: dict[str, Array]) -> Array | None:
    """The weights of all layers; None where there are none."""
    names = sorted(name for name in out if ATTENTION.fullmatch(name) and out[name] is not None)
    return jnp.stack([out[name] for name in names]).astype(jnp.float32) if names else None


def _in_places(model: Model, out: dict[str, Array]) -> Float[Array, "batch rows columns width"]:
    """The last layer's tokens, or features, without those that have no place in the image."""
    encoded, map_ = out["encoded"], out.get("backbone_encoded", out["encoded"])
    rows, columns = map_.shape[1:3] if map_.ndim == 4 else model.config.grid
    if encoded.ndim == 4:
        return encoded
    patches = rows * columns
    prefix = 0 if encoded.shape[1] == patches else model.config.num_prefix
    return encoded[:, prefix : prefix + patches].reshape(len(encoded), rows, columns, -1)
